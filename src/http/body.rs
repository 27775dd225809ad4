//! Bodies on their way through, never collected: the client's with a size, an idle limit and a note
//! of how it ended; the answer's with a lease on its upstream connection.

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
use super::upstream::Lease;

const GOING: u8 = 0;
const ENDED: u8 = 1;
const STALLED: u8 = 2;
const TOO_LARGE: u8 = 3;
const BROKEN: u8 = 4;

/// How a request body ended; shared with whoever sends it up.
#[derive(Clone, Debug)]
pub struct BodyEnd(Arc<BodyState>);

#[derive(Debug)]
struct BodyState {
    state: AtomicU8,
    bytes: AtomicU64,
}

impl BodyEnd {
    fn new(state: u8) -> Self {
        Self(Arc::new(BodyState { state: AtomicU8::new(state), bytes: AtomicU64::new(0) }))
    }

    /// How many bytes have gone up.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// It was passed on completely.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == ENDED
    }

    /// The client sent nothing for `limits.body_idle_timeout`.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == STALLED
    }

    /// It grew over `limits.body_bytes`.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == TOO_LARGE
    }

    /// The client broke it off or its framing was wrong.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == BROKEN
    }
}

/// Why a request body cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent nothing for too long.
    #[error("the request body stalled")]
    Stalled,
    /// Over `limits.body_bytes`.
    #[error("the request body is too large")]
    TooLarge,
    /// The connection or its framing broke.
    #[error("the request body broke off")]
    Broken(#[source] hyper::Error),
}

/// A request body on its way up. Trailers are dropped: they could hold any name.
#[derive(Debug)]
pub struct ClientBody {
    incoming: Option<Incoming>,
    left: Option<usize>,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    end: BodyEnd,
    /// Takes what is left when this is dropped before its end.
    unread: Option<UnreadBody>,
}

impl ClientBody {
    /// Takes a request's body, with `limits.body_bytes` and `limits.body_idle_timeout`.
    #[must_use]
    pub fn new(incoming: Incoming, limit: Option<usize>, idle: Duration, unread: Option<UnreadBody>) -> Self {
        let empty = incoming.is_end_stream();
        let state = if empty { ENDED } else { GOING };
        let end = BodyEnd::new(state);
        Self { incoming: (!empty).then_some(incoming), left: limit, idle, timer: None, end, unread }
    }

    /// An empty body, for a request sent again.
    pub(super) fn empty() -> Self {
        Self { incoming: None, left: None, idle: Duration::ZERO, timer: None, end: BodyEnd::new(ENDED), unread: None }
    }

    /// How it ends.
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
            unread.body_ended();
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let (Some(unread), Some(rest), false) = (self.unread.take(), self.incoming.take(), self.end.is_broken()) {
            unread.unwanted(rest);
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
                    if let Some(left) = &mut this.left {
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
                    let idle = this.idle;
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

/// How an answer's body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All of it was given.
    Whole,
    /// The client left, or the upstream broke off.
    BrokenOff,
    /// We cut it, for this reason.
    Cut(&'static str),
}

/// Called once when an answer has been given or given up: with its bytes, and how it ended.
pub(super) type OnEnd = Box<dyn FnOnce(u64, Fate) + Send + Sync>;

/// Resolves, with the reason, when an answer must not go on.
pub type CutWhen = Pin<Box<dyn Future<Output = &'static str> + Send + Sync>>;

/// Why an answer's body does not go on; the connection breaks, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The upstream broke off.
    #[error("the upstream broke off")]
    Upstream(#[source] hyper::Error),
    /// We cut it.
    #[error("cut: {0}")]
    Cut(&'static str),
}

/// An answer's body on its way to the client.
pub struct ResponseBody {
    kind: Kind,
    sent: u64,
    fate: Fate,
    cut_when: Option<CutWhen>,
    /// The upstream broke off, and hyper does not know it yet.
    broken: Option<hyper::Error>,
    on_end: Option<OnEnd>,
    /// The body of the request that this answers, when it has one.
    request_body: Option<UnreadBody>,
}

enum Kind {
    Ours(Option<Bytes>),
    Upstream { incoming: Incoming, lease: Option<Lease> },
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseBody").field("sent", &self.sent).finish_non_exhaustive()
    }
}

impl ResponseBody {
    fn new(kind: Kind) -> Self {
        Self { kind, sent: 0, fate: Fate::BrokenOff, cut_when: None, broken: None, on_end: None, request_body: None }
    }

    /// Text of our own.
    #[must_use]
    pub fn ours(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::new(Kind::Ours((!bytes.is_empty()).then_some(bytes)))
    }

    /// The upstream's body; the connection goes back to its pool when it has ended cleanly.
    #[must_use]
    pub(super) fn upstream(incoming: Incoming, lease: Option<Lease>) -> Self {
        let mut body = Self::new(Kind::Upstream { incoming, lease });
        if body.is_end_stream() {
            body.ended();
        }
        body
    }

    /// Cuts it off when this resolves.
    pub fn cut_when(&mut self, cut_when: CutWhen) {
        self.cut_when = Some(cut_when);
    }

    /// Lets the rest of the request's body be read once this answers it.
    pub fn answers(&mut self, request_body: UnreadBody) {
        self.request_body = Some(request_body);
    }

    /// Sets what happens at the end, whatever the end is.
    pub fn on_end(&mut self, on_end: OnEnd) {
        self.on_end = Some(on_end);
    }

    fn ended(&mut self) {
        self.fate = Fate::Whole;
        self.cut_when = None;
        if let Kind::Upstream { lease, .. } = &mut self.kind
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.fate == Fate::BrokenOff && self.is_end_stream() {
            self.fate = Fate::Whole;
        }
        if let Some(on_end) = self.on_end.take() {
            on_end(self.sent, self.fate);
        }
        if let Some(request_body) = self.request_body.take() {
            request_body.answer_ended();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = self.get_mut();
        if let Some(request_body) = &this.request_body {
            // hyper asks for the body when the head has been written.
            request_body.answer_began();
        }
        if let Fate::Cut(_) = this.fate {
            return Poll::Ready(None);
        }
        if let Some(cut_when) = &mut this.cut_when
            && let Poll::Ready(reason) = cut_when.as_mut().poll(cx)
        {
            this.fate = Fate::Cut(reason);
            return Poll::Ready(Some(Err(AnswerError::Cut(reason))));
        }
        let frame = match &mut this.kind {
            Kind::Ours(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Upstream { incoming, .. } => match this.broken.take() {
                Some(error) => Poll::Ready(Some(Err(AnswerError::Upstream(error)))),
                None => match Pin::new(incoming).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) if this.sent > 0 => {
                        // hyper drops the connection with what it has not written, and it writes when there is nothing
                        // more for now. An answer of which nothing but the head came is better not given at all.
                        this.broken = Some(error);
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                    frame => frame.map(|frame| frame.map(|frame| frame.map_err(AnswerError::Upstream))),
                },
            },
        };
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                // Behind trailers nothing comes.
                if frame.is_trailers() || this.is_end_stream() {
                    this.ended();
                }
            }
            Poll::Ready(None) => this.ended(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Ours(bytes) => bytes.is_none(),
            Kind::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Ours(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
