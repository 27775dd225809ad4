//! Renews login sessions: decides when a renewal is due, runs one at a time, and applies its result.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::super::client::{ProviderToken, Tokens};
use super::super::completion::{IdTokenUse, VerifiedIdToken};
use super::super::{Login, LoginError};
use super::lease::Lease;
use super::sharing::Turn;
use super::{LoginSession, LoginSessions, Update};
use crate::auth::identity::Expiry;
use crate::auth::{Identity, Rejection, unix_millis, unix_seconds};
use crate::random::random;
use crate::telemetry::{Audit, AuditEvent, RenewalOutcome};

/// The maximum time that a request waits for the renewal after the tokens have expired.
const WAIT: Duration = Duration::from_secs(10);
/// The minimum time between a failed renewal and the next attempt, in milliseconds.
const RETRY: u64 = 5_000;
/// The pause before the only second attempt of a renewal whose provider is unavailable.
const SECOND_TRY: Duration = Duration::from_secs(2);
/// The assumed lifetime in seconds of a renewed token if the provider does not send it.
const UNKNOWN_LIFE: u64 = 300;

/// The place where a session was renewed.
enum Renewed {
    Here,
    Elsewhere,
}

impl LoginSession {
    /// Returns the absolute end of the session by the current configuration, in Unix seconds.
    fn current_end(&self, sessions: &LoginSessions) -> u64 {
        sessions.login(&self.provider).map_or(self.ends_at, |login| self.ends_at_under(&login))
    }

    /// Returns whether the task for the open sockets has nothing more to do. Then the next socket starts another one.
    fn should_stop(&self, sessions: &LoginSessions) -> bool {
        let is_over = self.has_ended() || self.current_end(sessions) <= unix_seconds();
        let mut state = self.lock();
        state.is_watched = self.sockets.load(Ordering::Acquire) > 0 && !is_over;
        !state.is_watched
    }

