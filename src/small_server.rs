//! A small HTTP server for listeners of our own: a few callers at once, one request each, a few seconds for it. When it
//! is full the caller that has dawdled longest gives way, so that connections which ask nothing keep nobody out.
//!
//! A leaf: it knows sockets and bounds; what is answered is its caller's.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Callers at once.
const CONNECTIONS: usize = 16;
/// For a whole request.
const TIME: Duration = Duration::from_secs(10);
/// For its head: callers stand on this machine or near it.
const HEAD_TIME: Duration = Duration::from_secs(1);
/// A caller has this long to take its answer while it may still be sending, and so much of what it sends is read.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// A request's head.
const HEAD_BYTES: usize = 16 << 10;
/// How long accepting rests when the system has no file descriptor left.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// An answer, whole.
pub type Answer = Response<Full<Bytes>>;

/// Bound, not answering yet.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket and its file.
    Unix(UnixListener, SocketFile),
    /// A TCP port.
    Tcp(TcpListener),
}

/// A socket's file, which goes with it.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    /// Binds a TCP address. Must be called inside a runtime.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    /// Binds a Unix socket of this mode. Must be called inside a runtime.
    ///
    /// # Errors
    /// When it cannot be had, or another process answers there.
    pub fn unix(path: &Path, mode: u32) -> io::Result<Self> {
        let backlog = i32::try_from(CONNECTIONS).unwrap_or(i32::MAX);
        unix_listener(path, mode, backlog).map(|(listener, file)| Self::Unix(listener, file))
    }

    /// The address bound, of a TCP listener.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Answers until the handle is dropped.
    pub fn serve<H, F>(self, handler: H) -> AbortOnDropHandle<()>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        AbortOnDropHandle::new(tokio::spawn(self.accept(handler)))
    }

    async fn accept<H, F>(self, handler: H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut callers: VecDeque<Caller> = VecDeque::new();
        loop {
            let accepted = match &self {
                Self::Unix(listener, _file) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            };
            let handler = handler.clone();
            match accepted {
                Ok(stream) => {
                    callers.retain(|caller| !caller.leaves.is_cancelled());
                    if room.available_permits() == 0
                        && let Some(at) = callers.iter().position(|caller| !caller.is_served.load(Ordering::Relaxed))
                        && let Some(slowest) = callers.remove(at)
                    {
                        slowest.leaves.cancel();
                    }
                    // Never closed, so there is always a permit to come.
                    let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                    let caller = Caller::default();
                    callers.push_back(caller.clone());
                    tokio::spawn(async move {
                        let (leaves, is_served) = (caller.leaves, caller.is_served);
                        let served = async {
                            match stream {
                                Stream::Unix(stream) => one_request(stream, handler, &is_served).await,
                                Stream::Tcp(stream) => one_request(stream, handler, &is_served).await,
                            }
                        };
                        tokio::select! {
                            () = leaves.cancelled() => {}
                            () = served => leaves.cancel(),
                        }
                        drop(permit);
                    });
                }
                // A full table of file descriptors needs a moment.
                Err(error) => {
                    tracing::warn!(error = %error, retry_in_ms = ACCEPT_RETRY_DELAY.as_millis(), "accept failed, retrying");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }
}

/// A connection, as the acceptor knows it.
#[derive(Clone, Default)]
struct Caller {
    /// Its request is complete up to the head, and its answer is being made.
    is_served: Arc<AtomicBool>,
    /// Cancelled when it has to give way, and when it is over.
    leaves: CancellationToken,
}

async fn one_request<H, F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: H,
    is_served: &AtomicBool,
) where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        is_served.store(true, Ordering::Relaxed);
        let answer = handler(request);
        async move {
            let answer = answer.await;
            is_served.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).keep_alive(false).max_buf_size(HEAD_BYTES);
    // A caller that is too slow or breaks off hears nothing.
    let served = tokio::time::timeout(TIME, server.serve_connection(TokioIo::new(stream), service).without_shutdown());
    if let Ok(Ok(parts)) = served.await {
        let _ = tokio::time::timeout(LINGER_TIME, close(parts.io.into_inner())).await;
    }
}

/// Closes our end and reads on until the caller closes its own: closed with bytes unread, as of a body that nobody wants,
/// the connection would be reset, and the reset would take the answer away.
async fn close(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.shutdown().await?;
    let mut discarded = [0; 1024];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match stream.read(&mut discarded).await? {
            0 => break,
            length => left = left.saturating_sub(length),
        }
    }
    Ok(())
}

/// Binds a Unix socket of this mode; a file left over from a process that was killed is taken over. Must be called
/// inside a runtime.
///
/// # Errors
/// When it cannot be had, or another process answers there.
pub fn unix_listener(path: &Path, mode: u32, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    // Nobody connects before it listens, and it listens only once its mode is set.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    let listener = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
    Ok((UnixListener::from_std(listener)?, file))
}

/// A text, not to be kept.
#[must_use]
pub fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
