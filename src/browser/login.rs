//! Sign-in by OpenID Connect at a browser: `/.vestibule/login`, `callback`, `logout`, `signed-out` and
//! `backchannel-logout` (docs/sign-in.md).
//!
//! Owns the order of the steps and what people see. Seals, requests to providers and sessions are `auth::login`'s.

mod backchannel;
mod begin;
mod callback;
mod logout;
mod pages;

use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, HeaderValue, LOCATION, SET_COOKIE};
use hyper::{Method, Response, StatusCode};

use super::pages::contact;
use super::session_end::cookie_line;
use crate::auth::login::{Login, LoginCookie, Logins};
use crate::auth::{Rejection, Verified, unix_millis};
use crate::http::{Answer, OwnRequest, Refusal, ResponseBody};
use crate::runtime::{Runtime, Shared};
use crate::telemetry::{AccessLine, Outcome};

pub(super) use logout::end_at_provider;

const LOGIN: &str = "/.vestibule/login";
const CALLBACK: &str = "/.vestibule/callback";
const LOGOUT: &str = "/.vestibule/logout";
const BACKCHANNEL_LOGOUT: &str = "/.vestibule/backchannel-logout";
const SIGNED_OUT: &str = "/.vestibule/signed-out";

/// How long a browser keeps the cookie of a sign-in, seconds.
const LOGIN_COOKIE_AGE: u64 = 3_600;

/// Whether this path is an endpoint of the sign-in.
#[must_use]
pub fn is_login_path(path: &str) -> bool {
    matches!(path, LOGIN | CALLBACK | LOGOUT | BACKCHANNEL_LOGOUT | SIGNED_OUT)
        || path.strip_prefix(CALLBACK).is_some_and(|rest| rest.starts_with('/'))
}

/// One request to these endpoints.
struct Visit<'a> {
    shared: &'a Arc<Shared>,
    runtime: &'a Arc<Runtime>,
    logins: &'a Logins,
    /// What binds a sign-in to this browser, as it came and is still good.
    cookie: Option<LoginCookie>,
    cookie_name: String,
    /// How often it came with a state that nothing here opens. Not sealed: where keys differ nothing else is read.
    strangers: u8,
    request_id: String,
    client: String,
    now: u64,
}

/// Serves these endpoints.
///
/// # Errors
/// The refusal that is the answer.
pub async fn serve(
    shared: &Arc<Shared>,
    runtime: &Arc<Runtime>,
    mut own: OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let logins = runtime.verifier.logins().ok_or_else(Refusal::not_found)?;
    let path = own.head().uri.path().to_owned();
    let now = unix_millis();
    let (value, cookie_name) = own.login_cookie(&runtime.policy);
    let (strangers, sealed) = value.as_deref().and_then(|value| value.split_once('.')).unwrap_or(("0", ""));
    let mut visit = Visit {
        shared,
        runtime,
        logins,
        cookie: LoginCookie::open(&logins.keys, sealed, now),
        cookie_name,
        strangers: strangers.parse().unwrap_or(0),
        request_id: own.client().request_id.clone(),
        client: own.client().address.to_string(),
        now,
    };
    line.outcome = Outcome::Own;
    if path == BACKCHANNEL_LOGOUT {
        return backchannel::serve(shared, runtime, logins, &mut own).await;
    }
    let (fits, methods) = match own.head().method {
        Method::GET | Method::HEAD => (true, ""),
        Method::POST if path == LOGOUT => (true, ""),
        _ if path == LOGOUT => (false, "GET, HEAD, POST"),
        _ => (false, "GET, HEAD"),
    };
    if !fits {
        return Err(Refusal::method_not_allowed(Some(methods)));
    }
    match path.as_str() {
        LOGOUT => logout::serve(&mut visit, &mut own, line).await,
        LOGIN => begin::serve(&mut visit, &mut own, line).await,
        SIGNED_OUT => Ok(visit.page(&pages::signed_out())),
        CALLBACK => {
            let login = visit.only_login().ok_or_else(Refusal::not_found)?;
            callback::serve(&mut visit, &mut own, &login, line).await
        }
        path => {
            let name = path.strip_prefix(CALLBACK).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
            let login = visit.logins.get(name).filter(|login| login.spec.callback_path == path);
            let login = Arc::clone(login.ok_or_else(Refusal::not_found)?);
            callback::serve(&mut visit, &mut own, &login, line).await
        }
    }
}

impl Visit<'_> {
    /// The login, where there is one alone.
    fn only_login(&self) -> Option<Arc<Login>> {
        let mut all = self.logins.iter();
        all.next().filter(|_| all.next().is_none()).map(Arc::clone)
    }

    /// Whether this browser has a session that is good now.
    ///
    /// # Errors
    /// 503 where that cannot be said.
    async fn valid_session(&self, own: &mut OwnRequest) -> Result<Option<Verified>, Refusal> {
        let (cookie, _) = own.take_session(&self.runtime.policy);
        let Some(cookie) = cookie else { return Ok(None) };
        match self.runtime.verifier.verify_session_cookie(&cookie).await {
            // Without the token that a backend is to get it is none.
            Ok(verified) if !verified.has_token() && self.runtime.policy.passes_tokens() => Ok(None),
            Ok(verified) => Ok(Some(verified)),
            Err(rejection) if rejection.is_unavailable() => Err(self.unavailable(&rejection)),
            Err(_) => Ok(None),
        }
    }

    fn unavailable(&self, rejection: &Rejection) -> Refusal {
        Refusal::rejected(rejection, self.runtime.policy.verbose_errors)
    }

    /// A page of ours.
    fn page(&self, page: &pages::Page) -> Answer {
        let origins =
            if page.has_form { self.logins.iter().flat_map(|login| login.origins()).collect() } else { Vec::new() };
        page.answer(&self.request_id, &origins, contact(&self.runtime.policy))
    }

    /// A redirect; with the cookie of the sign-in, where there is one.
    fn redirect(&self, status: StatusCode, location: &str) -> Answer {
        let mut answer = Response::new(ResponseBody::own(""));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(mut location) = HeaderValue::try_from(location) {
            // It may hold a state.
            location.set_sensitive(true);
            headers.insert(LOCATION, location);
        }
        self.keep_cookie(&mut answer);
        answer
    }

    /// Lets the browser keep the cookie of the sign-in as it is now.
    fn keep_cookie(&self, answer: &mut Answer) {
        let sealed = self.cookie.as_ref().and_then(|cookie| cookie.sealed(&self.logins.keys));
        if sealed.is_none() && self.strangers == 0 {
            return;
        }
        let value = format!("{}.{}", self.strangers, sealed.unwrap_or_default());
        if let Some(line) = cookie_line(&self.cookie_name, &value, LOGIN_COOKIE_AGE) {
            answer.headers_mut().append(SET_COOKIE, line);
        }
    }
}

/// The parameters of a query by these names; `None` where one stands twice.
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
    fn parameters_stand_once() {
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
