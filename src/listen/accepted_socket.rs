//! A socket between the thread that accepted it and the one that serves it. Each has a runtime of its own, and a socket
//! belongs to one of them.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::net::{TcpStream, UnixStream};

use crate::http::Socket;

/// A socket that was accepted.
pub(super) enum AcceptedSocket {
    /// A socket that belongs to the runtime on which it was accepted and is served.
    Registered(Socket),
    /// A TCP socket that belongs to no runtime.
    Tcp(std::net::TcpStream),
    /// A Unix socket that belongs to no runtime.
    Unix(StdUnixStream),
}

impl AcceptedSocket {
    /// Takes the socket from the current runtime, so that another one can serve it.
    ///
    /// # Errors
    /// Returns the system's error when it no longer knows the socket.
    pub(super) fn detach(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(tcp) => Self::Tcp(tcp.into_std()?),
            Socket::Unix(unix) => Self::Unix(unix.into_std()?),
            // No listener makes these.
            socket => Self::Registered(socket),
        })
    }

    /// Gives the socket to the current runtime.
    ///
    /// # Errors
    /// Returns the error of the system, whose memory for such registrations is used up.
    pub(super) fn attach(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Registered(socket) => socket,
            Self::Tcp(tcp) => Socket::Tcp(TcpStream::from_std(tcp)?),
            Self::Unix(unix) => Socket::Unix(Box::new(UnixStream::from_std(unix)?)),
        })
    }
}
