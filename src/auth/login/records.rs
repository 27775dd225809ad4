//! Keeps the records of open login sessions in memory: tokens, identity and renewal. `limits.login_sessions` limits
//! their number. A session whose record was removed continues with its cookie alone, until the cookie's soft end.

mod content;
mod ended_elsewhere;
mod lease;
mod open_socket;
mod renewal;
pub(super) mod sealed;
mod sharing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::client::{ProviderToken, Tokens};
use super::completion::{CompletedSignIn, VerifiedIdToken};
use super::keys::SessionKey;
use super::{Login, LoginLimits};
use crate::auth::identity::Expiry;
use crate::auth::{
    BrowserSession, Identity, Rejection, Revocations, SessionScope, Token, log_revocation_not_saved, unix_millis,
    unix_seconds,
};
use crate::policy::{CLOCK_ALLOWANCE, Renew};
use crate::telemetry::RenewalOutcome;
use renewal::renewal_moment;
use sharing::Sharing;

pub use open_socket::OpenLoginSocket;

/// The claims that differ in every token.
const EACH_TIME: [&str; 4] = ["iat", "exp", "jti", "auth_time"];

/// The part of a record that changes while the session is open.
struct State {
    identity: Arc<Identity>,
    /// The last verified ID token. The claims of `UserInfo` are merged into it at each renewal.
    verified_id_token: VerifiedIdToken,
    id_token: Option<ProviderToken>,
    access_token: Option<ProviderToken>,
    refresh_token: Option<ProviderToken>,
    /// The number of times that the tokens were renewed.
    renewals: u64,
    /// A counter of the changes that are shared with other instances.
    generation: u64,
    /// The latest generation that other instances can know.
    saved: u64,
    /// The Unix time in seconds at which the tokens expire.
    token_end: u64,
    /// The Unix time in milliseconds of the next renewal.
    renew_at: u64,
    /// The earliest Unix time in milliseconds of the next attempt.
    next_try: u64,
    /// Whether a renewal is in progress.
    is_renewing: bool,
    /// Whether the user has signed out: the refresh token was taken to be revoked, and one that comes later is revoked too.
    is_signed_out: bool,
    /// Whether a task renews the session for its open sockets. There is at most one.
    is_watched: bool,
    /// Whether the last renewal failed.
    has_failed: bool,
}

/// The changes of a session by a renewal, or by the record of another instance.
struct Update {
    identity: Identity,
    verified_id_token: VerifiedIdToken,
    id_token: Option<ProviderToken>,
    access_token: Option<ProviderToken>,
    refresh_token: Option<ProviderToken>,
    /// The Unix time in seconds at which the tokens expire.
    token_end: u64,
    /// The Unix time in milliseconds of the next renewal.
    renew_at: u64,
    generation: u64,
}

/// The data of the sign-in that began a session.
struct Origin {
    nonce: Box<str>,
    first_auth_time: Option<u64>,
    /// The `iat` of the sign-in's ID token. A renewed identity keeps it, so that a revocation since then stays in force.
    issued_at: Option<Value>,
}

/// The record of one session that began with a sign-in.
pub struct LoginSession {
    /// The session that the cookie names.
    pub session: BrowserSession,
    /// The session's key, which is stored only in the cookie and in this record.
    pub key: SessionKey,
    /// The name of the provider whose login began the session.
    pub provider: Box<str>,
    /// The Unix time in seconds at which the session ends, by the configuration at the sign-in. Renewals do not change
    /// it.
    pub ends_at: u64,
    origin: Origin,
    state: Mutex<State>,
    /// A counter of finished renewals.
    finished: watch::Sender<u64>,
    /// A counter of the changes for which open sockets must be checked.
    version: AtomicU64,
    has_ended: AtomicBool,
    sockets: AtomicUsize,
    /// Whether the upstream of one of the sockets receives each new token.
    passes_token: AtomicBool,
    /// A notification for the renewal task: a socket has closed, or the configuration has changed.
    wake: Notify,
    /// The time of the last use, in Unix milliseconds.
    last_used: AtomicU64,
    /// The session that replaced this one in its browser.
    successor: Mutex<Option<Arc<LoginSession>>>,
}

impl std::fmt::Debug for LoginSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoginSession({})", self.provider)
    }
}

