//! Messages flow: one task owns both sockets and drives the session.
//!
//! Bytes are read into a buffer that a thread lends for the moment, so an idle socket holds none;
//! what the peer would not take is kept, and nothing more is read from that side until it has gone.
//! Payload goes on as it came. Client texts that could be a refresh are looked into; control frames
//! are held until whole, to know our own pongs and to see a Close; our messages go out between
//! messages only.

mod closing;
mod directions;
mod guarded;
mod outcome;
mod peer;
#[cfg(test)]
mod tests;
mod texts;
mod timers;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::authorizer::{RevalidateFuture, SessionAuthorizer, VerifyFuture};
use super::clock::unix_millis;
use super::close_reason::CloseReason;
use super::frame::{FrameParser, Header, Opcode, Sender, Violation, encode, masking_key};
use super::session::{Action, Event, Session};
use crate::auth::Token;
use crate::budget::MemoryBudget;
use crate::http::Socket;
use crate::policy::DialectSpec;
use crate::runtime::Notified;
use crate::telemetry::PassedBytes;
use closing::Closing;
pub(super) use outcome::{ClosedBy, SocketOutcome};
use peer::{Control, Held, Outgoing, Peer};
use texts::RelayExtras;

/// After a Close, or half of one, the other side has this long from when it was delivered. The client of a session that
/// we end is given up when it takes nothing for this long.
const LINGER: Duration = Duration::from_secs(5);
/// A client that sends no more is told what the upstream still says for this long.
const HALF_CLOSED: Duration = Duration::from_secs(60);
/// How long a Close of ours waits for the end of a message, while the client takes what there is of it.
const BOUNDARY: Duration = Duration::from_secs(2);
/// Answers of ours that may wait for the end of the upstream's message.
const MAX_QUEUED_MESSAGES: usize = 16;
/// Answers to an application's pings that may wait likewise; of more the oldest are left out.
const MAX_QUEUED_PONGS: usize = 64;
/// Whether the key of its token still stands is asked this often.
const JUDGED_AGAIN: Duration = Duration::from_secs(30);
/// A thread reads through this much at a time.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// A length of time in whole milliseconds, at most 49 days: a quarter of a [`Duration`], and there are thousands of
/// these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Millis(u32);

impl Millis {
    pub(super) const fn get(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
    }
}

/// What a relay runs by.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelaySettings {
    /// Silence after which a ping is sent.
    pub ping_interval: Millis,
    /// Silence after a ping that means dead.
    pub ping_timeout: Millis,
    /// Without a byte of a data frame, either way, for this long it is closed.
    pub idle_timeout: Option<Millis>,
    /// No byte taken for this long means dead.
    pub send_timeout: Millis,
    /// The largest token read from a message.
    pub token_bytes: usize,
    /// The largest message of a dialect that reads them whole.
    pub message_bytes: usize,
    /// Close code when the process stops.
    pub drain_code: u16,
}

/// A message of ours to the client, as a whole frame.
struct QueuedMessage {
    frame: Vec<u8>,
    /// It answers an application's ping.
    is_pong: bool,
}

impl QueuedMessage {
    fn new(text: &str, is_pong: bool) -> Self {
        let mut frame = Vec::new();
        encode(&mut frame, Opcode::Text, text.as_bytes(), None);
        Self { frame, is_pong }
    }
}

/// Both directions of one session.
pub(super) struct Relay {
    client: Peer,
    upstream: Peer,
    from_client: FrameParser,
    from_upstream: FrameParser,
    client_frame: Option<Header>,
    upstream_frame: Option<Header>,
    client_control: Control,
    upstream_control: Control,
    held: Option<Held>,
    extra: Option<Box<RelayExtras>>,
    /// Our messages to the client.
    say: VecDeque<QueuedMessage>,
    session: Session,
    authorizer: Box<dyn SessionAuthorizer>,
    verdict: Option<VerifyFuture>,
    asking: Option<RevalidateFuture>,
    notified: Notified,
    timer: Pin<Box<Sleep>>,
    settings: RelaySettings,
    /// When the last data frame began.
    last_data: Instant,
    /// When its token's key is looked at again.
    judged_again: Instant,
    closing: Option<Box<Closing>>,
    /// Both sides have been told to go; what is left has until then.
    over: Option<Instant>,
    first_close: Option<(Option<u16>, ClosedBy)>,
    bytes_in: u64,
    bytes_out: u64,
    /// What all sockets of the route have passed on.
    passed: PassedBytes,
}

