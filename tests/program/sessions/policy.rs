//! Tests that a session cookie is accepted only where its token would be now: after a reload, when its key was removed,
//! and at another instance with the same secret and other rules.

use jsonwebtoken::Algorithm;
use serde_json::json;

use super::clerk_provider;
use crate::fixture::Fixture;
use crate::support::answerer::{Answerer, ok};
use crate::support::backend::Backend;
use crate::support::client::{bearer, get, request};
use crate::support::issuer::{AUDIENCE, Issuer, Key, Mood};
use crate::support::now;
use crate::support::proxy::{Proxy, is_reload};
use crate::support::socket::Socket;

const SHARED: &str = "browser: { session: { secret: 0123456789abcdef0123456789abcdefXYZ, max_age: 1h } }\n";

fn yaml(backend: &Backend, provider: &str, more: &str) -> String {
    let browser = if more.contains("browser:") { "" } else { SHARED };
    format!(
        "upstream: {}\nproviders: [{provider}]\nwebsocket: {{ dialect: none, ping_interval: 5m }}\n{browser}{more}",
        backend.url()
    )
}

async fn fixture(provider: impl Fn(&Issuer) -> String) -> Fixture {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let proxy = Proxy::start(&yaml(&backend, &provider(&issuer), "")).await;
    Fixture { issuer, backend, proxy }
}

impl Fixture {
    /// Starts another instance with the same secret.
    async fn other(&self, provider: &str, more: &str) -> Proxy {
        Proxy::start(&yaml(&self.backend, provider, more)).await
    }

    async fn reload(&mut self, provider: &str) {
        let before = self.proxy.log().len();
        self.proxy.rewrite(&yaml(&self.backend, provider, ""));
        self.proxy.signal("HUP");
        let said = self.proxy.logged_after(before, "a reload", is_reload).await;
        assert!(said.contains("configuration reloaded"), "{said}");
    }

    /// Returns the status of a request with one credential at an instance.
    async fn status(&self, proxy: &Proxy, field: &str) -> u16 {
        let fields = [field, "Sec-Fetch-Site: same-origin"];
        tokio::select! {
            answer = get(proxy.address, "/x", &fields) => answer.status,
            _ = self.backend.answer("served") => 200,
        }
    }

    /// Returns the status of an upgrade whose credential is refused.
    async fn socket_status(&self, proxy: &Proxy, field: &str) -> u16 {
        let fields = [field, "Origin: http://localhost"];
        Socket::try_open(proxy.address, "/ws", &fields).await.0.status
    }
}

/// Returns providers of the issuer that differ in one setting, by which its token is refused.
fn other_rules(issuer: &Issuer, stranger: &Issuer) -> Vec<String> {
    let provider = issuer.provider();
    let with = |more: &str| provider.replace(" }", &format!(", {more} }}"));
    vec![
        provider.replace(AUDIENCE, "another-api"),
        with("authorized_parties: [https://app.example.com]"),
        with("accept: [id_token]"),
        with("require: { plan: paid }"),
        with("algorithms: [ES256]"),
        with("user_id: email"),
        with("user_id: staff_number"),
        // Another issuer under the same name, with its own keys.
        stranger.provider(),
        // The same issuer with the keys of another.
        format!(
            "{{ preset: jwt, name: oidc, issuer: \"{}\", audience: {AUDIENCE}, jwks: {{ url: \"{}/jwks\" }} }}",
            issuer.url, stranger.url
        ),
        with("name: renamed"),
    ]
}

#[tokio::test]
async fn after_a_reload_a_session_cookie_is_refused_where_its_token_is() {
    let mut fixture = fixture(Issuer::provider).await;
    let stranger = Issuer::with(Key::ec("stranger", Algorithm::ES256)).await;
    let token = fixture.issuer.token_with("alice", json!({"email": "alice@example.com"}));
    let (cookie, bearer) = (fixture.signed_in(&token).await, bearer(&token));
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 200);
    let provider = fixture.issuer.provider();
    for changed in other_rules(&fixture.issuer, &stranger) {
        // With another name it is another provider, and its tokens are accepted.
        let is_refused = !changed.contains("renamed");
        fixture.reload(&changed).await;
        assert_eq!(fixture.status(&fixture.proxy, &bearer).await == 401, is_refused, "{changed}");
        assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 401, "{changed}");
        assert_eq!(fixture.socket_status(&fixture.proxy, &cookie).await, 401, "{changed}");
        fixture.reload(&provider).await;
        assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 200, "and taken again: {changed}");
    }
    // The rules about users, and the claim of the user id, are those in force now.
    fixture.reload(&provider.replace(" }", ", allow: { users: [bob] } }")).await;
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 403);
    fixture.reload(&provider.replace(" }", ", user_prefix: \"main:\" }")).await;
    let fields = [cookie.as_str()];
    let (_, heard) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
    assert_eq!(heard.all("x-user-id"), ["main:alice"]);
}

