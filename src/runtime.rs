//! What a request runs with: the policy in force with its verifier and upstream client, and what
//! outlives a change of policy (the waiting room, the drain, counts).

mod addresses;
mod bell;
mod query_tokens;
mod refusals;
mod room;
mod users;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;

use crate::auth::{Identity, Revocation, Revocations, Verifier, unix_seconds};
use crate::budget::{MemoryBudget, MemoryReservation, SILENT_CONNECTION_BYTES};
use crate::drain::Drain;
use crate::http::{AssertionSigner, Upstreams};
use crate::policy::Policy;
use crate::telemetry::{AccessLine, Metrics, NO_ROUTE, OWN_ROUTE, access};

pub use addresses::Addresses;
pub use bell::{Bell, Ear, Listening};
pub use query_tokens::QueryTokens;
pub use refusals::Refusals;
pub use room::{Room, Seat};
pub use users::{OpenSocket, Presence, Users};

/// One policy and everything made from it. A request ends with the runtime it began with.
pub struct Runtime {
    /// Which one it is: 0 at start, one more with every reload.
    pub generation: u64,
    /// The rules.
    pub policy: Policy,
    /// Verifies tokens by the policy's providers.
    pub verifier: Verifier,
    /// Signs what goes up, where the policy says so.
    pub signer: Option<AssertionSigner>,
    /// Speak to the policy's upstreams.
    pub upstreams: Upstreams,
}

impl Runtime {
    /// Makes a first runtime from a policy and starts fetching keys. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(policy: Policy, revocations: Arc<Revocations>, metrics: Arc<Metrics>) -> Self {
        Self::following(None, policy, revocations, metrics)
    }

    /// What is the same as in `former` keeps its own.
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
            counted.logins.introduce(&login.name);
        }
        let generation = former.map_or(0, |former| former.generation + 1);
        let upstreams = Upstreams::new(&policy.upstreams, policy.limits.send_timeout);
        let signer = policy.assertion.as_ref().map(AssertionSigner::new);
        let routes = policy.routes.iter().map(|route| &route.label).chain([&*NO_ROUTE, &*OWN_ROUTE]);
        counted.introduce(routes, policy.trusted_headers.iter().map(|header| header.name.as_str()));
        Self { generation, policy, verifier, signer, upstreams }
    }
}

/// The runtime in force, behind one atomic pointer, and what outlives it.
pub struct Shared {
    current: ArcSwap<Runtime>,
    /// Sockets that wait for their first message.
    pub room: Room,
    /// What callers hold that are not known.
    pub budget: MemoryBudget,
    /// What the unfinished messages of known users hold that are read whole.
    pub held_messages: MemoryBudget,
    /// Who still puts tokens into URLs.
    pub query_tokens: QueryTokens,
    /// Who has sockets open, and who was seen when.
    pub users: Users,
    /// Who is refused although its token is good.
    pub revocations: Arc<Revocations>,
    /// What each address has done.
    pub addresses: Addresses,
    /// What the policy in force is called: `vestibule.yaml (3f9a1c)`.
    name: ArcSwap<String>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who was refused last.
    pub refusals: Refusals,
    /// Rings when something may end what is open.
    pub bell: Bell,
    /// Stopping.
    pub drain: Drain,
    connections: AtomicU32,
}

