//! Paths at which an upstream is likely to check its callers, or to show who they are.
//!
//! `/` is seldom one: Jupyter redirects it, a `FastAPI` application often has none, and a front end serves it without a
//! credential. So the paths come from `--whoami`, from the preset, from the route rules, and from the list that the
//! upstream publishes itself (`OpenAPI`).

use serde_json::Value;

use super::probe::Request;
use super::{MARKER, Target};
use crate::cli::endpoint::Endpoint;
use crate::policy::{AuthMode, Route, UpstreamAddress, UpstreamSpec};

/// The path at which frameworks publish their `OpenAPI` document (`FastAPI`'s default).
const OPENAPI: &str = "/openapi.json";
/// The maximum number of paths of an `OpenAPI` document that are requested.
const MAX_DESCRIBED: usize = 5;
/// The words in the name of an operation that mark it as unsafe for a test: it may change something although it is a
/// GET, or never end.
const SKIPPED_WORDS: [&str; 16] = [
    "callback", "cancel", "delete", "disable", "download", "export", "kill", "login", "logout", "remove", "reset",
    "restart", "revoke", "shutdown", "stop", "stream",
];
/// The last segments of paths that show who the caller is.
const CALLER_WORDS: [&str; 7] = ["me", "whoami", "user", "userinfo", "account", "profile", "session"];

/// A path of an upstream for which the configuration demands a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpstreamPath {
    pub(super) path: String,
    /// Whether the upstream is known to check its callers there, by `--whoami` or by the preset.
    pub(super) is_guarded: bool,
}

/// The paths that are requested of one upstream, and the addresses at which it can be reached directly.
pub(super) struct UpstreamPaths {
    pub(super) paths: Vec<UpstreamPath>,
    pub(super) endpoints: Vec<Endpoint>,
}

impl UpstreamPaths {
    pub(super) async fn find(target: &Target<'_>, index: usize) -> Self {
        let upstream = &target.policy.upstreams[index];
        let endpoints = endpoints(upstream).await;
        let mut found = Vec::new();
        if let Some(path) = target.whoami.filter(|path| leads_to(target, path, index)) {
            found.push(UpstreamPath { path: path.to_owned(), is_guarded: true });
        }
        if let Some(preset) = upstream.preset {
            found.push(UpstreamPath { path: preset.guarded.to_owned(), is_guarded: true });
        }
        let mut others = described(target, upstream, &endpoints).await;
        others.extend(demanding_rules(target).into_iter().map(|(_, path)| path));
        others.extend(["/".to_owned(), OPENAPI.to_owned()]);
        for path in others {
            if found.iter().all(|known| known.path != path) {
                found.push(UpstreamPath { path, is_guarded: false });
            }
        }
        found.retain(|path| is_protected(target, &path.path, index));
        Self { paths: found, endpoints }
    }
}

/// Returns the addresses of an upstream; none where its name does not resolve.
async fn endpoints(upstream: &UpstreamSpec) -> Vec<Endpoint> {
    match &upstream.address {
        UpstreamAddress::Unix(path) => vec![Endpoint::Unix(path.clone())],
        UpstreamAddress::Tcp { host, port, tls } => {
            let Ok(found) = tokio::net::lookup_host((host.as_str(), *port)).await else { return Vec::new() };
            found
                .map(|address| if tls.is_some() { Endpoint::Https(address) } else { Endpoint::Http(address) })
                .collect()
        }
    }
}

fn leads_to(target: &Target<'_>, path: &str, upstream: usize) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    target.policy.match_path("GET", path).is_some_and(|matched| matched.route.upstream == upstream)
}

fn is_protected(target: &Target<'_>, path: &str, upstream: usize) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let matched = target.policy.match_path("GET", path);
    matched.is_some_and(|matched| matched.route.upstream == upstream && matched.auth == AuthMode::Required)
}

/// Returns a path that this rule matches with GET.
pub(super) fn example(target: &Target<'_>, route: &Route) -> Option<String> {
    let path = route.pattern.as_ref().map_or_else(|| format!("/{MARKER}"), |pattern| pattern.example(MARKER));
    let found = target.policy.match_path("GET", &path)?.route;
    (found.label == route.label && std::ptr::eq(&raw const *found, route)).then_some(path)
}

