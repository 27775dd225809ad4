//! Tests of the tokens that each provider issues, with its preset (docs/contract.md section 5). The tokens are made
//! here with a key of the test; their claims are those of the provider's documentation and libraries.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::answerer::Answerer;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get, get_served};
use crate::support::issuer::{Issuer, RSA};
use crate::support::now;
use crate::support::proxy::{Proxy, TempFile, TempFolder};

struct Provider {
    backend: Backend,
    proxy: Proxy,
    claims: Value,
}

impl Provider {
    /// Starts a proxy. `provider` is the rest of its line; `claims` are those of a valid token beside `iss` and `exp`.
    async fn start(issuer: &str, provider: &str, more: &str, claims: Value) -> Self {
        let backend = Backend::start().await;
        let yaml = format!("upstream: {}\nproviders: [{{ issuer: \"{issuer}\", {provider} }}]\n{more}", backend.url());
        let proxy = Proxy::start(&yaml).await;
        let mut all = json!({"iss": issuer, "iat": now(), "exp": now() + 60});
        for (name, value) in claims.as_object().expect("object") {
            all[name] = value.clone();
        }
        Self { backend, proxy, claims: all }
    }

    /// Sends a request with a token whose claims differ like this; `null` removes one.
    async fn asks(&self, header: &Value, differ: &Value, target: &str) -> String {
        let mut claims = self.claims.clone();
        for (name, value) in differ.as_object().expect("object") {
            if value.is_null() {
                claims.as_object_mut().expect("object").remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        self.outcome(&RSA.sign_with(header, &claims), target).await
    }

    async fn outcome(&self, token: &str, target: &str) -> String {
        let credential = bearer(token);
        let fields = [credential.as_str()];
        let (answer, heard) = get_served(self.proxy.address, &self.backend, target, &fields).await;
        let seen = heard.map(|heard| [heard.all("x-user-id"), heard.all("x-org")].concat().join(" "));
        seen.unwrap_or_else(|| answer.code())
    }

    async fn table(&self, rows: &[(&str, Value, Value, &str)]) {
        for (row, header, differ, expected) in rows {
            assert_eq!(self.asks(header, differ, "/x").await, *expected, "{row}");
        }
    }
}

async fn issuer() -> Issuer {
    Issuer::with(RSA.clone()).await
}

#[tokio::test]
async fn clerk() {
    const SESSION: &str = "cl_B7d4PD111AAA";
    let issuer = issuer().await;
    let more = "origins: [https://app.example.com, \"https://*.preview.example.com\"]\nidentity: { headers: { X-User-Id: sub, X-Org: org_id } }\nroutes: [{ path: /admin, require: { org_role: \"org:admin\" } }, { path: /billing, require: { org_permissions: \"org:billing:manage\" } }]\n";
    let good = json!({"sub": "user_2abc", "sid": "sess_2abc", "azp": "https://app.example.com", "sts": "active", "nbf": now() - 10, "fva": [1, -1]});
    let clerk = Provider::start(&issuer.url, "preset: clerk", more, good).await;
    let session = json!({ "cat": SESSION });
    let slash = format!("{}/", issuer.url);
    clerk
        .table(&[
            ("session token", session.clone(), json!({}), "user_2abc"),
            ("from before cat", json!({}), json!({"sts": null}), "user_2abc"),
            ("cat that says nothing", json!({"cat": "cl_I7d4PD111III"}), json!({}), "user_2abc"),
            ("a native app has no azp", session.clone(), json!({"azp": null}), "user_2abc"),
            ("a preview page", session.clone(), json!({"azp": "https://a.preview.example.com"}), "user_2abc"),
            ("another page", session.clone(), json!({"azp": "https://evil.example"}), "invalid_token"),
            ("azp of another type", session.clone(), json!({"azp": ["https://app.example.com"]}), "invalid_token"),
            ("pending session", session.clone(), json!({"sts": "pending"}), "invalid_token"),
            ("sts of another type", session.clone(), json!({"sts": true}), "invalid_token"),
            ("template token", json!({"cat": "cl_B7d4PD222AAA"}), json!({}), "invalid_token"),
            ("without a session", session.clone(), json!({"sid": null}), "invalid_token"),
            ("machine token by cat", json!({"cat": "cl_B7d4PD333AAA"}), json!({}), "invalid_token"),
            ("cat of another type", json!({"cat": 7}), json!({}), "invalid_token"),
            ("machine token by sub", session.clone(), json!({"sub": "mch_2abc"}), "invalid_token"),
            ("OAuth token", json!({"typ": "at+jwt"}), json!({}), "invalid_token"),
            ("expired", session.clone(), json!({"exp": now() - 6}), "token_expired"),
            ("empty sub", session.clone(), json!({"sub": ""}), "missing_user"),
            ("an issuer that differs by a slash", session.clone(), json!({"iss": slash}), "invalid_token"),
            (
                "organisation, first version",
                session.clone(),
                json!({"org_id": "org_1", "org_role": "org:admin"}),
                "user_2abc org_1",
            ),
            (
                "organisation, second version",
                session.clone(),
                json!({"v": 2, "o": {"id": "org_2", "rol": "admin", "slg": "x"}}),
                "user_2abc org_2",
            ),
        ])
        .await;
    for (row, differ, target, expected) in [
        ("admin, first version", json!({"org_role": "org:admin"}), "/admin", "user_2abc"),
        ("admin, second version", json!({"v": 2, "o": {"rol": "admin"}}), "/admin", "user_2abc"),
        ("member, second version", json!({"v": 2, "o": {"rol": "member"}}), "/admin", "forbidden"),
        ("no organisation", json!({}), "/admin", "forbidden"),
        ("`o` alone decides", json!({"v": 2, "o": {}, "org_role": "org:admin"}), "/admin", "forbidden"),
        (
            "permission by its bit",
            json!({"v": 2, "fea": "o:dashboard,u:profile,o:billing", "o": {"per": "read,manage", "fpm": "1,3"}}),
            "/billing",
            "user_2abc",
        ),
        (
            "permission without its bit",
            json!({"v": 2, "fea": "o:billing,o:dashboard", "o": {"per": "read,manage", "fpm": "1,3"}}),
            "/billing",
            "forbidden",
        ),
    ] {
        assert_eq!(clerk.asks(&session, &differ, target).await, expected, "{row}");
    }
    let provider = "preset: clerk, accept: [access_token, template]";
    let lenient = Provider::start(&issuer.url, provider, "", json!({"sub": "user_2abc"})).await;
    assert_eq!(lenient.asks(&json!({"cat": "cl_B7d4PD222AAA"}), &json!({}), "/x").await, "user_2abc");
    lenient.proxy.logged("the warning", |line| line.contains("no origins, so tokens made for any page")).await;
}

#[tokio::test]
async fn supabase() {
    let issuer = issuer().await;
    let url = format!("{}/auth/v1", issuer.url);
    let good = json!({"sub": "d0f1-uuid", "aud": "authenticated", "role": "authenticated", "session_id": "s", "is_anonymous": false});
    let supabase = Provider::start(&url, "preset: supabase", "", good).await;
    supabase
        .table(&[
            ("access token", json!({}), json!({}), "d0f1-uuid"),
            ("the anon key", json!({}), json!({"role": "anon"}), "invalid_token"),
            ("the service key", json!({}), json!({"role": "service_role"}), "invalid_token"),
            ("no role", json!({}), json!({"role": null}), "invalid_token"),
            ("role in a list", json!({}), json!({"role": ["service_role", "authenticated"]}), "d0f1-uuid"),
            ("another audience", json!({}), json!({"aud": "other"}), "invalid_token"),
            ("no audience", json!({}), json!({"aud": null}), "invalid_token"),
        ])
        .await;
    // Its libraries for servers keep the session in a cookie, here in two parts.
    let token = RSA.sign(&supabase.claims);
    let session = json!({
        "access_token": token, "token_type": "bearer", "expires_in": 3600, "expires_at": now() + 3600,
        "refresh_token": "v1.refresh", "user": {"id": "d0f1-uuid", "user_metadata": {"name": "José"}},
    });
    let value = format!("base64-{}", URL_SAFE_NO_PAD.encode(session.to_string()));
    let (first, second) = value.split_at(500);
    let name = "sb-abcdefgh-auth-token";
    let cookie = format!("Cookie: theme=dark; {name}.0={first}; {name}.1={second}");
    for (encoding, expected) in [("supabase", "d0f1-uuid"), ("plain", "missing_token")] {
        let more = format!("token_from: {{ cookie: {{ name: {name}, encoding: {encoding} }} }}\n");
        let pages = Provider::start(&url, "preset: supabase", &more, supabase.claims.clone()).await;
        let fields = [cookie.as_str(), "Sec-Fetch-Site: same-origin"];
        let (answer, heard) = get_served(pages.proxy.address, &pages.backend, "/x", &fields).await;
        let seen = heard.map(|heard| {
            assert_eq!(heard.all("cookie"), ["theme=dark"], "the session holds the refresh token");
            heard.all("x-user-id").join(" ")
        });
        assert_eq!(seen.unwrap_or_else(|| answer.code()), expected);
        let is_warned =
            pages.proxy.log().iter().any(|line| line.contains("write cookie: { name: sb-abcdefgh-auth-token"));
        assert_eq!(is_warned, encoding == "plain");
        let foreign = [cookie.as_str(), "Origin: https://evil.example"];
        let answer = get(pages.proxy.address, "/x", &foreign).await;
        assert_eq!(answer.status, if encoding == "plain" { 401 } else { 403 });
    }
    // An old project signs with its secret.
    let secret = "the-legacy-secret-of-a-project-0123456789";
    let provider = format!("preset: supabase, secret: {secret}");
    let legacy = Provider::start(&url, &provider, "", supabase.claims.clone()).await;
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let signed = |claims: &Value| jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).expect("signs");
    assert_eq!(legacy.outcome(&signed(&legacy.claims), "/x").await, "d0f1-uuid");
    let mut anon = legacy.claims.clone();
    anon["role"] = json!("anon");
    assert_eq!(legacy.outcome(&signed(&anon), "/x").await, "invalid_token");
    assert_eq!(legacy.outcome(&RSA.sign(&legacy.claims), "/x").await, "invalid_token");
}

#[tokio::test]
async fn auth0() {
    let issuer = issuer().await;
    let url = format!("{}/", issuer.url);
    let both = json!(["https://api.example.com", format!("{url}userinfo")]);
    let good = json!({"sub": "auth0|5f7c", "aud": both, "azp": "spa", "scope": "openid read:all"});
    let provider = "preset: auth0, audience: \"https://api.example.com\"";
    let more =
        "routes: [{ path: /all, require: { scope: \"read:all\" } }, { path: /some, require: { scope: read } }]\n";
    let auth0 = Provider::start(&url, provider, more, good).await;
    auth0
        .table(&[
            ("access token", json!({}), json!({}), "auth0|5f7c"),
            ("for userinfo alone", json!({}), json!({"aud": [format!("{url}userinfo")]}), "invalid_token"),
            ("an ID token", json!({}), json!({"aud": "https://api.example.com", "at_hash": "x"}), "invalid_token"),
            ("an issuer without its slash", json!({}), json!({"iss": issuer.url}), "invalid_token"),
        ])
        .await;
    assert_eq!(auth0.asks(&json!({}), &json!({}), "/all").await, "auth0|5f7c", "scope matches by word");
    assert_eq!(auth0.asks(&json!({}), &json!({}), "/some").await, "forbidden", "and never by a part of one");
    // Auth0 issues such a token when no audience was requested.
    assert_eq!(auth0.outcome("eyJhbGciOiJkaXIi.x.iv.text.tag", "/x").await, "invalid_token");
    assert_eq!(auth0.outcome("opaque-token-of-32-characters-or-so", "/x").await, "invalid_token");
}

#[tokio::test]
async fn cognito() {
    let issuer = issuer().await;
    let good =
        json!({"sub": "uuid-1", "token_use": "access", "client_id": "app-1", "username": "alice", "scope": "a b"});
    let cognito = Provider::start(&issuer.url, "preset: cognito, audience: app-1", "", good).await;
    cognito
        .table(&[
            ("access token", json!({}), json!({}), "uuid-1"),
            ("of another application", json!({}), json!({"client_id": "app-2"}), "invalid_token"),
            ("without client_id", json!({}), json!({"client_id": null}), "invalid_token"),
            ("client_id of another type", json!({}), json!({"client_id": ["app-1"]}), "invalid_token"),
            ("bound to a resource", json!({}), json!({"aud": "api-2"}), "uuid-1"),
            ("of another, bound to us", json!({}), json!({"client_id": "app-2", "aud": "app-1"}), "invalid_token"),
            ("of another, bound to both", json!({}), json!({"client_id": "app-2", "aud": ["app-1"]}), "invalid_token"),
            (
                "of another, spelled otherwise",
                json!({}),
                json!({"token_use": "Access", "client_id": "app-2", "aud": "app-1"}),
                "invalid_token",
            ),
            ("an ID token", json!({}), json!({"token_use": "id", "aud": "app-1"}), "invalid_token"),
            ("without token_use", json!({}), json!({"token_use": null, "aud": "app-1"}), "invalid_token"),
        ])
        .await;
    let provider = "preset: cognito, audience: app-1, authorized_parties: [app-1]";
    let parties = Provider::start(&issuer.url, provider, "", cognito.claims.clone()).await;
    parties.table(&[("no token of Cognito has azp", json!({}), json!({}), "invalid_token")]).await;
    parties.proxy.logged("the warning", |line| line.contains("write the app client's id as audience")).await;
    let claims = json!({"sub": "uuid-1", "token_use": "id", "aud": "app-1", "cognito:username": "alice"});
    let ids = Provider::start(&issuer.url, "preset: cognito, audience: app-1, accept: [id_token]", "", claims).await;
    ids.table(&[
        ("ID token", json!({}), json!({}), "uuid-1"),
        ("of another application", json!({}), json!({"aud": "app-2"}), "invalid_token"),
        ("an access token", json!({}), json!({"token_use": "access", "client_id": "app-1"}), "invalid_token"),
    ])
    .await;
}

#[tokio::test]
async fn keycloak() {
    let issuer = issuer().await;
    let good = json!({"sub": "uuid-1", "typ": "Bearer", "azp": "spa", "aud": "account", "realm_access": {"roles": ["user", "admin"]}, "resource_access": {"spa": {"roles": ["editor"]}}});
    let more = "routes: [{ path: /realm, require: { /realm_access/roles: admin } }, { path: /client, require: { /resource_access/spa/roles: [owner, editor] } }, { path: /none, require: { /realm_access/roles: root } }]\n";
    let keycloak = Provider::start(&issuer.url, "preset: keycloak, authorized_parties: [spa]", more, good).await;
    keycloak
        .table(&[
            ("access token", json!({}), json!({}), "uuid-1"),
            ("without aud, as light-weight tokens are", json!({}), json!({"aud": null}), "uuid-1"),
            ("of another client", json!({}), json!({"azp": "other"}), "invalid_token"),
            ("without azp", json!({}), json!({"azp": null}), "invalid_token"),
            ("an ID token", json!({}), json!({"typ": "ID"}), "invalid_token"),
            ("a refresh token", json!({}), json!({"typ": "Refresh"}), "invalid_token"),
            ("an offline token", json!({}), json!({"typ": "Offline"}), "invalid_token"),
            ("a logout token", json!({}), json!({"events": {}}), "invalid_token"),
        ])
        .await;
    for (target, expected) in [("/realm", "uuid-1"), ("/client", "uuid-1"), ("/none", "forbidden")] {
        assert_eq!(keycloak.asks(&json!({}), &json!({}), target).await, expected, "{target}");
    }
}

/// Microsoft Entra ID, tokens of version 2.0.
#[tokio::test]
async fn entra() {
    const TENANT: &str = "8eaef023-2b34-4da1-9baa-8bc8c9d6a490";
    let issuer = issuer().await;
    let good = json!({
        "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3", "azp": "0f3a1b2c-0000-4000-8000-000000000001", "azpacr": "0",
        "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474", "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
        "preferred_username": "abe@example.com", "rh": "I", "scp": "notebook.read notebook.write", "tid": TENANT,
        "uti": "fqiBqXLPj0eQa82S", "ver": "2.0", "nbf": now(),
    });
    let provider = "preset: entra, audience: 6e74172b-be56-4843-9ff4-e66a39bb12e3, user_id: oid";
    let more = "routes: [{ path: /write, require: { scp: notebook.write } }, { path: /part, require: { scp: notebook } }, { path: /admin, require: { roles: admin } }, { path: /group, require: { groups: \"7a1c\" } }]\n";
    let entra = Provider::start(&issuer.url, provider, more, good).await;
    let user = "690222be-ff1a-4d56-abd1-7e4f7d38e474";
    entra
        .table(&[
            ("access token", json!({}), json!({}), user),
            ("of an application itself", json!({}), json!({"scp": null, "roles": ["admin"], "idtyp": "app"}), user),
            ("for Microsoft Graph", json!({}), json!({"aud": "00000003-0000-0000-c000-000000000000"}), "invalid_token"),
            (
                "an ID token",
                json!({}),
                json!({"azp": null, "azpacr": null, "scp": null, "nonce": "n"}),
                "invalid_token",
            ),
            ("an ID token with a hash", json!({}), json!({"at_hash": "x"}), "invalid_token"),
            (
                "of version 1.0",
                json!({}),
                json!({"iss": format!("https://sts.windows.net/{TENANT}/"), "azp": null, "appid": "spa", "ver": "1.0"}),
                "invalid_token",
            ),
            (
                "of another tenant",
                json!({}),
                json!({"iss": "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0"}),
                "invalid_token",
            ),
            ("without oid", json!({}), json!({"oid": null}), "missing_user"),
        ])
        .await;
    assert_eq!(entra.asks(&json!({}), &json!({}), "/write").await, user, "scp matches by word");
    assert_eq!(entra.asks(&json!({}), &json!({}), "/part").await, "forbidden", "and never by a part of one");
    assert_eq!(entra.asks(&json!({}), &json!({"roles": ["reader", "admin"]}), "/admin").await, user);
    // There are more groups than fit into the token, so a rule about them admits no user.
    let overage = json!({"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://graph.microsoft.com/"}}});
    assert_eq!(entra.asks(&json!({}), &overage, "/admin").await, "forbidden");
    assert!(!entra.proxy.log().join("\n").contains("group overage"), "the rule is about roles");
    assert_eq!(entra.asks(&json!({}), &overage, "/group").await, "forbidden");
    entra
        .proxy
        .logged("the cause", |line| line.contains("claim groups is not what") && line.contains("group overage"))
        .await;
    let ids = json!({"aud": "spa", "sub": "s", "nonce": "n", "tid": TENANT, "ver": "2.0"});
    let ids = Provider::start(&issuer.url, "preset: entra, audience: spa, accept: [id_token]", "", ids).await;
    ids.table(&[
        ("ID token", json!({}), json!({}), "s"),
        ("an access token", json!({}), json!({"azp": "spa", "scp": "a"}), "invalid_token"),
    ])
    .await;
}

