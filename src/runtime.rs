//! The state that requests share: the current policy with its verifier and upstream client, and the registries that
//! outlive a reload (pending sockets, users, limits per address, revocations, metrics, the drain).

mod addresses;
mod moment;
mod notifier;
mod pending_sockets;
mod query_tokens;
mod refusals;
mod users;
mod waiting_tasks;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;

use crate::auth::{
    Carrier, Identity, Revocation, Revocations, Verifier, log_revocation_not_saved, unix_millis, unix_seconds,
};
use crate::budget::{MemoryBudget, MemoryReservation, SILENT_CONNECTION_BYTES};
use crate::drain::Drain;
use crate::http::{AssertionSigner, Upstreams};
use crate::policy::Policy;
use crate::shared::{About, EngineError, OpenSockets, SharedState};
use crate::telemetry::{AccessLine, LastMinute, Metrics, NO_ROUTE, OWN_ROUTE, OncePerMinute, access};

pub use addresses::{Addresses, Network};
pub use moment::{Millis, Moment};
pub use notifier::{Notifier, Subscription};
pub use pending_sockets::{PendingSlot, PendingSockets};
pub use query_tokens::QueryTokens;
pub use refusals::RecentRefusals;
pub use users::{OpenSocket, PresenceKey, Users};

/// A policy and everything made from it. A request keeps the runtime with which it began.
pub struct Runtime {
    /// The number of reloads before this runtime. Each open socket keeps one.
    pub generation: u32,
    /// The validated configuration.
    pub policy: Policy,
    /// The verifier for tokens of the policy's providers.
    pub verifier: Verifier,
    /// The signer of identity assertions, if the policy has `identity.assertion`.
    pub signer: Option<AssertionSigner>,
    /// The clients of the policy's upstreams.
    pub upstreams: Upstreams,
    /// The least time that a revocation is kept, by this policy and by those before it. A reload may have made
    /// `session.max_age` shorter, and the next one may make it longer again: until then the sessions that began before have
    /// not ended for good.
    pub least_revocation_keep: Duration,
}

impl Runtime {
    /// Creates the first runtime from a policy and starts to fetch keys. Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(policy: Policy, revocations: Arc<Revocations>, metrics: Arc<Metrics>) -> Self {
        Self::following(None, policy, revocations, metrics)
    }

    /// Creates a runtime. Providers that are the same as in `former` keep their keys and caches.
    fn following(former: Option<&Self>, policy: Policy, revocations: Arc<Revocations>, metrics: Arc<Metrics>) -> Self {
        let counted = Arc::clone(&metrics);
        let former_verifier = former.map(|former| &former.verifier);
        let verifier = Verifier::start(
            &policy.providers,
            policy.limits.token_cache,
            revocations,
            metrics,
            policy.browser.session.as_ref(),
            former_verifier,
        );
        let (logins, secret) = (&policy.browser.logins, policy.browser.session.as_ref());
        let secret = secret.and_then(|session| session.secret.as_ref());
        let verifier = verifier.with_logins(logins, secret, (&policy.limits).into(), former_verifier);
        for login in logins {
            counted.logins.create_series(&login.name);
        }
        let generation = former.map_or(0, |former| former.generation.wrapping_add(1));
        let upstreams = Upstreams::new(&policy.upstreams, policy.limits.send_timeout);
        let signer = policy.assertion.as_ref().map(AssertionSigner::new);
        let routes = policy.routes.iter().map(|route| &route.label).chain([&*NO_ROUTE, &*OWN_ROUTE]);
        counted.create_series(
            routes,
            &Carrier::ALL.map(Carrier::name),
            policy.trusted_headers.iter().map(|header| header.name.as_str()),
        );
        let former_keep = former.map_or(Duration::ZERO, |former| former.least_revocation_keep);
        let least_revocation_keep = policy.browser.least_revocation_keep().max(former_keep);
        Self { generation, policy, verifier, signer, upstreams, least_revocation_keep }
    }
}

