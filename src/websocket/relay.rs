//! Messages flow: one task owns both sockets and drives the session.
//!
//! Bytes are read into a buffer that a thread lends for the moment, so an idle socket holds none;
//! what the peer would not take is kept, and nothing more is read from that side until it has gone.
//! Payload goes on as it came. Client texts that could be a refresh are looked into; control frames
//! are held until whole, to know our own pongs and to see a Close; our messages go out between
//! messages only.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::dialect;
use super::frame::{Header, Opcode, Piece, Sender, Violation, Walker, apply_mask, close_payload, encode};
use super::session::{Action, Ending, Event, Session, Verdict};
use crate::auth::Token;

/// Client texts longer than this are never looked into.
const LOOKED_INTO: usize = 16 << 10;
/// After a Close, or half of one, the other side has this long.
const LINGER: Duration = Duration::from_secs(5);
/// How long a Close of ours waits for the end of a message.
const BOUNDARY: Duration = Duration::from_secs(2);
/// Answers of ours that may wait for the end of the upstream's message.
const SAYINGS: usize = 16;
/// A ping that could not be sent is tried again after this.
const PING_RETRY: Duration = Duration::from_secs(1);
/// Our pings, to know our pongs.
const PING: &[u8] = b"vestibule";
/// A thread reads through this much at a time.
const SCRATCH: usize = 64 << 10;

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Judges a refresh under the policy now in force.
pub(super) trait Judge: Send + Sync {
    /// The verdict on a token presented later.
    fn judge(&self, token: Token) -> Pin<Box<dyn Future<Output = Verdict> + Send>>;
}

/// What a relay runs by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Silence after which a ping is sent.
    pub ping_interval: Duration,
    /// Silence after a ping that means dead.
    pub ping_timeout: Duration,
    /// Without a data frame, either way, for this long it is closed.
    pub idle_timeout: Option<Duration>,
    /// No byte taken for this long means dead.
    pub send_timeout: Duration,
    /// The largest token read from a message.
    pub token_bytes: usize,
    /// Close code when the process stops.
    pub drain_code: u16,
}

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClosedBy {
    /// The client, by a Close or by leaving.
    Client,
    /// The upstream.
    Upstream,
    /// We.
    Vestibule,
}

/// What became of a session; for the access line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Code of the first Close, when there was one.
    pub code: Option<u16>,
    /// Who was first.
    pub closed_by: ClosedBy,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Accepted refreshes.
    pub refreshes: u32,
}

impl Outcome {
    /// A socket that never came to anything: closed by us with this code.
    #[must_use]
    pub(super) const fn refused(code: u16) -> Self {
        Self { code: Some(code), closed_by: ClosedBy::Vestibule, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }

    /// A client that left before it was anyone.
    #[must_use]
    pub(super) const fn left(code: Option<u16>) -> Self {
        Self { code, closed_by: ClosedBy::Client, bytes_in: 0, bytes_out: 0, refreshes: 0 }
    }
}

/// One of the two sockets.
struct Side {
    tcp: TcpStream,
    /// Written to us by the other side, not yet taken by this one.
    out: Vec<u8>,
    sent: usize,
    last_heard: Instant,
    pinged: Option<Instant>,
    /// A ping was due and did not fit; not before this.
    ping_not_before: Instant,
    /// A write has been waiting since.
    stalled: Option<Instant>,
    /// It sends no more.
    eof: bool,
    /// We send no more, and have said so.
    shut: bool,
    /// A Close of this side has passed, or been sent to it.
    said_close: bool,
    told_close: bool,
}

impl Side {
    fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            out: Vec::new(),
            sent: 0,
            last_heard: Instant::now(),
            pinged: None,
            ping_not_before: Instant::now(),
            stalled: None,
            eof: false,
            shut: false,
            said_close: false,
            told_close: false,
        }
    }

    fn next_ping(&self, times: &Times) -> Instant {
        (self.last_heard + times.ping_interval).max(self.ping_not_before)
    }

    fn pending(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Writes what waits; `Ready(Ok(()))` when nothing waits any more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.pending() {
            match Pin::new(&mut self.tcp).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.stalled = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        // An idle socket holds no buffer.
        self.out = Vec::new();
        self.sent = 0;
        self.stalled = None;
        Poll::Ready(Ok(()))
    }

    /// Writes at once what can be written and keeps the rest; only called when nothing waits.
    fn write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        if self.shut {
            return Ok(());
        }
        let mut from = 0;
        while !self.pending() && from < bytes.len() {
            match Pin::new(&mut self.tcp).poll_write(cx, &bytes[from..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => from += written,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        self.out.extend_from_slice(&bytes[from..]);
        Ok(())
    }
}

/// What goes on of one read: a range of the input as long as nothing was held, added or left out.
#[derive(Default)]
struct Outgoing {
    range: Range<usize>,
    spill: Vec<u8>,
}

impl Outgoing {
    fn keep(&mut self, input: &[u8], range: Range<usize>) {
        if !self.spill.is_empty() {
            self.spill.extend_from_slice(&input[range]);
        } else if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.add(input, &input[range]);
        }
    }

    fn add(&mut self, input: &[u8], bytes: &[u8]) {
        if self.spill.is_empty() {
            self.spill.extend_from_slice(&input[std::mem::take(&mut self.range)]);
        }
        self.spill.extend_from_slice(bytes);
    }

    fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        if self.spill.is_empty() { &input[self.range.clone()] } else { &self.spill }
    }
}

