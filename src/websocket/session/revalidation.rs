//! The revalidation of an open session by its provider (docs/contract.md section 4.5). The session continues while the
//! provider confirms it, ends when the provider denies it, and continues for `revalidate_grace` while the provider does
//! not answer.

use std::time::Duration;

use super::millis;
use crate::auth::{RemoteCheck, Revalidation};

/// The time in milliseconds after which an unanswered check is repeated, unless the interval is shorter.
const RETRY: u64 = 10_000;

/// The check that the provider is asked, and its interval.
#[derive(Clone, Debug)]
pub(in crate::websocket) struct RevalidationPlan {
    /// The check to ask the provider.
    pub(in crate::websocket) check: RemoteCheck,
    /// The time between two checks.
    pub(in crate::websocket) interval: Duration,
    /// The time that a session continues while the provider does not answer.
    pub(in crate::websocket) grace: Duration,
}

/// The consequence of an answer for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    Continue,
    /// The provider has ended the session.
    Revoked,
    /// The provider has not answered for longer than the grace.
    Unavailable,
}

/// The state of a session's revalidation. Times are milliseconds since the epoch.
#[derive(Debug)]
pub(super) struct Revalidator {
    plan: RevalidationPlan,
    next_at: u64,
    is_pending: bool,
    /// Whether the pending check is about a token that has been renewed since.
    is_superseded: bool,
    unavailable_since: Option<u64>,
}

impl Revalidator {
    pub(super) fn new(plan: RevalidationPlan, now: u64) -> Self {
        let next_at = next_check(&plan, now);
        Self { plan, next_at, is_pending: false, is_superseded: false, unavailable_since: None }
    }

    /// Replaces the plan after the token was renewed. The answer to a pending check no longer counts.
    pub(super) fn renewed(self, plan: RevalidationPlan, now: u64) -> Self {
        let next_at = next_check(&plan, now);
        let is_pending = self.is_pending;
        Self { plan, next_at, is_pending, is_superseded: is_pending, unavailable_since: None }
    }

    pub(super) fn check(&self) -> &RemoteCheck {
        &self.plan.check
    }

    /// Returns the time of the next call of [`Self::start`]. A pending check has a timeout of its own.
    pub(super) fn deadline(&self) -> u64 {
        if self.is_pending { u64::MAX } else { self.next_at }
    }

    /// Returns whether a check is due. It is pending from then on.
    pub(super) fn start(&mut self, now: u64) -> bool {
        let is_due = !self.is_pending && now >= self.next_at;
        self.is_pending |= is_due;
        is_due
    }

    pub(super) fn answered(&mut self, answer: &Revalidation, now: u64) -> Consequence {
        self.is_pending = false;
        if std::mem::take(&mut self.is_superseded) {
            return Consequence::Continue;
        }
        match answer {
            Revalidation::Active => {
                self.unavailable_since = None;
                self.next_at = next_check(&self.plan, now);
                Consequence::Continue
            }
            Revalidation::Revoked => Consequence::Revoked,
            Revalidation::Unavailable => {
                let since = *self.unavailable_since.get_or_insert(now);
                let grace_end = since.saturating_add(millis(self.plan.grace));
                if now >= grace_end {
                    return Consequence::Unavailable;
                }
                self.next_at = grace_end.min(now.saturating_add(RETRY.min(millis(self.plan.interval))));
                Consequence::Continue
            }
        }
    }
}

/// Returns the time of the next check: up to an eighth earlier than the interval, so that sockets that opened together
/// are checked at different times.
fn next_check(plan: &RevalidationPlan, now: u64) -> u64 {
    let interval = millis(plan.interval);
    now.saturating_add(interval - interval / 8 * (now % 128) / 128)
}
