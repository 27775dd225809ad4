//! `GET /.vestibule/callback`: the browser returns from the provider, with a code or an error.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{RETRY_AFTER, SET_COOKIE};

use super::super::set_cookie::cookie_line;
use super::super::sign_out::end_former_session;
use super::{LOGIN, SignInRequest, pages, parameters};
use crate::auth::login::{CompletedSignIn, Login, LoginCookie, LoginError, LoginState, printable_error_code};
use crate::auth::{SessionScope, session_owner, unix_seconds};
use crate::http::{Answer, OwnRequest, Refusal};
use crate::policy::LoginPrompt;
use crate::telemetry::{AccessLine, Audit, AuditEvent, SignInOutcome, in_current_request};

/// The maximum number of times that a sign-in is started again without an action of the user.
const RESTARTS: u8 = 1;
/// The time that a session continues after a newer one of the same user has replaced it: requests of other tabs still
/// use it.
const OVERLAP: Duration = Duration::from_secs(10);
/// The `Retry-After` in seconds when the provider has not sent one.
const DEFAULT_RETRY: u64 = 5;

/// Serves the callback at `path`.
pub(super) async fn serve(
    request: &mut SignInRequest<'_>,
    own: &mut OwnRequest,
    path: &str,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let names = ["code", "state", "iss", "error"];
    let Some([code, state, issuer, error]) = parameters(own.head().uri.query(), names) else {
        return Ok(request.page(&pages::bad_request()));
    };
    let logins = request.logins;
    let state = state.as_deref().and_then(|state| LoginState::decrypt(&logins.keys, state));
    let Some(login) = logins.iter().find(|login| login.spec.callback_path == path) else {
        // A reload has changed the callback paths, from one login to several or back. The provider has bound the code to
        // the former path, so the sign-in starts again.
        let state = state.ok_or_else(Refusal::not_found)?;
        let login = logins.get(&state.provider).ok_or_else(Refusal::not_found)?;
        return request.restart(own, login, &state).await;
    };
    let provider = login.spec.name.as_str();
    let Some(state) = state else { return request.restart_without_state(own, provider).await };
    request.undecryptable_states = 0;
    if state.provider != provider {
        request.report(
            provider,
            AuditEvent::SignInFailed(SignInOutcome::Invalid),
            None,
            "the state belongs to another provider",
        );
        return Ok(request.page(&pages::unusable()));
    }
    let now = request.now;
    let cookie = request.cookie.clone();
    let is_good = state.is_fresh(now) && state.is_at(login.spec.provider_spec.issuer.as_deref());
    let matching = cookie.filter(|cookie| is_good && state.belongs_to(&logins.keys, cookie));
    // The attempt is marked as used only when the cookie matches, so that no other client can use it up.
    let has_code = error.is_none() && code.as_deref().is_some_and(|code| !code.is_empty());
    let unused = match matching {
        Some(cookie) if logins.use_attempt(&state, has_code, now).await => Some(cookie),
        _ => None,
    };
    let Some(cookie) = unused else {
        return request.restart(own, login, &state).await;
    };
    if let Err(error) = check_issuer(login, issuer.as_deref()).await {
        return Ok(request.failure(login, &error));
    }
    if let Some(code) = error {
        let code = printable_error_code(&code);
        let denied = code == "access_denied";
        // A provider without account selection can show its sign-in page.
        if code == "invalid_request" && state.prompt == Some(LoginPrompt::SelectAccount) && state.tries < RESTARTS {
            return Ok(request.start_again(login, &state, state.tries + 1, Some(LoginPrompt::Login)).await);
        }
        let outcome = if denied { SignInOutcome::Denied } else { SignInOutcome::Refused };
        request.report(provider, AuditEvent::SignInFailed(outcome), None, &format!("the provider answered {code}"));
        return Ok(request.page(&pages::provider_error(&code, denied, &state.return_path)));
    }
    let Some(code) = code.filter(|code| !code.is_empty()) else {
        return Ok(request.failure(login, &LoginError::Refused("the callback has neither code nor error".to_owned())));
    };
    match logins.complete(login, &state, &cookie, &code, request.client.limited_address()).await {
        Ok(completed) => request.begin_session(own, completed, &state, cookie, line).await,
        Err(LoginError::InvalidGrant) if state.tries < RESTARTS => {
            Ok(request.start_again(login, &state, state.tries + 1, state.prompt).await)
        }
        // A revocation ends sessions, not later sign-ins: a user who can sign in again at the provider is admitted.
        Err(LoginError::Revoked(_)) if state.tries < RESTARTS => {
            Ok(request.start_again(login, &state, state.tries + 1, Some(LoginPrompt::Login)).await)
        }
        Err(error) => Ok(request.failure(login, &error)),
    }
}

