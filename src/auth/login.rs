//! Sign-in by OpenID Connect: the requests to a provider and its responses, and the sessions that begin with a sign-in
//! (docs/sign-in.md).
//!
//! ID tokens are verified by the same functions as any token of the provider; only the expected audience differs.
//! `browser::login` owns the endpoints and the pages.

mod client;
mod completion;
mod cookie;
mod discovery;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inspect;
mod keys;
mod logout_token;
mod records;
mod request_limit;
mod session;
mod state;
mod store;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use url::Url;

use super::outbound;
use super::provider_state::ProviderState;
use crate::policy::{KeySource, Limits, LoginPrompt, LoginSpec, LogoutRequest, Pushed, Renew, Secret};
use crate::random::NoRandomNumbers;
use client::Form;
use discovery::Discovery;
use request_limit::{RequestLimit, RequestPermit};

pub use client::{ProviderToken, printable as printable_error_code};
pub use completion::CompletedSignIn;
pub use cookie::LoginCookie;
pub use discovery::Metadata;
pub use inspect::{authorization_answer, inspect, inspect_client};
pub use keys::LoginKeys;
pub use logout_token::ProviderLogout;
pub use records::{LoginSession, LoginSessions, OpenLoginSocket};
pub(in crate::auth) use session::LoginSessionCookie;
pub use state::{LoginState, local_path};
pub use store::{
    LOCK_LIFE, LockHolder, RecordWrite, SEALED_BYTES, SealedRecord, SessionStore, StoreAnswer, StoreUnavailable,
    Written,
};

/// The timeout of a request to a provider.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of a provider's response, in bytes.
const BODY_BYTES: usize = 64 << 10;

/// The reason of a request that `limits.login_requests` leaves no room for.
const TOO_MANY_REQUESTS: &str = "too many requests to the provider are under way (limits.login_requests)";

