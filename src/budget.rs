//! A bound in bytes on what callers make us hold before they are known, all together.
//!
//! Owns the sum, and who gives way when it is exceeded: the caller that holds most, among equals the newest, unless a
//! request of its own is being answered. How much a caller holds is said by whoever holds it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A task, a socket, and what counts a connection: what one costs that has sent nothing.
pub const SILENT_BYTES: usize = 8 << 10;
/// The HTTP state of a connection, and the 8 KiB that hyper reads into first.
pub const SPEAKING_BYTES: usize = 12 << 10;
/// A socket that takes its Close.
pub const CLOSING_BYTES: usize = 2 << 10;
/// A request that is passed on for a caller who stays unknown: a connection to the upstream beside the client's, and what
/// is on its way between them.
pub const PUBLIC_BYTES: usize = 24 << 10;
/// What a TLS connection costs beside that: its state and its buffers.
pub const TLS_BYTES: usize = 8 << 10;

/// The bound, and everyone who counts toward it.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    bound: usize,
    /// Of everyone, also of those that give way and have not gone yet.
    held: usize,
    /// Of those that give way.
    leaving: usize,
    next: u64,
    /// By bytes, then by age: the last one gives way first.
    holders: BTreeMap<(usize, u64), Arc<Signal>>,
}

#[derive(Debug, Default)]
struct Signal {
    gives_way: AtomicBool,
    /// A request is being answered, so nobody gives way meanwhile.
    serving: AtomicBool,
    waker: AtomicWaker,
}

/// What one caller holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    number: u64,
    /// Changed under the budget's lock only.
    bytes: AtomicUsize,
    is_known: AtomicBool,
    signal: Arc<Signal>,
}

impl Budget {
    /// Sets the bound; whoever is above it gives way with the next caller.
    pub fn set_bound(&self, bytes: usize) {
        self.lock().bound = bytes;
    }

    /// How many bytes are held, and how many may be.
    #[must_use]
    pub fn used(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.held, inner.bound)
    }

    /// Counts a new caller. `None`: no other one holds more, so it gives way itself.
    #[must_use]
    pub fn enter(&self, bytes: usize) -> Option<Share> {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let share = Share {
            budget: self.clone(),
            number,
            bytes: AtomicUsize::new(bytes),
            is_known: AtomicBool::new(false),
            signal: Arc::default(),
        };
        inner.insert(bytes, number, &share.signal);
        // Those that give way need a moment; while they still hold half of the bound, nobody comes in.
        let fits = inner.make_room() && inner.leaving <= inner.bound / 2 && !share.gives_way();
        drop(inner);
        fits.then_some(share)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, bytes: usize, number: u64, signal: &Arc<Signal>) {
        self.held += bytes;
        self.holders.insert((bytes, number), Arc::clone(signal));
    }

    /// Tells as many to give way as hold too much. Whether the rest fits.
    fn make_room(&mut self) -> bool {
        while self.held - self.leaving > self.bound {
            let can = |signal: &Signal| !signal.serving.load(Ordering::Acquire);
            let Some((&key, _)) = self.holders.iter().rev().find(|(_, signal)| can(signal)) else { return false };
            if let Some(signal) = self.holders.remove(&key) {
                self.leaving += key.0;
                signal.gives_way.store(true, Ordering::Release);
                signal.waker.wake();
            }
        }
        true
    }

    /// Takes out a caller that may have been told to give way.
    fn remove(&mut self, bytes: usize, number: u64) {
        self.held -= bytes;
        if self.holders.remove(&(bytes, number)).is_none() {
            self.leaving -= bytes;
        }
    }
}

impl Share {
    /// Says how much is held now. `false`: there is no room for it, and nobody else gives way.
    pub fn hold(&self, bytes: usize) -> bool {
        if self.bytes.load(Ordering::Relaxed) == bytes || self.is_known.load(Ordering::Acquire) {
            return true;
        }
        let mut inner = self.budget.lock();
        if self.is_known.load(Ordering::Acquire) {
            return true;
        }
        inner.remove(self.bytes.swap(bytes, Ordering::Relaxed), self.number);
        if self.gives_way() {
            inner.held += bytes;
            inner.leaving += bytes;
            return false;
        }
        inner.insert(bytes, self.number, &self.signal);
        inner.make_room() && !self.gives_way()
    }

