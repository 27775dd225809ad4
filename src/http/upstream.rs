//! The upstream client: our own pool over hyper's HTTP/1 connections.
//!
//! The pool keeps what the legacy client does not: a request that was never written is sent once
//! more, one that may have been written only when it is idempotent and has no body; a connection goes
//! back only after both bodies ended cleanly; and anonymous callers never share one with verified
//! ones, since one desynchronised answer would be a leak between users.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use hyper::http::response::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::admit::lists;
use super::dial::UpstreamConnector;
use super::headers::strip_hop_by_hop;
use super::{BodyEnd, ClientBody, ResponseBody, Sealed, Socket, TimedStream};
use crate::policy::UpstreamSpec;

/// Idle connections kept per lane; each open one belongs to a client connection, and those are
/// limited.
const IDLE: usize = 256;
/// A head of the upstream larger than this is broken off.
const HEAD_BYTES: usize = 256 << 10;

/// Why the upstream gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("connecting to {upstream}: {source}")]
    Connect {
        /// Where to.
        upstream: String,
        /// What the system said.
        source: io::Error,
    },
    /// No connection in time.
    #[error("connecting to {upstream}: no answer within connect_timeout")]
    ConnectTimeout {
        /// Where to.
        upstream: String,
    },
    /// No response head in time.
    #[error("no response head within {limit:?}")]
    ResponseTimeout {
        /// The limit that was reached.
        limit: Duration,
    },
    /// Reset, closed, or answered what is not HTTP.
    #[error("{0}")]
    Failed(String),
    /// The client's body stalled on its way up.
    #[error("the request body stalled")]
    BodyStalled,
    /// The client's body was too large.
    #[error("the request body is too large")]
    BodyTooLarge,
    /// The client's body broke off.
    #[error("the client broke its body off")]
    BodyBroken,
}

impl UpstreamError {
    /// Its name in metrics; `None` where the fault was the client's.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        Some(match self {
            Self::Connect { .. } => "connect",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::ResponseTimeout { .. } => "response_timeout",
            Self::Failed(_) => "broken",
            Self::BodyStalled | Self::BodyTooLarge | Self::BodyBroken => return None,
        })
    }
}

/// An answer on its way back.
pub type Answer = Response<ResponseBody>;

/// An upgraded upstream connection and what it had said already.
#[derive(Debug)]
pub struct Upgraded {
    /// The bare socket.
    pub socket: Socket,
    /// Bytes the upstream sent right behind its 101.
    pub early: Vec<u8>,
}

/// Every upstream of a policy. What is sealed for one is sent to no other.
#[derive(Debug)]
pub struct Upstreams(Vec<Upstream>);

impl Upstreams {
    /// Clients for these, in the policy's order; they connect when asked to.
    #[must_use]
    pub fn new(specs: &[UpstreamSpec], send_timeout: Duration) -> Self {
        Self(specs.iter().map(|spec| Upstream::new(spec.clone(), send_timeout)).collect())
    }

    /// Whether anyone listens now at the first; for the start's sentence.
    pub async fn is_reachable(&self) -> bool {
        match self.0.first() {
            Some(upstream) => upstream.is_reachable().await,
            None => false,
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// When there is no usable answer; see [`UpstreamError`].
    pub async fn send(&self, sealed: Sealed) -> Result<Answer, UpstreamError> {
        // `seal` takes the number from the policy these were made from.
        self.0[sealed.upstream()].send(sealed).await
    }

    /// Sends an upgrade on a connection of its own. `Ok(Err(answer))` is an answer that is no 101.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn upgrade(&self, sealed: Sealed) -> Result<Result<(HeaderMap, Upgraded), Answer>, UpstreamError> {
        self.0[sealed.upstream()].upgrade(sealed).await
    }
}

/// One upstream and its idle connections.
#[derive(Debug)]
struct Upstream {
    spec: UpstreamSpec,
    connector: UpstreamConnector,
    send_timeout: Duration,
    pools: [Arc<Pool>; 2],
}

#[derive(Debug, Default)]
struct Pool {
    idle: Mutex<Vec<Idle>>,
    /// Set while a task is dropping idle connections in time.
    reaping: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<ClientBody>,
    since: Instant,
}

/// The right to give a connection back once its answer has ended.
#[derive(Debug)]
pub(super) struct Lease {
    sender: SendRequest<ClientBody>,
    pool: Weak<Pool>,
    body: BodyEnd,
    keep: Duration,
}

impl Lease {
    /// Back to the pool, unless the request body was still on its way: then whatever answers it
    /// would be taken for the next answer.
    pub(super) fn return_to_pool(self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if !self.body.is_complete() || self.sender.is_closed() {
            return;
        }
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE {
            return;
        }
        idle.push(Idle { sender: self.sender, since: Instant::now() });
        drop(idle);
        if !pool.reaping.swap(true, std::sync::atomic::Ordering::AcqRel) {
            tokio::spawn(reap(Arc::downgrade(&pool), self.keep));
        }
    }
}

/// Drops idle connections in time, until there is none.
async fn reap(pool: Weak<Pool>, keep: Duration) {
    loop {
        tokio::time::sleep(keep.max(Duration::from_millis(50))).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| connection.since.elapsed() < keep && !connection.sender.is_closed());
        if idle.is_empty() {
            idle.shrink_to_fit();
            pool.reaping.store(false, std::sync::atomic::Ordering::Release);
            return;
        }
    }
}

