//! The error of a request to an upstream.

use std::io;
use std::time::Duration;

/// The reason why there is no usable response of an upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The connection failed.
    #[error("connecting to {upstream}: {source}")]
    Connect {
        /// The upstream's address.
        upstream: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The connection was not established within `connect_timeout`.
    #[error("connecting to {upstream}: no answer within connect_timeout")]
    ConnectTimeout {
        /// The upstream's address.
        upstream: String,
    },
    /// The head of the response did not arrive within `response_timeout`.
    #[error("no response head within {limit:?}")]
    ResponseTimeout {
        /// The limit that was reached.
        limit: Duration,
    },
    /// The upstream reset or closed the connection, or its response is not valid HTTP.
    #[error("{0}")]
    Failed(String),
    /// The client stopped sending its body.
    #[error("the request body stalled")]
    BodyStalled,
    /// The client's body exceeded `limits.body_bytes`.
    #[error("the request body is too large")]
    BodyTooLarge,
    /// The client aborted its body.
    #[error("the client aborted the request body")]
    BodyBroken,
}

impl UpstreamError {
    /// Returns the `reason` label of metrics; `None` if the client caused the error.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        Some(match self {
            Self::Connect { .. } => "connect",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::ResponseTimeout { .. } => "response_timeout",
            Self::Failed(_) => "broken",
            Self::BodyStalled | Self::BodyTooLarge | Self::BodyBroken => return None,
        })
    }
}
