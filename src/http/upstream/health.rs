//! The observations about an upstream for the status page: its last response, its last failure, and the last connection
//! that was opened only to check it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The last observations about an upstream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamHealth {
    /// The time since its last response.
    pub responded: Option<Duration>,
    /// The time since a check last connected.
    pub connected: Option<Duration>,
    /// The time since the last failure, and its error.
    pub failed: Option<(Duration, String)>,
    /// The number of requests that wait for the head of a response.
    pub waiting: usize,
    /// The time for which requests have waited without any response; `None` if none waits.
    pub silent: Option<Duration>,
}

/// The time without a response, while requests wait, from which an upstream counts as hanging. Long polls are shorter.
const HANGING: Duration = Duration::from_secs(60);

impl UpstreamHealth {
    /// Returns the time since anything was observed.
    #[must_use]
    pub fn latest(&self) -> Option<Duration> {
        [self.responded, self.connected, self.failed.as_ref().map(|(ago, _)| *ago)].into_iter().flatten().min()
    }

    /// Returns whether requests have waited for long without any response.
    #[must_use]
    pub fn is_hanging(&self) -> bool {
        self.silent.is_some_and(|silent| silent >= HANGING)
    }

    /// Returns whether the last observation was a failure.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failed.as_ref().is_some_and(|(ago, _)| Some(*ago) == self.latest())
    }
}

/// The record of observations about an upstream.
#[derive(Debug)]
pub(super) struct HealthRecord {
    created: Instant,
    /// The time of the last response in milliseconds from `created`, plus one; zero before the first. An atomic, because
    /// it is set at every response.
    responded: AtomicU64,
    /// The number of requests that wait for the head of a response.
    waiting: AtomicUsize,
    /// The time since which at least one request waits, as in `responded`.
    waiting_since: AtomicU64,
    others: Mutex<Observations>,
}

/// A request that waits for the head of a response. It is counted until dropped, also where the client leaves.
pub(super) struct WaitingRequest<'a>(&'a AtomicUsize);

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for HealthRecord {
    fn default() -> Self {
        Self {
            created: Instant::now(),
            responded: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            waiting_since: AtomicU64::new(0),
            others: Mutex::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Observations {
    connected: Option<Instant>,
    failed: Option<(Instant, String)>,
    is_being_checked: bool,
}

impl HealthRecord {
    fn update(&self, change: impl FnOnce(&mut Observations)) {
        change(&mut self.others.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns a time as it is kept in an atomic.
    fn stored(&self, at: Instant) -> u64 {
        let since_created = at.saturating_duration_since(self.created);
        u64::try_from(since_created.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Returns the time since one that was kept in an atomic.
    fn since(&self, stored: u64) -> Option<Duration> {
        let millis = stored.checked_sub(1)?;
        Some(self.created.elapsed().saturating_sub(Duration::from_millis(millis)))
    }

    /// Counts a request, sent at this time, until the result is dropped.
    pub(super) fn begin_request(&self, at: Instant) -> WaitingRequest<'_> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.waiting_since.store(self.stored(at), Ordering::Relaxed);
        }
        WaitingRequest(&self.waiting)
    }

    /// Records the head of a response, which arrived at this time.
    pub(super) fn record_response(&self, at: Instant) {
        self.responded.store(self.stored(at), Ordering::Relaxed);
    }

    /// Records a request, or a check, without a usable response.
    pub(super) fn record_failure(&self, error: &dyn std::error::Error) {
        self.update(|observed| observed.failed = Some((Instant::now(), error.to_string())));
    }

    /// Begins a check, unless one is running or something was observed within `max_age`.
    pub(super) fn begin_check(&self, max_age: Duration) -> bool {
        let is_recent = self.get().latest().is_some_and(|ago| ago < max_age);
        let mut begins = false;
        self.update(|observed| {
            begins = !is_recent && !observed.is_being_checked;
            observed.is_being_checked |= begins;
        });
        begins
    }

    /// Runs a check that [`Self::begin_check`] has begun, and records its result.
    pub(super) async fn run_check<T, E: std::error::Error>(&self, check: impl Future<Output = Result<T, E>>) {
        let _running = RunningCheck(self);
        match check.await {
            Err(error) => self.record_failure(&error),
            Ok(_) => self.update(|observed| observed.connected = Some(Instant::now())),
        }
    }

    /// Returns the observations up to now.
    pub(super) fn get(&self) -> UpstreamHealth {
        let observed = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let responded = self.since(self.responded.load(Ordering::Relaxed));
        let waiting = self.waiting.load(Ordering::Relaxed);
        let waited = self.since(self.waiting_since.load(Ordering::Relaxed)).filter(|_| waiting > 0);
        UpstreamHealth {
            waiting,
            silent: waited.map(|waited| responded.map_or(waited, |responded| waited.min(responded))),
            responded,
            connected: observed.connected.map(|at| at.elapsed()),
            failed: observed.failed.as_ref().map(|(at, error)| (at.elapsed(), error.clone())),
        }
    }
}

/// A check that is running. It ends when this is dropped, also by a panic: a mark that stayed would prevent all further
/// checks.
struct RunningCheck<'a>(&'a HealthRecord);

impl Drop for RunningCheck<'_> {
    fn drop(&mut self) {
        self.0.update(|observed| observed.is_being_checked = false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upstream_hangs_while_requests_wait_and_nothing_is_answered() {
        let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        let health = HealthRecord::default();
        assert_eq!((health.get().waiting, health.get().silent), (0, None));
        let first = health.begin_request(Instant::now());
        seconds(59).await;
        assert!(!health.get().is_hanging());
        seconds(1).await;
        let second = health.begin_request(Instant::now());
        assert_eq!((health.get().waiting, health.get().silent), (2, Some(Duration::from_secs(60))));
        assert!(health.get().is_hanging());
        health.record_response(Instant::now());
        drop(second);
        assert!(!health.get().is_hanging(), "it answers others");
        seconds(60).await;
        assert!(health.get().is_hanging(), "and does no longer");
        drop(first);
        assert_eq!((health.get().waiting, health.get().silent), (0, None));
    }

    #[tokio::test]
    async fn after_a_check_that_panics_another_can_begin() {
        let health = Arc::new(HealthRecord::default());
        assert!(health.begin_check(Duration::ZERO));
        assert!(!health.begin_check(Duration::ZERO), "one at a time");
        let checked = Arc::clone(&health);
        let check = async move { checked.run_check(async { panics() }).await };
        assert!(tokio::spawn(check).await.expect_err("a panic").is_panic());
        assert!(health.begin_check(Duration::ZERO));
    }

    fn panics() -> std::io::Result<()> {
        panic!("a check that panics")
    }
}
