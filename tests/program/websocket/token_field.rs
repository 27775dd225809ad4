//! Tests of the dialect `token-field` (docs/contract.md section 4.3): every message may carry the token.

use serde_json::{Value, json};

use super::{Fixture, fixture};
use crate::support::client::bearer;
use crate::support::socket::{Side, Socket, frame};
use crate::support::within;

const CHAT: &str = "websocket: { dialect: token-field }\n";

fn message(prompt: &str, token: impl Into<Value>) -> String {
    json!({"prompt": prompt, "auth_token": token.into()}).to_string()
}

fn error(message: &str) -> String {
    json!({"type": "error", "error": message, "message": message}).to_string()
}

async fn chat(fixture: &Fixture, token: &str) -> (Socket, Socket) {
    let mut client = Socket::open(fixture.proxy.address, "/chat", &[]).await;
    client.say(&message("first", token)).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    assert_eq!(upstream.next_text().await, message("first", token));
    (client, upstream)
}

#[tokio::test]
async fn absent_null_and_empty_tokens_leave_the_identity_in_force() {
    let fixture = fixture(CHAT).await;
    let token = fixture.issuer.token("alice");
    let (mut client, mut upstream) = chat(&fixture, &token).await;
    for text in [
        r#"{"prompt":"absent"}"#.to_owned(),
        message("null", Value::Null),
        message("empty", ""),
        message("the same", token.as_str()),
        format!(" {{ \"auth_token\" : \"{token}\" , \"n\" : 1.50 }} "),
    ] {
        client.say(&text).await;
        assert_eq!(upstream.next_text().await, text, "byte for byte");
    }
}

