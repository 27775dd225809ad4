//! One of the two sockets, what waits to be written to it, and what is being held back of a stream.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::RelaySettings;
use crate::http::Socket;
use crate::websocket::frame::{FrameParser, Opcode};

/// The slowest reader that is waited for takes this many bytes a millisecond…
const SLOWEST: u64 = 8;
/// …of at most this many that the buffers between us and it may hold.
const BETWEEN: u64 = 8 << 20;

/// Of what the system has sent, so much at most stands unread in the peer's receive buffer.
const AT_THE_PEER: u64 = 256 << 10;

/// So often is a socket read for the last time; who sends more than that is reset.
const LAST_READS: usize = 16;

/// One of the two sockets.
pub(super) struct Peer {
    pub(super) socket: Socket,
    /// What it has taken may still wait inside it.
    pub(super) unflushed: bool,
    /// Written to us by the other side, not yet taken by this one.
    pub(super) out: Vec<u8>,
    pub(super) sent: usize,
    pub(super) last_heard: Instant,
    /// It was pinged, and is dead when it has said nothing by then.
    pub(super) answer_due: Option<Instant>,
    /// By then even the slowest reader has taken all that was written: what we say now is not heard sooner.
    taken_by: Instant,
    /// A ping was due and did not fit; not before this.
    pub(super) ping_not_before: Instant,
    /// A write has been waiting since.
    pub(super) stalled: Option<Instant>,
    /// What the system has taken for it and not sent yet, where that was asked.
    unsent: Option<Box<Unsent>>,
    /// It sends no more.
    pub(super) eof: bool,
    /// We send no more, and have said so.
    pub(super) shut: bool,
    /// That has been begun, and the socket has not taken it yet.
    shutting: bool,
    /// It is not read, because the other side takes nothing or a verdict is awaited: its silence says nothing.
    pub(super) is_unread: bool,
    /// A Close of this side has passed, or been sent to it.
    pub(super) said_close: bool,
    pub(super) told_close: bool,
}

/// What the system holds for a side.
struct Unsent {
    bytes: usize,
    /// When it became less last.
    since: Instant,
}

