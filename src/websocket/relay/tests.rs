//! The timers of a relay between two peers in memory, on a paused clock: no test waits for real time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::super::authorizer::{RevalidateFuture, SessionAuthorizer, VerifyFuture};
use super::super::frame::{apply_mask, close_payload};
use super::super::session::{Credential, Session, SessionLimits, Verdict};
use super::settings::Millis;
use super::*;
use crate::auth::{RemoteCheck, Revalidation, RevocationKeys, StoredIdentity};
use crate::runtime::Notifier;
use crate::telemetry::Metrics;

/// Bytes that fit between the relay and one of its peers.
const ROOM: usize = 64 << 10;

const TIMES: RelaySettings = RelaySettings {
    ping_interval: Millis(30_000),
    ping_timeout: Millis(10_000),
    idle_timeout: None,
    send_timeout: Millis(60_000),
    token_bytes: 8 << 10,
    message_bytes: 1 << 20,
    drain_code: 1012,
};

/// Denies the route once it is told to.
struct TestAuthorizer(Arc<AtomicBool>);

impl SessionAuthorizer for TestAuthorizer {
    fn verify(&self, _identity: &StoredIdentity, _token: Token) -> VerifyFuture {
        Box::pin(std::future::ready(Verdict::Denied))
    }

    fn revalidate(&self, _identity: &StoredIdentity, _check: &RemoteCheck) -> RevalidateFuture {
        Box::pin(std::future::ready(Revalidation::Active))
    }

    fn is_revoked(&self, _revocation_keys: &RevocationKeys) -> bool {
        false
    }

    fn is_current(&self, _identity: &StoredIdentity) -> bool {
        true
    }

    fn reauthorize(&mut self, _identity: Option<&StoredIdentity>) -> Result<(), CloseReason> {
        if self.0.load(Ordering::Relaxed) { Err(CloseReason::Denied) } else { Ok(()) }
    }

    fn last_seen(&self) -> Option<u64> {
        None
    }

    fn count_expiry(&self, _action: &'static str) {}

    fn count_limit(&self, _limit: &'static str) {}
}

/// A running relay with its two peers.
struct TestRelay {
    client: TestPeer,
    upstream: TestPeer,
    relay: JoinHandle<SocketOutcome>,
    notifier: Notifier,
    is_denied: Arc<AtomicBool>,
    begun: Instant,
}

impl TestRelay {
    fn start(settings: RelaySettings) -> Self {
        Self::with_room(settings, ROOM)
    }

    /// Starts with room for this many bytes between the relay and its client.
    fn with_room(settings: RelaySettings, room: usize) -> Self {
        let (client, ours) = duplex(room);
        Self::between(settings, client, Socket::Memory(Box::new(ours)))
    }

    fn between(settings: RelaySettings, client: DuplexStream, ours: Socket) -> Self {
        let (upstream, theirs) = duplex(ROOM);
        let credential = Credential {
            identity: StoredIdentity::example(u64::MAX / 2_000),
            is_open_ended: false,
            clock_skew: Duration::ZERO,
            revocation_keys: None,
            revalidation: None,
            renews: false,
        };
        let input = RelayInput {
            client: ours,
            upstream: Socket::Memory(Box::new(theirs)),
            from_client: Vec::new(),
            from_upstream: Vec::new(),
            first_to_client: Vec::new(),
            first_to_upstream: None,
            has_extensions: false,
            session: Session::open(None, SessionLimits::default(), credential, unix_millis()),
            upstream_dialect: None,
            token: None,
            held_messages: MemoryBudget::default(),
        };
        let (notifier, is_denied) = (Notifier::default(), Arc::new(AtomicBool::new(false)));
        let authorizer = Box::new(TestAuthorizer(Arc::clone(&is_denied)));
        let passed = Metrics::default().sockets.opened(&"test".into(), None);
        let relay = Relay::new(input, authorizer, notifier.subscribe_staggered(), settings, passed);
        Self {
            client: TestPeer { stream: client, is_client: true },
            upstream: TestPeer { stream: upstream, is_client: false },
            relay: tokio::spawn(relay),
            notifier,
            is_denied,
            begun: Instant::now(),
        }
    }

    /// Denies the route from now on.
    fn denies(&self) {
        self.is_denied.store(true, Ordering::Relaxed);
        self.notifier.notify();
    }

    fn seconds(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }
}

struct TestPeer {
    stream: DuplexStream,
    is_client: bool,
}

impl TestPeer {
    fn frame(&self, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, opcode, payload, self.is_client.then_some([0; 4]));
        bytes
    }

    async fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame = self.frame(opcode, payload);
        self.stream.write_all(&frame).await.expect("taken");
    }

