//! Pending sockets: opened without a credential, they wait for the first message, which carries the token. Three time
//! limits follow each other: for the message, the verdict, and the upstream's 101.

pub(super) mod first_message;
mod liveness;
mod waiting;

use std::net::IpAddr;
use std::sync::Arc;

use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::admission::{AdmittedSession, admit_user};
use super::authorizer::{SessionAuthorizer as _, UserAuthorizer};
use super::close_reason::CloseReason;
use super::closing::{TruncatedFrame, close_gracefully, write_at_once};
use super::connect::{UpgradeOutcome, UpstreamContext, close_reason_of, connect_upstream, describe_refusal};
use super::context::SocketContext;
use super::dialect::{self, FirstMessage};
use super::frame::{Opcode, PING, close_payload, encode, masking_key};
use super::relay::{RelayInput, SocketOutcome};
use super::session::{Action, Event, Session, SessionLimits, Verdict};
use super::template::{Values, render};
use super::token_forwarding::TokenForwarding;
use super::{handshake, open_session, request_hint};
use crate::auth::{Carrier, NoCredential, Token, Verified, unix_millis};
use crate::authenticate::{Authenticator, Unverified, verify_by_policy_in_force};
use crate::budget::CLOSING_SOCKET_BYTES;
use crate::http::{ProtectedRequest, Socket, UpstreamRequest, UpstreamSocket};
use crate::policy::{DialectSpec, WebSocketSpec};
use crate::runtime::PendingSlot;
use crate::telemetry::{AnsweredBy, Outcome, in_current_request};
use first_message::{FirstMessageReader, MESSAGE_BYTES, Received};
use liveness::{Liveness, LivenessDue};
use waiting::{ConnectFuture, FirstVerdictFuture, Step, Waiting, Wake};

/// The maximum length of a first message in `token-field`. It is the application's own, so it may fill the whole
/// buffer.
const FIELD_MESSAGE_BYTES: usize = 64 << 10;

/// An upgrade that was answered with a 101 before its user is known.
pub(super) struct PendingUpgrade {
    pub(super) request: ProtectedRequest,
    /// The proof that the request carried no credential.
    pub(super) _proof: NoCredential,
    /// The socket's place among the pending ones.
    pub(super) slot: PendingSlot,
    pub(super) dialect: Arc<DialectSpec>,
    pub(super) subprotocol: Option<HeaderValue>,
}

/// Waits for the first message in a task of its own.
pub(super) fn spawn(context: SocketContext, upgrade: OnUpgrade, pending: PendingUpgrade) {
    let held = context.state.drain.track();
    tokio::spawn(in_current_request(run(context, upgrade, pending, held)));
}

