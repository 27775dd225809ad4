//! Detects that the client of a pending socket without `auth_timeout` has gone, or is too slow to complete its message.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::SocketLimits;

/// The time within which a first message that has begun must be complete.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The finding when a deadline has passed.
pub(super) enum LivenessDue {
    Ping,
    /// A message that has begun is not complete in time.
    SlowMessage,
    /// The client has not answered a ping.
    Gone,
}

/// The timers for one client.
pub(super) struct Liveness {
    limits: Arc<SocketLimits>,
    last_received: Instant,
    pinged: Option<Instant>,
    message_begun: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(limits: Arc<SocketLimits>) -> Self {
        Self { limits, last_received: Instant::now(), pinged: None, message_begun: None }
    }

    /// Records that the client has sent something.
    pub(super) fn received(&mut self) {
        (self.last_received, self.pinged) = (Instant::now(), None);
    }

    /// Returns the time at which [`Self::due`] must be called.
    pub(super) fn deadline(&mut self, is_in_message: bool) -> Instant {
        if is_in_message {
            self.message_begun.get_or_insert_with(Instant::now);
        } else {
            self.message_begun = None;
        }
        let silence = match self.pinged {
            Some(pinged) => pinged + self.limits.ping_timeout,
            None => self.last_received + self.limits.ping_interval,
        };
        self.message_begun.map_or(silence, |begun| silence.min(begun + MESSAGE_TIMEOUT))
    }

    /// Returns what is due now that the deadline has passed.
    pub(super) fn due(&mut self) -> LivenessDue {
        if self.message_begun.is_some_and(|begun| begun + MESSAGE_TIMEOUT <= Instant::now()) {
            return LivenessDue::SlowMessage;
        }
        if self.pinged.is_some() {
            return LivenessDue::Gone;
        }
        self.pinged = Some(Instant::now());
        LivenessDue::Ping
    }
}