/// The current runtime, behind one atomic pointer, and the registries that outlive it.
pub struct ProxyState {
    current: ArcSwap<Runtime>,
    /// Sockets that have not authenticated yet.
    pub pending_sockets: PendingSockets,
    /// The memory that unauthenticated callers hold.
    pub budget: MemoryBudget,
    /// The memory that incomplete messages of authenticated users hold.
    pub held_messages: MemoryBudget,
    /// Counts of tokens in URLs, by route and origin.
    pub query_tokens: QueryTokens,
    /// The open sockets of each user, and when each user was last seen.
    pub users: Users,
    /// The users, sessions and tokens that are revoked.
    pub revocations: Arc<Revocations>,
    /// The state that this instance shares with others, if `shared` is configured.
    pub instances: Option<SharedState>,
    /// The connections and failed tokens of each address.
    pub addresses: Addresses,
    /// The source and digest of the current policy: `vestibule.yaml (3f9a1c)`.
    policy_name: ArcSwap<String>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The latest refusals.
    pub refusals: RecentRefusals,
    /// The requests and the refusals of the last minute.
    pub traffic: Traffic,
    /// Notifies open sockets and streams of changes that may end them.
    pub notifier: Notifier,
    /// The state of the drain.
    pub drain: Drain,
    started: Instant,
    connections: AtomicU32,
    /// The last log lines about connections that were rejected, of each limit.
    rejections: [OncePerMinute; 3],
}

/// The request rates of the last minute.
#[derive(Debug, Default)]
pub struct Traffic {
    /// All requests, including upgrades.
    pub requests: LastMinute,
    /// The requests and sockets that were refused here.
    pub refusals: LastMinute,
}

impl ProxyState {
    /// Ends open sockets and streams that are revoked, then writes the revocations to the file. The order matters,
    /// because open connections must not wait for the disk.
    ///
    /// # Errors
    /// Returns an error where the file could not be written, or the revocations could not be sent to other instances
    /// yet. They are in force here in both cases.
    pub async fn enforce_and_save(&self, mut revocations: Vec<Revocation>) -> Result<(), NotSaved> {
        self.notifier.notify();
        let published: Vec<_> = revocations.iter_mut().flat_map(Revocation::published).collect();
        let limit = self.instances.as_ref().map(SharedState::timeout).unwrap_or_default();
        let saving = tokio::task::spawn_blocking(|| Revocation::save_all(revocations));
        let publishing = tokio::time::timeout(limit, async {
            for written in published {
                written.await.map_err(|_| NotSaved::NotShared)?;
            }
            Ok(())
        });
        let (saved, published) = tokio::join!(saving, publishing);
        let file = |error: String| NotSaved::File(error);
        saved.map_err(|error| file(error.to_string()))?.map_err(|error| file(error.to_string()))?;
        published.unwrap_or(Err(NotSaved::NotShared))
    }

    /// Starts with a first policy. It must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// Returns an error where the shared state cannot be used at all. An engine that does not answer is no error.
    pub fn start(policy: Policy, revocations: Revocations) -> Result<Self, EngineError> {
        let revocations = Arc::new(revocations);
        let metrics = Arc::new(Metrics::default());
        revocations.count_writes_by(metrics.revocation_writes.clone());
        let runtime = Runtime::start(policy, Arc::clone(&revocations), Arc::clone(&metrics));
        runtime.verifier.put_in_force();
        let (notifier, drain, budget) = (Notifier::default(), Drain::default(), MemoryBudget::default());
        budget.set_limit(runtime.policy.memory.unauthenticated_bytes);
        let held_messages = MemoryBudget::default();
        held_messages.set_limit(runtime.policy.memory.held_message_bytes);
        if let Some(sessions) = runtime.verifier.login_sessions() {
            let counted = Arc::clone(&metrics);
            sessions.on_renewal(Box::new(move |provider, outcome| counted.logins.renewed(provider, outcome)));
            let (notifier, mut changes) = (notifier.clone(), sessions.changes());
            tokio::spawn(async move {
                while changes.changed().await.is_ok() {
                    notifier.notify();
                }
            });
        }
        let limits = &runtime.policy.limits;
        let open_sockets = Arc::<OpenSockets>::default();
        let login_sessions = runtime.verifier.login_sessions().map(Arc::clone);
        let instances = runtime.policy.shared.as_ref().map(|spec| {
            let (limit, notifier) = (limits.shared_entries(), notifier.clone());
            let notify = Box::new(move || notifier.notify());
            let (revocations, sockets) = (Arc::clone(&revocations), Arc::clone(&open_sockets));
            SharedState::start(spec, limit, revocations, Arc::clone(&metrics), sockets, login_sessions, notify)
        });
        let instances = instances.transpose()?;
        let presences = instances.as_ref().map(SharedState::presences);
        let users = Users::new(Arc::clone(revocations.digests()), open_sockets, presences);
        let (on_close, closing) = (notifier.clone(), drain.clone());
        tokio::spawn(async move {
            closing.closing_token().cancelled().await;
            on_close.notify_closing(closing.close_window(), closing.socket_limit());
        });
        Ok(Self {
            current: ArcSwap::from_pointee(runtime),
            pending_sockets: PendingSockets::default(),
            budget,
            held_messages,
            query_tokens: QueryTokens::default(),
            users,
            revocations,
            instances,
            addresses: Addresses::default(),
            policy_name: ArcSwap::default(),
            metrics,
            refusals: RecentRefusals::default(),
            traffic: Traffic::default(),
            started: Instant::now(),
            notifier,
            drain,
            connections: AtomicU32::new(0),
            rejections: Default::default(),
        })
    }

