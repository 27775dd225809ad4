//! The settings of a relay.

use crate::websocket::moment::Millis;

/// A limit in bytes, at most 4 GiB. It needs half of the memory of a `usize`.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct ByteLimit(pub(super) u32);

impl ByteLimit {
    pub(in crate::websocket) const fn get(self) -> usize {
        self.0 as usize
    }
}

impl From<usize> for ByteLimit {
    fn from(bytes: usize) -> Self {
        Self(u32::try_from(bytes).unwrap_or(u32::MAX))
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
    pub(in crate::websocket) token_bytes: ByteLimit,
    /// The maximum length in bytes of a message of a dialect that reads whole messages.
    pub(in crate::websocket) message_bytes: ByteLimit,
    /// The close code of a drain.
    pub(in crate::websocket) drain_code: u16,
}
