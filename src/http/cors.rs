//! CORS (docs/contract.md section 3): which request is a preflight, what it is told where we answer, and the fields
//! that let a front end's page read what comes back. Which origins are front ends is the policy's.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CONTENT_LENGTH, HeaderValue, ORIGIN, TRANSFER_ENCODING, UPGRADE, VARY,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};

use super::{Answer, ResponseBody};
use crate::policy::Policy;

/// What the pages of front ends may read beside the body.
const EXPOSED: HeaderValue = HeaderValue::from_static("WWW-Authenticate, Retry-After, X-Request-Id");
const PREFIX: &str = "access-control-";

/// The method a preflight announces, where this is one (Fetch standard, "CORS-preflight request"): `OPTIONS` with one
/// `Origin` and one method to ask for, and no body.
pub(super) fn announced(parts: &Parts, had_transfer_encoding: bool) -> Option<Method> {
    let headers = &parts.headers;
    let no_body = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
        && !had_transfer_encoding
        && !headers.contains_key(TRANSFER_ENCODING);
    if parts.method != Method::OPTIONS || headers.contains_key(UPGRADE) || !no_body {
        return None;
    }
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    one(&ORIGIN).filter(|origin| !origin.is_empty())?;
    Method::from_bytes(one(&ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

/// Our answer to a preflight. A page that is no front end's is told nothing.
#[must_use]
pub fn answer_preflight(head: &HeaderMap, policy: &Policy) -> Answer {
    let mut answer = Response::new(ResponseBody::ours(""));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(
        VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    let Some(origin) = listed(head.get(ORIGIN), policy) else { return answer };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if let Some(cors) = &policy.cors {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, cors.allowed_methods.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, cors.allowed_headers.clone());
        headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
    } else {
        // Our own endpoints answer for themselves.
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, DELETE"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type"));
    }
    answer
}

/// Names the origin of a preflight that is told nothing because the origin is not listed; for the log.
#[must_use]
pub fn unlisted_origin(head: &HeaderMap, policy: &Policy) -> Option<String> {
    let origin = head.get(ORIGIN).filter(|origin| listed(Some(origin), policy).is_none())?;
    Some(not_in_origins(&String::from_utf8_lossy(origin.as_bytes())))
}

/// Says that an origin is not listed; a long one is cut.
pub(super) fn not_in_origins(origin: &str) -> String {
    format!("origin refused: {} is not in origins", origin.chars().take(256).collect::<String>())
}

/// Lets the pages of our front ends read what we author: else a browser shows them nothing, and their retry never
/// runs.
pub fn let_read(origin: Option<&HeaderValue>, headers: &mut HeaderMap, policy: &Policy) {
    if let Some(origin) = listed(origin, policy) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// Where preflights are answered here, the upstream's own fields give way to ours: two opinions would be one too
/// many for a browser, and `*` is no answer to a request with a credential.
pub fn replace(origin: Option<&HeaderValue>, headers: &mut HeaderMap, policy: &Policy) {
    if policy.cors.is_none() || origin.is_none() {
        return;
    }
    let theirs: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in theirs {
        headers.remove(name);
    }
    let_read(origin, headers, policy);
}

fn listed<'a>(origin: Option<&'a HeaderValue>, policy: &Policy) -> Option<&'a HeaderValue> {
    origin.filter(|origin| origin.to_str().is_ok_and(|origin| policy.lists_origin(origin)))
}
