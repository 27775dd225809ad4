//! Which rule a request falls under. Consumes the [`Admitted`]; what comes out says what may follow.

use super::admit::is_ours;
use super::{Admitted, OwnRequest, ProtectedRequest, PublicRequest, Refusal};
use crate::policy::{AuthMode, Policy};

/// A request and what its rule makes of it.
#[derive(Debug)]
pub enum Ruled {
    /// Under `/.vestibule`: never routed upstream.
    Own(OwnRequest),
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
    if is_ours(&admitted.parts) {
        return Ok(Ruled::Own(OwnRequest { admitted }));
    }
    let matched = policy.route(admitted.parts.method.as_str(), admitted.parts.uri.path());
    match matched.route.auth {
        AuthMode::Deny => Err(Refusal::closed_route()),
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
