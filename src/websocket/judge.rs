//! Judges what is presented while a socket is open: the three functions that admitted its first token,
//! under the policy now in force, and whether that token's key still stands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::ending::Ending;
use super::session::{Standing, Verdict};
use crate::auth::{Identity, KeyPrint, Token, User, allow};
use crate::http::TrustedHeaders;
use crate::policy::AuthMode;
use crate::runtime::{Presence, Shared};

/// A verdict on its way.
pub(super) type Judging = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// What a session asks about its user while it is open.
pub(super) trait Judge: Send + Sync {
    /// The verdict on a token presented later.
    fn judge(&self, token: Token) -> Judging;

    /// Whether the key that verified its token is still its provider's.
    fn vouches(&self, key: KeyPrint) -> bool;

    /// When its user was seen last, milliseconds since the epoch; only where presence counts.
    fn last_seen(&self) -> Option<u64>;
}

/// Judges for one user on one path.
pub(super) struct RefreshJudge {
    pub(super) shared: Arc<Shared>,
    pub(super) path: Box<str>,
    pub(super) user: User,
    pub(super) trusted: TrustedHeaders,
    /// Where the session outlives its token while the user is seen.
    pub(super) presence: Option<Presence>,
    /// Whether an accepted token is needed further on.
    pub(super) keeps_token: bool,
}

impl Standing {
    pub(super) fn of(identity: &Identity) -> Self {
        Self { expires_at: identity.expires_at(), clock_skew: identity.provider().clock_skew, key: identity.key() }
    }
}

impl Judge for RefreshJudge {
    fn judge(&self, token: Token) -> Judging {
        let (runtime, shared) = (self.shared.current(), Arc::clone(&self.shared));
        let (path, user, trusted) = (self.path.clone(), self.user.clone(), self.trusted.clone());
        let keeps_token = self.keeps_token;
        Box::pin(async move {
            let verified = match runtime.verifier.verify(token).await {
                Ok(verified) => verified,
                Err(rejection) => {
                    tracing::debug!("a token presented later is refused: {rejection}");
                    return Verdict::Refused(Ending::of(&rejection));
                }
            };
            let (identity, token) = verified.into_parts();
            if identity.user() != user {
                return Verdict::AnotherUser;
            }
            let matched = runtime.policy.route("GET", &path);
            let denied = matched.route.auth == AuthMode::Deny
                || allow::permits(&matched.route.require, &matched.variables, &identity).is_err();
            if denied {
                return Verdict::Denied;
            }
            match TrustedHeaders::of(&runtime.policy.trusted_headers, &identity) {
                Ok(headers) if headers == trusted => {
                    tracing::debug!("refresh verified: still user {}", identity.user_id());
                    shared.see(&runtime.policy, &identity);
                    Verdict::Accepted {
                        user_id: identity.user_id().to_owned(),
                        standing: Standing::of(&identity),
                        token: token.filter(|_| keeps_token),
                    }
                }
                _ => Verdict::IdentityChanged,
            }
        })
    }

    fn vouches(&self, key: KeyPrint) -> bool {
        self.shared.current().verifier.vouches(&self.user.provider().name, key)
    }

    fn last_seen(&self) -> Option<u64> {
        let seen = self.shared.users.last_seen(self.presence?)?;
        Some(seen.saturating_mul(1_000))
    }
}

/// Nothing on a public route is a refresh, and nobody's token ends it.
pub(super) struct NoRefresh;

impl Judge for NoRefresh {
    fn judge(&self, _token: Token) -> Judging {
        Box::pin(std::future::ready(Verdict::Refused(Ending::InvalidToken)))
    }

    fn vouches(&self, _key: KeyPrint) -> bool {
        true
    }

    fn last_seen(&self) -> Option<u64> {
        None
    }
}
