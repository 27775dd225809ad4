//! Presence at other instances: this one publishes the users that it saw, and asks about those whose sockets are due.
//!
//! A socket under `on_expiry: auto` that is due asks here, and is deferred for a second while the engine is asked.
//! While the engine does not answer its user counts as seen, for at most one `presence`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::auth::digest::Digest;

/// The maximum number of users that are asked for together.
const CHUNK: usize = 500;
/// The time in seconds after which a deferred socket asks again. It may be short, since an answer is up to ten seconds
/// old.
pub const ASK_AGAIN_SECONDS: u64 = 1;
/// The time after which an answer counts no more, and is removed if no socket has asked for it.
const ANSWERED: Duration = Duration::from_secs(60);
/// The minimum time between two removals of old answers: a removal visits every question, and while the engine does not
/// answer, each socket that is due asks every second.
const SWEEP: Duration = Duration::from_secs(1);

/// The presence of a user at other instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenElsewhere {
    /// The Unix time in seconds at which the user was last seen.
    At(u64),
    /// It was not seen within its `presence`.
    Never,
    /// The answer is not known yet: ask again after [`ASK_AGAIN_SECONDS`].
    Asked,
}

#[derive(Debug)]
struct Question {
    since: Instant,
    answer: Option<(Instant, Option<u64>)>,
}

impl Question {
    /// Returns whether it was answered too long ago for the answer to count.
    fn is_outdated(&self, now: Instant) -> bool {
        self.answer.is_some_and(|(at, _)| now.duration_since(at) >= ANSWERED)
    }
}

#[derive(Debug, Default)]
struct Inside {
    /// The users who were seen here since the last write, with the time.
    seen: HashMap<Digest, u64>,
    questions: HashMap<Digest, Question>,
    /// The last removal of old answers.
    swept_at: Option<Instant>,
    /// The longest `presence` that was asked for, in seconds. Older entries are removed.
    longest: u64,
}

/// Users who were seen here and are being written. They are written later if that fails, or ends with the connection.
pub(super) struct TakenUsers<'a> {
    presences: &'a Presences,
    pub(super) users: Vec<(Digest, u64)>,
}

impl TakenUsers<'_> {
    /// Ends the write: other instances can read them.
    pub(super) fn written(mut self) {
        self.users.clear();
    }
}

impl Drop for TakenUsers<'_> {
    fn drop(&mut self) {
        self.presences.put_back(&self.users);
    }
}

/// The users to publish and to ask about.
#[derive(Debug, Default)]
pub struct Presences {
    inside: Mutex<Inside>,
    asked: Notify,
}

impl Presences {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a user was seen here. At most `limit` users are published at once.
    pub fn seen(&self, user: Digest, now: u64, limit: usize) {
        let mut inside = self.lock();
        if inside.seen.len() < limit || inside.seen.contains_key(&user) {
            inside.seen.insert(user, now);
        }
    }

    /// Returns whether a user whose socket is due was seen elsewhere within `presence`. It does not wait.
    #[must_use]
    pub fn last_seen_elsewhere(&self, user: Digest, presence: Duration, limit: usize) -> SeenElsewhere {
        let now = Instant::now();
        let mut inside = self.lock();
        inside.longest = inside.longest.max(presence.as_secs());
        if inside.swept_at.is_none_or(|swept_at| now.duration_since(swept_at) >= SWEEP) {
            inside.swept_at = Some(now);
            inside.questions.retain(|_, question| !question.is_outdated(now));
        } else if inside.questions.get(&user).is_some_and(|question| question.is_outdated(now)) {
            inside.questions.remove(&user);
        }
        let Some(question) = inside.questions.get(&user) else {
            if inside.questions.len() >= limit {
                return SeenElsewhere::Never;
            }
            inside.questions.insert(user, Question { since: now, answer: None });
            drop(inside);
            self.asked.notify_one();
            return SeenElsewhere::Asked;
        };
        match question.answer {
            Some((_, seen)) => {
                inside.questions.remove(&user);
                seen.map_or(SeenElsewhere::Never, SeenElsewhere::At)
            }
            None if now.duration_since(question.since) < presence => SeenElsewhere::Asked,
            None => {
                inside.questions.remove(&user);
                SeenElsewhere::Never
            }
        }
    }

