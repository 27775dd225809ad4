//! The outcome of a request or a socket, and the side that answered it: fields of the access line and labels of
//! metrics.

use std::fmt;

/// The `outcome` of an access line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is decided yet.
    #[default]
    Undecided,
    /// The user was verified and allowed, and the request went to the upstream.
    Accepted,
    /// The request went to the upstream without a user.
    Public,
    /// A CORS preflight.
    Preflight,
    /// One of the proxy's own endpoints answered.
    Own,
    /// A socket whose client disconnected before it was open.
    Left,
    /// A request whose client disconnected before it was answered.
    ClientLeft,
    /// The upstream's response was aborted, or its delivery to the client was.
    BrokenOff,
    /// The proxy ended a response that had begun: `revoked` or `expired`.
    Cut(&'static str),
    /// A refusal, by the name of its outcome: `missing_token`.
    Refused(&'static str),
}

impl Outcome {
    /// Returns the name in access lines and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undecided => "",
            Self::Accepted => "accepted",
            Self::Public => "public",
            Self::Preflight => "preflight",
            Self::Own => "own",
            Self::Left => "left",
            Self::ClientLeft => "client_left",
            Self::BrokenOff => "broken_off",
            Self::Cut(name) | Self::Refused(name) => name,
        }
    }

    /// Returns whether a socket with this outcome was refused: it never opened, and its client did not disconnect
    /// first.
    #[must_use]
    pub const fn is_refused_socket(self) -> bool {
        match self {
            Self::Accepted | Self::Public | Self::Left => false,
            Self::Undecided
            | Self::Preflight
            | Self::Own
            | Self::ClientLeft
            | Self::BrokenOff
            | Self::Cut(_)
            | Self::Refused(_) => true,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The side that answered a request: the `answered_by` of access lines and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnsweredBy {
    /// No side has answered yet.
    #[default]
    Nobody,
    /// The proxy.
    Vestibule,
    /// The upstream.
    Upstream,
}

impl AnsweredBy {
    /// Returns the name in access lines and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Vestibule => "vestibule",
            Self::Upstream => "upstream",
        }
    }
}

impl fmt::Display for AnsweredBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
