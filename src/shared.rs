//! The state that the instances of one deployment share through an engine that speaks the Redis protocol
//! (docs/shared-state.md). Each instance has a copy of all revocations and sign-outs in memory.
//!
//! Requests use the copy and do not wait for the engine. An entry in the engine is valid only with an authentication code made
//! with the shared secret. An instance reads new entries from a log (a stream). It loads the hash of all entries at each
//! connection and when its copy differs from another instance's, and writes the entries that the hash lacked, so that an
//! engine that has lost its data is filled again.
//!
//! `auth` applies revocations, and `runtime` notifies open connections of them.

mod bounded;
mod command;
mod engine;
mod exchange;
mod follow;
mod login_sessions;
mod maintenance;
mod message;
mod open_sockets;
mod outbox;
mod peers;
mod presence;
mod repair;
mod revocation_hash;
mod session_store;
mod state;
mod stream;

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::engine::{Engine, EngineConnection};
use self::message::Codes;
use self::outbox::Outbox;
use self::peers::Peers;
use self::session_store::EngineSessions;
use self::state::{BLOCK, Inner, fraction};
use crate::auth::login::LoginSessions;
use crate::auth::{Revocations, boot_millis};
use crate::policy::SharedSpec;
use crate::random::random;
use crate::telemetry::Metrics;

pub use command::{Written, inspect, write_entry};
pub use engine::EngineError;
pub use open_sockets::OpenSockets;
pub use peers::Instance;
pub use presence::{ASK_AGAIN_SECONDS, Presences, SeenElsewhere};
pub use state::{About, Refused};

/// The time by which the reply to a blocking read may exceed its wait.
const BLOCK_ANSWER: Duration = Duration::from_secs(5);
/// The first pause before another connection; it doubles with each that fails.
const RETRY: Duration = Duration::from_millis(100);
/// The longest that a stopping instance waits for its renewals of login sessions: the limit of a request to a provider.
const RENEWALS: Duration = Duration::from_secs(10);
/// The minimum of an instance's share of a limit.
const LEAST_SHARE: u32 = 5;
/// The maximum pause before another connection. It is shorter than the wait of a starting instance for others: after an
/// outage of the engine it must find them.
const LONGEST_RETRY: Duration = Duration::from_secs(3);
/// The time after which a connection counts as good.
const GOOD: Duration = Duration::from_secs(30);
/// The status of the shared state at this instance, for operators.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether the engine answers.
    pub is_up: bool,
    /// Whether the first copy was complete once.
    pub is_complete: bool,
    /// The age of the copy; `None` before the first.
    pub lag: Option<Duration>,
    /// The revocations and sign-outs that wait to be written.
    pub queued: usize,
    /// The reason why the engine could not be used the last time.
    pub last_error: Option<String>,
    /// The entries in the engine that were ignored.
    pub refused: Option<Refused>,
    /// The instances, this one first.
    pub instances: Vec<Instance>,
}

/// The state that this instance shares with others. Dropping it ends its task.
pub struct SharedState {
    inner: Arc<Inner>,
    _task: AbortOnDropHandle<()>,
}

