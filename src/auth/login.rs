//! Sign-in by OpenID Connect: what goes to a provider and what comes back, and the sessions that follow from it
//! (docs/sign-in.md).
//!
//! An ID token is judged by the same functions as any token of its provider; only whom it is for is asked differently.
//! What browsers see of it is `browser`'s.

mod client;
mod discovery;
mod grant;
mod inspect;
mod logout_token;
mod records;
mod seal;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::outbound;
use super::provider_state::ProviderState;
use crate::policy::{KeySource, Limits, LoginPrompt, LoginSpec, Pushed, Renew, Secret};
use client::Form;
use discovery::Discovery;

pub use client::{ProviderToken, shown as shown_error_code};
pub use discovery::Metadata;
pub use grant::Grant;
pub use inspect::{authorization_answer, inspect};
pub use logout_token::ProviderLogout;
pub use records::{LoginSession, LoginSessions, OpenLoginSocket};
pub use seal::{LoginCookie, LoginKeys, LoginState, local_path};
pub use session::SessionKey;

/// How long a provider may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Upper bound on the body of a provider's answer, in bytes.
const BODY_BYTES: usize = 64 << 10;

/// Why a sign-in, or a renewal, came to nothing. Never holds a code, a state or a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The provider cannot be had, or there are too many requests to it.
    #[error("{reason}")]
    Unavailable {
        /// For the log.
        reason: String,
        /// What the provider said of when to come back.
        retry_after: Option<Duration>,
    },
    /// The provider does not take a pushed request.
    #[error("the pushed authorization request endpoint answered {0}")]
    PushRefused(String),
    /// The code or refresh token is not good, or no longer.
    #[error("the provider answered invalid_grant")]
    InvalidGrant,
    /// The ID token is refused, or an answer is none that the protocol has.
    #[error("{0}")]
    Refused(String),
    /// `renew: required`, and no refresh token came.
    #[error("renew: required, and the provider gave no refresh token")]
    NoRefreshToken,
    /// The user, or the provider's session, was revoked at this very moment.
    #[error("revoked by {0}")]
    Revoked(&'static str),
    /// The user is not one of those who may enter.
    #[error("{0}")]
    Denied(String),
}

impl LoginError {
    fn unavailable(reason: String, retry_after: Option<Duration>) -> Self {
        Self::Unavailable { reason, retry_after }
    }

    /// Something of ours is missing.
    fn down(reason: String) -> Self {
        Self::unavailable(reason, None)
    }

    fn refused(reason: String) -> Self {
        Self::Refused(reason)
    }
}

/// Sign-in at one provider.
pub struct Login {
    /// As configured.
    pub spec: Arc<LoginSpec>,
    provider: Arc<ProviderState>,
    http: Result<reqwest::Client, String>,
    discovery: Discovery,
    /// Requests to the provider under way: of sign-ins, and apart from them of open sessions.
    requests: Arc<Semaphore>,
    renewals: Arc<Semaphore>,
}

impl Login {
    fn new(spec: &Arc<LoginSpec>, provider: &Arc<ProviderState>, requests: usize) -> Self {
        let authority = match &spec.judged_by.keys {
            KeySource::Fetched { authority, .. } => authority.as_ref(),
            _ => None,
        };
        Self {
            http: outbound::client(authority, TIMEOUT, 2),
            discovery: Discovery::new(&spec.judged_by),
            requests: Arc::new(Semaphore::new(requests)),
            renewals: Arc::new(Semaphore::new(requests)),
            provider: Arc::clone(provider),
            spec: Arc::clone(spec),
        }
    }

    fn http(&self) -> Result<&reqwest::Client, String> {
        self.http.as_ref().map_err(Clone::clone)
    }

