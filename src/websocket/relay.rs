//! Relays the messages of an open session. One task owns both sockets and runs the session's state machine.
//!
//! Bytes are read into a buffer of the thread, so an idle socket holds none. Bytes that a peer does not accept at once
//! are kept, and the other peer is not read until they are written. Payload is forwarded as it came; the modules
//! [`from_client`] and [`from_upstream`] describe what is read, held back or left out in each direction.

mod closing;
mod direction;
mod ending;
mod from_client;
mod from_upstream;
mod outcome;
mod outgoing;
mod peer;
mod pump;
mod scratch;
#[cfg(test)]
mod tests;
mod timers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::authorizer::{RevalidateFuture, SessionAuthorizer, VerifyFuture};
use super::close_reason::CloseReason;
use super::frame::{Opcode, encode, masking_key};
use super::session::{Action, Event, Session, Verdict};
use crate::auth::{Token, unix_millis};
use crate::budget::MemoryBudget;
use crate::http::Socket;
use crate::policy::{DialectSpec, SocketLimits};
use crate::runtime::{Moment, Subscription};
use crate::telemetry::PassedBytes;
use closing::Closing;
use from_client::{FromClient, FromClientInput, MessageEnd};
use from_upstream::FromUpstream;
use peer::Peer;
use timers::KEY_CHECK_INTERVAL;

pub(super) use outcome::{ClosedBy, SocketOutcome};

/// The input of [`Relay::new`].
pub(super) struct RelayInput {
    pub(super) client: Socket,
    pub(super) upstream: Socket,
    /// Bytes that the client has sent already, from the beginning of a frame.
    pub(super) from_client: Vec<u8>,
    /// Bytes that the upstream has sent after its 101.
    pub(super) from_upstream: Vec<u8>,
    /// Messages of the proxy to the client, before those of the upstream.
    pub(super) first_to_client: Vec<String>,
    /// A message to the upstream, before those of the client.
    pub(super) first_to_upstream: Option<String>,
    /// Whether both ends agreed on an extension.
    pub(super) has_extensions: bool,
    pub(super) session: Session,
    /// The dialect in which refreshes are forwarded to the upstream.
    pub(super) upstream_dialect: Option<Arc<DialectSpec>>,
    /// The current token, where messages are compared with it or carry it.
    pub(super) token: Option<Token>,
    /// The limit on the messages of all users that are kept until they are complete.
    pub(super) held_messages: MemoryBudget,
}

/// The relay between a client and an upstream, a future that ends with the socket's outcome. There are thousands of
/// these, so it is kept small.
pub(super) struct Relay {
    client: Peer,
    upstream: Peer,
    from_client: FromClient,
    from_upstream: FromUpstream,
    session: Session,
    authorizer: Box<dyn SessionAuthorizer>,
    /// The answers that are awaited about the session; `None` most of the time.
    awaited: Option<Box<Awaited>>,
    subscription: Subscription,
    limits: Arc<SocketLimits>,
    /// The time at which data was last read from either side.
    last_data: Moment,
    /// The time of the next check of the token's key.
    next_key_check: Moment,
    /// The state of the end of the session, once the proxy ends it.
    closing: Option<Box<Closing>>,
    /// The time at which both sockets are closed at the latest, once nothing more is to be sent.
    disconnect_at: Option<Moment>,
    /// Whether that time is the one to ask the system whether it has sent everything. Most sessions have ended by then,
    /// and asking takes three system calls for each socket.
    is_delivery_assumed: bool,
    /// The code of the first Close, and who closed first.
    first_close: Option<(Option<u16>, ClosedBy)>,
    traffic: Traffic,
}

/// What is asked about a session: whether a token of its client is good, and whether its provider still confirms it.
#[derive(Default)]
struct Awaited {
    verification: Option<VerifyFuture>,
    revalidation: Option<RevalidateFuture>,
}

impl Awaited {
    /// Returns the answers that have come, as events of the session.
    fn poll(&mut self, cx: &mut Context<'_>) -> [Option<Event>; 2] {
        let verdict = poll_option(&mut self.verification, cx).map(Event::Verdict);
        [verdict, poll_option(&mut self.revalidation, cx).map(Event::Revalidation)]
    }

