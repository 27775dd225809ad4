//! Verifies a token and turns it into an [`Identity`].
//!
//! The checks run in the order of docs/contract.md section 5: form and size first, then the signature, the claims,
//! the provider's answer where it is asked, and revocations last. [`Verifier::verify`] runs them for a request and
//! caches the result; [`Verifier::explain`] runs the same checks and reports each step (`vestibule token inspect`).

mod remote_token;
mod session_cookie;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::allow::unmet;
use super::cache::{CachedToken, LastToken, TokenCache};
use super::claims;
use super::identify::{VerifiedClaims, identify};
use super::identity::{Expiry, VerifiedBy};
use super::jwt;
use super::keys::ProviderKeys;
use super::kind::TokenKindHeader;
use super::login::{LoginLimits, Logins};
use super::provider_state::{Lookup, ProviderState, verify_signature};
use super::remote::{Priority, RemoteAnswer, RemoteCheck, RemoteChecker};
use super::token_digest::TokenDigest;
use super::trace::{ClaimedProvider, Step, Trace};
use super::{Carrier, Identity, Rejection, Revocations, SessionCookies, Token, unix_seconds};
use crate::policy::{Claim, Family, KeySource, LoginSpec, PathVariables, ProviderSpec, Secret, SessionSpec};
use crate::telemetry::{Label, Metrics, TOKEN_OUTCOMES};

pub use session_cookie::OpenedSessionCookie;

use remote_token::{
    ask_provider, check_agreement, confirm_and_identify, identity_from_answer, remote_signature_checker,
};

/// A verified identity, the place of its credential, and the token if it was one. Only [`Verifier::verify`] and
/// [`Verifier::verify_session_cookie`] construct one.
#[derive(Debug)]
pub struct Verified {
    identity: Arc<Identity>,
    token: Option<Token>,
    carrier: Carrier,
}

impl Verified {
    /// Returns the verified user.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Returns the place of the credential; `Carrier::Cookie` for the proxy's session cookie too.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Returns whether the token is available. For a session cookie it is only if the session began with a sign-in.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Returns the identity and the token, for forwarding.
    #[must_use]
    pub fn into_parts(self) -> (Arc<Identity>, Option<Token>) {
        (self.identity, self.token)
    }

    /// Returns the check by which the provider is asked about the token or its session while a WebSocket is open, or
    /// `None` if the provider cannot be asked.
    #[must_use]
    pub fn remote_check(&self) -> Option<RemoteCheck> {
        let remote = self.identity.provider().remote.as_ref()?;
        let session = self.identity.session_id();
        if let Some(session) = session.filter(|_| !remote.question.carries_token()) {
            return Some(RemoteCheck::session(session));
        }
        // Clerk cannot be asked about a signed token that names no session.
        let is_asked =
            remote.question.carries_token() || matches!(self.identity.verified_by(), VerifiedBy::Provider(_));
        let token = self.token.as_ref().filter(|_| is_asked)?;
        Some(RemoteCheck::token(token, TokenDigest::of(token), session))
    }
}

/// A provider's answer about an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revalidation {
    /// The session continues.
    Active,
    /// The user signed out or was banned, or the session has ended.
    Revoked,
    /// The provider could not be asked.
    Unavailable,
}

/// Verifies tokens and session cookies by the providers of one configuration.
pub struct Verifier {
    providers: Vec<Arc<ProviderState>>,
    cache: Option<TokenCache>,
    revocations: Arc<Revocations>,
    session_cookies: Option<SessionCookies>,
    /// Sign-in by OpenID Connect, if it is configured.
    logins: Option<Logins>,
    /// The time at which the provider last confirmed a browser session, by the session's id.
    confirmed_sessions: Cache<Arc<str>, Instant>,
    /// The identity of this verifier in each [`LastToken`].
    id: Arc<()>,
    metrics: Arc<Metrics>,
    /// The metrics label of tokens that name no provider.
    no_provider: Label,
}

