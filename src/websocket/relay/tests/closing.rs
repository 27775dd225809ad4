//! Tests of sessions that the proxy ends, and of errors of either peer.

use super::*;

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
async fn an_ending_reaches_the_client_while_an_answer_of_the_upstream_is_held_back() {
    for is_lost in [false, true] {
        let (client, ours) = duplex(ROOM);
        let ours = Socket::Memory(Box::new(ours));
        let mut relayed = TestRelay::prepared(TIMES, client, ours, Vec::new(), Vec::new(), |relay| {
            relay.from_upstream.await_answer(Arc::new(DialectSpec::vestibule()));
        });
        // A text that may be the answer to a refresh, and is not complete.
        let answer = relayed.upstream.frame(Opcode::Text, br#"{"type":"auth_refreshed"}"#);
        relayed.upstream.stream.write_all(&answer[..10]).await.expect("taken");
        sleep(Duration::from_secs(1)).await;
        let expected = if is_lost {
            drop(relayed.upstream);
            1011
        } else {
            relayed.denies();
            1008
        };
        assert_eq!(relayed.client.next_close().await, Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ending_inside_a_fragment_waits_for_the_end_of_that_and_no_longer() {
    let fragment = [0x02, 8, b'f', b'r', b'a', b'g', b'm', b'e', b'n', b't'];
    for is_completed in [true, false] {
        let mut relayed = TestRelay::start(TIMES);
        relayed.upstream.stream.write_all(&fragment[..4]).await.expect("taken");
        sleep(Duration::from_secs(1)).await;
        relayed.denies();
        // This is longer than the wait for the end of the message.
        sleep(Duration::from_secs(3)).await;
        if is_completed {
            let rest = [&fragment[4..], &[0x00, 4], b"next"].concat();
            relayed.upstream.stream.write_all(&rest).await.expect("taken");
            assert_eq!(relayed.client.next().await, Some((2, b"fragment".to_vec())));
            assert_eq!(relayed.client.next_close().await, Some(1008));
        } else {
            let mut received = Vec::new();
            relayed.client.stream.read_to_end(&mut received).await.expect("its end");
            assert_eq!((&received[..], relayed.seconds()), (&fragment[..4], 5));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_with_a_code_that_may_not_be_sent_is_1002() {
    for code in [999, 1005, 1006, 1015, 2000, 5000] {
        let mut relayed = TestRelay::start(TIMES);
        relayed.client.send(Opcode::Text, b"before").await;
        relayed.client.close(code).await;
        assert_eq!(relayed.upstream.next().await, Some((1, b"before".to_vec())));
        assert_eq!(relayed.upstream.next_close().await, Some(1001), "{code}");
        // The upstream answers, so the client need not wait for more of its messages.
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

/// A socket that does not accept its end at once, like TLS when `close_notify` does not fit.
#[derive(Debug)]
struct Stubborn {
    stream: DuplexStream,
    wait: Pin<Box<tokio::time::Sleep>>,
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
    let wait = Box::pin(tokio::time::sleep_until(Instant::now() + Duration::from_secs(2)));
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
    // This is longer than the wait for the end of a message, and shorter than that for a client that reads nothing.
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
    // Bytes in the pipe between them can still be read.
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
    // This is longer than the wait for its client.
    sleep(Duration::from_secs(20)).await;
    assert_eq!(relayed.upstream.next().await, Some((2, message)));
    assert_eq!(relayed.upstream.next_close().await, Some(1001));
    assert_eq!(relayed.relay.await.expect("ends").code, Some(1008));
}
