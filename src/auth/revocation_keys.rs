//! The keys by which an identity can be revoked: keyed digests of its user, sessions and token.

use std::sync::Arc;

use super::digest::Digest;

/// The key of a revocation: the keyed digest of an issuer and an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationKey(pub(super) Digest);

/// The first bytes of the key of all sessions of a browser. Such an entry stands beside that of one of the sessions, and
/// limits count one of the two, at every instance. One digest of four thousand million begins with it by chance.
const BROWSER_MARK: [u8; 4] = [0xff; 4];

impl RevocationKey {
    /// Makes the key of all sessions of a browser from the digest of that browser.
    pub(super) fn of_browser(digest: Digest) -> Self {
        let Digest(mut bytes) = digest;
        bytes[..BROWSER_MARK.len()].copy_from_slice(&BROWSER_MARK);
        Self(Digest(bytes))
    }

    /// Returns whether it is the key of all sessions of a browser.
    pub(super) fn is_of_browser(&self) -> bool {
        self.0.0.starts_with(&BROWSER_MARK)
    }
}

/// The keys by which an identity can be revoked. An open session keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationKeys {
    pub(super) user: RevocationKey,
    /// The key by the raw `sub`, if the user id is another claim.
    pub(super) subject: Option<RevocationKey>,
    pub(super) session: Option<RevocationKey>,
    pub(super) token: Option<RevocationKey>,
    pub(super) browser_session: Option<BrowserSessionKeys>,
    /// The token's `iat`; a token without it counts as issued before any revocation.
    pub(super) issued_at: Option<u64>,
    /// When the user authenticated for the sign-in of a login session; `None` where that is not known, and for any other
    /// credential. Then a revocation of the provider session covers it whenever it was issued.
    pub(super) authenticated_at: Option<u64>,
    pub(super) clock_skew: u64,
    /// The keys under a secret that is being replaced.
    pub(super) former: Option<Box<Self>>,
}

/// The keys by which a browser session is ended. A WebSocket that was opened with its cookie keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BrowserSessionKeys {
    pub(super) owner: RevocationKey,
    pub(super) session: RevocationKey,
    /// The key of all sessions of the same browser.
    pub(super) browser: Option<RevocationKey>,
    /// The time at which the session began, in milliseconds since the epoch.
    pub(super) began: u64,
}

impl RevocationKeys {
    /// Adds the browser session of the former token. A WebSocket that was opened with a session cookie ends with that
    /// browser session even after a refresh with a token.
    #[must_use]
    pub fn in_browser_session_of(self: Arc<Self>, former: &Self) -> Arc<Self> {
        // Most tokens did not come in a session cookie. Then the keys stay shared.
        if former.browser_session.is_none() {
            return self;
        }
        Arc::new(Arc::unwrap_or_clone(self).joined(former))
    }

    fn joined(mut self, former: &Self) -> Self {
        self.browser_session = self.browser_session.or(former.browser_session);
        if let (Some(of_former_secret), Some(former)) = (self.former.take(), &former.former) {
            self.former = Some(Box::new(of_former_secret.joined(former)));
        }
        self
    }
}
