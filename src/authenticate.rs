//! Authentication: turns the credential of a request into a verified user, or into its proven absence.
//!
//! This module owns each match on the credential that a request presented, for plain requests, for WebSocket upgrades and
//! for the proxy's own endpoints, and the limit on failures per address. A step that is skipped does not compile: `allow`
//! and `prepare` need the [`AuthenticatedRequest`] that is made here, and it cannot be made from a cookie without the check
//! of the page's origin. `auth` decides whether a token is valid.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderName, ORIGIN, USER_AGENT};
use hyper::upgrade::OnUpgrade;

use crate::auth::token::{BadCredential, Cookies, Extracted};
use crate::auth::{
    Carrier, LastToken, Lookup, NoCredential, RejectedToken, Rejection, Token, Verified, unix_seconds,
    unverified_claims,
};
use crate::budget::MemoryReservation;
use crate::http::{AuthenticatedRequest, OwnRequest, ProtectedRequest, PublicRequest, Refusal};
use crate::policy::Policy;
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{AccessLine, UnverifiedCredential};

/// A protected request whose credential has been taken out of it, and is not verified yet.
pub struct PresentedCredential {
    request: ProtectedRequest,
    found: Result<Extracted, BadCredential>,
}

impl PresentedCredential {
    /// Takes the credential out of a request, by the route's token sources. `last` is the last token of the connection.
    #[must_use]
    pub fn extract(mut request: ProtectedRequest, policy: &Policy, last: Option<&LastToken>) -> Self {
        let known = last.and_then(LastToken::token);
        let found = request.extract(policy, known.as_ref());
        Self { request, found }
    }

    /// Returns the request, without its credential.
    #[must_use]
    pub fn request(&self) -> &ProtectedRequest {
        &self.request
    }

    /// Returns the client's side of the upgrade, when it is one.
    pub fn take_upgrade(&mut self) -> Option<OnUpgrade> {
        self.request.take_upgrade()
    }

    /// Returns the place in which a credential came, also one that is not a token; `None` where none came.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        match &self.found {
            Ok(Extracted::Token(_, carrier)) => Some(*carrier),
            Ok(Extracted::Cookies(cookies, _)) if cookies.opaque_in_query.is_some() => Some(Carrier::Query),
            Ok(Extracted::Cookies(..)) => Some(Carrier::Cookie),
            Ok(Extracted::Nothing(_)) => None,
            Err(bad) => Some(bad.carrier),
        }
    }

    /// Returns whether the credential cannot be a token, or may not come in this place.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.found.is_err()
    }

    /// Counts a token in the URL. [`Authenticator::authenticate`] also reports the page that sent it.
    pub fn count_query_token(&self, state: &ProxyState) {
        if self.is_query_token() {
            let mode = if self.is_bad() { "deny" } else { "move" };
            state.metrics.sockets.in_query(&self.request.route().label, mode);
        }
    }

    fn is_query_token(&self) -> bool {
        match &self.found {
            Ok(Extracted::Token(_, carrier)) => *carrier == Carrier::Query,
            // Beside a cookie it is more likely a parameter of the backend's own.
            Ok(Extracted::Cookies(..) | Extracted::Nothing(_)) => false,
            Err(bad) => bad.carrier == Carrier::Query,
        }
    }
}

/// The state and settings with which a request is authenticated.
pub struct Authenticator<'a> {
    /// The state that counts failures, presence and the memory of unauthenticated callers.
    pub state: &'a ProxyState,
    /// The policy and verifier that the request began with.
    pub runtime: &'a Runtime,
    /// The memory of the connection, which counts until a user was verified on it.
    pub reservation: &'a MemoryReservation,
    /// The token that the connection presented last, where it presents many.
    pub last: Option<&'a LastToken>,
}

/// The result of authenticating a request.
pub enum Authentication {
    /// The user is verified.
    User(AuthenticatedRequest),
    /// No credential came, and the route does not demand one.
    Public(PublicRequest),
    /// No credential came, and the route demands one.
    Missing(ProtectedRequest, NoCredential),
    /// A credential came and was refused.
    Refused(Failure),
}

