//! Tests that the documented deployments have no failed check, and that a backend that does not check its callers
//! fails, wherever that shows.

use serde_json::json;

use super::{USUAL, doctor, guarded, only, yaml};
use crate::support::answerer::{Answerer, Asked, Reply, ok};
use crate::support::client;
use crate::support::issuer::Issuer;
use crate::support::openid::OpenId;
use crate::support::proxy::{Proxy, TempFile};

const SECRET: &str = super::SECRET;

fn not_found() -> Reply {
    (404, String::new(), json!({"detail": "Not Found"}).to_string())
}

fn path(asked: &Asked) -> &str {
    asked.line().strip_prefix("GET ").unwrap_or_default()
}

/// Answers like Jupyter: the front page redirects, the version is public, and the rest needs its token.
fn jupyter(asked: &Asked) -> Reply {
    match path(asked) {
        "/" => (302, "Location: /lab\r\n".to_owned(), String::new()),
        "/api" => ok(json!({"version": "2.17.0"})),
        _ if asked.field("authorization") == Some("token the-backends-own-secret") => ok(json!({"kernels": 0})),
        "/api/status" => (403, String::new(), json!({"message": "Forbidden"}).to_string()),
        _ => (302, "Location: /login?next=%2Flab\r\n".to_owned(), String::new()),
    }
}

/// Answers like Jupyter without a token: every caller is admitted.
fn open_jupyter(asked: &Asked) -> Reply {
    match path(asked) {
        "/" => (302, "Location: /lab\r\n".to_owned(), String::new()),
        "/api/status" => ok(json!({"kernels": 0})),
        _ => not_found(),
    }
}

/// Answers like a `FastAPI` application: it has no `/`, publishes its description, and checks its callers in its own
/// operations alone.
fn fastapi(checks: bool) -> impl Fn(&Asked) -> Reply + Send + 'static {
    move |asked| match path(asked) {
        "/openapi.json" => ok(json!({"paths": {
            "/health": {"get": {}},
            "/api/cells/{id}": {"get": {}},
            "/api/kernels/stop": {"get": {}},
            "/api/cells": {"get": {"parameters": [{"name": "x-user-id", "in": "header", "required": true}]}},
        }})),
        "/health" => ok(json!("ok")),
        "/api/cells" if checks && asked.field("x-backend-secret") != Some(SECRET) => {
            (403, String::new(), json!({"detail": "Forbidden"}).to_string())
        }
        "/api/cells" => match asked.field("x-user-id") {
            // The answer does not depend on the caller.
            Some(_) => ok(json!(["a cell"])),
            None => (422, String::new(), "{}".to_owned()),
        },
        _ => not_found(),
    }
}

/// Answers like a front end: the same files for every caller.
fn files(asked: &Asked) -> Reply {
    match path(asked) {
        "/openapi.json" => not_found(),
        _ => (200, String::new(), "<!doctype html><title>App</title>".to_owned()),
    }
}

fn credential(url: &str) -> String {
    format!("upstream: {{ url: \"{url}\", credential: {{ header: X-Backend-Secret, value: {SECRET} }} }}\n")
}

