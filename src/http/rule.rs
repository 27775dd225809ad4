//! Which rule a request falls under. Consumes the [`Admitted`]; what comes out says what may follow.

use super::admit::is_ours;
use super::{Admitted, OwnRequest, PreflightRequest, ProtectedRequest, PublicRequest, Refusal};
use crate::policy::{AuthMode, Policy};

/// A request and what its rule makes of it.
#[derive(Debug)]
pub enum Ruled {
    /// Under `/.vestibule`: never routed upstream.
    Own(OwnRequest),
    /// CORS asks first.
    Preflight(PreflightRequest),
    /// `auth: none`.
    Public(PublicRequest),
    /// A credential is needed, or verified when sent.
    Protected(ProtectedRequest),
}

/// Finds the rule.
///
/// # Errors
/// `auth: deny` is a refusal, before any credential is read.
pub fn rule(policy: &Policy, admitted: Admitted) -> Result<Ruled, Refusal> {
    let is_own = is_ours(&admitted.parts);
    if is_own && admitted.announced.is_none() {
        return Ok(Ruled::Own(OwnRequest { admitted }));
    }
    // A preflight is ruled by the method it announces: what may not be asked need not be asked about.
    let method = admitted.announced.as_ref().unwrap_or(&admitted.parts.method);
    let matched = policy.route(method.as_str(), admitted.parts.uri.path());
    match matched.route.auth {
        _ if is_own => Ok(Ruled::Preflight(PreflightRequest { admitted, route: matched.route, is_ours: true })),
        AuthMode::Deny => Err(Refusal::closed_route()),
        _ if admitted.announced.is_some() => {
            let is_ours = policy.cors.is_some();
            Ok(Ruled::Preflight(PreflightRequest { admitted, route: matched.route, is_ours }))
        }
        AuthMode::None => Ok(Ruled::Public(PublicRequest { admitted, route: matched.route })),
        AuthMode::Required | AuthMode::Optional => Ok(Ruled::Protected(ProtectedRequest { admitted, matched })),
    }
}

impl Admitted {
    /// Who asks.
    #[must_use]
    pub fn client(&self) -> &super::ClientAddress {
        &self.client
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &hyper::http::request::Parts {
        &self.parts
    }
}
