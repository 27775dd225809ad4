//! A connected socket of any kind: TCP, Unix, or TLS over TCP.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[cfg(target_os = "linux")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// One end of a connection.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket; boxed, so that the kinds need no tag beside a TCP socket, of which there are thousands.
    Unix(Box<UnixStream>),
    /// TLS over TCP; boxed, since it is a hundred times the size of the others.
    Tls(Box<TlsStream<TcpStream>>),
    /// A socket that was taken out: reads report the end, writes fail.
    Closed,
    /// An in-memory stream, for tests that run on a paused clock.
    #[cfg(test)]
    Memory(Box<dyn Memory>),
}

/// A stream that replaces a socket in tests.
#[cfg(test)]
pub trait Memory: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug {}

#[cfg(test)]
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug> Memory for T {}

/// Sets the options of every TCP connection, to clients and upstreams. A socket that rejects one is used all the same.
/// Linux copies the options of a listener to each connection that it accepts.
pub fn set_tcp_options<'s>(socket: impl Into<SockRef<'s>>) {
    let socket = socket.into();
    // Small responses and frames must not wait for an acknowledgement.
    let _ = socket.set_tcp_nodelay(true);
    // A peer that disappeared without closing must be noticed.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    let _ = socket.set_tcp_keepalive(&keepalive);
}