#[tokio::test]
async fn nothing_is_red_in_a_sound_deployment_of_jupyter_fastapi_or_files() {
    let issuer = Issuer::start().await;
    let token = TempFile::new(&issuer.token("alice"));
    let jupyter = Answerer::start(jupyter).await;
    let fastapi = Answerer::start(fastapi(true)).await;
    let files = Answerer::start(files).await;
    let ecs = "trusted_proxies: [private_ranges]\norigins: [https://app.example.com]\n";
    for (upstream, more, said) in [
        (
            format!(
                "upstream: {{ url: \"{}\", preset: jupyter, credential: {{ header: Authorization, value: \"token {SECRET}\" }} }}\n",
                jupyter.url
            ),
            // Compose: the container answers to the names of its published port alone.
            "hosts: [nb.example.com]\ntrusted_proxies: [private_ranges]\nroutes: []\n".to_owned(),
            "GET /api/status sent to",
        ),
        (
            credential(&fastapi.url),
            format!("{ecs}routes: [{{ path: /health, auth: none }}]\n"),
            "GET /api/cells sent to",
        ),
        (format!("upstream: {}\n", files.url), ecs.to_owned(), "none of its answers depends on the user"),
        (
            credential(&fastapi.url),
            format!(
                "{ecs}routes: [{{ path: /ui/**, upstream: \"{}\" }}, {{ path: /health, auth: none }}]\n",
                files.url
            ),
            "GET /api/cells sent to",
        ),
        (credential(&fastapi.url), "websocket: { dialect: token-field }\n".to_owned(), "ok   socket "),
        (credential(&fastapi.url), "websocket: { dialect: none }\n".to_owned(), "ok   socket "),
        (credential(&fastapi.url), "token_from: { query: { mode: deny } }\n".to_owned(), "ok   token in URL"),
    ] {
        let yaml = yaml(&issuer, &fastapi, &format!("{upstream}{more}"));
        let proxy = Proxy::start(&yaml).await;
        for arguments in [&[][..], &["--token-file", token.path()]] {
            let (code, red, text) = doctor(proxy.address, &yaml, arguments).await;
            assert_eq!((code, red.len()), (Some(0), 0), "{yaml}\n{text}");
            assert!(text.contains(said), "{said}\n{text}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_does_not_check_its_callers_is_red_at_a_path_that_was_found() {
    let issuer = Issuer::start().await;
    let unguarded = Answerer::start(fastapi(false)).await;
    let open_jupyter = Answerer::start(open_jupyter).await;
    for (upstream, expected, said) in [
        (credential(&unguarded.url), "isolation: credential", "GET /api/cells sent to"),
        (format!("upstream: {}\n", unguarded.url), "isolation", "is served to a made-up user"),
        (
            format!(
                "upstream: {{ url: \"{}\", preset: jupyter, credential: {{ header: Authorization, value: \"token {SECRET}\" }} }}\n",
                open_jupyter.url
            ),
            "isolation: credential",
            "GET /api/status sent to",
        ),
    ] {
        let yaml = yaml(&issuer, &unguarded, &upstream);
        let proxy = Proxy::start(&yaml).await;
        let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!(red, only(expected), "{text}");
        assert!(text.contains(said), "{said}\n{text}");
    }
    assert!(unguarded.asked().iter().all(|asked| !path(asked).contains("stop")));
    // At a path that the operator names the check fails too, whatever the answer is.
    let files = Answerer::start(files).await;
    let yaml = yaml(&issuer, &unguarded, &credential(&files.url));
    let proxy = Proxy::start(&yaml).await;
    let (_, red, text) = doctor(proxy.address, &yaml, &["--whoami", "/api/me"]).await;
    assert_eq!(red, only("isolation: credential"), "{text}");
}

/// Compose and Kubernetes publish the metrics. The platform decides who reaches them.
#[tokio::test]
async fn an_admin_listener_for_a_scraper_is_not_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let proxy = Proxy::start(&yaml(&issuer, &backend, "admin: { listen: \"0.0.0.0:0\" }\n")).await;
    let port = proxy.admin().port();
    let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \":{port}\" }}\n"));
    let (_, red, text) = doctor(proxy.address, &says, &[]).await;
    // The port that the system chose is in no file.
    assert_eq!(red, only("configuration"), "{text}");
    assert!(text.contains("-    admin"), "{text}");
}

#[tokio::test]
async fn a_proxy_that_is_not_ready_is_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let yaml = yaml(&issuer, &backend, "providers: [{ preset: oidc, issuer: \"http://127.0.0.1:1\", audience: a }]\n");
    let proxy = Proxy::start(&yaml).await;
    let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
    assert_eq!(red, only("ready"), "{text}");
}