    /// How much it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Who the caller is has been verified: it counts no more.
    pub fn mark_verified(&self) {
        if self.is_known.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.budget.lock();
        if !self.is_known.swap(true, Ordering::AcqRel) {
            inner.remove(self.bytes.swap(0, Ordering::Relaxed), self.number);
        }
    }

    /// Whether its caller was verified.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Acquire)
    }

    /// Whether a request of this caller is being answered, so that it cannot give way.
    pub fn set_serving(&self, serving: bool) {
        self.signal.serving.store(serving, Ordering::Release);
    }

    /// Whether a request of this caller is being answered.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.signal.serving.load(Ordering::Acquire)
    }

    /// Whether it has been told to give way.
    #[must_use]
    pub fn gives_way(&self) -> bool {
        self.signal.gives_way.load(Ordering::Acquire)
    }

    /// Resolves when it is told to give way. One task waits at a time.
    pub fn poll_gives_way(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.waker.register(cx.waker());
        if self.gives_way() && !self.is_known() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// As [`Self::poll_gives_way`].
    pub async fn has_to_give_way(&self) {
        poll_fn(|cx| self.poll_gives_way(cx)).await;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !*self.is_known.get_mut() {
            self.budget.lock().remove(*self.bytes.get_mut(), self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bound: usize) -> Budget {
        let budget = Budget::default();
        budget.set_bound(bound);
        budget
    }

    #[test]
    fn whoever_holds_most_gives_way_and_among_equals_the_newest() {
        let budget = budget(100);
        let small = budget.enter(10).expect("room");
        let large = budget.enter(40).expect("room");
        let newer = budget.enter(40).expect("room");
        let newest = budget.enter(20).expect("the newer of the large ones gives way");
        assert!(newer.gives_way());
        assert!(!small.gives_way() && !large.gives_way() && !newest.gives_way());
    }

    #[test]
    fn a_newcomer_gives_way_where_nobody_holds_more() {
        let budget = budget(30);
        let _held: Vec<Share> = (0..3).map(|_| budget.enter(10).expect("room")).collect();
        assert!(budget.enter(10).is_none());
        assert_eq!(budget.used(), (30, 30));
    }

    #[test]
    fn whoever_grows_gives_way_when_it_holds_most() {
        let budget = budget(100);
        let first = budget.enter(10).expect("room");
        let second = budget.enter(30).expect("room");
        assert!(first.hold(60));
        assert!(!first.hold(80));
        assert!(first.gives_way() && !second.gives_way());
        drop(first);
        assert_eq!(budget.used(), (30, 100));
    }

    #[test]
    fn a_caller_that_is_being_answered_does_not_give_way() {
        let budget = budget(100);
        let served = budget.enter(90).expect("room");
        served.set_serving(true);
        assert!(budget.enter(20).is_none());
        assert!(!served.gives_way());
        served.set_serving(false);
        assert!(budget.enter(20).is_none(), "what gives way is still held, and is more than half of the bound");
        assert!(served.gives_way());
    }

    #[test]
    fn a_verified_caller_counts_no_more_whatever_it_holds() {
        let budget = budget(100);
        let known = budget.enter(90).expect("room");
        known.mark_verified();
        assert_eq!(budget.used(), (0, 100));
        assert!(known.hold(1_000));
        let _other = budget.enter(100).expect("room");
        assert!(!known.gives_way());
        drop(known);
        assert_eq!(budget.used(), (100, 100));
    }

    proptest::proptest! {
        /// Whatever callers do, the sum is what they hold, and what does not give way fits.
        #[test]
        fn the_sum_is_kept(steps in proptest::collection::vec((0usize..4, 0usize..8, 0usize..60), 0..200)) {
            let budget = budget(100);
            let mut shares: Vec<Share> = Vec::new();
            for (step, which, bytes) in steps {
                let index = which % shares.len().max(1);
                match (step, shares.get(index)) {
                    (1, Some(share)) => drop(share.hold(bytes)),
                    (2, Some(share)) => share.mark_verified(),
                    (3, Some(_)) => drop(shares.swap_remove(index)),
                    _ => shares.extend(budget.enter(bytes)),
                }
                let held: usize = shares.iter().map(Share::bytes).sum();
                let staying: usize = shares.iter().filter(|share| !share.gives_way()).map(Share::bytes).sum();
                proptest::prop_assert_eq!(budget.used().0, held);
                proptest::prop_assert!(staying <= 100);
            }
        }
    }
}