/// Returns the rules that refuse callers without a credential, each with a path.
pub(super) fn closed_rules<'a>(target: &'a Target<'_>) -> Vec<(&'a Route, String)> {
    let closed = target.policy.routes.iter().filter(|route| matches!(route.auth, AuthMode::Required | AuthMode::Deny));
    closed.filter_map(|route| Some((&**route, example(target, route)?))).collect()
}

/// Returns the rules that demand a credential, each with a path; the rule for all other paths comes first.
pub(super) fn demanding_rules<'a>(target: &'a Target<'_>) -> Vec<(&'a Route, String)> {
    closed_rules(target).into_iter().rev().filter(|(route, _)| route.auth == AuthMode::Required).collect()
}

/// Returns the paths that the upstream lists itself. It is asked directly, or else through the proxy.
async fn described(target: &Target<'_>, upstream: &UpstreamSpec, endpoints: &[Endpoint]) -> Vec<String> {
    let direct = Request { target: OPENAPI, host: &upstream.authority, ..Request::default() };
    for endpoint in endpoints {
        if let Ok(answer) = direct.send(endpoint).await
            && answer.is_success()
        {
            return described_paths(&answer.body);
        }
    }
    let Some(token) = &target.token else { return Vec::new() };
    match target.get_with(OPENAPI, &[format!("Authorization: Bearer {token}")]).await {
        Ok(answer) if answer.is_success() => described_paths(&answer.body),
        _ => Vec::new(),
    }
}

/// Returns the GET operations of an `OpenAPI` document that need no parameter and whose names suggest that they change
/// nothing. Those that show the caller come first.
fn described_paths(document: &str) -> Vec<String> {
    let Ok(document) = serde_json::from_str::<Value>(document) else { return Vec::new() };
    let base = document["servers"][0]["url"].as_str().filter(|url| url.starts_with('/')).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let path = format!("{}{path}", base.trim_end_matches('/'));
        let lower = path.to_ascii_lowercase();
        let is_plain = path.starts_with('/') && path.len() <= 200 && path.bytes().all(|byte| byte.is_ascii_graphic());
        if is_plain
            && item["get"].is_object()
            && !path.contains(['{', '?', '#'])
            && ![item, &item["get"]].into_iter().any(needs_parameter)
            && !SKIPPED_WORDS.iter().any(|word| lower.contains(word))
        {
            found.push(path);
        }
    }
    let shows_caller = |path: &String| path.rsplit('/').next().is_some_and(|last| CALLER_WORDS.contains(&last));
    found.sort_by_key(|path| !shows_caller(path));
    found.truncate(MAX_DESCRIBED);
    found
}

/// Returns whether a query parameter, or a header that is no identity, must be sent. Frameworks describe the trusted
/// header as a parameter too, but it is sent anyway.
fn needs_parameter(described: &Value) -> bool {
    let parameters = described["parameters"].as_array();
    parameters.into_iter().flatten().any(|parameter| parameter["required"] == true && parameter["in"] != "header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_operations_without_parameters_are_found_and_those_that_show_the_caller_come_first() {
        let document = serde_json::json!({"paths": {
            "/api/cells": {"get": {"parameters": [{"name": "x-user-id", "in": "header", "required": true}]}},
            "/api/search": {"get": {"parameters": [{"name": "q", "in": "query", "required": true}]}},
            "/api/cells/{id}": {"get": {}},
            "/api/kernels": {"post": {}},
            "/api/Shutdown": {"get": {}},
            "/api/me": {"get": {}},
        }});
        assert_eq!(described_paths(&document.to_string()), ["/api/me", "/api/cells"]);
        let based = serde_json::json!({"servers": [{"url": "/v1/"}], "paths": {"/a": {"get": {}}}});
        assert_eq!(described_paths(&based.to_string()), ["/v1/a"]);
        assert!(described_paths("<html>").is_empty() && described_paths("[]").is_empty());
    }
}
