//! Tests of a provider that violates the protocol: no user is signed in by it.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::Fixture;
use crate::support::issuer::Key;
use crate::support::now;
use crate::support::openid::CLIENT;

/// Signs in against a provider that changes its ID token like this.
async fn status(fixture: &Fixture, claims: &Value) -> u16 {
    fixture.provider.set(|conduct| conduct.id_token = claims.clone());
    let mut browser = fixture.browser();
    let answer = browser.sign_in(&fixture.provider, "/").await;
    assert_eq!(browser.has_session(), answer.status == 303, "{claims}");
    answer.status
}

#[tokio::test]
async fn an_id_token_that_is_not_ours_signs_nobody_in() {
    let fixture = Fixture::start("", "").await;
    let now = now();
    for (claims, expected) in [
        (json!({}), 303),
        (json!({ "iss": "https://other.example" }), 502),
        (json!({ "iss": null }), 502),
        (json!({ "aud": "another-client" }), 502),
        (json!({ "aud": null }), 502),
        (json!({ "aud": [] }), 502),
        (json!({ "aud": [CLIENT] }), 303),
        (json!({ "aud": [CLIENT, "another-client"] }), 502),
        (json!({ "aud": [CLIENT, "another-client"], "azp": CLIENT }), 303),
        (json!({ "aud": [CLIENT, "another-client"], "azp": "another-client" }), 502),
        (json!({ "azp": "another-client" }), 502),
        (json!({ "azp": 7 }), 502),
        (json!({ "nonce": "another" }), 502),
        (json!({ "nonce": null }), 502),
        (json!({ "nonce": ["x"] }), 502),
        (json!({ "exp": now - 60 }), 502),
        (json!({ "exp": null }), 502),
        (json!({ "exp": "never" }), 502),
        (json!({ "iat": now + 600 }), 502),
        (json!({ "iat": null }), 502),
        (json!({ "nbf": now + 600 }), 502),
        (json!({ "sub": null }), 502),
        (json!({ "sub": "" }), 502),
        (json!({ "sub": "a\nb" }), 502),
        (json!({ "events": {} }), 502),
        (json!({ "typ": "Refresh" }), 502),
    ] {
        assert_eq!(status(&fixture, &claims).await, expected, "{claims}");
    }
}

#[tokio::test]
async fn an_id_token_is_signed_by_the_provider_s_key_with_an_algorithm_of_the_list() {
    let fixture = Fixture::start("", "").await;
    let foreign = Key::ec("foreign", Algorithm::ES256);
    let unknown = Key::rsa("rsa-1");
    for key in [foreign, unknown] {
        fixture.provider.set(|conduct| conduct.key = key);
        assert_eq!(status(&fixture, &json!({})).await, 502);
    }
    fixture.provider.set(|conduct| conduct.key = crate::support::issuer::RSA.clone());
    let encode = |text: String| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
    let claims = json!({ "iss": fixture.provider.url, "aud": CLIENT, "sub": "admin", "iat": now(), "exp": now() + 60 });
    for header in [json!({ "alg": "none" }), json!({ "alg": "HS256" }), json!({ "alg": "RS256", "crit": ["x"] })] {
        let token = format!("{}.{}.c2ln", encode(header.to_string()), encode(claims.to_string()));
        for token in [token.clone(), token.trim_end_matches("c2ln").to_owned(), "garbage".to_owned()] {
            fixture.provider.set(|conduct| conduct.raw_id_token = Some(token.clone()));
            assert_eq!(status(&fixture, &json!({})).await, 502, "{token}");
        }
    }
}

#[tokio::test]
async fn an_access_token_is_no_id_token() {
    let fixture = Fixture::start("", "").await;
    for (kind, expected) in [("JWT", 303), ("jwt", 303), ("at+jwt", 502), ("AT+JWT", 502), ("application/at+jwt", 502)]
    {
        fixture.provider.set(|conduct| conduct.id_token_header = json!({ "typ": kind }));
        assert_eq!(status(&fixture, &json!({})).await, expected, "{kind}");
    }
}

#[tokio::test]
async fn an_answer_that_the_protocol_does_not_have_signs_nobody_in() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.tokens = json!({ "id_token": null }));
    assert_eq!(status(&fixture, &json!({})).await, 502);
    fixture.provider.set(|conduct| conduct.tokens = json!({}));
    let redirect = format!("Location: {}/elsewhere\r\n", fixture.provider.url);
    let endless = format!("{{\"id_token\":\"{}\"}}", "x".repeat(80_000));
    for (reply, expected) in [
        ((302, redirect, String::new()), 502),
        ((200, String::new(), endless), 502),
        ((200, String::new(), "<html>".to_owned()), 502),
        ((200, String::new(), "[]".to_owned()), 502),
        ((200, String::new(), "{\"id_token\":\"a\",\"id_token\":\"b\"}".to_owned()), 502),
        ((401, String::new(), json!({ "error": "invalid_client" }).to_string()), 502),
        ((404, String::new(), "{}".to_owned()), 502),
        ((429, "Retry-After: 9\r\n".to_owned(), "{}".to_owned()), 503),
    ] {
        fixture.provider.set(|conduct| conduct.token_reply = Some(reply.clone()));
        assert_eq!(status(&fixture, &json!({})).await, expected, "{reply:.60?}");
    }
    assert!(fixture.provider.asked("/elsewhere").is_empty(), "redirects are not followed");
}

