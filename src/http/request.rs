//! The types that a request goes through. Each is created in one place and consumed by the next step.

use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::header::{ACCEPT, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout;

use super::{Admitted, ChallengeSource, ClientAddress, Refusal, provenance};
use crate::auth::token::{self, BadCredential, Extracted, Purpose};
use crate::auth::{Carrier, Identity, NoCredential, Rejection, SessionCookie, Token, Verified, allow};
use crate::policy::{AuthMode, Family, Policy, Route, RouteMatch, TokenSources};

/// A request to one of the proxy's own endpoints.
#[derive(Debug)]
pub struct OwnRequest {
    pub(super) admitted: Box<Admitted>,
}

impl OwnRequest {
    /// Returns the head of the request.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.admitted.message.parts
    }

    /// Returns the client.
    #[must_use]
    pub fn client(&self) -> &ClientAddress {
        &self.admitted.client
    }

    /// Checks that the request may change state: it comes from the proxy's own page or a listed one, or from no
    /// browser.
    ///
    /// # Errors
    /// Returns 403 `foreign_origin`.
    pub fn check_state_change(&self, policy: &Policy) -> Result<(), Refusal> {
        provenance::check_state_change(&self.admitted.message.parts, &self.admitted.client, policy)
    }

    /// Takes the token out of the headers that the policy names.
    ///
    /// # Errors
    /// Returns an error when a credential is present but is not one well-formed token.
    pub fn extract(&mut self, policy: &Policy) -> Result<Extracted, BadCredential> {
        let headers_only = TokenSources {
            headers: policy.routes.last().map_or_else(Vec::new, |route| route.token_from.headers.clone()),
            message: false,
            query: None,
            subprotocols: Vec::new(),
            cookie: None,
            basic: false,
            upstream_secret: None,
        };
        let Parts { headers, uri, .. } = &mut self.admitted.message.parts;
        token::extract(headers, uri, &headers_only, Purpose::Plain, None, policy.limits.token_bytes, None)
    }

    /// Takes the session cookie out of the request. Returns it with the cookie's name; the name is `None` for a client that
    /// cannot have one, because it uses plain http over a network.
    pub fn take_session(&mut self, policy: &Policy) -> (Option<SessionCookie>, Option<String>) {
        let name = provenance::session_cookie_name(&self.admitted, policy);
        let can_have = provenance::can_have_cookie(&self.admitted, policy);
        let session = token::take_session_cookie(&mut self.admitted.message.parts.headers, &name);
        (session, can_have.then_some(name))
    }

    /// Returns whether this client can have a session cookie: it does not use plain http over a network.
    #[must_use]
    pub fn can_have_session(&self, policy: &Policy) -> bool {
        provenance::can_have_cookie(&self.admitted, policy)
    }

    /// Reads the cookie that binds a sign-in to its browser. Returns its value and its name.
    #[must_use]
    pub fn login_cookie(&self, policy: &Policy) -> (Option<String>, String) {
        let name = provenance::login_cookie_name(&self.admitted, policy);
        (token::own_cookie_value(&self.admitted.message.parts.headers, &name), name)
    }

    /// Reads the whole body, of at most `limit` bytes, within `limits.body_idle_timeout`: it is small, and who sends it need
    /// not be a user.
    ///
    /// # Errors
    /// Returns 413 for a longer body, 408 for one that takes longer, 400 for one that is aborted.
    pub async fn body(&mut self, limit: usize) -> Result<Vec<u8>, Refusal> {
        let Some(longest) = self.admitted.message.body.idle_timeout() else { return Ok(Vec::new()) };
        timeout(longest, self.collect_body(limit)).await.unwrap_or_else(|_| Err(Refusal::body_stalled()))
    }

    async fn collect_body(&mut self, limit: usize) -> Result<Vec<u8>, Refusal> {
        let end = self.admitted.message.body.end();
        let mut bytes = Vec::new();
        while let Some(frame) = self.admitted.message.body.frame().await {
            let Ok(frame) = frame else {
                return Err(if end.is_stalled() {
                    Refusal::body_stalled()
                } else if end.is_too_large() {
                    Refusal::body_too_large()
                } else {
                    Refusal::bad_request("the request body was aborted")
                });
            };
            let Some(data) = frame.data_ref() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(Refusal::body_too_large());
            }
            bytes.extend_from_slice(data);
        }
        Ok(bytes)
    }

    /// Takes all session cookies out of the request, to end all their sessions. Otherwise it is like
    /// [`Self::take_session`].
    pub fn take_sessions(&mut self, policy: &Policy) -> (Vec<SessionCookie>, Option<String>) {
        let name = provenance::session_cookie_name(&self.admitted, policy);
        let can_have = provenance::can_have_cookie(&self.admitted, policy);
        let sessions = token::take_all_session_cookies(&mut self.admitted.message.parts.headers, &name);
        (sessions, can_have.then_some(name))
    }
}

