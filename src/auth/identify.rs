//! What makes an identity of verified claims: whom they are for, which kind of token said them, what is required of
//! them, and whose they are. Asked of a token when it is verified, of an open socket after a reload, and of a session
//! cookie at each use, so that none of them passes what the others would not.
//!
//! Signatures and times are the verifier's.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::allow::unmet;
use super::identity::{Expiry, VerifiedBy};
use super::kind::{KindHeader, flattened};
use super::remote::asked_how;
use super::trace::Trace;
use super::{Identity, Rejection, claims};
use crate::policy::{PathVariables, ProviderSpec};

/// What a token said, and who vouched for it.
pub(super) struct Said {
    pub(super) claims: Map<String, Value>,
    pub(super) kind: KindHeader,
    pub(super) end: Expiry,
    pub(super) verified_by: VerifiedBy,
}

/// The identity of what a token says now.
///
/// # Errors
/// What is wrong with it for this provider.
pub(super) fn identify(spec: &Arc<ProviderSpec>, said: Said, trace: &mut impl Trace) -> Result<Identity, Rejection> {
    let Said { claims, kind, end, verified_by } = said;
    claims::check_addressee(spec, kind, &claims, trace)?;
    // Required claims come before the user id, and are read as every rule reads claims.
    let user_id = claims::user_id(spec, &claims);
    let shown = user_id.clone().unwrap_or_default();
    let claims = flattened(spec, claims);
    let identity = Identity::new(Arc::clone(spec), shown, claims, end, verified_by, kind);
    // No route is known here, so a requirement of a provider has no path variables.
    if let Some(claim) = unmet(&spec.require, &PathVariables::default(), |claim| identity.claim(claim)) {
        return Err(Rejection::Required(claim.to_string()));
    }
    trace.step("user", format_args!("{}", user_id?));
    Ok(identity)
}

/// The identity of what a token said when it was verified, perhaps by another configuration (`preset` is that of its
/// provider there). Whether its key still stands is the caller's to ask, and times are not looked at: a socket and a
/// session may outlive them.
///
/// # Errors
/// What is wrong with it for this provider.
pub(super) fn identify_again(spec: &Arc<ProviderSpec>, preset: &str, said: Said) -> Result<Identity, Rejection> {
    let other = || Rejection::UnknownIssuer(spec.name.clone());
    let is_its_issuer = spec.issuer.as_deref().is_none_or(|issuer| said.claims.get("iss") == Some(&issuer.into()));
    if spec.preset != preset || !is_its_issuer {
        return Err(other());
    }
    match said.verified_by {
        VerifiedBy::Key { algorithm, .. } if !spec.algorithms.contains(&algorithm) => {
            return Err(Rejection::Algorithm(format!("{algorithm:?}")));
        }
        VerifiedBy::Key { .. } => {}
        VerifiedBy::Provider(how) => {
            let asked = spec.remote.as_ref().filter(|remote| remote.instead);
            if asked.is_none_or(|remote| asked_how(remote) != how) {
                return Err(other());
            }
        }
    }
    identify(spec, said, &mut ())
}
