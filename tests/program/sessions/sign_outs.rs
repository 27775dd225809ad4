//! Tests that signing out ends the session for every copy of its cookie, even when the provider cannot be reached, and
//! that the sign-outs of one user do not use the limit of another, nor that of the operator.

use serde_json::json;

use super::{SESSION, clerk_provider, cookie, fixture};
use crate::fixture::Fixture;
use crate::support::answerer::{Answerer, ok};
use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, bearer, request};
use crate::support::control::post;
use crate::support::issuer::{AUDIENCE, Issuer};
use crate::support::now;
use crate::support::proxy::{Proxy, TempFolder};

impl Fixture {
    async fn sign_out(&self, cookie: &str) -> Answer {
        request(self.proxy.address, "DELETE", SESSION, &[cookie], "").await
    }

    /// Revokes at the control listener in this folder.
    async fn revoke(&self, folder: &TempFolder, user: &str) -> u16 {
        let body = json!({"issuer": self.issuer.url, "sub": user}).to_string();
        post(&folder.0.join("control.sock"), "/revoke", &body).await
    }
}

fn control(folder: &TempFolder) -> String {
    let (socket, file) = (folder.0.join("control.sock"), folder.0.join("revocations"));
    format!("control: {{ listen: \"unix:{}\", revocation_file: \"{}\" }}\n", socket.display(), file.display())
}

#[tokio::test]
async fn signing_out_ends_the_session_while_its_provider_cannot_be_asked() {
    let clerk = Answerer::start(|asked| match asked.line() {
        "POST /v1/clients/verify" => ok(json!({"id": "client_1", "last_active_session_id": "sess_1",
            "sessions": [{"id": "sess_1", "user_id": "alice", "status": "active"}]})),
        _ => ok(json!({"id": "sess_1", "user_id": "alice", "status": "active"})),
    })
    .await;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let provider = clerk_provider(&issuer, &clerk, "also").replace("cache: 1s", "cache: 1ms");
    let yaml =
        format!("upstream: {}\nproviders: [{provider}]\nbrowser: {{ session: {{ max_age: 1h }} }}\n", backend.url());
    let fixture = Fixture { issuer, backend, proxy: Proxy::start(&yaml).await };
    let cookie = fixture.signed_in(&fixture.issuer.token_with("alice", json!({"sid": "sess_1"}))).await;
    assert_eq!(fixture.page(&cookie).await, 200);
    clerk.answers(|_| (500, String::new(), String::new()));
    // Its last yes is good for a millisecond.
    fixture.is_refused_in_time(&cookie).await;
    assert_eq!(fixture.page(&cookie).await, 503);
    assert_eq!(fixture.sign_out(&cookie).await.status, 204);
    clerk.answers(|_| ok(json!({"id": "sess_1", "user_id": "alice", "status": "active"})));
    assert_eq!(fixture.page(&cookie).await, 401, "its copy is dead when the provider is back");
}

#[tokio::test]
async fn signing_out_ends_a_session_that_the_policy_does_not_take_at_that_moment() {
    let fixture = fixture("").await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let yaml = |audience: &str| {
        let provider = fixture.issuer.provider().replace(AUDIENCE, audience);
        format!("upstream: {}\nproviders: [{provider}]\nbrowser: {{ session: {{}} }}\n", fixture.backend.url())
    };
    let (other, own) = (yaml("another-api"), yaml(AUDIENCE));
    for (text, status) in [(other, 401), (own, 401)] {
        let before = fixture.proxy.log().len();
        fixture.proxy.rewrite(&text);
        fixture.proxy.signal("HUP");
        fixture.proxy.logged_after(before, "the reload", |line| line.contains("configuration reloaded")).await;
        assert_eq!(fixture.sign_out(&cookie).await.status, 204);
        assert_eq!(fixture.page(&cookie).await, status);
    }
}

/// A page on another port of this machine can set a cookie of our name.
#[tokio::test]
async fn signing_out_ends_every_session_whose_cookie_came_along() {
    let fixture = fixture("").await;
    let alice = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let planted = fixture.signed_in(&fixture.issuer.token("mallory")).await;
    let both = format!("{alice}; {}", planted.trim_start_matches("Cookie: "));
    assert_eq!(fixture.page(&both).await, 401, "two of one name are none");
    assert_eq!(fixture.page(&alice).await, 200);
    assert_eq!(fixture.sign_out(&both).await.status, 204);
    for copy in [alice, planted] {
        assert_eq!(fixture.page(&copy).await, 401);
    }
}

