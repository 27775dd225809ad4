//! One of the two sockets, what waits to be written to it, and what is being held back of a stream.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Times;
use crate::http::Socket;
use crate::websocket::frame::Opcode;

/// One of the two sockets.
pub(super) struct Side {
    pub(super) socket: Socket,
    /// What it has taken may still wait inside it.
    pub(super) unflushed: bool,
    /// Written to us by the other side, not yet taken by this one.
    pub(super) out: Vec<u8>,
    pub(super) sent: usize,
    pub(super) last_heard: Instant,
    pub(super) pinged: Option<Instant>,
    /// A ping was due and did not fit; not before this.
    pub(super) ping_not_before: Instant,
    /// A write has been waiting since.
    pub(super) stalled: Option<Instant>,
    /// It sends no more.
    pub(super) eof: bool,
    /// We send no more, and have said so.
    pub(super) shut: bool,
    /// A Close of this side has passed, or been sent to it.
    pub(super) said_close: bool,
    pub(super) told_close: bool,
}

impl Side {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            unflushed: false,
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

    pub(super) fn next_ping(&self, times: &Times) -> Instant {
        (self.last_heard + times.ping_interval).max(self.ping_not_before)
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

    /// It takes nothing any more; what waited for it is lost.
    pub(super) fn give_up(&mut self) {
        self.shut = true;
        self.out = Vec::new();
        self.sent = 0;
        self.stalled = None;
    }

    pub(super) fn pending(&self) -> bool {
        self.sent < self.out.len() || self.unflushed
    }

    /// Writes what waits; `Ready(Ok(()))` when nothing waits any more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.stalled = None;
                    self.unflushed = self.socket.holds_back();
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
                    self.unflushed = self.socket.holds_back();
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
