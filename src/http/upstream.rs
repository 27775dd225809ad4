//! The upstream client: a connection pool over hyper's HTTP/1 connections.
//!
//! It is not hyper-util's legacy client, because that one does not guarantee the following. A request that was never
//! written is retried once; a request that may have been written is retried only if it is idempotent and has no body. A
//! connection returns to the pool only after both bodies ended completely. Anonymous and verified requests never share
//! a connection, because one desynchronized response would be a leak between users.

mod health;
mod retry;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use hyper::http::response::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::accept_key::accept_key;
use super::admitted::RequestMessage;
use super::dial::UpstreamConnector;
use super::headers::{has_hop_by_hop, strip_hop_by_hop};
use super::list_field::lists;
use super::pool::{IdleConnection, Pool, PooledConnection, UpstreamConnection};
use super::timer::MovableTimer;
use super::{Answer, BodyEnd, ResponseBody, Socket, TimedStream, UpstreamError, UpstreamRequest};
use crate::policy::UpstreamSpec;
use health::HealthRecord;
use retry::RetryableHead;

pub use health::UpstreamHealth;

/// The age at which an observation is too old for the status page, so that the upstream is checked.
const CHECK_AGE: Duration = Duration::from_secs(5);
/// Upper bound on the head of an upstream's response.
const MAX_RESPONSE_HEAD_BYTES: usize = 256 << 10;

/// An upgraded connection to an upstream.
#[derive(Debug)]
pub struct UpstreamSocket {
    /// The socket, without HTTP.
    pub socket: Socket,
    /// The bytes that the upstream sent directly after its 101.
    pub early: Vec<u8>,
}

/// The clients of all upstreams of a policy.
#[derive(Debug)]
pub struct Upstreams(Vec<Arc<Upstream>>);

impl Upstreams {
    /// Creates the clients, in the policy's order. They connect when a request is sent.
    #[must_use]
    pub fn new(specs: &[UpstreamSpec], send_timeout: Duration) -> Self {
        Self(specs.iter().map(|spec| Arc::new(Upstream::new(spec.clone(), send_timeout))).collect())
    }

    /// Returns whether the first upstream accepts a connection now.
    pub async fn is_reachable(&self) -> bool {
        match self.0.first() {
            Some(upstream) => upstream.is_reachable().await,
            None => false,
        }
    }

    /// Returns the URL of each upstream with its last observations.
    pub fn health(&self) -> impl Iterator<Item = (&str, UpstreamHealth)> {
        self.0.iter().map(|upstream| (upstream.spec.url.as_str(), upstream.health.get()))
    }

    /// Connects to each upstream of which nothing was observed for 5 s, and waits for the results, but no longer
    /// than `wait`. A check that takes longer continues; only one runs per upstream.
    pub async fn check(&self, wait: Duration) {
        let due = self.0.iter().filter(|upstream| upstream.health.begin_check(CHECK_AGE));
        let checks: Vec<_> = due.map(|upstream| tokio::spawn(Arc::clone(upstream).check())).collect();
        let all = async {
            for check in checks {
                // A check that panicked has no result.
                let _ = check.await;
            }
        };
        let _ = timeout(wait, all).await;
    }

    /// Sends a request and waits for the head of the response. Returns the response and how long that took.
    ///
    /// # Errors
    /// Returns an error when there is no usable response; see `UpstreamError`.
    pub async fn send(&self, upstream_request: UpstreamRequest) -> Result<(Answer, Duration), UpstreamError> {
        // `prepare` takes the index from the policy from which these clients were made.
        let upstream = &self.0[upstream_request.upstream()];
        let began = Instant::now();
        let _waiting = upstream.health.begin_request(began);
        let sent = upstream.send(upstream_request, began).await;
        let ended = Instant::now();
        upstream.observe(sent.as_ref().err(), ended);
        sent.map(|answer| (answer, ended - began))
    }

    /// Sends an upgrade on a new connection. `Ok(Err(response))` is a response other than 101.
    ///
    /// # Errors
    /// Returns an error when there is no usable response.
    pub async fn upgrade(
        &self,
        upstream_request: UpstreamRequest,
    ) -> Result<Result<(HeaderMap, UpstreamSocket), Answer>, UpstreamError> {
        let upstream = &self.0[upstream_request.upstream()];
        let _waiting = upstream.health.begin_request(Instant::now());
        let upgraded = upstream.upgrade(upstream_request).await;
        upstream.observe(upgraded.as_ref().err(), Instant::now());
        upgraded
    }
}

/// The client of one upstream, with its idle connections: one pool for anonymous and one for verified requests.
#[derive(Debug)]
struct Upstream {
    spec: UpstreamSpec,
    connector: UpstreamConnector,
    send_timeout: Duration,
    pools: [Arc<Pool>; 2],
    health: HealthRecord,
}

