//! What is due when: the session's deadline, pings and their answers, idleness, writes that nobody takes,
//! and the end of every closing.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::peer::Peer;
use super::{BOUNDARY, ClosedBy, HALF_CLOSED, JUDGED_AGAIN, LINGER, Relay, RelaySettings};
use crate::websocket::clock::unix_millis;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Opcode, PING, encode, masking_key};
use crate::websocket::session::Event;

/// A ping that could not be sent is tried again after this.
const PING_RETRY: Duration = Duration::from_secs(1);
/// How often the system is asked again whether it has sent all that it took.
const DELIVERY_RETRY: Duration = Duration::from_millis(100);

impl Relay {
    /// The next moment at which something is due.
    pub(super) fn next_moment(&self) -> Instant {
        let now_instant = Instant::now();
        let mut next = now_instant + Duration::from_secs(3_600);
        let mut consider = |moment: Instant| next = next.min(moment);
        if let Some(over) = self.over {
            consider(over);
        }
        if self.is_half_closed() {
            consider(self.client.last_heard + HALF_CLOSED);
        }
        for side in [&self.client, &self.upstream] {
            if let Some(waiting) = side.waiting_since() {
                consider(waiting + self.settings.send_timeout.get());
            }
            if side.awaits_delivery() {
                consider(now_instant + DELIVERY_RETRY);
            }
        }
        if let Some(closing) = &self.closing {
            if let Some(end) = closing.ends_by {
                consider(end);
            }
            let boundary = closing.boundary_since + BOUNDARY;
            if !self.client.told_close && boundary > now_instant {
                consider(boundary);
            }
            if let Some(given_up) = self.client_given_up_at() {
                consider(given_up);
            }
            return next;
        }
        if self.is_without_client() {
            return next;
        }
        if let Some(deadline) = self.session.deadline() {
            consider(now_instant + Duration::from_millis(deadline.saturating_sub(unix_millis())));
        }
        if self.session.unexpired_identity(unix_millis()).is_some() {
            consider(self.judged_again);
        }
        if let Some(idle) = self.idle_at() {
            consider(idle);
        }
        for side in [&self.client, &self.upstream] {
            if side.is_listened_to() {
                consider(side.answer_due.unwrap_or_else(|| side.next_ping(&self.settings)));
            }
        }
        next
    }

    /// When the client of a session that we end is given up: after a while in which it takes nothing, and however slowly
    /// it takes what there is.
    fn client_given_up_at(&self) -> Option<Instant> {
        let closing = self.closing.as_ref().filter(|_| self.over.is_none() && !self.client.shut)?;
        let latest = closing.since + self.settings.send_timeout.get();
        let quiet = self.client.waiting_since().map(|since| since.max(closing.since) + LINGER);
        Some(quiet.map_or(latest, |quiet| quiet.min(latest)))
    }

    /// Does what is due; `true` when the session is simply over.
    pub(super) fn on_time(&mut self, cx: &mut Context<'_>) -> bool {
        let now_instant = Instant::now();
        if self.closing.as_ref().and_then(|closing| closing.ends_by).is_some_and(|end| end <= now_instant) {
            return true;
        }
        if self.client_is_over() {
            return self.give_up_client(cx);
        }
        if self.upstream.takes_nothing(self.settings.send_timeout.get()) {
            self.upstream_is_dead();
        }
        if self.closing.is_some() || self.is_without_client() {
            return false;
        }
        if self.session.deadline().is_some_and(|deadline| unix_millis() >= deadline) {
            self.act_on(Event::Deadline { last_seen: self.authorizer.last_seen() });
        }
        if self.judged_again <= now_instant {
            self.judged_again = now_instant + JUDGED_AGAIN;
            if self.session.unexpired_identity(unix_millis()).is_some_and(|of| !self.authorizer.is_current(of)) {
                tracing::info!("the key of an open socket's token was withdrawn");
                self.act_on(Event::Close(CloseReason::Expired));
            }
        }
        if self.idle_at().is_some_and(|idle| idle <= now_instant) {
            self.act_on(Event::Close(CloseReason::Idle));
        }
        self.ping(now_instant) && self.give_up_client(cx)
    }

