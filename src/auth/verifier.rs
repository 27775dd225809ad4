//! A token becomes an identity here, or it does not.
//!
//! The order is that of docs/contract.md section 5: everything cheap and structural first, then the
//! signature, then what the claims say, then what the provider says where it is asked, and revocations last.
//! One function does it, and what it did it can say step by step (`vestibule token inspect`).

mod session_cookie;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey};
use quick_cache::sync::Cache;
use serde_json::{Map, Value};

use super::cache::{Digest, Entry, LastToken, TokenCache};
use super::claims;
use super::identify::{Said, identify};
use super::identity::{Expiry, VerifiedBy};
use super::jwt::{self, Parsed};
use super::keys::{Candidates, KeyFingerprint, ProviderKeys};
use super::kind::{KindHeader, check_answer};
use super::login::{LoginLimits, Logins};
use super::remote::{Answer, Priority, Remote, RemoteCheck, asked_how};
use super::trace::{Claimed, Step, Trace};
use super::{Carrier, Identity, NoCredential, Rejection, Revocations, SessionCookies, Token};
use crate::policy::{Family, KeySource, LoginSpec, Parties, ProviderSpec, Secret, SessionSpec};
use crate::telemetry::{Label, Metrics};

/// A verified identity, how its credential came, and the token where it was one. Only [`Verifier::verify`] and
/// [`Verifier::verify_session_cookie`] make one.
#[derive(Debug)]
pub struct Verified {
    identity: Arc<Identity>,
    token: Option<Token>,
    carrier: Carrier,
}

impl Verified {
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// How its credential came; a session cookie of ours came as a cookie.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Whether the token is at hand: a session cookie has one only where the session began with a sign-in.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Takes it apart for sealing.
    #[must_use]
    pub fn into_parts(self) -> (Arc<Identity>, Option<Token>) {
        (self.identity, self.token)
    }

    /// What its provider can be asked about it while a socket is open; `None` where it cannot be asked.
    #[must_use]
    pub fn remote_check(&self) -> Option<RemoteCheck> {
        let remote = self.identity.provider().remote.as_ref()?;
        let session = self.identity.session_id();
        if let Some(session) = session.filter(|_| !remote.question.carries_token()) {
            return Some(RemoteCheck::session(session));
        }
        // A signed token of Clerk's without a session stands for itself.
        let is_asked =
            remote.question.carries_token() || matches!(self.identity.verified_by(), VerifiedBy::Provider(_));
        let token = self.token.as_ref().filter(|_| is_asked)?;
        Some(RemoteCheck::token(token, TokenCache::digest(token), session))
    }
}

/// What a provider says of a session that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revalidation {
    /// It goes on.
    Active,
    /// Its user signed out, was banned, or the session has ended.
    Revoked,
    /// Nobody can say now.
    Unavailable,
}

pub(super) struct Provider {
    pub(super) spec: Arc<ProviderSpec>,
    /// Its name, for the count.
    label: Label,
    keys: ProviderKeys,
    remote: Option<Remote>,
}

/// Every provider and its keys.
pub struct Verifier {
    providers: Vec<Arc<Provider>>,
    cache: Option<TokenCache>,
    revocations: Arc<Revocations>,
    sessions: Option<SessionCookies>,
    /// Sign-in by OpenID Connect, where there is any.
    logins: Option<Logins>,
    /// When the provider of a session of ours said yes last.
    asked: Cache<Arc<str>, Instant>,
    /// Which verifier this is.
    mark: Arc<()>,
    metrics: Arc<Metrics>,
    /// Of a token that claims to be no provider's.
    nobody: Label,
}

/// What the verifier thinks of a token, and why.
#[derive(Debug)]
pub struct Explanation {
    /// The steps in order, up to the one that refused.
    pub steps: Vec<Step>,
    /// The verdict.
    pub verdict: Result<Arc<Identity>, Rejection>,
}

/// How much a token is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A key fetch, a question to its provider.
    MayFetch,
    /// What is at hand: its sender has presented too many bad ones.
    CachedOnly,
}

