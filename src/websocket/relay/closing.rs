//! The state of a session that the proxy is ending: the frames still to be sent to its client, and the times from which
//! waiting counts.

use std::time::Duration;

use crate::runtime::Moment;

/// The time that a Close waits for the end of the upstream's message, while the client accepts the part of it that has
/// come.
pub(super) const MESSAGE_END_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for the end of the frame that the upstream is sending then: nothing can be sent inside a frame.
pub(super) const FRAME_END_TIMEOUT: Duration = Duration::from_secs(4);

/// The end of a session by the proxy.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) since: Moment,
    /// The time since which the end of the upstream's message has been awaited.
    pub(super) awaiting_message_end_since: Moment,
    /// The time at which a drain ends every socket.
    pub(super) ends_at: Option<Moment>,
    /// Whether the upstream's answers to earlier messages are still forwarded, until it has closed too.
    pub(super) awaits_upstream: bool,
    /// The error message, as a frame.
    pub(super) error: Option<Vec<u8>>,
    /// The Close, as a frame.
    pub(super) close: Vec<u8>,
}

impl Closing {
    pub(super) fn new(error: Option<Vec<u8>>, close: Vec<u8>) -> Self {
        let since = Moment::now();
        Self { since, awaiting_message_end_since: since, ends_at: None, awaits_upstream: false, error, close }
    }

    /// Returns whether the end of the upstream's message is no longer awaited.
    pub(super) fn message_end_timed_out(&self) -> bool {
        self.awaiting_message_end_since.elapsed() >= MESSAGE_END_TIMEOUT
    }

    /// Returns whether the end of the upstream's frame is no longer awaited.
    pub(super) fn frame_end_timed_out(&self) -> bool {
        self.awaiting_message_end_since.elapsed() >= FRAME_END_TIMEOUT
    }
}