    /// Resolves when a socket asks, or has asked since the last call.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Returns the longest `presence` that was asked for, in seconds.
    pub(super) fn longest(&self) -> u64 {
        self.lock().longest
    }

    /// Takes the users who were seen here since the last write. They are put back unless
    /// [`TakenUsers::written`] is called.
    pub(super) fn take_seen(&self) -> TakenUsers<'_> {
        TakenUsers { presences: self, users: self.lock().seen.drain().collect() }
    }

    fn put_back(&self, seen: &[(Digest, u64)]) {
        let mut inside = self.lock();
        for (user, at) in seen {
            let known = inside.seen.entry(*user).or_default();
            *known = (*known).max(*at);
        }
    }

    pub(super) fn unanswered(&self) -> Vec<Digest> {
        let inside = self.lock();
        let open = inside.questions.iter().filter(|(_, question)| question.answer.is_none());
        open.map(|(user, _)| *user).take(CHUNK).collect()
    }

    pub(super) fn answer(&self, user: Digest, seen: Option<u64>) {
        if let Some(question) = self.lock().questions.get_mut(&user) {
            question.answer = Some((Instant::now(), seen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Digest = Digest([1; 16]);
    const PRESENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_user_who_is_due_waits_for_an_answer_and_for_no_longer_than_a_presence() {
        let presences = Presences::default();
        let ask = || presences.last_seen_elsewhere(USER, PRESENCE, 10);
        assert_eq!(ask(), SeenElsewhere::Asked);
        assert_eq!(ask(), SeenElsewhere::Asked);
        assert_eq!(presences.unanswered(), [USER]);
        presences.answer(USER, Some(77));
        assert_eq!(ask(), SeenElsewhere::At(77));
        assert_eq!(ask(), SeenElsewhere::Asked, "anew");
        presences.answer(USER, None);
        assert_eq!(ask(), SeenElsewhere::Never);
        assert_eq!(ask(), SeenElsewhere::Asked);
        tokio::time::advance(PRESENCE).await;
        assert_eq!(ask(), SeenElsewhere::Never, "the engine has not answered for so long");
    }

    #[tokio::test(start_paused = true)]
    async fn old_answers_count_no_more_and_are_not_looked_for_at_each_question() {
        let presences = Presences::default();
        let user = |number: u8| Digest([number; 16]);
        let ask = |number| presences.last_seen_elsewhere(user(number), PRESENCE, 10);
        let known = || presences.lock().questions.len();
        for number in [1, 2] {
            assert_eq!(ask(number), SeenElsewhere::Asked);
            presences.answer(user(number), Some(77));
        }
        tokio::time::advance(ANSWERED.checked_sub(SWEEP / 2).expect("shorter")).await;
        assert_eq!(ask(3), SeenElsewhere::Asked, "and sweeps, before the answers are old");
        tokio::time::advance(SWEEP / 2).await;
        assert_eq!(ask(3), SeenElsewhere::Asked);
        assert_eq!(known(), 3, "the next removal is not due yet");
        assert_eq!(ask(1), SeenElsewhere::Asked, "its answer is old");
        tokio::time::advance(SWEEP / 2).await;
        assert_eq!(ask(3), SeenElsewhere::Asked);
        assert_eq!(known(), 2, "the other old answer is removed");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later_unless_it_is_older() {
        let presences = Presences::default();
        for at in [1, 2] {
            presences.seen(USER, at, 1);
        }
        presences.seen(Digest([2; 16]), 2, 1);
        let seen = presences.take_seen();
        assert_eq!(seen.users, [(USER, 2)], "one is published at once, the other later");
        // The connection ends.
        drop(seen);
        let seen = presences.take_seen();
        assert_eq!(seen.users, [(USER, 2)]);
        presences.seen(USER, 9, 1);
        drop(seen);
        let seen = presences.take_seen();
        assert_eq!(seen.users, [(USER, 9)]);
        seen.written();
        assert_eq!(presences.take_seen().users, []);
    }
}
