//! The two ends of a proxied connection, with the patience each deserves.
//!
//! hyper's header-read timer is also its keep-alive timer, and it has none for writing. A
//! [`ClientStream`] knows when a request's first byte came, so a head may take `header_timeout` while
//! an idle connection may stay `keep_alive_timeout`; and neither side may take no byte for
//! `send_timeout`.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Socket;

/// Where a client connection stands between two requests; shared with whoever answers.
///
/// Counts up: even before a request, odd while one is answered. A count, because a quick answer may
/// begin and end between two reads.
#[derive(Debug, Default)]
pub struct Phase(AtomicU32);

impl Phase {
    /// A request's head is complete.
    pub fn busy(&self) {
        self.0.fetch_or(1, Ordering::Relaxed);
    }

    /// Its answer has been given.
    pub fn idle(&self) {
        let busy = self.0.load(Ordering::Relaxed) | 1;
        self.0.store(busy.wrapping_add(1), Ordering::Relaxed);
    }
}

/// How long a client may take for what.
#[derive(Clone, Copy, Debug)]
struct Patience {
    header: Duration,
    keep_alive: Duration,
}

#[derive(Debug)]
enum Waiting {
    /// Nothing to wait for: a request is being answered.
    No,
    /// For a request's first byte.
    Idle,
    /// For the rest of a head.
    Head,
}

/// An accepted connection.
#[derive(Debug)]
pub struct ClientStream {
    socket: PacedStream,
    phase: Arc<Phase>,
    /// The phase that was idle last.
    seen: u32,
    patience: Patience,
    waiting: Waiting,
    timer: Pin<Box<Sleep>>,
}

impl ClientStream {
    /// Takes an accepted socket; the clock of the first head starts now.
    #[must_use]
    pub fn new(socket: Socket, phase: Arc<Phase>, header: Duration, keep_alive: Duration, send: Duration) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + header));
        let patience = Patience { header, keep_alive };
        Self { socket: PacedStream::new(socket, send), phase, seen: 0, patience, waiting: Waiting::Head, timer }
    }

    /// The bare socket, once HTTP is over.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket.into_socket()
    }

    fn look_at_phase(&mut self) {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if phase & 1 == 1 {
            self.waiting = Waiting::No;
        } else if phase != self.seen {
            self.seen = phase;
            self.waiting = Waiting::Idle;
            self.timer.as_mut().reset(Instant::now() + self.patience.keep_alive);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf)?;
        let arrived = buf.filled().len() > before;
        this.look_at_phase();
        if arrived && matches!(this.waiting, Waiting::Idle) {
            this.waiting = Waiting::Head;
            this.timer.as_mut().reset(Instant::now() + this.patience.header);
        }
        if read.is_ready() || matches!(this.waiting, Waiting::No) {
            return read.map(Ok);
        }
        ready!(this.timer.as_mut().poll(cx));
        if this.socket.is_waiting() {
            // The end of an answer is still on its way to a slow reader, and has a limit of its own.
            this.timer.as_mut().reset(Instant::now() + this.patience.keep_alive);
            ready!(this.timer.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no complete request head in time")))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper may have asked for the next head before the answer ended and not ask again, but it
        // flushes after the end: there the idle clock starts, and wakes the connection when it is due.
        this.look_at_phase();
        if !matches!(this.waiting, Waiting::No) {
            let _ = this.timer.as_mut().poll(cx);
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// A socket that must take bytes in time: the connection to the upstream, and the inside of a client's.
#[derive(Debug)]
pub struct PacedStream {
    socket: Socket,
    writing: Unhurried,
}

impl PacedStream {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(socket: Socket, send: Duration) -> Self {
        Self { socket, writing: Unhurried::new(send) }
    }

    /// The bare socket, once HTTP is over.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

impl PacedStream {
    /// Whether a write waits for the other end to take it.
    fn is_waiting(&self) -> bool {
        self.writing.timer.is_some()
    }
}

impl AsyncRead for PacedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for PacedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.writing.judge(cx, written, &mut this.socket, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        this.writing.judge(cx, written, &mut this.socket, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Ends a write that has taken no byte for a while. The timer exists only while a write waits.
#[derive(Debug)]
struct Unhurried {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Unhurried {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        socket: &mut Socket,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.timer = None;
            return written;
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            match socket.takes_more(bytes) {
                Some(0) => timer.as_mut().reset(Instant::now() + limit),
                Some(taken) => {
                    self.timer = None;
                    return Poll::Ready(Ok(taken));
                }
                None => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "no byte taken within send_timeout",
                    )));
                }
            }
        }
    }
}