    fn is_over(&self) -> bool {
        self.verification.is_none() && self.revalidation.is_none()
    }
}

/// Polls a future if there is one, and drops it when it is ready.
fn poll_option<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>, cx: &mut Context<'_>) -> Option<T> {
    match future.as_mut()?.as_mut().poll(cx) {
        Poll::Ready(output) => {
            *future = None;
            Some(output)
        }
        Poll::Pending => None,
    }
}

/// The bytes that a socket has relayed.
struct Traffic {
    bytes_in: u64,
    bytes_out: u64,
    /// The bytes of all sockets of the route.
    route: Arc<PassedBytes>,
}

/// The number of relayed bytes from which on the unsent bytes of their receiver's socket are limited. Fewer cannot
/// exceed the limit, and a socket of few messages is spared a system call.
const LIMITED_FROM: u64 = 64 << 10;

impl Traffic {
    /// Counts bytes of the client, which are forwarded to `upstream`.
    fn count_in(&mut self, bytes: usize, upstream: &Socket) {
        self.route.from_client.inc_by(bytes as u64);
        add_relayed(&mut self.bytes_in, bytes, upstream);
    }

    /// Counts bytes of the upstream, which are forwarded to `client`.
    fn count_out(&mut self, bytes: usize, client: &Socket) {
        self.route.to_client.inc_by(bytes as u64);
        add_relayed(&mut self.bytes_out, bytes, client);
    }
}

/// Adds relayed bytes to a total. The receiver's socket is limited when it reaches [`LIMITED_FROM`].
fn add_relayed(total: &mut u64, bytes: usize, receiver: &Socket) {
    let before = *total;
    *total += bytes as u64;
    if before < LIMITED_FROM && *total >= LIMITED_FROM {
        receiver.limit_unsent();
    }
}

impl Relay {
    /// Makes a relay. It runs when it is awaited.
    #[must_use]
    pub(super) fn new(
        input: RelayInput,
        authorizer: Box<dyn SessionAuthorizer>,
        subscription: Subscription,
        limits: Arc<SocketLimits>,
        route: Arc<PassedBytes>,
    ) -> Self {
        let RelayInput { client, upstream, from_client, from_upstream, session, has_extensions, .. } = input;
        let now = Moment::now();
        let mut relay = Self {
            client: Peer::new(client, now),
            upstream: Peer::new(upstream, now),
            from_client: FromClient::new(FromClientInput {
                has_extensions,
                dialect: session.dialect().map(|dialect| &**dialect),
                upstream_dialect: input.upstream_dialect,
                token: input.token,
                message_bytes: limits.message_bytes,
                held_messages: input.held_messages,
            }),
            from_upstream: FromUpstream::new(has_extensions),
            session,
            authorizer,
            awaited: None,
            subscription,
            limits,
            last_data: now,
            next_key_check: now + KEY_CHECK_INTERVAL,
            closing: None,
            disconnect_at: None,
            is_delivery_assumed: false,
            first_close: None,
            traffic: Traffic { bytes_in: 0, bytes_out: 0, route },
        };
        for text in input.first_to_client {
            encode(relay.client.out(), Opcode::Text, text.as_bytes(), None);
        }
        // Messages sent by a user who was revoked meanwhile, or whom a reload excludes, are not forwarded.
        if let Err(reason) = relay.reauthorize() {
            relay.process(Event::Close(reason));
            return relay;
        }
        if let Some(text) = input.first_to_upstream {
            encode(relay.upstream.out(), Opcode::Text, text.as_bytes(), Some(masking_key()));
        }
        relay.forward_early(&from_client, &from_upstream);
        relay
    }