/// A CORS preflight. It has no credential and no identity.
#[derive(Debug)]
pub struct PreflightRequest {
    pub(super) admitted: Box<Admitted>,
    pub(super) route: Arc<Route>,
    pub(super) is_answered_here: bool,
}

impl PreflightRequest {
    /// Returns the route that matches the announced method.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Returns the head of the request.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.admitted.message.parts
    }

    /// Returns whether the proxy answers it instead of forwarding it.
    #[must_use]
    pub fn is_answered_here(&self) -> bool {
        self.is_answered_here
    }
}

/// A request whose route needs no credential, or that has none where it is optional.
#[derive(Debug)]
pub struct PublicRequest {
    pub(super) admitted: Box<Admitted>,
    pub(super) route: Arc<Route>,
}

impl PublicRequest {
    /// Returns whether it is a WebSocket upgrade.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.admitted.upgrade.is_some()
    }

    /// Returns the matching route.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Returns the head of the request.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.admitted.message.parts
    }

    /// Takes the client's side of the upgrade, if the request is one.
    pub fn take_upgrade(&mut self) -> Option<OnUpgrade> {
        self.admitted.upgrade.take()
    }
}

/// A request whose route requires a verified token, or verifies one that is present.
#[derive(Debug)]
pub struct ProtectedRequest {
    pub(super) admitted: Box<Admitted>,
    pub(super) matched: RouteMatch,
    wants_event_stream: bool,
    /// Whether it is a WebSocket upgrade. It is stored, because the client's side of the upgrade is taken out before the
    /// credential is verified.
    is_websocket: bool,
}

impl ProtectedRequest {
    pub(super) fn new(admitted: Box<Admitted>, matched: RouteMatch) -> Self {
        let wants_event_stream = accepts_event_stream(&admitted.message.parts);
        let is_websocket = admitted.upgrade.is_some();
        Self { admitted, matched, wants_event_stream, is_websocket }
    }

    /// Returns the matching route.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        &self.matched.route
    }

    /// Returns the head of the request.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.admitted.message.parts
    }

    /// Returns the client.
    #[must_use]
    pub fn client(&self) -> &ClientAddress {
        &self.admitted.client
    }

    /// Returns whether it is a WebSocket upgrade.
    #[must_use]
    pub fn is_websocket(&self) -> bool {
        self.is_websocket
    }

    /// Takes the client's side of the upgrade, if the request is one.
    pub fn take_upgrade(&mut self) -> Option<OnUpgrade> {
        self.admitted.upgrade.take()
    }

    /// Sets the one subprotocol that is offered to the upstream, or none, because the client's 101 was sent before the
    /// upstream's.
    pub fn set_subprotocol(&mut self, subprotocol: Option<&HeaderValue>) {
        use hyper::header::SEC_WEBSOCKET_PROTOCOL;
        match subprotocol {
            Some(chosen) => {
                self.admitted.message.parts.headers.insert(SEC_WEBSOCKET_PROTOCOL, chosen.clone());
            }
            None => {
                self.admitted.message.parts.headers.remove(SEC_WEBSOCKET_PROTOCOL);
            }
        }
    }

    /// Returns the source of the challenge's parameters, for the case that the request is refused.
    #[must_use]
    pub fn challenge_source(&self) -> ChallengeSource {
        let requirements = self.matched.requirements.iter();
        ChallengeSource {
            offers_basic: self.route().token_from.basic,
            resource: self.matched.resource().map(|resource| {
                (Arc::clone(resource), requirements.map(|requirement| Arc::clone(&requirement.route)).collect())
            }),
        }
    }

    /// Returns whether the client accepts server-sent events.
    #[must_use]
    pub fn wants_event_stream(&self) -> bool {
        self.wants_event_stream
    }

    /// Takes the token out of the request, by the route's token sources in their order. `known` is the token that the
    /// connection presented last.
    ///
    /// # Errors
    /// Returns an error when a credential is present but is not one well-formed token.
    pub fn extract(&mut self, policy: &Policy, known: Option<&Token>) -> Result<Extracted, BadCredential> {
        let purpose = if self.is_websocket() {
            Purpose::WebSocket
        } else if self.wants_event_stream() {
            Purpose::Events
        } else {
            Purpose::Plain
        };
        let own = policy.browser.session.as_ref().map(|_| provenance::session_cookie_name(&self.admitted, policy));
        let Parts { headers, uri, .. } = &mut self.admitted.message.parts;
        let sources = &self.matched.route.token_from;
        token::extract(headers, uri, sources, purpose, own.as_deref(), policy.limits.token_bytes, known)
    }

    /// Adds the verified user.
    ///
    /// # Errors
    /// Returns 403 `foreign_origin` when the credential is a cookie and another site's page made the request, 401
    /// `missing_token` when the upstream gets the token and the session has none.
    pub fn authenticated(self, verified: Verified, policy: &Policy) -> Result<AuthenticatedRequest, Refusal> {
        self.check_cookie(&verified, policy)?;
        Ok(AuthenticatedRequest { request: self, verified })
    }

    /// Checks that the request may use its credential, where that is a cookie.
    ///
    /// # Errors
    /// Returns 403 `foreign_origin` if the page that made the request is not ours, 401 `missing_token` if the upstream is to
    /// get the token and the session has none, and 401 `invalid_token` for a load balancer's token that somebody else sent.
    pub fn check_cookie(&self, verified: &Verified, policy: &Policy) -> Result<(), Refusal> {
        check_sender_of_balancer_token(verified, &self.admitted.client, policy)?;
        // A load balancer adds its token to whatever request comes with its cookie, from any page.
        if verified.carrier() == Carrier::Cookie || is_of_balancer(verified) {
            provenance::check_cookie_origin(&self.admitted.message.parts, &self.admitted.client, policy)?;
        }
        if verified.carrier() == Carrier::Cookie
            && !verified.has_token()
            && policy.upstream(self.route()).wants_token(self.is_websocket())
        {
            return Err(Refusal::missing_token());
        }
        Ok(())
    }

    /// Returns whether the route accepts a request without a credential.
    #[must_use]
    pub fn accepts_anonymous(&self) -> bool {
        self.matched.auth == AuthMode::Optional
    }

    /// Turns the request into a public one, if the route has `auth: optional`. The proof shows that no credential was
    /// presented.
    ///
    /// # Errors
    /// Returns the request and the proof, if the route requires a credential.
    pub fn without_credential(self, proof: NoCredential) -> Result<PublicRequest, (Self, NoCredential)> {
        if !self.accepts_anonymous() {
            return Err((self, proof));
        }
        Ok(PublicRequest { admitted: self.admitted, route: self.matched.route })
    }
}

