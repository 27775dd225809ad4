//! Tests of admission: an unverified e-mail address identifies no user, a list that a variable left empty admits no
//! user by accident, a secret that others could guess is rejected, and `check` describes who is admitted.

use serde_json::json;

use crate::configuration::check;
use crate::fixture::Fixture;
use crate::support::backend::Backend;
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;

async fn fixture(provider: &str, more: &str) -> Fixture {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let provider = issuer.provider().replace(" }", &format!(", {provider} }}"));
    let proxy = Proxy::start(&format!("upstream: {}\nproviders: [{provider}]\n{more}", backend.url())).await;
    Fixture { issuer, backend, proxy }
}

impl Fixture {
    /// Returns the user id that the backend receives, or the code of the refusal.
    async fn enters(&self, claims: serde_json::Value) -> String {
        self.outcome(&self.issuer.token_with("auth0|7", claims), &[]).await
    }
}

#[tokio::test]
async fn an_email_is_a_user_id_only_when_it_is_verified() {
    for user_id in ["email", "/email"] {
        let fixture = fixture(&format!("user_id: {user_id}, allow: {{ users: [boss@corp.example] }}"), "").await;
        for (claims, expected) in [
            (json!({"email": "boss@corp.example", "email_verified": true}), "boss@corp.example"),
            (json!({"email": "mallory@corp.example", "email_verified": true}), "forbidden"),
            (json!({"email": "boss@corp.example", "email_verified": false}), "invalid_token"),
            (json!({"email": "boss@corp.example", "email_verified": "true"}), "invalid_token"),
            (json!({"email": "boss@corp.example", "email_verified": 1}), "invalid_token"),
            (json!({"email": "boss@corp.example"}), "invalid_token"),
            (json!({"email_verified": true}), "missing_user"),
        ] {
            assert_eq!(fixture.enters(claims.clone()).await, expected, "{user_id} {claims}");
        }
    }
    let trusting = fixture("user_id: email, trust_unverified_email: true", "").await;
    assert_eq!(trusting.enters(json!({"email": "a@b.example"})).await, "a@b.example");
}

#[tokio::test]
async fn an_unverified_email_meets_no_rule_of_provider_route_or_header() {
    let routes = "routes: [{ path: /x, require: { email: boss@corp.example } }]\n";
    let by_provider = fixture("require: { email: boss@corp.example }", "").await;
    let by_route = fixture("user_id: sub", routes).await;
    let by_header = fixture("user_id: sub", "identity: { headers: { X-User-Id: email } }\n").await;
    let boss = |verified: bool| json!({"email": "boss@corp.example", "email_verified": verified});
    assert_eq!(by_provider.enters(boss(false)).await, "invalid_token");
    assert_eq!(by_provider.enters(boss(true)).await, "auth0|7");
    assert_eq!(by_route.enters(boss(false)).await, "forbidden");
    assert_eq!(by_route.enters(boss(true)).await, "auth0|7");
    assert_eq!(by_header.enters(boss(false)).await, "");
    assert_eq!(by_header.enters(boss(true)).await, "boss@corp.example");
}

const PROVIDER: &str = "preset: oidc, issuer: https://i.example.com, audience: api";

fn checked(provider: &str, more: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    check(&format!("upstream: http://a\nproviders: [{{ {provider} }}]\n{more}"), variables)
}

