//! An identity in the few bytes that an open socket can keep for hours: its claims as text, a third of what they
//! take as values. It comes back as the identity it was, or as what the providers now in force make of it.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::allow::unmet;
use super::identity::{End, Voucher};
use super::kind::check_audience;
use super::{Identity, Verifier, claims};
use crate::policy::{PathVariables, ProviderSpec};

/// What a socket keeps of its user. Only an [`Identity`] can be remembered.
#[derive(Clone)]
pub struct Remembered {
    provider: Arc<ProviderSpec>,
    claims: Box<str>,
    end: End,
    voucher: Voucher,
}

impl Remembered {
    /// Keeps what the identity says.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self {
            provider: Arc::clone(identity.provider_spec()),
            // A map of JSON values always has a text.
            claims: serde_json::to_string(identity.claims()).unwrap_or_default().into(),
            end: identity.end(),
            voucher: identity.voucher(),
        }
    }

    /// What a session of ours holds; vouched for by its seal.
    pub(super) fn opened(provider: &Arc<ProviderSpec>, claims: &Map<String, Value>, until: u64) -> Self {
        Self {
            provider: Arc::clone(provider),
            claims: serde_json::to_string(claims).unwrap_or_default().into(),
            end: End::At(until),
            voucher: Voucher::Provider,
        }
    }

    /// Its provider's name.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider.name
    }

    /// The token's end, or when its provider is asked again, Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        match self.end {
            End::At(at) | End::AskedAgainAt(at) => at,
        }
    }

    /// Who vouched for it.
    #[must_use]
    pub fn voucher(&self) -> Voucher {
        self.voucher
    }

    /// The identity as it was.
    #[must_use]
    pub fn recalled(&self) -> Option<Identity> {
        self.under(&self.provider)
    }

    /// The identity by the providers in force: what a changed one makes of the same claims. `None` where its provider
    /// is gone, or would not take such a token any more. Keys and times are not looked at: a socket may outlive both
    /// (docs/contract.md section 4.5).
    #[must_use]
    pub fn recalled_by(&self, verifier: &Verifier) -> Option<Identity> {
        let spec = verifier.provider(&self.provider.name)?;
        if **spec == *self.provider {
            return self.recalled();
        }
        let same = spec.issuer == self.provider.issuer
            && spec.preset == self.provider.preset
            && spec.accept == self.provider.accept;
        let identity = self.under(spec).filter(|_| same)?;
        check_audience(spec, identity.claims()).ok()?;
        claims::check_party(&spec.authorized_parties, identity.claims()).ok()?;
        let unmet = unmet(&spec.require, &PathVariables::default(), |claim| identity.claim(claim));
        unmet.is_none().then_some(identity)
    }

    /// Somebody's, for tests of what only keeps it.
    #[cfg(test)]
    pub(crate) fn example(expires_at: u64) -> Self {
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: any }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let provider = Arc::clone(&crate::policy::validate(&config).expect("valid").providers[0]);
        Self { provider, claims: r#"{"sub":"alice"}"#.into(), end: End::At(expires_at), voucher: Voucher::Provider }
    }

    fn under(&self, spec: &Arc<ProviderSpec>) -> Option<Identity> {
        let claims: Map<String, Value> = serde_json::from_str(&self.claims).ok()?;
        let user_id = claims::user_id(spec, &claims).ok()?;
        Some(Identity::new(Arc::clone(spec), user_id, claims, self.end, self.voucher))
    }
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remembered({})", self.provider.name)
    }
}