impl Upstream {
    fn new(spec: UpstreamSpec, send_timeout: Duration) -> Self {
        Self { connector: UpstreamConnector::new(&spec), spec, send_timeout, pools: [Arc::default(), Arc::default()] }
    }

    async fn is_reachable(&self) -> bool {
        matches!(timeout(Duration::from_millis(300), self.connect()).await, Ok(Ok(_)))
    }

    async fn send(&self, sealed: Sealed) -> Result<Answer, UpstreamError> {
        let pool = &self.pools[usize::from(sealed.is_verified())];
        let (end, takes_trailers) = (sealed.body_end(), sealed.takes_trailers());
        let mut request = sealed.into_request();
        if !self.spec.reuse {
            // A server that does not read a body takes it for the next request, unless it was told that none comes.
            request.headers_mut().remove(TE);
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let is_head = *request.method() == Method::HEAD;
        let (mut sender, reused) = self.sender(pool).await?;
        let again = if reused { sendable_again(&request, &end) } else { None };
        let first = self.exchange(&mut sender, request, &end).await;
        let (response, sender) = match first {
            Ok(response) => (response, sender),
            Err(Failure { unsent: Some(request), .. }) if reused => {
                let mut sender = self.fresh().await?;
                (self.exchange(&mut sender, *request, &end).await.map_err(|failure| failure.error)?, sender)
            }
            Err(Failure { lost: true, error, .. }) if reused => {
                let Some(request) = again else { return Err(error) };
                let mut sender = self.fresh().await?;
                (self.exchange(&mut sender, request, &end).await.map_err(|failure| failure.error)?, sender)
            }
            Err(failure) => return Err(failure.error),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Failed("101 to a request that asked for no upgrade".to_owned()));
        }
        let (mut parts, incoming) = response.into_parts();
        let sound = framed(&mut parts.headers)? && !may_bring_a_stray_body(is_head, &parts);
        let keep = sound && self.spec.reuse && !lists(&parts.headers, &CONNECTION, "close");
        let lease =
            keep.then(|| Lease { sender, pool: Arc::downgrade(pool), body: end, keep: self.spec.pool_idle_timeout });
        let announced = parts.headers.get(TRAILER).cloned().filter(|_| takes_trailers);
        strip_hop_by_hop(&mut parts.headers);
        if let Some(announced) = announced {
            // hyper passes on those that are announced, and none that frames, routes or authenticates.
            parts.headers.insert(TRAILER, announced);
        }
        // Framing is ours to choose, also for an upstream that speaks 1.0.
        parts.version = Version::HTTP_11;
        Ok(Response::from_parts(parts, ResponseBody::upstream(incoming, lease)))
    }

