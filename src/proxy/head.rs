//! The parts of a request's head that are needed after it was forwarded, and the beginning of its access line.

use std::sync::Arc;

use hyper::header::{ACCEPT, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY, UPGRADE, USER_AGENT};
use hyper::http::request::Parts;

use crate::browser::Navigation;
use crate::http::accepts;
use crate::policy::Policy;
use crate::telemetry::{AccessLine, NO_ROUTE};

/// Fields that a proxy adds to the requests of its clients.
const FORWARDING: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];
/// The `User-Agent` of `vestibule doctor`.
pub const DOCTOR_USER_AGENT: &str = "vestibule-doctor";

/// The parts of a request's head that are needed after it was forwarded.
pub(super) struct RequestHead {
    pub(super) user_agent: Option<String>,
    /// Whether the request declares itself a test by `vestibule doctor`, and no proxy has forwarded it.
    pub(super) is_doctor: bool,
    pub(super) wants_problem_json: bool,
    pub(super) origin: Option<HeaderValue>,
    /// Whether it is a WebSocket handshake that has lost its `Upgrade` on the way.
    pub(super) lacks_upgrade: bool,
    /// The page navigation, if it is one; determined only where pages are configured.
    pub(super) navigation: Option<Navigation>,
}

impl RequestHead {
    pub(super) fn of(head: &Parts, policy: &Policy) -> Self {
        let headers = &head.headers;
        let (mut user_agent, mut accept, mut origin) = (None, None, None);
        let (mut has_key, mut has_upgrade) = (false, false);
        // One look at each name is quicker than five searches. Of several lines the first counts.
        for (name, value) in headers {
            if *name == USER_AGENT {
                user_agent.get_or_insert(value);
            } else if *name == ACCEPT {
                accept.get_or_insert(value);
            } else if *name == ORIGIN {
                origin.get_or_insert(value);
            }
            has_key |= *name == SEC_WEBSOCKET_KEY;
            has_upgrade |= *name == UPGRADE;
        }
        let user_agent = user_agent.and_then(|value: &HeaderValue| value.to_str().ok());
        Self {
            user_agent: user_agent.filter(|agent| is_health_checker(agent)).map(str::to_owned),
            is_doctor: user_agent == Some(DOCTOR_USER_AGENT)
                && !FORWARDING.iter().any(|name| headers.contains_key(*name)),
            wants_problem_json: accept.is_some_and(|line| accepts(line, "application/problem+json")),
            origin: origin.cloned(),
            lacks_upgrade: has_key && !has_upgrade,
            navigation: if policy.browser.is_on() {
                let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
                Navigation::of(&head.method, target, headers)
            } else {
                None
            },
        }
    }
}

/// Begins the access line of a request.
pub(super) fn access_line(head: &Parts, policy: &Policy) -> AccessLine {
    let path = head.uri.path();
    AccessLine {
        method: head.method.clone(),
        path: match head.uri.query() {
            Some(query) if policy.log.query => format!("{path}?{}", masked(query, policy)).into(),
            _ => path.into(),
        },
        route: Arc::clone(&NO_ROUTE),
        quiet: policy.log.quiet.iter().any(|quiet| quiet == path),
        ..AccessLine::default()
    }
}

/// Masks the values of parameters whose name suggests a secret.
fn masked(query: &str, policy: &Policy) -> String {
    let carries_tokens = |name: &str| {
        policy.routes.iter().filter_map(|route| route.token_from.query.as_ref()).any(|query| query.is_named(name))
    };
    masked_where(query, carries_tokens)
}

fn masked_where(query: &str, carries_tokens: impl Fn(&str) -> bool) -> String {
    const SECRET: [&str; 14] = [
        "token",
        "auth",
        "key",
        "code",
        "state",
        "secret",
        "pass",
        "pwd",
        "jwt",
        "session",
        "ticket",
        "sig",
        "cred",
        "assertion",
    ];
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    // Some servers accept `;` for `&`.
    let pairs = query.split_inclusive(['&', ';']).map(|pair| {
        let separator = if pair.ends_with(['&', ';']) { &pair[pair.len() - 1..] } else { "" };
        let Some((name, _)) = pair.split_once('=') else { return pair.to_owned() };
        let configured = carries_tokens(&decoded(name));
        let read = decoded(&decoded(name)).to_ascii_lowercase();
        let secret = configured || read.contains("_xsrf") || SECRET.iter().any(|word| read.contains(word));
        if secret { format!("{name}=[masked]{separator}") } else { pair.to_owned() }
    });
    pairs.collect()
}

/// Returns whether a `User-Agent` is that of a load balancer's or an orchestrator's health check.
fn is_health_checker(agent: &str) -> bool {
    ["ELB-HealthChecker", "kube-probe", "GoogleHC", "Consul Health Check"].iter().any(|known| agent.contains(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_query_are_masked() {
        assert_eq!(
            masked_where("a=1&token=x&api%5Fkey=y&State=z&b&way=w&c=1;token=v;d&%2574oken=u", |name| name == "way"),
            "a=1&token=[masked]&api%5Fkey=[masked]&State=[masked]&b&way=[masked]&c=1;token=[masked];d&%2574oken=[masked]"
        );
    }
}
