//! What became of a request or a socket, and who answered it: fields of the access line and labels of metrics.

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
    /// One of our own endpoints answered.
    Own,
    /// A socket whose client left before it was open.
    Left,
    /// A request whose client left before it was answered.
    ClientLeft,
    /// The upstream's answer, or its way to the client, broke off.
    BrokenOff,
    /// We ended an answer that had begun: `revoked` or `expired`.
    Cut(&'static str),
    /// A refusal, by the name of its outcome: `missing_token`.
    Refused(&'static str),
}

impl Outcome {
    /// The name in access lines and metrics.
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

    /// Whether a socket with this outcome was refused: it neither opened nor was left by its client.
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

/// Who answered a request: the `answered_by` of access lines and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnsweredBy {
    /// Nobody yet.
    #[default]
    Nobody,
    /// This program.
    Vestibule,
    /// The upstream.
    Upstream,
}

impl AnsweredBy {
    /// The name in access lines and metrics.
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
