//! The verified user of a request or a session. Only `auth` can construct one, after verification.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::claims::value;
use super::digest::{Digest, DigestKeys};
use super::keys::KeyFingerprint;
use super::kind::TokenKindHeader;
use super::revocation_keys::RevocationKeys;
use crate::policy::{Claim, ProviderSpec};

/// A verified user with the claims of the token.
#[derive(Clone)]
pub struct Identity {
    provider: Arc<ProviderSpec>,
    user_id: String,
    claims: Map<String, Value>,
    expiry: Expiry,
    verified_by: VerifiedBy,
    kind: TokenKindHeader,
    /// The browser session, if a session cookie was presented.
    browser_session: Option<BrowserSession>,
    /// As in [`BrowserSession::authenticated_at`]; a sign-in that is being completed has it before its session begins.
    authenticated_at: Option<u64>,
    /// The keys by which the identity can be revoked, computed at the first use and cached with the token.
    revocation_keys: OnceLock<Arc<RevocationKeys>>,
    /// What an open session keeps of the identity, made at the first use and cached with the token.
    stored: OnceLock<Arc<Stored>>,
    presence: OnceLock<Digest>,
    user_digest: OnceLock<Digest>,
}

/// A browser session: everything from signing in with a token to signing out. A renewal issues another cookie of the
/// same session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    /// A random id.
    pub id: Arc<str>,
    /// A digest of the user, for ending all sessions of one user.
    pub owner: Arc<str>,
    /// A digest of the login cookie with which the session began, for ending all sessions of one browser: two tabs may
    /// come back from the provider at once, and each begins a session. `None` for a session of a presented token.
    pub browser: Option<Arc<str>>,
    /// The time at which the session began, in milliseconds since the epoch.
    pub began: u64,
    /// The Unix time in seconds at which the last of the session's cookies expires, by the data in this cookie.
    pub last_end: u64,
    /// When the user authenticated at the provider for the sign-in that began the session, Unix seconds. It decides
    /// whether the session is newer than a revocation of its `sid`, and no renewal changes it. `None` where the ID token
    /// did not say it, and for a session of a presented token: those are issued anew in a session that was revoked.
    pub(super) authenticated_at: Option<u64>,
    /// The key that the cookie is encrypted with.
    pub(super) key: KeyFingerprint,
    /// When the cookie expires; `None` for a session that began with a sign-in, whose record knows.
    pub(super) cookie_times: Option<CookieTimes>,
}

/// What decides when a session cookie expires, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CookieTimes {
    /// When it was issued.
    pub(super) issued_at: u64,
    /// The token's `exp`.
    pub(super) token_end: u64,
    /// When it expires by the configuration of the moment when it was issued.
    pub(super) expires_at: u64,
}

/// The sessions that end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionScope {
    /// One session.
    Session,
    /// One session, which another one of its user has replaced. That one began at `began`, in milliseconds since the epoch.
    Replaced {
        /// When the newer session began.
        began: u64,
    },
    /// A session, with every other that its user began in the same browser.
    Browser,
}

impl BrowserSession {
    /// Returns a digest of the id, for the log. It cannot be used to end or to resume the session.
    #[must_use]
    pub fn digest(&self) -> String {
        log_digest(&self.id)
    }
}

/// Returns the first eight bytes of the SHA-256 digest of an id, in hexadecimal, for the log.
pub(super) fn log_digest(id: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
    digest.as_ref().iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// The time at which a token stops being valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The token's `exp`.
    At(u64),
    /// The token has no `exp`; its provider must be asked again by this time.
    RevalidateAt(u64),
}

/// An [`Expiry`] in eight bytes: twice the time, plus one where the provider must be asked again. Each open session has
/// one.
#[derive(Clone, Copy)]
pub(super) struct PackedExpiry(u64);

impl From<Expiry> for PackedExpiry {
    fn from(expiry: Expiry) -> Self {
        // A time in the upper half of the range is as good as never.
        let twice = |at: u64| at.min(u64::MAX / 2) << 1;
        Self(match expiry {
            Expiry::At(at) => twice(at),
            Expiry::RevalidateAt(at) => twice(at) | 1,
        })
    }
}

