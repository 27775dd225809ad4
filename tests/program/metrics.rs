//! The admin listener, and what is counted there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, bearer, get};
use crate::support::issuer::{Issuer, Key, Mood};
use crate::support::proxy::{Proxy, is_reload};
use crate::support::socket::Socket;
use crate::support::{now, within};

struct Fixture {
    issuer: Issuer,
    backend: Backend,
    proxy: Proxy,
    admin: SocketAddr,
}

async fn fixture(more: &str) -> Fixture {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\", hosts: [ops.internal] }}\nupstream: {}\nproviders: [{}]\n{more}",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let admin = proxy.admin();
    Fixture { issuer, backend, proxy, admin }
}

impl Fixture {
    async fn refused(&self, token: &str) -> Answer {
        get(self.proxy.address, "/x", &[&bearer(token)]).await
    }

    async fn metric(&self, name: &str) -> u64 {
        let answer = get(self.admin, "/metrics", &[]).await;
        assert_eq!(answer.status, 200);
        let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {}", answer.body)).parse().expect("a number")
    }

    async fn verdicts(&self, provider: &str, carrier: &str, outcome: &str) -> u64 {
        let labels = format!("provider=\"{provider}\",carrier=\"{carrier}\",outcome=\"{outcome}\"");
        self.metric(&format!("vestibule_token_verifications_total{{{labels}}}")).await
    }
}

