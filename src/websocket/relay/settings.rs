//! The settings of a relay.

use std::time::Duration;

/// A duration in whole milliseconds, at most 49 days. It takes a quarter of the memory of a [`Duration`], and there are
/// thousands of these.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct Millis(pub(super) u32);

impl Millis {
    pub(in crate::websocket) const fn get(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
    }
}

/// The timeouts and limits of a socket.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct RelaySettings {
    /// A peer is pinged when it has sent nothing for this long.
    pub(in crate::websocket) ping_interval: Millis,
    /// A peer is dead when it has sent nothing for this long after a ping.
    pub(in crate::websocket) ping_timeout: Millis,
    /// The session ends when neither side has sent data for this long.
    pub(in crate::websocket) idle_timeout: Option<Millis>,
    /// A peer is dead when it takes no byte for this long.
    pub(in crate::websocket) send_timeout: Millis,
    /// The largest token that is read from a message.
    pub(in crate::websocket) token_bytes: usize,
    /// The largest message of a dialect that reads whole messages.
    pub(in crate::websocket) message_bytes: usize,
    /// The close code when the process stops.
    pub(in crate::websocket) drain_code: u16,
}
