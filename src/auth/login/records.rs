//! What this process keeps of open login sessions: their tokens, whom they are of, and their renewal. Bounded by
//! `limits.login_sessions`; one that was forgotten goes on by its cookie alone, until the end that was sealed into it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::client::ProviderToken;
use super::grant::{Expected, Grant, Judged};
use super::seal::random;
use super::{Login, LoginError, LoginLimits};
use crate::auth::identity::Expiry;
use crate::auth::{BrowserSession, Identity, Rejection, Revocations, Token, unix_millis, unix_seconds};
use crate::policy::Renew;

/// A request at the token's end waits so long for the renewal.
const WAIT: Duration = Duration::from_secs(10);
/// A failed renewal is tried again no sooner, milliseconds.
const RETRY: u64 = 5_000;
/// Within one renewal the provider is asked once more after this.
const SECOND_TRY: Duration = Duration::from_secs(2);
/// Where nothing says how long a renewed token lives, seconds.
const UNKNOWN_LIFE: u64 = 300;

/// Claims that are others in each token.
const EACH_TIME: [&str; 4] = ["iat", "exp", "jti", "auth_time"];

/// What may change while a session is open.
struct State {
    identity: Arc<Identity>,
    /// The last ID token's claims, which `UserInfo` is merged with anew.
    judged: Judged,
    id_token: Option<ProviderToken>,
    access_token: Option<ProviderToken>,
    refresh_token: Option<ProviderToken>,
    /// How often they were renewed.
    renewals: u64,
    /// The end of the tokens, Unix seconds.
    token_end: u64,
    /// When the renewal is due, and when the next try may be, milliseconds.
    renew_at: u64,
    next_try: u64,
    /// Whether a renewal is under way.
    is_renewing: bool,
    /// Whether its user has signed out: the refresh token was taken to be revoked, and so is one that comes later.
    is_signed_out: bool,
    /// Whether a task renews it for open sockets: one at most.
    is_watched: bool,
    /// The last renewal failed.
    has_failed: bool,
}

/// One session that began with a sign-in.
pub struct LoginSession {
    /// Which.
    pub session: BrowserSession,
    /// Its login's provider.
    pub provider: Box<str>,
    /// When it ends, whatever is renewed, Unix seconds.
    pub ends_at: u64,
    nonce: Box<str>,
    first_auth_time: Option<u64>,
    /// Of the ID token of the sign-in: what was revoked since then does not come back by a renewal.
    issued_at: Option<Value>,
    state: Mutex<State>,
    /// Grows with each finished renewal.
    finished: watch::Sender<u64>,
    /// Grows with each change that sockets have to hear of.
    version: AtomicU64,
    has_ended: AtomicBool,
    sockets: AtomicUsize,
    /// A backend behind one of them is told each new token.
    passes_token: AtomicBool,
    socket_left: Notify,
    /// Milliseconds.
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
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who it is now.
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

    /// Registers an open socket; while there is one the session is renewed.
    #[must_use]
    pub fn socket(self: &Arc<Self>, sessions: &Arc<LoginSessions>) -> OpenLoginSocket {
        // Counted before the lock is taken: a task that is about to end under it sees this socket.
        self.sockets.fetch_add(1, Ordering::AcqRel);
        let (renewals, was_watched) = {
            let mut state = self.lock();
            (state.renewals, std::mem::replace(&mut state.is_watched, true))
        };
        if !was_watched {
            tokio::spawn(Arc::clone(self).keep_renewed(Arc::clone(sessions)));
        }
        // It was verified before it was registered, and a renewal may have come in between: it is looked at once.
        OpenLoginSocket { session: Arc::clone(self), seen: None, renewals: Some(renewals), has_moved: false }
    }

    /// Whether the task that renews it has nothing more to do; then the next socket starts another.
    fn stops_watching(&self) -> bool {
        let mut state = self.lock();
        let is_over = self.has_ended() || self.ends_at <= unix_seconds();
        let has_work = state.refresh_token.is_some() && self.sockets.load(Ordering::Acquire) > 0;
        state.is_watched = has_work && !is_over;
        !state.is_watched
    }

