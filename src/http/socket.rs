//! A connected socket of any kind: TCP, Unix, or TLS over TCP. Everything above reads and writes bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// One end of a connection.
#[derive(Debug)]
pub enum Socket {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over TCP; boxed, since it is a hundred times the size of the others.
    Tls(Box<TlsStream<TcpStream>>),
    /// None any more: reads end, writes fail.
    Closed,
    /// Memory, for tests that run on a paused clock.
    #[cfg(test)]
    Memory(Box<dyn Memory>),
}

/// What stands for a socket in tests.
#[cfg(test)]
pub trait Memory: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug {}

#[cfg(test)]
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + std::fmt::Debug> Memory for T {}

/// Sets what every TCP connection of ours wants, to a client or an upstream; a socket that refuses one of these is
/// served all the same.
pub fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    // Small answers and frames must not wait for an acknowledgement.
    let _ = socket.set_tcp_nodelay(true);
    // A peer that vanished without a word must be noticed.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    let _ = socket.set_tcp_keepalive(&keepalive);
}

impl Socket {
    /// Writes past what the reactor knows of the socket: how many of `bytes` it took, or `Some(0)` when it took of what
    /// waited inside it.
    ///
    /// The system reports a socket as writable only when a third of its buffer has gone, which at several megabytes
    /// and a reader of 15 KB a second takes longer than `send_timeout`. Whoever judges a reader by that limit asks here
    /// before.
    pub fn takes_more(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Tcp(tcp) => SockRef::from(&*tcp).send(bytes).ok().filter(|taken| *taken > 0),
            Self::Unix(unix) => SockRef::from(&*unix).send(bytes).ok().filter(|taken| *taken > 0),
            Self::Closed => None,
            Self::Tls(tls) => {
                let past = |tcp: &TcpStream, write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<usize>| {
                    write(&mut &*SockRef::from(tcp)).ok().filter(|taken| *taken > 0)
                };
                let taken = match &mut **tls {
                    TlsStream::Client(tls) => {
                        let (tcp, session) = tls.get_mut();
                        past(tcp, &mut |out| session.write_tls(out))
                    }
                    TlsStream::Server(tls) => {
                        let (tcp, session) = tls.get_mut();
                        past(tcp, &mut |out| session.write_tls(out))
                    }
                };
                taken.map(|_| 0)
            }
            #[cfg(test)]
            Self::Memory(_) => None,
        }
    }

    /// Writes what can be written without waiting: how much it was.
    ///
    /// # Errors
    /// When the socket takes nothing, now or ever.
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(written) = Pin::new(&mut *self).poll_write(&mut cx, bytes) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        // Of TLS some may still wait inside; whoever writes or flushes next sends it along.
        let _ = Pin::new(self).poll_flush(&mut cx);
        written
    }

    /// Resolves when there is something to read, be it the end. A TLS connection has read before.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.readable().await,
            Self::Unix(socket) => socket.readable().await,
            Self::Tls(_) | Self::Closed => Ok(()),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Whether bytes that were taken may still wait inside for a flush.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
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
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
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
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
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
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_flush(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(test)]
            Self::Memory(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }
}
