//! Tests that no message after the first is lost, reordered or duplicated, however the stream is split.

use crate::fixture::{Fixture, fixture};
use crate::support::client::Client;
use crate::support::socket::{Side, Socket, frame, upgrade};

fn authenticate(token: &str) -> Vec<u8> {
    frame(Side::Client, 0x81, format!(r#"{{"type":"authenticate","token":"{token}"}}"#).as_bytes())
}

#[tokio::test]
async fn upgrade_authenticate_and_two_messages_in_one_segment() {
    let Fixture { backend, issuer, proxy } = fixture("").await;
    let mut client = Client::connect(proxy.address).await;
    let bytes = [
        upgrade("/ws", &[]).into_bytes(),
        authenticate(&issuer.token("alice")),
        frame(Side::Client, 0x81, b"one"),
        frame(Side::Client, 0x82, &[0, 1, 2, 255]),
    ]
    .concat();
    client.send(bytes).await;
    assert_eq!(client.answer().await.status, 101);
    let (stream, buffer) = client.into_parts();
    let mut client = Socket::new(stream, Side::Client, buffer);
    let (heard, mut upstream) = backend.websocket().await;
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert_eq!(upstream.next_text().await, "one");
    let binary = upstream.next().await;
    assert_eq!((binary.opcode, binary.payload.as_slice()), (2, &[0, 1, 2, 255][..]));
    upstream.say("hello").await;
    assert!(client.next_text().await.contains("authenticated"));
    assert_eq!(client.next_text().await, "hello");
    // Each message is forwarded exactly once: the upstream's next message is the client's next one.
    client.say("three").await;
    assert_eq!(upstream.next_text().await, "three");
}

#[tokio::test]
async fn messages_while_the_upstream_is_being_dialled_arrive_complete_and_in_order() {
    let Fixture { backend, issuer, proxy } = fixture("").await;
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    client.write(authenticate(&issuer.token("alice"))).await;
    let mut conn = backend.accept().await;
    // The dial is under way; text, fragments, a ping and half a frame arrive meanwhile.
    client.say("one").await;
    client.send(0x01, "two ").await;
    client.send(0x89, "are you there").await;
    client.send(0x80, "halves").await;
    let last = frame(Side::Client, 0x81, b"three");
    client.write(&last[..4]).await;
    let pong = client.next().await;
    assert_eq!((pong.opcode, pong.text()), (10, "are you there"));
    let heard = conn.request().await;
    let key = heard.all("sec-websocket-key")[0].to_owned();
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    // The 101 and the upstream's first message in one segment.
    let mut bytes = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").into_bytes();
    bytes.extend(frame(Side::Server, 0x81, b"welcome"));
    conn.write(bytes).await;
    let mut upstream = Socket::new(conn.stream, Side::Server, Vec::new());
    assert!(client.next_text().await.contains("authenticated"));
    assert_eq!(client.next_text().await, "welcome");
    client.write(&last[4..]).await;
    assert_eq!(upstream.next_text().await, "one");
    assert_eq!(upstream.next().await.text(), "two ");
    assert_eq!(upstream.next().await.text(), "halves");
    assert_eq!(upstream.next_text().await, "three");
}

#[tokio::test]
async fn a_client_that_waits_for_authenticated_loses_nothing_either() {
    let Fixture { backend, issuer, proxy } = fixture("").await;
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    let token = issuer.token("alice");
    let (said, (_, mut upstream)) = tokio::join!(client.authenticate(&token), backend.websocket());
    assert_eq!((said["type"].as_str(), said["user_id"].as_str()), (Some("authenticated"), Some("alice")));
    for number in 0..100 {
        client.say(&format!("{number}")).await;
    }
    for number in 0..100 {
        assert_eq!(upstream.next_text().await, format!("{number}"));
    }
}

#[tokio::test]
async fn a_long_queue_behind_the_first_message_waits_by_back_pressure() {
    let Fixture { backend, issuer, proxy } = fixture("").await;
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    client.write(authenticate(&issuer.token("alice"))).await;
    let conn = backend.accept().await;
    let message = vec![b'x'; 50_000];
    let sending = async {
        for number in 0u8..40 {
            let mut message = message.clone();
            message[0] = number;
            client.send(0x82, &message).await;
        }
    };
    let receiving = async {
        let (_, mut upstream) = conn.switch("").await;
        for number in 0u8..40 {
            let frame = upstream.next().await;
            assert_eq!((frame.payload[0], frame.payload.len()), (number, message.len()));
        }
    };
    tokio::join!(sending, receiving);
}
