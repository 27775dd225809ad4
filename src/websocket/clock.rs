//! The wall clock by which tokens expire.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the milliseconds since the epoch.
pub(super) fn unix_millis() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
