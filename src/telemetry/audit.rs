//! Audit events: sign-ins, sign-outs, renewals, revocations and refusals of users. Each is one log line with the
//! message `audit` (docs/sign-in.md).

use super::{RenewalOutcome, SignInOutcome};

/// The kind of an audit event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// A user signed in at a provider, and a session began.
    SignIn,
    /// A sign-in failed.
    SignInFailed(SignInOutcome),
    /// A user signed in at the provider, but is not allowed here.
    Denial,
    /// A user signed out, and the session has ended.
    SignOut,
    /// A user signed out, but the end of the session could not be recorded.
    SignOutFailed,
    /// A session was renewed at its provider.
    Renewal,
    /// A session was not renewed.
    RenewalFailed(RenewalOutcome),
    /// An operator revoked a user, a session or a token.
    Revocation,
    /// A provider reported that a user has signed out or was removed there.
    BackchannelLogout,
}

impl AuditEvent {
    /// Returns the value of the field `event`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignIn => "sign_in",
            Self::SignInFailed(_) => "sign_in_failed",
            Self::Denial => "denial",
            Self::SignOut => "sign_out",
            Self::SignOutFailed => "sign_out_failed",
            Self::Renewal => "renewal",
            Self::RenewalFailed(_) => "renewal_failed",
            Self::Revocation => "revocation",
            Self::BackchannelLogout => "backchannel_logout",
        }
    }

    const fn outcome(self) -> Option<&'static str> {
        match self {
            Self::SignInFailed(outcome) => Some(outcome.name()),
            Self::RenewalFailed(outcome) => Some(outcome.name()),
            _ => None,
        }
    }

    const fn is_failure(self) -> bool {
        match self {
            Self::SignInFailed(_) | Self::Denial | Self::SignOutFailed | Self::RenewalFailed(_) => true,
            Self::SignIn | Self::SignOut | Self::Renewal | Self::Revocation | Self::BackchannelLogout => false,
        }
    }
}

/// The fields of an audit event. A field that does not apply is left out of the line. The line also has the request id,
/// like every line of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audit<'a> {
    /// The user id, as trusted headers carry it.
    pub user: Option<&'a str>,
    /// The provider's name.
    pub provider: Option<&'a str>,
    /// A digest of the id of the proxy's session.
    pub session: Option<&'a str>,
    /// A digest of the provider's session id (`sid`).
    pub provider_session: Option<&'a str>,
    /// A digest of the token's id (`jti`).
    pub token: Option<&'a str>,
    /// The reason of a failure. It never contains a code, a state or a token.
    pub reason: Option<&'a str>,
    /// The time after which a failed renewal is tried again, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// The client's address, where a client caused the event.
    pub client: Option<&'a str>,
}

impl Audit<'_> {
    /// Writes the line: at level `warn` for a failure, at level `info` otherwise.
    pub fn log(&self, event: AuditEvent) {
        let Self { user, provider, session, provider_session, token, reason, retry_in_ms, client } = *self;
        let (name, outcome) = (event.name(), event.outcome());
        if event.is_failure() {
            tracing::warn!(event = name, user, provider, session, outcome, reason, retry_in_ms, client, "audit");
        } else {
            tracing::info!(event = name, user, provider, session, provider_session, token, client, "audit");
        }
    }
}
