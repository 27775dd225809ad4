//! Ends a session: the proxy's reason, the error and the Close to the client, the Close to the upstream, which is sent
//! without waiting, and the end of both connections.

use std::task::Context;
use std::time::Duration;

use super::closing::Closing;
use super::peer::StreamEnd;
use super::scratch::with_scratch;
use super::{ClosedBy, Relay, encode_to_client};
use crate::auth::unix_millis;
use crate::http::Socket;
use crate::runtime::Moment;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Opcode, close_payload, encode, masking_key};
use crate::websocket::session::Event;

/// The time that the other side has after a Close, or the end of one stream, was delivered to it. The client of a
/// session that the proxy ends is disconnected when it accepts nothing for this long.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// The interval at which the system is asked whether it has sent all bytes that it accepted.
pub(super) const DELIVERY_RETRY: Duration = Duration::from_millis(100);

impl Relay {
    /// Checks the session against the revocations and the policy in force, which may also move the end of a session
    /// cookie.
    ///
    /// # Errors
    /// Returns the reason why the session ends.
    pub(super) fn reauthorize(&mut self) -> Result<(), CloseReason> {
        if self.session.revocation_keys().is_some_and(|keys| self.authorizer.is_revoked(keys)) {
            return Err(CloseReason::Revoked);
        }
        self.authorizer.reauthorize(self.session.identity())?;
        if let Some(at) = self.session.identity().and_then(|identity| self.authorizer.cookie_expires_at(identity)) {
            self.session.set_cookie_expiry(at);
        }
        Ok(())
    }

    /// Processes a notification of a drain, a revocation or a reload.
    pub(super) fn process_notification(&mut self) {
        self.close_if_notified();
        if let Some(closing) = &mut self.closing {
            closing.ends_at = self.subscription.ends_by().map(Moment::from);
        }
    }

    fn close_if_notified(&mut self) {
        let is_closing = self.closing.is_some();
        let authorized = self.reauthorize();
        if authorized.is_ok()
            && !is_closing
            && let Some(token) = self.authorizer.renewed_token()
        {
            self.forward_token(token);
        }
        let reason = match authorized {
            Err(reason) => reason,
            Ok(()) if self.subscription.should_close() => CloseReason::Drain(self.limits.drain_code),
            Ok(()) => return,
        };
        if is_closing {
            return;
        }
        match reason {
            CloseReason::Revoked => tracing::info!("closing an open socket after a revocation"),
            CloseReason::Drain(_) => {}
            reason => tracing::info!(reason = reason.text(), "closing an open socket after the reload"),
        }
        if self.client.forwarding_ended {
            // The upstream's Close is being sent to the client as its last frame. With `closing` set the client has
            // less time to accept it. The session gets its event too: it must not verify the refresh that waits.
            self.session.on(Event::Close(reason), unix_millis());
            self.stop_authorizing();
            self.close_upstream();
            self.closing = Some(Box::new(Closing::new(None, Vec::new())));
            return;
        }
        self.process(Event::Close(reason));
    }

    /// Ends the session when the memory of its kept message is needed for the messages of other users.
    pub(super) fn close_for_eviction(&mut self) {
        self.authorizer.count_limit("held_message_bytes");
        self.process(Event::Close(CloseReason::TooManyConnections));
        self.from_client.evict();
    }

    /// Handles a violation of RFC 6455 by the client, whose stream cannot be read further. Messages before the
    /// violation were forwarded, and are answered.
    pub(super) fn close_for_client_violation(&mut self) {
        self.from_client.direction.frames.abandon_partial();
        self.process(Event::Close(CloseReason::Protocol));
        if let Some(closing) = &mut self.closing {
            closing.awaits_upstream = true;
        }
    }

    pub(super) fn close_for_upstream_violation(&mut self) {
        self.from_upstream.direction.frames.abandon_partial();
        self.upstream.stream_end = Some(StreamEnd::GivenUp);
        self.process(Event::Close(CloseReason::UpstreamLost));
    }

    /// Handles a client that accepts nothing any more. Its earlier messages are still forwarded, followed by the end of
    /// its stream.
    pub(super) fn client_stopped_reading(&mut self) {
        self.client.abandon();
        self.first_close.get_or_insert((None, ClosedBy::Client));
    }

    pub(super) fn close_for_dead_upstream(&mut self) {
        self.upstream.stream_end = Some(StreamEnd::GivenUp);
        self.upstream.abandon();
        self.process(Event::Close(CloseReason::UpstreamLost));
    }

    /// Disconnects the client. Its earlier messages are still forwarded. Returns whether nothing is left to do.
    pub(super) fn disconnect_client(&mut self, cx: &mut Context<'_>) -> bool {
        with_scratch(|scratch| self.client.disconnect(cx, scratch));
        self.client.abandon();
        self.client.socket = Socket::Closed;
        self.client.stream_end = Some(StreamEnd::GivenUp);
        self.disconnect_at = None;
        if self.closing.is_some() && !self.upstream.forwarding_ended {
            self.close_upstream();
        }
        self.upstream.has_taken_everything()
    }

    /// Returns whether the client is disconnected and the relay runs on only until the upstream has accepted everything
    /// pending.
    pub(super) fn is_without_client(&self) -> bool {
        self.client.has_ended() && self.client.shut
    }

