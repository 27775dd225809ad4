//! `POST /.vestibule/logout`: ends the session at the proxy and, if the login is configured so, at the provider. GET
//! shows a button that posts the form.

use hyper::header::SET_COOKIE;
use hyper::{Method, StatusCode};

use super::super::set_cookie::cookie_line;
use super::super::sign_out::{SignOutScope, sign_out};
use super::{LOGIN, SIGNED_OUT, SignInRequest, pages, parameters};
use crate::auth::login::LoginCookie;
use crate::http::{Answer, OwnRequest, Refusal};
use crate::telemetry::AccessLine;

/// The maximum length of the form in bytes. The form of the proxy's page is shorter.
const FORM_BYTES: usize = 4 << 10;

/// Serves the endpoint.
///
/// # Errors
/// Returns 403 for another origin's form, 503 when the end of a session could not be recorded.
pub(super) async fn serve(
    request: &mut SignInRequest<'_>,
    own: &mut OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let policy = &request.runtime.policy;
    let is_post = own.head().method == Method::POST;
    let form = if is_post {
        own.check_state_change(policy)?;
        String::from_utf8(own.body(FORM_BYTES).await?).ok()
    } else {
        own.head().uri.query().map(str::to_owned)
    };
    let form = form.as_deref();
    let Some([then]) = parameters(form, ["then"]) else { return Ok(request.page(&pages::bad_request())) };
    let selects_account = match then.as_deref() {
        None => false,
        Some("select_account") => true,
        Some(_) => return Ok(request.page(&pages::bad_request())),
    };
    if !is_post {
        return Ok(request.page(&pages::sign_out(selects_account)));
    }
    let (cookies, name) = own.take_sessions(policy);
    // To choose another account the browser is redirected to the provider's sign-in, not to its sign-out.
    let scope = if selects_account { SignOutScope::Local } else { SignOutScope::Provider };
    let gone = name.as_deref().and_then(|name| cookie_line(name, "", 0, &request.runtime.policy.browser));
    let location = sign_out(request.state, request.runtime, cookies, scope, &request.client, line)
        .await
        .map_err(|refusal| refusal.taking_back(gone.clone()))?;
    let location = if selects_account {
        format!("{LOGIN}?prompt=select_account")
    } else {
        location.unwrap_or_else(|| SIGNED_OUT.to_owned())
    };
    if let Some(mut cookie) = request.cookie.take() {
        cookie.note_signed_out();
        // The next session of this browser has nothing to do with those that have ended.
        request.cookie = LoginCookie::new(request.now).map(|next| next.succeeding(cookie));
    }
    let mut answer = request.redirect(StatusCode::SEE_OTHER, &location);
    if let Some(gone) = gone {
        answer.headers_mut().append(SET_COOKIE, gone);
    }
    Ok(answer)
}
