//! The rest of a request body whose response was sent before the body ended.
//!
//! A connection that is closed with bytes unread is reset, and the reset discards the response at a client that is
//! still sending; a proxy in front turns that into a 502. So the rest is read and discarded (RFC 9112 section 9.6;
//! nginx's `lingering_close`), within `limits.discard_body_bytes` and `limits.discard_body_timeout`. The connection of
//! a body that ends within them stays open. Where the connection closes anyway, [`ClientStream`](super::ClientStream)
//! reads the rest after the proxy's side was closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::{HeaderMap, Request, Version};
use tokio_util::sync::CancellationToken;

use super::list_field::lists;
use super::{RequestNumber, RequestPhase};
use crate::policy::Limits;

/// The limits for reading and discarding the rest of a body.
#[derive(Clone, Copy, Debug)]
pub struct DiscardLimits {
    /// The value of `limits.discard_body_bytes`.
    pub bytes: usize,
    /// The value of `limits.discard_body_timeout`, counted from the end of the response.
    pub timeout: Duration,
}

impl From<&Limits> for DiscardLimits {
    fn from(limits: &Limits) -> Self {
        Self { bytes: limits.discard_body_bytes, timeout: limits.discard_body_timeout }
    }
}

/// Tracks a request body and its response, of which either may end first; shared by both.
#[derive(Clone, Debug)]
pub struct UnreadBody(Arc<Tracker>);

#[derive(Debug)]
struct Tracker {
    phase: Arc<RequestPhase>,
    /// The request of the body.
    request: RequestNumber,
    limits: DiscardLimits,
    /// Whether the client sent `Expect` in any form. After an early response it may or may not send the body, so the
    /// next bytes could not be trusted to be a request.
    expects_continue: bool,
    /// The token that is cancelled when the response has ended.
    response_ended: CancellationToken,
    state: Mutex<TrackerState>,
}

#[derive(Debug)]
struct TrackerState {
    response: ResponseState,
    body: BodyState,
    /// Whether the connection closes after the response.
    closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseState {
    Pending,
    Started,
    Ended,
}

#[derive(Debug)]
enum BodyState {
    /// The body is being forwarded, or may still be.
    InUse,
    /// The rest is to be discarded. It is not read before the response starts, or hyper would send `100 Continue`.
    Abandoned(Incoming),
    /// The rest is being discarded, or the body was aborted.
    Discarding,
    /// The body was read to its end.
    Read,
}

/// The outcome of reading the rest of a body.
enum DiscardOutcome {
    Ended,
    TooLong,
    Broken,
}

impl UnreadBody {
    /// Tracks the body of a request, which has this number on its connection; `None` when the request has none.
    #[must_use]
    pub fn track(
        request: &Request<Incoming>,
        phase: &Arc<RequestPhase>,
        number: RequestNumber,
        limits: &Limits,
    ) -> Option<Self> {
        if request.body().is_end_stream() {
            return None;
        }
        let headers = request.headers();
        let closes = request.version() != Version::HTTP_11 || lists(headers, &CONNECTION, "close");
        let expects_continue = headers.contains_key(EXPECT);
        Some(Self(Arc::new(Tracker {
            phase: Arc::clone(phase),
            request: number,
            limits: limits.into(),
            expects_continue,
            response_ended: CancellationToken::new(),
            state: Mutex::new(TrackerState { response: ResponseState::Pending, body: BodyState::InUse, closes }),
        })))
    }

    fn state(&self) -> MutexGuard<'_, TrackerState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `Connection: close` to the head of the response when the body will not be read to its end, or may never
    /// come. It must be called when the head is otherwise complete.
    pub fn add_close_if_unread(&self, answer: &mut HeaderMap) {
        let mut state = self.state();
        let must_close = match &state.body {
            BodyState::Abandoned(rest) => {
                self.0.expects_continue || rest.size_hint().lower() > self.0.limits.bytes as u64
            }
            BodyState::InUse => self.0.expects_continue,
            BodyState::Discarding | BodyState::Read => false,
        };
        if must_close {
            answer.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        state.closes |= lists(answer, &CONNECTION, "close");
    }

    /// Records that the head of the response was written.
    pub(super) fn on_response_start(&self) {
        let mut state = self.state();
        if state.response != ResponseState::Pending {
            return;
        }
        state.response = ResponseState::Started;
        match std::mem::replace(&mut state.body, BodyState::Discarding) {
            BodyState::Abandoned(rest) => self.discard(rest),
            other => state.body = other,
        }
    }

    /// Records that the response has ended, completely or not.
    pub(super) fn on_response_end(&self) {
        self.on_response_start();
        let mut state = self.state();
        state.response = ResponseState::Ended;
        self.0.response_ended.cancel();
        if matches!(state.body, BodyState::Read) {
            self.0.phase.end_request(self.0.request);
        }
    }

    /// Records that the body was read to its end.
    pub(super) fn on_body_end(&self) {
        let mut state = self.state();
        state.body = BodyState::Read;
        if state.response == ResponseState::Ended {
            self.0.phase.end_request(self.0.request);
            self.0.phase.wake_reader();
        }
    }

    /// Takes the rest of the body, to discard it once the response has started.
    pub(super) fn abandon(&self, rest: Incoming) {
        let mut state = self.state();
        if state.response == ResponseState::Pending {
            state.body = BodyState::Abandoned(rest);
        } else {
            state.body = BodyState::Discarding;
            self.discard(rest);
        }
    }

    fn discard(&self, rest: Incoming) {
        // Without a runtime the process is ending, and all connections with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.clone().discard_rest(rest));
        }
    }

    /// Reads until the body ends, the connection ends, or a limit is reached. Dropping the body stops hyper's reading.
    async fn discard_rest(self, mut rest: Incoming) {
        let DiscardLimits { bytes, timeout } = self.0.limits;
        let time_limit = async {
            self.0.response_ended.cancelled().await;
            // A connection that closes anyway must close its side before the rest is read: the client may wait for
            // that.
            if !self.state().closes {
                tokio::time::sleep(timeout).await;
            }
        };
        let read = tokio::select! {
            read = read_at_most(bytes, &mut rest) => read,
            () = time_limit => DiscardOutcome::TooLong,
        };
        match read {
            DiscardOutcome::Ended => self.on_body_end(),
            DiscardOutcome::TooLong => {
                // hyper would close, and so reset, the connection before the response is complete.
                self.0.response_ended.cancelled().await;
                if !self.state().closes {
                    self.0.phase.stop_discarding();
                }
                drop(rest);
                if !self.state().closes {
                    // hyper reads on once. If that is the end of the body, it keeps the connection, which is idle now.
                    self.0.phase.end_request(self.0.request);
                }
                // hyper may be waiting for the client's next bytes, and notices the dropped body only when it is woken.
                self.0.phase.wake_reader();
            }
            DiscardOutcome::Broken => {}
        }
    }
}

/// Reads and discards at most `left` bytes.
async fn read_at_most(mut left: usize, rest: &mut Incoming) -> DiscardOutcome {
    while let Some(frame) = rest.frame().await {
        let Ok(frame) = frame else { return DiscardOutcome::Broken };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(further) => left = further,
            None => return DiscardOutcome::TooLong,
        }
        // With a known length hyper reports no end of the body before the next request.
        if rest.is_end_stream() {
            break;
        }
    }
    DiscardOutcome::Ended
}
