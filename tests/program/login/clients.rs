//! Tests of client authentication at the provider, and of the limits on requests and sessions of sign-ins.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use super::Fixture;
use crate::support::openid::{CLIENT, OpenId, SECRET};
use crate::support::proxy::TempFile;

fn form(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

#[tokio::test]
async fn a_secret_stands_where_the_provider_lists_it_or_the_file_says() {
    for (login, methods, basic) in [
        ("", json!(null), true),
        ("", json!(["client_secret_basic", "client_secret_post"]), true),
        ("", json!(["client_secret_post"]), false),
        ("client_auth: basic, ", json!(["client_secret_post"]), true),
        ("client_auth: post, ", json!(["client_secret_basic"]), false),
    ] {
        let provider = OpenId::start().await;
        let endpoint = format!("{}/par", provider.url);
        provider.set(|conduct| {
            conduct.metadata = json!({
                "token_endpoint_auth_methods_supported": methods, "pushed_authorization_request_endpoint": endpoint,
            });
        });
        let fixture = Fixture::at(provider, &format!("{login}client_secret: '{SECRET}'"), "").await;
        let mut browser = fixture.browser();
        assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
        for path in ["/token", "/par"] {
            let asked = &fixture.provider.asked(path)[0];
            let form_of = form(&asked.body);
            if basic {
                let value = asked.field("authorization").expect("a field").trim_start_matches("Basic ").to_owned();
                let decoded = base64::engine::general_purpose::STANDARD.decode(value).expect("base64");
                let text = String::from_utf8(decoded).expect("text");
                assert_eq!(text, format!("{CLIENT}:a+secret%3A+with+%26+odd+%3D+characters"));
                assert!(!form_of.contains_key("client_secret"));
            } else {
                assert_eq!((asked.field("authorization"), form_of["client_secret"].as_str()), (None, SECRET));
            }
            assert!(asked.body.matches("client_id=").count() <= 1, "{path}: {}", asked.body);
        }
    }
}

#[tokio::test]
async fn a_public_client_sends_its_id_alone() {
    let fixture = Fixture::start("client_auth: none", "").await;
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 303);
    let asked = &fixture.provider.asked("/token")[0];
    assert_eq!((asked.field("authorization"), form(&asked.body)["client_id"].as_str()), (None, CLIENT));
}

/// Returns a P-256 key: PKCS#8 in PEM, and its public JWK.
fn key() -> (String, Value) {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("key");
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("pair");
    let point = pair.public_key().as_ref();
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let text = base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    (pem, json!({ "kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..]) }))
}

#[tokio::test]
async fn a_key_signs_an_assertion_for_the_issuer() {
    let (pem, jwk) = key();
    let file = TempFile::new(&pem);
    let fixture = Fixture::start(&format!("client_key_file: \"{}\"", file.path()), "").await;
    for _ in 0..2 {
        assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 303);
    }
    let asked = fixture.provider.asked("/token");
    let mut ids = Vec::new();
    for asked in &asked {
        let form = form(&asked.body);
        assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
        let assertion = &form["client_assertion"];
        let header = jsonwebtoken::decode_header(assertion).expect("a header");
        // The thumbprint (RFC 7638).
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes());
        assert_eq!(header.kid, Some(URL_SAFE_NO_PAD.encode(thumbprint)));
        let decoding =
            DecodingKey::from_ec_components(jwk["x"].as_str().expect("text"), jwk["y"].as_str().expect("text"));
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[&fixture.provider.url]);
        let claims =
            jsonwebtoken::decode::<Value>(assertion, &decoding.expect("a key"), &validation).expect("verifies");
        assert_eq!((&claims.claims["iss"], &claims.claims["sub"]), (&json!(CLIENT), &json!(CLIENT)));
        ids.push(claims.claims["jti"].clone());
    }
    assert_ne!(ids[0], ids[1], "each is good once");
}

#[tokio::test]
async fn an_assertion_file_is_read_at_each_use() {
    let file = TempFile::new("first.assertion.x\n");
    let fixture = Fixture::start(&format!("client_assertion_file: \"{}\"", file.path()), "").await;
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 303);
    std::fs::write(file.path(), "second.assertion.x").expect("written");
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 303);
    let sent: Vec<String> =
        fixture.provider.asked("/token").iter().map(|asked| form(&asked.body)["client_assertion"].clone()).collect();
    assert_eq!(sent, ["first.assertion.x", "second.assertion.x"]);
    std::fs::remove_file(file.path()).expect("removed");
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 503);
}