#[tokio::test]
async fn the_last_refusals_stay_those_of_the_clients() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let proxy = Proxy::start(&yaml(&issuer, &backend, "admin: { listen: \"127.0.0.1:0\" }\n")).await;
    let admin = proxy.admin();
    let refused = client::request(proxy.address, "GET", "/x", &["X-Request-Id: y"], "").await;
    assert_eq!(refused.status, 401);
    let id = refused.json()["request_id"].as_str().expect("an id").to_owned();
    let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \"{admin}\" }}\n"));
    doctor(proxy.address, &says, &[]).await;
    let listed = || async {
        let page = client::request(admin, "GET", "/status", &[], "").await.body;
        let tests = page.matches("(a test)</span>").count();
        (page.contains(&id), page.matches("<td>missing_token</td>").count(), tests)
    };
    let (is_listed, of_clients, tests) = listed().await;
    assert!(is_listed && of_clients == 1 && tests > 0, "{of_clients} {tests}");
    // A request that declares itself a test of the doctor is marked and not hidden; that of a proxy's client is not
    // even marked.
    let fields = ["User-Agent: vestibule-doctor", "X-Forwarded-For: 192.0.2.7"];
    client::request(proxy.address, "GET", "/x", &fields, "").await;
    assert_eq!(listed().await, (true, 2, tests));
    let answer = client::request(proxy.address, "GET", "/hidden", &fields[..1], "").await;
    let id = answer.json()["request_id"].as_str().expect("an id").to_owned();
    let page = client::request(admin, "GET", "/status", &[], "").await.body;
    let row = page.lines().find(|line| line.contains(&id)).expect("its row");
    assert!(row.contains("missing_token <span class=\"soft\">(a test)</span>"), "{row}");
}

/// A deployment with sign-in at this provider.
fn login(provider: &OpenId, backend: &Answerer, more: &str) -> String {
    let public_url = if more.contains("public_url") { "" } else { "public_url: https://nb.example.com\n" };
    format!(
        "{}{public_url}{USUAL}providers: [{}]\nbrowser: {{ login: {{ client_id: vestibule-client, client_secret: 'a secret: with & odd = characters' }} }}\n{more}",
        credential(&backend.url),
        provider.provider()
    )
}