/// Two tenants of Entra: a provider each, so that a token is of the tenant whose keys and issuer it has.
#[tokio::test]
async fn entra_with_two_tenants() {
    let (one, other) = (issuer().await, issuer().await);
    let backend = Backend::start().await;
    let provider = |name: &str, issuer: &str| {
        format!("{{ preset: entra, name: {name}, issuer: \"{issuer}\", audience: api, require: {{ tid: {name} }} }}")
    };
    let yaml = format!(
        "upstream: {}\nshared_user_ids: true\nproviders: [{}, {}]\n",
        backend.url(),
        provider("one", &one.url),
        provider("other", &other.url)
    );
    let proxy = Proxy::start(&yaml).await;
    let claims = |issuer: &str, tid: &str| json!({"iss": issuer, "aud": "api", "azp": "spa", "sub": tid, "tid": tid, "iat": now(), "exp": now() + 60});
    let entra = Provider { backend, proxy, claims: json!({}) };
    for (issuer, tid, expected) in [
        (&one.url, "one", "one"),
        (&other.url, "other", "other"),
        (&one.url, "other", "invalid_token"),
        (&"https://login.microsoftonline.com/third/v2.0".to_owned(), "one", "invalid_token"),
    ] {
        assert_eq!(entra.outcome(&RSA.sign(&claims(issuer, tid)), "/x").await, expected, "{issuer} {tid}");
    }
}

