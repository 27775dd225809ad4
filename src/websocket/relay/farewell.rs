//! How a session that we end is ended: what may end it while it is open, its last words to the client, and its Close to
//! the upstream, which waits for nobody.

use tokio::time::Instant;

use super::{BOUNDARY, ClosedBy, Relay, mask};
use crate::runtime::Ear;
use crate::websocket::ending::Ending;
use crate::websocket::frame::{Opcode, close_payload, encode};
use crate::websocket::session::Event;

/// How a session of ours is being ended.
pub(super) struct Farewell {
    pub(super) since: Instant,
    /// Since when the end of the upstream's message is waited for.
    pub(super) boundary_since: Instant,
    /// What the upstream still answers to what stood before the end goes on, until it has closed too.
    pub(super) hears_upstream: bool,
    text: Option<Vec<u8>>,
    close: Vec<u8>,
}

impl Farewell {
    fn new(text: Option<Vec<u8>>, close: Vec<u8>) -> Self {
        let since = Instant::now();
        Self { since, boundary_since: since, hears_upstream: false, text, close }
    }

    /// Whether a message that the upstream has not ended is waited for no longer.
    fn is_late(&self) -> bool {
        self.boundary_since.elapsed() >= BOUNDARY
    }
}

impl Relay {
    /// Whether it may go on by the revocations and the policy in force.
    ///
    /// # Errors
    /// How it ends.
    pub(super) fn may_go_on(&mut self) -> Result<(), Ending> {
        if self.session.revocation_keys().is_some_and(|keys| self.judge.is_revoked(keys)) {
            return Err(Ending::Revoked);
        }
        self.judge.judge_again(self.session.remembered())
    }

    /// Something has changed that may end it.
    pub(super) fn hear(&mut self, ear: &Ear) {
        let is_ending = self.farewell.is_some();
        let may_go_on = self.may_go_on();
        if may_go_on.is_ok()
            && !is_ending
            && let Some(token) = self.judge.renewed_token()
        {
            self.hand_on(token);
        }
        let ending = if let Err(ending) = may_go_on {
            ending
        } else if ear.must_leave() {
            Ending::Drain(self.times.drain_code)
        } else {
            return;
        };
        if is_ending {
            return;
        }
        match ending {
            Ending::Revoked => tracing::info!("closing an open socket after a revocation"),
            Ending::Drain(_) => {}
            ending => tracing::info!(reason = ending.reason(), "closing an open socket after the reload"),
        }
        if self.client.told_close {
            // The upstream's Close is on its way to it, and the last that it hears; it is not waited for as long.
            self.leave_upstream();
            self.farewell = Some(Box::new(Farewell::new(None, Vec::new())));
            return;
        }
        self.act_on(Event::End(ending));
    }

    /// Whether a farewell still waits for what the upstream has to say.
    pub(super) fn still_hears_upstream(&self) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.hears_upstream && !farewell.is_late())
            && !self.client.told_close
            && !self.upstream.said_close
            && !self.upstream.eof
    }

    pub(super) fn begin_end(&mut self, ending: Ending) {
        if self.farewell.is_some() {
            return;
        }
        if ending == Ending::Expired {
            self.judge.expired("closed");
        }
        let dialect = self.session.dialect().map(|dialect| &**dialect);
        let code = ending.code(dialect);
        let text = ending.said(dialect, self.session.answering()).map(|text| {
            let mut frame = Vec::new();
            encode(&mut frame, Opcode::Text, text.as_bytes(), None);
            frame
        });
        let mut close = Vec::new();
        encode(&mut close, Opcode::Close, &close_payload(code, ending.reason()), None);
        tracing::debug!(code, reason = ending.reason(), "closing the socket");
        self.first_close.get_or_insert((Some(code), ClosedBy::Vestibule));
        self.verdict = None;
        self.asking = None;
        self.forget_waiting();
        self.farewell = Some(Box::new(Farewell::new(text, close)));
    }

    /// Says goodbye to the client when the stream to it allows it.
    pub(super) fn say_farewell(&mut self) {
        if self.client.told_close || self.still_hears_upstream() {
            return;
        }
        let Some(farewell) = &mut self.farewell else { return };
        // A message that nobody will finish is not waited for.
        let late = farewell.is_late() || self.upstream.eof;
        if late {
            self.upstream_control.abandon(&mut self.from_upstream);
        }
        let between_frames = self.from_upstream.between_frames() && self.upstream_control.raw.is_empty();
        if self.from_upstream.between_messages() && between_frames {
            for saying in self.say.drain(..) {
                self.client.out.extend_from_slice(&saying.frame);
            }
            if let Some(text) = farewell.text.take() {
                self.client.out.extend_from_slice(&text);
            }
            self.client.out.extend_from_slice(&farewell.close);
        } else if late && between_frames {
            // A control frame may stand between fragments; a message of ours may not.
            self.client.out.extend_from_slice(&farewell.close);
        } else if !late {
            return;
        }
        // Late and inside a frame: nothing can be said any more, and the connection just ends.
        self.client.told_close = true;
    }

    /// Toward the upstream a session that we end is a masked Close 1001.
    pub(super) fn leave_upstream(&mut self) {
        self.client_control.abandon(&mut self.from_client);
        // Of a message that is being held nothing has gone up.
        let between = self.from_client.between_frames() || self.held.is_some();
        if !self.upstream.told_close && between && !self.upstream.shut {
            encode(&mut self.upstream.out, Opcode::Close, &close_payload(1001, ""), Some(mask()));
        }
        self.upstream.told_close = true;
        self.held = None;
    }
}