#[tokio::test]
async fn every_verdict_has_its_count_and_its_reason_in_the_log() {
    let fixture = fixture("limits: { token_bytes: 4KiB }\n").await;
    let issuer = &fixture.issuer;
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256);
    let with = |claims: serde_json::Value| issuer.token_with("alice", claims);
    let hs = jsonwebtoken::encode(
        &jsonwebtoken::Header::default(),
        &issuer.claims("alice"),
        &jsonwebtoken::EncodingKey::from_secret(b"x"),
    )
    .expect("signs");
    let mut forged = issuer.token("alice");
    forged.replace_range(forged.len() - 8..forged.len() - 4, "AAAA");
    let rows = [
        ("none", "malformed", "x.y.z".to_owned(), r#""reason":"the header is not"#),
        ("none", "unknown_issuer", with(json!({"iss": "https://other"})), "is not a configured provider"),
        ("none", "claim", with(json!({"iss": null})), "claim iss is missing"),
        ("oidc", "algorithm", hs, "algorithm HS256 is not accepted"),
        ("oidc", "unknown_key", stranger.sign(&issuer.claims("alice")), "no key of the provider matches"),
        ("oidc", "bad_signature", forged, "the signature does not verify"),
        ("oidc", "expired", issuer.expired("alice"), "expired "),
        ("oidc", "not_yet_valid", with(json!({"nbf": now() + 600})), "not valid before "),
        ("oidc", "issued_in_the_future", with(json!({"iat": now() + 600})), "which is in the future"),
        ("oidc", "claim", with(json!({"exp": null})), "claim exp is missing"),
        ("oidc", "wrong_audience", with(json!({"aud": "other"})), "made for audience"),
        ("oidc", "wrong_kind", with(json!({"token_use": "id"})), "an ID token"),
        ("oidc", "missing_user", with(json!({"sub": null})), "no user id in the token"),
        ("oidc", "unusable_user", with(json!({"sub": 7.5})), "the user id is neither a string"),
    ];
    for (provider, outcome, token, reason) in rows {
        let before = fixture.verdicts(provider, "header", outcome).await;
        let answer = fixture.refused(&token).await;
        assert_eq!(answer.status, 401, "{outcome}");
        assert_eq!(fixture.verdicts(provider, "header", outcome).await, before + 1, "{outcome}");
        let id = answer.field("x-request-id").expect("an id").to_owned();
        let line = fixture.proxy.logged("its line", |line| line.contains(&id) && line.contains("reason")).await;
        assert!(line.contains(reason) && line.contains(&format!(r#""outcome":"{outcome}""#)), "{line}");
        // No response tells the client more than the table of section 3.
        let mut body = answer.json();
        body.as_object_mut().expect("object").remove("request_id");
        let (code, detail) = match outcome {
            "expired" => ("token_expired", "Token has expired. Please sign in again."),
            "missing_user" => ("missing_user", "Invalid token: missing user ID"),
            _ => ("invalid_token", "Invalid token. Please sign in again."),
        };
        let expected =
            json!({"type": "about:blank", "title": "Unauthorized", "status": 401, "code": code, "detail": detail});
        assert_eq!(body, expected, "{outcome}");
    }
}

#[tokio::test]
async fn good_tokens_are_counted_by_carrier_and_by_where_they_were_found() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let lookups = |result: &str| format!("vestibule_token_cache_lookups_total{{result=\"{result}\"}}");
    // Twice on one connection, once on another.
    let mut client = Client::connect(fixture.proxy.address).await;
    for _ in 0..2 {
        client.send(format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&token))).await;
        fixture.backend.answer("ok").await;
        assert_eq!(client.answer().await.status, 200);
    }
    let fields = [bearer(&token)];
    let fields = [fields[0].as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    assert_eq!(fixture.verdicts("oidc", "header", "accepted").await, 3);
    for (result, count) in [("miss", 1), ("connection", 1), ("hit", 1)] {
        assert_eq!(fixture.metric(&lookups(result)).await, count, "{result}");
    }
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let (said, _upstream) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
    assert_eq!(said["type"], "authenticated");
    assert_eq!(fixture.verdicts("oidc", "message", "accepted").await, 1);
    assert_eq!(fixture.verdicts("oidc", "message", "expired").await, 0);
    assert_eq!(fixture.metric("vestibule_jwks_keys{provider=\"oidc\"}").await, 1);
    let fetched = fixture.metric("vestibule_jwks_last_success_timestamp_seconds{provider=\"oidc\"}").await;
    assert!(now() - fetched < 60);
    assert_eq!(fixture.metric("vestibule_jwks_fetches_total{provider=\"oidc\",outcome=\"ok\"}").await, 1);
    fixture.issuer.set_mood(Mood::Status(500));
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256);
    assert_eq!(fixture.refused(&stranger.sign(&fixture.issuer.claims("alice"))).await.status, 503);
    assert_eq!(fixture.verdicts("oidc", "header", "keys_unavailable").await, 1);
    assert!(fixture.metric("vestibule_jwks_fetches_total{provider=\"oidc\",outcome=\"failed\"}").await >= 1);
    // No user, no token, no path.
    let text = get(fixture.admin, "/metrics", &[]).await.body;
    for secret in ["alice", "/x", token.rsplit('.').next().expect("a signature")] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_admin_listener_answers_get_only_to_known_hosts_and_serves_nothing_else() {
    let fixture = fixture("").await;
    fixture.proxy.ready().await;
    for (method, target, host, expected) in [
        ("GET", "/healthz", "127.0.0.1", 200),
        ("GET", "/readyz", "localhost:9180", 200),
        ("GET", "/metrics", "ops.internal", 200),
        ("GET", "/metrics", "evil.example", 421),
        ("POST", "/metrics", "localhost", 405),
        ("POST", "/revoke", "localhost", 405),
        ("GET", "/x", "localhost", 404),
        ("GET", "/.vestibule/healthz", "localhost", 404),
    ] {
        let mut client = Client::connect(fixture.admin).await;
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.answer().await.status, expected, "{method} {target} {host}");
    }
    // And the main one shows none of it.
    assert_eq!(get(fixture.proxy.address, "/metrics", &[]).await.status, 401);
}

/// Code that shares this machine must not keep an operator, or a probe, out.
#[tokio::test]
async fn connections_that_ask_nothing_keep_nobody_out() {
    let fixture = fixture("").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(Client::connect(fixture.admin).await);
    }
    assert_eq!(get(fixture.admin, "/healthz", &[]).await.status, 200);
    assert!(silent[0].is_closed().await, "the one that was silent longest gave way");
}

