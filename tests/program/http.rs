//! docs/contract.md section 3 and 6 over sockets: refusals, trusted headers, streaming, the upstream's moods.

use serde_json::{Value, json};

use crate::fixture::{fixture, fixture_on_one_processor};
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get, get_served, request};
use crate::support::issuer::{Issuer, Mood};
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

#[tokio::test]
async fn every_refusal_of_a_credential_is_its_row_of_the_table() {
    let mut fixture = fixture("").await;
    let good = fixture.issuer.token("alice");
    let expired = fixture.issuer.expired("alice");
    let nobody = fixture.issuer.token_with("x", json!({"sub": null}));
    let empty = fixture.issuer.token_with("x", json!({"sub": ""}));
    let foreign = fixture.issuer.token_with("alice", json!({"iss": "https://elsewhere.example"}));
    let other_audience = fixture.issuer.token_with("alice", json!({"aud": "other"}));
    let mut flipped = good.clone().into_bytes();
    let last = flipped.len() - 10;
    flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).expect("ascii");
    let invalid = (
        "invalid_token",
        "Invalid token. Please sign in again.",
        "Bearer error=\"invalid_token\", error_description=\"Invalid token. Please sign in again.\"",
    );
    let format = (
        "invalid_request",
        "Invalid authorization header format. Expected 'Bearer <token>'.",
        "Bearer error=\"invalid_request\"",
    );
    let missing = ("missing_token", "Missing authorization header. Please sign in.", "Bearer realm=\"vestibule\"");
    let no_user = (
        "missing_user",
        "Invalid token: missing user ID",
        "Bearer error=\"invalid_token\", error_description=\"Invalid token: missing user ID\"",
    );
    for (name, fields, (code, detail, challenge)) in [
        ("none", vec![], missing),
        ("empty", vec!["Authorization: ".to_owned()], missing),
        ("basic", vec!["Authorization: Basic YTpi".to_owned()], format),
        ("no scheme", vec![format!("Authorization: {good}")], format),
        ("two", vec![bearer(&good), bearer(&good)], format),
        (
            "expired",
            vec![bearer(&expired)],
            (
                "token_expired",
                "Token has expired. Please sign in again.",
                "Bearer error=\"invalid_token\", error_description=\"Token has expired. Please sign in again.\"",
            ),
        ),
        ("garbage", vec![bearer("garbage")], invalid),
        ("flipped", vec![bearer(&flipped)], invalid),
        ("foreign issuer", vec![bearer(&foreign)], invalid),
        ("other audience", vec![bearer(&other_audience)], invalid),
        ("no user", vec![bearer(&nobody)], no_user),
        ("empty user", vec![bearer(&empty)], no_user),
    ] {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let answer = get(fixture.proxy.address, "/x", &fields).await;
        assert_eq!(answer.status, 401, "{name}");
        let body = answer.json();
        let members: Vec<&str> = body.as_object().expect("object").keys().map(String::as_str).collect();
        assert_eq!(members, ["type", "title", "status", "code", "detail", "request_id"], "{name}");
        assert_eq!((body["code"].as_str(), body["detail"].as_str()), (Some(code), Some(detail)), "{name}");
        assert_eq!(answer.field("www-authenticate"), Some(challenge), "{name}");
        assert_eq!(answer.field("cache-control"), Some("no-store"), "{name}");
        assert_eq!(answer.field("content-type"), Some("application/json"), "{name}");
        assert_eq!(answer.field("x-request-id"), body["request_id"].as_str(), "{name}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn a_good_token_reaches_the_upstream_as_a_user_and_not_as_a_token() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let credential = bearer(&token);
    let fields = [credential.as_str(), "Cookie: theirs=1", "Accept-Encoding: br"];
    let (answer, heard) =
        tokio::join!(get(fixture.proxy.address, "/api/x?a=%7e&b", &fields), fixture.backend.answer("hello"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    assert_eq!(heard.target(), "/api/x?a=%7e&b");
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert_eq!(heard.all("cookie"), ["theirs=1"]);
    assert_eq!(heard.all("accept-encoding"), ["br"]);
    assert_eq!(heard.all("host"), ["localhost"]);
    assert_eq!(heard.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(heard.all("x-forwarded-proto"), ["http"]);
    assert_eq!(heard.all("x-forwarded-host"), ["localhost"]);
    assert_eq!(heard.all("via"), ["1.1 vestibule"]);
    assert!(!heard.has("authorization") && !heard.head.contains(&token));
}

#[tokio::test]
async fn no_spelling_of_the_identity_header_gets_through() {
    let fixture = fixture("identity: { headers: { X-User-Id: sub, X-Team: team }, strip: [X-Internal-Role] }\n").await;
    let with_team = fixture.issuer.token_with("alice", json!({"team": "red"}));
    let without = fixture.issuer.token("alice");
    for field in [
        "X-User-Id: bob",
        "x-user-id: bob",
        "x_user_id: bob",
        "X.USER.ID: bob",
        "XUSERID: bob",
        "X-User-Id: bob\r\nX-User-Id: carol",
        "X-User-Id: bob\r\nConnection: x-user-id",
        "Connection: close, X-User-Id, x-team",
        "connection: keep-alive\r\nCONNECTION:X-USER-ID ,x-foo",
        "X-Team: blue",
        "x_team: blue",
        "X-Internal-Role: admin",
        "X_Internal.Role: admin",
        "Remote-User: bob",
        "X-Forwarded-User: bob",
        "X-Auth-Request-Email: bob@example.com",
        "X-Pomerium-Claim-Email: bob",
        "X-Amzn-Oidc-Identity: bob",
        "Tailscale-User-Login: bob",
        "Content_Length: 5",
        "Transfer.Encoding: chunked",
    ] {
        for (token, team) in [(&with_team, vec!["red"]), (&without, vec![])] {
            let credential = bearer(token);
            let fields = [field, credential.as_str()];
            let (answer, heard) = tokio::join!(get(fixture.proxy.address, "/", &fields), fixture.backend.answer("ok"));
            assert_eq!(answer.status, 200, "{field}");
            assert_eq!(heard.all("x-user-id"), ["alice"], "{field}");
            assert_eq!(heard.all("x-team"), team, "{field}");
            let folded = heard.head.to_ascii_lowercase();
            for word in ["bob", "carol", "blue", "admin", "content_length", "transfer.encoding"] {
                assert!(!folded.contains(word), "{field}: {folded}");
            }
        }
    }
}

#[tokio::test]
async fn public_routes_carry_no_identity_at_all() {
    let fixture = fixture("routes: [{ path: /public, auth: none }]\n").await;
    let token = fixture.issuer.token("alice");
    for field in ["X-User-Id: bob", "x_user_id: bob", "Connection: x-user-id"] {
        let credential = bearer(&token);
        let fields = [field, &credential];
        let (answer, heard) =
            tokio::join!(get(fixture.proxy.address, "/public", &fields), fixture.backend.answer("ok"));
        assert_eq!(answer.status, 200);
        assert!(!heard.head.to_ascii_lowercase().contains("user"), "{}", heard.head);
        // Webhooks bring an Authorization of their own.
        assert_eq!(heard.all("authorization"), [format!("Bearer {token}")]);
    }
}

#[tokio::test]
async fn two_users_on_one_connection_never_mix() {
    let fixture = fixture("").await;
    let tokens = [fixture.issuer.token("alice"), fixture.issuer.token("bob")];
    let names = ["alice", "bob"];
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        for turn in 0..20 {
            let heard = conn.request().await;
            assert_eq!(heard.all("x-user-id"), [names[turn % 2]]);
            let name = heard.all("x-user-id")[0].to_owned();
            conn.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len())).await;
        }
    };
    let client = async {
        let mut client = Client::connect(fixture.proxy.address).await;
        for turn in 0..20 {
            client
                .send(format!("GET /{turn} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&tokens[turn % 2])))
                .await;
            assert_eq!(client.answer().await.body, names[turn % 2]);
        }
    };
    tokio::join!(upstream, client);
}

#[tokio::test]
async fn anonymous_and_verified_callers_never_share_an_upstream_connection() {
    let fixture = fixture_on_one_processor("routes: [{ path: /public, auth: none }]\n").await;
    let token = fixture.issuer.token("alice");
    let client = async {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("GET /private HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&token))).await;
        assert_eq!(client.answer().await.status, 200);
        client.send("GET /public HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200);
    };
    let upstream = async {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let mut verified = fixture.backend.accept().await;
        assert_eq!(verified.request().await.target(), "/private");
        verified.write(answer).await;
        // A new connection although the first one is idle.
        let mut anonymous = fixture.backend.accept().await;
        assert_eq!(anonymous.request().await.target(), "/public");
        anonymous.write(answer).await;
    };
    tokio::join!(client, upstream);
}

#[tokio::test]
async fn routes_open_and_close_as_written() {
    let rules = "routes:
  - { path: /health, auth: none }
  - { path: /maybe, auth: optional }
  - { path: /never/**, auth: deny }
  - { path: /api/admin/**, require: { role: admin } }
  - path: /files/{user}/**
    require: { sub: \"{user}\" }
";
    let fixture = fixture(rules).await;
    let user = bearer(&fixture.issuer.token("alice"));
    let admin = bearer(&fixture.issuer.token_with("root", json!({"role": "admin"})));
    for (target, field, status, code) in [
        ("/Health", "X: 1", 401, "missing_token"),
        ("/health/", "X: 1", 401, "missing_token"),
        ("/private?x=/health", "X: 1", 401, "missing_token"),
        ("/maybe", "Authorization: Bearer garbage", 401, "invalid_token"),
        ("/never", &admin, 403, "forbidden"),
        ("/NEVER/x", &admin, 403, "forbidden"),
        ("/never/", "X: 1", 403, "forbidden"),
        ("/api/admin", &user, 403, "forbidden"),
        ("/API/Admin/x", &user, 403, "forbidden"),
        ("/files/bob/x", &user, 403, "forbidden"),
        ("/files/alice/../bob/x", &user, 403, "forbidden"),
        ("//health", "X: 1", 401, "missing_token"),
        ("/health%2f", "X: 1", 401, "missing_token"),
        ("/health;x", "X: 1", 401, "missing_token"),
        ("/.vestibule/nothing", &user, 404, "not_found"),
        ("/.VESTIBULE/healthz", &user, 404, "not_found"),
        ("/a/../.vestibule/healthz", &user, 404, "not_found"),
    ] {
        let answer = get(fixture.proxy.address, target, &[field]).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{target}");
    }
    for (target, field, user) in [
        ("/health", "X: 1", vec![]),
        ("/maybe", "X: 1", vec![]),
        ("/maybe", user.as_str(), vec!["alice"]),
        ("/api/admin/x", admin.as_str(), vec!["root"]),
        ("/files/alice/x", user.as_str(), vec!["alice"]),
        ("/files/%61lice/x", user.as_str(), vec!["alice"]),
        ("/private%23/health", user.as_str(), vec!["alice"]),
    ] {
        let fields = [field];
        let (answer, heard) = tokio::join!(get(fixture.proxy.address, target, &fields), fixture.backend.answer("ok"));
        assert_eq!(answer.status, 200, "{target}");
        assert_eq!(heard.all("x-user-id"), user, "{target}");
    }
}

#[tokio::test]
async fn malformed_requests_end_at_the_door() {
    let mut fixture = fixture("limits: { header_bytes: 4KiB, token_bytes: 1KiB }\n").await;
    let long = "x".repeat(5_000);
    let many = format!("X-Long: {}\r\nX-Longer: {}", "y".repeat(2_500), "z".repeat(2_500));
    for (bytes, status, code) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET http://other/ HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 400, "bad_request"),
        ("get / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /a%zz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 400, "bad_request"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(), 400, "bad_request"),
        ("TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 405, "method_not_allowed"),
        ("CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n".to_owned(), 405, "method_not_allowed"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 421, "host_not_served"),
        (format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), 414, "target_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n\r\n"), 431, "head_too_large"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n\r\n".to_owned(), 426, "websocket_version"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_owned(), 400, "bad_request"),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(&bytes).await;
        let answer = client.answer().await;
        let shown: String = bytes.chars().take(80).collect();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{shown}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn probes_are_answered_to_any_host_and_never_authenticated() {
    let fixture = fixture("").await;
    fixture.proxy.ready().await;
    for (path, method, status) in
        [("/.vestibule/healthz", "GET", 200), ("/.vestibule/readyz", "GET", 200), ("/.vestibule/healthz", "POST", 405)]
    {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: 10.1.2.3\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{method} {path}");
        if status == 405 {
            assert_eq!(answer.field("allow"), Some("GET, HEAD"));
        }
    }
}

#[tokio::test]
async fn health_checks_of_http_1_0_need_no_host() {
    let mut fixture = fixture("").await;
    fixture.proxy.ready().await;
    for (head, status) in [
        ("GET /.vestibule/healthz HTTP/1.0\r\n", 200),
        ("GET /.vestibule/readyz HTTP/1.0\r\n", 200),
        ("GET /.vestibule/healthz HTTP/1.1\r\n", 400),
        ("GET /.vestibule/healthz HTTP/1.0\r\nHost:\r\n", 400),
        ("GET /.vestibule/healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET http://evil.example/.vestibule/healthz HTTP/1.0\r\n", 400),
        ("GET /.vestibule/session HTTP/1.0\r\n", 400),
        ("GET /a/../.vestibule/healthz HTTP/1.0\r\n", 400),
        ("GET / HTTP/1.0\r\n", 400),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("{head}\r\n")).await;
        assert_eq!(client.answer().await.status, status, "{head}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn the_log_names_a_handshake_whose_upgrade_a_proxy_removed() {
    let fixture = fixture("").await;
    let address = fixture.proxy.address;
    get(address, "/plain", &[]).await;
    let _open = Socket::open(address, "/ws", &[]).await;
    let mut client = Client::connect(address).await;
    // The form in which nginx passes a handshake by default.
    client
        .send("GET /lost HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.code(), "missing_token");
    let line = fixture.proxy.logged("the warning", |line| line.contains("handshake came without Upgrade")).await;
    for part in ["\"path\":\"/lost\"", "\"level\":\"warn\"", "\"request_id\":\""] {
        assert!(line.contains(part), "{line}");
    }
}

#[tokio::test]
async fn keys_that_cannot_be_had_are_503_and_never_401() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    issuer.set_mood(Mood::Status(500));
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let answer = get(proxy.address, "/", &[&bearer(&issuer.token("alice"))]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    assert!(
        answer.field("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| (1..=30).contains(&s)))
    );
    assert_eq!(get(proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
}

#[tokio::test]
async fn an_upstream_that_is_gone_or_broken_is_502_and_a_slow_one_504() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {{ url: \"{}\", response_timeout: 1s }}\nproviders: [{}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    for (name, bytes) in [
        ("closes", ""),
        ("garbage", "SSH-2.0-OpenSSH\r\n\r\n"),
        ("broken head", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("101 unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ] {
        let upstream = async {
            let mut conn = backend.accept().await;
            conn.request().await;
            if !bytes.is_empty() {
                conn.write(bytes).await;
            }
        };
        let (answer, ()) = tokio::join!(get(proxy.address, "/", &fields), upstream);
        assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_failed"), "{name}");
    }
    let silent = async {
        let mut conn = backend.accept().await;
        conn.request().await;
        assert!(conn.is_closed().await);
    };
    let (answer, ()) = tokio::join!(get(proxy.address, "/", &fields), silent);
    assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
    drop(backend);
    let answer = get(proxy.address, "/", &fields).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_failed"));
}

#[tokio::test]
async fn the_upstreams_own_refusals_pass_unchanged() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Custom\r\nContent-Length: 4\r\n\r\nmine").await;
    };
    let credential = bearer(&token);
    let fields = [credential.as_str()];
    let (answer, ()) = tokio::join!(get(fixture.proxy.address, "/", &fields), upstream);
    assert_eq!((answer.status, answer.body.as_str(), answer.field("www-authenticate")), (401, "mine", Some("Custom")));
    fixture
        .proxy
        .logged("the warning about token_to", |line| line.contains("set upstream.token_to.http: header"))
        .await;
    fixture.proxy.logged("who answered", |line| line.contains("\"answered_by\":\"upstream\"")).await;
}

#[tokio::test]
async fn the_token_goes_up_only_where_the_file_says_so_and_the_backends_secret_only_for_the_verified() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream:\n  url: {}\n  token_to: {{ http: header }}\n  credential: {{ header: X-Backend-Secret, value: \"s3cret-of-the-backend\" }}\nproviders: [{}]\nroutes: [{{ path: /public, auth: none }}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let token = issuer.token("alice");
    let credential = bearer(&token);
    let fields = [credential.as_str(), "X-Backend-Secret: guessed"];
    let (_, heard) = tokio::join!(get(proxy.address, "/", &fields), backend.answer(""));
    assert_eq!(heard.all("authorization"), [format!("Bearer {token}")]);
    assert_eq!(heard.all("x-backend-secret"), ["s3cret-of-the-backend"]);
    let (_, heard) = tokio::join!(get(proxy.address, "/public", &[]), backend.answer(""));
    assert!(!heard.has("authorization") && !heard.has("x-backend-secret"));
    proxy.logged("the request", |line| line.contains("\"outcome\":\"public\"")).await;
    assert!(!proxy.log().iter().any(|line| line.contains("s3cret")));
}

#[tokio::test]
async fn server_sent_events_reach_the_client_one_by_one() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let mut client = Client::connect(fixture.proxy.address).await;
    client
        .send(format!(
            "GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{}\r\n\r\n",
            bearer(&token)
        ))
        .await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    conn.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        conn.write(format!("{:x}\r\n{event}\r\n", event.len())).await;
        // Nothing more is sent until this one has arrived.
        client.until(&event).await;
    }
    drop(client);
    assert!(conn.is_closed().await, "a client that leaves cancels its request");
}

#[tokio::test]
async fn bodies_stream_both_ways_and_early_answers_do_not_poison_a_connection() {
    let fixture = fixture_on_one_processor("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let body = "x".repeat(300_000);
    let fields = [credential.as_str()];
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        let heard = conn.request().await;
        assert_eq!(heard.body.len(), 300_000);
        conn.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", heard.body.len())).await;
        conn.write(&heard.body).await;
    };
    let (answer, ()) = tokio::join!(request(fixture.proxy.address, "POST", "/echo", &fields, &body), upstream);
    assert_eq!(answer.body.len(), 300_000);
    // Chunked from the client is encoded anew; trailers could hold any name and are dropped.
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(format!("POST /chunked HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-User-Id\r\n{credential}\r\n\r\n5\r\nhello\r\n0\r\nX-User-Id: bob\r\n\r\n")).await;
    let mut conn = fixture.backend.accept().await;
    let heard = conn.request().await;
    assert_eq!(heard.body, b"hello");
    assert!(!heard.has("trailer") && !heard.has("content-length"));
    conn.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    // An answer before the body has ended: its connection is not used again.
    let mut client = Client::connect(fixture.proxy.address).await;
    client
        .send(format!("POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n{credential}\r\n\r\nhalf"))
        .await;
    // The former connection was given back, so this request comes on it.
    let head = within_head(&mut conn).await;
    assert!(head.contains("/early"));
    conn.write("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 413);
    let (answer, heard) = tokio::join!(get(fixture.proxy.address, "/next", &fields), fixture.backend.answer("fresh"));
    assert_eq!((answer.body.as_str(), heard.target()), ("fresh", "/next"));
}

async fn within_head(conn: &mut crate::support::backend::Conn) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        let length = crate::support::within("a head", conn.stream.read(&mut chunk)).await.expect("read");
        assert!(length > 0, "closed before a head");
        bytes.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_lost_pooled_connection_is_replaced_for_what_may_be_sent_twice_and_only_for_that() {
    let fixture = fixture_on_one_processor("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str()];
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(answer).await;
        // The second request arrives and the connection ends: the keep-alive race.
        assert_eq!(conn.request().await.target(), "/again");
        drop(conn);
        let mut conn = fixture.backend.accept().await;
        assert_eq!(conn.request().await.target(), "/again");
        conn.write(answer).await;
        assert!(conn.request().await.head.starts_with("POST /once"));
        drop(conn);
    };
    let client = async {
        assert_eq!(get(fixture.proxy.address, "/first", &fields).await.status, 200);
        assert_eq!(get(fixture.proxy.address, "/again", &fields).await.status, 200);
        assert_eq!(request(fixture.proxy.address, "POST", "/once", &fields, "body").await.status, 502);
    };
    tokio::join!(upstream, client);
}

#[tokio::test]
async fn each_thread_has_upstream_connections_of_its_own_and_uses_them_again() {
    let fixture = fixture("").await;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let credential = bearer(&fixture.issuer.token("alice"));
    let ask = |number: usize| format!("GET /{number} HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n");
    let mut open = Vec::new();
    for number in 0..threads {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(ask(number)).await;
        let mut conn = fixture.backend.accept().await;
        assert_eq!(conn.request().await.target(), format!("/{number}"));
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(client.answer().await.body, "ok");
        open.push((client, conn));
    }
    for _ in 0..2 {
        for (number, (client, conn)) in open.iter_mut().enumerate() {
            client.send(ask(number)).await;
            assert_eq!(conn.request().await.target(), format!("/{number}"), "on the connection of its thread");
            conn.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            assert_eq!(client.answer().await.body, "ok");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_completed() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    };
    let client = async {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
        client.until("hello\r\n").await;
        assert!(client.is_closed().await, "no last chunk, only the end of the connection");
    };
    tokio::join!(upstream, client);
}

#[tokio::test]
async fn limits_of_time_and_size_give_the_answers_they_promise() {
    let yaml = "limits: { header_timeout: 1s, keep_alive_timeout: 2s, body_idle_timeout: 1s, body_bytes: 10 }\n";
    let fixture = fixture(yaml).await;
    let credential = bearer(&fixture.issuer.token("alice"));
    // A head that never ends, and an idle connection: closed without a word.
    let mut slow = Client::connect(fixture.proxy.address).await;
    slow.send("GET / HTTP/1.1\r\nHo").await;
    assert!(slow.is_closed().await);
    // A body too large by its length, and one that grows too large.
    let answer = request(fixture.proxy.address, "POST", "/", &[&credential], "12345678901").await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{credential}\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n")).await;
    let conn = fixture.backend.accept().await;
    assert_eq!(client.answer().await.code(), "body_too_large");
    drop((client, conn));
    // A body that stalls.
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n{credential}\r\n\r\nhalf")).await;
    let conn = fixture.backend.accept().await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    drop((client, conn));
    // The connection limit, where nobody is on the way out.
    let fixture = crate::fixture::fixture("limits: { connections: 2 }\n").await;
    let first = Client::connect(fixture.proxy.address).await;
    let mut second = Client::connect(fixture.proxy.address).await;
    second.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(second.answer().await.status, 200);
    let mut third = Client::connect(fixture.proxy.address).await;
    let answer = third.answer().await;
    assert_eq!((answer.status, answer.code().as_str(), answer.field("retry-after")), (503, "busy", Some("5")));
    drop(first);
}

#[tokio::test]
async fn verbose_errors_say_why_and_generic_ones_do_not() {
    let fixture = fixture("errors: verbose\n").await;
    let token = fixture.issuer.token_with("alice", json!({"aud": "other"}));
    let answer = get(fixture.proxy.address, "/", &[&bearer(&token)]).await;
    assert_eq!(answer.json()["detail"], Value::from("Invalid token: made for audience \"other\""));
}

#[tokio::test]
async fn forwarding_fields_are_believed_from_trusted_proxies_only() {
    for (trusted, expected_for, expected_proto) in
        [("[]", "127.0.0.1", "http"), ("[private_ranges]", "203.0.113.7, 10.0.0.1, 127.0.0.1", "https")]
    {
        let fixture = fixture(&format!("trusted_proxies: {trusted}\n")).await;
        let credential = bearer(&fixture.issuer.token("alice"));
        let fields = [
            credential.as_str(),
            "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.1",
            "X-Forwarded-Proto: wss",
            "X_Forwarded_Proto: spoof",
            "X-Forwarded-Prefix: /spoof",
            "X-Real-IP: 6.6.6.6",
            "Forwarded: for=6.6.6.6",
            "X-Original-URL: /spoof",
            "Proxy: spoof",
        ];
        let (_, heard) = tokio::join!(get(fixture.proxy.address, "/", &fields), fixture.backend.answer(""));
        assert_eq!(heard.all("x-forwarded-for"), [expected_for]);
        assert_eq!(heard.all("x-forwarded-proto"), [expected_proto]);
        assert!(!heard.head.contains("spoof") && !heard.head.contains("6.6.6.6"), "{}", heard.head);
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_has_an_access_line_too() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client
        .send(format!("POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n{credential}\r\n\r\nhello"))
        .await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    drop(client);
    assert!(conn.is_closed().await, "its request is cancelled");
    let line = fixture.proxy.logged("the line", |line| line.contains("\"outcome\":\"client_left\"")).await;
    let line: Value = serde_json::from_str(&line).expect("json");
    assert_eq!(
        (line["user"].as_str(), line["status"].as_u64(), line["bytes_in"].as_u64()),
        (Some("alice"), Some(499), Some(5))
    );
}

#[tokio::test]
async fn head_and_empty_answers_keep_their_heads() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    for (method, head, status) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", 200),
        ("GET", "HTTP/1.1 204 No Content\r\nX-Custom: 1\r\n\r\n", 204),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(head).await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        if method == "HEAD" {
            assert!(answer.to_ascii_lowercase().contains("content-length: 1234"), "{answer}");
        }
        // The connection is good for another request.
        client.send(format!("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
        assert_eq!(client.answer().await.body, "ok\n");
    }
}

#[tokio::test]
async fn an_idle_connection_may_wait_longer_than_a_head_that_has_begun() {
    let probe = "GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // Each limit that must not be the one at work is longer than the safety net.
    let patient = fixture("limits: { header_timeout: 1s, keep_alive_timeout: 10m }\n").await;
    let mut client = Client::connect(patient.proxy.address).await;
    client.send(probe).await;
    assert_eq!(client.answer().await.status, 200);
    // Idle for longer than `header_timeout`, which another connection waits out, and still served.
    let mut silent = Client::connect(patient.proxy.address).await;
    assert!(silent.is_closed().await, "a head is awaited from accept on");
    client.send(probe).await;
    assert_eq!(client.answer().await.status, 200);
    client.send("GET / HTTP/1.1\r\nHo").await;
    assert!(client.is_closed().await, "a head that has begun must end");
    let hasty = fixture("limits: { header_timeout: 10m, keep_alive_timeout: 1s }\n").await;
    let mut client = Client::connect(hasty.proxy.address).await;
    client.send(probe).await;
    assert_eq!(client.answer().await.status, 200);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn refusals_can_be_read_by_the_pages_of_our_front_ends_and_by_no_other() {
    let fixture = fixture("origins: [\"https://app.example.com\", \"https://*.preview.example.com\"]\n").await;
    for (origin, listed) in [
        ("https://app.example.com", true),
        ("https://x.preview.example.com", true),
        ("https://evil.example", false),
        ("null", false),
    ] {
        let field = format!("Origin: {origin}");
        for target in ["/private", "/.vestibule/healthz"] {
            let answer = get(fixture.proxy.address, target, &[&field]).await;
            assert_eq!(answer.field("access-control-allow-origin"), listed.then_some(origin), "{origin} {target}");
            assert_eq!(answer.field("access-control-allow-credentials"), listed.then_some("true"));
            assert_eq!(answer.field("vary"), listed.then_some("Origin"));
            let exposed = "WWW-Authenticate, Retry-After, X-Request-Id";
            assert_eq!(answer.field("access-control-expose-headers"), listed.then_some(exposed));
        }
    }
    // The upstream's own answer stays its own.
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str(), "Origin: https://app.example.com"];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.field("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_client_that_leaves_during_its_upgrade_has_a_whole_access_line() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(crate::support::socket::upgrade("/ws/left", &[&credential])).await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    drop(client);
    assert!(conn.is_closed().await, "the dial is cancelled");
    let line = fixture.proxy.logged("the line", |line| line.contains("\"outcome\":\"client_left\"")).await;
    assert!(line.contains("\"path\":\"/ws/left\"") && line.contains("\"carrier\":\"header\""), "{line}");
}

#[tokio::test]
async fn the_trace_of_a_request_goes_on_unchanged() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let credential = bearer(&token);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (parent_field, state) = (format!("traceparent: {parent}"), "tracestate: vendor=1,other=a;b");
    let fields = [credential.as_str(), &parent_field, state, "baggage: k=v"];
    let (_, heard) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(heard.all("traceparent"), [parent]);
    assert_eq!(heard.all("tracestate"), ["vendor=1,other=a;b"]);
    assert_eq!(heard.all("baggage"), ["k=v"]);
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[&parent_field, state]).await;
    let (_, (heard, _upstream)) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
    assert_eq!(heard.all("traceparent"), [parent]);
    assert_eq!(heard.all("tracestate"), ["vendor=1,other=a;b"]);
}

#[tokio::test]
async fn the_backend_hears_host_and_scheme_of_public_url_where_a_balancer_replaces_the_host() {
    let fixture = crate::fixture::fixture(
        "public_url: https://app.example.com:8443\ntrusted_proxies: [127.0.0.1]\nhosts: any\nroutes: [{ path: /open, auth: none }]\n",
    )
    .await;
    let credential = bearer(&fixture.issuer.token("alice"));
    // Many balancers forward this field as a client wrote it.
    let forged = ["X-Forwarded-Host: evil.example", "X-Forwarded-Proto: http", "X-Forwarded-For: 203.0.113.9"];
    for target in ["/x", "/open"] {
        let fields = [&[credential.as_str()], &forged[..]].concat();
        let (answer, heard) = get_served(fixture.proxy.address, &fixture.backend, target, &fields).await;
        let heard = heard.unwrap_or_else(|| panic!("{target}: {}", answer.head));
        assert_eq!(heard.all("x-forwarded-host"), ["app.example.com:8443"], "{target}");
        assert_eq!(heard.all("x-forwarded-proto"), ["https"], "{target}");
        assert_eq!(heard.all("host"), ["localhost"], "{target}");
    }
}