/// A wrong secret is a fault in the configuration. It must not read as an outage.
#[tokio::test]
async fn a_client_that_the_provider_does_not_accept_is_said_to_be_one() {
    let fixture = Fixture::start("", "").await;
    let error = |code: &str| json!({ "error": code }).to_string();
    for (status, body) in [
        (401, error("invalid_client")),
        (400, error("invalid_client")),
        // Keycloak, Auth0, and a provider whose response is a status only.
        (401, error("unauthorized_client")),
        (401, error("access_denied")),
        (401, "no JSON".to_owned()),
    ] {
        let lines = fixture.proxy.log().len();
        fixture.provider.set(|conduct| conduct.token_reply = Some((status, String::new(), body.clone())));
        let answer = fixture.browser().sign_in(&fixture.provider, "/").await;
        assert_eq!(answer.status, 502, "{body}");
        assert!(answer.body.contains("Signing in is not set up correctly"), "{body}: {}", answer.body);
        let message = "\"level\":\"error\",\"msg\":\"the provider does not accept the client id or secret\"";
        let line = fixture.proxy.logged_after(lines, "the error", |line| line.contains(message)).await;
        assert!(line.contains("\"key\":\"browser.login.client_secret\""), "{line}");
        let event = fixture.proxy.logged_after(lines, "the event", |line| line.contains("sign_in_failed")).await;
        assert!(event.contains("\"outcome\":\"refused\"") && event.contains("client id or secret"), "{event}");
    }
    fixture.provider.set(|conduct| conduct.token_reply = None);
    assert_eq!(status(&fixture, &json!({})).await, 303);
}

#[tokio::test]
async fn a_code_that_is_no_good_starts_again_once() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| {
        conduct.token_reply = Some((400, String::new(), json!({ "error": "invalid_grant" }).to_string()));
    });
    let mut browser = fixture.browser();
    let answer = browser.sign_in(&fixture.provider, "/lab").await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    let query = fixture.provider.authorize(&super::Browser::location(&answer));
    assert_eq!(browser.come_back(&query).await.status, 502);
}

#[tokio::test]
async fn a_callback_names_its_issuer_where_the_provider_says_so() {
    let provider = crate::support::openid::OpenId::start().await;
    provider.set(|conduct| conduct.metadata = json!({ "authorization_response_iss_parameter_supported": true }));
    let fixture = Fixture::at(provider, "", "").await;
    let ours = fixture.provider.url.clone();
    for (issuer, expected) in [(Some(ours.as_str()), 303), (Some("https://other.example"), 502), (None, 502)] {
        let mut browser = fixture.browser();
        let location = browser.reach_provider("/").await;
        let query = fixture.provider.authorize(&location);
        let issuer = issuer.map_or_else(String::new, |issuer| format!("&iss={issuer}"));
        assert_eq!(browser.come_back(&format!("{query}{issuer}")).await.status, expected, "{issuer}");
        assert_eq!(browser.has_session(), expected == 303);
    }
}

#[tokio::test]
async fn a_user_who_signed_in_too_long_ago_signs_in_again() {
    let fixture = Fixture::start("max_age: 60s", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/").await;
    assert_eq!(fixture.provider.parameters(&location)["max_age"], "60");
    for (claims, expected) in [
        (json!({}), 303),
        (json!({ "auth_time": now() - 50 }), 303),
        (json!({ "auth_time": now() - 90 }), 502),
        (json!({ "auth_time": null }), 502),
        (json!({ "auth_time": "now" }), 502),
        (json!({ "auth_time": now() + 60 }), 502),
        (json!({ "auth_time": now() * 1_000 }), 502),
    ] {
        assert_eq!(status(&fixture, &claims).await, expected, "{claims}");
    }
}

#[tokio::test]
async fn a_required_refresh_token_that_does_not_come_is_a_page() {
    let fixture = Fixture::start("renew: required", "").await;
    assert_eq!(status(&fixture, &json!({})).await, 400);
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    assert_eq!(status(&fixture, &json!({})).await, 303);
}

#[tokio::test]
async fn bearer_tokens_of_a_login_s_provider_are_not_accepted() {
    let fixture = Fixture::start("", "").await;
    let claims = json!({ "iss": fixture.provider.url, "aud": CLIENT, "sub": "alice", "iat": now(), "exp": now() + 60 });
    let token = crate::support::issuer::RSA.sign(&claims);
    let field = crate::support::client::bearer(&token);
    let answer = crate::support::client::get(fixture.proxy.address, "/x", &[&field]).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_token"));
}
