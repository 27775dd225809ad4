//! Authorizes a session while its socket is open. A refresh, a reload and a withdrawn key go through the same three
//! functions that admitted the first token (`Policy::match_path`, `allow::permits`, `TrustedHeaders::of`), under the
//! policy now in force.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use super::close_reason::CloseReason;
use super::session::{Credential, RevalidationPlan, Verdict};
use crate::auth::login::OpenLoginSocket;
use crate::auth::{
    Carrier, Expiry, Identity, Rejection, RemoteCheck, Revalidation, RevocationKeys, StoredIdentity, Token, Verified,
    allow, unix_seconds,
};
use crate::authenticate::{Unverified, verify_by_policy_in_force};
use crate::budget::MemoryReservation;
use crate::http::TrustedHeaders;
use crate::policy::{AuthMode, RouteMatch, TrustedHeader, WebSocketSpec};
use crate::runtime::{Network, PresenceKey, ProxyState, Runtime};

/// Resolves to the provider's answer about a session.
pub(super) type RevalidateFuture = Pin<Box<dyn Future<Output = Revalidation> + Send>>;

/// Resolves to the verdict on a token.
pub(super) type VerifyFuture = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// Decides whether a session may go on. A relay calls it for refreshes, revocations, reloads and withdrawn keys.
pub(super) trait SessionAuthorizer: Send + Sync {
    /// Verifies a token that the client of this identity presents on its open socket.
    fn verify(&self, identity: &StoredIdentity, token: Token) -> VerifyFuture;

    /// Asks the provider whether the session is still active.
    fn revalidate(&self, identity: &StoredIdentity, check: &RemoteCheck) -> RevalidateFuture;

    /// Returns whether the session was revoked.
    fn is_revoked(&self, revocation_keys: &RevocationKeys) -> bool;

    /// Returns whether the key that verified the token is still in its provider's set.
    fn is_current(&self, identity: &StoredIdentity) -> bool;

    /// Checks that the session may go on under the policy now in force. Each policy is evaluated once.
    ///
    /// # Errors
    /// Returns the reason why the session ends.
    fn reauthorize(&mut self, identity: Option<&StoredIdentity>) -> Result<(), CloseReason>;

    /// Returns the Unix time in seconds at which the session cookie that opened the socket expires under the policy now in
    /// force; `None` for any other credential.
    fn cookie_expires_at(&self, _identity: &StoredIdentity) -> Option<u64> {
        None
    }

    /// Takes the token that a renewal of the login session brought, where the upstream wants new tokens.
    fn renewed_token(&mut self) -> Option<Token> {
        None
    }

    /// Returns when the user was last seen, in milliseconds since the epoch; `None` where presence does not matter.
    fn last_seen(&self) -> Option<u64>;

