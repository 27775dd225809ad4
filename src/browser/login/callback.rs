//! `GET /.vestibule/callback`: from the provider back, with a code or an error.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{RETRY_AFTER, SET_COOKIE};

use super::super::session_end::{cookie_line, end};
use super::{LOGIN, Visit, pages, parameters};
use crate::auth::login::{Login, LoginCookie, LoginError, LoginState, shown_error_code};
use crate::auth::unix_seconds;
use crate::http::{Answer, OwnRequest, Refusal};
use crate::policy::LoginPrompt;
use crate::telemetry::{AccessLine, in_current_request};

/// How often a sign-in is begun again by itself.
const RESTARTS: u8 = 1;
/// How long a session lives on that a newer one of the same user replaces: requests of other tabs are under way with it.
const OVERLAP: Duration = Duration::from_secs(10);
const DEFAULT_RETRY: u64 = 5;

/// Serves the endpoint of one login.
pub(super) async fn serve(
    visit: &mut Visit<'_>,
    own: &mut OwnRequest,
    login: &Arc<Login>,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let names = ["code", "state", "iss", "error"];
    let Some([code, state, issuer, error]) = parameters(own.head().uri.query(), names) else {
        return Ok(visit.page(&pages::bad_request()));
    };
    let provider = login.spec.name.as_str();
    let metrics = &visit.shared.metrics.logins;
    let Some(state) = state.as_deref().and_then(|state| LoginState::open(&visit.logins.keys, state)) else {
        return visit.stranger(own, provider).await;
    };
    visit.strangers = 0;
    if state.provider != provider {
        metrics.signed_in(provider, "invalid");
        tracing::warn!(provider, "sign-in refused: the state is of another provider");
        return Ok(visit.page(&pages::unusable()));
    }
    let now = visit.now;
    let cookie = visit.cookie.clone();
    let is_good = state.is_fresh(now) && state.is_at(login.spec.judged_by.issuer.as_deref());
    let fitting = cookie.filter(|cookie| is_good && state.fits(&visit.logins.keys, cookie));
    // Marked only when the cookie fits: nobody else can use an attempt up.
    let Some(cookie) = fitting.filter(|_| visit.logins.use_attempt(&state, now)) else {
        return visit.unfinished(own, login, &state).await;
    };
    if let Err(error) = check_issuer(login, issuer.as_deref()).await {
        return Ok(visit.failed(login, &error));
    }
    if let Some(code) = error {
        let code = shown_error_code(&code);
        let denied = code == "access_denied";
        // A provider that has no page to choose an account from can ask who it is.
        if code == "invalid_request" && state.prompt == Some(LoginPrompt::SelectAccount) && state.tries < RESTARTS {
            metrics.signed_in(provider, "restarted");
            return Ok(visit.go(login, &state.return_path, state.tries + 1, Some(LoginPrompt::Login)).await);
        }
        metrics.signed_in(provider, if denied { "denied" } else { "refused" });
        tracing::info!(provider, error = code, client = %visit.client, request_id = %visit.request_id, "sign-in refused by the provider");
        return Ok(visit.page(&pages::provider_error(&code, denied, &state.return_path)));
    }
    let Some(code) = code.filter(|code| !code.is_empty()) else {
        return Ok(visit.failed(login, &LoginError::Refused("the callback has neither code nor error".to_owned())));
    };
    match visit.logins.finish(login, &state, &cookie, &code).await {
        Ok(grant) => visit.completed(own, grant, &state, cookie, line).await,
        Err(LoginError::InvalidGrant) if state.tries < RESTARTS => {
            metrics.signed_in(provider, "restarted");
            Ok(visit.go(login, &state.return_path, state.tries + 1, state.prompt).await)
        }
        // A revocation ends sessions, not newer sign-ins: whoever can sign in anew at the provider may.
        Err(LoginError::Revoked(_)) if state.tries < RESTARTS => {
            metrics.signed_in(provider, "restarted");
            Ok(visit.go(login, &state.return_path, state.tries + 1, Some(LoginPrompt::Login)).await)
        }
        Err(error) => Ok(visit.failed(login, &error)),
    }
}

/// RFC 9207: a callback that names an issuer names ours, and one of a provider that always names itself does.
async fn check_issuer(login: &Login, issuer: Option<&str>) -> Result<(), LoginError> {
    match issuer {
        Some(issuer) if Some(issuer) == login.spec.judged_by.issuer.as_deref() => Ok(()),
        Some(_) => Err(LoginError::Refused("the callback names another issuer".to_owned())),
        None if login.metadata().await?.names_issuer => {
            Err(LoginError::Refused("the callback does not name its issuer, as the provider says it does".to_owned()))
        }
        None => Ok(()),
    }
}