/// The reason why a credential was refused.
#[derive(Debug)]
pub enum Failure {
    /// The credential is not one token.
    Bad(BadCredential),
    /// The token was not verified.
    Unverified(Unverified),
    /// A cookie was verified, but this request may not use it: another site's page sent it, or its session has no token
    /// for an upstream that wants one.
    CookieNotAccepted(Refusal),
}

impl Failure {
    /// Returns the refusal over HTTP; `verbose` repeats the reason to the client.
    #[must_use]
    pub fn refusal(self, verbose: bool) -> Refusal {
        match self {
            Self::Bad(bad) => Refusal::bad_credential(bad, verbose),
            Self::Unverified(unverified) => unverified.refusal(verbose),
            Self::CookieNotAccepted(refusal) => refusal,
        }
    }
}

impl Authenticator<'_> {
    /// Verifies the credential of a request, and records carrier and user in its access line.
    pub async fn authenticate(&self, presented: PresentedCredential, line: &mut AccessLine) -> Authentication {
        let is_query_token = presented.is_query_token();
        let PresentedCredential { request, found } = presented;
        let address = request.client().limited_address();
        let verified = match found {
            Ok(Extracted::Token(token, carrier)) => {
                line.carrier = Some(carrier.name());
                verify(self.state, self.runtime, address, token, carrier, self.last).await
            }
            Ok(Extracted::Cookies(mut cookies, proof)) => {
                line.carrier = Some(Carrier::Cookie.name());
                let opaque_in_query = cookies.opaque_in_query.take();
                // Boxed, as it is larger than all that follows a token in a header.
                match (Box::pin(self.verify_cookies(address, cookies)).await, opaque_in_query) {
                    (Ok(Some(verified)), _) => {
                        // Where the route is open, a cookie that this request may not use is as good as none.
                        if request.accepts_anonymous()
                            && let Err(refusal) = request.check_cookie(&verified, &self.runtime.policy)
                        {
                            tracing::debug!(reason = %refusal.reason, "cookie not accepted, treated as absent");
                            line.carrier = None;
                            return without_credential(request, proof);
                        }
                        Ok(verified)
                    }
                    (Ok(None), None) => {
                        line.carrier = None;
                        return without_credential(request, proof);
                    }
                    (Ok(None), Some(Ok((token, carrier)))) => {
                        line.carrier = Some(carrier.name());
                        verify(self.state, self.runtime, address, token, carrier, self.last).await
                    }
                    (Ok(None), Some(Err(bad))) => return refused_as_malformed(&request, bad, line),
                    (Err(unverified), _) => Err(unverified),
                }
            }
            Ok(Extracted::Nothing(proof)) => return without_credential(request, proof),
            Err(bad) => {
                if is_query_token && !line.is_test {
                    report_query_token(self.state, &request, false);
                }
                return refused_as_malformed(&request, bad, line);
            }
        };
        // Anyone on this machine can declare a request a test, so a token of a user counts nevertheless.
        if is_query_token && (verified.is_ok() || !line.is_test) {
            report_query_token(self.state, &request, verified.is_ok());
        }
        match verified {
            Ok(verified) => match self.accept(request, verified, line) {
                Ok(authenticated) => Authentication::User(authenticated),
                Err(refusal) => Authentication::Refused(Failure::CookieNotAccepted(refusal)),
            },
            Err(unverified) => {
                line.unverified = Some(Box::new(unverified.claimed(&request.head().headers)));
                Authentication::Refused(Failure::Unverified(unverified))
            }
        }
    }

    /// Joins a request and its verified user, and records the user in the access line and as present. The caller's
    /// memory no longer counts as that of an unauthenticated one.
    ///
    /// # Errors
    /// Returns 403 `foreign_origin`, where the credential is a cookie and another origin's page sent it; 401
    /// `missing_token`, where its session has no token for an upstream that wants one.
    pub fn accept(
        &self,
        request: ProtectedRequest,
        verified: Verified,
        line: &mut AccessLine,
    ) -> Result<AuthenticatedRequest, Refusal> {
        let policy = &self.runtime.policy;
        let authenticated = request.authenticated(verified, policy)?;
        let identity = authenticated.verified().identity();
        self.reservation.mark_verified();
        self.state.record_presence(policy, identity);
        line.user = Some(identity.user_id().to_owned());
        Ok(authenticated)
    }

    /// Verifies the credentials in cookies: the session cookie first, then the provider's token. Returns `None` where
    /// they are refused: they count as absent, since browsers send cookies unasked.
    async fn verify_cookies(&self, client: Option<IpAddr>, cookies: Cookies) -> Result<Option<Verified>, Unverified> {
        if let Some(session) = &cookies.session {
            match self.runtime.verifier.verify_session_cookie(session).await {
                Ok(verified) => return Ok(Some(verified)),
                Err(rejection) if rejection.is_unavailable() => {
                    return Err(Unverified::Rejected { rejection, claims: Box::default() });
                }
                Err(rejection) => tracing::debug!(%rejection, "session cookie refused, treated as absent"),
            }
        }
        let Some(token) = cookies.token else { return Ok(None) };
        match verify(self.state, self.runtime, client, token, Carrier::Cookie, self.last).await {
            Ok(verified) => Ok(Some(verified)),
            Err(unverified) if unverified.rejection().is_unavailable() => Err(unverified),
            Err(unverified) => {
                tracing::debug!(rejection = %unverified.rejection(), "provider's cookie refused, treated as absent");
                Ok(None)
            }
        }
    }
}