impl Upstream {
    fn new(spec: UpstreamSpec, send_timeout: Duration) -> Self {
        Self {
            connector: UpstreamConnector::new(&spec),
            spec,
            send_timeout,
            pools: [Arc::default(), Arc::default()],
            health: HealthRecord::default(),
        }
    }

    /// Records the result of a request, which came at this time, unless the client caused the error.
    fn observe(&self, error: Option<&UpstreamError>, at: Instant) {
        match error {
            None => self.health.record_response(at),
            Some(error) if error.reason().is_some() => self.health.record_failure(error),
            Some(_) => {}
        }
    }

    /// Opens a connection and closes it again.
    async fn check(self: Arc<Self>) {
        self.health.run_check(self.connect()).await;
    }

    async fn is_reachable(&self) -> bool {
        matches!(timeout(Duration::from_millis(300), self.connect()).await, Ok(Ok(_)))
    }

    async fn send(&self, upstream_request: UpstreamRequest, began: Instant) -> Result<Answer, UpstreamError> {
        let pool = &self.pools[usize::from(upstream_request.is_verified())];
        let (end, takes_trailers) = (upstream_request.body_end(), upstream_request.takes_trailers());
        let mut message = upstream_request.into_message();
        if !self.spec.reuse {
            // A server that does not read a body takes it for the next request, unless it knows that none follows.
            message.parts.headers.remove(TE);
            message.parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let is_head = message.parts.method == Method::HEAD;
        let AcquiredConnection { mut connection, reused, at } = self.acquire(pool, began).await?;
        let retry = if reused { RetryableHead::of(&message.parts, &end) } else { None };
        let first = self.exchange(&mut connection, message, &end, at).await;
        let (response, connection) = match first {
            Ok(response) => (response, connection),
            Err(ExchangeError { unsent: Some(message), .. }) if reused => {
                let mut connection = Box::pin(self.open()).await?;
                let again = self.exchange(&mut connection, message, &end, Instant::now()).await;
                (again.map_err(|failure| failure.error)?, connection)
            }
            Err(ExchangeError { is_lost: true, error, .. }) if reused => {
                let Some(message) = retry.and_then(RetryableHead::into_message) else { return Err(error) };
                let mut connection = Box::pin(self.open()).await?;
                let again = self.exchange(&mut connection, message, &end, Instant::now()).await;
                (again.map_err(|failure| failure.error)?, connection)
            }
            Err(failure) => return Err(failure.error),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(UpstreamError::Failed("101 to a request that was no upgrade".to_owned()));
        }
        let (mut parts, incoming) = response.into_parts();
        let hop_by_hop = has_hop_by_hop(&parts.headers);
        let is_reusable = check_framing(&mut parts.headers)? && !may_have_unexpected_body(is_head, &parts);
        let keep = is_reusable && self.spec.reuse && !(hop_by_hop && lists(&parts.headers, &CONNECTION, "close"));
        let connection = keep.then(|| PooledConnection {
            connection,
            pool: Arc::downgrade(pool),
            body: end,
            idle_timeout: self.spec.pool_idle_timeout,
        });
        if hop_by_hop {
            let announced = parts.headers.get(TRAILER).cloned().filter(|_| takes_trailers);
            strip_hop_by_hop(&mut parts.headers);
            if let Some(announced) = announced {
                // hyper forwards announced trailers only, and none of framing, routing or authentication.
                parts.headers.insert(TRAILER, announced);
            }
        }
        // Framing towards the client is chosen here, also for a response of HTTP/1.0.
        parts.version = Version::HTTP_11;
        Ok(Response::from_parts(parts, ResponseBody::upstream(incoming, connection)))
    }

    async fn upgrade(
        &self,
        upstream_request: UpstreamRequest,
    ) -> Result<Result<(HeaderMap, UpstreamSocket), Answer>, UpstreamError> {
        let limit = self.spec.handshake_timeout;
        let expected = upstream_request.websocket_key().map(accept_key);
        // Written where it is awaited: a future that is moved takes its size twice.
        let exchanged = timeout(limit, async {
            let io = self.connect().await?;
            let (mut sender, connection) = builder().handshake(io).await.map_err(failed)?;
            // The owner of the sender or of the upgraded stream sees an error of the connection too. Boxed, because its
            // way into the task moves it several times.
            tokio::spawn(Box::pin(connection.with_upgrades()));
            sender.send_request(upstream_request.into_message().into()).await.map_err(failed)
        })
        .await;
        let mut response = exchanged.map_err(|_| UpstreamError::ResponseTimeout { limit })??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (mut parts, incoming) = response.into_parts();
            check_framing(&mut parts.headers)?;
            strip_hop_by_hop(&mut parts.headers);
            return Ok(Err(Response::from_parts(parts, ResponseBody::upstream(incoming, None))));
        }
        let accept = response.headers().get(hyper::header::SEC_WEBSOCKET_ACCEPT);
        let is_valid = lists(response.headers(), &hyper::header::UPGRADE, "websocket")
            && accept.is_some_and(|accept| expected.as_deref().is_some_and(|expected| accept == expected));
        if !is_valid {
            return Err(UpstreamError::Failed("101 without the expected Sec-WebSocket-Accept".to_owned()));
        }
        let upgraded = hyper::upgrade::on(&mut response).await.map_err(failed)?;
        let parts = upgraded
            .downcast::<TokioIo<TimedStream>>()
            .map_err(|_| UpstreamError::Failed("an upgraded stream of another type".to_owned()))?;
        // A copy, because even an empty slice keeps hyper's whole read buffer alive.
        let early = parts.read_buf.to_vec();
        let (head, _) = response.into_parts();
        Ok(Ok((head.headers, UpstreamSocket { socket: parts.io.into_inner().into_socket(), early })))
    }