#[tokio::test]
async fn google() {
    let issuer = issuer().await;
    let good = json!({"sub": "1098", "aud": "client.apps.googleusercontent.com", "azp": "client.apps.googleusercontent.com", "email": "a@example.com", "email_verified": true, "hd": "example.com"});
    let provider =
        "preset: google, audience: client.apps.googleusercontent.com, allow: { email_domains: [example.com] }";
    let google = Provider::start(&issuer.url, provider, "", good).await;
    google
        .table(&[
            ("ID token", json!({}), json!({}), "1098"),
            ("with a hash", json!({}), json!({"at_hash": "x"}), "1098"),
            ("of another client", json!({}), json!({"aud": "other.apps.googleusercontent.com"}), "invalid_token"),
            ("unverified address", json!({}), json!({"email_verified": false}), "forbidden"),
            ("verified in another type", json!({}), json!({"email_verified": "true"}), "forbidden"),
            ("another domain", json!({}), json!({"email": "a@example.com.evil.example"}), "forbidden"),
        ])
        .await;
}

const SIGNER: &str = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/front/50dc6c495c0c9188";
const KID: &str = "5f2c1b0e-8d7a-4b6e-9c3f-1a2b3c4d5e6f";

/// A balancer's requests to us: its token in a header of its own, here from a page of our own.
struct Balancer {
    key: crate::support::issuer::Key,
    header: Value,
    claims: Value,
    backend: Backend,
    proxy: Proxy,
}

