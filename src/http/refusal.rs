//! Refusals and their texts (docs/contract.md section 3): one constructor for each row of the table.

mod render;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;

use super::UpstreamError;

use crate::auth::Rejection;
use crate::auth::allow::Denied;
use crate::auth::token::{BadCredential, Problem};
use crate::policy::{Conflict, ProtectedResourceSpec, Route};
use crate::telemetry::{AccessLine, Outcome, Rule};

pub use render::{refusal_bytes, render_refusal};

/// The `WWW-Authenticate` of a refusal (RFC 6750 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// No challenge.
    Absent,
    /// `Bearer realm="…"`, without an error code, because no credential was sent.
    Realm,
    /// `Bearer error="invalid_request"`.
    InvalidRequest,
    /// `Bearer error="invalid_token", error_description="…"`.
    InvalidToken,
    /// `Bearer error="insufficient_scope"`.
    InsufficientScope,
}

/// What the challenge of a route says beside its error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChallengeDetails {
    /// `resource_metadata` and `scope` for OAuth clients.
    pub parameters: Option<String>,
    /// Whether a missing credential is challenged with Basic too.
    pub offers_basic: bool,
}

/// The route and the rules of a request, from which the parameters of its challenge are made if it is refused. Accepted
/// requests pay for no text.
pub struct ChallengeSource {
    pub(super) offers_basic: bool,
    /// The protected resource, with the rules that the request must satisfy.
    pub(super) resource: Option<(Arc<ProtectedResourceSpec>, Vec<Arc<Route>>)>,
}

impl ChallengeSource {
    /// Tells an OAuth client where its protected resource is described (RFC 9728 section 5.1), and the scopes that the rules
    /// ask for (RFC 6750 section 3).
    fn details(&self) -> ChallengeDetails {
        let parameters = self.resource.as_ref().map(|(resource, rules)| {
            let mut scopes: Vec<&str> = Vec::new();
            for scope in rules.iter().flat_map(|rule| rule.require.scopes()) {
                if !scopes.contains(&scope) {
                    scopes.push(scope);
                }
            }
            let scope = if scopes.is_empty() { String::new() } else { format!(", scope=\"{}\"", scopes.join(" ")) };
            format!("resource_metadata=\"{}\"{scope}", resource.document_url)
        });
        ChallengeDetails { parameters, offers_basic: self.offers_basic }
    }
}

/// A refusal; [`render_refusal`] turns it into a response.
///
/// It is in a box: nearly every step of a request may return one, and hardly any does, but the result of each, and the
/// futures that it passes through, would have room for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Box<RefusalFields>);

/// The values of a [`Refusal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalFields {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable machine-readable code.
    pub code: &'static str,
    /// The text for the client.
    pub detail: String,
    /// The `WWW-Authenticate` challenge.
    pub challenge: Challenge,
    /// What the challenge says beside its error, where there is one.
    pub challenge_details: ChallengeDetails,
    /// The `Retry-After` in seconds.
    pub retry_after: Option<u64>,
    /// The value of `Allow`.
    pub allow: Option<&'static str>,
    /// A cookie that the response removes from the browser.
    pub set_cookie: Option<HeaderValue>,
    /// Whether the requested change is in force at this instance although it was refused.
    pub is_in_force: bool,
    /// Whether the connection closes after the response.
    pub close: bool,
    /// The detailed reason, for the log only.
    pub reason: String,
    /// The `outcome` of the access line and the metrics.
    pub outcome: &'static str,
    /// The kind of rule that refused the request.
    pub rule: Option<Rule>,
    /// The pattern of the route that refused the request, if it is not the request's own.
    pub route: Option<Arc<str>>,
}

impl Deref for Refusal {
    type Target = RefusalFields;

    fn deref(&self) -> &RefusalFields {
        &self.0
    }
}

