//! Ends sessions: at the proxy, with every copy of their cookies and every open socket, and at the provider, where
//! their refresh tokens are revoked.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

use crate::auth::login::{Login, LoginSession, Logins};
use crate::auth::{
    BrowserSession, OpenedSessionCookie, Revocation, SessionCookie, SessionScope, SignOutLimits, unix_millis,
    unix_seconds,
};
use crate::http::{ClientAddress, Refusal};
use crate::runtime::{NotSaved, ProxyState, Runtime};
use crate::telemetry::{AccessLine, Audit, AuditEvent, LogoutOutcome, in_current_request};

/// The maximum time that a response waits for providers. Requests without a response by then continue in the
/// background.
pub(super) const PROVIDER_WAIT: Duration = Duration::from_secs(3);

/// The allowance in seconds for the time between two readings of the clock: a renewal that moves the end of a session
/// by no more did not happen while the session was being ended.
const CLOCK_ALLOWANCE: u64 = 10;

/// The scope of a sign-out, which decides whether the browser is redirected to the provider's sign-out page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignOutScope {
    /// At the proxy only.
    Local,
    /// At the provider too, if the login is configured so and the provider has such a page.
    Provider,
}

/// Ends every session whose cookie came with a request, with the others that their users began in the same browser, and
/// returns the provider's sign-out page if the browser is redirected there. A session that cannot be ended does not keep the
/// others open.
///
/// # Errors
/// Returns 503 when the end of a session could not be recorded, so that the client retries.
pub(super) async fn sign_out(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    cookies: Vec<SessionCookie>,
    scope: SignOutScope,
    client: &ClientAddress,
    line: &mut AccessLine,
) -> Result<Option<String>, Refusal> {
    let request =
        SignOut { state: Arc::clone(state), runtime: Arc::clone(runtime), scope, client: client.address.to_string() };
    // In a task of its own: a client that leaves meanwhile keeps no session open, and no event out of the log.
    let ended = tokio::spawn(in_current_request(request.run(cookies))).await;
    let SignedOut { user, page } = ended.unwrap_or_else(|panic| SignedOut { user: None, page: Err(failed(&panic)) });
    if user.is_some() {
        line.user = user;
    }
    page
}

/// Logs that the end of a session failed, and returns the refusal.
fn failed(panic: &JoinError) -> Refusal {
    tracing::error!(error = %panic, "ending a session failed");
    Refusal::not_signed_out("internal error")
}

/// A sign-out, apart from its sessions.
struct SignOut {
    state: Arc<ProxyState>,
    runtime: Arc<Runtime>,
    scope: SignOutScope,
    /// The client's address, for the log.
    client: String,
}

/// The result of a sign-out.
struct SignedOut {
    /// The user of the last session, if it is known.
    user: Option<String>,
    /// The provider's sign-out page, if the browser is redirected there.
    page: Result<Option<String>, Refusal>,
}

impl SignOut {
    /// Ends the sessions of these cookies, and logs and counts each.
    async fn run(self, cookies: Vec<SessionCookie>) -> SignedOut {
        let _until_done = self.state.drain.track();
        let deadline = Instant::now() + PROVIDER_WAIT;
        let (mut user, mut location, mut failure) = (None, None, None);
        for cookie in &cookies {
            let Some(opened) = self.runtime.verifier.open_session_cookie(cookie) else { continue };
            let opened = Arc::new(opened);
            let (state, runtime) = (Arc::clone(&self.state), Arc::clone(&self.runtime));
            let ending = end_with_its_browser(state, runtime, Arc::clone(&opened), deadline);
            let ended = tokio::spawn(in_current_request(ending)).await;
            let (ended, record) = ended.unwrap_or_else(|panic| (Err(failed(&panic)), None));
            let known = record.as_ref().map(|record| record.identity().user_id().to_owned());
            let known = known.or_else(|| opened.user.clone());
            self.audit(&opened, known.as_deref(), &ended);
            user = known.or(user);
            if let Err(refusal) = ended {
                // A session that was not ended is a worse failure than one whose end other instances do not have yet.
                if failure.as_ref().is_none_or(|failure: &Refusal| failure.is_in_force) {
                    failure = Some(refusal);
                }
                continue;
            }
            location = self.page(&opened, record.as_deref(), deadline).await.or(location);
        }
        SignedOut { user, page: failure.map_or(Ok(location), Err) }
    }

