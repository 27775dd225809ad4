//! Tests that bytes sent before a Close, or before a client disconnects, are delivered to the other peer.

use super::*;

/// Sends more than fits from one side, which then closes, and checks that the other side gets all of it after 8 s.
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
    // This is more than the upstream and the relay accept, so the client is not read when it disconnects.
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
async fn five_seconds_after_a_close_was_delivered_it_is_over() {
    let TestRelay { mut client, upstream: mut silent, relay, begun, .. } = TestRelay::start(TIMES);
    client.close(1000).await;
    assert_eq!(silent.next_close().await, Some(1000));
    relay.await.expect("ends");
    assert_eq!(begun.elapsed().as_secs(), 5);
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
        // Bytes after a Close restart no timer.
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
async fn what_both_sides_sent_before_the_relay_began_is_delivered_and_counted() {
    let (client, ours) = duplex(ROOM);
    let encoded = |payload: &[u8], mask| {
        let mut frame = Vec::new();
        encode(&mut frame, Opcode::Text, payload, mask);
        frame
    };
    let (from_client, from_upstream) = (encoded(b"question", Some([0; 4])), encoded(b"welcome", None));
    let (bytes_in, bytes_out) = (from_client.len() as u64, from_upstream.len() as u64);
    let ours = Socket::Memory(Box::new(ours));
    let TestRelay { mut client, mut upstream, relay, .. } =
        TestRelay::after(TIMES, client, ours, from_client, from_upstream);
    assert_eq!(client.next().await, Some((1, b"welcome".to_vec())));
    assert_eq!(upstream.next().await, Some((1, b"question".to_vec())));
    drop((client, upstream));
    let outcome = relay.await.expect("ends");
    assert_eq!((outcome.bytes_in, outcome.bytes_out), (bytes_in, bytes_out));
}
