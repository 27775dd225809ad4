//! The access line of a request, from its head to the end of its response.

use std::sync::Arc;
use std::time::Instant;

use super::head::RequestHead;
use crate::http::{BodyEnd, ClientAddress};
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
    written: bool,
}

impl AccessEntry {
    pub(super) fn new(line: AccessLine, started: Instant, state: Arc<ProxyState>) -> Self {
        Self { line, started, state, received: None, written: true }
    }

    /// Drops the line without writing it: a socket writes its own when it ends.
    pub(super) fn discard(&mut self) {
        self.written = false;
    }

    /// Sets the client's address and the request id, for this line and the log lines of the request.
    pub(super) fn set_client(&mut self, client: &ClientAddress, head: &RequestHead) {
        // This is accepted from this machine only, because the list of refusals marks tests as such.
        self.line.is_test = head.is_doctor && client.address.is_loopback();
        self.line.client = client.text().into();
        self.line.request_id = client.request_id.clone();
        set_request_id(&self.line.request_id);
    }
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        if !self.written {
            return;
        }
        if self.line.status == 0 {
            // No response was sent.
            self.line.status = CLIENT_LEFT;
            self.line.outcome = Outcome::ClientLeft;
            self.line.answered_by = AnsweredBy::Vestibule;
        }
        self.line.duration = self.started.elapsed();
        self.line.bytes_in = self.received.as_ref().map_or(0, BodyEnd::bytes);
        self.state.record_end(&self.line);
    }
}
