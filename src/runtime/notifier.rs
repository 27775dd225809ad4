//! Notifies open sockets and streams of changes that may end them. A drain, a revocation and a reload use the same
//! notification, so that an idle socket waits for one thing only.
//!
//! In a drain sockets are closed one after the other: thousands of clients that are closed at once would reconnect at
//! once, to another instance that has clients of its own.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::moment::Moment;
use super::waiting_tasks::{Place, WaitingTasks};

/// The maximum time between the closes of two sockets in a drain, which closes at least a hundred a second.
const MAX_CLOSE_INTERVAL: Duration = Duration::from_millis(10);

/// The times at which staggered subscriptions close.
#[derive(Debug)]
struct CloseSchedule {
    start: Instant,
    interval: Duration,
    window: Duration,
    /// The time by which every socket has ended, however slowly its client reads.
    end: Instant,
    next_position: AtomicU32,
}

impl CloseSchedule {
    /// Assigns the next time.
    fn next(&self) -> Instant {
        let position = self.next_position.fetch_add(1, Ordering::Relaxed);
        self.start + self.interval.saturating_mul(position).min(self.window)
    }
}

/// Notifies all subscriptions; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of notifications so far, modulo 2^32.
    count: AtomicU32,
    subscriptions: AtomicU32,
    /// The schedule of a drain, once it has begun. There is one drain in a process.
    closing: OnceLock<CloseSchedule>,
    waiting: WaitingTasks,
}

/// A receiver of the notifications of a [`Notifier`]. Each open socket has one, so it is kept small.
#[derive(Debug)]
pub struct Subscription {
    state: Arc<State>,
    /// The number of notifications that were received.
    seen: u32,
    close_turn: CloseTurn,
    /// The turn, once it is assigned and until it is reached.
    turn: Option<Moment>,
    place: Place,
}

/// The turn of a subscription to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseTurn {
    /// Never: the subscriber ends by itself in a drain.
    NotStaggered,
    /// At its turn in a drain, which is assigned once one has begun.
    Awaited,
    Reached,
}

impl Notifier {
    /// Begins to close the staggered subscriptions of a drain: a hundred a second, or more if that is needed to close
    /// all within `window`. Each must have ended within `limit`, however slowly its client reads. A second call only
    /// notifies.
    pub fn notify_closing(&self, window: Duration, limit: Duration) {
        self.0.closing.get_or_init(|| {
            let subscriptions = self.0.subscriptions.load(Ordering::Relaxed).max(1);
            let interval = (window / subscriptions).min(MAX_CLOSE_INTERVAL);
            let (start, next_position) = (Instant::now(), AtomicU32::new(0));
            CloseSchedule { start, interval, window, end: start + limit, next_position }
        });
        self.notify();
    }

    /// Notifies all subscriptions that a user was revoked or the policy was replaced.
    pub fn notify(&self) {
        // A subscription reads the number after it has begun to wait, so either it sees the new one or it is woken.
        self.0.count.fetch_add(1, Ordering::Release);
        self.0.waiting.wake_all();
    }

    /// Subscribes to notifications. The first one comes at once, so that a change just before the subscription is not
    /// missed.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.subscription(CloseTurn::NotStaggered)
    }

    /// Subscribes like [`Notifier::subscribe`], for a socket that a drain closes at its turn.
    #[must_use]
    pub fn subscribe_staggered(&self) -> Subscription {
        self.subscription(CloseTurn::Awaited)
    }

    fn subscription(&self, close_turn: CloseTurn) -> Subscription {
        let state = Arc::clone(&self.0);
        let place = state.waiting.add(state.subscriptions.fetch_add(1, Ordering::Relaxed));
        let seen = state.count.load(Ordering::Acquire).wrapping_sub(1);
        Subscription { state, seen, close_turn, turn: None, place }
    }
}

impl Subscription {
    /// Returns whether this socket must close now, because a drain has begun and its turn has come.
    #[must_use]
    pub const fn should_close(&self) -> bool {
        matches!(self.close_turn, CloseTurn::Reached)
    }

    /// Returns the time by which this socket must have ended, once a drain has begun.
    #[must_use]
    pub fn ends_by(&self) -> Option<Instant> {
        self.state.closing.get().map(|schedule| schedule.end)
    }

    /// Waits for the next notification, or for the turn of this socket to close. Several notifications may be received
    /// as one.
    pub async fn notified(&mut self) {
        while !self.take_notification() {
            poll_fn(|cx| self.poll(cx, None)).await;
        }
    }

    /// Returns whether there is a notification, or the turn of this socket to close has come, and receives it.
    pub fn take_notification(&mut self) -> bool {
        let count = self.state.count.load(Ordering::Acquire);
        if count != self.seen {
            self.seen = count;
            self.assign_turn();
            return true;
        }
        let is_turn = self.turn.is_some_and(|turn| turn <= Moment::now());
        if is_turn {
            (self.close_turn, self.turn) = (CloseTurn::Reached, None);
        }
        is_turn
    }

