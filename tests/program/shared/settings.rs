//! Tests of the errors about a wrong configuration of `shared`, and of the summary of a right one.

use crate::configuration::check;

const SECRET: &str = "browser: { session: { secret: 0123456789abcdefghijklmnopqrstuvwxyz } }\n";
const REST: &str = "upstream: http://a\nproviders: [{ issuer: https://i.example.com, audience: api }]\n";

#[test]
fn every_mistake_says_what_to_do() {
    for (shared, expected) in [
        ("{}", "shared: needs a url, and at most 16; write shared: \"rediss://cache.internal:6379\""),
        (
            "cache.internal:6379",
            "shared: \"cache.internal:6379\" has no scheme. Did you mean rediss://cache.internal:6379 ?",
        ),
        ("https://cache", "shared: \"https://\" is not supported; write rediss://host:port, or redis://host:port"),
        ("redis://:hunter2@cache", "shared: has a password in it"),
        ("redis://me@cache", "shared: has a user name in it; write shared.username"),
        ("redis://cache/3", "shared: has a path; database 0 is used"),
        ("{ url: [redis://a, redis://b] }", "shared.url: names several addresses"),
        ("{ url: [redis://a, rediss://b], sentinel: m }", "shared.url: mixes redis:// and rediss://"),
        ("{ url: redis://a, sentinel: m, cluster: true }", "shared.cluster: is set beside sentinel"),
        ("{ url: redis://a, sentinel: \"a b\" }", "shared.sentinel: must be 1 to 64 letters"),
        ("{ url: redis://a, name: \"a}b\" }", "shared.name: must be 1 to 64 letters"),
        ("{ url: redis://a, username: me }", "shared.username: needs password_file"),
        ("{ url: redis://a, password_file: /nowhere/at/all }", "shared.password_file: /nowhere/at/all: No such file"),
        ("{ url: redis://a, password_file: /dev/zero }", "shared.password_file: /dev/zero is larger than 1 MiB"),
        ("{ url: redis://a, ca_file: /nowhere }", "shared.ca_file: has nothing to verify: url is redis://"),
        ("{ url: rediss://a, ca_file: /nowhere/at/all }", "shared.ca_file: /nowhere/at/all: No such file"),
        ("{ url: redis://a, timeout: 0s }", "shared.timeout: must be from 1ms to 5s"),
        ("{ url: redis://a, timeout: 6s }", "shared.timeout: must be from 1ms to 5s"),
        ("{ url: redis://a, max_stale: 29s }", "shared.max_stale: must be at least 30s"),
        ("{ url: redis://a, on_loss: panic }", "shared.on_loss: \"panic\" is not one of serve, refuse"),
        ("{ url: redis://a, secret_file: /nowhere/at/all }", "shared.secret_file: /nowhere/at/all: No such file"),
        ("{ url: redis://a, secret_file: [] }", "shared.secret_file: names no file"),
    ] {
        let (code, text) = check(&format!("{REST}{SECRET}shared: {shared}\n"), &[]);
        assert!(code == Some(2) && text.contains(expected), "{shared}\n{expected}\n{text}");
        assert!(
            !text.lines().any(|line| line.contains(": ") && line.contains("hunter2") && !line.contains('|')),
            "{text}"
        );
    }
    let auto = "websocket: { on_expiry: auto, presence: 14s }\n";
    let (code, text) = check(&format!("{REST}{SECRET}{auto}shared: redis://a\n"), &[]);
    assert!(code == Some(2) && text.contains("websocket.presence: must be at least 15s beside shared"), "{text}");
    let (code, text) = check(&format!("{REST}shared: redis://a\n"), &[]);
    assert!(code == Some(2) && text.contains("shared: has no secret that all instances have"), "{text}");
}

#[test]
fn without_it_check_says_what_each_instance_has_for_itself_where_there_may_be_several() {
    let (_, text) = check(&format!("{REST}{SECRET}trusted_proxies: [private_ranges]\n"), &[]);
    assert!(text.contains("shared      nothing: each instance has its own revocations, sign-outs"), "{text}");
    let (_, text) = check(&format!("{REST}{SECRET}"), &[]);
    assert!(!text.contains("shared      "), "{text}");
}

#[test]
fn a_right_one_is_shown_and_plain_tcp_with_a_password_is_a_warning() {
    let file = crate::support::proxy::TempFile::new("the-password");
    let shared = format!("{{ url: \"redis://cache:7000\", name: notebooks, password_file: \"{}\" }}", file.path());
    let (code, text) = check(&format!("{REST}{SECRET}shared: {shared}\n"), &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("cache:7000 by plain TCP, as notebooks; a copy older than 5m serves on"), "{text}");
    assert!(text.contains("the engine's password crosses the network unencrypted"), "{text}");
    assert!(!text.contains("the-password"));
    let (_, text) = check(&format!("{REST}{SECRET}shared: {{ url: rediss://cache, on_loss: refuse }}\n"), &[]);
    assert!(
        text.contains("cache:6379 by TLS, as vestibule; a copy older than 5m refuses credentials with 503"),
        "{text}"
    );
}
