//! Tests that messages before a Close reach a peer that reads them late (docs/contract.md section 4.5).

use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::fixture::fixture;
use crate::support::socket::Socket;

/// The numbers of messages, of 64 KiB each, with which the tests run: the first waits in the proxy for the reader; the second
/// is accepted by the system, and a part of it not sent.
const MESSAGES: [u8; 2] = [16, 3];

/// Sends messages from one side, which then closes. The other pauses for longer than the answer to the Close is
/// awaited, and sends a message before it reads. On a closed connection that would cause a reset.
async fn reaches_a_peer_that_pauses(messages: u8, mut sender: Socket, mut reader: Socket) {
    for number in 0..messages {
        sender.send(0x82, vec![number; 64 << 10]).await;
    }
    sender.send(0x88, 1000_u16.to_be_bytes()).await;
    // The pause itself is what is tested.
    tokio::time::sleep(Duration::from_secs(7)).await;
    reader.say("late").await;
    for number in 0..messages {
        let frame = reader.next().await;
        assert!(
            frame.payload == vec![number; 64 << 10],
            "message {number} of {messages}: {} bytes",
            frame.payload.len()
        );
    }
    assert_eq!(reader.next_close().await.0, 1000);
}

#[tokio::test]
async fn what_stands_before_the_clients_close_reaches_an_upstream_that_pauses() {
    let fixture = fixture("").await;
    let mut pauses = Vec::new();
    for messages in MESSAGES {
        let (client, upstream) = fixture.session(&fixture.issuer.token("alice")).await;
        pauses.push(reaches_a_peer_that_pauses(messages, client, upstream));
    }
    futures_util::future::join_all(pauses).await;
}

#[tokio::test]
async fn what_stands_before_the_upstreams_close_reaches_a_client_that_pauses() {
    let fixture = fixture("").await;
    let mut pauses = Vec::new();
    for messages in MESSAGES {
        let (client, upstream) = fixture.session(&fixture.issuer.token("alice")).await;
        pauses.push(reaches_a_peer_that_pauses(messages, upstream, client));
    }
    futures_util::future::join_all(pauses).await;
}

/// Checks a client that has so much to read that it cannot answer the proxy's ping in time.
#[tokio::test]
async fn a_client_that_reads_slowly_is_not_ended_by_ping_timeout() {
    const BYTES: usize = 240 << 10;
    const CHUNK: usize = 4 << 10;
    const HEADER: usize = 10;
    let fixture = fixture("websocket: { ping_interval: 1s, ping_timeout: 1s }\n").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    upstream.send(0x82, vec![7; BYTES]).await;
    // The upstream answers the proxy's pings.
    let upstream = tokio::spawn(async move {
        loop {
            let frame = upstream.next().await;
            match frame.opcode {
                9 => upstream.send(0x8a, &frame.payload).await,
                _ => return frame,
            }
        }
    });
    // Six seconds, in which the client sends nothing. Its pace is what is tested.
    let mut received = Vec::new();
    while received.len() < HEADER + BYTES {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut chunk = vec![0; CHUNK.min(HEADER + BYTES - received.len())];
        let length = client.stream.read(&mut chunk).await.expect("bytes");
        assert!(length > 0, "ended after {} of {BYTES} bytes", received.len());
        received.extend_from_slice(&chunk[..length]);
    }
    assert!(received[HEADER..].iter().all(|byte| *byte == 7));
    let ping = client.next().await;
    assert_eq!((ping.opcode, ping.text()), (9, "vestibule"));
    client.send(0x8a, &ping.payload).await;
    client.say("still here").await;
    assert_eq!(upstream.await.expect("a message").text(), "still here");
}
