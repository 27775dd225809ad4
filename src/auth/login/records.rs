//! What this process keeps of open login sessions: their tokens, whom they are of, and their renewal. Bounded by
//! `limits.login_sessions`; one that was forgotten goes on by its cookie alone, until the end that was sealed into it.

mod open_socket;
mod renewal;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::client::{ProviderToken, Tokens};
use super::grant::{Grant, Judged};
use super::{Login, LoginLimits, SessionKey};
use crate::auth::identity::Expiry;
use crate::auth::{BrowserSession, Identity, Rejection, Revocations, Token, unix_millis, unix_seconds};
use crate::policy::Renew;
use renewal::renewal_moment;

pub use open_socket::OpenLoginSocket;

/// What may change while a session is open.
struct State {
    identity: Arc<Identity>,
    /// The last ID token's claims, which `UserInfo` is merged with anew.
    judged: Judged,
    id_token: Option<ProviderToken>,
    access_token: Option<ProviderToken>,
    refresh_token: Option<ProviderToken>,
    /// The number of times that the tokens were renewed.
    renewals: u64,
    /// The end of the tokens, Unix seconds.
    token_end: u64,
    /// When the renewal is due, Unix milliseconds.
    renew_at: u64,
    /// The earliest moment of the next try, Unix milliseconds.
    next_try: u64,
    /// Whether a renewal is under way.
    is_renewing: bool,
    /// Whether its user has signed out: the refresh token was taken to be revoked, and so is one that comes later.
    is_signed_out: bool,
    /// Whether a task renews it for open sockets: one at most.
    is_watched: bool,
    /// Whether the last renewal failed.
    has_failed: bool,
}

/// One session that began with a sign-in.
pub struct LoginSession {
    /// The session that its cookie names.
    pub session: BrowserSession,
    /// The key that only its cookie holds beside this process.
    pub key: SessionKey,
    /// The name of the provider whose login began it.
    pub provider: Box<str>,
    /// The absolute end, which no renewal moves, Unix seconds.
    pub ends_at: u64,
    nonce: Box<str>,
    first_auth_time: Option<u64>,
    /// The `iat` of the ID token of the sign-in: what was revoked since then does not come back by a renewal.
    issued_at: Option<Value>,
    state: Mutex<State>,
    /// A count that grows with each finished renewal.
    finished: watch::Sender<u64>,
    /// A count that grows with each change that open sockets have to be judged by.
    version: AtomicU64,
    has_ended: AtomicBool,
    sockets: AtomicUsize,
    /// Whether a backend behind one of the sockets is sent each new token.
    passes_token: AtomicBool,
    socket_left: Notify,
    /// The time of the last use, Unix milliseconds.
    last_used: AtomicU64,
    /// The session that took this one's place in its browser.
    successor: Mutex<Option<Arc<LoginSession>>>,
}

impl std::fmt::Debug for LoginSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoginSession({})", self.provider)
    }
}

