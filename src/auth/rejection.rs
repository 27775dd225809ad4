//! Every way a token can fail, in words for the log; what a client hears is decided elsewhere.

use std::time::Duration;

/// Why a token was not accepted. The text is for the log: it never holds the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not a compact JWS, or its parts are not what RFC 7515 and RFC 7519 say.
    #[error("{0}")]
    Malformed(&'static str),
    /// `alg` is not in the provider's list.
    #[error("algorithm {0} is not accepted from this provider")]
    Algorithm(String),
    /// `iss` is no provider's.
    #[error("issuer {0:?} is not a configured provider")]
    UnknownIssuer(String),
    /// No key of the provider fits.
    #[error("no key of the provider fits kid {0:?}")]
    UnknownKey(Option<String>),
    /// The signature is not the key's.
    #[error("the signature does not verify")]
    BadSignature,
    /// `exp` has passed.
    #[error("expired at {exp}, now {now}")]
    Expired {
        /// The token's end, Unix seconds.
        exp: u64,
        /// Our clock, Unix seconds.
        now: u64,
    },
    /// `nbf` lies ahead.
    #[error("not valid before {nbf}, now {now}")]
    NotYetValid {
        /// The token's beginning, Unix seconds.
        nbf: u64,
        /// Our clock, Unix seconds.
        now: u64,
    },
    /// `iat` lies ahead.
    #[error("issued at {iat}, which lies ahead of our clock ({now})")]
    IssuedInTheFuture {
        /// When the token says it was issued, Unix seconds.
        iat: u64,
        /// Our clock, Unix seconds.
        now: u64,
    },
    /// A claim is missing or has the wrong JSON type.
    #[error("claim {claim} {problem}")]
    Claim {
        /// Which claim.
        claim: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Made for someone else.
    #[error("made for audience {0}")]
    WrongAudience(String),
    /// `azp` is not an authorized party.
    #[error("{0}")]
    WrongParty(String),
    /// An ID token, a refresh token, a logout token where an access token is wanted, or the reverse.
    #[error("{0}")]
    WrongKind(&'static str),
    /// A claim that the provider requires has another value.
    #[error("required claim {0} does not have a required value")]
    Required(String),
    /// The user id claim is absent, null or empty.
    #[error("no user id in the token")]
    MissingUser,
    /// The user id cannot be used.
    #[error("the user id {0}")]
    UnusableUser(&'static str),
    /// The provider, asked, finds no active session or token.
    #[error("remote check of provider {provider}: {reason}")]
    NoSession {
        /// The provider's name.
        provider: String,
        /// What it said.
        reason: String,
    },
    /// The user, the session or the token was revoked here.
    #[error("revoked by {0}")]
    Revoked(&'static str),
    /// The provider could not be asked.
    #[error("provider {provider} could not be asked: {reason}")]
    RemoteUnavailable {
        /// The provider's name.
        provider: String,
        /// What came instead of an answer.
        reason: String,
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
    /// No keys could be had.
    #[error("no usable keys of provider {provider}: {reason}")]
    KeysUnavailable {
        /// The provider's name.
        provider: String,
        /// What the last fetch said.
        reason: String,
        /// When it makes sense to ask again.
        retry_after: Duration,
    },
}

impl Rejection {
    /// Whether nobody could say yet what the token is worth.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        self.retry_after().is_some()
    }

    /// Whether it speaks against whoever presented it: neither an outage nor a token that was good until it ended.
    #[must_use]
    pub const fn counts(&self) -> bool {
        !matches!(self, Self::Expired { .. }) && !self.is_unavailable()
    }

    /// When it makes sense to ask again, where nobody could say yet.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::KeysUnavailable { retry_after, .. } | Self::RemoteUnavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }

    /// Every value of [`Self::outcome`], and `accepted`.
    pub const OUTCOMES: [&str; 20] = [
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
        "remote_unavailable",
        "keys_unavailable",
    ];

    /// The `outcome` label of metrics and access lines.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
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
            Self::RemoteUnavailable { .. } => "remote_unavailable",
            Self::KeysUnavailable { .. } => "keys_unavailable",
        }
    }
}
