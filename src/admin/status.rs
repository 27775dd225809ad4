//! The page of `/status`: the state, which says whether a line below is red, then traffic, certificates, upstreams,
//! providers, limits, the latest refusals, tokens in URLs, and the current policy. It shows no token and no user id.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use hyper::StatusCode;

use super::duration::shown;
use super::instances;
use crate::auth::{KeyHealth, unix_seconds};
use crate::http::UpstreamHealth;
use crate::page::{self, Escaped, Layout};
use crate::policy::{CERTIFICATE_SOON, KeySource, ProviderSpec, UserNames, summary};
use crate::runtime::{ProxyState, Runtime};
use crate::small_server::{FullResponse, text_response};

/// The time after which a browser reloads the page, in seconds.
const REFRESH_SECONDS: u32 = 10;
/// The maximum number of rows in the table of tokens in URLs.
const MAX_QUERY_TOKEN_ROWS: usize = 20;

/// Makes the response with the page.
pub(super) fn page(state: &ProxyState, runtime: &Runtime) -> FullResponse {
    let mut answer = text_response(StatusCode::OK, html(state, runtime));
    page::describe(answer.headers_mut());
    answer
}

fn html(state: &ProxyState, runtime: &Runtime) -> String {
    let mut sections = String::new();
    let problems = [
        reload(&mut sections, state),
        certificates(&mut sections, state, runtime),
        upstreams(&mut sections, runtime),
        providers(&mut sections, runtime),
        state.instances.as_ref().is_some_and(|instances| instances::section(&mut sections, &instances.status())),
    ];
    let (word, class) = overall(state, problems.contains(&true));
    let mut body = String::new();
    // Writing into a string does not fail.
    let _ = write!(
        body,
        "<h1 class=\"{class}\">{word}</h1>\n<p class=\"soft\">vestibule {} · up {} · configuration {}</p>\n",
        env!("CARGO_PKG_VERSION"),
        shown(state.uptime()),
        Escaped(&state.policy_name())
    );
    if state.drain.is_draining() {
        let _ = writeln!(body, "<p>{} connections and sockets are still open.</p>", state.drain.tracked_count());
    }
    traffic(&mut body, state);
    body.push_str(&sections);
    limits(&mut body, state, runtime);
    refusals(&mut body, state);
    query_tokens(&mut body, state);
    let _ = write!(body, "<h2>Current policy</h2>\n<pre>{}", Escaped(&summary(&runtime.policy, UserNames::Counted)));
    for warning in &runtime.policy.warnings {
        let _ = writeln!(body, "  warning     {}", Escaped(&warning.to_string()));
    }
    body.push_str("</pre>\n");
    page::page(word, &body, Layout { refresh: Some(REFRESH_SECONDS), ..Layout::default() })
}

/// Returns the state in a word, and its class. `has_problem` says whether a section has a line in red.
fn overall(state: &ProxyState, has_problem: bool) -> (&'static str, &'static str) {
    if state.drain.is_draining() {
        ("draining", "bad")
    } else if !state.is_ready() {
        ("not ready", "bad")
    } else if has_problem {
        ("ready, with problems", "bad")
    } else {
        ("ready", "good")
    }
}

/// Says that the configuration on disk was rejected. The reason may have a user id in it, so it is in the log only.
fn reload(body: &mut String, state: &ProxyState) -> bool {
    let is_rejected = state.metrics.is_reload_rejected();
    if is_rejected {
        body.push_str("<p class=\"bad\">The configuration on disk is rejected, and the one named above stays in use. The log line <code>reload rejected</code> says why.</p>\n");
    }
    is_rejected
}

/// Returns the attribute of a sentence about a problem.
fn class_of(is_bad: bool) -> &'static str {
    if is_bad { " class=\"bad\"" } else { "" }
}

fn traffic(body: &mut String, state: &ProxyState) {
    let now = unix_seconds();
    let (requests, refusals) = (state.traffic.requests.count(now), state.traffic.refusals.count(now));
    let _ = writeln!(body, "<p>In the last minute: requests {requests}, refusals {refusals}.</p>");
}

