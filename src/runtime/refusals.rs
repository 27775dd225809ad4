//! The last refusals, for whoever looks at `/status` at night: when, where and why, and the request id by which the
//! log has the rest. No token, no user, no address.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::telemetry::{AccessLine, AnsweredBy, Label, Outcome};

/// So many are kept.
const KEPT: usize = 20;

/// One of them.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// The pattern of its route.
    pub route: Label,
    /// The `outcome` of its line.
    pub outcome: Outcome,
    /// HTTP status, or the close code of a socket.
    pub code: u16,
    /// As in the log.
    pub request_id: Box<str>,
}

/// The last of them, oldest first.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    /// Keeps it where it is one of ours.
    pub fn note(&self, line: &AccessLine) {
        let code = match &line.socket {
            // One that was open, or that its client left, was not refused.
            Some(_) if !line.outcome.is_refused_socket() => return,
            Some(life) => life.close_code.unwrap_or(0),
            None if line.status < 400 || line.status == 499 => return,
            None => line.status,
        };
        if line.answered_by != AnsweredBy::Vestibule || line.is_test {
            return;
        }
        let refusal = Refusal {
            at: SystemTime::now(),
            route: Label::clone(&line.route),
            outcome: line.outcome,
            code,
            request_id: line.request_id.clone(),
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(refusal);
    }

    /// The newest first.
    #[must_use]
    pub fn newest(&self) -> Vec<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_of_ours_are_kept() {
        let refusals = Refusals::default();
        let line = |status, answered_by, request_id: &str| AccessLine {
            status,
            answered_by,
            request_id: request_id.into(),
            outcome: Outcome::Refused("missing_token"),
            ..AccessLine::default()
        };
        for (status, answered_by) in
            [(200, AnsweredBy::Vestibule), (401, AnsweredBy::Upstream), (499, AnsweredBy::Vestibule)]
        {
            refusals.note(&line(status, answered_by, "no"));
        }
        refusals.note(&AccessLine { is_test: true, ..line(401, AnsweredBy::Vestibule, "test") });
        for number in 0..25 {
            refusals.note(&line(401, AnsweredBy::Vestibule, &number.to_string()));
        }
        let ids: Vec<_> = refusals.newest().iter().map(|refusal| refusal.request_id.to_string()).collect();
        assert_eq!((ids.len(), ids[0].as_str(), ids[19].as_str()), (20, "24", "5"));
    }
}