/// A token under examination.
struct Presented<'a> {
    token: &'a Token,
    digest: Digest,
    now: u64,
    lookup: Lookup,
    /// What it says of its end does not count: nobody enters with it.
    may_be_expired: bool,
}

impl Verifier {
    /// A verifier over these providers, which remembers at most `remembered` tokens. Starts fetching keys, so it
    /// must be called inside a runtime. A provider that is the same as in `former` keeps its keys, and what it has
    /// answered.
    #[must_use]
    pub fn start(
        providers: &[Arc<ProviderSpec>],
        remembered: usize,
        revocations: Arc<Revocations>,
        metrics: Arc<Metrics>,
        session: Option<&SessionSpec>,
        former: Option<&Self>,
    ) -> Self {
        let nobody: Label = "none".into();
        let carriers = Carrier::ALL.map(Carrier::name);
        metrics.credentials.introduce(&nobody, &carriers, &["malformed", "unknown_issuer", "claim"], false);
        let providers = providers.iter().map(|spec| {
            let same = |known: &&Arc<Provider>| *known.spec == **spec;
            if let Some(known) = former.and_then(|former| former.providers.iter().find(same)) {
                return Arc::clone(known);
            }
            let label: Label = spec.name.as_str().into();
            metrics.credentials.introduce(&label, &carriers, &Rejection::OUTCOMES, spec.remote.is_some());
            Arc::new(Provider {
                keys: ProviderKeys::start(Arc::clone(spec), Arc::clone(&metrics)),
                remote: Remote::new(spec, remembered, &metrics),
                label,
                spec: Arc::clone(spec),
            })
        });
        let providers = providers.collect();
        let cache = TokenCache::new(remembered);
        let sessions =
            session.and_then(|spec| SessionCookies::new(spec, former.and_then(|former| former.sessions.as_ref())));
        let asked = Cache::new(remembered.max(1));
        Self { providers, cache, revocations, sessions, logins: None, asked, mark: Arc::default(), metrics, nobody }
    }

    /// The same with sign-in at these providers. What is the same as in `former` keeps its own.
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

    /// Sign-in by OpenID Connect, where there is any.
    #[must_use]
    pub fn logins(&self) -> Option<&Logins> {
        self.logins.as_ref().filter(|logins| !logins.is_empty())
    }

    /// Each provider with its keys.
    pub fn providers(&self) -> impl Iterator<Item = (&ProviderSpec, &ProviderKeys)> {
        self.providers.iter().map(|provider| (&*provider.spec, &provider.keys))
    }