    fn audit(&self, opened: &OpenedSessionCookie, user: Option<&str>, ended: &Result<(), Refusal>) {
        let digest = opened.session.digest();
        let audit = Audit {
            user,
            provider: Some(&opened.provider),
            session: Some(&digest),
            client: Some(&self.client),
            ..Audit::default()
        };
        match ended {
            Err(refusal) if !refusal.is_in_force => {
                Audit { reason: Some(&refusal.reason), ..audit }.log(AuditEvent::SignOutFailed);
            }
            Ok(()) | Err(_) => audit.log(AuditEvent::SignOut),
        }
    }

    /// Counts the end of a session that began with a sign-in. Returns the provider's sign-out page, if the browser is
    /// redirected there.
    async fn page(
        &self,
        opened: &OpenedSessionCookie,
        record: Option<&LoginSession>,
        deadline: Instant,
    ) -> Option<String> {
        let logins = self.runtime.verifier.logins().filter(|_| opened.is_of_a_sign_in())?;
        let login = logins.get(&opened.provider)?;
        let record = record.filter(|record| record.is_of(login));
        let page = match self.scope {
            SignOutScope::Local => None,
            SignOutScope::Provider => provider_page(login, record, deadline).await,
        };
        let outcome = if page.is_some() { LogoutOutcome::Provider } else { LogoutOutcome::Local };
        self.state.metrics.logins.signed_out(&opened.provider, outcome);
        page
    }
}

/// Ends a session and the others that its user began in the same browser, here first, then at the provider. Of others
/// with another login cookie it ends those of which this instance has the record. Returns the record of the session.
///
/// # Errors
/// Returns 503 when the end could not be recorded.
async fn end_with_its_browser(
    state: Arc<ProxyState>,
    runtime: Arc<Runtime>,
    opened: Arc<OpenedSessionCookie>,
    deadline: Instant,
) -> (Result<(), Refusal>, Option<Arc<LoginSession>>) {
    let (session, now) = (&opened.session, unix_seconds());
    let mut revocations = Vec::new();
    let ended = record_end(&state, &runtime, session, SessionScope::Browser).map(|kept| revocations.extend(kept));
    if let Some(logins) = runtime.verifier.logins() {
        for other in logins.sessions.others_of_browser(session, &opened.provider, opened.session_at_provider()) {
            let other_session = &other.session;
            // A failure is logged where it happens, and then the record alone says that the session has ended.
            if !state.revocations.is_ended(other_session, now)
                && let Ok(kept) = record_end(&state, &runtime, other_session, SessionScope::Browser)
            {
                revocations.extend(kept);
            }
            drop_record(&state, logins, other_session);
            drop(remove_record(logins, &other));
        }
    }
    let saved = save(&state, revocations).await;
    let record = end_at_provider(&state, &runtime, &opened, deadline).await;
    (ended.and(saved), record)
}

/// Records the end of a session at the proxy, and of those that end with it, until the last of their cookies expires,
/// whether or not provider and policy accept it now: they may accept it later. It is in force when this returns, and is to
/// be saved; `None` if all cookies of the session have expired.
fn record_end(
    state: &ProxyState,
    runtime: &Runtime,
    session: &BrowserSession,
    scope: SessionScope,
) -> Result<Option<Revocation>, Refusal> {
    let Some(sessions) = runtime.verifier.session_cookies() else { return Ok(None) };
    let limits = &runtime.policy.limits;
    let limits = SignOutLimits { all: limits.sign_outs, per_user: limits.sign_outs_per_user };
    let mut revocation = None;
    // The loop runs once more if the session was renewed meanwhile.
    while let Some(until) = sessions.keep_ended_until(session, scope, unix_seconds()) {
        let kept = state.revocations.end_session(session, scope, unix_millis(), until, limits);
        revocation = Some(kept.map_err(|full| {
            state.metrics.limited(full.limit());
            tracing::error!(error = %full, "ending a session failed");
            Refusal::not_signed_out(&full.to_string())
        })?);
        if sessions
            .keep_ended_until(session, scope, unix_seconds())
            .is_none_or(|again| again <= until.saturating_add(CLOCK_ALLOWANCE))
        {
            break;
        }
    }
    Ok(revocation)
}

