//! The state of a client direction that only some sockets need, and the memory reservation for its kept messages.

use std::sync::Arc;
use std::task::Context;

use super::guard::Guard;
use super::{FromClientInput, HANDSHAKE_BYTES};
use crate::auth::Token;
use crate::budget::{MemoryBudget, MemoryReservation};
use crate::policy::DialectSpec;
use crate::websocket::classify::Rules;

/// The length in bytes up to which kept messages do not count toward `limits.held_message_bytes`. It is part of the
/// memory that every socket may need.
const UNCOUNTED_BYTES: usize = 64 << 10;

/// The state of a client direction that only some sockets need. It is boxed, so that the others cost less memory.
#[derive(Default)]
pub(super) struct RelayExtras {
    /// The guard that recognises messages on which the upstream acts.
    pub(super) guard: Option<Guard>,
    /// The current token: messages are compared with it, or carry it to the upstream.
    pub(super) token: Option<Token>,
    /// Whether an accepted token is kept as the current one. Where messages are compared with it, the session may have begun
    /// without one: by a session cookie.
    pub(super) keeps_token: bool,
    /// The dialect in which the proxy has authenticated the user to the upstream, and forwards refreshes.
    pub(super) upstream_dialect: Option<Arc<DialectSpec>>,
    pub(super) awaiting_verdict: Option<AwaitingVerdict>,
    /// The bytes that the client sent after a message that awaits its verdict.
    pub(super) behind: Vec<u8>,
    /// The limit on the kept messages of all users, and the share of this socket.
    held_messages: MemoryBudget,
    reservation: Option<MemoryReservation>,
}

/// A message that is forwarded once its token is verified.
pub(super) struct AwaitingVerdict {
    /// The token in it. No other token that is accepted meanwhile lets the message through.
    pub(super) token: Token,
    /// Whether the token is being verified now, and none that came before it.
    pub(super) is_being_verified: bool,
    pub(super) accepted: Vec<u8>,
    /// What is forwarded if the token has expired, and the session goes on.
    pub(super) expired: Option<Vec<u8>>,
    /// The part that is forwarded if the token is refused.
    pub(super) refused: Option<Vec<u8>>,
}

impl AwaitingVerdict {
    /// Returns how much memory the message takes.
    fn memory(&self) -> usize {
        self.accepted.capacity()
            + [&self.expired, &self.refused].into_iter().flatten().map(Vec::capacity).sum::<usize>()
    }
}

impl RelayExtras {
    /// Makes the state; `None` for the sockets that need none, which are most.
    pub(super) fn new(input: FromClientInput<'_>) -> Option<Box<Self>> {
        let FromClientInput { dialect, upstream_dialect, token, message_bytes, held_messages, .. } = input;
        let reads_whole = dialect.is_some_and(|dialect| dialect.field.is_some() || dialect.forwards());
        // A handshake message of the proxy's own dialect is never longer, however long the route's messages may be.
        let max_kept_bytes = if reads_whole { message_bytes } else { message_bytes.min(HANDSHAKE_BYTES) };
        let guard =
            Rules::of(dialect, upstream_dialect.as_deref()).map(|rules| Guard::new(rules, reads_whole, max_kept_bytes));
        if guard.is_none() && token.is_none() {
            return None;
        }
        let keeps_token = token.is_some() || dialect.is_some_and(|dialect| dialect.field.is_some());
        Some(Box::new(Self { guard, token, keeps_token, upstream_dialect, held_messages, ..Self::default() }))
    }

    /// Drops the message that awaits its verdict, and the bytes that the client sent after it.
    pub(super) fn drop_queued(&mut self) {
        self.awaiting_verdict = None;
        self.behind = Vec::new();
    }

    /// Reserves memory for a message that takes `kept` bytes and for the waiting messages, under
    /// `limits.held_message_bytes`. Returns whether it was granted.
    pub(super) fn reserve(&mut self, kept: usize) -> bool {
        let awaiting = self.awaiting_verdict.as_ref().map_or(0, AwaitingVerdict::memory);
        // One message always fits, since the limit is at least `websocket.message_bytes`. The forms of one that awaits
        // its verdict, and what a buffer has in advance, may exceed it.
        let bytes = (kept + awaiting + self.behind.capacity()).min(self.held_messages.limit());
        if bytes <= UNCOUNTED_BYTES {
            self.reservation = None;
            return true;
        }
        if let Some(reservation) = &self.reservation {
            return reservation.resize(bytes);
        }
        self.reservation = self.held_messages.reserve(bytes);
        self.reservation.is_some()
    }

    /// Returns whether the reserved memory is needed for the messages of other users.
    pub(super) fn is_evicted(&self, cx: &mut Context<'_>) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| reservation.poll_evicted(cx).is_ready())
    }

    /// Releases the reserved memory.
    pub(super) fn release_memory(&mut self) {
        self.reservation = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_message_that_awaits_its_verdict_count() {
        let held_messages = MemoryBudget::default();
        held_messages.set_limit(2 << 20);
        let token = Token::parse("t", 16).expect("token");
        let awaiting = || AwaitingVerdict {
            token: token.duplicate(),
            is_being_verified: false,
            accepted: vec![0; 300_000],
            expired: Some(vec![0; 300_000]),
            refused: Some(vec![0; 200_000]),
        };
        let mut extras = RelayExtras {
            awaiting_verdict: Some(awaiting()),
            held_messages: held_messages.clone(),
            ..RelayExtras::default()
        };
        assert!(extras.reserve(0));
        assert_eq!(held_messages.reserved(), 800_000);
        extras.behind.reserve_exact(100_000);
        assert!(extras.reserve(0));
        assert_eq!(held_messages.reserved(), 900_000, "what is allocated counts");
        let other = || RelayExtras { held_messages: held_messages.clone(), ..RelayExtras::default() };
        let mut others = [other(), other()];
        assert!(others.iter_mut().all(|other| other.reserve(700_000)), "each holds less");
        assert!(!extras.reserve(1), "it must give way");
    }

    #[test]
    fn one_message_is_held_whatever_its_buffers_take() {
        let held_messages = MemoryBudget::default();
        held_messages.set_limit(1 << 20);
        let mut extras = RelayExtras { held_messages, ..RelayExtras::default() };
        assert!(extras.reserve(2 << 20));
    }
}
