//! The session's access token for a backend that checks tokens itself.

use serde_json::json;

use super::{Browser, Fixture, OURS};
use crate::support::backend::Backend;
use crate::support::client::get;
use crate::support::openid::OpenId;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

async fn start(seconds: u64, token_to: &str, session: &str) -> (Fixture, String, Browser) {
    let provider = OpenId::start().await;
    provider.set(|conduct| {
        conduct.gives_refresh_token = true;
        conduct.tokens = json!({ "expires_in": seconds });
    });
    let backend = Backend::start().await;
    let upstream = format!("upstream: {{ url: \"{}\", token_to: {token_to} }}", backend.url());
    let yaml = Fixture::yaml(&provider, &backend, "", "").replace(&format!("upstream: {}", backend.url()), &upstream);
    let yaml = yaml.replace("login: {", &format!("{session}login: {{"));
    let proxy = Proxy::start(&yaml).await;
    let fixture = Fixture { provider, backend, proxy };
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
    (fixture, yaml, browser)
}

#[tokio::test]
async fn a_request_carries_the_current_access_token() {
    let (fixture, _, mut browser) = start(0, "{ http: header }", "").await;
    fixture.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 600 }));
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (answer, heard) = tokio::join!(browser.open("/x"), fixture.backend.answer("served"));
        assert_eq!(answer.status, 200);
        seen.push(heard.all("authorization").join(","));
    }
    // The code was the first thing given out, the tokens of the sign-in the second.
    assert_eq!(seen, ["Bearer secret-access-3", "Bearer secret-access-3"], "the renewed one");
}

#[tokio::test]
async fn a_socket_carries_it_where_its_upstream_wants_it() {
    for (form, field, target) in [
        ("header", Some("Bearer secret-access-2"), "/ws"),
        ("{ query: access_token }", None, "/ws?access_token=secret-access-2"),
    ] {
        let (fixture, _, browser) = start(600, &format!("{{ websocket: {form} }}"), "").await;
        let cookie = browser.cookie_field();
        let fields = [cookie.as_str(), OURS];
        let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
        let (_client, (heard, _upstream)) = tokio::join!(opening, fixture.backend.websocket());
        assert_eq!((heard.all("authorization").first().copied(), heard.target()), (field, target));
    }
}

#[tokio::test]
async fn a_renewal_goes_up_a_first_message_socket_as_a_refresh() {
    let (fixture, _, browser) = start(2, "{ websocket: { first_message: vestibule } }", "").await;
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), OURS];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let upstream = async {
        let (_, mut upstream) = fixture.backend.websocket().await;
        let said = upstream.next_text().await;
        assert_eq!(said, r#"{"type":"authenticate","token":"secret-access-2"}"#);
        upstream.say(r#"{"type":"authenticated","user_id":"alice","expires_at":1,"expires_in":1}"#).await;
        upstream
    };
    let (mut client, mut upstream) = tokio::join!(opening, upstream);
    assert_eq!(upstream.next_text().await, r#"{"type":"refresh_auth","token":"secret-access-3"}"#);
    upstream.say(r#"{"type":"auth_refreshed","expires_at":1,"expires_in":1}"#).await;
    upstream.say("from the application").await;
    assert_eq!(client.next_text().await, "from the application", "the acknowledgement is ours");
    assert_eq!(upstream.next_text().await, r#"{"type":"refresh_auth","token":"secret-access-4"}"#);
}

#[tokio::test]
async fn a_session_without_its_token_signs_in_again() {
    let secret = "session: { secret: 0123456789abcdef0123456789abcdefXYZ }, ";
    let (mut fixture, yaml, mut browser) = start(600, "{ http: header }", secret).await;
    // After a restart the token is gone.
    fixture.proxy = Proxy::start(&yaml).await;
    browser.address = fixture.proxy.address;
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), "Sec-Fetch-Site: same-origin", "Accept: application/json"];
    let answer = get(fixture.proxy.address, "/x", &fields).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"));
    assert_eq!(browser.sign_in(&fixture.provider, "/x").await.status, 303, "no way round in circles");
    let (answer, heard) = tokio::join!(browser.open("/x"), fixture.backend.answer("served"));
    assert_eq!(answer.status, 200);
    assert!(heard.all("authorization")[0].starts_with("Bearer secret-access-"));
}

#[tokio::test]
async fn a_session_without_its_token_opens_a_socket_only_where_the_upstream_wants_none_there() {
    let secret = "session: { secret: 0123456789abcdef0123456789abcdefXYZ }, ";
    for (token_to, expected) in [
        ("{ websocket: header }", 401),
        ("{ websocket: { query: token } }", 401),
        ("{ websocket: { first_message: vestibule } }", 401),
        ("{ http: header }", 101),
    ] {
        let (mut fixture, yaml, browser) = start(600, token_to, secret).await;
        // After a restart the token is gone.
        fixture.proxy = Proxy::start(&yaml).await;
        let cookie = browser.cookie_field();
        let fields = [cookie.as_str(), OURS];
        let opening = Socket::try_open(fixture.proxy.address, "/ws", &fields);
        tokio::pin!(opening);
        let (answer, _socket) = tokio::select! {
            opened = &mut opening => opened,
            _upstream = fixture.backend.websocket() => opening.await,
        };
        assert_eq!(answer.status, expected, "{token_to}");
        if expected == 401 {
            assert_eq!(answer.code(), "missing_token", "{token_to}");
        }
    }
}
