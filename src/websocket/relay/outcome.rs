//! What became of a session, for its access line and the counts.

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::websocket) enum ClosedBy {
    /// The client, by a Close or by leaving.
    Client,
    /// The upstream.
    Upstream,
    /// We.
    Vestibule,
}

impl ClosedBy {
    /// For the access line.
    pub(in crate::websocket) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Vestibule => "vestibule",
        }
    }
}

/// What became of a session; for the access line.
#[derive(Clone, Copy, Debug)]
pub(in crate::websocket) struct SocketOutcome {
    /// Code of the first Close, when there was one.
    pub code: Option<u16>,
    /// Who was first.
    pub closed_by: ClosedBy,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Accepted refreshes.
    pub refreshes: u32,
}

impl SocketOutcome {
    /// A socket that never came to anything: closed by us with this code.
    #[must_use]
    pub(in crate::websocket) const fn refused(code: u16) -> Self {
        Self { code: Some(code), closed_by: ClosedBy::Vestibule, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }

    /// A client that left before it was anyone.
    #[must_use]
    pub(in crate::websocket) const fn left(code: Option<u16>) -> Self {
        Self { code, closed_by: ClosedBy::Client, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }
}
