//! The instances whose heartbeats this one reads: those with the same secret, which count, and those with another,
//! which are only shown.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::message::Heartbeat;
use crate::auth::CopyDigest;

/// The interval of heartbeats.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
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
    pub last_heartbeat_ago: Duration,
}

#[derive(Debug)]
struct Peer {
    heartbeat: Heartbeat,
    received: Instant,
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
    fn is_live(&self, now: Instant) -> bool {
        now.duration_since(self.received) < GONE
    }
}

/// The meaning of another instance's heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The instance has a complete copy, which is the same as this one's.
    Same,
    /// The instance has a complete copy that has differed from this one's for so many heartbeats.
    Differs(u32),
    /// The instance has no complete copy and asks for this one's; with whether both are the same so far.
    Starting { is_same: bool },
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
    pub(super) fn record(
        &self,
        heartbeat: Heartbeat,
        ours: CopyDigest,
        unix_millis: u64,
        question: u128,
    ) -> Comparison {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.known.retain(|_, peer| peer.is_live(now));
        let former = inner.known.get(&heartbeat.instance);
        if heartbeat.at.abs_diff(unix_millis) > CLOCKS
            || former.is_some_and(|former| former.heartbeat.number >= heartbeat.number)
        {
            return Comparison::Ignored;
        }
        if former.is_none() && inner.known.len() >= MOST {
            return Comparison::Ignored;
        }
        let is_same = heartbeat.digest() == ours;
        let differs = if is_same { 0 } else { former.map_or(0, |former| former.differs) + 1 };
        let is_complete = heartbeat.is_complete;
        let former_answer = former.map(|former| former.answer).unwrap_or_default();
        let answer = match (is_complete && heartbeat.answers.contains(&question), former_answer) {
            // The entries that it wrote later are in the log.
            (_, Answer::Same) => Answer::Same,
            (true, _) if is_same => Answer::Same,
            (true, _) => Answer::Differs,
            (false, former) => former,
        };
        inner.awaited.remove(&heartbeat.instance);
        if heartbeat.is_leaving {
            inner.known.remove(&heartbeat.instance);
            return Comparison::Ignored;
        }
        inner.known.insert(heartbeat.instance, Peer { heartbeat, received: now, differs, answer });
        match (is_complete, is_same) {
            (false, is_same) => Comparison::Starting { is_same },
            (true, true) => Comparison::Same,
            (true, false) => Comparison::Differs(differs),
        }
    }

    /// Records the heartbeat of an instance with another secret.
    pub(super) fn record_foreign(&self, heartbeat: Heartbeat) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.foreign.retain(|_, peer| peer.is_live(now));
        if inner.foreign.len() < MOST_FOREIGN || inner.foreign.contains_key(&heartbeat.instance) {
            inner
                .foreign
                .insert(heartbeat.instance, Peer { heartbeat, received: now, differs: 0, answer: Answer::None });
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
        let complete =
            inner.known.iter().filter(|(id, peer)| **id != this && peer.is_live(now) && peer.heartbeat.is_complete);
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
        let others = inner.known.iter().filter(|(id, peer)| **id != this && peer.is_live(now)).count();
        others + 1
    }

    /// Returns the other live instances that publish users near the limit of sockets, at most `most`.
    pub(super) fn with_published_users(&self, this: u128, most: usize) -> Vec<u128> {
        let now = Instant::now();
        let inner = self.lock();
        let publishers = inner
            .known
            .iter()
            .filter(|(id, peer)| **id != this && peer.is_live(now) && peer.heartbeat.published_users > 0);
        publishers.map(|(id, _)| *id).take(most).collect()
    }

    /// Returns every live instance, those with another secret last.
    pub(super) fn shown(&self, this: u128) -> Vec<Instance> {
        let now = Instant::now();
        let inner = self.lock();
        let shown = |peer: &Peer, is_verified: bool| {
            let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT).collect::<String>();
            let heartbeat = &peer.heartbeat;
            peer.is_live(now).then(|| Instance {
                host: cut(&heartbeat.host),
                version: cut(&heartbeat.version),
                config: cut(&heartbeat.config),
                secret: cut(&heartbeat.secret),
                session_secret: cut(&heartbeat.session_secret),
                is_verified,
                is_complete: heartbeat.is_complete,
                is_this: heartbeat.instance == this,
                last_heartbeat_ago: now.duration_since(peer.received),
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

    fn heartbeat(instance: u128, number: u64, sum: u128, is_complete: bool) -> Heartbeat {
        let text = String::new;
        Heartbeat {
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
            published_users: 0,
            question: 0,
            answers: Vec::new(),
            is_leaving: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_once_and_an_instance_as_long_as_it_is_heard_of() {
        let peers = Peers::default();
        let ours = CopyDigest { count: 0, sum: 7 };
        let record = |heartbeat| peers.record(heartbeat, ours, 1_000_000, 0);
        assert_eq!(record(heartbeat(1, 1, 7, true)), Comparison::Same);
        assert_eq!(record(heartbeat(1, 1, 7, true)), Comparison::Ignored, "written again by someone");
        assert_eq!(record(heartbeat(2, 5, 8, true)), Comparison::Differs(1));
        assert_eq!(record(heartbeat(2, 6, 8, true)), Comparison::Differs(2));
        assert_eq!(record(heartbeat(3, 1, 8, false)), Comparison::Starting { is_same: false });
        assert_eq!(peers.record(heartbeat(4, 1, 7, true), ours, 9_000_000, 0), Comparison::Ignored, "an old one");
        assert_eq!(peers.live(1), 3);
        tokio::time::advance(GONE).await;
        assert_eq!(peers.live(1), 1);
        assert_eq!(record(heartbeat(2, 7, 8, true)), Comparison::Differs(1), "it was gone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_starts_waits_for_the_answers_of_all_that_are_complete() {
        const QUESTION: u128 = 99;
        let peers = Peers::default();
        let ours = CopyDigest { count: 0, sum: 7 };
        let answer = |instance, number, sum, question| {
            let answer = Heartbeat { answers: vec![5, question], ..heartbeat(instance, number, sum, true) };
            peers.record(answer, ours, 1_000_000, QUESTION);
        };
        let ask = |awaited: &[u128]| {
            peers.begin_question(awaited.iter().copied(), Instant::now() + Duration::from_secs(3));
            peers.agreement(0, false)
        };
        assert_eq!(ask(&[]), Agreement::Alone);
        peers.record(heartbeat(0, 1, 7, true), ours, 1_000_000, QUESTION);
        peers.record(heartbeat(1, 1, 8, false), ours, 1_000_000, QUESTION);
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
        for (instance, number) in [(4, 8), (5, 9)] {
            let last = Heartbeat { is_leaving: true, ..heartbeat(instance, 9, 1, true) };
            peers.record(last, ours, 1_000_000, QUESTION);
            answer(2, number, 7, QUESTION);
            assert_eq!(peers.agreement(0, false), Agreement::Pending, "three has not answered again");
        }
        peers.record(Heartbeat { is_leaving: true, ..heartbeat(3, 9, 1, true) }, ours, 1_000_000, QUESTION);
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
            let foreign = Heartbeat { host: "h\n".repeat(1_000), ..heartbeat(instance, 1, 0, true) };
            peers.record_foreign(foreign);
        }
        assert_eq!(peers.live(1), 1);
        let shown = peers.shown(1);
        assert_eq!(shown.len(), MOST_FOREIGN);
        assert!(shown.iter().all(|one| !one.is_verified && one.host == "h".repeat(TEXT)));
    }
}
