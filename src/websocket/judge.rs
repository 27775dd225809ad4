//! Judges what is presented while a socket is open: the three functions that admitted its first token,
//! under the policy now in force, and whether that token's key still stands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::ending::Ending;
use super::session::{Again, Standing, Verdict};
use crate::auth::{AskedAgain, Carrier, Effort, End, Marks, Question, Token, User, Verified, Voucher, allow, now};
use crate::http::TrustedHeaders;
use crate::policy::{AuthMode, WebSocketSpec};
use crate::runtime::{Presence, Shared};

/// A provider's answer on its way.
pub(super) type Asking = Pin<Box<dyn Future<Output = AskedAgain> + Send>>;

/// A verdict on its way.
pub(super) type Judging = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// What a session asks about its user while it is open.
pub(super) trait Judge: Send + Sync {
    /// The verdict on a token presented later.
    fn judge(&self, token: Token) -> Judging;

    /// Asks the provider about the session.
    fn ask(&self, question: &Question) -> Asking;

    /// Whether it was revoked.
    fn is_revoked(&self, marks: &Marks) -> bool;

    /// Whether what vouched for its token still does.
    fn vouches(&self, voucher: Voucher) -> bool;

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
    /// What a session of this identity lives by, on a route like this.
    pub(super) fn of(verified: &Verified, shared: &Shared, spec: &WebSocketSpec) -> Self {
        let identity = verified.identity();
        let provider = identity.provider();
        let is_open_ended = matches!(identity.end(), End::AskedAgainAt(_));
        // Where the token has no end, nothing but an answer is good for longer than answers are kept.
        let kept = provider.remote.as_ref().filter(|_| is_open_ended).map(|remote| remote.cache);
        let every = spec.revalidate_every.into_iter().chain(kept).min();
        let grace = spec.revalidate_grace;
        let again = every.and_then(|every| Some(Box::new(Again { question: verified.question()?, every, grace })));
        let can_revoke = shared.current().policy.control.is_some();
        Self {
            expires_at: identity.expires_at(),
            is_open_ended,
            clock_skew: provider.clock_skew,
            voucher: identity.voucher(),
            marks: can_revoke.then(|| Box::new(shared.revocations.marks(identity))),
            again,
        }
    }
}

impl Judge for RefreshJudge {
    fn judge(&self, token: Token) -> Judging {
        let (runtime, shared) = (self.shared.current(), Arc::clone(&self.shared));
        let (path, user, trusted) = (self.path.clone(), self.user.clone(), self.trusted.clone());
        let keeps_token = self.keeps_token;
        Box::pin(async move {
            let verified = match runtime.verifier.verify(token, Carrier::Message, None, Effort::Whatever).await {
                Ok(verified) => verified,
                Err(rejection) => {
                    tracing::debug!("a token presented later is refused: {rejection}");
                    return Verdict::Refused(Ending::of(&rejection));
                }
            };
            let matched = runtime.policy.route("GET", &path);
            let standing = Standing::of(&verified, &shared, &matched.route.websocket);
            let (identity, token) = verified.into_parts();
            if identity.user() != user {
                return Verdict::AnotherUser;
            }
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
                        standing,
                        token: token.filter(|_| keeps_token),
                    }
                }
                _ => Verdict::IdentityChanged,
            }
        })
    }

    fn ask(&self, question: &Question) -> Asking {
        let (runtime, provider) = (self.shared.current(), self.user.provider().name.clone());
        let question = question.clone();
        Box::pin(async move { runtime.verifier.ask_again(&provider, &question).await })
    }

    fn is_revoked(&self, marks: &Marks) -> bool {
        self.shared.revocations.revoked(marks, now()).is_some()
    }

    fn vouches(&self, voucher: Voucher) -> bool {
        self.shared.current().verifier.vouches(&self.user.provider().name, voucher)
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

    fn ask(&self, _question: &Question) -> Asking {
        Box::pin(std::future::ready(AskedAgain::Stands))
    }

    fn is_revoked(&self, _marks: &Marks) -> bool {
        false
    }

    fn vouches(&self, _voucher: Voucher) -> bool {
        true
    }

    fn last_seen(&self) -> Option<u64> {
        None
    }
}