    async fn connect(&self) -> Result<TokioIo<TimedStream>, UpstreamError> {
        Ok(TokioIo::new(TimedStream::to_upstream(self.connector.connect().await?, self.send_timeout)))
    }

    async fn open(&self) -> Result<Box<UpstreamConnection>, UpstreamError> {
        let io = self.connect().await?;
        let (sender, connection) = builder().handshake(io).await.map_err(failed)?;
        // The owner of the sender sees an error of the connection too.
        tokio::spawn(connection);
        let timer = MovableTimer::new(Instant::now() + self.spec.response_timeout);
        Ok(Box::new(UpstreamConnection { sender, timer }))
    }

    async fn acquire(&self, pool: &Arc<Pool>, mut now: Instant) -> Result<AcquiredConnection, UpstreamError> {
        if self.spec.reuse {
            loop {
                let candidate = pool.take();
                let Some(IdleConnection { mut connection, since }) = candidate else { break };
                if now.saturating_duration_since(since) >= self.spec.pool_idle_timeout || connection.sender.is_closed()
                {
                    continue;
                }
                // It is ready, because both bodies had ended when the connection returned, or it is in a moment.
                let sender = &mut connection.sender;
                if sender.is_ready() {
                    return Ok(AcquiredConnection { connection, reused: true, at: now });
                }
                let ready = timeout(Duration::from_millis(100), sender.ready()).await;
                now = Instant::now();
                if matches!(ready, Ok(Ok(()))) {
                    return Ok(AcquiredConnection { connection, reused: true, at: now });
                }
            }
        }
        // Boxed: most requests find a connection, and each would have room for a new one.
        let connection = Box::pin(self.open()).await?;
        Ok(AcquiredConnection { connection, reused: false, at: Instant::now() })
    }

    /// Sends a request on a connection and waits for the head of the response, for `response_timeout` from `began`.
    async fn exchange(
        &self,
        connection: &mut UpstreamConnection,
        message: Box<RequestMessage>,
        end: &BodyEnd,
        began: Instant,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let limit = self.spec.response_timeout;
        let UpstreamConnection { sender, timer } = connection;
        timer.set(began + limit);
        let mut sending = std::pin::pin!(sender.try_send_request(message.into()));
        let answered = loop {
            let answered = poll_fn(|cx| match sending.as_mut().poll(cx) {
                Poll::Ready(answered) => Poll::Ready(Some(answered)),
                Poll::Pending => timer.poll(cx).map(|()| None),
            });
            match answered.await {
                Some(answered) => break answered,
                // The limit is for the response head. A body that is being sent has its own limits.
                None if end.is_streaming() => timer.set(Instant::now() + limit),
                // The limit runs from the end of the body, however long that took.
                None => match end.ended_at().map(|at| at + limit).filter(|due| *due > Instant::now()) {
                    Some(due) => timer.set(due),
                    None => return Err(ExchangeError::final_error(UpstreamError::ResponseTimeout { limit })),
                },
            }
        };
        answered.map_err(|mut error| {
            let unsent = error.take_message().map(Box::from);
            let error = error.into_error();
            if end.is_stalled() {
                return ExchangeError::final_error(UpstreamError::BodyStalled);
            }
            if end.is_too_large() {
                return ExchangeError::final_error(UpstreamError::BodyTooLarge);
            }
            if end.is_broken() {
                return ExchangeError::final_error(UpstreamError::BodyBroken);
            }
            let is_lost = error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_reset(&error);
            ExchangeError { unsent, is_lost, error: failed(error) }
        })
    }
}