#[tokio::test]
async fn at_an_instance_with_the_same_secret_and_other_rules_a_session_cookie_is_none() {
    let fixture = fixture(Issuer::provider).await;
    let stranger = Issuer::with(Key::ec("stranger", Algorithm::ES256)).await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    for provider in other_rules(&fixture.issuer, &stranger) {
        let other = fixture.other(&provider, "").await;
        assert_eq!(fixture.status(&other, &cookie).await, 401, "{provider}");
        assert_eq!(fixture.socket_status(&other, &cookie).await, 401, "{provider}");
    }
    let same = fixture.other(&fixture.issuer.provider(), "").await;
    assert_eq!(fixture.status(&same, &cookie).await, 200);
}

#[tokio::test]
async fn a_session_cookie_of_a_kind_of_token_that_is_not_accepted_is_none() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let clerk =
        |more: &str| format!("{{ preset: clerk, issuer: \"{0}\", jwks: {{ url: \"{0}/jwks\" }}{more} }}", issuer.url);
    let proxy = Proxy::start(&yaml(&backend, &clerk(", accept: [access_token, template]"), "")).await;
    let (sessions_only, another_preset) = (clerk(""), issuer.provider().replace("oidc", "oidc, name: clerk"));
    // The header names the kind of the token, not its claims.
    let template = json!({"cat": "cl_B7d4PD222AAA"});
    let mut claims = issuer.claims("alice");
    claims["sid"] = json!("sess_1");
    let token = issuer.key.sign_with(&template, &claims);
    let fixture = Fixture { issuer, backend, proxy };
    let cookie = fixture.signed_in(&token).await;
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 200);
    for provider in [sessions_only, another_preset] {
        let other = fixture.other(&provider, "").await;
        assert_eq!(fixture.status(&other, &cookie).await, 401, "{provider}");
    }
}

#[tokio::test]
async fn a_session_cookie_goes_with_the_key_of_its_token_until_that_ends() {
    let fixture = fixture(Issuer::provider).await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    // The clock skew still accepts the token; its session continues after it.
    let ended = fixture.signed_in(&fixture.issuer.token_with("carol", json!({"exp": now() - 1}))).await;
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut socket, _upstream) = tokio::join!(opening, fixture.backend.websocket());
    let next = Key::ec("next", Algorithm::ES256);
    fixture.issuer.set_keys(vec![next.jwk.clone()]);
    // The unknown key causes a fetch of the key set.
    assert_eq!(fixture.status(&fixture.proxy, &bearer(&next.sign(&fixture.issuer.claims("bob")))).await, 200);
    assert_eq!(fixture.status(&fixture.proxy, &bearer(&fixture.issuer.token("alice"))).await, 401);
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 401);
    assert_eq!(
        fixture.status(&fixture.proxy, &ended).await,
        200,
        "or every rotation would end the sessions of a month"
    );
    // So does the socket that was opened with it, at the latest half a minute later.
    let closed = tokio::time::timeout(2 * crate::support::SAFETY, socket.try_next()).await.expect("in time");
    assert_eq!(closed.expect("a frame").close(), (4401, "Token expired".into()));
}

#[tokio::test]
async fn without_an_issuer_a_session_cookie_is_judged_by_its_key_when_its_token_has_ended_too() {
    let secret = |last: &str| format!("0123456789abcdef0123456789abcde{last}");
    let provider = |last: &str| format!("{{ preset: shared-secret, secret: {}, audience: {AUDIENCE} }}", secret(last));
    let fixture = fixture(|_| provider("A")).await;
    let key = jsonwebtoken::EncodingKey::from_secret(secret("A").as_bytes());
    // The clock skew still accepts the token; its session continues after it.
    let claims = json!({"sub": "alice", "aud": AUDIENCE, "exp": now() - 1});
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token");
    let cookie = fixture.signed_in(&token).await;
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 200);
    let other = fixture.other(&provider("B"), "").await;
    assert_eq!(fixture.status(&other, &cookie).await, 401);
}

#[tokio::test]
async fn a_session_cookie_of_a_newer_key_makes_an_instance_ask_for_the_keys() {
    let fixture = fixture(Issuer::provider).await;
    let next = Key::ec("next", Algorithm::ES256);
    let late = fixture.other(&fixture.issuer.provider(), "").await;
    assert_eq!(fixture.status(&late, &bearer(&fixture.issuer.token("bob"))).await, 200, "it has the first set");
    fixture.issuer.set_keys(vec![fixture.issuer.key.jwk.clone(), next.jwk.clone()]);
    let cookie = fixture.signed_in(&next.sign(&fixture.issuer.claims("alice"))).await;
    assert_eq!(fixture.status(&late, &cookie).await, 200);
}

