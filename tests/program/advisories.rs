//! Published holes of programs like this one, each with the test that keeps it from being ours. The table is held to
//! the tests; those that had no better place stand here.

use std::sync::Arc;

use serde_json::json;

use crate::fixture::fixture;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::Issuer;
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::socket::Socket;

/// Advisories, file of the test, its name.
const KEPT_OUT: [(&str, &str, &str); 45] = [
    ("CVE-2025-64484", "http.rs", "no_spelling_of_the_identity_header_gets_through"),
    ("CVE-2026-39858, CVE-2026-55430", "raw/requests.rs", "every_request_is_answered_as_believed"),
    (
        "CVE-2026-54763, CVE-2026-33433, CVE-2026-39998",
        "advisories.rs",
        "configured_names_are_protected_in_every_spelling",
    ),
    ("CVE-2026-30851, CVE-2026-26308", "http.rs", "no_spelling_of_the_identity_header_gets_through"),
    (
        "CVE-2026-71485",
        "websocket/dialects.rs",
        "where_messages_go_on_no_spelling_of_a_later_one_carries_a_name_of_ours",
    ),
    (
        "CVE-2024-21494, CVE-2026-33495, CVE-2026-35051",
        "http.rs",
        "forwarding_fields_are_believed_from_trusted_proxies_only",
    ),
    ("CVE-2025-48865, CVE-2024-45410, CVE-2026-29054", "advisories.rs", "no_connection_field_takes_our_fields_away"),
    (
        "CVE-2025-54576, CVE-2026-41059, CVE-2026-40575",
        "advisories.rs",
        "rules_look_at_the_path_that_goes_up_and_at_nothing_else",
    ),
    ("CVE-2026-34457", "advisories.rs", "rules_look_at_the_path_that_goes_up_and_at_nothing_else"),
    ("CVE-2026-33494, CVE-2021-29492, CVE-2023-47106", "paths.rs", "no_spelling_of_a_path_gets_past_a_rule"),
    ("CVE-2026-40912, CVE-2026-27587", "paths.rs", "no_spelling_of_a_path_gets_past_a_rule"),
    ("CVE-2022-29226", "http.rs", "every_refusal_of_a_credential_is_its_row_of_the_table"),
    ("CVE-2026-39999, CVE-2022-29217, CVE-2024-37568", "attacks.rs", "no_forged_token_gets_in"),
    ("CVE-2026-25537, CVE-2020-26160, CVE-2024-51744", "attacks.rs", "no_forged_token_gets_in"),
    ("CVE-2025-30204", "attacks.rs", "no_forged_token_gets_in"),
    ("CVE-2026-40574", "identity.rs", "who_may_enter_is_asked_after_verification"),
    ("CVE-2026-55076", "providers.rs", "google"),
    ("CVE-2021-29652", "advisories.rs", "one_flipped_bit_of_a_signature_is_refused_at_every_entry"),
    ("CVE-2026-41413", "identity.rs", "unusable_key_sets_are_503_and_recover_by_themselves"),
    ("CVE-2026-31923", "advisories.rs", "a_key_server_with_a_certificate_of_its_own_making_is_not_believed"),
    (
        "CVE-2026-33496, CVE-2026-71326",
        "advisories.rs",
        "the_same_token_under_two_configurations_never_shares_a_verdict",
    ),
    ("GHSA-qvp4-rpmr-xwrr", "identity.rs", "a_remembered_token_is_worth_nothing_beyond_its_end_its_key_and_the_rules"),
    ("GO-2024-2744", "identity.rs", "a_remembered_token_is_worth_nothing_beyond_its_end_its_key_and_the_rules"),
    (
        "CVE-2026-39987, CVE-2024-28179",
        "advisories.rs",
        "an_upgrade_needs_what_its_path_needs_in_every_spelling_of_upgrade",
    ),
    ("GHSA-3rw9-wmc8-8948", "websocket.rs", "an_expired_token_ends_its_socket_with_4401"),
    ("CVE-2024-21492, CVE-2021-41247", "control.rs", "a_revoked_user_is_out_at_once_and_stays_out_and_nobody_else_is"),
    ("CVE-2026-34454", "websocket.rs", "refused_refreshes_leave_the_socket_on_its_old_identity"),
    ("CVE-2024-28233, CVE-2026-40864", "websocket/cookies.rs", "a_socket_with_the_cookie_needs_a_page_of_ours"),
    ("CVE-2026-2833", "websocket/life.rs", "an_upgrade_that_is_refused_is_never_a_tunnel"),
    ("CVE-2026-2835, CVE-2021-32714, CVE-2021-32715", "raw/requests.rs", "every_request_is_answered_as_believed"),
    ("CVE-2025-4366", "advisories.rs", "the_body_of_a_refused_request_is_never_the_next_request"),
    ("CVE-2026-71324", "http.rs", "malformed_requests_end_at_the_door"),
    ("CVE-2026-26998", "remote.rs", "a_provider_that_cannot_answer_is_503_and_never_401"),
    ("CVE-2023-43669", "raw/answers.rs", "every_answer_is_passed_on_or_refused_as_believed"),
    ("RUSTSEC-2026-0258", "transport.rs", "tls_on_the_listener_speaks_http_1_and_follows_its_certificate"),
    ("CVE-2026-54338, CVE-2025-25294", "logs.rs", "hostile_strings_make_one_valid_line_each"),
    ("CVE-2024-21500", "addresses.rs", "bad_tokens_are_429_beyond_the_limit_and_good_ones_are_served"),
    ("RUSTSEC-2018-0005", "advisories.rs", "a_deeply_nested_file_is_an_error_and_no_crash"),
    ("CVE-2022-23469, CVE-2022-24757", "logs.rs", "no_token_reaches_the_log_at_trace_level"),
    ("CVE-2026-41181", "remote.rs", "introspection_is_asked_as_rfc_7662_says_and_nothing_of_the_client_goes_along"),
    ("CVE-2024-39315", "metrics.rs", "good_tokens_are_counted_by_carrier_and_by_where_they_were_found"),
    ("CVE-2026-27586, CVE-2026-54762, CVE-2021-21411", "configuration.rs", "every_mistake_says_where_and_what_to_do"),
    ("CVE-2025-24030", "metrics.rs", "the_admin_listener_answers_get_only_to_known_hosts_and_serves_nothing_else"),
    ("GHSA-w9mr-28mw-j8hg", "http.rs", "no_spelling_of_the_identity_header_gets_through"),
    ("CVE-2026-52845", "../backends/main.rs", "a_wsgi_backend_reads_no_look_alike"),
];

