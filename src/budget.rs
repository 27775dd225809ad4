//! A limit in bytes on the memory that all unauthenticated callers together make this process hold.
//!
//! This module owns the sum, and decides which caller is evicted when it exceeds the limit: the one that holds most,
//! among equals the newest, unless one of its requests is being answered. Each reservation's owner reports its size.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// The cost of a connection that has sent nothing: a task, a socket, and its counters.
pub const SILENT_CONNECTION_BYTES: usize = 8 << 10;
/// The cost of a connection with HTTP state, including the 8 KiB that hyper reads into first.
pub const HTTP_CONNECTION_BYTES: usize = 12 << 10;
/// The cost of a WebSocket whose client has not received its Close yet.
pub const CLOSING_SOCKET_BYTES: usize = 2 << 10;
/// The cost of an unauthenticated request that is forwarded: the client's connection, one to the upstream, and the
/// buffers between them.
pub const PUBLIC_REQUEST_BYTES: usize = 24 << 10;
/// The additional cost of TLS on a connection: its state and its buffers.
pub const TLS_STATE_BYTES: usize = 8 << 10;

/// The maximum number of callers that are looked at, the largest first, to find one that may be evicted. No more fit the
/// default limit. With 100,000 of them, all being answered, each new caller looked at all for 3 ms, under the lock.
const MAX_LOOKED_AT: usize = 5_000;

/// A limit and the reservations that count toward it; clones share both.
#[derive(Clone, Debug, Default)]
pub struct MemoryBudget {
    reservations: Arc<Mutex<Reservations>>,
}

#[derive(Debug, Default)]
struct Reservations {
    limit: usize,
    /// The bytes of all reservations, including evicted ones that are not dropped yet.
    reserved: usize,
    /// Bytes of evicted reservations that are not dropped yet.
    evicted: usize,
    next_id: u64,
    /// The reservations that are not evicted, by size and then by age: the last one is evicted first.
    active: BTreeMap<(usize, u64), Arc<EvictionSignal>>,
}

#[derive(Debug, Default)]
struct EvictionSignal {
    is_evicted: AtomicBool,
    /// Whether a request of the caller is being answered, which protects the caller from eviction.
    is_request_in_progress: AtomicBool,
    waker: AtomicWaker,
}

/// The memory that one caller holds; returned to the budget when dropped.
#[derive(Debug)]
pub struct MemoryReservation {
    budget: MemoryBudget,
    id: u64,
    /// Changed under the budget's lock only.
    bytes: AtomicUsize,
    is_verified: AtomicBool,
    signal: Arc<EvictionSignal>,
}

impl MemoryBudget {
    /// Sets the limit. A lower one evicts no caller before the next reservation, or the next change of one.
    pub fn set_limit(&self, bytes: usize) {
        self.lock().limit = bytes;
    }

    /// Returns the limit in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// Returns the reserved bytes.
    #[cfg(test)]
    pub fn reserved(&self) -> usize {
        self.lock().reserved
    }

    /// Returns the reserved bytes, and the limit.
    #[cfg(test)]
    fn usage(&self) -> (usize, usize) {
        let state = self.lock();
        (state.reserved, state.limit)
    }

    /// Reserves memory for a new caller. Returns `None` when there is no room: no other caller holds more.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> Option<MemoryReservation> {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        let reservation = MemoryReservation {
            budget: self.clone(),
            id,
            bytes: AtomicUsize::new(bytes),
            is_verified: AtomicBool::new(false),
            signal: Arc::default(),
        };
        state.insert(bytes, id, &reservation.signal);
        // Evicted callers take time to release their memory. While they still hold more than half of the limit, new
        // ones are rejected: otherwise the process could hold far more than the limit.
        let fits = state.make_room() && state.evicted <= state.limit / 2 && !reservation.is_evicted();
        drop(state);
        fits.then_some(reservation)
    }

    fn lock(&self) -> MutexGuard<'_, Reservations> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservations {
    fn insert(&mut self, bytes: usize, id: u64, signal: &Arc<EvictionSignal>) {
        self.reserved += bytes;
        self.active.insert((bytes, id), Arc::clone(signal));
    }

    /// Evicts callers until the rest fits. Returns `false` when all that are left, or the [`MAX_LOOKED_AT`] that hold most,
    /// are protected from eviction.
    fn make_room(&mut self) -> bool {
        while self.reserved - self.evicted > self.limit {
            let is_evictable = |signal: &EvictionSignal| !signal.is_request_in_progress.load(Ordering::Acquire);
            let mut largest = self.active.iter().rev().take(MAX_LOOKED_AT);
            let Some((&key, _)) = largest.find(|(_, signal)| is_evictable(signal)) else { return false };
            if let Some(signal) = self.active.remove(&key) {
                self.evicted += key.0;
                signal.is_evicted.store(true, Ordering::Release);
                signal.waker.wake();
            }
        }
        true
    }

    /// Removes a reservation, whether it was evicted or not.
    fn remove(&mut self, bytes: usize, id: u64) {
        self.reserved -= bytes;
        if self.active.remove(&(bytes, id)).is_none() {
            self.evicted -= bytes;
        }
    }
}

impl MemoryReservation {
    /// Sets the size. Returns `false` when this caller is evicted, or when there is no room and no caller can be
    /// evicted.
    pub fn resize(&self, bytes: usize) -> bool {
        if self.bytes.load(Ordering::Relaxed) == bytes || self.is_verified.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.budget.lock();
        if self.is_verified.load(Ordering::Acquire) {
            return true;
        }
        state.remove(self.bytes.swap(bytes, Ordering::Relaxed), self.id);
        if self.is_evicted() {
            state.reserved += bytes;
            state.evicted += bytes;
            return false;
        }
        state.insert(bytes, self.id, &self.signal);
        state.make_room() && !self.is_evicted()
    }