/// What a relay begins with.
pub(super) struct RelayInput {
    /// The client's socket.
    pub client: Socket,
    /// The upstream's.
    pub upstream: Socket,
    /// What the client has sent already, from a frame's input.
    pub from_client: Vec<u8>,
    /// What the upstream sent right behind its 101.
    pub from_upstream: Vec<u8>,
    /// Messages of the proxy to the client, before those of the upstream.
    pub first_to_client: Vec<String>,
    /// A message to the upstream, before those of the client.
    pub first_to_upstream: Option<String>,
    /// Whether both ends agreed on an extension.
    pub has_extensions: bool,
    /// The session.
    pub session: Session,
    /// The dialect in which refreshes are forwarded to the upstream.
    pub upstream_dialect: Option<Arc<DialectSpec>>,
    /// The token in force, where it is needed further on.
    pub token: Option<Token>,
    /// The bound on the unfinished messages of all users that are read whole.
    pub held_messages: MemoryBudget,
}

impl Relay {
    /// Sets a relay up; it runs when awaited.
    #[must_use]
    pub(super) fn new(
        input: RelayInput,
        authorizer: Box<dyn SessionAuthorizer>,
        notified: Notified,
        settings: RelaySettings,
        passed: PassedBytes,
    ) -> Self {
        let RelayInput {
            client,
            upstream,
            from_client,
            from_upstream,
            first_to_client,
            first_to_upstream,
            has_extensions,
            session,
            ..
        } = input;
        let extra = RelayExtras::new(
            session.dialect().map(|dialect| &**dialect),
            input.upstream_dialect,
            input.token,
            settings.message_bytes,
            input.held_messages,
        );
        for socket in [&client, &upstream] {
            socket.limit_unsent();
        }
        let mut relay = Self {
            client: Peer::new(client),
            upstream: Peer::new(upstream),
            from_client: FrameParser::new(Sender::Client, has_extensions),
            from_upstream: FrameParser::new(Sender::Server, has_extensions),
            client_frame: None,
            upstream_frame: None,
            client_control: Control::default(),
            upstream_control: Control::default(),
            held: None,
            extra,
            say: VecDeque::new(),
            session,
            authorizer,
            verdict: None,
            asking: None,
            notified,
            timer: Box::pin(sleep_until(Instant::now() + settings.ping_interval.get())),
            settings,
            last_data: Instant::now(),
            judged_again: Instant::now() + JUDGED_AGAIN,
            closing: None,
            over: None,
            first_close: None,
            bytes_in: 0,
            bytes_out: 0,
            passed,
        };
        for text in first_to_client {
            encode(&mut relay.client.out, Opcode::Text, text.as_bytes(), None);
        }
        // What was said by someone who has been revoked meanwhile, or may not be here by a policy that came meanwhile,
        // does not go up.
        if let Err(reason) = relay.may_go_on() {
            relay.act_on(Event::Close(reason));
            return relay;
        }
        if let Some(first) = first_to_upstream {
            encode(&mut relay.upstream.out, Opcode::Text, first.as_bytes(), Some(masking_key()));
        }
        relay.count_in(from_client.len());
        let (outgoing, violation) = relay.take_from_upstream(&from_upstream);
        relay.client.out.extend_from_slice(outgoing.bytes(&from_upstream));
        if violation.is_some() {
            relay.upstream_breaks_off();
        }
        let (outgoing, violation) = relay.take_from_client(&from_client);
        relay.upstream.out.extend_from_slice(outgoing.bytes(&from_client));
        if violation.is_some() {
            relay.client_breaks_off();
        }
        relay
    }