impl Balancer {
    fn token(&self, header: &Value, claims: &Value) -> String {
        let with = |base: &Value, more: &Value| {
            let mut all = base.clone();
            for (name, value) in more.as_object().expect("object") {
                if value.is_null() {
                    all.as_object_mut().expect("object").remove(name);
                } else {
                    all[name] = value.clone();
                }
            }
            all
        };
        self.key.sign_padded(&with(&self.header, header), &with(&self.claims, claims))
    }

    async fn sends(&self, token: &str, more: &[&str]) -> String {
        let field = format!("X-Amzn-Oidc-Data: {token}");
        let fields = [&[field.as_str(), "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https"], more].concat();
        let (answer, heard) = get_served(self.proxy.address, &self.backend, "/x", &fields).await;
        heard.map_or_else(
            || answer.code(),
            |heard| {
                assert!(!heard.has("x-amzn-oidc-data") && !heard.has("x-amzn-oidc-identity"));
                heard.all("x-user-id").join(" ")
            },
        )
    }
}

/// Application Load Balancers of AWS, with the claims of Cognito's user info behind them.
#[tokio::test]
async fn aws_alb() {
    use crate::support::issuer::Key;
    use jsonwebtoken::Algorithm;
    const ISSUER: &str = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC";
    let key = Key::ec(KID, Algorithm::ES256);
    let pem = key.pem.clone();
    let keys = Answerer::start(move |asked| match asked.line() {
        line if line == format!("GET /{KID}") => (200, String::new(), pem.clone()),
        _ => (403, String::new(), "<Error><Code>AccessDenied</Code></Error>".to_owned()),
    })
    .await;
    let backend = Backend::start().await;
    let upstream = backend.url();
    let yaml = |trusted: &str| {
        format!(
            "upstream: {}\ntrusted_proxies: [{trusted}]\nproviders:\n  - preset: aws-alb\n    issuer: {ISSUER}\n    region: eu-central-1\n    signer: {SIGNER}\n    audience: client-1\n    jwks: {{ url: \"{}\" }}\n    user_prefix: \"b:\"\n  - preset: cognito\n    issuer: {ISSUER}\n    jwks: {{ url: \"{}/jwks\" }}\n    audience: app-1\n    user_prefix: \"c:\"\nbrowser: {{ session: {{}} }}\n",
            upstream, keys.url, keys.url
        )
    };
    let header = json!({
        "typ": "JWT", "kid": KID, "alg": "ES256", "iss": ISSUER, "client": "client-1", "signer": SIGNER, "exp": now() + 120,
    });
    let claims = json!({
        "sub": "90f2", "email_verified": "true", "email": "alice@example.com", "username": "alice", "exp": now() + 120, "iss": ISSUER,
    });
    let proxy = Proxy::start(&yaml("127.0.0.1")).await;
    let mut alb = Balancer { key, header, claims, backend, proxy };
    let good = alb.token(&json!({}), &json!({}));
    assert!(good.contains("=."), "parts with padding: {good}");
    let other = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/other/60dc6c495c0c9188";
    for (row, header, claims, expected) in [
        ("its token", json!({}), json!({}), "b:90f2"),
        ("without claims that repeat the header", json!({}), json!({"exp": null, "iss": null}), "b:90f2"),
        ("another balancer's", json!({"signer": other}), json!({}), "invalid_token"),
        ("a signer among the user's claims", json!({"signer": other}), json!({"signer": SIGNER}), "invalid_token"),
        ("of another client", json!({"client": "client-2"}), json!({"aud": "client-1"}), "invalid_token"),
        ("of another provider", json!({"iss": "https://other.example"}), json!({"iss": null}), "invalid_token"),
        ("of another provider in the header", json!({"iss": "https://other.example"}), json!({}), "invalid_token"),
        ("of another provider in the payload", json!({}), json!({"iss": "https://other.example"}), "invalid_token"),
        ("expired", json!({"exp": now() - 10}), json!({}), "token_expired"),
        ("expired in the payload", json!({}), json!({"exp": now() - 10}), "token_expired"),
        ("without an end in its header", json!({"exp": null}), json!({}), "invalid_token"),
        ("without a client", json!({"client": null}), json!({}), "invalid_token"),
        ("without a signer it is nobody's", json!({"signer": null}), json!({}), "invalid_token"),
        ("signers in a list", json!({"signer": [SIGNER]}), json!({}), "invalid_token"),
        ("a path for a key", json!({"kid": "../../other/key"}), json!({}), "invalid_token"),
        ("an unknown key", json!({"kid": "00000000-8d7a-4b6e-9c3f-1a2b3c4d5e6f"}), json!({}), "invalid_token"),
        ("critical extensions", json!({"crit": ["exp"]}), json!({}), "invalid_token"),
        ("no user", json!({}), json!({"sub": null}), "missing_user"),
    ] {
        assert_eq!(alb.sends(&alb.token(&header, &claims), &[]).await, expected, "{row}");
    }
    let forged = Key::ec(KID, Algorithm::ES256).sign_padded(&alb.header, &alb.claims);
    assert_eq!(alb.sends(&forged, &[]).await, "invalid_token");
    assert_eq!(alb.sends(&format!("{good}="), &[]).await, "invalid_token");
    // What its header carried before on the connection is no Bearer token either.
    let mut client = Client::connect(alb.proxy.address).await;
    for (field, status) in [("X-Amzn-Oidc-Data:", 200), ("Authorization: Bearer", 401), ("X-Amzn-Oidc-Data:", 200)] {
        let request =
            format!("GET /x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Proto: https\r\n{field} {good}\r\n\r\n");
        client.send(request).await;
        let answer = client.answer();
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            _ = alb.backend.answer("ok") => answer.await,
        };
        assert_eq!(answer.status, status, "{field}");
    }
    // One that needs no padding before its signature looks like a Bearer token, and counts in its own header alone.
    let plain =
        (0..9).map(|length| alb.token(&json!({"x": "x".repeat(length / 3)}), &json!({"x": "x".repeat(length % 3)})));
    let plain = plain.into_iter().find(|token| !token.contains("=.")).expect("one of nine");
    assert_eq!(alb.sends(&plain, &[]).await, "b:90f2");
    let field = format!("Authorization: Bearer {plain}");
    for (method, target) in [("GET", "/x"), ("POST", "/.vestibule/session")] {
        let answer = crate::support::client::request(alb.proxy.address, method, target, &[&field], "").await;
        assert_eq!(answer.status, 401, "{method} {target}");
    }
    let in_query = crate::support::socket::Socket::open(alb.proxy.address, &format!("/ws?token={plain}"), &[]).await;
    let mut in_message = crate::support::socket::Socket::open(alb.proxy.address, "/ws", &[]).await;
    in_message.say(&json!({"type": "authenticate", "token": plain}).to_string()).await;
    for mut socket in [in_query, in_message] {
        assert_eq!(socket.next_text().await, r#"{"type":"error","message":"Invalid authentication token"}"#);
    }
    // Unsigned fields of the balancer are believed from nobody.
    assert_eq!(alb.sends(&good, &["X-Amzn-Oidc-Identity: mallory"]).await, "b:90f2");
    // The balancer adds its token to requests of every page, so the page must be ours.
    for (fields, expected) in [
        (vec!["Origin: https://localhost"], "b:90f2"),
        (vec!["Origin: https://evil.example"], "foreign_origin"),
        (vec!["Origin: null"], "foreign_origin"),
        (vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], "foreign_origin"),
        (vec!["Sec-Fetch-Site: same-origin"], "b:90f2"),
    ] {
        assert_eq!(alb.sends(&good, &fields).await, expected, "{fields:?}");
    }
    for (origin, expected) in [("https://localhost", 101), ("https://evil.example", 403)] {
        let fields =
            [format!("X-Amzn-Oidc-Data: {good}"), format!("Origin: {origin}"), "X-Forwarded-Proto: https".into()];
        let fields = fields.each_ref().map(String::as_str);
        let opening = crate::support::socket::Socket::try_open(alb.proxy.address, "/ws", &fields);
        let status = tokio::select! {
            (answer, _) = opening => answer.status,
            _ = alb.backend.websocket(), if expected == 101 => 101,
        };
        assert_eq!(status, expected, "{origin}");
    }
    let asked: Vec<_> =
        keys.asked().iter().map(|asked| asked.line().to_owned()).filter(|line| !line.contains("jwks")).collect();
    assert_eq!(asked, [format!("GET /{KID}"), "GET /00000000-8d7a-4b6e-9c3f-1a2b3c4d5e6f".to_owned()]);
    // Random keys cause few requests, and the known one still verifies.
    for number in 1..=30 {
        let token = alb.token(&json!({"kid": format!("{number:08}-8d7a-4b6e-9c3f-1a2b3c4d5e6f")}), &json!({}));
        let outcome = alb.sends(&token, &[]).await;
        assert!(["invalid_token", "auth_unavailable"].contains(&&*outcome), "{outcome}");
    }
    let count = keys.asked().iter().filter(|asked| !asked.line().contains("jwks")).count();
    assert!(count <= 10, "{count} requests");
    assert_eq!(alb.sends(&alb.token(&json!({}), &json!({"jti": "2"})), &[]).await, "b:90f2");
    // From a peer that is not the balancer it counts nowhere, whatever carries it.
    alb.proxy = Proxy::start(&yaml("192.0.2.1")).await;
    assert_eq!(alb.sends(&good, &[]).await, "invalid_token");
    let field = format!("X-Amzn-Oidc-Data: {good}");
    let session =
        crate::support::client::request(alb.proxy.address, "POST", "/.vestibule/session", &[&field], "").await;
    assert_eq!((session.status, session.field("set-cookie")), (401, None));
}

