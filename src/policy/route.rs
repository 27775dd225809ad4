//! Rules by path and method, complete with their settings, and whether one of them matches a reading of a path.
//!
//! Rules that open (`auth: none`, `optional`) are only ever compared exactly, so no other spelling of a path falls
//! under them. `path_readings` says which readings a path has, `route_match` what all of them demand together.

use std::sync::Arc;

use super::path_readings::PathReading;
use super::pattern::Comparison;
use super::{PathVariables, Pattern, Requirement, TokenSources, WebSocketSpec};
use crate::config::AuthMode;

/// One rule, complete: what it does not say itself was filled in from the defaults.
#[derive(Debug)]
pub struct Route {
    /// The pattern as written, also the `route` label of logs and metrics; `default` for the last.
    pub label: Arc<str>,
    /// `None` matches every path.
    pub pattern: Option<Pattern>,
    /// Empty: every method.
    pub methods: Vec<String>,
    /// Whether a credential is needed.
    pub auth: AuthMode,
    /// What the identity must show beyond being verified.
    pub require: Requirement,
    /// Which of the policy's upstreams it goes to.
    pub upstream: usize,
    /// The places where a token is read.
    pub token_from: TokenSources,
    /// How its `WebSockets` live.
    pub websocket: WebSocketSpec,
}

impl Route {
    /// Whether the rule lets callers in without a credential.
    pub(super) fn opens(&self) -> bool {
        matches!(self.auth, AuthMode::None | AuthMode::Optional)
    }

    /// Whether both rules treat a request alike.
    pub(super) fn has_same_outcome(&self, other: &Self) -> bool {
        self.auth == other.auth
            && self.require == other.require
            && self.upstream == other.upstream
            && self.token_from == other.token_from
            && self.websocket == other.websocket
    }

    pub(super) fn matches(&self, method: &str, reading: PathReading<'_>, comparison: Comparison) -> bool {
        let comparison = if self.opens() { Comparison::Exact } else { comparison };
        self.names_method(method, comparison)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(reading, comparison))
    }

    fn names_method(&self, method: &str, comparison: Comparison) -> bool {
        let same = |wanted: &str, method: &str| match comparison {
            Comparison::Exact => wanted == method,
            Comparison::Folded => wanted.eq_ignore_ascii_case(method),
        };
        self.methods.is_empty()
            || self.methods.iter().any(|wanted| same(wanted, method) || (wanted == "GET" && same("HEAD", method)))
    }

    /// What the variables stand for in a reading that matches.
    pub(super) fn variables(&self, reading: PathReading<'_>, comparison: Comparison) -> PathVariables {
        self.pattern.as_ref().map(|pattern| pattern.bind(reading, comparison)).unwrap_or_default()
    }
}
