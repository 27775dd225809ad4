//! The path of a WebSocket: who it is is proved on the upgrade or by its first message, then messages
//! flow until its token ends, someone leaves, or the process stops.
//!
//! Owns everything between an admitted upgrade and the last byte of its socket: the 101, the
//! vestibule where a socket waits, the dialect, the session's state and the relay. Whether a token is
//! good is `auth`'s, what goes up on the upgrade `http`'s.

mod admission;
mod classify;
mod dialect;
mod door;
mod ending;
mod field;
pub mod frame;
mod handshake;
mod intake;
mod introduction;
mod judge;
mod relay;
pub mod session;
mod template;
mod waiting;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Instant;

use hyper::header::{HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::auth::{Carrier, Identity, NoCredential, unix_seconds};
use crate::authenticate::{Authentication, Authenticator, Presented};
use crate::budget::MemoryReservation;
use crate::http::{Answer, ClientStream, ProtectedRequest, PublicRequest, Refusal, Socket};
use crate::policy::{OnExpiry, Policy, WebSocketSpec};
use crate::runtime::{ConnectionCount, OpenSocket, Presence, Runtime, Shared};
use crate::telemetry::{AccessLine, AnsweredBy, Outcome as LineOutcome, SocketLife};

use door::{Door, WayUp};
use ending::Ending;
use judge::Judge;
use relay::{Beginning, Outcome, Relay, Times};
use session::Life;

/// What became of an upgrade.
pub enum Served {
    /// A 101; the socket writes its own access line when it ends.
    Upgraded(Answer),
    /// The upstream's own answer.
    Answered(Answer),
    /// An answer of one of our own endpoints.
    Ours(Answer),
    /// Our answer to a preflight.
    Preflight(Answer),
    /// Ours, in the words of a refusal.
    Refused(Refusal),
}

/// What every socket of this request shares.
pub struct Context {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
    /// The place of its connection among `limits.connections`, until the socket has gone.
    count: Arc<ConnectionCount>,
    /// What it holds until its user is known.
    share: Arc<MemoryReservation>,
    /// Its place among its user's sockets, once there is a user.
    open: Option<OpenSocket>,
    line: AccessLine,
    started: Instant,
}

impl Context {
    /// Takes a copy of the request's line: until the socket stands the request may still need its own,
    /// also when its client leaves meanwhile.
    #[must_use]
    pub fn new(
        shared: &Arc<Shared>,
        runtime: &Arc<Runtime>,
        count: &Arc<ConnectionCount>,
        share: &Arc<MemoryReservation>,
        line: &AccessLine,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            runtime: Arc::clone(runtime),
            count: Arc::clone(count),
            share: Arc::clone(share),
            open: None,
            line: line.clone(),
            started: Instant::now(),
        }
    }

    fn way_up(&self) -> WayUp {
        let (shared, runtime) = (Arc::clone(&self.shared), Arc::clone(&self.runtime));
        WayUp { shared, runtime, route: Arc::clone(&self.line.route) }
    }

    fn policy(&self) -> &Policy {
        &self.runtime.policy
    }

    /// What its user's presence is kept by, where the socket may outlive its token by it.
    fn presence(&self, spec: &WebSocketSpec, identity: &Identity) -> Option<Presence> {
        (spec.on_expiry == OnExpiry::Auto).then(|| self.shared.users.presence(identity))
    }

    fn times(&self, spec: &WebSocketSpec) -> Times {
        Times {
            ping_interval: spec.ping_interval.into(),
            ping_timeout: spec.ping_timeout.into(),
            idle_timeout: spec.idle_timeout.map(Into::into),
            send_timeout: self.policy().limits.send_timeout.into(),
            token_bytes: self.policy().limits.token_bytes,
            message_bytes: spec.message_bytes,
            drain_code: spec.drain_code,
        }
    }

    /// Writes the line of a client that left before our 101 could be written.
    fn left(mut self) {
        self.line.outcome = LineOutcome::Left;
        self.ended(&Outcome::left(None));
    }

    /// Writes the line of a socket that came to nothing.
    fn ended(self, outcome: &Outcome) {
        if self.line.outcome != LineOutcome::Left {
            self.shared.metrics.sockets.refused(self.line.outcome.name());
        }
        self.into_record().ended(outcome);
    }

    /// What is kept while the socket is open: not the runtime it began with, which a reload has replaced.
    fn into_record(self) -> Record {
        let Self { shared, count, open, line, started, .. } = self;
        Record { shared, count, open, line, started }
    }
}