    /// Counts an expired token by what became of its socket: `closed` or `kept`.
    fn count_expiry(&self, action: &'static str);

    /// Counts a session that ends at a limit; `limit` is the limit's key.
    fn count_limit(&self, limit: &'static str);
}

/// Authorizes the session of one user on one path.
pub(super) struct UserAuthorizer {
    pub(super) state: Arc<ProxyState>,
    pub(super) path: Box<str>,
    /// The trusted headers of the upgrade request. Their values follow from the stored identity.
    pub(super) headers: Arc<Vec<TrustedHeader>>,
    /// The generation of the policy that was evaluated last.
    pub(super) generation: u32,
    /// The client's address, where limits are counted per address.
    pub(super) limited_address: Option<Network>,
    /// The handle to the user's presence, where the session may outlive its token as long as the user is seen.
    pub(super) presence: Option<Box<PresenceKey>>,
    /// Whether an accepted token is compared or forwarded later.
    pub(super) keeps_token: bool,
    /// The login session that opened the socket. It is renewed as long as the socket is open.
    pub(super) login: Option<Box<OpenLoginSocket>>,
}

impl UserAuthorizer {
    /// Returns the identity under the policy in force: that of the renewed login session, or the stored one.
    ///
    /// # Errors
    /// Returns the reason why the session ends.
    fn current_identity(&self, runtime: &Runtime, stored: &StoredIdentity) -> Result<Identity, CloseReason> {
        let Some(login) = self.login.as_ref().filter(|_| stored.login_session_ends_at().is_some()) else {
            return stored.restore_under(&runtime.verifier).ok_or(CloseReason::Denied);
        };
        match runtime.verifier.login_session_identity(login.session()) {
            Ok(identity) => Ok(identity),
            Err(rejection) if rejection.is_unavailable() => Err(CloseReason::AuthUnavailable),
            // `session.max_age` has passed, which a reload may have made shorter.
            Err(Rejection::Expired { .. }) => Err(CloseReason::Lifetime),
            Err(_) => Err(CloseReason::Denied),
        }
    }

    /// Returns whether the upstream would get the same trusted headers now as on the upgrade.
    fn trusted_headers_unchanged(
        upgrade: (&[TrustedHeader], &Identity),
        current: (&[TrustedHeader], &Identity),
    ) -> bool {
        match (TrustedHeaders::of(upgrade.0, upgrade.1), TrustedHeaders::of(current.0, current.1)) {
            (Ok(upgrade), Ok(current)) => upgrade == current,
            _ => false,
        }
    }
}

impl Credential {
    /// Returns the credential on which a session of this identity depends, on a route with these settings.
    pub(super) fn of(verified: &Verified, state: &ProxyState, spec: &WebSocketSpec) -> Self {
        let identity = verified.identity();
        let provider = identity.provider();
        let is_open_ended = matches!(identity.expiry(), Expiry::RevalidateAt(_));
        // A token without an end is good for as long as the provider's answers are cached, and no longer.
        let cache = provider.remote.as_ref().filter(|_| is_open_ended).map(|remote| remote.cache);
        let interval = spec.revalidate_every.into_iter().chain(cache).min();
        let grace = spec.revalidate_grace;
        let revalidation = interval
            .and_then(|interval| Some(Box::new(RevalidationPlan { check: verified.remote_check()?, interval, grace })));
        let can_revoke = state.can_revoke() || identity.browser_session().is_some();
        Self {
            is_open_ended,
            clock_skew: provider.clock_skew,
            identity: StoredIdentity::new(identity),
            revocation_keys: can_revoke.then(|| state.revocations.keys_of(identity)),
            revalidation,
            renews: identity.browser_session().is_some(),
        }
    }
}

impl SessionAuthorizer for UserAuthorizer {
    fn verify(&self, identity: &StoredIdentity, token: Token) -> VerifyFuture {
        let refresh = Refresh {
            state: Arc::clone(&self.state),
            path: self.path.clone(),
            headers: Arc::clone(&self.headers),
            identity: identity.clone(),
            keeps_token: self.keeps_token,
        };
        let address = self.limited_address.map(IpAddr::from);
        Box::pin(async move {
            let (runtime, verified) =
                verify_by_policy_in_force(&refresh.state, address, &token, Carrier::Message).await;
            // Nothing is awaited for an accepted token from here to the session: a policy that came into force meanwhile
            // would have been applied to the former token only.
            let (verdict, identity) = match verified {
                Ok(verified) => refresh.accepted(&runtime, verified),
                Err(unverified) => (refresh.refused(&runtime, &token, &unverified).await, None),
            };
            refresh.record(&runtime, &verdict, identity.as_deref());
            verdict
        })
    }

    fn revalidate(&self, identity: &StoredIdentity, check: &RemoteCheck) -> RevalidateFuture {
        let (runtime, provider) = (self.state.current(), identity.provider().to_owned());
        let check = check.clone();
        Box::pin(async move { runtime.verifier.revalidate(&provider, &check).await })
    }

    fn is_revoked(&self, revocation_keys: &RevocationKeys) -> bool {
        let (revocations, now) = (&self.state.revocations, unix_seconds());
        let by = revocations.revoked(revocation_keys, now);
        let Some(login) = &self.login else { return by.is_some() };
        // When the user signs in anew in the same browser, the socket belongs to the new session from then on.
        let next = login.session().latest();
        let has_moved = login.has_moved() || next.is_some();
        let session = next.as_ref().unwrap_or_else(|| login.session());
        // A renewal may have changed the keys by which the session can be revoked.
        session.has_ended()
            || revocations.check(&session.identity(), now).is_err()
            || by.is_some_and(|by| by != "session" || !has_moved)
    }

    fn is_current(&self, identity: &StoredIdentity) -> bool {
        self.state.current().verifier.is_current(identity.provider(), identity.verified_by())
    }

    fn reauthorize(&mut self, identity: Option<&StoredIdentity>) -> Result<(), CloseReason> {
        let runtime = self.state.current();
        let has_changed = self.login.as_mut().is_some_and(|login| runtime.verifier.follow_login_session(login));
        if runtime.generation == self.generation && !has_changed {
            return Ok(());
        }
        self.generation = runtime.generation;
        let stored = identity.ok_or(CloseReason::Denied)?;
        let current = self.current_identity(&runtime, stored)?;
        let on_upgrade = stored.restore().ok_or(CloseReason::Denied)?;
        if !runtime.policy.match_path("GET", &self.path).is_some_and(|matched| admits(&matched, &current)) {
            return Err(CloseReason::Denied);
        }
        let headers = &runtime.policy.trusted_headers;
        let same = on_upgrade.user() == current.user()
            && Self::trusted_headers_unchanged((&self.headers, &on_upgrade), (headers, &current));
        if same { Ok(()) } else { Err(CloseReason::IdentityChanged) }
    }

    fn cookie_expires_at(&self, identity: &StoredIdentity) -> Option<u64> {
        identity.cookie_expires_at(&self.state.current().verifier)
    }

    fn renewed_token(&mut self) -> Option<Token> {
        self.login.as_mut().filter(|_| self.keeps_token)?.renewed_token()
    }

    fn last_seen(&self) -> Option<u64> {
        let seen = self.state.users.last_seen(**self.presence.as_ref()?)?;
        Some(seen.saturating_mul(1_000))
    }

    fn count_expiry(&self, action: &'static str) {
        self.state.metrics.sockets.expired(action);
    }

    fn count_limit(&self, limit: &'static str) {
        self.state.metrics.limited(limit);
    }
}

/// A token presented on an open socket, and everything but the policy in force that decides about it.
struct Refresh {
    state: Arc<ProxyState>,
    path: Box<str>,
    /// The trusted headers of the upgrade request.
    headers: Arc<Vec<TrustedHeader>>,
    /// The identity of the socket's user.
    identity: StoredIdentity,
    keeps_token: bool,
}

impl Refresh {
    /// Returns the verdict on a token that was not verified.
    async fn refused(&self, runtime: &Runtime, token: &Token, unverified: &Unverified) -> Verdict {
        log_refused(unverified);
        if let (Rejection::Expired { .. }, Some(then)) = (unverified.rejection(), self.identity.restore())
            && runtime.verifier.is_expired_token_of(token, &then).await
        {
            return Verdict::Expired { user_id: then.user_id().to_owned() };
        }
        Verdict::Refused(CloseReason::of_unverified(unverified))
    }

    /// Returns the verdict on a verified token under the policy by which it was verified, and its identity where it was
    /// accepted.
    fn accepted(&self, runtime: &Runtime, verified: Verified) -> (Verdict, Option<Arc<Identity>>) {
        let Some(matched) = runtime.policy.match_path("GET", &self.path) else { return (Verdict::Denied, None) };
        let credential = Credential::of(&verified, &self.state, &matched.route.websocket);
        let (identity, token) = verified.into_parts();
        let Some(then) = self.identity.restore().filter(|then| then.user() == identity.user()) else {
            return (Verdict::AnotherUser, None);
        };
        if !admits(&matched, &identity) {
            return (Verdict::Denied, None);
        }
        let headers = &runtime.policy.trusted_headers;
        if !UserAuthorizer::trusted_headers_unchanged((&self.headers, &then), (headers, &identity)) {
            return (Verdict::IdentityChanged, None);
        }
        let user_id = identity.user_id().to_owned();
        (Verdict::Accepted { user_id, credential, token: token.filter(|_| self.keeps_token) }, Some(identity))
    }

    /// Counts a verdict. An accepted token also counts as its user's presence.
    fn record(&self, runtime: &Runtime, verdict: &Verdict, identity: Option<&Identity>) {
        if let Some(matched) = runtime.policy.match_path("GET", &self.path) {
            let outcome = match verdict {
                Verdict::Accepted { .. } => "accepted",
                Verdict::Refused(_) | Verdict::Expired { .. } => "refused",
                Verdict::AnotherUser => "another_user",
                Verdict::Denied => "denied",
                Verdict::IdentityChanged => "identity_changed",
            };
            self.state.metrics.sockets.refreshed(&matched.route.label, outcome);
        }
        if let Some(identity) = identity {
            tracing::debug!(user = identity.user_id(), "refresh verified");
            self.state.record_presence(&runtime.policy, identity);
        }
    }
}

/// Logs a refused token with what it claims, in the fields of the access line of a refused request.
fn log_refused(unverified: &Unverified) {
    let (rejection, claims) = (unverified.rejection(), unverified.claims());
    tracing::debug!(
        %rejection,
        unverified_issuer = claims.issuer,
        unverified_kid = claims.key_id,
        unverified_sub_digest = claims.subject_digest,
        "refresh refused"
    );
}

/// Returns whether the route admits this identity.
fn admits(matched: &RouteMatch, identity: &Identity) -> bool {
    matched.auth != AuthMode::Deny
        && matched.conflict(true).is_none()
        && allow::permits(&matched.requirements, identity).is_ok()
}

/// Authorizes a socket on a public route: it has no token, and ends only when a reload makes the route protected.
pub(super) struct PublicAuthorizer {
    pub(super) state: Arc<ProxyState>,
    pub(super) path: Box<str>,
    pub(super) generation: u32,
    /// The caller stays unauthenticated, so its memory stays reserved as long as the socket is open.
    pub(super) _reservation: Arc<MemoryReservation>,
}

impl SessionAuthorizer for PublicAuthorizer {
    fn verify(&self, _identity: &StoredIdentity, _token: Token) -> VerifyFuture {
        Box::pin(std::future::ready(Verdict::Refused(CloseReason::InvalidToken)))
    }

    fn revalidate(&self, _identity: &StoredIdentity, _check: &RemoteCheck) -> RevalidateFuture {
        Box::pin(std::future::ready(Revalidation::Active))
    }

    fn is_revoked(&self, _revocation_keys: &RevocationKeys) -> bool {
        false
    }

    fn is_current(&self, _identity: &StoredIdentity) -> bool {
        true
    }

    fn reauthorize(&mut self, _identity: Option<&StoredIdentity>) -> Result<(), CloseReason> {
        let runtime = self.state.current();
        if runtime.generation == self.generation {
            return Ok(());
        }
        self.generation = runtime.generation;
        let matched = runtime.policy.match_path("GET", &self.path);
        match matched.filter(|matched| matched.conflict(true).is_none()).map(|matched| matched.auth) {
            Some(AuthMode::None | AuthMode::Optional) => Ok(()),
            Some(AuthMode::Required | AuthMode::Deny) | None => Err(CloseReason::Denied),
        }
    }

    fn last_seen(&self) -> Option<u64> {
        None
    }

    fn count_expiry(&self, _action: &'static str) {}

    fn count_limit(&self, _limit: &'static str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the size, because each open session has one, and 64 bytes are a class of the allocator's.
    #[test]
    fn the_authorizer_of_an_open_session_stays_small() {
        let size = std::mem::size_of::<UserAuthorizer>();
        assert!(size <= 64, "{size} bytes");
    }
}
