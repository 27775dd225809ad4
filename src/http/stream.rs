//! The connections to clients and upstreams, with their timeouts.
//!
//! hyper's header-read timer is also its keep-alive timer, and it has none for writing. A [`ClientStream`] records when
//! a request's first byte came, so a head may take `header_timeout` while an idle connection may stay open for
//! `keep_alive_timeout`. A write to either side fails when the peer accepts no byte for `send_timeout`.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::timer::MovableTimer;
use super::{DiscardLimits, LingerLimit, Refusal, RequestPhase, Socket};
use crate::budget::{HTTP_CONNECTION_BYTES, MemoryReservation};
use crate::policy::Limits;

/// The size of the buffer that hyper reads into first; [`HTTP_CONNECTION_BYTES`] includes it.
const FIRST_BUFFER: usize = 8 << 10;
/// The maximum of one read from an unauthenticated client: hyper enlarges its buffer after a read that filled
/// [`FIRST_BUFFER`].
const MAX_UNAUTHENTICATED_READ: u64 = FIRST_BUFFER as u64 - 1;

/// The timeouts of a client connection, and the limits for discarding the rest of a body.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    header: Duration,
    keep_alive: Duration,
    send: Duration,
    discard: DiscardLimits,
}

impl From<&Limits> for ClientLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            header: limits.header_timeout,
            keep_alive: limits.keep_alive_timeout,
            send: limits.send_timeout,
            discard: limits.into(),
        }
    }
}

/// The part of a request that a client connection waits for; it decides the timeout.
#[derive(Debug)]
enum Awaiting {
    /// A request is in progress, which has its own timeouts.
    Nothing,
    /// The first byte of a request.
    FirstByte,
    /// The rest of a head.
    Head,
}

/// The reason for the end of an evicted connection.
const EVICTED: &str = "limits.unauthenticated_bytes";

/// A client's connection: reads with timeouts for heads and idle time, and reports its memory to the budget.
#[derive(Debug)]
pub struct ClientStream {
    socket: TimedStream,
    phase: Arc<RequestPhase>,
    /// The last even count of `phase` that was seen.
    last_idle_count: u32,
    limits: ClientLimits,
    awaiting: Awaiting,
    /// Whether `timer` is that of the head which is awaited.
    is_head_timed: bool,
    timer: MovableTimer,
    /// The number of bytes that may still be read and discarded, as soon as the proxy's side is closed.
    left_to_discard: Option<usize>,
    /// Whether the client has closed its side.
    has_ended: bool,
    /// The memory of this connection, which counts until the caller's user is verified.
    reservation: Arc<MemoryReservation>,
    /// The memory that this connection holds, including hyper's first buffer.
    base_bytes: usize,
    /// The number of bytes that belong to no complete head yet, or did not when they were read.
    head_bytes: usize,
    linger_limit: LingerLimit,
}

impl ClientStream {
    /// Wraps a socket. The timeout of the first head runs from `accepted`, when the socket was accepted.
    #[must_use]
    pub fn new(
        socket: Socket,
        accepted: Instant,
        limits: ClientLimits,
        phase: Arc<RequestPhase>,
        reservation: Arc<MemoryReservation>,
        linger_limit: LingerLimit,
    ) -> Self {
        Self {
            socket: TimedStream::new(socket, limits.send),
            phase,
            last_idle_count: 0,
            limits,
            awaiting: Awaiting::Head,
            is_head_timed: true,
            timer: MovableTimer::new(accepted + limits.header),
            left_to_discard: None,
            has_ended: false,
            base_bytes: reservation.bytes().max(HTTP_CONNECTION_BYTES),
            reservation,
            head_bytes: 0,
            linger_limit,
        }
    }

    /// Returns the socket, for use after HTTP.
    #[must_use]
    pub fn into_socket(mut self) -> Socket {
        self.take_socket()
    }

    /// Leaves this stream without a socket.
    fn take_socket(&mut self) -> Socket {
        std::mem::replace(&mut self.socket, TimedStream::new(Socket::Closed, self.limits.send)).into_socket()
    }

    /// Updates, by the phase, the part that the connection waits for, and starts the idle timeout after a request.
    fn update_awaiting(&mut self) {
        let phase = self.phase.count.load(Ordering::Relaxed);
        if phase & 1 == 1 {
            self.awaiting = Awaiting::Nothing;
            self.head_bytes = 0;
        } else if phase != self.last_idle_count {
            self.last_idle_count = phase;
            self.awaiting = Awaiting::FirstByte;
            self.head_bytes = 0;
            self.timer.set(Instant::now() + self.limits.keep_alive);
        }
    }