#[test]
fn a_user_id_that_users_write_is_a_warning() {
    for (user_id, expected) in [
        ("/user_metadata/name", "users can write the claim /user_metadata/name themselves"),
        ("\"custom:name\"", "users can write the claim custom:name themselves"),
        (
            "\"https://app.example.com/user_metadata\"",
            "users can write the claim https://app.example.com/user_metadata",
        ),
        ("/unsafe_metadata/id", "users can write the claim /unsafe_metadata/id themselves"),
        ("preferred_username", "preferred_username is neither unique nor fixed"),
        ("/nickname", "/nickname is neither unique nor fixed"),
        (
            "email, trust_unverified_email: true",
            "anyone who enters another user's address at the provider becomes that user",
        ),
    ] {
        let (code, text) = checked(&format!("{PROVIDER}, user_id: {user_id}"), "", &[]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("providers[0].user_id: ") && text.contains(expected), "{user_id}: {text}");
    }
    for user_id in ["sub", "email", "oid", "/app_metadata/id"] {
        let (_, text) = checked(&format!("{PROVIDER}, user_id: {user_id}"), "", &[]);
        assert!(!text.contains("providers[0].user_id: "), "{user_id}: {text}");
    }
}

#[test]
fn a_list_that_a_variable_leaves_empty_is_an_error() {
    for value in ["", " ", ",", " , ", "a,", "a,,b"] {
        for (provider, more, place) in [
            ("allow: { users: \"${U}\" }", "", "providers[0].allow.users"),
            ("allow: { emails: \"${U}\" }", "", "providers[0].allow.emails"),
            ("allow: { email_domains: \"${U}\" }", "", "providers[0].allow.email_domains"),
            ("allow: { users: \"${U:-}\" }", "", "providers[0].allow.users"),
            ("authorized_parties: \"${U}\"", "", "providers[0].authorized_parties"),
            ("accept: \"${U}\"", "", "providers[0].accept"),
            ("clock_skew: 5s", "identity: { strip: \"${U}\" }", "identity.strip"),
            ("clock_skew: 5s", "token_from: { header: \"${U}\" }", "token_from.header"),
            ("clock_skew: 5s", "routes: [{ path: /x, methods: \"${U}\" }]", "routes[0].methods"),
            ("clock_skew: 5s", "websocket: { allowed_origins: \"${U}\" }", "websocket.allowed_origins"),
        ] {
            let (code, text) = checked(&format!("{PROVIDER}, {provider}"), more, &[("U", value)]);
            assert_eq!(code, Some(2), "{provider} {more} {value:?}: {text}");
            assert!(text.contains(place), "{provider} {more} {value:?}: {text}");
            let blank = value.split(',').all(|part| part.trim().is_empty());
            let said = if blank { "is empty; give the variable a value" } else { "holds an empty member" };
            assert!(text.contains(said), "{provider} {more} {value:?}: {text}");
        }
    }
}

#[test]
fn a_member_or_a_claim_s_value_that_a_variable_leaves_empty_is_an_error() {
    for (provider, more, place) in [
        ("allow: { users: [alice, \"${U}\"] }", "", "providers[0].allow.users[1]"),
        ("allow: { users: [\"${U:- }\"] }", "", "providers[0].allow.users[0]"),
        ("require: { role: \"${U}\" }", "", "providers[0].require.role"),
        ("require: { role: [admin, \"${U}\"] }", "", "providers[0].require.role[1]"),
        ("authorized_parties: [\"${U}\"]", "", "providers[0].authorized_parties[0]"),
        ("clock_skew: 5s", "routes: [{ path: /x, require: { role: \"${U}\" } }]", "routes[0].require.role"),
    ] {
        let (code, text) = checked(&format!("{PROVIDER}, {provider}"), more, &[("U", "")]);
        assert_eq!(code, Some(2), "{provider} {more}: {text}");
        assert!(text.contains(place) && text.contains("} is empty; give the variable a value"), "{provider}: {text}");
    }
    // Without a variable the list is empty in the same way.
    for (provider, said) in [
        ("allow: { users: \"\" }", "providers[0].allow.users: is empty; write [] for none"),
        ("allow: { users: [\"\"] }", "providers[0].allow.users[0]: is empty: it lets nobody in"),
        (
            "allow: { emails: [corp.example] }",
            "providers[0].allow.emails[0]: \"corp.example\" is not an e-mail address",
        ),
        ("authorized_parties: [\" \"]", "providers[0].authorized_parties: holds an empty member"),
    ] {
        let (code, text) = checked(&format!("{PROVIDER}, {provider}"), "", &[]);
        assert!(code == Some(2) && text.contains(said), "{provider}: {text}");
    }
    let (code, text) = checked(&format!("{PROVIDER}, allow: {{ users: [] }}"), "", &[]);
    assert_eq!(code, Some(0), "a literal [] is the default: {text}");
    let (code, text) = checked(&format!("{PROVIDER}, allow: {{ users: \"${{U}}\" }}"), "", &[("U", "alice, bob")]);
    assert!(code == Some(0) && text.contains("users alice, bob"), "{text}");
}

