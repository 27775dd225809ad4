//! The reasons for rejecting a token, with texts for the log. `http` and `websocket` decide which text a client gets.

use std::time::Duration;

use super::clock::is_in_milliseconds;
use super::token_error::TokenError;

/// The reason why a token was rejected. The text is for the log and never contains the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The token is not a compact JWS as RFC 7515 and RFC 7519 define it.
    #[error("{0}")]
    Malformed(&'static str),
    /// The text cannot be a token.
    #[error("{0}")]
    NotAToken(TokenError),
    /// `alg` is not in the provider's list.
    #[error("algorithm {0} is not accepted from this provider")]
    Algorithm(String),
    /// `iss` is not the issuer of a configured provider.
    #[error("issuer {0:?} is not a configured provider")]
    UnknownIssuer(String),
    /// No key of the provider matches the token's `kid` and algorithm.
    #[error("no key of the provider matches kid {}", .0.as_deref().unwrap_or("none"))]
    UnknownKey(Option<String>),
    /// No matching key verifies the signature.
    #[error("the signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("expired {} s ago, at {exp}", .now.saturating_sub(*.exp))]
    Expired {
        /// The token's `exp`, Unix seconds.
        exp: u64,
        /// The time of this machine's clock, in Unix seconds.
        now: u64,
    },
    /// `nbf` is in the future.
    #[error("not valid before {nbf}, now {now}{}", unit_hint(*.nbf))]
    NotYetValid {
        /// The token's `nbf`, Unix seconds.
        nbf: u64,
        /// The time of this machine's clock, in Unix seconds.
        now: u64,
    },
    /// `iat` is in the future.
    #[error("issued at {iat}, which is in the future (now {now}){}; compare the clocks", unit_hint(*.iat))]
    IssuedInTheFuture {
        /// The token's `iat`, Unix seconds.
        iat: u64,
        /// The time of this machine's clock, in Unix seconds.
        now: u64,
    },
    /// A claim is missing or has the wrong JSON type.
    #[error("claim {claim} {problem}")]
    Claim {
        /// The claim's name.
        claim: String,
        /// The problem with it.
        problem: &'static str,
    },
    /// `aud` has no accepted audience.
    #[error("made for audience {0}")]
    WrongAudience(String),
    /// `azp` is not an authorized party.
    #[error("{0}")]
    WrongParty(String),
    /// The token is an ID token, a refresh token or a logout token where an access token is expected, or the reverse.
    #[error("{0}")]
    WrongKind(&'static str),
    /// A claim that the provider's `require` names is absent or has another value.
    #[error("required claim {0} does not have a required value")]
    Required(String),
    /// The user id claim is absent, null or empty.
    #[error("no user id in the token")]
    MissingUser,
    /// The user id cannot be used.
    #[error("the user id {0}")]
    UnusableUser(&'static str),
    /// The provider was asked and reports no active token or session.
    #[error("remote check of provider {provider}: {reason}")]
    NoSession {
        /// The provider's name.
        provider: String,
        /// The provider's answer.
        reason: String,
    },
    /// The user, the session or the token was revoked.
    #[error("revoked by {0}")]
    Revoked(&'static str),
    /// The revocations of other instances are not known here.
    #[error("{reason}")]
    RevocationsUnknown {
        /// The reason why they are not known.
        reason: &'static str,
        /// The time after which to try again.
        retry_after: Duration,
    },
    /// The session's record could not be read from the shared state.
    #[error("the session's record could not be read: {reason}")]
    SessionUnavailable {
        /// The reason why there is no answer.
        reason: String,
        /// The time after which to try again.
        retry_after: Duration,
    },
    /// The provider could not be asked.
    #[error("provider {provider} could not be asked: {reason}")]
    RemoteUnavailable {
        /// The provider's name.
        provider: String,
        /// The reason why there is no answer.
        reason: String,
        /// The time after which to try again.
        retry_after: Duration,
    },
    /// The provider's keys are not available.
    #[error("no usable keys of provider {provider}: {reason}")]
    KeysUnavailable {
        /// The provider's name.
        provider: String,
        /// The reason why the last fetch failed.
        reason: String,
        /// The time after which to try again.
        retry_after: Duration,
    },
}

/// Names the mistake of issuers that write milliseconds.
const fn unit_hint(time: u64) -> &'static str {
    if is_in_milliseconds(time) { "; the token's times look like milliseconds, and RFC 7519 has seconds" } else { "" }
}

impl Rejection {
    /// Returns whether the token could not be verified now, so that a client should try again.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        self.retry_after().is_some()
    }

    /// Returns whether it counts toward `limits.failed_tokens_per_minute`. An expired token does not, nor does an
    /// outage.
    #[must_use]
    pub const fn counts(&self) -> bool {
        !matches!(self, Self::Expired { .. }) && !self.is_unavailable()
    }

    /// Returns the time after which to try again, if the token could not be verified now.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::KeysUnavailable { retry_after, .. }
            | Self::RemoteUnavailable { retry_after, .. }
            | Self::RevocationsUnknown { retry_after, .. }
            | Self::SessionUnavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Returns the `outcome` label of metrics and access lines, one of `telemetry::TOKEN_OUTCOMES`.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::NotAToken(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::UnknownKey(_) => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::IssuedInTheFuture { .. } => "issued_in_the_future",
            Self::Claim { .. } => "claim",
            Self::WrongAudience(_) => "wrong_audience",
            Self::WrongParty(_) => "wrong_party",
            Self::WrongKind(_) => "wrong_kind",
            Self::Required(_) => "required_claim",
            Self::MissingUser => "missing_user",
            Self::UnusableUser(_) => "unusable_user",
            Self::NoSession { .. } => "no_session",
            Self::Revoked(_) => "revoked",
            Self::RevocationsUnknown { .. } => "revocations_unknown",
            Self::SessionUnavailable { .. } => "session_unavailable",
            Self::RemoteUnavailable { .. } => "remote_unavailable",
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }
}