    /// How many tokens are remembered.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.as_ref().map_or(0, TokenCache::len)
    }

    /// A provider by its name.
    pub(super) fn provider(&self, name: &str) -> Option<&Arc<ProviderSpec>> {
        self.providers.iter().map(|known| &known.spec).find(|spec| spec.name == name)
    }

    /// The provider in force that judges what this one judged: for a login session that of its login.
    pub(super) fn spec_like(&self, former: &ProviderSpec) -> Option<&Arc<ProviderSpec>> {
        if matches!(former.authorized_parties, Parties::Client(_)) {
            return self.logins()?.get(&former.name).map(|login| &login.spec.judged_by);
        }
        self.provider(&former.name)
    }

    /// Whether what vouched for a token still does: the key is its provider's, or there is no key, or the token has
    /// ended.
    #[must_use]
    pub fn is_current(&self, provider: &str, verified_by: VerifiedBy) -> bool {
        let known = self.providers.iter().find(|known| known.spec.name == provider);
        known.is_some_and(|known| match verified_by {
            VerifiedBy::Key { until, .. } if until <= unix_seconds() => true,
            VerifiedBy::Key { print, algorithm, .. } => known.keys.is_current(print, algorithm),
            // A provider that is asked in another way is another's configuration.
            VerifiedBy::Provider(_) => true,
        })
    }

    /// Verifies a token. Waits for a key fetch and a remote check at most, which are bounded. On a connection that
    /// may have presented it before, `last` is what it presented.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn verify(
        &self,
        token: Token,
        carrier: Carrier,
        last: Option<&LastToken>,
        lookup: Lookup,
    ) -> Result<Verified, Rejection> {
        let mut claimed = Claimed::default();
        let judged = self.judged(&token, last, lookup, &mut claimed).await;
        let outcome = judged.as_ref().map_or_else(Rejection::outcome, |_| "accepted");
        let provider = claimed.0.and_then(|index| self.providers.get(index));
        let label = provider.map_or(&self.nobody, |provider| &provider.label);
        self.metrics.credentials.verified(label, carrier.name(), outcome);
        judged.map(|identity| Verified { identity, token: Some(token), carrier })
    }

    /// What issues and reads session cookies; `None` without `browser.session`.
    #[must_use]
    pub fn session_cookies(&self) -> Option<&SessionCookies> {
        self.sessions.as_ref()
    }

    async fn judged(
        &self,
        token: &Token,
        last: Option<&LastToken>,
        lookup: Lookup,
        claimed: &mut Claimed,
    ) -> Result<Arc<Identity>, Rejection> {
        let now = unix_seconds();
        let known = last.and_then(|last| last.get(token, &self.mark));
        if let Some((digest, identity)) = known.filter(|(_, identity)| self.still_stands(identity, now)) {
            self.metrics.credentials.looked_up("connection");
            let presented = Presented { token, digest, now, lookup, may_be_expired: false };
            self.beside(&presented, &identity, claimed).await?;
            return Ok(identity);
        }
        let presented = Presented { token, digest: TokenCache::digest(token), now, lookup, may_be_expired: false };
        let entry = self.looked_up(&presented, claimed).await?;
        let identity = Arc::clone(&entry.identity);
        self.beside(&presented, &identity, claimed).await?;
        if let Some(last) = last.filter(|_| self.cache.is_some()) {
            last.set(token, presented.digest, entry, &self.mark);
        }
        Ok(identity)
    }

    /// Remembered, or examined and remembered.
    async fn looked_up(&self, presented: &Presented<'_>, claimed: &mut Claimed) -> Result<Entry, Rejection> {
        if let Some(entry) = self.remembered(presented) {
            self.metrics.credentials.looked_up("hit");
            return Ok(entry);
        }
        self.metrics.credentials.looked_up("miss");
        let identity = Arc::new(self.examine(presented, claimed).await?);
        let ttl = remembered_for(&identity);
        let entry = Entry::new(identity, ttl);
        if let Some(cache) = &self.cache {
            cache.insert(presented.digest, &entry);
        }
        Ok(entry)
    }

    fn remembered(&self, presented: &Presented<'_>) -> Option<Entry> {
        let cache = self.cache.as_ref()?;
        let entry = cache.get(&presented.digest)?;
        if self.still_stands(&entry.identity, presented.now) {
            tracing::debug!("token seen before: user {}", entry.identity.user_id());
            return Some(entry);
        }
        cache.remove(&presented.digest);
        None
    }

    /// Whether what was found once still holds: the token has not ended, and its key is one of those that
    /// would verify it now. What else was asked of it cannot change.
    fn still_stands(&self, identity: &Identity, now: u64) -> bool {
        let spec = identity.provider();
        let provider = self.providers.iter().find(|provider| provider.spec.name == spec.name);
        now < identity.expires_at().saturating_add(spec.clock_skew.as_secs())
            && provider.is_some_and(|provider| match identity.verified_by() {
                VerifiedBy::Key { print, algorithm, .. } => provider.keys.verifies_with(print, algorithm),
                // Cached no longer than its provider's answer.
                VerifiedBy::Provider(_) => true,
            })
    }

    /// What may change from one moment to the next, and so is asked every time: the provider's own word where
    /// it stands beside the signature, and revocations.
    async fn beside(
        &self,
        presented: &Presented<'_>,
        identity: &Identity,
        trace: &mut (impl Trace + Send),
    ) -> Result<(), Rejection> {
        let spec = identity.provider();
        let Some(index) = self.providers.iter().position(|provider| provider.spec.name == spec.name) else {
            return Err(Rejection::UnknownIssuer(spec.name.clone()));
        };
        trace.provider(index);
        if let Some(remote) = &self.providers[index].remote
            && !remote.spec().instead
        {
            let said = asked(spec, remote, presented, identity.session_id()).await?;
            agrees(spec, identity.claims(), &said)?;
            trace.step("remote", format_args!("the provider says yes"));
        }
        // Last: whoever is revoked while we asked is refused.
        self.revocations.check(identity, presented.now)
    }

    /// Asks a provider again about a session that is open.
    pub async fn revalidate(&self, provider: &str, question: &RemoteCheck) -> Revalidation {
        let provider = self.providers.iter().find(|known| known.spec.name == provider);
        let Some(remote) = provider.and_then(|provider| provider.remote.as_ref()) else {
            return Revalidation::Unavailable;
        };
        match remote.ask(question, Priority::Revalidation).await {
            Ok(Answer::Yes(_)) => Revalidation::Active,
            Ok(Answer::No(reason)) => {
                tracing::debug!("a session has ended: {reason}");
                Revalidation::Revoked
            }
            Err(_) => Revalidation::Unavailable,
        }
    }

    /// Whether a token that has expired is this user's, and everything else about it is good now: its key, whom it
    /// is for, that it is not revoked. It proves nothing about its sender.
    pub async fn is_expired_token_of(&self, token: &Token, user: &Identity) -> bool {
        let digest = TokenCache::digest(token);
        let presented =
            Presented { token, digest, now: unix_seconds(), lookup: Lookup::CachedOnly, may_be_expired: true };
        let Ok(identity) = self.examine(&presented, &mut Claimed::default()).await else { return false };
        identity.user() == user.user() && self.revocations.check(&identity, presented.now).is_ok()
    }

    /// Verifies a token and says every step.
    pub async fn explain(&self, token: &Token) -> Explanation {
        let mut steps = Vec::new();
        let presented = Presented {
            token,
            digest: TokenCache::digest(token),
            now: unix_seconds(),
            lookup: Lookup::MayFetch,
            may_be_expired: false,
        };
        let verdict = match self.examine(&presented, &mut steps).await {
            Ok(identity) => self.beside(&presented, &identity, &mut steps).await.map(|()| Arc::new(identity)),
            Err(rejection) => Err(rejection),
        };
        Explanation { steps, verdict }
    }

    async fn examine(&self, presented: &Presented<'_>, trace: &mut (impl Trace + Send)) -> Result<Identity, Rejection> {
        let token = presented.token.expose();
        // `validate` lets a provider without keys stand alone, or be the one for opaque tokens.
        let only_asked = matches!(self.providers.as_slice(), [only] if only.spec.keys == KeySource::Asked);
        if (only_asked || jwt::is_opaque(token))
            && let Some((index, provider, remote)) = self.asked_instead()
        {
            trace.provider(index);
            trace.step("shape", format_args!("{} bytes, for provider {} to say", token.len(), provider.spec.name));
            return from_answer(&provider.spec, remote, presented, trace).await;
        }
        let parsed = jwt::parse(token)?;
        trace.step("shape", format_args!("{} bytes, three parts", token.len()));
        let kid = parsed.key_id.as_deref().unwrap_or("none");
        trace.step("header", format_args!("alg {:?}, kid {kid}", parsed.algorithm));
        let index = self.provider_of(&parsed.claims)?;
        trace.provider(index);
        let provider = &self.providers[index];
        let spec = &provider.spec;
        trace.step(
            "issuer",
            format_args!("{} (provider {})", spec.issuer.as_deref().unwrap_or("not checked"), spec.name),
        );
        if let Some(remote) = answers_for_signature(provider, parsed.algorithm) {
            return from_own_claims(spec, remote, presented, parsed, trace).await;
        }
        if !spec.algorithms.contains(&parsed.algorithm) {
            return Err(Rejection::Algorithm(format!("{:?}", parsed.algorithm)));
        }
        let print = verify_signature(provider, &parsed, presented.lookup, trace).await?;
        let verified_by = VerifiedBy::Key { print, algorithm: parsed.algorithm, until: claims::end(&parsed.claims)? };
        let mut claims = parsed.claims;
        if presented.may_be_expired {
            claims.insert("exp".to_owned(), presented.now.saturating_add(1).into());
        }
        identified(spec, parsed.kind, claims, verified_by, presented.now, trace)
    }

    /// The one provider that is asked about opaque tokens.
    fn asked_instead(&self) -> Option<(usize, &Provider, &Remote)> {
        self.providers.iter().enumerate().find_map(|(index, provider)| {
            let remote = provider.remote.as_ref().filter(|remote| remote.spec().instead)?;
            Some((index, &**provider, remote))
        })
    }

    /// The number of the provider whose token it claims to be.
    fn provider_of(&self, claims: &Map<String, Value>) -> Result<usize, Rejection> {
        // `validate` lets a provider without issuer verify signatures only when it stands alone.
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
            .position(|provider| provider.spec.issuer.as_deref() == Some(issuer))
            .ok_or_else(|| Rejection::UnknownIssuer(issuer.chars().take(256).collect()))
    }
}