#[test]
fn every_published_hole_has_a_test_that_keeps_it_out() {
    for (ids, file, test) in KEPT_OUT {
        let path = format!("{}/tests/program/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(&format!("fn {test}(")), "{ids}: {file} has no test {test}");
    }
}

#[tokio::test]
async fn configured_names_are_protected_in_every_spelling() {
    // Written in other letters than anyone sends; and nothing switches the removal off.
    let fixture = fixture("identity: { headers: { x-TEAM-name: team }, strip: [x-SHIFT] }\n").await;
    let credential = bearer(&fixture.issuer.token_with("alice", json!({"team": "blue"})));
    for spoofed in [
        "X-Team-Name: red",
        "x_team_name: red",
        "X.TEAM-name: red",
        "XTeamName: red",
        "X-Shift: night",
        "x_shift: night",
    ] {
        let fields = [credential.as_str(), spoofed];
        let (_, heard) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
        assert_eq!(heard.all("x-team-name"), ["blue"], "{spoofed}");
        let text = heard.head.to_ascii_lowercase();
        assert!(!text.contains("red") && !text.contains("night"), "{spoofed}: {text}");
    }
}

#[tokio::test]
async fn no_connection_field_takes_our_fields_away() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let ours = "x-user-id, X-FORWARDED-FOR ,x-forwarded-proto,, x-forwarded-host, x-request-id, via, host";
    for named in [
        format!("Connection: close, {ours}"),
        format!("Connection: close\r\nConnection: {ours}"),
        format!("connection:{ours}"),
    ] {
        let fields = [credential.as_str(), &named];
        let asked = crate::support::client::request(fixture.proxy.address, "GET", "/x", &fields, "");
        let (_, heard) = tokio::join!(asked, fixture.backend.answer("ok"));
        assert_eq!(heard.all("x-user-id"), ["alice"], "{named}");
        for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "via", "host"] {
            assert_eq!(heard.all(name).len(), 1, "{named}: {name}");
        }
    }
}

