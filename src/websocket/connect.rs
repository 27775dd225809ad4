//! Connects to the upstream with the upgrade request, and authenticates the user there where it checks tokens itself.

use std::sync::Arc;
use std::time::Instant;

use hyper::{HeaderMap, StatusCode};
use tokio::time::timeout;

use super::close_reason::CloseReason;
use super::context::SocketContext;
use super::token_forwarding::TokenForwarding;
use super::upstream_handshake::authenticate;
use crate::auth::Token;
use crate::http::{Answer, Refusal, UpstreamRequest, UpstreamSocket};
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::Label;

/// The result of an upgrade request to the upstream.
pub(super) enum UpgradeOutcome {
    /// The upstream's 101 and its socket.
    Open(HeaderMap, UpstreamSocket),
    /// Another answer of the upstream.
    Answered(Answer),
    /// No usable answer.
    Failed(Refusal, CloseReason),
}

/// The values that connecting needs in addition to the request.
pub(super) struct UpstreamContext {
    state: Arc<ProxyState>,
    runtime: Arc<Runtime>,
    route: Label,
}

impl UpstreamContext {
    pub(super) fn of(context: &SocketContext) -> Self {
        Self {
            state: Arc::clone(&context.state),
            runtime: Arc::clone(&context.runtime),
            route: Arc::clone(&context.line.route),
        }
    }
}

/// Sends the upgrade request, and the token after the 101 where the upstream wants it in the first message.
pub(super) async fn connect_upstream(
    context: UpstreamContext,
    request: UpstreamRequest,
    forwarding: &TokenForwarding,
    token: Option<&Token>,
) -> UpgradeOutcome {
    let UpstreamContext { state, runtime, route } = context;
    let requests = &state.metrics.requests;
    for header in request.stripped() {
        requests.stripped(header);
    }
    let sent = Instant::now();
    let answered = runtime.upstreams.upgrade(request).await;
    if answered.is_ok() {
        requests.answered(&route, sent.elapsed());
    }
    let (head, upgraded) = match answered {
        Ok(Ok(open)) => open,
        Ok(Err(answer)) => return UpgradeOutcome::Answered(answer),
        Err(error) => {
            if let Some(reason) = error.reason() {
                requests.upstream_failed(&route, reason);
            }
            return UpgradeOutcome::Failed(Refusal::of_upstream(&error), CloseReason::UpstreamFailed);
        }
    };
    let Some((dialect, token)) = forwarding.upstream_dialect.as_deref().zip(token) else {
        return UpgradeOutcome::Open(head, upgraded);
    };
    match timeout(forwarding.handshake_timeout, authenticate(upgraded, dialect, token)).await {
        Ok(Ok(upgraded)) => UpgradeOutcome::Open(head, upgraded),
        Ok(Err(CloseReason::UpstreamRefused)) => {
            UpgradeOutcome::Failed(Refusal::first_message_refused(), CloseReason::UpstreamRefused)
        }
        Ok(Err(reason)) => UpgradeOutcome::Failed(
            Refusal::upstream_failed("the upstream did not acknowledge the first message"),
            reason,
        ),
        Err(_) => UpgradeOutcome::Failed(
            Refusal::upstream_timeout(
                "the upstream did not acknowledge the first message within upstream.handshake_timeout",
            ),
            CloseReason::UpstreamFailed,
        ),
    }
}

/// Describes an upstream's refusal of an upgrade, with its possible causes.
pub(super) fn describe_refusal(status: StatusCode) -> String {
    let hint = match status {
        StatusCode::UNAUTHORIZED => "; if it checks tokens itself, set upstream.token_to.websocket",
        // Starlette answers 403 to a path without a WebSocket route.
        StatusCode::FORBIDDEN => {
            "; it may serve no WebSocket at this path, refuse the Origin, or check tokens itself (upstream.token_to.websocket)"
        }
        StatusCode::NOT_FOUND => "; it serves no WebSocket at this path",
        _ => "",
    };
    format!("the upstream answered {} to the upgrade{hint}", status.as_u16())
}

/// Returns the close reason (docs/contract.md section 4.2) for an upstream that answered an upgrade with this status.
pub(super) fn close_reason_of(status: StatusCode) -> CloseReason {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CloseReason::UpstreamRefused,
        StatusCode::NOT_FOUND => CloseReason::UpstreamNotFound,
        StatusCode::SERVICE_UNAVAILABLE => CloseReason::UpstreamBusy,
        _ => CloseReason::UpstreamFailed,
    }
}
