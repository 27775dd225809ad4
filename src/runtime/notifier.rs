//! Notifies open sockets and streams of changes that may end them. A drain, a revocation and a reload use the same
//! notification, so that an idle socket waits for one thing only.
//!
//! In a drain sockets are closed one after the other: thousands of clients that are closed at once would reconnect at
//! once, to another instance that has clients of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The maximum time between the closes of two sockets in a drain, which closes at least a hundred a second.
const MAX_CLOSE_INTERVAL: Duration = Duration::from_millis(10);

/// The state that subscriptions receive. Every change of it is a notification.
#[derive(Debug, Default)]
struct State {
    closing: Option<CloseSchedule>,
}

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
#[derive(Clone, Debug)]
pub struct Notifier(watch::Sender<State>);

/// A receiver of the notifications of a [`Notifier`].
#[derive(Debug)]
pub struct Subscription {
    state: watch::Receiver<State>,
    close_turn: CloseTurn,
}

/// The time at which a subscription closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CloseTurn {
    /// Never: the subscriber ends by itself in a drain.
    NotStaggered,
    /// Not assigned yet, because no drain has begun.
    Unassigned,
    At(Instant),
    Reached,
}

/// Resolves at the next notification, and returns the subscription.
pub type Notified = Pin<Box<dyn Future<Output = Subscription> + Send + Sync>>;

impl Default for Notifier {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Notifier {
    /// Begins to close the staggered subscriptions of a drain: a hundred a second, or more if that is needed to close
    /// all within `window`. Each must have ended within `limit`, however slowly its client reads.
    pub fn notify_closing(&self, window: Duration, limit: Duration) {
        let subscriptions = u32::try_from(self.0.receiver_count()).unwrap_or(u32::MAX).max(1);
        let interval = (window / subscriptions).min(MAX_CLOSE_INTERVAL);
        self.0.send_modify(|state| {
            let (start, next_position) = (Instant::now(), AtomicU32::new(0));
            state.closing = Some(CloseSchedule { start, interval, window, end: start + limit, next_position });
        });
    }

    /// Notifies all subscriptions that a user was revoked or the policy was replaced.
    pub fn notify(&self) {
        self.0.send_modify(|_| {});
    }

    /// Subscribes to notifications. The first one comes at once, so that a change just before the subscription is not
    /// missed.
    #[must_use]
    pub fn subscribe(&self) -> Notified {
        self.subscription(CloseTurn::NotStaggered)
    }

    /// Subscribes like [`Notifier::subscribe`], for a socket that a drain closes at its turn.
    #[must_use]
    pub fn subscribe_staggered(&self) -> Notified {
        self.subscription(CloseTurn::Unassigned)
    }

    fn subscription(&self, close_turn: CloseTurn) -> Notified {
        let mut state = self.0.subscribe();
        state.mark_changed();
        Subscription { state, close_turn }.notified()
    }
}

impl Subscription {
    /// Returns whether this socket must close now, because a drain has begun and its turn has come.
    #[must_use]
    pub fn should_close(&self) -> bool {
        self.close_turn == CloseTurn::Reached
    }

    /// Returns the time by which this socket must have ended, once a drain has begun.
    #[must_use]
    pub fn ends_by(&self) -> Option<Instant> {
        self.state.borrow().closing.as_ref().map(|schedule| schedule.end)
    }

    /// Waits for the next notification, or for the turn of this socket to close.
    #[must_use]
    pub fn notified(mut self) -> Notified {
        Box::pin(async move {
            if let CloseTurn::At(at) = self.close_turn {
                // The timer is boxed: most subscriptions are not closing, and each would have the size of a timer.
                let turn = Box::pin(sleep_until(at));
                tokio::select! {
                    () = turn => self.close_turn = CloseTurn::Reached,
                    changed = self.state.changed() => pending_when_closed(changed).await,
                }
            } else {
                pending_when_closed(self.state.changed().await).await;
            }
            if self.close_turn == CloseTurn::Unassigned
                && let Some(schedule) = &self.state.borrow().closing
            {
                let at = schedule.next();
                self.close_turn = if at <= Instant::now() { CloseTurn::Reached } else { CloseTurn::At(at) };
            }
            self
        })
    }
}

/// Waits forever when the notifier was dropped, since no notification will come.
async fn pending_when_closed(changed: Result<(), watch::error::RecvError>) {
    if changed.is_err() {
        std::future::pending::<()>().await;
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
            let mut notified = notifier.subscribe_staggered();
            sockets.spawn(async move {
                loop {
                    let subscription = notified.await;
                    if subscription.should_close() {
                        return begun.elapsed().as_millis();
                    }
                    notified = subscription.notified();
                }
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
            let mut subscription = notifier.subscribe_staggered().await;
            while !subscription.should_close() {
                subscription = subscription.notified().await;
            }
        }
        assert!(begun.elapsed() <= Duration::from_millis(52));
    }
}
