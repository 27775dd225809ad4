//! Turns verified claims into an [`Identity`]: checks audience, kind and the provider's required claims, and reads
//! the user id. The same code runs for a token when it is verified, for an open session after a reload, and for a
//! session cookie at each request, so that none of the three accepts what another would reject.
//!
//! Signatures and times are checked by the verifier.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::allow::unmet;
use super::identity::{Expiry, VerifiedBy};
use super::kind::{TokenKindHeader, flattened};
use super::trace::Trace;
use super::{Identity, KeyFingerprint, Rejection, claims};
use crate::policy::{PathVariables, ProviderSpec, RemoteQuestion, RemoteSpec};

/// The claims of a token whose signature and times have been checked.
pub(super) struct VerifiedClaims {
    pub(super) claims: Map<String, Value>,
    pub(super) kind: TokenKindHeader,
    pub(super) expiry: Expiry,
    pub(super) verified_by: VerifiedBy,
}

/// Turns verified claims into an identity.
///
/// # Errors
/// Returns the reason why the provider's configuration does not accept the claims.
pub(super) fn identify(
    spec: &Arc<ProviderSpec>,
    verified: VerifiedClaims,
    trace: &mut impl Trace,
) -> Result<Identity, Rejection> {
    let VerifiedClaims { claims, kind, expiry, verified_by } = verified;
    claims::check_audience_and_kind(spec, kind, &claims, trace)?;
    // A missing required claim is reported before a missing user id; both are looked up as rules look claims up.
    let user_id = claims::user_id(spec, &claims);
    let shown = user_id.clone().unwrap_or_default();
    let claims = flattened(spec, claims);
    let identity = Identity::new(Arc::clone(spec), shown, claims, expiry, verified_by, kind);
    // A provider's requirement has no path variables, since it does not depend on the route.
    if let Some(claim) = unmet(&spec.require, &PathVariables::default(), |claim| identity.claim(claim)) {
        return Err(Rejection::Required(claim.to_string()));
    }
    trace.step("user", format_args!("{}", user_id?));
    Ok(identity)
}

/// Turns claims that were verified earlier into an identity by the current configuration. `preset` is the preset of
/// their provider when they were verified. The caller checks whether the key is still current; times are not checked,
/// since a session may be configured to outlive its token.
///
/// # Errors
/// Returns the reason why the provider's configuration does not accept the claims.
pub(super) fn identify_again(
    spec: &Arc<ProviderSpec>,
    preset: &str,
    verified: VerifiedClaims,
) -> Result<Identity, Rejection> {
    let other = || Rejection::UnknownIssuer(spec.name.clone());
    let is_its_issuer = spec.issuer.as_deref().is_none_or(|issuer| verified.claims.get("iss") == Some(&issuer.into()));
    if spec.preset != preset || !is_its_issuer {
        return Err(other());
    }
    match verified.verified_by {
        VerifiedBy::Key { algorithm, .. } if !spec.algorithms.contains(&algorithm) => {
            return Err(Rejection::Algorithm(format!("{algorithm:?}")));
        }
        VerifiedBy::Key { .. } => {}
        VerifiedBy::Provider(endpoint) => {
            let remote = spec.remote.as_ref().filter(|remote| remote.verifies_opaque_tokens);
            if remote.is_none_or(|remote| endpoint_fingerprint(remote) != endpoint) {
                return Err(other());
            }
        }
    }
    identify(spec, verified, &mut ())
}

/// Returns a fingerprint of the endpoint that is asked, so that a token confirmed by one endpoint is not taken as
/// confirmed by another.
pub(super) fn endpoint_fingerprint(spec: &RemoteSpec) -> KeyFingerprint {
    let (how, url) = match &spec.question {
        RemoteQuestion::Introspection { url, .. } => (&b"introspection"[..], url),
        RemoteQuestion::Clerk { base, .. } => (&b"clerk"[..], base),
        RemoteQuestion::Supabase { base, .. } => (&b"supabase"[..], base),
    };
    KeyFingerprint::of(&[how, url.as_str().as_bytes()])
}