impl Visit<'_> {
    /// Nothing here opens the state: another key sealed it, or nobody did.
    async fn stranger(&mut self, own: &mut OwnRequest, provider: &str) -> Result<Answer, Refusal> {
        if self.valid_session(own).await?.is_some() {
            return Ok(self.redirect(StatusCode::SEE_OTHER, "/"));
        }
        if self.strangers >= RESTARTS {
            self.strangers = 0;
            self.shared.metrics.logins.signed_in(provider, "invalid");
            tracing::warn!(
                provider,
                "sign-in failed: the state was sealed with another key; instances must share browser.session.secret_file"
            );
            let mut answer = self.page(&pages::stale());
            self.keep_cookie(&mut answer);
            return Ok(answer);
        }
        self.strangers += 1;
        self.shared.metrics.logins.signed_in(provider, "restarted");
        Ok(self.redirect(StatusCode::SEE_OTHER, LOGIN))
    }

    /// The state cannot be finished: its cookie is missing, it is too old, it was used, or its provider's name is another
    /// issuer's by now.
    async fn unfinished(
        &mut self,
        own: &mut OwnRequest,
        login: &Arc<Login>,
        state: &LoginState,
    ) -> Result<Answer, Refusal> {
        // Another tab has finished by now.
        if state.prompt.is_none() && self.valid_session(own).await?.is_some() {
            return Ok(self.redirect(StatusCode::SEE_OTHER, &state.return_path));
        }
        let provider = login.spec.name.as_str();
        // A newer cookie is another tab's; with it the next try fits.
        let counts = self.cookie.as_ref().is_none_or(|cookie| cookie.made <= state.at);
        let tries = state.tries.saturating_add(u8::from(counts));
        if tries > RESTARTS {
            self.shared.metrics.logins.signed_in(provider, "invalid");
            tracing::info!(
                provider,
                has_cookie = self.cookie.is_some(),
                "sign-in failed: the state cannot be finished"
            );
            let page = if self.cookie.is_none() { pages::cookie_missing() } else { pages::stale() };
            return Ok(self.page(&page));
        }
        self.shared.metrics.logins.signed_in(provider, "restarted");
        Ok(self.go(login, &state.return_path, tries, state.prompt).await)
    }

    /// Someone has signed in: a session of their own, and none of this browser's former ones.
    async fn completed(
        &mut self,
        own: &mut OwnRequest,
        grant: crate::auth::login::Grant,
        state: &LoginState,
        mut cookie: LoginCookie,
        line: &mut AccessLine,
    ) -> Result<Answer, Refusal> {
        let policy = &self.runtime.policy;
        let verifier = &self.runtime.verifier;
        let (former, name) = own.take_sessions(policy);
        let name = name.ok_or_else(Refusal::needs_https)?;
        let provider = state.provider.clone();
        let user = grant.identity().user_id().to_owned();
        let (issued, session) = verifier.begin_login_session(grant).ok_or_else(Refusal::session_too_large)?;
        let expires_in = issued.expires_at.saturating_sub(unix_seconds());
        let set_cookie = cookie_line(&name, &issued.value, expires_in).ok_or_else(Refusal::session_too_large)?;
        for former in former.iter().filter_map(|cookie| verifier.browser_session_of(cookie)) {
            if self.shared.revocations.is_ended(&former, unix_seconds()) {
                continue;
            }
            if former.owner != session.session.owner {
                end(self.shared, self.runtime, &former).await?;
                self.logins.sessions.forget(&former.id);
                continue;
            }
            if let Some(known) = self.logins.sessions.get(&former.id) {
                self.logins.sessions.supersede(&known, &session);
            }
            let (shared, runtime) = (Arc::clone(self.shared), Arc::clone(self.runtime));
            tokio::spawn(in_current_request(async move {
                tokio::time::sleep(OVERLAP).await;
                // What went wrong is in the log.
                let _ = end(&shared, &runtime, &former).await;
                if let Some(logins) = runtime.verifier.logins() {
                    logins.sessions.forget(&former.id);
                }
            }));
        }
        cookie.note_completed(&provider, self.now);
        self.cookie = Some(cookie);
        self.shared.metrics.logins.signed_in(&provider, "accepted");
        line.user = Some(user.clone());
        tracing::info!(
            event = "sign_in",
            user,
            provider,
            session = session.session.digest(),
            client = %self.client,
            request_id = %self.request_id,
            "audit"
        );
        let mut answer = self.redirect(StatusCode::SEE_OTHER, &state.return_path);
        answer.headers_mut().append(SET_COOKIE, set_cookie);
        Ok(answer)
    }

    /// A page for a sign-in that came to nothing.
    pub(super) fn failed(&self, login: &Login, error: &LoginError) -> Answer {
        let provider = login.spec.name.as_str();
        let metrics = &self.shared.metrics.logins;
        let failed = "sign_in_failed";
        let (event, outcome, page, retry_after) = match error {
            LoginError::Unavailable { retry_after, .. } => {
                let seconds = retry_after.map_or(DEFAULT_RETRY, |wait| wait.as_secs().max(1));
                (failed, "unavailable", pages::provider_down(), Some(seconds))
            }
            LoginError::PushRefused(_) => (failed, "unavailable", pages::provider_down(), Some(DEFAULT_RETRY)),
            LoginError::Denied(_) | LoginError::Revoked(_) => ("denial", "denied", pages::not_allowed(), None),
            LoginError::NoRefreshToken => (failed, "refused", pages::no_refresh_token(), None),
            LoginError::InvalidGrant | LoginError::Refused(_) => (failed, "invalid", pages::unusable(), None),
        };
        metrics.signed_in(provider, outcome);
        tracing::warn!(
            event,
            provider,
            outcome,
            reason = %error,
            client = %self.client,
            request_id = %self.request_id,
            "audit"
        );
        let mut answer = self.page(&page);
        if let Some(seconds) = retry_after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer
    }
}