#[tokio::test]
async fn offline_access_is_asked_for_where_the_provider_lists_it() {
    for (login, expected) in [("", "openid email offline_access"), ("renew: off", "openid email")] {
        let provider = OpenId::start().await;
        provider.set(|conduct| conduct.metadata = json!({ "scopes_supported": ["openid", "offline_access"] }));
        let fixture = Fixture::at(provider, login, "").await;
        let location = fixture.browser().reach_provider("/").await;
        assert_eq!(fixture.provider.parameters(&location)["scope"], expected);
    }
}

#[tokio::test]
async fn a_provider_that_has_no_accounts_to_choose_from_asks_who_it_is() {
    for (prompts, expected) in [
        (json!(null), "select_account"),
        (json!(["login", "select_account"]), "select_account"),
        (json!(["login", "consent"]), "login"),
    ] {
        let provider = OpenId::start().await;
        provider.set(|conduct| conduct.metadata = json!({ "prompt_values_supported": prompts }));
        let fixture = Fixture::at(provider, "", "").await;
        let answer = fixture.browser().open("/.vestibule/login?prompt=select_account").await;
        let location = super::Browser::location(&answer);
        assert_eq!(fixture.provider.parameters(&location)["prompt"], expected);
    }
}

#[tokio::test]
async fn further_parameters_go_along() {
    let fixture = Fixture::start("prompt: consent, parameters: { access_type: offline, hd: example.com }", "").await;
    let location = fixture.browser().reach_provider("/").await;
    let parameters = fixture.provider.parameters(&location);
    let found = (&*parameters["access_type"], &*parameters["hd"], &*parameters["prompt"]);
    assert_eq!(found, ("offline", "example.com", "consent"));
}

#[tokio::test]
async fn sign_ins_beyond_the_limit_of_requests_are_503() {
    let fixture = Fixture::start("", "limits: { login_requests: 1 }\n").await;
    let (mut first, mut second) = (fixture.browser(), fixture.browser());
    let one = fixture.provider.authorize(&first.reach_provider("/").await);
    let two = fixture.provider.authorize(&second.reach_provider("/").await);
    fixture.provider.answerer.hold();
    let before = fixture.provider.answerer.count();
    let waiting = tokio::spawn(async move { first.come_back(&one).await.status });
    fixture.provider.answerer.asked_times(before + 1).await;
    let answer = second.come_back(&two).await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("5")));
    assert!(answer.body.contains("Too many sign-ins are under way. Try again in a moment."), "{}", answer.body);
    fixture.provider.answerer.open();
    assert_eq!(waiting.await.expect("done"), 303);
}

#[tokio::test]
async fn a_session_beyond_the_limit_goes_on_by_its_cookie() {
    let fixture = Fixture::start("", "limits: { login_sessions: 1 }\n").await;
    fixture.provider.set(|conduct| {
        conduct.gives_refresh_token = true;
        conduct.tokens = json!({ "expires_in": 0 });
    });
    let mut first = fixture.browser();
    first.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| {
        conduct.user = "bob".to_owned();
        conduct.tokens = json!({ "expires_in": 600 });
    });
    let mut second = fixture.browser();
    second.sign_in(&fixture.provider, "/").await;
    assert_eq!(fixture.user(&mut second).await, "bob");
    // The first session's token has expired, and its record was removed with the refresh token.
    assert_eq!(first.open("/x").await.status, 302);
    assert_eq!(fixture.provider.refreshes(), 0);
}

#[tokio::test]
async fn groups_that_the_provider_leaves_out_fail_closed_and_the_log_says_why() {
    let provider = OpenId::start().await;
    let providers =
        format!("providers: [{{ preset: oidc, issuer: \"{}\", require: {{ groups: staff }} }}]\n", provider.url);
    let fixture = Fixture::at(provider, "", &providers).await;
    fixture.provider.set(|conduct| {
        conduct.id_token = json!({ "_claim_names": { "groups": "src1" }, "_claim_sources": { "src1": {} } });
    });
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 403);
    fixture.proxy.logged("the cause", |line| line.contains("group overage")).await;
    // A Bearer token without the claim has the same reason, by which people find the page of their provider.
    let reason = "required claim groups does not have a required value";
    fixture.proxy.logged("the reason", |line| line.contains("denial") && line.contains(reason)).await;
}