/// Runs a pending socket to its end. `_held` keeps the drain waiting for it.
async fn run(mut context: SocketContext, upgrade: OnUpgrade, pending: PendingUpgrade, _held: TaskTrackerToken) {
    let PendingUpgrade { mut request, slot, dialect, subprotocol, .. } = pending;
    let spec = request.route().websocket.clone();
    let forwarding = TokenForwarding::of(request.route(), context.policy());
    let limits = SessionLimits::of(&spec);
    let session = Session::pending(Arc::clone(&dialect), spec.auth_timeout, limits, unix_millis());
    let Some((mut client, early)) = handshake::client_socket(upgrade).await else {
        return context.client_left();
    };
    let message_bytes = if dialect.field.is_some() { FIELD_MESSAGE_BYTES } else { MESSAGE_BYTES };
    let mut reader = FirstMessageReader::new(message_bytes);
    reader.push(&early);
    // A broken stream is noticed on the next read.
    let greeted = dialect.greeting.as_ref().map_or(Ok(()), |greeting| {
        write_at_once(&mut client, Opcode::Text, render(greeting, &Values::default()).as_bytes())
    });
    request.set_subprotocol(subprotocol.as_ref());
    context.line.carrier = Some(Carrier::Message.name());
    let mut pending = PendingSocket {
        session,
        limited_address: request.client().limited_address(),
        reader,
        request: Some(request),
        admitted: None,
        subprotocol,
        forwarding,
        first_to_client: Vec::new(),
        first_to_upstream: None,
        lines_behind: String::new(),
    };
    let end = match greeted {
        Ok(()) => pending.wait(&mut context, &mut client, &slot, &spec).await,
        Err(truncated) => truncated.into(),
    };
    drop(slot);
    match end {
        End::Open { upstream, token, authorizer } => {
            context.line.answered_by = AnsweredBy::Upstream;
            context.line.outcome = Outcome::Accepted;
            let held_messages = context.state.held_messages.clone();
            let input = pending.into_relay_input(client, upstream, token, held_messages);
            open_session::spawn(context, input, authorizer, &spec);
        }
        End::Refused(reason) => {
            if context.line.outcome == Outcome::Undecided {
                context.line.outcome = Outcome::Refused(reason.outcome());
            }
            pending.note_likely_cause(&mut context, Some(reason));
            tracing::debug!(reason = reason.text(), "socket refused");
            // In a dialect whose messages are the application's own, a page that has not sent one gets no error: it
            // would show the error of a socket that it no longer uses.
            let is_silent = dialect.field.is_some() && !pending.reader.has_begun();
            let message =
                if is_silent { None } else { reason.error_message(Some(&dialect), pending.session.reply_copies()) };
            // Neither the request nor what the client sent is needed while the client receives the Close.
            drop(pending);
            context.reservation.resize(CLOSING_SOCKET_BYTES);
            let code = reason.code(Some(&dialect));
            close_gracefully(client, message, &close_payload(code, reason.text())).await;
            context.log_never_opened(&SocketOutcome::refused(code));
        }
        End::Left(close) => {
            let code = close.as_deref().and_then(|payload| payload.first_chunk()).map(|code| u16::from_be_bytes(*code));
            if let Some(payload) = close {
                // RFC 6455 section 5.5.1: a Close is answered with its own code.
                close_gracefully(client, None, &payload).await;
            }
            pending.note_likely_cause(&mut context, None);
            context.line.outcome = Outcome::Left;
            context.log_never_opened(&SocketOutcome::left(code));
        }
    }
}

/// The end of a socket's time as pending.
enum End {
    /// The user is admitted and the upstream connected.
    Open {
        upstream: UpstreamSocket,
        token: Option<Token>,
        authorizer: Box<UserAuthorizer>,
    },
    Refused(CloseReason),
    /// The client sent a Close, with this payload, or disconnected without one, or can be sent nothing more.
    Left(Option<Vec<u8>>),
}

impl From<CloseReason> for End {
    fn from(reason: CloseReason) -> Self {
        Self::Refused(reason)
    }
}

impl From<TruncatedFrame> for End {
    fn from(TruncatedFrame: TruncatedFrame) -> Self {
        tracing::debug!("the client accepts no bytes, socket dropped");
        Self::Left(None)
    }
}

/// The first thing that a client sent, apart from pings.
enum Opening {
    Message(String),
    Close(Vec<u8>),
}

/// The parts of an admitted user's socket that are needed until the upstream is connected.
struct AdmittedUser {
    request: Option<(UpstreamRequest, Option<Token>)>,
    authorizer: Box<UserAuthorizer>,
}

struct PendingSocket {
    session: Session,
    /// The client's address, where limits are counted per address.
    limited_address: Option<IpAddr>,
    reader: FirstMessageReader,
    /// The upgrade request, until the user is admitted.
    request: Option<ProtectedRequest>,
    admitted: Option<AdmittedUser>,
    subprotocol: Option<HeaderValue>,
    forwarding: TokenForwarding,
    /// Messages of the proxy to the client, before those of the upstream.
    first_to_client: Vec<String>,
    /// The part of the first message that is forwarded.
    first_to_upstream: Option<String>,
    /// Further lines of the first message, in a dialect where each line is a message.
    lines_behind: String,
}