impl From<PackedExpiry> for Expiry {
    fn from(PackedExpiry(packed): PackedExpiry) -> Self {
        if packed & 1 == 0 { Self::At(packed >> 1) } else { Self::RevalidateAt(packed >> 1) }
    }
}

/// The key or provider that verified a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifiedBy {
    /// A key of its provider verified the signature.
    Key {
        /// The key.
        fingerprint: KeyFingerprint,
        /// The signature's algorithm.
        algorithm: Algorithm,
        /// The token's `exp`, in Unix seconds. Until then the key must be one of the provider's.
        until: u64,
    },
    /// The provider itself confirmed the token at the endpoint with this fingerprint.
    Provider(KeyFingerprint),
}

/// What an open session keeps of an identity and what does not change. The sessions of one cached token share it: a page
/// may have several sockets.
pub(super) struct Stored {
    pub(super) provider: Arc<ProviderSpec>,
    /// The claims as JSON, which takes less memory than values.
    pub(super) claims: Box<str>,
    pub(super) verified_by: VerifiedBy,
    pub(super) kind: TokenKindHeader,
    /// The session cookie that was presented, if any; boxed, since most identities come from a token.
    pub(super) cookie: Option<Box<StoredCookie>>,
}

/// What decides whether a presented session cookie is still good.
pub(super) struct StoredCookie {
    /// The key that the cookie was encrypted with.
    pub(super) key: KeyFingerprint,
    /// What decides when it expires.
    pub(super) times: Option<CookieTimes>,
}

impl Identity {
    /// Constructs an identity. It must be called only after every check has passed.
    pub(super) fn new(
        provider: Arc<ProviderSpec>,
        user_id: String,
        claims: Map<String, Value>,
        expiry: Expiry,
        verified_by: VerifiedBy,
        kind: TokenKindHeader,
    ) -> Self {
        Self {
            provider,
            user_id,
            claims,
            expiry,
            verified_by,
            kind,
            browser_session: None,
            authenticated_at: None,
            revocation_keys: OnceLock::new(),
            stored: OnceLock::new(),
            presence: OnceLock::new(),
            user_digest: OnceLock::new(),
        }
    }

    /// Replaces the expiry, for a session that continues after its token has expired.
    pub(super) fn lasting(mut self, expiry: Expiry) -> Self {
        self.expiry = expiry;
        self
    }

    /// Marks the identity as one of a sign-in that is being completed. `at` is as in [`BrowserSession::authenticated_at`].
    pub(super) fn authenticated(mut self, at: Option<u64>) -> Self {
        self.authenticated_at = at;
        self.revocation_keys = OnceLock::new();
        self
    }

    /// Marks the identity as one that came from a session cookie.
    pub(super) fn in_session(mut self, session: Option<BrowserSession>) -> Self {
        self.authenticated_at = session.as_ref().and_then(|session| session.authenticated_at);
        self.browser_session = session;
        (self.revocation_keys, self.stored) = (OnceLock::new(), OnceLock::new());
        self
    }

    /// Returns the digest under which the user's presence is recorded: of the user and, if the token names one, the
    /// provider session. It is computed once, with the keys of this process.
    #[must_use]
    pub fn presence(&self, keys: &DigestKeys) -> Digest {
        *self.presence.get_or_init(|| {
            let user = self.user();
            let issuer = user.issuer.as_deref().unwrap_or_default();
            let session = self.session_id();
            keys.digest(&[
                b"presence",
                user.provider.name.as_bytes(),
                issuer.as_bytes(),
                user.id.as_bytes(),
                session.map_or(&b"without"[..], |_| b"with"),
                session.unwrap_or_default().as_bytes(),
            ])
        })
    }

    /// Returns the digest by which the user's open sockets are counted. It is computed once, with the keys of this process.
    #[must_use]
    pub fn user_digest(&self, keys: &DigestKeys) -> Digest {
        *self.user_digest.get_or_init(|| {
            let user = self.user();
            let issuer = user.issuer.as_deref().unwrap_or_default();
            keys.digest(&[b"sockets", user.provider.name.as_bytes(), issuer.as_bytes(), user.id.as_bytes()])
        })
    }