/// Checks that the framing of a response is unambiguous (RFC 9112 section 6.3): hyper accepts a length that is repeated
/// or a list, and any coding before `chunked`, and would forward both. Returns whether the connection may be reused.
fn check_framing(headers: &mut HeaderMap) -> Result<bool, UpstreamError> {
    let invalid = |what: &str| Err(UpstreamError::Failed(format!("a response with {what}")));
    let coded = headers.contains_key(TRANSFER_ENCODING);
    if coded {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let only_chunked = codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only_chunked || codings.next().is_some() {
            return invalid("a transfer coding other than chunked");
        }
    }
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(true) };
    if lines.next().is_none() && is_number(first.as_bytes()) && !coded {
        // The usual one, which stays as it is.
        return Ok(true);
    }
    let lengths = headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap_or(""));
    let mut lengths = lengths.flat_map(|value| value.split(',')).map(str::trim);
    let length = lengths.next().unwrap_or_default().to_owned();
    if !is_number(length.as_bytes()) || lengths.any(|other| other != length) {
        return invalid("an ambiguous Content-Length");
    }
    headers.remove(CONTENT_LENGTH);
    if coded {
        // A response with both a length and chunked may be an attempt at response smuggling, so the connection closes.
        return Ok(false);
    }
    if let Ok(length) = HeaderValue::try_from(length) {
        headers.insert(CONTENT_LENGTH, length);
    }
    Ok(true)
}

/// Returns whether a response must have no body, by its status or the request's method, but has fields that describe
/// one. Some servers send that body (gunicorn before 24, when the application makes one), and the next request on the
/// connection would get it as its response.
fn may_have_unexpected_body(is_head: bool, answer: &Parts) -> bool {
    let has_none = is_head || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let fields = &answer.headers;
    has_none
        && (fields.contains_key(CONTENT_TYPE)
            || fields.contains_key(TRANSFER_ENCODING)
            || fields.get(CONTENT_LENGTH).is_some_and(|length| length != "0"))
}

/// A connection for one request.
struct AcquiredConnection {
    connection: Box<UpstreamConnection>,
    /// Whether it was used before, so that the upstream may have closed it.
    reused: bool,
    /// The time at which it could be used.
    at: Instant,
}

struct ExchangeError {
    /// The request, if it was never written.
    unsent: Option<Box<RequestMessage>>,
    /// Whether the connection was lost before a response began.
    is_lost: bool,
    error: UpstreamError,
}

impl ExchangeError {
    fn final_error(error: UpstreamError) -> Self {
        Self { unsent: None, is_lost: false, error }
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_RESPONSE_HEAD_BYTES);
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

#[cfg(test)]
mod tests {
    use hyper::Request;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::sync::mpsc;

    use super::*;
    use crate::http::ClientBody;
    use crate::simulation::Simulation;

    /// Uploads a body in 25 s to an upstream that answers so much later, and returns what came of it.
    async fn upload_answered_after(delay: Duration) -> Result<StatusCode, UpstreamError> {
        let yaml =
            "upstream: { url: http://127.0.0.1:1, response_timeout: 10s }\nroutes: [{ path: /**, auth: none }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let upstream = Arc::new(Upstream::new(policy.upstreams[0].clone(), Duration::from_secs(60)));
        let mut simulation = Simulation::begin(0);
        let (report, mut reports) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let (upstream, report) = (Arc::clone(&upstream), report.clone());
            async move {
                let request = request.map(|body| ClientBody::new(body, None, Duration::from_secs(60), None));
                let message = Box::<RequestMessage>::from(request);
                let end = message.body.end();
                let mut connection = upstream.open().await?;
                let exchanged = upstream.exchange(&mut connection, message, &end, Instant::now()).await;
                let _ = report.send(exchanged.map(|answer| answer.status()).map_err(|failure| failure.error));
                Ok::<_, UpstreamError>(Response::new(String::new()))
            }
        });
        let (mut client, server) = duplex(1 << 10);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
        tokio::spawn(async move {
            let mut connection = simulation.connections.recv().await.expect("dialled").stream;
            let mut heard = Vec::new();
            while !heard.ends_with(b"12345") {
                connection.read_buf(&mut heard).await.expect("read");
            }
            tokio::time::sleep(delay).await;
            // It is not read when the limit has passed.
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        });
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await.expect("written");
        for byte in b"12345" {
            tokio::time::sleep(Duration::from_secs(5)).await;
            client.write_all(&[*byte]).await.expect("written");
        }
        reports.recv().await.expect("a result")
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_a_response_runs_from_the_end_of_the_body() {
        let answered = upload_answered_after(Duration::from_secs(9)).await;
        assert_eq!(answered.expect("in time"), StatusCode::OK);
        let late = upload_answered_after(Duration::from_secs(11)).await;
        assert!(matches!(late, Err(UpstreamError::ResponseTimeout { .. })), "{late:?}");
    }
}