    /// Renews the session whenever that is due, as long as a socket of it is open.
    async fn keep_renewed(self: Arc<Self>, sessions: Arc<LoginSessions>) {
        while !self.stops_watching() {
            let (due, token_end, has_failed) = {
                let state = self.lock();
                (state.renew_at.max(state.next_try), state.token_end, state.has_failed)
            };
            let grace = sessions.login(&self.provider).map_or(Duration::ZERO, |login| login.spec.renewal_grace);
            let gives_up = token_end.saturating_add(grace.as_secs()).saturating_mul(1_000);
            let now = unix_millis();
            // Sockets hear of the moment from which on nobody can say that the session is good.
            let wake = if has_failed && gives_up > now { due.min(gives_up) } else { due };
            let wait = Duration::from_millis(wake.saturating_sub(now)).min(Duration::from_secs(3_600));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.socket_left.notified() => {}
            }
            if self.stops_watching() {
                return;
            }
            if self.is_unavailable(grace) {
                self.note_change(&sessions);
            }
            if let Some(finished) = self.renew_if_due(&sessions) {
                // Bounded by the requests that it makes.
                self.renewed(finished).await;
            }
        }
    }

    fn note_change(&self, sessions: &LoginSessions) {
        self.version.fetch_add(1, Ordering::AcqRel);
        sessions.changes.send_modify(|count| *count += 1);
    }

    /// Starts a renewal where one is due and none is under way; returns where its end can be awaited, also of one that
    /// is under way.
    fn renew_if_due(self: &Arc<Self>, sessions: &Arc<LoginSessions>) -> Option<watch::Receiver<u64>> {
        let mut state = self.lock();
        let now = unix_millis();
        if state.is_renewing {
            return Some(self.finished.subscribe());
        }
        if state.refresh_token.is_none() || now < state.renew_at || now < state.next_try || self.has_ended() {
            return None;
        }
        state.is_renewing = true;
        let finished = self.finished.subscribe();
        drop(state);
        tokio::spawn(Arc::clone(self).renew(Arc::clone(sessions)));
        Some(finished)
    }

    /// Waits for the end of a renewal, unless none is under way any more.
    async fn renewed(&self, mut finished: watch::Receiver<u64>) {
        let before = *finished.borrow();
        // It says that it is over before it counts itself finished.
        if self.lock().is_renewing {
            let _ = finished.wait_for(|count| *count > before).await;
        }
    }

    /// Sees that the tokens are good, and renews them in time: a request before their end is served while that is under
    /// way, one after it waits.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        sessions: &Arc<LoginSessions>,
        grace: Duration,
    ) -> Result<(), Rejection> {
        self.last_used.store(unix_millis(), Ordering::Relaxed);
        if self.has_ended() {
            return Err(Rejection::Revoked("session"));
        }
        let renewal = self.renew_if_due(sessions);
        let (is_over, is_renewable) = {
            let state = self.lock();
            (state.token_end <= unix_seconds(), state.refresh_token.is_some() || state.is_signed_out)
        };
        if !is_over || !is_renewable {
            return Ok(());
        }
        if let Some(finished) = renewal {
            // One that takes longer is judged by what is known now.
            let _ = tokio::time::timeout(WAIT, self.renewed(finished)).await;
        }
        if self.has_ended() {
            return Err(Rejection::Revoked("session"));
        }
        let ends = self.lock().token_end.saturating_add(grace.as_secs());
        if unix_seconds() < ends { Ok(()) } else { Err(self.unavailable()) }
    }

    /// One renewal, with a second try where the provider is down.
    async fn renew(self: Arc<Self>, sessions: Arc<LoginSessions>) {
        let outcome = match sessions.login(&self.provider).filter(|login| self.is_of(login)) {
            None => Err(LoginError::down("its login is gone from the configuration".to_owned())),
            Some(login) => match self.try_renew(&login, &sessions).await {
                Err(LoginError::Unavailable { retry_after: None, .. }) => {
                    tokio::time::sleep(SECOND_TRY).await;
                    self.try_renew(&login, &sessions).await
                }
                other => other,
            },
        };
        match outcome {
            Ok(()) => {
                tracing::debug!(provider = %self.provider, "login session renewed");
                sessions.count_renewal(&self.provider, "renewed");
            }
            Err(_) if self.has_ended() => sessions.count_renewal(&self.provider, "ended"),
            Err(LoginError::InvalidGrant | LoginError::Denied(_) | LoginError::Revoked(_)) => {
                tracing::info!(provider = %self.provider, "login session ended: the provider does not renew it");
                sessions.count_renewal(&self.provider, "ended");
                sessions.end(&self);
            }
            Err(error) => {
                let wait = match &error {
                    LoginError::Unavailable { retry_after: Some(wait), .. } => {
                        u64::try_from(wait.as_millis()).unwrap_or(RETRY).max(RETRY)
                    }
                    _ => RETRY,
                };
                tracing::warn!(provider = %self.provider, reason = %error, retry_in_ms = wait, "login session not renewed, retrying");
                sessions.count_renewal(&self.provider, "unavailable");
                let mut state = self.lock();
                state.next_try = unix_millis().saturating_add(wait);
                state.has_failed = true;
            }
        }
        self.lock().is_renewing = false;
        self.finished.send_modify(|count| *count += 1);
    }

    /// Keeps the refresh token that a renewal was given, if it was; returns whether its user has signed out meanwhile.
    fn keep_refresh_token(&self, token: Option<&ProviderToken>) -> bool {
        let mut state = self.lock();
        if let (false, Some(token)) = (state.is_signed_out, token) {
            state.refresh_token = Some(token.clone());
        }
        state.is_signed_out
    }

    async fn try_renew(&self, login: &Arc<Login>, sessions: &LoginSessions) -> Result<(), LoginError> {
        let (refresh_token, mut judged) = {
            let state = self.lock();
            (state.refresh_token.clone().ok_or(LoginError::InvalidGrant)?, state.judged.clone())
        };
        let metadata = login.metadata().await?;
        let tokens = login.refresh(&metadata, &refresh_token).await?;
        // Kept at once: the former may be good no more, whatever becomes of the rest.
        if self.keep_refresh_token(tokens.refresh_token.as_ref()) {
            if let Some(token) = &tokens.refresh_token {
                login.revoke_after_sign_out(token).await;
            }
            return Err(LoginError::Revoked("session"));
        }
        if let Some(token) = &tokens.id_token {
            let renewed = login.judge(token, Expected::Renewal { nonce: &self.nonce }).await?;
            if renewed.claims.get("sub") != judged.claims.get("sub") {
                return Err(LoginError::Denied("the renewed ID token is another user's".to_owned()));
            }
            let former = std::mem::replace(&mut judged, renewed);
            // What a provider says at sign-in only still holds.
            for name in ["sid", "auth_time"] {
                if let (None, Some(value)) = (judged.claims.get(name), former.claims.get(name)) {
                    judged.claims.insert(name.to_owned(), value.clone());
                }
            }
        }
        if let Some(max_age) = login.spec.max_age {
            let limit = max_age.as_secs().saturating_add(login.spec.judged_by.clock_skew.as_secs());
            let at = judged.auth_time.or(self.first_auth_time).unwrap_or_default();
            if at.saturating_add(limit) < unix_seconds() {
                return Err(LoginError::Denied("auth_time is longer ago than max_age".to_owned()));
            }
        }
        if let Some(issued_at) = &self.issued_at {
            judged.claims.insert("iat".to_owned(), issued_at.clone());
        }
        let more = login.more_claims(&metadata, &tokens, &judged.claims).await?;
        // Another `sid` or `jti` must not bring back what the former one was revoked by.
        if let Err(Rejection::Revoked(by)) = sessions.revocations.check(&self.identity(), unix_seconds()) {
            return Err(LoginError::Revoked(by));
        }
        let identity = login.identity(&judged, more).map_err(|error| match error {
            LoginError::Refused(reason) => LoginError::Denied(reason),
            other => other,
        })?;
        let identity = identity.lasting(Expiry::At(self.ends_at)).in_session(Some(self.session.clone()));
        let now = unix_seconds();
        let mut state = self.lock();
        let former_life = state.token_end.saturating_sub(state.renew_at / 1_000).max(UNKNOWN_LIFE);
        let by_id_token = tokens.id_token.is_some().then_some(judged.end);
        let token_end = tokens.expires_in.map(|life| now.saturating_add(life)).or(by_id_token);
        state.token_end = token_end.unwrap_or_else(|| now.saturating_add(former_life));
        state.renew_at = renewal_moment(unix_millis(), state.token_end);
        state.next_try = unix_millis().saturating_add(1_000);
        let was_unavailable = std::mem::replace(&mut state.has_failed, false);
        let says = |identity: &Identity, name: &str| identity.claims().get(name).cloned();
        let differs = |name: &String| says(&state.identity, name) != says(&identity, name);
        // Thousands of sockets are not woken for a token that says the same.
        let names = login.spec.claims.iter().filter(|name| !EACH_TIME.contains(&name.as_str()));
        let has_changed =
            was_unavailable || self.passes_token.load(Ordering::Relaxed) || names.into_iter().any(differs);
        state.identity = Arc::new(identity);
        state.judged = judged;
        if tokens.id_token.is_some() {
            state.id_token = tokens.id_token;
        }
        state.access_token = tokens.access_token;
        state.renewals += 1;
        drop(state);
        if has_changed {
            self.note_change(sessions);
        }
        Ok(())
    }
}