impl LoginSession {
    /// Records that a newer session has replaced this one. Its sockets move to the newer one.
    pub fn supersede(&self, by: &Arc<Self>) {
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(by));
    }

    /// Creates the record of a new session. The tokens expire at `token_end`, Unix seconds.
    fn new(
        session: BrowserSession,
        key: SessionKey,
        nonce: Box<str>,
        identity: Identity,
        id_token: VerifiedIdToken,
        tokens: Tokens,
        token_end: u64,
    ) -> Arc<Self> {
        let origin =
            Origin { nonce, first_auth_time: id_token.auth_time, issued_at: id_token.claims.get("iat").cloned() };
        let first = Update {
            identity: identity.lasting(Expiry::At(session.last_end)).in_session(Some(session.clone())),
            verified_id_token: id_token,
            id_token: tokens.id_token,
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
            token_end,
            renew_at: renewal_moment(unix_millis(), token_end),
            generation: 1,
        };
        Self::restored(session, key, origin, first)
    }

    /// Creates the record of a session that has begun, here or elsewhere.
    fn restored(session: BrowserSession, key: SessionKey, origin: Origin, update: Update) -> Arc<Self> {
        Arc::new(Self {
            provider: update.identity.provider().name.as_str().into(),
            ends_at: session.last_end,
            origin,
            state: Mutex::new(State {
                identity: Arc::new(update.identity),
                verified_id_token: update.verified_id_token,
                id_token: update.id_token,
                access_token: update.access_token,
                refresh_token: update.refresh_token,
                renewals: 0,
                generation: update.generation,
                saved: 0,
                token_end: update.token_end,
                renew_at: update.renew_at,
                next_try: 0,
                is_renewing: false,
                is_signed_out: false,
                is_watched: false,
                has_failed: false,
            }),
            session,
            key,
            finished: watch::Sender::new(0),
            version: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            sockets: AtomicUsize::new(0),
            passes_token: AtomicBool::new(false),
            wake: Notify::new(),
            last_used: AtomicU64::new(unix_millis()),
            successor: Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the identity of the user, as of the last renewal.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.lock().identity)
    }

    /// Returns the access token, for an upstream that gets it.
    pub(in crate::auth) fn passed_token(&self) -> Option<Token> {
        self.lock().access_token.as_ref().and_then(ProviderToken::to_token)
    }

    /// Returns the last ID token, for the provider's sign-out page.
    #[must_use]
    pub fn id_token(&self) -> Option<ProviderToken> {
        self.lock().id_token.clone()
    }

    /// Takes the refresh token of a user who has signed out, to revoke it. A renewal in progress revokes the one that
    /// it receives.
    #[must_use]
    pub fn take_refresh_token(&self) -> Option<ProviderToken> {
        let mut state = self.lock();
        state.is_signed_out = true;
        state.refresh_token.take()
    }

    /// Returns whether the tokens are those of this login's client at this login's provider. A reload may have given
    /// the name to another provider, which must not receive them.
    #[must_use]
    pub fn is_of(&self, login: &Login) -> bool {
        let identity = self.identity();
        let (began_by, now) = (identity.provider(), &login.spec.provider_spec);
        began_by.issuer == now.issuer && began_by.audience == now.audience
    }

    /// Returns the absolute end by the current configuration of the login, Unix seconds: a reload may have made
    /// `session.max_age` shorter.
    pub(in crate::auth) fn ends_at_under(&self, login: &Login) -> u64 {
        let by_current = (self.session.began / 1_000).saturating_add(login.spec.session_max_age.as_secs());
        self.ends_at.min(by_current)
    }

    /// Applies the changes of a renewal, here or at another instance, and notifies open sockets if they must be
    /// checked.
    fn update(&self, sessions: &LoginSessions, login: &Login, update: Update) {
        let mut state = self.lock();
        if update.generation < state.generation {
            return;
        }
        let was_unavailable = std::mem::replace(&mut state.has_failed, false);
        let claim = |identity: &Identity, name: &str| identity.claims().get(name).cloned();
        let differs = |name: &String| claim(&state.identity, name) != claim(&update.identity, name);
        // Thousands of sockets are not woken for a token with the same claims.
        let names = login.spec.claims.iter().filter(|name| !EACH_TIME.contains(&name.as_str()));
        let has_changed =
            was_unavailable || self.passes_token.load(Ordering::Relaxed) || names.into_iter().any(differs);
        state.identity = Arc::new(update.identity);
        state.verified_id_token = update.verified_id_token;
        state.id_token = update.id_token;
        state.access_token = update.access_token;
        if !state.is_signed_out {
            state.refresh_token = update.refresh_token;
        }
        state.token_end = update.token_end;
        state.renew_at = update.renew_at;
        state.next_try = unix_millis().saturating_add(1_000);
        state.generation = update.generation;
        state.renewals += 1;
        drop(state);
        if has_changed {
            self.note_change(sessions);
        }
    }

    /// Returns whether the session has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns the last of the sessions that have replaced this one because its user signed in again in the same
    /// browser; `None` if there is none.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<Self>> {
        let successor = |session: &Self| session.successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut last = successor(self)?;
        while let Some(next) = successor(&last) {
            last = next;
        }
        Some(last)
    }

    /// Returns the rejection for a session that cannot be renewed now.
    #[must_use]
    pub fn unavailable(&self) -> Rejection {
        let next_try = self.lock().next_try;
        Rejection::RemoteUnavailable {
            provider: self.provider.to_string(),
            reason: "the session could not be renewed".to_owned(),
            retry_after: Duration::from_millis(next_try.saturating_sub(unix_millis())).max(Duration::from_secs(1)),
        }
    }

    /// Returns whether renewals have failed and the grace after the tokens' end has passed.
    #[must_use]
    pub fn is_unavailable(&self, grace: Duration) -> bool {
        let state = self.lock();
        state.has_failed && state.token_end.saturating_add(grace.as_secs()) <= unix_seconds()
    }
}

