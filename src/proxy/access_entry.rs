//! The access line of a request, from its head to the end of its response.

use std::sync::Arc;

use hyper::http::request::Parts;
use tokio::time::Instant;

use super::head::{RequestHead, access_line};
use crate::http::{BodyEnd, BodyEnded, BodyOutcome, ClientAddress};
use crate::policy::Policy;
use crate::runtime::ProxyState;
use crate::telemetry::{AccessLine, AnsweredBy, Outcome, set_request_id};

/// 499: the client closed the connection before it was answered (nginx's convention).
const CLIENT_LEFT: u16 = 499;

/// The access line of a request in progress. It is written when it is dropped, so that a request whose client closed the
/// connection before the response has one too.
pub(super) struct AccessEntry {
    pub(super) line: AccessLine,
    started: Instant,
    state: Arc<ProxyState>,
    /// The record that counts the bytes of the request's body.
    pub(super) received: Option<BodyEnd>,
    /// The time at which the response ended; unset if there was none.
    ended: Option<Instant>,
    is_discarded: bool,
}

impl AccessEntry {
    /// Begins the line of a request. It is in a box, because it is moved into the response.
    pub(super) fn begin(head: &Parts, policy: &Policy, state: Arc<ProxyState>) -> Box<Self> {
        Box::new(Self {
            line: access_line(head, policy),
            started: Instant::now(),
            state,
            received: None,
            ended: None,
            is_discarded: false,
        })
    }

    /// Drops the line without writing it: a socket writes its own when it ends.
    pub(super) fn discard(&mut self) {
        self.is_discarded = true;
    }

    /// Sets the client's address and the request id, for this line and the log lines of the request.
    pub(super) fn set_client(&mut self, client: &ClientAddress, head: &RequestHead) {
        // This is accepted from this machine only, because the list of refusals marks tests as such.
        self.line.is_test = head.is_doctor && client.address.is_loopback();
        self.line.client = Some(client.address);
        self.line.request_id = client.request_id.clone();
        set_request_id(&self.line.request_id);
    }

    /// Sets how the response has ended. The line is written when this is dropped.
    pub(super) fn end(&mut self, ended: BodyEnded) {
        self.ended = Some(ended.at);
        self.line.bytes_out = ended.bytes;
        match (ended.outcome, self.line.outcome) {
            (BodyOutcome::Stopped(reason), _) => self.line.outcome = Outcome::Cut(reason),
            (BodyOutcome::Aborted, Outcome::Accepted) => self.line.outcome = Outcome::BrokenOff,
            (BodyOutcome::Aborted | BodyOutcome::Complete, _) => {}
        }
    }
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        if self.is_discarded {
            return;
        }
        if self.line.status == 0 {
            // No response was sent.
            self.line.status = CLIENT_LEFT;
            self.line.outcome = Outcome::ClientLeft;
            self.line.answered_by = AnsweredBy::Vestibule;
        }
        self.line.duration = self.ended.unwrap_or_else(Instant::now).saturating_duration_since(self.started);
        self.line.bytes_in = self.received.as_ref().map_or(0, BodyEnd::bytes);
        self.state.record_end(&self.line);
    }
}
