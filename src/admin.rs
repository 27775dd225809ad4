//! The admin listener: health, metrics and the status page. It serves GET only and changes nothing.
//!
//! This module owns the endpoints, the check of `Host`, and the page of `/status`. `telemetry` owns the metrics.

mod duration;
mod instances;
mod status;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio_util::task::AbortOnDropHandle;

use crate::policy::AdminSpec;
use crate::runtime::ProxyState;
use crate::small_server::{FullResponse, Listener, text_response};

/// The time that the status page waits for checks of upstreams. A check on the same host ends within it; a slower
/// result is shown when the page is loaded again.
const UPSTREAM_CHECK_WAIT: Duration = Duration::from_millis(100);

/// The reason why the admin listener could not be started.
#[derive(Debug, thiserror::Error)]
#[error("admin.listen: {address}: {source}; write another address, or admin: null to do without")]
pub struct AdminError {
    address: std::net::SocketAddr,
    source: io::Error,
}

/// An admin listener that is bound and does not accept yet.
#[derive(Debug)]
pub struct Admin {
    listener: Listener,
}

impl Admin {
    /// Binds the address of the policy. `None` if `admin` is not configured and the default address is in use.
    ///
    /// # Errors
    /// Returns an error when a configured address cannot be bound.
    pub fn bind(spec: &AdminSpec) -> Result<Option<Self>, AdminError> {
        match Listener::tcp(spec.address) {
            Ok(listener) => Ok(Some(Self { listener })),
            Err(source) if spec.is_default => {
                let address = spec.address;
                tracing::warn!(
                    %address,
                    error = %source,
                    "admin listener not started; set admin.listen to another address"
                );
                Ok(None)
            }
            Err(source) => Err(AdminError { address: spec.address, source }),
        }
    }

    /// Returns the bound address; `None` for a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.listener.address()
    }

    /// Serves requests until the handle is dropped.
    pub fn serve(self, state: &Arc<ProxyState>) -> AbortOnDropHandle<()> {
        let state = Arc::clone(state);
        self.listener.serve(move |request| {
            let state = Arc::clone(&state);
            async move {
                if let Some(refusal) = refuse(&state, &request) {
                    return refusal;
                }
                match request.uri().path() {
                    "/status" => {
                        state.current().upstreams.check(UPSTREAM_CHECK_WAIT).await;
                        status::page(&state, &state.current())
                    }
                    "/metrics" => metrics(state).await,
                    path => answer(&state, path),
                }
            }
        })
    }
}

/// Returns whether the request has one `Host`, which is served on this listener.
fn is_served(state: &ProxyState, request: &Request<Incoming>) -> bool {
    let runtime = state.current();
    let mut hosts = request.headers().get_all(HOST).iter().filter_map(|host| host.to_str().ok());
    let is_ours = |host: &str| runtime.policy.admin.as_ref().is_some_and(|admin| admin.answers(host));
    hosts.next().is_some_and(is_ours) && hosts.next().is_none()
}

/// Returns the refusal of a request to another host, or with another method than GET.
fn refuse(state: &ProxyState, request: &Request<Incoming>) -> Option<FullResponse> {
    if !is_served(state, request) {
        let text = "Host not served here; list it in admin.hosts\n";
        return Some(text_response(StatusCode::MISDIRECTED_REQUEST, text));
    }
    if request.method() != Method::GET {
        let mut answer = text_response(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return Some(answer);
    }
    None
}

/// Encodes the metrics on another thread than the one that accepts all connections. With 10,000 routes it takes 300 ms.
async fn metrics(state: Arc<ProxyState>) -> FullResponse {
    let encoding = tokio::task::spawn_blocking(move || {
        if let Some(instances) = &state.instances {
            instances.observe();
        }
        state.metrics.text(state.pending_sockets.len(), state.drain.is_draining())
    });
    // It is lost only by a panic, or where the process ends.
    let Ok(text) = encoding.await else {
        return text_response(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n");
    };
    let mut answer = text_response(StatusCode::OK, text);
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, format);
    answer
}

fn answer(state: &ProxyState, path: &str) -> FullResponse {
    match path {
        "/healthz" => text_response(StatusCode::OK, "ok\n"),
        "/readyz" if state.is_ready() => text_response(StatusCode::OK, "ready\n"),
        "/readyz" => text_response(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/assertion-keys.json" => {
            let keys = state.current().signer.as_ref().map(|signer| signer.public_keys().to_string());
            let mut answer = match keys {
                Some(keys) => text_response(StatusCode::OK, keys),
                None => return text_response(StatusCode::NOT_FOUND, "identity.assertion is not set\n"),
            };
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            answer
        }
        _ => text_response(StatusCode::NOT_FOUND, "/status, /healthz, /readyz, /metrics or /assertion-keys.json\n"),
    }
}
