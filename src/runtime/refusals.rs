//! The latest refusals, for `/status`: time, route, reason, and the request id that finds the details in the log. They
//! hold no token, no query and no address.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::telemetry::{AccessLine, AnsweredBy, Label, Outcome, RequestId, printable};

/// The number of refusals that are kept of clients, and the same number of `vestibule doctor`.
const MAX_REFUSALS: usize = 20;

/// One refusal.
#[derive(Clone, Debug)]
pub struct RecentRefusal {
    /// The time of the refusal.
    pub at: SystemTime,
    /// The path without its query, truncated and without tokens.
    pub path: Box<str>,
    /// The pattern of the route.
    pub route: Label,
    /// The `outcome` of the access line.
    pub outcome: Outcome,
    /// The HTTP status, or the close code of a socket.
    pub code: u16,
    /// The request id, as in the log.
    pub request_id: RequestId,
    /// Whether the request declares itself a test of `vestibule doctor`.
    pub is_test: bool,
}

/// The maximum length of a path, in bytes.
const MAX_PATH_BYTES: usize = 120;

/// Returns a path as the status page may show it: without its query, which `log.query` adds to access lines.
fn shown_path(path: &str) -> Box<str> {
    let path = path.split('?').next().unwrap_or_default();
    let shown = printable(path, MAX_PATH_BYTES);
    if shown.len() < path.len() && !shown.contains("[token]") { format!("{shown}…").into() } else { shown.into() }
}

/// The latest refusals.
#[derive(Debug, Default)]
pub struct RecentRefusals(Mutex<Kept>);

/// The refusals, oldest first. Tests are kept apart, so that a run of `vestibule doctor` does not displace the refusals
/// of clients. Anyone on this machine can declare a request a test, so tests are shown too.
#[derive(Debug, Default)]
struct Kept {
    of_clients: VecDeque<RecentRefusal>,
    of_tests: VecDeque<RecentRefusal>,
}

impl RecentRefusals {
    /// Keeps a refusal. Returns `false` for the line of an accepted request or socket, or of a request that the upstream
    /// answered.
    pub fn record(&self, line: &AccessLine) -> bool {
        let code = match &line.socket {
            // A socket that was open, or that its client closed first, was not refused.
            Some(_) if !line.outcome.is_refused_socket() => return false,
            Some(life) => life.close_code.unwrap_or(0),
            None if line.status < 400 || line.status == 499 => return false,
            None => line.status,
        };
        // The upstream's own answer to a request is its own affair. A page sees its refusal of a socket as ours.
        if line.answered_by != AnsweredBy::Vestibule && line.socket.is_none() {
            return false;
        }
        let refusal = RecentRefusal {
            at: SystemTime::now(),
            path: shown_path(&line.path),
            route: Label::clone(&line.route),
            outcome: line.outcome,
            code,
            request_id: line.request_id.clone(),
            is_test: line.is_test,
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = if line.is_test { &mut kept.of_tests } else { &mut kept.of_clients };
        if kept.len() == MAX_REFUSALS {
            kept.pop_front();
        }
        kept.push_back(refusal);
        true
    }

    /// Returns the refusals, newest first.
    #[must_use]
    pub fn newest(&self) -> Vec<RecentRefusal> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = kept.of_clients.iter().chain(&kept.of_tests).rev().cloned().collect();
        drop(kept);
        // A stable sort: refusals of one moment stay in their order.
        all.sort_by_key(|refusal| std::cmp::Reverse(refusal.at));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_without_query_and_tokens_and_truncated() {
        let token = format!("eyJhbGciOiJub25lIn0.{}.c2ln", "eyJzdWIiOiJhbGljZSJ9".repeat(4));
        for (path, expected) in [
            ("/a/b", "/a/b".to_owned()),
            ("/a?secret=1", "/a".to_owned()),
            (&format!("/x/{token}/y"), "/x/[token]/y".to_owned()),
            (&format!("/{}", "a".repeat(500)), format!("/{}…", "a".repeat(MAX_PATH_BYTES - 1))),
        ] {
            assert_eq!(&*shown_path(path), expected);
        }
    }

    #[test]
    fn the_latest_twenty_are_kept_without_those_of_the_upstream() {
        let refusals = RecentRefusals::default();
        let line = |status, answered_by, request_id: &str| AccessLine {
            status,
            answered_by,
            request_id: RequestId::given(request_id.as_bytes()).expect("well-formed"),
            outcome: Outcome::Refused("missing_token"),
            ..AccessLine::default()
        };
        for (status, answered_by) in
            [(200, AnsweredBy::Vestibule), (401, AnsweredBy::Upstream), (499, AnsweredBy::Vestibule)]
        {
            refusals.record(&line(status, answered_by, "no"));
        }
        for number in 0..25 {
            refusals.record(&line(401, AnsweredBy::Vestibule, &number.to_string()));
        }
        // Refusals that declare themselves tests displace no others, and are not hidden.
        for number in 0..25 {
            let line = line(401, AnsweredBy::Vestibule, &format!("test-{number}"));
            assert!(refusals.record(&AccessLine { is_test: true, ..line }));
        }
        let newest = refusals.newest();
        let ids = |is_test: bool| -> Vec<_> {
            let of_kind = newest.iter().filter(|refusal| refusal.is_test == is_test);
            of_kind.map(|refusal| refusal.request_id.to_string()).collect()
        };
        let (clients, tests) = (ids(false), ids(true));
        assert_eq!((clients.len(), clients[0].as_str(), clients[19].as_str()), (20, "24", "5"));
        assert_eq!((tests.len(), tests[0].as_str(), tests[19].as_str()), (20, "test-24", "test-5"));
        assert!(newest.is_sorted_by(|a, b| a.at >= b.at));
    }
}
