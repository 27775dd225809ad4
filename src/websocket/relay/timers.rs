//! The timers of a relay: the session's deadline, pings and their answers, idleness, writes that a peer does not
//! accept, and the end of a session that is being closed.

use std::task::Context;
use std::time::Duration;

use super::closing::{FRAME_END_TIMEOUT, MESSAGE_END_TIMEOUT};
use super::ending::{DELIVERY_RETRY, LINGER};
use super::peer::Peer;
use super::{ClosedBy, Relay};
use crate::auth::unix_millis;
use crate::policy::SocketLimits;
use crate::runtime::Moment;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Opcode, PING, encode, masking_key};
use crate::websocket::session::Event;

/// The interval between two checks of the key that verified a session's token.
pub(super) const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The time for which a peer that has sent its Close, or the end of its stream, still receives what the other peer
/// sends.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(60);
/// The time after which a ping that could not be sent is tried again.
const PING_RETRY: Duration = Duration::from_secs(1);

/// The two peers of a relay of which one has ended its stream, while the other one is still forwarded to it.
#[derive(Clone, Copy)]
pub(super) struct HalfClosed<'a> {
    /// The peer that has sent its Close or ended its stream.
    ended: &'a Peer,
    /// The peer that may still send.
    awaited: &'a Peer,
}

impl HalfClosed<'_> {
    /// Returns the new time of the disconnect when [`LINGER`] has passed since the first end; `None` to disconnect now.
    ///
    /// - While `awaited` is not read, because `ended` accepts nothing, it is extended each time.
    /// - After the end of a stream without a Close, it is extended until `awaited` has sent nothing for [`LINGER`].
    /// - After a Close it is not extended.
    fn postponed(self, now: Moment) -> Option<Moment> {
        let quiet_at = self.awaited.last_received + LINGER;
        match (self.awaited.is_paused, self.ended.close_received) {
            (true, _) => Some(now + LINGER),
            (false, false) => Some(quiet_at).filter(|at| *at > now),
            (false, true) => None,
        }
    }
}

impl Relay {
    /// Returns the time of the next call of [`Self::run_timers`].
    pub(super) fn next_deadline(&self, now: Moment) -> Moment {
        let mut next = now + Duration::from_secs(3_600);
        let mut consider = |deadline: Moment| next = next.min(deadline);
        if let Some(at) = self.disconnect_at {
            consider(at);
        }
        if let Some(HalfClosed { ended, .. }) = self.half_closed() {
            consider(ended.last_received + HALF_CLOSED_TIMEOUT);
        }
        for peer in [&self.client, &self.upstream] {
            if let Some(since) = peer.stalled_since() {
                consider(since + self.limits.send_timeout);
            }
            if peer.awaits_delivery() {
                consider(now + DELIVERY_RETRY);
            }
        }
        if let Some(closing) = &self.closing {
            if let Some(at) = closing.ends_at {
                consider(at);
            }
            for timeout in [MESSAGE_END_TIMEOUT, FRAME_END_TIMEOUT] {
                let end = closing.awaiting_message_end_since + timeout;
                if !self.client.forwarding_ended && end > now {
                    consider(end);
                }
            }
            if let Some(at) = self.client_close_deadline() {
                consider(at);
            }
            return next;
        }
        if self.is_without_client() {
            return next;
        }
        let unix_now = unix_millis();
        if let Some(deadline) = self.session.deadline() {
            consider(now + Duration::from_millis(deadline.saturating_sub(unix_now)));
        }
        if self.session.unexpired_identity(unix_now).is_some() {
            consider(self.next_key_check);
        }
        if let Some(at) = self.idle_deadline() {
            consider(at);
        }
        for peer in [&self.client, &self.upstream] {
            if peer.is_read() {
                consider(peer.answer_due.unwrap_or_else(|| peer.next_ping(&self.limits)));
            }
        }
        next
    }

    /// Returns the time at which the client of a session that is being ended is disconnected: after [`LINGER`] without
    /// an accepted byte, and after `send_timeout` however slowly it reads.
    fn client_close_deadline(&self) -> Option<Moment> {
        let closing = self.closing.as_ref().filter(|_| self.disconnect_at.is_none() && !self.client.shut)?;
        let latest = closing.since + self.limits.send_timeout;
        let stalled = self.client.stalled_since().map(|since| since.max(closing.since) + LINGER);
        Some(stalled.map_or(latest, |stalled| stalled.min(latest)))
    }