    async fn upgrade(&self, sealed: Sealed) -> Result<Result<(HeaderMap, Upgraded), Answer>, UpstreamError> {
        let limit = self.spec.handshake_timeout;
        let expected = sealed
            .websocket_key()
            .map(|key| tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes()));
        let exchange = async {
            let io = self.connect().await?;
            let (mut sender, connection) = builder().handshake(io).await.map_err(failed)?;
            tokio::spawn(async move {
                // Its end is told to whoever holds the sender or the upgraded stream.
                let _ = connection.with_upgrades().await;
            });
            sender.send_request(sealed.into_request()).await.map_err(failed)
        };
        let mut response = timeout(limit, exchange).await.map_err(|_| UpstreamError::ResponseTimeout { limit })??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, incoming) = response.into_parts();
            framed(&mut parts.headers)?;
            strip_hop_by_hop(&mut parts.headers);
            return Ok(Err(Response::from_parts(parts, ResponseBody::upstream(incoming, None))));
        }
        let accept = response.headers().get(hyper::header::SEC_WEBSOCKET_ACCEPT);
        let right = lists(response.headers(), &hyper::header::UPGRADE, "websocket")
            && accept.is_some_and(|accept| expected.as_deref().is_some_and(|expected| accept == expected));
        if !right {
            return Err(UpstreamError::Failed("101 without the right Sec-WebSocket-Accept".to_owned()));
        }
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(failed)?;
        let parts = upgraded
            .downcast::<TokioIo<TimedStream>>()
            .map_err(|_| UpstreamError::Failed("an upgraded stream of another type".to_owned()))?;
        // Copied out: even an empty slice of hyper's read buffer keeps the whole of it alive.
        let early = parts.read_buf.to_vec();
        let (head, _) = response.into_parts();
        Ok(Ok((head.headers, Upgraded { socket: parts.io.into_inner().into_socket(), early })))
    }

    async fn connect(&self) -> Result<TokioIo<TimedStream>, UpstreamError> {
        Ok(TokioIo::new(TimedStream::to_upstream(self.connector.connect().await?, self.send_timeout)))
    }

    async fn fresh(&self) -> Result<SendRequest<ClientBody>, UpstreamError> {
        let io = self.connect().await?;
        let (sender, connection) = builder().handshake(io).await.map_err(failed)?;
        tokio::spawn(async move {
            // Its end is told to whoever holds the sender.
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn sender(&self, pool: &Arc<Pool>) -> Result<(SendRequest<ClientBody>, bool), UpstreamError> {
        if self.spec.reuse {
            loop {
                let candidate = pool.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some(mut idle) = candidate else { break };
                if idle.since.elapsed() >= self.spec.pool_idle_timeout || idle.sender.is_closed() {
                    continue;
                }
                // Resolves at once: both bodies had ended when it came back.
                if matches!(timeout(Duration::from_millis(100), idle.sender.ready()).await, Ok(Ok(()))) {
                    return Ok((idle.sender, true));
                }
            }
        }
        Ok((self.fresh().await?, false))
    }

    async fn exchange(
        &self,
        sender: &mut SendRequest<ClientBody>,
        request: Request<ClientBody>,
        end: &BodyEnd,
    ) -> Result<Response<Incoming>, Failure> {
        let limit = self.spec.response_timeout;
        let mut sending = std::pin::pin!(sender.try_send_request(request));
        let answered = loop {
            match timeout(limit, sending.as_mut()).await {
                Ok(answered) => break answered,
                // The limit is for the head: an upload under way has its own limits.
                Err(_) if !end.is_complete() && !end.is_stalled() && !end.is_too_large() && !end.is_broken() => {}
                Err(_) => return Err(Failure::plain(UpstreamError::ResponseTimeout { limit })),
            }
        };
        answered.map_err(|mut error| {
            let unsent = error.take_message().map(Box::new);
            let error = error.into_error();
            if end.is_stalled() {
                return Failure::plain(UpstreamError::BodyStalled);
            }
            if end.is_too_large() {
                return Failure::plain(UpstreamError::BodyTooLarge);
            }
            if end.is_broken() {
                return Failure::plain(UpstreamError::BodyBroken);
            }
            let lost = error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_reset(&error);
            Failure { unsent, lost, error: failed(error) }
        })
    }
}

/// An answer's framing has one reading, or it is no answer (RFC 9112 section 6.3): hyper takes a length written
/// twice or as a list, and any coding before `chunked`, and would pass both on. Returns whether the connection may be
/// used again.
fn framed(headers: &mut HeaderMap) -> Result<bool, UpstreamError> {
    let unsound = |what: &str| Err(UpstreamError::Failed(format!("an answer with {what}")));
    let coded = headers.contains_key(TRANSFER_ENCODING);
    if coded {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let only_chunked = codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only_chunked || codings.next().is_some() {
            return unsound("a transfer coding other than chunked");
        }
    }
    let lengths = headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap_or(""));
    let mut lengths = lengths.flat_map(|value| value.split(',')).map(str::trim);
    let Some(length) = lengths.next().map(str::to_owned) else { return Ok(true) };
    let is_number = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    if !is_number || lengths.any(|other| other != length) {
        return unsound("a length that has no one reading");
    }
    headers.remove(CONTENT_LENGTH);
    if coded {
        // Chunked it was, and the length is a trap for whoever reads on; so is the connection.
        return Ok(false);
    }
    if let Ok(length) = HeaderValue::try_from(length) {
        headers.insert(CONTENT_LENGTH, length);
    }
    Ok(true)
}

/// Whether an answer has no body, by its status or its request's method, and describes one all the same. Some servers
/// send that body (gunicorn before 24, when the application makes one), and whoever is served next on the connection
/// would be answered with it.
fn may_bring_a_stray_body(is_head: bool, answer: &Parts) -> bool {
    let has_none = is_head || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let fields = &answer.headers;
    has_none
        && (fields.contains_key(CONTENT_TYPE)
            || fields.contains_key(TRANSFER_ENCODING)
            || fields.get(CONTENT_LENGTH).is_some_and(|length| length != "0"))
}

struct Failure {
    /// The request, when it was never written.
    unsent: Option<Box<Request<ClientBody>>>,
    /// The connection was lost before an answer began.
    lost: bool,
    error: UpstreamError,
}

impl Failure {
    fn plain(error: UpstreamError) -> Self {
        Self { unsent: None, lost: false, error }
    }
}

/// A copy of what may be sent a second time although the first may have arrived (RFC 9110 section
/// 9.2.2): idempotent and without a body.
fn sendable_again(request: &Request<ClientBody>, end: &BodyEnd) -> Option<Request<ClientBody>> {
    let idempotent =
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    if !idempotent || !end.is_complete() {
        return None;
    }
    let mut copy = Request::new(ClientBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_BYTES);
    builder
}

fn is_reset(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return matches!(
                io.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
            );
        }
        cause = source.source();
    }
    false
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn failed(error: hyper::Error) -> UpstreamError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    UpstreamError::Failed(text)
}
