//! Tests of a relay between two peers in memory, on a paused clock: no test waits for real time. The modules group them by
//! topic; this file has the two peers.

mod closing;
mod delivery;
mod draining;
mod half_closed;
mod liveness;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::super::authorizer::{RevalidateFuture, SessionAuthorizer, VerifyFuture};
use super::super::frame::{apply_mask, close_payload};
use super::super::session::{Credential, Session, SessionLimits, Verdict};
use super::*;
use crate::auth::{RemoteCheck, Revalidation, RevocationKeys, StoredIdentity};
use crate::runtime::Notifier;
use crate::telemetry::Metrics;

/// The number of bytes that fit between the relay and one of its peers.
const ROOM: usize = 64 << 10;

const TIMES: SocketLimits = SocketLimits {
    ping_interval: Duration::from_secs(30),
    ping_timeout: Duration::from_secs(10),
    idle_timeout: None,
    send_timeout: Duration::from_secs(60),
    token_bytes: 8 << 10,
    message_bytes: 1 << 20,
    drain_code: 1012,
};

/// An authorizer that denies the route as soon as its flag is set.
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
    fn start(limits: SocketLimits) -> Self {
        Self::with_room(limits, ROOM)
    }

    /// Starts with room for this many bytes between the relay and its client.
    fn with_room(limits: SocketLimits, room: usize) -> Self {
        let (client, ours) = duplex(room);
        Self::between(limits, client, Socket::Memory(Box::new(ours)))
    }

    fn between(limits: SocketLimits, client: DuplexStream, ours: Socket) -> Self {
        Self::after(limits, client, ours, Vec::new(), Vec::new())
    }

    /// Starts after the client and the upstream have sent these bytes.
    fn after(
        limits: SocketLimits,
        client: DuplexStream,
        ours: Socket,
        from_client: Vec<u8>,
        from_upstream: Vec<u8>,
    ) -> Self {
        Self::prepared(limits, client, ours, from_client, from_upstream, |_| {})
    }

    /// Starts a relay after preparing it.
    fn prepared(
        limits: SocketLimits,
        client: DuplexStream,
        ours: Socket,
        from_client: Vec<u8>,
        from_upstream: Vec<u8>,
        prepare: impl FnOnce(&mut Relay),
    ) -> Self {
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
            from_client,
            from_upstream,
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
        let mut relay = Relay::new(input, authorizer, notifier.subscribe_staggered(), Arc::new(limits), passed);
        prepare(&mut relay);
        Self {
            client: TestPeer { stream: client, is_client: true },
            upstream: TestPeer { stream: upstream, is_client: false },
            relay: tokio::spawn(relay),
            notifier,
            is_denied,
            begun: Instant::now(),
        }
    }

    /// Denies the route from now on, and notifies the relay.
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

    /// Returns the code of the next Close. Frames before it are skipped, and pings are answered.
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
