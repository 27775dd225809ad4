//! The body of a request, streamed and never collected. It has a size limit and an idle timeout, and records how it ended.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::UnreadBody;

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
    /// The time at which the last bytes were passed on; unset for an empty body too.
    ended_at: OnceLock<Instant>,
}

impl BodyEnd {
    fn new(state: u8) -> Self {
        let (state, bytes) = (AtomicU8::new(state), AtomicU64::new(0));
        Self(Arc::new(BodyProgress { state, bytes, ended_at: OnceLock::new() }))
    }

    /// Returns the number of bytes that were passed on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Returns whether the body was passed on completely.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == ENDED
    }

    /// Returns whether more of the body may still be passed on.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == STREAMING
    }

    /// Returns the time at which the last bytes were passed on; `None` for an empty body, and for one that has not ended.
    #[must_use]
    pub fn ended_at(&self) -> Option<Instant> {
        self.0.ended_at.get().copied()
    }

    /// Returns whether the client sent nothing for `limits.body_idle_timeout`.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == STALLED
    }

    /// Returns whether the body exceeded `limits.body_bytes`.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == TOO_LARGE
    }

    /// Returns whether the client aborted the body or its framing was invalid.
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
///
/// Most requests have no body, and every request is moved several times, so what a body needs is in a box.
#[derive(Debug)]
pub struct ClientBody {
    end: BodyEnd,
    streamed: Option<Box<StreamedBody>>,
}

/// A request body that is not empty.
#[derive(Debug)]
struct StreamedBody {
    incoming: Incoming,
    bytes_left: Option<usize>,
    idle_timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// The body that reads the rest when this is dropped before its end.
    unread: Option<UnreadBody>,
}

impl ClientBody {
    /// Wraps a request's body; `limit` is `limits.body_bytes`, `idle` is `limits.body_idle_timeout`.
    #[must_use]
    pub fn new(incoming: Incoming, limit: Option<usize>, idle: Duration, unread: Option<UnreadBody>) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let streamed = StreamedBody { incoming, bytes_left: limit, idle_timeout: idle, timer: None, unread };
        Self { end: BodyEnd::new(STREAMING), streamed: Some(Box::new(streamed)) }
    }

    /// Returns `limits.body_idle_timeout`; `None` for an empty body.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.streamed.as_ref().map(|body| body.idle_timeout)
    }

    /// Makes an empty body.
    pub(super) fn empty() -> Self {
        Self { end: BodyEnd::new(ENDED), streamed: None }
    }

    /// Returns the shared record of how the body ends.
    #[must_use]
    pub fn end(&self) -> BodyEnd {
        self.end.clone()
    }
}

impl StreamedBody {
    fn finish(&mut self, end: &BodyEnd, state: u8) {
        self.timer = None;
        if state == ENDED {
            // It may be set already: the end is noticed with the last bytes, and again behind them.
            let _ = end.0.ended_at.set(Instant::now());
        }
        end.0.state.store(state, Ordering::Release);
        if state == ENDED
            && let Some(unread) = self.unread.take()
        {
            unread.on_body_end();
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if self.end.is_broken() {
            return;
        }
        if let Some(StreamedBody { incoming, unread: Some(unread), .. }) =
            self.streamed.take().map(|streamed| *streamed)
        {
            unread.abandon(incoming);
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { end, streamed } = self.get_mut();
        let Some(body) = streamed else { return Poll::Ready(None) };
        loop {
            match Pin::new(&mut body.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    body.timer = None;
                    let Ok(data) = frame.into_data() else { continue };
                    end.0.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if let Some(left) = &mut body.bytes_left {
                        if let Some(rest) = left.checked_sub(data.len()) {
                            *left = rest;
                        } else {
                            body.finish(end, TOO_LARGE);
                            return Poll::Ready(Some(Err(BodyError::TooLarge)));
                        }
                    }
                    if body.incoming.is_end_stream() {
                        body.finish(end, ENDED);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(Some(Err(error))) => {
                    body.finish(end, BROKEN);
                    return Poll::Ready(Some(Err(BodyError::Broken(error))));
                }
                Poll::Ready(None) => {
                    body.finish(end, ENDED);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let idle = body.idle_timeout;
                    let timer = body.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + idle)));
                    ready!(timer.as_mut().poll(cx));
                    body.finish(end, STALLED);
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.streamed.as_ref().is_none_or(|body| body.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.streamed.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.incoming.size_hint())
    }
}
