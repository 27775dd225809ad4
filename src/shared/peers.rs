//! The instances whose heartbeats this one reads: those with the same secret, which count, and those with another,
//! which are only shown.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::message::Beat;
use crate::auth::CopyDigest;

/// The interval of heartbeats.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// The time without a heartbeat after which an instance is gone.
const GONE: Duration = Duration::from_secs(16);
/// The maximum number of instances.
const MOST: usize = 1_000;
/// The maximum number of instances with another secret.
const MOST_FOREIGN: usize = 16;
/// The maximum difference in milliseconds between the time of a heartbeat and this clock. A heartbeat with a larger one
/// is old and was written again.
pub(super) const CLOCKS: u64 = 120_000;
/// The maximum length of a text of an instance, in characters.
const TEXT: usize = 80;

/// The data about an instance for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Host name and local address.
    pub host: String,
    /// The program's version.
    pub version: String,
    /// The digest of its configuration.
    pub config: String,
    /// The fingerprint of its shared secret.
    pub secret: String,
    /// The fingerprint of its session secret.
    pub session_secret: String,
    /// Whether its heartbeats verify.
    pub is_verified: bool,
    /// Whether its copy is complete.
    pub is_complete: bool,
    /// Whether it is this one.
    pub is_this: bool,
    /// The time since its last heartbeat.
    pub heard_ago: Duration,
}

#[derive(Debug)]
struct Peer {
    beat: Beat,
    heard: Instant,
    /// The number of consecutive heartbeats whose digest differed from this instance's.
    differs: u32,
    /// Whether it has answered this instance's question, and whether with the digest of the same copy.
    answer: Answer,
}

/// An instance's answer to the question of this one, which is starting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    None,
    Differs,
    Same,
}

impl Peer {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.heard) < GONE
    }
}

/// The meaning of another instance's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Its complete copy is the same as this one's.
    Same,
    /// Its complete copy differs, for so many heartbeats.
    Differs(u32),
    /// Its copy is not complete, and it asks for this one's; with whether both are the same so far.
    Asks { is_same: bool },
    /// The heartbeat is old or was read before, or is the last one of an instance that stops.
    Ignored,
}

/// The result of comparing this starting instance's copy with those of instances with a complete one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement {
    /// There is no such instance.
    Alone,
    /// At least one has not answered, or has another copy.
    Pending,
    /// All have answered, each with the digest of the same copy.
    Same,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<u128, Peer>,
    /// Instances that ran before this one connected and have sent no heartbeat since, each with the time until which it
    /// is awaited.
    awaited: HashMap<u128, Instant>,
    foreign: HashMap<u128, Peer>,
}

#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Inner>);

