//! Authorization: checks a verified identity against `allow` of its provider and `require` of the route. This is
//! checked for every request and every refresh, and never cached.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use super::kind::check_bound_audience;
use super::{Identity, Rejection};
use crate::policy::{AllowSpec, Claim, Expected, PathVariables, Requirement, RouteRequirement};

/// The reason why access is denied; for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The user is not in the provider's `allow`.
    #[error("the user is not in `allow` of provider {provider}{}", if *lacks_email { "; there is no `email` claim beside `email_verified: true`" } else { "" })]
    NotAllowed {
        /// The provider's name.
        provider: String,
        /// Whether e-mail addresses are allowed, and the identity has no verified one.
        lacks_email: bool,
    },
    /// The token was issued for another protected resource.
    #[error("{0}; it is not for this protected resource")]
    OtherResource(Rejection),
    /// A claim that the route requires is absent or has another value.
    #[error(
        "claim {claim} is not what the route requires{}{}",
        differing.as_ref().map(|name| format!("; {{{name}}} differs between readings of the path")).unwrap_or_default(),
        if *is_overage { "; group overage: the provider left it out of the token, because the user has too many" } else { "" }
    )]
    Claim {
        /// The claim's name.
        claim: String,
        /// The pattern of the route that requires it.
        route: Arc<str>,
        /// A path variable of the route whose value differs between two readings of the path.
        differing: Option<String>,
        /// Whether the provider says that the claim has too many values for a token (OpenID Connect Core section 5.6.2).
        is_overage: bool,
    },
}

/// Checks `allow` and every requirement.
///
/// # Errors
/// Returns the first requirement that is not met.
pub fn permits(requirements: &[RouteRequirement], identity: &Identity) -> Result<(), Denied> {
    let provider = identity.provider();
    if !is_allowed(&provider.allow, identity) {
        let allow = &provider.allow;
        let needs_email = !allow.emails.is_empty() || !allow.email_domains.is_empty();
        let lacks_email = needs_email && identity.claim(&Claim::Name("email".to_owned())).is_none();
        return Err(Denied::NotAllowed { provider: provider.name.clone(), lacks_email });
    }
    for RouteRequirement { route, variables } in requirements {
        if let Some(bound) = &route.require.audience {
            check_bound_audience(provider, identity.claims(), bound).map_err(Denied::OtherResource)?;
        }
        if let Some(claim) = unmet(&route.require, variables, |claim| identity.claim(claim)) {
            let mut of_this_rule = requirements.iter().filter(|requirement| Arc::ptr_eq(&requirement.route, route));
            let differing = of_this_rule.find_map(|requirement| requirement.variables.differing(variables));
            return Err(Denied::Claim {
                is_overage: is_left_out(claim, identity),
                claim: claim.to_string(),
                route: Arc::clone(&route.label),
                differing: differing.map(str::to_owned),
            });
        }
    }
    Ok(())
}

/// Returns whether a claim is only named in the token, with another place where its value is.
fn is_left_out(claim: &Claim, identity: &Identity) -> bool {
    let names = identity.claims().get("_claim_names");
    matches!(claim, Claim::Name(name) if names.is_some_and(|names| names.get(name).is_some()))
}

fn is_allowed(allow: &AllowSpec, identity: &Identity) -> bool {
    if allow.is_empty() || allow.users.iter().any(|user| user == identity.user_id()) {
        return true;
    }
    let email = identity.claim(&Claim::Name("email".to_owned()));
    // There must be exactly one `@` (CVE-2026-40574): `a@evil@corp.com` must not count as an address at corp.com.
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

/// Returns the first claim that has none of its required values.
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
                Expected::Present => !found.is_null(),
                Expected::Value(value) => satisfies(claim, &found, value),
                // A path variable that could not be decoded matches no claim.
                Expected::Variable(name) => {
                    variables.get(name).is_some_and(|text| satisfies(claim, &found, &Value::String(text.to_owned())))
                }
            })
        })
        .map(|(claim, _)| claim)
}

/// Returns whether a claim has a value: equal with the same JSON type, one member of an array, or one word of a scope.
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