    async fn close(&mut self, code: u16) {
        self.send(Opcode::Close, &close_payload(code, "")).await;
    }

    /// Returns the next frame, `None` at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = match head[1] & 0x7f {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            length => u64::from(length),
        };
        let mut mask = [0; 4];
        if !self.is_client {
            self.stream.read_exact(&mut mask).await.ok()?;
        }
        let mut payload = vec![0; usize::try_from(length).expect("small")];
        self.stream.read_exact(&mut payload).await.ok()?;
        apply_mask(&mut payload, mask, 0);
        Some((head[0] & 0x0f, payload))
    }

    /// Returns the code of the next Close; whatever comes before it is read over, and pings are answered.
    async fn next_close(&mut self) -> Option<u16> {
        loop {
            let (opcode, payload) = self.next().await?;
            match opcode {
                8 => return payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
                9 => self.send(Opcode::Pong, &payload).await,
                _ => {}
            }
        }
    }
}

/// One side sends a message of a megabyte, and the other reads none of it for 50 s.
async fn outlasts_a_pause(pick: impl Fn(TestRelay) -> (TestPeer, TestPeer, JoinHandle<SocketOutcome>)) {
    let (mut sender, mut reader, relay) = pick(TestRelay::start(TIMES));
    let message = vec![b'x'; 1 << 20];
    let sending = tokio::spawn(async move {
        sender.send(Opcode::Binary, &message).await;
        sender
    });
    sleep(Duration::from_secs(50)).await;
    let (opcode, payload) = reader.next().await.expect("the message");
    assert_eq!((opcode, payload.len()), (2, 1 << 20));
    let mut sender = sending.await.expect("sent");
    // Its silence counts from now on, not from before.
    sleep(Duration::from_secs(29)).await;
    assert!(!relay.is_finished());
    reader.send(Opcode::Text, b"thanks").await;
    assert_eq!(sender.next().await, Some((1, b"thanks".to_vec())));
}

