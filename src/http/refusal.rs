//! What we refuse, and with which words (docs/contract.md section 3): one constructor a row of the table.

mod render;

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::UpstreamError;
use super::cors::not_in_origins;
use crate::auth::Rejection;
use crate::auth::allow::Denied;
use crate::auth::token::{BadCredential, Problem};
use crate::policy::{Conflict, Route};
use crate::telemetry::{AccessLine, Outcome, Rule};

pub use render::{refusal_bytes, render_refusal};

/// The `WWW-Authenticate` of a refusal (RFC 6750 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// None.
    Absent,
    /// `Bearer realm="…"`: no credential came, so no error code.
    Realm,
    /// `Bearer error="invalid_request"`.
    InvalidRequest,
    /// `Bearer error="invalid_token", error_description="…"`.
    InvalidToken,
    /// `Bearer error="insufficient_scope"`.
    InsufficientScope,
}

/// A refusal as a value; [`render_refusal`] makes an answer of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable machine-readable code.
    pub code: &'static str,
    /// What the client reads.
    pub detail: String,
    /// The challenge.
    pub challenge: Challenge,
    /// Whole seconds.
    pub retry_after: Option<u64>,
    /// Value of `Allow`.
    pub allow: Option<&'static str>,
    /// Whether the connection closes after the answer.
    pub close: bool,
    /// For the log only: why, in detail; the `outcome` label.
    pub reason: String,
    /// The `outcome` of access line and metrics.
    pub outcome: &'static str,
    /// The rule that kept the caller out.
    pub rule: Option<Rule>,
    /// The pattern of that rule, where it is another than the request's.
    pub route: Option<Arc<str>>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, detail: &str) -> Self {
        Self {
            status,
            code,
            detail: detail.to_owned(),
            challenge: Challenge::Absent,
            retry_after: None,
            allow: None,
            close: false,
            reason: String::new(),
            outcome: code,
            rule: None,
            route: None,
        }
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Notes in a request's or socket's line what became of it.
    pub fn note(&self, line: &mut AccessLine) {
        line.outcome = Outcome::Refused(self.outcome);
        line.reason.clone_from(&self.reason);
        line.rule = self.rule;
        if let Some(route) = &self.route {
            line.route = Arc::clone(route);
        }
    }

    fn by(mut self, rule: Rule) -> Self {
        self.rule = Some(rule);
        self
    }

    fn on(mut self, route: &Arc<str>) -> Self {
        self.route = Some(Arc::clone(route));
        self
    }

    fn challenging(mut self, challenge: Challenge) -> Self {
        self.challenge = challenge;
        self
    }

    /// No credential.
    #[must_use]
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "missing_token", "Missing authorization header. Please sign in.")
            .challenging(Challenge::Realm)
    }

    /// What was presented is not one token.
    #[must_use]
    pub fn bad_credential(bad: BadCredential) -> Self {
        match bad.problem {
            Problem::Format | Problem::Twice => Self::new(
                StatusCode::UNAUTHORIZED,
                "invalid_request",
                "Invalid authorization header format. Expected 'Bearer <token>'.",
            )
            .challenging(Challenge::InvalidRequest)
            .because(if bad.problem == Problem::Twice {
                "one kind of credential twice"
            } else {
                "not Bearer <token>"
            }),
            Problem::NotAToken => {
                Self::invalid_token(&Rejection::Malformed("too long, or not a token's characters"), false)
            }
            Problem::InUrl => {
                Self::invalid_token(&Rejection::Malformed("the token is in the URL, which this route refuses"), false)
                    .with_outcome("token_in_url")
            }
        }
    }

    /// What the verifier said; `verbose` repeats its reason to the client (for development).
    #[must_use]
    pub fn rejected(rejection: &Rejection, verbose: bool) -> Self {
        match rejection {
            Rejection::Expired { .. } => {
                Self::new(StatusCode::UNAUTHORIZED, "token_expired", "Token has expired. Please sign in again.")
                    .challenging(Challenge::InvalidToken)
                    .because(rejection.to_string())
                    .with_outcome(rejection.outcome())
            }
            Rejection::MissingUser => {
                Self::new(StatusCode::UNAUTHORIZED, "missing_user", "Invalid token: missing user ID")
                    .challenging(Challenge::InvalidToken)
                    .because(rejection.to_string())
                    .with_outcome(rejection.outcome())
            }
            Rejection::NoSession { .. } => {
                Self::new(StatusCode::UNAUTHORIZED, "no_session", "No active sessions found for token")
                    .challenging(Challenge::InvalidToken)
                    .because(rejection.to_string())
                    .with_outcome(rejection.outcome())
            }
            Rejection::KeysUnavailable { retry_after, .. } | Rejection::RemoteUnavailable { retry_after, .. } => {
                let mut refusal = Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "auth_unavailable",
                    "Authentication service unavailable.",
                )
                .because(rejection.to_string())
                .with_outcome(rejection.outcome());
                refusal.retry_after = Some(whole_seconds(*retry_after));
                refusal
            }
            _ => Self::invalid_token(rejection, verbose),
        }
    }

    /// A token that fails, from an address over its limit.
    #[must_use]
    pub fn too_many_failures(rejection: &Rejection, retry_after: Duration) -> Self {
        let mut refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", "Too many failed attempts.")
            .because(format!("limits.failed_tokens_per_minute; {rejection}"))
            .with_outcome(rejection.outcome());
        refusal.retry_after = Some(whole_seconds(retry_after).max(1));
        refusal
    }

    fn invalid_token(rejection: &Rejection, verbose: bool) -> Self {
        let detail = if verbose {
            format!("Invalid token: {rejection}")
        } else {
            "Invalid token. Please sign in again.".to_owned()
        };
        Self::new(StatusCode::UNAUTHORIZED, "invalid_token", &detail)
            .challenging(Challenge::InvalidToken)
            .because(rejection.to_string())
            .with_outcome(rejection.outcome())
    }

    fn with_outcome(mut self, outcome: &'static str) -> Self {
        self.outcome = outcome;
        self
    }

    /// Verified, and not allowed here.
    #[must_use]
    pub fn denied(denied: &Denied) -> Self {
        let refusal = Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .challenging(Challenge::InsufficientScope)
            .because(denied.to_string());
        match denied {
            Denied::NotAllowed(_) => refusal.by(Rule::Allow),
            Denied::Claim { route, .. } => refusal.by(Rule::Require).on(route),
        }
    }

    /// An identity that cannot stand in a trusted header.
    #[must_use]
    pub fn unsendable(reason: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .challenging(Challenge::InsufficientScope)
            .because(reason)
            .by(Rule::Require)
    }

    /// `auth: deny`, whoever asks.
    #[must_use]
    pub fn closed_route(route: &Route) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .because("the rule says auth: deny")
            .by(Rule::Deny)
            .on(&route.label)
    }

    /// The readings of a path lead to different upstreams or settings.
    #[must_use]
    pub fn readings_differ(conflict: Conflict) -> Self {
        Self::bad_request(match conflict {
            Conflict::Upstream => "readings of the path lead to different upstreams",
            Conflict::TokenSources => "readings of the path fall under rules with different token_from",
            Conflict::WebSocket => "readings of the path fall under rules with different websocket settings",
        })
    }

    /// A session of another user's is in force there.
    #[must_use]
    pub fn other_user() -> Self {
        Self::new(StatusCode::CONFLICT, "other_user", "Another user is signed in here. Sign out first.")
    }

    /// A session that could not be ended, or not for longer than this process lives: to be asked again.
    #[must_use]
    pub fn not_signed_out(reason: &str) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut refusal = Self::new(status, "auth_unavailable", "Authentication service unavailable.")
            .because(format!("not signed out: {reason}"));
        refusal.retry_after = Some(5);
        refusal
    }

    /// A session cookie would cross a network in the clear.
    #[must_use]
    pub fn needs_https() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "A session needs https.").because(
            "a session was asked for by plain http; behind a balancer that speaks https write trusted_proxies, or public_url",
        )
    }

    /// What the token says does not fit a cookie.
    #[must_use]
    pub fn session_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The token says more than a cookie can hold.")
    }

    /// An `Origin` that is not ours or listed.
    #[must_use]
    pub fn foreign_origin(origin: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "foreign_origin", "Origin not allowed.")
            .because(not_in_origins(origin))
            .by(Rule::Origin)
    }

    /// What a client hears when there is no usable answer.
    #[must_use]
    pub fn of_upstream(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::BodyStalled => Self::body_stalled(),
            UpstreamError::BodyTooLarge => Self::body_too_large(),
            UpstreamError::BodyBroken => Self::bad_request("the request body broke off"),
            UpstreamError::ConnectTimeout { .. } | UpstreamError::ResponseTimeout { .. } => {
                Self::upstream_timeout(error.to_string())
            }
            UpstreamError::Connect { .. } | UpstreamError::Failed(_) => Self::upstream_failed(error.to_string()),
        }
    }

    /// Upstream refused, reset, or answered unusably.
    #[must_use]
    pub fn upstream_failed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream_failed", "Upstream unavailable.").because(reason)
    }

    /// Upstream too slow.
    #[must_use]
    pub fn upstream_timeout(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "Upstream did not answer in time.").because(reason)
    }

    /// A malformed request or ambiguous path; the connection closes.
    #[must_use]
    pub fn bad_request(reason: &str) -> Self {
        let mut refusal = Self::new(StatusCode::BAD_REQUEST, "bad_request", "Malformed request.").because(reason);
        refusal.close = true;
        refusal
    }

    /// A method that is never forwarded, or wrong on an endpoint of ours.
    #[must_use]
    pub fn method_not_allowed(allow: Option<&'static str>) -> Self {
        let mut refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed.");
        refusal.allow = allow;
        refusal.close = allow.is_none();
        refusal
    }

    /// Unknown under our prefix.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found.")
    }

    /// The client stopped sending its body.
    #[must_use]
    pub fn body_stalled() -> Self {
        let mut refusal = Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "Request body stalled.");
        refusal.close = true;
        refusal
    }

    /// A Host that is not answered here.
    #[must_use]
    pub fn host_not_served() -> Self {
        let mut refusal = Self::new(StatusCode::MISDIRECTED_REQUEST, "host_not_served", "Host not served here.");
        refusal.close = true;
        refusal
    }

    /// Request head over its limit.
    #[must_use]
    pub fn head_too_large() -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let mut refusal = Self::new(status, "head_too_large", "Request head too large.");
        refusal.close = true;
        refusal
    }

    /// Request target over its limit.
    #[must_use]
    pub fn target_too_long() -> Self {
        let mut refusal = Self::new(StatusCode::URI_TOO_LONG, "target_too_long", "Request target too long.");
        refusal.close = true;
        refusal
    }

    /// Request body over its limit.
    #[must_use]
    pub fn body_too_large() -> Self {
        let mut refusal = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "Request body too large.");
        refusal.close = true;
        refusal
    }

    /// A WebSocket version other than 13 (RFC 6455 section 4.4).
    #[must_use]
    pub fn websocket_version() -> Self {
        Self::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", "WebSocket version 13 required.")
    }

    /// At a limit, or draining.
    #[must_use]
    pub fn busy(reason: &str) -> Self {
        let mut refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too many connections.").because(reason);
        refusal.retry_after = Some(5);
        refusal
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
