//! Adjusts `limits.connections` and the limit of file descriptors to each other. A process without a free descriptor
//! cannot even answer 503.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Limits;
use crate::policy::Policy;
use crate::workers;

/// The number of descriptors for listeners, the log, requests to providers, and connections that are being refused.
const RESERVED: u64 = 128;
/// The number of descriptors of each thread that serves connections, where there are several: its poller has two, its
/// waker and its signals one each.
const PER_THREAD: u64 = 4;
/// The number of descriptors of one connection: the client's and the upstream's.
const PER_CONNECTION: u64 = 2;

/// The limit of file descriptors allows fewer connections than `limits.connections`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    /// `limits.connections`.
    configured: u32,
    /// The connections that are accepted instead.
    accepted: u32,
    /// The limit of file descriptors.
    descriptors: u64,
    /// The file descriptors that `limits.connections` needs.
    needed: u64,
}

/// With at least this many connections, a default of `limits.connections` that was lowered is no reason to act.
const ENOUGH_CONNECTIONS: u32 = 1_000;

impl Shortage {
    /// Logs the shortage: a warning, or a line of level info if the operator did not ask for more connections and has enough.
    pub(super) fn log(self) {
        let Self { configured, accepted, descriptors, needed } = self;
        if configured == Limits::default().connections && accepted >= ENOUGH_CONNECTIONS {
            tracing::info!(
                configured,
                accepted,
                descriptors,
                needed,
                "limits.connections lowered to what the file descriptors allow"
            );
            return;
        }
        tracing::warn!(
            configured,
            accepted,
            descriptors,
            needed,
            "limits.connections needs more file descriptors than the system allows, further connections get 503; raise the hard limit (ulimits, LimitNOFILE, ulimit -Hn)"
        );
    }
}

/// Raises the soft limit of file descriptors to the number that `limits.connections` needs. If the hard limit is lower,
/// lowers `limits.connections` and returns the shortage, so that further connections get 503 instead of no answer.
pub(super) fn fit(policy: &mut Policy) -> Option<Shortage> {
    let wanted = descriptors_for(policy.limits.connections);
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let mut allowed = limit.current.unwrap_or(u64::MAX);
    if allowed < wanted {
        let raised = wanted.min(hard);
        match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
            Ok(()) => allowed = raised,
            Err(error) => tracing::warn!(%error, allowed, "raising the limit of file descriptors failed"),
        }
    }
    let (configured, accepted) = (policy.limits.connections, connections_for(allowed));
    if accepted >= configured {
        return None;
    }
    policy.limits.connections = accepted;
    Some(Shortage { configured, accepted, descriptors: allowed, needed: wanted })
}

/// Returns the number of descriptors that are not for connections.
fn reserved() -> u64 {
    match workers::count() {
        1 => RESERVED,
        threads => RESERVED + PER_THREAD * threads as u64,
    }
}

fn descriptors_for(connections: u32) -> u64 {
    u64::from(connections) * PER_CONNECTION + reserved()
}

fn connections_for(descriptors: u64) -> u32 {
    u32::try_from(descriptors.saturating_sub(reserved()) / PER_CONNECTION).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_exactly_as_many_as_there_are_descriptors_for() {
        for connections in [1, 2, 1_000, 10_000, 1_000_000] {
            assert_eq!(connections_for(descriptors_for(connections)), connections);
            assert_eq!(connections_for(descriptors_for(connections) - 1), (connections - 1).max(1));
        }
        assert_eq!(connections_for(0), 1);
        assert_eq!(connections_for(u64::MAX), u32::MAX);
    }
}