impl Peers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a verified heartbeat; `ours` is this instance's digest as of its minute, `question` the one that this
    /// instance asks.
    pub(super) fn heard(&self, beat: Beat, ours: CopyDigest, unix_millis: u64, question: u128) -> Heard {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.known.retain(|_, peer| peer.lives(now));
        let former = inner.known.get(&beat.instance);
        if beat.at.abs_diff(unix_millis) > CLOCKS || former.is_some_and(|former| former.beat.number >= beat.number) {
            return Heard::Ignored;
        }
        if former.is_none() && inner.known.len() >= MOST {
            return Heard::Ignored;
        }
        let is_same = beat.digest() == ours;
        let differs = if is_same { 0 } else { former.map_or(0, |former| former.differs) + 1 };
        let is_complete = beat.is_complete;
        let former_answer = former.map(|former| former.answer).unwrap_or_default();
        let answer = match (is_complete && beat.answers.contains(&question), former_answer) {
            // Its later entries are in the log.
            (_, Answer::Same) => Answer::Same,
            (true, _) if is_same => Answer::Same,
            (true, _) => Answer::Differs,
            (false, former) => former,
        };
        inner.awaited.remove(&beat.instance);
        if beat.is_leaving {
            inner.known.remove(&beat.instance);
            return Heard::Ignored;
        }
        inner.known.insert(beat.instance, Peer { beat, heard: now, differs, answer });
        match (is_complete, is_same) {
            (false, is_same) => Heard::Asks { is_same },
            (true, true) => Heard::Same,
            (true, false) => Heard::Differs(differs),
        }
    }

    /// Records the heartbeat of an instance with another secret.
    pub(super) fn heard_foreign(&self, beat: Beat) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.foreign.retain(|_, peer| peer.lives(now));
        if inner.foreign.len() < MOST_FOREIGN || inner.foreign.contains_key(&beat.instance) {
            inner.foreign.insert(beat.instance, Peer { beat, heard: now, differs: 0, answer: Answer::None });
        }
    }

    /// Removes the answers to a former question, and awaits earlier instances until `end`.
    pub(super) fn begin_question(&self, awaited: impl IntoIterator<Item = u128>, end: Instant) {
        let mut inner = self.lock();
        for peer in inner.known.values_mut() {
            peer.answer = Answer::None;
        }
        inner.awaited = awaited.into_iter().take(MOST).map(|instance| (instance, end)).collect();
    }

    /// Returns whether every instance with a complete copy has answered that it has the same one. With `only_answers`
    /// instances without an answer are left out.
    pub(super) fn agreement(&self, this: u128, only_answers: bool) -> Agreement {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.awaited.retain(|_, end| *end > now);
        if !inner.awaited.is_empty() {
            return Agreement::Pending;
        }
        let complete = inner.known.iter().filter(|(id, peer)| **id != this && peer.lives(now) && peer.beat.is_complete);
        complete.fold(Agreement::Alone, |agreement, (_, peer)| match (agreement, peer.answer) {
            (agreement, Answer::None) if only_answers => agreement,
            (Agreement::Pending, _) | (_, Answer::None | Answer::Differs) => Agreement::Pending,
            (_, Answer::Same) => Agreement::Same,
        })
    }

    /// Resets the count of differences, after a copy was loaded.
    pub(super) fn forget_differences(&self) {
        for peer in self.lock().known.values_mut() {
            peer.differs = 0;
        }
    }

    /// Returns the number of live instances with the same secret, this one included.
    pub(super) fn live(&self, this: u128) -> usize {
        let now = Instant::now();
        let inner = self.lock();
        let others = inner.known.iter().filter(|(id, peer)| **id != this && peer.lives(now)).count();
        others + 1
    }

    /// Returns the other live instances that publish users near the limit of sockets, at most `most`.
    pub(super) fn tellers(&self, this: u128, most: usize) -> Vec<u128> {
        let now = Instant::now();
        let inner = self.lock();
        let tellers = inner.known.iter().filter(|(id, peer)| **id != this && peer.lives(now) && peer.beat.told > 0);
        tellers.map(|(id, _)| *id).take(most).collect()
    }

    /// Returns every live instance, those with another secret last.
    pub(super) fn shown(&self, this: u128) -> Vec<Instance> {
        let now = Instant::now();
        let inner = self.lock();
        let shown = |peer: &Peer, is_verified: bool| {
            let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT).collect::<String>();
            let beat = &peer.beat;
            peer.lives(now).then(|| Instance {
                host: cut(&beat.host),
                version: cut(&beat.version),
                config: cut(&beat.config),
                secret: cut(&beat.secret),
                session_secret: cut(&beat.session_secret),
                is_verified,
                is_complete: beat.is_complete,
                is_this: beat.instance == this,
                heard_ago: now.duration_since(peer.heard),
            })
        };
        let mut known: Vec<_> = inner.known.values().filter_map(|peer| shown(peer, true)).collect();
        known.sort_by(|a, b| (!a.is_this, &a.host).cmp(&(!b.is_this, &b.host)));
        let mut foreign: Vec<_> = inner.foreign.values().filter_map(|peer| shown(peer, false)).collect();
        foreign.sort_by(|a, b| a.host.cmp(&b.host));
        known.extend(foreign);
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(instance: u128, number: u64, sum: u128, is_complete: bool) -> Beat {
        let text = String::new;
        Beat {
            instance,
            number,
            at: 1_000_000,
            host: text(),
            version: text(),
            config: text(),
            secret: text(),
            session_secret: text(),
            minute: 0,
            count: 0,
            sum,
            is_complete,
            told: 0,
            question: 0,
            answers: Vec::new(),
            is_leaving: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_once_and_an_instance_as_long_as_it_is_heard_of() {
        let peers = Peers::default();
        let ours = CopyDigest { count: 0, sum: 7 };
        let heard = |beat| peers.heard(beat, ours, 1_000_000, 0);
        assert_eq!(heard(beat(1, 1, 7, true)), Heard::Same);
        assert_eq!(heard(beat(1, 1, 7, true)), Heard::Ignored, "written again by someone");
        assert_eq!(heard(beat(2, 5, 8, true)), Heard::Differs(1));
        assert_eq!(heard(beat(2, 6, 8, true)), Heard::Differs(2));
        assert_eq!(heard(beat(3, 1, 8, false)), Heard::Asks { is_same: false });
        assert_eq!(peers.heard(beat(4, 1, 7, true), ours, 9_000_000, 0), Heard::Ignored, "an old one");
        assert_eq!(peers.live(1), 3);
        tokio::time::advance(GONE).await;
        assert_eq!(peers.live(1), 1);
        assert_eq!(heard(beat(2, 7, 8, true)), Heard::Differs(1), "it was gone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_starts_waits_for_the_answers_of_all_that_are_complete() {
        const QUESTION: u128 = 99;
        let peers = Peers::default();
        let ours = CopyDigest { count: 0, sum: 7 };
        let answer = |instance, number, sum, question| {
            let answer = Beat { answers: vec![5, question], ..beat(instance, number, sum, true) };
            peers.heard(answer, ours, 1_000_000, QUESTION);
        };
        let ask = |awaited: &[u128]| {
            peers.begin_question(awaited.iter().copied(), Instant::now() + Duration::from_secs(3));
            peers.agreement(0, false)
        };
        assert_eq!(ask(&[]), Agreement::Alone);
        peers.heard(beat(0, 1, 7, true), ours, 1_000_000, QUESTION);
        peers.heard(beat(1, 1, 8, false), ours, 1_000_000, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Alone, "itself, and one that asks too");
        answer(2, 1, 7, 98);
        assert_eq!(peers.agreement(0, false), Agreement::Pending, "the same copy, and another question");
        assert_eq!(peers.agreement(0, true), Agreement::Alone, "it does not answer");
        answer(2, 2, 7, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Same);
        answer(3, 1, 8, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Pending, "another copy");
        assert_eq!(peers.agreement(0, true), Agreement::Pending, "and it answers");
        answer(3, 2, 7, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Same);
        assert_eq!(ask(&[2]), Agreement::Pending, "over another connection");
        answer(2, 3, 7, QUESTION);
        answer(3, 3, 7, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Same);
        ask(&[4, 5]);
        for (instance, expected) in [(4, Agreement::Pending), (5, Agreement::Pending)] {
            peers.heard(Beat { is_leaving: true, ..beat(instance, 9, 1, true) }, ours, 1_000_000, QUESTION);
            answer(2, 4 + instance as u64, 7, QUESTION);
            assert_eq!(peers.agreement(0, false), expected, "three has not answered again");
        }
        peers.heard(Beat { is_leaving: true, ..beat(3, 9, 1, true) }, ours, 1_000_000, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Same, "those that stop are not waited for");
        assert_eq!(ask(&[6]), Agreement::Pending);
        tokio::time::advance(Duration::from_secs(3)).await;
        answer(2, 20, 7, QUESTION);
        assert_eq!(peers.agreement(0, false), Agreement::Same, "six is gone");
        tokio::time::advance(GONE).await;
        assert_eq!(peers.agreement(0, false), Agreement::Alone);
    }

    #[tokio::test(start_paused = true)]
    async fn instances_with_another_secret_are_shown_and_never_counted() {
        let peers = Peers::default();
        for instance in 0..100 {
            let foreign = Beat { host: "h\n".repeat(1_000), ..beat(instance, 1, 0, true) };
            peers.heard_foreign(foreign);
        }
        assert_eq!(peers.live(1), 1);
        let shown = peers.shown(1);
        assert_eq!(shown.len(), MOST_FOREIGN);
        assert!(shown.iter().all(|one| !one.is_verified && one.host == "h".repeat(TEXT)));
    }
}
