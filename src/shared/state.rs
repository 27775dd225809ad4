//! The state of an instance's copy of the shared state: its progress, and whether it is current.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::engine::{self, Engine, EngineError};
use super::message::{Codes, Id, fingerprint};
use super::open_sockets::OpenSockets;
use super::outbox::Outbox;
use super::peers::Peers;
use super::presence::Presences;
use super::session_store::EngineSessions;
use super::stream::StreamId;
use crate::auth::Revocations;
use crate::auth::login::LoginSessions;
use crate::policy::{OnLoss, Secret, SharedSpec};
use crate::random::random;
use crate::telemetry::Metrics;

/// The time that a blocking read waits; below half of the minimum `max_stale`.
pub(super) const BLOCK: Duration = Duration::from_millis(BLOCK_MILLIS);
/// The time that a blocking read waits, in milliseconds, for the command.
pub(super) const BLOCK_MILLIS: u64 = 10_000;
/// The time without a heartbeat of an instance with a complete copy after which a starting instance is ready. It is
/// longer than the longest pause between two attempts to connect.
pub(super) const ALONE: Duration = Duration::from_secs(5);
/// The minimum time that a starting instance waits for the answers of others: each sends one within a second.
pub(super) const ANSWERS: Duration = Duration::from_secs(2);
/// The time that it waits for an instance that sends heartbeats and answers none of its questions: one that is slow, or
/// that does not verify this one's secret.
pub(super) const UNANSWERED: Duration = Duration::from_secs(15);

/// The minimum time between two warnings about entries that are ignored for one reason.
const WARN_AGAIN: Duration = Duration::from_secs(60);
/// The reason to ignore an entry that no secret authenticates.
pub(super) const UNVERIFIED: &str = "no shared secret authenticates them";
/// The reason to ignore an entry that is none by its form.
pub(super) const TOO_LONG: &str = "longer than an entry or of another form";

/// The entries in the engine that this instance has ignored.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The number of entries.
    pub count: u64,
    /// The reason for the last one.
    pub reason: &'static str,
    /// The time of the last one.
    pub at: Instant,
    warned: Instant,
}

/// The time that an earlier instance is awaited: the longest pause between two attempts to connect, the attempt, and
/// the load after it.
pub(super) const RECONNECT: Duration = Duration::from_secs(10);

/// The data that a running instance publishes about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub(super) config: String,
    pub(super) session_secret: String,
}

impl About {
    /// Makes the data: the digest of the configuration in force, and a fingerprint of the secret of session cookies.
    #[must_use]
    pub fn new(config: &str, session_secret: Option<&Secret>) -> Self {
        let session_secret = session_secret.and_then(fingerprint).unwrap_or_default();
        Self { config: config.to_owned(), session_secret }
    }
}

pub(super) struct Inner {
    pub(super) spec: SharedSpec,
    pub(super) engine: Engine,
    pub(super) codes: Codes,
    pub(super) revocations: Arc<Revocations>,
    pub(super) metrics: Arc<Metrics>,
    /// A callback that notifies everything open of a revocation.
    pub(super) notify: Box<dyn Fn() + Send + Sync>,
    /// The maximum number of revocations and sign-outs.
    pub(super) limit: usize,
    pub(super) instance: u128,
    pub(super) about: ArcSwap<About>,
    pub(super) outbox: Outbox,
    pub(super) peers: Peers,
    pub(super) presences: Arc<Presences>,
    pub(super) open_sockets: Arc<OpenSockets>,
    pub(super) login_sessions: Arc<LoginSessions>,
    /// The records of login sessions in the engine.
    pub(super) engine_sessions: Arc<EngineSessions>,
    /// The number of users that this instance publishes.
    pub(super) published_users: AtomicUsize,
    pub(super) progress: Mutex<Progress>,
    /// A notification for the task that maintains the connection.
    pub(super) attention: Notify,
}