    fn act_on(&mut self, event: Event) {
        let is_verdict = matches!(event, Event::Verdict(_));
        for action in self.session.on(event, unix_millis()) {
            match action {
                // Neither is said of a socket of nobody's.
                Action::Verify(token) => {
                    self.verdict = self.session.identity().map(|of| self.authorizer.verify(of, token));
                }
                Action::Revalidate => {
                    let asked = self.session.identity().zip(self.session.revalidation_check());
                    self.asking = asked.map(|(of, question)| self.authorizer.revalidate(of, question));
                }
                // Only an upstream that never ends its message lets this many wait.
                Action::Send(_) if self.say.iter().filter(|said| !said.is_pong).count() >= MAX_QUEUED_MESSAGES => {
                    self.begin_close(CloseReason::TooManyRefreshes);
                }
                Action::Send(text) => self.say.push_back(QueuedMessage::new(&text, false)),
                Action::SendPong(text) => {
                    // A client that is still there has asked again since.
                    let mut pongs = self.say.iter().enumerate().filter(|(_, said)| said.is_pong);
                    if let (Some((oldest, _)), true) = (pongs.next(), pongs.count() + 1 >= MAX_QUEUED_PONGS) {
                        self.say.remove(oldest);
                    }
                    self.say.push_back(QueuedMessage::new(&text, true));
                }
                Action::Close(reason) => self.begin_close(reason),
                Action::ForwardToken(token) => self.hand_on(token),
                Action::ContinueExpired => self.authorizer.count_expiry("kept"),
                // Long done when a relay runs.
                Action::Connect | Action::StartRelay => {}
            }
        }
        if is_verdict {
            self.settle_waiting();
        }
    }

    /// The client's stream cannot be followed any further; what stood before it has gone on, and is answered
    /// as it would be without us.
    fn client_breaks_off(&mut self) {
        self.from_client.abandon_header();
        self.act_on(Event::Close(CloseReason::Protocol));
        if let Some(closing) = &mut self.closing {
            closing.hears_upstream = true;
        }
    }

    /// The client takes nothing any more. What it sent before it left still goes up; its end follows.
    fn client_has_left(&mut self) {
        self.client.give_up();
        self.first_close.get_or_insert((None, ClosedBy::Client));
    }

    fn upstream_breaks_off(&mut self) {
        self.from_upstream.abandon_header();
        self.upstream.eof = true;
        self.act_on(Event::Close(CloseReason::UpstreamLost));
    }

    /// The client is given up. What it sent before still goes up, and its socket is closed meanwhile. Whether nothing is
    /// left to do.
    fn give_up_client(&mut self, cx: &mut Context<'_>) -> bool {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| self.client.part(cx, scratch));
        self.client.give_up();
        self.client.socket = Socket::Closed;
        self.client.eof = true;
        self.over = None;
        if self.closing.is_some() && !self.upstream.told_close {
            self.close_upstream();
        }
        !self.upstream.pending() && self.upstream.is_delivered()
    }

    /// Whether only what the upstream is still to take keeps it from being over.
    fn is_without_client(&self) -> bool {
        self.client.eof && self.client.shut
    }

