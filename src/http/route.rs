//! Matches a request with the routes. Consumes the [`Admitted`]; the type of the result decides the next step.

use std::sync::Arc;

use hyper::Method;

use super::{Admitted, OwnRequest, PreflightRequest, ProtectedRequest, PublicRequest, Refusal};
use crate::policy::{AuthMode, Conflict, Policy, Route};

/// A request, sorted by the kind of its route.
#[derive(Debug)]
pub enum RoutedRequest {
    /// A request under `/.vestibule`, or for the document of a protected resource. It is never forwarded.
    Own(OwnRequest),
    /// A CORS preflight.
    Preflight(PreflightRequest),
    /// A request of a route with `auth: none`.
    Public(PublicRequest),
    /// A request whose credential is required, or verified if present.
    Protected(ProtectedRequest),
}

impl RoutedRequest {
    /// Returns the route, unless the proxy answers the request itself.
    #[must_use]
    pub fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Self::Own(_) => None,
            Self::Preflight(preflight) => Some(preflight.route()),
            Self::Public(public) => Some(public.route()),
            Self::Protected(protected) => Some(protected.route()),
        }
    }
}

/// Finds the route of a request.
///
/// # Errors
/// Returns a refusal if the route has `auth: deny`, before any credential is read, or if the path is ambiguous.
pub fn route_request(policy: &Policy, admitted: Box<Admitted>) -> Result<RoutedRequest, Refusal> {
    if is_resource_document(policy, &admitted) {
        return Ok(RoutedRequest::Own(OwnRequest { admitted }));
    }
    // The prefix of the proxy's endpoints is checked before the limit on readings and before every route.
    let readings = match policy.readings(admitted.message.parts.uri.path()) {
        Ok(readings) if readings.is_own() => return Ok(own(policy, admitted)),
        Ok(readings) => readings,
        Err(too_many) if too_many.may_be_own => return Ok(own(policy, admitted)),
        Err(_) => return Err(Refusal::bad_request("a path with too many readings")),
    };
    // A preflight is matched by the method that it announces, so that a denied method is refused at once.
    let method = admitted.announced.as_ref().unwrap_or(&admitted.message.parts.method);
    let matched = policy.match_route(method.as_str(), &readings);
    if matched.auth == AuthMode::Deny {
        return Err(Refusal::closed_route(&matched.strictest));
    }
    if admitted.announced.is_some() {
        let is_answered_here = policy.cors.is_some();
        if !is_answered_here && matched.has_conflict(Conflict::Upstream) {
            return Err(Refusal::readings_differ(Conflict::Upstream));
        }
        return Ok(RoutedRequest::Preflight(PreflightRequest { admitted, route: matched.route, is_answered_here }));
    }
    if let Some(conflict) = matched.conflict(admitted.upgrade.is_some()) {
        return Err(Refusal::readings_differ(conflict));
    }
    Ok(match matched.auth {
        AuthMode::None => RoutedRequest::Public(PublicRequest { admitted, route: matched.route }),
        AuthMode::Required | AuthMode::Optional | AuthMode::Deny => {
            RoutedRequest::Protected(ProtectedRequest::new(admitted, matched))
        }
    })
}

/// Returns whether a request is for the document of a protected resource. The path must be exactly its own: in any
/// other spelling it is the upstream's. A preflight counts by the method that it announces.
fn is_resource_document(policy: &Policy, admitted: &Admitted) -> bool {
    let method = admitted.announced.as_ref().unwrap_or(&admitted.message.parts.method);
    matches!(*method, Method::GET | Method::HEAD) && policy.resource_at(admitted.message.parts.uri.path()).is_some()
}

/// Returns a request under the proxy's own prefix; the proxy always answers a preflight there itself.
fn own(policy: &Policy, admitted: Box<Admitted>) -> RoutedRequest {
    match policy.routes.last() {
        Some(route) if admitted.announced.is_some() => {
            RoutedRequest::Preflight(PreflightRequest { admitted, route: Arc::clone(route), is_answered_here: true })
        }
        _ => RoutedRequest::Own(OwnRequest { admitted }),
    }
}

impl Admitted {
    /// Returns the address of the client.
    #[must_use]
    pub fn client(&self) -> &super::ClientAddress {
        &self.client
    }
}
