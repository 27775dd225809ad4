//! Why a session ends: the rows of the table in docs/contract.md section 4.2, with message, code and reason.

use super::template::{Copies, Values, render};
use crate::auth::Rejection;
use crate::auth::token::Problem;
use crate::authenticate::{Failure, Unverified};
use crate::policy::{Close, DialectSpec};

/// A row of the table in section 4.2: why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
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

impl Ending {
    /// What is said before the Close.
    #[must_use]
    pub const fn message(self) -> Option<&'static str> {
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

    /// The reason in the Close frame.
    #[must_use]
    pub const fn reason(self) -> &'static str {
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

    /// What became of a socket that ends so before it was open; for its line and the count.
    #[must_use]
    pub const fn outcome(self) -> &'static str {
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

    /// The close code, in a dialect or without one.
    #[must_use]
    pub fn code(self, dialect: Option<&DialectSpec>) -> u16 {
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

    /// What ends a session whose credential was refused on the upgrade.
    #[must_use]
    pub fn of_failure(failure: &Failure) -> Self {
        match failure {
            Failure::Bad(bad) if bad.problem == Problem::InUrl => Self::TokenInUrl,
            Failure::Bad(_) => Self::InvalidToken,
            Failure::Unverified(unverified) => Self::of_unverified(unverified),
            Failure::CookieNotAccepted(_) => Self::Denied,
        }
    }

    /// What ends a session whose token was refused, for what it is or for those before it.
    #[must_use]
    pub fn of_unverified(unverified: &Unverified) -> Self {
        match unverified {
            Unverified::Rejected(rejection) => Self::of(rejection),
            Unverified::TooMany { .. } => Self::TooManyConnections,
        }
    }

    /// What ends a session whose token was refused at the door.
    #[must_use]
    pub const fn of(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::Expired { .. } => Self::ExpiredOnArrival,
            Rejection::KeysUnavailable { .. } | Rejection::RemoteUnavailable { .. } => Self::AuthUnavailable,
            _ => Self::InvalidToken,
        }
    }

    /// The error message in a dialect's own shape; `None` where nothing is said. `copies` come from
    /// the message it answers, when there is one.
    #[must_use]
    pub fn said(self, dialect: Option<&DialectSpec>, copies: &Copies) -> Option<String> {
        let dialect = dialect?;
        let template = dialect.error.as_ref()?;
        let values = Values { message: self.message()?, code: self.code(Some(dialect)), copies, ..Values::default() };
        Some(render(template, &values))
    }
}
