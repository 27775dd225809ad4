//! When the provider is asked again about an open session, and what its answers do (docs/contract.md section 4.5): the
//! session continues while the provider confirms it, ends when it does not, and outlives a provider that does not answer
//! for `revalidate_grace`.

use std::time::Duration;

use super::millis;
use crate::auth::{RemoteCheck, Revalidation};

/// A check that was not answered is repeated after so many milliseconds, or after the interval if that is shorter.
const RETRY: u64 = 10_000;

/// What the provider is asked about a session, and how often.
#[derive(Clone, Debug)]
pub(in crate::websocket) struct RevalidationPlan {
    /// The check.
    pub(in crate::websocket) check: RemoteCheck,
    /// The time between two checks.
    pub(in crate::websocket) interval: Duration,
    /// How long a session outlives a provider that does not answer.
    pub(in crate::websocket) grace: Duration,
}

/// What an answer does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    Continue,
    /// The provider has ended the session.
    Revoked,
    /// The provider has not answered for longer than the grace.
    Unavailable,
}

/// The state of a session's revalidation; times are milliseconds since the epoch.
#[derive(Debug)]
pub(super) struct Revalidator {
    plan: RevalidationPlan,
    next_at: u64,
    is_pending: bool,
    /// The pending check is about a token that has been renewed since.
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

    /// Returns when [`Self::start`] should be called. A pending check has a time limit of its own.
    pub(super) fn deadline(&self) -> u64 {
        if self.is_pending { u64::MAX } else { self.next_at }
    }

    /// Returns whether a check is due, which is pending from then on.
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

/// Returns when to check next: up to an eighth earlier than the interval, so that sockets that opened together do not
/// stay in step.
fn next_check(plan: &RevalidationPlan, now: u64) -> u64 {
    let interval = millis(plan.interval);
    now.saturating_add(interval - interval / 8 * (now % 128) / 128)
}