/// A request whose user is verified. Only [`ProtectedRequest::authenticated`] creates it.
#[derive(Debug)]
pub struct AuthenticatedRequest {
    request: ProtectedRequest,
    verified: Verified,
}

impl AuthenticatedRequest {
    /// Returns the request.
    #[must_use]
    pub fn request(&self) -> &ProtectedRequest {
        &self.request
    }

    /// Returns the verified user.
    #[must_use]
    pub fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Checks that the user meets the route's requirements.
    ///
    /// # Errors
    /// Returns the refusal, with its reason for the log.
    pub fn allow(self) -> Result<Allowed, Refusal> {
        let Self { request, verified } = self;
        match allow::permits(&request.matched.requirements, verified.identity()) {
            Ok(()) => {
                let (identity, token) = verified.into_parts();
                Ok(Allowed { admitted: request.admitted, route: request.matched.route, identity, token })
            }
            Err(denied) => Err(Refusal::denied(&denied)),
        }
    }
}

fn accepts_event_stream(Parts { method, headers, .. }: &Parts) -> bool {
    let accepts = |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b',').any(is_event_stream);
    *method == Method::GET && headers.get_all(ACCEPT).iter().any(accepts)
}

fn is_event_stream(range: &[u8]) -> bool {
    let kind = range.split(|byte| *byte == b';').next().unwrap_or(range);
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// A request whose user is verified and meets the route's requirements.
#[derive(Debug)]
pub struct Allowed {
    pub(super) admitted: Box<Admitted>,
    pub(super) route: Arc<Route>,
    pub(super) identity: Arc<Identity>,
    pub(super) token: Option<Token>,
}

/// Returns whether the credential is the token that a load balancer adds to requests.
fn is_of_balancer(verified: &Verified) -> bool {
    let identity = verified.identity();
    identity.provider().family == Family::AwsAlb && identity.browser_session().is_none()
}

/// Checks that a load balancer's token came from a trusted proxy. Every upstream of the balancer sees such tokens, and could
/// present them here itself.
///
/// # Errors
/// Returns 401 `invalid_token`.
pub fn check_sender_of_balancer_token(
    verified: &Verified,
    client: &ClientAddress,
    policy: &Policy,
) -> Result<(), Refusal> {
    if !is_of_balancer(verified) || client.has_trusted_peer {
        return Ok(());
    }
    let rejection = Rejection::WrongKind("a load balancer's token from a peer that is not in trusted_proxies");
    Err(Refusal::rejected(&rejection, policy.verbose_errors))
}
