//! Browser sessions that their users have ended. The number is limited, in total and per user. At a user's limit one
//! entry that ends all sessions that the user began before it replaces the single ones.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::entry::{EntryKind, SharedEntry};
use crate::auth::revocation_keys::{BrowserSessionKeys, RevocationKey};

/// Limits on the number of sign-outs that are kept.
#[derive(Clone, Copy, Debug)]
pub struct SignOutLimits {
    /// The maximum for all users together, `limits.sign_outs`.
    pub all: usize,
    /// The maximum for one user, `limits.sign_outs_per_user`.
    pub per_user: usize,
}

/// The entry that a sign-out created, with the Unix time in seconds until which it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordedSignOut {
    /// An entry for this session.
    Session { until: u64 },
    /// An entry for all sessions that the user began until `at`, in milliseconds since the epoch.
    AllBefore { at: u64, until: u64 },
}

/// The entries that a sign-out added, and those that it replaced.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) added: Vec<SharedEntry>,
    pub(super) removed: Vec<SharedEntry>,
}

impl Change {
    fn extend(&mut self, later: Self) {
        self.added.extend(later.added);
        self.removed.extend(later.removed);
    }
}

/// The time of a sign-out in milliseconds since the epoch, and the Unix time in seconds until which it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EndedAt {
    at: u64,
    until: u64,
}

impl EndedAt {
    /// Returns the later time and the later end of two: a clock that was set back must not shorten an earlier sign-out.
    fn merged(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), until: self.until.max(other.until) }
    }

    /// Returns whether an entry that ends all sessions includes this one.
    fn is_covered_by(self, all: Self) -> bool {
        self.at <= all.at && self.until <= all.until
    }
}

/// The number of entries, and of those that count toward the limits: a sign-out may have one entry for its session and
/// one for its browser.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    entries: usize,
    counted: usize,
}

/// The sign-outs of one user.
#[derive(Debug, Default)]
struct UserSignOuts {
    /// The entry that ends all sessions begun until its time.
    before: Option<EndedAt>,
    /// The entries of single sessions, and of all sessions of a browser.
    sessions: Vec<(RevocationKey, EndedAt)>,
}

impl UserSignOuts {
    fn size(&self) -> Size {
        let before = usize::from(self.before.is_some());
        Size { entries: self.sessions.len() + before, counted: self.counted_sessions() + before }
    }

    /// Returns the number of sign-outs with an entry of their own.
    fn counted_sessions(&self) -> usize {
        self.sessions.iter().filter(|(key, _)| !key.is_of_browser()).count()
    }

    fn get(&self, session: RevocationKey) -> Option<EndedAt> {
        self.sessions.iter().find(|(known, _)| *known == session).map(|(_, ended)| *ended)
    }

    /// Removes expired entries.
    fn remove_expired(&mut self, now: u64) {
        self.sessions.retain(|(_, ended)| ended.until > now);
        self.before = self.before.filter(|ended| ended.until > now);
    }

    /// Returns the Unix time in seconds at which the first entry ends.
    fn first_end(&self) -> Option<u64> {
        self.sessions.iter().map(|(_, ended)| ended.until).chain(self.before.map(|ended| ended.until)).min()
    }

    fn entries(&self, owner: RevocationKey) -> impl Iterator<Item = SharedEntry> {
        let sessions = self.sessions.iter().map(move |(session, ended)| single(owner, *session, *ended));
        sessions.chain(self.before.map(|ended| all_before(owner, ended)))
    }

    /// Adds an entry of any source. The result does not depend on the order of the entries.
    fn merge(&mut self, entry: &SharedEntry) -> Change {
        let (owner, ended) = (entry.owner, EndedAt { at: entry.at, until: entry.until });
        let mut change = Change::default();
        if entry.kind == EntryKind::AllSessions {
            let merged = self.before.map_or(ended, |known| known.merged(ended));
            if self.before == Some(merged) {
                return change;
            }
            change.removed.extend(self.before.map(|known| all_before(owner, known)));
            self.before = Some(merged);
            change.added.push(all_before(owner, merged));
            self.sessions.retain(|(session, known)| {
                let is_covered = known.is_covered_by(merged);
                if is_covered {
                    change.removed.push(single(owner, *session, *known));
                }
                !is_covered
            });
            return change;
        }
        if self.before.is_some_and(|all| ended.is_covered_by(all)) {
            return change;
        }
        if let Some((_, known)) = self.sessions.iter_mut().find(|(session, _)| *session == entry.key) {
            let merged = known.merged(ended);
            if *known != merged {
                change.removed.push(single(owner, entry.key, *known));
                change.added.push(single(owner, entry.key, merged));
                *known = merged;
            }
        } else {
            self.sessions.push((entry.key, ended));
            change.added.push(single(owner, entry.key, ended));
        }
        change
    }
}

