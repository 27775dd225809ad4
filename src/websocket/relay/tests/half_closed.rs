//! Tests of clients that have ended their stream and still read.

use super::*;

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
    // After this time there is nothing to deliver, and the five seconds after a half-close have begun.
    sleep(Duration::from_secs(2)).await;
    let mut expected = relayed.upstream.frame(Opcode::Binary, &vec![b'x'; 200 << 10]);
    expected.extend(relayed.upstream.frame(Opcode::Close, &close_payload(1000, "")));
    let (bytes, mut upstream) = (expected.clone(), relayed.upstream.stream);
    let sending = tokio::spawn(async move { upstream.write_all(&bytes).await });
    sleep(Duration::from_secs(2)).await;
    // The rest of the message and the Close have been read from the upstream; the client pauses again.
    let mut read = vec![0; 100 << 10];
    relayed.client.stream.read_exact(&mut read).await.expect("half of it");
    sleep(Duration::from_secs(12)).await;
    relayed.client.stream.read_to_end(&mut read).await.expect("the rest");
    assert!(read == expected, "{} of {} bytes", read.len(), expected.len());
    sending.await.expect("runs").expect("sent");
}