    /// Renews the session whenever a renewal is due, while one of its sockets is open, and closes the sockets when the
    /// session ends.
    pub(super) async fn keep_renewed(self: Arc<Self>, sessions: Arc<LoginSessions>) {
        let mut watch = Watch { session: &self, has_stopped: false };
        while !self.should_stop(&sessions) {
            let (due, token_end, has_failed) = {
                let state = self.lock();
                let due = state.refresh_token.as_ref().map(|_| state.renew_at.max(state.next_try));
                (due, state.token_end, state.has_failed)
            };
            let grace = sessions.login(&self.provider).map_or(Duration::ZERO, |login| login.spec.renewal_grace);
            let grace_end = token_end.saturating_add(grace.as_secs()).saturating_mul(1_000);
            let now = unix_millis();
            // Open sockets close when the grace after a failed renewal ends.
            let grace_end = (has_failed && grace_end > now).then_some(grace_end);
            let end = self.current_end(&sessions).saturating_mul(1_000);
            let wake = [due, grace_end].into_iter().flatten().fold(end, u64::min);
            let wait = Duration::from_millis(wake.saturating_sub(now)).min(Duration::from_secs(3_600));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
            }
            if self.should_stop(&sessions) {
                break;
            }
            if self.is_unavailable(grace) {
                self.note_change(&sessions);
            }
            if let Some(finished) = self.renew_if_due(&sessions) {
                // The time limits of its requests, and of reading the file of its assertion, bound the wait.
                self.renewed(finished).await;
            }
        }
        watch.has_stopped = true;
        if self.current_end(&sessions) <= unix_seconds() {
            self.note_change(&sessions);
        }
    }

    pub(super) fn note_change(&self, sessions: &LoginSessions) {
        self.version.fetch_add(1, Ordering::AcqRel);
        sessions.changes.send_modify(|count| *count += 1);
    }

    /// Starts a renewal if one is due and none is in progress. Returns a receiver of its end, or of the end of the one
    /// in progress.
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
        sessions.renewing.send_modify(|count| *count += 1);
        let finished = self.finished.subscribe();
        drop(state);
        tokio::spawn(Arc::clone(self).renew(Arc::clone(sessions)));
        Some(finished)
    }

    /// Waits for the end of a renewal, if one is still in progress.
    async fn renewed(&self, mut finished: watch::Receiver<u64>) {
        let before = *finished.borrow();
        // `is_renewing` is cleared before the count grows.
        if self.lock().is_renewing {
            let _ = finished.wait_for(|count| *count > before).await;
        }
    }

    /// Ensures that the session's tokens have not expired. A request before their expiry is served while the renewal is
    /// in progress; a request after it waits.
    ///
    /// # Errors
    /// Returns [`Rejection::Revoked`] when the session has ended, [`Rejection::RemoteUnavailable`] after the grace.
    pub(in crate::auth::login) async fn ensure(
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
            // A renewal that takes longer does not change the answer to this request.
            let _ = tokio::time::timeout(WAIT, self.renewed(finished)).await;
        }
        if self.has_ended() {
            return Err(Rejection::Revoked("session"));
        }
        let ends = self.lock().token_end.saturating_add(grace.as_secs());
        if unix_seconds() < ends { Ok(()) } else { Err(self.unavailable()) }
    }

    /// Runs one renewal, if no other instance is running it.
    async fn renew(self: Arc<Self>, sessions: Arc<LoginSessions>) {
        let mut running = RunningRenewal { session: &self, sessions: &sessions, has_outcome: false };
        let outcome = match sessions.login(&self.provider).filter(|login| self.is_of(login)) {
            None => Err(LoginError::down("the configuration no longer has its login".to_owned())),
            Some(login) => match sessions.take_turn(&self, &login).await {
                Ok(Turn::Ours(lease)) => self.renew_in_turn(&login, &sessions, lease).await,
                Ok(Turn::RenewedElsewhere) => Ok(Renewed::Elsewhere),
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(Renewed::Here) => {
                sessions.count_renewal(&self.provider, RenewalOutcome::Renewed);
                self.audit(AuditEvent::Renewal, None, None);
            }
            // The other instance counts and logs it.
            Ok(Renewed::Elsewhere) => {}
            Err(_) if self.has_ended() => sessions.count_renewal(&self.provider, RenewalOutcome::Ended),
            Err(error @ (LoginError::InvalidGrant | LoginError::Denied { .. } | LoginError::Revoked(_))) => {
                sessions.count_renewal(&self.provider, RenewalOutcome::Ended);
                self.audit(AuditEvent::RenewalFailed(RenewalOutcome::Ended), Some(&error), None);
                match error {
                    // A sign-out at another instance has recorded the session's end. That instance does not have the
                    // refresh token of this renewal unless it reads the record before it is removed.
                    LoginError::Revoked("session") => sessions.discard_ended(&self),
                    _ => sessions.end(&self),
                }
            }
            Err(error) => {
                let wait = match &error {
                    LoginError::Unavailable { retry_after: Some(wait), .. } => {
                        u64::try_from(wait.as_millis()).unwrap_or(RETRY).max(RETRY)
                    }
                    _ => RETRY,
                };
                sessions.count_renewal(&self.provider, RenewalOutcome::Unavailable);
                self.audit(AuditEvent::RenewalFailed(RenewalOutcome::Unavailable), Some(&error), Some(wait));
                let mut state = self.lock();
                state.next_try = unix_millis().saturating_add(wait);
                state.has_failed = true;
            }
        }
        running.has_outcome = true;
    }

    /// Renews the session at its provider, with a second attempt if the provider is unavailable, and publishes the
    /// result to other instances.
    async fn renew_in_turn(
        &self,
        login: &Arc<Login>,
        sessions: &LoginSessions,
        mut lease: Option<Lease>,
    ) -> Result<Renewed, LoginError> {
        let mut renewed = self.try_renew(login, sessions, lease.as_ref()).await;
        if let Err(LoginError::Unavailable { retry_after: None, .. }) = renewed {
            tokio::time::sleep(SECOND_TRY).await;
            if let Some(held) = &lease
                && held.extend().await.is_err()
            {
                match sessions.take_turn(self, login).await? {
                    Turn::Ours(again) => lease = again,
                    Turn::RenewedElsewhere => return Ok(Renewed::Elsewhere),
                }
            }
            renewed = self.try_renew(login, sessions, lease.as_ref()).await;
        }
        let renewed = match renewed {
            Ok(()) => sessions.write_renewed(self, login).await.map(|()| Renewed::Here),
            Err(LoginError::InvalidGrant) if sessions.was_renewed_elsewhere(self, login).await? => {
                Ok(Renewed::Elsewhere)
            }
            Err(error) => Err(error),
        };
        if let Some(lease) = lease.filter(|_| !sessions.is_saved(self)) {
            lease.keep();
        }
        renewed
    }

    fn audit(&self, event: AuditEvent, error: Option<&LoginError>, retry_in_ms: Option<u64>) {
        let (identity, session) = (self.identity(), self.session.digest());
        let reason = error.map(ToString::to_string);
        Audit {
            user: Some(identity.user_id()),
            provider: Some(&self.provider),
            session: Some(&session),
            reason: reason.as_deref(),
            retry_in_ms,
            ..Audit::default()
        }
        .log(event);
    }

    /// Stores the refresh token of a renewal, if it is a new one, and returns whether it was. It stores none for a user
    /// who has signed out.
    fn keep_refresh_token(&self, token: Option<&ProviderToken>) -> bool {
        let mut state = self.lock();
        if state.is_signed_out || token.is_none() || state.refresh_token.as_ref() == token {
            return false;
        }
        state.refresh_token = token.cloned();
        state.generation += 1;
        true
    }

    /// Stores the refresh token of a renewal here and for other instances. It comes before the rest of the renewal: with
    /// rotation the former token is invalid, even if the rest fails.
    ///
    /// # Errors
    /// Returns [`LoginError::Revoked`] when the session has ended meanwhile. The token was revoked at the provider then.
    async fn save_refresh_token(
        &self,
        login: &Login,
        sessions: &LoginSessions,
        token: Option<&ProviderToken>,
    ) -> Result<(), LoginError> {
        let is_other = self.keep_refresh_token(token);
        let mut has_ended = self.lock().is_signed_out || sessions.is_ended(self);
        if is_other && !has_ended {
            // Written at once, since the former token is spent for other instances too.
            has_ended = match sessions.write_renewed(self, login).await {
                Ok(()) => false,
                Err(LoginError::Revoked(_)) => true,
                Err(error) => return Err(error),
            };
        }
        if has_ended {
            if let Some(token) = token {
                login.revoke_after_sign_out(token).await;
            }
            return Err(LoginError::Revoked("session"));
        }
        Ok(())
    }

    /// Verifies the ID token of a renewal, and adds the claims that only the sign-in's has. Without one the former remains.
    async fn renewed_id_token(
        &self,
        login: &Login,
        token: Option<&ProviderToken>,
        former: VerifiedIdToken,
    ) -> Result<VerifiedIdToken, LoginError> {
        let mut id_token = match token {
            None => former,
            Some(token) => {
                let mut renewed =
                    login.verify_id_token(token, IdTokenUse::Renewal { nonce: &self.origin.nonce }).await?;
                if renewed.claims.get("sub") != former.claims.get("sub") {
                    return Err(LoginError::denied("the renewed ID token belongs to another user"));
                }
                // Some providers send these claims at sign-in only. A `sid` that names no session counts as absent: a logout
                // of the provider names the former one.
                let has_sid = renewed.claims.get("sid").and_then(Value::as_str).is_some_and(|sid| !sid.is_empty());
                let has_auth_time = renewed.claims.contains_key("auth_time");
                for (name, is_said) in [("sid", has_sid), ("auth_time", has_auth_time)] {
                    if let (false, Some(value)) = (is_said, former.claims.get(name)) {
                        renewed.claims.insert(name.to_owned(), value.clone());
                    }
                }
                renewed
            }
        };
        // A provider need not repeat it.
        let auth_time = id_token.auth_time.or(self.origin.first_auth_time);
        login
            .check_max_age(auth_time, unix_seconds())
            .map_err(|problem| LoginError::denied(&format!("auth_time {problem}")))?;
        if let Some(issued_at) = &self.origin.issued_at {
            id_token.claims.insert("iat".to_owned(), issued_at.clone());
        }
        Ok(id_token)
    }

    async fn try_renew(
        &self,
        login: &Arc<Login>,
        sessions: &LoginSessions,
        lease: Option<&Lease>,
    ) -> Result<(), LoginError> {
        let (refresh_token, former) = {
            let state = self.lock();
            (state.refresh_token.clone().ok_or(LoginError::InvalidGrant)?, state.verified_id_token.clone())
        };
        let metadata = login.metadata().await?;
        let _permit = login.session_permit().await?;
        if let Some(lease) = lease {
            lease.extend_if_short().await?;
        }
        let may_send = || lease.map_or(Ok(()), Lease::check);
        let tokens = login.refresh(&metadata, &refresh_token, &may_send).await?;
        self.save_refresh_token(login, sessions, tokens.refresh_token.as_ref()).await?;
        let id_token = self.renewed_id_token(login, tokens.id_token.as_ref(), former).await?;
        let userinfo = login.userinfo_claims(&metadata, &tokens, &id_token.claims).await?;
        // A new `sid` or `jti` must not restore a session that was revoked by the former one.
        if let Err(Rejection::Revoked(by)) = sessions.revocations.check(&self.identity(), unix_seconds()) {
            return Err(LoginError::Revoked(by));
        }
        let identity = login.identity(&id_token, userinfo).map_err(|error| match error {
            LoginError::Refused(reason) => LoginError::denied(&reason),
            other => other,
        })?;
        tokens.check_size(&identity)?;
        let identity = identity.lasting(Expiry::At(self.ends_at)).in_session(Some(self.session.clone()));
        let update = self.renewal_update(tokens, id_token, identity);
        self.update(sessions, login, update);
        Ok(())
    }

    fn renewal_update(&self, tokens: Tokens, id_token: VerifiedIdToken, identity: Identity) -> Update {
        let now = unix_seconds();
        let by_id_token = tokens.id_token.is_some().then_some(id_token.expires_at);
        let token_end = tokens.expires_in.map(|life| now.saturating_add(life)).or(by_id_token);
        let state = self.lock();
        let former_life = state.token_end.saturating_sub(state.renew_at / 1_000).max(UNKNOWN_LIFE);
        let token_end = token_end.unwrap_or_else(|| now.saturating_add(former_life));
        Update {
            identity,
            verified_id_token: id_token,
            id_token: tokens.id_token.or_else(|| state.id_token.clone()),
            access_token: tokens.access_token,
            refresh_token: state.refresh_token.clone(),
            token_end,
            renew_at: renewal_moment(unix_millis(), token_end),
            generation: state.generation + 1,
        }
    }
}