impl SharedState {
    /// Starts to exchange entries with other instances. Credentials are refused until the first copy is complete. Must be
    /// called inside a Tokio runtime.
    ///
    /// # Errors
    /// Where TLS, the secret or the system's random numbers cannot be used.
    pub fn start(
        spec: &SharedSpec,
        limit: usize,
        revocations: Arc<Revocations>,
        metrics: Arc<Metrics>,
        open_sockets: Arc<OpenSockets>,
        login_sessions: Option<Arc<LoginSessions>>,
        notify: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, EngineError> {
        revocations.gate.shut();
        metrics.shared.create_series();
        let engine_sessions = Arc::new(EngineSessions::new(&spec.name, spec.timeout, Arc::clone(&metrics)));
        let store: Arc<EngineSessions> = Arc::clone(&engine_sessions);
        let login_sessions = login_sessions.unwrap_or_else(|| Arc::new(LoginSessions::new(Arc::clone(&revocations))));
        login_sessions.share_by(store);
        let inner = Arc::new(Inner {
            spec: spec.clone(),
            engine: Engine::new(spec)?,
            codes: Codes::new(&spec.secrets, &spec.name)?,
            revocations,
            metrics,
            notify,
            limit,
            instance: u128::from_le_bytes(random()?),
            about: ArcSwap::default(),
            outbox: Outbox::default(),
            peers: Peers::default(),
            presences: Arc::default(),
            open_sockets,
            login_sessions,
            engine_sessions,
            published_users: std::sync::atomic::AtomicUsize::default(),
            progress: Mutex::default(),
            attention: Notify::new(),
        });
        inner.revocations.publish_by(Box::new(inner.outbox.clone()));
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&inner).run()));
        Ok(Self { inner, _task: task })
    }

    /// Returns the time that a caller waits for the engine.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.spec.timeout
    }

    /// Returns the users that were seen at other instances.
    #[must_use]
    pub fn presences(&self) -> Arc<Presences> {
        Arc::clone(&self.inner.presences)
    }

    /// Returns this instance's share of a limit that applies to all instances together.
    #[must_use]
    pub fn share_of(&self, limit: u32) -> u32 {
        let instances = u32::try_from(self.inner.peers.live(self.inner.instance)).unwrap_or(u32::MAX).max(1);
        (limit / instances).max(LEAST_SHARE.min(limit))
    }

    /// Sets the data that this instance publishes about itself.
    pub fn describe(&self, about: About) {
        self.inner.about.store(Arc::new(about));
    }

    /// Returns the current status.
    #[must_use]
    pub fn status(&self) -> Status {
        let progress = self.inner.lock();
        let mut instances = self.inner.peers.shown(self.inner.instance);
        if let Some(this) = instances.iter_mut().find(|instance| instance.is_this) {
            this.is_complete = progress.is_complete;
        }
        Status {
            is_up: progress.is_up,
            is_complete: progress.is_complete,
            lag: progress.fresh.map(|fresh| Duration::from_millis(boot_millis().saturating_sub(fresh))),
            queued: self.inner.outbox.len(),
            last_error: progress.last_error.clone(),
            refused: progress.refused.clone(),
            instances,
        }
    }

    /// Sets the metrics that are read at each scrape.
    pub fn observe(&self) {
        let lag = self.status().lag.unwrap_or_default();
        self.inner.metrics.shared.observe(lag, self.inner.peers.live(self.inner.instance));
    }

    /// Waits until the revocations of this instance and its last heartbeat are written, at most for `limit`. Before
    /// that it waits for renewals of login sessions, which have a limit of their own.
    pub async fn leave(&self, limit: Duration) {
        let sessions = &self.inner.login_sessions;
        // A renewal that is cut off has spent a refresh token, and no other instance knows the next one.
        if timeout(RENEWALS, sessions.renewals_done()).await.is_err() {
            tracing::warn!("renewals of login sessions have not ended, stopping without them");
        }
        if sessions.take_unsaved() && !matches!(timeout(limit, sessions.write_back()).await, Ok(Ok(_))) {
            tracing::error!("login sessions not written to the shared state");
        }
        let end = Instant::now() + limit;
        self.inner.lock().is_leaving = true;
        self.inner.attention.notify_one();
        let has_left = || {
            let progress = self.inner.lock();
            progress.has_left || !progress.is_up
        };
        // This happens once in a process, and three things end it: the last write, the last heartbeat, and the end of the
        // connection. An event of each would have to be kept in step with what was taken to be written and is put back.
        while (self.inner.outbox.len() > 0 || !has_left()) && Instant::now() < end {
            sleep(Duration::from_millis(20).min(limit)).await;
        }
        let left = self.inner.outbox.len();
        if left > 0 {
            tracing::error!(count = left, "revocations not written to the shared state");
        }
    }
}

impl Inner {
    /// Connects repeatedly.
    async fn run(self: Arc<Self>) {
        let mut wait = RETRY;
        loop {
            let begun = Instant::now();
            let Err(error) = Box::pin(self.serve()).await;
            let was_up = {
                let mut progress = self.lock();
                let is_new =
                    progress.last_error.replace(error.to_string()).is_none_or(|last| last != error.to_string());
                std::mem::take(&mut progress.is_up) || is_new
            };
            self.metrics.shared.set_up(false);
            if was_up {
                tracing::warn!(%error, "shared state unavailable, retrying");
            }
            wait = if begun.elapsed() > GOOD { RETRY } else { (wait * 2).min(LONGEST_RETRY) };
            sleep(wait.mul_f64(0.5 + fraction() / 2.0)).await;
        }
    }