impl LoginSession {
    /// Begins a session with what a sign-in gave; its tokens end at `token_end`, Unix seconds.
    fn new(
        session: BrowserSession,
        key: SessionKey,
        nonce: Box<str>,
        identity: Identity,
        judged: Judged,
        tokens: Tokens,
        token_end: u64,
    ) -> Arc<Self> {
        let now = unix_millis();
        Arc::new(Self {
            provider: identity.provider().name.as_str().into(),
            ends_at: session.last_end,
            nonce,
            first_auth_time: judged.auth_time,
            issued_at: judged.claims.get("iat").cloned(),
            state: Mutex::new(State {
                identity: Arc::new(identity.lasting(Expiry::At(session.last_end)).in_session(Some(session.clone()))),
                judged,
                id_token: tokens.id_token,
                access_token: tokens.access_token,
                refresh_token: tokens.refresh_token,
                renewals: 0,
                token_end,
                renew_at: renewal_moment(now, token_end),
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
            socket_left: Notify::new(),
            last_used: AtomicU64::new(now),
            successor: Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The user as the last renewal has it.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.lock().identity)
    }

    /// The access token, for a backend that is to get it.
    pub(in crate::auth) fn passed_token(&self) -> Option<Token> {
        self.lock().access_token.as_ref().and_then(ProviderToken::to_token)
    }

    /// The last ID token, for the provider's page of sign-out.
    #[must_use]
    pub fn id_token(&self) -> Option<ProviderToken> {
        self.lock().id_token.clone()
    }

    /// The refresh token of a session whose user has signed out, to be revoked; a renewal under way revokes the one that
    /// it is given.
    #[must_use]
    pub fn take_refresh_token(&self) -> Option<ProviderToken> {
        let mut state = self.lock();
        state.is_signed_out = true;
        state.refresh_token.take()
    }

    /// Whether its tokens are those of this login's client at this login's provider: no other may see them, though a
    /// reload gave it the same name.
    #[must_use]
    pub fn is_of(&self, login: &Login) -> bool {
        let identity = self.identity();
        let (began_by, now) = (identity.provider(), &login.spec.judged_by);
        began_by.issuer == now.issuer && began_by.audience == now.audience
    }

    /// Whether it was ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The session that took its place, where its user signed in again in the same browser: the last of them.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<Self>> {
        let successor = |session: &Self| session.successor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut last = successor(self)?;
        while let Some(next) = successor(&last) {
            last = next;
        }
        Some(last)
    }

    /// Says that nobody can tell now whether it is good.
    #[must_use]
    pub fn unavailable(&self) -> Rejection {
        let next_try = self.lock().next_try;
        Rejection::RemoteUnavailable {
            provider: self.provider.to_string(),
            reason: "the session could not be renewed".to_owned(),
            retry_after: Duration::from_millis(next_try.saturating_sub(unix_millis())).max(Duration::from_secs(1)),
        }
    }

    /// Whether tokens have ended for longer than the provider may be away.
    #[must_use]
    pub fn is_unavailable(&self, grace: Duration) -> bool {
        let state = self.lock();
        state.has_failed && state.token_end.saturating_add(grace.as_secs()) <= unix_seconds()
    }
}

/// Every login session that this process knows more of than its cookie says.
pub struct LoginSessions {
    revocations: Arc<Revocations>,
    by_id: Mutex<HashMap<Arc<str>, Arc<LoginSession>>>,
    config: ArcSwap<Config>,
    /// A count that grows when open sockets have to look at their sessions.
    changes: watch::Sender<u64>,
    renewals: Mutex<Option<CountRenewal>>,
}

type CountRenewal = Box<dyn Fn(&str, &'static str) + Send + Sync>;

struct Config {
    logins: Vec<Arc<Login>>,
    limits: Option<LoginLimits>,
}

impl LoginSessions {
    pub(super) fn new(revocations: Arc<Revocations>) -> Self {
        Self {
            revocations,
            by_id: Mutex::default(),
            config: ArcSwap::from_pointee(Config { logins: Vec::new(), limits: None }),
            changes: watch::Sender::new(0),
            renewals: Mutex::default(),
        }
    }

    /// Calls this with each renewal's provider and outcome.
    pub fn on_renewal(&self, count: CountRenewal) {
        *self.renewals.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    fn count_renewal(&self, provider: &str, outcome: &'static str) {
        if let Some(count) = &*self.renewals.lock().unwrap_or_else(PoisonError::into_inner) {
            count(provider, outcome);
        }
    }

    pub(super) fn reconfigure(&self, logins: &[Arc<Login>], limits: LoginLimits) {
        self.config.store(Arc::new(Config { logins: logins.to_vec(), limits: Some(limits) }));
    }

    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Tells of each change that open sockets have to look at.
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

    /// The session of this id, if it is known here.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<LoginSession>> {
        self.lock().get(id).map(Arc::clone)
    }

    /// The number of known sessions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Keeps what a sign-in gave.
    pub(super) fn keep(&self, grant: Grant, session: &BrowserSession, key: SessionKey) -> Arc<LoginSession> {
        let Grant { login, identity, judged, mut tokens, nonce, token_end } = grant;
        if login.spec.renew == Renew::Off {
            tokens.refresh_token = None;
        }
        let kept = LoginSession::new(session.clone(), key, nonce.into(), identity, judged, tokens, token_end);
        let limit = self.config.load().limits.map_or(1, |limits| limits.sessions);
        let mut by_id = self.lock();
        if by_id.len() >= limit {
            let seconds = unix_seconds();
            by_id.retain(|_, known| known.ends_at > seconds);
        }
        while by_id.len() >= limit {
            let oldest = by_id
                .iter()
                .min_by_key(|(_, known)| {
                    let is_open = known.sockets.load(Ordering::Relaxed) > 0;
                    (is_open, known.last_used.load(Ordering::Relaxed))
                })
                .map(|(id, _)| Arc::clone(id));
            let Some(oldest) = oldest else { break };
            by_id.remove(&oldest);
        }
        by_id.insert(Arc::clone(&session.id), Arc::clone(&kept));
        kept
    }

    /// Ends a session for every cookie of it.
    pub(super) fn end(&self, session: &LoginSession) {
        session.has_ended.store(true, Ordering::Release);
        if let Some(limits) = self.config.load().limits {
            let until = session.ends_at.saturating_add(60);
            match self.revocations.end_session(&session.session, unix_millis(), until, limits.sign_outs) {
                Ok(revocation) => {
                    self.forget(&session.session.id);
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = revocation.save() {
                            tracing::error!(%error, "control.revocation_file could not be written; a session is ended until this process ends");
                        }
                    });
                }
                // What is kept here of the session says that it has ended.
                Err(full) => tracing::error!(reason = %full, "an ended session could not be written down"),
            }
        }
        session.note_change(self);
    }

    /// Forgets what is kept of a session that was ended elsewhere.
    pub fn forget(&self, id: &str) -> Option<Arc<LoginSession>> {
        let known = self.lock().remove(id)?;
        known.has_ended.store(true, Ordering::Release);
        known.socket_left.notify_one();
        Some(known)
    }

    /// Says that a newer session took this one's place: its sockets move there.
    pub fn supersede(&self, former: &LoginSession, by: &Arc<LoginSession>) {
        *former.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(by));
    }
}