/// Says when the certificate of each listener with TLS expires, and returns whether one should be replaced.
fn certificates(body: &mut String, state: &ProxyState, runtime: &Runtime) -> bool {
    let listeners: Vec<_> = runtime.policy.listen.iter().filter(|listen| listen.tls.is_some()).collect();
    if listeners.is_empty() {
        return false;
    }
    body.push_str("<h2>Certificates</h2>\n");
    let mut has_problem = false;
    let now = unix_seconds();
    for listen in listeners {
        let (sentence, is_bad) =
            certificate_sentence(state.metrics.certificate_not_after(&listen.written).get().cast_unsigned(), now);
        let class = class_of(is_bad);
        let _ = writeln!(body, "<p{class}><strong>{}</strong> {sentence}</p>", Escaped(&listen.written));
        has_problem |= is_bad;
    }
    has_problem
}

/// Describes in a sentence when a certificate expires, a Unix time in seconds, and returns whether it should be replaced.
fn certificate_sentence(not_after: u64, now: u64) -> (String, bool) {
    if not_after == 0 {
        return ("has a certificate whose validity cannot be read; clients refuse it.".to_owned(), true);
    }
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(not_after));
    if now > not_after {
        (format!("has a certificate that expired on {date}; clients refuse it."), true)
    } else {
        (format!("has a certificate that expires on {date}."), not_after - now <= CERTIFICATE_SOON.as_secs())
    }
}

/// Says whether each upstream answers, and returns whether one does not.
fn upstreams(body: &mut String, runtime: &Runtime) -> bool {
    body.push_str("<h2>Upstreams</h2>\n");
    let mut has_problem = false;
    for (url, health) in runtime.upstreams.health() {
        let is_bad = health.is_failing() || health.is_hanging();
        has_problem |= is_bad;
        let class = class_of(is_bad);
        let sentence = upstream_sentence(&health);
        let _ = writeln!(body, "<p{class}><strong>{}</strong> {}</p>", Escaped(url), Escaped(&sentence));
    }
    has_problem
}

/// The time without a response from which the page says that requests wait.
const WORTH_SAYING: Duration = Duration::from_secs(5);

/// Describes in a sentence whether an upstream answers.
fn upstream_sentence(health: &UpstreamHealth) -> String {
    let responded = health.responded.map(|ago| format!("the last response was {} ago", shown(ago)));
    let failed = health.failed.as_ref().map(|(ago, error)| format!("{} ago: {error}", shown(*ago)));
    match (responded, failed) {
        (None, Some(failed)) if health.is_failing() => format!("does not answer. The last attempt was {failed}."),
        (Some(responded), Some(failed)) if health.is_failing() => {
            format!("does not answer. The last attempt was {failed}; {responded}.")
        }
        (responded, failed) => {
            let state = match (responded, health.connected) {
                (Some(responded), _) => format!("answers; {responded}"),
                (None, Some(_)) => "accepts connections; no request has been forwarded yet".to_owned(),
                (None, None) => "is being checked".to_owned(),
            };
            let failed = failed.map_or_else(String::new, |failed| format!(". The last failure was {failed}"));
            let waiting = match health.silent.filter(|silent| *silent >= WORTH_SAYING) {
                Some(silent) => {
                    format!(
                        ". Requests that wait for a response: {}; none was answered for {}",
                        health.waiting,
                        shown(silent)
                    )
                }
                None => String::new(),
            };
            format!("{state}{failed}{waiting}.")
        }
    }
}

/// Describes the keys of each provider, and returns whether those of one cannot be fetched or its clock differs.
fn providers(body: &mut String, runtime: &Runtime) -> bool {
    body.push_str("<h2>Providers</h2>\n");
    let mut has_problem = false;
    for (spec, keys) in runtime.verifier.providers() {
        let health = keys.health();
        let is_bad = health.failure.is_some() || health.clock_offset.is_some();
        has_problem |= is_bad;
        let class = class_of(is_bad);
        let sentence = provider_sentence(spec, &health);
        let _ = writeln!(body, "<p{class}><strong>{}</strong> {}</p>", Escaped(&spec.name), Escaped(&sentence));
    }
    has_problem
}

