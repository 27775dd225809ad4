//! The gate that closes when the revocations known here may be out of date, where other instances share theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::auth::Rejection;

/// Returns the milliseconds since the machine started, including the time that it was suspended.
#[must_use]
pub fn boot_millis() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    let now = clock_gettime(clock);
    let millis = now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or_default()
}

const OPEN: u64 = u64::MAX;
const SHUT: u64 = 0;
/// The `Retry-After` while the gate is closed: short for clients, and no load for the proxy.
const RETRY: Duration = Duration::from_secs(5);

/// A gate that accepts credentials always, never, or until a given time.
#[derive(Debug)]
pub struct Gate(AtomicU64);

impl Default for Gate {
    fn default() -> Self {
        Self(AtomicU64::new(OPEN))
    }
}

impl Gate {
    /// Closes the gate: the first copy is not complete.
    pub fn shut(&self) {
        self.0.store(SHUT, Ordering::Release);
    }

    /// Opens the gate without a time limit.
    pub fn open(&self) {
        self.0.store(OPEN, Ordering::Release);
    }

    /// Opens the gate until this time, in [`boot_millis`].
    pub fn open_until(&self, end: u64) {
        self.0.store(end.clamp(SHUT + 1, OPEN - 1), Ordering::Release);
    }

    /// Checks that the gate is open now.
    ///
    /// # Errors
    /// [`Rejection::RevocationsUnknown`].
    pub fn check(&self) -> Result<(), Rejection> {
        let reason = match self.0.load(Ordering::Acquire) {
            OPEN => return Ok(()),
            SHUT => "the first copy of the shared revocations is not complete",
            end if boot_millis() < end => return Ok(()),
            _ => "the copy of the shared revocations is older than shared.max_stale",
        };
        Err(Rejection::RevocationsUnknown { reason, retry_after: RETRY })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lets_pass_until_the_moment_that_was_set() {
        let gate = Gate::default();
        assert!(gate.check().is_ok());
        gate.shut();
        assert!(gate.check().is_err_and(|rejection| rejection.is_unavailable() && !rejection.counts()));
        gate.open_until(boot_millis() + 60_000);
        assert!(gate.check().is_ok());
        gate.open_until(boot_millis().saturating_sub(1));
        assert!(gate.check().is_err_and(|rejection| rejection.to_string().contains("max_stale")));
        gate.open();
        assert!(gate.check().is_ok());
    }
}
