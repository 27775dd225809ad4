//! What waits in the model for a peer that takes nothing, and what is therefore not read from the other one.

use super::peer::Item;

/// The time after which a peer that takes nothing is given up, in milliseconds.
const SEND_TIMEOUT: u64 = 60_000;

/// What a peer whose receive window is full does to the other one: while anything waits for it, the other one is not
/// read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Window {
    pub(super) is_full: bool,
    /// Whether it was full before.
    pub(super) was_full: bool,
    /// What waits for the peer.
    pub(super) waiting: Vec<Item>,
    /// The time since which anything waits.
    pub(super) since: Option<u64>,
    /// What the other peer has sent meanwhile.
    pub(super) unread: Vec<Unread>,
}

impl Window {
    /// Returns the time at which the peer is given up.
    pub(super) fn given_up_at(&self) -> Option<u64> {
        self.since.map(|since| since + SEND_TIMEOUT)
    }

    pub(super) fn fill(&mut self) {
        (self.is_full, self.was_full) = (true, true);
    }

    pub(super) fn wait(&mut self, item: Item, now: u64) {
        self.since.get_or_insert(now);
        self.waiting.push(item);
    }

    /// Empties the window, and returns what waited.
    pub(super) fn empty(&mut self) -> Self {
        std::mem::replace(self, Self { was_full: true, ..Self::default() })
    }

    /// Forgets what waits for a peer that is given up.
    pub(super) fn give_up(&mut self) {
        *self = Self { is_full: self.is_full, was_full: self.was_full, ..Self::default() };
    }
}

/// What a peer has sent and the proxy has not read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Unread {
    Message(String),
    Refresh,
    Close,
    End,
}
