//! docs/contract.md section 4.1, 4.2 and 4.5 over sockets, for the default dialect.

mod access_lines;
mod cookies;
mod delivery;
mod dialects;
mod life;
mod matrix;
mod token_field;
mod transcripts;
mod twice;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::fixture::{Fixture, fixture};
use crate::support::backend::Backend;
use crate::support::client::{bearer, get};
use crate::support::issuer::{Issuer, Mood};
use crate::support::proxy::Proxy;
use crate::support::socket::{Side, Socket, frame};
use crate::support::{now, within};

impl Fixture {
    /// A socket that is authenticated in band, with the upstream's end of it.
    async fn session(&self, token: &str) -> (Socket, Socket) {
        let mut client = Socket::open(self.proxy.address, "/ws", &[]).await;
        let (said, (_, upstream)) = tokio::join!(client.authenticate(token), self.backend.websocket());
        assert_eq!(said["type"], "authenticated", "{said}");
        (client, upstream)
    }

    fn refresh(&self, token: &str) -> String {
        json!({"type": "refresh_auth", "token": token}).to_string()
    }
}

fn error(message: &str) -> String {
    json!({"type": "error", "message": message}).to_string()
}

#[tokio::test]
async fn authenticated_says_who_and_until_when() {
    let fixture = fixture("").await;
    let exp = now() + 90;
    let token = fixture.issuer.token_with("alice", json!({ "exp": exp }));
    let mut client = Socket::open(
        fixture.proxy.address,
        "/ws/a?x=1",
        &["Sec-WebSocket-Extensions: permessage-deflate", "Cookie: theirs=1"],
    )
    .await;
    let (said, (heard, _upstream)) = tokio::join!(client.authenticate(&token), fixture.backend.websocket());
    assert_eq!((said["user_id"].as_str(), said["expires_at"].as_u64()), (Some("alice"), Some(exp)));
    assert!((80..=90).contains(&said["expires_in"].as_u64().expect("a number")));
    assert_eq!(heard.target(), "/ws/a?x=1");
    assert_eq!((heard.all("x-user-id"), heard.all("cookie")), (vec!["alice"], vec!["theirs=1"]));
    // Compressed messages could not be read.
    assert!(!heard.has("sec-websocket-extensions") && !heard.head.contains(&token));
}

