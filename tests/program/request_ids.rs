//! Every log line that belongs to a request or a socket has the request id of its answer.

use serde_json::Value;

use crate::fixture::fixture;
use crate::support::client::{bearer, get, request};
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

/// The proxies in front of us choose the ids here, since a client does not see that of a 101.
const TRUSTED: &str = "trusted_proxies: [127.0.0.1]\nlimits: { body_bytes: 10 }\n";

async fn line_with(proxy: &mut Proxy, message: &str) -> Value {
    let line = proxy.logged(message, |line| line.contains(message)).await;
    serde_json::from_str(&line).expect("json")
}

#[tokio::test]
async fn lines_of_a_request_or_a_socket_have_its_request_id() {
    let mut fixture = fixture(TRUSTED).await;
    let (address, token) = (fixture.proxy.address, fixture.issuer.token("alice"));
    let before = fixture.proxy.log().len();
    let credential = bearer(&token);

    get(address, "/x", &["X-Request-Id: health", "User-Agent: ELB-HealthChecker/2.0"]).await;
    let fields = ["X-Request-Id: upstream-401", credential.as_str(), "X-User-Id: bob"];
    let refusing = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 401 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    };
    tokio::join!(get(address, "/x", &fields), refusing);
    let fields = ["X-Request-Id: failed", credential.as_str()];
    let failing = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
    };
    let (failed, ()) = tokio::join!(get(address, "/x", &fields), failing);
    assert_eq!(failed.status, 502);
    let fields = ["X-Request-Id: too-large", credential.as_str()];
    let too_large = request(address, "POST", "/x", &fields, "more than ten bytes").await;
    assert_eq!(too_large.status, 413);
    let malformed = Socket::try_open(address, "/x", &["X-Request-Id: no-credential", "Authorization: Basic x"]).await.0;
    assert_eq!(malformed.status, 401);
    let fields = ["X-Request-Id: socket", "Sec-WebSocket-Protocol: chat"];
    let mut socket = Socket::open(address, "/ws", &fields).await;
    let (_, (_, _upstream)) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
    let fields = ["X-Request-Id: in-url", "Origin: https://old.example.com"];
    let target = format!("/ws?token={token}");
    let (_in_url, _upstream) = tokio::join!(Socket::open(address, &target, &fields), fixture.backend.websocket());
    // The open sockets of a route that is denied now.
    fixture.proxy.rewrite(&format!(
        "upstream: {}\nproviders: [{}]\n{TRUSTED}routes: [{{ path: /ws, auth: deny }}]\n",
        fixture.backend.url(),
        fixture.issuer.provider()
    ));
    fixture.proxy.signal("HUP");
    socket.next_text().await;
    socket.next_close().await;

    for (message, id) in [
        ("health checker refused", "health"),
        ("upstream answered 401", "upstream-401"),
        ("removed an identity header", "upstream-401"),
        ("\"outcome\":\"upstream_failed\"", "failed"),
        ("\"outcome\":\"body_too_large\"", "too-large"),
        ("\"outcome\":\"invalid_request\"", "no-credential"),
        ("no offered subprotocol", "socket"),
        ("first message verified", "socket"),
        ("deprecated: token in the query string", "in-url"),
    ] {
        assert_eq!(line_with(&mut fixture.proxy, message).await["request_id"], id, "{message}");
    }
    let mut closed = Vec::new();
    for id in ["socket", "in-url"] {
        let is_line = |line: &str| line.contains("closing an open socket") && line.contains(&format!("\"{id}\""));
        closed.push(fixture.proxy.logged("a Close", is_line).await);
    }
    // What else was logged meanwhile belongs to no request.
    for line in fixture.proxy.log().iter().skip(before).filter(|line| !line.contains("\"request_id\":")) {
        let known = ["configuration reloaded", "connection ended with an error", "JWKS"];
        assert!(known.iter().any(|message| line.contains(message)), "{line}");
    }
}

#[tokio::test]
async fn the_line_of_a_refused_credential_has_what_it_claims_marked_as_unverified() {
    let fixture = fixture("").await;
    let expired = fixture.issuer.expired("alice");
    let foreign = fixture.issuer.token_with("alice", serde_json::json!({"iss": "https://other.example.com"}));
    let agent = format!("User-Agent: notebook/1.0 {}", "x".repeat(400));
    for (token, issuer, reason) in
        [(&expired, None, "expired "), (&foreign, Some("https://other.example.com"), "is not a configured provider")]
    {
        let fields = [bearer(token), "Origin: https://app.example.com".to_owned(), agent.clone()];
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let id = get(fixture.proxy.address, "/x", &fields).await.field("x-request-id").expect("an id").to_owned();
        let mut socket = Socket::open(fixture.proxy.address, "/ws", &fields[1..]).await;
        socket.authenticate(token).await;
        let line = fixture.proxy.logged("its line", |line| line.contains(&id)).await;
        let outcome = if issuer.is_some() { "unknown_issuer" } else { "expired" };
        let is_socket =
            |line: &str| line.contains("\"msg\":\"socket\"") && line.contains(&format!("\"outcome\":\"{outcome}\""));
        let of_socket = fixture.proxy.logged("the socket's line", is_socket).await;
        for line in [line, of_socket] {
            let line: Value = serde_json::from_str(&line).expect("json");
            assert!(line["reason"].as_str().is_some_and(|text| text.contains(reason)), "{line}");
            let expected = issuer.map_or_else(|| line["unverified_issuer"].clone(), Value::from);
            assert!(line["unverified_issuer"] == expected && expected.is_string(), "{line}");
            assert!(line["unverified_kid"].is_string(), "{line}");
            // printf alice | sha256sum | cut -c1-16
            assert_eq!(line["unverified_sub_digest"], "2bd806c97f0e00af");
            assert_eq!(line["origin"], "https://app.example.com");
            let agent = line["user_agent"].as_str().expect("an agent");
            assert!(agent.starts_with("notebook/1.0 xxx") && agent.len() == 256, "{agent}");
            assert_eq!(line["user"], Value::Null);
        }
    }
    let log = fixture.proxy.log().join("\n");
    for token in [&expired, &foreign] {
        assert!(!log.contains(token.rsplit('.').next().expect("a signature")), "a signature is in the log");
    }
}

#[tokio::test]
async fn listening_comes_before_the_keys_and_ready_with_them() {
    let fixture = crate::fixture::Fixture::started("", |issuer| {
        issuer.set_mood(crate::support::issuer::Mood::Html);
    })
    .await;
    assert_eq!(get(fixture.proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
    assert!(!fixture.proxy.log().iter().any(|line| line.contains("\"msg\":\"ready\"")));
    fixture.issuer.set_mood(crate::support::issuer::Mood::Well);
    fixture.proxy.logged("ready", |line| line.contains("\"msg\":\"ready\"") && line.contains("\"after_ms\":")).await;
    assert_eq!(get(fixture.proxy.address, "/.vestibule/readyz", &[]).await.status, 200);
}