    /// Runs the timers that are due. Returns whether the relay is over.
    pub(super) fn run_timers(&mut self, cx: &mut Context<'_>) -> bool {
        let now = Moment::now();
        if self.closing.as_ref().and_then(|closing| closing.ends_at).is_some_and(|at| at <= now) {
            return true;
        }
        self.check_delivery(now);
        if self.is_client_over(now) {
            return self.disconnect_client(cx);
        }
        if self.upstream.is_stalled_for(self.limits.send_timeout) {
            self.close_for_dead_upstream();
        }
        if self.closing.is_some() || self.is_without_client() {
            return false;
        }
        if self.session.deadline().is_some_and(|deadline| unix_millis() >= deadline) {
            self.process(Event::Deadline { last_seen: self.authorizer.last_seen() });
        }
        if self.next_key_check <= now {
            self.next_key_check = now + KEY_CHECK_INTERVAL;
            let identity = self.session.unexpired_identity(unix_millis());
            if identity.is_some_and(|identity| !self.authorizer.is_current(identity)) {
                tracing::info!("the key of an open socket's token was withdrawn");
                self.process(Event::Close(CloseReason::Expired));
            }
        }
        if self.idle_deadline().is_some_and(|at| at <= now) {
            self.process(Event::Close(CloseReason::Idle));
        }
        self.ping_silent_peers(now) && self.disconnect_client(cx)
    }

    /// Returns whether nothing more is to be sent to the client, or it accepts nothing.
    fn is_client_over(&mut self, now: Moment) -> bool {
        if self.disconnect_at.is_some_and(|at| now >= at) {
            if let Some(later) = self.half_closed().and_then(|half_closed| half_closed.postponed(now)) {
                self.disconnect_at = Some(later);
            } else if self.awaits_only_delivery() {
                // It is scheduled again once everything is delivered.
                self.disconnect_at = None;
            } else {
                return true;
            }
        }
        if self.half_closed().is_some_and(|half_closed| half_closed.ended.last_received + HALF_CLOSED_TIMEOUT <= now) {
            return true;
        }
        if self.client_close_deadline().is_some_and(|at| at <= now) {
            let closing = self.closing.as_ref();
            let is_timed_out = closing.is_some_and(|closing| closing.since + self.limits.send_timeout <= now);
            return is_timed_out || self.client.is_stalled_for(LINGER);
        }
        if self.client.is_stalled_for(self.limits.send_timeout) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        false
    }

    /// Returns the two peers where one has sent its Close, or the client has ended its stream, and still receives what
    /// the other one sends.
    pub(super) fn half_closed(&self) -> Option<HalfClosed<'_>> {
        if self.closing.is_some() || self.upstream.has_ended() {
            return None;
        }
        let (client, upstream) = (&self.client, &self.upstream);
        match (client.close_received || client.has_ended(), upstream.close_received) {
            (true, false) if !client.shut => Some(HalfClosed { ended: client, awaited: upstream }),
            (false, true) if !upstream.shut => Some(HalfClosed { ended: upstream, awaited: client }),
            _ => None,
        }
    }

    /// Returns whether both sides have closed, and only bytes that a peer has not accepted yet keep the connections
    /// open. `send_timeout` alone limits that.
    fn awaits_only_delivery(&mut self) -> bool {
        let has_ended = |peer: &Peer| peer.close_received || peer.has_ended();
        self.closing.is_none()
            && has_ended(&self.client)
            && has_ended(&self.upstream)
            && !(self.client.has_taken_everything() && self.upstream.has_taken_everything())
    }

    /// Returns the time at which the session has been idle for too long; `None` where there is no limit. A session is
    /// not idle while one side accepts nothing.
    fn idle_deadline(&self) -> Option<Moment> {
        let timeout = self.limits.idle_timeout.filter(|_| !self.client.is_paused && !self.upstream.is_paused)?;
        Some(self.last_data + timeout)
    }

    /// Pings peers that have sent nothing for `ping_interval`. Returns whether the client is dead.
    fn ping_silent_peers(&mut self, now: Moment) -> bool {
        let is_dead = |peer: &Peer| peer.is_read() && peer.answer_due.is_some_and(|due| due <= now);
        let is_ping_due = |peer: &Peer, limits: &SocketLimits| {
            peer.is_read() && peer.answer_due.is_none() && peer.next_ping(limits) <= now
        };
        if is_dead(&self.client) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if is_dead(&self.upstream) {
            self.close_for_dead_upstream();
            return false;
        }
        // A ping may come between two fragments of a message: an upstream that never ends its message must not keep a
        // dead client. A ping that cannot be sent now, inside a frame or after a pending write, is tried again.
        let retry = now + PING_RETRY;
        if is_ping_due(&self.client, &self.limits) {
            if self.from_upstream.direction.frames.is_between_frames() && !self.client.has_pending_writes() {
                self.client.record_ping(&self.limits);
                encode(self.client.out(), Opcode::Ping, PING, None);
            } else {
                self.client.ping_not_before = retry;
            }
        }
        if is_ping_due(&self.upstream, &self.limits) {
            if self.from_client.may_send_control() && !self.upstream.has_pending_writes() {
                self.upstream.record_ping(&self.limits);
                encode(self.upstream.out(), Opcode::Ping, PING, Some(masking_key()));
            } else {
                self.upstream.ping_not_before = retry;
            }
        }
        false
    }
}
