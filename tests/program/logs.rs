//! No token in any log, at any level, whatever happens to it (CVE-2022-23469, CVE-2022-24757); and a log that nobody
//! reads.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

#[tokio::test]
async fn no_token_reaches_the_log_at_trace_level() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nroutes: [{{ path: /deny, token_from: {{ query: {{ mode: deny }} }} }}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::with_level(&yaml, "trace").await;
    let good = issuer.token("alice");
    let refused = [
        issuer.expired("alice"),
        issuer.token_with("alice", json!({"aud": "other"})),
        format!("{}AAAA", &good[..good.len() - 4]),
        "opaque-token-of-someone".to_owned(),
    ];
    let credential = bearer(&good);
    let fields = [credential.as_str()];
    // Accepted, with the upstream failing; refused; twice; on upgrades, in messages, in the URL.
    let failing = async {
        let mut conn = backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 500 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    };
    tokio::join!(get(proxy.address, "/a", &fields), failing);
    let broken = async {
        let mut conn = backend.accept().await;
        conn.request().await;
    };
    tokio::join!(get(proxy.address, "/b", &fields), broken);
    get(proxy.address, "/c", &[&credential, &credential]).await;
    for token in refused.iter().chain([&good]) {
        if token != &good {
            get(proxy.address, "/d", &[&bearer(token)]).await;
            Socket::try_open(proxy.address, "/ws", &[&bearer(token)]).await;
            Socket::open(proxy.address, &format!("/ws?token={token}"), &[]).await.next_text().await;
        }
        Socket::open(proxy.address, &format!("/deny?token={token}"), &[]).await.next_text().await;
        let mut socket = Socket::open(proxy.address, "/ws", &[]).await;
        if token == &good {
            let (_, (_, _upstream)) = tokio::join!(socket.authenticate(token), backend.websocket());
            for token in &refused {
                socket.say(&json!({"type": "refresh_auth", "token": token}).to_string()).await;
                socket.next_text().await;
            }
        } else {
            socket.authenticate(token).await;
        }
    }
    proxy.signal("TERM");
    proxy.logged("the end", |line| line.contains("drained")).await;
    let log = proxy.log().join("\n");
    for token in refused.iter().chain([&good]) {
        assert!(!log.contains(token.as_str()), "a token is in the log");
        for part in token.split('.').filter(|part| part.len() > 20) {
            assert!(!log.contains(part), "a part of a token is in the log");
        }
    }
    assert!(
        log.contains("\"outcome\":\"wrong_audience\"") && log.contains("\"outcome\":\"bad_signature\""),
        "the log says why"
    );
}