impl DerefMut for Refusal {
    fn deref_mut(&mut self) -> &mut RefusalFields {
        &mut self.0
    }
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, detail: &str) -> Self {
        Self(Box::new(RefusalFields {
            status,
            code,
            detail: detail.to_owned(),
            challenge: Challenge::Absent,
            challenge_details: ChallengeDetails::default(),
            retry_after: None,
            allow: None,
            set_cookie: None,
            is_in_force: false,
            close: false,
            reason: String::new(),
            outcome: code,
            rule: None,
            route: None,
        }))
    }

    /// Adds the detailed reason, for the log.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Records the refusal in the access line of the request or socket.
    pub fn record(&self, line: &mut AccessLine) {
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

    /// Tells an OAuth client in the challenge where to find what it needs, where there is one.
    #[must_use]
    pub fn with_challenge_of(mut self, source: &ChallengeSource) -> Self {
        self.challenge_details = source.details();
        self
    }

    fn challenging(mut self, challenge: Challenge) -> Self {
        self.challenge = challenge;
        self
    }

    /// Makes the refusal of a request without a credential.
    #[must_use]
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "missing_token", "Missing authorization header. Please sign in.")
            .challenging(Challenge::Realm)
    }

    /// Makes the refusal of a credential that is not one well-formed token; `verbose` repeats to the client why it cannot be
    /// a token.
    #[must_use]
    pub fn bad_credential(bad: BadCredential, verbose: bool) -> Self {
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
            Problem::NotAToken(error) => Self::invalid_token(&Rejection::NotAToken(error), verbose),
            Problem::InUrl => Self::new(
                StatusCode::UNAUTHORIZED,
                "invalid_token",
                "Tokens in the URL are no longer accepted. Send the token in the Authorization header.",
            )
            .challenging(Challenge::InvalidToken)
            .because("the token is in the URL, which this route refuses")
            .with_outcome("token_in_url"),
        }
    }

    /// Makes the refusal of a token that the verifier rejected; `verbose` repeats the reason to the client (for
    /// development).
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
            Rejection::KeysUnavailable { retry_after, .. }
            | Rejection::RemoteUnavailable { retry_after, .. }
            | Rejection::RevocationsUnknown { retry_after, .. }
            | Rejection::SessionUnavailable { retry_after, .. } => {
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

    /// Makes the refusal of a rejected token whose address is over its limit of failed tokens.
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

    /// Makes the refusal of a verified user who does not meet the requirements.
    #[must_use]
    pub fn denied(denied: &Denied) -> Self {
        let refusal = Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .challenging(Challenge::InsufficientScope)
            .because(denied.to_string());
        match denied {
            Denied::NotAllowed { .. } => refusal.by(Rule::Allow),
            Denied::Claim { route, .. } => refusal.by(Rule::Require).on(route),
            // Another token is what the client needs, and no further scope.
            Denied::OtherResource(rejection) => Self::invalid_token(rejection, false).because(denied.to_string()),
        }
    }

    /// Makes the refusal of an identity with a claim that is not a valid header value.
    #[must_use]
    pub fn unusable_identity(reason: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .challenging(Challenge::InsufficientScope)
            .because(reason)
            .by(Rule::Require)
    }

    /// Makes the refusal of a route with `auth: deny`.
    #[must_use]
    pub fn closed_route(route: &Route) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .because("the route has auth: deny")
            .by(Rule::Deny)
            .on(&route.label)
    }

    /// Makes the refusal of a path whose readings match routes with different upstreams or settings.
    #[must_use]
    pub fn readings_differ(conflict: Conflict) -> Self {
        Self::bad_request(match conflict {
            Conflict::Upstream => "readings of the path lead to different upstreams",
            Conflict::Resource => "readings of the path fall under rules with different protected_resource",
            Conflict::TokenSources => "readings of the path fall under rules with different token_from",
            Conflict::WebSocket => "readings of the path fall under rules with different websocket settings",
        })
    }

    /// Makes the refusal of a sign-in while another user has a session in this browser.
    #[must_use]
    pub fn other_user() -> Self {
        Self::new(StatusCode::CONFLICT, "other_user", "Another user is signed in here. Sign out first.")
    }

    /// Makes the refusal of a sign-out that could not be recorded, or only until this process ends. The client should
    /// retry.
    #[must_use]
    pub fn not_signed_out(reason: &str) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut refusal = Self::new(status, "auth_unavailable", "Authentication service unavailable.")
            .because(format!("not signed out: {reason}"));
        refusal.retry_after = Some(5);
        refusal
    }

    /// Makes the refusal of a sign-out that is in force at this instance and not written to the shared state yet.
    #[must_use]
    pub fn not_shared() -> Self {
        let mut refusal =
            Self::not_signed_out("in force at this instance and queued; the shared state could not be written");
        refusal.is_in_force = true;
        refusal
    }

    /// Adds a cookie that the response removes from the browser, where the requested change is in force.
    #[must_use]
    pub fn taking_back(mut self, cookie: Option<HeaderValue>) -> Self {
        if self.is_in_force {
            self.set_cookie = cookie;
        }
        self
    }

    /// Makes the refusal to send a session cookie unencrypted over a network.
    #[must_use]
    pub fn needs_https() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "A session needs https.").because(
            "a session was requested over plain http; behind a load balancer that terminates https set trusted_proxies or public_url",
        )
    }

    /// Makes the refusal of a token whose claims do not fit into a cookie.
    #[must_use]
    pub fn session_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The token says more than a cookie can hold.")
    }

    /// Makes the refusal of an `Origin` that is neither the proxy's own nor listed.
    #[must_use]
    pub fn foreign_origin(origin: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "foreign_origin", "Origin not allowed.")
            .because(not_in_origins(origin))
            .by(Rule::Origin)
    }

    /// Makes the refusal of a request to which the upstream gave no usable response.
    #[must_use]
    pub fn of_upstream(error: &UpstreamError) -> Self {
        match error {
            UpstreamError::BodyStalled => Self::body_stalled(),
            UpstreamError::BodyTooLarge => Self::body_too_large(),
            UpstreamError::BodyBroken => Self::bad_request("the request body was aborted"),
            UpstreamError::ConnectTimeout { .. } | UpstreamError::ResponseTimeout { .. } => {
                Self::upstream_timeout(error.to_string())
            }
            UpstreamError::Connect { .. } | UpstreamError::Failed(_) => Self::upstream_failed(error.to_string()),
        }
    }

    /// Makes the refusal for an upstream that refused or reset the connection, or whose response is not usable.
    #[must_use]
    pub fn upstream_failed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream_failed", "Upstream unavailable.").because(reason)
    }

    /// Makes the refusal for a first message, with the client's token in it, that the upstream refused. It is no outage:
    /// trying again would not help.
    #[must_use]
    pub fn first_message_refused() -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Access denied.")
            .because("the upstream refused the first message")
            .with_outcome("upstream_refused")
    }

    /// Makes the refusal for an upgrade that the upstream refused, where a page cannot read the upstream's answer.
    #[must_use]
    pub fn upgrade_refused(outcome: &'static str, reason: impl Into<String>) -> Self {
        Self::upstream_failed(reason).with_outcome(outcome)
    }

    /// Makes the refusal for an upstream that did not respond in time.
    #[must_use]
    pub fn upstream_timeout(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "Upstream did not answer in time.").because(reason)
    }

    /// Makes the refusal of a malformed request or an ambiguous path; the connection closes.
    #[must_use]
    pub fn bad_request(reason: &str) -> Self {
        let mut refusal = Self::new(StatusCode::BAD_REQUEST, "bad_request", "Malformed request.").because(reason);
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a method that is never forwarded, or that one of the proxy's own endpoints does not
    /// support.
    #[must_use]
    pub fn method_not_allowed(allow: Option<&'static str>) -> Self {
        let mut refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed.");
        refusal.allow = allow;
        refusal.close = allow.is_none();
        refusal
    }

    /// Makes the refusal of a path under the proxy's prefix that is no endpoint.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found.")
    }

    /// Makes the refusal of a request whose client stopped sending its body.
    #[must_use]
    pub fn body_stalled() -> Self {
        let mut refusal = Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "Request body stalled.");
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a `Host` that is not served.
    #[must_use]
    pub fn host_not_served() -> Self {
        let mut refusal = Self::new(StatusCode::MISDIRECTED_REQUEST, "host_not_served", "Host not served here.");
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a request head over its limit.
    #[must_use]
    pub fn head_too_large() -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let mut refusal = Self::new(status, "head_too_large", "Request head too large.");
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a request target over its limit.
    #[must_use]
    pub fn target_too_long() -> Self {
        let mut refusal = Self::new(StatusCode::URI_TOO_LONG, "target_too_long", "Request target too long.");
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a request body over its limit.
    #[must_use]
    pub fn body_too_large() -> Self {
        let mut refusal = Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "Request body too large.");
        refusal.close = true;
        refusal
    }

    /// Makes the refusal of a WebSocket version other than 13 (RFC 6455 section 4.4).
    #[must_use]
    pub fn websocket_version() -> Self {
        Self::new(StatusCode::UPGRADE_REQUIRED, "websocket_version", "WebSocket version 13 required.")
    }

    /// Makes the refusal of a connection or request at a limit, or while the process drains.
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

/// Returns the log's reason for an origin that is not listed; a long origin is truncated.
pub(super) fn not_in_origins(origin: &str) -> String {
    format!("origin refused: {} is not in origins", origin.chars().take(256).collect::<String>())
}
