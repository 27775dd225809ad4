//! Tests of a drain while a client reads slowly or not at all.

use super::*;

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
async fn a_slow_reader_holds_a_drain_no_longer_than_its_time() {
    let relayed = TestRelay::start(TIMES);
    let flood = relayed.upstream.frame(Opcode::Binary, &vec![0; 1 << 20]);
    let (mut reader, mut writer) = (relayed.client.stream, relayed.upstream.stream);
    let flooding = tokio::spawn(async move {
        // The write fails when the relay has ended, because the rest is not read.
        let _ = writer.write_all(&flood).await;
        writer
    });
    let reading = tokio::spawn(async move {
        let mut read = [0; 1_000];
        while reader.read(&mut read).await.is_ok_and(|length| length > 0) {
            sleep(Duration::from_secs(1)).await;
        }
    });
    // After this time the buffers of the relay are full.
    sleep(Duration::from_millis(1)).await;
    relayed.notifier.notify_closing(Duration::ZERO, Duration::from_secs(9));
    let outcome = relayed.relay.await.expect("ends");
    assert_eq!((outcome.code, relayed.begun.elapsed().as_secs()), (Some(1012), 9));
    flooding.await.expect("ends");
    reading.await.expect("ends");
}
