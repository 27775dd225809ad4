//! The admin listener, and what is counted there.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, bearer, get};
use crate::support::issuer::{Issuer, Key, Mood};
use crate::support::now;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

struct House {
    issuer: Issuer,
    backend: Backend,
    proxy: Proxy,
    admin: SocketAddr,
}

async fn house(more: &str) -> House {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\", hosts: [ops.internal] }}\nupstream: {}\nproviders: [{}]\n{more}",
        backend.url(),
        issuer.provider()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let ready = proxy.logged("ready", |line| line.contains("ready in")).await;
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("json");
    let admin = ready["admin"].as_str().and_then(|url| url.strip_prefix("http://")?.parse().ok()).expect("an address");
    House { issuer, backend, proxy, admin }
}

impl House {
    async fn refused(&self, token: &str) -> Answer {
        get(self.proxy.address, "/x", &[&bearer(token)]).await
    }

    async fn metric(&self, name: &str) -> u64 {
        let answer = get(self.admin, "/metrics", &[]).await;
        assert_eq!(answer.status, 200);
        let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {}", answer.body)).parse().expect("a number")
    }

    async fn verdicts(&self, provider: &str, carrier: &str, outcome: &str) -> u64 {
        let labels = format!("provider=\"{provider}\",carrier=\"{carrier}\",outcome=\"{outcome}\"");
        self.metric(&format!("vestibule_token_verifications_total{{{labels}}}")).await
    }
}

#[tokio::test]
async fn every_verdict_has_its_count_and_its_reason_in_the_log() {
    let mut house = house("limits: { token_bytes: 4KiB }\n").await;
    let issuer = &house.issuer;
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256);
    let with = |claims: serde_json::Value| issuer.token_with("alice", claims);
    let hs = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &issuer.claims("alice"),
        &jsonwebtoken::EncodingKey::from_secret(b"x"),
    )
    .expect("signs");
    let mut forged = issuer.token("alice");
    forged.replace_range(forged.len() - 8..forged.len() - 4, "AAAA");
    let rows = [
        ("none", "malformed", "x.y.z".to_owned(), "malformed: "),
        ("none", "unknown_issuer", with(json!({"iss": "https://other"})), "is not a configured provider"),
        ("none", "claim", with(json!({"iss": null})), "claim iss is missing"),
        ("oidc", "algorithm", hs, "algorithm HS256 is not accepted"),
        ("oidc", "unknown_key", stranger.sign(&issuer.claims("alice")), "no key of the provider fits"),
        ("oidc", "bad_signature", forged, "the signature does not verify"),
        ("oidc", "expired", issuer.expired("alice"), "expired at "),
        ("oidc", "not_yet_valid", with(json!({"nbf": now() + 600})), "not valid before "),
        ("oidc", "issued_in_the_future", with(json!({"iat": now() + 600})), "lies ahead of our clock"),
        ("oidc", "claim", with(json!({"exp": null})), "claim exp is missing"),
        ("oidc", "wrong_audience", with(json!({"aud": "other"})), "made for audience"),
        ("oidc", "wrong_kind", with(json!({"token_use": "id"})), "an ID token"),
        ("oidc", "missing_user", with(json!({"sub": null})), "no user id in the token"),
        ("oidc", "unusable_user", with(json!({"sub": 7})), "the user id is not a string"),
    ];
    for (provider, outcome, token, reason) in rows {
        let before = house.verdicts(provider, "header", outcome).await;
        let answer = house.refused(&token).await;
        assert_eq!(answer.status, 401, "{outcome}");
        assert_eq!(house.verdicts(provider, "header", outcome).await, before + 1, "{outcome}");
        let id = answer.field("x-request-id").expect("an id").to_owned();
        let line = house.proxy.logged("its line", |line| line.contains(&id) && line.contains("reason")).await;
        assert!(line.contains(reason) && line.contains(&format!(r#""outcome":"{outcome}""#)), "{line}");
        // No answer tells more than the table of section 3.
        let mut body = answer.json();
        body.as_object_mut().expect("object").remove("request_id");
        let (code, detail) = match outcome {
            "expired" => ("token_expired", "Token has expired. Please sign in again."),
            "missing_user" => ("missing_user", "Invalid token: missing user ID"),
            _ => ("invalid_token", "Invalid token. Please sign in again."),
        };
        let expected =
            json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "code": code, "detail": detail});
        assert_eq!(body, expected, "{outcome}");
    }
}

