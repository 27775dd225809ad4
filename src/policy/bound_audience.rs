//! Binds tokens to protected resources (RFC 9728) by their audience.

use std::sync::Arc;

/// A protected resource and the document that describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct ProtectedResourceSpec {
    /// The URL that identifies it.
    pub identifier: String,
    /// The path at which its document is served.
    pub document_path: String,
    /// The URL of its document, for `WWW-Authenticate`.
    pub document_url: String,
    /// The document, JSON.
    pub document: String,
}

/// The audiences of a token that count on a route, where there are protected resources. A token that was issued for one
/// of them alone is accepted on no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundAudience {
    /// The resource of the route.
    pub resource: Option<Arc<ProtectedResourceSpec>>,
    /// Every resource of the policy, in each spelling that counts as an audience.
    all: Arc<[String]>,
}

impl BoundAudience {
    /// Makes the rule; `all` are the audiences of every resource of the policy.
    pub(super) fn new(resource: Option<Arc<ProtectedResourceSpec>>, all: Arc<[String]>) -> Self {
        Self { resource, all }
    }

    /// Returns whether an audience counts on this route: it names no resource, or that of the route.
    #[must_use]
    pub fn counts(&self, audience: &str) -> bool {
        !self.all.iter().any(|resource| resource == audience)
            || self.resource.as_ref().is_some_and(|own| spellings(&own.identifier).any(|own| own == audience))
    }
}

/// Returns the spellings of one URL: without a path it may end in a slash or not (RFC 3986 section 6.2.3). Clients that
/// parse it send one of them, and the configuration may have the other.
pub(super) fn spellings(identifier: &str) -> impl Iterator<Item = String> {
    let bare = identifier.strip_suffix('/').unwrap_or(identifier);
    let has_path = bare.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    let other = (!has_path).then(|| if bare == identifier { format!("{bare}/") } else { bare.to_owned() });
    [identifier.to_owned()].into_iter().chain(other)
}

/// Returns whether a text is a `scope-token` (RFC 6749 section 3.3).
pub(super) fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b'"' && b != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_url_has_two_spellings_only_without_a_path() {
        for (identifier, expected) in [
            ("https://a.example", &["https://a.example", "https://a.example/"][..]),
            ("https://a.example/", &["https://a.example/", "https://a.example"]),
            ("https://a.example/mcp", &["https://a.example/mcp"]),
            ("https://a.example/mcp/", &["https://a.example/mcp/"]),
        ] {
            assert_eq!(spellings(identifier).collect::<Vec<_>>(), expected, "{identifier}");
        }
    }
}
