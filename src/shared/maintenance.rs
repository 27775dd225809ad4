//! Maintains a connection: sends heartbeats and answers, loads the copy when it may be incomplete, and writes missing
//! entries.

use std::convert::Infallible;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::{Instant, sleep_until};

use super::engine::{EngineConnection, EngineError};
use super::message::{Heartbeat, Id, Message};
use super::peers::{Agreement, HEARTBEAT_INTERVAL};
use super::revocation_hash::Loaded;
use super::state::{ALONE, ANSWERS, Inner, Progress, RECONNECT, UNANSWERED, fraction};
use super::stream::{StreamId, message_id};
use crate::auth::{SharedEntry, boot_millis, unix_millis, unix_seconds};

/// The time between two heartbeats of an instance whose copy is not complete, or that is asked.
const SOON: Duration = Duration::from_secs(1);
/// The minimum time between two loads of the hash.
const LOADS: Duration = Duration::from_secs(2);
/// The maximum time between two loads that changed nothing; the time doubles with each.
const LONGEST_LOADS: Duration = Duration::from_secs(5 * 60);
/// The maximum time between two loads that fail.
const LONGEST_GAP: Duration = Duration::from_secs(30);
/// The time within which one of several instances writes the entries that the hash lacked.
const WRITE_MISSING_WITHIN: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_secs(3_600);
/// The maximum number of heartbeats that were not read back. Older ones are dropped.
const MAX_UNREAD_HEARTBEATS: usize = 16;
/// The maximum number of questions that one heartbeat answers; the others are answered by the next.
const MOST_ANSWERS: usize = 16;

/// The times at which the steps are due.
struct Due {
    heartbeat: Instant,
    last_heartbeat: Instant,
    last_load: Instant,
    load_gap: Duration,
    missing: Option<(Instant, Vec<SharedEntry>)>,
    sweep: Instant,
}

/// The minimum time between two loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadGap {
    /// Messages may have been lost or added: [`LOADS`].
    Short,
    /// A copy differs, and the last loads did not change that: up to [`LONGEST_LOADS`].
    Growing,
}

impl LoadGap {
    fn of(progress: &Progress) -> Option<Self> {
        match (progress.wants_load, progress.wants_comparison) {
            (true, _) => Some(Self::Short),
            (false, true) => Some(Self::Growing),
            (false, false) => None,
        }
    }
}

impl Due {
    fn may_load(&self, gap: LoadGap) -> Instant {
        self.last_load + if gap == LoadGap::Short { LOADS } else { self.load_gap }
    }

    /// Schedules writing the missing entries a little later, unless another instance writes them. A load meanwhile does
    /// not defer it.
    fn schedule_missing(&mut self, loaded: Loaded) {
        let former = self.missing.take().map(|(at, _)| at);
        self.missing = (!loaded.missing.is_empty()).then(|| {
            (former.unwrap_or_else(|| Instant::now() + WRITE_MISSING_WITHIN.mul_f64(fraction())), loaded.missing)
        });
    }
}

/// The requests since the last iteration.
struct Wanted {
    load: Option<LoadGap>,
    heartbeat: bool,
    questions: Vec<Id>,
    is_complete: bool,
    /// Whether the last heartbeat is to be sent.
    is_leaving: bool,
}

