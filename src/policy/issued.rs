//! Which texts in a URL are tokens of a configured provider, as far as that shows before they are verified.

use std::sync::Arc;

use super::{KeySource, ProviderSpec, QueryParameter};

/// What tells a token of ours from a parameter of the backend's own that has the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedTokens {
    /// The `iss` of each provider that has one.
    pub issuers: Vec<String>,
    /// Whether every JWT is a provider's to verify, whatever its `iss` says.
    pub any_issuer: bool,
    /// Whether a provider takes opaque tokens, so that a text that is no JWT may be one.
    pub opaque: bool,
}

impl IssuedTokens {
    pub(super) fn of(providers: &[Arc<ProviderSpec>]) -> Self {
        let is_only_asked = matches!(providers, [only] if only.keys == KeySource::Asked);
        Self {
            issuers: providers.iter().filter_map(|provider| provider.issuer.clone()).collect(),
            any_issuer: is_only_asked || providers.iter().any(|provider| provider.issuer.is_none()),
            opaque: providers.iter().any(|provider| provider.remote.as_ref().is_some_and(|remote| remote.instead)),
        }
    }
}

impl QueryParameter {
    /// Whether this is one of its names.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}