/// At 70 to 90 % of the life that is left, and at least 30 s before the end of one of 150 s or more. Milliseconds.
fn renewal_moment(now: u64, token_end: u64) -> u64 {
    let end = token_end.saturating_mul(1_000);
    let life = end.saturating_sub(now);
    let chance = u64::from(u16::from_le_bytes(random::<2>().unwrap_or([128, 0])));
    // 700 to 900 thousandths.
    let part = life / 1_000 * (700 + chance % 201);
    let latest = if life >= 150_000 { end.saturating_sub(30_000) } else { end };
    now.saturating_add(part).min(latest)
}

/// An open socket of a login session.
#[derive(Debug)]
pub struct OpenLoginSocket {
    session: Arc<LoginSession>,
    /// The version of the session that it was judged by last.
    seen: Option<u64>,
    /// Which renewal's token its backend has; `None`: that of another session.
    renewals: Option<u64>,
    /// Whether it came by another session, which this one replaced.
    has_moved: bool,
}

impl OpenLoginSocket {
    /// Its session.
    #[must_use]
    pub fn session(&self) -> &Arc<LoginSession> {
        &self.session
    }

    /// The session's token is told to the backend of this socket: each new one is asked for by [`Self::renewed_token`].
    pub fn pass_tokens(&mut self) {
        self.session.passes_token.store(true, Ordering::Relaxed);
    }

