//! The rest of a request body that was answered before its end.
//!
//! A connection that is closed with bytes unread is reset, and the reset takes the answer away from a client that is
//! still sending; a proxy before us turns that into a 502. So the rest is read and thrown away (RFC 9112 section 9.6;
//! nginx's `lingering_close`), within `limits.discard_body_bytes` and `limits.discard_body_timeout`. A body that ends
//! within them keeps its connection. Where the connection closes anyway, the rest is read behind our own end of it,
//! by [`ClientStream`](super::ClientStream).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::{HeaderMap, Request, Version};
use tokio_util::sync::CancellationToken;

use super::Phase;
use super::admit::lists;
use crate::policy::LimitSpec;

/// How much of a body that nobody wants is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct DiscardLimits {
    /// `limits.discard_body_bytes`
    pub bytes: usize,
    /// `limits.discard_body_timeout`, counted from the end of the answer.
    pub timeout: Duration,
}

impl From<&LimitSpec> for DiscardLimits {
    fn from(limits: &LimitSpec) -> Self {
        Self { bytes: limits.discard_body_bytes, timeout: limits.discard_body_timeout }
    }
}

/// One request's body and its answer, of which either may end first; shared by both.
#[derive(Clone, Debug)]
pub struct UnreadBody(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    phase: Arc<Phase>,
    limits: DiscardLimits,
    /// The client said `Expect: 100-continue`, or what somebody may take for it: after an early answer it may send the
    /// body or not, so nothing that comes behind the answer could be trusted to be a request.
    expects_continue: bool,
    /// Cancelled when the answer has ended.
    answered: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    answer: AnswerState,
    body: BodyState,
    /// The connection closes after the answer.
    closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerState {
    Awaited,
    Begun,
    Ended,
}

#[derive(Debug)]
enum BodyState {
    /// It is on its way up, or may still go.
    InUse,
    /// Nobody wants it; it is not read before the answer begins, or hyper would say `100 Continue`.
    Unwanted(Incoming),
    /// It is being thrown away, or broke off.
    Gone,
    /// It was read to its end.
    Read,
}

/// How reading the rest went.
enum Rest {
    Ended,
    TooLong,
    Broken,
}

impl UnreadBody {
    /// Watches a request's body; `None` when it has none.
    #[must_use]
    pub fn of(request: &Request<Incoming>, phase: &Arc<Phase>, limits: &LimitSpec) -> Option<Self> {
        if request.body().is_end_stream() {
            return None;
        }
        let headers = request.headers();
        let closes = request.version() != Version::HTTP_11 || lists(headers, &CONNECTION, "close");
        let expects_continue = headers.contains_key(EXPECT);
        Some(Self(Arc::new(Inner {
            phase: Arc::clone(phase),
            limits: limits.into(),
            expects_continue,
            answered: CancellationToken::new(),
            state: Mutex::new(State { answer: AnswerState::Awaited, body: BodyState::InUse, closes }),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the whole head of the answer. `Connection: close` comes into it when the body will not be read to its end,
    /// or may never come.
    pub fn answer_is_ready(&self, answer: &mut HeaderMap) {
        let mut state = self.state();
        let must_close = match &state.body {
            BodyState::Unwanted(rest) => {
                self.0.expects_continue || rest.size_hint().lower() > self.0.limits.bytes as u64
            }
            BodyState::InUse => self.0.expects_continue,
            BodyState::Gone | BodyState::Read => false,
        };
        if must_close {
            answer.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        state.closes |= lists(answer, &CONNECTION, "close");
    }

    /// The head of the answer has been written.
    pub(super) fn answer_began(&self) {
        let mut state = self.state();
        if state.answer != AnswerState::Awaited {
            return;
        }
        state.answer = AnswerState::Begun;
        match std::mem::replace(&mut state.body, BodyState::Gone) {
            BodyState::Unwanted(rest) => self.discard(rest),
            other => state.body = other,
        }
    }

    /// The answer has been given or given up.
    pub(super) fn answer_ended(&self) {
        self.answer_began();
        let mut state = self.state();
        state.answer = AnswerState::Ended;
        self.0.answered.cancel();
        if matches!(state.body, BodyState::Read) {
            self.0.phase.idle();
        }
    }

    /// The body was read to its end.
    pub(super) fn body_ended(&self) {
        let mut state = self.state();
        state.body = BodyState::Read;
        if state.answer == AnswerState::Ended {
            self.0.phase.idle();
            self.0.phase.wake();
        }
    }

    /// Nobody wants the rest of the body.
    pub(super) fn unwanted(&self, rest: Incoming) {
        let mut state = self.state();
        if state.answer == AnswerState::Awaited {
            state.body = BodyState::Unwanted(rest);
        } else {
            state.body = BodyState::Gone;
            self.discard(rest);
        }
    }

    fn discard(&self, rest: Incoming) {
        // Without a runtime the process is ending, and every connection with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.clone().read_away(rest));
        }
    }

    /// Ends with the body, the connection, or the limits; dropping the body tells hyper to read no further.
    async fn read_away(self, mut rest: Incoming) {
        let DiscardLimits { bytes, timeout } = self.0.limits;
        let in_time = async {
            self.0.answered.cancelled().await;
            // A connection that closes must say so before the rest is read: the client may wait for that.
            if !self.state().closes {
                tokio::time::sleep(timeout).await;
            }
        };
        let read = tokio::select! {
            read = within(bytes, &mut rest) => read,
            () = in_time => Rest::TooLong,
        };
        match read {
            Rest::Ended => self.body_ended(),
            Rest::TooLong => {
                // hyper would close, and reset, before the answer is whole.
                self.0.answered.cancelled().await;
                if !self.state().closes {
                    self.0.phase.give_up();
                }
                drop(rest);
                // hyper may wait for the client's next bytes, and looks for the reader only when they come.
                self.0.phase.wake();
            }
            Rest::Broken => {}
        }
    }
}

/// Reads so many bytes at most.
async fn within(mut left: usize, rest: &mut Incoming) -> Rest {
    while let Some(frame) = rest.frame().await {
        let Ok(frame) = frame else { return Rest::Broken };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(further) => left = further,
            None => return Rest::TooLong,
        }
        // hyper keeps its end of a body of known length until the next request.
        if rest.is_end_stream() {
            break;
        }
    }
    Rest::Ended
}
