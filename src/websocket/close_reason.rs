//! The reasons for which the proxy closes a socket: the rows of the table in docs/contract.md section 4.2, with error
//! message, close code and reason text.

use super::template::{Copies, Values, render};
use crate::auth::Rejection;
use crate::auth::token::Problem;
use crate::authenticate::{Failure, Unverified};
use crate::policy::{Close, DialectSpec};
use crate::telemetry::current_request_id;

/// The reason why the proxy closes a socket: a row of the table in section 4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    Timeout,
    InvalidMessage,
    TooLarge,
    NotUtf8,
    Protocol,
    ControlFrames,
    Unexpected,
    MissingToken,
    ExpiredOnArrival,
    InvalidToken,
    TokenInUrl,
    Denied,
    TooManyRefreshes,
    IdentityChanged,
    Revoked,
    Expired,
    Lifetime,
    Idle,
    AuthUnavailable,
    TooManyConnections,
    UpstreamRefused,
    UpstreamNotFound,
    UpstreamFailed,
    UpstreamBusy,
    UpstreamLost,
    Drain(u16),
}

impl CloseReason {
    /// Returns the error message before the Close; `None` where there is none.
    #[must_use]
    pub(super) const fn message(self) -> Option<&'static str> {
        Some(match self {
            Self::Timeout => "Authentication timeout",
            Self::InvalidMessage => "Invalid message format",
            Self::Unexpected => "Expected authentication message",
            Self::MissingToken => "Missing authentication token",
            Self::ExpiredOnArrival => "Token has expired",
            Self::InvalidToken => "Invalid authentication token",
            Self::TokenInUrl => {
                r#"Tokens in the URL are no longer accepted. Send {"type":"authenticate","token":"…"} as the first message."#
            }
            Self::Denied | Self::UpstreamRefused => "Access denied",
            Self::TooManyRefreshes => "Too many refreshes",
            Self::Revoked => "Session ended",
            Self::Expired => "Token expired",
            Self::Lifetime => "Session expired",
            Self::AuthUnavailable => "Authentication service unavailable",
            Self::TooManyConnections => "Too many connections",
            Self::UpstreamNotFound => "Not found",
            Self::UpstreamFailed | Self::UpstreamBusy => "Upstream unavailable",
            Self::TooLarge
            | Self::NotUtf8
            | Self::Protocol
            | Self::ControlFrames
            | Self::Idle
            | Self::IdentityChanged
            | Self::UpstreamLost
            | Self::Drain(_) => return None,
        })
    }

    /// Returns the reason text of the Close frame.
    #[must_use]
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Timeout => "Authentication timeout",
            Self::InvalidMessage => "Invalid message format",
            Self::TooLarge => "Message too large",
            Self::NotUtf8 => "Invalid UTF-8",
            Self::Protocol => "Protocol error",
            Self::ControlFrames => "Too many control frames",
            Self::Unexpected => "Expected authentication message",
            Self::MissingToken => "Missing token",
            Self::ExpiredOnArrival | Self::Expired => "Token expired",
            Self::Lifetime => "Session expired",
            Self::Idle => "Idle timeout",
            Self::InvalidToken => "Invalid token",
            Self::TokenInUrl => "Token in URL",
            Self::Denied | Self::UpstreamRefused => "Access denied",
            Self::TooManyRefreshes => "Too many refreshes",
            Self::IdentityChanged => "Identity changed",
            Self::Revoked => "Session ended",
            Self::AuthUnavailable | Self::TooManyConnections | Self::UpstreamBusy => "Try again later",
            Self::UpstreamNotFound => "Not found",
            Self::UpstreamFailed => "Upstream unavailable",
            Self::UpstreamLost => "Upstream connection lost",
            Self::Drain(_) => "Service restart",
        }
    }

    /// Returns the `outcome` of a socket that was refused for this reason, for its access line and the metrics.
    #[must_use]
    pub(super) const fn outcome(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::InvalidMessage => "invalid_message",
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::Protocol => "protocol_error",
            Self::ControlFrames => "control_frames",
            Self::Unexpected => "unexpected_message",
            Self::MissingToken => "missing_token",
            Self::ExpiredOnArrival | Self::Expired | Self::Lifetime => "expired",
            Self::InvalidToken => "invalid_token",
            Self::TokenInUrl => "token_in_url",
            Self::Denied | Self::IdentityChanged => "forbidden",
            Self::TooManyRefreshes | Self::TooManyConnections => "busy",
            Self::Revoked => "revoked",
            Self::Idle => "idle",
            Self::AuthUnavailable => "auth_unavailable",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamNotFound => "upstream_not_found",
            Self::UpstreamFailed | Self::UpstreamLost => "upstream_failed",
            Self::UpstreamBusy => "upstream_busy",
            Self::Drain(_) => "draining",
        }
    }

    /// Returns the close code, which a dialect may set.
    #[must_use]
    pub(super) fn code(self, dialect: Option<&DialectSpec>) -> u16 {
        let key = match self {
            Self::Timeout => Close::Timeout,
            Self::InvalidMessage => Close::InvalidMessage,
            Self::TooLarge => return 1009,
            Self::NotUtf8 => return 1007,
            Self::Protocol => return 1002,
            Self::ControlFrames => return 1008,
            Self::Unexpected => Close::UnexpectedMessage,
            Self::MissingToken => Close::MissingToken,
            Self::ExpiredOnArrival => Close::ExpiredOnArrival,
            Self::Expired => Close::Expired,
            Self::Lifetime => Close::Lifetime,
            Self::Idle => Close::Idle,
            Self::InvalidToken => Close::InvalidToken,
            Self::TokenInUrl => Close::TokenInUrl,
            Self::Denied => Close::Forbidden,
            Self::TooManyRefreshes => Close::TooMany,
            Self::IdentityChanged => Close::IdentityChanged,
            Self::Revoked => Close::Revoked,
            Self::AuthUnavailable | Self::TooManyConnections | Self::UpstreamBusy => Close::Unavailable,
            Self::UpstreamRefused => Close::UpstreamRefused,
            Self::UpstreamNotFound => Close::UpstreamNotFound,
            Self::UpstreamFailed => Close::UpstreamFailed,
            Self::UpstreamLost => Close::UpstreamLost,
            Self::Drain(code) => return code,
        };
        dialect.map_or(key.default_code(), |dialect| dialect.code(key))
    }

    /// Returns the reason for a credential that was refused on the upgrade.
    #[must_use]
    pub(super) fn of_failure(failure: &Failure) -> Self {
        match failure {
            Failure::Bad(bad) if bad.problem == Problem::InUrl => Self::TokenInUrl,
            Failure::Bad(_) => Self::InvalidToken,
            Failure::Unverified(unverified) => Self::of_unverified(unverified),
            Failure::CookieNotAccepted(_) => Self::Denied,
        }
    }

    /// Returns the reason for a token that was not verified, because it was rejected or because too many failed before
    /// it.
    #[must_use]
    pub(super) fn of_unverified(unverified: &Unverified) -> Self {
        match unverified {
            Unverified::Rejected { rejection, .. } => Self::of_rejection(rejection),
            Unverified::TooMany { .. } => Self::TooManyConnections,
        }
    }

    /// Returns the reason for a token that the verifier rejected.
    #[must_use]
    pub(super) const fn of_rejection(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::Expired { .. } => Self::ExpiredOnArrival,
            rejection if rejection.is_unavailable() => Self::AuthUnavailable,
            _ => Self::InvalidToken,
        }
    }

    /// Returns whether a token was refused for a reason that says nothing about it: it may be accepted later.
    #[must_use]
    pub(super) const fn is_temporary(self) -> bool {
        matches!(self, Self::AuthUnavailable | Self::TooManyConnections)
    }

    /// Writes the error message in a dialect's form; `None` where there is none. `copies` are the values that are
    /// copied from the message being answered.
    #[must_use]
    pub(super) fn error_message(self, dialect: Option<&DialectSpec>, copies: &Copies) -> Option<String> {
        let dialect = dialect?;
        let template = dialect.error.as_ref()?;
        let request_id = current_request_id().unwrap_or_default();
        let (message, code) = (self.message()?, self.code(Some(dialect)));
        let values = Values { message, code, request_id: &request_id.text(), copies, ..Values::default() };
        Some(render(template, &values))
    }
}
