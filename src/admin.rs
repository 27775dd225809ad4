//! The admin listener: what operators look at. It answers GET only and changes nothing.
//!
//! Owns its endpoints, under which Host it answers them, and the page of `/status`. What is counted is `telemetry`'s.

mod status;

use std::io;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio_util::task::AbortOnDropHandle;

use crate::policy::AdminSpec;
use crate::runtime::Shared;
use crate::small_server::{Answer, Listener, said};

/// Why the admin listener could not be had.
#[derive(Debug, thiserror::Error)]
#[error("admin.listen: {address}: {source}; write another address, or admin: null to do without")]
pub struct AdminError {
    address: std::net::SocketAddr,
    source: io::Error,
}

/// Bound, not answering yet.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
}

impl Admin {
    /// Binds it. `None` where nobody asked for it and its usual place is taken.
    ///
    /// # Errors
    /// When an address that was written cannot be had.
    pub fn bind(spec: &AdminSpec) -> Result<Option<Self>, AdminError> {
        match Listener::tcp(spec.address) {
            Ok(listener) => Ok(Some(Self { listener })),
            Err(source) if spec.is_default => {
                let address = spec.address;
                tracing::warn!(
                    "no admin listener: {address}: {source}; write admin: {{ listen: … }} for another place"
                );
                Ok(None)
            }
            Err(source) => Err(AdminError { address: spec.address, source }),
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.listener.address()
    }

    /// Answers until the handle is dropped.
    pub fn serve(self, shared: &Arc<Shared>) -> AbortOnDropHandle<()> {
        let shared = Arc::clone(shared);
        self.listener.serve(move |request| std::future::ready(answer(&shared, &request)))
    }
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Answer {
    let runtime = shared.current();
    let mut hosts = request.headers().get_all(HOST).iter().filter_map(|host| host.to_str().ok());
    let is_ours = |host: &str| runtime.policy.admin.as_ref().is_some_and(|admin| admin.answers(host));
    if !(hosts.next().is_some_and(is_ours) && hosts.next().is_none()) {
        return said(StatusCode::MISDIRECTED_REQUEST, "Host not served here; list it in admin.hosts\n");
    }
    if request.method() != Method::GET {
        let mut answer = said(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return answer;
    }
    match request.uri().path() {
        "/healthz" => said(StatusCode::OK, "ok\n"),
        "/readyz" if shared.is_ready() => said(StatusCode::OK, "ready\n"),
        "/readyz" => said(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/metrics" => {
            let mut answer = said(StatusCode::OK, shared.metrics.text(shared.room.len(), shared.drain.is_draining()));
            let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, format);
            answer
        }
        "/status" => status::page(shared, &runtime),
        "/assertion-keys.json" => {
            let keys = runtime.signer.as_ref().map(|signer| signer.public_keys().to_string());
            let mut answer = match keys {
                Some(keys) => said(StatusCode::OK, keys),
                None => return said(StatusCode::NOT_FOUND, "identity.assertion is not set\n"),
            };
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            answer
        }
        _ => said(StatusCode::NOT_FOUND, "/status, /healthz, /readyz, /metrics or /assertion-keys.json\n"),
    }
}