/// The progress of the copy.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) is_up: bool,
    /// The time at which the hash was loaded for the first time.
    pub(super) loaded: Option<Instant>,
    pub(super) is_complete: bool,
    /// The question to instances with a complete copy whether it is the same as this one's: a random number for each
    /// connection of a starting instance, so that no earlier heartbeat can be its answer.
    pub(super) question: u128,
    /// Whether the log could not be searched for instances that ran before.
    pub(super) may_miss_others: bool,
    /// The time at which the question was read back from the log.
    pub(super) asked: Option<Instant>,
    /// Heartbeats that were not read back yet: their numbers, and the time at which they were written, in
    /// [`boot_millis`](crate::auth::boot_millis).
    pub(super) unread_heartbeats: Vec<(u64, u64)>,
    pub(super) number: u64,
    /// The time up to which this instance has the messages of the others, in [`boot_millis`](crate::auth::boot_millis).
    pub(super) fresh: Option<u64>,
    /// The last message of the log that was read.
    pub(super) cursor: StreamId,
    pub(super) epoch: Option<String>,
    pub(super) local: Option<SocketAddr>,
    pub(super) last_error: Option<String>,
    /// Whether the hash could not be loaded over this connection, so that entries may be missing.
    pub(super) has_gap: bool,
    pub(super) refused: Option<Refused>,
    pub(super) wants_load: bool,
    /// Whether the copy of another instance differs, so that a load is due. After each load without a change the next
    /// one is later.
    pub(super) wants_comparison: bool,
    pub(super) wants_heartbeat: bool,
    /// The questions of writers that wait until instances have applied an entry.
    pub(super) questions: Vec<Id>,
    /// The questions of instances that start, which the next heartbeats answer.
    pub(super) starting: Vec<u128>,
    /// Whether this instance stops, and its last heartbeat says so.
    pub(super) is_leaving: bool,
    /// Whether that heartbeat was written.
    pub(super) has_left: bool,
}

impl Inner {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self, what: &str) -> String {
        engine::key(&self.spec.name, what)
    }

    /// Sets the gate by the age of the copy, and notifies callers that wait for readiness if that opens it.
    pub(super) fn set_gate(&self) {
        let progress = self.lock();
        let gate = &self.revocations.gate;
        let was_open = gate.check().is_ok();
        match (progress.is_complete, self.spec.on_loss, progress.fresh) {
            (false, ..) | (true, OnLoss::Refuse, None) => gate.shut(),
            (true, OnLoss::Serve, _) => gate.open(),
            (true, OnLoss::Refuse, Some(fresh)) => {
                gate.open_until(
                    fresh.saturating_add(u64::try_from(self.spec.max_stale.as_millis()).unwrap_or(u64::MAX)),
                );
            }
        }
        drop(progress);
        if !was_open && gate.check().is_ok() {
            (self.notify)();
        }
    }

    pub(super) fn set_complete(&self, why: &'static str) {
        {
            let mut progress = self.lock();
            if progress.is_complete || progress.loaded.is_none() {
                return;
            }
            progress.is_complete = true;
        }
        self.set_gate();
        tracing::info!(reason = why, "the first copy of the shared revocations is complete");
        self.attention.notify_one();
    }

    /// Counts and logs entries that are ignored.
    pub(super) fn refuse(&self, count: u64, reason: &'static str) {
        if count == 0 {
            return;
        }
        self.metrics.shared.refused(count);
        let now = Instant::now();
        let mut progress = self.lock();
        let former = progress.refused.take();
        let recent = former.as_ref().filter(|last| last.reason == reason && now - last.warned < WARN_AGAIN);
        let warned = recent.map_or(now, |last| last.warned);
        let is_silent = recent.is_some();
        let count = former.map_or(0, |former| former.count) + count;
        progress.refused = Some(Refused { count, reason, at: now, warned });
        drop(progress);
        if !is_silent {
            tracing::warn!(count, reason, "ignoring entries in the engine of the shared state");
        }
    }

    /// Records that the hash could not be loaded. This instance follows the log nevertheless, and tries again.
    pub(super) fn begin_gap(&self, error: &EngineError) {
        let mut progress = self.lock();
        let is_new = !std::mem::replace(&mut progress.has_gap, true);
        progress.last_error = Some(error.to_string());
        progress.wants_comparison = true;
        drop(progress);
        if is_new {
            tracing::warn!(%error, "the copy of the shared state could not be loaded, retrying");
        }
    }

    /// Records that the hash was loaded.
    pub(super) fn end_gap(&self) {
        let mut progress = self.lock();
        if std::mem::take(&mut progress.has_gap) {
            progress.last_error = None;
        }
    }

    /// Sets the number of users that this instance publishes. Returns whether it published any before.
    pub(super) fn set_published_users(&self, count: usize) -> bool {
        self.published_users.swap(count, Ordering::Relaxed) > 0
    }

    /// Requests a load of the hash.
    pub(super) fn want_load(&self) {
        self.lock().wants_load = true;
        self.attention.notify_one();
    }
}

/// Returns a random number from 0 to 1, excluding 1.
pub(super) fn fraction() -> f64 {
    random().map_or(0.5, |bytes| f64::from(u16::from_le_bytes(bytes)) / 65_536.0)
}