#[tokio::test]
async fn a_sign_out_is_kept_until_the_last_end_of_a_cookie_of_its_session() {
    let folder = TempFolder::new();
    let fixture = fixture(&control(&folder)).await;
    let month = now() + 30 * 86_400;
    let first = fixture.signed_in(&fixture.issuer.token_with("alice", json!({"exp": month}))).await;
    let short = bearer(&fixture.issuer.token_with("alice", json!({"exp": now() + 3_600})));
    let second = cookie(&fixture.post(&[&short, &first]).await);
    assert_eq!(fixture.sign_out(&second).await.status, 204);
    assert_eq!(fixture.page(&first).await, 401);
    let kept = std::fs::read_to_string(folder.0.join("revocations")).expect("the file");
    let line: serde_json::Value = serde_json::from_str(kept.lines().last().expect("a line")).expect("JSON");
    assert!(line["until"].as_u64().expect("seconds") >= month, "{kept}");
    assert!(!kept.contains("alice"), "{kept}");
}

#[tokio::test]
async fn signing_out_ends_event_streams_where_there_is_no_control_listener() {
    let fixture = fixture("").await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client
        .send(format!("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{cookie}\r\n\r\n"))
        .await;
    let mut upstream = fixture.backend.accept().await;
    upstream.request().await;
    upstream.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n").await;
    client.until("data: 1\n\n\r\n").await;
    assert_eq!(fixture.sign_out(&cookie).await.status, 204);
    assert!(client.is_closed().await, "without the last chunk");
    assert!(upstream.is_closed().await);
}

#[tokio::test]
async fn a_sign_out_that_did_nothing_is_503_and_takes_nothing_from_the_operator() {
    let folder = TempFolder::new();
    let limits = "limits: { sign_outs: 2, sign_outs_per_user: 2, revocations: 1 }\n";
    let fixture = fixture(&format!("{limits}{}", control(&folder))).await;
    let bob = fixture.signed_in(&fixture.issuer.token("bob")).await;
    for _ in 0..2 {
        let alice = fixture.signed_in(&fixture.issuer.token("alice")).await;
        assert_eq!(fixture.sign_out(&alice).await.status, 204);
    }
    let answer = fixture.sign_out(&bob).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    assert_eq!((answer.field("retry-after"), answer.field("set-cookie")), (Some("5"), None));
    assert_eq!(fixture.page(&bob).await, 200, "and it says so, since it is in force still");
    // The operator has room of its own, once.
    assert_eq!(fixture.revoke(&folder, "carol").await, 204);
    assert_eq!(fixture.revoke(&folder, "dora").await, 507);
}

#[tokio::test]
async fn an_operator_at_the_limit_keeps_nobody_from_signing_out() {
    let folder = TempFolder::new();
    let fixture = fixture(&format!("limits: {{ revocations: 1 }}\n{}", control(&folder))).await;
    assert_eq!(fixture.revoke(&folder, "carol").await, 204);
    assert_eq!(fixture.revoke(&folder, "dora").await, 507);
    let alice = fixture.signed_in(&fixture.issuer.token("alice")).await;
    assert_eq!(fixture.sign_out(&alice).await.status, 204);
    assert_eq!(fixture.page(&alice).await, 401);
}

#[tokio::test]
async fn beyond_a_user_s_limit_all_of_their_sessions_end_and_nobody_else_s() {
    let folder = TempFolder::new();
    let secret = "browser: { session: { secret: 0123456789abcdef0123456789abcdefXYZ } }\n";
    let more = format!("limits: {{ sign_outs_per_user: 2 }}\n{secret}{}", control(&folder));
    let mut fixture = fixture(&more).await;
    let (alice, bob) = (fixture.issuer.token("alice"), fixture.issuer.token("bob"));
    let (other_device, of_bob) = (fixture.signed_in(&alice).await, fixture.signed_in(&bob).await);
    let mut ended = Vec::new();
    for index in 0..3 {
        let cookie = fixture.signed_in(&alice).await;
        assert_eq!(fixture.sign_out(&cookie).await.status, 204);
        ended.push(cookie);
        let expected = if index < 2 { 200 } else { 401 };
        assert_eq!(fixture.page(&other_device).await, expected, "{index}");
    }
    ended.push(other_device);
    let later = fixture.signed_in(&alice).await;
    // The file has the same effect on the next process.
    for _ in 0..2 {
        for cookie in &ended {
            assert_eq!(fixture.page(cookie).await, 401);
        }
        assert_eq!(fixture.page(&later).await, 200);
        assert_eq!(fixture.page(&of_bob).await, 200);
        let yaml = format!("upstream: {}\nproviders: [{}]\n{more}", fixture.backend.url(), fixture.issuer.provider());
        fixture.proxy.signal("TERM");
        fixture.proxy.ended().await;
        fixture.proxy = Proxy::start(&yaml).await;
    }
    let kept = std::fs::read_to_string(folder.0.join("revocations")).expect("the file");
    assert_eq!(kept.lines().count(), 1, "{kept}");
}
