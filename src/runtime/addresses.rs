//! Limits per address: open connections, and failed tokens in the last minute. An IPv6 address counts by its /64,
//! because a single host has that many addresses.
//!
//! The limits do not apply to a load balancer that is not in `trusted_proxies`: its clients share one address, and one
//! of them could lock out all others. The addresses of such balancers are kept here too.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::http::network;

/// The maximum number of addresses whose failed tokens are counted. The least recently used one is dropped first.
const MAX_FAILING_ADDRESSES: usize = 10_000;
/// The maximum number of load balancers that are kept.
const MAX_BALANCERS: usize = 256;

/// The counts of all addresses.
pub struct Addresses {
    connections: Mutex<HashMap<Network, u32>>,
    failures: Cache<Network, Arc<Mutex<FailureTimes>>>,
    balancers: Mutex<HashSet<IpAddr>>,
}

/// The unit in which an address counts: itself, or the /64 of an IPv6 address. It takes half of the memory of an address; each open
/// connection and each open socket keeps one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The first half of an IPv6 address.
    V6([u8; 8]),
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match network(address) {
            IpAddr::V4(address) => Self::V4(address.octets()),
            // The other half is zero.
            IpAddr::V6(address) => Self::V6(address.octets().first_chunk().copied().unwrap_or_default()),
        }
    }
}

impl From<Network> for IpAddr {
    fn from(network: Network) -> Self {
        match network {
            Network::V4(address) => Self::from(address),
            Network::V6(half) => {
                let mut address = [0; 16];
                address[..half.len()].copy_from_slice(&half);
                Self::from(address)
            }
        }
    }
}

/// The failed tokens of one address, by the generic cell rate algorithm: each failure takes the time that the limit
/// allows for one, and at most a minute may be taken in advance. It needs two times for an address, however many its
/// failures are. They hold under another limit too: a reload may change it, and so does each instance that comes or goes
/// where it is shared.
struct FailureTimes {
    /// The time at which all failures so far no longer count.
    paid_off_at: Instant,
    limited_until: Option<Instant>,
}

impl FailureTimes {
    /// Counts a failure. Returns `Some` when it is over the limit: the time until one more is allowed.
    fn record(&mut self, now: Instant, per_minute: u32) -> Option<Duration> {
        let Some(each) = MINUTE.checked_div(per_minute) else { return Some(MINUTE) };
        let paid_off_at = self.paid_off_at.max(now) + each;
        // Divided times are rounded down, so that `per_minute` of them fit into a minute.
        let wait = paid_off_at.checked_duration_since(now + MINUTE).filter(|wait| !wait.is_zero());
        match wait {
            Some(wait) => self.limited_until = Some(now + wait),
            None => self.paid_off_at = paid_off_at,
        }
        wait
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self { connections: Mutex::default(), failures: Cache::new(MAX_FAILING_ADDRESSES), balancers: Mutex::default() }
    }
}

impl Addresses {
    /// Counts a connection of an address, unless `limit` of them are open. After `true` the caller must call
    /// [`Self::disconnect`] once.
    pub(super) fn connect(&self, from: Network, limit: u32) -> bool {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(from).or_insert(0);
        let is_allowed = *count < limit;
        *count += u32::from(is_allowed);
        is_allowed
    }

    pub(super) fn disconnect(&self, from: Network) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = connections.entry(from) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Returns the remaining time for which an address is over its limit of failed tokens.
    #[must_use]
    pub fn failure_limit_wait(&self, address: IpAddr) -> Option<Duration> {
        let failures = self.failures.get(&Network::from(address))?;
        let limited_until = failures.lock().unwrap_or_else(PoisonError::into_inner).limited_until;
        limited_until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Counts a failed token. Returns `Some` when the address is over its limit: for this time, its unknown tokens
    /// cause no key fetch and no remote check.
    #[must_use]
    pub fn record_failure(&self, address: IpAddr, per_minute: u32) -> Option<Duration> {
        let new = || Arc::new(Mutex::new(FailureTimes { paid_off_at: Instant::now(), limited_until: None }));
        // Of two first failures at once, both are counted on the same entry.
        let network = Network::from(address);
        let Ok(failures) = self.failures.get_or_insert_with(&network, || Ok::<_, Infallible>(new()));
        let mut times = failures.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that it is never before the time of the failure before.
        let now = Instant::now();
        times.record(now, per_minute)
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
    fn the_limit_of_failed_tokens_recovers_evenly() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut times = FailureTimes { paid_off_at: start, limited_until: None };
        let per_minute = 7;
        assert!((0..per_minute).all(|_| times.record(start, per_minute).is_none()), "a minute's failures at once");
        let wait = times.record(start, per_minute).expect("one too many");
        assert!(wait > Duration::from_secs(8) && wait < Duration::from_secs(9), "{wait:?}");
        assert_eq!(times.record(start, per_minute), Some(wait), "a failure over the limit costs nothing");
        assert!(times.record(at(8), per_minute).is_some());
        assert_eq!(times.record(at(9), per_minute), None);
        assert!(times.record(at(9), per_minute).is_some());
        assert!((0..per_minute).all(|_| times.record(at(200), per_minute).is_none()), "all of them again");
        assert!(times.record(at(200), per_minute).is_some(), "an idle time does not add up");
        assert_eq!(times.record(at(400), 0), Some(MINUTE));
        assert_eq!(times.record(at(400), u32::MAX), None);
    }

    #[test]
    fn failed_tokens_stay_counted_when_the_limit_changes() {
        let addresses = Addresses::default();
        let one = IpAddr::from([192, 0, 2, 1]);
        let failures = |count, limit| (0..count).filter(|_| addresses.record_failure(one, limit).is_none()).count();
        assert_eq!(failures(30, 60), 30, "half of a minute's failures");
        assert_eq!(failures(30, 20), 10, "the other half, by the share of one of three instances");
        assert!(addresses.failure_limit_wait(one).is_some());
        assert_eq!(failures(1, 60), 0);
        assert!(addresses.failure_limit_wait(one).is_some(), "still over it");
    }

    #[test]
    fn first_failures_at_once_are_all_counted() {
        for _ in 0..200 {
            let addresses = Addresses::default();
            let one = IpAddr::from([192, 0, 2, 1]);
            let barrier = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        barrier.wait();
                        assert_eq!(addresses.record_failure(one, 4), None);
                    });
                }
            });
            assert!(addresses.record_failure(one, 4).is_some(), "a failure was not counted");
        }
    }

    #[test]
    fn connections_are_counted_until_disconnected() {
        let addresses = Addresses::default();
        let one = Network::from(IpAddr::from([192, 0, 2, 1]));
        assert!(addresses.connect(one, 2) && addresses.connect(one, 2) && !addresses.connect(one, 2));
        addresses.disconnect(one);
        assert!(addresses.connect(one, 2));
        addresses.disconnect(one);
        addresses.disconnect(one);
        assert!(addresses.connections.lock().expect("lock").is_empty());
    }

    #[test]
    fn an_ipv6_address_counts_as_its_64_and_every_other_one_as_itself() {
        let network = |address: &str| Network::from(address.parse::<IpAddr>().expect("an address"));
        for (one, other, is_same) in [
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "192.0.2.1", true),
        ] {
            assert_eq!(network(one) == network(other), is_same, "{one} {other}");
            assert_eq!(Network::from(IpAddr::from(network(one))), network(one), "{one}");
        }
    }
}
