//! The instances that this one hears of: those that know the secret, which count, and those that do not, which are shown.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::message::Beat;
use crate::auth::CopyDigest;

/// How often an instance tells that it lives.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// An instance that was not heard of for so long is gone.
const GONE: Duration = Duration::from_secs(16);
/// Most instances.
const MOST: usize = 1_000;
/// Most instances with another secret.
const MOST_FOREIGN: usize = 16;
/// A heartbeat that says another time than this clock, by more than this, is an old one that someone wrote again.
pub(super) const CLOCKS: u64 = 120_000;
/// No text of an instance is kept longer.
const TEXT: usize = 80;

/// What an operator is shown of an instance.
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
    /// How long ago it was heard of.
    pub heard_ago: Duration,
}

#[derive(Debug)]
struct Peer {
    beat: Beat,
    heard: Instant,
    /// How often in a row its digest differed from ours.
    differs: u32,
}

impl Peer {
    fn lives(&self, now: Instant) -> bool {
        now.duration_since(self.heard) < GONE
    }
}

/// What a heartbeat of another instance means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Its complete copy is the same as ours.
    Same,
    /// Its complete copy is another, for so many heartbeats.
    Differs(u32),
    /// Its copy is not complete: it waits for ours. Whether it is the same so far.
    Asks { is_same: bool },
    /// One that was heard before, or long ago.
    Ignored,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<u128, Peer>,
    foreign: HashMap<u128, Peer>,
}

#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Inner>);

impl Peers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a verified heartbeat; `ours` is our digest as of its minute.
    pub(super) fn heard(&self, beat: Beat, ours: CopyDigest, unix_millis: u64) -> Heard {
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
        inner.known.insert(beat.instance, Peer { beat, heard: now, differs });
        match (is_complete, is_same) {
            (false, is_same) => Heard::Asks { is_same },
            (true, true) => Heard::Same,
            (true, false) => Heard::Differs(differs),
        }
    }

    /// Notes the heartbeat of an instance with another secret.
    pub(super) fn heard_foreign(&self, beat: Beat) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.foreign.retain(|_, peer| peer.lives(now));
        if inner.foreign.len() < MOST_FOREIGN || inner.foreign.contains_key(&beat.instance) {
            inner.foreign.insert(beat.instance, Peer { beat, heard: now, differs: 0 });
        }
    }

    /// Counts the differences anew: a copy was just loaded.
    pub(super) fn forget_differences(&self) {
        for peer in self.lock().known.values_mut() {
            peer.differs = 0;
        }
    }

    /// The number of live instances that know the secret, this one among them.
    pub(super) fn live(&self, this: u128) -> usize {
        let now = Instant::now();
        let inner = self.lock();
        let others = inner.known.iter().filter(|(id, peer)| **id != this && peer.lives(now)).count();
        others + 1
    }

    /// The other live instances that tell of users near the limit of sockets, at most so many.
    pub(super) fn tellers(&self, this: u128, most: usize) -> Vec<u128> {
        let now = Instant::now();
        let inner = self.lock();
        let tellers = inner.known.iter().filter(|(id, peer)| **id != this && peer.lives(now) && peer.beat.told > 0);
        tellers.map(|(id, _)| *id).take(most).collect()
    }

    /// Every live instance, those with another secret last.
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
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_counts_once_and_an_instance_as_long_as_it_is_heard_of() {
        let peers = Peers::default();
        let ours = CopyDigest { count: 0, sum: 7 };
        let heard = |beat| peers.heard(beat, ours, 1_000_000);
        assert_eq!(heard(beat(1, 1, 7, true)), Heard::Same);
        assert_eq!(heard(beat(1, 1, 7, true)), Heard::Ignored, "written again by someone");
        assert_eq!(heard(beat(2, 5, 8, true)), Heard::Differs(1));
        assert_eq!(heard(beat(2, 6, 8, true)), Heard::Differs(2));
        assert_eq!(heard(beat(3, 1, 8, false)), Heard::Asks { is_same: false });
        assert_eq!(peers.heard(beat(4, 1, 7, true), ours, 9_000_000), Heard::Ignored, "an old one");
        assert_eq!(peers.live(1), 3);
        tokio::time::advance(GONE).await;
        assert_eq!(peers.live(1), 1);
        assert_eq!(heard(beat(2, 7, 8, true)), Heard::Differs(1), "it was gone");
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
