//! Stopping without losing anything: not ready, then no new connections, then sockets told, then out.
//!
//! A leaf: it knows phases and counts, not what is being drained.

use std::sync::Arc;
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

    /// Counts something that must end before the process does.
    pub fn hold(&self) -> TaskTrackerToken {
        self.inner.tasks.token()
    }

    /// How much is still held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Drains: `delay` as not ready but accepting, then at most `timeout` until all has ended.
    /// Returns whether it did.
    pub async fn run(&self, delay: Duration, timeout: Duration) -> bool {
        self.inner.leaving.cancel();
        tokio::time::sleep(delay).await;
        self.inner.closing.cancel();
        self.inner.tasks.close();
        tokio::time::timeout(timeout, self.inner.tasks.wait()).await.is_ok()
    }
}