/// Describes the keys of a provider in a sentence.
fn provider_sentence(spec: &ProviderSpec, health: &KeyHealth) -> String {
    if spec.keys == KeySource::Introspection {
        return "is asked about every token.".to_owned();
    }
    let keys = match health.keys {
        0 if matches!(spec.keys, KeySource::ById { .. }) => "fetches each key when a token names it".to_owned(),
        0 => "has no keys".to_owned(),
        1 => format!("has 1 key ({})", health.algorithms.join(", ")),
        count => format!("has {count} keys ({})", health.algorithms.join(", ")),
    };
    let is_fetched = matches!(spec.keys, KeySource::Fetched { .. });
    let good = match health.good.filter(|_| is_fetched) {
        Some(ago) => format!(", fetched {} ago", shown(ago)),
        None => String::new(),
    };
    let failed = match &health.failed {
        Some((ago, reason)) => format!(". The last failed fetch was {} ago: {reason}", shown(*ago)),
        None if !health.attempted => "; the first fetch is under way".to_owned(),
        None => health.failure.as_ref().map_or_else(String::new, |reason| format!(": {reason}")),
    };
    let clock = match health.clock_offset {
        Some(offset) => {
            let side = if offset > 0 { "ahead of" } else { "behind" };
            let apart = shown(Duration::from_secs(offset.unsigned_abs()));
            format!(". Its clock is {apart} {side} this machine's, so valid tokens are refused or ended ones accepted")
        }
        None => String::new(),
    };
    format!("{keys}{good}{failed}{clock}.")
}

fn limits(body: &mut String, state: &ProxyState, runtime: &Runtime) {
    let limits = &runtime.policy.limits;
    let _ = writeln!(
        body,
        "<h2>Sockets and limits</h2>\n<p>{} sockets open, {} waiting for their first message.</p>",
        state.metrics.sockets.open(),
        state.pending_sockets.len()
    );
    body.push_str("<div class=\"wide\"><table><tr><th>limit</th><th>used</th><th>of</th></tr>\n");
    for (name, used, most) in [
        ("connections", state.connections() as usize, limits.connections as usize),
        ("waiting_websockets", state.pending_sockets.len(), limits.waiting_websockets as usize),
        ("token_cache", runtime.verifier.cached_tokens(), limits.token_cache),
        ("presence", state.users.presence_entries(), limits.presence),
        ("revocations", state.revocations.count(), limits.revocations),
        ("sign_outs", state.revocations.sign_outs(), limits.sign_outs),
    ] {
        let _ =
            writeln!(body, "<tr><td>{name}</td><td class=\"number\">{used}</td><td class=\"number\">{most}</td></tr>");
    }
    body.push_str("</table></div>\n");
}

fn refusals(body: &mut String, state: &ProxyState) {
    body.push_str("<h2>Last refusals</h2>\n");
    let newest = state.refusals.newest();
    if newest.is_empty() {
        body.push_str("<p class=\"soft\">None since the start.</p>\n");
        return;
    }
    body.push_str(
        "<div class=\"wide\"><table class=\"refusals\"><tr><th>time</th><th>path</th><th>route</th><th>outcome</th><th>status or close code</th><th>request id</th></tr>\n",
    );
    for refusal in newest {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td class=\"path\"><code>{}</code></td><td><code>{}</code></td><td>{}{}</td><td class=\"number\">{}</td><td><code>{}</code></td></tr>",
            httpdate::fmt_http_date(refusal.at),
            Escaped(&refusal.path),
            Escaped(&refusal.route),
            refusal.outcome,
            if refusal.is_test { " <span class=\"soft\">(a test)</span>" } else { "" },
            refusal.code,
            Escaped(&refusal.request_id.text())
        );
    }
    body.push_str("</table></div>\n");
}

