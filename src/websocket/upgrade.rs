//! Serves an upgrade that can be answered at once: its credential came with the request, or it needs none. The upstream
//! is connected first, and the client gets its answer. A refusal is sent in the form that the client can read.

use std::pin::pin;
use std::sync::Arc;

use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Response, StatusCode};

use super::admission::{AdmittedSession, admit_user};
use super::authorizer::{PublicAuthorizer, SessionAuthorizer};
use super::close_reason::CloseReason;
use super::closing::close_gracefully;
use super::connect::{UpgradeOutcome, UpstreamContext, close_reason_of, connect_upstream, describe_refusal};
use super::context::{DRAINING, SocketContext, until_drain};
use super::frame::close_payload;
use super::relay::{RelayInput, SocketOutcome};
use super::session::{Session, SessionLimits};
use super::template::Copies;
use super::token_forwarding::TokenForwarding;
use super::{handshake, open_session};
use crate::auth::{Carrier, Token, unix_millis};
use crate::http::{
    Answer, AuthenticatedRequest, ProtectedRequest, PublicRequest, Refusal, ResponseBody, Served, UpstreamSocket,
    prepare_public,
};
use crate::policy::{DialectSpec, WebSocketSpec};
use crate::telemetry::{AccessLine, AnsweredBy, Outcome, in_current_request};

/// Serves an upgrade whose user is verified.
pub(super) async fn serve_authenticated(
    mut context: SocketContext,
    authenticated: AuthenticatedRequest,
    handshake: Handshake,
    line: &mut AccessLine,
) -> Served {
    let route = authenticated.request().route();
    let spec = route.websocket.clone();
    let forwarding = TokenForwarding::of(route, context.policy());
    let admission = match admit_user(&mut context, authenticated, &forwarding) {
        Ok(admission) => admission,
        Err((refusal, reason)) => return handshake.refuse(context, refusal, reason, line),
    };
    let AdmittedSession { upstream_request, token, authorizer, credential, .. } = admission;
    let session = Session::open(spec.dialect.clone(), SessionLimits::of(&spec), credential, unix_millis());
    let upstream = UpstreamContext::of(&context);
    let connected =
        until_drain(&context.state, pin!(connect_upstream(upstream, upstream_request, &forwarding, token.as_ref())))
            .await;
    let Some(outcome) = connected else {
        return handshake.refuse_for_drain(context, line);
    };
    match outcome {
        UpgradeOutcome::Open(head, upgraded) => {
            context.line.outcome = Outcome::Accepted;
            // The 101 is the upstream's. The socket has an access line of its own.
            line.answered_by = AnsweredBy::Upstream;
            let token = token.filter(|_| forwarding.relay_keeps_token);
            let start = SessionStart { session, authorizer: Box::new(authorizer), spec, forwarding, token };
            Served::Upgraded(open(context, handshake.upgrade, head, upgraded, start))
        }
        UpgradeOutcome::Answered(answer) if handshake.is_answered_over_http() => {
            context.line.outcome = Outcome::Accepted;
            *line = context.line;
            Served::Answered(answer)
        }
        UpgradeOutcome::Answered(answer) => {
            let reason = close_reason_of(answer.status());
            let refusal = Refusal::upgrade_refused(reason.outcome(), describe_refusal(answer.status()));
            context.line.answered_by = AnsweredBy::Upstream;
            handshake.refuse(context, refusal, reason, line)
        }
        UpgradeOutcome::Failed(refusal, reason) => handshake.refuse(context, refusal, reason, line),
    }
}