    /// A place among the requests that people who are not signed in cause: without one nobody waits.
    fn permit(&self) -> Result<OwnedSemaphorePermit, LoginError> {
        Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| LoginError::down("limits.login_requests are under way".to_owned()))
    }

    /// A place among the requests for sessions that are open: waited for, since no stranger can take them all.
    async fn renewal_permit(&self) -> Result<OwnedSemaphorePermit, LoginError> {
        let permit = Arc::clone(&self.renewals).acquire_owned();
        match tokio::time::timeout(TIMEOUT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(LoginError::down("limits.login_requests are under way".to_owned())),
        }
    }

    /// What the provider says of itself.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn metadata(&self) -> Result<Arc<Metadata>, LoginError> {
        self.discovery.get(self.http().map_err(LoginError::down)?).await
    }

    /// The origins of its pages, as far as they are known by now: where a form of ours may lead.
    #[must_use]
    pub fn origins(&self) -> Vec<String> {
        let Some(metadata) = self.discovery.known() else { return Vec::new() };
        let endpoints = [Some(&metadata.authorization_endpoint), metadata.end_session_endpoint.as_ref()];
        let origin = |text: &String| Url::parse(text).ok().map(|url| url.origin().ascii_serialization());
        let mut origins: Vec<String> = endpoints.into_iter().flatten().filter_map(origin).collect();
        origins.dedup();
        origins
    }

    /// Where the browser goes to sign in.
    ///
    /// # Errors
    /// When the provider cannot be had, or would not take the request as the configuration wants it.
    pub async fn authorization_url(
        &self,
        keys: &LoginKeys,
        cookie: &LoginCookie,
        state: &LoginState,
    ) -> Result<String, LoginError> {
        let metadata = self.metadata().await?;
        let broken = || LoginError::down("the state could not be sealed".to_owned());
        let nonce = state.nonce(keys, cookie).ok_or_else(broken)?;
        let verifier = state.verifier(keys, cookie).ok_or_else(broken)?;
        let sealed = state.sealed(keys).ok_or_else(broken)?;
        let mut scopes = self.spec.scopes.clone();
        let offline = "offline_access";
        if metadata.has_offline_access && self.spec.renew != Renew::Off && !scopes.iter().any(|scope| scope == offline)
        {
            scopes.push(offline.to_owned());
        }
        let mut pairs: Vec<(&str, String)> = vec![
            ("response_type", "code".to_owned()),
            ("client_id", self.spec.client_id.clone()),
            ("redirect_uri", self.spec.redirect_uri()),
            ("scope", scopes.join(" ")),
            ("state", sealed),
            ("nonce", nonce),
            ("code_challenge", seal::challenge(&verifier)),
            ("code_challenge_method", "S256".to_owned()),
        ];
        if let Some(prompt) = state.prompt.or(self.spec.prompt) {
            // A provider that has no page to choose an account from refuses the request; it can ask who it is.
            let lacks = |name: &str| metadata.prompts.as_ref().is_some_and(|known| known.iter().all(|it| it != name));
            let cannot_choose = prompt == LoginPrompt::SelectAccount && lacks(prompt.name());
            let prompt = if cannot_choose { LoginPrompt::Login } else { prompt };
            pairs.push(("prompt", prompt.name().to_owned()));
        }
        if let Some(max_age) = self.spec.max_age {
            pairs.push(("max_age", max_age.as_secs().to_string()));
        }
        pairs.extend(self.spec.parameters.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let pushed = match (self.spec.pushed, &metadata.pushed_endpoint) {
            (Pushed::Off, _) if metadata.requires_pushed => {
                return Err(LoginError::down("pushed: off, and the provider takes pushed requests only".to_owned()));
            }
            (Pushed::Off, _) | (Pushed::Auto, None) => None,
            (Pushed::Required, None) => {
                return Err(LoginError::down("pushed: required, and the provider lists no such endpoint".to_owned()));
            }
            (Pushed::Auto | Pushed::Required, Some(endpoint)) => Some(endpoint),
        };
        if let Some(endpoint) = pushed {
            let mut form = Form::new();
            for (name, value) in &pairs {
                form.add(name, value);
            }
            let uri = self.push(&metadata, endpoint, form).await?;
            pairs = vec![("client_id", self.spec.client_id.clone()), ("request_uri", uri)];
        }
        with_query(&metadata.authorization_endpoint, &pairs)
            .ok_or_else(|| LoginError::refused("the authorization endpoint is not a URL".to_owned()))
    }

    /// Revokes the refresh token of a session whose user has signed out at the provider, where it has an endpoint for that
    /// (RFC 7009); a failure is in the log.
    pub async fn revoke_after_sign_out(&self, token: &ProviderToken) {
        let revoked = async { self.revoke(&*self.metadata().await?, token).await };
        if let Err(error) = revoked.await {
            tracing::warn!(provider = %self.spec.name, reason = %error, "refresh token could not be revoked at the provider");
        }
    }

    /// Whether a JWT says that it is this provider's, unverified: for the count of those that are refused.
    #[must_use]
    pub fn is_named_by(&self, token: &str) -> bool {
        super::jwt::claimed_issuer(token) == self.spec.judged_by.issuer
    }

    /// Where the browser goes to sign out at the provider too; `None` where it has no such page.
    #[must_use]
    pub fn end_session_url(&self, metadata: &Metadata, id_token: Option<&ProviderToken>) -> Option<String> {
        let endpoint = metadata.end_session_endpoint.as_ref()?;
        let mut pairs =
            vec![("client_id", self.spec.client_id.clone()), ("post_logout_redirect_uri", self.spec.signed_out_uri())];
        if let Some(token) = id_token {
            pairs.push(("id_token_hint", token.expose().to_owned()));
        }
        with_query(endpoint, &pairs)
    }
}

/// A URL with these parameters behind those it has.
fn with_query(url: &str, pairs: &[(&str, String)]) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.query_pairs_mut().extend_pairs(pairs.iter().map(|(name, value)| (*name, value.as_str())));
    Some(url.into())
}

/// Attempts whose state has been used, for as long as a state is good.
#[derive(Debug, Default)]
struct UsedAttempts {
    /// When each was used, milliseconds.
    used: Mutex<HashMap<[u8; 16], u64>>,
}