fn query_tokens(body: &mut String, state: &ProxyState) {
    body.push_str("<h2>Tokens in URLs</h2>\n");
    let counted = state.query_tokens.counted();
    if counted.is_empty() {
        body.push_str("<p class=\"soft\">None since the start.</p>\n");
        return;
    }
    body.push_str("<div class=\"wide\"><table><tr><th>origin</th><th>route</th><th>count</th></tr>\n");
    for (route, origin, count) in counted.iter().take(MAX_QUERY_TOKEN_ROWS) {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td><code>{}</code></td><td class=\"number\">{count}</td></tr>",
            Escaped(origin),
            Escaped(route)
        );
    }
    body.push_str("</table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_described_in_a_sentence() {
        let year = 1_767_225_600;
        let soon = year - CERTIFICATE_SOON.as_secs();
        for (not_after, now, expected, is_bad) in [
            (year, soon - 1, "has a certificate that expires on Thu, 01 Jan 2026 00:00:00 GMT.", false),
            (year, soon, "has a certificate that expires on Thu, 01 Jan 2026 00:00:00 GMT.", true),
            (
                year,
                year + 1,
                "has a certificate that expired on Thu, 01 Jan 2026 00:00:00 GMT; clients refuse it.",
                true,
            ),
            // The last moment that a certificate can name.
            (253_402_300_799, year, "has a certificate that expires on Fri, 31 Dec 9999 23:59:59 GMT.", false),
            (0, year, "has a certificate whose validity cannot be read; clients refuse it.", true),
        ] {
            assert_eq!(certificate_sentence(not_after, now), (expected.to_owned(), is_bad));
        }
    }

    #[test]
    fn an_upstream_is_described_in_a_sentence() {
        let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        for (responded, connected, failed, expected) in [
            (None, None, None, "is being checked."),
            (None, Some(0), None, "accepts connections; no request has been forwarded yet."),
            (Some(3), Some(9), None, "answers; the last response was 3 s ago."),
            (None, None, Some(1), "does not answer. The last attempt was 1 s ago: connection refused."),
            (
                Some(90),
                Some(95),
                Some(1),
                "does not answer. The last attempt was 1 s ago: connection refused; the last response was 90 s ago.",
            ),
            (
                Some(3),
                None,
                Some(60),
                "answers; the last response was 3 s ago. The last failure was 60 s ago: connection refused.",
            ),
        ] {
            let failed = seconds(failed).map(|ago| (ago, "connection refused".to_owned()));
            let (responded, connected) = (seconds(responded), seconds(connected));
            let health = UpstreamHealth { responded, connected, failed, ..UpstreamHealth::default() };
            assert_eq!(upstream_sentence(&health), expected);
        }
        let hanging = UpstreamHealth {
            responded: seconds(Some(200)),
            connected: seconds(Some(2)),
            waiting: 57,
            silent: seconds(Some(180)),
            ..UpstreamHealth::default()
        };
        let expected = "answers; the last response was 3 min ago. Requests that wait for a response: 57; none was answered for 3 min.";
        assert_eq!(upstream_sentence(&hanging), expected);
    }

    #[test]
    fn a_provider_is_described_in_a_sentence() {
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: oidc, issuer: \"https://i.example\", audience: api }]\n";
        let policy = crate::policy::validate(&crate::config::load_yaml(yaml).expect("loads").config).expect("valid");
        let health = |good: Option<u64>, failed: Option<u64>| KeyHealth {
            attempted: good.or(failed).is_some(),
            keys: if good.is_some() { 2 } else { 0 },
            algorithms: vec!["RS256".to_owned()],
            failure: None,
            good: good.map(Duration::from_secs),
            clock_offset: None,
            failed: failed.map(|ago| (Duration::from_secs(ago), "connection refused".to_owned())),
        };
        for (good, failed, expected) in [
            (None, None, "has no keys; the first fetch is under way."),
            (Some(61), None, "has 2 keys (RS256), fetched 61 s ago."),
            (
                Some(7_300),
                Some(130),
                "has 2 keys (RS256), fetched 2 h ago. The last failed fetch was 2 min ago: connection refused.",
            ),
            (None, Some(3), "has no keys. The last failed fetch was 3 s ago: connection refused."),
        ] {
            assert_eq!(provider_sentence(&policy.providers[0], &health(good, failed)), expected);
        }
        let behind = KeyHealth { clock_offset: Some(-3_600), ..health(Some(61), None) };
        let expected = "has 2 keys (RS256), fetched 61 s ago. Its clock is 60 min behind this machine's, so valid tokens are refused or ended ones accepted.";
        assert_eq!(provider_sentence(&policy.providers[0], &behind), expected);
    }
}