/// Serves an upgrade without a user on a public route: messages are relayed and not read.
pub(super) async fn serve_public(
    mut context: SocketContext,
    public: PublicRequest,
    upgrade: OnUpgrade,
    line: &mut AccessLine,
) -> Served {
    context.line.outcome = Outcome::Public;
    let spec = WebSocketSpec { dialect: None, ..public.route().websocket.clone() };
    let authorizer = PublicAuthorizer {
        state: Arc::clone(&context.state),
        path: public.head().uri.path().into(),
        generation: context.runtime.generation,
        _reservation: Arc::clone(&context.reservation),
    };
    let upstream_request = prepare_public(public, context.policy());
    let forwarding = TokenForwarding::default();
    let upstream = UpstreamContext::of(&context);
    let connected =
        until_drain(&context.state, pin!(connect_upstream(upstream, upstream_request, &forwarding, None))).await;
    let Some(outcome) = connected else {
        *line = context.line;
        return Served::Refused(Refusal::busy(DRAINING));
    };
    match outcome {
        UpgradeOutcome::Open(head, upgraded) => {
            let authorizer = Box::new(authorizer);
            let start = SessionStart { session: Session::public(), authorizer, spec, forwarding, token: None };
            line.answered_by = AnsweredBy::Upstream;
            Served::Upgraded(open(context, upgrade, head, upgraded, start))
        }
        UpgradeOutcome::Answered(answer) => {
            *line = context.line;
            Served::Answered(answer)
        }
        UpgradeOutcome::Failed(refusal, _) => {
            *line = context.line;
            Served::Refused(refusal)
        }
    }
}

/// The client's part of an upgrade, with what is needed to refuse it in the form that the client can read.
pub(super) struct Handshake {
    upgrade: OnUpgrade,
    /// The parts of the 101 before a refusal that is sent as a Close: the client's key and its first subprotocol.
    key: Option<HeaderValue>,
    subprotocol: Option<HeaderValue>,
    carrier: Option<Carrier>,
    dialect: Option<Arc<DialectSpec>>,
    drain_code: u16,
}

impl Handshake {
    pub(super) fn new(request: &ProtectedRequest, upgrade: OnUpgrade, carrier: Option<Carrier>) -> Self {
        let headers = &request.head().headers;
        let spec = &request.route().websocket;
        Self {
            upgrade,
            key: headers.get(SEC_WEBSOCKET_KEY).cloned(),
            subprotocol: handshake::first_offered_subprotocol(headers),
            carrier,
            dialect: spec.dialect.clone(),
            drain_code: spec.limits.drain_code,
        }
    }

    pub(super) fn into_upgrade(self) -> OnUpgrade {
        self.upgrade
    }

    /// Returns whether the client can read the status of an answer. A client that sets a header can; one with cookies
    /// is treated alike (docs/contract.md section 4.1).
    fn is_answered_over_http(&self) -> bool {
        matches!(self.carrier, Some(Carrier::Header | Carrier::OwnHeader | Carrier::Cookie) | None)
    }

    pub(super) fn refuse_for_drain(self, context: SocketContext, line: &mut AccessLine) -> Served {
        let reason = CloseReason::Drain(self.drain_code);
        self.refuse(context, Refusal::busy(DRAINING), reason, line)
    }

    /// Refuses over HTTP, or with a 101 and a Close where a page could not read the status (docs/contract.md section
    /// 4.1).
    pub(super) fn refuse(
        self,
        mut context: SocketContext,
        refusal: Refusal,
        reason: CloseReason,
        line: &mut AccessLine,
    ) -> Served {
        if self.is_answered_over_http() {
            *line = context.line;
            return Served::Refused(refusal);
        }
        refusal.record(&mut context.line);
        let (upgrade, dialect) = (self.upgrade, self.dialect);
        let held = context.state.drain.track();
        tokio::spawn(in_current_request(async move {
            match handshake::client_socket(upgrade).await {
                Some((client, _)) => {
                    let dialect = dialect.as_deref();
                    let code = reason.code(dialect);
                    let message = reason.error_message(dialect, &Copies::default());
                    close_gracefully(client, message, &close_payload(code, reason.text())).await;
                    context.log_never_opened(&SocketOutcome::refused(code));
                }
                None => context.client_left(),
            }
            drop(held);
        }));
        Served::Upgraded(handshake::switching_protocols(self.key.as_ref(), self.subprotocol.as_ref()))
    }
}

/// The input of a session apart from its two sockets.
struct SessionStart {
    session: Session,
    authorizer: Box<dyn SessionAuthorizer>,
    spec: WebSocketSpec,
    forwarding: TokenForwarding,
    token: Option<Token>,
}