/// A control frame being collected.
#[derive(Default)]
struct Control {
    raw: Vec<u8>,
    payload: Vec<u8>,
}

/// A client text being looked into.
struct Held {
    raw: Vec<u8>,
    text: Vec<u8>,
}

/// How a session of ours is being ended.
struct Farewell {
    since: Instant,
    text: Option<Vec<u8>>,
    close: Vec<u8>,
}

/// Both directions of one session.
pub(super) struct Relay {
    client: Side,
    upstream: Side,
    from_client: Walker,
    from_upstream: Walker,
    client_frame: Option<Header>,
    upstream_frame: Option<Header>,
    client_control: Control,
    upstream_control: Control,
    held: Option<Held>,
    /// Our messages to the client, each a whole frame.
    say: VecDeque<Vec<u8>>,
    session: Session,
    judge: Box<dyn Judge>,
    verdict: Option<Pin<Box<dyn Future<Output = Verdict> + Send>>>,
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    timer: Pin<Box<Sleep>>,
    times: Times,
    /// When the last data frame began.
    last_data: Instant,
    farewell: Option<Farewell>,
    /// Both sides have been told to go; what is left has until then.
    over: Option<Instant>,
    first_close: Option<(Option<u16>, ClosedBy)>,
    bytes_in: u64,
    bytes_out: u64,
}

/// What a relay begins with.
pub(super) struct Beginning {
    /// The client's socket.
    pub client: TcpStream,
    /// The upstream's.
    pub upstream: TcpStream,
    /// What the client has sent already, from a frame's beginning.
    pub from_client: Vec<u8>,
    /// What the upstream sent right behind its 101.
    pub from_upstream: Vec<u8>,
    /// What is said to the client before anything of the upstream's, each a text.
    pub say: Vec<String>,
    /// Whether both ends agreed on an extension.
    pub extensions: bool,
    /// The session.
    pub session: Session,
}

impl Relay {
    /// Sets a relay up; it runs when awaited.
    #[must_use]
    pub(super) fn new(
        beginning: Beginning,
        judge: Box<dyn Judge>,
        drain: Pin<Box<dyn Future<Output = ()> + Send>>,
        times: Times,
    ) -> Self {
        let Beginning { client, upstream, from_client, from_upstream, say, extensions, session } = beginning;
        let mut relay = Self {
            client: Side::new(client),
            upstream: Side::new(upstream),
            from_client: Walker::new(Sender::Client, extensions),
            from_upstream: Walker::new(Sender::Server, extensions),
            client_frame: None,
            upstream_frame: None,
            client_control: Control::default(),
            upstream_control: Control::default(),
            held: None,
            say: VecDeque::new(),
            session,
            judge,
            verdict: None,
            drain: Some(drain),
            timer: Box::pin(sleep_until(Instant::now() + times.ping_interval)),
            times,
            last_data: Instant::now(),
            farewell: None,
            over: None,
            first_close: None,
            bytes_in: 0,
            bytes_out: 0,
        };
        for text in say {
            encode(&mut relay.client.out, Opcode::Text, text.as_bytes(), None);
        }
        relay.bytes_in += from_client.len() as u64;
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
        for action in self.session.on(event, now()) {
            match action {
                Action::Verify(token) => self.verdict = Some(self.judge.judge(token)),
                // Only an upstream that never ends its message lets this many wait.
                Action::Say(_) if self.say.len() >= SAYINGS => self.begin_end(Ending::TooManyRefreshes),
                Action::Say(text) => {
                    let mut frame = Vec::new();
                    encode(&mut frame, Opcode::Text, text.as_bytes(), None);
                    self.say.push_back(frame);
                }
                Action::End(ending) => self.begin_end(ending),
                // Long done when a relay runs.
                Action::Connect | Action::Relay => {}
            }
        }
    }

