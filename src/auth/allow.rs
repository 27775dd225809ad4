//! Whether a verified identity may enter, and may enter here: `allow` of its provider, `require` of
//! the route. Asked for every request and again on every refresh; never cached with a token.

use std::borrow::Cow;

use serde_json::Value;

use super::Identity;
use std::sync::Arc;

use crate::policy::{AllowSpec, Claim, Demand, Expected, PathVariables, Requirement};

/// Why an identity may not enter; for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not in the provider's `allow`.
    #[error("the user is not in `allow` of provider {0}")]
    NotAllowed(String),
    /// A claim the route requires is absent or has another value.
    #[error("claim {claim} is not what the route requires{}", differing.as_ref().map(|name| format!("; {{{name}}} differs between readings of the path")).unwrap_or_default())]
    Claim {
        /// The claim.
        claim: String,
        /// The pattern of the rule that requires it.
        route: Arc<str>,
        /// A path variable of the rule that stands for different things in two readings of the path.
        differing: Option<String>,
    },
}

/// Asks `allow`, and every demand.
///
/// # Errors
/// The first rule that is not met.
pub fn permits(demands: &[Demand], identity: &Identity) -> Result<(), Denied> {
    let provider = identity.provider();
    if !is_allowed(&provider.allow, identity) {
        return Err(Denied::NotAllowed(provider.name.clone()));
    }
    for Demand { route, variables } in demands {
        if let Some(claim) = unmet(&route.require, variables, |claim| identity.claim(claim)) {
            let mut of_this_rule = demands.iter().filter(|demand| Arc::ptr_eq(&demand.route, route));
            let differing = of_this_rule.find_map(|demand| demand.variables.differing(variables));
            return Err(Denied::Claim {
                claim: claim.to_string(),
                route: Arc::clone(&route.label),
                differing: differing.map(str::to_owned),
            });
        }
    }
    Ok(())
}

fn is_allowed(allow: &AllowSpec, identity: &Identity) -> bool {
    if allow.is_empty() || allow.users.iter().any(|user| user == identity.user_id()) {
        return true;
    }
    let email = identity.claim(&Claim::Name("email".to_owned()));
    // Exactly one `@` (CVE-2026-40574): `a@evil@corp.com` is nobody's address.
    let Some((local, domain)) = email.as_deref().and_then(Value::as_str).and_then(|email| email.split_once('@')) else {
        return false;
    };
    if local.is_empty() || domain.is_empty() || domain.contains('@') {
        return false;
    }
    let listed = allow
        .emails
        .iter()
        .filter_map(|listed| listed.split_once('@'))
        .any(|(listed_local, listed_domain)| listed_local == local && listed_domain.eq_ignore_ascii_case(domain));
    listed || allow.email_domains.iter().any(|listed| listed.eq_ignore_ascii_case(domain))
}

/// The first claim that does not have one of its values.
pub(super) fn unmet<'a, 'c>(
    requirement: &'a Requirement,
    variables: &PathVariables,
    claims: impl Fn(&Claim) -> Option<Cow<'c, Value>>,
) -> Option<&'a Claim> {
    requirement
        .claims
        .iter()
        .find(|(claim, expected)| {
            let Some(found) = claims(claim) else { return true };
            !expected.iter().any(|expected| match expected {
                Expected::Value(value) => satisfies(claim, &found, value),
                // A variable that could not be decoded satisfies nothing.
                Expected::Variable(name) => {
                    variables.get(name).is_some_and(|text| satisfies(claim, &found, &Value::String(text.to_owned())))
                }
            })
        })
        .map(|(claim, _)| claim)
}

/// Equality with exact JSON types, one member of an array, or one word of a scope.
fn satisfies(claim: &Claim, found: &Value, expected: &Value) -> bool {
    if found == expected {
        return true;
    }
    let is_scope = matches!(claim, Claim::Name(name) if name == "scope" || name == "scp");
    match (found, expected) {
        (Value::Array(members), expected) => members.contains(expected),
        (Value::String(words), Value::String(word)) if is_scope && !word.is_empty() => {
            words.split(' ').any(|found| found == word)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_compare_exactly_and_scopes_by_word() {
        for (claim, found, expected, satisfied) in [
            ("admin", json!(true), json!(true), true),
            ("admin", json!("true"), json!(true), false),
            ("level", json!(1), json!(1), true),
            ("level", json!("1"), json!(1), false),
            ("roles", json!(["a", "b"]), json!("b"), true),
            ("roles", json!(["ab"]), json!("a"), false),
            ("roles", json!("a b"), json!("a"), false),
            ("scope", json!("read write"), json!("write"), true),
            ("scope", json!("rewrite"), json!("write"), false),
            ("scp", json!(["read"]), json!("read"), true),
        ] {
            let name = Claim::Name(claim.to_owned());
            assert_eq!(satisfies(&name, &found, &expected), satisfied, "{claim} {found} {expected}");
        }
    }
}