/// The records of all login sessions.
pub struct LoginSessions {
    revocations: Arc<Revocations>,
    by_id: Mutex<HashMap<Arc<str>, Arc<LoginSession>>>,
    config: ArcSwap<Config>,
    /// A counter that grows when open sockets must check their sessions.
    changes: watch::Sender<u64>,
    renewals: Mutex<Option<CountRenewal>>,
    /// The number of renewals that are under way.
    renewing: watch::Sender<usize>,
    sharing: Sharing,
}

type CountRenewal = Box<dyn Fn(&str, RenewalOutcome) + Send + Sync>;

struct Config {
    logins: Vec<Arc<Login>>,
    limits: Option<LoginLimits>,
}

impl LoginSessions {
    /// Makes a registry without sessions.
    #[must_use]
    pub fn new(revocations: Arc<Revocations>) -> Self {
        Self {
            revocations,
            by_id: Mutex::default(),
            config: ArcSwap::from_pointee(Config { logins: Vec::new(), limits: None }),
            changes: watch::Sender::new(0),
            renewals: Mutex::default(),
            renewing: watch::Sender::new(0),
            sharing: Sharing::default(),
        }
    }

    /// Sets the function that is called with the provider and outcome of each renewal.
    pub fn on_renewal(&self, count: CountRenewal) {
        *self.renewals.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    /// Waits until no renewal is under way.
    pub async fn renewals_done(&self) {
        // The sender is here, so that the channel is open.
        let _ = self.renewing.subscribe().wait_for(|count| *count == 0).await;
    }

    fn count_renewal(&self, provider: &str, outcome: RenewalOutcome) {
        if let Some(count) = &*self.renewals.lock().unwrap_or_else(PoisonError::into_inner) {
            count(provider, outcome);
        }
    }

    pub(super) fn reconfigure(&self, logins: &[Arc<Login>], limits: LoginLimits) {
        self.sharing.configure(limits.sessions, limits.requests);
        self.config.store(Arc::new(Config { logins: logins.to_vec(), limits: Some(limits) }));
        for record in self.lock().values().filter(|record| record.sockets.load(Ordering::Acquire) > 0) {
            record.wake.notify_one();
        }
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Returns a receiver of the changes for which open sockets must check their sessions.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn login(&self, provider: &str) -> Option<Arc<Login>> {
        self.config.load().logins.iter().find(|login| login.spec.name == provider).map(Arc::clone)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<LoginSession>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a record by the session's id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<LoginSession>> {
        self.lock().get(id).map(Arc::clone)
    }

    /// Adds the record of a new session. At `limits.login_sessions` the least recently used record is removed; those of
    /// sessions with open sockets and of ended ones last.
    pub(super) fn insert(
        &self,
        completed: CompletedSignIn,
        session: &BrowserSession,
        key: SessionKey,
    ) -> Arc<LoginSession> {
        let CompletedSignIn { login, identity, id_token, mut tokens, nonce, token_end } = completed;
        if login.spec.renew == Renew::Off {
            tokens.refresh_token = None;
        }
        self.keep(LoginSession::new(session.clone(), key, nonce.into(), identity, id_token, tokens, token_end))
    }

    /// Adds a record, unless the session has one. Returns the one that is kept.
    fn keep(&self, kept: Arc<LoginSession>) -> Arc<LoginSession> {
        let limit = self.config.load().limits.map_or(1, |limits| limits.sessions);
        let mut by_id = self.lock();
        if let Some(known) = by_id.get(&kept.session.id) {
            return Arc::clone(known);
        }
        if by_id.len() >= limit {
            let seconds = unix_seconds();
            by_id.retain(|_, known| known.ends_at > seconds);
        }
        while by_id.len() >= limit {
            let oldest = by_id
                .iter()
                .min_by_key(|(_, known)| {
                    let is_open = known.sockets.load(Ordering::Relaxed) > 0;
                    (is_open || known.has_ended(), known.last_used.load(Ordering::Relaxed))
                })
                .map(|(id, _)| Arc::clone(id));
            let Some(oldest) = oldest else { break };
            if let Some(removed) = by_id.remove(&oldest) {
                self.sharing.note_generation(&oldest, removed.lock().generation);
            }
        }
        by_id.insert(Arc::clone(&kept.session.id), Arc::clone(&kept));
        kept
    }

    /// Ends a session with all its cookies.
    pub(super) fn end(&self, session: &LoginSession) {
        session.has_ended.store(true, Ordering::Release);
        if let Some(limits) = self.config.load().limits {
            let until = session.ends_at.saturating_add(CLOCK_ALLOWANCE.as_secs());
            let (scope, now) = (SessionScope::Session, unix_millis());
            match self.revocations.end_session(&session.session, scope, now, until, limits.sign_outs) {
                Ok(revocation) => {
                    self.forget(&session.session.id);
                    self.discard(session);
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = revocation.save() {
                            log_revocation_not_saved(&error);
                        }
                    });
                }
                // The record is kept, and the session is rejected by it.
                Err(full) => tracing::error!(error = %full, "ending a session failed"),
            }
        }
        session.note_change(self);
    }

