//! The outcome of a socket, for its access line and the metrics.

/// The side that closed a socket first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::websocket) enum ClosedBy {
    /// The client, by a Close or by disconnecting.
    Client,
    /// The upstream.
    Upstream,
    /// The proxy.
    Vestibule,
}

impl ClosedBy {
    /// Returns the name in access lines and metrics.
    pub(in crate::websocket) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Vestibule => "vestibule",
        }
    }
}

/// The outcome of a socket.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct SocketOutcome {
    /// The code of the first Close, if there was one.
    pub(in crate::websocket) code: Option<u16>,
    pub(in crate::websocket) closed_by: ClosedBy,
    /// Bytes received from the client.
    pub(in crate::websocket) bytes_in: u64,
    /// Bytes sent to the client.
    pub(in crate::websocket) bytes_out: u64,
    /// The number of accepted refreshes.
    pub(in crate::websocket) refreshes: u32,
}

impl SocketOutcome {
    /// Returns the outcome of a socket that was never open and that the proxy closed with this code.
    #[must_use]
    pub(in crate::websocket) const fn refused(code: u16) -> Self {
        Self { code: Some(code), closed_by: ClosedBy::Vestibule, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }

    /// Returns the outcome of a socket that was never open and whose client disconnected.
    #[must_use]
    pub(in crate::websocket) const fn left(code: Option<u16>) -> Self {
        Self { code, closed_by: ClosedBy::Client, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }
}