    fn pump_from_client(&mut self, cx: &mut Context<'_>) -> bool {
        if self.gives_way(cx) {
            return true;
        }
        if self.closing.is_some() && !self.upstream.told_close {
            // At once, whatever the client reads, and behind all of its messages that were taken.
            self.close_upstream();
        }
        if !self.upstream.shut {
            match self.upstream.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    // It may still have something to say; its EOF follows.
                    self.upstream.give_up();
                    return true;
                }
                // Behind a Close nothing of the client's goes on, and only its own Close, or its end, is awaited.
                Poll::Pending if !self.upstream.told_close => {
                    self.client.is_unread = true;
                    return false;
                }
                Poll::Pending => {}
            }
            // The end itself comes only when the client has been told, so that the upstream can finish its message.
            let left = self.closing.is_some() && self.client.told_close;
            let done = self.client.eof || left;
            if done && !self.upstream.pending() && self.upstream.is_delivered() {
                self.upstream.shut(cx);
                return true;
            }
        } else if !self.upstream.poll_shut(cx) && self.client.eof {
            return false;
        }
        if self.has_sayings_up() && !self.upstream.shut && self.closing.is_none() {
            let mut out = Outgoing::default();
            self.say_up_between(&[], &mut out);
            if !out.spill.is_empty() {
                if self.upstream.write_now(cx, &out.spill).is_err() {
                    self.upstream.shut = true;
                }
                return true;
            }
        }
        if self.client.eof {
            return false;
        }
        if self.is_holding() {
            self.client.is_unread = true;
            return false;
        }
        if self.client.is_read_again() {
            self.last_data = Instant::now();
        }
        let behind = self.take_behind();
        let read = if behind.is_empty() {
            SCRATCH_BUFFER.with_borrow_mut(|scratch| {
                let length = self.client.read(cx, scratch)?;
                if length == 0 {
                    return Some(Ok(0));
                }
                self.count_in(length);
                Some(self.pass_up(cx, &scratch[..length]))
            })
        } else {
            Some(self.pass_up(cx, &behind))
        };
        match read {
            None => false,
            Some(Ok(0)) => {
                self.client.was_heard();
                self.client.eof = true;
                self.first_close.get_or_insert((None, ClosedBy::Client));
                true
            }
            Some(Ok(_)) => {
                self.client.was_heard();
                self.count_held();
                true
            }
            Some(Err(_)) => {
                self.client_breaks_off();
                true
            }
        }
    }

    /// Passes on what the client sent, as far as it goes on.
    fn pass_up(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<usize, Violation> {
        // After a Close nothing of this direction counts any more.
        if self.upstream.told_close || self.upstream.shut || self.closing.is_some() {
            return Ok(input.len());
        }
        let (outgoing, violation) = self.take_from_client(input);
        if self.upstream.write_now(cx, outgoing.bytes(input)).is_err() {
            self.upstream.shut = true;
        }
        violation.map_or(Ok(input.len()), Err)
    }

    fn pump_from_upstream(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.client.shut {
            let had_stalled = self.client.stalled.is_some();
            let flushed = self.client.poll_flush(cx);
            if had_stalled && let Some(closing) = &mut self.closing {
                // The upstream was not read, and so could not end its message.
                closing.boundary_since = Instant::now();
            }
            match flushed {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.client_has_left();
                    return true;
                }
                // Behind a Close nothing of the upstream's goes on, and only its end is awaited.
                Poll::Pending if !self.client.told_close => {
                    self.upstream.is_unread = true;
                    return false;
                }
                Poll::Pending => {}
            }
            if !self.say.is_empty() && self.closing.is_none() && !self.client.told_close {
                let mut out = Outgoing::default();
                self.say_between(&[], &mut out);
                if !out.spill.is_empty() {
                    self.count_out(out.spill.len());
                    if self.client.write_now(cx, &out.spill).is_err() {
                        self.client_has_left();
                    }
                    return true;
                }
            }
            if self.closing.is_some() && !self.client.told_close {
                self.send_close();
                if self.client.told_close {
                    return true;
                }
            }
            let done = (self.client.told_close && self.closing.is_some()) || self.upstream.eof;
            if done && !self.client.pending() && self.client.is_delivered() {
                self.client.shut(cx);
                return true;
            }
        } else if !self.client.poll_shut(cx) && self.upstream.eof {
            return false;
        }
        if self.upstream.eof {
            return false;
        }
        if self.upstream.is_read_again() {
            self.last_data = Instant::now();
        }
        let read = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let length = self.upstream.read(cx, scratch)?;
            if length == 0 {
                return Some(Ok(0));
            }
            let input = &scratch[..length];
            if self.client.told_close || self.client.shut {
                return Some(Ok(input.len()));
            }
            let (outgoing, violation) = self.take_from_upstream(input);
            let bytes = outgoing.bytes(input);
            self.count_out(bytes.len());
            if self.client.write_now(cx, bytes).is_err() {
                self.client_has_left();
            }
            Some(violation.map_or(Ok(input.len()), Err))
        });
        match read {
            None => false,
            Some(Ok(0)) => {
                self.upstream.eof = true;
                if !self.upstream.said_close && !self.client.said_close && !self.client.eof {
                    self.act_on(Event::Close(CloseReason::UpstreamLost));
                }
                true
            }
            Some(Ok(_)) => {
                self.upstream.was_heard();
                true
            }
            Some(Err(_)) => {
                self.upstream_breaks_off();
                true
            }
        }
    }

    /// A side that has gone, or two Closes, leave the rest this long, once what was accepted for either is delivered.
    fn settle(&mut self) {
        if self.over.is_some() {
            return;
        }
        let is_delivered = if self.closing.is_some() {
            (self.client.told_close || self.client.shut) && !self.client.pending() && self.client.is_delivered()
        } else {
            let closed = self.client.said_close
                || self.upstream.said_close
                || self.client.eof
                || self.upstream.eof
                || self.client.shut;
            closed
                && !self.client.pending()
                && !self.upstream.pending()
                && self.client.is_delivered()
                && self.upstream.is_delivered()
        };
        if !is_delivered {
            return;
        }
        self.over = Some(Instant::now() + LINGER);
    }

    fn is_finished(&self) -> bool {
        // A client that has gone needs nothing more from the upstream either.
        self.client.eof && self.client.has_shut() && self.upstream.has_shut()
    }

    /// Both sockets are closed without taking back what is on its way to their peers.
    fn part(&mut self, cx: &mut Context<'_>) -> SocketOutcome {
        SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            self.client.part(cx, scratch);
            self.upstream.part(cx, scratch);
        });
        self.outcome()
    }

    fn count_in(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
        self.passed.from_client.inc_by(bytes as u64);
    }

    fn count_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
        self.passed.to_client.inc_by(bytes as u64);
    }

    fn outcome(&self) -> SocketOutcome {
        let (code, closed_by) = self.first_close.unwrap_or((None, ClosedBy::Upstream));
        SocketOutcome {
            code,
            closed_by,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            refreshes: self.session.refreshes(),
        }
    }
}