/// The task for the open sockets of a session. If it panics, the next socket starts another one.
struct Watch<'a> {
    session: &'a LoginSession,
    /// Whether [`LoginSession::should_stop`] has cleared the mark. It may be that of another task since.
    has_stopped: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.has_stopped {
            self.session.lock().is_watched = false;
        }
    }
}

/// A renewal in progress. It ends when this is dropped, also by a panic: a mark that stayed would prevent all further
/// renewals of the session.
struct RunningRenewal<'a> {
    session: &'a LoginSession,
    sessions: &'a LoginSessions,
    /// Whether the outcome was recorded. A panic prevents that.
    has_outcome: bool,
}

impl Drop for RunningRenewal<'_> {
    fn drop(&mut self) {
        let mut state = self.session.lock();
        if !self.has_outcome {
            // The next attempt may end in the same way.
            state.next_try = unix_millis().saturating_add(RETRY);
            state.has_failed = true;
        }
        state.is_renewing = false;
        drop(state);
        // The mark is cleared before the count grows, see `renewed`.
        self.session.finished.send_modify(|count| *count += 1);
        self.sessions.renewing.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Returns the Unix time in milliseconds of the next renewal: at random between 70 and 90 % of the remaining lifetime,
/// so that sessions that began together are not renewed together, and at least 30 s before the end of a lifetime of 150
/// s or more.
pub(super) fn renewal_moment(now: u64, token_end: u64) -> u64 {
    let end = token_end.saturating_mul(1_000);
    let life = end.saturating_sub(now);
    let chance = u64::from(u16::from_le_bytes(random::<2>().unwrap_or([128, 0])));
    // The part is 700 to 900 thousandths.
    let part = life / 1_000 * (700 + chance % 201);
    let latest = if life >= 150_000 { end.saturating_sub(30_000) } else { end };
    now.saturating_add(part).min(latest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{BrowserSession, KeyFingerprint, identity::VerifiedBy, kind::TokenKindHeader};

    fn session() -> Arc<LoginSession> {
        let text = "{upstream: 'http://127.0.0.1:1', providers: [{preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX}]}";
        let policy = crate::policy::validate(&crate::config::load_yaml(text).expect("loads").config).expect("valid");
        let provider = Arc::clone(&policy.providers[0]);
        let (print, kind, claims) = (KeyFingerprint::default(), TokenKindHeader::default(), serde_json::Map::new());
        let by = VerifiedBy::Provider(print);
        let identity = Identity::new(provider, "alice".into(), claims.clone(), Expiry::At(0), by, kind);
        let algorithm = jsonwebtoken::Algorithm::RS256;
        let end = unix_seconds() + 600;
        let session = BrowserSession {
            id: "a".into(),
            owner: "b".into(),
            browser: None,
            began: 0,
            last_end: end,
            authenticated_at: None,
            key: print,
            cookie_times: None,
        };
        let id_token =
            VerifiedIdToken { claims, kind, key_fingerprint: print, algorithm, expires_at: end, auth_time: None };
        let key = super::super::super::keys::SessionKey::generate().expect("random");
        let refresh_token = Some(ProviderToken::new("d"));
        let tokens = Tokens { id_token: None, access_token: None, refresh_token, expires_in: None };
        LoginSession::new(session, key, "c".into(), identity, id_token, tokens, end)
    }

    #[tokio::test]
    async fn one_task_at_most_renews_a_session_however_its_sockets_come_and_go() {
        let session = session();
        let sessions = Arc::new(LoginSessions::new(Arc::default()));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let mut open = session.socket(&sessions);
        for turn in 0..100 {
            // The test's runtime has one thread, so the renewal task does not see that no socket was open in between.
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
    fn after_a_panic_of_the_task_the_next_socket_starts_it_anew() {
        // Without a timer the task panics where it waits.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let (session, sessions) = (session(), Arc::new(LoginSessions::new(Arc::default())));
            let first = session.socket(&sessions);
            for _ in 0..2 {
                assert!(session.lock().is_watched);
                while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                    tokio::task::yield_now().await;
                }
                assert!(!session.lock().is_watched);
                drop(session.socket(&sessions));
            }
            drop(first);
        });
    }

    #[tokio::test]
    async fn a_renewal_that_panics_has_failed_and_the_next_one_can_begin() {
        let (session, sessions) = (session(), Arc::new(LoginSessions::new(Arc::default())));
        sessions.on_renewal(Box::new(|_, _| panic!("a renewal that panics")));
        for _ in 0..2 {
            let began = unix_millis();
            {
                let mut state = session.lock();
                (state.renew_at, state.next_try) = (0, 0);
            }
            let renewal = session.renew_if_due(&sessions).expect("due");
            let ended = async {
                session.renewed(renewal).await;
                sessions.renewals_done().await;
            };
            tokio::time::timeout(Duration::from_secs(30), ended).await.expect("ends");
            let state = session.lock();
            assert!(!state.is_renewing && state.has_failed && state.next_try >= began + RETRY);
        }
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
