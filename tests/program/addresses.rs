//! Tests of limits per address: failed tokens, connections, and a load balancer whose clients share one address.

use serde_json::json;

use crate::fixture::{Fixture, fixture, open_socket};
use crate::support::answerer::{Answerer, ok};
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::{AUDIENCE, Issuer, Key};
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

#[tokio::test]
async fn bad_tokens_are_429_beyond_the_limit_and_good_ones_are_served() {
    let fixture = fixture("limits: { failed_tokens_per_minute: 3 }\n").await;
    let (good, bad) = (fixture.issuer.token("alice"), fixture.issuer.token_with("alice", json!({"aud": "other"})));
    // What does not count: nothing, a malformed header, a token that was good until it ended.
    for _ in 0..5 {
        assert_eq!(get(fixture.proxy.address, "/x", &[]).await.code(), "missing_token");
        assert_eq!(get(fixture.proxy.address, "/x", &["Authorization: Basic eA=="]).await.code(), "invalid_request");
        assert_eq!(fixture.outcome(&fixture.issuer.expired("alice"), &[]).await, "token_expired");
    }
    for _ in 0..3 {
        assert_eq!(fixture.outcome(&bad, &[]).await, "invalid_token");
    }
    let answer = get(fixture.proxy.address, "/x", &[&bearer(&bad)]).await;
    assert_eq!((answer.status, answer.code()), (429, "too_many_failures".into()));
    assert_eq!(answer.json()["detail"], "Too many failed attempts.");
    let seconds: u64 = answer.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=20).contains(&seconds), "{seconds}");
    assert_eq!(fixture.outcome(&good, &[]).await, "alice");
    // A page reads a Close.
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(socket.authenticate(&bad).await["message"], "Too many connections");
    assert_eq!(socket.next_close().await, (1013, "Try again later".into()));
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &[&bearer(&bad)]).await;
    assert_eq!(answer.status, 429);
}

/// Two failed tokens of an address are allowed a minute. The provider confirms no opaque token.
async fn fixture_of_two_failures() -> (Fixture, Answerer) {
    let provider = Answerer::start(|_| ok(json!({"active": false}))).await;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = format!(
        "upstream: {}\nshared_user_ids: true\nproviders: [{}, {{ preset: introspection, audience: {AUDIENCE}, remote: {{ url: \"{}\", client_id: c, client_secret: s }} }}]\nlimits: {{ failed_tokens_per_minute: 2 }}\n",
        backend.url(),
        issuer.provider(),
        provider.url
    );
    let fixture = Fixture { proxy: Proxy::start(&yaml).await, issuer, backend };
    (fixture, provider)
}

#[tokio::test]
async fn over_the_limit_nobody_is_asked_about_unknown_tokens() {
    let (fixture, provider) = fixture_of_two_failures().await;
    assert_eq!(fixture.outcome("opaque-1", &[]).await, "no_session");
    assert_eq!(fixture.outcome("opaque-2", &[]).await, "no_session");
    assert_eq!(fixture.outcome("opaque-3", &[]).await, "too_many_failures");
    let (asked, fetches) = (provider.count(), fixture.issuer.fetches());
    assert_eq!(asked, 3);
    for index in 4..10 {
        assert_eq!(fixture.outcome(&format!("opaque-{index}"), &[]).await, "too_many_failures");
    }
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256);
    assert_eq!(fixture.outcome(&stranger.sign(&fixture.issuer.claims("alice")), &[]).await, "too_many_failures");
    assert_eq!((provider.count(), fixture.issuer.fetches()), (asked, fetches));
    assert_eq!(fixture.outcome(&fixture.issuer.token("alice"), &[]).await, "alice");
}