#[tokio::test]
async fn the_first_message_must_verify_unless_the_upgrade_did() {
    let mut fixture = fixture(&format!("{CHAT}routes: [{{ path: /admin, require: {{ role: admin }} }}]\n")).await;
    let (good, expired) = (fixture.issuer.token("alice"), fixture.issuer.expired("alice"));
    for (target, text, said, close) in [
        ("/chat", r#"{"prompt":"x"}"#.to_owned(), Some("Missing authentication token"), (4001, "Missing token")),
        ("/chat", message("x", Value::Null), Some("Missing authentication token"), (4001, "Missing token")),
        ("/chat", message("x", ""), Some("Missing authentication token"), (4001, "Missing token")),
        ("/chat", message("x", 7), Some("Invalid authentication token"), (4001, "Invalid token")),
        ("/chat", message("x", "garbage"), Some("Invalid authentication token"), (4001, "Invalid token")),
        ("/chat", message("x", expired.as_str()), Some("Token has expired"), (4001, "Token expired")),
        ("/admin", message("x", good.as_str()), Some("Access denied"), (4001, "Access denied")),
        (
            "/chat",
            format!(r#"{{"auth_token":"{good}","auth_token":"{good}"}}"#),
            Some("Invalid message format"),
            (1008, "Invalid message format"),
        ),
        ("/chat", "hello".to_owned(), Some("Invalid message format"), (1008, "Invalid message format")),
        ("/chat", message(&"x".repeat(66_000), good.as_str()), None, (1009, "Message too large")),
    ] {
        let mut client = Socket::open(fixture.proxy.address, target, &[]).await;
        client.say(&text).await;
        if let Some(said) = said {
            assert_eq!(client.next_text().await, error(said), "{text}");
        }
        assert_eq!(client.next_close().await, (close.0, close.1.to_owned()), "{text}");
    }
    assert!(fixture.backend.is_untouched());
    // 60 KiB fit before the user is verified.
    let mut client = Socket::open(fixture.proxy.address, "/chat", &[]).await;
    let text = message(&"x".repeat(60_000), good.as_str());
    client.say(&text).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    assert_eq!(upstream.next_text().await, text);
    // A client with a header need not send its token again.
    let credential = bearer(&good);
    let fields = [credential.as_str()];
    let (mut client, (_, mut upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/chat", &fields), fixture.backend.websocket());
    for text in [r#"{"prompt":"x"}"#.to_owned(), message("y", good.as_str())] {
        client.say(&text).await;
        assert_eq!(upstream.next_text().await, text);
    }
}

#[tokio::test]
async fn a_changed_token_holds_its_message_and_those_behind_it_until_verified() {
    let fixture = fixture(CHAT).await;
    let (mut client, mut upstream) = chat(&fixture, &fixture.issuer.token("alice")).await;
    // The key must be fetched first: the verdict waits for the provider.
    let (key, gate) = fixture.issuer.rotates();
    let newer = key.sign(&fixture.issuer.claims("alice"));
    client.say(&message("held", newer.as_str())).await;
    let behind: Vec<u8> =
        (0..50).flat_map(|n| frame(Side::Client, 0x81, format!(r#"{{"n":{n}}}"#).as_bytes())).collect();
    client.write(behind).await;
    upstream.say("the other direction flows on").await;
    assert_eq!(client.next_text().await, "the other direction flows on");
    gate.open();
    assert_eq!(upstream.next_text().await, message("held", newer.as_str()));
    for n in 0..50 {
        assert_eq!(upstream.next_text().await, format!(r#"{{"n":{n}}}"#));
    }
}

#[tokio::test]
async fn a_changed_token_that_is_refused_drops_its_message_and_closes() {
    let fixture = fixture(CHAT).await;
    let (expired, bob) = (fixture.issuer.expired("alice"), fixture.issuer.token("bob"));
    for (token, said, close) in [
        (bob.as_str().into(), "Invalid authentication token", (4001, "Invalid token")),
        ("garbage".into(), "Invalid authentication token", (4001, "Invalid token")),
        ("a b".into(), "Invalid authentication token", (4001, "Invalid token")),
        (Value::from(7), "Invalid authentication token", (4001, "Invalid token")),
        (expired.as_str().into(), "Token has expired", (4001, "Token expired")),
    ] {
        let (mut client, mut upstream) = chat(&fixture, &fixture.issuer.token("alice")).await;
        client.say(&message("dropped", token)).await;
        client.say(r#"{"prompt":"behind"}"#).await;
        assert_eq!(client.next_text().await, error(said));
        assert_eq!(client.next_close().await, (close.0, close.1.to_owned()));
        assert_eq!(upstream.next_close().await.0, 1001, "neither of the two reached the upstream");
    }
}

#[tokio::test]
async fn of_all_unfinished_messages_the_longest_gives_way_and_the_others_arrive_whole() {
    let fixture =
        fixture("websocket: { dialect: token-field, message_bytes: 512KiB }\nlimits: { held_message_bytes: 1MiB }\n")
            .await;
    let mut sockets = Vec::new();
    for (user, size) in [("alice", 450_000), ("bob", 310_000), ("carol", 300_000)] {
        let token = fixture.issuer.token(user);
        let (mut client, mut upstream) = chat(&fixture, &token).await;
        let text = message(&"x".repeat(size + 50_000), token.as_str());
        client.send(0x01, &text.as_bytes()[..size]).await;
        // A ping passes between the fragments: the bytes before it have been read.
        client.send(0x89, "").await;
        if user != "carol" {
            assert_eq!(upstream.next().await.opcode, 9, "{user}");
        }
        sockets.push((client, upstream, text, size));
    }
    let mut sockets = sockets.into_iter();
    let (mut alice, _upstream, ..) = sockets.next().expect("alice");
    assert!(alice.next_text().await.contains("Too many connections"));
    assert_eq!(alice.next_close().await, (1013, "Try again later".into()));
    for (mut client, mut upstream, text, size) in sockets {
        client.send(0x80, &text.as_bytes()[size..]).await;
        let mut heard = upstream.next().await;
        while heard.opcode == 9 {
            heard = upstream.next().await;
        }
        assert_eq!(heard.text(), text);
    }
}

#[tokio::test]
async fn a_message_gives_way_while_its_upstream_takes_nothing() {
    let fixture =
        fixture("websocket: { dialect: token-field, message_bytes: 1MiB }\nlimits: { held_message_bytes: 1MiB }\n")
            .await;
    let (mut alice, alice_upstream) = chat(&fixture, &fixture.issuer.token("alice")).await;
    let token = fixture.issuer.token("bob");
    let (mut bob, mut bob_upstream) = chat(&fixture, &token).await;
    // The message is held until its token is verified, and it is longer than the buffers of an upstream that does not
    // read.
    let (key, gate) = fixture.issuer.rotates();
    let newer = key.sign(&fixture.issuer.claims("alice"));
    alice.say(&message(&"x".repeat(900_000), newer.as_str())).await;
    gate.open();
    within("the message to reach the upstream", alice_upstream.stream.readable()).await.expect("readable");
    let text = message(&"y".repeat(350_000), token.as_str());
    bob.send(0x01, &text.as_bytes()[..300_000]).await;
    assert!(alice.next_text().await.contains("Too many connections"));
    assert_eq!(alice.next_close().await, (1013, "Try again later".into()));
    bob.send(0x80, &text.as_bytes()[300_000..]).await;
    assert_eq!(bob_upstream.next_text().await, text);
}

#[tokio::test]
async fn messages_are_read_whole_up_to_message_bytes() {
    let fixture =
        fixture("websocket: { dialect: token-field }\nroutes: [{ path: /big, websocket: { message_bytes: 4MiB } }]\n")
            .await;
    let token = fixture.issuer.token("alice");
    let (mut client, mut upstream) = chat(&fixture, &token).await;
    let text = message(&"x".repeat(20 << 10), token.as_str());
    client.say(&text).await;
    assert_eq!(upstream.next_text().await, text);
    // The message is sent in fragments, with a ping between them.
    let text = message(&"y".repeat(300_000), "");
    let pieces: Vec<&[u8]> = text.as_bytes().chunks(100_000).collect();
    for (index, piece) in pieces.iter().enumerate() {
        let last = index + 1 == pieces.len();
        client.send(u8::from(index == 0) | if last { 0x80 } else { 0 }, piece).await;
        client.send(0x89, "").await;
    }
    let mut heard = upstream.next().await;
    while heard.opcode == 9 {
        heard = upstream.next().await;
    }
    assert_eq!(heard.text(), text);
    // The upstream's own messages have no limit.
    upstream.send(0x81, "z".repeat(3 << 20)).await;
    loop {
        let heard = client.next().await;
        if heard.opcode == 1 {
            assert_eq!(heard.payload.len(), 3 << 20);
            break;
        }
    }
    client.say(&message(&"x".repeat(2 << 20), token.as_str())).await;
    assert_eq!(client.next_close().await, (1009, "Message too large".into()));
    let mut client = Socket::open(fixture.proxy.address, "/big", &[]).await;
    client.say(&message("first", token.as_str())).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    upstream.next_text().await;
    let text = message(&"x".repeat(2 << 20), token.as_str());
    client.say(&text).await;
    assert_eq!(upstream.next_text().await, text);
}

/// Checks that this holds for a message that could have the field in some reading; any other one is not the proxy's.
#[tokio::test]
async fn a_defect_in_what_could_hold_the_field_is_refused() {
    let fixture = fixture(CHAT).await;
    let token = fixture.issuer.token("alice");
    let field = format!(r#"{{"auth_token":"{token}"}}"#);
    let utf16: Vec<u8> = field.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (first, bytes, close) in [
        (0x82, field.clone().into_bytes(), (1008, "Invalid message format")),
        (0x82, utf16.clone(), (1008, "Invalid message format")),
        (0x81, utf16, (1008, "Invalid message format")),
        (0x81, field.replace("auth_token", "Auth_Token").into_bytes(), (1008, "Invalid message format")),
        (0x81, field.replace("auth_token", "auth_to\u{212a}en").into_bytes(), (1008, "Invalid message format")),
        (0x81, format!(r#"{{"n":NaN,{}"#, &field[1..]).into_bytes(), (1008, "Invalid message format")),
        (0x81, format!(r#"{{"auth_token":"{token}","auth_token":""}}"#).into_bytes(), (1008, "Invalid message format")),
        (0x81, format!("{field}{{}}").into_bytes(), (1008, "Invalid message format")),
        (0x81, b"{\"a\":\"\xff\",\"auth_token\":\"\"}".to_vec(), (1007, "Invalid UTF-8")),
    ] {
        let (mut client, mut upstream) = chat(&fixture, &token).await;
        client.send(first, &bytes).await;
        let mut heard = client.next().await;
        if heard.opcode == 1 {
            assert_eq!(heard.text(), error("Invalid message format"));
            heard = client.next().await;
        }
        assert_eq!(heard.close(), (close.0, close.1.to_owned()), "{}", String::from_utf8_lossy(&bytes));
        // The beginning of a binary message may have been forwarded, but never its end.
        if let Some(heard) = upstream.try_next().await {
            assert_eq!(heard.close().0, 1001);
        }
    }
}

#[tokio::test]
async fn what_cannot_hold_the_field_passes_as_it_came() {
    let fixture = fixture(CHAT).await;
    let (mut client, mut upstream) = chat(&fixture, &fixture.issuer.token("alice")).await;
    let deep = format!(r#"{{"n":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
    for (first, bytes) in [
        (0x82, vec![0; 3 << 20]),
        (0x82, b"{}".to_vec()),
        (0x81, b"[]".to_vec()),
        (0x81, b"hello".to_vec()),
        (0x81, br#"{"cut":"\ud83d","n":[NaN,1e400]}"#.to_vec()),
        (0x81, deep.into_bytes()),
    ] {
        client.send(first, &bytes).await;
        let heard = upstream.next().await;
        assert_eq!((heard.opcode, heard.payload == bytes), (first & 0x0f, true));
    }
}

#[tokio::test]
async fn a_leading_bearer_is_dropped() {
    let fixture = fixture(CHAT).await;
    let token = format!("bearer  {}", fixture.issuer.token("alice"));
    let (mut client, mut upstream) = chat(&fixture, &token).await;
    for text in [message("the same", token.as_str()), message("plain", token.trim_start_matches("bearer  "))] {
        client.say(&text).await;
        assert_eq!(upstream.next_text().await, text);
    }
}

/// Checks that a chat sends nothing until its user does, and that a second socket of the same page gets no error.
#[tokio::test]
async fn a_chat_waits_for_as_long_as_its_user_is_silent() {
    let fixture = fixture(
        "websocket: { dialect: token-field, ping_interval: 100ms, ping_timeout: 300ms }\nroutes: [{ path: /timed, websocket: { auth_timeout: 200ms } }]\n",
    )
    .await;
    let mut client = Socket::open(fixture.proxy.address, "/chat", &[]).await;
    // Each pong shows that the client waits. There are more of them than unsolicited control frames are allowed.
    for _ in 0..30 {
        let ping = client.next().await;
        assert_eq!(ping.opcode, 9);
        client.send(0x8a, &ping.payload).await;
    }
    let token = fixture.issuer.token("alice");
    client.say(&message("first", token.as_str())).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    assert_eq!(upstream.next_text().await, message("first", token.as_str()));
    // A client that answers no ping has gone.
    let mut client = Socket::open(fixture.proxy.address, "/chat", &[]).await;
    assert_eq!(client.next().await.opcode, 9);
    assert!(client.is_over().await);
    // With a time limit a page that has sent nothing gets the Close alone.
    let mut client = Socket::open(fixture.proxy.address, "/timed", &[]).await;
    assert_eq!(client.next_close().await, (1008, "Authentication timeout".into()));
}
