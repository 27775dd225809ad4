//! The time that passes in the model: what is due by itself, and when both connections have ended.

use super::{Contract, LINGER, PROVIDER_TIMEOUT, Phase, Verdict};

/// The time after which a client that has closed is given up, although the upstream may have more for it.
const HALF_CLOSED: u64 = 60_000;

impl Contract {
    pub(super) fn end_within_linger(&mut self) {
        self.closed_at.get_or_insert(self.now);
        let is_delivered = self.client_window.waiting.is_empty() && self.upstream_window.waiting.is_empty();
        if is_delivered || self.phase == Phase::Over {
            self.gone_by.get_or_insert(self.now + LINGER);
        } else {
            self.awaits_delivery = true;
        }
    }

    /// The time after a Close stands still while something waits for a peer.
    pub(super) fn suspend_linger(&mut self) {
        self.awaits_delivery |= self.phase == Phase::Relay && self.gone_by.take().is_some();
    }

    /// Returns the time by which the connections have ended; the upstream's lasts until it has taken what waits for it.
    fn all_gone_by(&self) -> Option<u64> {
        self.gone_by.map(|at| at.max(self.upstream_window.given_up_at().unwrap_or_default()))
    }

    /// Lets the time pass, with everything that is due meanwhile.
    pub(in super::super) fn advance(&mut self, to: u64) {
        loop {
            let due = self.next_due().filter(|due| *due <= to);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            let is_due = |at: Option<u64>| at.is_some_and(|at| at <= self.now);
            if is_due(self.question.map(|question| question.asked_at + PROVIDER_TIMEOUT)) {
                self.answer(Verdict::Late);
            } else if is_due(self.client_given_up_at()) {
                self.client_window.give_up();
                self.gone_by.get_or_insert(self.now);
                self.finish();
            } else if is_due(self.upstream_window.given_up_at()) {
                self.upstream_window.give_up();
                self.upstream_is_told = true;
                self.end(None, 1011);
            } else if is_due(self.gone_by) {
                self.finish();
            } else if self.phase == Phase::Pending {
                self.end(Some("Authentication timeout"), 1008);
            } else if self.phase == Phase::Dialing {
                self.end(Some("Upstream unavailable"), 1011);
            } else {
                self.end(Some("Token expired"), 4401);
            }
        }
        self.now = to;
    }

    /// Returns the time at which a client that takes nothing is given up, or one of which only one side has closed.
    fn client_given_up_at(&self) -> Option<u64> {
        if self.phase == Phase::Over {
            return self.client_window.since.and(self.gone_by);
        }
        let is_half_closed = (self.client.close || self.client.end) != self.upstream.close && !self.upstream.end;
        let half_closed = self.closed_at.filter(|_| is_half_closed).map(|at| at + HALF_CLOSED);
        self.client_window.given_up_at().into_iter().chain(half_closed).min()
    }

    /// Returns the next time at which something happens by itself.
    fn next_due(&self) -> Option<u64> {
        let question = self.question.map(|question| question.asked_at + PROVIDER_TIMEOUT);
        let phase = match self.phase {
            Phase::Pending | Phase::Dialing => Some(self.until),
            Phase::Relay if self.question.is_some() => self.gone_by,
            Phase::Relay => Some(self.gone_by.map_or(self.session_end, |at| at.min(self.session_end))),
            Phase::Verifying | Phase::Over => None,
        };
        let windows = [self.client_given_up_at(), self.upstream_window.given_up_at()];
        question.into_iter().chain(phase).chain(windows.into_iter().flatten()).min()
    }

    /// Lets the time pass until both connections have ended, and returns the latest time at which that may be.
    pub(in super::super) fn advance_to_end(&mut self) -> u64 {
        loop {
            if self.phase == Phase::Over
                && self.question.is_none()
                && let Some(at) = self.all_gone_by()
            {
                let at = at.max(self.now);
                self.now = at;
                return at;
            }
            let due = self.next_due().expect("something ends it");
            self.advance(due);
        }
    }
}