#[tokio::test]
async fn an_address_and_the_word_that_it_is_verified_come_from_one_place() {
    let provider = OpenId::start().await;
    let providers = format!(
        "providers: [{{ preset: oidc, issuer: \"{}\", allow: {{ emails: [boss@example.com] }} }}]\n",
        provider.url
    );
    let fixture = Fixture::at(provider, "claims_from: userinfo", &providers).await;
    for (id_token, userinfo, status) in [
        (json!({ "email_verified": true }), json!({ "sub": "alice", "email": "boss@example.com" }), 403),
        (json!({ "email": "boss@example.com" }), json!({ "sub": "alice", "email_verified": true }), 403),
        (json!({}), json!({ "sub": "alice", "email": "boss@example.com", "email_verified": true }), 303),
        (json!({ "email": "boss@example.com", "email_verified": true }), json!({ "sub": "alice" }), 303),
    ] {
        fixture.provider.set(|conduct| {
            conduct.id_token = id_token.clone();
            conduct.userinfo = userinfo.clone();
        });
        let answer = fixture.browser().sign_in(&fixture.provider, "/").await;
        assert_eq!(answer.status, status, "{id_token} {userinfo}");
    }
}

#[tokio::test]
async fn the_log_says_that_an_allowed_address_is_not_in_the_token() {
    let provider = OpenId::start().await;
    let providers = format!(
        "providers: [{{ preset: oidc, issuer: \"{}\", allow: {{ emails: [boss@example.com] }} }}]\n",
        provider.url
    );
    let fixture = Fixture::at(provider, "", &providers).await;
    // Some providers have the address only in the UserInfo response.
    fixture.provider.set(|conduct| conduct.id_token = json!({}));
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 403);
    let cause = "there is no `email` claim beside `email_verified: true`";
    fixture.proxy.logged("the cause", |line| line.contains("denial") && line.contains(cause)).await;
}

#[tokio::test]
async fn a_group_list_too_big_for_a_cookie_stays_here() {
    let more = "routes: [{ path: /x, require: { groups: staff } }]\nidentity: { headers: { X-User-Id: sub } }\n";
    let fixture = Fixture::start("", more).await;
    let mut groups: Vec<String> = (0..400).map(|number| format!("a-group-with-a-long-name-{number}")).collect();
    groups.push("staff".to_owned());
    fixture.provider.set(|conduct| conduct.id_token = json!({ "groups": groups }));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    assert!(browser.cookies.values().all(|value| value.len() < 2_000));
    assert_eq!(fixture.user(&mut browser).await, "alice");
}

#[tokio::test]
async fn too_old_a_sign_in_at_the_provider_ends_the_session_at_its_renewal() {
    let fixture = Fixture::start("max_age: 1s", "").await;
    fixture.provider.set(|conduct| {
        conduct.gives_refresh_token = true;
        conduct.tokens = json!({ "expires_in": 0 });
        conduct.id_token = json!({ "auth_time": crate::support::now() - 4 });
        conduct.renewed = json!({ "auth_time": crate::support::now() - 60 });
    });
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
    assert_eq!(browser.open("/x").await.status, 302);
}

#[tokio::test]
async fn used_attempts_beyond_the_limit_are_forgotten_the_oldest_first() {
    for (login_attempts, exchanges) in [(1, 3), (2, 2)] {
        let fixture = Fixture::start("", &format!("limits: {{ login_attempts: {login_attempts} }}\n")).await;
        let mut first = fixture.browser();
        let query = fixture.provider.authorize(&first.reach_provider("/").await);
        assert_eq!(first.come_back(&query).await.status, 303);
        fixture.browser().sign_in(&fixture.provider, "/").await;
        // If an attempt was removed, the provider is asked again; it accepts a code only once.
        assert_ne!(first.come_back(&query).await.status, 200);
        assert_eq!(fixture.provider.asked("/token").len(), exchanges, "{login_attempts}");
    }
}

