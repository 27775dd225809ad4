//! The refreshes of a session. They are verified one at a time and at a limited rate; of those that wait only the newest
//! is kept, for each form of the answer.

use crate::auth::Token;
use crate::websocket::template::Copies;

/// The number of refreshes that may come at once.
pub(super) const BURST: u64 = 5;
/// The interval in milliseconds at which refreshes are verified after a burst.
const INTERVAL_MILLIS: u64 = 1_000;
/// The number of refused refreshes in a row that ends the session.
const MAX_REFUSALS: u8 = 5;

/// The form in which an accepted token is acknowledged to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledgement {
    /// The answer to `authenticate`.
    Authenticated,
    /// The answer to a refresh.
    Refreshed,
    /// No acknowledgement: the token came in a field of an application's message, which is forwarded.
    None,
}

/// A token that waits to be verified.
#[derive(Debug)]
struct QueuedToken {
    token: Token,
    acknowledgement: Acknowledgement,
    copies: Copies,
}

/// The refreshes of a session: nothing until the first one, as for most sessions.
#[derive(Debug, Default)]
pub(super) struct Refreshes(Option<Box<State>>);

/// The state of a session's refreshes. Times are milliseconds since the epoch.
#[derive(Debug, Default)]
struct State {
    verifying: Option<Acknowledgement>,
    /// The tokens that wait, in the order in which they came, at most one for each acknowledgement.
    queued: Vec<QueuedToken>,
    /// The time at which the token bucket of the rate limit is full again.
    bucket_full_at: u64,
    refused_in_a_row: u8,
    accepted: u32,
}

impl Refreshes {
    /// Returns the number of accepted refreshes.
    pub(super) fn accepted(&self) -> u32 {
        self.0.as_ref().map_or(0, |state| state.accepted)
    }

    /// Returns whether a verdict is awaited.
    pub(super) fn is_verifying(&self) -> bool {
        self.0.as_ref().is_some_and(|state| state.verifying.is_some())
    }

    /// Returns whether a token waits to be verified.
    pub(super) fn is_queued(&self) -> bool {
        self.0.as_ref().is_some_and(|state| !state.queued.is_empty())
    }

    /// Queues a token in place of the waiting one with the same acknowledgement. One with another stays: a message that is
    /// forwarded once its token is verified must not lose it to a refresh in the same text.
    pub(super) fn enqueue(&mut self, token: Token, acknowledgement: Acknowledgement, copies: Copies) {
        let queued = &mut self.0.get_or_insert_default().queued;
        queued.retain(|waiting| waiting.acknowledgement != acknowledgement);
        queued.push(QueuedToken { token, acknowledgement, copies });
    }

    /// Drops the waiting tokens. Returns what the answer to each of them copies.
    pub(super) fn clear_queue(&mut self) -> Vec<Copies> {
        let queued = self.0.as_mut().map(|state| std::mem::take(&mut state.queued)).unwrap_or_default();
        queued.into_iter().map(|waiting| waiting.copies).collect()
    }

    /// Returns the time from which the rate limit allows the next verification.
    pub(super) fn next_at(&self) -> u64 {
        self.0.as_ref().map_or(0, |state| state.bucket_full_at.saturating_sub((BURST - 1) * INTERVAL_MILLIS))
    }

    /// Takes the first queued token for verification, unless another is being verified or the rate limit forbids it.
    pub(super) fn start(&mut self, now: u64) -> Option<(Token, Copies)> {
        if self.is_verifying() || now < self.next_at() {
            return None;
        }
        let state = self.0.as_mut().filter(|state| !state.queued.is_empty())?;
        let QueuedToken { token, acknowledgement, copies } = state.queued.remove(0);
        state.bucket_full_at = state.bucket_full_at.max(now).saturating_add(INTERVAL_MILLIS);
        state.verifying = Some(acknowledgement);
        Some((token, copies))
    }

    /// Ends the verification, and returns the form in which the token is acknowledged if it was accepted.
    pub(super) fn finish(&mut self) -> Acknowledgement {
        self.0.as_mut().and_then(|state| state.verifying.take()).unwrap_or(Acknowledgement::Refreshed)
    }

    pub(super) fn count_accepted(&mut self) {
        let state = self.0.get_or_insert_default();
        state.refused_in_a_row = 0;
        state.accepted += 1;
    }

    /// Counts a refused refresh, and returns whether the session must end.
    pub(super) fn count_refused(&mut self) -> bool {
        let state = self.0.get_or_insert_default();
        state.refused_in_a_row += 1;
        state.refused_in_a_row >= MAX_REFUSALS
    }
}
