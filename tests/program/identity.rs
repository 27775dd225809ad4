//! docs/contract.md section 5 over sockets: every algorithm, every source of keys, every mood of an issuer.

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{bearer, get, get_served};
use crate::support::issuer::{AUDIENCE, Issuer, Key, Mood, RSA};
use crate::support::now;
use crate::support::proxy::{Proxy, TempFile};

async fn status(proxy: &Proxy, backend: &Backend, token: &str) -> (u16, String) {
    let credential = bearer(token);
    let fields = [credential.as_str()];
    let (answer, heard) = get_served(proxy.address, backend, "/", &fields).await;
    let outcome = heard.map_or_else(|| answer.code(), |heard| heard.all("x-user-id").join(","));
    (answer.status, outcome)
}

fn claims(issuer: &str, user: &str) -> serde_json::Value {
    json!({"iss": issuer, "aud": AUDIENCE, "sub": user, "exp": now() + 3600})
}

#[tokio::test]
async fn every_algorithm_verifies_with_its_own_key_and_no_other() {
    let backend = Backend::start().await;
    let keys = [RSA.clone(), Key::ec("p256", Algorithm::ES256), Key::ec("p384", Algorithm::ES384), Key::ed("ed")];
    let issuer = Issuer::start().await;
    issuer.set_keys(keys.iter().map(|key| key.jwk.clone()).collect());
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let claims = claims(&issuer.url, "alice");
    for key in &keys {
        assert_eq!(status(&proxy, &backend, &key.sign(&claims)).await, (200, "alice".into()), "{:?}", key.algorithm);
    }
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512] {
        let token = RSA.sign_as(algorithm, Some("rsa-1"), &claims);
        assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()), "{algorithm:?}");
    }
    // Another key's signature under a known kid, and the public key as an HMAC secret.
    let stranger = Key::ec("p256", Algorithm::ES256);
    assert_eq!(status(&proxy, &backend, &stranger.sign(&claims)).await, (401, "invalid_token".into()));
    for secret in [RSA.pem.as_bytes(), RSA.jwk.to_string().as_bytes()] {
        let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
        header.kid = Some("rsa-1".into());
        let token =
            jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_secret(secret)).expect("signs");
        assert_eq!(status(&proxy, &backend, &token).await, (401, "invalid_token".into()));
    }
}

#[tokio::test]
async fn a_token_that_names_no_key_is_tried_with_each_that_fits() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let others = [Key::rsa("rsa-2"), Key::rsa("rsa-3"), Key::ec("ec", Algorithm::ES256)];
    issuer.set_keys(others.iter().chain([&*RSA]).map(|key| key.jwk.clone()).collect());
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let claims = claims(&issuer.url, "alice");
    let named_null = RSA.sign_with(&json!({"kid": null}), &claims);
    for token in [RSA.sign_as(Algorithm::RS256, None, &claims), named_null] {
        assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()));
    }
    let stranger = Key::rsa("rsa-1").sign_as(Algorithm::RS256, None, &claims);
    assert_eq!(status(&proxy, &backend, &stranger).await, (401, "invalid_token".into()));
}