/// Checks the callback's `iss` (RFC 9207): if present it must be the provider's issuer, and if discovery advertises it,
/// it must be present.
async fn check_issuer(login: &Login, issuer: Option<&str>) -> Result<(), LoginError> {
    match issuer {
        Some(issuer) if Some(issuer) == login.spec.provider_spec.issuer.as_deref() => Ok(()),
        Some(_) => Err(LoginError::Refused("the callback names another issuer".to_owned())),
        None if login.metadata().await?.names_issuer => {
            Err(LoginError::Refused("the callback has no iss, which the provider's discovery announces".to_owned()))
        }
        None => Ok(()),
    }
}

impl SignInRequest<'_> {
    /// Answers a callback whose state cannot be decrypted: it was encrypted with another key, or is not a state.
    async fn restart_without_state(&mut self, own: &mut OwnRequest, provider: &str) -> Result<Answer, Refusal> {
        if self.valid_session(own).await?.is_some() {
            return Ok(self.redirect(StatusCode::SEE_OTHER, "/"));
        }
        if self.undecryptable_states >= RESTARTS {
            self.undecryptable_states = 0;
            self.report(
                provider,
                AuditEvent::SignInFailed(SignInOutcome::Invalid),
                None,
                "the state was encrypted with another key; instances must share browser.session.secret_file",
            );
            let mut answer = self.page(&pages::stale());
            self.set_login_cookie(&mut answer);
            return Ok(answer);
        }
        self.undecryptable_states += 1;
        self.state.metrics.logins.signed_in(provider, SignInOutcome::Restarted);
        Ok(self.redirect(StatusCode::SEE_OTHER, LOGIN))
    }

    /// Responds to a callback whose state cannot be completed: its cookie is missing, it is too old or was used, or its
    /// provider has another issuer or another callback path since.
    async fn restart(
        &mut self,
        own: &mut OwnRequest,
        login: &Arc<Login>,
        state: &LoginState,
    ) -> Result<Answer, Refusal> {
        // Another tab has completed a sign-in meanwhile.
        if state.prompt.is_none() && self.valid_session(own).await?.is_some() {
            return Ok(self.redirect(StatusCode::SEE_OTHER, &state.return_path));
        }
        let provider = login.spec.name.as_str();
        // A cookie that is newer than the state is another tab's; with it the next attempt succeeds.
        let counts = self.cookie.as_ref().is_none_or(|cookie| cookie.made <= state.at);
        let tries = state.tries.saturating_add(u8::from(counts));
        if tries > RESTARTS {
            let (page, reason) = if self.cookie.is_none() {
                (pages::cookie_missing(), "the browser sent no login cookie")
            } else {
                (pages::stale(), "the state has expired or was used before")
            };
            self.report(provider, AuditEvent::SignInFailed(SignInOutcome::Invalid), None, reason);
            return Ok(self.page(&page));
        }
        Ok(self.start_again(login, state, tries, state.prompt).await)
    }

    /// Redirects the browser to the provider once more.
    async fn start_again(
        &mut self,
        login: &Arc<Login>,
        state: &LoginState,
        tries: u8,
        prompt: Option<LoginPrompt>,
    ) -> Answer {
        self.state.metrics.logins.signed_in(&login.spec.name, SignInOutcome::Restarted);
        self.redirect_to_provider(login, &state.return_path, tries, prompt).await
    }

    /// Begins a session for the user who has signed in, and ends this browser's former ones.
    async fn begin_session(
        &mut self,
        own: &mut OwnRequest,
        completed: CompletedSignIn,
        state: &LoginState,
        mut cookie: LoginCookie,
        line: &mut AccessLine,
    ) -> Result<Answer, Refusal> {
        let policy = &self.runtime.policy;
        let verifier = &self.runtime.verifier;
        let (former, name) = own.take_sessions(policy);
        let name = name.ok_or_else(Refusal::needs_https)?;
        let provider = state.provider.clone();
        let user = completed.identity().user_id().to_owned();
        let owner = session_owner(completed.identity());
        // The sessions of a browser that has signed out have ended, and the new one must not count among them.
        if self.state.revocations.has_signed_out(&owner, &cookie.browser(), unix_seconds())
            && let Some(next) = LoginCookie::new(self.now)
        {
            cookie = next.succeeding(cookie);
        }
        let (issued, session) =
            verifier.begin_login_session(completed, &cookie).ok_or_else(Refusal::session_too_large)?;
        let expires_in = issued.expires_at.saturating_sub(unix_seconds());
        let set_cookie =
            cookie_line(&name, &issued.value, expires_in, &policy.browser).ok_or_else(Refusal::session_too_large)?;
        // The browser's next request may be served by another instance.
        self.logins.sessions.publish(&session).await;
        for former in former.iter().filter_map(|cookie| verifier.open_session_cookie(cookie)) {
            let former = former.session;
            if self.state.revocations.is_ended(&former, unix_seconds()) {
                continue;
            }
            if former.owner != session.session.owner {
                end_former_session(self.state, self.runtime, &former, SessionScope::Session).await?;
                self.logins.sessions.forget_shared(&former.id);
                continue;
            }
            if let Some(known) = self.logins.sessions.get(&former.id) {
                known.supersede(&session);
            }
            let (state, runtime) = (Arc::clone(self.state), Arc::clone(self.runtime));
            let scope = SessionScope::Replaced { began: session.session.began };
            let (open, closing) = (state.drain.track(), state.drain.closing_token());
            tokio::spawn(in_current_request(async move {
                // A process that stops ends the session first: no other instance would.
                let _ = tokio::time::timeout(OVERLAP, closing.cancelled()).await;
                // A failure is logged where it happens.
                let _ = end_former_session(&state, &runtime, &former, scope).await;
                if let Some(logins) = runtime.verifier.logins() {
                    logins.sessions.forget_shared(&former.id);
                }
                drop(open);
            }));
        }
        cookie.note_completed(&provider, self.now);
        self.cookie = Some(cookie);
        self.state.metrics.logins.signed_in(&provider, SignInOutcome::Accepted);
        let address = self.client.address.to_string();
        Audit {
            user: Some(&user),
            provider: Some(&provider),
            session: Some(&session.session.digest()),
            client: Some(&address),
            ..Audit::default()
        }
        .log(AuditEvent::SignIn);
        line.user = Some(user);
        let mut answer = self.redirect(StatusCode::SEE_OTHER, &state.return_path);
        answer.headers_mut().append(SET_COOKIE, set_cookie);
        Ok(answer)
    }

    /// Counts and logs a sign-in that failed.
    fn report(&self, provider: &str, event: AuditEvent, user: Option<&str>, reason: &str) {
        let outcome = match event {
            AuditEvent::SignInFailed(outcome) => outcome,
            _ => SignInOutcome::Denied,
        };
        self.state.metrics.logins.signed_in(provider, outcome);
        let address = self.client.address.to_string();
        Audit { user, provider: Some(provider), reason: Some(reason), client: Some(&address), ..Audit::default() }
            .log(event);
    }

    /// Counts and logs a sign-in that failed, and returns the page for it.
    pub(super) fn failure(&self, login: &Login, error: &LoginError) -> Answer {
        let (mut user, mut wait) = (None, None);
        let (event, page) = match error {
            LoginError::Unavailable { retry_after, .. } => {
                wait = Some(retry_after.map_or(DEFAULT_RETRY, |wait| wait.as_secs().max(1)));
                (AuditEvent::SignInFailed(SignInOutcome::Unavailable), pages::provider_down())
            }
            LoginError::TooManySignIns => {
                wait = Some(DEFAULT_RETRY);
                (AuditEvent::SignInFailed(SignInOutcome::Unavailable), pages::too_many_sign_ins())
            }
            LoginError::PushRefused(_) => {
                wait = Some(DEFAULT_RETRY);
                (AuditEvent::SignInFailed(SignInOutcome::Unavailable), pages::provider_down())
            }
            LoginError::Denied { user: denied, .. } => {
                user = denied.as_deref();
                (AuditEvent::Denial, pages::not_allowed())
            }
            LoginError::Revoked(_) => {
                // A revocation covers what is newer by no more than the difference of clocks.
                let seconds = login.spec.provider_spec.clock_skew.as_secs().saturating_add(1);
                wait = Some(seconds);
                (AuditEvent::Denial, pages::session_ended(seconds))
            }
            LoginError::NoRefreshToken => (AuditEvent::SignInFailed(SignInOutcome::Refused), pages::no_refresh_token()),
            LoginError::ClientRefused { answer, key } => {
                tracing::error!(
                    provider = %login.spec.name,
                    answer,
                    key,
                    "the provider does not accept the client id or secret"
                );
                (AuditEvent::SignInFailed(SignInOutcome::Refused), pages::client_refused())
            }
            LoginError::InvalidGrant | LoginError::Refused(_) => {
                (AuditEvent::SignInFailed(SignInOutcome::Invalid), pages::unusable())
            }
        };
        self.report(&login.spec.name, event, user, &error.to_string());
        let mut answer = self.page(&page);
        if let Some(seconds) = wait {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer
    }
}