    /// Returns whether a session that is being ended still waits for the upstream's answers.
    pub(super) fn awaits_upstream(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.awaits_upstream && !closing.message_end_timed_out())
            && !self.client.forwarding_ended
            && !self.upstream.close_received
            && !self.upstream.has_ended()
    }

    /// Begins to end the session. The Close is sent by [`Self::send_close`] and [`Self::close_upstream`].
    pub(super) fn begin_close(&mut self, reason: CloseReason) {
        if self.closing.is_some() {
            return;
        }
        if reason == CloseReason::Expired {
            self.authorizer.count_expiry("closed");
        }
        let dialect = self.session.dialect().map(|dialect| &**dialect);
        let code = reason.code(dialect);
        let error = reason.error_message(dialect, self.session.reply_copies()).map(|text| encode_to_client(&text));
        let mut close = Vec::new();
        encode(&mut close, Opcode::Close, &close_payload(code, reason.text()), None);
        tracing::debug!(code, reason = reason.text(), "closing the socket");
        self.first_close.get_or_insert((Some(code), ClosedBy::Vestibule));
        self.stop_authorizing();
        self.closing = Some(Box::new(Closing::new(error, close)));
    }

    /// Drops what waits for a verdict or an answer of the provider, once the session ends.
    fn stop_authorizing(&mut self) {
        self.awaited = None;
        self.from_client.drop_queued();
    }

    /// Sends the error and the Close to the client where its stream allows it: both between two messages of the
    /// upstream, or after [`MESSAGE_END_TIMEOUT`](super::closing::MESSAGE_END_TIMEOUT) the Close alone between two
    /// frames. After [`FRAME_END_TIMEOUT`](super::closing::FRAME_END_TIMEOUT) it sends neither.
    pub(super) fn send_close(&mut self) {
        if self.client.forwarding_ended || self.awaits_upstream() {
            return;
        }
        let Some(closing) = &mut self.closing else { return };
        let is_late = closing.message_end_timed_out() || self.upstream.has_ended();
        let was_held = is_late && self.from_upstream.drop_held();
        let direction = &mut self.from_upstream.direction;
        if is_late {
            direction.frames.abandon_partial();
        }
        if was_held || direction.frames.is_between_messages() {
            self.client.out().extend(direction.take_all_queued().into_iter().flatten());
            self.client.out().extend(closing.error.take().into_iter().flatten());
            self.client.out().extend_from_slice(&closing.close);
        } else if is_late && direction.frames.is_between_frames() {
            self.client.out().extend_from_slice(&closing.close);
        } else if !closing.frame_end_timed_out() && !self.upstream.has_ended() {
            return;
        }
        // It is too late to wait, and inside a frame nothing can be sent. The connection ends without a Close.
        self.client.forwarding_ended = true;
    }

    /// Sends a Close with 1001 to the upstream, where the stream allows it.
    pub(super) fn close_upstream(&mut self) {
        self.from_client.direction.frames.abandon_partial();
        if !self.upstream.forwarding_ended && !self.upstream.shut && self.from_client.may_send_control() {
            encode(self.upstream.out(), Opcode::Close, &close_payload(1001, ""), Some(masking_key()));
        }
        self.upstream.forwarding_ended = true;
        self.from_client.drop_kept();
    }

    /// Schedules the end of both connections once one side has closed or disconnected, and everything accepted for
    /// either side is delivered.
    pub(super) fn schedule_disconnect(&mut self) {
        if self.disconnect_at.is_some() {
            return;
        }
        let (is_delivered, is_assumed) = if self.closing.is_some() {
            ((self.client.forwarding_ended || self.client.shut) && self.client.has_taken_everything(), false)
        } else {
            let is_closed = self.client.close_received
                || self.upstream.close_received
                || self.client.has_ended()
                || self.upstream.has_ended()
                || self.client.shut;
            let is_written = is_closed && !self.client.has_pending_writes() && !self.upstream.has_pending_writes();
            let is_assumed = !self.client.awaits_delivery() && !self.upstream.awaits_delivery();
            (is_written && (is_assumed || self.is_delivered()), is_assumed)
        };
        if is_delivered {
            self.is_delivery_assumed = is_assumed;
            self.set_disconnect();
        }
    }

    /// Returns whether nothing waits for either peer, neither here nor in the system.
    pub(super) fn is_delivered(&mut self) -> bool {
        // Both are asked, so that each that awaits its delivery is asked again.
        let is_delivered_to_client = self.client.has_taken_everything();
        self.upstream.has_taken_everything() && is_delivered_to_client
    }

    /// Asks the system whether everything is delivered, where the end of both connections was scheduled without asking
    /// and it is time to. The end is scheduled again when everything is.
    pub(super) fn check_delivery(&mut self, now: Moment) {
        if self.is_delivery_assumed && self.disconnect_at.is_some_and(|at| at <= now) {
            self.is_delivery_assumed = false;
            self.disconnect_at = self.is_delivered().then_some(now + LINGER.saturating_sub(DELIVERY_RETRY));
        }
    }

    /// Restarts the time until both connections end, where the peer that has not closed yet is read again.
    pub(super) fn restart_disconnect(&mut self) {
        if self.half_closed().is_some() && self.disconnect_at.is_some() {
            self.set_disconnect();
        }
    }

    fn set_disconnect(&mut self) {
        let delay = if self.is_delivery_assumed { DELIVERY_RETRY } else { LINGER };
        self.disconnect_at = Some(Moment::now() + delay);
    }

    pub(super) fn is_finished(&self) -> bool {
        // A disconnected client needs nothing more from the upstream.
        self.client.has_ended() && self.client.has_shut() && self.upstream.has_shut()
    }

    /// Closes both sockets without discarding bytes that are being delivered to their peers.
    pub(super) fn disconnect(&mut self, cx: &mut Context<'_>) {
        with_scratch(|scratch| {
            self.client.disconnect(cx, scratch);
            self.upstream.disconnect(cx, scratch);
        });
    }
}