    /// Returns the current runtime.
    #[must_use]
    pub fn current(&self) -> Arc<Runtime> {
        self.current.load_full()
    }

    /// Returns whether anything can revoke an identity without a browser session before its token expires.
    #[must_use]
    pub fn can_revoke(&self) -> bool {
        self.instances.is_some() || self.current().policy.control.is_some()
    }

    /// Returns the source and digest of the current policy; empty before [`ProxyState::set_policy_name`].
    #[must_use]
    pub fn policy_name(&self) -> Arc<String> {
        self.policy_name.load_full()
    }

    /// Returns this instance's share of `limits.failed_tokens_per_minute`.
    #[must_use]
    pub fn failed_tokens_per_minute(&self, limit: u32) -> u32 {
        self.instances.as_ref().map_or(limit, |instances| instances.share_of(limit))
    }

    /// Publishes the digest of the current configuration to other instances.
    pub fn describe(&self, digest: &str) {
        let runtime = self.current();
        let secret = runtime.policy.browser.session.as_ref().and_then(|session| session.secret.as_ref());
        if let Some(instances) = &self.instances {
            instances.describe(About::new(digest, secret));
        }
    }

    /// Sets the source and digest of the current policy.
    pub fn set_policy_name(&self, name: &str) {
        self.policy_name.store(Arc::new(name.to_owned()));
    }

    /// Replaces the policy: new requests use it, and open sockets are authorized again by it. Making the clients of
    /// providers and upstreams reads files. `is_wanted` is called after that; if it returns false, nothing is replaced.
    pub fn replace(&self, policy: Policy, is_wanted: impl FnOnce() -> bool) {
        let (revocations, metrics) = (Arc::clone(&self.revocations), Arc::clone(&self.metrics));
        let runtime = Runtime::following(Some(&self.current()), policy, revocations, metrics);
        if !is_wanted() {
            return;
        }
        runtime.verifier.put_in_force();
        self.budget.set_limit(runtime.policy.memory.unauthenticated_bytes);
        self.held_messages.set_limit(runtime.policy.memory.held_message_bytes);
        self.current.store(Arc::new(runtime));
        self.notifier.notify();
    }

    /// Records that a valid token of this identity was presented, if the policy has sockets that depend on presence.
    pub fn record_presence(&self, policy: &Policy, identity: &Identity) {
        if let Some(presence) = policy.longest_presence {
            self.users.record_presence(identity, unix_seconds(), policy.limits.presence, presence.as_secs());
        }
    }

    /// Records the end of a request or a socket: access line, metrics, latest refusals.
    pub fn record_end(&self, line: &AccessLine) {
        let ended = Duration::from_millis(unix_millis());
        access(line, ended, self.current().policy.log.access);
        if line.socket.is_none() {
            self.metrics.requests.finished(line);
            self.traffic.requests.record(ended.as_secs());
        }
        if let Some(rule) = line.rule {
            self.metrics.requests.denied(&line.route, rule);
        }
        if self.refusals.record(line) {
            self.traffic.refusals.record(ended.as_secs());
        }
    }

