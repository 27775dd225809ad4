//! Limits per address: open connections, and failed tokens in the last minute. An IPv6 address counts by its /64,
//! because a single host has that many addresses.
//!
//! The limits do not apply to a load balancer that is not in `trusted_proxies`: its clients share one address, and one
//! of them could lock out all others. The addresses of such balancers are kept here too.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::http::network;

/// The maximum number of addresses whose failed tokens are counted. The least recently used one is dropped first.
const MAX_FAILING_ADDRESSES: usize = 10_000;
/// The maximum number of load balancers that are kept.
const MAX_BALANCERS: usize = 256;

/// The counts of all addresses.
pub struct Addresses {
    connections: Mutex<HashMap<IpAddr, u32>>,
    failures: Cache<IpAddr, Arc<Failures>>,
    balancers: Mutex<HashSet<IpAddr>>,
}

struct Failures {
    limiter: DefaultDirectRateLimiter,
    per_minute: u32,
    limited_until: Mutex<Option<Instant>>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { connections: Mutex::default(), failures: Cache::new(MAX_FAILING_ADDRESSES), balancers: Mutex::default() }
    }
}

impl Addresses {
    /// Counts a connection of an address, unless `limit` of them are open. After `true` the caller must call
    /// [`Self::disconnect`] once.
    pub(super) fn connect(&self, address: IpAddr, limit: u32) -> bool {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(network(address)).or_insert(0);
        let is_allowed = *count < limit;
        *count += u32::from(is_allowed);
        is_allowed
    }

    pub(super) fn disconnect(&self, address: IpAddr) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = connections.entry(network(address)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Returns the remaining time for which an address is over its limit of failed tokens.
    #[must_use]
    pub fn failure_limit_wait(&self, address: IpAddr) -> Option<Duration> {
        let failures = self.failures.get(&network(address))?;
        let limited_until = *failures.limited_until.lock().unwrap_or_else(PoisonError::into_inner);
        limited_until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Counts a failed token. Returns `Some` when the address is over its limit: for this time, its unknown tokens
    /// cause no key fetch and no remote check.
    #[must_use]
    pub fn record_failure(&self, address: IpAddr, per_minute: u32) -> Option<Duration> {
        let Some(quota) = NonZeroU32::new(per_minute).map(Quota::per_minute) else { return Some(MINUTE) };
        let network = network(address);
        let known = self.failures.get(&network).filter(|failures| failures.per_minute == per_minute);
        let failures = known.unwrap_or_else(|| {
            let limiter = RateLimiter::direct(quota);
            let failures = Arc::new(Failures { limiter, per_minute, limited_until: Mutex::default() });
            self.failures.insert(network, Arc::clone(&failures));
            failures
        });
        let not_until = failures.limiter.check().err()?;
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        *failures.limited_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + wait);
        Some(wait)
    }

    /// Records that many clients share this address. Returns whether it was not recorded before.
    #[must_use]
    pub fn record_balancer(&self, address: IpAddr) -> bool {
        let mut balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        balancers.len() < MAX_BALANCERS && balancers.insert(address)
    }

    pub(super) fn is_balancer(&self, address: IpAddr) -> bool {
        self.balancers.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_tokens_are_limited_per_address() {
        let addresses = Addresses::default();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..3 {
            assert_eq!(addresses.record_failure(one, 3), None);
        }
        assert_eq!(addresses.failure_limit_wait(one), None);
        let wait = addresses.record_failure(one, 3).expect("one too many");
        assert!(wait <= Duration::from_secs(20), "{wait:?}");
        assert!(addresses.failure_limit_wait(one).is_some());
        assert_eq!(addresses.failure_limit_wait(other), None);
        assert_eq!(addresses.record_failure(other, 3), None);
        assert!(addresses.record_failure(other, 0).is_some(), "none at all");
    }

    #[test]
    fn connections_are_counted_until_disconnected() {
        let addresses = Addresses::default();
        let one = IpAddr::from([192, 0, 2, 1]);
        assert!(addresses.connect(one, 2) && addresses.connect(one, 2) && !addresses.connect(one, 2));
        addresses.disconnect(one);
        assert!(addresses.connect(one, 2));
        addresses.disconnect(one);
        addresses.disconnect(one);
        assert!(addresses.connections.lock().expect("lock").is_empty());
    }
}