#[test]
fn a_secret_with_an_empty_part_is_an_error() {
    let long = "0123456789abcdef0123456789abcdef";
    for yaml in [
        "upstream: { url: http://a, credential: { header: Authorization, value: \"token ${T}\" } }".to_owned(),
        "upstream: { url: http://a, credential: { header: Authorization, value: \"token ${T:-}\" } }".to_owned(),
        format!("upstream: http://a\nbrowser: {{ session: {{ secret: \"{long}${{T}}\" }} }}"),
        format!("upstream: http://a\ncontrol: {{ listen: \"127.0.0.1:9181\", token: \"{long}${{T}}\" }}"),
    ] {
        let yaml = format!("{yaml}\nproviders: [{{ {PROVIDER} }}]\n");
        for value in ["", "  "] {
            let (code, text) = check(&yaml, &[("T", value)]);
            assert!(code == Some(2) && text.contains("} is empty; give the variable a value"), "{yaml}: {text}");
        }
        let (code, text) = check(&yaml, &[("T", "x")]);
        assert_eq!(code, Some(0), "{yaml}: {text}");
    }
    let (code, text) = check(&format!("upstream: \"http://a${{PORT:-}}\"\nproviders: [{{ {PROVIDER} }}]\n"), &[]);
    assert_eq!(code, Some(0), "an empty default is no accident where no secret stands: {text}");
}

#[test]
fn a_secret_that_others_could_guess_is_an_error() {
    for (secret, said) in [
        (" ".repeat(32), "has 0 bytes, and needs at least 32"),
        ("a".repeat(32), "has 1 different characters, and needs at least 8"),
        ("abcdefg".repeat(6), "has 7 different characters, and needs at least 8"),
        (format!("abcdefghijk{}", " ".repeat(40)), "has 11 bytes, and needs at least 32"),
    ] {
        for (yaml, place) in [
            (format!("browser: {{ session: {{ secret: \"{secret}\" }} }}"), "browser.session.secret"),
            (format!("control: {{ listen: \"127.0.0.1:9181\", token: \"{secret}\" }}"), "control.token"),
        ] {
            let (code, text) = checked(PROVIDER, &yaml, &[]);
            assert!(code == Some(2) && text.contains(&format!("{place}: {said}")), "{yaml}: {text}");
        }
        let (code, text) = checked(&format!("preset: shared-secret, audience: any, secret: \"{secret}\""), "", &[]);
        assert!(code == Some(2) && text.contains(said), "{secret:?}: {text}");
    }
}

#[test]
fn check_prints_who_may_enter() {
    for (provider, said) in [
        ("clock_skew: 5s", "who may enter: everyone this issuer signs in\n"),
        ("allow: { users: [alice] }", "who may enter: user alice\n"),
        (
            "allow: { users: [alice, bob], email_domains: [corp.example] }, require: { plan: [paid, trial] }",
            "who may enter: users alice, bob; or e-mail addresses at corp.example (verified ones only), if plan is paid or trial\n",
        ),
        (
            "user_id: email, trust_unverified_email: true",
            "who may enter: everyone this issuer signs in (verified or not)\n",
        ),
    ] {
        let (code, text) = checked(&format!("{PROVIDER}, {provider}"), "", &[]);
        assert!(code == Some(0) && text.contains(said), "{provider}: {text}");
    }
}
