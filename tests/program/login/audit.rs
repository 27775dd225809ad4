//! Audit events: one line for each sign-in, sign-out, renewal, revocation and denial, with the fields that
//! docs/sign-in.md lists.

use serde_json::{Value, json};

use super::logout::{logout_token, tell};
use super::{Browser, Fixture, OURS, provider};
use crate::support::client::Client;
use crate::support::control::post;
use crate::support::proxy::TempFolder;

impl Fixture {
    /// Waits for an audit event after the first `skipped` lines of the log.
    async fn audit_after(&mut self, skipped: usize, event: &str) -> Value {
        let wanted = format!("\"event\":\"{event}\"");
        let is_it = |line: &str| line.contains("\"msg\":\"audit\"") && line.contains(&wanted);
        let line = self.proxy.logged_after(skipped, event, is_it).await;
        serde_json::from_str(&line).expect("JSON")
    }

    async fn audit(&mut self, event: &str) -> Value {
        self.audit_after(0, event).await
    }
}

/// The names of the event's own fields, in their order.
fn fields(line: &Value) -> Vec<&str> {
    let all = line.as_object().expect("an object").keys().map(String::as_str);
    all.filter(|name| !matches!(*name, "time" | "level" | "msg" | "event")).collect()
}

#[tokio::test]
async fn a_session_is_followed_from_its_sign_in_to_its_sign_out() {
    let mut fixture = Fixture::at(provider(0).await, "", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let signed_in = fixture.audit("sign_in").await;
    assert_eq!(fields(&signed_in), ["request_id", "user", "provider", "session", "client"]);
    assert_eq!((&signed_in["user"], &signed_in["provider"]), (&json!("alice"), &json!("oidc")));
    assert_eq!(signed_in["client"], "127.0.0.1");
    let id = signed_in["request_id"].as_str().expect("a text").to_owned();
    let is_access = |line: &str| line.contains("/.vestibule/callback") && line.contains(&id);
    fixture.proxy.logged("the access line of the same request", is_access).await;
    let session = signed_in["session"].as_str().expect("a digest").to_owned();
    assert_eq!(session.len(), 16, "{session}");
    fixture.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 600 }));
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let renewed = fixture.audit("renewal").await;
    assert_eq!(fields(&renewed), ["user", "provider", "session"], "no client causes a renewal");
    assert_eq!((&renewed["user"], &renewed["session"]), (&json!("alice"), &json!(session)));
    browser.send("POST", "/.vestibule/logout", &[OURS], "").await;
    let signed_out = fixture.audit("sign_out").await;
    assert_eq!(fields(&signed_out), ["request_id", "user", "provider", "session", "client"]);
    assert_eq!((&signed_out["user"], &signed_out["session"]), (&json!("alice"), &json!(session)));
    assert_eq!((&signed_out["provider"], &signed_out["level"]), (&json!("oidc"), &json!("info")));
}

#[tokio::test]
async fn delete_writes_the_same_event_and_counts_as_a_logout() {
    let admin = crate::support::unused_port();
    let mut fixture = Fixture::start("", &format!("admin: {{ listen: \"127.0.0.1:{admin}\" }}\n")).await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    assert_eq!(browser.send("DELETE", "/.vestibule/session", &[OURS], "").await.status, 204);
    let signed_out = fixture.audit("sign_out").await;
    assert_eq!((&signed_out["user"], &signed_out["provider"]), (&json!("alice"), &json!("oidc")));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], admin));
    let text = crate::support::client::get(address, "/metrics", &[]).await.body;
    assert!(text.contains(r#"vestibule_logouts_total{provider="oidc",outcome="local"} 1"#), "{text}");
}

#[tokio::test]
async fn a_client_that_leaves_during_its_sign_out_ends_every_session_and_leaves_its_events() {
    let fixture = Fixture::at(provider(600).await, "", "").await;
    let mut alice = fixture.browser();
    alice.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| conduct.user = "bob".to_owned());
    let mut bob = fixture.browser();
    bob.sign_in(&fixture.provider, "/").await;
    // Another port of this machine can set a cookie of our name.
    let both =
        format!("Cookie: vestibule-80={}; vestibule-80={}", alice.cookies["vestibule-80"], bob.cookies["vestibule-80"]);
    fixture.provider.answerer.hold();
    let before = fixture.provider.answerer.count();
    let mut client = Client::connect(fixture.proxy.address).await;
    let head =
        format!("POST /.vestibule/logout HTTP/1.1\r\nHost: localhost\r\n{OURS}\r\n{both}\r\nContent-Length: 0\r\n\r\n");
    client.send(head).await;
    fixture.provider.answerer.asked_times(before + 1).await;
    drop(client);
    for user in ["alice", "bob"] {
        let wanted = format!("\"user\":\"{user}\"");
        let is_it = |line: &str| line.contains("\"event\":\"sign_out\"") && line.contains(&wanted);
        let line = fixture.proxy.logged(user, is_it).await;
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(fields(&line), ["request_id", "user", "provider", "session", "client"]);
    }
    fixture.provider.answerer.open();
    for browser in [&mut alice, &mut bob] {
        assert_eq!(browser.open("/x").await.status, 302);
    }
}

