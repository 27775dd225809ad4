//! What was said before a Close reaches a peer that reads it late (docs/contract.md section 4.5).

use std::time::Duration;

use crate::fixture::house;
use crate::support::socket::Socket;

const MESSAGES: u8 = 16;

/// One side says a megabyte and closes; the other pauses for longer than an answer to the Close is awaited, and says
/// something itself before it reads. To a connection that is closed already that means a reset.
async fn reaches_a_peer_that_pauses(mut sender: Socket, mut reader: Socket) {
    for number in 0..MESSAGES {
        sender.send(0x82, vec![number; 64 << 10]).await;
    }
    sender.send(0x88, 1000_u16.to_be_bytes()).await;
    // The pause itself is what is tested.
    tokio::time::sleep(Duration::from_secs(7)).await;
    reader.say("late").await;
    for number in 0..MESSAGES {
        let frame = reader.next().await;
        assert!(
            frame.payload == vec![number; 64 << 10],
            "message {number} of {MESSAGES}: {} bytes",
            frame.payload.len()
        );
    }
    assert_eq!(reader.next_close().await.0, 1000);
}

#[tokio::test]
async fn what_stands_before_the_clients_close_reaches_an_upstream_that_pauses() {
    let house = house("").await;
    let (client, upstream) = house.session(&house.issuer.token("alice")).await;
    reaches_a_peer_that_pauses(client, upstream).await;
}

#[tokio::test]
async fn what_stands_before_the_upstreams_close_reaches_a_client_that_pauses() {
    let house = house("").await;
    let (client, upstream) = house.session(&house.issuer.token("alice")).await;
    reaches_a_peer_that_pauses(upstream, client).await;
}
