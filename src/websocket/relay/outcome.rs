//! How a socket ended, for its access line and the metrics.

/// Who closed a socket first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::websocket) enum ClosedBy {
    /// The client, by a Close or by leaving.
    Client,
    /// The upstream.
    Upstream,
    /// This program.
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

/// How a socket ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct SocketOutcome {
    /// The code of the first Close, if there was one.
    pub(in crate::websocket) code: Option<u16>,
    pub(in crate::websocket) closed_by: ClosedBy,
    /// Bytes received from the client.
    pub(in crate::websocket) bytes_in: u64,
    /// Bytes sent to the client.
    pub(in crate::websocket) bytes_out: u64,
    /// Accepted refreshes.
    pub(in crate::websocket) refreshes: u32,
}

impl SocketOutcome {
    /// Returns the outcome of a socket that was never open and that the proxy closed with this code.
    #[must_use]
    pub(in crate::websocket) const fn refused(code: u16) -> Self {
        Self { code: Some(code), closed_by: ClosedBy::Vestibule, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }

    /// Returns the outcome of a socket that was never open and that its client left.
    #[must_use]
    pub(in crate::websocket) const fn left(code: Option<u16>) -> Self {
        Self { code, closed_by: ClosedBy::Client, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }
}