    /// The client's stream cannot be followed any further; what stood before it has gone on.
    fn client_breaks_off(&mut self) {
        self.from_client.abandon_header();
        self.act_on(Event::End(Ending::Protocol));
    }

    fn upstream_breaks_off(&mut self) {
        self.from_upstream.abandon_header();
        self.upstream.eof = true;
        self.act_on(Event::End(Ending::UpstreamLost));
    }

    fn begin_end(&mut self, ending: Ending) {
        if self.farewell.is_some() {
            return;
        }
        let dialect = self.session.dialect().map(|dialect| &**dialect);
        let code = ending.code(dialect);
        let text = ending.said(dialect, self.session.answering()).map(|text| {
            let mut frame = Vec::new();
            encode(&mut frame, Opcode::Text, text.as_bytes(), None);
            frame
        });
        let mut close = Vec::new();
        encode(&mut close, Opcode::Close, &close_payload(code, ending.reason()), None);
        tracing::debug!("closing the socket: {code} {}", ending.reason());
        self.first_close.get_or_insert((Some(code), ClosedBy::Vestibule));
        self.verdict = None;
        self.farewell = Some(Farewell { since: Instant::now(), text, close });
    }

    /// Says goodbye to the client when the stream to it allows it.
    fn say_farewell(&mut self) {
        let Some(farewell) = &mut self.farewell else { return };
        if self.client.told_close {
            return;
        }
        // A message that nobody will finish is not waited for.
        let late = farewell.since.elapsed() >= BOUNDARY || self.upstream.eof;
        let between_frames = self.from_upstream.between_frames() && self.upstream_control.raw.is_empty();
        if self.from_upstream.between_messages() && between_frames {
            for frame in self.say.drain(..) {
                self.client.out.extend_from_slice(&frame);
            }
            if let Some(text) = farewell.text.take() {
                self.client.out.extend_from_slice(&text);
            }
            self.client.out.extend_from_slice(&farewell.close);
        } else if late && between_frames {
            // A control frame may stand between fragments; a message of ours may not.
            self.client.out.extend_from_slice(&farewell.close);
        } else if !late {
            return;
        }
        // Late and inside a frame: nothing can be said any more, and the connection just ends.
        self.client.told_close = true;
        self.over = Some(Instant::now() + LINGER);
        self.leave_upstream();
    }

    /// Toward the upstream a session that we end is a masked Close 1001.
    fn leave_upstream(&mut self) {
        let between = self.from_client.between_frames() && self.client_control.raw.is_empty();
        if !self.upstream.told_close && between && !self.upstream.shut {
            encode(&mut self.upstream.out, Opcode::Close, &close_payload(1001, ""), Some(mask()));
        }
        self.upstream.told_close = true;
        self.held = None;
    }

    /// Looks at what the client sent; what is returned goes up.
    fn take_from_client(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        loop {
            let (piece, next) = match self.from_client.advance(input, at) {
                Ok(Some(found)) => found,
                Ok(None) => return (out, None),
                Err(violation) => return (out, Some(violation)),
            };
            at = next;
            match piece {
                Piece::Header(header, range) => {
                    self.client_frame = Some(header);
                    if header.opcode.is_control() {
                        self.client_control.raw.extend_from_slice(header.raw());
                    } else {
                        self.last_data = Instant::now();
                        self.client_data_begins(header, range, input, next, &mut out);
                    }
                    if header.length == 0 {
                        self.client_frame_ends(header, input, &mut out);
                    }
                }
                Piece::Payload { range, offset, last } => {
                    let Some(header) = self.client_frame else { continue };
                    if header.opcode.is_control() {
                        self.client_control.raw.extend_from_slice(&input[range.clone()]);
                        unmask_onto(&mut self.client_control.payload, &input[range], header.mask, offset);
                    } else if let Some(held) = &mut self.held {
                        held.raw.extend_from_slice(&input[range.clone()]);
                        unmask_onto(&mut held.text, &input[range], header.mask, offset);
                        if !could_be_ours(&held.text) || held.text.len() > LOOKED_INTO {
                            self.release(input, &mut out);
                        }
                    } else {
                        out.keep(input, range);
                    }
                    if last {
                        self.client_frame_ends(header, input, &mut out);
                    }
                }
            }
            if self.upstream.told_close || self.farewell.is_some() {
                return (out, None);
            }
        }
    }