    /// Returns the keys by which the identity can be revoked. They are computed once.
    pub(super) fn revocation_keys(&self, compute: impl FnOnce() -> RevocationKeys) -> &Arc<RevocationKeys> {
        self.revocation_keys.get_or_init(|| Arc::new(compute()))
    }

    /// Returns what an open session keeps of the identity. It is made once.
    pub(super) fn stored(&self) -> &Arc<Stored> {
        self.stored.get_or_init(|| {
            let cookie = |session: &BrowserSession| StoredCookie { key: session.key, times: session.cookie_times };
            Arc::new(Stored {
                provider: Arc::clone(&self.provider),
                // A map of JSON values can always be serialized.
                claims: serde_json::to_string(&self.claims).unwrap_or_default().into(),
                verified_by: self.verified_by,
                kind: self.kind,
                cookie: self.browser_session.as_ref().map(|session| Box::new(cookie(session))),
            })
        })
    }

    /// Returns the browser session, if a session cookie was presented.
    #[must_use]
    pub fn browser_session(&self) -> Option<&BrowserSession> {
        self.browser_session.as_ref()
    }

    /// Returns when the user authenticated for the sign-in of this login session, Unix seconds; `None` where that is not
    /// known, and for any other credential.
    pub(super) fn authenticated_at(&self) -> Option<u64> {
        self.authenticated_at.filter(|_| self.provider.is_of_login())
    }

    /// Returns the parts of the token's header that determine its kind.
    pub(super) fn kind(&self) -> TokenKindHeader {
        self.kind
    }

    /// Returns the key or provider that verified the token.
    #[must_use]
    pub fn verified_by(&self) -> VerifiedBy {
        self.verified_by
    }

    /// Returns the token's claims, unchanged except for Clerk's organization.
    pub(super) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// Returns the provider session id (`sid`), if the token has one.
    #[must_use]
    pub fn session_id(&self) -> Option<&str> {
        self.claims.get("sid").and_then(Value::as_str)
    }

    /// Returns the user id with the provider's prefix. This is what `sub` means in the configuration.
    #[must_use]
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// Returns the provider that issued the token.
    #[must_use]
    pub fn provider(&self) -> &ProviderSpec {
        &self.provider
    }

    /// Returns a shared reference to the provider.
    pub(super) fn provider_spec(&self) -> &Arc<ProviderSpec> {
        &self.provider
    }

    /// Returns the time at which the token stops being valid.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// Returns the token's `exp`, or the time at which its provider must be asked again, in Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        match self.expiry {
            Expiry::At(at) | Expiry::RevalidateAt(at) => at,
        }
    }

    /// Returns the user: the pair of issuer and user id.
    #[must_use]
    pub fn user(&self) -> User {
        let issuer = self.claims.get("iss").and_then(Value::as_str).map(Box::from);
        User { provider: Arc::clone(&self.provider), issuer, id: self.user_id.as_str().into() }
    }

    /// Looks up a claim. An unverified e-mail address counts as absent (docs/contract.md section 5).
    #[must_use]
    pub fn claim(&self, claim: &Claim) -> Option<Cow<'_, Value>> {
        match claim {
            Claim::UserId => Some(Cow::Owned(Value::String(self.user_id.clone()))),
            claim => value(&self.provider, &self.claims, claim).map(Cow::Borrowed),
        }
    }
}

/// A user: the issuer or provider, and the user id.
#[derive(Clone, Debug)]
pub struct User {
    provider: Arc<ProviderSpec>,
    issuer: Option<Box<str>>,
    id: Box<str>,
}

impl Eq for User {}

impl Hash for User {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
        self.issuer.hash(state);
        self.provider.name.hash(state);
    }
}

impl PartialEq for User {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.issuer == other.issuer && self.provider.name == other.provider.name
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("provider", &self.provider.name)
            .field("user_id", &self.user_id)
            .finish_non_exhaustive()
    }
}