/// Ends open sockets by these revocations, and saves them.
///
/// # Errors
/// Returns 503 when they are in force only at this instance, or only until the process ends.
pub(super) async fn save(state: &ProxyState, revocations: Vec<Revocation>) -> Result<(), Refusal> {
    if revocations.is_empty() {
        return Ok(());
    }
    state.enforce_and_save(revocations).await.map_err(|error| {
        error.log();
        not_saved(&error)
    })
}

/// Returns the refusal where the end of a session, or a logout, is in force only at this instance.
fn not_saved(error: &NotSaved) -> Refusal {
    match error {
        NotSaved::File(_) => Refusal::not_signed_out("control.revocation_file could not be written"),
        NotSaved::NotShared => Refusal::not_shared(),
    }
}

/// Ends a session that a new one of the browser replaces. If other instances get the end later, the new session begins all
/// the same.
///
/// # Errors
/// Returns 503 when the end could not be recorded.
pub(super) async fn end_former_session(
    state: &ProxyState,
    runtime: &Runtime,
    session: &BrowserSession,
    scope: SessionScope,
) -> Result<(), Refusal> {
    let revocation = record_end(state, runtime, session, scope)?;
    save(state, revocation.into_iter().collect())
        .await
        .or_else(|refusal| if refusal.is_in_force { Ok(()) } else { Err(refusal) })
}

/// Drops the record of a session that has ended, here and in the shared state, and revokes its refresh token at the
/// provider. Waits until `deadline`; requests to a slower provider continue in the background.
pub(super) async fn end_at_provider(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    opened: &OpenedSessionCookie,
    deadline: Instant,
) -> Option<Arc<LoginSession>> {
    let logins = runtime.verifier.logins()?;
    let known = drop_record(state, logins, &opened.session);
    state.notifier.notify();
    let record = match known {
        Some(known) => known,
        None => runtime.verifier.login_record_of(opened).await?,
    };
    let _ = timeout_at(deadline, remove_record(logins, &record)).await;
    Some(record)
}

/// Removes the record of a session that has ended from the shared state, and revokes its refresh token at the provider.
fn remove_record(logins: &Logins, record: &Arc<LoginSession>) -> JoinHandle<()> {
    let login = logins.get(&record.provider).filter(|login| record.is_of(login)).map(Arc::clone);
    // The token is taken before anything is awaited, so that a renewal in progress revokes the token that it receives.
    let (token, sessions) = (record.take_refresh_token(), Arc::clone(&logins.sessions));
    let removed = Arc::clone(record);
    tokio::spawn(in_current_request(async move {
        if let (Some(token), Some(login)) = (sessions.remove_shared(&removed, token).await, login) {
            login.revoke_after_sign_out(&token).await;
        }
    }))
}

/// Drops this instance's record of a session that has ended, and returns it. The caller notifies the open sockets.
fn drop_record(state: &ProxyState, logins: &Logins, session: &BrowserSession) -> Option<Arc<LoginSession>> {
    if state.revocations.is_ended(session, unix_seconds()) {
        logins.sessions.forget(&session.id)
    } else {
        // Without a recorded sign-out only the record prevents the cookie from being accepted.
        logins.sessions.mark_ended(&session.id)
    }
}

/// Returns the provider's sign-out page, if the login is configured so and the provider has one.
async fn provider_page(login: &Login, record: Option<&LoginSession>, deadline: Instant) -> Option<String> {
    if !login.spec.ends_provider_session {
        return None;
    }
    let metadata = timeout_at(deadline, login.metadata()).await.ok()?.ok()?;
    login.end_session_url(&metadata, record.and_then(LoginSession::id_token).as_ref())
}