/// What a socket holds as long as it lives, and what is said of it in the end.
struct Record {
    shared: Arc<Shared>,
    count: Arc<ConnectionCount>,
    open: Option<OpenSocket>,
    line: AccessLine,
    started: Instant,
}

impl Record {
    /// One that was open has ended.
    fn closed(self, outcome: &Outcome) {
        let (sockets, lived) = (&self.shared.metrics.sockets, self.started.elapsed());
        sockets.closed(&self.line.route, outcome.code, outcome.closed_by.name(), lived);
        self.ended(outcome);
    }

    fn ended(mut self, outcome: &Outcome) {
        self.line.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        self.line.duration = self.started.elapsed();
        self.line.bytes_in = outcome.bytes_in;
        self.line.bytes_out = outcome.bytes_out;
        if self.line.answered_by == AnsweredBy::Nobody {
            self.line.answered_by = AnsweredBy::Vestibule;
        }
        self.line.socket = Some(SocketLife {
            close_code: outcome.code,
            closed_by: outcome.closed_by.name(),
            refreshes: outcome.refreshes,
        });
        self.shared.finished(&self.line);
        drop((self.count, self.open));
    }
}

/// Serves an upgrade on a route that wants, or takes, a credential.
pub async fn serve(mut context: Context, request: ProtectedRequest, line: &mut AccessLine) -> Served {
    let (shared, runtime) = (Arc::clone(&context.shared), Arc::clone(&context.runtime));
    if shared.drain.is_closing() {
        return Served::Refused(Refusal::busy(door::DRAINING));
    }
    if let Err(refusal) = handshake::check_origin(&request.head().headers, &request.route().websocket) {
        return Served::Refused(refusal);
    }
    let mut presented = Presented::extract(request, &runtime.policy);
    count_query_token(&shared, &presented);
    let Some(upgrade) = presented.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    let carrier = presented.carrier();
    if carrier == Some(Carrier::Query) && !presented.is_bad() {
        tracing::debug!(path = presented.request().head().uri.path(), "removed the token from the URL");
    }
    let door = Door::new(presented.request(), upgrade, carrier);
    let share = Arc::clone(&context.share);
    let authenticator = Authenticator { shared: &shared, runtime: &runtime, share: &share, last: None };
    let authentication = door::while_serving(&shared, authenticator.authenticate(presented, line)).await;
    (context.line.carrier, context.line.user) = (line.carrier, line.user.clone());
    match authentication {
        None => door.refuse_for_drain(context, line),
        Some(Authentication::User(authenticated)) => door::with_user(context, authenticated, door, line).await,
        Some(Authentication::Public(public)) => door::tunnel(context, public, door.into_upgrade(), line).await,
        Some(Authentication::Missing(request, proof)) => {
            wait_for_credential(context, request, door.into_upgrade(), proof)
        }
        Some(Authentication::Refused(failure)) => {
            let ending = Ending::of_failure(&failure);
            door.refuse(context, failure.refusal(runtime.policy.verbose_errors), ending, line)
        }
    }
}

/// Lets a socket without a credential wait in the vestibule, where its route has a dialect and there is room.
fn wait_for_credential(context: Context, request: ProtectedRequest, upgrade: OnUpgrade, proof: NoCredential) -> Served {
    let route = Arc::clone(request.route());
    let (Some(dialect), true) = (&route.websocket.dialect, route.token_from.message) else {
        return Served::Refused(Refusal::missing_token());
    };
    let limits = &context.policy().limits;
    let client = request.client();
    // Where clients cannot be told apart, only the total counts.
    let per_address =
        client.limited_address().map_or(limits.waiting_websockets, |_| limits.waiting_websockets_per_address);
    let Some(seat) = context.shared.room.enter(client.address, limits.waiting_websockets, per_address) else {
        context.shared.metrics.limited("waiting_websockets");
        return Served::Refused(Refusal::busy("the waiting room is full"));
    };
    let subprotocol = handshake::chosen(&request.head().headers, &route.websocket);
    if subprotocol.is_none() && handshake::offers_any(&request.head().headers) {
        tracing::warn!(route = %route.label, "no offered subprotocol is in websocket.subprotocols of this route; the socket has none");
    }
    let response = handshake::switching(&request.head().headers, subprotocol.as_ref());
    let held = context.shared.drain.track();
    let waiting = waiting::Waiting { request, _proof: proof, seat, dialect: Arc::clone(dialect), subprotocol };
    tokio::spawn(async move {
        waiting.run(context, upgrade).await;
        drop(held);
    });
    Served::Upgraded(response)
}

