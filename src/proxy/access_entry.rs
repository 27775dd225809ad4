//! The access line of a request, from its head to the end of its answer.

use std::sync::Arc;
use std::time::Instant;

use super::head::RequestHead;
use crate::http::{BodyEnd, ClientAddress};
use crate::runtime::Shared;
use crate::telemetry::{AccessLine, AnsweredBy, Outcome};

/// 499: the client closed the connection before it was answered (nginx's convention).
const CLIENT_LEFT: u16 = 499;

/// The access line of a request under way. It is written when dropped, so that a request whose client left before it
/// was answered has one too.
pub(super) struct AccessEntry {
    pub(super) line: AccessLine,
    started: Instant,
    shared: Arc<Shared>,
    /// Where the bytes of the request's body are counted.
    pub(super) received: Option<BodyEnd>,
    written: bool,
}

impl AccessEntry {
    pub(super) fn new(line: AccessLine, started: Instant, shared: Arc<Shared>) -> Self {
        Self { line, started, shared, received: None, written: true }
    }

    /// Leaves the line unwritten: a socket writes its own when it ends.
    pub(super) fn discard(&mut self) {
        self.written = false;
    }

    /// Notes who asks, and the request's id.
    pub(super) fn set_client(&mut self, client: &ClientAddress, head: &RequestHead) {
        // From this machine only: nobody else can keep refusals out of the list.
        self.line.is_test = head.is_doctor && client.address.is_loopback();
        self.line.client = client.address.to_string().into();
        self.line.request_id = client.request_id.as_str().into();
    }
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        if !self.written {
            return;
        }
        if self.line.status == 0 {
            // Nobody got an answer.
            self.line.status = CLIENT_LEFT;
            self.line.outcome = Outcome::ClientLeft;
            self.line.answered_by = AnsweredBy::Vestibule;
        }
        self.line.duration = self.started.elapsed();
        self.line.bytes_in = self.received.as_ref().map_or(0, BodyEnd::bytes);
        self.shared.finished(&self.line);
    }
}