#[tokio::test]
async fn every_bad_first_message_is_its_row_and_never_reaches_the_upstream() {
    let mut fixture = fixture("").await;
    let good = fixture.issuer.token("alice");
    let text = |payload: String| frame(Side::Client, 0x81, payload.as_bytes());
    let authenticate = |token: &str| text(json!({"type": "authenticate", "token": token}).to_string());
    let expired = fixture.issuer.expired("alice");
    let fragments: Vec<u8> = (0..70).flat_map(|n| frame(Side::Client, u8::from(n == 0), b" ")).collect();
    for (name, bytes, said, close) in [
        ("no JSON", text("hello".into()), Some("Invalid message format"), (1008, "Invalid message format")),
        ("an array", text("[]".into()), Some("Invalid message format"), (1008, "Invalid message format")),
        (
            "twice",
            text(format!(r#"{{"type":"authenticate","token":"{good}","token":"{good}"}}"#)),
            Some("Invalid message format"),
            (1008, "Invalid message format"),
        ),
        (
            "bytes behind",
            text(format!(r#"{{"type":"authenticate","token":"{good}"}}x"#)),
            Some("Invalid message format"),
            (1008, "Invalid message format"),
        ),
        (
            "too deep",
            text(format!("{{\"a\":{}{}}}", "[".repeat(60), "]".repeat(60))),
            Some("Invalid message format"),
            (1008, "Invalid message format"),
        ),
        ("binary", frame(Side::Client, 0x82, b"{}"), Some("Invalid message format"), (1008, "Invalid message format")),
        (
            "another type",
            text(r#"{"type":"hello"}"#.into()),
            Some("Expected authentication message"),
            (1008, "Expected authentication message"),
        ),
        (
            "no token",
            text(r#"{"type":"authenticate"}"#.into()),
            Some("Missing authentication token"),
            (1008, "Missing token"),
        ),
        ("empty token", authenticate(""), Some("Missing authentication token"), (1008, "Missing token")),
        ("expired", authenticate(&expired), Some("Token has expired"), (1008, "Token expired")),
        ("garbage", authenticate("garbage"), Some("Invalid authentication token"), (1008, "Invalid token")),
        ("too large", frame(Side::Client, 0x81, &vec![b' '; 17_000]), None, (1009, "Message too large")),
        ("too many fragments", fragments, None, (1009, "Message too large")),
        ("not UTF-8", frame(Side::Client, 0x81, b"\xff"), None, (1007, "Invalid UTF-8")),
        ("unmasked", vec![0x81, 0x02, b'{', b'}'], None, (1002, "Protocol error")),
        ("reserved bit", frame(Side::Client, 0xc1, b"{}"), None, (1002, "Protocol error")),
        ("pings", frame(Side::Client, 0x8a, b"").repeat(17), None, (1008, "Too many control frames")),
    ] {
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        client.write(bytes).await;
        if let Some(said) = said {
            assert_eq!(client.next_text().await, error(said), "{name}");
        }
        assert_eq!(client.next_close().await, (close.0, close.1.to_owned()), "{name}");
        assert!(client.is_over().await, "{name}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn a_socket_that_says_nothing_is_closed_in_time() {
    let fixture = fixture("websocket: { auth_timeout: 1s }\n").await;
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.send(0x89, "a ping is no word").await;
    assert_eq!(client.next().await.opcode, 10);
    assert_eq!(client.next_text().await, error("Authentication timeout"));
    assert_eq!(client.next_close().await, (1008, "Authentication timeout".into()));
}

#[tokio::test]
async fn every_answer_of_the_upstream_to_the_dial_is_its_row() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    for (answer, said, close) in [
        ("HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n", "Access denied", (1008, "Access denied")),
        ("HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n", "Access denied", (1008, "Access denied")),
        ("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", "Not found", (1008, "Not found")),
        ("HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", "Upstream unavailable", (1013, "Try again later")),
        ("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", "Upstream unavailable", (1011, "Upstream unavailable")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "Upstream unavailable", (1011, "Upstream unavailable")),
        ("garbage\r\n\r\n", "Upstream unavailable", (1011, "Upstream unavailable")),
        (
            "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
            "Upstream unavailable",
            (1011, "Upstream unavailable"),
        ),
    ] {
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        client.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(answer).await;
        assert_eq!(client.next_text().await, error(said), "{answer}");
        assert_eq!(client.next_close().await, (close.0, close.1.to_owned()), "{answer}");
    }
    for (outcome, said) in [
        ("upstream_refused", "401 to the upgrade; if it checks tokens itself, set upstream.token_to.websocket\""),
        ("upstream_refused", "403 to the upgrade; it may serve no WebSocket at this path, "),
        ("upstream_not_found", "404 to the upgrade; it serves no WebSocket at this path\""),
        ("upstream_busy", "503 to the upgrade\""),
        ("upstream_failed", "500 to the upgrade\""),
    ] {
        let reason = format!(r#""reason":"the upstream answered {said}"#);
        let line = fixture.proxy.logged("why the upgrade was refused", |line| line.contains(&reason)).await;
        let parts = format!(r#""answered_by":"upstream","outcome":"{outcome}""#);
        assert!(line.contains(&parts), "{line}");
    }
}

#[tokio::test]
async fn an_unreachable_upstream_and_unavailable_keys_say_come_again() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let Fixture { backend, proxy, .. } = fixture;
    drop(backend);
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
    assert_eq!(client.next_text().await, error("Upstream unavailable"));
    assert_eq!(client.next_close().await, (1011, "Upstream unavailable".into()));
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    issuer.set_mood(Mood::Rude);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": issuer.token("alice")}).to_string()).await;
    assert_eq!(client.next_text().await, error("Authentication service unavailable"));
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
}

#[tokio::test]
async fn a_header_on_the_upgrade_asks_the_upstream_first_and_is_answered_over_http() {
    let fixture = fixture("routes: [{ path: /admin/**, require: { role: admin } }]\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let offered = [credential.as_str(), "Sec-WebSocket-Protocol: v2.kernel, v1.kernel"];
    let upstream =
        async { fixture.backend.accept().await.switch("Sec-WebSocket-Protocol: v1.kernel\r\nX-Custom: 1\r\n").await };
    let ((answer, client), (heard, mut upstream)) =
        tokio::join!(Socket::try_open(fixture.proxy.address, "/ws", &offered), upstream);
    assert_eq!(
        (answer.status, answer.field("sec-websocket-protocol"), answer.field("x-custom")),
        (101, Some("v1.kernel"), Some("1"))
    );
    assert_eq!(
        (heard.all("sec-websocket-protocol"), heard.all("x-user-id")),
        (vec!["v2.kernel, v1.kernel"], vec!["alice"])
    );
    assert!(!heard.has("authorization"));
    let mut client = client.expect("open");
    client.say("hi").await;
    assert_eq!(upstream.next_text().await, "hi");
    // The upstream's own refusal, whole.
    let refusing = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope").await;
    };
    let ((answer, _), ()) = tokio::join!(Socket::try_open(fixture.proxy.address, "/ws", &offered), refusing);
    assert_eq!((answer.status, answer.body.as_str()), (404, "nope"));
    // Ours, as section 3 says.
    for (target, field, status, code) in [
        ("/ws", bearer(&fixture.issuer.expired("alice")), 401, "token_expired"),
        ("/ws", bearer("garbage"), 401, "invalid_token"),
        ("/ws", "Authorization: Basic x".to_owned(), 401, "invalid_request"),
        ("/admin/ws", credential.clone(), 403, "forbidden"),
    ] {
        let (answer, _) = Socket::try_open(fixture.proxy.address, target, &[&field]).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{field}");
    }
}

#[tokio::test]
async fn a_query_token_is_moved_out_of_the_url_before_anything_sees_it() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let target = format!("/ws?a=1&%74oken={token}&b=%20");
    let referer = format!("Referer: http://localhost/page?token={token}");
    let fields = [referer.as_str()];
    let ((answer, client), (heard, mut upstream)) =
        tokio::join!(Socket::try_open(fixture.proxy.address, &target, &fields), fixture.backend.websocket());
    assert_eq!((answer.status, heard.target()), (101, "/ws?a=1&b=%20"));
    assert_eq!((heard.all("x-user-id"), heard.all("referer")), (vec!["alice"], vec!["http://localhost/page"]));
    let mut client = client.expect("open");
    // Nothing of ours is said unasked.
    upstream.say("first").await;
    assert_eq!(client.next_text().await, "first");
    drop(client);
    fixture.proxy.logged("the socket's line", |line| line.contains("\"carrier\":\"query\"")).await;
    let parts = [
        "deprecated: token in the query string; send it as the first message of a WebSocket, or in Authorization",
        "\"origin\":\"a client without Origin\"",
        "\"route\":\"default\"",
    ];
    fixture.proxy.logged("the warning", |line| parts.iter().all(|part| line.contains(part))).await;
    assert!(!fixture.proxy.log().iter().any(|line| line.contains(&token)));
}

#[tokio::test]
async fn a_refused_query_token_is_a_close_that_a_page_can_read() {
    let fixture = fixture("routes: [{ path: /deny/**, token_from: { query: { mode: deny } } }]\n").await;
    let good = fixture.issuer.token("alice");
    let expired = fixture.issuer.expired("alice");
    for (target, said, close) in [
        (format!("/ws?token={expired}"), "Token has expired", (1008, "Token expired")),
        (format!("/ws?token={}", fixture.issuer.unsigned()), "Invalid authentication token", (1008, "Invalid token")),
        (format!("/ws?token={good}&token={good}"), "Invalid authentication token", (1008, "Invalid token")),
        (
            format!("/deny/ws?token={good}"),
            "Tokens in the URL are no longer accepted. Send {\"type\":\"authenticate\",\"token\":\"…\"} as the first message.",
            (1008, "Token in URL"),
        ),
    ] {
        let mut client = Socket::open(fixture.proxy.address, &target, &[]).await;
        assert_eq!(client.next_text().await, error(said), "{target}");
        assert_eq!(client.next_close().await, (close.0, close.1.to_owned()), "{target}");
        assert!(client.is_over().await);
    }
    // The upstream's refusal of a query token becomes a Close too.
    let target = format!("/ws?token={good}");
    let refusing = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n").await;
    };
    let (mut client, ()) = tokio::join!(Socket::open(fixture.proxy.address, &target, &[]), refusing);
    assert_eq!(client.next_text().await, error("Access denied"));
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
    let reason = r#""reason":"the upstream answered 403 to the upgrade; it may serve no WebSocket at this path, "#;
    let line = fixture.proxy.logged("why the upgrade was refused", |line| line.contains(reason)).await;
    assert!(line.contains(r#""answered_by":"upstream","outcome":"upstream_refused""#), "{line}");
}

#[tokio::test]
async fn without_an_in_band_handshake_a_socket_needs_its_credential_on_the_upgrade() {
    let mut fixture = fixture("routes: [{ path: /none, websocket: { dialect: none } }, { path: /mute, token_from: { message: false } }, { path: /open, auth: none }]\n").await;
    for target in ["/none", "/mute"] {
        let (answer, _) = Socket::try_open(fixture.proxy.address, target, &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"), "{target}");
    }
    let target = format!("/none?token={}", fixture.issuer.unsigned());
    let mut client = Socket::open(fixture.proxy.address, &target, &[]).await;
    assert_eq!(client.next_close().await, (1008, "Invalid token".into()), "the Close alone, no frame");
    assert!(fixture.backend.is_untouched());
    // Compression is the two ends' own affair there, and frames pass untouched.
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str(), "Sec-WebSocket-Extensions: permessage-deflate"];
    let upstream =
        async { fixture.backend.accept().await.switch("Sec-WebSocket-Extensions: permessage-deflate\r\n").await };
    let ((answer, client), (heard, mut upstream)) =
        tokio::join!(Socket::try_open(fixture.proxy.address, "/none", &fields), upstream);
    assert_eq!(answer.field("sec-websocket-extensions"), Some("permessage-deflate"));
    assert_eq!(heard.all("sec-websocket-extensions"), ["permessage-deflate"]);
    let mut client = client.expect("open");
    client.send(0xc1, r#"{"type":"refresh_auth"}"#).await;
    assert_eq!(upstream.next_text().await, r#"{"type":"refresh_auth"}"#);
    // A public route is a plain tunnel, whose caller is nobody.
    let fields = ["X-User-Id: bob"];
    let (mut client, (heard, mut upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/open", &fields), fixture.backend.websocket());
    assert!(!heard.has("x-user-id"));
    client.say(r#"{"type":"authenticate"}"#).await;
    assert_eq!(upstream.next_text().await, r#"{"type":"authenticate"}"#);
}

#[tokio::test]
async fn a_refresh_is_swallowed_answered_and_moves_the_end() {
    let fixture = fixture("websocket: { grace: 0s }\n").await;
    let (mut client, mut upstream) =
        fixture.session(&fixture.issuer.token_with("alice", json!({"exp": now() + 60}))).await;
    client.say("before").await;
    client.say(&fixture.refresh(&fixture.issuer.token_with("alice", json!({"exp": now() + 500})))).await;
    client.say("after").await;
    let said: Value = serde_json::from_str(&client.next_text().await).expect("json");
    assert_eq!(said["type"], "auth_refreshed");
    assert!((490..=500).contains(&said["expires_in"].as_u64().expect("number")));
    assert_eq!(upstream.next_text().await, "before");
    assert_eq!(upstream.next_text().await, "after");
    // The token may stand before the type, in fragments, or escaped; `authenticate` again is a refresh.
    let token = fixture.issuer.token("alice");
    let (half, rest) = token.split_at(20);
    client.send(0x01, format!(r#" {{"token":"{half}"#)).await;
    client.send(0x89, "between").await;
    client.send(0x80, format!(r#"{rest}","type":"refresh\u005fauth"}}"#)).await;
    assert_eq!(upstream.next().await.opcode, 9);
    assert!(client.next_text().await.contains("auth_refreshed"));
    assert_eq!(client.authenticate(&token).await["type"], "authenticated");
    client.say("last").await;
    assert_eq!(upstream.next_text().await, "last");
}

#[tokio::test]
async fn refused_refreshes_leave_the_socket_on_its_old_identity() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    for (message, said) in [
        (r#"{"type":"refresh_auth"}"#.to_owned(), "Missing token in refresh request"),
        (fixture.refresh("garbage"), "Token refresh failed: Invalid authentication token"),
        (fixture.refresh(&fixture.issuer.expired("alice")), "Token refresh failed: Token has expired"),
        (fixture.refresh(&fixture.issuer.token("bob")), "Token refresh failed: another user"),
    ] {
        client.say(&message).await;
        assert_eq!(client.next_text().await, error(said));
    }
    let is_expired = |line: &str| line.contains("refresh refused") && line.contains("unverified");
    let line = fixture.proxy.logged("the expired token", is_expired).await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line["unverified_issuer"], fixture.issuer.url.as_str());
    assert!(line["unverified_kid"].is_string(), "{line}");
    assert_eq!(line["unverified_sub_digest"], "2bd806c97f0e00af");
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
    client.say(r#"{"type":"refresh_auth"}"#).await;
    assert_eq!(client.next_text().await, error("Too many refreshes"));
    assert_eq!(client.next_close().await, (1008, "Too many refreshes".into()));
    // Toward the upstream a session that we end is a Close 1001.
    assert_eq!(upstream.next_close().await.0, 1001);
}

#[tokio::test]
async fn a_refresh_that_may_no_longer_enter_or_is_someone_new_to_the_upstream_ends_the_socket() {
    let fixture = fixture(
        "identity: { headers: { X-User-Id: sub, X-Team: team } }\nroutes: [{ path: /ws, require: { role: dev } }]\n",
    )
    .await;
    let token = |role: &str, team: &str| fixture.issuer.token_with("alice", json!({"role": role, "team": team}));
    let (mut client, _upstream) = fixture.session(&token("dev", "red")).await;
    client.say(&fixture.refresh(&token("none", "red"))).await;
    assert_eq!(client.next_text().await, error("Access denied"));
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
    let (mut client, _upstream) = fixture.session(&token("dev", "red")).await;
    client.say(&fixture.refresh(&token("dev", "blue"))).await;
    assert_eq!(client.next_close().await, (1012, "Identity changed".into()));
    assert!(client.is_over().await);
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": token("none", "red")}).to_string()).await;
    assert_eq!(client.next_text().await, error("Access denied"));
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
}

#[tokio::test]
async fn an_expired_token_ends_its_socket_with_4401() {
    let fixture = fixture("websocket: { grace: 0s }\n").await;
    let just_good = fixture.issuer.token_with("alice", json!({"exp": now() - 3}));
    // The clock skew is five seconds: this token is just good, and its socket ends in two.
    let (mut client, mut upstream) = fixture.session(&just_good).await;
    assert_eq!(client.next_text().await, error("Token expired"));
    assert_eq!(client.next_close().await, (4401, "Token expired".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    let credential = bearer(&fixture.issuer.token_with("alice", json!({"exp": now() - 3})));
    let fields = [credential.as_str()];
    let (mut client, (_, _upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/ws", &fields), fixture.backend.websocket());
    assert_eq!(client.next_text().await, error("Token expired"));
    assert_eq!(client.next_close().await, (4401, "Token expired".into()));
}

#[tokio::test]
async fn our_messages_go_out_between_the_upstreams_messages_only() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    upstream.send(0x01, "first ").await;
    // Half a frame of the next fragment, with a refresh under way.
    let fragment = frame(Side::Server, 0x00, b"second ");
    upstream.write(&fragment[..3]).await;
    assert_eq!(client.next().await.text(), "first ");
    client.say(&fixture.refresh(&fixture.issuer.token("alice"))).await;
    client.say("marker").await;
    assert_eq!(upstream.next_text().await, "marker");
    upstream.write(&fragment[3..]).await;
    upstream.send(0x89, "ping").await;
    upstream.send(0x80, "third").await;
    let order: Vec<(u8, String)> = vec![(0, "second ".into()), (9, "ping".into()), (0, "third".into())];
    for (opcode, text) in order {
        let frame = client.next().await;
        assert_eq!((frame.opcode, frame.text()), (opcode, text.as_str()));
    }
    assert!(client.next_text().await.contains("auth_refreshed"));
}

/// A front end that says its handshake with the token of its page load, beside a renewal that came first.
#[tokio::test]
async fn authenticate_with_an_old_token_of_the_same_user_is_answered_and_extends_nothing() {
    let fixture = fixture("").await;
    let exp = now() + 90;
    let token = fixture.issuer.token_with("alice", json!({ "exp": exp }));
    let credential = bearer(&token);
    let fields = [credential.as_str()];
    let (mut client, (_, mut upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/ws", &fields), fixture.backend.websocket());
    let said = client.authenticate(&fixture.issuer.expired("alice")).await;
    assert_eq!((said["type"].as_str(), said["user_id"].as_str()), (Some("authenticated"), Some("alice")));
    assert_eq!(said["expires_at"].as_u64(), Some(exp));
    for token in [
        fixture.issuer.expired("bob"),
        fixture.issuer.token_with("alice", json!({ "exp": now() - 60, "aud": "another" })),
        format!("{}x", fixture.issuer.expired("alice")),
    ] {
        let said = client.authenticate(&token).await;
        assert_eq!(said["type"], "error", "{said}");
    }
    client.say(&fixture.refresh(&fixture.issuer.expired("alice"))).await;
    assert_eq!(client.next_text().await, error("Token refresh failed: Token has expired"));
    client.say("behind").await;
    assert_eq!(upstream.next_text().await, "behind", "none of them reached the upstream");
}

#[tokio::test]
async fn a_socket_without_auth_timeout_waits_for_as_long_as_it_answers_pings() {
    let fixture = fixture(
        "websocket: { auth_timeout: 100ms }\nroutes: [{ path: /ws/slow, websocket: { auth_timeout: null, ping_interval: 100ms, ping_timeout: 10s } }]\n",
    )
    .await;
    let mut client = Socket::open(fixture.proxy.address, "/ws/slow", &[]).await;
    for _ in 0..5 {
        assert_eq!(client.next().await.opcode, 9);
        client.send(0x8a, "vestibule").await;
    }
    let token = fixture.issuer.token("alice");
    client.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
    let (_, _upstream) = fixture.backend.websocket().await;
    let mut heard = client.next().await;
    while heard.opcode == 9 {
        heard = client.next().await;
    }
    assert!(heard.text().contains("authenticated"));
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(client.next_text().await, error("Authentication timeout"));
}

#[tokio::test]
async fn frames_of_any_size_and_kind_pass_as_they_came() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    let big = vec![b'{'; 3 << 20];
    let exchange = async {
        client.send(0x81, &big).await;
        client.send(0x82, [0; 70_000]).await;
        client.say(r#"{"type":"other","token":"x"}"#).await;
        client.say(r#"{"type":"refresh_auth","token":"x","token":"y"}"#).await;
        client.say(r#"{"type":"refresh_auth""#).await;
        client.say("   ").await;
        client.say("").await;
        client.send(0x02, "").await;
        client.send(0x80, "end").await;
    };
    let hearing = async {
        assert_eq!(upstream.next().await.payload.len(), 3 << 20);
        assert_eq!(upstream.next().await.payload.len(), 70_000);
        for expected in [
            r#"{"type":"other","token":"x"}"#,
            r#"{"type":"refresh_auth","token":"x","token":"y"}"#,
            r#"{"type":"refresh_auth""#,
            "   ",
            "",
        ] {
            assert_eq!(upstream.next_text().await, expected);
        }
        assert_eq!((upstream.next().await.opcode, upstream.next().await.text().to_owned()), (2, "end".to_owned()));
    };
    tokio::join!(exchange, hearing);
    let answering = async { upstream.send(0x81, &big).await };
    let (frame, ()) = tokio::join!(client.next(), answering);
    assert_eq!(frame.payload.len(), big.len());
}

#[tokio::test]
async fn closes_pass_with_code_and_reason_and_end_both_sides() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    client.send(0x88, [&4000u16.to_be_bytes()[..], b"bye"].concat()).await;
    assert_eq!(upstream.next_close().await, (4000, "bye".into()));
    upstream.send(0x88, 4000u16.to_be_bytes()).await;
    assert_eq!(client.next_close().await.0, 4000);
    drop(upstream);
    assert!(client.is_over().await);
    let line = fixture.proxy.logged("the client's close", |line| line.contains("\"close_code\":4000")).await;
    assert!(line.contains("\"closed_by\":\"client\"") && line.contains("\"user\":\"alice\""), "{line}");
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    upstream.send(0x88, [&4321u16.to_be_bytes()[..], b"enough"].concat()).await;
    assert_eq!(client.next_close().await, (4321, "enough".into()));
    client.send(0x88, 4321u16.to_be_bytes()).await;
    assert_eq!(upstream.next_close().await.0, 4321);
    fixture
        .proxy
        .logged("the upstream's close", |line| line.contains("4321") && line.contains("\"closed_by\":\"upstream\""))
        .await;
}

#[tokio::test]
async fn a_close_with_a_code_that_may_not_be_sent_is_1002_before_and_after_authentication() {
    let fixture = fixture("").await;
    for code in [999_u16, 1005, 1006, 1015] {
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        client.send(0x88, code.to_be_bytes()).await;
        assert_eq!(client.next_close().await, (1002, "Protocol error".into()), "{code}");
        let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
        client.send(0x88, code.to_be_bytes()).await;
        assert_eq!(upstream.next_close().await.0, 1001, "{code}");
        drop(upstream);
        assert_eq!(client.next_close().await, (1002, "Protocol error".into()), "{code}");
    }
}

#[tokio::test]
async fn a_half_closed_client_hears_of_a_reload() {
    use tokio::io::AsyncWriteExt as _;

    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    client.stream.shutdown().await.expect("half closed");
    upstream.say("still there?").await;
    assert_eq!(client.next_text().await, "still there?");
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nroutes: [{{ path: /ws, auth: deny }}]\n",
        fixture.backend.url(),
        fixture.issuer.provider()
    );
    fixture.proxy.rewrite(&yaml);
    fixture.proxy.signal("HUP");
    assert_eq!(client.next_text().await, error("Access denied"));
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
}

#[tokio::test]
async fn a_side_that_vanishes_ends_the_other() {
    let fixture = fixture("").await;
    let (mut client, upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    drop(upstream);
    assert_eq!(client.next_close().await, (1011, "Upstream connection lost".into()));
    let (client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    drop(client);
    assert!(upstream.is_over().await, "a plain close, as it would be without us");
    // What was sent before it vanished still arrives.
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    upstream.say("last words").await;
    drop(upstream);
    assert_eq!(client.next_text().await, "last words");
    assert_eq!(client.next_close().await.0, 1011);
}

#[tokio::test]
async fn broken_framing_ends_with_1002_or_1011_and_what_stood_before_it_arrives() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    client.write([frame(Side::Client, 0x81, b"good"), vec![0x83, 0x80, 0, 0, 0, 0]].concat()).await;
    assert_eq!(upstream.next_text().await, "good");
    assert_eq!(client.next_close().await, (1002, "Protocol error".into()));
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    upstream.write([frame(Side::Server, 0x81, b"good"), vec![0x81, 0x80]].concat()).await;
    assert_eq!(client.next_text().await, "good");
    assert_eq!(client.next_close().await, (1011, "Upstream connection lost".into()));
}

#[tokio::test]
async fn silent_peers_are_pinged_and_dead_ones_dropped() {
    let fixture = fixture("websocket: { ping_interval: 1s, ping_timeout: 1s }\n").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    let ping = client.next().await;
    assert_eq!((ping.opcode, ping.text()), (9, "vestibule"));
    assert_eq!(upstream.next().await.opcode, 9);
    // The client answers, the upstream does not: it is lost.
    client.send(0x8a, &ping.payload).await;
    loop {
        let frame = client.next().await;
        if frame.opcode == 8 {
            assert_eq!(frame.close(), (1011, "Upstream connection lost".into()));
            break;
        }
        client.send(0x8a, &frame.payload).await;
    }
    // The other way round: the client does not answer.
    let (client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    within("the dead client to be dropped", async {
        while let Some(frame) = upstream.try_next().await {
            assert_eq!(frame.opcode, 9, "our pong never reaches the upstream");
            upstream.send(0x8a, &frame.payload).await;
        }
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_dial() {
    let fixture = fixture("").await;
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": fixture.issuer.token("alice")}).to_string()).await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    client.send(0x88, 1000u16.to_be_bytes()).await;
    assert_eq!(client.next_close().await.0, 1000);
    assert!(conn.is_closed().await);
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": fixture.issuer.token("alice")}).to_string()).await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    drop(client);
    assert!(conn.is_closed().await);
}

#[tokio::test]
async fn a_full_room_sends_the_longest_silent_away() {
    let more =
        "admin: { listen: \"127.0.0.1:0\" }\nlimits: { waiting_websockets: 2, waiting_websockets_per_address: 2 }\n";
    let fixture = fixture(more).await;
    let mut first = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let mut second = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let mut third = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(first.next_text().await, error("Too many connections"));
    assert_eq!(first.next_close().await, (1013, "Try again later".into()));
    // Those who have begun to speak stay, and a newcomer is told over HTTP.
    for socket in [&mut second, &mut third] {
        socket.send(0x01, "{").await;
        socket.send(0x89, "").await;
        assert_eq!(socket.next().await.opcode, 10);
    }
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
    let metrics = get(fixture.proxy.admin(), "/metrics", &[]).await.body;
    assert!(metrics.contains("vestibule_limited_total{limit=\"waiting_websockets\"} 2\n"), "{metrics}");
}

#[tokio::test]
async fn subprotocols_in_band_are_chosen_from_what_the_route_names() {
    let fixture = fixture("routes: [{ path: /ws, websocket: { subprotocols: [b, c] } }]\n").await;
    let token = fixture.issuer.token("alice");
    let offer = ["Sec-WebSocket-Protocol: a, c, b"];
    let (answer, client) = Socket::try_open(fixture.proxy.address, "/ws", &offer).await;
    assert_eq!(answer.field("sec-websocket-protocol"), Some("c"));
    let mut client = client.expect("open");
    let upstream = async { fixture.backend.accept().await.switch("Sec-WebSocket-Protocol: c\r\n").await };
    let (said, (heard, _upstream)) = tokio::join!(client.authenticate(&token), upstream);
    assert_eq!((said["type"].as_str(), heard.all("sec-websocket-protocol")), (Some("authenticated"), vec!["c"]));
    let (_, client) = Socket::try_open(fixture.proxy.address, "/ws", &offer).await;
    let mut client = client.expect("open");
    let (said, (_, _upstream)) = tokio::join!(client.authenticate(&token), fixture.backend.websocket());
    assert_eq!(said["message"], "Upstream unavailable");
    assert_eq!(client.next_close().await.0, 1011);
}

#[tokio::test]
async fn written_origins_are_checked_on_every_upgrade_that_sends_one() {
    let fixture = fixture("websocket: { allowed_origins: [\"https://app.example.com\"] }\n").await;
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &["Origin: https://evil.example"]).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "foreign_origin"));
    Socket::open(fixture.proxy.address, "/ws", &["Origin: https://app.example.com"]).await;
    Socket::open(fixture.proxy.address, "/ws", &[]).await;
}

#[tokio::test]
async fn open_sockets_count_among_the_connections() {
    let fixture = fixture("limits: { connections: 1 }\n").await;
    let (client, _upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    let mut second = crate::support::client::Client::connect(fixture.proxy.address).await;
    let answer = second.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
    drop(client);
    // The place is free once the socket has gone.
    within("a free place", async {
        loop {
            let (answer, socket) = Socket::try_open(fixture.proxy.address, "/ws", &[]).await;
            if socket.is_some() {
                return;
            }
            assert_eq!(answer.status, 503);
        }
    })
    .await;
}

#[tokio::test]
async fn a_subprotocol_token_is_taken_out_and_its_siblings_stay_offers() {
    let sources = "token_from:
  subprotocol:
    - { prefix: base64url.bearer.authorization.k8s.io., encoding: base64url }
    - { prefix: v1.token.websocket.jupyter.org., encoding: url }
";
    let fixture = fixture(sources).await;
    let token = fixture.issuer.token("alice");
    let k8s = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(&token));
    let jupyter = format!("v1.token.websocket.jupyter.org.{token}");
    for entry in [&k8s, &jupyter] {
        let offer = format!("Sec-WebSocket-Protocol: v2.app, {entry}, v1.app");
        let fields = [offer.as_str()];
        let upstream = async { fixture.backend.accept().await.switch("Sec-WebSocket-Protocol: v1.app\r\n").await };
        let ((answer, client), (heard, mut upstream)) =
            tokio::join!(Socket::try_open(fixture.proxy.address, "/ws", &fields), upstream);
        assert_eq!((answer.status, answer.field("sec-websocket-protocol")), (101, Some("v1.app")));
        assert_eq!(
            (heard.all("sec-websocket-protocol"), heard.all("x-user-id")),
            (vec!["v2.app, v1.app"], vec!["alice"])
        );
        assert!(!heard.head.contains("bearer.") && !heard.head.contains(&token));
        client.expect("open").say("hi").await;
        assert_eq!(upstream.next_text().await, "hi");
    }
    // Refused as a Close; the 101 names the first offer that is no token, or none.
    for (offer, named) in [
        (format!("v1.token.websocket.jupyter.org.garbage, v1.app, {k8s}"), Some("v1.app")),
        ("v1.token.websocket.jupyter.org.garbage".to_owned(), None),
    ] {
        let offer = format!("Sec-WebSocket-Protocol: {offer}");
        let (answer, client) = Socket::try_open(fixture.proxy.address, "/ws", &[&offer]).await;
        assert_eq!((answer.status, answer.field("sec-websocket-protocol")), (101, named));
        let mut client = client.expect("open");
        assert_eq!(client.next_text().await, error("Invalid authentication token"));
        assert_eq!(client.next_close().await, (1008, "Invalid token".into()));
    }
}

#[tokio::test]
async fn the_first_kind_of_credential_decides_alone() {
    let sources = "token_from: { subprotocol: [{ prefix: token. }] }\n";
    let mut fixture = fixture(sources).await;
    let (alice, bob) = (fixture.issuer.token("alice"), fixture.issuer.token("bob"));
    let header = |token: &str| bearer(token);
    let subprotocol = |token: &str| format!("Sec-WebSocket-Protocol: token.{token}");
    // Good before good: the first is the user, the others are gone.
    let fields = [header(&alice), subprotocol(&bob)];
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let target = format!("/ws?token={bob}&x=1");
    let (_client, (heard, _)) =
        tokio::join!(Socket::open(fixture.proxy.address, &target, &fields), fixture.backend.websocket());
    assert_eq!(
        (heard.all("x-user-id"), heard.target(), heard.has("sec-websocket-protocol")),
        (vec!["alice"], "/ws?x=1", false)
    );
    let offer = subprotocol(&bob);
    let fields = [offer.as_str()];
    let target = format!("/ws?token={alice}");
    let (_client, (heard, _)) =
        tokio::join!(Socket::open(fixture.proxy.address, &target, &fields), fixture.backend.websocket());
    assert_eq!(heard.all("x-user-id"), ["bob"]);
    // Bad before good: its refusal is final.
    let (answer, _) = Socket::try_open(fixture.proxy.address, &target, &[&header("garbage"), &offer]).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_token"));
    let bad = subprotocol("garbage");
    let mut client = Socket::open(fixture.proxy.address, &target, &[&bad]).await;
    assert_eq!(client.next_text().await, error("Invalid authentication token"));
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn the_upstream_that_checks_for_itself_gets_the_token_as_it_wants_it() {
    for (form, field) in [("header", "authorization"), ("{ query: access_token }", "")] {
        let (backend, issuer) = (Backend::start().await, Issuer::start().await);
        let yaml = format!(
            "upstream: {{ url: \"{}\", token_to: {{ websocket: {form} }} }}\nproviders: [{}]\ntoken_from: {{ subprotocol: [{{ prefix: token. }}] }}\n",
            backend.url(),
            issuer.provider()
        );
        let proxy = Proxy::start(&yaml).await;
        let token = issuer.token("alice");
        // Whatever carried it: header, subprotocol, query, first message.
        for carrier in 0..4 {
            let (target, fields) = match carrier {
                0 => ("/ws?x=1&access_token=forged".to_owned(), vec![bearer(&token)]),
                1 => ("/ws?x=1".to_owned(), vec![format!("Sec-WebSocket-Protocol: token.{token}")]),
                2 => (format!("/ws?x=1&token={token}"), vec![]),
                _ => ("/ws?x=1".to_owned(), vec![]),
            };
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let client = async {
                let mut client = Socket::open(proxy.address, &target, &fields).await;
                if carrier == 3 {
                    assert_eq!(client.authenticate(&token).await["type"], "authenticated");
                }
                client
            };
            let (_client, (heard, _upstream)) = tokio::join!(client, backend.websocket());
            if field.is_empty() {
                assert_eq!(heard.target(), format!("/ws?x=1&access_token={token}"), "carrier {carrier}");
                assert!(!heard.has("authorization"));
            } else {
                assert_eq!(heard.all(field), [format!("Bearer {token}")], "carrier {carrier}");
                assert!(!heard.target().contains(&token));
            }
            assert_eq!(heard.all("x-user-id"), ["alice"]);
        }
    }
}

#[tokio::test]
async fn sockets_end_by_max_lifetime_and_by_idleness() {
    let fixture = fixture("websocket: { max_lifetime: 2s }\nroutes: [{ path: /idle, websocket: { max_lifetime: null, idle_timeout: 1s } }]\n").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    assert_eq!(client.next_text().await, error("Session expired"));
    assert_eq!(client.next_close().await, (4401, "Session expired".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str()];
    let (mut client, (_, mut upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/idle", &fields), fixture.backend.websocket());
    client.send(0x89, "a ping is no message").await;
    assert_eq!(upstream.next().await.opcode, 9);
    assert_eq!(client.next_close().await, (1001, "Idle timeout".into()));
}

#[tokio::test]
async fn keep_outlives_the_token() {
    let fixture = fixture("websocket: { on_expiry: keep, max_lifetime: 6s, grace: 0s }\n").await;
    let token = fixture.issuer.token_with("alice", json!({"exp": now() - 3}));
    let (mut client, _upstream) = fixture.session(&token).await;
    // Without `keep` it would end in two seconds, with another reason.
    assert_eq!(client.next_text().await, error("Session expired"));
}

#[tokio::test]
async fn endless_empty_fragments_are_passed_on_and_not_collected() {
    let fixture = fixture("").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    client.send(0x01, "  ").await;
    let empty = frame(Side::Client, 0x00, b"");
    client.write(empty.repeat(8_000)).await;
    // They could still become a refresh until too many have come; then all of them go on.
    assert_eq!(upstream.next().await.text(), "  ");
    for _ in 0..5_000 {
        assert_eq!(upstream.next().await.payload.len(), 0);
    }
    client.send(0x80, "end").await;
    within("the end of the message", async { while !upstream.next().await.fin {} }).await;
}
