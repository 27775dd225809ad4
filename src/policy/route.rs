//! Rules by path and method with all their settings, and whether one of them matches a reading of a path.
//!
//! Rules that open (`auth: none`, `optional`) are always compared exactly, so no other spelling of a path matches them.
//! `path_readings` finds the readings of a path, `route_match` combines the rules that match them.

use std::sync::Arc;

use super::path_readings::PathReading;
use super::pattern::Comparison;
use super::{PathVariables, Pattern, Requirement, TokenSources, WebSocketSpec};
use crate::config::AuthMode;

/// A rule with all its settings; those that it leaves out have the defaults.
#[derive(Debug)]
pub struct Route {
    /// The pattern as it is in the configuration, also the `route` label of logs and metrics; `default` for the last
    /// rule.
    pub label: Arc<str>,
    /// The pattern; `None` matches every path.
    pub pattern: Option<Pattern>,
    /// The methods; empty: every method.
    pub methods: Vec<String>,
    /// Whether a credential is needed.
    pub auth: AuthMode,
    /// The claims that the identity must have.
    pub require: Requirement,
    /// The index of its upstream in the policy.
    pub upstream: usize,
    /// The places where a token is read.
    pub token_from: TokenSources,
    /// The settings of its `WebSockets`.
    pub websocket: WebSocketSpec,
}

impl Route {
    /// Returns whether the rule admits callers without a credential.
    pub(super) fn opens(&self) -> bool {
        matches!(self.auth, AuthMode::None | AuthMode::Optional)
    }

    /// Returns whether every request matches the rule, so that none reaches the rules below it.
    pub(super) fn matches_everything(&self) -> bool {
        self.pattern.is_none() && self.methods.is_empty()
    }

    /// Returns whether both rules treat a request alike.
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

    /// Returns the values of the variables in a reading that matches.
    pub(super) fn variables(&self, reading: PathReading<'_>, comparison: Comparison) -> PathVariables {
        self.pattern.as_ref().map(|pattern| pattern.bind(reading, comparison)).unwrap_or_default()
    }
}
