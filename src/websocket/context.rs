//! The parts of the proxy that the handling of one socket needs, and the resources that the socket holds until its
//! access line is written.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::StatusCode;

use super::relay::SocketOutcome;
use crate::auth::Identity;
use crate::budget::MemoryReservation;
use crate::policy::{OnExpiry, Policy, WebSocketSpec};
use crate::runtime::{ConnectionCount, Moment, OpenSocket, PresenceKey, ProxyState, Runtime};
use crate::telemetry::{AccessLine, AnsweredBy, OpenLine, Outcome, SocketLife};

/// The reason of a refusal while the proxy drains.
pub(super) const DRAINING: &str = "draining";

/// The context of one socket, from its upgrade request until messages are relayed.
pub struct SocketContext {
    pub(super) state: Arc<ProxyState>,
    pub(super) runtime: Arc<Runtime>,
    /// The connection's place among `limits.connections`, held until the socket ends.
    connection: Arc<ConnectionCount>,
    /// The memory reserved for the caller while it is unauthenticated.
    pub(super) reservation: Arc<MemoryReservation>,
    /// The socket's place among its user's sockets, as soon as the user is known.
    pub(super) user_socket: Option<OpenSocket>,
    pub(super) line: AccessLine,
    started: Moment,
}

impl SocketContext {
    /// Makes the context with a copy of the request's access line. Until the socket is open the request may still need
    /// its own line, also when its client disconnects meanwhile.
    #[must_use]
    pub fn new(
        state: &Arc<ProxyState>,
        runtime: &Arc<Runtime>,
        connection: &Arc<ConnectionCount>,
        reservation: &Arc<MemoryReservation>,
        line: &AccessLine,
    ) -> Self {
        Self {
            state: Arc::clone(state),
            runtime: Arc::clone(runtime),
            connection: Arc::clone(connection),
            reservation: Arc::clone(reservation),
            user_socket: None,
            line: line.clone(),
            started: Moment::now(),
        }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.runtime.policy
    }

    /// Returns the handle to a user's presence on a route where a socket may outlive its token by it.
    pub(super) fn presence(&self, spec: &WebSocketSpec, identity: &Identity) -> Option<Box<PresenceKey>> {
        (spec.on_expiry == OnExpiry::Auto).then(|| Box::new(self.state.users.presence_key(identity, spec.presence)))
    }

    /// Writes the access line of a client that disconnected before its 101 could be written.
    pub(super) fn client_left(mut self) {
        self.line.outcome = Outcome::Left;
        self.log_never_opened(&SocketOutcome::left(None));
    }

    /// Writes the access line of a socket that was never open.
    pub(super) fn log_never_opened(self, outcome: &SocketOutcome) {
        if self.line.outcome != Outcome::Left {
            self.state.metrics.sockets.refused(self.line.outcome.name());
        }
        write_line(&self.state, self.line, self.started, outcome);
    }

    /// Keeps what an open socket needs. The runtime is dropped, since a reload may replace it while the socket is open.
    pub(super) fn into_record(self) -> SocketRecord {
        let Self { state, connection, user_socket, line, started, .. } = self;
        SocketRecord { state, line: OpenLine::new(&line), started, _connection: connection, _user_socket: user_socket }
    }
}

/// The resources of an open socket, and the values of its access line.
pub(super) struct SocketRecord {
    state: Arc<ProxyState>,
    line: OpenLine,
    started: Moment,
    _connection: Arc<ConnectionCount>,
    _user_socket: Option<OpenSocket>,
}

impl SocketRecord {
    /// Counts an open socket that has ended, writes its access line and releases its places.
    pub(super) fn close(self, outcome: &SocketOutcome) {
        let sockets = &self.state.metrics.sockets;
        sockets.closed(self.line.route(), outcome.code, outcome.closed_by.name(), self.started.elapsed());
        write_line(&self.state, self.line.into_line(), self.started, outcome);
    }
}

/// Writes the access line of a socket that has ended.
fn write_line(state: &ProxyState, mut line: AccessLine, started: Moment, outcome: &SocketOutcome) {
    line.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    line.duration = started.elapsed();
    line.bytes_in = outcome.bytes_in;
    line.bytes_out = outcome.bytes_out;
    if line.answered_by == AnsweredBy::Nobody {
        line.answered_by = AnsweredBy::Vestibule;
    }
    line.socket = Some(Box::new(SocketLife {
        close_code: outcome.code,
        closed_by: outcome.closed_by.name(),
        refreshes: outcome.refreshes,
    }));
    state.record_end(&line);
}

/// Awaits `future`, and returns `None` if the proxy starts to drain meanwhile. A provider or an upstream that does not
/// answer must not delay the drain.
/// The future is pinned by the caller: one that is moved in here would take its size twice.
pub(super) async fn until_drain<T>(state: &ProxyState, future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let closing = state.drain.closing_token();
    tokio::select! {
        biased;
        output = future => Some(output),
        () = closing.cancelled() => None,
    }
}
