//! The endpoints of sign-in by OpenID Connect: `/.vestibule/login`, `callback`, `logout`, `signed-out` and
//! `backchannel-logout` (docs/sign-in.md).
//!
//! This module owns the order of the steps and the pages. `auth::login` owns the encrypted state and cookie, the
//! requests to providers, and the sessions.

mod backchannel;
mod begin;
mod callback;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod logout;
mod pages;

use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Method, Response, StatusCode};

use super::pages::{LOGOUT, contact};
use super::set_cookie::cookie_line;
use crate::auth::login::{Login, LoginCookie, Logins};
use crate::auth::{Rejection, Verified, unix_millis};
use crate::http::{Answer, ClientAddress, OwnRequest, Refusal, ResponseBody};
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{AccessLine, Outcome};

const LOGIN: &str = "/.vestibule/login";
const CALLBACK: &str = "/.vestibule/callback";
const BACKCHANNEL_LOGOUT: &str = "/.vestibule/backchannel-logout";
const SIGNED_OUT: &str = "/.vestibule/signed-out";

/// The time that a browser keeps the login cookie, in seconds.
const LOGIN_COOKIE_AGE: u64 = 3_600;

/// Returns whether a path is an endpoint of the sign-in.
#[must_use]
pub fn is_login_path(path: &str) -> bool {
    matches!(path, LOGIN | CALLBACK | LOGOUT | BACKCHANNEL_LOGOUT | SIGNED_OUT)
        || path.strip_prefix(CALLBACK).is_some_and(|rest| rest.starts_with('/'))
}

/// A request to one of these endpoints.
struct SignInRequest<'a> {
    state: &'a Arc<ProxyState>,
    runtime: &'a Arc<Runtime>,
    logins: &'a Logins,
    /// The cookie that binds a sign-in to this browser, if it came, could be decrypted and has not expired.
    cookie: Option<LoginCookie>,
    cookie_name: String,
    /// The number of callbacks in a row whose state could not be decrypted. It is in the cookie in plain text, because an
    /// instance with another key can read nothing else of the cookie.
    undecryptable_states: u8,
    client: ClientAddress,
    /// The time of the request, in Unix milliseconds.
    now: u64,
}

/// Serves these endpoints.
///
/// # Errors
/// Returns the refusal that is sent as the response.
pub async fn serve(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    mut own: OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let logins = runtime.verifier.logins().ok_or_else(Refusal::not_found)?;
    let path = own.head().uri.path().to_owned();
    let now = unix_millis();
    let (value, cookie_name) = own.login_cookie(&runtime.policy);
    let (count, encrypted) = value.as_deref().and_then(|value| value.split_once('.')).unwrap_or(("0", ""));
    let mut request = SignInRequest {
        state,
        runtime,
        logins,
        cookie: LoginCookie::decrypt(&logins.keys, encrypted, now),
        cookie_name,
        undecryptable_states: count.parse().unwrap_or(0),
        client: own.client().clone(),
        now,
    };
    line.outcome = Outcome::Own;
    if path == BACKCHANNEL_LOGOUT {
        return backchannel::serve(state, runtime, logins, &mut own).await;
    }
    let (is_allowed, methods) = match own.head().method {
        Method::GET | Method::HEAD => (true, ""),
        Method::POST if path == LOGOUT => (true, ""),
        _ if path == LOGOUT => (false, "GET, HEAD, POST"),
        _ => (false, "GET, HEAD"),
    };
    if !is_allowed {
        return Err(Refusal::method_not_allowed(Some(methods)));
    }
    match path.as_str() {
        LOGOUT => logout::serve(&mut request, &mut own, line).await,
        LOGIN => begin::serve(&mut request, &mut own, line).await,
        SIGNED_OUT => Ok(request.page(&pages::signed_out())),
        path => callback::serve(&mut request, &mut own, path, line).await,
    }
}