/// Counts a token in the URL by route and origin, and logs a warning once a day for each.
fn report_query_token(state: &ProxyState, request: &ProtectedRequest, is_verified: bool) {
    let origin = request.head().headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin =
        origin.map_or_else(|| "a client without Origin".to_owned(), |origin| origin.chars().take(256).collect());
    let route = &request.route().label;
    if let Some(origin) = state.query_tokens.count(route, &origin, is_verified, unix_seconds()) {
        let names = request.route().token_from.query.as_ref().map_or(&[][..], |query| &query.names);
        tracing::warn!(
            %origin,
            %route,
            parameter = names.join(" or "),
            "deprecated: token in the query string; send it as the first message of a WebSocket, or in Authorization"
        );
    }
}

fn refused_as_malformed(request: &ProtectedRequest, bad: BadCredential, line: &mut AccessLine) -> Authentication {
    line.unverified = Some(Box::new(sender_of_malformed(&request.head().headers)));
    Authentication::Refused(Failure::Bad(bad))
}

/// Returns what is known of the sender of a credential that cannot be a token.
fn sender_of_malformed(headers: &HeaderMap) -> UnverifiedCredential {
    with_request(UnverifiedCredential::default(), headers)
}

/// Verifies the token in the headers of a request to one of the proxy's own endpoints, and records its carrier in the access
/// line; of one that is refused also what it claims.
///
/// # Errors
/// Returns 401 where there is no token, or an invalid one; 429 where too many were before it, 503 where it cannot be verified
/// now.
pub async fn verify_own_request(
    state: &ProxyState,
    runtime: &Runtime,
    own: &mut OwnRequest,
    line: &mut AccessLine,
) -> Result<Verified, Refusal> {
    let verbose = runtime.policy.verbose_errors;
    let (token, carrier) = match own.extract(&runtime.policy) {
        Ok(Extracted::Token(token, carrier)) => (token, carrier),
        Ok(Extracted::Cookies(..) | Extracted::Nothing(_)) => return Err(Refusal::missing_token()),
        Err(bad) => {
            line.unverified = Some(Box::new(sender_of_malformed(&own.head().headers)));
            return Err(Refusal::bad_credential(bad, verbose));
        }
    };
    line.carrier = Some(carrier.name());
    let verified = verify(state, runtime, own.client().limited_address(), token, carrier, None).await;
    verified.map_err(|unverified| {
        line.unverified = Some(Box::new(unverified.claimed(&own.head().headers)));
        unverified.refusal(verbose)
    })
}

fn without_credential(request: ProtectedRequest, proof: NoCredential) -> Authentication {
    match request.without_credential(proof) {
        Ok(public) => Authentication::Public(public),
        Err((request, proof)) => Authentication::Missing(request, proof),
    }
}

