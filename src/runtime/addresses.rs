//! What one address may do: how many connections it has, and how many of its tokens failed lately. An address is a
//! network: an IPv6 host has a whole /64.
//!
//! Where many clients share one address (a balancer that nobody named in `trusted_proxies`) these limits would lock
//! out everyone for one, so they do not apply there; who such a balancer is is noted here too.

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

/// Addresses whose failures are remembered; the longest quiet is forgotten first.
const REMEMBERED: usize = 10_000;
/// More balancers than this no one has.
const BALANCERS: usize = 256;

/// Every address that counts.
pub struct Addresses {
    connections: Mutex<HashMap<IpAddr, u32>>,
    failures: Cache<IpAddr, Arc<Failures>>,
    balancers: Mutex<HashSet<IpAddr>>,
}

struct Failures {
    limiter: DefaultDirectRateLimiter,
    per_minute: u32,
    over_until: Mutex<Option<Instant>>,
}

/// Clients of one network count as one.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self { connections: Mutex::default(), failures: Cache::new(REMEMBERED), balancers: Mutex::default() }
    }
}

impl Addresses {
    /// Counts a connection of an address, unless it has `limit` of them. Whoever is told `true` says
    /// [`Self::disconnect`] once.
    pub(super) fn connect(&self, address: IpAddr, limit: u32) -> bool {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(network(address)).or_insert(0);
        let room = *count < limit;
        *count += u32::from(room);
        room
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

    /// How much longer an address is over its limit of failed tokens.
    #[must_use]
    pub fn is_over(&self, address: IpAddr) -> Option<Duration> {
        let failures = self.failures.get(&network(address))?;
        let over_until = *failures.over_until.lock().unwrap_or_else(PoisonError::into_inner);
        over_until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Notes a failed token. `Some`: that was one too many, and for so long no further one is worth a question to
    /// anybody.
    #[must_use]
    pub fn failed(&self, address: IpAddr, per_minute: u32) -> Option<Duration> {
        let Some(quota) = NonZeroU32::new(per_minute).map(Quota::per_minute) else { return Some(MINUTE) };
        let network = network(address);
        let known = self.failures.get(&network).filter(|failures| failures.per_minute == per_minute);
        let failures = known.unwrap_or_else(|| {
            let limiter = RateLimiter::direct(quota);
            let failures = Arc::new(Failures { limiter, per_minute, over_until: Mutex::default() });
            self.failures.insert(network, Arc::clone(&failures));
            failures
        });
        let not_until = failures.limiter.check().err()?;
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        *failures.over_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + wait);
        Some(wait)
    }

    /// Notes that many clients stand behind this address; `true` the first time.
    #[must_use]
    pub fn is_a_new_balancer(&self, address: IpAddr) -> bool {
        let mut balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        balancers.len() < BALANCERS && balancers.insert(address)
    }

    pub(super) fn is_a_balancer(&self, address: IpAddr) -> bool {
        self.balancers.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_host_is_its_64() {
        let a: IpAddr = "2001:db8::1".parse().expect("address");
        let b: IpAddr = "2001:db8::ffff:1".parse().expect("address");
        let c: IpAddr = "2001:db8:0:1::1".parse().expect("address");
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
    }

    #[test]
    fn an_address_fails_so_often_and_another_has_its_own_count() {
        let addresses = Addresses::default();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for _ in 0..3 {
            assert_eq!(addresses.failed(one, 3), None);
        }
        assert_eq!(addresses.is_over(one), None);
        let wait = addresses.failed(one, 3).expect("one too many");
        assert!(wait <= Duration::from_secs(20), "{wait:?}");
        assert!(addresses.is_over(one).is_some());
        assert_eq!(addresses.is_over(other), None);
        assert_eq!(addresses.failed(other, 3), None);
        assert!(addresses.failed(other, 0).is_some(), "none at all");
    }

    #[test]
    fn connections_are_counted_and_given_back() {
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
