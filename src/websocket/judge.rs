//! Judges what is presented while a socket is open: the three functions that admitted its first token,
//! under the policy now in force, and whether that token's key still stands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::ending::Ending;
use super::session::{Again, Standing, Verdict};
use crate::auth::login::OpenLoginSocket;
use crate::auth::{
    Carrier, Expiry, Identity, Lookup, Rejection, RemoteCheck, Revalidation, RevocationKeys, StoredIdentity, Token,
    Verified, allow, unix_seconds,
};
use crate::budget::MemoryReservation;
use crate::http::TrustedHeaders;
use crate::policy::{AuthMode, Judgement, TrustedHeader, WebSocketSpec};
use crate::runtime::{Presence, Runtime, Shared};

/// A provider's answer on its way.
pub(super) type Asking = Pin<Box<dyn Future<Output = Revalidation> + Send>>;

/// A verdict on its way.
pub(super) type Judging = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// What a session asks about its user while it is open.
pub(super) trait Judge: Send + Sync {
    /// The verdict on a token presented later, by whoever is remembered.
    fn judge(&self, of: &StoredIdentity, token: Token) -> Judging;

    /// Asks the provider about the session.
    fn ask(&self, of: &StoredIdentity, question: &RemoteCheck) -> Asking;

    /// Whether it was revoked.
    fn is_revoked(&self, revocation_keys: &RevocationKeys) -> bool;

    /// Whether what vouched for its token still does.
    fn is_current(&self, of: &StoredIdentity) -> bool;

    /// Whether it may go on under the policy now in force; asked only once for each policy.
    ///
    /// # Errors
    /// How it ends.
    fn judge_again(&mut self, of: Option<&StoredIdentity>) -> Result<(), Ending>;

    /// The token that a renewal of its session brought, where its upstream hears of them.
    fn renewed_token(&mut self) -> Option<Token> {
        None
    }

    /// When its user was seen last, milliseconds since the epoch; only where presence counts.
    fn last_seen(&self) -> Option<u64>;