/// Verifies a token. A client whose earlier tokens have failed too often causes no request to a provider.
///
/// # Errors
/// Returns the reason why the token was refused.
async fn verify(
    state: &ProxyState,
    runtime: &Runtime,
    client: Option<IpAddr>,
    token: Token,
    carrier: Carrier,
    last: Option<&LastToken>,
) -> Result<Verified, Unverified> {
    let limit = runtime.policy.limits.failed_tokens_per_minute;
    let counted = client.zip(limit);
    let over = counted.and_then(|(address, _)| state.addresses.failure_limit_wait(address));
    let lookup = if over.is_some() { Lookup::CachedOnly } else { Lookup::MayFetch };
    let (rejection, claims) = match runtime.verifier.verify(token, carrier, last, lookup).await {
        Ok(verified) => return Ok(verified),
        Err(RejectedToken { rejection, token }) => (rejection, Box::new(unverified_claims(&token))),
    };
    if rejection.counts()
        && let Some((address, per_minute)) = counted
        // The number of live instances is needed for the limit, so this is looked up for a failure only.
        && let Some(retry_after) = state.addresses.record_failure(address, state.failed_tokens_per_minute(per_minute))
    {
        state.metrics.limited("failed_tokens_per_minute");
        return Err(Unverified::TooMany { rejection, claims, retry_after });
    }
    Err(Unverified::Rejected { rejection, claims })
}

/// Verifies a token as [`verify`] does, by the policy in force when verification ends, and returns it beside the result:
/// a socket may wait for hours before it presents its token, and a reload may come while a provider is asked. If no
/// verdict was possible, none is sought again: the client may have waited for as long as a provider may take.
pub async fn verify_by_policy_in_force(
    state: &ProxyState,
    client: Option<IpAddr>,
    token: &Token,
    carrier: Carrier,
) -> (Arc<Runtime>, Result<Verified, Unverified>) {
    loop {
        let runtime = state.current();
        let verified = verify(state, &runtime, client, token.duplicate(), carrier, None).await;
        let has_verdict = verified.as_ref().err().is_none_or(|refused| !refused.rejection().is_unavailable());
        if !has_verdict || state.current().generation == runtime.generation {
            return (runtime, verified);
        }
    }
}

/// Adds the `Origin` and the `User-Agent` of the request.
fn with_request(claims: UnverifiedCredential, headers: &HeaderMap) -> UnverifiedCredential {
    /// Upper bound on a value, in characters.
    const MAX_CHARACTERS: usize = 256;
    let text = |name: &HeaderName| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_CHARACTERS).collect())
    };
    UnverifiedCredential { origin: text(&ORIGIN), user_agent: text(&USER_AGENT), ..claims }
}

/// The reason why a token was not verified.
#[derive(Debug)]
pub enum Unverified {
    /// The token was rejected, or cannot be verified now.
    Rejected {
        /// The reason.
        rejection: Rejection,
        /// The claims of the token, without verification.
        claims: Box<UnverifiedCredential>,
    },
    /// The token is invalid, and so were too many before it from this address.
    TooMany {
        /// The reason why it is invalid.
        rejection: Rejection,
        /// The claims of the token, without verification.
        claims: Box<UnverifiedCredential>,
        /// The time after which the next token may be presented.
        retry_after: Duration,
    },
}

impl Unverified {
    /// Returns the reason why the token is invalid.
    #[must_use]
    pub fn rejection(&self) -> &Rejection {
        match self {
            Self::Rejected { rejection, .. } | Self::TooMany { rejection, .. } => rejection,
        }
    }

    /// Returns the claims of the token, without verification; for the log.
    #[must_use]
    pub fn claims(&self) -> &UnverifiedCredential {
        match self {
            Self::Rejected { claims, .. } | Self::TooMany { claims, .. } => claims,
        }
    }

    /// Returns the claims of the token, without verification, with the `Origin` and `User-Agent` of its request; for
    /// the log.
    #[must_use]
    pub fn claimed(&self, headers: &HeaderMap) -> UnverifiedCredential {
        with_request(self.claims().clone(), headers)
    }

    /// Returns the refusal over HTTP; `verbose` repeats the reason to the client.
    #[must_use]
    pub fn refusal(&self, verbose: bool) -> Refusal {
        match self {
            Self::Rejected { rejection, .. } => Refusal::rejected(rejection, verbose),
            Self::TooMany { rejection, retry_after, .. } => Refusal::too_many_failures(rejection, *retry_after),
        }
    }
}
