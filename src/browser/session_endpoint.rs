//! The endpoint `/.vestibule/session`: POST with a Bearer token begins or renews a session, DELETE ends it, so that
//! copies of its cookie are rejected too (docs/contract.md section 8).

use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, SET_COOKIE};
use hyper::{Method, Response, StatusCode};
use serde_json::json;
use tokio::time::Instant;

use super::set_cookie::cookie_line;
use super::sign_out::{PROVIDER_WAIT, SignOutScope, end_at_provider, end_former_session, sign_out};
use crate::auth::{
    BrowserSession, Identity, IssuedCookie, OpenedSessionCookie, SessionCookie, SessionScope, allow, unix_millis,
    unix_seconds,
};
use crate::authenticate::verify_own_request;
use crate::http::{Answer, OwnRequest, Refusal, ResponseBody, check_sender_of_balancer_token};
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{AccessLine, Outcome};

/// Serves the endpoint.
///
/// # Errors
/// Returns the refusal that is sent as the response.
pub async fn serve(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    mut own: OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    runtime.verifier.session_cookies().ok_or_else(Refusal::not_found)?;
    let method = own.head().method.clone();
    if !matches!(method, Method::POST | Method::DELETE) {
        return Err(Refusal::method_not_allowed(Some("POST, DELETE")));
    }
    own.check_state_change(&runtime.policy)?;
    let mut answer = if method == Method::DELETE {
        let (cookies, name) = own.take_sessions(&runtime.policy);
        let gone = name.as_deref().and_then(|name| cookie_line(name, "", 0, &runtime.policy.browser));
        sign_out(state, runtime, cookies, SignOutScope::Local, own.client(), line)
            .await
            .map_err(|refusal| refusal.taking_back(gone.clone()))?;
        let mut answer = Response::new(ResponseBody::from_proxy(""));
        *answer.status_mut() = StatusCode::NO_CONTENT;
        if let Some(gone) = gone {
            answer.headers_mut().insert(SET_COOKIE, gone);
        }
        answer
    } else {
        let (cookie, name) = own.take_session(&runtime.policy);
        begin(state, runtime, &mut own, cookie.as_ref(), name.as_deref(), line).await?
    };
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    line.outcome = Outcome::Own;
    Ok(answer)
}

async fn begin(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    own: &mut OwnRequest,
    cookie: Option<&SessionCookie>,
    name: Option<&str>,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let policy = &runtime.policy;
    let verified = verify_own_request(state, runtime, own, line).await?;
    check_sender_of_balancer_token(&verified, own.client(), policy)?;
    let identity = verified.identity();
    line.user = Some(identity.user_id().to_owned());
    // The rules of a route are checked at that route; this checks whether the user is allowed at all.
    allow::permits(&[], identity).map_err(|denied| Refusal::denied(&denied))?;
    if let Some(cookie) = cookie {
        match runtime.verifier.verify_session_cookie(cookie).await {
            Ok(former) if former.identity().user() != identity.user() => return Err(Refusal::other_user()),
            // The user of the cookie cannot be determined now, and a second session would continue after the sign-out
            // of the first.
            Err(rejection) if rejection.is_unavailable() => {
                return Err(Refusal::rejected(&rejection, policy.verbose_errors));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let name = name.ok_or_else(Refusal::needs_https)?;
    state.record_presence(policy, identity);
    let now = unix_seconds();
    // A session from a sign-in is not continued by a token: it ends, and another one begins.
    let opened = cookie.and_then(|cookie| runtime.verifier.open_session_cookie(cookie));
    if let Some(opened) = opened.filter(OpenedSessionCookie::is_of_a_sign_in) {
        end_former_session(state, runtime, &opened.session, SessionScope::Session).await?;
        end_at_provider(state, runtime, &opened, Instant::now() + PROVIDER_WAIT).await;
    }
    let issued = issue_cookie(state, runtime, identity, cookie).ok_or_else(Refusal::session_too_large)?;
    let expires_in = issued.expires_at.saturating_sub(now);
    let cookie =
        cookie_line(name, &issued.value, expires_in, &runtime.policy.browser).ok_or_else(Refusal::session_too_large)?;
    let body = json!({"user_id": identity.user_id(), "expires_at": issued.expires_at, "expires_in": expires_in});
    let mut answer = Response::new(ResponseBody::from_proxy(body.to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(SET_COOKIE, cookie);
    Ok(answer)
}

/// Issues a cookie for an identity. It continues the session of the presented cookie, if that is the same user's and
/// has not ended, even if the policy no longer accepts that cookie: so a sign-out ends every cookie of the session.
fn issue_cookie(
    state: &ProxyState,
    runtime: &Runtime,
    identity: &Identity,
    cookie: Option<&SessionCookie>,
) -> Option<IssuedCookie> {
    let sessions = runtime.verifier.session_cookies()?;
    let has_ended = |session: &BrowserSession| state.revocations.is_ended(session, unix_seconds());
    let former = cookie.and_then(|cookie| sessions.decrypt_session(cookie)).filter(|session| !has_ended(session));
    let issued = sessions.issue(identity, former.as_ref(), unix_millis())?;
    // A sign-out in between has either included this cookie's end, or is found here.
    if has_ended(&issued.session) { sessions.issue(identity, None, unix_millis()) } else { Some(issued) }
}
