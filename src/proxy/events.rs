//! Ends streams of server-sent events (docs/contract.md section 4.5) when the user is revoked, or when the token expires
//! and `events.on_expiry` is `close`. Any other response that has begun is never ended early.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Expiry, Identity, RevocationKeys, unix_seconds};
use crate::http::AbortSignal;
use crate::policy::Policy;
use crate::runtime::ProxyState;

/// Upper bound on the time until a stream ends, which keeps additions to the clock in range.
const MAX_TIME_LEFT: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Returns the signal that ends the stream of this identity; `None` if nothing can end it.
pub(super) fn abort_signal(
    state: &Arc<ProxyState>,
    policy: &Policy,
    identity: &Identity,
    grace: Duration,
) -> Option<AbortSignal> {
    // A sign-out ends browser sessions also without a control listener.
    let can_revoke = state.can_revoke() || identity.browser_session().is_some();
    let revocation_keys = can_revoke.then(|| state.revocations.keys_of(identity));
    let expires = match identity.expiry() {
        Expiry::At(at) if policy.events_end_with_token => Some(at),
        Expiry::At(_) | Expiry::RevalidateAt(_) => None,
    };
    let left = expires.map(|at| {
        let left = Duration::from_secs(at.saturating_sub(unix_seconds())).min(MAX_TIME_LEFT);
        left + grace.max(identity.provider().clock_skew)
    });
    if revocation_keys.is_none() && left.is_none() {
        return None;
    }
    let state = Arc::clone(state);
    Some(Box::pin(async move {
        tokio::select! {
            () = revoked(&state, revocation_keys) => "revoked",
            () = expired(left) => "expired",
        }
    }))
}

async fn revoked(state: &ProxyState, revocation_keys: Option<Arc<RevocationKeys>>) {
    let Some(revocation_keys) = revocation_keys else { return std::future::pending().await };
    let mut subscription = state.notifier.subscribe();
    while state.revocations.revoked(&revocation_keys, unix_seconds()).is_none() {
        subscription.notified().await;
    }
}

async fn expired(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}
