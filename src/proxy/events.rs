//! When a stream of events must not go on (docs/contract.md section 4.5): its user was revoked, or its token has
//! ended and `events.on_expiry` says that it counts. Any other answer, once begun, is never cut.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Expiry, Identity, RevocationKeys, unix_seconds};
use crate::http::AbortSignal;
use crate::policy::Policy;
use crate::runtime::Shared;

/// A token that ends later than this ends no stream.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What ends the stream of this identity, if anything can.
pub(super) fn end(shared: &Arc<Shared>, policy: &Policy, identity: &Identity, grace: Duration) -> Option<AbortSignal> {
    // A sign-out needs no control listener.
    let can_revoke = policy.control.is_some() || identity.browser_session().is_some();
    let revocation_keys = can_revoke.then(|| shared.revocations.keys_of(identity));
    let expires = match identity.expiry() {
        Expiry::At(at) if policy.events_end_with_token => Some(at),
        Expiry::At(_) | Expiry::RevalidateAt(_) => None,
    };
    let left = expires.map(|at| {
        let left = Duration::from_secs(at.saturating_sub(unix_seconds())).min(LONGEST);
        left + grace.max(identity.provider().clock_skew)
    });
    if revocation_keys.is_none() && left.is_none() {
        return None;
    }
    let shared = Arc::clone(shared);
    Some(Box::pin(async move {
        tokio::select! {
            () = revoked(&shared, revocation_keys) => "revoked",
            () = over(left) => "expired",
        }
    }))
}

async fn revoked(shared: &Shared, revocation_keys: Option<RevocationKeys>) {
    let Some(revocation_keys) = revocation_keys else { return std::future::pending().await };
    let mut bell = shared.bell.listen();
    while shared.revocations.revoked(&revocation_keys, unix_seconds()).is_none() {
        bell = bell.await.listen();
    }
}

async fn over(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}