    fn client_data_begins(
        &mut self,
        header: Header,
        range: Option<Range<usize>>,
        input: &[u8],
        next: usize,
        out: &mut Outgoing,
    ) {
        if header.opcode == Opcode::Text && self.session.dialect().is_some() && header.length <= LOOKED_INTO as u64 {
            // Most texts show with their first byte that they are not for us, and are not copied.
            let first = input.get(next).zip(header.mask).map(|(byte, mask)| byte ^ mask[0]);
            if header.length == 0 || first.is_none_or(|first| could_be_ours(&[first])) {
                self.held = Some(Held { raw: header.raw().to_vec(), text: Vec::new() });
                return;
            }
        }
        if self.held.as_ref().is_some_and(|held| held.raw.len() > 2 * LOOKED_INTO) {
            // Fragments without end and without content are no refresh.
            self.release(input, out);
        }
        match (&mut self.held, range) {
            (Some(held), _) => held.raw.extend_from_slice(header.raw()),
            (None, Some(range)) => out.keep(input, range),
            (None, None) => out.add(input, header.raw()),
        }
    }

    fn client_frame_ends(&mut self, header: Header, input: &[u8], out: &mut Outgoing) {
        if header.opcode.is_control() {
            let control = std::mem::take(&mut self.client_control);
            match header.opcode {
                Opcode::Pong if control.payload == PING => self.client.pinged = None,
                Opcode::Close => {
                    // What it held back of a message that never ends would reach nobody.
                    self.held = None;
                    self.client.said_close = true;
                    self.first_close.get_or_insert((code_of(&control.payload), ClosedBy::Client));
                    self.upstream.told_close = true;
                    out.add(input, &control.raw);
                }
                _ => out.add(input, &control.raw),
            }
            return;
        }
        if !header.fin {
            return;
        }
        let Some(held) = self.held.take() else { return };
        let ours =
            self.session.dialect().and_then(|dialect| dialect::later(dialect, &held.text, self.times.token_bytes));
        match ours {
            Some((later, copies)) => self.act_on(Event::Later(later, copies)),
            None => out.add(input, &held.raw),
        }
    }

    fn release(&mut self, input: &[u8], out: &mut Outgoing) {
        if let Some(held) = self.held.take() {
            out.add(input, &held.raw);
        }
    }

    /// Looks at what the upstream sent; what is returned goes to the client.
    fn take_from_upstream(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        loop {
            self.say_between(input, &mut out);
            // Once it is being ended, only what belongs to the open message still goes on.
            if self.farewell.is_some() && self.from_upstream.between_messages() {
                return (out, None);
            }
            let (piece, next) = match self.from_upstream.advance(input, at) {
                Ok(Some(found)) => found,
                Ok(None) => return (out, None),
                Err(violation) => return (out, Some(violation)),
            };
            at = next;
            let header = match piece {
                Piece::Header(header, range) => {
                    self.upstream_frame = Some(header);
                    if !header.opcode.is_control() {
                        self.last_data = Instant::now();
                    }
                    match range {
                        _ if header.opcode.is_control() => self.upstream_control.raw.extend_from_slice(header.raw()),
                        Some(range) => out.keep(input, range),
                        None => out.add(input, header.raw()),
                    }
                    if header.length > 0 {
                        continue;
                    }
                    header
                }
                Piece::Payload { range, last, .. } => {
                    let Some(header) = self.upstream_frame else { continue };
                    if header.opcode.is_control() {
                        self.upstream_control.raw.extend_from_slice(&input[range.clone()]);
                        self.upstream_control.payload.extend_from_slice(&input[range]);
                    } else {
                        out.keep(input, range);
                    }
                    if !last {
                        continue;
                    }
                    header
                }
            };
            if header.opcode.is_control() {
                self.upstream_control_ends(header.opcode, input, &mut out);
            }
            if self.client.told_close {
                return (out, None);
            }
        }
    }

