//! The time as claims express it: since the Unix epoch, by this machine's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds since the Unix epoch by this machine's clock.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Returns the milliseconds since the Unix epoch by this machine's clock.
#[must_use]
pub fn unix_millis() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