#[tokio::test]
async fn each_endpoint_of_the_sign_in_has_a_line() {
    let backend = Answerer::start(guarded).await;
    let provider = OpenId::start().await;
    let yaml = login(&provider, &backend, "");
    let proxy = Proxy::start(&yaml).await;
    let (code, red, text) = doctor(proxy.address, &yaml, &[]).await;
    assert_eq!((code, red.len()), (Some(0), 0), "{text}");
    for said in [
        "ok   sign-in: discovery",
        "ok   sign-in: request",
        "redirect URI https://nb.example.com/.vestibule/callback, state, nonce and PKCE",
        "ok   sign-in: provider",
        "ok   sign-in: callback",
        "ok   sign-in: logout",
        "ok   sign-in: signed out",
        "ok   sign-in: back channel",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    // The process has another address than the file names.
    let says = login(&provider, &backend, "public_url: https://other.example.com\nhosts: any\n");
    let proxy = Proxy::start(&login(&provider, &backend, "hosts: [nb.example.com, other.example.com]\n")).await;
    let (_, red, text) = doctor(proxy.address, &says.replace("hosts: any", "hosts: [other.example.com]"), &[]).await;
    assert_eq!(red, only("sign-in: request"), "{text}");
    // The redirect URI is not registered at the provider.
    for (reply, said) in [
        (
            (400, String::new(), "invalid redirect_uri".to_owned()),
            "register redirect URI https://nb.example.com/.vestibule/callback",
        ),
        (
            (
                303,
                "Location: https://nb.example.com/.vestibule/callback?error=unauthorized_client\r\n".to_owned(),
                String::new(),
            ),
            "error=unauthorized_client",
        ),
    ] {
        provider.set(|conduct| conduct.authorize_reply = reply);
        let proxy = Proxy::start(&yaml).await;
        let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!(red, only("sign-in: provider"), "{text}");
        assert!(text.contains(said), "{said}\n{text}");
    }
}

#[tokio::test]
async fn a_provider_without_discovery_is_red_once() {
    let backend = Answerer::start(guarded).await;
    let provider = OpenId::start().await;
    let keys = format!("providers: [{{ preset: oidc, issuer: \"{0}\", jwks: {{ url: \"{0}/jwks\" }} }}]", provider.url);
    let yaml = login(&provider, &backend, "").replace(&format!("providers: [{}]", provider.provider()), &keys);
    provider.set(|conduct| conduct.metadata = json!({ "authorization_endpoint": null }));
    let proxy = Proxy::start(&yaml).await;
    let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
    assert_eq!(red, only("sign-in: discovery"), "{text}");
}

/// Answers in Vestibule's place and does one part of the sign-in wrong.
fn impostor(wrong: &'static str, authorization: String) -> impl Fn(&Asked) -> Reply + Send + 'static {
    let usual = super::impostor("nothing");
    move |asked| {
        let page = || (200, String::new(), "<form></form>".to_owned());
        let line = asked.line().split('?').next().unwrap_or_default();
        let parameters = match wrong {
            "sign-in: request" => authorization.replace("S256", "plain"),
            _ => authorization.clone(),
        };
        match line {
            "GET /.vestibule/login" => (302, format!("Location: {parameters}\r\n"), String::new()),
            "GET /.vestibule/callback" if wrong == "sign-in: callback" => {
                (303, "Location: /\r\nSet-Cookie: __Host-vestibule=x; Path=/\r\n".to_owned(), String::new())
            }
            "GET /.vestibule/callback" => (303, "Location: /.vestibule/login\r\n".to_owned(), String::new()),
            "GET /.vestibule/logout" => page(),
            "POST /.vestibule/logout" if wrong != "sign-in: logout" => (403, String::new(), String::new()),
            "POST /.vestibule/logout" => (303, "Location: /.vestibule/signed-out\r\n".to_owned(), String::new()),
            "GET /.vestibule/signed-out" if wrong == "sign-in: signed out" => {
                (302, "Location: /\r\n".to_owned(), String::new())
            }
            "GET /.vestibule/signed-out" => page(),
            "POST /.vestibule/backchannel-logout" if wrong == "sign-in: back channel" => ok(json!({})),
            "POST /.vestibule/backchannel-logout" => (400, String::new(), String::new()),
            _ => usual(asked),
        }
    }
}

#[tokio::test]
async fn a_sign_in_that_does_one_thing_wrong_is_red_there_alone() {
    let backend = Answerer::start(guarded).await;
    let provider = OpenId::start().await;
    let yaml = login(&provider, &backend, "");
    let authorization = format!(
        "{}/authorize?response_type=code&client_id=vestibule-client&redirect_uri=https%3A%2F%2Fnb.example.com%2F.vestibule%2Fcallback&scope=openid&state=s&nonce=n&code_challenge={}&code_challenge_method=S256",
        provider.url,
        "c".repeat(43)
    );
    for wrong in [
        "nothing",
        "sign-in: request",
        "sign-in: callback",
        "sign-in: logout",
        "sign-in: signed out",
        "sign-in: back channel",
    ] {
        let at = Answerer::start(impostor(wrong, authorization.clone())).await;
        let at = at.url.trim_start_matches("http://").parse().expect("an address");
        let (_, red, text) = doctor(at, &yaml, &[]).await;
        let expected = if wrong == "nothing" { std::collections::BTreeSet::new() } else { only(wrong) };
        assert_eq!(red, expected, "{wrong}: {text}");
    }
}

/// Answers with all that it was asked in the page, the guarded one only to those who know the secret.
fn mirroring(asked: &Asked, is_guarded: bool) -> Reply {
    let secret = asked.field("x-backend-secret").unwrap_or_default();
    if is_guarded && secret != SECRET {
        return (401, String::new(), "{}".to_owned());
    }
    // As no search for the text finds it, where the backend is open.
    let shown: String = if is_guarded { secret.to_owned() } else { secret.chars().rev().collect() };
    ok(json!({"user": asked.field("x-user-id"), "headers": shown}))
}

#[tokio::test]
async fn a_backend_that_writes_our_secret_into_its_pages_is_red() {
    let issuer = Issuer::start().await;
    let guarded = Answerer::start(|asked: &Asked| mirroring(asked, true)).await;
    let open = Answerer::start(|asked: &Asked| mirroring(asked, false)).await;
    let token = TempFile::new(&issuer.token("alice"));
    let with_token = ["--token-file", token.path()];
    for (backend, arguments, expected) in [
        (&guarded, &with_token[..], vec!["secret in pages"]),
        // Without a token nobody is shown a page, and nothing is known.
        (&guarded, &[], vec![]),
        (&open, &[], vec!["isolation: credential", "secret in pages"]),
    ] {
        let yaml = yaml(&issuer, backend, &credential(&backend.url));
        let proxy = Proxy::start(&yaml).await;
        let (_, red, text) = doctor(proxy.address, &yaml, arguments).await;
        assert_eq!(red, expected.iter().map(|name| (*name).to_owned()).collect(), "{text}");
        assert!(!text.contains(SECRET), "{text}");
    }
}
