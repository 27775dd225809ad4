//! Browser sessions that their users have ended. The number is limited, in all and per user; at a user's limit one
//! entry that ends all sessions the user began before that moment replaces the single ones.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::RevocationKey;

/// Limits on the number of sign-outs that are kept.
#[derive(Clone, Copy, Debug)]
pub struct SignOutLimits {
    /// For all users together, `limits.sign_outs`.
    pub all: usize,
    /// For one user, `limits.sign_outs_per_user`.
    pub per_user: usize,
}

/// The keys by which a browser session is ended. A WebSocket that was opened with its cookie keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BrowserSessionKeys {
    pub(super) owner: RevocationKey,
    pub(super) session: RevocationKey,
    /// Milliseconds since the epoch.
    pub(super) began: u64,
}

/// The entry that a sign-out created, and until when it is kept, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordedSignOut {
    /// An entry for this session.
    Session { until: u64 },
    /// An entry for all sessions that the user began before now.
    AllBefore { until: u64 },
}

/// The sign-outs of one user.
#[derive(Debug, Default)]
struct UserSignOuts {
    /// Ends all sessions begun until this moment, milliseconds since the epoch; with the time until which that is kept.
    before: Option<(u64, u64)>,
    /// Single sessions, each with the time until which its entry is kept.
    sessions: Vec<(RevocationKey, u64)>,
}

impl UserSignOuts {
    fn len(&self) -> usize {
        self.sessions.len() + usize::from(self.before.is_some())
    }

    /// Removes expired entries.
    fn remove_expired(&mut self, now: u64) {
        self.sessions.retain(|(_, until)| *until > now);
        self.before = self.before.filter(|(_, until)| *until > now);
    }
}

/// All sign-outs.
#[derive(Debug, Default)]
pub(super) struct SignOuts {
    by_owner: RwLock<HashMap<RevocationKey, UserSignOuts>>,
    /// The number of entries, so that requests need not take the lock while there are none.
    count: AtomicUsize,
    /// When expired entries were last removed at the limit, Unix seconds; that is done at most once a second.
    swept_at: AtomicU64,
}

impl SignOuts {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether a session has ended. `now` in Unix seconds.
    pub(super) fn has_ended(&self, of: &BrowserSessionKeys, now: u64) -> bool {
        if self.count() == 0 {
            return false;
        }
        let by_owner = self.by_owner.read().unwrap_or_else(PoisonError::into_inner);
        by_owner.get(&of.owner).is_some_and(|owned| {
            owned.before.is_some_and(|(at, until)| until > now && of.began <= at)
                || owned.sessions.iter().any(|(session, until)| *session == of.session && *until > now)
        })
    }

    /// Ends a session at `now_ms` and keeps that until `until`. Returns `None` when the limit is reached.
    pub(super) fn end(
        &self,
        of: &BrowserSessionKeys,
        now_ms: u64,
        until: u64,
        limits: SignOutLimits,
    ) -> Option<RecordedSignOut> {
        let now = now_ms / 1_000;
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        let known = by_owner.get_mut(&of.owner);
        if let Some((_, known)) = known.and_then(|owned| owned.sessions.iter_mut().find(|(id, _)| *id == of.session)) {
            *known = until.max(*known);
            return Some(RecordedSignOut::Session { until: *known });
        }
        let mut count = self.count();
        if count >= limits.all {
            if self.swept_at.swap(now, Ordering::Relaxed) == now {
                return None;
            }
            by_owner.retain(|_, owned| {
                owned.remove_expired(now);
                owned.len() > 0
            });
            count = by_owner.values().map(UserSignOuts::len).sum();
            self.count.store(count, Ordering::Release);
            if count >= limits.all {
                return None;
            }
        }
        let owned = by_owner.entry(of.owner).or_default();
        count -= owned.len();
        owned.remove_expired(now);
        let kept = if owned.sessions.len() >= limits.per_user {
            let untils = owned.sessions.iter().map(|(_, until)| *until).chain(owned.before.map(|(_, until)| until));
            let until = untils.fold(until, u64::max);
            // A clock that was set back must not shorten an earlier sign-out.
            let at = owned.before.map_or(now_ms, |(at, _)| at.max(now_ms)).max(of.began);
            *owned = UserSignOuts { before: Some((at, until)), sessions: Vec::new() };
            RecordedSignOut::AllBefore { until }
        } else {
            owned.sessions.push((of.session, until));
            RecordedSignOut::Session { until }
        };
        count += owned.len();
        self.count.store(count, Ordering::Release);
        Some(kept)
    }

    /// Restores the sign-out of one session from the file.
    pub(super) fn restore_session(&self, of: &BrowserSessionKeys, until: u64) {
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        by_owner.entry(of.owner).or_default().sessions.push((of.session, until));
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Restores the sign-out of all sessions of a user from the file.
    pub(super) fn restore_all_before(&self, owner: RevocationKey, at: u64, until: u64) {
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        let owned = by_owner.entry(owner).or_default();
        let former = owned.len();
        owned.before = Some((at, until));
        self.count.fetch_add(owned.len() - former, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SignOutLimits = SignOutLimits { all: 10, per_user: 3 };

    fn session(owner: u64, id: u64, began: u64) -> BrowserSessionKeys {
        BrowserSessionKeys { owner: RevocationKey(owner, 0), session: RevocationKey(id, 1), began }
    }

    #[test]
    fn beyond_a_user_s_limit_one_entry_ends_all_sessions_begun_before() {
        let ended = SignOuts::default();
        for id in 0..3 {
            let kept = ended.end(&session(1, id, 100), 5_000, 50 + id, LIMITS);
            assert_eq!(kept, Some(RecordedSignOut::Session { until: 50 + id }));
        }
        assert!(!ended.has_ended(&session(1, 9, 4_000), 5), "another of the same user's");
        assert_eq!(ended.end(&session(1, 3, 100), 6_000, 40, LIMITS), Some(RecordedSignOut::AllBefore { until: 52 }));
        assert_eq!(ended.count(), 1);
        for id in [0, 3, 9] {
            assert!(ended.has_ended(&session(1, id, 6_000), 6) && !ended.has_ended(&session(1, id, 6_000), 52), "{id}");
        }
        assert!(!ended.has_ended(&session(1, 9, 6_001), 6), "one begun since");
        assert!(!ended.has_ended(&session(2, 0, 100), 6), "another user's");
    }

    #[test]
    fn when_full_nothing_is_ended_and_what_is_over_makes_room() {
        let ended = SignOuts::default();
        for owner in 0..10 {
            assert!(ended.end(&session(owner, 1, 0), 1_000, 100, LIMITS).is_some());
        }
        assert_eq!(ended.end(&session(11, 1, 0), 1_000, 200, LIMITS), None);
        assert!(!ended.has_ended(&session(11, 1, 0), 1));
        let again = ended.end(&session(3, 1, 0), 1_000, 150, LIMITS);
        assert_eq!(again, Some(RecordedSignOut::Session { until: 150 }), "one that has ended needs no room");
        assert!(ended.end(&session(11, 1, 0), 100_000, 200, LIMITS).is_some(), "nine are over");
        assert_eq!(ended.count(), 2);
    }
}