/// Service-account tokens of Kubernetes. The API server gives its keys only to a caller with a token of its own, which is
/// renewed on disk, and only to a caller that accepts its media type.
#[tokio::test]
async fn kubernetes() {
    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
    let file = TempFile::new("eyJ.first.token\n");
    let keys = json!({"keys": [{
        "use": "sig", "kty": "RSA", "kid": "rsa-1", "alg": "RS256", "n": RSA.jwk["n"], "e": RSA.jwk["e"],
    }]})
    .to_string();
    let api = Answerer::start(move |asked| {
        let accepts = asked.field("accept").is_some_and(|accept| accept.contains("application/jwk-set+json"));
        match (asked.line(), asked.field("authorization"), accepts) {
            ("GET /openid/v1/jwks", Some("Bearer eyJ.first.token" | "Bearer eyJ.second.token"), true) => {
                (200, String::new(), keys.clone())
            }
            ("GET /openid/v1/jwks", Some(_), true) => (401, String::new(), "{}".to_owned()),
            _ => (406, String::new(), "406: Not Acceptable".to_owned()),
        }
    })
    .await;
    let backend = Backend::start().await;
    let yaml = format!(
        "upstream: {}\nproviders: [{{ preset: jwt, name: kubernetes, issuer: \"{ISSUER}\", audience: notebook, jwks: {{ url: \"{}/openid/v1/jwks\", token_file: \"{}\" }}, allow: {{ users: [\"system:serviceaccount:team:runner\"] }} }}]\n",
        backend.url(),
        api.url,
        file.path()
    );
    let account = json!({
        "iss": ISSUER, "aud": ["notebook"], "exp": now() + 3607, "iat": now(), "nbf": now(), "jti": "5c3a",
        "kubernetes.io": {"namespace": "team", "pod": {"name": "runner-0", "uid": "1"}, "serviceaccount": {"name": "runner", "uid": "2"}},
        "sub": "system:serviceaccount:team:runner",
    });
    let mut cluster = Provider { proxy: Proxy::start(&yaml).await, backend, claims: account };
    cluster
        .table(&[
            ("a projected token", json!({}), json!({}), "system:serviceaccount:team:runner"),
            ("for the API server", json!({}), json!({"aud": [ISSUER]}), "invalid_token"),
            ("of another account", json!({}), json!({"sub": "system:serviceaccount:team:other"}), "forbidden"),
        ])
        .await;
    assert_eq!(api.count(), 1);
    // The token is read at each fetch, which here an unknown key causes.
    std::fs::write(file.path(), "eyJ.second.token").expect("written");
    assert_eq!(cluster.asks(&json!({"kid": "new"}), &json!({}), "/x").await, "invalid_token");
    let sent: Vec<_> = api.asked().iter().filter_map(|asked| asked.field("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, ["Bearer eyJ.first.token", "Bearer eyJ.second.token"]);
    // No token is in the log, and what is wrong with the file is.
    assert!(!cluster.proxy.log().iter().any(|line| line.contains("eyJ.")));
    for (content, expected) in [("two words", "holds no token"), ("", "holds no token")] {
        std::fs::write(file.path(), content).expect("written");
        cluster.proxy = Proxy::start(&yaml).await;
        let line = cluster.proxy.logged("the reason", |line| line.contains("JWKS fetch failed")).await;
        assert!(line.contains("jwks.token_file") && line.contains(expected), "{line}");
    }
    assert_eq!(api.count(), 2);
}

/// A pipe that nobody writes cannot be read, nor can a file on a mount that does not answer.
#[tokio::test]
async fn a_token_file_that_is_not_read_in_time_is_503() {
    let issuer = "https://kubernetes.example";
    let (api, backend) = (Answerer::start(|_| (200, String::new(), "{}".to_owned())).await, Backend::start().await);
    let folder = TempFolder::new();
    let file = folder.0.join("token");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo").success());
    let proxy = Proxy::start(&format!(
        "upstream: {}\nproviders: [{{ preset: jwt, name: kubernetes, issuer: \"{issuer}\", audience: notebook, jwks: {{ url: \"{}/openid/v1/jwks\", token_file: \"{}\" }} }}]\n",
        backend.url(),
        api.url,
        file.display()
    ))
    .await;
    let token = bearer(&RSA.sign(&json!({"iss": issuer, "aud": "notebook", "exp": now() + 60, "sub": "alice"})));
    let answer = get(proxy.address, "/x", &[&token]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    let line = proxy.logged("the reason", |line| line.contains("JWKS fetch failed")).await;
    assert!(line.contains("jwks.token_file") && line.contains("it has not been read after 5 s"), "{line}");
    assert_eq!(api.count(), 0);
}

#[tokio::test]
async fn a_session_service_with_a_secret_of_its_own() {
    let backend = Backend::start().await;
    let secret = "a-session-secret-of-enough-length-0123456789";
    let yaml = format!(
        "upstream: {}\nproviders: [{{ preset: shared-secret, secret: {secret}, issuer: sessions, user_id: user_id, require: {{ token_type: session }} }}]\n",
        backend.url()
    );
    let service = Provider { proxy: Proxy::start(&yaml).await, backend, claims: json!({}) };
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    for (row, differ, expected) in [
        ("session token", json!({}), "u1"),
        ("refresh token", json!({"token_type": "refresh"}), "invalid_token"),
        ("without a kind", json!({"token_type": null}), "invalid_token"),
        ("sub does not stand in", json!({"user_id": null}), "missing_user"),
    ] {
        let mut claims =
            json!({"iss": "sessions", "sub": "u2", "user_id": "u1", "token_type": "session", "exp": now() + 60});
        for (name, value) in differ.as_object().expect("object") {
            claims[name] = value.clone();
        }
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signs");
        assert_eq!(service.outcome(&token, "/x").await, expected, "{row}");
    }
}