/// The reason why a sign-in or a renewal failed. It never contains a code, a state or a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The provider cannot be reached, or too many requests of open sessions to it are in progress.
    #[error("{reason}")]
    Unavailable {
        /// The reason, for the log.
        reason: String,
        /// The provider's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Too many requests of sign-ins to the provider are in progress.
    #[error("{}", TOO_MANY_REQUESTS)]
    TooManySignIns,
    /// The provider refused a pushed authorization request.
    #[error("the pushed authorization request endpoint answered {0}")]
    PushRefused(String),
    /// The provider does not accept the code or the refresh token.
    #[error("the provider answered invalid_grant")]
    InvalidGrant,
    /// The provider does not accept the proxy as its client: an error in the configuration, not an outage.
    #[error("the provider does not accept the client id or secret (it answered {answer}); see {key}")]
    ClientRefused {
        /// The error code of the answer, or its status.
        answer: String,
        /// The key of the configuration to look at.
        key: &'static str,
    },
    /// The ID token was rejected, or a response is not what the protocol defines.
    #[error("{0}")]
    Refused(String),
    /// The provider gave no refresh token, and `renew: required` demands one.
    #[error("renew: required, and the provider gave no refresh token")]
    NoRefreshToken,
    /// The user or the provider's session is revoked.
    #[error("revoked by {0}")]
    Revoked(&'static str),
    /// The provider's `allow` or `require` does not admit the user, or a renewal is of another user.
    #[error("{reason}")]
    Denied {
        /// The user id, where the claims have one.
        user: Option<String>,
        /// The reason, for the log.
        reason: String,
    },
}

impl LoginError {
    fn unavailable(reason: String, retry_after: Option<Duration>) -> Self {
        Self::Unavailable { reason, retry_after }
    }

    /// Makes the error for a failure of this process, which counts as unavailable.
    fn down(reason: String) -> Self {
        Self::unavailable(reason, None)
    }

    fn refused(reason: String) -> Self {
        Self::Refused(reason)
    }

    fn denied(reason: &str) -> Self {
        Self::Denied { user: None, reason: reason.to_owned() }
    }
}

impl From<NoRandomNumbers> for LoginError {
    fn from(error: NoRandomNumbers) -> Self {
        Self::down(error.to_string())
    }
}

/// Sign-in at one provider.
pub struct Login {
    /// The configuration.
    pub spec: Arc<LoginSpec>,
    provider: Arc<ProviderState>,
    http: Result<reqwest::Client, String>,
    discovery: Discovery,
    /// The limits on concurrent requests of sign-ins, and separately on those of open sessions.
    requests: RequestLimit,
    renewals: RequestLimit,
}

impl Login {
    fn new(spec: &Arc<LoginSpec>, provider: &Arc<ProviderState>, requests: usize) -> Self {
        let authority = match &spec.provider_spec.keys {
            KeySource::Fetched { authority, .. } => authority.as_ref(),
            _ => None,
        };
        Self {
            http: outbound::client(authority, TIMEOUT, 2),
            discovery: Discovery::new(&spec.provider_spec),
            requests: RequestLimit::new(requests),
            renewals: RequestLimit::new(requests),
            provider: Arc::clone(provider),
            spec: Arc::clone(spec),
        }
    }

    fn http(&self) -> Result<&reqwest::Client, String> {
        self.http.as_ref().map_err(Clone::clone)
    }

    /// Takes a permit for a request of a sign-in, which any client can cause. It does not wait.
    fn sign_in_permit(&self, client: Option<IpAddr>) -> Result<RequestPermit, LoginError> {
        self.requests.try_acquire(client).ok_or(LoginError::TooManySignIns)
    }

    /// Takes a permit for a request of an open session. It waits, since only signed-in users can cause such requests.
    async fn session_permit(&self) -> Result<RequestPermit, LoginError> {
        let permit = self.renewals.acquire(TIMEOUT).await;
        permit.ok_or_else(|| LoginError::down(TOO_MANY_REQUESTS.to_owned()))
    }

    /// Returns the provider's discovery document.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`].
    pub async fn metadata(&self) -> Result<Arc<Metadata>, LoginError> {
        self.discovery.get(self.http().map_err(LoginError::down)?).await
    }

    /// Returns the origins of the provider's pages, as far as they are known: a form of the proxy's pages may redirect
    /// there.
    #[must_use]
    pub fn origins(&self) -> Vec<String> {
        let Some(metadata) = self.discovery.last_document() else { return Vec::new() };
        let endpoints = [Some(&metadata.authorization_endpoint), metadata.end_session_endpoint.as_ref()];
        let origin = |text: &String| Url::parse(text).ok().map(|url| url.origin().ascii_serialization());
        let mut origins: Vec<String> = endpoints.into_iter().flatten().filter_map(origin).collect();
        origins.dedup();
        origins
    }

    /// Returns the URL at which the user signs in. `client` is the address of the client, if it is one client's.
    ///
    /// # Errors
    /// Returns an error when the provider cannot be reached, or does not support what the configuration demands.
    pub async fn authorization_url(
        &self,
        keys: &LoginKeys,
        cookie: &LoginCookie,
        state: &LoginState,
        client: Option<IpAddr>,
    ) -> Result<String, LoginError> {
        let metadata = self.metadata().await?;
        let broken = || LoginError::down("the state could not be encrypted".to_owned());
        let nonce = state.nonce(keys, cookie).ok_or_else(broken)?;
        let verifier = state.verifier(keys, cookie).ok_or_else(broken)?;
        let encrypted = state.encrypt(keys).ok_or_else(broken)?;
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
            ("state", encrypted),
            ("nonce", nonce),
            ("code_challenge", state::challenge(&verifier)),
            ("code_challenge_method", "S256".to_owned()),
        ];
        if let Some(prompt) = state.prompt.or(self.spec.prompt) {
            // A provider without a page to choose an account from refuses the request; it can show its sign-in page.
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
                return Err(LoginError::down("pushed: off, and the provider accepts pushed requests only".to_owned()));
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
            let uri = self.push(&metadata, endpoint, form, client).await?;
            pairs = vec![("client_id", self.spec.client_id.clone()), ("request_uri", uri)];
        }
        with_query(&metadata.authorization_endpoint, &pairs)
            .ok_or_else(|| LoginError::refused("the authorization endpoint is not a URL".to_owned()))
    }

    /// Revokes the refresh token of a user who has signed out, if the provider has an endpoint for that (RFC 7009). A
    /// failure is logged.
    pub async fn revoke_after_sign_out(&self, token: &ProviderToken) {
        let revoked = async { self.revoke(&*self.metadata().await?, token).await };
        if let Err(error) = revoked.await {
            tracing::warn!(provider = %self.spec.name, reason = %error, "revoking a refresh token at the provider failed");
        }
    }

    /// Returns whether a JWT names this provider's issuer, without verification; for the metric of rejected logout
    /// tokens.
    #[must_use]
    pub fn is_named_by(&self, token: &str) -> bool {
        super::jwt::claimed_issuer(token) == self.spec.provider_spec.issuer
    }

    /// Returns the URL at which the user signs out at the provider, if it has such a page (OpenID Connect RP-Initiated
    /// Logout 1.0).
    #[must_use]
    pub fn end_session_url(&self, metadata: &Metadata, id_token: Option<&ProviderToken>) -> Option<String> {
        let endpoint = metadata.end_session_endpoint.as_ref()?;
        let (return_uri, hint) = match self.spec.logout_request() {
            LogoutRequest::Standard => ("post_logout_redirect_uri", id_token),
            LogoutRequest::LogoutUri => ("logout_uri", None),
        };
        let mut pairs = vec![("client_id", self.spec.client_id.clone()), (return_uri, self.spec.signed_out_uri())];
        if let Some(token) = hint {
            pairs.push(("id_token_hint", token.expose().to_owned()));
        }
        with_query(endpoint, &pairs)
    }
}