impl SignInRequest<'_> {
    /// Returns the login if only one is configured.
    fn only_login(&self) -> Option<Arc<Login>> {
        let mut all = self.logins.iter();
        all.next().filter(|_| all.next().is_none()).map(Arc::clone)
    }

    /// Returns the session of this browser if it is valid now.
    ///
    /// # Errors
    /// Returns 503 when that cannot be decided now.
    async fn valid_session(&self, own: &mut OwnRequest) -> Result<Option<Verified>, Refusal> {
        let (cookie, _) = own.take_session(&self.runtime.policy);
        let Some(cookie) = cookie else { return Ok(None) };
        match self.runtime.verifier.verify_session_cookie(&cookie).await {
            // A session without the token that the upstream needs counts as none.
            Ok(verified) if !verified.has_token() && self.runtime.policy.passes_tokens() => Ok(None),
            Ok(verified) => Ok(Some(verified)),
            Err(rejection) if rejection.is_unavailable() => Err(self.unavailable(&rejection)),
            Err(_) => Ok(None),
        }
    }

    fn unavailable(&self, rejection: &Rejection) -> Refusal {
        Refusal::rejected(rejection, self.runtime.policy.verbose_errors)
    }

    /// Returns a response with a page of the proxy.
    fn page(&self, page: &pages::Page) -> Answer {
        let origins =
            if page.has_form { self.logins.iter().flat_map(|login| login.origins()).collect() } else { Vec::new() };
        page.answer(&self.client.request_id, &origins, contact(&self.runtime.policy))
    }

    /// Returns a redirect that also sets the login cookie, if there is one.
    fn redirect(&self, status: StatusCode, location: &str) -> Answer {
        let mut answer = Response::new(ResponseBody::from_proxy(""));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(mut location) = HeaderValue::try_from(location) {
            // It may contain a state.
            location.set_sensitive(true);
            headers.insert(LOCATION, location);
        }
        self.set_login_cookie(&mut answer);
        answer
    }

    /// Sets the login cookie as it is now.
    fn set_login_cookie(&self, answer: &mut Answer) {
        let encrypted = self.cookie.as_ref().and_then(|cookie| cookie.encrypt(&self.logins.keys));
        if encrypted.is_none() && self.undecryptable_states == 0 {
            return;
        }
        let value = format!("{}.{}", self.undecryptable_states, encrypted.unwrap_or_default());
        if let Some(line) = cookie_line(&self.cookie_name, &value, LOGIN_COOKIE_AGE, &self.runtime.policy.browser) {
            answer.headers_mut().append(SET_COOKIE, line);
        }
    }
}

/// Returns the parameters of a query by their names, or `None` if one of them occurs twice.
fn parameters<const COUNT: usize>(query: Option<&str>, names: [&str; COUNT]) -> Option<[Option<String>; COUNT]> {
    let mut found = [const { None }; COUNT];
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(at) = names.iter().position(|known| *known == name) else { continue };
        let place = &mut found[at];
        if place.is_some() {
            return None;
        }
        *place = Some(value.into_owned());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_may_occur_once() {
        let found = parameters(Some("code=a%2Bb&state=c+d&other=x&other=y"), ["code", "state", "iss"]);
        assert_eq!(found, Some([Some("a+b".to_owned()), Some("c d".to_owned()), None]));
        assert_eq!(parameters(Some("code=a&code=b"), ["code"]), None);
        assert_eq!(parameters(Some("code=a&%63ode=b"), ["code"]), None);
    }

    #[test]
    fn only_whole_paths_are_endpoints() {
        for (path, expected) in [
            ("/.vestibule/login", true),
            ("/.vestibule/callback", true),
            ("/.vestibule/callback/main", true),
            ("/.vestibule/callbacks", false),
            ("/.vestibule/login/", false),
            ("/.vestibule/Login", false),
        ] {
            assert_eq!(is_login_path(path), expected, "{path}");
        }
    }
}
