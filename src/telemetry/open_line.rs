//! The values of a socket's access line that are kept while the socket is open: a third of the size of a line, since what
//! belongs to the end of a socket, to a refusal or to its task is left out.

use hyper::Method;

use super::access::AccessLine;
use super::label::Label;
use super::outcome::{AnsweredBy, Outcome};
use super::request_id::current_request_id;
use super::text::address;

/// The access line of an open socket.
#[derive(Debug)]
pub struct OpenLine {
    route: Label,
    carrier: Option<&'static str>,
    /// The client's address, the path and the user, if there is one, in one allocation.
    text: Box<str>,
    /// The end of the address in `text`, and that of the path.
    client_end: u32,
    path_end: u32,
    has_user: bool,
    answered_by: AnsweredBy,
    is_public: bool,
    quiet: bool,
    is_test: bool,
}

impl OpenLine {
    /// Keeps the values of a line whose socket is open, so that it has no values of a refusal. The request id is that of
    /// the socket's task, and the method is GET, as that of every upgrade.
    #[must_use]
    pub fn new(line: &AccessLine) -> Self {
        debug_assert_eq!(line.method, Method::GET, "only a GET is an upgrade");
        debug_assert!(matches!(line.outcome, Outcome::Accepted | Outcome::Public), "it is open");
        let mut text = String::new();
        if let Some(client) = line.client {
            address(&mut text, client);
        }
        // A head is far shorter than 4 GiB.
        let end = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
        let client_end = end(&text);
        text.push_str(&line.path);
        let path_end = end(&text);
        text.push_str(line.user.as_deref().unwrap_or_default());
        Self {
            route: Label::clone(&line.route),
            carrier: line.carrier,
            text: text.into(),
            client_end,
            path_end,
            has_user: line.user.is_some(),
            answered_by: line.answered_by,
            is_public: line.outcome == Outcome::Public,
            quiet: line.quiet,
            is_test: line.is_test,
        }
    }

    /// Returns the route's label.
    #[must_use]
    pub const fn route(&self) -> &Label {
        &self.route
    }

    /// Returns the line of a socket that has ended, in the task of the socket.
    #[must_use]
    pub fn into_line(self) -> AccessLine {
        let (before_user, user) = self.text.split_at(self.path_end as usize);
        let (client, path) = before_user.split_at(self.client_end as usize);
        AccessLine {
            request_id: current_request_id().unwrap_or_default(),
            client: client.parse().ok(),
            method: Method::GET,
            path: path.into(),
            user: self.has_user.then(|| user.to_owned()),
            route: self.route,
            answered_by: self.answered_by,
            carrier: self.carrier,
            outcome: if self.is_public { Outcome::Public } else { Outcome::Accepted },
            quiet: self.quiet,
            is_test: self.is_test,
            ..AccessLine::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{RequestId, in_request_with_id};

    #[tokio::test]
    async fn the_line_of_a_socket_that_has_ended_is_that_of_the_socket_that_was_opened() {
        for user in [None, Some(String::new()), Some("alice".to_owned())] {
            let line = AccessLine {
                request_id: RequestId::given(b"id").expect("an id"),
                client: Some([203, 0, 113, 7].into()),
                method: Method::GET,
                path: "/ws/é".into(),
                route: "/ws".into(),
                answered_by: AnsweredBy::Upstream,
                outcome: if user.is_some() { Outcome::Accepted } else { Outcome::Public },
                user,
                carrier: Some("header"),
                quiet: true,
                is_test: true,
                ..AccessLine::default()
            };
            let ended = in_request_with_id(line.request_id.clone(), async { OpenLine::new(&line).into_line() }).await;
            assert_eq!(format!("{ended:?}"), format!("{line:?}"));
        }
    }
}
