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
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{DiscardLimits, Lingering, Refusal, Socket};
use crate::budget::{HTTP_CONNECTION_BYTES, MemoryReservation};
use crate::policy::LimitSpec;

/// hyper reads into a buffer of this size first; [`HTTP_CONNECTION_BYTES`] has it in it.
const FIRST_BUFFER: usize = 8 << 10;
/// So much at most is read at once from a client that is not known: hyper makes its buffer larger after a read that
/// filled [`FIRST_BUFFER`].
const READ_OF_STRANGERS: u64 = FIRST_BUFFER as u64 - 1;

/// Where a client connection stands between two requests; shared with whoever answers.
///
/// Counts up: even before a request, odd until one is answered and its body read. A count, because a quick answer may
/// begin and end between two reads.
#[derive(Debug, Default)]
pub struct Phase {
    count: AtomicU32,
    /// The limits for reading a body that nobody wants were reached.
    given_up: AtomicBool,
    /// The connection's, while it waits for bytes of a request's body.
    reading: AtomicWaker,
}

impl Phase {
    /// A request's head is complete.
    pub fn busy(&self) {
        self.count.fetch_or(1, Ordering::Relaxed);
    }

    /// Its answer has been given, and its body read.
    pub fn idle(&self) {
        let busy = self.count.load(Ordering::Relaxed) | 1;
        self.count.store(busy.wrapping_add(1), Ordering::Relaxed);
    }

    /// What comes of the body is read no further, not when the connection closes either.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Lets the connection look again at where it stands.
    pub(super) fn wake(&self) {
        self.reading.wake();
    }
}

/// How long a client may take for what, and how much is read of what nobody wants.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    header: Duration,
    keep_alive: Duration,
    send: Duration,
    discard: DiscardLimits,
}

impl From<&LimitSpec> for ClientLimits {
    fn from(limits: &LimitSpec) -> Self {
        Self {
            header: limits.header_timeout,
            keep_alive: limits.keep_alive_timeout,
            send: limits.send_timeout,
            discard: limits.into(),
        }
    }
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

/// Why a connection ends that gives way.
const GIVES_WAY: &str = "limits.unauthenticated_bytes";

/// An accepted connection.
#[derive(Debug)]
pub struct ClientStream {
    socket: PacedStream,
    phase: Arc<Phase>,
    /// The phase that was idle last.
    seen: u32,
    limits: ClientLimits,
    waiting: Waiting,
    timer: Pin<Box<Sleep>>,
    /// Bytes that may still be read and thrown away; set once our end is closed.
    left_to_discard: Option<usize>,
    /// The client has said all it will say.
    has_ended: bool,
    /// What it counts for until its caller is known.
    share: Arc<MemoryReservation>,
    /// What it costs beside hyper's buffer.
    cost: usize,
    /// So many bytes have come that belong to no complete head yet, or did not when they were read.
    head: usize,
    lingering: Lingering,
}

impl ClientStream {
    /// Takes a socket; the clock of the first head runs since it was `accepted`.
    #[must_use]
    pub fn new(
        socket: Socket,
        accepted: Instant,
        limits: ClientLimits,
        phase: Arc<Phase>,
        share: Arc<MemoryReservation>,
        lingering: Lingering,
    ) -> Self {
        Self {
            socket: PacedStream::new(socket, limits.send),
            phase,
            seen: 0,
            limits,
            waiting: Waiting::Head,
            timer: Box::pin(sleep_until(accepted + limits.header)),
            left_to_discard: None,
            has_ended: false,
            cost: share.bytes().max(HTTP_CONNECTION_BYTES),
            share,
            head: 0,
            lingering,
        }
    }

    /// The bare socket, once HTTP is over.
    #[must_use]
    pub fn into_socket(mut self) -> Socket {
        self.take_socket()
    }

    /// Leaves this stream without a socket.
    fn take_socket(&mut self) -> Socket {
        std::mem::replace(&mut self.socket, PacedStream::new(Socket::Closed, self.limits.send)).into_socket()
    }

    fn look_at_phase(&mut self) {
        let phase = self.phase.count.load(Ordering::Relaxed);
        if phase & 1 == 1 {
            self.waiting = Waiting::No;
            self.head = 0;
        } else if phase != self.seen {
            self.seen = phase;
            self.waiting = Waiting::Idle;
            self.head = 0;
            self.timer.as_mut().reset(Instant::now() + self.limits.keep_alive);
        }
    }

    /// Whether the client may be in the middle of a request although we have said our last word: closing now would
    /// reset the connection and take that word away.
    fn may_be_sending(&mut self) -> bool {
        self.is_in_request() || self.head > 0
    }

    /// Whether a request's answer, or the reading of its body, has not come to an end.
    fn is_in_request(&mut self) -> bool {
        self.look_at_phase();
        matches!(self.waiting, Waiting::No) && !self.phase.given_up.load(Ordering::Relaxed)
    }

    /// Says what hyper's buffer, with `spare` bytes free, makes this connection hold. A head that is complete after its
    /// first read costs no word here. Whether it may go on.
    fn account(&self, spare: usize) -> bool {
        match self.waiting {
            // What is left of a body that has been answered is no reason to stay.
            Waiting::No => self.share.is_serving() || !self.share.is_evicted(),
            Waiting::Idle => self.share.resize(self.cost),
            Waiting::Head if self.head == 0 => !self.share.is_evicted(),
            Waiting::Head => self.share.resize(self.cost + (self.head + spare).saturating_sub(FIRST_BUFFER)),
        }
    }

