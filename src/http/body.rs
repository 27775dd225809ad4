//! Request and response bodies, streamed and never collected. A request body has a size limit and an idle timeout and
//! records how it ended; a response body holds its upstream connection until it can return to the pool.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::UnreadBody;
use super::upstream::PooledConnection;

const STREAMING: u8 = 0;
const ENDED: u8 = 1;
const STALLED: u8 = 2;
const TOO_LARGE: u8 = 3;
const BROKEN: u8 = 4;

/// The progress of a request body and how it ended; shared with the upstream client.
#[derive(Clone, Debug)]
pub struct BodyEnd(Arc<BodyProgress>);

#[derive(Debug)]
struct BodyProgress {
    state: AtomicU8,
    bytes: AtomicU64,
}

impl BodyEnd {
    fn new(state: u8) -> Self {
        Self(Arc::new(BodyProgress { state: AtomicU8::new(state), bytes: AtomicU64::new(0) }))
    }

    /// The number of bytes that were passed on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Whether the body was passed on completely.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == ENDED
    }

    /// Whether the client sent nothing for `limits.body_idle_timeout`.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == STALLED
    }

    /// Whether the body exceeded `limits.body_bytes`.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == TOO_LARGE
    }

    /// Whether the client aborted the body or its framing was invalid.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == BROKEN
    }
}

/// The reason why a request body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent nothing for `limits.body_idle_timeout`.
    #[error("the request body stalled")]
    Stalled,
    /// The body exceeded `limits.body_bytes`.
    #[error("the request body is too large")]
    TooLarge,
    /// The connection failed or the framing was invalid.
    #[error("the request body was aborted")]
    Broken(#[source] hyper::Error),
}

/// A request body on its way to the upstream. Trailers are dropped, because they could have the name of any header.
#[derive(Debug)]
pub struct ClientBody {
    incoming: Option<Incoming>,
    bytes_left: Option<usize>,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    end: BodyEnd,
    /// Takes the rest of the body when this is dropped before its end.
    unread: Option<UnreadBody>,
}

impl ClientBody {
    /// Wraps a request's body; `limit` is `limits.body_bytes`, `idle` is `limits.body_idle_timeout`.
    #[must_use]
    pub fn new(incoming: Incoming, limit: Option<usize>, idle: Duration, unread: Option<UnreadBody>) -> Self {
        let empty = incoming.is_end_stream();
        let state = if empty { ENDED } else { STREAMING };
        let end = BodyEnd::new(state);
        Self { incoming: (!empty).then_some(incoming), bytes_left: limit, idle_timeout: idle, timer: None, end, unread }
    }

    /// Makes an empty body, for a request that is retried.
    pub(super) fn empty() -> Self {
        Self {
            incoming: None,
            bytes_left: None,
            idle_timeout: Duration::ZERO,
            timer: None,
            end: BodyEnd::new(ENDED),
            unread: None,
        }
    }

    /// The shared record of how the body ends.
    #[must_use]
    pub fn end(&self) -> BodyEnd {
        self.end.clone()
    }

