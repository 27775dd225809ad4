//! What is due when: the session's deadline, pings and their answers, idleness, writes that nobody takes,
//! and the end of every farewell.

use std::time::Duration;

use tokio::time::Instant;

use super::side::Side;
use super::{BOUNDARY, ClosedBy, JUDGED_AGAIN, LINGER, PING, Relay, Times, mask, now};
use crate::websocket::ending::Ending;
use crate::websocket::frame::{Opcode, encode};
use crate::websocket::session::Event;

/// A ping that could not be sent is tried again after this.
const PING_RETRY: Duration = Duration::from_secs(1);

impl Relay {
    /// The next moment at which something is due.
    pub(super) fn next_moment(&self) -> Instant {
        let now_instant = Instant::now();
        let mut next = now_instant + Duration::from_secs(3_600);
        let mut consider = |moment: Instant| next = next.min(moment);
        if let Some(over) = self.over {
            consider(over);
        }
        for side in [&self.client, &self.upstream] {
            if let Some(stalled) = side.stalled {
                consider(stalled + self.times.send_timeout);
            }
        }
        if let Some(farewell) = &self.farewell {
            // Past that moment only the client's own slowness is in the way, and that has its limit.
            let boundary = farewell.since + BOUNDARY;
            if !self.client.told_close && boundary > now_instant {
                consider(boundary);
            }
            return next;
        }
        if let Some(deadline) = self.session.deadline() {
            consider(now_instant + Duration::from_millis(deadline.saturating_sub(now())));
        }
        if self.session.judged_by_key(now()).is_some() {
            consider(self.judged_again);
        }
        if let Some(idle) = self.times.idle_timeout {
            consider(self.last_data + idle);
        }
        for side in [&self.client, &self.upstream] {
            if side.eof || side.told_close {
                continue;
            }
            consider(match side.pinged {
                Some(pinged) => pinged + self.times.ping_timeout,
                None => side.next_ping(&self.times),
            });
        }
        next
    }

    /// Does what is due; `true` when the session is simply over.
    pub(super) fn on_time(&mut self) -> bool {
        let now_instant = Instant::now();
        if self.over.is_some_and(|over| now_instant >= over) {
            // One side has gone without a Close, and the other still has something to say.
            let half = self.client.eof != self.upstream.eof && self.farewell.is_none();
            let talking = if self.client.eof { &self.upstream } else { &self.client };
            let quiet_at = talking.last_heard + LINGER;
            if !half || self.client.said_close || self.upstream.said_close || quiet_at <= now_instant {
                return true;
            }
            self.over = Some(quiet_at);
        }
        let stalled = |side: &Side, limit: Duration| side.stalled.is_some_and(|since| since + limit <= now_instant);
        if stalled(&self.client, self.times.send_timeout) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if stalled(&self.upstream, self.times.send_timeout) {
            self.upstream_is_dead();
        }
        if self.farewell.is_some() {
            return false;
        }
        if self.session.deadline().is_some_and(|deadline| now() >= deadline) {
            self.act_on(Event::Deadline { seen: self.judge.last_seen() });
        }
        if self.judged_again <= now_instant {
            self.judged_again = now_instant + JUDGED_AGAIN;
            if self.session.judged_by_key(now()).is_some_and(|of| !self.judge.vouches(of)) {
                tracing::info!("the key of an open socket's token was withdrawn");
                self.act_on(Event::End(Ending::Expired));
            }
        }
        if self.times.idle_timeout.is_some_and(|idle| self.last_data + idle <= now_instant) {
            self.act_on(Event::End(Ending::Idle));
        }
        self.ping(now_instant)
    }

    fn upstream_is_dead(&mut self) {
        self.upstream.eof = true;
        self.upstream.give_up();
        self.act_on(Event::End(Ending::UpstreamLost));
    }

    /// Pings the silent; `true` when the client is dead.
    fn ping(&mut self, now_instant: Instant) -> bool {
        let due = |side: &Side, times: &Times| {
            !side.eof && !side.told_close && side.pinged.is_none() && side.next_ping(times) <= now_instant
        };
        let dead = |side: &Side, times: &Times| {
            !side.eof
                && !side.told_close
                && side
                    .pinged
                    .is_some_and(|pinged| side.last_heard < pinged && pinged + times.ping_timeout <= now_instant)
        };
        if dead(&self.client, &self.times) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if dead(&self.upstream, &self.times) {
            self.upstream_is_dead();
            return false;
        }
        for side in [&mut self.client, &mut self.upstream] {
            // It spoke after our ping, so it lives, whether or not the pong was ever sent.
            if side.pinged.is_some_and(|pinged| side.last_heard >= pinged) {
                side.pinged = None;
            }
        }
        // A ping that does not fit now (a message is under way, a write waits) is tried again.
        let retry = now_instant + PING_RETRY;
        if due(&self.client, &self.times) {
            // A control frame may stand between two fragments, and an upstream that never ends its message
            // must not keep a dead client.
            if self.from_upstream.between_frames() && self.upstream_control.raw.is_empty() && !self.client.pending() {
                self.client.pinged = Some(now_instant);
                encode(&mut self.client.out, Opcode::Ping, PING, None);
            } else {
                self.client.ping_not_before = retry;
            }
        }
        if due(&self.upstream, &self.times) {
            let between =
                self.held.is_some() || (self.from_client.between_frames() && self.client_control.raw.is_empty());
            if between && !self.upstream.pending() {
                self.upstream.pinged = Some(now_instant);
                encode(&mut self.upstream.out, Opcode::Ping, PING, Some(mask()));
            } else {
                self.upstream.ping_not_before = retry;
            }
        }
        false
    }
}