#[tokio::test(start_paused = true)]
async fn a_client_lives_through_a_pause_of_its_upstream() {
    outlasts_a_pause(|relayed| (relayed.client, relayed.upstream, relayed.relay)).await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_lives_through_a_pause_of_its_client() {
    outlasts_a_pause(|relayed| (relayed.upstream, relayed.client, relayed.relay)).await;
}

#[tokio::test(start_paused = true)]
async fn a_side_that_takes_nothing_is_judged_by_send_timeout_alone() {
    let TestRelay { client: _client, mut upstream, relay, begun, .. } = TestRelay::start(TIMES);
    let _flood = tokio::spawn(async move {
        let message = vec![0; 1 << 20];
        upstream.send(Opcode::Binary, &message).await;
    });
    let outcome = relay.await.expect("ends");
    assert_eq!((outcome.closed_by, begun.elapsed().as_secs()), (ClosedBy::Vestibule, 60));
}

#[tokio::test(start_paused = true)]
async fn a_steady_reader_is_not_dead_while_our_ping_stands_behind_what_it_reads() {
    let TestRelay { mut client, mut upstream, relay, begun, .. } = TestRelay::with_room(TIMES, 4 << 20);
    let message = vec![0; 3 << 20];
    upstream.send(Opcode::Binary, &message).await;
    // The upstream answers our pings, whenever they come.
    tokio::spawn(async move { upstream.next_close().await });
    let mut taken = 0;
    while taken < message.len() {
        sleep(Duration::from_millis(100)).await;
        let mut chunk = [0; 1_500];
        let length = client.stream.read(&mut chunk).await.expect("reads");
        assert!(length > 0, "it was ended after {} s", begun.elapsed().as_secs());
        taken += length;
    }
    assert!(begun.elapsed() > Duration::from_secs(180) && !relay.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_side_that_answers_no_ping_is_dead_after_ping_timeout() {
    let TestRelay { client: _client, mut upstream, relay, begun, .. } = TestRelay::start(TIMES);
    tokio::spawn(async move { upstream.next_close().await });
    assert_eq!(relay.await.expect("ends").closed_by, ClosedBy::Vestibule);
    assert_eq!(begun.elapsed().as_secs(), 40);
}

/// One side says more than fits and closes; the other reads after 8 s.
async fn is_delivered_to_the_last_byte(pick: impl Fn(TestRelay) -> (TestPeer, TestPeer, JoinHandle<SocketOutcome>)) {
    let (mut sender, mut reader, relay) = pick(TestRelay::start(TIMES));
    let message = vec![b'x'; 100 << 10];
    sender.send(Opcode::Binary, &message).await;
    sender.close(1000).await;
    sleep(Duration::from_secs(8)).await;
    assert_eq!(reader.next().await, Some((2, message)));
    assert_eq!(reader.next_close().await, Some(1000));
    reader.close(1000).await;
    assert_eq!(sender.next_close().await, Some(1000));
    drop((sender, reader));
    assert_eq!(relay.await.expect("ends").code, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn what_stands_before_the_upstreams_close_reaches_a_late_client() {
    is_delivered_to_the_last_byte(|relayed| (relayed.upstream, relayed.client, relayed.relay)).await;
}

#[tokio::test(start_paused = true)]
async fn what_stands_before_the_clients_close_reaches_a_late_upstream() {
    is_delivered_to_the_last_byte(|relayed| (relayed.client, relayed.upstream, relayed.relay)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_left_goes_up_though_it_takes_no_answer() {
    let TestRelay { mut client, mut upstream, relay, .. } = TestRelay::start(TIMES);
    let message = vec![b'x'; 170 << 10];
    // More than the upstream and the relay take, so that the client is not read when it leaves.
    client.send(Opcode::Binary, &message).await;
    drop(client);
    upstream.send(Opcode::Text, b"to nobody").await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(upstream.next().await, Some((2, message)));
    assert_eq!(upstream.next().await, None);
    drop(upstream);
    let outcome = relay.await.expect("ends");
    assert_eq!((outcome.code, outcome.closed_by), (None, ClosedBy::Client));
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_1011_when_its_upstream_is_lost_inside_what_had_not_gone_on() {
    let control_frame = [0x89, 5, b'p', b'i'];
    for begun in [&[0x82][..], &[0x82, 126, 1], &control_frame] {
        let TestRelay { mut client, mut upstream, .. } = TestRelay::start(TIMES);
        upstream.send(Opcode::Text, b"whole").await;
        upstream.stream.write_all(begun).await.expect("taken");
        drop(upstream);
        assert_eq!(client.next().await, Some((1, b"whole".to_vec())));
        assert_eq!(client.next_close().await, Some(1011), "behind {begun:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ending_reaches_both_sides_while_each_is_inside_what_has_not_gone_on() {
    for begun in [&[0x82][..], &[0x89, 0x85, 0, 0, 0, 0, b'p']] {
        let mut relayed = TestRelay::start(TIMES);
        relayed.client.stream.write_all(begun).await.expect("taken");
        relayed.upstream.stream.write_all(&[0x89, 5, b'p']).await.expect("taken");
        sleep(Duration::from_secs(1)).await;
        relayed.denies();
        assert_eq!(relayed.upstream.next_close().await, Some(1001), "behind {begun:?}");
        assert_eq!(relayed.client.next_close().await, Some(1008));
    }
}

#[tokio::test(start_paused = true)]
async fn five_seconds_after_a_close_was_delivered_it_is_over() {
    let TestRelay { mut client, upstream: mut silent, relay, begun, .. } = TestRelay::start(TIMES);
    client.close(1000).await;
    assert_eq!(silent.next_close().await, Some(1000));
    relay.await.expect("ends");
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_ending_reaches_the_upstream_at_once_and_is_over_in_five_seconds_whatever_the_client_reads() {
    let mut relayed = TestRelay::start(TIMES);
    let flood = relayed.upstream.frame(Opcode::Binary, &vec![0; 1 << 20]);
    let taken = timeout(Duration::from_secs(20), relayed.upstream.stream.write_all(&flood)).await;
    assert!(taken.is_err(), "more than fits anywhere");
    relayed.denies();
    assert_eq!(relayed.upstream.next_close().await, Some(1001));
    assert_eq!(relayed.seconds(), 20);
    let outcome = relayed.relay.await.expect("ends");
    assert_eq!((outcome.code, relayed.begun.elapsed().as_secs()), (Some(1008), 25));
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_client_that_does_not_take_the_upstreams_close() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.upstream.send(Opcode::Binary, &vec![0; 100 << 10]).await;
    relayed.upstream.close(1000).await;
    sleep(Duration::from_secs(20)).await;
    relayed.notifier.notify_closing(Duration::ZERO, Duration::from_secs(25));
    relayed.relay.await.expect("ends");
    assert_eq!(relayed.begun.elapsed().as_secs(), 25);
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_hears_an_ending() {
    for is_drain in [false, true] {
        let mut relayed = TestRelay::start(TIMES);
        relayed.client.stream.shutdown().await.expect("half closed");
        relayed.upstream.send(Opcode::Text, b"still").await;
        assert_eq!(relayed.client.next().await, Some((1, b"still".to_vec())));
        if is_drain {
            relayed.notifier.notify_closing(Duration::ZERO, Duration::from_secs(25));
        } else {
            relayed.denies();
        }
        let expected = if is_drain { 1012 } else { 1008 };
        assert_eq!(relayed.client.next_close().await, Some(expected));
        assert_eq!(relayed.upstream.next_close().await, None, "its stream had ended before");
        assert_eq!(relayed.relay.await.expect("ends").closed_by, ClosedBy::Client);
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_lives_no_longer_than_a_minute() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.client.stream.shutdown().await.expect("half closed");
    let mut upstream = relayed.upstream;
    let talking = tokio::spawn(async move {
        let frame = upstream.frame(Opcode::Text, b"news");
        while upstream.stream.write_all(&frame).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let reading = tokio::spawn(async move { while relayed.client.next().await.is_some() {} });
    relayed.relay.await.expect("ends");
    assert_eq!(relayed.begun.elapsed().as_secs(), 60);
    talking.await.expect("ends");
    reading.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_that_reads_slowly_is_served_to_the_end() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.client.stream.shutdown().await.expect("half closed");
    let message = vec![b'x'; 200 << 10];
    let expected = message.clone();
    let mut upstream = relayed.upstream;
    let sending = tokio::spawn(async move { upstream.send(Opcode::Binary, &message).await });
    sleep(Duration::from_secs(20)).await;
    assert_eq!(relayed.client.next().await, Some((2, expected)));
    sending.await.expect("sent");
}

#[tokio::test(start_paused = true)]
async fn the_close_that_answers_a_half_closed_client_reaches_it_however_late_it_is_read() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.client.stream.shutdown().await.expect("half closed");
    // By then there is nothing to deliver, and the five seconds after a half-close run.
    sleep(Duration::from_secs(2)).await;
    let mut expected = relayed.upstream.frame(Opcode::Binary, &vec![b'x'; 200 << 10]);
    expected.extend(relayed.upstream.frame(Opcode::Close, &close_payload(1000, "")));
    let (bytes, mut upstream) = (expected.clone(), relayed.upstream.stream);
    let sending = tokio::spawn(async move { upstream.write_all(&bytes).await });
    sleep(Duration::from_secs(2)).await;
    // What is left of it, and the Close behind it, has been read from the upstream; the client rests again.
    let mut read = vec![0; 100 << 10];
    relayed.client.stream.read_exact(&mut read).await.expect("half of it");
    sleep(Duration::from_secs(12)).await;
    relayed.client.stream.read_to_end(&mut read).await.expect("the rest");
    assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
    sending.await.expect("runs").expect("sent");
}

#[tokio::test(start_paused = true)]
async fn what_an_upstream_sent_before_it_answered_a_close_reaches_a_client_that_pauses() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.client.close(1000).await;
    assert_eq!(relayed.upstream.next_close().await, Some(1000));
    let mut expected = relayed.upstream.frame(Opcode::Binary, &vec![b'x'; 200 << 10]);
    expected.extend(relayed.upstream.frame(Opcode::Close, &close_payload(1000, "")));
    let (bytes, mut upstream) = (expected.clone(), relayed.upstream.stream);
    let sending = tokio::spawn(async move { upstream.write_all(&bytes).await });
    sleep(Duration::from_secs(20)).await;
    let mut read = vec![0; 70 << 10];
    relayed.client.stream.read_exact(&mut read).await.expect("a part");
    sleep(Duration::from_secs(20)).await;
    relayed.client.stream.read_to_end(&mut read).await.expect("the rest");
    assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
    sending.await.expect("runs").expect("sent");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_answered_a_close_reaches_an_upstream_that_pauses() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.upstream.close(1000).await;
    assert_eq!(relayed.client.next_close().await, Some(1000));
    let mut bytes = relayed.client.frame(Opcode::Binary, &vec![b'x'; 200 << 10]);
    bytes.extend(relayed.client.frame(Opcode::Close, &close_payload(1000, "")));
    let mut client = relayed.client.stream;
    let sending = tokio::spawn(async move { client.write_all(&bytes).await.map(|()| client) });
    sleep(Duration::from_secs(20)).await;
    assert_eq!(relayed.upstream.next().await, Some((2, vec![b'x'; 200 << 10])));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(relayed.upstream.next_close().await, Some(1000));
    sending.await.expect("runs").expect("sent");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_closed_and_reads_slowly_is_served_for_no_longer_than_a_minute() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.client.close(1000).await;
    assert_eq!(relayed.upstream.next_close().await, Some(1000));
    let mut upstream = relayed.upstream;
    let frame = upstream.frame(Opcode::Binary, &vec![b'x'; 64 << 10]);
    let flood = tokio::spawn(async move { while upstream.stream.write_all(&frame).await.is_ok() {} });
    let mut client = relayed.client.stream;
    let reading = tokio::spawn(async move {
        let mut read = vec![0; 64 << 10];
        // What follows a Close prolongs nothing.
        while client.read_exact(&mut read).await.is_ok() && client.write_all(b"more").await.is_ok() {
            sleep(Duration::from_secs(3)).await;
        }
    });
    relayed.relay.await.expect("ends");
    assert_eq!(relayed.begun.elapsed().as_secs(), 60);
    for task in [flood, reading] {
        task.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_a_drain_no_longer_than_its_time() {
    let relayed = TestRelay::start(TIMES);
    let flood = relayed.upstream.frame(Opcode::Binary, &vec![0; 1 << 20]);
    let (mut reader, mut writer) = (relayed.client.stream, relayed.upstream.stream);
    let flooding = tokio::spawn(async move {
        // The rest of it is read by nobody once the relay has ended.
        let _ = writer.write_all(&flood).await;
        writer
    });
    let reading = tokio::spawn(async move {
        let mut read = [0; 1_000];
        while reader.read(&mut read).await.is_ok_and(|length| length > 0) {
            sleep(Duration::from_secs(1)).await;
        }
    });
    // The relay is full by then.
    sleep(Duration::from_millis(1)).await;
    relayed.notifier.notify_closing(Duration::ZERO, Duration::from_secs(9));
    let outcome = relayed.relay.await.expect("ends");
    assert_eq!((outcome.code, relayed.begun.elapsed().as_secs()), (Some(1012), 9));
    flooding.await.expect("ends");
    reading.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn a_long_frame_that_arrives_slowly_is_not_idle() {
    let settings = RelaySettings { idle_timeout: Some(Millis(25_000)), ..TIMES };
    let mut relayed = TestRelay::start(settings);
    let frame = relayed.client.frame(Opcode::Binary, &[b'x'; 10_000]);
    let mut upstream = relayed.upstream;
    let answering = tokio::spawn(async move {
        let mut length = 0;
        while let Some((opcode, payload)) = upstream.next().await {
            match opcode {
                9 => upstream.send(Opcode::Pong, &payload).await,
                2 => length = payload.len(),
                _ => break,
            }
        }
        length
    });
    for chunk in frame.chunks(1_000) {
        relayed.client.stream.write_all(chunk).await.expect("taken");
        sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(relayed.client.next_close().await, Some(1001));
    assert_eq!(answering.await.expect("heard"), 10_000);
    // Its last byte came after 200 s.
    assert_eq!(relayed.begun.elapsed().as_secs(), 225);
}

#[tokio::test(start_paused = true)]
async fn a_close_with_a_code_that_may_not_be_sent_is_1002() {
    for code in [999, 1005, 1006, 1015, 2000, 5000] {
        let mut relayed = TestRelay::start(TIMES);
        relayed.client.send(Opcode::Text, b"before").await;
        relayed.client.close(code).await;
        assert_eq!(relayed.upstream.next().await, Some((1, b"before".to_vec())));
        assert_eq!(relayed.upstream.next_close().await, Some(1001), "{code}");
        // It answers, and so the client need not wait for what else it has to say.
        relayed.upstream.close(1001).await;
        assert_eq!(relayed.client.next_close().await, Some(1002), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstreams_close_with_a_code_that_may_not_be_sent_is_1011() {
    let mut relayed = TestRelay::start(TIMES);
    relayed.upstream.send(Opcode::Text, b"before").await;
    relayed.upstream.close(1006).await;
    assert_eq!(relayed.client.next().await, Some((1, b"before".to_vec())));
    assert_eq!(relayed.client.next_close().await, Some(1011));
}

/// A socket whose end is not taken at once, as of TLS whose `close_notify` does not fit.
#[derive(Debug)]
struct Stubborn {
    stream: DuplexStream,
    wait: Pin<Box<Sleep>>,
}

impl AsyncRead for Stubborn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Stubborn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.wait.as_mut().poll(cx));
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_socket_does_not_take_at_once_is_given_to_it_again() {
    let (client, ours) = duplex(ROOM);
    let wait = Box::pin(sleep_until(Instant::now() + Duration::from_secs(2)));
    let mut relayed = TestRelay::between(TIMES, client, Socket::Memory(Box::new(Stubborn { stream: ours, wait })));
    relayed.denies();
    assert_eq!(relayed.client.next_close().await, Some(1008));
    assert_eq!(relayed.client.next().await, None, "its end, while the client has not answered");
    assert_eq!(relayed.seconds(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_ending_waits_for_the_end_of_a_message_while_the_client_does_not_read_it() {
    let mut relayed = TestRelay::start(TIMES);
    let message = vec![b'x'; 200 << 10];
    let expected = message.clone();
    let mut upstream = relayed.upstream;
    let sending = tokio::spawn(async move { upstream.send(Opcode::Binary, &message).await });
    sleep(Duration::from_secs(1)).await;
    relayed.is_denied.store(true, Ordering::Relaxed);
    relayed.notifier.notify();
    // Longer than a message of the upstream's is waited for, and shorter than a client that takes nothing.
    sleep(Duration::from_secs(4)).await;
    assert_eq!(relayed.client.next().await, Some((2, expected)));
    assert_eq!(relayed.client.next_close().await, Some(1008));
    sending.await.expect("sent");
}

/// Ends the session while the client, which reads so many bytes a second, reads a message of 200 KiB. Returns the bytes
/// that it received until the end, and the seconds until then.
async fn ends_for_a_reader(bytes_a_second: usize) -> (Vec<u8>, u64) {
    let mut relayed = TestRelay::with_room(TIMES, 4 << 10);
    let mut upstream = relayed.upstream;
    tokio::spawn(async move {
        upstream.send(Opcode::Binary, &vec![b'x'; 200 << 10]).await;
        while upstream.next().await.is_some() {}
    });
    sleep(Duration::from_secs(1)).await;
    relayed.is_denied.store(true, Ordering::Relaxed);
    relayed.notifier.notify();
    let mut taken = Vec::new();
    let mut chunk = vec![0; bytes_a_second / 10];
    loop {
        sleep(Duration::from_millis(100)).await;
        let length = relayed.client.stream.read(&mut chunk).await.expect("reads");
        if length == 0 {
            return (taken, relayed.begun.elapsed().as_secs());
        }
        taken.extend_from_slice(&chunk[..length]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_an_ended_session_that_reads_slowly_hears_why() {
    let (taken, seconds) = ends_for_a_reader(10 << 10).await;
    let close = [&[0x88, 15][..], &1008_u16.to_be_bytes(), b"Access denied"].concat();
    assert!(taken.ends_with(&close), "{} bytes in {seconds} s", taken.len());
    assert!((20..40).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_client_of_an_ended_session_has_no_longer_than_send_timeout() {
    let (taken, seconds) = ends_for_a_reader(1 << 10).await;
    // What stands in the pipe between can still be read.
    assert!((61..70).contains(&seconds) && taken.len() < 100 << 10, "{} bytes in {seconds} s", taken.len());
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_its_session_was_ended_reaches_an_upstream_that_pauses() {
    let mut relayed = TestRelay::start(TIMES);
    let message = vec![b'x'; 100 << 10];
    relayed.client.send(Opcode::Binary, &message).await;
    sleep(Duration::from_secs(1)).await;
    relayed.denies();
    assert_eq!(relayed.client.next_close().await, Some(1008));
    // Longer than its client is waited for.
    sleep(Duration::from_secs(20)).await;
    assert_eq!(relayed.upstream.next().await, Some((2, message)));
    assert_eq!(relayed.upstream.next_close().await, Some(1001));
    assert_eq!(relayed.relay.await.expect("ends").code, Some(1008));
}