    /// Counts an upgrade that was answered with 101, whose access line is written when the socket ends.
    pub fn record_upgrade(&self, line: &AccessLine) {
        self.metrics.requests.counted(line);
        self.traffic.requests.record(unix_seconds());
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the number of open connections.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a caller that was evicted or rejected at `limits.unauthenticated_bytes`.
    pub fn record_memory_limit(&self) {
        self.record_rejection(Limit::Unauthenticated, None);
    }

    /// Counts a connection that was rejected at a limit. Such a connection has no access line, so that a flood does not fill
    /// the log: one line in a minute tells of it.
    fn record_rejection(&self, limit: Limit, peer: Option<IpAddr>) {
        let key = limit.key();
        self.metrics.limited(key.trim_start_matches("limits."));
        if self.rejections[limit as usize].is_due(unix_seconds()) {
            let most = match limit {
                Limit::Connections => u64::from(self.current().policy.limits.connections),
                Limit::PerAddress => u64::from(self.current().policy.limits.connections_per_address),
                Limit::Unauthenticated => self.current().policy.memory.unauthenticated_bytes as u64,
            };
            tracing::warn!(
                limit = key,
                most,
                client = peer.map(tracing::field::display),
                "connections rejected at a limit; vestibule_limited_total counts them, and this line comes once a minute"
            );
        }
    }

    /// Counts a connection of a listener and reserves its memory, unless `limits.connections`,
    /// `limits.connections_per_address` or `limits.unauthenticated_bytes` is reached.
    ///
    /// # Errors
    /// Returns the limit that is reached.
    pub fn connect(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        listener: &Gauge,
    ) -> Result<(ConnectionCount, MemoryReservation), Limit> {
        let runtime = self.current();
        let limits = &runtime.policy.limits;
        let more = |open| (open < limits.connections).then_some(open + 1);
        if self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            self.record_rejection(Limit::Connections, peer);
            return Err(Limit::Connections);
        }
        listener.inc();
        let mut count = ConnectionCount { state: Arc::clone(self), from: None, listener: listener.clone() };
        // The address of a trusted proxy or a load balancer is shared by many clients.
        let is_one_client = |peer: &IpAddr| !runtime.policy.trusts(*peer) && !self.addresses.is_balancer(*peer);
        if let Some(address) = peer.map(|peer| peer.to_canonical()).filter(is_one_client) {
            let from = address.into();
            if !self.addresses.connect(from, limits.connections_per_address) {
                self.record_rejection(Limit::PerAddress, Some(address));
                return Err(Limit::PerAddress);
            }
            count.from = Some(from);
        }
        let Some(reservation) = self.budget.reserve(SILENT_CONNECTION_BYTES) else {
            self.record_memory_limit();
            return Err(Limit::Unauthenticated);
        };
        Ok((count, reservation))
    }

    /// Returns whether every provider has been asked once, at least one has keys, the revocations of other instances
    /// are loaded, and the process does not drain.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let runtime = self.current();
        !self.drain.is_draining() && runtime.verifier.is_ready() && self.revocations.gate.check().is_ok()
    }

    /// Waits until [`ProxyState::is_ready`], through reloads. Never resolves once the process drains.
    pub async fn until_ready(&self) {
        let mut subscription = self.notifier.subscribe();
        loop {
            let runtime = self.current();
            let is_settled = tokio::select! {
                () = runtime.verifier.until_ready() => true,
                () = subscription.notified() => false,
            };
            if is_settled {
                if self.is_ready() {
                    return;
                }
                // A reload came meanwhile, the process drains, or the revocations of other instances are not known, and
                // will be notified of.
                subscription.notified().await;
            }
        }
    }
}

/// The error of a revocation that is in force at this instance, but was not saved or not shared.
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    /// The revocation ends with the process.
    #[error("control.revocation_file could not be written: {0}")]
    File(String),
    /// The revocation is queued until the engine answers. Other instances do not have it yet.
    #[error("the shared state could not be written")]
    NotShared,
}

impl NotSaved {
    /// Logs the error.
    pub fn log(&self) {
        match self {
            Self::File(error) => log_revocation_not_saved(error),
            Self::NotShared => {
                tracing::error!("writing to the shared state failed, revocations are in force here and queued");
            }
        }
    }
}

/// The limit at which a connection was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.connections`.
    Connections,
    /// `limits.connections_per_address`.
    PerAddress,
    /// `limits.unauthenticated_bytes`.
    Unauthenticated,
}

impl Limit {
    /// Returns the limit's configuration key.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Connections => "limits.connections",
            Self::PerAddress => "limits.connections_per_address",
            Self::Unauthenticated => "limits.unauthenticated_bytes",
        }
    }
}

/// One open connection; counted until dropped.
pub struct ConnectionCount {
    state: Arc<ProxyState>,
    /// The network whose limit it counts toward, unless many clients share the address.
    from: Option<Network>,
    listener: Gauge,
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.listener.dec();
        self.state.connections.fetch_sub(1, Ordering::AcqRel);
        if let Some(from) = self.from {
            self.state.addresses.disconnect(from);
        }
    }
}