impl Socket {
    /// Writes without waiting for Tokio's readiness. Returns the number of `bytes` that the system accepted; `Some(0)`
    /// when it accepted only bytes that TLS had buffered; `None` when it accepted nothing.
    ///
    /// The system reports a socket as writable only when a third of its buffer is free, which at several megabytes and
    /// a reader of 15 KB a second takes longer than `send_timeout`. So the timeout of a write must call this before it
    /// treats the peer as stalled.
    pub fn send_now(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Tcp(tcp) => SockRef::from(&*tcp).send(bytes).ok().filter(|taken| *taken > 0),
            Self::Unix(unix) => SockRef::from(&**unix).send(bytes).ok().filter(|taken| *taken > 0),
            Self::Closed => None,
            Self::Tls(tls) => {
                let send = |tcp: &TcpStream, write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<usize>| {
                    write(&mut &*SockRef::from(tcp)).ok().filter(|taken| *taken > 0)
                };
                let taken = match &mut **tls {
                    TlsStream::Client(tls) => {
                        let (tcp, session) = tls.get_mut();
                        send(tcp, &mut |out| session.write_tls(out))
                    }
                    TlsStream::Server(tls) => {
                        let (tcp, session) = tls.get_mut();
                        send(tcp, &mut |out| session.write_tls(out))
                    }
                };
                taken.map(|_| 0)
            }
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::Unix(_) | Self::Closed => None,
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// Returns whether the system has sent everything that it accepted. Until then closing the socket can lose some of
    /// it: bytes that the peer sends to a closed socket are answered with a reset, and a reset drops what has not been
    /// sent.
    ///
    /// It is true for a Unix socket, whose peer keeps what was written to it, and `None` where the system does not
    /// report it. It must be called before the end of the stream is sent. [`Self::limit_unsent`] holds afterwards.
    #[must_use]
    pub fn is_sent(&self) -> Option<bool> {
        let is_sent = self.is_sent_at_end();
        self.limit_unsent();
        is_sent
    }

    /// Returns the same for a socket to which nothing more is written but the end of the stream: it saves the system call
    /// without which the system would accept more only when everything is sent.
    #[must_use]
    pub fn is_sent_at_end(&self) -> Option<bool> {
        match self {
            Self::Unix(_) | Self::Closed => Some(true),
            #[cfg(test)]
            Self::Memory(_) => None,
            Self::Tcp(_) | Self::Tls(_) => has_unsent_below(self.tcp()?, 1),
        }
    }

    /// Returns the number of bytes that the system has accepted and not sent, because the peer's receive buffer is full
    /// or the network is slow. `usize::MAX` while more than two thirds of its buffer are full and it does not report a
    /// number. It costs some 45 system calls. [`Self::limit_unsent`] holds afterwards.
    #[must_use]
    pub fn unsent(&self) -> usize {
        let Some(tcp) = self.tcp() else { return 0 };
        let (mut least, mut below) = (0, MOST_UNSENT);
        let is_reported = has_unsent_below(tcp, below) != Some(false);
        while is_reported && below - least > 1 {
            let middle = least + (below - least) / 2;
            if has_unsent_below(tcp, middle) == Some(false) {
                least = middle;
            } else {
                below = middle;
            }
        }
        self.limit_unsent();
        if is_reported { usize::try_from(least).unwrap_or(usize::MAX) } else { usize::MAX }
    }

    /// Closes the proxy's side without a TLS `close_notify`, which would mark the data as complete.
    ///
    /// # Errors
    /// Returns an error when the peer has disconnected.
    pub fn break_off(&self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => SockRef::from(tcp).shutdown(Shutdown::Write),
            Self::Tls(tls) => SockRef::from(tls.get_ref().0).shutdown(Shutdown::Write),
            Self::Unix(unix) => SockRef::from(&**unix).shutdown(Shutdown::Write),
            Self::Closed => Ok(()),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Returns an upper bound on the bytes that the system has accepted and not sent; `None` where it does not report
    /// one.
    #[must_use]
    pub fn held(&self) -> Option<usize> {
        if self.is_sent()? {
            return Some(0);
        }
        let buffer = SockRef::from(self.tcp()?).send_buffer_size().ok()?;
        Some(self.unsent().min(buffer))
    }

    /// Limits the bytes that the system accepts to what keeps the network busy. So a stalled peer is detected sooner,
    /// and few bytes are unsent when the connection ends.
    pub fn limit_unsent(&self) {
        #[cfg(target_os = "linux")]
        if let Some(tcp) = self.tcp() {
            // A system without this option uses its own limit.
            let _ = SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT);
        }
    }

    /// Writes without waiting, and returns how many bytes were written.
    ///
    /// A socket without TLS is written directly. Tokio would report one that takes bytes as not writable when its task
    /// has used up its budget, as after some 40 connections accepted in a row, or when no event has come for it yet.
    ///
    /// # Errors
    /// Returns an error when the socket takes nothing now, or is closed.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => return SockRef::from(&*tcp).send(bytes),
            Self::Unix(unix) => return SockRef::from(&**unix).send(bytes),
            _ => {}
        }
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(written) = Pin::new(&mut *self).poll_write(&mut cx, bytes) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        // TLS may keep a part in its buffer; the next write or flush sends it.
        let _ = Pin::new(self).poll_flush(&mut cx);
        written
    }

    /// Reads and discards what has been received, without waiting, before the socket is dropped: dropping it with bytes
    /// unread resets the connection. A client that sends faster than this reads is reset after [`MOST_DISCARDED`] bytes.
    pub fn discard_received(&self) {
        let socket = match self {
            Self::Tcp(tcp) => SockRef::from(tcp),
            Self::Tls(tls) => SockRef::from(tls.get_ref().0),
            Self::Unix(unix) => SockRef::from(&**unix),
            Self::Closed => return,
            #[cfg(test)]
            Self::Memory(_) => return,
        };
        let mut left = MOST_DISCARDED;
        let mut discarded = [0; 8 << 10];
        while let Some(further) = (&*socket).read(&mut discarded).ok().filter(|length| *length > 0) {
            let Some(less) = left.checked_sub(further) else { return };
            left = less;
        }
    }

    /// Resolves when there is something to read, or the end. A TLS socket resolves at once: its handshake was read.
    ///
    /// # Errors
    /// Returns an error when the socket has failed.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.readable().await,
            Self::Unix(socket) => socket.readable().await,
            Self::Tls(_) | Self::Closed => Ok(()),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Returns whether written bytes may stay in a buffer until a flush.
    #[must_use]
    pub fn has_write_buffer(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// The maximum number of received bytes that are discarded when a socket is dropped.
const MOST_DISCARDED: usize = 512 << 10;
/// The number of unsent bytes below which the system accepts more for a socket of [`Socket::limit_unsent`].
#[cfg(target_os = "linux")]
const UNSENT: u32 = 128 << 10;
/// An upper bound on the bytes that the system keeps for one socket.
const MOST_UNSENT: u32 = 4 << 20;

/// Returns whether the system has fewer unsent bytes than this; `None` if it does not report that. It reports a socket
/// as writable only below `TCP_NOTSENT_LOWAT`, so that option is set, and the caller sets it again. (`SIOCOUTQ` would
/// return the number, but is not available without `unsafe`.)
#[cfg(target_os = "linux")]
fn has_unsent_below(tcp: &TcpStream, bytes: u32) -> Option<bool> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_notsent_lowat(bytes).ok()?;
    let mut asked = [PollFd::new(tcp, PollFlags::OUT)];
    poll(&mut asked, Some(&Timespec::default())).ok()?;
    // A broken socket sends nothing more.
    Some(!asked[0].revents().is_empty())
}

#[cfg(not(target_os = "linux"))]
fn has_unsent_below(_tcp: &TcpStream, _bytes: u32) -> Option<bool> {
    None
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(&mut **socket).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Unix(socket) => Pin::new(&mut **socket).poll_write(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Unix(socket) => Pin::new(&mut **socket).poll_write_vectored(cx, bufs),
            Self::Tls(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(&mut **socket).poll_flush(cx),
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_flush(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(&mut **socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn writing_now_needs_neither_an_event_nor_budget_of_the_task() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("set");
        let mut near = Socket::Unix(Box::new(UnixStream::from_std(near).expect("registered")));
        assert_eq!(near.write_now(b"before an event").expect("written"), 15);
        near.write_all(b"after one").await.expect("written");
        while tokio::task::coop::has_budget_remaining() {
            assert!(Pin::new(&mut near).poll_write(&mut Context::from_waker(Waker::noop()), b".").is_ready());
        }
        assert_eq!(near.write_now(b"without budget").expect("written"), 14);
    }
}
