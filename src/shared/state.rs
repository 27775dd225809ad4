//! What an instance knows of the shared state: how far its copy has come, and whether it may be relied on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::engine::{self, Engine};
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
use crate::telemetry::Metrics;

/// How long a blocking read waits; below half of the least `max_stale`.
pub(super) const BLOCK: Duration = Duration::from_millis(BLOCK_MILLIS);
/// The same for the command that reads.
pub(super) const BLOCK_MILLIS: u64 = 10_000;
/// An instance that starts is ready when no instance with a complete copy has sent a heartbeat for so long. Longer than the
/// longest pause between two attempts to connect.
pub(super) const ALONE: Duration = Duration::from_secs(5);
/// An instance that starts waits at least so long for the answers of others: each sends one within a second.
pub(super) const ANSWERS: Duration = Duration::from_secs(2);
/// How long it waits for an instance that sends heartbeats and answers none of its questions: one that is slow, or that does
/// not verify this one's secret.
pub(super) const UNANSWERED: Duration = Duration::from_secs(15);

/// Why nothing can be keyed.
pub(super) const NO_RANDOM_NUMBERS: &str = "the system's random numbers cannot be used";

/// What a running instance tells the others about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    pub(super) config: String,
    pub(super) session_secret: String,
}

impl About {
    /// The digest of the configuration in force, and the secret of session cookies.
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
    /// Tells everything that is open that something was revoked.
    pub(super) notify: Box<dyn Fn() + Send + Sync>,
    /// The most revocations and sign-outs.
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
    /// The number of users that this instance tells of.
    pub(super) told: AtomicUsize,
    pub(super) progress: Mutex<Progress>,
    /// Wakes the task that tends the connection.
    pub(super) attention: Notify,
}

/// How far the copy has come.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) is_up: bool,
    /// When the copy was loaded whole for the first time.
    pub(super) loaded: Option<Instant>,
    pub(super) is_complete: bool,
    /// The question to instances with a complete copy whether it is the same as this one's: a random number for each
    /// connection of an instance that starts, so that no earlier heartbeat can be its answer.
    pub(super) question: u128,
    /// When the question was read back from the log.
    pub(super) asked: Option<Instant>,
    /// Heartbeats that were not read back yet: their numbers, and when they were written in [`boot_millis`](crate::auth::boot_millis).
    pub(super) beats: Vec<(u64, u64)>,
    pub(super) number: u64,
    /// Up to when this instance knows what the others told, in [`boot_millis`](crate::auth::boot_millis).
    pub(super) fresh: Option<u64>,
    /// The last message of the log that was read.
    pub(super) cursor: StreamId,
    pub(super) epoch: Option<String>,
    pub(super) local: Option<SocketAddr>,
    pub(super) last_error: Option<String>,
    pub(super) wants_load: bool,
    /// The copy of another instance differs: worth a load, and less so each time that one changes nothing.
    pub(super) wants_comparison: bool,
    pub(super) wants_beat: bool,
    /// The questions that are to be answered: whoever asks wants to know who has taken an entry.
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

    /// Lets credentials pass as far as the copy allows.
    pub(super) fn set_gate(&self) {
        let progress = self.lock();
        let gate = &self.revocations.gate;
        match (progress.is_complete, self.spec.on_loss, progress.fresh) {
            (false, ..) | (true, OnLoss::Refuse, None) => gate.shut(),
            (true, OnLoss::Serve, _) => gate.open(),
            (true, OnLoss::Refuse, Some(fresh)) => {
                gate.open_until(
                    fresh.saturating_add(u64::try_from(self.spec.max_stale.as_millis()).unwrap_or(u64::MAX)),
                );
            }
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
        // Whoever waits for readiness looks again.
        (self.notify)();
        tracing::info!(reason = why, "the first copy of the shared revocations is complete");
        self.attention.notify_one();
    }

    /// Sets the number of users that this instance tells of; returns whether it told of any before.
    pub(super) fn set_told(&self, count: usize) -> bool {
        self.told.swap(count, Ordering::Relaxed) > 0
    }

    /// Asks for the whole copy to be loaded.
    pub(super) fn want_load(&self) {
        self.lock().wants_load = true;
        self.attention.notify_one();
    }
}

/// A random id; `None` where the system has no random numbers.
pub(super) fn random() -> Option<Id> {
    let mut id = Id::default();
    SystemRandom::new().fill(&mut id).ok()?;
    Some(id)
}

/// A random number from 0 up to 1.
pub(super) fn fraction() -> f64 {
    random().map_or(0.5, |id| f64::from(u16::from_le_bytes([id[0], id[1]])) / 65_536.0)
}
