//! A provider at run time: its configuration, its keys and its remote checks, and the verification of a signature with
//! its keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jsonwebtoken::DecodingKey;

use super::Rejection;
use super::clock::is_in_milliseconds;
use super::jwt::Parsed;
use super::keys::{Candidates, KeyFingerprint, ProviderKeys};
use super::remote::RemoteChecker;
use super::trace::Trace;
use crate::policy::ProviderSpec;
use crate::telemetry::Label;

/// A provider with its keys and remote checks, which a reload keeps if the configuration of the provider is the same.
pub(super) struct ProviderState {
    pub(super) spec: Arc<ProviderSpec>,
    /// The provider's name, for metrics.
    pub(super) label: Label,
    pub(super) keys: ProviderKeys,
    pub(super) remote: Option<RemoteChecker>,
    /// Whether the log has said that this provider's times are in milliseconds.
    pub(super) milliseconds_reported: AtomicBool,
}

impl ProviderState {
    /// Warns once of a verified token whose expiry is beyond the year 5000: it was written in milliseconds, and such
    /// tokens never expire.
    pub(super) fn check_unit_of_expiry(&self, expires_at: u64) {
        if is_in_milliseconds(expires_at) && !self.milliseconds_reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                provider = %self.spec.name,
                exp = expires_at,
                "token expires after the year 5000: the issuer writes milliseconds where RFC 7519 has seconds, so its tokens never expire"
            );
        }
    }
}

/// Whether verifying a token may cause requests to its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Keys may be fetched and the provider may be asked.
    MayFetch,
    /// Only cached keys and answers are used, because the client has presented too many invalid tokens.
    CachedOnly,
}

/// Verifies the signature with the keys that fit, after refetching the keys if none does, and returns the fingerprint
/// of the key.
pub(super) async fn verify_signature(
    provider: &ProviderState,
    parsed: &Parsed<'_>,
    lookup: Lookup,
    trace: &mut (impl Trace + Send),
) -> Result<KeyFingerprint, Rejection> {
    let id = parsed.key_id.as_deref();
    let may_fetch = lookup == Lookup::MayFetch;
    let mut set = match provider.keys.by_id(id, may_fetch).await {
        Some(set) => set?,
        None => provider.keys.current().await?,
    };
    if matches!(set.candidates(parsed.algorithm, id), Candidates::Unknown) && may_fetch {
        trace.step("key", format_args!("kid {} is not in the cached key set; fetching it again", id.unwrap_or("none")));
        set = provider.keys.refetch().await?;
    }
    let keys = match set.candidates(parsed.algorithm, id) {
        Candidates::Keys(keys) => keys,
        Candidates::Unknown => return Err(Rejection::UnknownKey(parsed.key_id.clone())),
    };
    trace.step("key", format_args!("{} of the provider's keys match", keys.len()));
    let verifies = |key: &DecodingKey| {
        // An error means that the key or the signature is not usable with the algorithm, so nothing is verified.
        jsonwebtoken::crypto::verify(parsed.signature, parsed.signed.as_bytes(), key, parsed.algorithm).unwrap_or(false)
    };
    let Some((_, fingerprint)) = keys.iter().find(|(key, _)| verifies(key)) else {
        return Err(Rejection::BadSignature);
    };
    trace.step("signature", format_args!("verifies"));
    Ok(*fingerprint)
}