/// Appends parameters to those that a URL has.
fn with_query(url: &str, pairs: &[(&str, String)]) -> Option<String> {
    let mut url = Url::parse(url).ok()?;
    url.query_pairs_mut().extend_pairs(pairs.iter().map(|(name, value)| (*name, value.as_str())));
    Some(url.into())
}

/// The ids that were used, kept for as long as a state can be used.
#[derive(Debug, Default)]
struct UsedAttempts {
    /// The time at which each id was used, in Unix milliseconds.
    used: Mutex<HashMap<[u8; 16], u64>>,
}

impl UsedAttempts {
    fn is_used(&self, attempt: &[u8; 16]) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).contains_key(attempt)
    }

    /// Marks an id as used and returns whether it was unused. At `limit` the oldest ids are removed; the code, PKCE and
    /// the cookie still protect those attempts.
    fn mark(&self, attempt: [u8; 16], now: u64, limit: usize) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(&attempt) {
            return false;
        }
        if used.len() >= limit {
            used.retain(|_, at| now < at.saturating_add(keys::STATE_LIFE));
        }
        if used.len() >= limit {
            // A tenth is removed at a time, so that a full table is not sorted at every sign-in.
            let mut moments: Vec<u64> = used.values().copied().collect();
            moments.sort_unstable();
            let oldest = moments.get(limit / 10).copied().unwrap_or_default();
            used.retain(|_, at| *at > oldest);
        }
        used.insert(attempt, now);
        true
    }
}

/// All configured logins, and the sessions that began with them.
pub struct Logins {
    all: Vec<Arc<Login>>,
    /// The keys for state and cookies.
    pub keys: Arc<LoginKeys>,
    attempts: Arc<UsedAttempts>,
    /// The logout tokens that have taken effect.
    logout_tokens: Arc<UsedAttempts>,
    /// The records of open sessions.
    pub sessions: Arc<LoginSessions>,
    limits: LoginLimits,
}

/// The values of `limits.login_*` and of the limits on sign-outs.
#[derive(Clone, Copy, Debug)]
pub struct LoginLimits {
    /// The maximum number of sessions whose tokens are kept.
    pub sessions: usize,
    /// The maximum number of used attempts that are kept.
    pub attempts: usize,
    /// The maximum number of concurrent requests to one provider.
    pub requests: usize,
    /// The maximum number of sign-outs that are kept, in total and per user.
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
    /// Creates the logins. A login that has not changed since `former` keeps its state.
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
        Some(Self {
            all,
            keys,
            attempts: former.map(|former| Arc::clone(&former.attempts)).unwrap_or_default(),
            logout_tokens: former.map(|former| Arc::clone(&former.logout_tokens)).unwrap_or_default(),
            sessions,
            limits,
        })
    }

    /// Makes the open sessions use these logins and limits. A reload does so when nothing can reject it any more.
    pub(super) fn put_in_force(&self) {
        self.sessions.reconfigure(&self.all, self.limits);
    }

    /// Returns the logins in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Login>> {
        self.all.iter()
    }

    /// Returns whether there is no login.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Finds a login by its provider's name.
    #[must_use]
    pub fn get(&self, provider: &str) -> Option<&Arc<Login>> {
        self.all.iter().find(|login| login.spec.name == provider)
    }

    /// Marks an attempt as used, here and at other instances, and returns whether it was unused. It waits at most for
    /// one response of the shared state; without a response this instance decides alone.
    ///
    /// Only a callback with a code is marked at other instances: an error leads to no session, and costs a client nothing.
    pub async fn use_attempt(&self, state: &LoginState, has_code: bool, now: u64) -> bool {
        let life = Duration::from_millis(keys::STATE_LIFE);
        if !self.attempts.mark(state.attempt, now, self.limits.attempts) {
            return false;
        }
        !has_code || self.sessions.is_first_use(self.keys.name_of_attempt(&state.attempt), life).await
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