#[tokio::test]
async fn times_are_any_json_number_and_a_user_id_may_be_a_whole_one() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let (url, now) = (&issuer.url, now());
    let token = |members: &str| {
        let payload = format!(r#"{{"iss":"{url}","aud":"{AUDIENCE}",{members}}}"#);
        RSA.sign_raw(r#"{"alg":"RS256","kid":"rsa-1"}"#, payload.as_bytes())
    };
    let later = now + 600;
    for (members, expected) in [
        (format!(r#""sub":"alice","exp":{later}.25,"iat":{now}.0,"nbf":{now}.5"#), (200, "alice")),
        (r#""sub":"alice","exp":9.9e9"#.to_owned(), (200, "alice")),
        (format!(r#""sub":"alice","exp":{later},"nbf":9.9e9"#), (401, "invalid_token")),
        (format!(r#""sub":"alice","exp":{}.9"#, now - 60), (401, "token_expired")),
        (r#""sub":"alice","exp":"9900000000""#.to_owned(), (401, "invalid_token")),
        (r#""sub":"alice","exp":null"#.to_owned(), (401, "invalid_token")),
        (r#""sub":"alice","exp":-1.5"#.to_owned(), (401, "invalid_token")),
        (r#""sub":"alice","exp":1e999"#.to_owned(), (401, "invalid_token")),
        (format!(r#""sub":1234567890123456789,"exp":{later}"#), (200, "1234567890123456789")),
        (format!(r#""sub":-7,"exp":{later}"#), (200, "-7")),
        // Read as a fraction, it would be its neighbour too.
        (format!(r#""sub":123456789012345678901,"exp":{later}"#), (401, "invalid_token")),
        (format!(r#""sub":7.0,"exp":{later}"#), (401, "invalid_token")),
    ] {
        assert_eq!(status(&proxy, &backend, &token(&members)).await, (expected.0, expected.1.to_owned()), "{members}");
    }
}

/// Libraries for JavaScript that write `Date.now()`.
#[tokio::test]
async fn milliseconds_are_warned_of_once_where_a_token_is_accepted() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    let warned = |proxy: &Proxy| proxy.log().iter().filter(|line| line.contains("after the year 5000")).count();
    // Somebody else's token does not make the log speak of the provider's.
    let forged = Key::rsa("rsa-1").sign(&json!({"iss": issuer.url, "aud": AUDIENCE, "sub": "m", "exp": now() * 1000}));
    assert_eq!(status(&proxy, &backend, &forged).await, (401, "invalid_token".into()));
    for user in ["alice", "bob"] {
        let token = issuer.token_with(user, json!({"exp": (now() + 60) * 1000}));
        assert_eq!(status(&proxy, &backend, &token).await, (200, user.into()));
    }
    let token = issuer.token_with("alice", json!({"iat": now() * 1000}));
    assert_eq!(status(&proxy, &backend, &token).await, (401, "invalid_token".into()));
    proxy.logged("the unit", |line| line.contains("times look like milliseconds")).await;
    assert_eq!(warned(&proxy), 1);
    // 4999-12-31T23:59:59Z
    let proxy = Proxy::start(&yaml).await;
    let token = issuer.token_with("alice", json!({"exp": 95_617_583_999_u64}));
    assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()));
    proxy.logged("the request", |line| line.contains("\"status\":200")).await;
    assert_eq!(warned(&proxy), 0);
}

#[tokio::test]
async fn keys_without_kid_or_with_null_verify() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let second = Key::rsa("rsa-2");
    let (mut without, mut null) = (RSA.jwk.clone(), second.jwk.clone());
    without.as_object_mut().expect("object").remove("kid");
    null["kid"] = json!(null);
    issuer.set_keys(vec![without, null]);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    for key in [&*RSA, &second] {
        for kid in [None, Some("any")] {
            let token = key.sign_as(Algorithm::RS256, kid, &claims(&issuer.url, "alice"));
            assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()), "{kid:?}");
        }
    }
    let stranger = Key::rsa("rsa-3").sign_as(Algorithm::RS256, None, &claims(&issuer.url, "alice"));
    assert_eq!(status(&proxy, &backend, &stranger).await, (401, "invalid_token".into()));
}

#[tokio::test]
async fn a_numeric_user_is_the_same_in_a_session_and_a_refresh() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nbrowser: {{ session: {{}} }}\nroutes: [{{ path: \"/files/{{user}}\", require: {{ sub: \"{{user}}\" }} }}]\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token_with("", json!({"sub": 42})));
    let session =
        crate::support::client::request(proxy.address, "POST", "/.vestibule/session", &[&credential], "").await;
    assert_eq!((session.status, session.json()["user_id"].as_str()), (200, Some("42")), "{session:?}");
    let cookie = format!("Cookie: {}", session.field("set-cookie").and_then(|set| set.split(';').next()).expect("one"));
    for field in [&credential, &cookie] {
        let fields = [field.as_str()];
        let (answer, heard) = get_served(proxy.address, &backend, "/files/42", &fields).await;
        assert_eq!((answer.status, heard.expect("heard").all("x-user-id")), (200, vec!["42"]));
        assert_eq!(get(proxy.address, "/files/43", &fields).await.code(), "forbidden");
    }
    // A refresh with the number as text is of the same user.
    let (mut socket, _upstream) =
        crate::fixture::open_socket(proxy.address, &backend, &issuer.token_with("", json!({"sub": 42}))).await;
    for (sub, expected) in [(json!("42"), "auth_refreshed"), (json!(42), "auth_refreshed"), (json!(43), "\"error\"")] {
        let token = issuer.token_with("", json!({"sub": sub}));
        socket.say(&json!({"type": "refresh_auth", "token": token}).to_string()).await;
        assert!(socket.next_text().await.contains(expected), "{sub}");
    }
}

#[tokio::test]
async fn a_modulus_with_zeros_before_it_is_the_same_key() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let mut jwk = RSA.jwk.clone();
    let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().expect("text")).expect("base64url");
    jwk["n"] = json!(URL_SAFE_NO_PAD.encode([&[0, 0][..], &modulus].concat()));
    issuer.set_keys(vec![jwk]);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await, (200, "alice".into()));
}

#[tokio::test]
async fn keys_come_from_a_url_a_file_a_pem_or_a_secret() {
    let backend = Backend::start().await;
    let issuer = Issuer::start().await;
    let jwks = TempFile::new(&json!({"keys": [RSA.jwk]}).to_string());
    let rsa_pem = TempFile::new(&RSA.pem);
    let ec = Key::ec("ec", Algorithm::ES256);
    let ec_pem = TempFile::new(&ec.pem);
    let ed = Key::ed("ed");
    let ed_pem = TempFile::new(&ed.pem);
    let secret = TempFile::new("0123456789abcdef0123456789abcdef-and-more\n");
    let url = &issuer.url;
    for (provider, token) in [
        (
            format!("{{ preset: jwt, issuer: \"{url}\", jwks: {{ url: \"{url}/jwks\" }}, audience: {AUDIENCE} }}"),
            issuer.token("alice"),
        ),
        (
            format!(
                "{{ preset: jwt, issuer: \"{url}\", jwks: {{ file: \"{}\" }}, audience: {AUDIENCE} }}",
                jwks.path()
            ),
            issuer.token("alice"),
        ),
        (
            format!("{{ preset: jwt, issuer: \"{url}\", jwks: {{ pem_file: \"{}\" }} }}", rsa_pem.path()),
            issuer.token("alice"),
        ),
        (
            format!("{{ preset: jwt, jwks: {{ pem_file: \"{}\" }} }}", ec_pem.path()),
            ec.sign(&claims("anyone", "alice")),
        ),
        (
            format!("{{ preset: jwt, jwks: {{ pem_file: \"{}\" }} }}", ed_pem.path()),
            ed.sign(&claims("anyone", "alice")),
        ),
        (format!("{{ preset: shared-secret, secret_file: \"{}\" }}", secret.path()), {
            let key = jsonwebtoken::EncodingKey::from_secret(b"0123456789abcdef0123456789abcdef-and-more");
            jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::HS256), &claims("x", "alice"), &key)
                .expect("signs")
        }),
    ] {
        let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{provider}]\n", backend.url())).await;
        assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()), "{provider}");
        assert_eq!(status(&proxy, &backend, &issuer.expired("alice")).await.0, 401, "{provider}");
    }
}

#[tokio::test]
async fn a_token_is_verified_with_the_keys_of_its_own_issuer() {
    let backend = Backend::start().await;
    let (first, second) = (Issuer::start().await, Issuer::with(Key::ec("ec", Algorithm::ES256)).await);
    let yaml = format!(
        "upstream: {}\nproviders:\n  - {{ name: one, issuer: \"{}\", audience: {AUDIENCE}, user_prefix: \"one:\" }}\n  - {{ name: two, issuer: \"{}\", audience: {AUDIENCE}, user_prefix: \"two:\" }}\n",
        backend.url(),
        first.url,
        second.url
    );
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(status(&proxy, &backend, &first.token("alice")).await, (200, "one:alice".into()));
    assert_eq!(status(&proxy, &backend, &second.token("alice")).await, (200, "two:alice".into()));
    // The second issuer signs for the first.
    assert_eq!(status(&proxy, &backend, &second.key.sign(&first.claims("alice"))).await, (401, "invalid_token".into()));
    assert_eq!(
        status(&proxy, &backend, &second.key.sign_as(Algorithm::ES256, Some("rsa-1"), &first.claims("alice"))).await.0,
        401
    );
}

#[tokio::test]
async fn a_rotated_key_is_found_at_once_also_in_the_first_half_minute() {
    let backend = Backend::start().await;
    let issuer = Issuer::start().await;
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200);
    assert_eq!(issuer.fetches(), 1);
    let rotated = Key::ec("rotated", Algorithm::ES256);
    issuer.set_keys(vec![RSA.jwk.clone(), rotated.jwk.clone()]);
    let token = rotated.sign(&issuer.claims("alice"));
    assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()));
    assert_eq!(issuer.fetches(), 2);
    // The cool-down: unknown keys cause no further fetch, and known ones still verify.
    for _ in 0..20 {
        let stranger = Key::ec("stranger", Algorithm::ES256).sign(&issuer.claims("mallory"));
        assert_eq!(status(&proxy, &backend, &stranger).await, (401, "invalid_token".into()));
    }
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200);
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn one_fetch_serves_everyone_who_waits_for_an_unknown_key() {
    let backend = Backend::start().await;
    let issuer = Issuer::start().await;
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200);
    let rotated = Key::ec("rotated", Algorithm::ES256);
    issuer.set_keys(vec![rotated.jwk.clone()]);
    let credential = bearer(&rotated.sign(&issuer.claims("alice")));
    let fields = [credential.as_str()];
    let upstream = async {
        for _ in 0..30 {
            backend.answer("ok").await;
        }
    };
    let asking = futures_util::future::join_all((0..30).map(|_| get(proxy.address, "/", &fields)));
    let (answers, ()) = tokio::join!(asking, upstream);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(issuer.fetches(), 2);
}

#[tokio::test]
async fn unusable_key_sets_are_503_and_recover_by_themselves() {
    for mood in [
        Mood::Garbage,
        Mood::Html,
        Mood::Rude,
        Mood::Silent,
        Mood::Endless,
        Mood::Redirect("http://127.0.0.1:1/jwks".into()),
        Mood::Status(404),
    ] {
        let (backend, issuer) = (Backend::start().await, Issuer::start().await);
        issuer.set_mood(mood.clone());
        let yaml = format!(
            "upstream: {}\nproviders: [{{ preset: jwt, issuer: \"{url}\", jwks: {{ url: \"{url}/jwks\" }}, audience: {AUDIENCE} }}]\n",
            backend.url(),
            url = issuer.url
        );
        let proxy = Proxy::start(&yaml).await;
        assert_eq!(
            status(&proxy, &backend, &issuer.token("alice")).await,
            (503, "auth_unavailable".into()),
            "{mood:?}"
        );
        proxy.logged("the reason", |line| line.contains("JWKS fetch failed")).await;
        issuer.set_mood(Mood::Well);
        proxy.logged("keys", |line| line.contains("JWKS fetched")).await;
        assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200, "{mood:?}");
    }
}

#[tokio::test]
async fn the_last_good_keys_serve_while_the_provider_is_down_and_unknown_ones_are_503() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200);
    issuer.set_mood(Mood::Rude);
    let unknown = Key::ec("new", Algorithm::ES256).sign(&issuer.claims("alice"));
    // It cannot be said that the key is unknown: it may be new.
    assert_eq!(status(&proxy, &backend, &unknown).await, (503, "auth_unavailable".into()));
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 200);
}