#[tokio::test]
async fn rules_look_at_the_path_that_goes_up_and_at_nothing_else() {
    let mut fixture = fixture("routes: [{ path: /public/**, auth: none }, { path: /health, auth: none }]\n").await;
    for (target, fields) in [
        ("/private?x=/public/status", vec![]),
        ("/private?/public/", vec![]),
        ("/private%23/public/", vec![]),
        ("/private#/public/", vec![]),
        ("/private", vec!["X-Original-URL: /public/x", "X-Rewrite-URL: /public/x"]),
        ("/private", vec!["X-Forwarded-Uri: /public/x", "X-Forwarded-Method: GET", "X-Forwarded-Prefix: /public"]),
        ("/private", vec!["X-Forwarded-Host: health", "Forwarded: host=health;for=127.0.0.1"]),
        ("/private", vec!["User-Agent: ELB-HealthChecker/2.0"]),
        ("/private", vec!["User-Agent: kube-probe/1.30", "Host: 127.0.0.1"]),
        ("/private", vec!["X-HTTP-Method-Override: OPTIONS"]),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        let mut head = format!("GET {target} HTTP/1.1\r\n");
        if !fields.iter().any(|field| field.starts_with("Host:")) {
            head.push_str("Host: localhost\r\n");
        }
        for field in &fields {
            head.push_str(&format!("{field}\r\n"));
        }
        client.send(format!("{head}\r\n")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code()), (401, "missing_token".into()), "{target} {fields:?}");
    }
    assert!(fixture.backend.is_untouched());
}

/// The token with one bit of its signature turned over, at a place that base64url shows.
fn flipped(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{first}{}", &signature[1..])
}

