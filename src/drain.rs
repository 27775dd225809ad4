//! A graceful stop: the process reports that it is not ready, accepts no more connections, sends a Close to every
//! WebSocket, and ends when all work has ended or the time limit is reached.
//!
//! This module imports nothing of the proxy. It has phases and counts only.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The state of the drain; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    state: Arc<DrainState>,
}

#[derive(Debug, Default)]
struct DrainState {
    /// The token that is cancelled when a drain is requested.
    requested: CancellationToken,
    /// The token that is cancelled when `/readyz` begins to fail; connections are still accepted.
    draining: CancellationToken,
    /// The token that is cancelled when no more connections and upgrades are accepted, responses close their
    /// connection, and sockets get their Close.
    closing: CancellationToken,
    /// The durations of the drain, once closing has begun.
    times: OnceLock<DrainTimes>,
    /// The listeners that accept connections. Each has a last few to pass on when closing begins.
    listeners: TaskTracker,
    tasks: TaskTracker,
}

impl Drain {
    /// Requests a drain, as SIGTERM does.
    pub fn request(&self) {
        self.state.requested.cancel();
    }

    /// Returns the token that is cancelled when a drain is requested.
    #[must_use]
    pub fn request_token(&self) -> CancellationToken {
        self.state.requested.clone()
    }

    /// Returns whether a drain has begun, so that `/readyz` fails.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.draining.is_cancelled()
    }

    /// Returns whether connections and sockets are being closed.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.state.closing.is_cancelled()
    }

    /// Returns the token that is cancelled when closing begins.
    #[must_use]
    pub fn closing_token(&self) -> CancellationToken {
        self.state.closing.clone()
    }

    /// Returns the time, from the beginning of closing, over which the sockets' Closes are spread; zero before that.
    #[must_use]
    pub fn close_window(&self) -> Duration {
        self.state.times.get().map(|times| times.close_window).unwrap_or_default()
    }

    /// Returns the time, from the beginning of closing, after which a socket is ended even if its client has more to
    /// read. It is short enough for the access line to be written before the process ends. Zero before closing begins.
    #[must_use]
    pub fn socket_limit(&self) -> Duration {
        let timeout = self.state.times.get().map(|times| times.timeout).unwrap_or_default();
        timeout.saturating_sub((timeout / 4).min(Duration::from_secs(1)))
    }

    /// Counts a task that must end before the process does, until the returned token is dropped.
    pub fn track(&self) -> TaskTrackerToken {
        self.state.tasks.token()
    }

    /// Counts a listener, until the returned token is dropped: the drain waits for the connections that it passes on last,
    /// also where no other work is left.
    pub fn track_listener(&self) -> TaskTrackerToken {
        self.state.listeners.token()
    }

    /// Returns the number of tracked tasks that have not ended.
    #[must_use]
    pub fn tracked_count(&self) -> usize {
        self.state.tasks.len()
    }

    /// Makes `/readyz` fail from now on. [`Drain::run`] does so as well; a caller that announces the drain first calls
    /// this, so that the announcement is true when it is read.
    pub fn begin(&self) {
        self.state.draining.cancel();
    }

    /// Drains. For `delay` the process is not ready but accepts connections, then it waits at most `timeout` for the
    /// tracked tasks. Sockets get their Close within the first `close_window` of that. Returns whether all tasks have
    /// ended.
    pub async fn run(&self, times: DrainTimes) -> bool {
        self.begin();
        tokio::time::sleep(times.delay).await;
        // `set` fails on a second call only, and there is one drain in a process.
        let _ = self.state.times.set(times);
        self.state.closing.cancel();
        self.state.listeners.close();
        self.state.tasks.close();
        let all_ended = async {
            self.state.listeners.wait().await;
            self.state.tasks.wait().await;
        };
        tokio::time::timeout(times.timeout, all_ended).await.is_ok()
    }
}

/// The durations of a drain's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// The time during which the process is not ready but still accepts.
    pub delay: Duration,
    /// The time from the end of `delay` to the end of the process.
    pub timeout: Duration,
    /// The part of `timeout` in which every socket gets its Close.
    pub close_window: Duration,
}

impl DrainTimes {
    /// Returns the times of a drain by a platform, which sends new traffic elsewhere meanwhile. Closes are spread over
    /// at most ten seconds and at most half of `timeout`, so that the closing handshakes have the other half.
    #[must_use]
    pub fn gradual(delay: Duration, timeout: Duration) -> Self {
        Self { delay, timeout, close_window: (timeout / 2).min(MAX_CLOSE_WINDOW) }
    }

    /// Returns the times of a drain after Ctrl-C: nothing is delayed or spread.
    #[must_use]
    pub fn immediate(timeout: Duration) -> Self {
        Self { delay: Duration::ZERO, timeout, close_window: Duration::ZERO }
    }
}

const MAX_CLOSE_WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_over_ten_seconds_or_half_the_timeout_and_not_at_all_after_ctrl_c() {
        let seconds = Duration::from_secs;
        assert_eq!(DrainTimes::gradual(seconds(5), seconds(25)).close_window, seconds(10));
        assert_eq!(DrainTimes::gradual(seconds(0), seconds(4)).close_window, seconds(2));
        assert_eq!(
            DrainTimes::immediate(seconds(25)),
            DrainTimes { delay: seconds(0), timeout: seconds(25), close_window: seconds(0) }
        );
    }
}
