//! Stopping without losing anything: not ready, then no new connections, then sockets told, then out.
//!
//! A leaf: it knows phases and counts, not what is being drained.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Shared by everything that must end in time.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Someone asked for it.
    asked: CancellationToken,
    /// Not ready any more; still accepting.
    leaving: CancellationToken,
    /// No new connections, no upgrades; answers close their connection; sockets are told.
    closing: CancellationToken,
    /// How long telling them may take.
    leave_within: OnceLock<Duration>,
    tasks: TaskTracker,
}

impl Drain {
    /// Asks for a drain, as SIGTERM does.
    pub fn ask(&self) {
        self.inner.asked.cancel();
    }

    /// Resolves when someone has asked.
    #[must_use]
    pub fn asked(&self) -> CancellationToken {
        self.inner.asked.clone()
    }

    /// Whether `/readyz` says no.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.inner.leaving.is_cancelled()
    }

    /// Whether connections and sockets are being closed.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.inner.closing.is_cancelled()
    }

    /// Resolves when closing begins.
    #[must_use]
    pub fn closing(&self) -> CancellationToken {
        self.inner.closing.clone()
    }

    /// How long the sockets may take to be told, once closing has begun.
    #[must_use]
    pub fn leave_within(&self) -> Duration {
        self.inner.leave_within.get().copied().unwrap_or_default()
    }

    /// Counts something that must end before the process does.
    pub fn hold(&self) -> TaskTrackerToken {
        self.inner.tasks.token()
    }

    /// How much is still held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Drains: `delay` as not ready but accepting, then at most `timeout` until all has ended, in the first
    /// `leave_within` of which sockets are told. Returns whether it did.
    pub async fn run(&self, Times { delay, timeout, leave_within }: Times) -> bool {
        self.inner.leaving.cancel();
        tokio::time::sleep(delay).await;
        // Only the first drain counts, and there is but one.
        let _ = self.inner.leave_within.set(leave_within);
        self.inner.closing.cancel();
        self.inner.tasks.close();
        tokio::time::timeout(timeout, self.inner.tasks.wait()).await.is_ok()
    }
}

/// How long each part of a drain takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Not ready, still accepting.
    pub delay: Duration,
    /// From the delay's end to the process's.
    pub timeout: Duration,
    /// Of that, until the last socket is told.
    pub leave_within: Duration,
}

impl Times {
    /// As a platform asks, which sends traffic elsewhere meanwhile: sockets leave over at most ten seconds, and half
    /// of the time is left to them for their goodbyes.
    #[must_use]
    pub fn orderly(delay: Duration, timeout: Duration) -> Self {
        Self { delay, timeout, leave_within: (timeout / 2).min(LONGEST_LEAVE) }
    }

    /// As a person at the keyboard asks.
    #[must_use]
    pub fn at_once(timeout: Duration) -> Self {
        Self { delay: Duration::ZERO, timeout, leave_within: Duration::ZERO }
    }
}

const LONGEST_LEAVE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_leave_over_ten_seconds_or_half_the_time_and_at_once_for_a_person() {
        let seconds = Duration::from_secs;
        assert_eq!(Times::orderly(seconds(5), seconds(25)).leave_within, seconds(10));
        assert_eq!(Times::orderly(seconds(0), seconds(4)).leave_within, seconds(2));
        assert_eq!(
            Times::at_once(seconds(25)),
            Times { delay: seconds(0), timeout: seconds(25), leave_within: seconds(0) }
        );
    }
}