/// The result of verifying a token, with the steps before it.
#[derive(Debug)]
pub struct Explanation {
    /// The steps in order, up to the one that failed.
    pub steps: Vec<Step>,
    /// The result.
    pub verdict: Result<Arc<Identity>, Rejection>,
}

/// A token that is being verified.
struct PresentedToken<'a> {
    token: &'a Token,
    digest: TokenDigest,
    now: u64,
    lookup: Lookup,
    /// Whether `exp` may have passed. It is set only to recognise an old token; the result never admits a user.
    may_be_expired: bool,
}

/// A token that was not verified.
#[derive(Debug)]
pub struct RejectedToken {
    /// The reason.
    pub rejection: Rejection,
    /// The token, to log its claims.
    pub token: Token,
}

impl Verifier {
    /// Creates a verifier for these providers that caches at most `cache_limit` tokens, and starts fetching keys. It
    /// must be called inside a Tokio runtime. A provider that has not changed since `former` keeps its keys and cached
    /// answers.
    #[must_use]
    pub fn start(
        providers: &[Arc<ProviderSpec>],
        cache_limit: usize,
        revocations: Arc<Revocations>,
        metrics: Arc<Metrics>,
        session: Option<&SessionSpec>,
        former: Option<&Self>,
    ) -> Self {
        let no_provider: Label = "none".into();
        let carriers = Carrier::ALL.map(Carrier::name);
        metrics.credentials.create_series(&no_provider, &carriers, &["malformed", "unknown_issuer", "claim"], false);
        let providers = providers.iter().map(|spec| {
            let same = |known: &&Arc<ProviderState>| *known.spec == **spec;
            if let Some(known) = former.and_then(|former| former.providers.iter().find(same)) {
                return Arc::clone(known);
            }
            let label: Label = spec.name.as_str().into();
            metrics.credentials.create_series(&label, &carriers, &TOKEN_OUTCOMES, spec.remote.is_some());
            Arc::new(ProviderState {
                keys: ProviderKeys::start(Arc::clone(spec), Arc::clone(&metrics)),
                remote: RemoteChecker::new(spec, cache_limit, &metrics),
                milliseconds_reported: AtomicBool::new(false),
                label,
                spec: Arc::clone(spec),
            })
        });
        let providers = providers.collect();
        let cache = TokenCache::new(cache_limit);
        let former_cookies = former.and_then(|former| former.session_cookies.as_ref());
        let session_cookies = session.and_then(|spec| SessionCookies::new(spec, former_cookies));
        let confirmed_sessions = Cache::new(cache_limit.max(1));
        let id = Arc::default();
        Self {
            providers,
            cache,
            revocations,
            session_cookies,
            logins: None,
            confirmed_sessions,
            id,
            metrics,
            no_provider,
        }
    }

    /// Adds sign-in at these providers. A login that has not changed since `former` keeps its state.
    #[must_use]
    pub fn with_logins(
        mut self,
        specs: &[Arc<LoginSpec>],
        secret: Option<&Secret>,
        limits: LoginLimits,
        former: Option<&Self>,
    ) -> Self {
        let former = former.and_then(|former| former.logins.as_ref());
        self.logins = Logins::new(specs, &self.providers, secret, limits, &self.revocations, former);
        self
    }

    /// Makes the open sessions, which outlive a reload, use the logins of this verifier.
    pub fn put_in_force(&self) {
        if let Some(logins) = &self.logins {
            logins.put_in_force();
        }
    }

    /// Returns sign-in by OpenID Connect, if it is configured.
    #[must_use]
    pub fn logins(&self) -> Option<&Logins> {
        self.logins.as_ref().filter(|logins| !logins.is_empty())
    }

    /// Returns each provider with its keys.
    pub fn providers(&self) -> impl Iterator<Item = (&ProviderSpec, &ProviderKeys)> {
        self.providers.iter().map(|provider| (&*provider.spec, &provider.keys))
    }