    fn upstream_control_ends(&mut self, opcode: Opcode, input: &[u8], out: &mut Outgoing) {
        let control = std::mem::take(&mut self.upstream_control);
        match opcode {
            Opcode::Pong if control.payload == PING => self.upstream.pinged = None,
            Opcode::Close if self.farewell.is_none() => {
                self.upstream.said_close = true;
                self.client.told_close = true;
                self.first_close.get_or_insert((code_of(&control.payload), ClosedBy::Upstream));
                out.add(input, &control.raw);
            }
            // Two Closes would be one too many; ours is on its way.
            Opcode::Close => self.upstream.said_close = true,
            _ => out.add(input, &control.raw),
        }
    }

    /// Our messages go out between two of the upstream's.
    fn say_between(&mut self, input: &[u8], out: &mut Outgoing) {
        if !self.say.is_empty() && self.from_upstream.between_messages() && self.upstream_control.raw.is_empty() {
            for frame in self.say.drain(..) {
                out.add(input, &frame);
            }
        }
    }

    fn pump_from_client(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.upstream.shut {
            match self.upstream.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    // It may still have something to say; its EOF follows.
                    self.upstream.shut = true;
                    self.upstream.out = Vec::new();
                    self.upstream.sent = 0;
                    return true;
                }
                // While the client is being sent away its own Close is still awaited.
                Poll::Pending if self.farewell.is_none() => return false,
                Poll::Pending => {}
            }
            let done = self.client.eof || (self.farewell.is_some() && self.upstream.told_close);
            if done && !self.upstream.pending() {
                self.upstream.shut = true;
                let _ = Pin::new(&mut self.upstream.tcp).poll_shutdown(cx);
                return true;
            }
        }
        if self.client.eof {
            return false;
        }
        let read = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut self.client.tcp).poll_read(cx, &mut buffer) {
                Poll::Pending => None,
                Poll::Ready(Err(_)) => Some(Ok(0)),
                Poll::Ready(Ok(())) => {
                    let input = buffer.filled();
                    if input.is_empty() {
                        return Some(Ok(0));
                    }
                    self.bytes_in += input.len() as u64;
                    // After a Close nothing of this direction counts any more.
                    if self.upstream.told_close || self.upstream.shut || self.farewell.is_some() {
                        return Some(Ok(input.len()));
                    }
                    let (outgoing, violation) = self.take_from_client(input);
                    if self.upstream.write_now(cx, outgoing.bytes(input)).is_err() {
                        self.upstream.shut = true;
                    }
                    Some(violation.map_or(Ok(input.len()), Err))
                }
            }
        });
        match read {
            None => false,
            Some(Ok(0)) => {
                self.client.eof = true;
                self.first_close.get_or_insert((None, ClosedBy::Client));
                true
            }
            Some(Ok(_)) => {
                self.client.last_heard = Instant::now();
                true
            }
            Some(Err(_)) => {
                self.client_breaks_off();
                true
            }
        }
    }

    fn pump_from_upstream(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.client.shut {
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.client.shut = true;
                    self.client.eof = true;
                    self.client.out = Vec::new();
                    self.client.sent = 0;
                    self.first_close.get_or_insert((None, ClosedBy::Client));
                    return true;
                }
                Poll::Pending => return false,
            }
            if !self.say.is_empty() && self.farewell.is_none() && !self.client.told_close {
                let mut out = Outgoing::default();
                self.say_between(&[], &mut out);
                if !out.spill.is_empty() {
                    self.bytes_out += out.spill.len() as u64;
                    if self.client.write_now(cx, &out.spill).is_err() {
                        self.client.shut = true;
                    }
                    return true;
                }
            }
            if self.farewell.is_some() && !self.client.told_close {
                self.say_farewell();
                if self.client.told_close {
                    return true;
                }
            }
            let done = (self.client.told_close && self.farewell.is_some()) || self.upstream.eof;
            if done && !self.client.pending() {
                self.client.shut = true;
                let _ = Pin::new(&mut self.client.tcp).poll_shutdown(cx);
                return true;
            }
        }
        if self.upstream.eof {
            return false;
        }
        let read = SCRATCH_BUFFER.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut self.upstream.tcp).poll_read(cx, &mut buffer) {
                Poll::Pending => None,
                Poll::Ready(Err(_)) => Some(Ok(0)),
                Poll::Ready(Ok(())) => {
                    let input = buffer.filled();
                    if input.is_empty() {
                        return Some(Ok(0));
                    }
                    if self.client.told_close || self.client.shut {
                        return Some(Ok(input.len()));
                    }
                    let (outgoing, violation) = self.take_from_upstream(input);
                    let bytes = outgoing.bytes(input);
                    self.bytes_out += bytes.len() as u64;
                    if self.client.write_now(cx, bytes).is_err() {
                        self.client.shut = true;
                        self.client.eof = true;
                    }
                    Some(violation.map_or(Ok(input.len()), Err))
                }
            }
        });
        match read {
            None => false,
            Some(Ok(0)) => {
                self.upstream.eof = true;
                if !self.upstream.said_close && !self.client.said_close && !self.client.eof {
                    self.act_on(Event::End(Ending::UpstreamLost));
                }
                true
            }
            Some(Ok(_)) => {
                self.upstream.last_heard = Instant::now();
                true
            }
            Some(Err(_)) => {
                self.upstream_breaks_off();
                true
            }
        }
    }

    /// The next moment at which something is due.
    fn next_moment(&self) -> Instant {
        let now_instant = Instant::now();
        let mut next = now_instant + Duration::from_secs(3_600);
        let mut consider = |moment: Instant| next = next.min(moment);
        if let Some(over) = self.over {
            consider(over);
        }
        for side in [&self.client, &self.upstream] {
            if let Some(stalled) = side.stalled {
                consider(stalled + self.times.send_timeout);
            }
        }
        if let Some(farewell) = &self.farewell {
            // Past that moment only the client's own slowness is in the way, and that has its limit.
            let boundary = farewell.since + BOUNDARY;
            if !self.client.told_close && boundary > now_instant {
                consider(boundary);
            }
            return next;
        }
        if let Some(deadline) = self.session.deadline() {
            consider(now_instant + Duration::from_millis(deadline.saturating_sub(now())));
        }
        if let Some(idle) = self.times.idle_timeout {
            consider(self.last_data + idle);
        }
        for side in [&self.client, &self.upstream] {
            if side.eof || side.told_close {
                continue;
            }
            consider(match side.pinged {
                Some(pinged) => pinged + self.times.ping_timeout,
                None => side.next_ping(&self.times),
            });
        }
        next
    }

    /// Does what is due; `true` when the session is simply over.
    fn on_time(&mut self) -> bool {
        let now_instant = Instant::now();
        if self.over.is_some_and(|over| now_instant >= over) {
            // One side has gone without a Close, and the other still has something to say.
            let half = self.client.eof != self.upstream.eof && self.farewell.is_none();
            let talking = if self.client.eof { &self.upstream } else { &self.client };
            let quiet_at = talking.last_heard + LINGER;
            if !half || self.client.said_close || self.upstream.said_close || quiet_at <= now_instant {
                return true;
            }
            self.over = Some(quiet_at);
        }
        let stalled = |side: &Side, limit: Duration| side.stalled.is_some_and(|since| since + limit <= now_instant);
        if stalled(&self.client, self.times.send_timeout) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if stalled(&self.upstream, self.times.send_timeout) {
            self.upstream_is_dead();
        }
        if self.farewell.is_some() {
            return false;
        }
        if self.session.deadline().is_some_and(|deadline| now() >= deadline) {
            self.act_on(Event::Deadline);
        }
        if self.times.idle_timeout.is_some_and(|idle| self.last_data + idle <= now_instant) {
            self.act_on(Event::End(Ending::Idle));
        }
        self.ping(now_instant)
    }

    fn upstream_is_dead(&mut self) {
        self.upstream.eof = true;
        self.upstream.shut = true;
        self.upstream.out = Vec::new();
        self.upstream.sent = 0;
        self.upstream.stalled = None;
        self.act_on(Event::End(Ending::UpstreamLost));
    }

    /// Pings the silent; `true` when the client is dead.
    fn ping(&mut self, now_instant: Instant) -> bool {
        let due = |side: &Side, times: &Times| {
            !side.eof && !side.told_close && side.pinged.is_none() && side.next_ping(times) <= now_instant
        };
        let dead = |side: &Side, times: &Times| {
            !side.eof
                && !side.told_close
                && side
                    .pinged
                    .is_some_and(|pinged| side.last_heard < pinged && pinged + times.ping_timeout <= now_instant)
        };
        if dead(&self.client, &self.times) {
            self.first_close.get_or_insert((None, ClosedBy::Vestibule));
            return true;
        }
        if dead(&self.upstream, &self.times) {
            self.upstream_is_dead();
            return false;
        }
        for side in [&mut self.client, &mut self.upstream] {
            // It spoke after our ping, so it lives, whether or not the pong was ever sent.
            if side.pinged.is_some_and(|pinged| side.last_heard >= pinged) {
                side.pinged = None;
            }
        }
        // A ping that does not fit now (a message is under way, a write waits) is tried again.
        let retry = now_instant + PING_RETRY;
        if due(&self.client, &self.times) {
            if self.from_upstream.between_messages() && self.upstream_control.raw.is_empty() && !self.client.pending() {
                self.client.pinged = Some(now_instant);
                encode(&mut self.client.out, Opcode::Ping, PING, None);
            } else {
                self.client.ping_not_before = retry;
            }
        }
        if due(&self.upstream, &self.times) {
            let between =
                self.from_client.between_messages() && self.held.is_none() && self.client_control.raw.is_empty();
            if between && !self.upstream.pending() {
                self.upstream.pinged = Some(now_instant);
                encode(&mut self.upstream.out, Opcode::Ping, PING, Some(mask()));
            } else {
                self.upstream.ping_not_before = retry;
            }
        }
        false
    }

    /// A side that has gone, or two Closes, leave the rest this long.
    fn settle(&mut self) {
        let closed = self.client.said_close || self.upstream.said_close || self.client.eof || self.upstream.eof;
        if !closed || self.over.is_some() || self.farewell.is_some() {
            return;
        }
        self.over = Some(Instant::now() + LINGER);
    }

    fn is_finished(&self) -> bool {
        let gone = |side: &Side| side.eof && side.shut;
        // A client that has gone needs nothing more from the upstream either.
        (gone(&self.client) && self.upstream.shut) || (gone(&self.upstream) && self.client.shut && self.client.eof)
    }

    fn outcome(&self) -> Outcome {
        let (code, closed_by) = self.first_close.unwrap_or((None, ClosedBy::Upstream));
        Outcome {
            code,
            closed_by,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            refreshes: self.session.refreshes(),
        }
    }
}

