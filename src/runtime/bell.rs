//! Tells everything that is open that something has changed which may end it: one wake for a drain, a revocation
//! and a reload alike, so that an idle socket waits for one thing only.
//!
//! When everything is to close, sockets leave one after the other: thousands of clients that are told at once come
//! back at once, to a neighbour that has its own to serve.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Between two that leave, where there is time: a hundred a second.
const GAP: Duration = Duration::from_millis(10);

/// What has rung so far.
#[derive(Debug, Default)]
struct Rings {
    leaving: Option<Leaving>,
}

/// Who leaves when.
#[derive(Debug)]
struct Leaving {
    from: Instant,
    gap: Duration,
    window: Duration,
    turns: AtomicU32,
}

impl Leaving {
    fn next(&self) -> Instant {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        self.from + self.gap.saturating_mul(turn).min(self.window)
    }
}

/// Rung for everyone who listens.
#[derive(Clone, Debug)]
pub struct Bell(watch::Sender<Rings>);

/// Hears the bell.
#[derive(Debug)]
pub struct Ear {
    rings: watch::Receiver<Rings>,
    turn: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// It is no socket and leaves by itself.
    None,
    NotGiven,
    At(Instant),
    Come,
}

/// Waits for the next ring; gives the ear back.
pub type Listening = Pin<Box<dyn Future<Output = Ear> + Send + Sync>>;

impl Default for Bell {
    fn default() -> Self {
        Self(watch::Sender::new(Rings::default()))
    }
}

impl Bell {
    /// Everything is to close: a hundred a second, or as many more as it takes to be done within `window`.
    pub fn ring_closing(&self, window: Duration) {
        let listening = u32::try_from(self.0.receiver_count()).unwrap_or(u32::MAX).max(1);
        let gap = (window / listening).min(GAP);
        self.0.send_modify(|rings| {
            rings.leaving = Some(Leaving { from: Instant::now(), gap, window, turns: AtomicU32::new(0) });
        });
    }

    /// Someone was revoked, or the policy is another.
    pub fn ring(&self) {
        self.0.send_modify(|_| {});
    }

    /// Listens from now on. The first ring comes at once: whoever begins to listen looks once by itself, and so
    /// misses nothing.
    #[must_use]
    pub fn listen(&self) -> Listening {
        self.ear(Turn::None)
    }

    /// Listens as one of those that leave in turn.
    #[must_use]
    pub fn listen_in_turn(&self) -> Listening {
        self.ear(Turn::NotGiven)
    }

    fn ear(&self, turn: Turn) -> Listening {
        let mut rings = self.0.subscribe();
        rings.mark_changed();
        Ear { rings, turn }.listen()
    }
}

impl Ear {
    /// Whether everything is to close, and its turn has come.
    #[must_use]
    pub fn must_leave(&self) -> bool {
        self.turn == Turn::Come
    }

    /// Waits for the next ring, or for its turn.
    #[must_use]
    pub fn listen(mut self) -> Listening {
        Box::pin(async move {
            if let Turn::At(at) = self.turn {
                // On the heap: whoever is not leaving yet, which is nearly always everyone, has no room for it.
                let turn = Box::pin(sleep_until(at));
                tokio::select! {
                    () = turn => self.turn = Turn::Come,
                    rung = self.rings.changed() => heard(rung).await,
                }
            } else {
                heard(self.rings.changed().await).await;
            }
            if self.turn == Turn::NotGiven
                && let Some(leaving) = &self.rings.borrow().leaving
            {
                let at = leaving.next();
                self.turn = if at <= Instant::now() { Turn::Come } else { Turn::At(at) };
            }
            self
        })
    }
}

/// Where nobody is left to ring nothing is heard any more.
async fn heard(rung: Result<(), watch::error::RecvError>) {
    if rung.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of so many left, in milliseconds from the ring.
    async fn departures(count: usize, window: Duration) -> Vec<u128> {
        let bell = Bell::default();
        let mut leaving = tokio::task::JoinSet::new();
        let begun = Instant::now();
        for _ in 0..count {
            let mut listening = bell.listen_in_turn();
            leaving.spawn(async move {
                loop {
                    let ear = listening.await;
                    if ear.must_leave() {
                        return begun.elapsed().as_millis();
                    }
                    listening = ear.listen();
                }
            });
        }
        // Each has looked once and waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let rung = begun.elapsed().as_millis();
        bell.ring_closing(window);
        // In the midst of it someone is revoked, which hurries nobody.
        tokio::time::sleep(Duration::from_millis(1)).await;
        bell.ring();
        let mut all: Vec<u128> = leaving.join_all().await.into_iter().map(|at| at - rung).collect();
        all.sort_unstable();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_leave_in_a_second_where_there_is_time() {
        let all = departures(300, Duration::from_secs(10)).await;
        assert_eq!(all.len(), 300);
        for (index, at) in all.iter().enumerate() {
            // The clock of these tests goes in milliseconds.
            assert!(at.abs_diff(index as u128 * 10) <= 2, "{index} left after {at} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_leave_faster_so_as_to_be_done_in_time() {
        let all = departures(5_000, Duration::from_secs(10)).await;
        assert!(all.windows(10).all(|ten| ten[9] - ten[0] <= 20), "at an even pace");
        let last = *all.last().expect("some");
        assert!((9_900..=10_002).contains(&last), "the last left after {last} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn without_time_all_leave_at_once() {
        assert!(departures(100, Duration::ZERO).await.iter().all(|at| *at <= 2));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_while_others_leave_leaves_within_the_time() {
        let bell = Bell::default();
        bell.ring_closing(Duration::from_millis(50));
        let begun = Instant::now();
        for _ in 0..100 {
            let mut ear = bell.listen_in_turn().await;
            while !ear.must_leave() {
                ear = ear.listen().await;
            }
        }
        assert!(begun.elapsed() <= Duration::from_millis(52));
    }
}
