//! Recognises texts in a URL that are tokens of a configured provider, before they are verified.

use std::sync::Arc;

use super::{KeySource, ProviderSpec};

/// The rules that distinguish a provider's token in a URL from a parameter of the upstream with the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderTokens {
    /// The `iss` of each provider that has one.
    pub issuers: Vec<String>,
    /// Whether every JWT belongs to the only provider, whatever its `iss`.
    pub any_issuer: bool,
    /// Whether a provider has no issuer, so that a JWT without `iss` may be its own.
    pub no_issuer: bool,
    /// Whether a provider issues opaque tokens, so that a text that is no JWT may be one.
    pub opaque: bool,
}

impl ProviderTokens {
    pub(super) fn of(providers: &[Arc<ProviderSpec>]) -> Self {
        let takes_all = |only: &ProviderSpec| only.keys == KeySource::Introspection || only.issuer.is_none();
        Self {
            issuers: providers.iter().filter_map(|provider| provider.issuer.clone()).collect(),
            any_issuer: matches!(providers, [only] if takes_all(only)),
            no_issuer: providers.iter().any(|provider| provider.issuer.is_none()),
            opaque: providers
                .iter()
                .any(|provider| provider.remote.as_ref().is_some_and(|remote| remote.verifies_opaque_tokens)),
        }
    }
}
