//! Serves `WebSockets`, from the upgrade request to the end of both connections.
//!
//! A socket is authenticated by the credential on its upgrade (`upgrade`) or by its first message (`pending`). Then
//! `relay` forwards messages until the token expires, one side closes, or the process stops. `session` is the state
//! machine of both, and `dialect` reads the messages that are for the proxy. `auth` decides whether a token is valid,
//! and `http` what the upstream gets on the upgrade.

mod admission;
mod assembler;
mod authorizer;
mod classify;
mod close_reason;
mod closing;
mod connect;
mod context;
mod dialect;
mod field;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handshake;
mod open_session;
mod pending;
mod relay;
mod request_hint;
mod session;
mod template;
mod token_forwarding;
mod upgrade;
mod upstream_handshake;

use std::pin::pin;
use std::sync::Arc;

use hyper::header::SEC_WEBSOCKET_KEY;
use hyper::upgrade::OnUpgrade;

use crate::auth::{Carrier, NoCredential};
use crate::authenticate::{Authentication, Authenticator, PresentedCredential};
use crate::http::{ProtectedRequest, PublicRequest, Refusal, Served};
use crate::telemetry::AccessLine;
use close_reason::CloseReason;
use context::{DRAINING, until_drain};
use upgrade::Handshake;

pub use context::SocketContext;

/// Serves an upgrade on a route that requires, or accepts, a credential.
pub async fn serve(mut context: SocketContext, request: ProtectedRequest, line: &mut AccessLine) -> Served {
    let (state, runtime) = (Arc::clone(&context.state), Arc::clone(&context.runtime));
    if state.drain.is_closing() {
        return Served::Refused(Refusal::busy(DRAINING));
    }
    if let Err(refusal) = handshake::check_origin(&request.head().headers, &request.route().websocket) {
        return Served::Refused(refusal);
    }
    let mut presented = PresentedCredential::extract(request, &runtime.policy, None);
    presented.count_query_token(&state);
    let Some(upgrade) = presented.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    let carrier = presented.carrier();
    if carrier == Some(Carrier::Query) && !presented.is_bad() {
        tracing::debug!(path = presented.request().head().uri.path(), "removed the token from the URL");
    }
    let handshake = Handshake::new(presented.request(), upgrade, carrier);
    let reservation = Arc::clone(&context.reservation);
    let authenticator = Authenticator { state: &state, runtime: &runtime, reservation: &reservation, last: None };
    let authentication = until_drain(&state, pin!(authenticator.authenticate(presented, line))).await;
    (context.line.carrier, context.line.user) = (line.carrier, line.user.clone());
    context.line.unverified.clone_from(&line.unverified);
    match authentication {
        None => handshake.refuse_for_drain(context, line),
        Some(Authentication::User(authenticated)) => {
            upgrade::serve_authenticated(context, authenticated, handshake, line).await
        }
        Some(Authentication::Public(public)) => {
            upgrade::serve_public(context, public, handshake.into_upgrade(), line).await
        }
        Some(Authentication::Missing(request, proof)) => {
            await_first_message(context, request, handshake.into_upgrade(), proof)
        }
        Some(Authentication::Refused(failure)) => {
            let reason = CloseReason::of_failure(&failure);
            handshake.refuse(context, failure.refusal(runtime.policy.verbose_errors), reason, line)
        }
    }
}

/// Serves an upgrade on a public route.
pub async fn serve_public(context: SocketContext, mut public: PublicRequest, line: &mut AccessLine) -> Served {
    if context.state.drain.is_closing() {
        return Served::Refused(Refusal::busy(DRAINING));
    }
    if let Err(refusal) = handshake::check_origin(&public.head().headers, &public.route().websocket) {
        return Served::Refused(refusal);
    }
    let Some(upgrade) = public.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    upgrade::serve_public(context, public, upgrade, line).await
}

/// Answers 101 to an upgrade without a credential, whose first message is to carry the token. The route must have a
/// dialect, and the number of pending sockets is limited.
fn await_first_message(
    context: SocketContext,
    request: ProtectedRequest,
    upgrade: OnUpgrade,
    proof: NoCredential,
) -> Served {
    let route = Arc::clone(request.route());
    let (Some(dialect), true) = (&route.websocket.dialect, route.token_from.message) else {
        let query = request.head().uri.query().unwrap_or_default();
        let cause = request_hint::of_missing_token(None, query, &route.token_from);
        return Served::Refused(Refusal::missing_token().because(cause.unwrap_or_default()));
    };
    let limits = &context.policy().limits;
    let client = request.client();
    // If clients cannot be distinguished by address, only the total counts.
    let per_address =
        client.limited_address().map_or(limits.waiting_websockets, |_| limits.waiting_websockets_per_address);
    let Some(slot) = context.state.pending_sockets.add(client.address, limits.waiting_websockets, per_address) else {
        context.state.metrics.limited("waiting_websockets");
        return Served::Refused(Refusal::busy("limits.waiting_websockets or limits.waiting_websockets_per_address"));
    };
    let headers = &request.head().headers;
    let subprotocol = handshake::select_subprotocol(headers, &route.websocket);
    if subprotocol.is_none() && handshake::offers_subprotocols(headers) {
        tracing::warn!(route = %route.label, "no offered subprotocol is in websocket.subprotocols of this route; the socket has none");
    }
    let response = handshake::switching_protocols(headers.get(SEC_WEBSOCKET_KEY), subprotocol.as_ref());
    pending::spawn(
        context,
        upgrade,
        pending::PendingUpgrade { request, _proof: proof, slot, dialect: Arc::clone(dialect), subprotocol },
    );
    Served::Upgraded(response)
}