fn single(owner: RevocationKey, key: RevocationKey, EndedAt { at, until }: EndedAt) -> SharedEntry {
    SharedEntry { kind: EntryKind::SignOut, owner, key, at, until }
}

fn all_before(owner: RevocationKey, EndedAt { at, until }: EndedAt) -> SharedEntry {
    SharedEntry { kind: EntryKind::AllSessions, owner, key: RevocationKey::default(), at, until }
}

/// All sign-outs.
#[derive(Debug, Default)]
pub(super) struct SignOuts {
    by_owner: RwLock<HashMap<RevocationKey, UserSignOuts>>,
    /// The number of entries, so that requests need not take the lock while there are none.
    entries: AtomicUsize,
    /// The number of entries that count toward the limits.
    counted: AtomicUsize,
    /// The Unix time in seconds at which expired entries were last removed at the limit. They are removed at most once
    /// a second.
    swept_at: AtomicU64,
    /// The Unix time in seconds at which the first entry ends, or earlier.
    first_end: AtomicU64,
}

impl SignOuts {
    /// Returns the number of entries that count toward the limits.
    pub(super) fn count(&self) -> usize {
        self.counted.load(Ordering::Acquire)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    /// Updates the numbers by a change of one user's entries, whose lock the caller holds.
    fn resize(&self, former: Size, now: Size) {
        for (number, former, now) in
            [(&self.entries, former.entries, now.entries), (&self.counted, former.counted, now.counted)]
        {
            number.store((number.load(Ordering::Acquire) + now).saturating_sub(former), Ordering::Release);
        }
    }

    /// Returns whether a session has ended. `now` is in Unix seconds.
    pub(super) fn has_ended(&self, of: &BrowserSessionKeys, now: u64) -> bool {
        if self.is_empty() {
            return false;
        }
        let by_owner = self.by_owner.read().unwrap_or_else(PoisonError::into_inner);
        by_owner.get(&of.owner).is_some_and(|owned| {
            owned.before.is_some_and(|all| all.until > now && of.began <= all.at)
                || owned.sessions.iter().any(|(session, ended)| {
                    (*session == of.session || Some(*session) == of.browser) && ended.until > now
                })
        })
    }

    /// Ends a session at `now_ms`, with those of its browser if the keys name one, and keeps the entries until `until`. At
    /// the user's limit it ends all sessions that the user began until `all_until`, milliseconds since the epoch; where that
    /// is before `now_ms`, the entries of sessions that ended later stay. Returns `None` when the limit of all is reached.
    pub(super) fn end(
        &self,
        of: &BrowserSessionKeys,
        now_ms: u64,
        all_until: u64,
        until: u64,
        limits: SignOutLimits,
    ) -> Option<(RecordedSignOut, Change)> {
        let now = now_ms / 1_000;
        // A session may have begun at an instance whose clock is ahead of this one.
        let ended = EndedAt { at: now_ms.max(of.began), until };
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        let is_known = by_owner.get(&of.owner).is_some_and(|owned| owned.get(of.session).is_some());
        if !is_known && self.count() >= limits.all {
            if self.swept_at.swap(now, Ordering::Relaxed) == now {
                return None;
            }
            if self.remove_expired_from(&mut by_owner, now) >= limits.all {
                return None;
            }
        }
        self.first_end.fetch_min(until, Ordering::Relaxed);
        let owned = by_owner.entry(of.owner).or_default();
        let former = owned.size();
        if !is_known {
            owned.remove_expired(now);
        }
        let (kept, change) = if !is_known && owned.counted_sessions() >= limits.per_user {
            let first = EndedAt { at: all_until.max(of.began), until };
            let sessions = owned.sessions.iter().map(|(_, ended)| *ended);
            let included = sessions.filter(|ended| all_until >= now_ms || ended.at <= first.at);
            // The time of another instance's entry may be ahead of this clock.
            let all = included.chain(owned.before).fold(first, EndedAt::merged);
            (RecordedSignOut::AllBefore { at: all.at, until: all.until }, owned.merge(&all_before(of.owner, all)))
        } else {
            let mut change = owned.merge(&single(of.owner, of.session, ended));
            if let Some(browser) = of.browser {
                change.extend(owned.merge(&single(of.owner, browser, ended)));
            }
            let until = owned.get(of.session).map_or(until, |kept| kept.until);
            (RecordedSignOut::Session { until }, change)
        };
        self.resize(former, owned.size());
        Some((kept, change))
    }

    /// Removes expired entries. `now` is in Unix seconds.
    pub(super) fn remove_expired(&self, now: u64) {
        if self.first_end.load(Ordering::Relaxed) <= now {
            let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
            self.remove_expired_from(&mut by_owner, now);
        }
    }

    /// Removes expired entries, and returns the number of those left that count toward the limits.
    fn remove_expired_from(&self, by_owner: &mut HashMap<RevocationKey, UserSignOuts>, now: u64) -> usize {
        let mut left = Size::default();
        by_owner.retain(|_, owned| {
            owned.remove_expired(now);
            let size = owned.size();
            left.entries += size.entries;
            left.counted += size.counted;
            size.entries > 0
        });
        self.entries.store(left.entries, Ordering::Release);
        self.counted.store(left.counted, Ordering::Release);
        let first = by_owner.values().filter_map(UserSignOuts::first_end).min();
        self.first_end.store(first.unwrap_or(u64::MAX), Ordering::Relaxed);
        left.counted
    }

    /// Adds an entry from the file or from another instance, regardless of the limits.
    pub(super) fn merge(&self, entry: &SharedEntry) -> Change {
        let mut by_owner = self.by_owner.write().unwrap_or_else(PoisonError::into_inner);
        let owned = by_owner.entry(entry.owner).or_default();
        let former = owned.size();
        let change = owned.merge(entry);
        self.first_end.fetch_min(entry.until, Ordering::Relaxed);
        self.resize(former, owned.size());
        change
    }

    /// Returns the entries that end a session, and those of its browser if the keys name one.
    pub(super) fn entries_of(&self, of: &BrowserSessionKeys) -> Vec<SharedEntry> {
        let by_owner = self.by_owner.read().unwrap_or_else(PoisonError::into_inner);
        let Some(owned) = by_owner.get(&of.owner) else { return Vec::new() };
        let keys = [Some(of.session), of.browser].into_iter().flatten();
        keys.filter_map(|key| Some(single(of.owner, key, owned.get(key)?))).collect()
    }

    /// Calls `f` with each entry that has not expired.
    pub(super) fn for_each_live(&self, now: u64, mut f: impl FnMut(SharedEntry)) {
        let by_owner = self.by_owner.read().unwrap_or_else(PoisonError::into_inner);
        for (owner, owned) in &*by_owner {
            owned.entries(*owner).filter(|entry| entry.until > now).for_each(&mut f);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SignOutLimits = SignOutLimits { all: 10, per_user: 3 };

    fn key(number: u64) -> RevocationKey {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        RevocationKey(crate::auth::digest::Digest(bytes))
    }

    fn end(ended: &SignOuts, of: &BrowserSessionKeys, now: u64, until: u64) -> Option<RecordedSignOut> {
        ended.end(of, now, now, until, LIMITS).map(|(kept, _)| kept)
    }

    fn session(owner: u64, id: u64, began: u64) -> BrowserSessionKeys {
        BrowserSessionKeys { owner: key(owner), session: key(id + 100), browser: None, began }
    }

    #[test]
    fn beyond_a_user_s_limit_one_entry_ends_all_sessions_begun_before() {
        let ended = SignOuts::default();
        for id in 0..3 {
            let kept = end(&ended, &session(1, id, 100), 5_000, 50 + id);
            assert_eq!(kept, Some(RecordedSignOut::Session { until: 50 + id }));
        }
        assert!(!ended.has_ended(&session(1, 9, 4_000), 5), "another of the same user's");
        assert_eq!(
            end(&ended, &session(1, 3, 100), 6_000, 40),
            Some(RecordedSignOut::AllBefore { at: 6_000, until: 52 })
        );
        assert_eq!(ended.count(), 1);
        for id in [0, 3, 9] {
            assert!(ended.has_ended(&session(1, id, 6_000), 6) && !ended.has_ended(&session(1, id, 6_000), 52), "{id}");
        }
        assert!(!ended.has_ended(&session(1, 9, 6_001), 6), "one begun since");
        assert!(!ended.has_ended(&session(2, 0, 100), 6), "another user's");
    }

    #[test]
    fn a_session_that_ended_after_the_time_until_which_all_end_does_not_move_it() {
        let ended = SignOuts::default();
        for (id, at) in [(0, 5_000), (1, 5_000), (2, 7_500)] {
            end(&ended, &session(1, id, 100), at, 50);
        }
        let newer = session(1, 9, 7_000);
        let (kept, _) = ended.end(&session(1, 3, 100), 8_000, 6_999, 50, LIMITS).expect("room");
        assert_eq!(kept, RecordedSignOut::AllBefore { at: 6_999, until: 50 });
        assert!((0..4).all(|id| ended.has_ended(&session(1, id, 100), 8)) && !ended.has_ended(&newer, 8));
        assert_eq!(ended.count(), 2, "one for all until then, and one that ended later");
    }

    #[test]
    fn a_session_that_began_by_a_clock_ahead_of_this_one_is_ended_too() {
        let ended = SignOuts::default();
        for id in 0..4 {
            end(&ended, &session(1, id, 100), 9_000, 60);
        }
        let ahead = session(1, 9, 9_500);
        assert!(!ended.has_ended(&ahead, 5));
        assert_eq!(end(&ended, &ahead, 8_000, 60), Some(RecordedSignOut::Session { until: 60 }));
        assert!(ended.has_ended(&ahead, 8) && !ended.has_ended(&session(1, 10, 9_500), 8));
    }

    #[test]
    fn a_sign_out_that_ends_a_browser_counts_once() {
        let ended = SignOuts::default();
        let of_browser = |owner, id| {
            let browser = RevocationKey::of_browser(crate::auth::digest::Digest([7; 16]));
            BrowserSessionKeys { browser: Some(browser), ..session(owner, id, 100) }
        };
        for id in 0..3 {
            let kept = end(&ended, &of_browser(1, id), 5_000, 50);
            assert_eq!(kept, Some(RecordedSignOut::Session { until: 50 }));
        }
        assert_eq!((ended.count(), ended.entries.load(Ordering::Relaxed)), (3, 4), "their browser is one");
        assert!(ended.has_ended(&of_browser(1, 9), 5), "another of the same browser");
        assert!(!ended.has_ended(&session(1, 9, 100), 5) && !ended.has_ended(&of_browser(2, 9), 5));
        // One that has ended needs no room, and one more than the limit of a user covers all of them.
        assert_eq!(end(&ended, &of_browser(1, 0), 5_000, 60), Some(RecordedSignOut::Session { until: 60 }));
        assert_eq!(
            end(&ended, &of_browser(1, 3), 6_000, 40),
            Some(RecordedSignOut::AllBefore { at: 6_000, until: 60 })
        );
        assert_eq!((ended.count(), ended.entries.load(Ordering::Relaxed)), (1, 1));
        for owner in 2..11 {
            assert!(end(&ended, &of_browser(owner, 1), 6_000, 50).is_some(), "{owner}");
        }
        assert_eq!(end(&ended, &of_browser(11, 1), 6_000, 50), None, "ten are the limit of all");
        ended.remove_expired(60);
        assert!(ended.is_empty() && ended.count() == 0);
    }

    #[test]
    fn when_full_nothing_is_ended_and_what_is_over_makes_room() {
        let ended = SignOuts::default();
        for owner in 0..10 {
            assert!(end(&ended, &session(owner, 1, 0), 1_000, 100).is_some());
        }
        assert_eq!(end(&ended, &session(11, 1, 0), 1_000, 200), None);
        assert!(!ended.has_ended(&session(11, 1, 0), 1));
        let again = end(&ended, &session(3, 1, 0), 1_000, 150);
        assert_eq!(again, Some(RecordedSignOut::Session { until: 150 }), "one that has ended needs no room");
        assert!(end(&ended, &session(11, 1, 0), 100_000, 200).is_some(), "nine are over");
        assert_eq!(ended.count(), 2);
    }

    #[test]
    fn what_is_known_in_the_end_does_not_depend_on_the_order_in_which_it_was_heard() {
        let owner = key(1);
        let entries = [
            single(owner, key(10), EndedAt { at: 1_000, until: 50 }),
            single(owner, key(11), EndedAt { at: 2_000, until: 90 }),
            single(owner, key(11), EndedAt { at: 2_500, until: 80 }),
            all_before(owner, EndedAt { at: 2_000, until: 60 }),
            all_before(owner, EndedAt { at: 2_100, until: 70 }),
            single(owner, key(12), EndedAt { at: 3_000, until: 40 }),
        ];
        let known = |order: &[usize]| {
            let ended = SignOuts::default();
            for index in order {
                ended.merge(&entries[*index]);
            }
            let mut known = Vec::new();
            ended.for_each_live(0, |entry| known.push((entry.key, entry.at, entry.until)));
            assert_eq!(known.len(), ended.count(), "none is of a browser");
            known.sort_unstable();
            known
        };
        let expected = known(&[0, 1, 2, 3, 4, 5]);
        assert_eq!(expected, [(key(0), 2_100, 70), (key(11), 2_500, 90), (key(12), 3_000, 40)]);
        for order in [[5, 4, 3, 2, 1, 0], [4, 0, 2, 1, 5, 3], [3, 3, 1, 2, 0, 4]] {
            let order: Vec<usize> = order.into_iter().chain([5, 4, 0, 1, 2, 3]).collect();
            assert_eq!(known(&order), expected, "{order:?}");
        }
    }
}