    /// Returns whether the client may still be sending a request although the last response was written. Closing the
    /// connection then would reset it, and the client would lose the response.
    fn may_be_sending(&mut self) -> bool {
        self.update_awaiting();
        // When a limit for discarding was reached, the bytes that come are the rest of that body.
        (matches!(self.awaiting, Awaiting::Nothing) || self.head_bytes > 0)
            && !self.phase.has_stopped_discarding.load(Ordering::Relaxed)
    }

    /// Returns whether a request's response, or the reading of its body, has not ended.
    fn is_in_request(&mut self) -> bool {
        self.update_awaiting();
        matches!(self.awaiting, Awaiting::Nothing) && !self.phase.has_stopped_discarding.load(Ordering::Relaxed)
    }

    /// Reports the memory of this connection, whose hyper buffer has `spare` bytes free, to the budget. Returns whether
    /// the connection may continue. A head that is complete after its first read takes no lock here.
    fn report_memory(&self, spare: usize) -> bool {
        match self.awaiting {
            // Once the response was sent, discarding the rest of a body does not protect from eviction.
            Awaiting::Nothing => self.reservation.is_request_in_progress() || !self.reservation.is_evicted(),
            Awaiting::FirstByte => self.reservation.resize(self.base_bytes),
            Awaiting::Head if self.head_bytes == 0 => !self.reservation.is_evicted(),
            Awaiting::Head => {
                self.reservation.resize(self.base_bytes + (self.head_bytes + spare).saturating_sub(FIRST_BUFFER))
            }
        }
    }

    /// Takes the socket away from hyper, so that hyper frees its memory, and responds to a request that has begun.
    fn evict(&mut self) -> io::Error {
        let refusal = match self.awaiting {
            Awaiting::Head if self.head_bytes > 0 => Some(Refusal::head_too_large().because(EVICTED)),
            Awaiting::Head => Some(Refusal::busy(EVICTED)),
            // Between two requests there is nothing to respond to.
            Awaiting::FirstByte | Awaiting::Nothing => None,
        };
        let has_pending_write = self.socket.has_pending_write();
        let socket = self.take_socket();
        if let (Some(refusal), false) = (refusal, has_pending_write) {
            self.linger_limit.reject_now(socket, &refusal);
        }
        io::Error::other(EVICTED)
    }
}

