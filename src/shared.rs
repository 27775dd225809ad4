//! What the instances of one deployment tell each other through an engine that speaks the Redis protocol: revocations and
//! sign-outs, which every instance keeps in memory (docs/shared-state.md).
//!
//! The engine carries messages and is not the truth: no request waits for it, and what lies there counts only with a code
//! made with a shared secret. An instance follows a log (a stream) and loads the whole copy (a hash) at each connection and
//! whenever something does not add up; then it writes what the copy lacked, so that a flushed engine is filled again.
//!
//! What a revocation does is `auth`'s; who is told that something was revoked is `runtime`'s.

mod bounded;
mod command;
mod copy;
mod engine;
mod exchange;
mod follow;
mod login_sessions;
mod message;
mod open_sockets;
mod outbox;
mod peers;
mod presence;
mod repair;
mod session_store;
mod state;
mod stream;
mod tend;

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use self::engine::{Connection, Engine};
use self::message::Codes;
use self::outbox::Outbox;
use self::peers::Peers;
use self::session_store::EngineSessions;
use self::state::{BLOCK, Inner, NO_RANDOM_NUMBERS, fraction, random};
use crate::auth::login::LoginSessions;
use crate::auth::{Revocations, boot_millis};
use crate::policy::SharedSpec;
use crate::telemetry::Metrics;

pub use command::{Written, inspect, write_entry};
pub use engine::EngineError;
pub use open_sockets::OpenSockets;
pub use peers::Instance;
pub use presence::{ASK_AGAIN_SECONDS, Presences, SeenElsewhere};
pub use state::{About, Refused};

/// How much longer the answer to a blocking read may take than it waits.
const BLOCK_ANSWER: Duration = Duration::from_secs(5);
/// The first wait before another connection; doubled with each that fails.
const RETRY: Duration = Duration::from_millis(100);
/// The longest that a stopping instance waits for its renewals of login sessions: the limit of a request to a provider.
const RENEWALS: Duration = Duration::from_secs(10);
/// No instance's share of a limit is smaller.
const LEAST_SHARE: u32 = 5;
/// Shorter than an instance that starts waits for others: after an outage of the engine it must find them.
const LONGEST_RETRY: Duration = Duration::from_secs(3);
/// A connection that stood for so long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// How the shared state is at this instance, for operators.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether the engine answers.
    pub is_up: bool,
    /// Whether the first copy was complete once.
    pub is_complete: bool,
    /// How old the copy is; `None` before the first.
    pub lag: Option<Duration>,
    /// The revocations and sign-outs that wait to be written.
    pub queued: usize,
    /// Why the engine could not be used last.
    pub last_error: Option<String>,
    /// The entries in the engine that were ignored.
    pub refused: Option<Refused>,
    /// The instances, this one first.
    pub instances: Vec<Instance>,
}

/// The state that this instance shares with others. Its task ends with it.
pub struct SharedState {
    inner: Arc<Inner>,
    _task: AbortOnDropHandle<()>,
}

impl SharedState {
    /// Starts to follow what other instances tell. Credentials are refused until the first copy is complete. Must be
    /// called inside a Tokio runtime.
    ///
    /// # Errors
    /// Where TLS or the system's random numbers cannot be used.
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
        let unusable = |what: &str| EngineError::Tls(format!("{what} cannot be used"));
        let engine_sessions = Arc::new(EngineSessions::new(&spec.name, spec.timeout, Arc::clone(&metrics)));
        let store: Arc<EngineSessions> = Arc::clone(&engine_sessions);
        let login_sessions = login_sessions.unwrap_or_else(|| Arc::new(LoginSessions::new(Arc::clone(&revocations))));
        login_sessions.share_by(store);
        let inner = Arc::new(Inner {
            spec: spec.clone(),
            engine: Engine::new(spec)?,
            codes: Codes::new(&spec.secrets, &spec.name).ok_or_else(|| unusable("the secret"))?,
            revocations,
            metrics,
            notify,
            limit,
            instance: random()
                .map(u128::from_le_bytes)
                .ok_or_else(|| EngineError::Tls(NO_RANDOM_NUMBERS.to_owned()))?,
            about: ArcSwap::default(),
            outbox: Outbox::default(),
            peers: Peers::default(),
            presences: Arc::default(),
            open_sockets,
            login_sessions,
            engine_sessions,
            told: std::sync::atomic::AtomicUsize::default(),
            progress: Mutex::default(),
            attention: Notify::new(),
        });
        inner.revocations.publish_by(Box::new(inner.outbox.clone()));
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&inner).run()));
        Ok(Self { inner, _task: task })
    }

    /// How long somebody waits for the engine.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.spec.timeout
    }

    /// Who was seen at other instances.
    #[must_use]
    pub fn presences(&self) -> Arc<Presences> {
        Arc::clone(&self.inner.presences)
    }

    /// This instance's share of a limit that holds for all of them together.
    #[must_use]
    pub fn share_of(&self, limit: u32) -> u32 {
        let instances = u32::try_from(self.inner.peers.live(self.inner.instance)).unwrap_or(u32::MAX).max(1);
        (limit / instances).max(LEAST_SHARE.min(limit))
    }

    /// Sets what this instance tells about itself.
    pub fn describe(&self, about: About) {
        self.inner.about.store(Arc::new(about));
    }

    /// How it is now.
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

    /// Sets the metrics that are looked at when they are asked for.
    pub fn observe(&self) {
        let lag = self.status().lag.unwrap_or_default();
        self.inner.metrics.shared.observe(lag, self.inner.peers.live(self.inner.instance));
    }

    /// Waits until what was revoked here is written and the other instances are told that this one stops, or so long.
    /// Before that it waits for renewals of login sessions, which have a limit of their own.
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
    /// Connects again and again.
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
            self.begin(&mut first, position).await?;
            let loaded = match self.load(&writer).await {
                Err(error @ (EngineError::TooLarge(_) | EngineError::AnswerTooLong)) if self.lock().is_complete => {
                    self.begin_gap(&error);
                    None
                }
                loaded => Some(loaded?),
            };
            self.connected(&writer);
            let users = self.both(self.keep_presence(writer.clone()), self.exchange_open_sockets(writer.clone()));
            let users = self.both(users, self.keep_login_sessions(writer.clone()));
            let log = self.both(self.follow(reader, position), self.tend(writer.clone(), loaded));
            self.both(users, log).await
        };
        // What is revoked meanwhile does not wait for the copy.
        Box::pin(self.both(self.publish(writer.clone()), following)).await
    }

    /// Runs both until one fails.
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

    fn connected(&self, connection: &Connection) {
        self.metrics.shared.set_up(true);
        let mut progress = self.lock();
        progress.is_up = true;
        if !progress.has_gap {
            progress.last_error = None;
        }
        progress.local = Some(connection.local);
        // What was written over the former connection may never come back.
        progress.beats.clear();
        progress.fresh.get_or_insert_with(boot_millis);
        let is_first = progress.loaded.is_none();
        if !progress.is_complete {
            // Answers to the question over a former connection do not count: the engine may be another.
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