#[tokio::test]
async fn discovery_must_name_the_issuer_exactly() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    issuer.calls_itself(&format!("{}/", issuer.url));
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider())).await;
    let line = proxy.logged("the name", |line| line.contains("write exactly that")).await;
    let told = format!("the provider calls itself \\\"{}/\\\"; write exactly that", issuer.url);
    assert!(line.contains(&told), "{line}");
    assert_eq!(status(&proxy, &backend, &issuer.token("alice")).await.0, 503);
}

/// Entra's document of `common` and `organizations`.
#[tokio::test]
async fn discovery_of_every_tenant_leads_to_one_tenant() {
    let issuer = Issuer::start().await;
    issuer.calls_itself("https://login.microsoftonline.com/{tenantid}/v2.0");
    let proxy = Proxy::start(&format!("upstream: http://127.0.0.1:1\nproviders: [{}]\n", issuer.provider())).await;
    let line = proxy.logged("the name", |line| line.contains("JWKS fetch failed")).await;
    assert!(!line.contains("write exactly that"), "{line}");
    assert!(line.contains("{tenantid}") && line.contains("tenant: the directory ID"), "{line}");
}

/// Keycloak in a network of containers: browsers reach it by another address than we do.
#[tokio::test]
async fn keys_may_be_elsewhere_than_the_issuer() {
    let (backend, keycloak) = (Backend::start().await, Issuer::start().await);
    let outside = "http://127.0.0.1:1";
    let yaml = |more: &str| {
        format!(
            "upstream: {}\nproviders: [{{ preset: keycloak, url: \"{outside}\", realm: team, audience: {AUDIENCE}{more} }}]\n",
            backend.url()
        )
    };
    let token = RSA.sign(&claims(&format!("{outside}/realms/team"), "alice"));
    let proxy = Proxy::start(&yaml("")).await;
    let line = proxy.logged("the way out", |line| line.contains("JWKS fetch failed")).await;
    assert!(line.contains("jwks: { url: … }, and leave issuer as the tokens have it"), "{line}");
    assert_eq!(status(&proxy, &backend, &token).await, (503, "auth_unavailable".into()));
    let keys = format!(", jwks: {{ url: \"{}/realms/team/protocol/openid-connect/certs\" }}", keycloak.url);
    let proxy = Proxy::start(&yaml(&keys)).await;
    assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()));
    let inside = RSA.sign(&claims(&format!("{}/realms/team", keycloak.url), "alice"));
    assert_eq!(status(&proxy, &backend, &inside).await, (401, "invalid_token".into()));
}