    fn finish(&mut self, state: u8) {
        self.timer = None;
        self.end.0.state.store(state, Ordering::Release);
        if state == ENDED
            && let Some(unread) = self.unread.take()
        {
            unread.on_body_end();
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let (Some(unread), Some(rest), false) = (self.unread.take(), self.incoming.take(), self.end.is_broken()) {
            unread.abandon(rest);
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        loop {
            match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.timer = None;
                    let Ok(data) = frame.into_data() else { continue };
                    this.end.0.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if let Some(left) = &mut this.bytes_left {
                        if let Some(rest) = left.checked_sub(data.len()) {
                            *left = rest;
                        } else {
                            this.finish(TOO_LARGE);
                            return Poll::Ready(Some(Err(BodyError::TooLarge)));
                        }
                    }
                    if incoming.is_end_stream() {
                        this.finish(ENDED);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    this.finish(BROKEN);
                    return Poll::Ready(Some(Err(BodyError::Broken(error))));
                }
                Poll::Ready(None) => {
                    this.finish(ENDED);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let idle = this.idle_timeout;
                    let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
                    ready!(timer.as_mut().poll(cx));
                    this.finish(STALLED);
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// How a response body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyOutcome {
    /// The whole body was given to hyper.
    Complete,
    /// The client disconnected or the upstream aborted.
    Aborted,
    /// An [`AbortSignal`] stopped the body, for this reason.
    Stopped(&'static str),
}

/// A callback that runs once when a response body ends, with the number of its bytes and the outcome.
pub(super) type OnEnd = Box<dyn FnOnce(u64, BodyOutcome) + Send + Sync>;

/// A future that resolves, with the reason, when a response body must not continue.
pub type AbortSignal = Pin<Box<dyn Future<Output = &'static str> + Send + Sync>>;

/// The reason why a response body ended early. hyper then breaks the connection, so that the client cannot take the
/// response for a complete one.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The upstream aborted its response.
    #[error("the upstream aborted its response")]
    Upstream(#[source] hyper::Error),
    /// An [`AbortSignal`] stopped the body.
    #[error("response stopped: {0}")]
    Stopped(&'static str),
}

/// A response body on its way to the client.
pub struct ResponseBody {
    source: BodySource,
    sent: u64,
    outcome: BodyOutcome,
    abort_signal: Option<AbortSignal>,
    /// The upstream has aborted its response, which was not reported to hyper yet.
    broken: Option<hyper::Error>,
    on_end: Option<OnEnd>,
    /// The body of the request that this responds to, when it has one.
    request_body: Option<UnreadBody>,
}

enum BodySource {
    Own(Option<Bytes>),
    Upstream { incoming: Incoming, connection: Option<PooledConnection> },
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl ResponseBody {
    fn new(source: BodySource) -> Self {
        Self {
            source,
            sent: 0,
            outcome: BodyOutcome::Aborted,
            abort_signal: None,
            broken: None,
            on_end: None,
            request_body: None,
        }
    }

    /// Makes a body that this proxy authored.
    #[must_use]
    pub fn own(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(BodySource::Own((!bytes.is_empty()).then_some(bytes)))
    }

    /// Wraps the upstream's body; its connection returns to the pool when the body has ended completely.
    #[must_use]
    pub(super) fn upstream(incoming: Incoming, connection: Option<PooledConnection>) -> Self {
        let mut body = Self::new(BodySource::Upstream { incoming, connection });
        if body.is_end_stream() {
            body.complete();
        }
        body
    }

    /// Stops the body when the signal resolves.
    pub fn abort_when(&mut self, signal: AbortSignal) {
        self.abort_signal = Some(signal);
    }

    /// Names the request body that this responds to, so that its rest is discarded once the response has started.
    pub fn set_request_body(&mut self, request_body: UnreadBody) {
        self.request_body = Some(request_body);
    }

    /// Sets the callback that runs at the end, with any outcome.
    pub fn on_end(&mut self, on_end: OnEnd) {
        self.on_end = Some(on_end);
    }

    fn complete(&mut self) {
        self.outcome = BodyOutcome::Complete;
        self.abort_signal = None;
        if let BodySource::Upstream { connection, .. } = &mut self.source
            && let Some(connection) = connection.take()
        {
            connection.return_to_pool();
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.outcome == BodyOutcome::Aborted && self.is_end_stream() {
            self.outcome = BodyOutcome::Complete;
        }
        if let Some(on_end) = self.on_end.take() {
            on_end(self.sent, self.outcome);
        }
        if let Some(request_body) = self.request_body.take() {
            request_body.on_response_end();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let this = self.get_mut();
        if let Some(request_body) = &this.request_body {
            // hyper polls the body first after it has written the head.
            request_body.on_response_start();
        }
        if let BodyOutcome::Stopped(_) = this.outcome {
            return Poll::Ready(None);
        }
        if let Some(signal) = &mut this.abort_signal
            && let Poll::Ready(reason) = signal.as_mut().poll(cx)
        {
            this.outcome = BodyOutcome::Stopped(reason);
            return Poll::Ready(Some(Err(ResponseBodyError::Stopped(reason))));
        }
        let frame = match &mut this.source {
            BodySource::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            BodySource::Upstream { incoming, .. } => match this.broken.take() {
                Some(error) => Poll::Ready(Some(Err(ResponseBodyError::Upstream(error)))),
                None => match Pin::new(incoming).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) if this.sent > 0 => {
                        // hyper drops the connection with what it has not written, and it writes when there is nothing
                        // more for now. A response of which only the head arrived is not sent at all.
                        this.broken = Some(error);
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                    frame => frame.map(|frame| frame.map(|frame| frame.map_err(ResponseBodyError::Upstream))),
                },
            },
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                // Trailers are the last frame.
                if frame.is_trailers() || this.is_end_stream() {
                    this.complete();
                }
            }
            Poll::Ready(None) => this.complete(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Own(bytes) => bytes.is_none(),
            BodySource::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            BodySource::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
