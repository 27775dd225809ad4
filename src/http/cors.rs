//! CORS (docs/contract.md section 3): recognises preflights, answers them where `cors` is configured, and adds the
//! headers with which a page of a listed origin can read responses. The list of origins is in the policy.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CONTENT_LENGTH, HeaderName, HeaderValue, ORIGIN, SET_COOKIE, TRANSFER_ENCODING, UPGRADE, VARY,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};

use super::refusal::not_in_origins;
use super::{Answer, ResponseBody};
use crate::policy::Policy;

/// The response headers that pages of listed origins may always read.
const EXPOSED_HEADERS: [&str; 3] = ["WWW-Authenticate", "Retry-After", "X-Request-Id"];
const CORS_PREFIX: &str = "access-control-";

/// Returns the method that a preflight announces; `None` when the request is no preflight. A preflight is `OPTIONS`
/// with one `Origin`, one `Access-Control-Request-Method` and no body (Fetch standard, "CORS-preflight request").
pub(super) fn preflight_method(parts: &Parts, had_transfer_encoding: bool) -> Option<Method> {
    if parts.method != Method::OPTIONS {
        return None;
    }
    let headers = &parts.headers;
    let no_body = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
        && !had_transfer_encoding
        && !headers.contains_key(TRANSFER_ENCODING);
    if headers.contains_key(UPGRADE) || !no_body {
        return None;
    }
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    one(&ORIGIN).filter(|origin| !origin.is_empty())?;
    Method::from_bytes(one(&ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

/// Answers a preflight. The response allows nothing when the origin is not listed.
#[must_use]
pub fn answer_preflight(head: &HeaderMap, policy: &Policy) -> Answer {
    let mut answer = Response::new(ResponseBody::from_proxy(""));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(
        VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    let Some(origin) = listed_origin(head.get(ORIGIN), policy) else { return answer };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if let Some(cors) = &policy.cors {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, cors.allowed_methods.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, cors.allowed_headers.clone());
        headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.clone());
    } else {
        // Without `cors` the proxy answers preflights for its own endpoints only.
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, DELETE"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Authorization, Content-Type"));
    }
    answer
}

/// Returns the log's reason for a preflight that allows nothing, when its origin is not listed; it names the origin.
#[must_use]
pub fn unlisted_origin(head: &HeaderMap, policy: &Policy) -> Option<String> {
    let origin = head.get(ORIGIN).filter(|origin| listed_origin(Some(origin), policy).is_none())?;
    Some(not_in_origins(&String::from_utf8_lossy(origin.as_bytes())))
}

/// Adds the headers with which pages of listed origins can read a response of the proxy. Without them a browser hides
/// the response from the page, and the page cannot distinguish a 401 after which it could retry from a network error.
pub fn add_cors_headers(origin: Option<&HeaderValue>, headers: &mut HeaderMap, policy: &Policy) {
    if let Some(origin) = listed_origin(origin, policy) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        if let Some(exposed) = exposed(&[], policy) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// Replaces the upstream's CORS headers by the proxy's, where it answers preflights: a browser rejects a response with
/// two values, and `*` for a request with a credential. The headers that the upstream exposes to pages stay exposed.
pub fn replace_cors_headers(origin: Option<&HeaderValue>, headers: &mut HeaderMap, policy: &Policy) {
    if policy.cors.is_none() || origin.is_none() {
        return;
    }
    let upstream_exposes = exposed_by_upstream(headers);
    let upstream_fields: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with(CORS_PREFIX)).cloned().collect();
    for name in upstream_fields {
        headers.remove(name);
    }
    add_cors_headers(origin, headers, policy);
    if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
        && let Some(exposed) = exposed(&upstream_exposes, policy)
    {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// Returns the headers that the upstream's response exposes to pages. `*`, which does not count for a request with a
/// credential, is replaced by the headers of the response.
fn exposed_by_upstream(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(ACCESS_CONTROL_EXPOSE_HEADERS).iter().filter_map(|value| value.to_str().ok());
    let mut names = Vec::new();
    for name in values.flat_map(|value| value.split(',')).map(str::trim) {
        if name == "*" {
            // A page never reads Set-Cookie (Fetch standard, "forbidden response-header name").
            let readable = |name: &&HeaderName| **name != SET_COOKIE && !name.as_str().starts_with(CORS_PREFIX);
            names.extend(headers.keys().filter(readable).cloned());
        } else if let Ok(name) = HeaderName::try_from(name) {
            names.push(name);
        }
    }
    names
}

/// Returns the value of `Access-Control-Expose-Headers`: the names of the proxy, the configuration and the upstream,
/// each once.
fn exposed(upstream: &[HeaderName], policy: &Policy) -> Option<HeaderValue> {
    let configured = policy.cors.iter().flat_map(|cors| &cors.exposed_headers);
    let mut names = EXPOSED_HEADERS.to_vec();
    for name in configured.chain(upstream) {
        if !names.iter().any(|known| known.eq_ignore_ascii_case(name.as_str())) {
            names.push(name.as_str());
        }
    }
    HeaderValue::try_from(names.join(", ")).ok()
}

fn listed_origin<'a>(origin: Option<&'a HeaderValue>, policy: &Policy) -> Option<&'a HeaderValue> {
    origin.filter(|origin| origin.to_str().is_ok_and(|origin| policy.lists_origin(origin)))
}
