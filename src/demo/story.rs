//! What happened, line by line, for the demo's page: two of its three columns are told from here.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tokio::sync::watch;

use crate::telemetry::AccessLine;

/// Lines kept for a page that reconnects.
const KEPT: usize = 200;

pub(super) struct Story {
    lines: Mutex<(u64, VecDeque<(u64, String)>)>,
    last: watch::Sender<u64>,
}

impl Default for Story {
    fn default() -> Self {
        Self { lines: Mutex::default(), last: watch::Sender::new(0) }
    }
}

impl Story {
    fn tell(&self, column: &str, text: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0 += 1;
        let number = lines.0;
        lines.1.push_back((number, json!({"column": column, "text": text}).to_string()));
        if lines.1.len() > KEPT {
            lines.1.pop_front();
        }
        drop(lines);
        self.last.send_replace(number);
    }

    pub(super) fn backend_saw(&self, text: &str) {
        self.tell("backend", text);
    }

    pub(super) fn vestibule_said(&self, message: &str) {
        self.tell("vestibule", message);
    }

    pub(super) fn vestibule_answered(&self, line: &AccessLine) {
        // The page's own plumbing is no part of the story.
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
        self.tell("vestibule", &text);
    }

    /// The number of the newest line; changes are news.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Lines after this number.
    pub(super) fn since(&self, number: u64) -> Vec<(u64, String)> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.1.iter().filter(|(line, _)| *line > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_reconnects_hears_what_it_missed_and_no_more_is_kept() {
        let story = Story::default();
        for number in 0..300 {
            story.backend_saw(&number.to_string());
        }
        assert_eq!(story.since(298).len(), 2);
        assert_eq!(story.since(0).len(), KEPT);
    }
}
