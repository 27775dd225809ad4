//! The proxy's own endpoints, under `/.vestibule/`.

use std::sync::Arc;

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    CACHE_CONTROL, CONTENT_TYPE, HeaderValue,
};
use hyper::{Method, Response, StatusCode};

use crate::browser::{ClientFile, is_login_path, serve_login, serve_session_endpoint};
use crate::http::{Answer, OwnRequest, Refusal, ResponseBody, Served};
use crate::policy::ProtectedResourceSpec;
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{AccessLine, OWN_ROUTE, Outcome};

/// The path of the session endpoint.
const SESSION: &str = "/.vestibule/session";

/// Serves a request under the prefix (sessions, sign-in, the client's files, health), or for the document of a protected
/// resource.
pub(super) async fn serve(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    own: OwnRequest,
    line: &mut AccessLine,
) -> Served {
    line.route = Arc::clone(&OWN_ROUTE);
    let path = own.head().uri.path();
    if let Some(resource) = runtime.policy.resource_at(path) {
        line.outcome = Outcome::Own;
        return Served::Local(resource_document(resource, &own.head().method));
    }
    let answer = if path == SESSION {
        serve_session_endpoint(state, runtime, own, line).await
    } else if is_login_path(path) {
        serve_login(state, runtime, own, line).await
    } else {
        return serve_file_or_health(state, &own, line);
    };
    match answer {
        Ok(answer) => Served::Local(answer),
        Err(refusal) => Served::Refused(refusal),
    }
}

/// Serves the document of a protected resource (RFC 9728). It is public and the same for everyone, so pages of every
/// origin may read it; OAuth clients in browsers are such pages.
fn resource_document(resource: &ProtectedResourceSpec, method: &Method) -> Answer {
    let is_preflight = *method == Method::OPTIONS;
    let mut response =
        Response::new(ResponseBody::from_proxy(if is_preflight { String::new() } else { resource.document.clone() }));
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if is_preflight {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD"));
        // A star does not cover Authorization, and covers nothing in a request with credentials.
        let allowed = HeaderValue::from_static("*, Authorization, MCP-Protocol-Version");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}

/// Serves the client's files and the health endpoints. Any other path under the prefix is 404.
fn serve_file_or_health(state: &Arc<ProxyState>, own: &OwnRequest, line: &mut AccessLine) -> Served {
    let file = ClientFile::at(own.head().uri.path());
    let (status, text) = match own.head().uri.path() {
        _ if file.is_some() => (StatusCode::OK, ""),
        "/.vestibule/healthz" => (StatusCode::OK, "ok\n"),
        "/.vestibule/readyz" if state.is_ready() => (StatusCode::OK, "ready\n"),
        "/.vestibule/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        _ => return Served::Refused(Refusal::not_found()),
    };
    if !matches!(own.head().method, Method::GET | Method::HEAD) {
        return Served::Refused(Refusal::method_not_allowed(Some("GET, HEAD")));
    }
    if let Some(file) = file {
        line.outcome = Outcome::Own;
        return Served::Local(file.answer(&own.head().headers));
    }
    line.quiet = true;
    line.outcome = Outcome::Own;
    let mut response = Response::new(ResponseBody::from_proxy(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Served::Local(response)
}