#[tokio::test]
async fn a_role_that_is_an_object_is_asked_for_by_its_presence() {
    let roles = "\"/urn:zitadel:iam:org:project:roles/admin\": { present: true }";
    let more = format!("routes: [{{ path: /x, require: {{ {roles} }} }}]\n");
    let fixture = Fixture::start("", &more).await;
    for (claims, status) in [
        (json!({ "urn:zitadel:iam:org:project:roles": { "admin": { "1": "example.com" } } }), 200),
        (json!({ "urn:zitadel:iam:org:project:roles": { "user": { "1": "example.com" } } }), 403),
        (json!({ "urn:zitadel:iam:org:project:roles": { "admin": null } }), 403),
        (json!({}), 403),
    ] {
        fixture.provider.set(|conduct| conduct.id_token = claims.clone());
        let mut browser = fixture.browser();
        assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
        let found = tokio::select! {
            answer = browser.open("/x") => answer.status,
            _ = fixture.backend.answer("served") => 200,
        };
        assert_eq!(found, status, "{claims}");
    }
}

#[tokio::test]
async fn check_says_what_to_register_and_online_what_the_provider_lacks() {
    let provider = OpenId::start().await;
    let backend = crate::support::backend::Backend::start().await;
    let checked = |yaml: String| async move {
        let file = TempFile::new(&yaml);
        let path = file.path().to_owned();
        let run = move || {
            crate::support::proxy::command().args(["check", "--online", "--config", &path]).output().expect("runs")
        };
        let output = tokio::task::spawn_blocking(run).await.expect("done");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = checked(Fixture::yaml(&provider, &backend, "", "")).await;
    assert_eq!(code, Some(0), "{text}");
    for part in [
        "redirect URI: http://localhost/.vestibule/callback",
        "post-logout redirect URI: http://localhost/.vestibule/signed-out",
        "back-channel logout URI: http://localhost/.vestibule/backchannel-logout",
        "scopes: openid email",
        "it lists no offline_access",
        "it has no back-channel logout",
        "accepts the client id and secret",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    for part in [
        "tokens      none are accepted: people sign in,",
        "everything else: a user who has signed in",
        "those of a sign-in stay open while its session is renewed, and end with it",
        "by cookie, 12h, encrypted with a key of each process; DELETE /.vestibule/session",
        "hosts       localhost and loopback addresses\n",
        "without one, a person who is removed at oidc stays signed in for up to 12h",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // With the space: a port may have these digits.
    for part in [" 4401", "Authorization", "a valid token"] {
        assert!(!text.contains(part), "{part}\n{text}");
    }
    let more = format!(
        "hosts: [localhost, other.example.com]\nproviders: [{{ preset: oidc, issuer: \"{}\", audience: api }}]\n",
        provider.url
    );
    let (code, text) = checked(Fixture::yaml(&provider, &backend, "renew: required", &more)).await;
    assert!(code == Some(1) && text.contains("renew: required, and it lists no offline_access"), "{text}");
    for part in [
        "tokens      from Authorization",
        "everything else: a valid token",
        "closed with 4401",
        "those of a sign-in stay open while its session is renewed, and end with it",
        "by cookie, 12h from a sign-in, as long as the token from a POST,",
        "hosts       localhost, other.example.com\n",
        "without one, sign-ins fail (renew: required)",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (code, text) = checked(Fixture::yaml(&provider, &backend, "pushed: required", "")).await;
    assert!(code == Some(1) && text.contains("pushed: required, and it lists no such endpoint"), "{text}");
    for (status, error, expected, text_expected) in [
        (
            401,
            "invalid_client",
            1,
            "does not accept the client id or secret (it answered invalid_client); see browser.login.client_secret",
        ),
        (400, "invalid_request", 0, "whether it accepts the client id and secret is not known: "),
        (503, "x", 1, "sign-in is not possible: the token endpoint answered 503"),
    ] {
        let reply = (status, String::new(), json!({ "error": error }).to_string());
        provider.set(|conduct| conduct.token_reply = Some(reply));
        let (code, text) = checked(Fixture::yaml(&provider, &backend, "", "")).await;
        assert!(code == Some(expected) && text.contains(text_expected), "{code:?}\n{text}");
        assert!(!text.contains(SECRET));
    }
}
