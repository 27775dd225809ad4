//! The outcome of a request or a socket, and the side that answered it: fields of the access line and labels of
//! metrics.

use std::fmt;

/// The outcomes of the verification of a token, in access lines and as labels of metrics: `accepted`, and the reasons to
/// reject one. docs/operation.md says what each value means.
pub const TOKEN_OUTCOMES: [&str; 22] = [
    "accepted",
    "malformed",
    "algorithm",
    "unknown_issuer",
    "unknown_key",
    "bad_signature",
    "expired",
    "not_yet_valid",
    "issued_in_the_future",
    "claim",
    "wrong_audience",
    "wrong_party",
    "wrong_kind",
    "required_claim",
    "missing_user",
    "unusable_user",
    "no_session",
    "revoked",
    "revocations_unknown",
    "remote_unavailable",
    "keys_unavailable",
    "session_unavailable",
];

/// Every other value of `outcome` in access lines.
const OTHER_OUTCOMES: [&str; 38] = [
    "public",
    "preflight",
    "own",
    "left",
    "client_left",
    "broken_off",
    "missing_token",
    "invalid_request",
    "token_in_url",
    "invalid_token",
    "auth_unavailable",
    "forbidden",
    "foreign_origin",
    "other_user",
    "bad_request",
    "not_found",
    "method_not_allowed",
    "host_not_served",
    "head_too_large",
    "target_too_long",
    "body_too_large",
    "request_timeout",
    "websocket_version",
    "busy",
    "upstream_failed",
    "upstream_timeout",
    "upstream_refused",
    "upstream_not_found",
    "upstream_busy",
    "timeout",
    "unexpected_message",
    "invalid_message",
    "too_large",
    "not_utf8",
    "protocol_error",
    "control_frames",
    "idle",
    "draining",
];

/// Returns every value of `outcome` in access lines.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    TOKEN_OUTCOMES.into_iter().chain(OTHER_OUTCOMES)
}

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
