//! `/status`: what an operator who was woken up wants to see first. A state in one word, then providers, sockets,
//! limits, the last refusals, who still puts tokens into URLs, and the policy in force. No token, no user id.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::StatusCode;

use crate::auth::KeyHealth;
use crate::page::{self, Escaped, Layout};
use crate::policy::{KeySource, Names, ProviderSpec, summary};
use crate::runtime::{Runtime, Shared};
use crate::small_server::{Answer, said};

/// Seconds after which it comes again by itself.
const REFRESH: u32 = 10;
/// Rows of clients with query tokens.
const CLIENTS: usize = 20;

/// The page as an answer.
pub(super) fn page(shared: &Shared, runtime: &Runtime) -> Answer {
    let mut answer = said(StatusCode::OK, html(shared, runtime));
    page::describe(answer.headers_mut());
    answer
}

fn html(shared: &Shared, runtime: &Runtime) -> String {
    let (word, class) = state(shared);
    let mut body = String::new();
    // Writing into a string does not fail.
    let _ = write!(
        body,
        "<h1 class=\"{class}\">{word}</h1>\n<p class=\"soft\">vestibule {} · configuration {}</p>\n",
        env!("CARGO_PKG_VERSION"),
        Escaped(&shared.in_force())
    );
    if shared.drain.is_draining() {
        let _ = writeln!(body, "<p>{} connections and sockets are still to end.</p>", shared.drain.tracked_count());
    }
    providers(&mut body, runtime);
    limits(&mut body, shared, runtime);
    refusals(&mut body, shared);
    query_tokens(&mut body, shared);
    let _ = write!(body, "<h2>Policy in force</h2>\n<pre>{}", Escaped(&summary(&runtime.policy, Names::Counted)));
    for warning in &runtime.policy.warnings {
        let _ = writeln!(body, "  warning     {}", Escaped(warning));
    }
    body.push_str("</pre>\n");
    page::page(word, &body, Layout { refresh: Some(REFRESH), ..Layout::default() })
}

fn state(shared: &Shared) -> (&'static str, &'static str) {
    if shared.drain.is_draining() {
        ("draining", "bad")
    } else if shared.is_ready() {
        ("ready", "good")
    } else {
        ("not ready", "bad")
    }
}

fn providers(body: &mut String, runtime: &Runtime) {
    body.push_str("<h2>Providers</h2>\n");
    for (spec, keys) in runtime.verifier.providers() {
        let _ = writeln!(
            body,
            "<p><strong>{}</strong> {}</p>",
            Escaped(&spec.name),
            Escaped(&said_of(spec, &keys.health()))
        );
    }
}

/// A provider's keys in a sentence.
fn said_of(spec: &ProviderSpec, health: &KeyHealth) -> String {
    if spec.keys == KeySource::Asked {
        return "is asked about every token.".to_owned();
    }
    let keys = match health.keys {
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
    format!("{keys}{good}{failed}.")
}

fn limits(body: &mut String, shared: &Shared, runtime: &Runtime) {
    let limits = &runtime.policy.limits;
    let _ = writeln!(
        body,
        "<h2>Sockets and limits</h2>\n<p>{} sockets open, {} waiting for their first message.</p>",
        shared.metrics.sockets.open(),
        shared.room.len()
    );
    body.push_str("<div class=\"wide\"><table><tr><th>limit</th><th>used</th><th>of</th></tr>\n");
    for (name, used, most) in [
        ("connections", shared.connections() as usize, limits.connections as usize),
        ("waiting_websockets", shared.room.len(), limits.waiting_websockets as usize),
        ("token_cache", runtime.verifier.cached_tokens(), limits.token_cache),
        ("presence", shared.users.seen(), limits.presence),
        ("revocations", shared.revocations.count(), limits.revocations),
        ("sign_outs", shared.revocations.sign_outs(), limits.sign_outs),
    ] {
        let _ =
            writeln!(body, "<tr><td>{name}</td><td class=\"number\">{used}</td><td class=\"number\">{most}</td></tr>");
    }
    body.push_str("</table></div>\n");
}

fn refusals(body: &mut String, shared: &Shared) {
    body.push_str("<h2>Last refusals</h2>\n");
    let newest = shared.refusals.newest();
    if newest.is_empty() {
        body.push_str("<p class=\"soft\">None since the start.</p>\n");
        return;
    }
    body.push_str(
        "<div class=\"wide\"><table><tr><th>time</th><th>route</th><th>reason</th><th>status or close code</th><th>request id</th></tr>\n",
    );
    for refusal in newest {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td><code>{}</code></td><td>{}</td><td class=\"number\">{}</td><td><code>{}</code></td></tr>",
            httpdate::fmt_http_date(refusal.at),
            Escaped(&refusal.route),
            refusal.outcome,
            refusal.code,
            Escaped(&refusal.request_id)
        );
    }
    body.push_str("</table></div>\n");
}

fn query_tokens(body: &mut String, shared: &Shared) {
    body.push_str("<h2>Tokens in URLs</h2>\n");
    let counted = shared.query_tokens.counted();
    if counted.is_empty() {
        body.push_str("<p class=\"soft\">None since the start.</p>\n");
        return;
    }
    body.push_str("<div class=\"wide\"><table><tr><th>origin</th><th>route</th><th>count</th></tr>\n");
    for (route, origin, count) in counted.iter().take(CLIENTS) {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td><code>{}</code></td><td class=\"number\">{count}</td></tr>",
            Escaped(origin),
            Escaped(route)
        );
    }
    body.push_str("</table></div>\n");
}

/// A duration as people say it.
fn shown(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_said_in_a_sentence() {
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: oidc, issuer: \"https://i.example\", audience: api }]\n";
        let policy = crate::policy::validate(&crate::config::load_yaml(yaml).expect("loads").config).expect("valid");
        let health = |good: Option<u64>, failed: Option<u64>| KeyHealth {
            attempted: good.or(failed).is_some(),
            keys: if good.is_some() { 2 } else { 0 },
            algorithms: vec!["RS256".to_owned()],
            failure: None,
            good: good.map(Duration::from_secs),
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
            assert_eq!(said_of(&policy.providers[0], &health(good, failed)), expected);
        }
    }
}
