//! Combines the rules that the readings of a request's path match.
//!
//! A request is allowed only if every reading would be, so the requirements of all readings apply to it
//! (docs/contract.md section 3). `auth` decides which identities meet a requirement.

use std::sync::Arc;

use super::path_readings::{PathReading, PathReadings, TooManyReadings};
use super::pattern::Comparison;
use super::{PathVariables, Policy, ProtectedResourceSpec, Route};
use crate::config::AuthMode;

/// A rule that requires claims, with the values of its path variables.
#[derive(Clone, Debug)]
pub struct RouteRequirement {
    /// The rule; its requirement is not empty.
    pub route: Arc<Route>,
    /// The values of its variables, in one reading of the path.
    pub variables: PathVariables,
}

/// A setting that a request can have only once, and in which the readings of its path differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The upstream.
    Upstream,
    /// The places where a token is read.
    TokenSources,
    /// The protected resource, for which the token must be.
    Resource,
    /// The settings of `WebSockets`.
    WebSocket,
}

/// The combined rules for one request.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The rule for the path as sent. Its settings apply, and its pattern is the request's label.
    pub route: Arc<Route>,
    /// The strictest `auth` of all readings.
    pub auth: AuthMode,
    /// The rule with that `auth`.
    pub strictest: Arc<Route>,
    /// The requirements on the identity. All must be met.
    pub requirements: Vec<RouteRequirement>,
    conflicts: [bool; 4],
}

impl RouteMatch {
    /// Returns whether the readings differ in this setting.
    #[must_use]
    pub fn has_conflict(&self, conflict: Conflict) -> bool {
        self.conflicts[conflict as usize]
    }

    /// Returns the first setting in which the readings differ, among those that apply to this kind of request.
    #[must_use]
    pub fn conflict(&self, is_websocket: bool) -> Option<Conflict> {
        let reads_tokens = self.auth != AuthMode::None;
        [
            (Conflict::Upstream, true),
            (Conflict::TokenSources, reads_tokens),
            (Conflict::Resource, reads_tokens),
            (Conflict::WebSocket, is_websocket),
        ]
        .into_iter()
        .find_map(|(conflict, matters)| (matters && self.has_conflict(conflict)).then_some(conflict))
    }
}

impl RouteMatch {
    /// Returns the protected resource that the request is for.
    #[must_use]
    pub fn resource(&self) -> Option<&Arc<ProtectedResourceSpec>> {
        self.route.require.audience.as_ref()?.resource.as_ref()
    }
}

impl Policy {
    /// Returns the readings of a path under these rules.
    ///
    /// # Errors
    /// Returns an error when there are too many readings.
    pub fn readings<'p>(&self, path: &'p str) -> Result<PathReadings<'p>, TooManyReadings> {
        PathReadings::of(path, self.rules_by_path)
    }

    /// Combines the rules that all readings of a request's path match.
    #[must_use]
    pub fn match_route(&self, method: &str, readings: &PathReadings<'_>) -> RouteMatch {
        match_routes(&self.routes, method, readings)
    }

    /// Matches a path given as text: that of an open socket after a reload, or an example. Returns `None` if it has too
    /// many readings.
    #[must_use]
    pub fn match_path(&self, method: &str, path: &str) -> Option<RouteMatch> {
        self.readings(path).ok().map(|readings| self.match_route(method, &readings))
    }
}

/// Implements [`Policy::match_route`] for rules without a policy. The last rule matches everything.
pub(super) fn match_routes(routes: &[Arc<Route>], method: &str, readings: &PathReadings<'_>) -> RouteMatch {
    let mut each = readings.each();
    let Some(sent) = each.next() else { unreachable!("the path as it was sent is a reading") };
    let (exact, folded) = walk(routes, method, sent);
    let mut matched = RouteMatch {
        route: Arc::clone(folded),
        auth: folded.auth,
        strictest: Arc::clone(folded),
        requirements: Vec::new(),
        conflicts: [false; 4],
    };
    matched.add(sent, exact, folded);
    for reading in each {
        let (exact, folded) = walk(routes, method, reading);
        matched.add(reading, exact, folded);
        matched.compare_settings(folded);
    }
    matched
}

/// Returns the first rule that matches exactly, and the first one that matches without regard to letter case and
/// trailing slashes. One walk finds both, since an exact match is also one of the second kind.
fn walk<'r>(routes: &'r [Arc<Route>], method: &str, reading: PathReading<'_>) -> (&'r Arc<Route>, &'r Arc<Route>) {
    let mut folded = None;
    for route in routes {
        if !route.matches(method, reading, Comparison::Folded) {
            continue;
        }
        let first = *folded.get_or_insert(route);
        if route.opens() || route.matches(method, reading, Comparison::Exact) {
            return (route, first);
        }
    }
    unreachable!("validate ends every policy with a rule that matches everything")
}

impl RouteMatch {
    fn add(&mut self, reading: PathReading<'_>, exact: &Arc<Route>, folded: &Arc<Route>) {
        self.add_requirement(reading, folded, Comparison::Folded);
        // Variables may differ between the two comparisons of one rule.
        self.add_requirement(reading, exact, Comparison::Exact);
    }

    fn add_requirement(&mut self, reading: PathReading<'_>, route: &Arc<Route>, comparison: Comparison) {
        if strictness(route.auth) > strictness(self.auth) {
            self.auth = route.auth;
            self.strictest = Arc::clone(route);
        }
        if route.require.is_empty() {
            return;
        }
        let variables = route.variables(reading, comparison);
        let is_known = |requirement: &RouteRequirement| {
            Arc::ptr_eq(&requirement.route, route) && requirement.variables == variables
        };
        if !self.requirements.iter().any(is_known) {
            self.requirements.push(RouteRequirement { route: Arc::clone(route), variables });
        }
    }