impl UsedAttempts {
    fn is_used(&self, attempt: &[u8; 16]) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).contains_key(attempt)
    }

    /// Marks one; `false` where it was used before. At `limit` the oldest are forgotten: code, PKCE and cookie bind it
    /// still.
    fn mark(&self, attempt: [u8; 16], now: u64, limit: usize) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(&attempt) {
            return false;
        }
        if used.len() >= limit {
            used.retain(|_, at| now < at.saturating_add(seal::STATE_LIFE));
        }
        if used.len() >= limit {
            // A tenth at once, so that a full table is not sorted at every sign-in.
            let mut moments: Vec<u64> = used.values().copied().collect();
            moments.sort_unstable();
            let oldest = moments.get(limit / 10).copied().unwrap_or_default();
            used.retain(|_, at| *at > oldest);
        }
        used.insert(attempt, now);
        true
    }
}

/// Sign-in at every provider that has it, and the sessions that came of it.
pub struct Logins {
    all: Vec<Arc<Login>>,
    /// Seals what browsers keep.
    pub keys: Arc<LoginKeys>,
    attempts: Arc<UsedAttempts>,
    /// Logout tokens that ended something.
    logout_tokens: Arc<UsedAttempts>,
    /// What is known of open sessions.
    pub sessions: Arc<LoginSessions>,
    limits: LoginLimits,
}

/// `limits.login_*`.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimits {
    /// Sessions whose tokens are kept.
    pub sessions: usize,
    /// Used attempts remembered.
    pub attempts: usize,
    /// Requests to one provider at once.
    pub requests: usize,
    /// Sign-outs kept in all, and of one user.
    pub sign_outs: super::SignOutLimits,
}

impl From<&Limits> for LoginLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            sessions: limits.login_sessions,
            attempts: limits.login_attempts,
            requests: limits.login_requests,
            sign_outs: super::SignOutLimits { all: limits.sign_outs, per_user: limits.sign_outs_per_user },
        }
    }
}

impl Logins {
    /// What is the same as in `former` keeps its own.
    pub(super) fn new(
        specs: &[Arc<LoginSpec>],
        providers: &[Arc<ProviderState>],
        secret: Option<&Secret>,
        limits: LoginLimits,
        revocations: &Arc<super::Revocations>,
        former: Option<&Self>,
    ) -> Option<Self> {
        let keys = LoginKeys::new(secret, former.map(|former| &former.keys))?;
        let all = specs.iter().filter_map(|spec| {
            let provider = providers.iter().find(|provider| provider.spec.name == spec.name)?;
            let same = |known: &&Arc<Login>| {
                known.spec == *spec
                    && Arc::ptr_eq(&known.provider, provider)
                    && former.is_some_and(|former| former.limits.requests == limits.requests)
            };
            let known = former.and_then(|former| former.all.iter().find(same));
            Some(known.map_or_else(|| Arc::new(Login::new(spec, provider, limits.requests)), Arc::clone))
        });
        let all: Vec<Arc<Login>> = all.collect();
        let sessions = former.map_or_else(
            || Arc::new(LoginSessions::new(Arc::clone(revocations))),
            |former| Arc::clone(&former.sessions),
        );
        sessions.reconfigure(&all, limits);
        Some(Self {
            all,
            keys,
            attempts: former.map(|former| Arc::clone(&former.attempts)).unwrap_or_default(),
            logout_tokens: former.map(|former| Arc::clone(&former.logout_tokens)).unwrap_or_default(),
            sessions,
            limits,
        })
    }

    /// Every one, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Login>> {
        self.all.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nobody can sign in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The one at this provider.
    #[must_use]
    pub fn get(&self, provider: &str) -> Option<&Arc<Login>> {
        self.all.iter().find(|login| login.spec.name == provider)
    }

    /// Uses an attempt up; `false` where it was used before.
    #[must_use]
    pub fn use_attempt(&self, state: &LoginState, now: u64) -> bool {
        self.attempts.mark(state.attempt, now, self.limits.attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_used_once_and_the_oldest_give_way() {
        let attempts = UsedAttempts::default();
        let id = |number: u8| [number; 16];
        assert!(attempts.mark(id(1), 1_000, 10) && !attempts.mark(id(1), 1_001, 10));
        for number in 2..=10 {
            assert!(attempts.mark(id(number), 1_000 + u64::from(number), 10), "{number}");
        }
        assert!(attempts.mark(id(11), 2_000, 10), "the table is full, and the oldest give way");
        assert!(!attempts.mark(id(10), 2_001, 10) && !attempts.mark(id(11), 2_001, 10));
        assert!(attempts.used.lock().expect("lock").len() <= 10);
    }

    #[test]
    fn parameters_go_behind_those_of_the_endpoint() {
        let url = with_query("https://id.example.com/a?tenant=x", &[("state", "a b&c".to_owned())]);
        assert_eq!(url.as_deref(), Some("https://id.example.com/a?tenant=x&state=a+b%26c"));
    }
}