#[tokio::test]
async fn a_token_in_a_place_where_none_belongs_is_not_logged_either() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\ntoken_from: {{ cookie: app }}\nroutes: [{{ path: /deny/**, auth: deny }}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::with_level(&yaml, "trace, query: true").await;
    let token = issuer.token("alice");
    for target in [
        format!("/x/{token}"),
        format!("/x/{}", token.replace('.', "%2E")),
        format!("/x/{}", token.replace('.', "%252e")),
        format!("/x?a={}", token.replace('.', "%2e")),
        format!("/deny/{token}"),
        format!("/x;token={token}"),
        format!("/x%3Ftoken={token}"),
        format!("/x?q={token}"),
        format!("/x?{token}"),
        format!("/x?a=1;token={token}"),
        format!("/x?%2574oken={token}"),
        format!("/x?a=Bearer%20{token}"),
    ] {
        get(proxy.address, &target, &[]).await;
        Socket::try_open(proxy.address, &target, &[]).await;
    }
    let in_agent = format!("User-Agent: kube-probe {token}");
    let in_origin = [format!("Origin: https://{token}"), format!("Cookie: app={token}")];
    get(proxy.address, "/x", &[&in_agent]).await;
    get(proxy.address, "/last", &[&in_origin[0], &in_origin[1]]).await;
    proxy.logged("the last request", |line| line.contains("\"/last\"")).await;
    let log = proxy.log().join("\n");
    for part in token.split('.').filter(|part| part.len() > 20) {
        assert!(!log.contains(part), "a part of a token is in the log");
    }
    assert!(log.contains("\"path\":\"/x/[token]\""), "{log}");
}

#[tokio::test]
async fn hostile_strings_make_one_valid_line_each() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    get(proxy.address, "/%0d%0a%22}{\"level\":\"error\"", &["User-Agent: \"}\u{7f}"]).await;
    let token = issuer.token_with("alice", json!({"iss": "x\r\n{\"msg\":\"forged\"}\u{1b}[2J"}));
    get(proxy.address, "/", &[&bearer(&token)]).await;
    proxy.logged("the refusal", |line| line.contains("unknown_issuer")).await;
    for line in proxy.log() {
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_ne!(parsed["msg"], "forged");
    }
}

#[tokio::test]
async fn a_quiet_path_has_a_line_when_the_backend_fails_it() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nroutes: [{{ path: /health, auth: none }}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::with_level(&yaml, "info").await;
    let (answer, _) = tokio::join!(get(proxy.address, "/health", &[]), backend.answer("served"));
    assert_eq!(answer.status, 200);
    let failing = async {
        let mut conn = backend.accept().await;
        conn.request().await;
        conn.write("garbage\r\n\r\n").await;
    };
    let (answer, ()) = tokio::join!(get(proxy.address, "/health", &[]), failing);
    assert_eq!(answer.status, 502);
    proxy.logged("its line", |line| line.contains("\"/health\"") && line.contains("\"status\":502")).await;
    assert_eq!(proxy.log().iter().filter(|line| line.contains("\"/health\"")).count(), 1, "the others are quiet");
}

#[tokio::test]
async fn with_a_log_that_nobody_reads_no_request_waits_at_sigterm() {
    // More than the pipe, the reader and the log's buffer take.
    const UNREAD: usize = 256 << 10;
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!("upstream: {}\nproviders: [{}]\ndrain: {{ delay: 30s }}\n", backend.url(), issuer.provider());
    let mut proxy = Proxy::on_one_processor(&yaml).await;
    proxy.hold_log(true);
    let mut client = Client::connect(proxy.address).await;
    let target = format!("/{}", "x".repeat(250));
    let before = proxy.log().len();
    // An access line is longer than its path.
    for _ in 0..UNREAD / target.len() {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        assert_eq!(client.answer().await.code(), "missing_token");
    }
    proxy.signal("TERM");
    loop {
        let asked = Instant::now();
        client.send("GET /.vestibule/readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let status = client.answer().await.status;
        // The log itself is waited for at the end, for 2 s. An answer takes milliseconds.
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        if status == 503 {
            break;
        }
    }
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    let (answer, _) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer("served"));
    assert_eq!(answer.body, "served");
    assert!(proxy.log().len() <= before + 1, "the log was read: {:#?}", proxy.log());
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(130));
}

/// Such a URL works, and what the log has of it goes further than the configuration does.
#[tokio::test]
async fn a_secret_in_the_url_of_keys_is_shown_nowhere() {
    let yaml = "admin: { listen: \"127.0.0.1:0\" }\nupstream: http://127.0.0.1:1\nproviders: [{ preset: jwt, issuer: https://i.example, audience: api, jwks: { url: \"http://me:hunter2@127.0.0.1:1/keys?apikey=hunter2\" } }]\n";
    let proxy = Proxy::with_level(yaml, "trace").await;
    let admin = proxy.admin();
    proxy.logged("the failed fetch", |line| line.contains("JWKS fetch failed")).await;
    let issuer = Issuer::start().await;
    let token = issuer.token_with("alice", json!({"iss": "https://i.example", "aud": "api"}));
    assert_eq!(get(proxy.address, "/", &[&bearer(&token)]).await.status, 503);
    let line = proxy.logged("its reason", |line| line.contains("keys_unavailable")).await;
    assert!(line.contains("http://127.0.0.1:1/keys"), "{line}");
    let status = get(admin, "/status", &[]).await.body;
    assert!(status.contains("keys at http://127.0.0.1:1/keys"), "{status}");
    let (_, checked) = crate::configuration::check(yaml, &[]);
    for text in [proxy.log().join("\n"), status, checked] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}