    /// Answers what can still be answered, and leaves hyper, and what it holds, without a socket.
    fn give_way(&mut self) -> io::Error {
        let refusal = match self.waiting {
            Waiting::Head if self.head > 0 => Some(Refusal::head_too_large().because(GIVES_WAY)),
            Waiting::Head => Some(Refusal::busy(GIVES_WAY)),
            // Between two requests there is nothing to answer.
            Waiting::Idle | Waiting::No => None,
        };
        let is_waiting = self.socket.is_waiting();
        let socket = self.take_socket();
        if let (Some(refusal), Some(place), false) = (refusal, self.lingering.free_place(), is_waiting) {
            place.refuse(socket, &refusal);
        }
        io::Error::other(GIVES_WAY)
    }
}

/// hyper drops a connection whose answer breaks off. A client that is still sending reads what there is of it only when
/// the socket is not closed with its bytes unread.
impl Drop for ClientStream {
    fn drop(&mut self) {
        let is_open =
            self.left_to_discard.is_none() && !self.has_ended && !matches!(self.socket.socket, Socket::Closed);
        if is_open
            && self.is_in_request()
            && !self.share.is_evicted()
            && let Some(place) = self.lingering.free_place()
        {
            place.discard(self.take_socket(), self.limits.discard);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        this.look_at_phase();
        let is_known = this.share.is_verified();
        let read = if is_known {
            Pin::new(&mut this.socket).poll_read(cx, buf)?
        } else {
            if !this.account(buf.remaining()) {
                return Poll::Ready(Err(this.give_way()));
            }
            Pin::new(&mut (&mut this.socket).take(READ_OF_STRANGERS)).poll_read(cx, buf)?
        };
        let arrived = buf.filled().len() - before;
        if read.is_ready() && arrived == 0 && buf.remaining() > 0 && !this.has_ended {
            // To hyper a client that ends its side is gone, and hyper looks for that before it lets a request be
            // answered that came whole. What can be answered at once is, when the end is told a turn later.
            this.has_ended = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if read.is_pending() && this.phase.count.load(Ordering::Relaxed) & 1 == 1 {
            // Before the look: what changes behind it wakes.
            this.phase.reading.register(cx.waker());
        }
        this.look_at_phase();
        if arrived > 0 && !matches!(this.waiting, Waiting::No) {
            this.head += arrived;
            if matches!(this.waiting, Waiting::Idle) {
                this.waiting = Waiting::Head;
                this.timer.as_mut().reset(Instant::now() + this.limits.header);
            }
        }
        if read.is_ready() {
            return read.map(Ok);
        }
        if !is_known && !this.share.is_serving() && this.share.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err(this.give_way()));
        }
        if matches!(this.waiting, Waiting::No) {
            return Poll::Pending;
        }
        ready!(this.timer.as_mut().poll(cx));
        if this.socket.is_waiting() {
            // The end of an answer is still on its way to a slow reader, and has a limit of its own.
            this.timer.as_mut().reset(Instant::now() + this.limits.keep_alive);
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
            if !this.share.is_verified() && this.share.poll_evicted(cx).is_ready() {
                // It is read from once more, and leaves there.
                cx.waker().wake_by_ref();
            }
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    /// Closes our end, and where the client may still be sending, reads on until it closes its own, within the limits.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut left = if let Some(left) = this.left_to_discard {
            left
        } else {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            if !this.may_be_sending() {
                return Poll::Ready(Ok(()));
            }
            this.timer.as_mut().reset(Instant::now() + this.limits.discard.timeout);
            this.limits.discard.bytes
        };
        loop {
            this.left_to_discard = Some(left);
            let gives_way = !this.share.is_verified() && this.share.poll_evicted(cx).is_ready();
            if gives_way || this.timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut discarded = [std::mem::MaybeUninit::uninit(); 8 << 10];
            let mut discarded = ReadBuf::uninit(&mut discarded);
            // Gone in whatever way: nobody is left to hear us.
            let Ok(()) = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut discarded)) else {
                return Poll::Ready(Ok(()));
            };
            let length = discarded.filled().len();
            match left.checked_sub(length) {
                Some(further) if length > 0 => left = further,
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// A socket that must take bytes in time: the connection to the upstream, and the inside of a client's.
#[derive(Debug)]
pub struct PacedStream {
    socket: Socket,
    writing: Unhurried,
    /// What the other end said last is still to be read when it takes nothing any more.
    hears_last_words: bool,
}

impl PacedStream {
    /// Takes a connected socket.
    #[must_use]
    pub fn new(socket: Socket, send: Duration) -> Self {
        Self { socket, writing: Unhurried::new(send), hears_last_words: false }
    }

    /// Takes a socket to an upstream. One that answers before it has read the request and then closes makes our next
    /// write fail; its answer stands in our receive buffer, and hyper would give up before it looks there. So a failed
    /// write waits until reading has come to the end as well, at most for `send_timeout`.
    #[must_use]
    pub fn to_upstream(socket: Socket, send: Duration) -> Self {
        Self { hears_last_words: true, ..Self::new(socket, send) }
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

    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(_)) if self.hears_last_words => self.writing.outlast(cx),
            written => self.writing.judge(cx, written, &mut self.socket, bytes),
        }
    }
}

impl AsyncRead for PacedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.socket).poll_read(cx, buf));
        if read.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            this.hears_last_words = false;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for PacedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.written(cx, written, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        this.written(cx, written, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.socket).poll_flush(cx);
        match flushed {
            Poll::Ready(Err(_)) if this.hears_last_words => this.writing.outlast(cx),
            flushed => flushed,
        }
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

    /// Waits out a write that failed, for whoever reads meanwhile.
    fn outlast<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no byte taken within send_timeout")))
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
