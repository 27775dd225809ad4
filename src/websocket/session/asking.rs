//! When the provider is asked again about a session that is open, and what its answers do (docs/contract.md
//! section 4.5): a yes keeps it, a no ends it, and silence is borne for `revalidate_grace`.

use std::time::Duration;

use super::millis;
use crate::auth::{RemoteCheck, Revalidation};

/// A question that was not answered is asked again after this, or sooner where it is asked more often.
const RETRY: u64 = 10_000;

/// That, and how often, the provider is asked about this session.
#[derive(Clone, Debug)]
pub struct Again {
    /// What it is asked.
    pub question: RemoteCheck,
    /// How often.
    pub every: Duration,
    /// How long a provider that does not answer is borne.
    pub grace: Duration,
}

/// What an answer does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    GoesOn,
    Ended,
    /// Nobody has answered for too long.
    Unanswered,
}

/// The state of asking; moments in milliseconds.
#[derive(Debug)]
pub(super) struct Asking {
    again: Again,
    at: u64,
    under_way: bool,
    /// The question under way is about a token that has been renewed since.
    superseded: bool,
    silent_since: Option<u64>,
}

impl Asking {
    pub(super) fn new(again: Again, now: u64) -> Self {
        let at = next(&again, now);
        Self { again, at, under_way: false, superseded: false, silent_since: None }
    }

    /// A renewed token: what is under way no longer counts.
    pub(super) fn renewed(self, again: Again, now: u64) -> Self {
        let at = next(&again, now);
        Self { again, at, under_way: self.under_way, superseded: self.under_way, silent_since: None }
    }

    pub(super) fn question(&self) -> &RemoteCheck {
        &self.again.question
    }

    /// When [`Self::begins`] is worth calling; the question itself has a bound of its own.
    pub(super) fn deadline(&self) -> u64 {
        if self.under_way { u64::MAX } else { self.at }
    }

    /// Whether it is time to ask; then a question is under way.
    pub(super) fn begins(&mut self, now: u64) -> bool {
        let begins = !self.under_way && now >= self.at;
        self.under_way |= begins;
        begins
    }

    pub(super) fn answered(&mut self, answer: &Revalidation, now: u64) -> Consequence {
        self.under_way = false;
        if std::mem::take(&mut self.superseded) {
            return Consequence::GoesOn;
        }
        match answer {
            Revalidation::Active => {
                self.silent_since = None;
                self.at = next(&self.again, now);
                Consequence::GoesOn
            }
            Revalidation::Revoked => Consequence::Ended,
            Revalidation::Unavailable => {
                let last_moment = self.silent_since.get_or_insert(now).saturating_add(millis(self.again.grace));
                if now >= last_moment {
                    return Consequence::Unanswered;
                }
                self.at = last_moment.min(now.saturating_add(RETRY.min(millis(self.again.every))));
                Consequence::GoesOn
            }
        }
    }
}

/// Up to an eighth earlier than the interval, so that sockets that began together do not ask together for ever.
fn next(again: &Again, now: u64) -> u64 {
    let every = millis(again.every);
    now.saturating_add(every - every / 8 * (now % 128) / 128)
}