#[tokio::test]
async fn who_may_enter_is_asked_after_verification() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{{ issuer: \"{}\", audience: {AUDIENCE}, require: {{ tenant: t1 }}, allow: {{ users: [root], email_domains: [example.com] }} }}]\n",
        backend.url(),
        issuer.url
    );
    let proxy = Proxy::start(&yaml).await;
    for (user, overrides, expected) in [
        ("root", json!({"tenant": "t1"}), (200, "root")),
        ("root", json!({"tenant": "t2"}), (401, "invalid_token")),
        ("root", json!({}), (401, "invalid_token")),
        ("alice", json!({"tenant": "t1"}), (403, "forbidden")),
        ("alice", json!({"tenant": "t1", "email": "alice@example.com", "email_verified": true}), (200, "alice")),
        ("alice", json!({"tenant": "t1", "email": "alice@EXAMPLE.com", "email_verified": true}), (200, "alice")),
        ("alice", json!({"tenant": "t1", "email": "alice@example.com", "email_verified": "true"}), (403, "forbidden")),
        ("alice", json!({"tenant": "t1", "email": "alice@example.com"}), (403, "forbidden")),
        ("alice", json!({"tenant": "t1", "email": "a@evil@example.com", "email_verified": true}), (403, "forbidden")),
        ("alice", json!({"tenant": "t1", "email": "@example.com", "email_verified": true}), (403, "forbidden")),
        (
            "alice",
            json!({"tenant": "t1", "email": "alice@sub.example.com", "email_verified": true}),
            (403, "forbidden"),
        ),
    ] {
        let token = issuer.token_with(user, overrides.clone());
        assert_eq!(status(&proxy, &backend, &token).await, (expected.0, expected.1.to_owned()), "{overrides}");
    }
}