    /// Processes an event of the session and carries out its actions.
    fn process(&mut self, event: Event) {
        let is_verdict = matches!(event, Event::Verdict(_));
        let is_of_message = is_verdict && self.from_client.is_verifying_message();
        let has_expired = is_of_message && matches!(event, Event::Verdict(Verdict::Expired { .. }));
        let refusal = match &event {
            Event::Verdict(Verdict::Refused(reason)) => Some(*reason),
            Event::Verdict(Verdict::AnotherUser) => Some(CloseReason::InvalidToken),
            _ => None,
        };
        for action in self.session.on(event, unix_millis()) {
            match action {
                // A socket on a public route has no identity, and neither action.
                Action::Verify(token) => {
                    if let Some(identity) = self.session.identity() {
                        self.from_client.verification_started(&token);
                        let verification = self.authorizer.verify(identity, token);
                        self.awaited.get_or_insert_default().verification = Some(verification);
                    }
                }
                Action::Revalidate => {
                    if let Some((identity, check)) = self.session.identity().zip(self.session.revalidation_check()) {
                        let revalidation = self.authorizer.revalidate(identity, check);
                        self.awaited.get_or_insert_default().revalidation = Some(revalidation);
                    }
                }
                Action::Send(text) => {
                    if self.from_upstream.direction.enqueue(encode_to_client(&text)).is_err() {
                        self.begin_close(CloseReason::TooManyRefreshes);
                    }
                }
                Action::SendPong(text) => self.from_upstream.direction.enqueue_pong(encode_to_client(&text)),
                Action::Close(reason) => self.begin_close(reason),
                Action::ForwardToken(token) => self.forward_token(token),
                Action::ContinueExpired => self.authorizer.count_expiry("kept"),
                // Neither action comes once messages are relayed.
                Action::Connect | Action::StartRelay => {}
            }
        }
        if is_of_message || (is_verdict && !self.session.is_verifying()) {
            self.end_wait_for_verdict(has_expired, refusal);
        }
    }

    /// Ends the wait of the message whose token has its verdict, or will have none.
    fn end_wait_for_verdict(&mut self, has_expired: bool, refusal: Option<CloseReason>) {
        let reason = match self.from_client.verdict_received(has_expired) {
            // Neither the upstream nor the proxy answers the message, and the client may wait for an answer without an end.
            Ok(MessageEnd::Dropped) if self.session.dialect().is_some_and(|dialect| dialect.error.is_none()) => refusal,
            Ok(_) => None,
            Err(_) => Some(CloseReason::TooManyRefreshes),
        };
        if let Some(reason) = reason {
            self.process(Event::Close(reason));
        }
    }

    /// Forwards an accepted token to the upstream, where the upstream needs it.
    fn forward_token(&mut self, token: Token) {
        match self.from_client.forward_token(token) {
            Ok(Some(dialect)) => self.from_upstream.await_answer(dialect),
            Ok(None) => {}
            Err(_) => self.process(Event::Close(CloseReason::TooManyRefreshes)),
        }
    }

    /// Polls everything that the session awaits apart from its two peers. Returns whether anything has happened.
    fn poll_session(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_progress = false;
        for event in self.awaited.as_mut().map(|awaited| awaited.poll(cx)).into_iter().flatten().flatten() {
            self.process(event);
            has_progress = true;
        }
        self.awaited.take_if(|awaited| awaited.is_over());
        if self.subscription.take_notification() {
            self.process_notification();
            has_progress = true;
        }
        has_progress
    }

    fn outcome(&self) -> SocketOutcome {
        let (code, closed_by) = self.first_close.unwrap_or((None, ClosedBy::Upstream));
        SocketOutcome {
            code,
            closed_by,
            bytes_in: self.traffic.bytes_in,
            bytes_out: self.traffic.bytes_out,
            refreshes: self.session.refreshes(),
        }
    }
}

impl Future for Relay {
    type Output = SocketOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SocketOutcome> {
        let this = self.get_mut();
        loop {
            let mut has_progress = this.poll_session(cx);
            has_progress |= this.pump_from_client(cx);
            has_progress |= this.pump_from_upstream(cx);
            this.schedule_disconnect();
            if this.is_finished() {
                this.disconnect(cx);
                return Poll::Ready(this.outcome());
            }
            if has_progress {
                continue;
            }
            let now = Moment::now();
            let next = this.next_deadline(now);
            if next <= now {
                if this.run_timers(cx) {
                    this.disconnect(cx);
                    return Poll::Ready(this.outcome());
                }
                continue;
            }
            if this.subscription.poll_until(cx, next).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn encode_to_client(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(&mut frame, Opcode::Text, text.as_bytes(), None);
    frame
}