impl Inner {
    /// Maintains a connection over which the hash was just loaded, or could not be loaded (`None`).
    pub(super) async fn maintain(
        &self,
        mut connection: EngineConnection,
        loaded: Option<Loaded>,
    ) -> Result<Infallible, EngineError> {
        let now = Instant::now();
        let sweep = now + SWEEP.mul_f64(0.5 + fraction());
        let mut due =
            Due { heartbeat: now, last_heartbeat: now, last_load: now, load_gap: LOADS, missing: None, sweep };
        due.schedule_missing(loaded.unwrap_or_default());
        loop {
            let wanted = self.wanted();
            let ready = if wanted.is_complete { None } else { self.complete_at() };
            if let Some((_, why)) = ready.filter(|(at, _)| *at <= Instant::now()) {
                self.set_complete(why);
                continue;
            }
            if wanted.is_leaving {
                self.send_heartbeat(&mut connection).await?;
                self.lock().has_left = true;
                continue;
            }
            for question in wanted.questions {
                let instance = self.instance.to_le_bytes();
                self.append(&mut connection, &Message::Taken { question, instance }).await?;
            }
            if wanted.load.is_some_and(|gap| due.may_load(gap) <= Instant::now()) {
                self.load_again(&connection, &mut due).await?;
            }
            if due.missing.as_ref().is_some_and(|(at, _)| *at <= Instant::now())
                && let Some((_, missing)) = due.missing.take()
            {
                self.write_missing(&mut connection, &missing).await?;
            }
            if due.sweep <= Instant::now() {
                due.sweep = Instant::now() + SWEEP.mul_f64(0.5 + fraction());
                self.sweep_in_turn(&mut connection).await?;
            }
            if wanted.heartbeat || !wanted.is_complete {
                due.heartbeat = due.heartbeat.min(due.last_heartbeat + SOON);
            }
            if due.heartbeat <= Instant::now() {
                due.last_heartbeat = Instant::now();
                due.heartbeat = due.last_heartbeat + HEARTBEAT_INTERVAL.mul_f64(0.95 + fraction() / 10.0);
                self.send_heartbeat(&mut connection).await?;
            }
            let mut next = due.heartbeat.min(due.sweep);
            if let Some(gap) = self.wanted_load() {
                // The load was requested too early, and is not forgotten.
                next = next.min(due.may_load(gap));
            }
            next = next.min(due.missing.as_ref().map_or(next, |(at, _)| *at)).min(ready.map_or(next, |(at, _)| at));
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.attention.notified() => {}
            }
        }
    }

    fn wanted_load(&self) -> Option<LoadGap> {
        LoadGap::of(&self.lock())
    }

    fn wanted(&self) -> Wanted {
        let mut progress = self.lock();
        Wanted {
            // It is reset when the load is done.
            load: LoadGap::of(&progress),
            heartbeat: std::mem::take(&mut progress.wants_heartbeat),
            questions: std::mem::take(&mut progress.questions),
            is_complete: progress.is_complete,
            is_leaving: progress.is_leaving && !progress.has_left,
        }
    }

    /// Returns the time at which the copy of this instance will be complete, as far as is known now, with the reason.
    /// All instances with a complete copy have to report that it is the same, also those that have not reconnected
    /// after a failover: one of them may have a revocation that the engine has lost and that the others have not read.
    fn complete_at(&self) -> Option<(Instant, &'static str)> {
        let asked = self.lock().asked?;
        let (others, alone) = if self.lock().may_miss_others { (RECONNECT, RECONNECT) } else { (ANSWERS, ALONE) };
        match self.peers.agreement(self.instance, asked.elapsed() > UNANSWERED) {
            Agreement::Pending => None,
            Agreement::Same => Some((asked + others, "the other instances have the same")),
            Agreement::Alone => Some((asked + alone, "no other instance")),
        }
    }

    async fn load_again(&self, connection: &EngineConnection, due: &mut Due) -> Result<(), EngineError> {
        {
            let mut progress = self.lock();
            progress.wants_load = false;
            progress.wants_comparison = false;
        }
        let before = self.revocations.copy_digest(unix_seconds() / 60);
        let loaded = match self.load(connection).await {
            Err(error @ (EngineError::TooLarge(_) | EngineError::AnswerTooLong)) => {
                self.begin_gap(&error);
                due.last_load = Instant::now();
                due.load_gap = (due.load_gap * 2).min(LONGEST_GAP);
                return Ok(());
            }
            loaded => loaded?,
        };
        self.peers.forget_differences();
        let has_changed = before != self.revocations.copy_digest(unix_seconds() / 60) || !loaded.missing.is_empty();
        due.last_load = Instant::now();
        due.load_gap = if has_changed { LOADS } else { (due.load_gap * 2).min(LONGEST_LOADS) };
        due.schedule_missing(loaded);
        Ok(())
    }

    /// Removes expired entries, about once an hour and by one of the instances.
    async fn sweep_in_turn(&self, connection: &mut EngineConnection) -> Result<(), EngineError> {
        let instances = u32::try_from(self.peers.live(self.instance)).unwrap_or(u32::MAX);
        if fraction() * f64::from(instances) >= 1.0 {
            return Ok(());
        }
        let loaded = match self.load(connection).await {
            Err(error @ (EngineError::TooLarge(_) | EngineError::AnswerTooLong)) => {
                self.begin_gap(&error);
                return Ok(());
            }
            loaded => loaded?,
        };
        self.remove_entries(connection, &loaded.expired).await
    }

    /// Sends a heartbeat with the digest of this instance, and checks whether the engine still has its data.
    async fn send_heartbeat(&self, connection: &mut EngineConnection) -> Result<(), EngineError> {
        self.revocations.remove_expired(unix_seconds());
        let minute = unix_seconds() / 60;
        let digest = self.revocations.copy_digest(minute);
        let about = self.about.load_full();
        let (number, heartbeat) = {
            let mut progress = self.lock();
            progress.number += 1;
            let number = progress.number;
            progress.unread_heartbeats.push((number, boot_millis()));
            let excess = progress.unread_heartbeats.len().saturating_sub(MAX_UNREAD_HEARTBEATS);
            progress.unread_heartbeats.drain(..excess);
            let answered = progress.starting.len().min(MOST_ANSWERS);
            let answers = if progress.is_complete { progress.starting.drain(..answered).collect() } else { Vec::new() };
            progress.wants_heartbeat |= !progress.starting.is_empty();
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let local = progress.local.map_or_else(String::new, |local| format!(" {}", local.ip()));
            let heartbeat = Heartbeat {
                instance: self.instance,
                number,
                at: unix_millis(),
                host: format!("{host}{local}"),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                config: about.config.clone(),
                secret: self.codes.fingerprint().to_owned(),
                session_secret: about.session_secret.clone(),
                minute,
                count: digest.count,
                sum: digest.sum,
                is_complete: progress.is_complete,
                published_users: self.published_users.load(std::sync::atomic::Ordering::Relaxed),
                question: if progress.is_complete { 0 } else { progress.question },
                answers,
                is_leaving: progress.is_leaving,
            };
            (number, heartbeat)
        };
        // Messages that were read before are older than those written now; messages read meanwhile need not be.
        let cursor = self.lock().cursor;
        let id = self.append(connection, &Message::Heartbeat(heartbeat)).await?;
        if id < cursor {
            return Err(EngineError::Refused("the engine's log began anew".to_owned()));
        }
        if number % 2 == 0 && self.read_epoch(connection).await? {
            tracing::warn!("the engine of the shared state has lost its data, writing it again");
            self.want_load();
        }
        if number % 8 == 0 {
            self.see_first_message(connection).await?;
        }
        Ok(())
    }

    /// Requests a load where messages were removed from the log before they were read here.
    async fn see_first_message(&self, connection: &mut EngineConnection) -> Result<(), EngineError> {
        let mut first = cmd("XRANGE");
        first.arg(self.key("log")).arg("-").arg("+").arg("COUNT").arg(1);
        let cursor = self.lock().cursor;
        let found: Vec<Value> = match connection.ask(&first).await {
            // One that others wrote. Those behind it are read or not; the digests of others show what is missing.
            Err(EngineError::AnswerTooLong) => return Ok(()),
            found => found?,
        };
        let first = found.first().and_then(message_id);
        if first.is_some_and(|first: StreamId| first > cursor) {
            self.want_load();
        }
        Ok(())
    }
}
