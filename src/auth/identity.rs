//! What a verified token says. Only the verifier makes one.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::claims::value;
use super::keys::KeyFingerprint;
use super::kind::KindHeader;
use crate::policy::{Claim, ProviderSpec};

/// A verified user and the claims of the token that proved it.
#[derive(Clone)]
pub struct Identity {
    provider: Arc<ProviderSpec>,
    user_id: String,
    claims: Map<String, Value>,
    end: Expiry,
    verified_by: VerifiedBy,
    kind: KindHeader,
    /// The session of ours that it came by.
    browser_session: Option<BrowserSession>,
}

/// The session of ours that an identity came by; the same in every cookie of that session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserSession {
    /// Its id.
    pub id: Arc<str>,
    /// Whose it is, without saying who.
    pub owner: Arc<str>,
    /// When it began, milliseconds since the epoch.
    pub began: u64,
    /// When the last of its cookies known to this one ends, Unix seconds.
    pub last_end: u64,
    /// What it is sealed with.
    pub(super) seal: KeyFingerprint,
}

impl BrowserSession {
    /// A digest of its id, for the log: it tells sessions apart and is good for nothing else.
    #[must_use]
    pub fn digest(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.id.as_bytes());
        digest.as_ref().iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }
}

/// Until when a token is good, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It says so itself.
    At(u64),
    /// It does not say; its provider is asked again by then.
    RevalidateAt(u64),
}

/// Who said that a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifiedBy {
    /// One of its provider's keys.
    Key {
        /// Which.
        print: KeyFingerprint,
        /// By which algorithm.
        algorithm: Algorithm,
        /// The token's end, Unix seconds: until then the key must be one of the provider's.
        until: u64,
    },
    /// The provider itself, when it was asked in this way.
    Provider(KeyFingerprint),
}

impl Identity {
    /// Made by the verifier alone, after everything was checked.
    pub(super) fn new(
        provider: Arc<ProviderSpec>,
        user_id: String,
        claims: Map<String, Value>,
        end: Expiry,
        verified_by: VerifiedBy,
        kind: KindHeader,
    ) -> Self {
        Self { provider, user_id, claims, end, verified_by, kind, browser_session: None }
    }

    /// The same identity with another end: that of a session that outlives its token.
    pub(super) fn lasting(mut self, end: Expiry) -> Self {
        self.end = end;
        self
    }

    /// As it comes by a session of ours, for as long as that is good.
    pub(super) fn in_session(mut self, session: Option<BrowserSession>) -> Self {
        self.browser_session = session;
        self
    }

    /// The session of ours that it came by.
    #[must_use]
    pub fn browser_session(&self) -> Option<&BrowserSession> {
        self.browser_session.as_ref()
    }

    /// What the token's header said of its kind.
    pub(super) fn kind(&self) -> KindHeader {
        self.kind
    }

    /// Who vouched for it.
    #[must_use]
    pub fn verified_by(&self) -> VerifiedBy {
        self.verified_by
    }

    /// The claims as they came.
    pub(super) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The provider's own session (`sid`), where its tokens name one.
    #[must_use]
    pub fn session_id(&self) -> Option<&str> {
        self.claims.get("sid").and_then(Value::as_str)
    }

    /// The user id with the provider's prefix: what `sub` means in our configuration.
    #[must_use]
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    /// The provider whose token this was.
    #[must_use]
    pub fn provider(&self) -> &ProviderSpec {
        &self.provider
    }

    pub(super) fn provider_spec(&self) -> &Arc<ProviderSpec> {
        &self.provider
    }

    /// Until when it is good.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.end
    }

    /// The token's end, or when its provider is asked again, Unix seconds.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        match self.end {
            Expiry::At(at) | Expiry::RevalidateAt(at) => at,
        }
    }

    /// The user: the pair of issuer and user id.
    #[must_use]
    pub fn user(&self) -> User {
        let issuer = self.claims.get("iss").and_then(Value::as_str).map(Box::from);
        User { provider: Arc::clone(&self.provider), issuer, id: self.user_id.as_str().into() }
    }

    /// A claim; an unverified e-mail address is none (docs/contract.md section 5).
    #[must_use]
    pub fn claim(&self, claim: &Claim) -> Option<Cow<'_, Value>> {
        match claim {
            Claim::UserId => Some(Cow::Owned(Value::String(self.user_id.clone()))),
            claim => value(&self.provider, &self.claims, claim).map(Cow::Borrowed),
        }
    }
}

/// A user without the claims that proved it.
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

/// RFC 6901 over an object's members.
pub(super) fn pointed<'a>(claims: &'a Map<String, Value>, pointer: &str) -> Option<&'a Value> {
    let rest = pointer.strip_prefix('/')?;
    let (first, deeper) = match rest.split_once('/') {
        Some((first, _)) => (first, Some(&rest[first.len()..])),
        None => (rest, None),
    };
    let value = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    match deeper {
        Some(deeper) => value.pointer(deeper),
        None => Some(value),
    }
}
