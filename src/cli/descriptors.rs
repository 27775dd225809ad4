//! File descriptors: as many as the connections we take need, and no more connections than there are descriptors
//! for. A process without a descriptor left cannot even say that it is busy.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::policy::Policy;

/// Listeners, the log, key fetches, connections on their way out with a refusal.
const OURS: u64 = 128;
/// A client's and the upstream's.
const EACH: u64 = 2;

/// Raises the soft limit as far as `limits.connections` asks and the system allows, and where that is not far enough
/// takes fewer connections, so that the rest get their 503 instead of silence.
pub(super) fn fit(policy: &mut Policy) {
    let wanted = needed(policy.limits.connections);
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
    let room = room(allowed);
    if room < policy.limits.connections {
        policy.warnings.push(format!(
            "limits.connections is {}, and the system allows {allowed} file descriptors, two for each: {room} connections are taken, the rest get 503; raise the hard limit (ulimits, LimitNOFILE, ulimit -Hn) to {wanted}",
            policy.limits.connections
        ));
        policy.limits.connections = room;
    }
}

fn needed(connections: u32) -> u64 {
    u64::from(connections) * EACH + OURS
}

fn room(descriptors: u64) -> u32 {
    u32::try_from(descriptors.saturating_sub(OURS) / EACH).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_exactly_as_many_as_there_are_descriptors_for() {
        for connections in [1, 2, 1_000, 10_000, 1_000_000] {
            assert_eq!(room(needed(connections)), connections);
            assert_eq!(room(needed(connections) - 1), (connections - 1).max(1));
        }
        assert_eq!(room(0), 1);
        assert_eq!(room(u64::MAX), u32::MAX);
    }
}