#[tokio::test]
async fn a_session_cookie_that_cannot_be_judged_is_503_as_its_token_is() {
    let fixture = fixture(Issuer::provider).await;
    let token = fixture.issuer.token("alice");
    let cookie = fixture.signed_in(&token).await;
    fixture.issuer.set_mood(Mood::Status(500));
    let blind = fixture.other(&fixture.issuer.provider(), "").await;
    assert_eq!(fixture.status(&blind, &bearer(&token)).await, 503);
    assert_eq!(fixture.status(&blind, &cookie).await, 503);
}

#[tokio::test]
async fn a_session_cookie_lives_no_longer_than_the_policy_in_force_says() {
    let fixture = fixture(Issuer::provider).await;
    let cookie = fixture.signed_in(&fixture.issuer.token_with("alice", json!({"exp": now() - 1}))).await;
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 200, "for an hour, beyond its token");
    let with_token = "browser: { session: { secret: 0123456789abcdef0123456789abcdefXYZ } }\n";
    let other = fixture.other(&fixture.issuer.provider(), with_token).await;
    assert_eq!(fixture.status(&other, &cookie).await, 401, "there as long as its token");
}

#[tokio::test]
async fn what_one_endpoint_vouched_for_is_nothing_where_another_is_asked() {
    let answers =
        || Answerer::start(|_| ok(json!({"active": true, "sub": "alice", "aud": AUDIENCE, "exp": now() + 600})));
    let (here, there) = (answers().await, answers().await);
    let provider = |endpoint: &Answerer, more: &str| {
        format!(
            "{{ preset: introspection, audience: {AUDIENCE}, remote: {{ url: \"{}/introspect\", client_id: v, client_secret: s{more} }} }}",
            endpoint.url
        )
    };
    let mut fixture = fixture(|_| provider(&here, "")).await;
    let cookie = fixture.signed_in("opaque").await;
    let same = fixture.other(&provider(&here, ", timeout: 1s"), "").await;
    assert_eq!(fixture.status(&same, &cookie).await, 200);
    let other = fixture.other(&provider(&there, ""), "").await;
    assert_eq!(fixture.status(&other, &cookie).await, 401);
    // An open socket as well.
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut socket, _upstream) = tokio::join!(opening, fixture.backend.websocket());
    fixture.reload(&provider(&there, "")).await;
    assert_eq!(socket.next_close().await, (1008, "Access denied".into()));
    assert_eq!(fixture.status(&fixture.proxy, &cookie).await, 401);
}

#[tokio::test]
async fn a_socket_ends_when_what_seals_its_session_is_another() {
    let fixture = fixture(Issuer::provider).await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut by_cookie, _first) = tokio::join!(opening, fixture.backend.websocket());
    let field = bearer(&fixture.issuer.token("alice"));
    let fields = [field.as_str()];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut by_token, (_, mut second)) = tokio::join!(opening, fixture.backend.websocket());
    let another = yaml(&fixture.backend, &fixture.issuer.provider(), "").replace("XYZ", "ABC");
    fixture.proxy.rewrite(&another);
    fixture.proxy.signal("HUP");
    assert_eq!(by_cookie.next_close().await, (1008, "Access denied".into()));
    by_token.say("still here").await;
    assert_eq!(second.next_text().await, "still here");
}

#[tokio::test]
async fn while_nobody_can_say_whose_session_it_is_another_is_not_begun() {
    let clerk = Answerer::start(|_| ok(json!({"id": "sess_1", "user_id": "alice", "status": "active"}))).await;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let provider = clerk_provider(&issuer, &clerk, "instead");
    let more = "browser: { session: { max_age: 1h, revalidate_every: 1s } }\n";
    let proxy = Proxy::start(&yaml(&backend, &provider, more)).await;
    let fixture = Fixture { issuer, backend, proxy };
    let token = fixture.issuer.token_with("alice", json!({"sid": "sess_1"}));
    let cookie = fixture.signed_in(&token).await;
    clerk.answers(|_| (500, String::new(), String::new()));
    let answer = fixture.post(&[&bearer(&token), &cookie]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    assert_eq!(answer.field("set-cookie"), None);
    // No rule prevents its user from signing out.
    let answer = request(fixture.proxy.address, "DELETE", super::SESSION, &[&cookie], "").await;
    assert_eq!(answer.status, 204);
}
