//! What a request runs with: the policy in force with its verifier and upstream client, and what
//! outlives a change of policy (the waiting room, the drain, counts).

mod bell;
mod query_tokens;
mod room;
mod users;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;

use crate::auth::{Identity, Revocations, Verifier, now};
use crate::drain::Drain;
use crate::http::Upstreams;
use crate::policy::Policy;
use crate::telemetry::Metrics;

pub use bell::{Bell, Ear, Listening};
pub use query_tokens::QueryTokens;
pub use room::{Room, Seat};
pub use users::{OpenSocket, Presence, Users};

/// One policy and everything made from it. A request ends with the runtime it began with.
pub struct Runtime {
    /// The rules.
    pub policy: Policy,
    /// Verifies tokens by the policy's providers.
    pub verifier: Verifier,
    /// Speak to the policy's upstreams.
    pub upstreams: Upstreams,
}

impl Runtime {
    /// Makes a runtime from a policy and starts fetching keys. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(policy: Policy, revocations: Arc<Revocations>, metrics: Arc<Metrics>) -> Self {
        let verifier = Verifier::start(&policy.providers, policy.limits.token_cache, revocations, metrics);
        let upstreams = Upstreams::new(&policy.upstreams, policy.limits.send_timeout);
        Self { policy, verifier, upstreams }
    }
}

/// The runtime in force, behind one atomic pointer, and what outlives it.
pub struct Shared {
    current: ArcSwap<Runtime>,
    /// Sockets that wait for their first message.
    pub room: Room,
    /// Who still puts tokens into URLs.
    pub query_tokens: QueryTokens,
    /// Who has sockets open, and who was seen when.
    pub users: Users,
    /// Who is refused although its token is good.
    pub revocations: Arc<Revocations>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Rings when something may end what is open.
    pub bell: Bell,
    /// Stopping.
    pub drain: Drain,
    connections: AtomicU32,
}

impl Shared {
    /// Puts a first policy in force. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(policy: Policy, revocations: Revocations) -> Self {
        let revocations = Arc::new(revocations);
        let metrics = Arc::new(Metrics::default());
        let runtime = Runtime::start(policy, Arc::clone(&revocations), Arc::clone(&metrics));
        let (bell, drain) = (Bell::default(), Drain::default());
        let (rung, closing) = (bell.clone(), drain.closing());
        tokio::spawn(async move {
            closing.cancelled().await;
            rung.ring_closing();
        });
        Self {
            current: ArcSwap::from_pointee(runtime),
            room: Room::default(),
            query_tokens: QueryTokens::default(),
            users: Users::default(),
            revocations,
            metrics,
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

    /// Notes that a valid token of this identity was presented, where any socket's life hangs on that.
    pub fn see(&self, policy: &Policy, identity: &Identity) {
        if let Some(presence) = policy.longest_presence {
            self.users.see(identity, now(), policy.limits.presence, presence.as_secs());
        }
    }

    /// Counts a connection, unless `limit` of them are open.
    #[must_use]
    pub fn connect(self: &Arc<Self>, limit: u32) -> Option<ConnectionCount> {
        let counted = self
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1));
        counted.ok().map(|_| ConnectionCount(Arc::clone(self)))
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
        !self.drain.is_leaving() && attempted && usable
    }
}

/// One open connection; counted until dropped.
pub struct ConnectionCount(Arc<Shared>);

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}
