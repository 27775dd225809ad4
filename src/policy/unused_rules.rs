//! Warns of route rules that no request reaches, because rules above them match all of their paths first: such a rule
//! looks like a protection, but is not one.

use std::sync::Arc;

use super::Route;
use super::check::Check;
use super::pattern::{Comparison, Pattern};

/// The paths of a rule that rules above it match first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hidden {
    /// All as they are written. Spellings that differ in letter case or trailing slashes may still reach the rule.
    AsWritten,
    /// All, in every spelling.
    Always,
}

impl Check {
    /// Warns of each rule that rules above it hide. `routes` are those of the configuration, in their order.
    pub(super) fn warn_of_unused(&mut self, routes: &[Arc<Route>]) {
        for (index, route) in routes.iter().enumerate() {
            let Some((hidden, by)) = hiding(route, &routes[..index]) else { continue };
            let names: Vec<String> =
                by.iter().map(|above| format!("routes[{above}] ({})", shown(&routes[*above]))).collect();
            let verb = if names.len() == 1 { "matches" } else { "match" };
            let names = names.join(" and ");
            let is_same = by.iter().all(|above| is_twin(&routes[*above], route));
            let remedy = if is_same { "keep one of them" } else { "put it above" };
            let message = match hidden {
                Hidden::Always => format!("is never used: {names} {verb} first, and the first match wins; {remedy}"),
                Hidden::AsWritten => format!(
                    "is not used for its paths as they are written: {names} {verb} first, and the first match wins; {remedy}"
                ),
            };
            self.warn_at(format!("routes[{index}].path"), message);
        }
    }
}

fn shown(route: &Route) -> String {
    if route.methods.is_empty() {
        route.label.to_string()
    } else {
        format!("{} {}", route.methods.join(","), route.label)
    }
}

/// Returns whether both rules are for the same requests.
fn is_twin(one: &Route, other: &Route) -> bool {
    one.pattern == other.pattern && one.methods == other.methods
}

/// Returns how far the rules above hide a rule, and the indices of those that do. With methods, each of them may be
/// hidden by a rule of its own.
pub(super) fn hiding(route: &Route, above: &[Arc<Route>]) -> Option<(Hidden, Vec<usize>)> {
    // A rule that hides all spellings is named rather than one that hides some.
    let strictest = |method: Option<&str>| {
        let mut as_written = None;
        for (index, other) in above.iter().enumerate() {
            match hides(other, route, method) {
                Some(Hidden::Always) => return Some((Hidden::Always, index)),
                Some(Hidden::AsWritten) => as_written = as_written.or(Some((Hidden::AsWritten, index))),
                None => {}
            }
        }
        as_written
    };
    let methods: Vec<Option<&str>> = if route.methods.is_empty() {
        vec![None]
    } else {
        route.methods.iter().map(|method| Some(method.as_str())).collect()
    };
    let found: Vec<(Hidden, usize)> = methods.into_iter().map(strictest).collect::<Option<_>>()?;
    let hidden = found.iter().map(|(hidden, _)| *hidden).min()?;
    let mut by: Vec<usize> = found.into_iter().map(|(_, index)| index).collect();
    by.sort_unstable();
    by.dedup();
    Some((hidden, by))
}

/// Returns how far `above` hides the requests of `route` with this method, or with every method.
fn hides(above: &Route, route: &Route, method: Option<&str>) -> Option<Hidden> {
    let is_named = |method: &str| {
        let names = |wanted: &str| above.methods.iter().any(|named| named == wanted);
        names(method) || (method == "HEAD" && names("GET"))
    };
    if !above.methods.is_empty() && !method.is_some_and(is_named) {
        return None;
    }
    if !includes(above, route, Comparison::Exact) {
        return None;
    }
    // A rule that opens matches exactly, so that another spelling goes on to the rules below it.
    let is_always = if route.opens() {
        true
    } else if above.opens() {
        above.matches_everything()
    } else {
        includes(above, route, Comparison::Folded)
    };
    Some(if is_always { Hidden::Always } else { Hidden::AsWritten })
}