    /// Counts a token that ended: the socket was `closed` or `kept`.
    fn expired(&self, action: &'static str);

    /// Counts a session that ends at a limit, by the limit's key.
    fn limited(&self, limit: &'static str);
}

/// Judges for one user on one path.
pub(super) struct RefreshJudge {
    pub(super) shared: Arc<Shared>,
    pub(super) path: Box<str>,
    /// Which headers the upstream was told at the door; their values come from who is remembered.
    pub(super) headers: Arc<[TrustedHeader]>,
    /// Under which policy it was judged last.
    pub(super) generation: u64,
    /// Where the session outlives its token while the user is seen.
    pub(super) presence: Option<Presence>,
    /// Whether an accepted token is needed further on.
    pub(super) keeps_token: bool,
    /// The login session that it came by, which is renewed as long as this is open.
    pub(super) login: Option<Box<OpenLoginSocket>>,
}

impl RefreshJudge {
    /// Who it is now by the policy in force: what a renewal has made of a login session, or what was said at the door.
    ///
    /// # Errors
    /// How it ends.
    fn identity_in_force(&self, runtime: &Runtime, of: &StoredIdentity) -> Result<Identity, Ending> {
        let Some(login) = self.login.as_ref().filter(|_| of.login_session_ends_at().is_some()) else {
            return of.restore_under(&runtime.verifier).ok_or(Ending::Denied);
        };
        match runtime.verifier.login_session_identity(login.session()) {
            Ok(identity) => Ok(identity),
            Err(rejection) if rejection.is_unavailable() => Err(Ending::AuthUnavailable),
            Err(_) => Err(Ending::Denied),
        }
    }

    /// Whether the upstream would hear the same of `now` as it has heard of `then`.
    fn hears_the_same(headers: (&[TrustedHeader], &[TrustedHeader]), then: &Identity, now: &Identity) -> bool {
        let (told, in_force) = headers;
        match (TrustedHeaders::of(told, then), TrustedHeaders::of(in_force, now)) {
            (Ok(told), Ok(in_force)) => told == in_force,
            _ => false,
        }
    }
}

impl Standing {
    /// What a session of this identity lives by, on a route like this.
    pub(super) fn of(verified: &Verified, shared: &Shared, spec: &WebSocketSpec) -> Self {
        let identity = verified.identity();
        let provider = identity.provider();
        let is_open_ended = matches!(identity.expiry(), Expiry::RevalidateAt(_));
        // Where the token has no end, nothing but an answer is good for longer than answers are kept.
        let kept = provider.remote.as_ref().filter(|_| is_open_ended).map(|remote| remote.cache);
        let every = spec.revalidate_every.into_iter().chain(kept).min();
        let grace = spec.revalidate_grace;
        let again = every.and_then(|every| Some(Box::new(Again { question: verified.remote_check()?, every, grace })));
        let can_revoke = shared.current().policy.control.is_some() || identity.browser_session().is_some();
        Self {
            is_open_ended,
            clock_skew: provider.clock_skew,
            remembered: StoredIdentity::new(identity),
            revocation_keys: can_revoke.then(|| Box::new(shared.revocations.keys_of(identity))),
            again,
            renews: identity.browser_session().is_some(),
        }
    }
}

impl Judge for RefreshJudge {
    fn judge(&self, of: &StoredIdentity, token: Token) -> Judging {
        let refresh = Refresh {
            shared: Arc::clone(&self.shared),
            path: self.path.clone(),
            headers: Arc::clone(&self.headers),
            of: of.clone(),
            keeps_token: self.keeps_token,
        };
        Box::pin(async move {
            loop {
                let runtime = refresh.shared.current();
                let (verdict, identity) = refresh.verdict(&runtime, &token).await;
                // A policy that came into force while the provider was asked has judged the former token only.
                if refresh.shared.current().generation == runtime.generation {
                    refresh.note(&runtime, &verdict, identity.as_deref());
                    return verdict;
                }
            }
        })
    }

    fn ask(&self, of: &StoredIdentity, question: &RemoteCheck) -> Asking {
        let (runtime, provider) = (self.shared.current(), of.provider().to_owned());
        let question = question.clone();
        Box::pin(async move { runtime.verifier.revalidate(&provider, &question).await })
    }

    fn is_revoked(&self, revocation_keys: &RevocationKeys) -> bool {
        let (revocations, now) = (&self.shared.revocations, unix_seconds());
        let by = revocations.revoked(revocation_keys, now);
        let Some(login) = &self.login else { return by.is_some() };
        // Its user may have signed in anew in the same browser: then it lives and ends with that session.
        let next = login.session().latest();
        let has_moved = login.has_moved() || next.is_some();
        let session = next.as_ref().unwrap_or_else(|| login.session());
        // A renewal may have changed what a session is revoked by.
        session.has_ended()
            || revocations.check(&session.identity(), now).is_err()
            || by.is_some_and(|by| by != "session" || !has_moved)
    }

    fn is_current(&self, of: &StoredIdentity) -> bool {
        self.shared.current().verifier.is_current(of.provider(), of.verified_by())
    }

    fn judge_again(&mut self, of: Option<&StoredIdentity>) -> Result<(), Ending> {
        let runtime = self.shared.current();
        let has_changed = self.login.as_mut().is_some_and(|login| runtime.verifier.follow_login_session(login));
        if runtime.generation == self.generation && !has_changed {
            return Ok(());
        }
        self.generation = runtime.generation;
        let of = of.ok_or(Ending::Denied)?;
        let now = self.identity_in_force(&runtime, of)?;
        let then = of.restore().ok_or(Ending::Denied)?;
        if !runtime.policy.judge_path("GET", &self.path).is_some_and(|judgement| admits(&judgement, &now)) {
            return Err(Ending::Denied);
        }
        let same = then.user() == now.user()
            && Self::hears_the_same((&self.headers, &runtime.policy.trusted_headers), &then, &now);
        if same { Ok(()) } else { Err(Ending::IdentityChanged) }
    }

    fn renewed_token(&mut self) -> Option<Token> {
        self.login.as_mut().filter(|_| self.keeps_token)?.renewed_token()
    }

    fn last_seen(&self) -> Option<u64> {
        let seen = self.shared.users.last_seen(self.presence?)?;
        Some(seen.saturating_mul(1_000))
    }

    fn expired(&self, action: &'static str) {
        self.shared.metrics.sockets.expired(action);
    }

    fn limited(&self, limit: &'static str) {
        self.shared.metrics.limited(limit);
    }
}

/// A token presented on an open socket, and what it is judged by beside the policy in force.
struct Refresh {
    shared: Arc<Shared>,
    path: Box<str>,
    /// Which headers the upstream was told at the door.
    headers: Arc<[TrustedHeader]>,
    /// Whose socket it is.
    of: StoredIdentity,
    keeps_token: bool,
}

impl Refresh {
    /// The verdict by one policy, and whose token it is where that was accepted.
    async fn verdict(&self, runtime: &Runtime, token: &Token) -> (Verdict, Option<Arc<Identity>>) {
        let Some(judgement) = runtime.policy.judge_path("GET", &self.path) else { return (Verdict::Denied, None) };
        let verified = match runtime.verifier.verify(token.duplicate(), Carrier::Message, None, Lookup::MayFetch).await
        {
            Ok(verified) => verified,
            Err(rejection) => {
                tracing::debug!(%rejection, "refresh refused");
                if let (Rejection::Expired { .. }, Some(then)) = (&rejection, self.of.restore())
                    && runtime.verifier.is_expired_token_of(token, &then).await
                {
                    return (Verdict::Expired { user_id: then.user_id().to_owned() }, None);
                }
                return (Verdict::Refused(Ending::of(&rejection)), None);
            }
        };
        let standing = Standing::of(&verified, &self.shared, &judgement.route.websocket);
        let (identity, token) = verified.into_parts();
        let Some(then) = self.of.restore().filter(|then| then.user() == identity.user()) else {
            return (Verdict::AnotherUser, None);
        };
        if !admits(&judgement, &identity) {
            return (Verdict::Denied, None);
        }
        let headers = (&*self.headers, &*runtime.policy.trusted_headers);
        if !RefreshJudge::hears_the_same(headers, &then, &identity) {
            return (Verdict::IdentityChanged, None);
        }
        let user_id = identity.user_id().to_owned();
        (Verdict::Accepted { user_id, standing, token: token.filter(|_| self.keeps_token) }, Some(identity))
    }

    /// Counts a verdict; an accepted token shows that its user is there.
    fn note(&self, runtime: &Runtime, verdict: &Verdict, identity: Option<&Identity>) {
        if let Some(judgement) = runtime.policy.judge_path("GET", &self.path) {
            let outcome = match verdict {
                Verdict::Accepted { .. } => "accepted",
                Verdict::Refused(_) | Verdict::Expired { .. } => "refused",
                Verdict::AnotherUser => "another_user",
                Verdict::Denied => "denied",
                Verdict::IdentityChanged => "identity_changed",
            };
            self.shared.metrics.sockets.refreshed(&judgement.route.label, outcome);
        }
        if let Some(identity) = identity {
            tracing::debug!(user = identity.user_id(), "refresh verified");
            self.shared.see(&runtime.policy, identity);
        }
    }
}

/// Whether the route takes this identity.
fn admits(judgement: &Judgement, identity: &Identity) -> bool {
    judgement.auth != AuthMode::Deny
        && judgement.conflict(true).is_none()
        && allow::permits(&judgement.demands, identity).is_ok()
}

/// Nothing on a public route is a refresh, and nobody's token ends it; a route that is public no more does.
pub(super) struct PublicJudge {
    pub(super) shared: Arc<Shared>,
    pub(super) path: Box<str>,
    pub(super) generation: u64,
    /// Whoever it is stays unknown as long as the socket is open.
    pub(super) _share: Arc<MemoryReservation>,
}

impl Judge for PublicJudge {
    fn judge(&self, _of: &StoredIdentity, _token: Token) -> Judging {
        Box::pin(std::future::ready(Verdict::Refused(Ending::InvalidToken)))
    }

    fn ask(&self, _of: &StoredIdentity, _question: &RemoteCheck) -> Asking {
        Box::pin(std::future::ready(Revalidation::Active))
    }

    fn is_revoked(&self, _revocation_keys: &RevocationKeys) -> bool {
        false
    }

    fn is_current(&self, _of: &StoredIdentity) -> bool {
        true
    }

    fn judge_again(&mut self, _of: Option<&StoredIdentity>) -> Result<(), Ending> {
        let runtime = self.shared.current();
        if runtime.generation == self.generation {
            return Ok(());
        }
        self.generation = runtime.generation;
        let judgement = runtime.policy.judge_path("GET", &self.path);
        match judgement.filter(|judgement| judgement.conflict(true).is_none()).map(|judgement| judgement.auth) {
            Some(AuthMode::None | AuthMode::Optional) => Ok(()),
            Some(AuthMode::Required | AuthMode::Deny) | None => Err(Ending::Denied),
        }
    }

    fn last_seen(&self) -> Option<u64> {
        None
    }

    fn expired(&self, _action: &'static str) {}

    fn limited(&self, _limit: &'static str) {}
}