    /// Returns whether every provider has been asked for its keys once, and at least one is usable: it has keys, or
    /// needs none.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let keys = || self.providers.iter().map(|provider| &provider.keys);
        keys().all(ProviderKeys::is_attempted) && (self.providers.is_empty() || keys().any(ProviderKeys::can_verify))
    }

    /// Waits until [`Verifier::is_ready`]. It stays ready, because keys are replaced but never dropped.
    pub async fn until_ready(&self) {
        for provider in &self.providers {
            provider.keys.first_attempt().await;
        }
        if !self.is_ready() {
            let usable = self.providers.iter().map(|provider| Box::pin(provider.keys.until_usable()));
            futures_util::future::select_all(usable).await;
        }
    }

    /// Returns the number of cached tokens.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.as_ref().map_or(0, TokenCache::len)
    }

    /// Finds a provider by its name.
    pub(super) fn provider(&self, name: &str) -> Option<&Arc<ProviderSpec>> {
        self.providers.iter().map(|known| &known.spec).find(|spec| spec.name == name)
    }

    /// Finds the current provider that replaced a former one; for a login session that of its login.
    pub(super) fn current_spec_of(&self, former: &ProviderSpec) -> Option<&Arc<ProviderSpec>> {
        if former.is_of_login() {
            return self.logins()?.get(&former.name).map(|login| &login.spec.provider_spec);
        }
        self.provider(&former.name)
    }

    /// Returns whether the key or provider that verified an open session's token is still current: the key is one of
    /// the provider's, or the token has expired (after that its key may be removed), or no key was used.
    #[must_use]
    pub fn is_current(&self, provider: &str, verified_by: VerifiedBy) -> bool {
        let known = self.providers.iter().find(|known| known.spec.name == provider);
        known.is_some_and(|known| match verified_by {
            VerifiedBy::Key { until, .. } if until <= unix_seconds() => true,
            VerifiedBy::Key { fingerprint, algorithm, .. } => known.keys.is_current(fingerprint, algorithm),
            // A reload that changes the endpoint of the checks is detected when the identity is restored.
            VerifiedBy::Provider(_) => true,
        })
    }

    /// Verifies a token. Waits at most for two key fetches, one that is in progress and the next (see
    /// [`ProviderKeys::refetch`]), and for one remote check; all of them have time limits. `last` is the last token of the
    /// connection, which saves computing a digest when it is the same.
    ///
    /// # Errors
    /// Returns the rejected token, with the reason.
    pub async fn verify(
        &self,
        token: Token,
        carrier: Carrier,
        last: Option<&LastToken>,
        lookup: Lookup,
    ) -> Result<Verified, RejectedToken> {
        let mut claimed = ClaimedProvider::default();
        let result = self.verify_cached(&token, last, lookup, &mut claimed).await;
        let result = result.and_then(|identity| check_carrier(&identity, carrier).map(|()| identity));
        let outcome = result.as_ref().map_or_else(Rejection::outcome, |_| "accepted");
        let provider = claimed.0.and_then(|index| self.providers.get(index));
        let label = provider.map_or(&self.no_provider, |provider| &provider.label);
        self.metrics.credentials.verified(label, carrier.name(), outcome);
        match result {
            Ok(identity) => Ok(Verified { identity, token: Some(token), carrier }),
            Err(rejection) => Err(RejectedToken { rejection, token }),
        }
    }

    /// Returns the issuer and reader of session cookies, or `None` without `browser.session`.
    #[must_use]
    pub fn session_cookies(&self) -> Option<&SessionCookies> {
        self.session_cookies.as_ref()
    }

    /// Verifies a token by the connection's last token, by the cache, or in full.
    async fn verify_cached(
        &self,
        token: &Token,
        last: Option<&LastToken>,
        lookup: Lookup,
        claimed: &mut ClaimedProvider,
    ) -> Result<Arc<Identity>, Rejection> {
        let now = unix_seconds();
        let known = last.and_then(|last| last.get(token, &self.id));
        if let (Some(last), Some((digest, identity))) = (last, known) {
            if self.is_still_valid(&identity, &digest, now) {
                self.metrics.credentials.looked_up("connection");
                let presented = PresentedToken { token, digest, now, lookup, may_be_expired: false };
                self.check_remote_and_revocations(&presented, &identity, claimed).await?;
                return Ok(identity);
            }
            last.clear();
        }
        let presented = PresentedToken { token, digest: TokenDigest::of(token), now, lookup, may_be_expired: false };
        let entry = self.cached_or_verified(&presented, claimed).await?;
        let identity = Arc::clone(&entry.identity);
        self.check_remote_and_revocations(&presented, &identity, claimed).await?;
        if let Some(last) = last.filter(|_| self.cache.is_some()) {
            last.set(token, presented.digest, entry, &self.id);
        }
        Ok(identity)
    }

    /// Takes a token from the cache, or verifies it and caches it.
    async fn cached_or_verified(
        &self,
        presented: &PresentedToken<'_>,
        claimed: &mut ClaimedProvider,
    ) -> Result<CachedToken, Rejection> {
        if let Some(entry) = self.cached(presented) {
            self.metrics.credentials.looked_up("hit");
            return Ok(entry);
        }
        self.metrics.credentials.looked_up("miss");
        // Boxed: a token that is known already needs none of this, and every request would have its size.
        let identity = Arc::new(Box::pin(self.verify_claims(presented, claimed)).await?);
        if let Some(provider) = self.providers.iter().find(|known| known.spec.name == identity.provider().name) {
            provider.check_unit_of_expiry(identity.expires_at());
        }
        let ttl = cache_ttl(&identity);
        let entry = CachedToken::new(identity, ttl);
        if let Some(cache) = &self.cache {
            cache.insert(presented.digest, &entry);
        }
        Ok(entry)
    }

    fn cached(&self, presented: &PresentedToken<'_>) -> Option<CachedToken> {
        let cache = self.cache.as_ref()?;
        let entry = cache.get(&presented.digest)?;
        if self.is_still_valid(&entry.identity, &presented.digest, presented.now) {
            tracing::debug!(user = entry.identity.user_id(), "token found in cache");
            return Some(entry);
        }
        cache.remove(&presented.digest);
        None
    }

    /// Returns whether a cached token is still valid: it has not expired, and its key is one that would verify it now, or
    /// its provider has not said since that it is inactive. Every other check can change its result only by a reload, which
    /// empties the cache.
    fn is_still_valid(&self, identity: &Identity, digest: &TokenDigest, now: u64) -> bool {
        let spec = identity.provider();
        let provider = self.providers.iter().find(|provider| provider.spec.name == spec.name);
        now < identity.expires_at().saturating_add(spec.clock_skew.as_secs())
            && provider.is_some_and(|provider| match identity.verified_by() {
                VerifiedBy::Key { fingerprint, algorithm, .. } => provider.keys.is_usable(fingerprint, algorithm),
                // The cache entry expires with the provider's answer. A check of an open socket may have got a later one.
                VerifiedBy::Provider(_) => provider
                    .remote
                    .as_ref()
                    .is_none_or(|remote| !remote.reports_inactive(digest, identity.session_id())),
            })
    }

    /// Checks the conditions that may change at any time, also for cached tokens: the provider's answer, if it is asked
    /// about signed tokens, and revocations.
    async fn check_remote_and_revocations(
        &self,
        presented: &PresentedToken<'_>,
        identity: &Identity,
        trace: &mut (impl Trace + Send),
    ) -> Result<(), Rejection> {
        let spec = identity.provider();
        let Some(index) = self.providers.iter().position(|provider| provider.spec.name == spec.name) else {
            return Err(Rejection::UnknownIssuer(spec.name.clone()));
        };
        trace.provider(index);
        if let Some(remote) = &self.providers[index].remote
            && !remote.spec().verifies_opaque_tokens
        {
            let answer = Box::pin(ask_provider(spec, remote, presented, identity.session_id())).await?;
            check_agreement(spec, identity.claims(), &answer)?;
            trace.step("remote", format_args!("the provider confirms it"));
        }
        // This is checked last, so that a revocation that arrives while the provider is asked takes effect.
        self.revocations.check_presented(identity, presented.now)
    }

    /// Asks a provider again about an open session.
    pub async fn revalidate(&self, provider: &str, question: &RemoteCheck) -> Revalidation {
        let provider = self.providers.iter().find(|known| known.spec.name == provider);
        let Some(remote) = provider.and_then(|provider| provider.remote.as_ref()) else {
            return Revalidation::Unavailable;
        };
        match remote.ask(question, Priority::Revalidation).await {
            Ok(RemoteAnswer::Active(_)) => Revalidation::Active,
            Ok(RemoteAnswer::Inactive(reason)) => {
                tracing::debug!(%reason, "provider reports that a session has ended");
                Revalidation::Revoked
            }
            Err(_) => Revalidation::Unavailable,
        }
    }

    /// Returns whether an expired token belongs to this user and would otherwise be valid. It only decides which
    /// message an open session gets, and never admits a user.
    pub async fn is_expired_token_of(&self, token: &Token, user: &Identity) -> bool {
        let digest = TokenDigest::of(token);
        let presented =
            PresentedToken { token, digest, now: unix_seconds(), lookup: Lookup::CachedOnly, may_be_expired: true };
        let Ok(identity) = self.verify_claims(&presented, &mut ClaimedProvider::default()).await else { return false };
        identity.user() == user.user() && self.revocations.check(&identity, presented.now).is_ok()
    }

    /// Verifies a token without the cache and reports each step.
    pub async fn explain(&self, token: &Token) -> Explanation {
        let mut steps = Vec::new();
        let presented = PresentedToken {
            token,
            digest: TokenDigest::of(token),
            now: unix_seconds(),
            lookup: Lookup::MayFetch,
            may_be_expired: false,
        };
        let verdict = match self.verify_claims(&presented, &mut steps).await {
            Ok(identity) => {
                self.check_remote_and_revocations(&presented, &identity, &mut steps).await.map(|()| Arc::new(identity))
            }
            Err(rejection) => Err(rejection),
        };
        Explanation { steps, verdict }
    }

    /// Verifies a token up to its claims; the caller checks revocations, and asks the provider about signed tokens.
    async fn verify_claims(
        &self,
        presented: &PresentedToken<'_>,
        trace: &mut (impl Trace + Send),
    ) -> Result<Identity, Rejection> {
        let token = presented.token.expose();
        // Validation ensures that a provider without keys is the only provider, or the one for opaque tokens.
        let only_introspection =
            matches!(self.providers.as_slice(), [only] if only.spec.keys == KeySource::Introspection);
        // Whatever else it says, a token that names its signer is verified as a balancer's, and by no other provider.
        let is_of_balancer =
            self.providers.iter().any(|provider| provider.spec.family == Family::AwsAlb) && jwt::is_of_balancer(token);
        if !is_of_balancer
            && (only_introspection || jwt::is_opaque(token))
            && let Some((index, provider, remote)) = self.opaque_token_provider()
        {
            trace.provider(index);
            trace.step("shape", format_args!("{} bytes, verified by provider {}", token.len(), provider.spec.name));
            return identity_from_answer(&provider.spec, remote, presented, trace).await;
        }
        let parsed = if is_of_balancer { jwt::parse_of_balancer(token)? } else { jwt::parse(token)? };
        trace.step("shape", format_args!("{} bytes, three parts", token.len()));
        let kid = parsed.key_id.as_deref().unwrap_or("none");
        trace.step("header", format_args!("alg {:?}, kid {kid}", parsed.algorithm));
        let index = self.provider_of(&parsed.claims, is_of_balancer)?;
        trace.provider(index);
        let provider = &self.providers[index];
        let spec = &provider.spec;
        trace.step(
            "issuer",
            format_args!("{} (provider {})", spec.issuer.as_deref().unwrap_or("not checked"), spec.name),
        );
        if let Some(remote) = remote_signature_checker(provider, parsed.algorithm) {
            return confirm_and_identify(spec, remote, presented, parsed, trace).await;
        }
        if !spec.algorithms.contains(&parsed.algorithm) {
            return Err(Rejection::Algorithm(format!("{:?}", parsed.algorithm)));
        }
        // Another signer's key would be fetched for nothing, since every balancer of a region has its keys in one place.
        let claim = |claim: &Claim| claims::value(spec, &parsed.claims, claim).map(Cow::Borrowed);
        if is_of_balancer && let Some(claim) = unmet(&spec.require, &PathVariables::default(), claim) {
            return Err(Rejection::Required(claim.to_string()));
        }
        let fingerprint = verify_signature(provider, &parsed, presented.lookup, trace).await?;
        let verified_by =
            VerifiedBy::Key { fingerprint, algorithm: parsed.algorithm, until: claims::required_exp(&parsed.claims)? };
        let mut claims = parsed.claims;
        if presented.may_be_expired {
            claims.insert("exp".to_owned(), presented.now.saturating_add(1).into());
        }
        check_times_and_identify(spec, parsed.kind, claims, verified_by, presented.now, trace)
    }

    /// Returns the one provider that is asked about opaque tokens, with its index.
    fn opaque_token_provider(&self) -> Option<(usize, &ProviderState, &RemoteChecker)> {
        self.providers.iter().enumerate().find_map(|(index, provider)| {
            let remote = provider.remote.as_ref().filter(|remote| remote.spec().verifies_opaque_tokens)?;
            Some((index, &**provider, remote))
        })
    }

    /// Returns the index of the provider whose issuer the token names. A load balancer and the provider behind it have the
    /// same issuer, and neither's tokens are the other's.
    fn provider_of(&self, claims: &Map<String, Value>, is_of_balancer: bool) -> Result<usize, Rejection> {
        // Validation ensures that a provider without issuer is the only one that verifies signatures.
        if let [only] = self.providers.as_slice()
            && only.spec.issuer.is_none()
        {
            return Ok(0);
        }
        let issuer = match claims.get("iss") {
            Some(Value::String(issuer)) => issuer.as_str(),
            None => return Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is missing" }),
            Some(_) => return Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is not a string" }),
        };
        self.providers
            .iter()
            .position(|provider| {
                provider.spec.issuer.as_deref() == Some(issuer)
                    && (provider.spec.family == Family::AwsAlb) == is_of_balancer
            })
            .ok_or_else(|| Rejection::UnknownIssuer(issuer.chars().take(256).collect()))
    }
}

