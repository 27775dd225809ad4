//! The demo's backend: a small live notebook. Like the backends for which Vestibule is made, it trusts `X-User-Id` and
//! reads no tokens.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::DemoError;
use super::event_log::EventLog;
use super::expression::evaluate;
use super::issuer::Issuer;
use crate::http::accept_key;
use crate::small_server::accept;

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");
/// The time from "stop the backend" to its next start.
const RESTART_DELAY: Duration = Duration::from_secs(4);
/// The maximum length in bytes of a request body.
const MAX_BODY_BYTES: usize = 4 << 10;

type FullResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct Notebook {
    log: Arc<EventLog>,
    issuer: Arc<Issuer>,
    names: Mutex<HashMap<String, BTreeMap<String, f64>>>,
    /// Cancelled to stop every connection; each start makes a new one.
    running: Mutex<CancellationToken>,
}

/// Starts the backend on a free port.
pub(super) async fn start(log: Arc<EventLog>, issuer: Arc<Issuer>) -> Result<SocketAddr, DemoError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let notebook = Arc::new(Notebook { log, issuer, names: Mutex::default(), running: Mutex::default() });
    tokio::spawn(notebook.run(listener, address));
    Ok(address)
}

impl Notebook {
    /// Serves until it is stopped. Then it closes every connection, waits, and starts again on the same port.
    async fn run(self: Arc<Self>, listener: TcpListener, address: SocketAddr) {
        let mut listener = Some(listener);
        loop {
            let running = CancellationToken::new();
            *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running.clone();
            if let Some(listener) = listener.take() {
                Arc::clone(&self).accept(&listener, &running).await;
            }
            self.log.push_backend("stopped: every connection is closed");
            tokio::time::sleep(RESTART_DELAY).await;
            match TcpListener::bind(address).await {
                Ok(again) => listener = Some(again),
                Err(_) => continue,
            }
            self.log.push_backend("started again");
        }
    }

    async fn accept(self: Arc<Self>, listener: &TcpListener, running: &CancellationToken) {
        loop {
            let stream = tokio::select! {
                () = running.cancelled() => return,
                (stream, _) = accept(|| listener.accept()) => stream,
            };
            let (notebook, running) = (Arc::clone(&self), running.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let notebook = Arc::clone(&notebook);
                    async move { Ok::<_, Infallible>(notebook.respond(request).await) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = running.cancelled() => {}
                    _ = connection.with_upgrades() => {}
                }
            });
        }
    }

    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> FullResponse {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/") => text("text/html; charset=utf-8", HTML),
            (&Method::GET, "/demo/page.css") => text("text/css; charset=utf-8", CSS),
            (&Method::GET, "/demo/page.js") => text("text/javascript; charset=utf-8", JS),
            (&Method::GET, "/demo/events") => self.events(&request),
            (&Method::POST, "/demo/sign-in") => self.sign_in(request).await,
            (&Method::POST, "/demo/stop") => {
                let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // The response must be sent before the stop.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    running.cancel();
                });
                text("text/plain", "stopping\n")
            }
            (&Method::GET, "/api/whoami") => {
                let user = self.log_request(&request);
                text("text/plain; charset=utf-8", &format!("{user}\n"))
            }
            (&Method::POST, "/api/run") => {
                let user = self.log_request(&request);
                match body(request).await {
                    Some(cell) => {
                        text("application/json", &self.run_cell(&user, cell["cell"].as_str().unwrap_or("")).to_string())
                    }
                    None => status(StatusCode::BAD_REQUEST),
                }
            }
            (&Method::GET, "/ws") => self.socket(request),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    /// Logs a request, and returns its user.
    fn log_request(&self, request: &Request<Incoming>) -> String {
        let users: Vec<&str> =
            request.headers().get_all("x-user-id").iter().filter_map(|value| value.to_str().ok()).collect();
        let user = users.join(" and ");
        let token = if request.headers().contains_key("authorization") { ", a token" } else { ", no token" };
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        self.log.push_backend(&format!("{} {target} from X-User-Id: {user}{token}", request.method()));
        user
    }

    fn run_cell(&self, user: &str, cell: &str) -> Value {
        let mut all = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let names = all.entry(user.to_owned()).or_default();
        match evaluate(cell, names) {
            Ok(value) => json!({"type": "output", "cell": cell, "value": value, "user": user}),
            Err(error) => json!({"type": "output", "cell": cell, "error": error, "user": user}),
        }
    }

    async fn sign_in(&self, request: Request<Incoming>) -> FullResponse {
        let Some(asked) = body(request).await else { return status(StatusCode::BAD_REQUEST) };
        let (user, ttl) = (asked["user"].as_str().unwrap_or(""), asked["ttl"].as_u64().unwrap_or(60));
        if !matches!(user, "alice" | "bob") || !(1..=3_600).contains(&ttl) {
            return status(StatusCode::BAD_REQUEST);
        }
        match self.issuer.token(user, ttl) {
            Ok(token) => text("application/json", &json!({ "token": token }).to_string()),
            Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// Sends the log as server-sent events. A page that reconnects names the last line that it has (`Last-Event-ID`).
    fn events(&self, request: &Request<Incoming>) -> FullResponse {
        let seen =
            request.headers().get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
        let seen: u64 = seen.unwrap_or_else(|| *self.log.subscribe().borrow());
        let (log, changes) = (Arc::clone(&self.log), self.log.subscribe());
        let frames = stream::unfold((seen, log, changes, true), |(mut seen, log, mut changes, first)| async move {
            // A first field opens the stream at once.
            let mut out = if first { "retry: 500\n\n".to_owned() } else { String::new() };
            while out.is_empty() {
                for (number, line) in log.since(seen) {
                    let _ = write!(out, "id: {number}\ndata: {line}\n\n");
                    seen = number;
                }
                if out.is_empty() && changes.changed().await.is_err() {
                    return None;
                }
            }
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(out))), (seen, log, changes, false)))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    fn socket(self: Arc<Self>, mut request: Request<Incoming>) -> FullResponse {
        let user = self.log_request(&request);
        let Some(key) = request.headers().get("sec-websocket-key").map(accept_key) else {
            return status(StatusCode::BAD_REQUEST);
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            tokio::select! {
                () = running.cancelled() => {}
                () = self.serve_socket(socket, &user) => {}
            }
        });
        let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::try_from(key) {
            headers.insert("sec-websocket-accept", accept);
        }
        response
    }

    async fn serve_socket(&self, mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, user: &str) {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { continue };
            self.log.push_backend(&format!("message of {user}: {text}"));
            let cell = serde_json::from_str::<Value>(&text).ok();
            let answer = self.run_cell(user, cell.as_ref().and_then(|cell| cell["cell"].as_str()).unwrap_or(""));
            if socket.send(Message::text(answer.to_string())).await.is_err() {
                return;
            }
        }
        self.log.push_backend(&format!("socket of {user} closed"));
    }
}

async fn body(request: Request<Incoming>) -> Option<Value> {
    let bytes = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await.ok()?.to_bytes();
    serde_json::from_slice(&bytes).ok()
}

fn text(kind: &'static str, text: &str) -> FullResponse {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    );
    response
}

fn status(status: StatusCode) -> FullResponse {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}