/// Tells who still puts tokens into URLs, once a day for each route and origin.
fn count_query_token(shared: &Shared, presented: &Presented) {
    if presented.carrier() != Some(Carrier::Query) {
        return;
    }
    let request = presented.request();
    let origin = request.head().headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin =
        origin.map_or_else(|| "a client without Origin".to_owned(), |origin| origin.chars().take(256).collect());
    let route = &request.route().label;
    let mode = if presented.is_bad() { "deny" } else { "move" };
    shared.metrics.sockets.in_query(route, mode);
    if shared.query_tokens.count(route, &origin, unix_seconds()) {
        tracing::warn!(%origin, %route, "deprecated: token in the query string; send it as the first message");
    }
}

/// Serves an upgrade on a public route: a plain tunnel.
pub async fn tunnel(context: Context, mut public: PublicRequest, line: &mut AccessLine) -> Served {
    if context.shared.drain.is_closing() {
        return Served::Refused(Refusal::busy(door::DRAINING));
    }
    if let Err(refusal) = handshake::check_origin(&public.head().headers, &public.route().websocket) {
        return Served::Refused(refusal);
    }
    let Some(upgrade) = public.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    door::tunnel(context, public, upgrade, line).await
}

fn life(spec: &WebSocketSpec) -> Life {
    Life { grace: spec.grace, on_expiry: spec.on_expiry, presence: spec.presence, max_lifetime: spec.max_lifetime }
}

/// The relay is a task of its own: it lives for hours, and should not carry the room that the
/// handshake needed.
fn relay_to_the_end(context: Context, beginning: Beginning, judge: Box<dyn Judge>, spec: &WebSocketSpec) {
    let bell = context.shared.bell.listen_in_turn();
    let passed = context.shared.metrics.sockets.opened(&context.line.route, context.line.carrier);
    let relay = Relay::new(beginning, judge, bell, context.times(spec), passed);
    let held = context.shared.drain.track();
    tokio::spawn(OpenSession { relay, record: Some(context.into_record()), _held: held });
}

/// An open socket until its line is written. By hand: an `async` block that awaits the relay keeps room
/// for it twice (measured: 2,664 bytes instead of 1,520), and there are thousands of these.
struct OpenSession {
    relay: Relay,
    record: Option<Record>,
    _held: TaskTrackerToken,
}

impl Future for OpenSession {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let outcome = ready!(Pin::new(&mut this.relay).poll(cx));
        if let Some(record) = this.record.take() {
            record.closed(&outcome);
        }
        Poll::Ready(())
    }
}

/// The client's bare socket and what it had sent behind its upgrade.
async fn client_socket(upgrade: OnUpgrade) -> Option<(Socket, Vec<u8>)> {
    // An error is a client that left before its 101 was written.
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<ClientStream>>().ok()?;
    // Copied out: even an empty slice of hyper's read buffer keeps the whole of it alive.
    let early = parts.read_buf.to_vec();
    Some((parts.io.into_inner().into_socket(), early))
}

/// Whether the upstream took the one subprotocol it was offered.
fn took(head: &HeaderMap, offered: Option<&HeaderValue>) -> bool {
    head.get(SEC_WEBSOCKET_PROTOCOL) == offered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are thousands of these, each in one allocation with the executor's own bytes.
    #[test]
    fn an_open_session_stays_small() {
        let size = std::mem::size_of::<OpenSession>();
        assert!(size <= 1_408, "{size} bytes do not fit the allocator's class of 1,536 with the executor's own");
    }
}