impl Shared {
    /// Has open sockets and streams end that are revoked by now, then writes the revocations to the file: what is open
    /// does not wait for the disk.
    ///
    /// # Errors
    /// Why the file could not be written. The revocations stay in force until the process ends.
    pub async fn enforce_and_save(&self, revocations: Vec<Revocation>) -> Result<(), String> {
        self.bell.ring();
        let saving = tokio::task::spawn_blocking(|| revocations.into_iter().try_for_each(Revocation::save));
        saving.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Puts a first policy in force. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(policy: Policy, revocations: Revocations) -> Self {
        let revocations = Arc::new(revocations);
        let metrics = Arc::new(Metrics::default());
        let runtime = Runtime::start(policy, Arc::clone(&revocations), Arc::clone(&metrics));
        let (bell, drain, budget) = (Bell::default(), Drain::default(), MemoryBudget::default());
        budget.set_limit(runtime.policy.memory.unauthenticated_bytes);
        let held_messages = MemoryBudget::default();
        held_messages.set_limit(runtime.policy.memory.held_message_bytes);
        if let Some(sessions) = runtime.verifier.login_sessions() {
            let counted = Arc::clone(&metrics);
            sessions.on_renewal(Box::new(move |provider, outcome| counted.logins.renewed(provider, outcome)));
            let (rung, mut changes) = (bell.clone(), sessions.changes());
            tokio::spawn(async move {
                while changes.changed().await.is_ok() {
                    rung.ring();
                }
            });
        }
        let (rung, closing) = (bell.clone(), drain.clone());
        tokio::spawn(async move {
            closing.closing_token().cancelled().await;
            rung.ring_closing(closing.close_window());
        });
        Self {
            current: ArcSwap::from_pointee(runtime),
            room: Room::default(),
            budget,
            held_messages,
            query_tokens: QueryTokens::default(),
            users: Users::default(),
            revocations,
            addresses: Addresses::default(),
            name: ArcSwap::default(),
            metrics,
            refusals: Refusals::default(),
            bell,
            drain,
            connections: AtomicU32::new(0),
        }
    }

    /// The runtime in force now.
    #[must_use]
    pub fn current(&self) -> Arc<Runtime> {
        self.current.load_full()
    }

    /// What the policy in force is called; empty where nobody has said.
    #[must_use]
    pub fn in_force(&self) -> Arc<String> {
        self.name.load_full()
    }

    /// Says what the policy in force is called.
    pub fn call(&self, name: &str) {
        self.name.store(Arc::new(name.to_owned()));
    }

    /// Puts another policy in force: for requests from now on, and for every open socket, which is judged by it.
    pub fn replace(&self, policy: Policy) {
        let (revocations, metrics) = (Arc::clone(&self.revocations), Arc::clone(&self.metrics));
        let runtime = Runtime::following(Some(&self.current()), policy, revocations, metrics);
        self.budget.set_limit(runtime.policy.memory.unauthenticated_bytes);
        self.held_messages.set_limit(runtime.policy.memory.held_message_bytes);
        self.current.store(Arc::new(runtime));
        self.bell.ring();
    }

    /// Notes that a valid token of this identity was presented, where any socket's life hangs on that.
    pub fn see(&self, policy: &Policy, identity: &Identity) {
        if let Some(presence) = policy.longest_presence {
            self.users.see(identity, unix_seconds(), policy.limits.presence, presence.as_secs());
        }
    }

    /// A request or a socket has come to its end.
    pub fn finished(&self, line: &AccessLine) {
        access(line, self.current().policy.log.access);
        if line.socket.is_none() {
            self.metrics.requests.finished(line);
        }
        if let Some(rule) = line.rule {
            self.metrics.requests.denied(&line.route, rule);
        }
        self.refusals.note(line);
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Notes that a caller gave way at `limits.unauthenticated_bytes`.
    pub fn gave_way(&self) {
        self.metrics.limited("unauthenticated_bytes");
    }

    /// Counts a connection of a listener, unless `limits.connections` of them are open, or `limits.connections_per_address` of
    /// this peer's, or callers that are not known hold as much as they may.
    ///
    /// # Errors
    /// Which limit.
    pub fn connect(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        listener: &Gauge,
    ) -> Result<(ConnectionCount, MemoryReservation), Limit> {
        let runtime = self.current();
        let limits = &runtime.policy.limits;
        let more = |open| (open < limits.connections).then_some(open + 1);
        if self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            self.metrics.limited("connections");
            return Err(Limit::Connections);
        }
        listener.inc();
        let mut count = ConnectionCount { shared: Arc::clone(self), address: None, listener: listener.clone() };
        // Behind these stand many clients.
        let is_one = |peer: &IpAddr| !runtime.policy.trusts(*peer) && !self.addresses.is_a_balancer(*peer);
        if let Some(address) = peer.map(|peer| peer.to_canonical()).filter(is_one) {
            if !self.addresses.connect(address, limits.connections_per_address) {
                self.metrics.limited("connections_per_address");
                return Err(Limit::PerAddress);
            }
            count.address = Some(address);
        }
        let Some(share) = self.budget.reserve(SILENT_CONNECTION_BYTES) else {
            self.gave_way();
            return Err(Limit::Unauthenticated);
        };
        Ok((count, share))
    }

    /// Whether one attempt on every provider has ended and at least one has keys, and nothing drains.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let runtime = self.current();
        let mut providers = runtime.verifier.providers().map(|(_, keys)| keys.health()).peekable();
        let none = providers.peek().is_none();
        let (mut attempted, mut usable) = (true, none);
        for health in providers {
            attempted &= health.attempted;
            usable |= health.keys > 0;
        }
        !self.drain.is_draining() && attempted && usable
    }
}

/// Why there is no room for a connection.
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
    /// Its key, for the log.
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
    shared: Arc<Shared>,
    /// Where it counts among those of its address too.
    address: Option<IpAddr>,
    listener: Gauge,
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.listener.dec();
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
        if let Some(address) = self.address {
            self.shared.addresses.disconnect(address);
        }
    }
}
