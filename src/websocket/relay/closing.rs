//! A session that the proxy is ending: what is still sent to its client, and since when.

use std::time::Duration;

use tokio::time::Instant;

/// How long a Close waits for the end of the upstream's message, while the client takes what there is of it.
pub(super) const MESSAGE_END_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of a session by the proxy.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) since: Instant,
    /// Since when the end of the upstream's message is awaited.
    pub(super) awaiting_message_end_since: Instant,
    /// When a drain ends every socket.
    pub(super) ends_at: Option<Instant>,
    /// What the upstream answers to messages before the end is still forwarded, until it has closed too.
    pub(super) awaits_upstream: bool,
    /// The error message, as a frame.
    pub(super) error: Option<Vec<u8>>,
    /// The Close, as a frame.
    pub(super) close: Vec<u8>,
}

impl Closing {
    pub(super) fn new(error: Option<Vec<u8>>, close: Vec<u8>) -> Self {
        let since = Instant::now();
        Self { since, awaiting_message_end_since: since, ends_at: None, awaits_upstream: false, error, close }
    }

    /// Returns whether a message that the upstream has not ended is no longer awaited.
    pub(super) fn message_end_timed_out(&self) -> bool {
        self.awaiting_message_end_since.elapsed() >= MESSAGE_END_TIMEOUT
    }
}
