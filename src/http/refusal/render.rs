//! Renders refusals as HTTP responses: for hyper, or as bytes where no request was read.

use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
    SET_COOKIE, WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::{Challenge, Refusal};
use crate::telemetry::RequestId;

/// Renders a refusal as JSON (RFC 9457), with the headers of its row.
#[must_use]
pub fn render_refusal(refusal: &Refusal, request_id: &RequestId, wants_problem_json: bool) -> Response<String> {
    let mut response = Response::new(problem(refusal, request_id));
    *response.status_mut() = refusal.status;
    let content_type = if wants_problem_json { "application/problem+json" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let challenge = match refusal.challenge {
        Challenge::Absent => None,
        Challenge::Realm => Some("Bearer realm=\"vestibule\"".to_owned()),
        Challenge::InvalidRequest => Some("Bearer error=\"invalid_request\"".to_owned()),
        Challenge::InvalidToken => {
            Some(format!("Bearer error=\"invalid_token\", error_description=\"{}\"", quotable(&refusal.detail)))
        }
        Challenge::InsufficientScope => Some("Bearer error=\"insufficient_scope\"".to_owned()),
    };
    let challenge = challenge.map(|challenge| match &refusal.challenge_details.parameters {
        Some(parameters) => format!("{challenge}, {parameters}"),
        None => challenge,
    });
    if let Some(challenge) = challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok()) {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    if refusal.challenge == Challenge::Realm && refusal.challenge_details.offers_basic {
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"vestibule\""));
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = refusal.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if let Some(cookie) = &refusal.set_cookie {
        headers.insert(SET_COOKIE, cookie.clone());
    }
    if refusal.status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    if refusal.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(id) = request_id.to_header() {
        headers.insert("x-request-id", id);
    }
    response
}

/// Returns a text without the characters that RFC 6750 section 3 forbids in `error_description`: quotes, backslashes
/// and non-ASCII.
fn quotable(text: &str) -> String {
    text.chars().map(|c| if (' '..='~').contains(&c) && c != '"' && c != '\\' { c } else { '\'' }).collect()
}

/// Renders a refusal as the bytes of a complete HTTP/1.1 response with `Connection: close`, for connections that hyper
/// does not serve.
#[must_use]
pub fn refusal_bytes(refusal: &Refusal, request_id: &RequestId) -> Vec<u8> {
    let mut response = render_refusal(refusal, request_id, false);
    let length = HeaderValue::from(response.body().len());
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CONTENT_LENGTH, length);
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body().as_bytes());
    bytes
}

/// Returns the body: the members of RFC 9457, in the order of the contract.
fn problem(refusal: &Refusal, request_id: &RequestId) -> String {
    json!({
        "type": "about:blank",
        "title": refusal.status.canonical_reason().unwrap_or("Error"),
        "status": refusal.status.as_u16(),
        "code": refusal.code,
        "detail": refusal.detail,
        "request_id": &*request_id.text(),
    })
    .to_string()
}