    /// Whether nothing more is to be said to the client, or it does not hear it.
    fn client_is_over(&mut self) -> bool {
        let now_instant = Instant::now();
        if self.over.is_some_and(|over| now_instant >= over) {
            // The upstream still has something to say to a client that sends no more, or would have if it were read.
            let heard = if self.upstream.is_unread { now_instant } else { self.upstream.last_heard };
            let quiet_at = heard + LINGER;
            if self.is_half_closed() && quiet_at > now_instant {
                self.over = Some(quiet_at);
            } else if self.awaits_delivery_alone() {
                // The time begins again once that is delivered.
                self.over = None;
            } else {
                return true;
            }
        }
        if self.is_half_closed() && self.client.last_heard + HALF_CLOSED <= now_instant {
            return true;
        }
        if self.client_given_up_at().is_some_and(|given_up| given_up <= now_instant) {
            let closing = self.closing.as_ref();
            let is_latest =
                closing.is_some_and(|closing| closing.since + self.settings.send_timeout.get() <= now_instant);
            return is_latest || self.client.takes_nothing(LINGER);
        }
        if self.client.takes_nothing(self.settings.send_timeout.get()) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        false
    }

    /// The client has sent its last byte without a Close, and may still be told what the upstream says.
    fn is_half_closed(&self) -> bool {
        self.client.eof
            && !self.upstream.eof
            && !self.client.said_close
            && !self.upstream.said_close
            && !self.client.shut
            && self.closing.is_none()
    }

    /// Both sides have closed within their time, and the last of what they said has not been taken yet. How long that
    /// may take is for `send_timeout` alone.
    fn awaits_delivery_alone(&mut self) -> bool {
        let has_ended = |side: &Peer| side.said_close || side.eof;
        self.closing.is_none()
            && has_ended(&self.client)
            && has_ended(&self.upstream)
            && (self.client.pending()
                || self.upstream.pending()
                || !self.client.is_delivered()
                || !self.upstream.is_delivered())
    }

    /// When it has been idle for too long. While one side takes nothing there is something under way.
    fn idle_at(&self) -> Option<Instant> {
        let idle = self.settings.idle_timeout.filter(|_| !self.client.is_unread && !self.upstream.is_unread)?;
        Some(self.last_data + idle.get())
    }

    fn upstream_is_dead(&mut self) {
        self.upstream.eof = true;
        self.upstream.give_up();
        self.act_on(Event::Close(CloseReason::UpstreamLost));
    }

    /// Pings the silent; `true` when the client is dead.
    fn ping(&mut self, now_instant: Instant) -> bool {
        let due = |side: &Peer, settings: &RelaySettings| {
            side.is_listened_to() && side.answer_due.is_none() && side.next_ping(settings) <= now_instant
        };
        let dead = |side: &Peer| side.is_listened_to() && side.answer_due.is_some_and(|due| due <= now_instant);
        if dead(&self.client) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if dead(&self.upstream) {
            self.upstream_is_dead();
            return false;
        }
        // A ping that does not fit now (a message is under way, a write waits) is tried again.
        let retry = now_instant + PING_RETRY;
        if due(&self.client, &self.settings) {
            // A control frame may stand between two fragments, and an upstream that never ends its message
            // must not keep a dead client.
            if self.from_upstream.is_between_frames() && self.upstream_control.raw.is_empty() && !self.client.pending()
            {
                self.client.was_pinged(&self.settings);
                encode(&mut self.client.out, Opcode::Ping, PING, None);
            } else {
                self.client.ping_not_before = retry;
            }
        }
        if due(&self.upstream, &self.settings) {
            let between =
                self.held.is_some() || (self.from_client.is_between_frames() && self.client_control.raw.is_empty());
            if between && !self.upstream.pending() {
                self.upstream.was_pinged(&self.settings);
                encode(&mut self.upstream.out, Opcode::Ping, PING, Some(masking_key()));
            } else {
                self.upstream.ping_not_before = retry;
            }
        }
        false
    }
}
