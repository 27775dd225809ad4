//! Warns of route rules that leave more open than they seem to: one that makes every path public, and one that protects a
//! single segment of a path, but nothing below it.

use std::sync::Arc;

use super::check::Check;
use super::pattern::{Comparison, Pattern};
use super::{AuthMode, Route};

impl Check {
    /// Warns of such rules. `routes` are those of the configuration, in their order.
    pub(super) fn warn_of_loose(&mut self, routes: &[Arc<Route>], has_providers: bool) {
        if let Some(index) = opens_everything(routes).filter(|_| has_providers) {
            self.warn_at(
                format!("routes[{index}].auth"),
                "makes every path public: no request needs a token, and the backend gets no user; write auth: none for the public paths only, such as /health",
            );
        }
        for (index, route) in routes.iter().enumerate() {
            let restricts = route.auth == AuthMode::Deny || !route.require.claims.is_empty();
            let Some(above) = route.label.strip_suffix("/*").filter(|_| restricts) else { continue };
            // The paths one segment longer. A rule for these shows that they were thought of.
            let Ok(below) = Pattern::parse(&format!("{above}/*/*")) else { continue };
            let is_ruled = |other: &Arc<Route>| {
                other.pattern.as_ref().is_none_or(|pattern| pattern.includes(&below, Comparison::Exact))
            };
            if !routes.iter().any(is_ruled) {
                self.warn_at(
                    format!("routes[{index}].path"),
                    format!(
                        "* is one segment, so this rule does not hold for {above}/a/b, which is open to every user; write {above}/**, or a rule for {above}/*/**"
                    ),
                );
            }
        }
    }
}

/// Returns the rule that makes every path public, if the rules above it demand nothing. Rules below it are never used, of
/// which `unused_rules` warns.
fn opens_everything(routes: &[Arc<Route>]) -> Option<usize> {
    let (last, above) = routes.split_last()?;
    let is_open = |route: &Arc<Route>| matches!(route.auth, AuthMode::None | AuthMode::Deny);
    (last.auth == AuthMode::None && last.matches_everything() && above.iter().all(is_open)).then_some(above.len())
}

#[cfg(test)]
mod tests {
    use super::super::route_match::lenient_server::HEAD;

    fn warnings(routes: &str) -> Vec<String> {
        let file = crate::config::load_yaml(&format!("{HEAD}  [{routes}]\n")).expect("loads");
        let warnings = crate::policy::validate(&file.config).expect("valid").warnings;
        warnings.iter().filter(|warning| warning.path().starts_with("routes[")).map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_that_makes_every_path_public_is_a_warning() {
        for (routes, expected) in [
            ("{ path: /**, auth: none }", "routes[0].auth: makes every path public"),
            ("{ path: /health, auth: none }, { path: /**, auth: none }", "routes[1].auth: makes every path public"),
        ] {
            let found = warnings(routes);
            assert!(found.len() == 1 && found[0].starts_with(expected), "{routes} {found:?}");
        }
        for routes in [
            "{ path: /api/** }, { path: /**, auth: none }",
            "{ path: /**, auth: none, methods: [GET] }",
            "{ path: /**, auth: optional }",
            "{ path: /public/**, auth: none }",
        ] {
            assert_eq!(warnings(routes), [""; 0], "{routes}");
        }
    }

    #[test]
    fn a_rule_for_one_segment_that_leaves_the_paths_below_open_is_a_warning() {
        let expected = "routes[0].path: * is one segment, so this rule does not hold for /admin/a/b, which is open to every user; write /admin/**, or a rule for /admin/*/**";
        for rule in ["{ path: /admin/*, require: { role: admin } }", "{ path: /admin/*, auth: deny }"] {
            assert_eq!(warnings(rule), [expected], "{rule}");
        }
        for routes in [
            "{ path: /admin/**, auth: deny }",
            "{ path: /admin/* }",
            "{ path: /admin/*, auth: deny }, { path: /admin/*/** }",
            "{ path: /admin/*, auth: deny }, { path: /**, require: { role: user } }",
        ] {
            assert_eq!(warnings(routes), [""; 0], "{routes}");
        }
    }
}
