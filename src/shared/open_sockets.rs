//! The number of open sockets of each user, here and at other instances. Each instance publishes the users near the
//! limit; a user whose sockets are spread evenly over many instances is published in time too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::auth::digest::Digest;

/// The maximum number of users that an instance publishes: those with the most sockets.
const USERS: usize = 1_000;

/// The open sockets of each user.
#[derive(Debug, Default)]
pub struct OpenSockets {
    here: Mutex<HashMap<Digest, u32>>,
    elsewhere: RwLock<HashMap<Digest, u32>>,
    /// The limit at the time when the last socket was opened.
    limit: AtomicU32,
}

impl OpenSockets {
    /// Counts a socket of a user, unless it has `limit` of them open.
    #[must_use]
    pub fn open(&self, user: Digest, limit: u32) -> bool {
        self.limit.store(limit, Ordering::Relaxed);
        let elsewhere = self.elsewhere.read().unwrap_or_else(PoisonError::into_inner).get(&user).copied();
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let known = here.get(&user).copied().unwrap_or_default();
        if known.saturating_add(elsewhere.unwrap_or_default()) >= limit {
            return false;
        }
        here.insert(user, known + 1);
        true
    }

    /// Subtracts a closed socket of a user.
    pub fn close(&self, user: Digest) {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = here.get_mut(&user) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                here.remove(&user);
            }
        }
    }

    /// Returns the number of open sockets of all users.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        here.values().map(|count| *count as usize).sum()
    }

    /// Returns the users with more than a share of the limit, those with the most sockets first.
    pub(super) fn near_limit(&self, instances: u32) -> Vec<(Digest, u32)> {
        let share = self.limit.load(Ordering::Relaxed) / instances.saturating_mul(2).max(1);
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let mut near: Vec<_> =
            here.iter().filter(|(_, count)| **count > share).map(|(u, count)| (*u, *count)).collect();
        drop(here);
        near.sort_unstable_by_key(|(user, count)| (std::cmp::Reverse(*count), *user));
        near.truncate(USERS);
        near
    }

    pub(super) fn set_elsewhere(&self, published: Vec<(Digest, u32)>) {
        let mut elsewhere = HashMap::with_capacity(published.len());
        for (user, count) in published {
            let sum: &mut u32 = elsewhere.entry(user).or_default();
            *sum = sum.saturating_add(count);
        }
        *self.elsewhere.write().unwrap_or_else(PoisonError::into_inner) = elsewhere;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_for_the_sockets_of_all_instances_together() {
        let sockets = OpenSockets::default();
        let (alice, bob) = (Digest([1; 16]), Digest([2; 16]));
        for _ in 0..3 {
            assert!(sockets.open(alice, 10));
        }
        assert!(sockets.open(bob, 10));
        assert_eq!(sockets.near_limit(2), [(alice, 3)], "above a quarter of the limit");
        sockets.set_elsewhere(vec![(alice, 3), (alice, 4)]);
        assert!(!sockets.open(alice, 10), "seven elsewhere and three here");
        assert!(sockets.open(bob, 10));
        sockets.close(alice);
        assert!(sockets.open(alice, 10));
        sockets.set_elsewhere(Vec::new());
        assert!(sockets.open(alice, 10), "the engine is away: the limit of this instance alone");
    }
}
