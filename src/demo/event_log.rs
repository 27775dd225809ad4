//! The log of the events at proxy and backend, line by line, for two of the three columns of the demo's page.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tokio::sync::watch;

use crate::telemetry::AccessLine;

/// The number of lines kept for a page that reconnects.
const MAX_LINES: usize = 200;

/// The numbered lines, the newest last.
pub(super) struct EventLog {
    lines: Mutex<(u64, VecDeque<(u64, String)>)>,
    last: watch::Sender<u64>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { lines: Mutex::default(), last: watch::Sender::new(0) }
    }
}

impl EventLog {
    fn push(&self, column: &str, text: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0 += 1;
        let number = lines.0;
        lines.1.push_back((number, json!({"column": column, "text": text}).to_string()));
        if lines.1.len() > MAX_LINES {
            lines.1.pop_front();
        }
        drop(lines);
        self.last.send_replace(number);
    }

    /// Adds a line to the column *backend saw*.
    pub(super) fn push_backend(&self, text: &str) {
        self.push("backend", text);
    }

    /// Adds a log line of the proxy to the column *Vestibule did*.
    pub(super) fn push_message(&self, message: &str) {
        self.push("vestibule", message);
    }

    /// Adds an access line to the column *Vestibule did*.
    pub(super) fn push_access(&self, line: &AccessLine) {
        // The page's own requests are left out.
        if &*line.path == "/" || line.path.starts_with("/demo/") || &*line.path == "/favicon.ico" {
            return;
        }
        let user = line.user.as_deref().map_or(String::new(), |user| format!(", user {user}"));
        let text = match &line.socket {
            Some(socket) => {
                let code = socket.close_code.map_or(String::new(), |code| format!(" with {code}"));
                format!("socket {} ended by {}{code}{user}", line.path, socket.closed_by)
            }
            None => format!("{} {} → {} {}{user}", line.method, line.path, line.status, line.outcome),
        };
        self.push("vestibule", &text);
    }

    /// Returns the number of the newest line, which changes with each line.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Returns the lines after this number.
    pub(super) fn since(&self, number: u64) -> Vec<(u64, String)> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.iter().filter(|(line, _)| *line > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_reconnects_gets_the_lines_it_missed_and_the_log_is_bounded() {
        let log = EventLog::default();
        for number in 0..300 {
            log.push_backend(&number.to_string());
        }
        assert_eq!(log.since(298).len(), 2);
        assert_eq!(log.since(0).len(), MAX_LINES);
    }
}
