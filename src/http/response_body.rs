//! The body of a response to the client. It is counted, stopped by an [`AbortSignal`], and returns the upstream
//! connection to its pool at its end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use super::UnreadBody;
use super::pool::PooledConnection;

/// A response to a client.
pub type Answer = Response<ResponseBody>;

/// The way in which a response body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyOutcome {
    /// hyper has accepted the whole body.
    Complete,
    /// The client disconnected or the upstream aborted.
    Aborted,
    /// An [`AbortSignal`] stopped the body, for this reason.
    Stopped(&'static str),
}

/// The end of a response body.
#[derive(Clone, Copy, Debug)]
pub struct BodyEnded {
    /// The number of bytes that hyper has accepted.
    pub bytes: u64,
    /// The way in which it ended.
    pub outcome: BodyOutcome,
    /// The time at which it ended.
    pub at: Instant,
}

/// A callback that runs once when a response body ends.
pub(super) type OnEnd = Box<dyn FnOnce(BodyEnded) + Send + Sync>;

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
///
/// It is in a box, because each response is moved through every step of its request and into hyper's connection.
pub struct ResponseBody(Box<BodyInProgress>);

struct BodyInProgress {
    source: BodySource,
    sent: u64,
    outcome: BodyOutcome,
    /// The time at which the body was complete.
    completed_at: Option<Instant>,
    abort_signal: Option<AbortSignal>,
    /// The error of an upstream that has aborted its response, which was not reported to hyper yet.
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
        f.debug_struct("ResponseBody").field("sent", &self.0.sent).finish_non_exhaustive()
    }
}

impl ResponseBody {
    fn new(source: BodySource) -> Self {
        Self(Box::new(BodyInProgress {
            source,
            sent: 0,
            outcome: BodyOutcome::Aborted,
            completed_at: None,
            abort_signal: None,
            broken: None,
            on_end: None,
            request_body: None,
        }))
    }

    /// Makes a body that this proxy authored.
    #[must_use]
    pub fn from_proxy(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(BodySource::Own((!bytes.is_empty()).then_some(bytes)))
    }

    /// Wraps the upstream's body; its connection returns to the pool when the body has ended completely.
    #[must_use]
    pub(super) fn upstream(incoming: Incoming, connection: Option<PooledConnection>) -> Self {
        let mut body = Self::new(BodySource::Upstream { incoming, connection });
        if body.0.is_end_stream() {
            body.0.complete();
        }
        body
    }

    /// Stops the body when the signal resolves.
    pub fn abort_when(&mut self, signal: AbortSignal) {
        self.0.abort_signal = Some(signal);
    }

    /// Names the request body that this responds to, so that its rest is discarded once the response has started.
    pub fn set_request_body(&mut self, request_body: UnreadBody) {
        self.0.request_body = Some(request_body);
    }

    /// Sets the callback that runs at the end, whatever the outcome.
    pub fn on_end(&mut self, on_end: OnEnd) {
        self.0.on_end = Some(on_end);
    }
}

impl BodyInProgress {
    fn complete(&mut self) {
        self.outcome = BodyOutcome::Complete;
        self.abort_signal = None;
        let now = *self.completed_at.get_or_insert_with(Instant::now);
        if let BodySource::Upstream { connection, .. } = &mut self.source
            && let Some(connection) = connection.take()
        {
            connection.return_to_pool(now);
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Own(bytes) => bytes.is_none(),
            BodySource::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }
}

impl Drop for BodyInProgress {
    fn drop(&mut self) {
        if self.outcome == BodyOutcome::Aborted && self.is_end_stream() {
            self.outcome = BodyOutcome::Complete;
        }
        if let Some(on_end) = self.on_end.take() {
            let at = self.completed_at.unwrap_or_else(Instant::now);
            on_end(BodyEnded { bytes: self.sent, outcome: self.outcome, at });
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
        let this = &mut *self.get_mut().0;
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
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.source {
            BodySource::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            BodySource::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