#[tokio::test]
async fn a_usual_port_that_is_taken_does_not_stop_the_start_and_a_written_one_does() {
    let taken = std::net::TcpListener::bind("127.0.0.1:9180");
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = |admin: &str| format!("{admin}upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml("admin: {}\n")).await;
    proxy
        .logged("a warning", |line| line.contains("admin listener not started") && line.contains("127.0.0.1:9180"))
        .await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = busy.local_addr().expect("address");
    let file = crate::support::proxy::TempFile::new(&format!(
        "listen: 127.0.0.1:0\n{}",
        yaml(&format!("admin: {{ listen: \"{address}\" }}\n"))
    ));
    let output = crate::support::proxy::command().args(["run", "--config", file.path()]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("admin.listen: {address}: ")), "{said}");
    drop(taken);
}

/// Names of a document: `vestibule_…` and `process_…`, without what a histogram or a label adds.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("vestibule_") || word.starts_with("process_"));
    metrics.map(|word| word.trim_end_matches("_bucket").to_owned()).filter(|word| !word.ends_with('_')).collect()
}

#[tokio::test]
async fn the_documents_name_every_metric_and_no_other() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let field = bearer(&token);
    let fields = [field.as_str()];
    tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let (_, (_, upstream)) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
    drop((socket, upstream));
    let mut refused = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    refused.say("hello").await;
    drop(refused);
    let closed = async {
        loop {
            let text = get(fixture.admin, "/metrics", &[]).await.body;
            if text.contains("websockets_closed_total{") && text.contains("websockets_refused_total{") {
                return text;
            }
        }
    };
    let text = within("both sockets to be counted", closed).await;
    let mut served: BTreeSet<String> = text
        .lines()
        .filter_map(|line| {
            let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            Some(if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        })
        .collect();
    let written = std::fs::read_to_string("docs/metrics.md").expect("docs/metrics.md");
    let rows: String = written.lines().filter(|line| line.starts_with("| `")).collect();
    // Of a provider that is asked.
    served.extend(["vestibule_remote_checks_total", "vestibule_remote_check_duration_seconds"].map(str::to_owned));
    // Of instances that share, whose tests read them.
    let of_shared = [
        "up",
        "lag_seconds",
        "instances",
        "entries_refused_total",
        "resyncs_total",
        "session_reads_total",
        "session_writes_total",
    ];
    served.extend(of_shared.map(|name| format!("vestibule_shared_{name}")));
    // Of sign-in by OpenID Connect, whose tests read them.
    served.extend(
        ["vestibule_sign_ins_total", "vestibule_session_renewals_total", "vestibule_logouts_total"].map(str::to_owned),
    );
    // Of listeners with TLS, whose test reads it.
    served.insert("vestibule_certificate_not_after_timestamp_seconds".to_owned());
    assert_eq!(names(&rows), served);
    for file in ["deploy/observability/alerts.yaml", "deploy/observability/grafana.json"] {
        let unknown: Vec<_> = names(&std::fs::read_to_string(file).expect(file)).difference(&served).cloned().collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

/// Reads the metrics until they are as wanted.
async fn until(admin: SocketAddr, is_wanted: impl Fn(&str) -> bool) -> String {
    let wanted = async {
        loop {
            let text = get(admin, "/metrics", &[]).await.body;
            if is_wanted(&text) {
                return text;
            }
            // No event tells of a change of a metric.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the metrics to be as wanted", wanted).await
}

/// The gauges of keys, for which an alert exists, without their values.
fn key_gauges(metrics: &str) -> BTreeSet<String> {
    let of_keys = |line: &&str| line.starts_with("vestibule_jwks_keys{") || line.starts_with("vestibule_jwks_last_");
    metrics.lines().filter(of_keys).filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

#[tokio::test]
async fn only_providers_with_a_key_set_have_a_number_of_keys() {
    let issuer = Issuer::start().await;
    let yaml = format!(
        r#"
admin: {{ listen: "127.0.0.1:0" }}
upstream: http://127.0.0.1:1
trusted_proxies: [127.0.0.1]
shared_user_ids: true
providers:
  - {}
  - {{ preset: introspection, audience: api, remote: {{ url: "{}/introspect", client_id: c, client_secret: s }} }}
  - preset: aws-alb
    issuer: https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC
    region: eu-central-1
    signer: arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/x/60dc6c495c0c9188
    audience: client-1
"#,
        issuer.provider(),
        issuer.url
    );
    let proxy = Proxy::start(&yaml).await;
    let admin = proxy.admin();
    proxy.logged("its keys", |line| line.contains("JWKS fetched")).await;
    let text = get(admin, "/metrics", &[]).await.body;
    let of_oidc = ["vestibule_jwks_keys", "vestibule_jwks_last_success_timestamp_seconds"];
    let of_oidc: BTreeSet<String> = of_oidc.map(|name| format!("{name}{{provider=\"oidc\"}}")).into();
    assert_eq!(key_gauges(&text), of_oidc);
    for (provider, expected) in [("oidc", 1), ("aws-alb", 1), ("introspection", 0)] {
        let fetches = format!("vestibule_jwks_fetches_total{{provider=\"{provider}\",outcome=\"failed\"}}");
        assert_eq!(text.matches(&fetches).count(), expected, "{provider}");
    }
    // Keys that nobody needs any more do not become old.
    let before = proxy.log().len();
    proxy.rewrite(&yaml.replace(
        &issuer.provider(),
        "{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, issuer: https://s.example, audience: api }",
    ));
    proxy.signal("HUP");
    let said = proxy.logged_after(before, "a reload", is_reload).await;
    assert!(said.contains("configuration reloaded"), "{said}");
    let of_secret = BTreeSet::from(["vestibule_jwks_keys{provider=\"shared-secret\"}".to_owned()]);
    let text = until(admin, |text| key_gauges(text) == of_secret).await;
    assert!(text.contains("vestibule_jwks_keys{provider=\"shared-secret\"} 1\n"));
}

#[tokio::test]
async fn keys_that_are_older_than_max_stale_count_as_none() {
    let issuer = Issuer::start().await;
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\" }}\nupstream: http://127.0.0.1:1\nproviders: [{{ preset: oidc, issuer: \"{}\", audience: api, jwks: {{ max_stale: 1s }} }}]\n",
        issuer.url
    );
    let proxy = Proxy::start(&yaml).await;
    let admin = proxy.admin();
    until(admin, |text| text.contains("vestibule_jwks_keys{provider=\"oidc\"} 1\n")).await;
    issuer.set_mood(Mood::Status(500));
    // An unknown key makes it fetch at once, and a failure makes it try again.
    let stranger = Key::ec("stranger", jsonwebtoken::Algorithm::ES256).sign(&issuer.claims("alice"));
    assert_eq!(get(proxy.address, "/x", &[&bearer(&stranger)]).await.status, 503);
    until(admin, |text| text.contains("vestibule_jwks_keys{provider=\"oidc\"} 0\n")).await;
    issuer.set_mood(Mood::Well);
    until(admin, |text| text.contains("vestibule_jwks_keys{provider=\"oidc\"} 1\n")).await;
}

#[tokio::test]
async fn requests_are_counted_by_route_status_and_who_answered() {
    let fixture = fixture("routes: [{ path: /admin/**, require: { role: admin } }, { path: /no, auth: deny }]\n").await;
    let token = fixture.issuer.token("alice");
    let (field, spoof) = (bearer(&token), "X-User-Id: root".to_owned());
    let fields = [field.as_str(), spoof.as_str(), "Remote-User: root"];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    assert_eq!(get(fixture.proxy.address, "/admin/x", &[&field]).await.status, 403);
    assert_eq!(get(fixture.proxy.address, "/no", &[&field]).await.status, 403);
    assert_eq!(get(fixture.proxy.address, "/x", &[]).await.status, 401);
    assert_eq!(get(fixture.proxy.address, "/.vestibule/healthz", &[]).await.status, 200);
    let count = |route: &str, code: u16, by: &str| {
        format!(
            "vestibule_http_requests_total{{route=\"{route}\",method=\"GET\",code=\"{code}\",answered_by=\"{by}\"}}"
        )
    };
    for (route, code, by) in [
        ("default", 200, "upstream"),
        ("/admin/**", 403, "vestibule"),
        ("default", 401, "vestibule"),
        ("/.vestibule", 200, "vestibule"),
    ] {
        // Counted when the whole answer has gone, which may be after its reader has it.
        fixture.proxy.logged("its line", |line| line.contains(&format!("\"status\":{code}"))).await;
        assert_eq!(fixture.metric(&count(route, code, by)).await, 1, "{route} {code}");
    }
    for (name, value) in [
        ("vestibule_access_denied_total{route=\"/admin/**\",rule=\"require\"}", 1),
        ("vestibule_access_denied_total{route=\"/admin/**\",rule=\"allow\"}", 0),
        ("vestibule_identity_headers_stripped_total{header=\"x-user-id\"}", 1),
        ("vestibule_identity_headers_stripped_total{header=\"other\"}", 1),
        ("vestibule_upstream_errors_total{route=\"default\",reason=\"connect\"}", 0),
        ("vestibule_upstream_response_head_seconds_count{route=\"default\"}", 1),
        ("vestibule_http_request_duration_seconds_count{route=\"default\",answered_by=\"upstream\"}", 1),
    ] {
        assert_eq!(fixture.metric(name).await, value, "{name}");
    }
}

#[tokio::test]
async fn sockets_are_counted_from_the_waiting_room_to_their_end() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let mut waiting = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(fixture.metric("vestibule_websockets_waiting").await, 1);
    let (_, (_, mut upstream)) = tokio::join!(waiting.authenticate(&token), fixture.backend.websocket());
    let mut open = waiting;
    assert_eq!(fixture.metric("vestibule_websockets_waiting").await, 0);
    assert_eq!(fixture.metric("vestibule_websockets_open{route=\"default\"}").await, 1);
    assert_eq!(fixture.metric("vestibule_websockets_opened_total{route=\"default\",carrier=\"message\"}").await, 1);
    open.say("hello").await;
    assert_eq!(upstream.next_text().await, "hello");
    // While it is open: five bytes and a masked frame's head.
    assert_eq!(fixture.metric("vestibule_websocket_bytes_total{route=\"default\",direction=\"in\"}").await, 11);
    for (presented, outcome) in [
        (fixture.issuer.token("alice"), "accepted"),
        (fixture.issuer.token("bob"), "another_user"),
        (fixture.issuer.expired("alice"), "refused"),
    ] {
        open.say(&json!({"type": "refresh_auth", "token": presented}).to_string()).await;
        open.next_text().await;
        let name = format!("vestibule_websocket_refreshes_total{{route=\"default\",outcome=\"{outcome}\"}}");
        assert_eq!(fixture.metric(&name).await, 1);
    }
    open.send(0x88, 4000_u16.to_be_bytes()).await;
    upstream.next_close().await;
    upstream.send(0x88, 4000_u16.to_be_bytes()).await;
    drop(upstream);
    open.next_close().await;
    drop(open);
    fixture.proxy.logged("its line", |line| line.contains("\"msg\":\"socket\"")).await;
    for (name, value) in [
        ("vestibule_websockets_open{route=\"default\"}", 0),
        ("vestibule_websockets_closed_total{code=\"4999\",closed_by=\"client\"}", 1),
        ("vestibule_websocket_duration_seconds_count{route=\"default\"}", 1),
        ("vestibule_http_requests_total{route=\"default\",method=\"GET\",code=\"101\",answered_by=\"vestibule\"}", 1),
    ] {
        assert_eq!(fixture.metric(name).await, value, "{name}");
    }
    let mut refused = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    refused.say("hello").await;
    assert_eq!(refused.next_text().await, r#"{"type":"error","message":"Invalid message format"}"#);
    refused.next_close().await;
    drop(refused);
    let line = fixture.proxy.logged("its line", |line| line.contains("\"outcome\":\"invalid_message\"")).await;
    assert!(line.contains("\"reason\":\"the first message is not one of the dialect vestibule"), "{line}");
    assert_eq!(fixture.metric("vestibule_websockets_refused_total{reason=\"invalid_message\"}").await, 1);
    let listener = "vestibule_connections_open{listener=\"127.0.0.1:0\"}";
    assert_eq!(fixture.metric(listener).await, 0);
}

#[tokio::test]
async fn the_status_page_tells_what_happens_without_a_user_a_token_or_a_query() {
    let fixture = fixture("token_from: { query: { mode: deny } }\n").await;
    let token = fixture.issuer.token("alice");
    let field = bearer(&token);
    let fields = [field.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    let refused = get(fixture.proxy.address, "/private/%3Cscript%3E?page=secret-query", &[]).await;
    let id = refused.field("x-request-id").expect("an id").to_owned();
    let target = format!("/ws?token={token}");
    let mut in_url = Socket::open(fixture.proxy.address, &target, &["Origin: https://old.example.com"]).await;
    in_url.next_text().await;
    drop(in_url);
    fixture.proxy.logged("the refusal", |line| line.contains(&id)).await;
    fixture.proxy.logged("the socket", |line| line.contains("\"msg\":\"socket\"")).await;
    let page = get(fixture.admin, "/status", &[]).await;
    assert_eq!((page.status, page.field("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.field("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    for said in [
        "<h1 class=\"good\">ready</h1>",
        "has 1 key (RSA), fetched ",
        "<td>connections</td>",
        "In the last minute: requests 3, refusals 2.",
        " · up ",
        "<h2>Upstreams</h2>\n<p><strong>http://127.0.0.1:",
        "answers; the last response was ",
        "<code>/private/%3Cscript%3E</code>",
        "<td>missing_token</td><td class=\"number\">401</td>",
        &id,
        "<td>token_in_url</td><td class=\"number\">1008</td>",
        "<td>https://old.example.com</td><td><code>default</code></td><td class=\"number\">1</td>",
        "upstream    http://127.0.0.1",
    ] {
        assert!(page.body.contains(said), "{said}\n{}", page.body);
    }
    for secret in ["alice", "secret-query", "<script", token.rsplit('.').next().expect("a signature")] {
        assert!(!page.body.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_status_page_tells_that_an_upstream_does_not_answer() {
    let (issuer, port) = (Issuer::start().await, crate::support::unused_port());
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\" }}\nupstream: http://127.0.0.1:{port}\nproviders: [{}]\n",
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    proxy.logged("ready", |line| line.contains("\"msg\":\"ready\"")).await;
    let page = get(proxy.admin(), "/status", &[]).await.body;
    assert!(
        page.contains(&format!("<p class=\"bad\"><strong>http://127.0.0.1:{port}</strong> does not answer.")),
        "{page}"
    );
    assert!(page.contains("<h1 class=\"bad\">ready, with problems</h1>"), "{page}");
    let _listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("free");
    crate::support::within("the page to see it", async {
        while !get(proxy.admin(), "/status", &[]).await.body.contains("accepts connections; no request has been") {
            // A check is repeated when the last one is some seconds old.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_provider_with_another_time_is_a_warning_in_the_log_and_on_the_status_page() {
    let issuer = Issuer::start().await;
    issuer.clock_is_ahead(3_600);
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\" }}\nupstream: http://127.0.0.1:{}\nproviders: [{}]\n",
        crate::support::unused_port(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let differs = |line: &str| line.contains("the clocks of this machine and of the provider differ");
    let line = proxy.logged("the warning", differs).await;
    assert!(line.contains("\"level\":\"warn\"") && line.contains("\"provider_ahead_s\":3"), "{line}");
    let text = get(proxy.admin(), "/metrics", &[]).await.body;
    assert!(text.contains("\nvestibule_provider_clock_ahead_seconds{provider=\"oidc\"} 3"), "{text}");
    let page = get(proxy.admin(), "/status", &[]).await.body;
    let expected = "Its clock is 59 min ahead of this machine's, so valid tokens are refused or ended ones accepted.";
    let about_an_hour = [expected.to_owned(), expected.replace("59", "60")];
    assert!(about_an_hour.iter().any(|sentence| page.contains(&sentence.replace('\'', "&#39;"))), "{page}");
}

#[tokio::test]
async fn the_status_page_tells_that_the_configuration_on_disk_was_rejected() {
    let fixture = fixture("").await;
    fixture.proxy.rewrite("routs: []\n");
    fixture.proxy.logged("the refusal", |line| line.contains("reload rejected")).await;
    let page = get(fixture.admin, "/status", &[]).await.body;
    assert!(page.contains("<h1 class=\"bad\">ready, with problems</h1>"), "{page}");
    assert!(page.contains("<p class=\"bad\">The configuration on disk is rejected,"), "{page}");
    assert!(!page.contains("routs"), "the reason is in the log only: {page}");
}