impl Future for Relay {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
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
            if let Some(drain) = &mut this.drain
                && drain.as_mut().poll(cx).is_ready()
            {
                this.drain = None;
                let code = this.times.drain_code;
                if !this.client.told_close && !this.client.eof {
                    this.act_on(Event::End(Ending::Drain(code)));
                }
                progress = true;
            }
            progress |= this.pump_from_client(cx);
            progress |= this.pump_from_upstream(cx);
            this.settle();
            if this.is_finished() {
                return Poll::Ready(this.outcome());
            }
            if progress {
                continue;
            }
            let next = this.next_moment();
            let now_instant = Instant::now();
            if next <= now_instant {
                if this.on_time() {
                    return Poll::Ready(this.outcome());
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

/// White space, then `{`: anything else is no JSON object and goes on at once.
fn could_be_ours(text: &[u8]) -> bool {
    match text.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
        Some(first) => *first == b'{',
        None => true,
    }
}

fn unmask_onto(target: &mut Vec<u8>, bytes: &[u8], mask: Option<[u8; 4]>, offset: u64) {
    let start = target.len();
    target.extend_from_slice(bytes);
    if let Some(mask) = mask {
        apply_mask(&mut target[start..], mask, offset);
    }
}

fn code_of(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

/// A masking key need only be unpredictable to the client (RFC 6455 section 10.3), and it does not
/// choose what these frames hold.
fn mask() -> [u8; 4] {
    now().to_le_bytes().first_chunk().copied().unwrap_or([0x37, 0xfa, 0x21, 0x3d])
}

/// Milliseconds since the epoch.
pub(super) fn now() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