/// Lets a client that is still sending read the rest of an aborted response. hyper drops a connection whose response
/// was aborted, and closing the socket with unread bytes would discard the response.
impl Drop for ClientStream {
    fn drop(&mut self) {
        let is_open =
            self.left_to_discard.is_none() && !self.has_ended && !matches!(self.socket.socket, Socket::Closed);
        if is_open && self.is_in_request() && !self.reservation.is_evicted() {
            let socket = self.take_socket();
            self.linger_limit.discard(socket, self.limits.discard);
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        this.update_awaiting();
        let is_verified = this.reservation.is_verified();
        let read = if is_verified {
            Pin::new(&mut this.socket).poll_read(cx, buf)?
        } else {
            if !this.report_memory(buf.remaining()) {
                return Poll::Ready(Err(this.evict()));
            }
            Pin::new(&mut (&mut this.socket).take(MAX_UNAUTHENTICATED_READ)).poll_read(cx, buf)?
        };
        let arrived = buf.filled().len() - before;
        if read.is_ready() && arrived == 0 && buf.remaining() > 0 && !this.has_ended {
            // hyper drops a connection whose client has closed its side, even before it serves a request that was
            // received completely. So the end is reported one poll later, which lets responses that are ready go out.
            this.has_ended = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if read.is_pending() && this.phase.count.load(Ordering::Relaxed) & 1 == 1 {
            // The waker is registered before the phase is read, so that no change in between is missed.
            this.phase.reader.register(cx.waker());
        }
        this.update_awaiting();
        if arrived > 0 && !matches!(this.awaiting, Awaiting::Nothing) {
            this.head_bytes += arrived;
            if matches!(this.awaiting, Awaiting::FirstByte) {
                this.awaiting = Awaiting::Head;
                this.is_head_timed = false;
            }
        }
        if read.is_ready() {
            return read.map(Ok);
        }
        if !is_verified && !this.reservation.is_request_in_progress() && this.reservation.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err(this.evict()));
        }
        if matches!(this.awaiting, Awaiting::Nothing) {
            return Poll::Pending;
        }
        if matches!(this.awaiting, Awaiting::Head) && !this.is_head_timed {
            // The timeout of a head begins here, when hyper waits for the rest of it. Most heads come as a whole.
            this.is_head_timed = true;
            this.timer.set(Instant::now() + this.limits.header);
        }
        ready!(this.timer.poll(cx));
        if this.socket.has_pending_write() {
            // The end of a response is still being sent to a slow reader, which `send_timeout` limits.
            this.timer.set(Instant::now() + this.limits.keep_alive);
            ready!(this.timer.poll(cx));
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
        // hyper may have polled for the next head before the response ended, and will not poll again. But it flushes
        // after the end: the idle timeout starts here, and wakes the connection when it is due.
        this.update_awaiting();
        if !matches!(this.awaiting, Awaiting::Nothing) {
            let _ = this.timer.poll(cx);
            if !this.reservation.is_verified() && this.reservation.poll_evicted(cx).is_ready() {
                // `poll_read` handles the eviction.
                cx.waker().wake_by_ref();
            }
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    /// Closes the proxy's side. If the client may still be sending, reads on until it closes its side, within the
    /// limits.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut left = if let Some(left) = this.left_to_discard {
            left
        } else {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            if !this.may_be_sending() {
                return Poll::Ready(Ok(()));
            }
            this.timer.set(Instant::now() + this.limits.discard.timeout);
            this.limits.discard.bytes
        };
        loop {
            this.left_to_discard = Some(left);
            let is_evicted = !this.reservation.is_verified() && this.reservation.poll_evicted(cx).is_ready();
            if is_evicted || this.timer.poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut discarded = [std::mem::MaybeUninit::uninit(); 8 << 10];
            let mut discarded = ReadBuf::uninit(&mut discarded);
            // After any error the connection is gone.
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

/// A socket whose writes fail when the peer accepts no byte for `send_timeout`. It is a connection to an upstream, or
/// the inner part of a [`ClientStream`].
#[derive(Debug)]
pub struct TimedStream {
    socket: Socket,
    write_timeout: WriteTimeout,
    /// Whether a failed write waits until reading has ended, since the peer may have responded before it closed.
    delays_write_errors: bool,
}

impl TimedStream {
    /// Wraps a connected socket; `send` is `limits.send_timeout`.
    #[must_use]
    pub fn new(socket: Socket, send: Duration) -> Self {
        Self { socket, write_timeout: WriteTimeout::new(send), delays_write_errors: false }
    }

    /// Wraps a socket to an upstream. If the upstream responds before it has read the request and then closes, the next
    /// write fails while the response is in the receive buffer, and hyper would give up without reading it. So a failed
    /// write waits until reading has ended too, at most for `send_timeout`.
    #[must_use]
    pub fn to_upstream(socket: Socket, send: Duration) -> Self {
        Self { delays_write_errors: true, ..Self::new(socket, send) }
    }

    /// Returns the socket, for use after HTTP.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

impl TimedStream {
    /// Returns whether a write waits for the peer to accept bytes.
    fn has_pending_write(&self) -> bool {
        self.write_timeout.timer.is_some()
    }

    /// Applies the timeout to the result of a write.
    fn limit_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(_)) if self.delays_write_errors => self.write_timeout.poll_expired(cx),
            written => self.write_timeout.limit(cx, written, &mut self.socket, bytes),
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.socket).poll_read(cx, buf));
        if read.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            this.delays_write_errors = false;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.limit_write(cx, written, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        this.limit_write(cx, written, first)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.socket).poll_flush(cx);
        match flushed {
            Poll::Ready(Err(_)) if this.delays_write_errors => this.write_timeout.poll_expired(cx),
            flushed => flushed,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// The timeout of a write during which the peer accepts no byte. The timer exists only while a write waits.
#[derive(Debug)]
struct WriteTimeout {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    /// Waits until the timeout has expired, then fails. It is used for a failed write while reading continues.
    fn poll_expired<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no byte taken within send_timeout")))
    }

    /// Returns the result of a write, or fails when the peer has accepted no byte in time.
    fn limit(
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
            match socket.send_now(bytes) {
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