impl Future for Relay {
    type Output = SocketOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SocketOutcome> {
        let this = self.get_mut();
        loop {
            let mut progress = false;
            if let Some(verdict) = &mut this.verdict
                && let Poll::Ready(verdict) = verdict.as_mut().poll(cx)
            {
                this.verdict = None;
                this.act_on(Event::Verdict(verdict));
                progress = true;
            }
            if let Some(asking) = &mut this.asking
                && let Poll::Ready(answer) = asking.as_mut().poll(cx)
            {
                this.asking = None;
                this.act_on(Event::Revalidation(answer));
                progress = true;
            }
            if let Poll::Ready(subscription) = this.notified.as_mut().poll(cx) {
                this.hear(&subscription);
                this.notified = subscription.notified();
                progress = true;
            }
            progress |= this.pump_from_client(cx);
            progress |= this.pump_from_upstream(cx);
            this.settle();
            if this.is_finished() {
                return Poll::Ready(this.part(cx));
            }
            if progress {
                continue;
            }
            let next = this.next_moment();
            let now_instant = Instant::now();
            if next <= now_instant {
                if this.on_time(cx) {
                    return Poll::Ready(this.part(cx));
                }
                continue;
            }
            // Most wakes only move what is due further away; the timer is left to fire early then.
            if next < this.timer.deadline() || this.timer.is_elapsed() {
                this.timer.as_mut().reset(next);
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