#[tokio::test]
async fn claims_that_cannot_stand_in_a_header_refuse_the_request() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nidentity:\n  headers:\n    X-User-Id: sub\n    X-Name: {{ claim: name, encode: percent }}\n    X-Groups: groups\n    X-Plan: /meta/plan\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let token =
        issuer.token_with("alice", json!({"name": "José\r\nX-Admin: 1", "groups": ["a", "b"], "meta": {"plan": 3}}));
    let credential = bearer(&token);
    let fields = [credential.as_str()];
    let (answer, heard) = tokio::join!(get(proxy.address, "/", &fields), backend.answer(""));
    assert_eq!(answer.status, 200);
    assert_eq!(heard.all("x-name"), ["Jos%C3%A9%0D%0AX-Admin%3A%201"]);
    assert_eq!((heard.all("x-groups"), heard.all("x-plan")), (vec!["a,b"], vec!["3"]));
    for overrides in
        [json!({"groups": ["a,b"]}), json!({"groups": {"a": 1}}), json!({"groups": "a\nb"}), json!({"groups": [["a"]]})]
    {
        let token = issuer.token_with("alice", overrides.clone());
        assert_eq!(status(&proxy, &backend, &token).await, (403, "forbidden".into()), "{overrides}");
    }
    for sub in ["a b", "a\nb", "é"] {
        assert_eq!(status(&proxy, &backend, &issuer.token(sub)).await, (401, "invalid_token".into()), "{sub}");
    }
}

