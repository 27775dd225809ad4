//! The time as claims express it: since the Unix epoch, by this machine's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the seconds since the Unix epoch by this machine's clock.
#[must_use]
pub fn unix_seconds() -> u64 {
    #[cfg(test)]
    if let Some(millis) = crate::simulation::unix_millis() {
        return millis / 1_000;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Returns the milliseconds since the Unix epoch by this machine's clock.
#[must_use]
pub fn unix_millis() -> u64 {
    #[cfg(test)]
    if let Some(millis) = crate::simulation::unix_millis() {
        return millis;
    }
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The first second of the year 5000. Milliseconds since 1970 are beyond it since January 1973.
const YEAR_5000: u64 = 95_617_584_000;

/// Whether a time is more likely a number of milliseconds than of seconds.
pub(super) const fn is_in_milliseconds(seconds: u64) -> bool {
    seconds >= YEAR_5000
}