/// How long what was found may be remembered: an answer of the provider's as long as answers are kept.
fn remembered_for(identity: &Identity) -> Duration {
    let spec = identity.provider();
    match (identity.verified_by(), &spec.remote) {
        (VerifiedBy::Provider(_), Some(remote)) => spec.cache_ttl.min(remote.cache),
        _ => spec.cache_ttl,
    }
}

/// A token whose signature only its provider can verify: it has no keys for us, or it is one that a project of
/// Supabase signed with the secret it had before it had keys.
fn answers_for_signature(provider: &Provider, algorithm: Algorithm) -> Option<&Remote> {
    let remote = provider.remote.as_ref().filter(|remote| remote.spec().instead)?;
    let spec = &provider.spec;
    let by_old_secret =
        spec.family == Family::Supabase && algorithm == Algorithm::HS256 && !spec.algorithms.contains(&algorithm);
    (spec.keys == KeySource::Asked || by_old_secret).then_some(remote)
}

/// An identity from what the provider answers.
async fn from_answer(
    spec: &Arc<ProviderSpec>,
    remote: &Remote,
    presented: &Presented<'_>,
    trace: &mut (impl Trace + Send),
) -> Result<Identity, Rejection> {
    let said = asked(spec, remote, presented, None).await?;
    trace.step("remote", format_args!("the provider says yes"));
    let mut claims = Map::clone(&said);
    claims.shift_remove("active");
    match (&spec.issuer, claims.get("iss")) {
        // The answer comes from where the issuer's answers come from.
        (Some(issuer), None) => {
            claims.insert("iss".to_owned(), issuer.as_str().into());
        }
        (Some(issuer), Some(Value::String(found))) if found == issuer => {}
        (Some(_), Some(found)) => {
            return Err(Rejection::UnknownIssuer(found.as_str().unwrap_or_default().chars().take(256).collect()));
        }
        (None, _) => {}
    }
    let verified_by = VerifiedBy::Provider(asked_how(remote.spec()));
    identified(spec, KindHeader::default(), claims, verified_by, presented.now, trace)
}