impl Peer {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            unflushed: false,
            out: Vec::new(),
            sent: 0,
            last_heard: Instant::now(),
            answer_due: None,
            taken_by: Instant::now(),
            ping_not_before: Instant::now(),
            stalled: None,
            unsent: None,
            eof: false,
            shut: false,
            shutting: false,
            is_unread: false,
            said_close: false,
            told_close: false,
        }
    }

    pub(super) fn next_ping(&self, settings: &RelaySettings) -> Instant {
        (self.last_heard + settings.ping_interval.get()).max(self.ping_not_before)
    }

    /// Reads what has come into `scratch`: its length, 0 at the end of the stream; `None` while there is
    /// nothing.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Option<usize> {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
            Poll::Pending => None,
            // A reset is an end like any other.
            Poll::Ready(Err(_)) => Some(0),
            Poll::Ready(Ok(())) => Some(buffer.filled().len()),
        }
    }

    /// It was read again and something has come, its end included.
    pub(super) fn was_heard(&mut self) {
        self.last_heard = Instant::now();
        self.answer_due = None;
    }

    /// It is read from now on; whether it had not been before. Silence is counted anew then.
    pub(super) fn is_read_again(&mut self) -> bool {
        let again = std::mem::take(&mut self.is_unread);
        if again {
            self.was_heard();
        }
        again
    }

    /// Whether it counts as silent, or can.
    pub(super) fn is_listened_to(&self) -> bool {
        !self.eof && !self.told_close && !self.is_unread
    }

    /// A ping of ours is on its way behind all that was written before.
    pub(super) fn was_pinged(&mut self, settings: &RelaySettings) {
        let now = Instant::now();
        let mut taken_by = self.taken_by.max(now);
        if taken_by > now
            && let Some(held) = self.socket.held()
        {
            taken_by = taken_by.min(now + Duration::from_millis((held as u64 + AT_THE_PEER) / SLOWEST));
        }
        self.answer_due = Some(taken_by + settings.ping_timeout.get());
    }

    /// Whether the system has sent all that it took, so that closing the socket takes nothing back. Asked before our end
    /// is sent, when no write waits.
    pub(super) fn is_delivered(&mut self) -> bool {
        if self.shut || self.socket.is_sent() != Some(false) {
            self.unsent = None;
            return true;
        }
        let bytes = self.socket.unsent();
        if self.unsent.as_ref().is_none_or(|unsent| bytes < unsent.bytes) {
            self.unsent = Some(Box::new(Unsent { bytes, since: Instant::now() }));
        }
        false
    }

    /// Since when it has taken nothing of what waits for it, in us or in the system; `None` where nothing waits.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.stalled.or_else(|| self.unsent.as_ref().map(|unsent| unsent.since))
    }

    /// Whether the system is asked again soon how much it has not sent.
    pub(super) fn awaits_delivery(&self) -> bool {
        self.unsent.is_some()
    }

    fn wrote(&mut self, bytes: usize) {
        let now = Instant::now();
        let taken_by = self.taken_by.max(now) + Duration::from_millis(bytes as u64 / SLOWEST);
        self.taken_by = taken_by.min(now + Duration::from_millis(BETWEEN / SLOWEST));
        self.unsent = None;
    }

    /// Ends what we send. A socket that does not take the end at once is asked again by [`Self::poll_shut`].
    pub(super) fn shut(&mut self, cx: &mut Context<'_>) {
        self.shut = true;
        self.shutting = true;
        self.poll_shut(cx);
    }

    /// Goes on with an end that was begun; whether nothing is left of it.
    pub(super) fn poll_shut(&mut self, cx: &mut Context<'_>) -> bool {
        // An error is an end as well.
        if self.shutting && Pin::new(&mut self.socket).poll_shutdown(cx).is_ready() {
            self.shutting = false;
        }
        !self.shutting
    }

    /// Whether it has taken nothing for `limit`; asked of the socket itself before it is said.
    pub(super) fn takes_nothing(&mut self, limit: Duration) -> bool {
        if self.waiting_since().is_none_or(|since| since.elapsed() < limit) {
            return false;
        }
        if self.stalled.is_none() {
            return !self.is_delivered() && self.waiting_since().is_some_and(|since| since.elapsed() >= limit);
        }
        let Some(taken) = self.socket.send_now(&self.out[self.sent..]) else { return true };
        self.sent += taken;
        self.wrote(taken);
        self.stalled = Some(Instant::now());
        false
    }

    /// Whether nothing more goes to it, its end included.
    pub(super) fn has_shut(&self) -> bool {
        self.shut && !self.shutting
    }

    /// Ends it for good: a socket that is closed with bytes unread is reset, and what is still on its way to the peer
    /// is lost.
    pub(super) fn part(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) {
        if !self.shut {
            self.shut(cx);
        }
        for _ in 0..LAST_READS {
            if self.read(cx, scratch).is_none_or(|length| length == 0) {
                return;
            }
        }
    }

    /// It takes nothing any more; what waited for it is lost.
    pub(super) fn give_up(&mut self) {
        self.shut = true;
        self.unflushed = false;
        self.out = Vec::new();
        self.sent = 0;
        self.stalled = None;
        self.unsent = None;
    }

    pub(super) fn pending(&self) -> bool {
        !self.shut && (self.sent < self.out.len() || self.unflushed)
    }

    /// Writes what waits; `Ready(Ok(()))` when nothing waits any more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.wrote(written);
                    self.stalled = None;
                    self.unflushed = self.socket.has_write_buffer();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            if Pin::new(&mut self.socket).poll_flush(cx)?.is_pending() {
                self.stalled.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
            self.unflushed = false;
        }
        // An idle socket holds no buffer.
        self.out = Vec::new();
        self.sent = 0;
        self.stalled = None;
        Poll::Ready(Ok(()))
    }

    /// Writes at once what can be written and keeps the rest; only called when nothing waits.
    pub(super) fn write_now(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        if self.shut {
            return Ok(());
        }
        let mut from = 0;
        while self.sent == self.out.len() && from < bytes.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &bytes[from..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    from += written;
                    self.wrote(written);
                    self.unflushed = self.socket.has_write_buffer();
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    break;
                }
            }
        }
        self.out.extend_from_slice(&bytes[from..]);
        if self.unflushed && Pin::new(&mut self.socket).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(())
    }
}

/// What goes on of one read: a range of the input as long as nothing was held, added or left out.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) range: Range<usize>,
    pub(super) spill: Vec<u8>,
}

impl Outgoing {
    pub(super) fn keep(&mut self, input: &[u8], range: Range<usize>) {
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

    pub(super) fn add(&mut self, input: &[u8], bytes: &[u8]) {
        if self.spill.is_empty() {
            self.spill.extend_from_slice(&input[std::mem::take(&mut self.range)]);
        }
        self.spill.extend_from_slice(bytes);
    }

    pub(super) fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        if self.spill.is_empty() { &input[self.range.clone()] } else { &self.spill }
    }
}

/// A control frame being collected.
#[derive(Default)]
pub(super) struct Control {
    pub(super) raw: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Control {
    /// Of a header or a control frame that is not whole nothing has gone on: where it will not be finished, the stream
    /// stands where it stood before.
    pub(super) fn abandon(&mut self, parser: &mut FrameParser) {
        parser.abandon_header();
        if !self.raw.is_empty() {
            parser.abandon_payload();
            *self = Self::default();
        }
    }
}

/// A message being looked into.
pub(super) struct Held {
    pub(super) opcode: Opcode,
    /// As it came, as long as it may still have to go on before it is whole.
    pub(super) raw: Vec<u8>,
    pub(super) text: Vec<u8>,
    /// It stays until it is whole; `raw` is not kept any more.
    pub(super) to_the_end: bool,
}

impl Held {
    pub(super) const fn new(opcode: Opcode) -> Self {
        Self { opcode, raw: Vec::new(), text: Vec::new(), to_the_end: false }
    }

    pub(super) fn keep_raw(&mut self, bytes: &[u8]) {
        if !self.to_the_end {
            self.raw.extend_from_slice(bytes);
        }
    }

    pub(super) fn stay_to_the_end(&mut self) {
        self.to_the_end = true;
        self.raw = Vec::new();
    }
}
