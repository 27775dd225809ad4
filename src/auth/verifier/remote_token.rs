//! Verifies tokens by the provider: opaque tokens, signed ones that only the provider can verify, and signed ones about
//! which it is asked in addition.

use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::super::claims::{self, decimal_text};
use super::super::identify::endpoint_fingerprint;
use super::super::identity::VerifiedBy;
use super::super::jwt::Parsed;
use super::super::kind::{TokenKindHeader, check_answer};
use super::super::provider_state::{Lookup, ProviderState};
use super::super::remote::{Priority, RemoteAnswer, RemoteCheck, RemoteChecker};
use super::super::trace::Trace;
use super::super::{Identity, Rejection};
use super::{PresentedToken, check_times_and_identify};
use crate::policy::{Family, KeySource, ProviderSpec};

/// Returns the remote check for a token whose signature only the provider can verify: the provider publishes no keys,
/// or the token is signed with the legacy secret of a Supabase project that has keys now.
pub(super) fn remote_signature_checker(provider: &ProviderState, algorithm: Algorithm) -> Option<&RemoteChecker> {
    let remote = provider.remote.as_ref().filter(|remote| remote.spec().verifies_opaque_tokens)?;
    let spec = &provider.spec;
    let by_legacy_secret =
        spec.family == Family::Supabase && algorithm == Algorithm::HS256 && !spec.algorithms.contains(&algorithm);
    (spec.keys == KeySource::Introspection || by_legacy_secret).then_some(remote)
}

/// Makes an identity of the claims in the provider's answer.
pub(super) async fn identity_from_answer(
    spec: &Arc<ProviderSpec>,
    remote: &RemoteChecker,
    presented: &PresentedToken<'_>,
    trace: &mut (impl Trace + Send),
) -> Result<Identity, Rejection> {
    let answer = ask_provider(spec, remote, presented, None).await?;
    trace.step("remote", format_args!("the provider confirms it"));
    let mut claims = Map::clone(&answer);
    claims.shift_remove("active");
    match (&spec.issuer, claims.get("iss")) {
        // The endpoint belongs to the issuer, so an answer without `iss` is the issuer's.
        (Some(issuer), None) => {
            claims.insert("iss".to_owned(), issuer.as_str().into());
        }
        (Some(issuer), Some(Value::String(found))) if found == issuer => {}
        (Some(_), Some(found)) => {
            return Err(Rejection::UnknownIssuer(found.as_str().unwrap_or_default().chars().take(256).collect()));
        }
        (None, _) => {}
    }
    let verified_by = VerifiedBy::Provider(endpoint_fingerprint(remote.spec()));
    check_times_and_identify(spec, TokenKindHeader::default(), claims, verified_by, presented.now, trace)
}

/// Makes an identity of a token's own claims, after the provider has confirmed the token.
pub(super) async fn confirm_and_identify(
    spec: &Arc<ProviderSpec>,
    remote: &RemoteChecker,
    presented: &PresentedToken<'_>,
    parsed: Parsed<'_>,
    trace: &mut (impl Trace + Send),
) -> Result<Identity, Rejection> {
    if spec.keys == KeySource::Introspection {
        return identity_from_answer(spec, remote, presented, trace).await;
    }
    // The claims are checked first, so that the provider is not asked about tokens that are rejected anyway.
    claims::required_exp(&parsed.claims)?;
    let verified_by = VerifiedBy::Provider(endpoint_fingerprint(remote.spec()));
    let identity = check_times_and_identify(spec, parsed.kind, parsed.claims, verified_by, presented.now, trace)?;
    let answer = ask_provider(spec, remote, presented, identity.session_id()).await?;
    check_agreement(spec, identity.claims(), &answer)?;
    trace.step("remote", format_args!("the provider confirms it, and with it the signature"));
    Ok(identity)
}

/// Asks the provider about a token, or uses its cached answer.
///
/// # Errors
/// [`Rejection::NoSession`] if the answer is no, [`Rejection::RemoteUnavailable`] if there is none.
pub(super) async fn ask_provider(
    spec: &ProviderSpec,
    remote: &RemoteChecker,
    presented: &PresentedToken<'_>,
    session: Option<&str>,
) -> Result<Arc<Map<String, Value>>, Rejection> {
    let provider = || spec.name.clone();
    // The token is copied only when a request is made.
    let outcome = if let Some(answer) = remote.cached(&presented.digest) {
        Ok(answer)
    } else if presented.lookup == Lookup::CachedOnly {
        let reason = "not asked, because too many tokens from this address were rejected".to_owned();
        return Err(Rejection::NoSession { provider: provider(), reason });
    } else {
        let check = RemoteCheck::token(presented.token, presented.digest, session);
        remote.ask(&check, Priority::Admission).await
    };
    match outcome {
        Ok(RemoteAnswer::Active(claims)) => Ok(claims),
        Ok(RemoteAnswer::Inactive(reason)) => {
            Err(Rejection::NoSession { provider: provider(), reason: reason.to_string() })
        }
        Err(error) => Err(Rejection::RemoteUnavailable {
            provider: provider(),
            reason: error.reason,
            retry_after: error.retry_after,
        }),
    }
}

/// Checks that the provider's answer is about the same issuer and user as the token, and about an accepted kind.
pub(super) fn check_agreement(
    spec: &ProviderSpec,
    claims: &Map<String, Value>,
    answer: &Map<String, Value>,
) -> Result<(), Rejection> {
    // A provider that numbers its users may write the number as text in one place.
    let same = |ours: &Value, theirs: &Value| ours == theirs || decimal_text(ours).is_some_and(|text| text == *theirs);
    let agree = |ours: &Value, theirs: &Value| same(ours, theirs) || same(theirs, ours);
    let differs = |name: &&str| {
        answer.get(*name).is_some_and(|theirs| !claims.get(*name).is_some_and(|ours| agree(ours, theirs)))
    };
    check_answer(spec, answer)?;
    match ["sub", "iss"].into_iter().find(differs) {
        None => Ok(()),
        Some(name) => Err(Rejection::NoSession {
            provider: spec.name.clone(),
            reason: format!("{name} in the provider's answer differs from the token's"),
        }),
    }
}