#[tokio::test]
async fn good_tokens_are_counted_by_carrier_and_by_where_they_were_found() {
    let house = house("").await;
    let token = house.issuer.token("alice");
    let lookups = |result: &str| format!("vestibule_token_cache_lookups_total{{result=\"{result}\"}}");
    // Twice on one connection, once on another.
    let mut client = Client::connect(house.proxy.address).await;
    for _ in 0..2 {
        client.send(format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&token))).await;
        house.backend.answer("ok").await;
        assert_eq!(client.answer().await.status, 200);
    }
    let fields = [bearer(&token)];
    let fields = [fields[0].as_str()];
    let (answer, _) = tokio::join!(get(house.proxy.address, "/x", &fields), house.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    assert_eq!(house.verdicts("oidc", "header", "accepted").await, 3);
    for (result, count) in [("miss", 1), ("connection", 1), ("hit", 1)] {
        assert_eq!(house.metric(&lookups(result)).await, count, "{result}");
    }
    let mut socket = Socket::open(house.proxy.address, "/ws", &[]).await;
    let (said, _upstream) = tokio::join!(socket.authenticate(&token), house.backend.websocket());
    assert_eq!(said["type"], "authenticated");
    assert_eq!(house.verdicts("oidc", "message", "accepted").await, 1);
    assert_eq!(house.verdicts("oidc", "message", "expired").await, 0);
    assert_eq!(house.metric("vestibule_jwks_keys{provider=\"oidc\"}").await, 1);
    let fetched = house.metric("vestibule_jwks_last_success_timestamp_seconds{provider=\"oidc\"}").await;
    assert!(now() - fetched < 60);
    assert_eq!(house.metric("vestibule_jwks_fetches_total{provider=\"oidc\",outcome=\"ok\"}").await, 1);
    house.issuer.set_mood(Mood::Status(500));
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256);
    assert_eq!(house.refused(&stranger.sign(&house.issuer.claims("alice"))).await.status, 503);
    assert_eq!(house.verdicts("oidc", "header", "keys_unavailable").await, 1);
    assert!(house.metric("vestibule_jwks_fetches_total{provider=\"oidc\",outcome=\"failed\"}").await >= 1);
    // No user, no token, no path.
    let text = get(house.admin, "/metrics", &[]).await.body;
    for secret in ["alice", "/x", token.rsplit('.').next().expect("a signature")] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_admin_listener_answers_get_only_to_known_hosts_and_serves_nothing_else() {
    let house = house("").await;
    for (method, target, host, expected) in [
        ("GET", "/healthz", "127.0.0.1", 200),
        ("GET", "/readyz", "localhost:9180", 200),
        ("GET", "/metrics", "ops.internal", 200),
        ("GET", "/metrics", "evil.example", 421),
        ("POST", "/metrics", "localhost", 405),
        ("POST", "/revoke", "localhost", 405),
        ("GET", "/x", "localhost", 404),
        ("GET", "/.vestibule/healthz", "localhost", 404),
    ] {
        let mut client = Client::connect(house.admin).await;
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.answer().await.status, expected, "{method} {target} {host}");
    }
    // And the main one shows none of it.
    assert_eq!(get(house.proxy.address, "/metrics", &[]).await.status, 401);
}

#[tokio::test]
async fn a_usual_port_that_is_taken_does_not_stop_the_start_and_a_written_one_does() {
    let taken = std::net::TcpListener::bind("127.0.0.1:9180");
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = |admin: &str| format!("{admin}upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let mut proxy = Proxy::start(&yaml("admin: {}\n")).await;
    proxy.logged("a warning", |line| line.contains("no admin listener: 127.0.0.1:9180")).await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = busy.local_addr().expect("address");
    let file = crate::support::proxy::TempFile::new(&format!(
        "listen: 127.0.0.1:0\n{}",
        yaml(&format!("admin: {{ listen: \"{address}\" }}\n"))
    ));
    let output = crate::support::proxy::command().args(["run", "--config", file.path()]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("admin.listen: {address}: ")), "{said}");
    drop(taken);
}