#[tokio::test]
async fn refreshes_count_and_over_the_limit_nobody_is_asked_about_them() {
    let (fixture, provider) = fixture_of_two_failures().await;
    let token = fixture.issuer.token("alice");
    let refresh = |token: &str| json!({"type": "refresh_auth", "token": token}).to_string();
    let (mut client, mut upstream) = open_socket(fixture.proxy.address, &fixture.backend, &token).await;
    // An expired token does not count.
    client.say(&refresh(&fixture.issuer.expired("alice"))).await;
    assert!(client.next_text().await.contains("Token refresh failed: Token has expired"));
    for token in ["opaque-1", "opaque-2"] {
        client.say(&refresh(token)).await;
        assert!(client.next_text().await.contains("Token refresh failed: Invalid authentication token"), "{token}");
    }
    client.say(&refresh("opaque-3")).await;
    assert!(client.next_text().await.contains("Token refresh failed: Too many connections"));
    assert_eq!(fixture.outcome("opaque-4", &[]).await, "too_many_failures");
    // The socket stays open, and a token that verifies is accepted.
    client.say(&refresh(&fixture.issuer.token_with("alice", json!({"jti": "next"})))).await;
    assert!(client.next_text().await.contains("auth_refreshed"));
    client.say("on").await;
    assert_eq!(upstream.next_text().await, "on");
    let (asked, fetches) = (provider.count(), fixture.issuer.fetches());
    assert_eq!(asked, 3);
    let (mut client, _upstream) = open_socket(fixture.proxy.address, &fixture.backend, &token).await;
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256).sign(&fixture.issuer.claims("alice"));
    for token in ["opaque-5", &stranger] {
        client.say(&refresh(token)).await;
        assert!(client.next_text().await.contains("Token refresh failed: Too many connections"), "{token}");
    }
    assert_eq!((provider.count(), fixture.issuer.fetches()), (asked, fetches));
}

#[tokio::test]
async fn null_is_no_limit() {
    let fixture = fixture("limits: { failed_tokens_per_minute: null }\n").await;
    let bad = fixture.issuer.token_with("alice", json!({"aud": "other"}));
    for _ in 0..100 {
        assert_eq!(fixture.outcome(&bad, &[]).await, "invalid_token");
    }
}

#[tokio::test]
async fn each_client_of_a_trusted_proxy_has_its_own_count() {
    let fixture = fixture("trusted_proxies: [127.0.0.1]\nlimits: { failed_tokens_per_minute: 1 }\n").await;
    let bad = fixture.issuer.token_with("alice", json!({"aud": "other"}));
    let from = |client: &str| format!("X-Forwarded-For: {client}");
    assert_eq!(fixture.outcome(&bad, &[&from("192.0.2.1")]).await, "invalid_token");
    assert_eq!(fixture.outcome(&bad, &[&from("192.0.2.1")]).await, "too_many_failures");
    assert_eq!(fixture.outcome(&bad, &[&from("192.0.2.2")]).await, "invalid_token");
    // One IPv6 host has a whole /64.
    assert_eq!(fixture.outcome(&bad, &[&from("2001:db8::1")]).await, "invalid_token");
    assert_eq!(fixture.outcome(&bad, &[&from("2001:db8::ffff")]).await, "too_many_failures");
    // A sender that names no client counts for all of them.
    for _ in 0..3 {
        assert_eq!(fixture.outcome(&bad, &[]).await, "invalid_token");
    }
}

#[tokio::test]
async fn a_balancer_that_nobody_named_is_told_of_and_locks_nobody_out() {
    let fixture = fixture("limits: { failed_tokens_per_minute: 1, connections_per_address: 4 }\n").await;
    let bad = fixture.issuer.token_with("alice", json!({"aud": "other"}));
    for _ in 0..5 {
        assert_eq!(fixture.outcome(&bad, &["X-Forwarded-For: 192.0.2.1"]).await, "invalid_token");
    }
    let parts = [
        "a peer sends X-Forwarded-For but is not in trusted_proxies: all its clients share its address, and the backend sees its scheme; add trusted_proxies: [private_ranges]",
        "\"address\":\"127.0.0.1\"",
        "\"scheme\":\"http\"",
    ];
    fixture.proxy.logged("the warning", |line| parts.iter().all(|part| line.contains(part))).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 401);
        open.push(client);
    }
    assert_eq!(fixture.proxy.log().iter().filter(|line| line.contains("sends X-Forwarded-For")).count(), 1);
}

#[tokio::test]
async fn one_address_has_so_many_connections() {
    let fixture = fixture("limits: { connections_per_address: 2 }\n").await;
    let ask = async |client: &mut Client| {
        client.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        client.answer().await.status
    };
    let mut first = Client::connect(fixture.proxy.address).await;
    let mut second = Client::connect(fixture.proxy.address).await;
    assert_eq!((ask(&mut first).await, ask(&mut second).await), (200, 200));
    let mut third = Client::connect(fixture.proxy.address).await;
    let answer = third.answer().await;
    assert_eq!((answer.status, answer.code(), answer.field("retry-after")), (503, "busy".into(), Some("5")));
    // A place that is given back is there again.
    drop(first);
    loop {
        let mut next = Client::connect(fixture.proxy.address).await;
        if ask(&mut next).await == 200 {
            break;
        }
    }
}
