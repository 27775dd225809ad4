//! What every test stands on. Time limits here are safety nets, never what is measured.

pub mod answerer;
pub mod authority;
pub mod backend;
pub mod client;
pub mod control;
pub mod issuer;
pub mod proxy;
pub mod socket;

use std::future::Future;
use std::time::Duration;

/// Long enough for a busy machine, short enough to end a hang.
pub const SAFETY: Duration = Duration::from_secs(30);

/// Awaits under the safety net.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(SAFETY, future).await else { panic!("nothing within {SAFETY:?}: {what}") };
    value
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}
