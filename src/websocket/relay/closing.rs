//! How a session that we end is ended: what may end it while it is open, its last words to the client, and its Close to
//! the upstream, which waits for nobody.

use tokio::time::Instant;

use super::{BOUNDARY, ClosedBy, Relay};
use crate::runtime::Subscription;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Opcode, close_payload, encode, masking_key};
use crate::websocket::session::Event;

/// How a session of ours is being ended.
pub(super) struct Closing {
    pub(super) since: Instant,
    /// Since when the end of the upstream's message is waited for.
    pub(super) boundary_since: Instant,
    /// The end of the time that a drain leaves to all sockets.
    pub(super) ends_by: Option<Instant>,
    /// What the upstream still answers to what stood before the end goes on, until it has closed too.
    pub(super) hears_upstream: bool,
    text: Option<Vec<u8>>,
    close: Vec<u8>,
}

impl Closing {
    fn new(text: Option<Vec<u8>>, close: Vec<u8>) -> Self {
        let since = Instant::now();
        Self { since, boundary_since: since, ends_by: None, hears_upstream: false, text, close }
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
    pub(super) fn may_go_on(&mut self) -> Result<(), CloseReason> {
        if self.session.revocation_keys().is_some_and(|keys| self.authorizer.is_revoked(keys)) {
            return Err(CloseReason::Revoked);
        }
        self.authorizer.reauthorize(self.session.identity())
    }

    /// Something has changed that may end it.
    pub(super) fn hear(&mut self, subscription: &Subscription) {
        self.hear_change(subscription);
        if let Some(closing) = &mut self.closing {
            closing.ends_by = subscription.ends_by();
        }
    }

    fn hear_change(&mut self, subscription: &Subscription) {
        let is_ending = self.closing.is_some();
        let may_go_on = self.may_go_on();
        if may_go_on.is_ok()
            && !is_ending
            && let Some(token) = self.authorizer.renewed_token()
        {
            self.hand_on(token);
        }
        let reason = if let Err(reason) = may_go_on {
            reason
        } else if subscription.should_close() {
            CloseReason::Drain(self.settings.drain_code)
        } else {
            return;
        };
        if is_ending {
            return;
        }
        match reason {
            CloseReason::Revoked => tracing::info!("closing an open socket after a revocation"),
            CloseReason::Drain(_) => {}
            reason => tracing::info!(reason = reason.text(), "closing an open socket after the reload"),
        }
        if self.client.told_close {
            // The upstream's Close is on its way to it, and the last that it hears; it is not waited for as long.
            self.close_upstream();
            self.closing = Some(Box::new(Closing::new(None, Vec::new())));
            return;
        }
        self.act_on(Event::Close(reason));
    }

    /// Whether a closing still waits for what the upstream has to say.
    pub(super) fn still_hears_upstream(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.hears_upstream && !closing.is_late())
            && !self.client.told_close
            && !self.upstream.said_close
            && !self.upstream.eof
    }

    pub(super) fn begin_close(&mut self, reason: CloseReason) {
        if self.closing.is_some() {
            return;
        }
        if reason == CloseReason::Expired {
            self.authorizer.count_expiry("closed");
        }
        let dialect = self.session.dialect().map(|dialect| &**dialect);
        let code = reason.code(dialect);
        let text = reason.error_message(dialect, self.session.reply_copies()).map(|text| {
            let mut frame = Vec::new();
            encode(&mut frame, Opcode::Text, text.as_bytes(), None);
            frame
        });
        let mut close = Vec::new();
        encode(&mut close, Opcode::Close, &close_payload(code, reason.text()), None);
        tracing::debug!(code, reason = reason.text(), "closing the socket");
        self.first_close.get_or_insert((Some(code), ClosedBy::Vestibule));
        self.verdict = None;
        self.asking = None;
        self.forget_waiting();
        self.closing = Some(Box::new(Closing::new(text, close)));
    }

    /// Says goodbye to the client when the stream to it allows it.
    pub(super) fn send_close(&mut self) {
        if self.client.told_close || self.still_hears_upstream() {
            return;
        }
        let Some(closing) = &mut self.closing else { return };
        // A message that nobody will finish is not waited for.
        let late = closing.is_late() || self.upstream.eof;
        if late {
            self.upstream_control.abandon(&mut self.from_upstream);
        }
        let between_frames = self.from_upstream.is_between_frames() && self.upstream_control.raw.is_empty();
        if self.from_upstream.is_between_messages() && between_frames {
            for saying in self.say.drain(..) {
                self.client.out.extend_from_slice(&saying.frame);
            }
            if let Some(text) = closing.text.take() {
                self.client.out.extend_from_slice(&text);
            }
            self.client.out.extend_from_slice(&closing.close);
        } else if late && between_frames {
            // A control frame may stand between fragments; a message of ours may not.
            self.client.out.extend_from_slice(&closing.close);
        } else if !late {
            return;
        }
        // Late and inside a frame: nothing can be said any more, and the connection just ends.
        self.client.told_close = true;
    }

    /// Toward the upstream a session that we end is a masked Close 1001.
    pub(super) fn close_upstream(&mut self) {
        self.client_control.abandon(&mut self.from_client);
        // Of a message that is being held nothing has gone up.
        let between = self.from_client.is_between_frames() || self.held.is_some();
        if !self.upstream.told_close && between && !self.upstream.shut {
            encode(&mut self.upstream.out, Opcode::Close, &close_payload(1001, ""), Some(masking_key()));
        }
        self.upstream.told_close = true;
        self.held = None;
    }
}
