//! Tests of dialects as data (docs/contract.md section 4.3) over sockets: those of the configuration, and the built-in
//! one whose first message is forwarded.

use serde_json::{Value, json};

use super::{Fixture, fixture};
use crate::support::client::bearer;
use crate::support::proxy::Proxy;
use crate::support::socket::{Side, Socket, frame};

const CHANNELS: &str = r#"
websocket: { dialect: channels, grace: 0s }
dialects:
  channels:
    greeting: { event: hello }
    authenticate: { match: { event: join, /payload/token: { present: true } }, token: [/payload/token] }
    acknowledge: { event: reply, ref: "{/ref}", topic: "topic {/topic}", payload: { user: "{user_id}", left: "{expires_in}" } }
    refresh: { match: { event: access_token }, token: [/payload/token], acknowledge: { event: renewed, ref: "{/ref}" } }
    error: { event: error, ref: "{/ref}", code: "{code}", reason: "{message}", id: "{request_id}" }
    ping: { match: { event: heartbeat }, reply: { event: pong, ref: "{/ref}" } }
    close: { invalid_token: 4403, unexpected_message: 4400 }
"#;

#[tokio::test]
async fn a_dialect_that_a_user_wrote_needs_no_rust() {
    let fixture = fixture(CHANNELS).await;
    let token = fixture.issuer.token("alice");
    let read = |text: String| -> Value { serde_json::from_str(&text).expect("json") };
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(client.next_text().await, r#"{"event":"hello"}"#);
    // A heartbeat before the first message, and another one after it.
    client.say(r#"{"event":"heartbeat","ref":1}"#).await;
    assert_eq!(client.next_text().await, r#"{"event":"pong","ref":1}"#);
    client.say(&json!({"event": "join", "topic": "room", "ref": [7], "payload": {"token": token}}).to_string()).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    let said = read(client.next_text().await);
    assert_eq!(
        (&said["ref"], &said["topic"], &said["payload"]["user"]),
        (&json!([7]), &json!("topic room"), &json!("alice"))
    );
    assert!(said["payload"]["left"].is_u64());
    client
        .say(
            &json!({"event": "access_token", "ref": "r", "payload": {"token": fixture.issuer.token("alice")}})
                .to_string(),
        )
        .await;
    assert_eq!(client.next_text().await, r#"{"event":"renewed","ref":"r"}"#);
    client
        .say(
            &json!({"event": "access_token", "ref": "s", "payload": {"token": fixture.issuer.token("bob")}})
                .to_string(),
        )
        .await;
    let said = read(client.next_text().await);
    assert_eq!((&said["ref"], &said["reason"]), (&json!("s"), &json!("Token refresh failed: another user")));
    assert_eq!(said.get("id"), None, "no Close follows");
    client.say(r#"{"event":"heartbeat","ref":2}"#).await;
    assert_eq!(client.next_text().await, r#"{"event":"pong","ref":2}"#);
    client.say(r#"{"event":"shout","ref":3}"#).await;
    assert_eq!(
        upstream.next_text().await,
        r#"{"event":"shout","ref":3}"#,
        "nothing of ours reached the upstream before it"
    );
    for (message, reason, code) in [
        (json!({"event": "join", "ref": 1, "payload": {"token": "garbage"}}), "Invalid authentication token", 4403),
        (json!({"event": "join", "ref": 1, "payload": {}}), "Expected authentication message", 4400),
        (
            json!({"event": "join", "ref": 1, "payload": {"token": fixture.issuer.expired("alice")}}),
            "Token has expired",
            1008,
        ),
    ] {
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        client.next_text().await;
        client.say(&message.to_string()).await;
        let said = read(client.next_text().await);
        let id = said["id"].as_str().expect("an id").to_owned();
        assert_eq!(said, json!({"event": "error", "ref": 1, "code": code, "reason": reason, "id": id}));
        // The page can show it, and it finds the line in the log.
        let field = format!("\"request_id\":\"{id}\"");
        fixture.proxy.logged("its line", |line| line.contains("\"msg\":\"socket\"") && line.contains(&field)).await;
        assert_eq!(client.next_close().await.0, code);
    }
    // Heartbeats alone do not hold a place.
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.next_text().await;
    client.write(frame(Side::Client, 0x81, br#"{"event":"heartbeat"}"#).repeat(17)).await;
    loop {
        let next = client.next().await;
        if next.opcode == 8 {
            assert_eq!(next.close(), (1008, "Too many control frames".into()));
            break;
        }
    }
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).expect("json")
}

const GRAPHQL: &str = "websocket: { dialect: graphql-transport-ws }\n";
const OFFER: &str = "Sec-WebSocket-Protocol: graphql-transport-ws";

async fn graphql_upstream(fixture: &Fixture) -> Socket {
    fixture.backend.accept().await.switch("Sec-WebSocket-Protocol: graphql-transport-ws\r\n").await.1
}

fn init(payload: Value) -> String {
    json!({"type": "connection_init", "payload": payload}).to_string()
}

#[tokio::test]
async fn graphql_s_first_message_goes_on_without_its_token_and_the_upstream_acknowledges() {
    let fixture = fixture(GRAPHQL).await;
    let token = fixture.issuer.token("alice");
    for payload in [
        json!({"Authorization": format!("Bearer {token}"), "lang": "de", "X-User-Id": "bob"}),
        json!({"Authorization": token, "lang": "de", "x_user_id": "bob", "Remote-User": "bob"}),
        json!({"headers": {"Authorization": format!("bearer {token}"), "X-User-Id": "bob"}, "lang": "de"}),
        json!({"authToken": token, "lang": "de", "authorization": "Bearer other", "X-Forwarded-For": "1.2.3.4"}),
    ] {
        let (answer, client) = Socket::try_open(fixture.proxy.address, "/graphql", &[OFFER]).await;
        assert_eq!(answer.field("sec-websocket-protocol"), Some("graphql-transport-ws"));
        let mut client = client.expect("open");
        client.say(&init(payload.clone())).await;
        client.say(r#"{"id":"1","type":"subscribe","payload":{"query":"{ a }"}}"#).await;
        let mut upstream = graphql_upstream(&fixture).await;
        let heard = read(&upstream.next_text().await);
        assert_eq!((&heard["type"], &heard["payload"]["lang"]), (&json!("connection_init"), &json!("de")));
        let text = heard.to_string().to_lowercase();
        assert!(!["authorization", "authtoken", "bob", "1.2.3.4"].iter().any(|word| text.contains(word)), "{text}");
        assert_eq!(upstream.next_text().await, r#"{"id":"1","type":"subscribe","payload":{"query":"{ a }"}}"#);
        upstream.say(r#"{"type":"connection_ack"}"#).await;
        assert_eq!(client.next_text().await, r#"{"type":"connection_ack"}"#, "nothing of ours before it");
    }
}

#[tokio::test]
async fn graphql_s_refusals_have_the_codes_its_library_understands() {
    let mut fixture = fixture(&format!("{GRAPHQL}routes: [{{ path: /admin, require: {{ role: admin }} }}]\n")).await;
    let (good, expired) = (fixture.issuer.token("alice"), fixture.issuer.expired("alice"));
    for (target, message, code, reason) in [
        ("/graphql", init(json!({})), 4401, "Missing token"),
        ("/graphql", r#"{"type":"connection_init"}"#.to_owned(), 4401, "Missing token"),
        ("/graphql", init(json!({"Authorization": "Bearer x"})), 4401, "Invalid token"),
        ("/graphql", init(json!({ "authToken": expired })), 4403, "Token expired"),
        ("/admin", init(json!({ "authToken": good })), 4403, "Access denied"),
        ("/graphql", r#"{"type":"subscribe"}"#.to_owned(), 4401, "Expected authentication message"),
        ("/graphql", "hello".to_owned(), 4400, "Invalid message format"),
    ] {
        let mut client = Socket::open(fixture.proxy.address, target, &[OFFER]).await;
        client.say(&message).await;
        assert_eq!(client.next_close().await, (code, reason.to_owned()), "{message}");
    }
    assert!(fixture.backend.is_untouched());
}

/// Checks that an authenticated client cannot become another user by members that the upstream reads as headers.
#[tokio::test]
async fn where_messages_go_on_no_spelling_of_a_later_one_carries_a_name_of_ours() {
    let fixture = fixture(GRAPHQL).await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str(), OFFER];
    let open =
        async || tokio::join!(Socket::open(fixture.proxy.address, "/graphql", &fields), graphql_upstream(&fixture));
    let (mut client, mut upstream) = open().await;
    let long = "x".repeat(40_000);
    let plain = r#"{"type":"connection_init","payload":{"X-User-Id":"bob"}}"#;
    for (first, bytes) in [
        (0x81, plain.as_bytes().to_vec()),
        (0x81, format!(" \n\t{plain}").into_bytes()),
        (0x81, br#"{"type":"connection\u005finit","payload":{"X\u002dUser-Id":"bob"}}"#.to_vec()),
        (0x81, json!({"type": "connection_init", "payload": {"x": long, "x.user.id": "bob"}}).to_string().into_bytes()),
    ] {
        client.send(first, &bytes).await;
        let heard = upstream.next().await;
        assert_eq!(heard.opcode, first & 0x0f);
        assert!(heard.text().contains("connection_init") && !heard.text().contains("bob"), "{}", heard.text());
    }
    // In pieces of a few bytes, with a ping between them.
    for (index, piece) in plain.as_bytes().chunks(7).enumerate() {
        let last = (index + 1) * 7 >= plain.len();
        client.send(u8::from(index == 0) | if last { 0x80 } else { 0 }, piece).await;
        client.send(0x89, "").await;
    }
    let mut heard = upstream.next().await;
    while heard.opcode == 9 {
        heard = upstream.next().await;
    }
    assert!(heard.text().contains("connection_init") && !heard.text().contains("bob"), "{}", heard.text());
    // Any other message passes as it came, whatever its kind and length.
    for (first, bytes) in [
        (0x81, format!(r#"{{"type":"subscribe","n":1.50,"q":"{long}"}}"#).into_bytes()),
        (0x82, vec![7; 70_000]),
        (0x82, vec![0; 70_000]),
        (0x81, format!(r#"{{"type":"subscribe","q":"{}"}}"#, "x".repeat(3 << 20)).into_bytes()),
        (0x81, br#"{"id":"1","payload":{"q":"\ud83d"},"type":"subscribe"}"#.to_vec()),
        (0x81, format!(r#"{{"q":{}{},"type":"subscribe"}}"#, "[".repeat(500), "]".repeat(500)).into_bytes()),
        (0x81, b"ping".to_vec()),
    ] {
        client.send(first, &bytes).await;
        let mut heard = upstream.next().await;
        while heard.opcode == 9 {
            heard = upstream.next().await;
        }
        assert_eq!((heard.opcode, &heard.payload), (first & 0x0f, &bytes));
    }
    // A message with two readings is not forwarded.
    let utf16: Vec<u8> = plain.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for bytes in [
        &br#"{"type":"x","type":"connection_init","payload":{"X-User-Id":"bob"}}"#[..],
        br#"{"type":"connection_init","payload":{"X-User-Id":"bob"}}{}"#,
        b"\xef\xbb\xbf{\"type\":\"connection_init\",\"payload\":{\"X-User-Id\":\"bob\"}}",
        br#"{"Type":"connection_init","Payload":{"X-User-Id":"bob"}}"#,
        br#"{"type":"connection_init","n":NaN}"#,
        br#"{"type":"connection_init","n":"\ud83d"}"#,
        br#"{"type":"connection_init","n":1e400}"#,
        b"{\"type\":\"connection_init\",\"n\":\"\xff\"}",
        &utf16,
    ] {
        for first in [0x81, 0x82] {
            let (mut client, mut upstream) = open().await;
            client.send(first, bytes).await;
            assert_eq!(client.next_close().await, (4400, "Invalid message format".into()));
            // The beginning of a message that could not be the proxy's may have been forwarded, but never its end.
            if let Some(heard) = upstream.try_next().await {
                assert_eq!(heard.close().0, 1001);
            }
        }
    }
    // A second reading that appears after three megabytes ends the message there.
    let (mut client, mut upstream) = open().await;
    let late = format!(r#"{{"type":"subscribe","q":"{}","type":"connection_init"}}"#, "x".repeat(3 << 20));
    let writing = client.send(0x81, late);
    let reading = upstream.try_next();
    let ((), heard) = tokio::join!(writing, reading);
    assert_eq!(heard, None);
    assert_eq!(client.next_close().await, (4400, "Invalid message format".into()));
    let (mut client, _upstream) = open().await;
    client.send(0x01, format!(r#"{{"q":"{}"#, "x".repeat(900_000))).await;
    client.send(0x00, "x".repeat(200_000)).await;
    assert_eq!(client.next_close().await.0, 1009, "websocket.message_bytes");
}

/// Some backends read names without case, and cookies are credentials too.
#[tokio::test]
async fn header_maps_carry_no_credential_on_in_any_spelling() {
    let fixture =
        fixture(&format!("{GRAPHQL}token_from: {{ cookie: __session, header: [Authorization, X-Jwt] }}\n")).await;
    let token = fixture.issuer.token("alice");
    let (_, client) = Socket::try_open(fixture.proxy.address, "/graphql", &[OFFER]).await;
    let mut client = client.expect("open");
    let headers = json!({
        "Cookie": format!("a=1; __session={token}; __Host-vestibule=x"), "x_jwt": "secret", "Referer": format!("https://x/?token={token}"),
        "Proxy-Authorization": "secret", "lang": "de"
    });
    let message = json!({"type": "connection_init", "payload": {"authToken": token, "Headers": headers}, "PAYLOAD": {"authtoken": "secret"}});
    client.say(&message.to_string()).await;
    let mut upstream = graphql_upstream(&fixture).await;
    let expected =
        json!({"type": "connection_init", "payload": {"Headers": {"Cookie": "a=1", "lang": "de"}}, "PAYLOAD": {}});
    assert_eq!(read(&upstream.next_text().await), expected);
}

/// Checks that an upstream that acts on messages of this dialect never gets one that it could read as such and that is
/// not one in every reading.
#[tokio::test]
async fn where_the_upstream_acts_on_messages_no_second_reading_of_one_reaches_it() {
    let fixture = fixture("").await;
    for dialect in ["vestibule", "none"] {
        let proxy = Proxy::start(&format!(
            "upstream: {{ url: \"{}\", token_to: {{ websocket: {{ first_message: vestibule }} }} }}\nproviders: [{}]\nwebsocket: {{ dialect: {dialect} }}\n",
            fixture.backend.url(),
            fixture.issuer.provider()
        ))
        .await;
        let credential = bearer(&fixture.issuer.token("alice"));
        let fields = [credential.as_str()];
        let bob = fixture.issuer.token("bob");
        let open = async || {
            let upstream = async {
                let (_, mut upstream) = fixture.backend.websocket().await;
                assert!(upstream.next_text().await.contains("authenticate"));
                upstream.say(r#"{"type":"authenticated","user_id":"alice","expires_at":1,"expires_in":1}"#).await;
                upstream
            };
            tokio::join!(Socket::open(proxy.address, "/ws", &fields), upstream)
        };
        let refresh = format!(r#"{{"type":"refresh_auth","token":"{bob}"}}"#);
        let inner = &refresh[1..];
        let utf32: Vec<u8> = refresh.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        for (first, bytes) in [
            (0x81, format!(r#"{{"n":NaN,{inner}"#).into_bytes()),
            (0x81, format!(r#"{{"token":"x",{inner}"#).into_bytes()),
            (0x81, format!(r#"{{"pad":"{}",{inner}"#, "x".repeat(20_000)).into_bytes()),
            (0x81, format!(r#"{{"n":"\ud83d",{inner}"#).into_bytes()),
            (0x81, format!(r#"{{"n":{}{},{inner}"#, "[".repeat(40), "]".repeat(40)).into_bytes()),
            (0x81, format!(r#"{{"n":1e400,{inner}"#).into_bytes()),
            (0x81, format!("{refresh}{{}}").into_bytes()),
            (0x81, format!("null{refresh}").into_bytes()),
            (0x81, format!("[] {refresh}").into_bytes()),
            (0x81, refresh.replace("type", "Type").into_bytes()),
            (0x81, refresh.replace('"', "'").into_bytes()),
            (0x82, refresh.clone().into_bytes()),
            (0x82, utf32),
        ] {
            let (mut client, mut upstream) = open().await;
            client.send(first, &bytes).await;
            let mut heard = client.next().await;
            while heard.opcode == 1 {
                heard = client.next().await;
            }
            // A message of the dialect is not longer than 16 KiB.
            let code = if bytes.len() > 17_000 { 1009 } else { 1008 };
            assert_eq!(heard.close().0, code, "{dialect} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(99)]));
            if let Some(heard) = upstream.try_next().await {
                assert_eq!(
                    heard.close().0,
                    1001,
                    "{dialect} {}",
                    String::from_utf8_lossy(&bytes[..bytes.len().min(99)])
                );
            }
        }
        let (mut client, mut upstream) = open().await;
        let long = "x".repeat(3 << 20);
        for (first, bytes) in [
            (0x81, format!(r#"{{"data":"{long}","type":"run"}}"#).into_bytes()),
            (0x81, br#"{"type":"run","n":NaN,"cut":"\ud83d"}"#.to_vec()),
            (0x82, vec![0; 100_000]),
            (0x81, br#"{"type":"run","code":"{\"type\":\"refresh_auth\"}"}"#.to_vec()),
        ] {
            client.send(first, &bytes).await;
            let heard = upstream.next().await;
            assert_eq!((heard.opcode, heard.payload == bytes), (first & 0x0f, true), "{dialect}");
        }
    }
}

/// Checks an application's pings while a long message is being sent to the client.
#[tokio::test]
async fn heartbeats_behind_a_message_of_the_upstream_are_no_refreshes() {
    let fixture = fixture(CHANNELS).await;
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.next_text().await;
    let token = fixture.issuer.token("alice");
    client.say(&json!({"event": "join", "ref": 1, "payload": {"token": token}}).to_string()).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    client.next_text().await;
    upstream.send(0x01, "begun").await;
    assert_eq!(client.next().await.text(), "begun");
    for index in 0..20 {
        client.say(&json!({"event": "heartbeat", "ref": index}).to_string()).await;
    }
    client.say("behind").await;
    assert_eq!(upstream.next_text().await, "behind");
    upstream.send(0x80, " and ended").await;
    assert_eq!(client.next().await.text(), " and ended");
    for index in 0..20 {
        assert_eq!(read(&client.next_text().await), json!({"event": "pong", "ref": index}));
    }
}

#[tokio::test]
async fn a_token_in_a_later_first_message_is_judged_as_a_refresh() {
    let fixture = fixture(GRAPHQL).await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str(), OFFER];
    let (mut client, mut upstream) =
        tokio::join!(Socket::open(fixture.proxy.address, "/graphql", &fields), graphql_upstream(&fixture));
    for token in [fixture.issuer.token("alice"), fixture.issuer.token("bob")] {
        client.say(&init(json!({"authToken": token, "n": 1}))).await;
        assert_eq!(upstream.next_text().await, init(json!({"n": 1})));
    }
    // Refused refreshes are counted although the dialect has no answer to them. One waits while another is verified,
    // and a newer one replaces it, so this takes a second or two.
    let tries = async {
        loop {
            client.say(&init(json!({"authToken": "garbage"}))).await;
            if upstream.next().await.opcode == 8 {
                return client.next_close().await;
            }
            // Paces the tries, whose rate is what is limited; the end is awaited above.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(crate::support::within("the end of it", tries).await, (4429, "Too many refreshes".into()));
}

#[tokio::test]
async fn where_the_upstream_checks_for_itself_the_message_goes_on_with_a_verified_token_only() {
    let fixture = fixture("").await;
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: \"{}\", token_to: {{ websocket: {{ first_message: graphql-transport-ws }} }} }}\nproviders: [{}]\n{GRAPHQL}",
        fixture.backend.url(),
        fixture.issuer.provider()
    ))
    .await;
    let token = fixture.issuer.token("alice");
    let mut client = Socket::open(proxy.address, "/graphql", &[OFFER]).await;
    client.say(&init(json!({"authToken": token, "n": 1}))).await;
    let mut upstream = graphql_upstream(&fixture).await;
    assert_eq!(upstream.next_text().await, init(json!({"n": 1, "Authorization": token})));
    let newer = fixture.issuer.token_with("alice", json!({"jti": "newer"}));
    client.say(&init(json!({"authToken": newer, "n": 2}))).await;
    client.say("behind").await;
    assert_eq!(upstream.next_text().await, init(json!({"n": 2, "Authorization": newer})));
    assert_eq!(upstream.next_text().await, "behind");
    // A message without a token is forwarded with the current one.
    client.say(&init(json!({"n": 3}))).await;
    assert_eq!(upstream.next_text().await, init(json!({"n": 3, "Authorization": newer})));
    // A refused message is not forwarded, and nobody would answer it.
    client.say(&init(json!({"authToken": fixture.issuer.token("bob"), "n": 4}))).await;
    assert_eq!(client.next_close().await, (4401, "Invalid token".into()));
    assert_eq!(upstream.next().await.opcode, 8);
    // A client with a header is introduced to the upstream by its own message.
    let credential = bearer(&token);
    let fields = [credential.as_str(), OFFER];
    let (mut client, mut upstream) =
        tokio::join!(Socket::open(proxy.address, "/graphql", &fields), graphql_upstream(&fixture));
    client.say(&init(json!({"n": 5}))).await;
    assert_eq!(upstream.next_text().await, init(json!({"n": 5, "Authorization": token})));
}

/// Checks the message of a page that says it with the token of its load, while its cookie or its header goes on. The library
/// waits for the upstream's answer without an end.
#[tokio::test]
async fn where_the_upstream_checks_for_itself_a_message_with_an_expired_token_goes_on_with_the_one_in_force() {
    let fixture = fixture("").await;
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: \"{}\", token_to: {{ websocket: {{ first_message: graphql-transport-ws }} }} }}\nproviders: [{}]\n{GRAPHQL}",
        fixture.backend.url(),
        fixture.issuer.provider()
    ))
    .await;
    let (token, expired) = (fixture.issuer.token("alice"), fixture.issuer.expired("alice"));
    let credential = bearer(&token);
    let fields = [credential.as_str(), OFFER];
    let (mut client, mut upstream) =
        tokio::join!(Socket::open(proxy.address, "/graphql", &fields), graphql_upstream(&fixture));
    client.say(&init(json!({"authToken": expired, "n": 1}))).await;
    client.say("behind").await;
    assert_eq!(upstream.next_text().await, init(json!({"n": 1, "Authorization": token})));
    assert_eq!(upstream.next_text().await, "behind");
    // Not that of another user, which is refused.
    client.say(&init(json!({"authToken": fixture.issuer.expired("bob"), "n": 2}))).await;
    assert_eq!(client.next_close().await, (4403, "Token expired".into()));
    assert_eq!(upstream.next().await.opcode, 8);
}

#[tokio::test]
async fn lines_of_one_message_are_looked_at_by_themselves() {
    let fixture = fixture(
        "websocket: { dialect: lines }\ndialects:\n  lines:\n    lines: true\n    authenticate: { match: { connect: { present: true } }, token: [/connect/token] }\n    forward: true\n    refresh: { match: { refresh: { present: true } }, token: [/refresh/token], acknowledge: { id: \"{/id}\", refresh: {} } }\n",
    )
    .await;
    let token = fixture.issuer.token("alice");
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client
        .say(&format!(
            "{{\"id\":1,\"connect\":{{\"token\":\"{token}\",\"name\":\"js\"}}}}\n{{\"id\":2,\"subscribe\":{{}}}}\n"
        ))
        .await;
    client.say(&format!("{{\"id\":3}}\n{{\"id\":4,\"refresh\":{{\"token\":\"{token}\"}}}}\n{{\"id\":5}}")).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    assert_eq!(upstream.next_text().await, r#"{"id":1,"connect":{"name":"js"}}"#);
    assert_eq!(upstream.next_text().await, "{\"id\":2,\"subscribe\":{}}\n");
    assert_eq!(upstream.next_text().await, "{\"id\":3}\n{\"id\":5}");
    assert_eq!(client.next_text().await, r#"{"id":4,"refresh":{}}"#);
}

/// Checks lines after a line without meaning: they are messages to a reader that splits lines where the proxy does not.
#[tokio::test]
async fn no_line_of_another_reading_reaches_an_upstream_that_acts_on_it() {
    let fixture = fixture(
        "websocket: { dialect: lines }\ndialects:\n  lines:\n    lines: true\n    authenticate: { match: { connect: { present: true } }, token: [/connect/token] }\n    forward: true\n    refresh: { match: { refresh: { present: true } }, token: [/refresh/token], acknowledge: { id: \"{/id}\", refresh: {} } }\n",
    )
    .await;
    let connect = |user: &str| json!({"connect": {"token": fixture.issuer.token(user)}}).to_string();
    for end in ["\r", "\u{2028}", "\u{85}", "\u{1e}"] {
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        client.say(&connect("alice")).await;
        let (_, mut upstream) = fixture.backend.websocket().await;
        assert!(upstream.next_text().await.contains("connect"));
        client.say(&format!("nothing{end}still nothing")).await;
        assert_eq!(upstream.next_text().await, format!("nothing{end}still nothing"));
        client.say(&format!("nothing{end}{}", connect("bob"))).await;
        assert_eq!(client.next_close().await.0, 1008, "{end:?}");
        // What of it had gone up is no whole message.
        let mut heard = upstream.next().await;
        while heard.opcode != 8 {
            assert!(!String::from_utf8_lossy(&heard.payload).contains("connect"), "{end:?}");
            heard = upstream.next().await;
        }
    }
}

/// The dialect of an upstream that checks tokens itself: what authenticates goes on with its token, a refresh does not.
const CHECKED_LINES: &str = "websocket: { dialect: lines }\ndialects:\n  lines:\n    lines: true\n    authenticate: { match: { connect: { present: true } }, token: [/connect/token] }\n    forward: true\n    refresh: { match: { refresh: { present: true } }, token: [/refresh/token], acknowledge: { refresh: {} } }\n";

#[tokio::test]
async fn no_token_reaches_an_upstream_that_checks_tokens_by_the_verdict_on_another() {
    let fixture = fixture("").await;
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: \"{}\", token_to: {{ websocket: {{ first_message: lines }} }} }}\nproviders: [{}]\n{CHECKED_LINES}",
        fixture.backend.url(),
        fixture.issuer.provider()
    ))
    .await;
    let (alice, bob) = (fixture.issuer.token("alice"), fixture.issuer.token("bob"));
    let newer = fixture.issuer.token_with("alice", json!({"jti": "newer"}));
    for (messages, is_refused) in [
        // Of two messages in one read, the first is still being verified when the second is read.
        (vec![refresh(&newer), connect(&bob)], false),
        (vec![refresh(&bob), connect(&newer), connect(&bob)], false),
        (vec![format!("{}\n{}", connect(&bob), refresh(&newer))], false),
        (vec![format!("{}\n{}", refresh(&newer), connect(&bob))], false),
        (vec![format!("{}\n{}", connect(&newer), connect(&bob))], true),
        (vec![format!("{}\n{}", connect(&bob), connect(&newer))], true),
    ] {
        let mut client = Socket::open(proxy.address, "/ws", &[]).await;
        client.say(&connect(&alice)).await;
        let (_, mut upstream) = fixture.backend.websocket().await;
        assert_eq!(upstream.next_text().await, connect(&alice));
        let frames: Vec<u8> =
            messages.iter().flat_map(|message| frame(Side::Client, 0x81, message.as_bytes())).collect();
        client.write(&frames).await;
        if is_refused {
            assert_eq!(client.next_close().await, (1008, "Invalid message format".into()), "{messages:?}");
        } else {
            client.say("last").await;
        }
        loop {
            let heard = upstream.next().await;
            let text = String::from_utf8_lossy(&heard.payload).into_owned();
            assert!(!text.contains(&bob), "{messages:?} went on as {text}");
            if heard.opcode == 8 || text == "last" {
                break;
            }
        }
    }
}

/// Starts a proxy whose upstream checks the tokens in messages of [`CHECKED_LINES`], and opens a socket with a token.
async fn checked_lines(fixture: &Fixture, token: &str) -> (Proxy, Socket, Socket) {
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: \"{}\", token_to: {{ websocket: {{ first_message: lines }} }} }}\nproviders: [{}]\n{CHECKED_LINES}",
        fixture.backend.url(),
        fixture.issuer.provider()
    ))
    .await;
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    client.say(&connect(token)).await;
    let (_, mut upstream) = fixture.backend.websocket().await;
    assert_eq!(upstream.next_text().await, connect(token));
    (proxy, client, upstream)
}

fn connect(token: &str) -> String {
    json!({"connect": {"token": token}}).to_string()
}

fn refresh(token: &str) -> String {
    json!({"refresh": {"token": token}}).to_string()
}

/// Returns what the upstream receives before the message `last`.
async fn until_last(upstream: &mut Socket) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        match upstream.next_text().await {
            text if text == "last" => return heard,
            text => heard.push(text),
        }
    }
}

/// Checks a text whose tokens wait for the rate limit of refreshes.
#[tokio::test]
async fn a_message_whose_token_waits_for_its_turn_is_not_lost_to_a_refresh_in_the_same_text() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let newer = fixture.issuer.token_with("alice", json!({"jti": "newer"}));
    let (_proxy, mut client, mut upstream) = checked_lines(&fixture, &token).await;
    // The burst.
    for _ in 0..5 {
        client.say(&refresh(&token)).await;
        assert_eq!(client.next_text().await, r#"{"refresh":{}}"#);
    }
    client.say(&format!("{}\n{}", connect(&newer), refresh(&token))).await;
    client.say("last").await;
    let heard = until_last(&mut upstream).await;
    assert!(heard.contains(&connect(&newer)), "{heard:?}");
    assert_eq!(client.next_text().await, r#"{"refresh":{}}"#);
}

#[tokio::test]
async fn a_message_goes_on_by_the_verdict_on_its_own_token_and_not_on_that_behind_it() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let newer = fixture.issuer.token_with("alice", json!({"jti": "newer"}));
    let (_proxy, mut client, mut upstream) = checked_lines(&fixture, &token).await;
    client.say(&format!("{}\n{}", connect(&fixture.issuer.expired("alice")), refresh(&newer))).await;
    client.say("last").await;
    let heard = until_last(&mut upstream).await;
    assert!(heard.contains(&connect(&token)), "{heard:?}");
    assert_eq!(client.next_text().await, r#"{"refresh":{}}"#);
}
