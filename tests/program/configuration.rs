//! Tests of the errors about a wrong configuration, and that the example file has the keys and defaults of the code.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::proxy::{TempFile, command};

pub fn check(yaml: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("vestibule-check-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::write(folder.join("vestibule.yaml"), yaml).expect("written");
    let mut command: Command = command();
    command.args(["check", "--config", "vestibule.yaml"]).current_dir(&folder);
    for (name, value) in variables {
        command.env(name, value);
    }
    let output = command.output().expect("runs");
    std::fs::remove_dir_all(&folder).expect("removed");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

const GOOD_PROVIDER: &str = "providers: [{ issuer: https://i.example.com, audience: api }]\n";

#[test]
fn the_documented_errors_look_as_documented() {
    let yaml = "listen: \"8080\"\nupstream: \"app:8000\"\nproviders:\n  - preset: oidc\n    issuer: https://i.example.com\n    audiences: [api]\n";
    let (code, text) = check(yaml, &[]);
    assert_eq!(code, Some(2));
    let expected = "vestibule.yaml:1:9  listen: \"8080\" has no address. This machine only: 127.0.0.1:8080. Every address: \":8080\"
vestibule.yaml:2:11 upstream: \"app:8000\" has no scheme. Did you mean http://app:8000 ?
vestibule.yaml:4:5  providers[0]: any token of this issuer would be accepted, also one made for another application;
                    set providers[0].audience, or write `audience: any`
vestibule.yaml:6:5  providers[0].audiences: unknown key; here it is `audience`
  6 |     audiences: [api]
    |     ^^^^^^^^^
4 errors. Nothing was started.
";
    assert_eq!(text, expected);
}

/// The warnings of a configuration that is accepted.
fn warnings(yaml: &str) -> Vec<String> {
    let (code, text) = check(yaml, &[]);
    assert_eq!(code, Some(0), "{yaml}\n{text}");
    text.lines().filter_map(|line| line.strip_prefix("  warning     ")).map(str::to_owned).collect()
}

#[test]
fn a_route_that_is_never_used_is_a_warning_with_its_place() {
    let routes = "routes:\n  - { path: /**, auth: none }\n  - { path: /admin/**, require: { role: admin } }\n";
    let yaml = format!("upstream: http://127.0.0.1:1\n{GOOD_PROVIDER}{routes}");
    let expected = "vestibule.yaml:5:13 routes[1].path: is never used: routes[0] (/**) matches first, and the first match wins; put it above";
    assert_eq!(warnings(&yaml), [expected]);
    let routes = "routes:\n  - { path: /admin/**, require: { role: admin } }\n  - { path: /**, auth: none }\n";
    assert_eq!(warnings(&format!("upstream: http://127.0.0.1:1\n{GOOD_PROVIDER}{routes}")), [""; 0]);
}

#[test]
fn an_issuer_that_no_token_of_its_provider_has_is_a_warning() {
    let yaml = |preset: &str, issuer: &str| {
        format!(
            "upstream: http://127.0.0.1:1\nproviders: [{{ preset: {preset}, issuer: \"{issuer}\", audience: api }}]\n"
        )
    };
    for (preset, issuer, end) in
        [("supabase", "https://abc.supabase.co", "/auth/v1"), ("auth0", "https://t.eu.auth0.com", "/")]
    {
        let found = warnings(&yaml(preset, issuer));
        assert!(found.iter().any(|warning| warning.contains("providers[0].issuer: ")), "{found:?}");
        assert_eq!(warnings(&yaml(preset, &format!("{issuer}{end}"))), [""; 0]);
    }
}

/// Checks that a file without a usable key is an error where it is named, not a proxy that starts and refuses every token.
#[test]
fn a_key_file_without_a_usable_key_is_an_error() {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let (private, public) = (pair.serialize_pem(), pair.public_key_pem());
    let unsupported = r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"}]}"#;
    for (key, content, expected) in [
        ("pem_file", private.as_str(), "a PEM block holds a private key; verification needs the public one"),
        ("pem_file", "nothing", "no PEM block with a public key or certificate"),
        ("file", r#"{"keys":[]}"#, "no usable key: the list is empty"),
        ("file", r#"{"keys":"#, "not a JWKS: "),
        ("file", unsupported, "no usable key: keys[0]: "),
    ] {
        let file = TempFile::new(content);
        let provider = format!(
            "{{ preset: jwt, issuer: \"https://i.example.com\", audience: api, jwks: {{ {key}: \"{}\" }} }}",
            file.path()
        );
        let (code, text) = check(&format!("upstream: http://127.0.0.1:1\nproviders: [{provider}]\n"), &[]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("vestibule.yaml:2:"), "{text}");
        assert!(text.contains(&format!("providers[0].jwks.{key}: {expected}")), "{text}");
    }
    let file = TempFile::new(&public);
    let provider = format!(
        "{{ preset: jwt, issuer: \"https://i.example.com\", audience: api, jwks: {{ pem_file: \"{}\" }} }}",
        file.path()
    );
    assert_eq!(warnings(&format!("upstream: http://127.0.0.1:1\nproviders: [{provider}]\n")), [""; 0]);
}

#[test]
fn a_key_of_its_own_that_cannot_be_read_is_the_only_error() {
    for key in [
        "preset: jwt, jwks: { pem_file: /nowhere/key.pem }",
        "preset: shared-secret, secret_file: /nowhere/secret",
        "preset: shared-secret",
    ] {
        let (code, text) = check(&format!("upstream: http://a\nproviders: [{{ {key} }}]\n"), &[]);
        assert_eq!(code, Some(2), "{key}: {text}");
        assert!(text.trim_end().ends_with("\n1 error. Nothing was started."), "{key}: {text}");
        assert!(text.contains("No such file or directory") || text.contains("has no secret"), "{key}: {text}");
    }
}

#[test]
fn a_clock_skew_that_accepts_ended_tokens_for_long_is_a_warning() {
    let yaml = |skew: &str| {
        format!(
            "upstream: http://127.0.0.1:1\nproviders: [{{ issuer: https://i.example.com, audience: api, clock_skew: {skew} }}]\n"
        )
    };
    let expected = "vestibule.yaml:2:73 providers[0].clock_skew: tokens are accepted for 1d after they have ended; write at most 5m, and set the clock of this machine by NTP";
    assert_eq!(warnings(&yaml("1d")), [expected]);
    assert_eq!(warnings(&yaml("5m")), [""; 0]);
}

#[test]
fn a_reviewer_sees_every_setting_that_opens_something() {
    let yaml = "listen: 127.0.0.1:8080
upstream: http://127.0.0.1:1
trusted_proxies: [private_ranges, 203.0.113.7, unix]
origins: [https://app.example.com, \"https://*.example.org\"]
providers: [{ issuer: https://i.example.com, audience: api, clock_skew: 1m, cache_ttl: 1m }]
routes:
  - { path: /ws/**, websocket: { allowed_origins: [https://ws.example.com] } }
websocket: { on_expiry: keep, max_lifetime: 12h, ping_interval: 30s, ping_timeout: 1m }
events: { on_expiry: close }
errors: verbose
limits: { failed_tokens_per_minute: null, token_bytes: 8KiB }
log: { query: true }
drain: { delay: 10s }
";
    let (code, text) = check(yaml, &[]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "  proxies     private_ranges, 203.0.113.7/32, Unix sockets: their X-Forwarded-For and X-Forwarded-Proto name the client and its scheme\n",
        "  origins     https://app.example.com, https://*.example.org\n",
        "              clock skew 1m: tokens are accepted that long after their end\n",
        "; upgrades of pages from https://ws.example.com only\n",
        "dialect vestibule; stay open after their token's end, at most 12h\n",
        "  events      event streams end with their token\n",
        "  errors      verbose: a caller is told why its token was refused\n",
        "  limits      bad tokens of one address: no limit (failed_tokens_per_minute: null)\n",
        "  log         has the queries of URLs (log.query); values are masked by the names of their parameters\n",
        "  drain       new requests are accepted for 10s after SIGTERM (drain.delay)\n",
        "  also set    providers[0].cache_ttl, websocket.ping_timeout, limits.token_bytes\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (_, text) = check(&format!("upstream: http://127.0.0.1:1\n{GOOD_PROVIDER}websocket: {{ grace: 1s }}\n"), &[]);
    assert!(text.contains("closed with 4401, 5s after their token's end"), "no socket closes before the skew\n{text}");
    // With the defaults there is none of these lines.
    let (_, text) = check(&format!("upstream: http://127.0.0.1:1\n{GOOD_PROVIDER}"), &[]);
    for topic in ["proxies", "origins", "errors", "limits ", "log ", "drain", "also set", "clock skew"] {
        assert!(!text.contains(&format!("  {topic}")), "{topic}\n{text}");
    }
}

#[test]
fn an_upstream_on_another_machine_without_tls_is_a_warning() {
    let yaml = |upstream: &str| format!("upstream: {upstream}\n{GOOD_PROVIDER}");
    let found = warnings(&yaml("http://app.internal:8000"));
    assert_eq!(found.len(), 1, "{found:?}");
    let expected = "vestibule.yaml:1:11 upstream: app.internal is not this machine, and http:// is not encrypted";
    assert!(found[0].starts_with(expected), "{found:?}");
    for upstream in
        ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://app.internal", "unix:/run/app.sock"]
    {
        assert_eq!(warnings(&yaml(upstream)), [""; 0], "{upstream}");
    }
}

#[test]
fn a_setting_that_opens_more_than_it_seems_to_is_a_warning() {
    let yaml = |upstream: &str, more: &str| format!("upstream: {upstream}\n{GOOD_PROVIDER}{more}");
    let provider = |keys: &str| format!("upstream: http://127.0.0.1:1\nproviders: [{{ audience: api, {keys} }}]\n");
    for (yaml, expected) in [
        (yaml("http://0.0.0.0:8000", ""), "vestibule.yaml:1:11 upstream: 0.0.0.0 is an address to listen on"),
        (yaml("\"http://[::]:8000\"", ""), "vestibule.yaml:1:11 upstream: :: is an address to listen on"),
        (
            yaml("http://127.0.0.1:1", "trusted_proxies: [0.0.0.0/0]\n"),
            "trusted_proxies[0]: 0.0.0.0/0 has addresses of many",
        ),
        (yaml("http://127.0.0.1:1", "trusted_proxies: [\"::/0\"]\n"), "trusted_proxies[0]: ::/0 has addresses of many"),
        (
            provider("issuer: \"http://id.example.com\", jwks: { allow_http: true }"),
            "providers[0].jwks.allow_http: keys come from id.example.com by plain http",
        ),
        (
            provider("issuer: https://i.example.com, jwks: { url: \"http://k.example.com/k\", allow_http: true }"),
            "providers[0].jwks.allow_http: keys come from k.example.com by plain http",
        ),
        (
            provider("issuer: https://i.example.com, jwks: { refresh: 2d }"),
            "providers[0].jwks.refresh: a key that the provider withdraws",
        ),
        (
            provider(
                "preset: introspection, remote: { url: \"http://i.example.com/x\", client_id: c, client_secret: s, allow_http: true }",
            ),
            "providers[0].remote.allow_http: tokens and our secret go to i.example.com by plain http",
        ),
        (
            yaml("http://127.0.0.1:1", "routes: [{ path: /**, auth: none }]\n"),
            "routes[0].auth: makes every path public",
        ),
    ] {
        let found = warnings(&yaml);
        assert!(found.len() == 1 && found[0].contains(expected), "{yaml}\n{found:?}");
    }
    for yaml in [
        yaml("http://127.0.0.1:1", "trusted_proxies: [10.0.0.0/8, \"fc00::/7\", private_ranges]\n"),
        provider("issuer: \"http://127.0.0.1:1\", jwks: { allow_http: true, refresh: 1d }"),
        // Another port, and another address of this machine.
        yaml("http://127.0.0.1:8081", "listen: \":8080\"\n"),
        yaml("http://127.0.0.1:8080", "listen: 127.0.0.2:8080\n"),
    ] {
        assert_eq!(warnings(&yaml), [""; 0], "{yaml}");
    }
}

#[test]
fn the_summary_lists_no_rule_below_one_for_every_path() {
    let (_, text) = check(
        &format!("upstream: http://127.0.0.1:1\n{GOOD_PROVIDER}routes: [{{ path: /**, auth: optional }}]\n"),
        &[],
    );
    assert!(text.contains("  routes      /**: anyone; a token is verified when sent\n"), "{text}");
    assert!(!text.contains("everything else"), "{text}");
}

#[test]
fn every_mistake_says_where_and_what_to_do() {
    for (yaml, expected) in [
        (format!("{GOOD_PROVIDER}upstream: http://127.0.0.1:8080\nlisten: \":8080\"\n"), "upstream: is the address at which this proxy itself listens (listen)"),
        (format!("{GOOD_PROVIDER}upstream: http://localhost:8080\nlisten: 127.0.0.1:8080\n"), "upstream: is the address at which this proxy itself listens (listen)"),
        (format!("{GOOD_PROVIDER}upstream: http://0.0.0.0:8080\nlisten: 127.0.0.1:8080\n"), "upstream: is the address at which this proxy itself listens (listen)"),
        (
            format!("{GOOD_PROVIDER}upstream: http://127.0.0.1:1\nlisten: 127.0.0.1:8080\nroutes: [{{ path: /a/**, upstream: \"http://127.0.0.1:8080\" }}]\n"),
            "routes[0].upstream: is the address at which this proxy itself listens (listen)",
        ),
        ("upstream: http://a\n".to_owned(), "providers: no provider: nobody could sign in"),
        (GOOD_PROVIDER.to_owned(), "upstream: is missing: where is the backend? Write upstream: http://127.0.0.1:8000"),
        (
            "upstream: http://a\nproviders: [{ issuer: \"https://i.example.com/.well-known/openid-configuration\", audience: a }]\n".to_owned(),
            "providers[0].issuer: is the address of the discovery document; the issuer is the part before it: https://i.example.com\n",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: shared-secret, secret: \"${SESSION_SECRET}\" }]\n".to_owned(),
            "providers[0].secret: ${SESSION_SECRET} is not set; set the variable\n",
        ),
        (format!("{GOOD_PROVIDER}upstream: http://a/api\n"), "upstream: has a path; paths go up as the client sent them"),
        (format!("{GOOD_PROVIDER}upstream: http://u:p@a\n"), "the backend's own secret goes into upstream.credential"),
        (format!("{GOOD_PROVIDER}upstream: http://@a\n"), "upstream: has a user or password in it"),
        (format!("{GOOD_PROVIDER}upstream: http://u:p/p@a\n"), "upstream: has a user or password in it"),
        (format!("{GOOD_PROVIDER}upstream: http://a/b@c\n"), "upstream: has a path; paths go up as the client sent them"),
        (format!("{GOOD_PROVIDER}upstream: ${{BACKEND}}\n"), "upstream: ${BACKEND} is not set; set it, or write ${BACKEND:-default}"),
        (format!("{GOOD_PROVIDER}upstream: ${{EMPTY}}\n"), "upstream: ${EMPTY} is empty; give the variable a value"),
        ("upstream: http://a\nproviders: [{ preset: shared-secret, secret: short }]\n".to_owned(), "providers[0].secret: has 5 bytes, and needs at least 32"),
        (
            "upstream: http://a\nproviders: [{ preset: shared-secret, secret: a-string-secret-at-least-256-bits-long }]\n".to_owned(),
            "is a default that is published in documentation; anyone can sign with it",
        ),
        ("upstream: http://a\nproviders: [{ preset: jwt, issuer: x, secret_file: /nowhere }]\n".to_owned(), "providers[0].secret_file: preset jwt verifies with public keys; use preset: shared-secret"),
        ("upstream: http://a\nproviders: [{ preset: shared-secret, secret_file: /nowhere/at/all }]\n".to_owned(), "providers[0].secret_file: /nowhere/at/all: No such file or directory"),
        ("upstream: http://a\nproviders: [{ preset: odic, issuer: x, audience: a }]\n".to_owned(), "providers[0].preset: \"odic\" is not one of oidc, clerk, supabase, auth0, cognito, keycloak, entra, google, aws-alb, jwt, shared-secret, introspection. Did you mean oidc?"),
        ("upstream: http://a\nproviders: [{ preset: clerk }]\n".to_owned(), "providers[0]: has no issuer; write the `iss` of its tokens, exactly: issuer: https://issuer.example.com,"),
        ("upstream: http://a\nproviders: [{ preset: clerk, publishable_key: sk_live_x }]\n".to_owned(), "providers[0].publishable_key: is not one of Clerk's: pk_live_… or pk_test_…, as the dashboard shows it"),
        ("upstream: http://a\nproviders: [{ preset: cognito, region: eu-central-1, audience: a }]\n".to_owned(), "providers[0].region: needs user_pool_id beside it, or write issuer instead of both"),
        ("upstream: http://a\nproviders: [{ preset: auth0, domain: https://t.auth0.com, audience: a }]\n".to_owned(), "providers[0].domain: \"https://t.auth0.com\" is not a name; write it without scheme and slashes"),
        ("upstream: http://a\nproviders: [{ preset: auth0, domain: t.auth0.com, issuer: https://t.auth0.com, audience: a }]\n".to_owned(), "providers[0].issuer: domain says the issuer is https://t.auth0.com/; keep one of the two"),
        ("upstream: http://a\nproviders: [{ preset: oidc, issuer: https://i, audience: a, project: x }]\n".to_owned(), "providers[0].project: means nothing to preset oidc"),
        ("upstream: http://a\nproviders: [{ issuer: https://i, audience: a, accept: [template] }]\n".to_owned(), "providers[0].accept: template is a kind of Clerk's tokens"),
        ("upstream: http://a\nproviders: [{ issuer: \"http://i.example.com\", audience: a }]\n".to_owned(), "would fetch keys over plain http"),
        ("upstream: http://a\nproviders: [{ issuer: https://i, audience: a, algorithms: [HS256] }]\n".to_owned(), "providers[0].algorithms[0]: \"HS256\" is not one of RS256"),
        (
            "upstream: http://a\nproviders: [{ name: a, issuer: https://i, audience: a }, { name: b, issuer: https://j, audience: a }]\n".to_owned(),
            "providers[1]: has no user_prefix: anyone who runs one issuer could be any user of the other",
        ),
        (
            "upstream: http://a\nproviders: [{ name: a, issuer: https://i, audience: a, user_prefix: a }, { name: b, issuer: https://j, audience: a, user_prefix: ab }]\n".to_owned(),
            "\"ab\" and \"a\" overlap",
        ),
        ("upstream: http://a\nproviders: [{ name: a, issuer: https://i, audience: a }, { name: b, issuer: https://i, audience: a }]\nshared_user_ids: true\n".to_owned(), "providers[1].issuer: another provider has the same issuer"),
        ("upstream: http://a\nproviders: [{ preset: introspection, audience: a }]\n".to_owned(), "providers[0].remote: is missing: preset introspection asks the provider about every token"),
        (
            "upstream: http://a\nproviders: [{ preset: introspection, audience: a, remote: { url: \"http://i.example.com/x\", client_id: c, client_secret: s } }]\n".to_owned(),
            "providers[0].remote.url: would send tokens and our secret over plain http",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: introspection, audience: a, remote: { mode: also, url: https://i/x, client_id: c, client_secret: s } }]\n".to_owned(),
            "providers[0].remote.mode: preset introspection verifies no signatures, so mode cannot be also",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: introspection, audience: a, jwks: { url: https://i/k }, remote: { url: https://i/x, client_id: c, client_secret: s } }]\n".to_owned(),
            "providers[0].jwks: preset introspection asks the provider about every token, and verifies no signature",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: introspection, audience: a, remote: { url: https://i/x, client_secret: s } }]\n".to_owned(),
            "providers[0].remote.client_id: is missing",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: clerk, issuer: https://i, remote: { secret_key: sk } }]\n".to_owned(),
            "providers[0].remote: has no mode; also: every token is asked about beside its signature; instead: only opaque tokens are",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: clerk, issuer: https://i, remote: { mode: also } }]\n".to_owned(),
            "providers[0].remote.secret_key_file: is missing: the provider answers only to a caller it knows",
        ),
        (
            "upstream: http://a\nproviders: [{ preset: clerk, issuer: https://i, remote: { mode: also, secret_key: sk, client_id: c } }]\n".to_owned(),
            "providers[0].remote.client_id: means nothing to preset clerk; it takes secret_key_file",
        ),
        (
            "upstream: http://a\nshared_user_ids: true\nproviders: [{ preset: clerk, issuer: https://i, remote: { mode: instead, secret_key: sk } }, { preset: introspection, audience: a, remote: { url: https://i/x, client_id: c, client_secret: s } }]\n".to_owned(),
            "providers[1].remote.mode: an opaque token goes to one provider, and \"clerk\" has mode: instead already",
        ),
        (format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ revalidate_every: 60s }}\n"), "websocket.revalidate_every: asks the provider about open sockets, and no provider has `remote`"),
        (
            "upstream: http://a\nproviders: [{ preset: introspection, audience: a, remote: { url: https://i/x, client_id: c, client_secret: s } }]\nwebsocket: { revalidate_every: 60s, on_expiry: auto }\n".to_owned(),
            "provider introspection can be asked only about a token that has not ended, so sockets cannot outlive it",
        ),
        (format!("{GOOD_PROVIDER}upstream: http://a\ncontrol: {{ listen: \"0.0.0.0:9181\", token: x }}\n"), "control.listen: \"0.0.0.0:9181\" is neither unix:/path nor a loopback address with a port"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ncontrol: {{ listen: \"127.0.0.1:9181\" }}\n"), "control: listens on loopback, which every program on this machine reaches; write token_file beside it"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ncontrol: {{ listen: \"127.0.0.1:9181\", token: short }}\n"), "control.token: has 5 bytes, and needs at least 32"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ncontrol: {{ listen: \"unix:/x\", revocation_keep: 1s }}\n"), "control.revocation_keep: must be longer than the longest life of a token"),
        (format!("{GOOD_PROVIDER}upstream: {{ url: http://a, tls: {{ server_name: b }} }}\n"), "upstream.tls: means nothing to an upstream without TLS; write https://"),
        (format!("{GOOD_PROVIDER}upstream: {{ url: https://a, tls: {{ ca_file: /dev/null }} }}\n"), "upstream.tls.ca_file: /dev/null holds no certificate in PEM"),
        (format!("{GOOD_PROVIDER}upstream: unix:app.sock\n"), "upstream: \"app.sock\" is not a whole path; write unix:/run/app.sock"),
        (format!("{GOOD_PROVIDER}upstream: ftp://a\n"), "\"ftp://\" is not supported; write http://host:port, https://host:port or unix:/path"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlisten: [{{ address: \"127.0.0.1:1\", tls: {{ key_file: /dev/null }} }}]\n"), "listen.tls: needs certificate_file and key_file, both PEM"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlisten: unix:x\n"), "listen: \"x\" is not a whole path; write unix:/run/vestibule/http.sock"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, auth: deny, upstream: http://b }}]\n"), "routes[0].upstream: is never reached: the rule says auth: deny"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, upstream: b:80 }}]\n"), "routes[0].upstream: \"b:80\" has no scheme. Did you mean http://b:80 ?"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ncors: {{}}\n"), "cors: answers the pages of `origins`, and there are none"),
        (format!("{GOOD_PROVIDER}upstream: http://a\norigins: [https://a.example]\ncors: {{ allowed_methods: [get] }}\n"), "cors.allowed_methods[0]: \"get\" is not a method"),
        (format!("{GOOD_PROVIDER}upstream: http://a\norigins: [https://a.example]\ncors: {{ allowed_headers: [\"*\"] }}\n"), "cors.allowed_headers[0]: \"*\" is not a header name; a request with a credential needs each by name"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlimits: {{ failed_tokens_per_minute: 0 }}\n"), "limits.failed_tokens_per_minute: must be greater than zero"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlisten: [{{ address: \"unix:/x\", tls: {{ certificate_file: /dev/null, key_file: /dev/null }} }}]\n"), "listen.tls: means nothing on a Unix socket"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: health, auth: none }}]\n"), "routes[0].path: \"health\" must start with a slash: \"/health\""),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, auth: none, require: {{ a: b }} }}]\n"), "routes[0].require: needs a verified user, and this rule lets callers in without one"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, require: {{ sub: \"{{user}}\" }} }}]\n"), "{user} is not a variable of the path"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, auth: none }}]\npaths: lenient\n"), "paths: unknown key; every path is checked in all its readings; delete this key"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: /x, auth: optional, require: {{ a: b }} }}]\n"), "routes[0].require: needs a verified user, and this rule lets callers in without one"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nroutes: [{{ path: \"/a/{{u}}/b/{{u}}\" }}]\n"), "routes[0].path: {u} is used twice; give each variable a name of its own"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nidentity: {{ headers: {{ Host: sub }} }}\n"), "identity.headers.Host: Host has a meaning of its own"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nidentity: {{ headers: {{ X-User-Id: sub, x_user_id: name }} }}\n"), "is the same name as"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlisten: 0.0.0.0:80\nerrors: verbose\n"), "errors: verbose tells every caller why a token was refused"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlimits: {{ connections: null }}\n"), "limits.connections: cannot be switched off with null; expected a whole number"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nlimits: ~\n"), "limits: cannot be switched off with null; expected a mapping, as in `limits: { connections: 10000 }`; its keys are connections"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ntoken_from: {{ header: X-Token, basic: true }}\n"), "token_from.basic: needs Authorization in token_from.header"),
        (format!("{GOOD_PROVIDER}upstream: http://a\norigins: [https://a.example]\ncors: {{ exposed_headers: [\"*\"] }}\n"), "cors.exposed_headers[0]: \"*\" is not a header name"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nbrowser: {{ session: {{ name: session }} }}\n"), "browser.session.name: \"session\" must be vestibule, or vestibule-"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nbrowser: {{ session: {{ name: vestibule-login }} }}\n"), "browser.session.name: \"vestibule-login\" must be"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nbrowser: {{ session: {{ partitioned: true }} }}\n"), "browser.session.partitioned: means nothing without same_site: none"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nprotected_resource: {{}}\n"), "protected_resource.resource: is not known: set public_url"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nprotected_resource: {{ resource: \"http://b.example.com/mcp\" }}\n"), "must begin with https://"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nprotected_resource: {{ resource: \"https://B.example.com/mcp\" }}\n"), "write https://b.example.com/mcp"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nprotected_resource: {{ resource: \"https://b.example.com\", scopes: [\"a b\"] }}\n"), "protected_resource.scopes[0]: \"a b\" is not one scope"),
        (format!("{GOOD_PROVIDER}upstream: http://a\npublic_url: https://b.example.com\nroutes: [{{ path: /a/*/b, protected_resource: {{}} }}]\n"), "routes[0].protected_resource.resource: is not known, since the rule's path is no fixed one"),
        (format!("{GOOD_PROVIDER}upstream: http://a\npublic_url: https://b.example.com\nroutes: [{{ path: /a, auth: none, protected_resource: {{}} }}]\n"), "routes[0].protected_resource: has no effect: a rule with this auth reads no token; remove it"),
        (format!("{GOOD_PROVIDER}upstream: http://a\npublic_url: https://b.example.com\nprotected_resource: {{ scopes: [x] }}\nroutes: [{{ path: /**, methods: [GET], protected_resource: {{}} }}]\n"), "differs from protected_resource, and both documents would be at"),
        ("upstream: http://a\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX, issuer: https://i.example.com }]\nprotected_resource: { resource: \"https://b.example.com\" }\n".to_owned(), "protected_resource: no provider has an issuer at which a client could request a token"),
        (format!("{GOOD_PROVIDER}upstream: http://a\norigins: [\"file:///x\"]\n"), "origins[0]: \"file:///x\": pages of file: have no origin"),
        ("upstream: http://a\nproviders: [{ preset: aws-alb, issuer: https://i, signer: \"arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/a/1\" }]\n".to_owned(), "write trusted_proxies: [private_ranges]"),
        ("upstream: http://a\ntrusted_proxies: [private_ranges]\nproviders: [{ preset: aws-alb, issuer: https://i }]\n".to_owned(), "providers[0]: has no signer: every load balancer of AWS could name any user"),
        ("upstream: http://a\ntrusted_proxies: [private_ranges]\nproviders: [{ preset: aws-alb, issuer: https://i, signer: front }]\n".to_owned(), "providers[0].signer: \"front\" is not the ARN of an Application Load Balancer"),
        ("upstream: http://a\ntrusted_proxies: [private_ranges]\nproviders: [{ preset: aws-alb, issuer: https://i, region: us-east-1, signer: \"arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/a/1\" }]\n".to_owned(), "providers[0].signer: is in the region eu-central-1, and region says another"),
        ("upstream: http://a\ntrusted_proxies: [private_ranges]\nproviders: [{ preset: aws-alb, issuer: https://i, signer: \"arn:aws-cn:elasticloadbalancing:cn-north-1:123456789012:loadbalancer/app/a/1\" }]\n".to_owned(), "providers[0].signer: is in aws-cn, whose keys have another place"),
        ("upstream: http://a\nproviders: [{ issuer: https://i, audience: a, signer: x }]\n".to_owned(), "providers[0].signer: means nothing to preset oidc"),
        (format!("{GOOD_PROVIDER}upstream: http://a\norigins: [app.example.com]\n"), "origins[0]: \"app.example.com\" has no scheme. Did you mean https://app.example.com ?"),
        (format!("{GOOD_PROVIDER}upstream: http://a\ntrusted_proxies: [balancer]\n"), "trusted_proxies[0]: \"balancer\" is not an address, a CIDR, `private_ranges` or `unix`"),
        (format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ dialect: graphql }}\n"), "websocket.dialect: \"graphql\" is not one of graphql-transport-ws, vestibule, token-field, none; further ones are written under `dialects`"),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ dialect: {{ name: vestibule, field: /t }} }}\n"),
            "websocket.dialect: field and upstream belong to the dialect token-field; write { name: token-field, field: /auth_token }",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ dialect: {{ name: token-field, field: token }} }}\n"),
            "websocket.dialect.field: \"token\" is not an RFC 6901 pointer; write /token",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ message_bytes: 1KiB }}\n"),
            "websocket.message_bytes: must be between 64KiB and 64MiB",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ntoken_from: {{ cookie: \"a b\" }}\n"),
            "token_from.cookie: \"a b\" is not a cookie's name; write it as __session",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: {{ url: http://a, token_to: {{ websocket: {{ first_message: token-field }} }} }}\n"),
            "upstream.token_to.websocket.first_message: \"token-field\" is not a dialect with a first message",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: {{ url: http://a, token_to: {{ websocket: {{ first_message: graphql-transport-ws }} }} }}\n"),
            "graphql-transport-ws has no acknowledge with a fixed member, so nobody could tell when the upstream accepted the user of default",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: {{ url: http://a, token_to: {{ websocket: {{ first_message: vestibule }} }} }}\nwebsocket: {{ dialect: graphql-transport-ws }}\n"),
            "clients of default speak graphql-transport-ws, whose messages are forwarded",
        ),
        (format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ drain_code: 1005 }}\n"), "websocket.drain_code: 1005 cannot be sent in a Close"),
        (format!("{GOOD_PROVIDER}upstream: {{ url: http://a, credential: {{ header: Authorization }} }}\n"), "upstream.credential: has no value"),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\nwebsocket: {{ on_expiry: keep }}\n"),
            "websocket.on_expiry: keep lets sockets outlive their tokens, so max_lifetime must be set beside it",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: {{ url: http://a, token_to: {{ websocket: cookie }} }}\n"),
            "upstream.token_to.websocket: \"cookie\" is not one of none, header, { query: token }, { first_message: vestibule }",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ntoken_from: {{ subprotocol: [{{ encoding: url }}] }}\n"),
            "token_from.subprotocol[0].prefix: is empty: every offer would be taken for a token",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ndialects: {{ mine: {{ authenticate: {{ token: [token] }} }} }}\n"),
            "dialects.mine.authenticate: has no match: every message would be taken for it",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ndialects: {{ mine: {{ authenticate: {{ match: {{ a: b }}, token: [token] }} }} }}\n"),
            "dialects.mine.authenticate.token[0]: \"token\" is not an RFC 6901 pointer; write /token",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ndialects: {{ mine: {{ authenticate: {{ match: {{ a: b }}, token: [/t] }}, close: {{ expird: 4401 }} }} }}\n"),
            "dialects.mine.close.expird: unknown key",
        ),
        (
            format!("{GOOD_PROVIDER}upstream: http://a\ndialects: {{ none: {{ authenticate: {{ match: {{ a: b }}, token: [/t] }} }} }}\n"),
            "dialects.none: is the name of a built-in dialect; choose another",
        ),
        ("upstream: http://a\nproviders: [{ preset: introspection, audience: any, remote: { url: \"https://i/x\", client_id: v, client_secret: x } }, { preset: supabase, project: abc, user_prefix: s, remote: { mode: also, secret_key: x } }]\nbrowser: { session: { max_age: 1h } }\n".to_owned(), "browser.session.max_age: provider supabase is asked about every token (remote.mode: also)"),
        ("upstream: { url: http://a, token_to: { http: header } }\nbrowser: { session: {} }\n".to_owned(), "browser.session: without browser.login a session has no token, and http://a is to get one"),
        ("upstream: http://a\nbrowser: { session: { secret: short } }\n".to_owned(), "browser.session.secret: has 5 bytes, and needs at least 32"),
        ("upstream: http://a\nproviders: [{ preset: entra, audience: a, tenant: organizations }]\n".to_owned(), "providers[0].tenant: \"organizations\" stands for many tenants, and a token names one; write the tenant's id, and a provider for each tenant"),
        ("upstream: http://a\nproviders: [{ preset: entra, audience: a, tenant: contoso.onmicrosoft.com }]\n".to_owned(), "providers[0].tenant: \"contoso.onmicrosoft.com\" is not a tenant's id"),
        ("upstream: http://a\nproviders: [{ preset: entra, audience: a }]\n".to_owned(), "\n                    or tenant\n"),
        ("upstream: http://a\nproviders: [{ preset: oidc, audience: a, issuer: \"https://login.microsoftonline.com/{tenantid}/v2.0\" }]\n".to_owned(), "providers[0].issuer: holds a placeholder, and a token names its tenant there; write the issuer of one tenant"),
        ("upstream: http://a\nbrowser: { sign_in_url: \"https://{return_path}.example.com/\" }\n".to_owned(), "has a placeholder outside its query"),
        ("upstream: http://a\nbrowser: { sign_in_url: \"/in?back={return_url}\" }\n".to_owned(), "holds {return_url}, and public_url is not set"),
        ("upstream: http://a\nbrowser: { sign_in_url: \"/in?back={return_path}\" }\n".to_owned(), "/in itself asks for a credential, so browsers would be redirected in a loop; add, above the rule that does, routes: [{ path: /in, auth: none }]"),
        ("upstream: http://a\npublic_url: https://b.example.com\nbrowser: { sign_in_url: \"https://b.example.com/in\" }\n".to_owned(), "/in itself asks for a credential"),
        ("upstream: http://a\nbrowser: { sign_in_url: \"javascript:alert(1)\" }\n".to_owned(), "is neither a path nor an http or https URL"),
        ("upstream: http://a\nbrowser: { session: {}, contact: \"javascript:alert(1)\" }\n".to_owned(), "browser.contact: \"javascript:alert(1)\" is neither an http or https URL nor a mail address; write a mail address"),
        ("upstream: { url: http://a, preset: jupiter }\n".to_owned(), "\"jupiter\" is not one of jupyter, marimo. Did you mean jupyter?"),
        ("a: [1\n".to_owned(), "not valid YAML"),
        ("a:\n\t- b\n".to_owned(), "(block indentation); indent with spaces"),
        ("routes:\n  - { path: /files/{user}/** }\n".to_owned(), "a text with braces needs quotes: path: \"/files/{user}/**\""),
        ("a: 1\na: 2\n".to_owned(), "a: duplicate key; keep one"),
        (format!("{GOOD_PROVIDER}upstream: http://a\njwks_uri: x\n"), "jwks_uri: unknown key; here it is `jwks: { url: … }`"),
    ] {
        let (code, text) = check(&yaml, &[("EMPTY", "")]);
        assert_eq!(code, Some(2), "{yaml}: {text}");
        assert!(text.contains(expected), "{yaml}\nsaid: {text}\nexpected: {expected}");
        assert!(text.trim_end().ends_with("Nothing was started."), "{text}");
    }
}

#[test]
fn check_prints_the_policy_as_it_will_be() {
    let yaml = format!(
        "{GOOD_PROVIDER}upstream: http://127.0.0.1:8000\nroutes: [{{ path: /health, auth: none }}, {{ path: /api/admin/**, require: {{ role: admin }} }}]\n"
    );
    let (code, text) = check(&yaml, &[]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "/health: anyone",
        "/api/admin/**: a valid token, if role is admin",
        "everything else: a valid token",
        "X-User-Id = sub",
        "discovery at https://i.example.com/.well-known/openid-configuration",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn check_prints_durations_as_they_are_written() {
    let yaml = format!(
        "{GOOD_PROVIDER}upstream: http://127.0.0.1:8000\nwebsocket: {{ max_lifetime: 12h, idle_timeout: 1800s }}\n"
    );
    let (_, text) = check(&yaml, &[]);
    assert!(text.contains("closed with 4401, 30s after their token's end, unless refreshed"), "{text}");
    assert!(text.contains("at most 12h") && text.contains("closed after 30m without a message"), "{text}");
}

#[test]
fn a_variable_that_is_not_set_hides_no_other_mistake() {
    let yaml = "upstream: app:8000\nproviders: [{ issuer: \"${ISSUER}\", audience: api }]\nlimits: { connections: \"${N}\", conections: 1 }\n";
    let (code, text) = check(yaml, &[]);
    assert_eq!(code, Some(2));
    for line in [
        "vestibule.yaml:1:11 upstream: \"app:8000\" has no scheme.",
        "vestibule.yaml:2:23 providers[0].issuer: ${ISSUER} is not set; set it,",
        "vestibule.yaml:3:24 limits.connections: ${N} is not set; set it,",
        "vestibule.yaml:3:32 limits.conections: unknown key",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("4 errors. Nothing was started.\n"), "{text}");
    let (_, all) = check("${CONFIG}\n", &[]);
    assert!(all.contains("${CONFIG} is not set"), "{all}");
}

#[test]
fn a_wrong_value_hides_no_unknown_key_and_no_other_wrong_value() {
    let yaml = "upstream: http://127.0.0.1:1\norigns: [https://a.example]\nproviders:\n  - { preset: [oidc], audience: api }\n  - { isuer: x, clock_skew: soon }\nlimits: { connections: many, conections: 1 }\nroutes: [{ path: /x, auth: nobody }]\nlog: { levl: info }\n";
    let (code, text) = check(yaml, &[]);
    assert_eq!(code, Some(2));
    for line in [
        "vestibule.yaml:2:1  origns: unknown key; did you mean `origins`?",
        "vestibule.yaml:4:15 providers[0].preset: ",
        "vestibule.yaml:5:7  providers[1].isuer: unknown key",
        "vestibule.yaml:5:29 providers[1].clock_skew: ",
        "vestibule.yaml:6:24 limits.connections: \"many\" is not a whole number",
        "vestibule.yaml:6:30 limits.conections: unknown key",
        "vestibule.yaml:7:28 routes[0].auth: \"nobody\" is not one of",
        "vestibule.yaml:8:8  log.levl: unknown key",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("8 errors. Nothing was started.\n"), "{text}");
}

#[test]
fn mistakes_in_flags_name_the_flags() {
    let say = |arguments: &[&str]| {
        let output =
            command().args(["check", "--upstream", "http://127.0.0.1:1"]).args(arguments).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (arguments, expected) in [
        (&["--issuer", "https://i.example"][..], "set --audience, or write `--audience any`"),
        (
            &[],
            "flags providers: no provider: nobody could sign in. Add one, for example\n      --issuer https://issuer.example.com --audience my-api\n",
        ),
        (&["--preset", "clerk"], "write the `iss` of its tokens, exactly: --issuer https://issuer.example.com,"),
        (
            &["--issuer", "127.0.0.1:9400", "--audience", "a"],
            "\"127.0.0.1:9400\" has no scheme. Did you mean http://127.0.0.1:9400 ?",
        ),
        (
            &["--issuer", "i.example", "--audience", "a"],
            "\"i.example\" has no scheme. Did you mean https://i.example ?",
        ),
        (
            &["--issuer", "https://i.example", "--audience", "a", "--origin", "localhost:3000"],
            "--origin origins[0]: \"localhost:3000\" has no scheme. Did you mean http://localhost:3000 ?",
        ),
    ] {
        let said = say(arguments);
        assert!(said.contains(expected) && !said.contains("providers[0].audience"), "{arguments:?}: {said}");
    }
    let output = command().args(["check", "--issuer", "https://i.example", "--audience", "a"]).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("where is the backend? Write --upstream http://127.0.0.1:8000"), "{said}");
}

#[test]
fn check_prints_the_close_code_of_the_dialect() {
    let dialect = "dialects: { mine: { authenticate: { match: { a: b }, token: [/t] }, close: { expired: 4999 } } }\n";
    for (name, code) in [("vestibule", 4401), ("graphql-transport-ws", 4403), ("token-field", 4401), ("mine", 4999)] {
        let yaml =
            format!("{GOOD_PROVIDER}upstream: http://127.0.0.1:8000\n{dialect}websocket: {{ dialect: {name} }}\n");
        let (_, text) = check(&yaml, &[]);
        assert!(text.contains(&format!("closed with {code}, 30s after their token's end")), "{name}: {text}");
    }
}

/// Every key path of the example, commented ones included.
fn example() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.yaml")).expect("the example")
}

#[test]
fn the_example_is_valid_as_it_stands() {
    let (code, text) = check(&example(), SECRETS);
    assert_eq!(code, Some(0), "{text}");
}

/// The environment variables that the example needs.
const SECRETS: &[(&str, &str)] = &[
    ("BACKEND_SECRET", "x"),
    ("SESSION_SECRET", "0123456789abcdef0123456789abcdefXYZ"),
    ("INTROSPECTION_SECRET", "x"),
];

/// The source of the keys.
pub fn shape() -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let parts = std::fs::read_dir(folder.join("shape")).expect("shape").map(|entry| entry.expect("entry").path());
    let texts = parts.chain([folder.join("shape.rs")]).map(|path| std::fs::read_to_string(path).expect("text"));
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_shows_every_key_of_the_code() {
    let shape = shape();
    let example = example();
    let mut keys = 0;
    let lines = shape.lines();
    let mut renamed = None;
    for line in lines {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
            renamed = name.split('"').next();
        }
        let Some(field) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")).map(|(name, _)| name) else {
            continue;
        };
        if !field.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            continue;
        }
        let key = renamed.take().unwrap_or(field);
        // This is the long form of `websocket: header`, which is never written.
        if key == "form" {
            continue;
        }
        keys += 1;
        assert!(example.contains(&format!("{key}:")), "config.example.yaml does not show `{key}`");
    }
    assert!(keys > 70, "the keys are read from the source: {keys}");
}

#[test]
fn the_example_shows_the_defaults_that_are_in_force() {
    // The value that the example shows for a key with a default must change nothing.
    let (_, with) = check(&format!("{}\n", example()), SECRETS);
    let kept: String = example()
        .lines()
        .scan(false, |inside, line| {
            // The sections that are pure defaults are left out; the rest needs values of its own.
            if !line.starts_with([' ', '#']) && !line.is_empty() {
                *inside = [
                    "websocket:",
                    "limits:",
                    "events:",
                    "control:",
                    "drain:",
                    "log:",
                    "token_from:",
                    "errors:",
                    "identity:",
                ]
                .iter()
                .any(|key| line.starts_with(key));
            }
            Some(if *inside { "" } else { line })
        })
        .collect::<Vec<_>>()
        .join("\n");
    let (code, without) = check(&kept, SECRETS);
    assert_eq!(code, Some(0), "{without}");
    let body = |text: &str| text.lines().skip(1).collect::<Vec<_>>().join("\n");
    assert_eq!(body(&with), body(&without));
}

#[test]
fn the_reference_in_docs_is_the_one_the_program_prints() {
    let printed = crate::support::proxy::command().args(["schema", "--markdown"]).output().expect("runs");
    let printed = String::from_utf8(printed.stdout).expect("utf-8");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    if std::env::var_os("WRITE_OUTCOMES").is_some() {
        std::fs::write(path, &printed).expect("written");
    }
    assert!(
        std::fs::read_to_string(path).is_ok_and(|kept| kept == printed),
        "docs/configuration.md is another: vestibule schema --markdown > docs/configuration.md"
    );
}