#[tokio::test]
async fn a_token_seen_before_is_not_verified_again() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    for (yaml, remembered) in [
        (format!("providers: [{}]\n", issuer.provider()), true),
        (format!("providers: [{}]\nlimits: {{ token_cache: 0 }}\n", issuer.provider()), false),
        (format!("providers: [{}]\n", issuer.provider().replace(" }", ", cache_ttl: 0s }")), false),
    ] {
        let proxy = Proxy::start(&format!("upstream: {}\n{yaml}", backend.url())).await;
        let token = issuer.token("alice");
        for _ in 0..3 {
            assert_eq!(status(&proxy, &backend, &token).await, (200, "alice".into()));
        }
        // Another token of the same user is another token.
        let other = issuer.token_with("alice", json!({"jti": "other"}));
        assert_eq!(status(&proxy, &backend, &other).await, (200, "alice".into()));
        // A request that is refused has the last line.
        assert_eq!(status(&proxy, &backend, "garbage").await.0, 401);
        proxy.logged("the last line", |line| line.contains("\"status\":401")).await;
        let seen = proxy.log().iter().filter(|line| line.contains("token found in cache")).count();
        assert_eq!(seen, if remembered { 2 } else { 0 }, "{yaml}");
    }
}

#[tokio::test]
async fn a_remembered_token_is_worth_nothing_beyond_its_end_its_key_and_the_rules() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let more = "routes: [{ path: /admin, require: { role: admin } }]\n";
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{}]\n{more}", backend.url(), issuer.provider())).await;
    // The clock skew of five seconds lets it live for two more.
    let dying = issuer.token_with("alice", json!({"exp": now() - 3}));
    let token = issuer.token("alice");
    for token in [&dying, &token] {
        for _ in 0..2 {
            assert_eq!(status(&proxy, &backend, token).await, (200, "alice".into()));
        }
    }
    // What a route asks is asked every time.
    let credential = bearer(&token);
    assert_eq!(get(proxy.address, "/admin", &[&credential]).await.code(), "forbidden");
    // Changed by one character it is no token seen before.
    let changed = format!("{}{}", &token[..token.len() - 2], if token.ends_with("AA") { "BB" } else { "AA" });
    assert_eq!(status(&proxy, &backend, &changed).await.0, 401);
    crate::support::within("its end", async {
        while status(&proxy, &backend, &dying).await != (401, "token_expired".into()) {}
    })
    .await;
    // A key that is not known yet makes the set be fetched anew, and the old key is not in it any more.
    let key = Key::ec("new", Algorithm::ES256);
    issuer.set_keys(vec![key.jwk.clone()]);
    assert_eq!(status(&proxy, &backend, &key.sign(&issuer.claims("bob"))).await, (200, "bob".into()));
    assert_eq!(status(&proxy, &backend, &token).await, (401, "invalid_token".into()));
}