    fn compare_settings(&mut self, other: &Arc<Route>) {
        if Arc::ptr_eq(&self.route, other) {
            return;
        }
        let route = &self.route;
        for (conflict, differs) in [
            (Conflict::Upstream, route.upstream != other.upstream),
            (Conflict::TokenSources, route.token_from != other.token_from),
            (Conflict::Resource, route.require.audience != other.require.audience),
            (Conflict::WebSocket, route.websocket != other.websocket),
        ] {
            self.conflicts[conflict as usize] |= differs;
        }
    }
}

fn strictness(auth: AuthMode) -> u8 {
    match auth {
        AuthMode::None => 0,
        AuthMode::Optional => 1,
        AuthMode::Required => 2,
        AuthMode::Deny => 3,
    }
}

#[cfg(any(test, fuzzing))]
pub(super) mod lenient_server;

#[cfg(test)]
mod tests {
    use super::lenient_server::HEAD;
    use super::*;

    pub(super) fn policy(routes: &str) -> Policy {
        let file = crate::config::load_yaml(&format!("{HEAD}{routes}")).expect("loads");
        crate::policy::validate(&file.config).expect("valid")
    }

    fn judged(policy: &Policy, path: &str) -> RouteMatch {
        policy.match_path("GET", path).expect("few readings")
    }

    #[test]
    fn the_strictest_auth_of_all_readings_holds() {
        let policy = policy(
            "  - { path: /admin/**, auth: deny }\n  - { path: /open/**, auth: none }\n  - { path: /maybe/**, auth: optional }\n",
        );
        for (path, auth) in [
            ("/admin/x", AuthMode::Deny),
            ("/ADMIN/x", AuthMode::Deny),
            ("/admin%0A", AuthMode::Deny),
            ("/open/..%2fadmin", AuthMode::Deny),
            ("//x/admin", AuthMode::Deny),
            ("/open/x", AuthMode::None),
            ("/open/a%20b", AuthMode::None),
            ("/open/a//b", AuthMode::None),
            ("/open/../x", AuthMode::Required),
            ("/Open/x", AuthMode::Required),
            ("/maybe/x", AuthMode::Optional),
            ("/maybe/%2e%2e/open/x", AuthMode::Optional),
            ("/maybe;x/y", AuthMode::Required),
            ("/x%2520y", AuthMode::Required),
        ] {
            assert_eq!(judged(&policy, path).auth, auth, "{path}");
        }
    }

    #[test]
    fn what_every_reading_requires_is_required() {
        let policy = policy(
            "  - path: /files/{user}/notes\n    require: { sub: \"{user}\" }\n  - { path: /b/**, require: { role: b } }\n",
        );
        let requirements = |path: &str| -> Vec<(String, Option<String>)> {
            let matched = judged(&policy, path);
            let requirement = |requirement: &RouteRequirement| {
                (requirement.route.label.to_string(), requirement.variables.get("user").map(str::to_owned))
            };
            matched.requirements.iter().map(requirement).collect()
        };
        let files = |user: &str| ("/files/{user}/notes".to_owned(), Some(user.to_owned()));
        assert_eq!(requirements("/files/alice/notes"), [files("alice")]);
        assert_eq!(requirements("/files/alice/notes%0A"), [files("alice")]);
        assert_eq!(requirements("/files/a%20b/notes"), [files("a b")]);
        assert_eq!(requirements("/files/bob;/notes"), [files("bob;"), files("bob")]);
        assert_eq!(requirements("/files/mallory/../alice/notes"), [files("alice")]);
        assert_eq!(requirements("/files/bob/../../b/x"), [("/b/**".to_owned(), None)]);
        assert_eq!(requirements("/FILES/Alice/notes/"), [files("Alice")]);
        assert_eq!(requirements("/x"), []);
    }

    #[test]
    fn readings_that_differ_in_a_setting_conflict_where_it_matters() {
        let policy = policy(
            "  - { path: /a/**, upstream: \"http://127.0.0.1:2\" }\n  - { path: /b/**, token_from: { header: X-Token } }\n  - { path: /c/**, websocket: { dialect: none } }\n",
        );
        for (path, plain, socket) in [
            ("/x/../a", Some(Conflict::Upstream), Some(Conflict::Upstream)),
            ("/x/../b", Some(Conflict::TokenSources), Some(Conflict::TokenSources)),
            ("/x/../c", None, Some(Conflict::WebSocket)),
            ("/a/x%20y", None, None),
            ("/A/x", None, None),
        ] {
            let matched = judged(&policy, path);
            assert_eq!(matched.conflict(false), plain, "{path}");
            assert_eq!(matched.conflict(true), socket, "{path}, upgrade");
        }
    }

    #[test]
    fn without_rules_that_differ_no_readings_are_looked_for() {
        for (routes, differ) in [
            ("  []\n", false),
            ("  - { path: /**, auth: none }\n", false),
            ("  - { path: /a/** }\n", false),
            ("  - { path: /a/**, auth: none }\n", true),
            ("  - { path: /**, methods: [POST], require: { role: a } }\n", true),
        ] {
            assert_eq!(policy(routes).rules_by_path, differ, "{routes}");
        }
    }
}