    /// The access token, if it is another than this gave last.
    pub fn renewed_token(&mut self) -> Option<Token> {
        let state = self.session.lock();
        if self.renewals.replace(state.renewals) == Some(state.renewals) {
            return None;
        }
        state.access_token.as_ref().and_then(ProviderToken::to_token)
    }

    /// Says that it came by another session: its backend has the token of that one.
    pub(in crate::auth) fn note_move(&mut self) {
        self.renewals = None;
        self.has_moved = true;
    }

    /// Whether its session replaced the one that it came by.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Whether the session has changed since this was last asked.
    pub fn has_changed(&mut self) -> bool {
        let version = self.session.version.load(Ordering::Acquire);
        self.seen.replace(version) != Some(version)
    }
}

impl Drop for OpenLoginSocket {
    fn drop(&mut self) {
        if self.session.sockets.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.session.socket_left.notify_one();
        }
    }
}

/// Every login session that this process knows more of than its cookie says.
pub struct LoginSessions {
    revocations: Arc<Revocations>,
    by_id: Mutex<HashMap<Arc<str>, Arc<LoginSession>>>,
    config: ArcSwap<Config>,
    /// Grows when open sockets have to look at their sessions.
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

    /// What is known of a session.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<LoginSession>> {
        self.lock().get(id).map(Arc::clone)
    }

    /// How many are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Keeps what a sign-in gave.
    pub(super) fn keep(&self, grant: Grant, session: &BrowserSession, ends_at: u64) -> Arc<LoginSession> {
        let Grant { login, identity, judged, tokens, nonce, token_end } = grant;
        let now = unix_millis();
        let identity = identity.lasting(Expiry::At(ends_at)).in_session(Some(session.clone()));
        let renews = login.spec.renew != Renew::Off;
        let kept = Arc::new(LoginSession {
            session: session.clone(),
            provider: login.spec.name.as_str().into(),
            ends_at,
            nonce: nonce.into(),
            first_auth_time: judged.auth_time,
            issued_at: judged.claims.get("iat").cloned(),
            state: Mutex::new(State {
                identity: Arc::new(identity),
                judged,
                id_token: tokens.id_token,
                access_token: tokens.access_token,
                refresh_token: tokens.refresh_token.filter(|_| renews),
                renewals: 0,
                token_end,
                renew_at: renewal_moment(now, token_end),
                next_try: 0,
                is_renewing: false,
                is_signed_out: false,
                is_watched: false,
                has_failed: false,
            }),
            finished: watch::Sender::new(0),
            version: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            sockets: AtomicUsize::new(0),
            passes_token: AtomicBool::new(false),
            socket_left: Notify::new(),
            last_used: AtomicU64::new(now),
            successor: Mutex::default(),
        });
        let limit = self.config.load().limits.map_or(1, |limits| limits.sessions);
        let mut by_id = self.lock();
        if by_id.len() >= limit {
            let seconds = now / 1_000;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{KeyFingerprint, VerifiedBy, kind::KindHeader};

    fn session() -> Arc<LoginSession> {
        let text = "{upstream: 'http://127.0.0.1:1', providers: [{preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX}]}";
        let policy = crate::policy::validate(&crate::config::load_yaml(text).expect("loads").config).expect("valid");
        let provider = Arc::clone(&policy.providers[0]);
        let (print, kind, claims) = (KeyFingerprint::default(), KindHeader::default(), serde_json::Map::new());
        let by = VerifiedBy::Provider(print);
        let identity = Identity::new(provider, "alice".into(), claims.clone(), Expiry::At(0), by, kind);
        let algorithm = jsonwebtoken::Algorithm::RS256;
        let end = unix_seconds() + 600;
        Arc::new(LoginSession {
            session: BrowserSession { id: "a".into(), owner: "b".into(), began: 0, last_end: end, key: print },
            provider: "main".into(),
            ends_at: end,
            nonce: "c".into(),
            first_auth_time: None,
            issued_at: None,
            state: Mutex::new(State {
                identity: Arc::new(identity),
                judged: Judged { claims, kind, print, algorithm, end, auth_time: None },
                id_token: None,
                access_token: None,
                refresh_token: Some(ProviderToken::new("d")),
                renewals: 0,
                token_end: end,
                renew_at: end * 1_000,
                next_try: 0,
                is_renewing: false,
                is_signed_out: false,
                is_watched: false,
                has_failed: false,
            }),
            finished: watch::Sender::new(0),
            version: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            sockets: AtomicUsize::new(0),
            passes_token: AtomicBool::new(false),
            socket_left: Notify::new(),
            last_used: AtomicU64::new(0),
            successor: Mutex::default(),
        })
    }

    #[tokio::test]
    async fn one_task_at_most_renews_a_session_however_its_sockets_come_and_go() {
        let session = session();
        let sessions = Arc::new(LoginSessions::new(Arc::default()));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let mut open = session.socket(&sessions);
        for turn in 0..100 {
            // Nothing else runs in between: the task has not seen that no socket was open.
            drop(open);
            open = session.socket(&sessions);
            if turn % 10 == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(tasks(), 1, "turn {turn}");
        }
        drop(open);
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
        let _open = session.socket(&sessions);
        assert_eq!(tasks(), 1, "the next socket starts it anew");
    }

    #[test]
    fn a_renewal_is_due_in_the_last_third_of_a_token_s_life() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let short = renewal_moment(1_000_000, 1_100);
            assert!((1_070_000..=1_090_000).contains(&short), "{short}");
            let hour = renewal_moment(1_000_000, 4_600);
            assert!((3_520_000..=4_240_000).contains(&hour), "{hour}");
            let least = renewal_moment(1_000_000, 1_150);
            assert!((1_105_000..=1_120_000).contains(&least), "{least}: 30 s before the end");
            seen.insert(hour);
        }
        assert!(seen.len() > 20, "at moments of their own");
        assert_eq!(renewal_moment(2_000_000, 1_000), 1_000_000, "over already");
    }
}
