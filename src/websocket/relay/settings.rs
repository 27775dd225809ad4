//! The settings of a relay.

use std::time::Duration;

/// A duration in whole milliseconds, at most 49 days. It needs a quarter of the memory of a [`Duration`], and every
/// socket holds several.
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
    /// The time without bytes from a peer after which it is pinged.
    pub(in crate::websocket) ping_interval: Millis,
    /// The time after a ping within which a peer must send something. After it the peer is dead.
    pub(in crate::websocket) ping_timeout: Millis,
    /// The time without data from either side after which the session ends.
    pub(in crate::websocket) idle_timeout: Option<Millis>,
    /// The time after which a peer that accepts no byte is dead.
    pub(in crate::websocket) send_timeout: Millis,
    /// The maximum length in bytes of a token that is read from a message.
    pub(in crate::websocket) token_bytes: usize,
    /// The maximum length in bytes of a message of a dialect that reads whole messages.
    pub(in crate::websocket) message_bytes: usize,
    /// The close code of a drain.
    pub(in crate::websocket) drain_code: u16,
}
