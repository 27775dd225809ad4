//! Tests of pings, timeouts and idleness, while one peer reads slowly or not at all.

use super::*;

/// Sends a message of a megabyte from one side while the other reads nothing for 50 s, and checks that both stay
/// connected.
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
    // The silence of the sender counts from now on, not from before.
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
    // The upstream answers the relay's pings, whenever they come.
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

#[tokio::test(start_paused = true)]
async fn a_long_frame_that_arrives_slowly_is_not_idle() {
    let limits = SocketLimits { idle_timeout: Some(Duration::from_secs(25)), ..TIMES };
    let mut relayed = TestRelay::start(limits);
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
    // The last byte of the frame came after 200 s.
    assert_eq!(relayed.begun.elapsed().as_secs(), 225);
}
