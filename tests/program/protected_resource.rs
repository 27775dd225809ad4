//! Tests of protected resources (RFC 9728): the metadata for OAuth clients, and the tokens that each resource accepts.

use serde_json::json;

use crate::fixture::Fixture;
use crate::support::client::{Answer, Client, bearer, get, get_served, request};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

const ROOT: &str = "/.well-known/oauth-protected-resource";
const MCP: &str = "https://app.example.com/mcp";

/// With a provider that has no `audience` of its own, unless `audience` writes one.
async fn fixture_with(audience: &str, more: &str) -> Fixture {
    fixture_of(&format!("preset: oidc{audience}"), more).await
}

/// With a provider of these keys.
async fn fixture_of(provider: &str, more: &str) -> Fixture {
    let (issuer, backend) = (Issuer::start().await, crate::support::backend::Backend::start().await);
    let yaml =
        format!("upstream: {}\nproviders: [{{ {provider}, issuer: \"{}\" }}]\n{more}", backend.url(), issuer.url);
    Fixture { proxy: Proxy::start(&yaml).await, issuer, backend }
}

impl Fixture {
    fn token_for(&self, audience: &serde_json::Value, scope: &str) -> String {
        self.issuer.token_with("alice", json!({"aud": audience, "scope": scope}))
    }

    /// `ok`, or status, code and challenge of the refusal.
    async fn outcome_at(&self, target: &str, token: &str) -> String {
        let credential = bearer(token);
        let (answer, heard) = get_served(self.proxy.address, &self.backend, target, &[&credential]).await;
        if heard.is_some() { "ok".to_owned() } else { format!("{} {}", answer.status, answer.code()) }
    }
}

fn challenge(answer: &Answer) -> &str {
    answer.field("www-authenticate").unwrap_or_default()
}

