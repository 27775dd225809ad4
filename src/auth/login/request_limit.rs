//! Limits the concurrent requests to one provider, in total and per client, so that one client cannot take all permits
//! of a slow provider.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The divisor of the limit that gives the maximum of one client, which is at least one request.
const SHARE_OF_A_CLIENT: usize = 4;

/// The number of concurrent requests by the client's address.
type CountByClient = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// The value of `limits.login_requests`, applied to one provider.
#[derive(Debug)]
pub(super) struct RequestLimit {
    places: Arc<Semaphore>,
    of_a_client: usize,
    by_client: CountByClient,
}

/// A permit for one request, until it is dropped.
#[derive(Debug)]
pub(super) struct RequestPermit {
    _place: OwnedSemaphorePermit,
    client: Option<(IpAddr, CountByClient)>,
}

impl RequestLimit {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limit)),
            of_a_client: (limit / SHARE_OF_A_CLIENT).max(1),
            by_client: Arc::default(),
        }
    }

    /// Takes a permit, or returns `None` when there is none. `client` is the address of one client; without it only the
    /// total limit applies.
    pub(super) fn try_acquire(&self, client: Option<IpAddr>) -> Option<RequestPermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let client = match client {
            None => None,
            Some(address) => {
                let mut by_client = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
                let count = by_client.entry(address).or_default();
                if *count >= self.of_a_client {
                    return None;
                }
                *count += 1;
                Some((address, Arc::clone(&self.by_client)))
            }
        };
        Some(RequestPermit { _place: place, client })
    }

    /// Waits for a permit, at most for `wait`.
    pub(super) async fn acquire(&self, wait: Duration) -> Option<RequestPermit> {
        let place = tokio::time::timeout(wait, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok()?;
        Some(RequestPermit { _place: place, client: None })
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let Some((address, by_client)) = &self.client else { return };
        let mut by_client = by_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = by_client.entry(*address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_a_quarter_and_leaves_nothing_behind() {
        let limit = RequestLimit::new(8);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = (0..2).map(|_| limit.try_acquire(Some(a)).expect("a place")).collect();
        assert!(limit.try_acquire(Some(a)).is_none(), "its share is taken");
        let other = limit.try_acquire(Some(b)).expect("another client's");
        let unknown: Vec<_> = (0..5).map(|_| limit.try_acquire(None).expect("a place")).collect();
        assert!(limit.try_acquire(None).is_none(), "all are taken");
        drop((held, other, unknown));
        assert!(limit.by_client.lock().expect("lock").is_empty());
        assert!(limit.try_acquire(Some(a)).is_some());
        let one = RequestLimit::new(1);
        assert!(one.try_acquire(Some(a)).is_some(), "a small limit leaves one to each");
    }
}