/// An identity from a token's own claims, which the provider has verified for us.
async fn from_own_claims(
    spec: &Arc<ProviderSpec>,
    remote: &Remote,
    presented: &Presented<'_>,
    parsed: Parsed<'_>,
    trace: &mut (impl Trace + Send),
) -> Result<Identity, Rejection> {
    if spec.keys == KeySource::Asked {
        return from_answer(spec, remote, presented, trace).await;
    }
    // Judged first: what would be refused anyway need not be asked about.
    claims::end(&parsed.claims)?;
    let verified_by = VerifiedBy::Provider(asked_how(remote.spec()));
    let identity = identified(spec, parsed.kind, parsed.claims, verified_by, presented.now, trace)?;
    let said = asked(spec, remote, presented, identity.session_id()).await?;
    agrees(spec, identity.claims(), &said)?;
    trace.step("remote", format_args!("the provider says yes, and vouches for the signature"));
    Ok(identity)
}

/// The provider's yes, or why not.
async fn asked(
    spec: &ProviderSpec,
    remote: &Remote,
    presented: &Presented<'_>,
    session: Option<&str>,
) -> Result<Arc<Map<String, Value>>, Rejection> {
    let provider = || spec.name.clone();
    // The token is copied for a question only when one is asked.
    let outcome = if let Some(answer) = remote.at_hand(&presented.digest) {
        Ok(answer)
    } else if presented.lookup == Lookup::CachedOnly {
        let reason = "not asked: too many tokens of this address have failed".to_owned();
        return Err(Rejection::NoSession { provider: provider(), reason });
    } else {
        let question = RemoteCheck::token(presented.token, presented.digest, session);
        remote.ask(&question, Priority::Admission).await
    };
    match outcome {
        Ok(Answer::Yes(claims)) => Ok(claims),
        Ok(Answer::No(reason)) => Err(Rejection::NoSession { provider: provider(), reason: reason.to_string() }),
        Err(unanswered) => Err(Rejection::RemoteUnavailable {
            provider: provider(),
            reason: unanswered.reason,
            retry_after: unanswered.retry_after,
        }),
    }
}

