//! An identity in the few bytes that an open socket can keep for hours: its claims as text, a third of what they
//! take as values. It comes back as the identity it was, or as what the providers now in force make of it.

use std::sync::Arc;

use super::identify::{Said, identify_again};
use super::identity::{Expiry, VerifiedBy};
use super::kind::KindHeader;
use super::{Identity, KeyFingerprint, Verifier, claims};
use crate::policy::{Parties, ProviderSpec};

/// What a socket keeps of its user. Only an [`Identity`] can be remembered.
#[derive(Clone)]
pub struct StoredIdentity {
    provider: Arc<ProviderSpec>,
    end: Expiry,
    // In an allocation of its own: a session has to fit the allocator's class.
    kept: Box<Kept>,
}

#[derive(Clone)]
struct Kept {
    claims: Box<str>,
    verified_by: VerifiedBy,
    kind: KindHeader,
    /// What the session cookie that it came by is sealed with.
    seal: Option<KeyFingerprint>,
}

impl StoredIdentity {
    /// Keeps what the identity says.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let kept = Kept {
            // A map of JSON values always has a text.
            claims: serde_json::to_string(identity.claims()).unwrap_or_default().into(),
            verified_by: identity.verified_by(),
            kind: identity.kind(),
            seal: identity.browser_session().map(|session| session.seal),
        };
        Self { provider: Arc::clone(identity.provider_spec()), end: identity.expiry(), kept: Box::new(kept) }
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
            Expiry::At(at) | Expiry::RevalidateAt(at) => at,
        }
    }

    /// When the login session ends that it came by, Unix seconds; `None` for any other identity. Its token's end does not
    /// count: the session is renewed.
    #[must_use]
    pub fn login_session_ends_at(&self) -> Option<u64> {
        matches!(self.provider.authorized_parties, Parties::Client(_)).then(|| self.expires_at())
    }

    /// Who vouched for it.
    #[must_use]
    pub fn verified_by(&self) -> VerifiedBy {
        self.kept.verified_by
    }

    /// The identity as it was.
    #[must_use]
    pub fn restore(&self) -> Option<Identity> {
        let said = self.said()?;
        let user_id = claims::user_id(&self.provider, &said.claims).ok()?;
        Some(Identity::new(Arc::clone(&self.provider), user_id, said.claims, said.end, said.verified_by, said.kind))
    }

    /// The identity by the providers in force: what a changed one makes of the same claims. `None` where its provider
    /// is gone, or would not take such a token any more, or its session is sealed with what seals none now. Keys and
    /// times are not looked at: a socket may outlive both (docs/contract.md section 4.5).
    #[must_use]
    pub fn restore_under(&self, verifier: &Verifier) -> Option<Identity> {
        if self.kept.seal.is_some() && self.kept.seal != verifier.session_cookies().map(super::SessionCookies::seal) {
            return None;
        }
        let spec = verifier.spec_like(&self.provider)?;
        if **spec == *self.provider {
            return self.restore();
        }
        identify_again(spec, self.provider.preset, self.said()?).ok()
    }

    fn said(&self) -> Option<Said> {
        let claims = serde_json::from_str(&self.kept.claims).ok()?;
        Some(Said { claims, kind: self.kept.kind, end: self.end, verified_by: self.kept.verified_by })
    }

    /// Somebody's, for tests of what only keeps it.
    #[cfg(test)]
    pub(crate) fn example(expires_at: u64) -> Self {
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: any }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let provider = Arc::clone(&crate::policy::validate(&config).expect("valid").providers[0]);
        let verified_by = VerifiedBy::Key {
            print: KeyFingerprint::default(),
            algorithm: jsonwebtoken::Algorithm::HS256,
            until: expires_at,
        };
        let claims = r#"{"sub":"alice"}"#.into();
        let kept = Kept { claims, verified_by, kind: KindHeader::default(), seal: None };
        Self { provider, end: Expiry::At(expires_at), kept: Box::new(kept) }
    }
}

impl std::fmt::Debug for StoredIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredIdentity({})", self.provider.name)
    }
}
