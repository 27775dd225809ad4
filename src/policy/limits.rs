//! Checks the limits against each other, and computes the two whose defaults depend on this process's memory.

use super::check::Check;
use super::memory;
use crate::config::{Limits, Time};

/// The limits on memory: as configured, or by default a share of the memory that this process may use.
#[derive(Clone, Copy, Debug)]
pub struct MemorySpec {
    /// The value of `limits.unauthenticated_bytes`, or its default.
    pub unauthenticated_bytes: usize,
    /// The value of `limits.held_message_bytes`, or its default.
    pub held_message_bytes: usize,
    /// The memory limit of this process's cgroup; `None` if it has none.
    pub cgroup_bytes: Option<usize>,
}

impl Check {
    /// Checks `limits`, and computes those whose defaults depend on the memory of this process.
    pub(super) fn limits(&mut self, limits: &Limits, longest_message: usize) -> MemorySpec {
        if limits.connections == 0 {
            self.error("limits.connections", "must be greater than zero, or nobody could connect");
        }
        if limits.connections_per_address == 0 {
            self.error("limits.connections_per_address", "must be greater than zero, or nobody could connect");
        }
        if limits.failed_tokens_per_minute == Some(0) {
            self.error("limits.failed_tokens_per_minute", "must be greater than zero; null: no limit");
        }
        for (key, value) in [("sign_outs", limits.sign_outs), ("sign_outs_per_user", limits.sign_outs_per_user)] {
            if value == 0 {
                self.error(format!("limits.{key}"), "must be greater than zero, or nobody could sign out");
            }
        }
        for (key, value) in [
            ("login_sessions", limits.login_sessions),
            ("login_attempts", limits.login_attempts),
            ("login_requests", limits.login_requests),
        ] {
            if value == 0 {
                self.error(format!("limits.{key}"), "must be greater than zero, or nobody could sign in");
            }
        }
        if !(256..=1 << 20).contains(&limits.token_bytes) {
            self.error("limits.token_bytes", "must be between 256 and 1MiB");
        }
        if !(1024..=1 << 20).contains(&limits.header_bytes) {
            self.error("limits.header_bytes", "must be between 1KiB and 1MiB");
        }
        if limits.token_bytes > limits.header_bytes {
            self.error("limits.token_bytes", "is more than limits.header_bytes, so no header could carry such a token");
        }
        for (key, value) in [
            ("header_timeout", limits.header_timeout),
            ("keep_alive_timeout", limits.keep_alive_timeout),
            ("body_idle_timeout", limits.body_idle_timeout),
            ("discard_body_timeout", limits.discard_body_timeout),
            ("send_timeout", limits.send_timeout),
        ] {
            self.not_zero(&format!("limits.{key}"), Some(Time(value)));
        }
        self.memory(limits, longest_message)
    }

    /// Computes the limits on memory, and compares them with the memory of this process.
    fn memory(&mut self, limits: &Limits, longest_message: usize) -> MemorySpec {
        let header_bytes = limits.header_bytes;
        let (cgroup_bytes, least) = (memory::cgroup_limit(), memory::least_bound(header_bytes));
        let default = memory::default_bound(cgroup_bytes, header_bytes);
        let unauthenticated_bytes = limits.unauthenticated_bytes.unwrap_or(default);
        if unauthenticated_bytes < least {
            self.error(
                "limits.unauthenticated_bytes",
                format!(
                    "must be at least {} KiB: eight times limits.header_bytes, and no less than 256 KiB",
                    least >> 10
                ),
            );
        }
        let default = memory::default_message_bound(cgroup_bytes, longest_message);
        let held_message_bytes = limits.held_message_bytes.unwrap_or(default);
        if held_message_bytes < longest_message {
            self.error(
                "limits.held_message_bytes",
                format!("must be at least websocket.message_bytes, which is {} KiB", longest_message >> 10),
            );
        }
        let sum = memory::max_before_authentication(unauthenticated_bytes);
        if let Some(memory) = memory::memory_limit(cgroup_bytes).filter(|memory| sum > *memory) {
            self.warn(format!(
                "this process may use {} MiB of memory, and clients that have not authenticated can make it hold {} MiB (limits.unauthenticated_bytes is {} MiB): raise the memory limit, or lower limits.unauthenticated_bytes",
                memory >> 20,
                sum >> 20,
                unauthenticated_bytes >> 20
            ));
        }
        MemorySpec { unauthenticated_bytes, held_message_bytes, cgroup_bytes }
    }
}