/// Whether the provider speaks of whom the token speaks of.
fn agrees(spec: &ProviderSpec, claims: &Map<String, Value>, said: &Map<String, Value>) -> Result<(), Rejection> {
    let differs = |name: &&str| said.get(*name).is_some_and(|said| claims.get(*name) != Some(said));
    check_answer(spec, said)?;
    match ["sub", "iss"].into_iter().find(differs) {
        None => Ok(()),
        Some(name) => Err(Rejection::NoSession {
            provider: spec.name.clone(),
            reason: format!("the provider's answer is about another {name} than the token"),
        }),
    }
}

/// What every token is judged by, once someone has vouched for it.
fn identified(
    spec: &Arc<ProviderSpec>,
    kind: KindHeader,
    claims: Map<String, Value>,
    verified_by: VerifiedBy,
    now: u64,
    trace: &mut impl Trace,
) -> Result<Identity, Rejection> {
    let exp = claims::check_times(spec, &claims, now, trace)?;
    let answer_kept = spec.remote.as_ref().map_or(0, |remote| remote.cache.as_secs());
    let end = exp.map_or(Expiry::RevalidateAt(now.saturating_add(answer_kept)), Expiry::At);
    identify(spec, Said { claims, kind, end, verified_by }, trace)
}

/// Seconds since the epoch by this machine's clock.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Milliseconds since the epoch by this machine's clock.
#[must_use]
pub fn unix_millis() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn verify_signature(
    provider: &Provider,
    parsed: &Parsed<'_>,
    lookup: Lookup,
    trace: &mut (impl Trace + Send),
) -> Result<KeyFingerprint, Rejection> {
    let id = parsed.key_id.as_deref();
    let mut set = provider.keys.current().await?;
    if matches!(set.candidates(parsed.algorithm, id), Candidates::Unknown) && lookup == Lookup::MayFetch {
        trace.step(
            "key",
            format_args!("kid {} is not in the set at hand; asking the provider again", id.unwrap_or("none")),
        );
        set = provider.keys.look_again().await?;
    }
    let keys = match set.candidates(parsed.algorithm, id) {
        Candidates::Keys(keys) => keys,
        Candidates::Unknown => return Err(Rejection::UnknownKey(parsed.key_id.clone())),
    };
    trace.step("key", format_args!("{} of the provider's fit", keys.len()));
    let verifies = |key: &DecodingKey| {
        // An error here is a key or signature that cannot be right for the algorithm: not verified.
        jsonwebtoken::crypto::verify(parsed.signature, parsed.signed.as_bytes(), key, parsed.algorithm).unwrap_or(false)
    };
    let Some((_, print)) = keys.iter().find(|(key, _)| verifies(key)) else { return Err(Rejection::BadSignature) };
    trace.step("signature", format_args!("verifies"));
    Ok(*print)
}

/// A request that carried no credential may still be served where the route says so; this is where
/// that proof is used up.
impl NoCredential {
    /// Consumes the proof.
    pub fn accept(self) {}
}