    /// Returns the size of the reservation.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Stops counting the caller, because its user was verified.
    pub fn mark_verified(&self) {
        if self.is_verified.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.budget.lock();
        if !self.is_verified.swap(true, Ordering::AcqRel) {
            state.remove(self.bytes.swap(0, Ordering::Relaxed), self.id);
        }
    }

    /// Returns whether the caller's user was verified.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.is_verified.load(Ordering::Acquire)
    }

    /// Sets whether a request of this caller is being answered, which protects the caller from eviction.
    pub fn set_request_in_progress(&self, is_request_in_progress: bool) {
        self.signal.is_request_in_progress.store(is_request_in_progress, Ordering::Release);
    }

    /// Returns whether a request of this caller is being answered.
    #[must_use]
    pub fn is_request_in_progress(&self) -> bool {
        self.signal.is_request_in_progress.load(Ordering::Acquire)
    }

    /// Returns whether the caller was evicted and must release its memory.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.signal.is_evicted.load(Ordering::Acquire)
    }

    /// Polls for the eviction of the caller; only the last task that polled is woken.
    pub fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.signal.waker.register(cx.waker());
        if self.is_evicted() && !self.is_verified() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Resolves when the caller is evicted. One task waits at a time.
    pub async fn evicted(&self) {
        poll_fn(|cx| self.poll_evicted(cx)).await;
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        if !*self.is_verified.get_mut() {
            self.budget.lock().remove(*self.bytes.get_mut(), self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: usize) -> MemoryBudget {
        let budget = MemoryBudget::default();
        budget.set_limit(limit);
        budget
    }

    #[test]
    fn the_caller_that_holds_most_is_evicted_and_among_equals_the_newest() {
        let budget = budget(100);
        let small = budget.reserve(10).expect("room");
        let large = budget.reserve(40).expect("room");
        let newer = budget.reserve(40).expect("room");
        let newest = budget.reserve(20).expect("the newer of the large ones is evicted");
        assert!(newer.is_evicted());
        assert!(!small.is_evicted() && !large.is_evicted() && !newest.is_evicted());
    }

    #[test]
    fn a_new_caller_is_rejected_when_nobody_holds_more() {
        let budget = budget(30);
        let _held: Vec<MemoryReservation> = (0..3).map(|_| budget.reserve(10).expect("room")).collect();
        assert!(budget.reserve(10).is_none());
        assert_eq!(budget.usage(), (30, 30));
    }

    #[test]
    fn a_growing_caller_is_evicted_when_it_holds_most() {
        let budget = budget(100);
        let first = budget.reserve(10).expect("room");
        let second = budget.reserve(30).expect("room");
        assert!(first.resize(60));
        assert!(!first.resize(80));
        assert!(first.is_evicted() && !second.is_evicted());
        drop(first);
        assert_eq!(budget.usage(), (30, 100));
    }

    #[test]
    fn a_caller_that_is_being_answered_is_not_evicted() {
        let budget = budget(100);
        let served = budget.reserve(90).expect("room");
        served.set_request_in_progress(true);
        assert!(budget.reserve(20).is_none());
        assert!(!served.is_evicted());
        served.set_request_in_progress(false);
        assert!(budget.reserve(20).is_none(), "the evicted memory is still held, and is more than half of the limit");
        assert!(served.is_evicted());
    }

    #[test]
    fn a_limited_number_of_callers_that_are_being_answered_is_looked_at() {
        let budget = budget(10 * MAX_LOOKED_AT + 5);
        let idle = budget.reserve(5).expect("room");
        let served: Vec<MemoryReservation> = (0..MAX_LOOKED_AT).map(|_| budget.reserve(10).expect("room")).collect();
        for reservation in &served {
            reservation.set_request_in_progress(true);
        }
        assert!(budget.reserve(1).is_none() && !idle.is_evicted());
        served[7].set_request_in_progress(false);
        assert!(budget.reserve(1).is_some() && served[7].is_evicted());
    }

    #[test]
    fn a_verified_caller_is_not_counted_whatever_it_holds() {
        let budget = budget(100);
        let known = budget.reserve(90).expect("room");
        known.mark_verified();
        assert_eq!(budget.usage(), (0, 100));
        assert!(known.resize(1_000));
        let _other = budget.reserve(100).expect("room");
        assert!(!known.is_evicted());
        drop(known);
        assert_eq!(budget.usage(), (100, 100));
    }

    proptest::proptest! {
        /// Checks that after any sequence of calls the sum is what callers hold, and that callers that are not evicted
        /// fit.
        #[test]
        fn the_sum_is_kept(steps in proptest::collection::vec((0usize..4, 0usize..8, 0usize..60), 0..200)) {
            let budget = budget(100);
            let mut reservations: Vec<MemoryReservation> = Vec::new();
            for (step, which, bytes) in steps {
                let index = which % reservations.len().max(1);
                match (step, reservations.get(index)) {
                    (1, Some(reservation)) => drop(reservation.resize(bytes)),
                    (2, Some(reservation)) => reservation.mark_verified(),
                    (3, Some(_)) => drop(reservations.swap_remove(index)),
                    _ => reservations.extend(budget.reserve(bytes)),
                }
                let held: usize = reservations.iter().map(MemoryReservation::bytes).sum();
                let staying: usize = reservations.iter().filter(|one| !one.is_evicted()).map(MemoryReservation::bytes).sum();
                proptest::prop_assert_eq!(budget.usage().0, held);
                proptest::prop_assert!(staying <= 100);
            }
        }
    }
}