#[tokio::test]
async fn the_document_is_public_and_exactly_at_its_path() {
    let mut fixture = fixture_with(
        "",
        "public_url: https://app.example.com\nprotected_resource: { scopes: [read, write] }\nroutes:\n  - { path: /mcp/**, protected_resource: { scopes: [tools] } }\n  - { path: /.well-known/**, auth: deny }\n",
    )
    .await;
    let whole = get(fixture.proxy.address, ROOT, &[]).await;
    assert_eq!((whole.status, whole.field("content-type")), (200, Some("application/json")));
    assert_eq!(whole.field("access-control-allow-origin"), Some("*"));
    assert_eq!(
        whole.json(),
        json!({
            "resource": "https://app.example.com",
            "authorization_servers": [fixture.issuer.url],
            "bearer_methods_supported": ["header"],
            "scopes_supported": ["read", "write"],
        })
    );
    let below = get(fixture.proxy.address, &format!("{ROOT}/mcp?x=1"), &[]).await;
    assert_eq!((&below.json()["resource"], &below.json()["scopes_supported"]), (&json!(MCP), &json!(["tools"])));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(format!("HEAD {ROOT} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    assert!(client.whole(true).await.starts_with("200 OK"));
    let fields = ["Origin: https://client.example", "Access-Control-Request-Method: GET"];
    let preflight = request(fixture.proxy.address, "OPTIONS", ROOT, &fields, "").await;
    assert_eq!((preflight.status, preflight.field("access-control-allow-origin")), (204, Some("*")));
    // Every other method and spelling falls under the rules.
    for (method, target) in [
        ("POST", ROOT.to_owned()),
        ("OPTIONS", ROOT.to_owned()),
        ("GET", format!("{ROOT}/")),
        ("GET", format!("{ROOT}/mcp/x")),
        ("GET", ROOT.replace("oauth", "%6fauth")),
        ("GET", ROOT.to_uppercase()),
        ("GET", format!("/{ROOT}")),
    ] {
        let answer = request(fixture.proxy.address, method, &target, &[], "").await;
        assert_eq!(answer.status, 403, "{method} {target}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn without_the_key_the_path_is_the_upstream_s() {
    let fixture = crate::fixture::fixture("routes: [{ path: /.well-known/**, auth: none }]\n").await;
    let (answer, heard) = get_served(fixture.proxy.address, &fixture.backend, ROOT, &[]).await;
    assert_eq!((answer.status, heard.expect("forwarded").target()), (200, ROOT));
    assert_eq!(challenge(&get(fixture.proxy.address, "/x", &[]).await), "Bearer realm=\"vestibule\"");
}

#[tokio::test]
async fn a_challenge_says_where_the_document_is_and_which_scope_the_rule_asks_for() {
    let fixture = fixture_with(
        "",
        "public_url: https://app.example.com\nprotected_resource: {}\nroutes:\n  - { path: /mcp/admin, require: { scope: admin }, protected_resource: { resource: https://app.example.com/mcp } }\n  - { path: /mcp/**, protected_resource: {} }\n  - { path: /plain/**, protected_resource: null }\n  - { path: /open, auth: none }\n",
    )
    .await;
    let of_mcp = format!("resource_metadata=\"https://app.example.com{ROOT}/mcp\"");
    let address = fixture.proxy.address;
    let missing = get(address, "/mcp", &[]).await;
    assert_eq!(challenge(&missing), format!("Bearer realm=\"vestibule\", {of_mcp}"));
    let missing = get(address, "/mcp/admin", &[]).await;
    assert_eq!(challenge(&missing), format!("Bearer realm=\"vestibule\", {of_mcp}, scope=\"admin\""));
    let refused = get(address, "/mcp", &[&bearer("a.b.c")]).await;
    assert!(challenge(&refused).starts_with("Bearer error=\"invalid_token\", error_description="));
    assert!(challenge(&refused).ends_with(&of_mcp), "{}", challenge(&refused));
    let weak = bearer(&fixture.token_for(&json!(MCP), "read"));
    let denied = get(address, "/mcp/admin", &[&weak]).await;
    assert_eq!(
        (denied.status, challenge(&denied)),
        (403, format!("Bearer error=\"insufficient_scope\", {of_mcp}, scope=\"admin\"").as_str())
    );
    let elsewhere = get(address, "/x", &[]).await;
    assert!(challenge(&elsewhere).ends_with(&format!("resource_metadata=\"https://app.example.com{ROOT}\"")));
    assert_eq!(challenge(&get(address, "/plain/x", &[]).await), "Bearer realm=\"vestibule\"");
}

#[tokio::test]
async fn a_token_counts_at_the_resource_that_it_was_made_for() {
    let fixture = fixture_with(
        "",
        "public_url: https://app.example.com\nroutes:\n  - { path: /mcp/**, protected_resource: {} }\n  - { path: /other/**, protected_resource: {} }\n  - { path: /mixed, protected_resource: {} }\n",
    )
    .await;
    let other = "https://app.example.com/other";
    for (audience, target, expected) in [
        (json!(MCP), "/mcp/x", "ok"),
        (json!([MCP, "x"]), "/mcp", "ok"),
        // What falls under two rules must be for both.
        (json!(MCP), "/MCP/x", "401 invalid_token"),
        (json!(MCP), "/other/x", "401 invalid_token"),
        (json!(other), "/mcp", "401 invalid_token"),
        (json!([MCP, other]), "/other", "ok"),
        (json!(MCP), "/elsewhere", "401 invalid_token"),
        (json!("https://app.example.com/mcp/"), "/mcp", "401 invalid_token"),
        (json!("https://app.example.com"), "/mcp", "401 invalid_token"),
        (json!("test-api"), "/mcp", "401 invalid_token"),
        (json!(null), "/mcp", "401 invalid_token"),
        // Readings that fall under two resources.
        (json!([MCP, other]), "/other/../mcp", "400 bad_request"),
    ] {
        assert_eq!(
            fixture.outcome_at(target, &fixture.token_for(&audience, "")).await,
            expected,
            "{audience} {target}"
        );
    }
}

#[tokio::test]
async fn a_written_audience_counts_beside_the_resource() {
    let fixture = fixture_with(
        ", audience: test-api",
        "protected_resource: { resource: https://app.example.com }\nroutes:\n  - { path: /mcp/**, protected_resource: {} }\n",
    )
    .await;
    for (audience, target, expected) in [
        (json!("test-api"), "/mcp", "ok"),
        (json!("test-api"), "/x", "ok"),
        (json!(MCP), "/mcp", "ok"),
        (json!(MCP), "/x", "401 invalid_token"),
        // Clients that parse the URL write it with a slash.
        (json!("https://app.example.com"), "/x", "ok"),
        (json!("https://app.example.com/"), "/x", "ok"),
        (json!("https://app.example.com/"), "/mcp", "401 invalid_token"),
        (json!(["test-api", MCP]), "/x", "ok"),
    ] {
        assert_eq!(
            fixture.outcome_at(target, &fixture.token_for(&audience, "")).await,
            expected,
            "{audience} {target}"
        );
    }
}

#[tokio::test]
async fn a_token_for_one_resource_is_refused_at_another_where_its_audience_is_not_compared() {
    let client = json!({"token_use": "access", "client_id": "app-1", "azp": "app-1"});
    for provider in
        ["preset: oidc, audience: any", "preset: oidc, authorized_parties: [app-1]", "preset: cognito, audience: app-1"]
    {
        let fixture = fixture_of(
            provider,
            "public_url: https://app.example.com\nroutes:\n  - { path: /mcp/**, protected_resource: {} }\n  - { path: /other/**, protected_resource: {} }\n",
        )
        .await;
        for (audience, target, expected) in [
            (Some(json!(MCP)), "/mcp", "ok"),
            (Some(json!(MCP)), "/other", "401 invalid_token"),
            (Some(json!([MCP])), "/other", "401 invalid_token"),
            (Some(json!([MCP, 5])), "/other", "401 invalid_token"),
            (Some(json!(MCP)), "/x", "401 invalid_token"),
            // It is for more than that resource.
            (Some(json!([MCP, "api"])), "/other", "ok"),
            (Some(json!("api")), "/other", "ok"),
            (None, "/other", "ok"),
        ] {
            let mut claims = client.clone();
            claims["aud"] = audience.clone().unwrap_or_default();
            let token = fixture.issuer.token_with("alice", claims);
            assert_eq!(fixture.outcome_at(target, &token).await, expected, "{provider} {audience:?} {target}");
        }
    }
}

#[tokio::test]
async fn a_socket_is_bound_to_its_resource_too() {
    let fixture = fixture_with(
        "",
        "public_url: https://app.example.com\nroutes:\n  - { path: /mcp/**, protected_resource: {}, websocket: { dialect: vestibule } }\n  - { path: /other/**, protected_resource: {} }\n",
    )
    .await;
    let credential = bearer(&fixture.token_for(&json!(MCP), ""));
    let (refused, socket) = Socket::try_open(fixture.proxy.address, "/other", &[&credential]).await;
    assert!(socket.is_none());
    assert_eq!(refused.status, 401);
    assert!(challenge(&refused).ends_with(&format!("resource_metadata=\"https://app.example.com{ROOT}/other\"")));
    let mut socket = Socket::open(fixture.proxy.address, "/other", &[]).await;
    socket.say(&json!({"type": "authenticate", "token": fixture.token_for(&json!(MCP), "")}).to_string()).await;
    assert!(socket.next_text().await.contains("Access denied"));
    assert_eq!(socket.next_close().await, (1008, "Access denied".to_owned()));
}
