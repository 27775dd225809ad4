//! A compact form of an identity, which an open session can keep for hours: the claims as JSON text take a third of
//! the memory of parsed values. It can be restored unchanged, or checked again by the current configuration.

use std::sync::Arc;

use super::identify::{VerifiedClaims, identify_again};
use super::identity::{Expiry, PackedExpiry, Stored, VerifiedBy};
use super::{Identity, Verifier, claims};
use crate::json;

/// An identity in compact form. It can be made only from an [`Identity`].
#[derive(Clone)]
pub struct StoredIdentity {
    expiry: PackedExpiry,
    stored: Arc<Stored>,
}

impl StoredIdentity {
    /// Stores an identity.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self { expiry: identity.expiry().into(), stored: Arc::clone(identity.stored()) }
    }

    /// Returns the provider's name.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.stored.provider.name
    }

    /// Returns the token's `exp`, or the time at which its provider must be asked again, in Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        match self.expiry.into() {
            Expiry::At(at) | Expiry::RevalidateAt(at) => at,
        }
    }

    /// Returns the Unix time in seconds at which the identity's login session ends; `None` for any other identity. The
    /// token's expiry does not count, since the session is renewed.
    #[must_use]
    pub fn login_session_ends_at(&self) -> Option<u64> {
        self.stored.provider.is_of_login().then(|| self.expires_at())
    }

    /// Returns the Unix time in seconds at which the presented session cookie expires by the verifier's configuration,
    /// which may be newer; `None` for any other credential.
    #[must_use]
    pub fn cookie_expires_at(&self, verifier: &Verifier) -> Option<u64> {
        Some(verifier.session_cookies()?.expiry_of(self.stored.cookie.as_ref()?.times?))
    }

    /// Replaces the expiry of a session cookie, after a reload.
    pub fn set_expires_at(&mut self, at: u64) {
        self.expiry = Expiry::At(at).into();
    }

    /// Returns the key or provider that verified the token.
    #[must_use]
    pub fn verified_by(&self) -> VerifiedBy {
        self.stored.verified_by
    }

    /// Restores the identity unchanged.
    #[must_use]
    pub fn restore(&self) -> Option<Identity> {
        let verified = self.verified_claims()?;
        let user_id = claims::user_id(&self.stored.provider, &verified.claims).ok()?;
        Some(Identity::new(
            Arc::clone(&self.stored.provider),
            user_id,
            verified.claims,
            verified.expiry,
            verified.verified_by,
            verified.kind,
        ))
    }

    /// Restores the identity by the verifier's configuration, which may be newer. Returns `None` when the provider was
    /// removed or would reject these claims now, or when the session cookie's key has changed. Token keys and times are
    /// not checked, since a session may continue after both (docs/contract.md section 4.5).
    #[must_use]
    pub fn restore_under(&self, verifier: &Verifier) -> Option<Identity> {
        if let Some(cookie) = &self.stored.cookie
            && Some(cookie.key) != verifier.session_cookies().map(super::SessionCookies::key_fingerprint)
        {
            return None;
        }
        let spec = verifier.current_spec_of(&self.stored.provider)?;
        if **spec == *self.stored.provider {
            return self.restore();
        }
        identify_again(spec, self.stored.provider.preset, self.verified_claims()?).ok()
    }

    fn verified_claims(&self) -> Option<VerifiedClaims> {
        let claims = json::own_object(self.stored.claims.as_bytes()).ok()?;
        Some(VerifiedClaims {
            claims,
            kind: self.stored.kind,
            expiry: self.expiry.into(),
            verified_by: self.stored.verified_by,
        })
    }

    /// Makes an example, for tests of code that only stores it.
    #[cfg(any(test, fuzzing))]
    #[allow(clippy::expect_used, reason = "the configuration is a valid one")]
    pub(crate) fn example(expires_at: u64) -> Self {
        // Validated once: for a fuzz target it took nearly all of the time.
        static PROVIDER: std::sync::LazyLock<Arc<crate::policy::ProviderSpec>> = std::sync::LazyLock::new(|| {
            let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: any }]\n";
            let config = crate::config::load_yaml(yaml).expect("loads").config;
            Arc::clone(&crate::policy::validate(&config).expect("valid").providers[0])
        });
        let provider = Arc::clone(&PROVIDER);
        let verified_by = VerifiedBy::Key {
            fingerprint: super::KeyFingerprint::default(),
            algorithm: jsonwebtoken::Algorithm::HS256,
            until: expires_at,
        };
        let claims = r#"{"sub":"alice"}"#.into();
        let kind = super::kind::TokenKindHeader::default();
        let stored = Stored { provider, claims, verified_by, kind, cookie: None };
        Self { expiry: Expiry::At(expires_at).into(), stored: Arc::new(stored) }
    }

    /// Returns a copy with another expiry, for tests of sessions.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn expiring(&self, at: u64) -> Self {
        Self { expiry: Expiry::At(at).into(), ..self.clone() }
    }
}

impl std::fmt::Debug for StoredIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredIdentity({})", self.stored.provider.name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::auth::identity::BrowserSession;
    use crate::auth::keys::KeyFingerprint;
    use crate::auth::kind::TokenKindHeader;

    /// Without it a revocation of the provider session covers the identity, whenever its user authenticated.
    #[test]
    fn a_restored_identity_does_not_say_when_its_user_authenticated() {
        let text = "{upstream: 'http://127.0.0.1:1', public_url: 'https://nb.example.com', providers: [{preset: oidc, issuer: 'https://i', audience: api}], browser: {login: {client_id: a}}}";
        let policy = crate::policy::validate(&crate::config::load_yaml(text).expect("loads").config).expect("valid");
        let provider = Arc::clone(&policy.browser.logins[0].provider_spec);
        let Value::Object(claims) = json!({ "iss": "https://i", "sub": "alice", "sid": "s", "iat": 900 }) else {
            unreachable!()
        };
        let by = VerifiedBy::Provider(KeyFingerprint::default());
        let kind = TokenKindHeader::default();
        let identity = Identity::new(provider, "alice".into(), claims, Expiry::At(2_000), by, kind);
        let identity = identity.in_session(Some(BrowserSession {
            id: "a".into(),
            owner: "b".into(),
            browser: None,
            began: 0,
            last_end: 2_000,
            authenticated_at: Some(900),
            key: KeyFingerprint::default(),
            cookie_times: None,
        }));
        assert_eq!(identity.authenticated_at(), Some(900));
        let restored = StoredIdentity::new(&identity).restore().expect("it was stored");
        assert_eq!(restored.authenticated_at(), None);
    }
}