    /// Removes the record of a session whose end has been recorded.
    pub fn forget(&self, id: &str) -> Option<Arc<LoginSession>> {
        let known = self.lock().remove(id)?;
        known.has_ended.store(true, Ordering::Release);
        known.wake.notify_one();
        Some(known)
    }

    /// Returns the other sessions that this user began in the same browser: with the same login cookie, or in the same
    /// session at this provider, whose `sid` is that of the session's record, or else the one given. Tabs that are opened at
    /// once, before the browser has a login cookie, share that alone.
    #[must_use]
    pub fn others_of_browser(
        &self,
        session: &BrowserSession,
        provider: &str,
        sid: Option<&str>,
    ) -> Vec<Arc<LoginSession>> {
        let sid_of = |known: &LoginSession| known.identity().session_id().map(str::to_owned);
        let by_id = self.lock();
        let sid = by_id.get(&session.id).and_then(|known| sid_of(known)).or_else(|| sid.map(str::to_owned));
        let is_other = |known: &LoginSession| {
            let shares_cookie = session.browser.is_some() && known.session.browser == session.browser;
            known.session.owner == session.owner
                && known.session.id != session.id
                && (shares_cookie || (sid.is_some() && *known.provider == *provider && sid_of(known) == sid))
        };
        by_id.values().filter(|known| is_other(known)).map(Arc::clone).collect()
    }

    /// Marks a session as ended and keeps its record, by which its cookies are rejected from then on.
    pub fn mark_ended(&self, id: &str) -> Option<Arc<LoginSession>> {
        let known = self.get(id)?;
        known.has_ended.store(true, Ordering::Release);
        known.wake.notify_one();
        Some(known)
    }
}