fn includes(above: &Route, route: &Route, comparison: Comparison) -> bool {
    let is_included = |wide: &Pattern| route.pattern.as_ref().is_some_and(|narrow| wide.includes(narrow, comparison));
    above.pattern.as_ref().is_none_or(is_included)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Policy;
    use super::super::route_match::lenient_server::HEAD;
    use super::*;

    fn policy(routes: &str) -> Policy {
        let file = crate::config::load_yaml(&format!("{HEAD}{routes}")).expect("loads");
        crate::policy::validate(&file.config).expect("valid")
    }

    fn warnings(routes: &str) -> Vec<String> {
        let warnings = policy(routes).warnings;
        let of_routes = warnings.iter().filter(|warning| warning.path().starts_with("routes["));
        of_routes.map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_below_one_that_matches_first_is_a_warning() {
        for (above, below, expected) in [
            (
                "{ path: /**, auth: none }",
                "{ path: /admin/**, require: { role: admin } }",
                "routes[1].path: is never used: routes[0] (/**) matches first, and the first match wins; put it above",
            ),
            (
                "{ path: /a/** }",
                "{ path: /a/b, auth: deny }",
                "routes[1].path: is never used: routes[0] (/a/**) matches first, and the first match wins; put it above",
            ),
            (
                "{ path: /a/** }",
                "{ path: /a/**, auth: deny }",
                "routes[1].path: is never used: routes[0] (/a/**) matches first, and the first match wins; keep one of them",
            ),
            (
                "{ path: /a/**, auth: none }",
                "{ path: /a/b }",
                "routes[1].path: is not used for its paths as they are written: routes[0] (/a/**) matches first, and the first match wins; put it above",
            ),
            (
                "{ path: /a/**, methods: [GET, POST] }",
                "{ path: /a/b, methods: [HEAD], auth: deny }",
                "routes[1].path: is never used: routes[0] (GET,POST /a/**) matches first, and the first match wins; put it above",
            ),
            (
                "{ path: /a, methods: [GET] }, { path: /a, methods: [POST] }",
                "{ path: /a, methods: [GET, POST], auth: deny }",
                "routes[2].path: is never used: routes[0] (GET /a) and routes[1] (POST /a) match first, and the first match wins; put it above",
            ),
        ] {
            assert_eq!(warnings(&format!("  [{above}, {below}]\n")), [expected], "{above} {below}");
        }
    }

    #[test]
    fn a_rule_that_some_request_reaches_is_no_warning() {
        for routes in [
            "{ path: /admin/**, require: { role: admin } }, { path: /**, auth: none }",
            "{ path: /a/*, auth: none }, { path: /a/** }",
            "{ path: /a/**, methods: [GET] }, { path: /a/** }",
            "{ path: /a/**, methods: [HEAD] }, { path: /a/b, methods: [GET] }",
            "{ path: /a, methods: [GET] }, { path: /a, methods: [GET, POST] }",
            "{ path: /a/b, auth: none }, { path: /a/c }",
        ] {
            assert_eq!(warnings(&format!("  [{routes}]\n")), [""; 0], "{routes}");
        }
    }

    fn rule() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "A", "b", "*", "**", ""]);
        let path = prop::collection::vec(segment, 1..4)
            .prop_filter("one **", |segments| segments.iter().filter(|segment| **segment == "**").count() < 2);
        let methods = prop::sample::select(vec!["", "GET", "HEAD", "POST", "GET, POST"]);
        let auth = prop::sample::select(vec!["none", "optional", "required", "deny"]);
        (path, methods, auth).prop_map(|(path, methods, auth)| {
            let methods = if methods.is_empty() { String::new() } else { format!(", methods: [{methods}]") };
            format!("{{ path: \"/{}\"{methods}, auth: {auth} }}", path.join("/"))
        })
    }

    fn path() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "A", "b", "B", "c", "", "%61", "a;x", ".."]);
        prop::collection::vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    proptest! {
        #[test]
        fn no_request_reaches_a_rule_that_is_called_unused(
            rules in prop::collection::vec(rule(), 2..5),
            paths in prop::collection::vec(path(), 8),
            method in prop::sample::select(vec!["GET", "HEAD", "POST", "PUT", "get"]),
        ) {
            let policy = policy(&format!("  [{}]\n", rules.join(", ")));
            for (index, route) in policy.routes[..rules.len()].iter().enumerate() {
                let Some((hidden, _)) = hiding(route, &policy.routes[..index]) else { continue };
                for path in &paths {
                    for reading in policy.readings(path).expect("few readings").each() {
                        let first = |comparison| {
                            policy.routes.iter().find(|route| route.matches(method, reading, comparison)).expect("the default")
                        };
                        prop_assert!(!Arc::ptr_eq(first(Comparison::Exact), route), "{rules:?} {index} {method} {path}");
                        let is_reached = Arc::ptr_eq(first(Comparison::Folded), route);
                        prop_assert!(hidden == Hidden::AsWritten || !is_reached, "{rules:?} {index} {method} {path}");
                    }
                }
            }
        }
    }
}
