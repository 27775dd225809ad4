//! `POST /.vestibule/logout`: ends the session here and, where the login says so, at the provider.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::SET_COOKIE;
use hyper::{Method, StatusCode};

use super::super::session_end::{cookie_line, end};
use super::{LOGIN, SIGNED_OUT, Visit, pages, parameters};
use crate::auth::BrowserSession;
use crate::auth::login::{Login, LoginSession};
use crate::http::{Answer, OwnRequest, Refusal};
use crate::runtime::{Runtime, Shared};
use crate::telemetry::{AccessLine, in_current_request};

/// A form of ours is shorter.
const FORM_BYTES: usize = 4 << 10;
/// The provider is waited for so long.
const WAIT: Duration = Duration::from_secs(3);

/// Serves the endpoint.
pub(super) async fn serve(
    visit: &mut Visit<'_>,
    own: &mut OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let policy = &visit.runtime.policy;
    let is_post = own.head().method == Method::POST;
    let form = if is_post {
        own.check_state_change(policy)?;
        String::from_utf8(own.body(FORM_BYTES).await?).ok()
    } else {
        own.head().uri.query().map(str::to_owned)
    };
    let form = form.as_deref();
    let Some([then]) = parameters(form, ["then"]) else { return Ok(visit.page(&pages::bad_request())) };
    let selects_account = match then.as_deref() {
        None => false,
        Some("select_account") => true,
        Some(_) => return Ok(visit.page(&pages::bad_request())),
    };
    if !is_post {
        return Ok(visit.page(&pages::sign_out(selects_account)));
    }
    let (cookies, name) = own.take_sessions(policy);
    let mut ended = Vec::new();
    for cookie in &cookies {
        let Some(session) = visit.runtime.verifier.browser_session_of(cookie) else { continue };
        line.user = visit.runtime.verifier.session_cookie_user(cookie);
        end(visit.shared, visit.runtime, &session).await?;
        let provider = visit.logins.provider_of(cookie);
        let user = line.user.clone().unwrap_or_default();
        tracing::info!(
            event = "sign_out",
            user,
            provider = provider.as_deref().unwrap_or_default(),
            session = session.digest(),
            client = %visit.client,
            request_id = %visit.request_id,
            "audit"
        );
        let known = end_at_provider(visit.shared, visit.runtime, &session).await;
        ended.push((provider, known));
    }
    let mut location = SIGNED_OUT.to_owned();
    for (provider, known) in &ended {
        let Some(login) = provider.as_ref().and_then(|provider| visit.logins.get(provider)) else { continue };
        let known = known.as_deref().filter(|known| known.is_of(login));
        let at_provider = if selects_account { None } else { provider_page(login, known).await };
        let outcome = if at_provider.is_some() { "provider" } else { "local" };
        visit.shared.metrics.logins.signed_out(&login.spec.name, outcome);
        if let Some(url) = at_provider {
            location = url;
        }
    }
    if selects_account {
        location = format!("{LOGIN}?prompt=select_account");
    }
    if let Some(cookie) = &mut visit.cookie {
        cookie.note_signed_out();
    }
    let mut answer = visit.redirect(StatusCode::SEE_OTHER, &location);
    if let Some(gone) = name.as_deref().and_then(|name| cookie_line(name, "", 0)) {
        answer.headers_mut().append(SET_COOKIE, gone);
    }
    Ok(answer)
}

/// The provider's page of sign-out, where the login goes on there and the provider has one.
async fn provider_page(login: &Login, known: Option<&LoginSession>) -> Option<String> {
    if !login.spec.ends_provider_session {
        return None;
    }
    let metadata = tokio::time::timeout(WAIT, login.metadata()).await.ok()?.ok()?;
    login.end_session_url(&metadata, known.and_then(LoginSession::id_token).as_ref())
}

/// Forgets what is kept of a session that has ended, and revokes its refresh token at the provider: waits a little, and
/// leaves the rest to itself.
pub(in crate::browser) async fn end_at_provider(
    shared: &Arc<Shared>,
    runtime: &Arc<Runtime>,
    session: &BrowserSession,
) -> Option<Arc<LoginSession>> {
    let logins = runtime.verifier.logins()?;
    let known = logins.sessions.forget(&session.id)?;
    shared.notifier.notify();
    let login = logins.get(&known.provider).filter(|login| known.is_of(login));
    if let (Some(token), Some(login)) = (known.take_refresh_token(), login) {
        let login = Arc::clone(login);
        let revoking = tokio::spawn(in_current_request(async move { login.revoke_after_sign_out(&token).await }));
        let _ = tokio::time::timeout(WAIT, revoking).await;
    }
    Some(known)
}