impl PendingSocket {
    /// Waits for the first message, its verdict and the upstream, until one of the ends.
    async fn wait(
        &mut self,
        context: &mut SocketContext,
        client: &mut Socket,
        slot: &PendingSlot,
        spec: &WebSocketSpec,
    ) -> End {
        let mut waiting = Waiting::new(context, spec);
        loop {
            let next = match self.read_received(context, client, slot) {
                Ok(None) => {
                    let wake = waiting.next(&self.session, &self.reader, client, slot).await;
                    self.woken(wake, &mut waiting, context, client, spec)
                }
                read => read,
            };
            match next {
                Ok(Some(event)) => {
                    if let Some(end) = self.process(event, context, &mut waiting.step) {
                        return end;
                    }
                }
                Ok(None) => {}
                Err(end) => return end,
            }
        }
    }

    /// Reads what the client has sent. Returns the event of its first message, or `None` when more must come.
    ///
    /// # Errors
    /// Returns the end of the wait.
    fn read_received(
        &mut self,
        context: &mut SocketContext,
        client: &mut Socket,
        slot: &PendingSlot,
    ) -> Result<Option<Event>, End> {
        while let Some(opening) = self.read_opening(context, client, slot)? {
            let text = match opening {
                Opening::Message(text) => text,
                Opening::Close(payload) => return Err(End::Left(Some(payload))),
            };
            if let Some(event) = self.read_first_message(text, context, client)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Returns the event for which the task was woken, if there is one for the session.
    ///
    /// # Errors
    /// Returns the end of the wait.
    fn woken(
        &mut self,
        wake: Wake,
        waiting: &mut Waiting,
        context: &mut SocketContext,
        client: &mut Socket,
        spec: &WebSocketSpec,
    ) -> Result<Option<Event>, End> {
        Ok(Some(match wake {
            Wake::Read(Ok(0) | Err(_)) => return Err(End::Left(None)),
            Wake::Read(Ok(length)) => {
                self.reader.push(&waiting.scratch[..length]);
                waiting.received(&self.reader);
                return Ok(None);
            }
            Wake::Liveness => return self.liveness_due(waiting, client),
            Wake::Deadline => Event::Deadline { last_seen: None },
            Wake::Evicted => {
                context.state.metrics.limited("waiting_websockets");
                Event::Close(CloseReason::TooManyConnections)
            }
            Wake::MemoryEvicted => {
                context.state.record_memory_limit();
                return Err(CloseReason::TooManyConnections.into());
            }
            Wake::Notified if waiting.subscription.should_close() => {
                Event::Close(CloseReason::Drain(spec.limits.drain_code))
            }
            Wake::Notified => return Ok(None),
            Wake::Verified(verdict) => {
                waiting.step = Step::Nothing;
                self.verified(verdict, context)
            }
            Wake::Connected(outcome, token) => self.connected(outcome, token, context)?,
        }))
    }

    /// Pings a client that was silent, or ends the wait for one that is gone or too slow.
    fn liveness_due(&mut self, waiting: &mut Waiting, client: &mut Socket) -> Result<Option<Event>, End> {
        match waiting.liveness.as_mut().map(Liveness::due) {
            Some(LivenessDue::Ping) => {
                self.reader.expect_pong();
                write_at_once(client, Opcode::Ping, PING)?;
                Ok(None)
            }
            Some(LivenessDue::SlowMessage) => Ok(Some(Event::Close(CloseReason::Timeout))),
            Some(LivenessDue::Gone) | None => Err(End::Left(None)),
        }
    }

    /// Processes the upstream's answer to the upgrade: the end of the wait, or the event of a refusal.
    fn connected(
        &mut self,
        outcome: UpgradeOutcome,
        token: Option<Token>,
        context: &mut SocketContext,
    ) -> Result<Event, End> {
        match outcome {
            UpgradeOutcome::Open(head, upstream) => Err(self.open(&head, upstream, token, context)),
            UpgradeOutcome::Answered(answer) => {
                let reason = close_reason_of(answer.status());
                context.line.answered_by = AnsweredBy::Upstream;
                context.line.outcome = Outcome::Refused(reason.outcome());
                context.line.reason = describe_refusal(answer.status());
                Ok(Event::Close(reason))
            }
            UpgradeOutcome::Failed(refusal, reason) => {
                refusal.record(&mut context.line);
                Ok(Event::Close(reason))
            }
        }
    }

    /// Notes in the access line why a client that sent no token was refused, as far as its URL or its message tells; `None`
    /// for one that left.
    fn note_likely_cause(&self, context: &mut SocketContext, reason: Option<CloseReason>) {
        // The request is gone once a user was admitted.
        let Some(request) = self.request.as_ref().filter(|_| context.line.reason.is_empty()) else { return };
        let query = request.head().uri.query().unwrap_or_default();
        if let Some(cause) = request_hint::of_missing_token(reason, query, &request.route().token_from) {
            context.line.reason = cause;
        } else if let (Some(CloseReason::InvalidMessage | CloseReason::Unexpected), Some(dialect)) =
            (reason, self.session.dialect())
        {
            let name = &dialect.name;
            context.line.reason =
                format!("the first message is not one of the dialect {name}, see docs/websocket-protocol.md");
        }
    }

    /// Reads what the client has sent. Answers pings, and returns the first message or a Close.
    fn read_opening(
        &mut self,
        context: &mut SocketContext,
        client: &mut Socket,
        slot: &PendingSlot,
    ) -> Result<Option<Opening>, End> {
        loop {
            let received = self.reader.next().inspect_err(|_| context.line.outcome = Outcome::Refused("malformed"))?;
            // This comes before any answer. Once a client has an answer to what it sent after a fragment of its
            // message, its place must not be taken.
            if self.reader.has_begun() {
                slot.mark_message_begun();
            }
            match received {
                None => return Ok(None),
                Some(Received::Message(text)) => return Ok(Some(Opening::Message(text))),
                Some(Received::Close(payload)) => return Ok(Some(Opening::Close(payload))),
                Some(Received::Ping(payload)) => write_at_once(client, Opcode::Pong, &payload)?,
            }
        }
    }

    /// Reads the first message. Returns `None` if it was an application's ping: it has been answered, and the next
    /// message is the first one.
    fn read_first_message(
        &mut self,
        mut text: String,
        context: &mut SocketContext,
        client: &mut Socket,
    ) -> Result<Option<Event>, End> {
        let token_bytes = context.policy().limits.token_bytes;
        let dialect = self.session.dialect().cloned().ok_or(CloseReason::InvalidMessage)?;
        loop {
            let read = dialect::read_first(&dialect, &text, token_bytes, self.forwarding.in_first_message);
            if let FirstMessage::NotAToken(Some(error)) = &read.message {
                context.line.reason = error.to_string();
            }
            let FirstMessage::Ping(reply) = read.message else {
                (self.first_to_upstream, self.lines_behind) = (read.forward, read.lines_behind);
                return Ok(Some(Event::FirstMessage(read.message, read.copies)));
            };
            write_at_once(client, Opcode::Text, reply.as_bytes())?;
            self.reader.expect_another()?;
            if read.lines_behind.trim().is_empty() {
                return Ok(None);
            }
            text = read.lines_behind;
        }
    }

    fn process(&mut self, event: Event, context: &SocketContext, step: &mut Step) -> Option<End> {
        for action in self.session.on(event, unix_millis()) {
            match action {
                Action::Verify(token) => *step = Step::Verifying(verify(context, self.limited_address, token)),
                Action::Connect => {
                    let (request, token) = self.admitted.as_mut()?.request.take()?;
                    *step = Step::Connecting(connect(context, request, self.forwarding.clone(), token));
                }
                Action::Send(text) => self.first_to_client.push(text),
                Action::Close(reason) => return Some(End::Refused(reason)),
                // None of these actions comes before messages are relayed.
                Action::StartRelay
                | Action::ForwardToken(_)
                | Action::Revalidate
                | Action::ContinueExpired
                | Action::SendPong(_) => {}
            }
        }
        None
    }

    /// Admits the user of a verified token, and returns the event for the session.
    fn verified(&mut self, verdict: Result<Verified, Unverified>, context: &mut SocketContext) -> Event {
        let verified = match verdict {
            Ok(verified) => verified,
            Err(unverified) => {
                unverified.refusal(false).record(&mut context.line);
                let headers = self.request.as_ref().map(|request| &request.head().headers);
                context.line.unverified = headers.map(|headers| Box::new(unverified.claimed(headers)));
                return Event::Verdict(Verdict::Refused(CloseReason::of_unverified(&unverified)));
            }
        };
        let Some(request) = self.request.take() else { return Event::Close(CloseReason::Protocol) };
        tracing::debug!(user = verified.identity().user_id(), "first message verified");
        let SocketContext { state, runtime, reservation, line, .. } = &mut *context;
        let authenticator = Authenticator { state, runtime, reservation, last: None };
        let authenticated = match authenticator.accept(request, verified, line) {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                refusal.record(&mut context.line);
                return Event::Close(CloseReason::Denied);
            }
        };
        match admit_user(context, authenticated, &self.forwarding) {
            Ok(AdmittedSession { upstream_request, token, mut authorizer, credential, user_id }) => {
                // The socket may have waited for hours, and a reload may have changed the policy meanwhile.
                if let Err(reason) = authorizer.reauthorize(Some(&credential.identity)) {
                    return Event::Close(reason);
                }
                self.admitted =
                    Some(AdmittedUser { request: Some((upstream_request, token)), authorizer: Box::new(authorizer) });
                Event::Verdict(Verdict::Accepted { user_id, credential, token: None })
            }
            Err((refusal, reason)) => {
                refusal.record(&mut context.line);
                Event::Close(reason)
            }
        }
    }

    /// Opens the session after the upstream's 101.
    fn open(
        &mut self,
        head: &hyper::HeaderMap,
        upstream: UpstreamSocket,
        token: Option<Token>,
        context: &mut SocketContext,
    ) -> End {
        if !handshake::is_accepted(self.subprotocol.as_ref(), head) {
            "the upstream did not accept the subprotocol that the client was given"
                .clone_into(&mut context.line.reason);
            return End::Refused(CloseReason::UpstreamFailed);
        }
        let Some(AdmittedUser { authorizer, .. }) = self.admitted.take() else {
            return End::Refused(CloseReason::Protocol);
        };
        for action in self.session.on(Event::UpstreamOpen, unix_millis()) {
            if let Action::Send(text) = action {
                self.first_to_client.push(text);
            }
        }
        End::Open { upstream, token: token.filter(|_| self.forwarding.relay_keeps_token), authorizer }
    }

    /// Returns the input of the relay. It includes, in order, everything that the client has sent after its first
    /// message.
    fn into_relay_input(
        self,
        client: Socket,
        upstream: UpstreamSocket,
        token: Option<Token>,
        held_messages: crate::budget::MemoryBudget,
    ) -> RelayInput {
        let mut from_client = Vec::new();
        if !self.lines_behind.trim().is_empty() {
            // The relay reads the lines after the first as a message of the client.
            encode(&mut from_client, Opcode::Text, self.lines_behind.as_bytes(), Some(masking_key()));
        }
        from_client.extend_from_slice(&self.reader.into_rest());
        RelayInput {
            client,
            upstream: upstream.socket,
            from_client,
            from_upstream: upstream.early,
            first_to_client: self.first_to_client,
            first_to_upstream: self.first_to_upstream,
            has_extensions: false,
            session: self.session,
            upstream_dialect: self.forwarding.upstream_dialect,
            token,
            held_messages,
        }
    }
}

fn verify(context: &SocketContext, limited_address: Option<IpAddr>, token: Token) -> FirstVerdictFuture {
    let state = Arc::clone(&context.state);
    Box::pin(async move { verify_by_policy_in_force(&state, limited_address, &token, Carrier::Message).await.1 })
}

fn connect(
    context: &SocketContext,
    request: UpstreamRequest,
    forwarding: TokenForwarding,
    token: Option<Token>,
) -> ConnectFuture {
    let upstream_context = UpstreamContext::of(context);
    Box::pin(async move {
        let outcome = connect_upstream(upstream_context, request, &forwarding, token.as_ref()).await;
        (outcome, token)
    })
}