    /// Serves one connection until it ends.
    async fn serve(&self) -> Result<Infallible, EngineError> {
        let writer = self.engine.connect(self.spec.timeout).await?;
        let reader = self.engine.connect(BLOCK + BLOCK_ANSWER).await?;
        let mut first = writer.clone();
        self.remove_wrong_types(&mut first).await?;
        let position = self.write_position(&mut first).await?;
        let following = async {
            self.prepare_load(&mut first, position).await?;
            let loaded = match self.load(&writer).await {
                Err(error @ (EngineError::TooLarge(_) | EngineError::AnswerTooLong)) if self.lock().is_complete => {
                    self.begin_gap(&error);
                    None
                }
                loaded => Some(loaded?),
            };
            self.connected(&writer);
            let users = self.both(self.keep_presence(writer.clone()), self.exchange_open_sockets(writer.clone()));
            let users = Box::pin(self.both(users, self.keep_login_sessions(writer.clone())));
            let log = self.both(self.follow(reader, position), self.maintain(writer.clone(), loaded));
            self.both(users, log).await
        };
        // Revocations made meanwhile are published at once, before the hash is loaded.
        Box::pin(self.both(self.publish(writer.clone()), following)).await
    }

    /// Runs both futures until one fails.
    async fn both(
        &self,
        one: impl Future<Output = Result<Infallible, EngineError>>,
        other: impl Future<Output = Result<Infallible, EngineError>>,
    ) -> Result<Infallible, EngineError> {
        tokio::select! {
            ended = one => ended,
            ended = other => ended,
        }
    }

    fn connected(&self, connection: &EngineConnection) {
        self.metrics.shared.set_up(true);
        let mut progress = self.lock();
        progress.is_up = true;
        if !progress.has_gap {
            progress.last_error = None;
        }
        progress.local = Some(connection.local);
        // Heartbeats that were written on the former connection may never be read back.
        progress.unread_heartbeats.clear();
        progress.fresh.get_or_insert_with(boot_millis);
        let is_first = progress.loaded.is_none();
        if !progress.is_complete {
            // Answers to the question on a former connection do not count: the engine may be another.
            progress.loaded = Some(Instant::now());
            progress.asked = None;
        }
        drop(progress);
        self.set_gate();
        if is_first {
            tracing::info!(count = self.revocations.count(), "loaded the shared revocations");
        } else {
            tracing::info!("shared state connected again");
        }
    }
}

impl std::fmt::Debug for SharedState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedState({})", self.inner.spec.name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn whoever_waits_for_readiness_is_notified_when_the_gate_opens() {
        let yaml = format!(
            "upstream: http://127.0.0.1:1\nroutes: [{{ path: /**, auth: none }}]\n\
             browser: {{ session: {{ secret: {:?} }} }}\n\
             shared: {{ url: \"redis://127.0.0.1:1\", on_loss: refuse, max_stale: 60s }}\n",
            "0123456789abcdef".repeat(4)
        );
        let config = crate::config::load_yaml(&yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let revocations = Arc::new(Revocations::default());
        let notified = Arc::new(AtomicUsize::default());
        let counted = Arc::clone(&notified);
        let notify = Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let state = SharedState::start(
            policy.shared.as_ref().expect("shared"),
            10,
            Arc::clone(&revocations),
            Arc::default(),
            Arc::default(),
            None,
            notify,
        )
        .expect("starts");
        let set = |fresh| {
            state.inner.lock().fresh = Some(fresh);
            state.inner.set_gate();
            (revocations.gate.check().is_ok(), notified.load(Ordering::Relaxed))
        };
        let (now, old) = (boot_millis(), boot_millis().saturating_sub(61_000));
        assert_eq!(set(now), (false, 0), "the first copy is not complete");
        state.inner.lock().is_complete = true;
        assert_eq!(set(now), (true, 1));
        assert_eq!(set(now), (true, 1), "it was open");
        assert_eq!(set(old), (false, 1), "the copy is too old");
        assert_eq!(set(now), (true, 2), "and is fresh again");
    }
}