#[tokio::test]
async fn one_flipped_bit_of_a_signature_is_refused_at_every_entry() {
    let mut fixture =
        fixture("token_from: { query: { name: token, for: [websocket, events] }, cookie: __session }\n").await;
    let bad = flipped(&fixture.issuer.token("alice"));
    assert_eq!(get(fixture.proxy.address, "/x", &[&bearer(&bad)]).await.code(), "invalid_token");
    let events = ["Accept: text/event-stream"];
    assert_eq!(get(fixture.proxy.address, &format!("/x?token={bad}"), &events).await.code(), "invalid_token");
    assert_eq!(get(fixture.proxy.address, "/x", &[&format!("Cookie: __session={bad}")]).await.code(), "missing_token");
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &[&bearer(&bad)]).await;
    assert_eq!(answer.code(), "invalid_token");
    let mut query = Socket::open(fixture.proxy.address, &format!("/ws?token={bad}"), &[]).await;
    assert_eq!(query.next_text().await, r#"{"type":"error","message":"Invalid authentication token"}"#);
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(socket.authenticate(&bad).await["message"], "Invalid authentication token");
    assert!(fixture.backend.is_untouched());
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let good = fixture.issuer.token("alice");
    let (said, _upstream) = tokio::join!(socket.authenticate(&good), fixture.backend.websocket());
    assert_eq!(said["type"], "authenticated");
    socket.say(&format!(r#"{{"type":"refresh_auth","token":"{}"}}"#, flipped(&good))).await;
    assert!(socket.next_text().await.contains("Token refresh failed: Invalid authentication token"));
}

#[tokio::test]
async fn a_key_server_with_a_certificate_of_its_own_making_is_not_believed() {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let pem = TempFile::new(&made.cert.pem());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("config");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = listener.local_addr().expect("address").port();
    let to = issuer.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut plain = tokio::net::TcpStream::connect(to).await.expect("connects");
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    let token = bearer(&issuer.token("alice"));
    let fields = [token.as_str()];
    for (ca, believed) in [(String::new(), false), (format!(", ca_file: \"{}\"", pem.path()), true)] {
        let yaml = format!(
            "upstream: {}\nproviders: [{{ issuer: \"{}\", audience: test-api, jwks: {{ url: \"https://localhost:{port}/jwks\"{ca} }} }}]\n",
            backend.url(),
            issuer.url
        );
        let proxy = Proxy::start(&yaml).await;
        if believed {
            let (answer, _) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer("ok"));
            assert_eq!(answer.status, 200);
        } else {
            assert_eq!(get(proxy.address, "/x", &fields).await.code(), "auth_unavailable");
            assert_eq!(get(proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
            proxy.logged("why", |line| line.contains("invalid peer certificate")).await;
        }
    }
}

#[tokio::test]
async fn the_same_token_under_two_configurations_never_shares_a_verdict() {
    let (strict, lax) = (fixture("").await, fixture("").await);
    // A token is valid for its own issuer only, whatever the other has just accepted.
    let token = bearer(&lax.issuer.token("alice"));
    let fields = [token.as_str()];
    let (answer, _) = tokio::join!(get(lax.proxy.address, "/x", &fields), lax.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    assert_eq!(get(strict.proxy.address, "/x", &fields).await.code(), "invalid_token");
    // Two users at once, whose tokens share all but their end: each is who it is.
    let tokens: Vec<_> = ["alice", "bob"].iter().map(|user| bearer(&lax.issuer.token(user))).collect();
    for round in 0..20 {
        let (user, credential) = (["alice", "bob"][round % 2], tokens[round % 2].as_str());
        let fields = [credential];
        let (_, heard) = tokio::join!(get(lax.proxy.address, "/x", &fields), lax.backend.answer("ok"));
        assert_eq!(heard.all("x-user-id"), [user]);
    }
}

#[tokio::test]
async fn an_upgrade_needs_what_its_path_needs_in_every_spelling_of_upgrade() {
    let mut fixture =
        fixture("routes: [{ path: /terminal/**, websocket: { dialect: none } }, { path: /open, auth: none }]\n").await;
    for (upgrade, connection) in [
        ("websocket", "Upgrade"),
        ("WebSocket", "keep-alive, Upgrade"),
        ("WEBSOCKET", "upgrade,keep-alive"),
        ("h2c, websocket", "Upgrade, HTTP2-Settings"),
    ] {
        for target in ["/terminal/ws", "/terminal", "/TERMINAL/x", "/unknown/terminal/../ws", "/unknown/../terminal/ws"]
        {
            let mut client = Client::connect(fixture.proxy.address).await;
            client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: {upgrade}\r\nConnection: {connection}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")).await;
            let status = client.answer().await.status;
            // If another rule matches a reading, the upgrade is refused or waits for a token; the upstream receives
            // nothing.
            let waits = matches!(target, "/TERMINAL/x" | "/unknown/terminal/../ws");
            assert!(matches!(status, 401 | 400) || (status == 101 && waits), "{target} {upgrade}: {status}");
        }
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_the_next_request() {
    let mut fixture = fixture("").await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for length in [hidden.len(), 1_000_000] {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{hidden}")).await;
        assert_eq!(client.answer().await.code(), "missing_token");
        // Read to its end and dropped, or the connection ends: there is no second answer.
        client.finish().await;
        assert!(client.is_closed().await, "{length}");
    }
    assert!(fixture.backend.is_untouched());
}

#[test]
fn a_deeply_nested_file_is_an_error_and_no_crash() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let file = TempFile::new(&format!("routes: {}{}\n", open.repeat(20_000), close.repeat(20_000)));
        let output = command().args(["check", "--config", file.path()]).output().expect("runs");
        assert_eq!(
            output.status.code(),
            Some(2),
            "{}",
            String::from_utf8_lossy(&output.stderr).chars().take(300).collect::<String>()
        );
    }
}