/// Checks that a load balancer's token came in the header that the balancer writes. The balancer passes on what its clients
/// write elsewhere, and its other upstreams see such tokens.
fn check_carrier(identity: &Identity, carrier: Carrier) -> Result<(), Rejection> {
    if identity.provider().family == Family::AwsAlb && carrier != Carrier::OwnHeader {
        return Err(Rejection::WrongKind("a load balancer's token in another place than its header"));
    }
    Ok(())
}

/// Returns how long a verified token may be cached; a provider's answer no longer than `remote.cache`.
fn cache_ttl(identity: &Identity) -> Duration {
    let spec = identity.provider();
    match (identity.verified_by(), &spec.remote) {
        (VerifiedBy::Provider(_), Some(remote)) => spec.cache_ttl.min(remote.cache),
        _ => spec.cache_ttl,
    }
}

/// Runs the checks that every token must pass after its signature or its provider's answer.
fn check_times_and_identify(
    spec: &Arc<ProviderSpec>,
    kind: TokenKindHeader,
    claims: Map<String, Value>,
    verified_by: VerifiedBy,
    now: u64,
    trace: &mut impl Trace,
) -> Result<Identity, Rejection> {
    let exp = claims::check_times(spec, &claims, now, trace)?;
    let answer_ttl = spec.remote.as_ref().map_or(0, |remote| remote.cache.as_secs());
    let expiry = exp.map_or(Expiry::RevalidateAt(now.saturating_add(answer_ttl)), Expiry::At);
    identify(spec, VerifiedClaims { claims, kind, expiry, verified_by }, trace)
}
