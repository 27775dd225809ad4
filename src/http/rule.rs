//! Which rule a request falls under. Consumes the [`Admitted`]; what comes out says what may follow.

use std::sync::Arc;

use super::{Admitted, OwnRequest, PreflightRequest, ProtectedRequest, PublicRequest, Refusal};
use crate::policy::{AuthMode, Conflict, Policy};

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
    // The prefix of our endpoints comes before the bound on readings and before every rule.
    let readings = match policy.readings(admitted.parts.uri.path()) {
        Ok(readings) if readings.is_own() => return Ok(own(policy, admitted)),
        Ok(readings) => readings,
        Err(too_many) if too_many.may_be_own => return Ok(own(policy, admitted)),
        Err(_) => return Err(Refusal::bad_request("a path with too many readings")),
    };
    // A preflight is ruled by the method it announces: what may not be asked need not be asked about.
    let method = admitted.announced.as_ref().unwrap_or(&admitted.parts.method);
    let judgement = policy.judge(method.as_str(), &readings);
    if judgement.auth == AuthMode::Deny {
        return Err(Refusal::closed_route(&judgement.strictest));
    }
    if admitted.announced.is_some() {
        let is_ours = policy.cors.is_some();
        if !is_ours && judgement.has_conflict(Conflict::Upstream) {
            return Err(Refusal::readings_differ(Conflict::Upstream));
        }
        return Ok(Ruled::Preflight(PreflightRequest { admitted, route: judgement.route, is_ours }));
    }
    if let Some(conflict) = judgement.conflict(admitted.upgrade.is_some()) {
        return Err(Refusal::readings_differ(conflict));
    }
    Ok(match judgement.auth {
        AuthMode::None => Ruled::Public(PublicRequest { admitted, route: judgement.route }),
        AuthMode::Required | AuthMode::Optional | AuthMode::Deny => {
            Ruled::Protected(ProtectedRequest { admitted, judgement })
        }
    })
}

/// What is under our own prefix; a preflight there is always answered by us.
fn own(policy: &Policy, admitted: Admitted) -> Ruled {
    match policy.routes.last() {
        Some(route) if admitted.announced.is_some() => {
            Ruled::Preflight(PreflightRequest { admitted, route: Arc::clone(route), is_ours: true })
        }
        _ => Ruled::Own(OwnRequest { admitted }),
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