/// Answers with the upstream's 101: its accept key, subprotocol and extensions. Messages are relayed once it is written.
fn open(
    mut context: SocketContext,
    upgrade: OnUpgrade,
    head: HeaderMap,
    upstream: UpstreamSocket,
    start: SessionStart,
) -> Answer {
    // Compressed messages could not be read by the proxy.
    let reads_messages = start.spec.dialect.is_some() || start.forwarding.upstream_dialect.is_some();
    let has_extensions = !reads_messages && head.contains_key(SEC_WEBSOCKET_EXTENSIONS);
    let mut response = Response::new(ResponseBody::from_proxy(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = head;
    let headers = response.headers_mut();
    crate::http::strip_hop_by_hop(headers);
    crate::http::strip_own_set_cookie(headers);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if reads_messages {
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    }
    context.line.answered_by = AnsweredBy::Upstream;
    let held = context.state.drain.track();
    tokio::spawn(in_current_request(async move {
        if let Some((client, from_client)) = handshake::client_socket(upgrade).await {
            let SessionStart { session, authorizer, spec, forwarding, token } = start;
            let input = RelayInput {
                client,
                upstream: upstream.socket,
                from_client,
                from_upstream: upstream.early,
                first_to_client: Vec::new(),
                first_to_upstream: None,
                has_extensions,
                session,
                upstream_dialect: forwarding.upstream_dialect,
                token,
                held_messages: context.state.held_messages.clone(),
            };
            open_session::spawn(context, input, authorizer, &spec);
        } else {
            context.client_left();
        }
        drop(held);
    }));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hyper::Request;
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;
    use crate::auth::Revocations;
    use crate::http::Socket;
    use crate::runtime::ProxyState;
    use crate::telemetry::{self, Observed, RequestId};

    /// Writes the access line of a client that disconnects between the upstream's 101 and the proxy's. The connection
    /// of such a client is reset while its 101 is written, a moment that no client can choose.
    #[tokio::test]
    async fn a_client_that_left_between_the_upstreams_101_and_ours_has_its_line() {
        static LINES: Mutex<Vec<AccessLine>> = Mutex::new(Vec::new());
        telemetry::observe(Box::new(|observed| {
            if let Observed::Access(line) = observed {
                LINES.lock().expect("lock").push(line.clone());
            }
        }));
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: any }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let state = Arc::new(ProxyState::start(policy, Revocations::default()).expect("starts"));
        let runtime = state.current();
        let (connection, reservation) =
            state.connect(None, &prometheus_client::metrics::gauge::Gauge::default()).expect("room");
        let (connection, reservation) = (Arc::new(connection), Arc::new(reservation));
        let request_id = RequestId::unique();
        let line = AccessLine { request_id: request_id.clone(), outcome: Outcome::Accepted, ..AccessLine::default() };
        let context = SocketContext::new(&state, &runtime, &connection, &reservation, &line);
        let (mut backend, upstream) = duplex(64);
        let start = SessionStart {
            session: Session::public(),
            authorizer: Box::new(PublicAuthorizer {
                state: Arc::clone(&state),
                path: "/".into(),
                generation: 0,
                _reservation: Arc::clone(&reservation),
            }),
            spec: runtime.policy.routes[0].websocket.clone(),
            forwarding: TokenForwarding::default(),
            token: None,
        };
        let never = hyper::upgrade::on(Request::new(()));
        let upgraded = UpstreamSocket { socket: Socket::Memory(Box::new(upstream)), early: Vec::new() };
        let _ = open(context, never, HeaderMap::new(), upgraded, start);
        assert_eq!(backend.read(&mut [0]).await.ok(), Some(0), "the upstream is disconnected");
        while state.drain.tracked_count() > 0 {
            tokio::task::yield_now().await;
        }
        let lines = LINES.lock().expect("lock");
        let line = lines.iter().find(|line| line.request_id == request_id).expect("its line");
        assert_eq!((line.outcome, line.socket.as_ref().map(|life| life.closed_by)), (Outcome::Left, Some("client")));
    }
}