    /// Is ready when there is something for [`Self::take_notification`], and at `deadline` at the latest. It may be ready
    /// early.
    pub fn poll_until(&self, cx: &Context<'_>, deadline: Moment) -> Poll<()> {
        self.poll(cx, Some(deadline))
    }

    fn poll(&self, cx: &Context<'_>, deadline: Option<Moment>) -> Poll<()> {
        let at = self.turn.into_iter().chain(deadline).min();
        self.state.waiting.wait(&self.place, cx.waker(), at);
        let is_over = self.state.count.load(Ordering::Acquire) != self.seen || at.is_some_and(|at| at <= Moment::now());
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Assigns the time at which this socket closes, once a drain has begun.
    fn assign_turn(&mut self) {
        if self.close_turn == CloseTurn::Awaited
            && self.turn.is_none()
            && let Some(schedule) = self.state.closing.get()
        {
            let at = schedule.next();
            if at <= Instant::now() {
                self.close_turn = CloseTurn::Reached;
            } else {
                self.turn = Some(at.into());
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.state.subscriptions.fetch_sub(1, Ordering::Relaxed);
        self.state.waiting.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the times at which `count` sockets were closed, in milliseconds from the notification.
    async fn close_times(count: usize, window: Duration) -> Vec<u128> {
        let notifier = Notifier::default();
        let mut sockets = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for _ in 0..count {
            let mut subscription = notifier.subscribe_staggered();
            sockets.spawn(async move {
                while !subscription.should_close() {
                    subscription.notified().await;
                }
                begun.elapsed().as_millis()
            });
        }
        // Each subscription has received the first notification and waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let notified_at = begun.elapsed().as_millis();
        notifier.notify_closing(window, window * 2);
        // Another notification meanwhile does not make any close earlier.
        tokio::time::sleep(Duration::from_millis(1)).await;
        notifier.notify();
        let mut all: Vec<u128> = sockets.join_all().await.into_iter().map(|at| at - notified_at).collect();
        all.sort_unstable();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_sockets_close_per_second_when_the_window_allows() {
        let all = close_times(300, Duration::from_secs(10)).await;
        assert_eq!(all.len(), 300);
        for (index, at) in all.iter().enumerate() {
            // The clock of these tests has a resolution of a millisecond.
            assert!(at.abs_diff(index as u128 * 10) <= 2, "{index} closed after {at} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_sockets_close_faster_to_fit_the_window() {
        let all = close_times(5_000, Duration::from_secs(10)).await;
        assert!(all.windows(10).all(|ten| ten[9] - ten[0] <= 20), "at an even pace");
        let last = *all.last().expect("some");
        assert!((9_900..=10_002).contains(&last), "the last closed after {last} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_window_all_close_at_once() {
        assert!(close_times(100, Duration::ZERO).await.iter().all(|at| *at <= 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_subscribes_while_others_close_closes_within_the_window() {
        let notifier = Notifier::default();
        notifier.notify_closing(Duration::from_millis(50), Duration::from_millis(100));
        let begun = Instant::now();
        for _ in 0..100 {
            let mut subscription = notifier.subscribe_staggered();
            while !subscription.should_close() {
                subscription.notified().await;
            }
        }
        assert!(begun.elapsed() <= Duration::from_millis(52));
    }

    #[test]
    fn a_notification_is_received_once_whenever_it_comes() {
        let notifier = Notifier::default();
        let mut subscription = notifier.subscribe();
        let mut is_notified = || subscription.take_notification();
        assert!(is_notified(), "the first comes at once");
        assert!(!is_notified());
        notifier.notify();
        notifier.notify();
        assert!(is_notified() && !is_notified(), "two are one");
        notifier.notify();
        assert!(is_notified() && !is_notified());
    }

    /// Each of the notifications is received while the next one is only sent after that, in whatever order two threads
    /// come to the check and to the wait.
    #[test]
    fn no_notification_is_missed_between_the_check_and_the_wait() {
        const NOTIFICATIONS: u32 = 20_000;
        let notifier = Notifier::default();
        let mut subscription = notifier.subscribe();
        let received = AtomicU32::new(0);
        let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for sent in 1..=NOTIFICATIONS {
                    while received.load(Ordering::Acquire) < sent {
                        std::thread::yield_now();
                    }
                    notifier.notify();
                }
            });
            scope.spawn(|| {
                runtime().block_on(async {
                    for _ in 0..=NOTIFICATIONS {
                        subscription.notified().await;
                        received.fetch_add(1, Ordering::Release);
                    }
                });
            });
        });
        assert_eq!(received.into_inner(), NOTIFICATIONS + 1);
    }
}