#[tokio::test]
async fn a_failed_renewal_says_why_and_whether_the_session_has_ended() {
    for (reply, outcome, has_retry) in [
        ((400, String::new(), json!({ "error": "invalid_grant" }).to_string()), "ended", false),
        ((500, "Retry-After: 60\r\n".to_owned(), "{}".to_owned()), "unavailable", true),
    ] {
        let mut fixture = Fixture::at(provider(0).await, "", "websocket: { revalidate_grace: 0s }\n").await;
        let mut browser = fixture.browser();
        browser.sign_in(&fixture.provider, "/").await;
        fixture.provider.set(|conduct| conduct.token_reply = Some(reply));
        browser.open("/x").await;
        let failed = fixture.audit("renewal_failed").await;
        assert_eq!((&failed["outcome"], &failed["level"]), (&json!(outcome), &json!("warn")), "{failed}");
        assert_eq!((&failed["user"], failed["reason"].is_string()), (&json!("alice"), true), "{failed}");
        assert_eq!(failed["retry_in_ms"] == 60_000, has_retry, "{failed}");
    }
}

#[tokio::test]
async fn a_denial_names_the_user_and_a_failed_sign_in_its_reason() {
    let provider = provider(600).await;
    let more = format!(
        "providers: [{{ preset: oidc, issuer: \"{}\", allow: {{ email_domains: [example.com] }} }}]\n",
        provider.url
    );
    let mut fixture = Fixture::at(provider, "", &more).await;
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 403);
    let denied = fixture.audit("denial").await;
    assert_eq!(fields(&denied), ["request_id", "user", "provider", "reason", "client"]);
    assert_eq!(denied["user"], "alice");
    let location = browser.reach_provider("/").await;
    let state = fixture.provider.parameters(&location)["state"].clone();
    browser.come_back(&format!("error=access_denied&state={state}")).await;
    let failed = fixture.audit("sign_in_failed").await;
    assert_eq!(fields(&failed), ["request_id", "provider", "outcome", "reason", "client"]);
    assert_eq!(
        (&failed["outcome"], &failed["reason"]),
        (&json!("denied"), &json!("the provider answered access_denied"))
    );
}

#[tokio::test]
async fn revocations_by_the_operator_and_by_the_provider_are_events() {
    let folder = TempFolder::new();
    let socket = folder.0.join("control.sock");
    let more = format!("control: {{ listen: \"unix:{}\" }}\n", socket.display());
    let mut fixture = Fixture::start("", &more).await;
    let issuer = fixture.provider.url.clone();
    assert_eq!(post(&socket, "/revoke", &json!({ "issuer": issuer, "sub": "alice" }).to_string()).await, 204);
    let revoked = fixture.audit("revocation").await;
    assert_eq!(fields(&revoked), ["user", "provider"]);
    assert_eq!((&revoked["user"], &revoked["provider"]), (&json!("alice"), &json!("oidc")));
    let mut lines = fixture.proxy.log().len();
    assert_eq!(post(&socket, "/revoke", &json!({ "issuer": issuer, "sid": "sid-7" }).to_string()).await, 204);
    let revoked = fixture.audit_after(lines, "revocation").await;
    assert_eq!(fields(&revoked), ["provider", "provider_session"]);
    assert_ne!(revoked["provider_session"], "sid-7", "a digest");
    lines = fixture.proxy.log().len();
    assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sid": "sid-7", "sub": "alice" }))).await, 200);
    let reported = fixture.audit_after(lines, "backchannel_logout").await;
    assert_eq!(fields(&reported), ["request_id", "user", "provider", "provider_session", "client"]);
    assert_eq!(reported["provider_session"], revoked["provider_session"]);
}

/// Two of our cookies came along, and the end of one cannot be recorded.
#[tokio::test]
async fn one_session_that_cannot_be_ended_does_not_keep_the_other_open() {
    let provider = provider(600).await;
    let mut fixture = Fixture::at(provider, "", "limits: { sign_outs: 1 }\n").await;
    let (mut first, mut second) = (fixture.browser(), fixture.browser());
    first.sign_in(&fixture.provider, "/").await;
    second.sign_in(&fixture.provider, "/").await;
    let cookies = format!("{}; {}", first.cookie_field(), second.cookie_field().trim_start_matches("Cookie: "));
    let mut both = Browser::new(fixture.proxy.address);
    let answer = both.send("POST", "/.vestibule/logout", &[OURS, &cookies], "").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("5")));
    let failed = fixture.audit("sign_out_failed").await;
    assert_eq!((&failed["user"], &failed["level"]), (&json!("alice"), &json!("warn")));
    fixture.audit("sign_out").await;
    for mut browser in [first, second] {
        assert_eq!(browser.open("/x").await.status, 302, "its record says that it has ended");
    }
    assert_eq!(fixture.provider.conduct.lock().expect("lock").revoked.len(), 2, "at the provider too");
}
