//! A small HTTP server for the admin and control listeners: at most 16 connections, one request each, ten seconds per
//! request. At the limit the oldest connection without a complete request head is closed, so that idle connections
//! cannot block others; where there is none, the oldest one that is sending its response.
//!
//! This module imports nothing of the proxy. It owns sockets and limits; the handler makes the responses.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
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

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 16;
/// The time limit of a request, from accept to response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit of a request head; short, because clients are on this host or near it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// The time that a client which may still be sending has to read its response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of bytes that are read and discarded in that time.
const MAX_LINGER_BYTES: usize = 1 << 20;
/// Upper bound on a request head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The pause before accepting is retried, when no file descriptor is free.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A complete response.
pub type FullResponse = Response<Full<Bytes>>;

/// A listener that is bound and does not accept yet.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket and its file.
    Unix(UnixListener, SocketFile),
    /// A TCP port.
    Tcp(TcpListener),
}

/// The file of a Unix socket; removed when dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may have been removed already.
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
    /// Returns an error when the address cannot be bound.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    /// Binds a Unix socket with this mode. Must be called inside a runtime.
    ///
    /// # Errors
    /// Returns an error when the path cannot be bound, or another process listens there.
    pub fn unix(path: &Path, mode: u32) -> io::Result<Self> {
        let backlog = i32::try_from(MAX_CONNECTIONS).unwrap_or(i32::MAX);
        unix_listener(path, mode, backlog).map(|(listener, file)| Self::Unix(listener, file))
    }

    /// Returns the bound address; `None` for a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Serves requests until the handle is dropped.
    pub fn serve<H, F>(self, handler: H) -> AbortOnDropHandle<()>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = FullResponse> + Send + 'static,
    {
        AbortOnDropHandle::new(tokio::spawn(self.accept(handler)))
    }

    async fn accept<H, F>(self, handler: H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = FullResponse> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections: VecDeque<ConnectionState> = VecDeque::new();
        loop {
            let stream = match &self {
                Self::Unix(listener, _file) => Stream::Unix(accept(|| listener.accept()).await.0),
                Self::Tcp(listener) => Stream::Tcp(accept(|| listener.accept()).await.0),
            };
            let handler = handler.clone();
            connections.retain(|connection| !connection.closed.is_cancelled());
            if permits.available_permits() == 0
                && let Some(at) = first_to_close(&connections)
                && let Some(closed) = connections.remove(at)
            {
                closed.closed.cancel();
            }
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let state = ConnectionState::default();
            connections.push_back(state.clone());
            tokio::spawn(async move {
                let ConnectionState { closed, phase } = state;
                let served = async {
                    match stream {
                        Stream::Unix(stream) => serve_request(stream, handler, &phase).await,
                        Stream::Tcp(stream) => serve_request(stream, handler, &phase).await,
                    }
                };
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = served => closed.cancel(),
                }
                drop(permit);
            });
        }
    }
}

/// Accepts, and retries what fails: usually no file descriptor is free, which takes time to change. A connection that its
/// client has closed already is no failure.
pub async fn accept<T, A: Future<Output = io::Result<T>>>(mut next: impl FnMut() -> A) -> T {
    loop {
        match next().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(error = %error, retry_in_ms = ACCEPT_RETRY_DELAY.as_millis(), "accept failed, retrying");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// The state of a connection, for the acceptor.
#[derive(Clone, Default)]
struct ConnectionState {
    /// [`READING`], [`MAKING_RESPONSE`] or [`SENDING`].
    phase: Arc<AtomicU8>,
    /// The token that is cancelled to close the connection, and when it has ended.
    closed: CancellationToken,
}

/// The phase of a connection without a complete request head.
const READING: u8 = 0;
/// The phase in which the handler makes the response.
const MAKING_RESPONSE: u8 = 1;
/// The phase in which the client is sent the response, and may take its time.
const SENDING: u8 = 2;

/// Returns the index of the connection that makes room for another one: the oldest that is idle, else the oldest to which
/// the response is being sent. `None` if all responses are being made.
fn first_to_close(connections: &VecDeque<ConnectionState>) -> Option<usize> {
    let first = |phase| connections.iter().position(|connection| connection.phase.load(Ordering::Relaxed) == phase);
    first(READING).or_else(|| first(SENDING))
}

async fn serve_request<H, F>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, handler: H, phase: &AtomicU8)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = FullResponse>,
{
    let service = service_fn(move |request| {
        phase.store(MAKING_RESPONSE, Ordering::Relaxed);
        let answer = handler(request);
        async move {
            let answer = answer.await;
            phase.store(SENDING, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false).max_buf_size(MAX_HEAD_BYTES);
    // A client that is too slow or disconnects gets no response.
    let served = tokio::time::timeout(
        REQUEST_TIMEOUT,
        server.serve_connection(TokioIo::new(stream), service).without_shutdown(),
    );
    if let Ok(Ok(parts)) = served.await {
        let _ = tokio::time::timeout(LINGER_TIMEOUT, close_gracefully(parts.io.into_inner())).await;
    }
}

/// Closes the proxy's side and reads until the client closes its side. Closing with bytes unread would reset the
/// connection, and the client would lose the response.
async fn close_gracefully(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.shutdown().await?;
    discard_until_closed(&mut stream, &mut [0; 1024], MAX_LINGER_BYTES).await
}

/// Reads until the peer closes its side or has sent more than `left` bytes, for all lingering closes. Callers limit the
/// time.
///
/// # Errors
/// Returns the error of the stream.
pub async fn discard_until_closed(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mut left: usize,
) -> io::Result<()> {
    loop {
        match left.checked_sub(stream.read(buffer).await?) {
            Some(further) if further < left => left = further,
            _ => return Ok(()),
        }
    }
}

/// Binds a Unix socket with this mode. The file of a process that was killed is replaced. It must be called inside a
/// runtime.
///
/// # Errors
/// Returns an error when the path cannot be bound, or another process listens there.
pub fn unix_listener(path: &Path, mode: u32, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if is_in_use(path)? {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    // The mode is set before the socket listens, so that no other user can connect before it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    let listener = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
    Ok((UnixListener::from_std(listener)?, file))
}

/// Returns whether a process listens at a Unix socket. It does also where its queue is full: to wait for room there would
/// have no end if that process is stopped.
///
/// # Errors
/// Returns the error of a socket of which that is not known, such as one of another kind, or of another user.
fn is_in_use(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused => Ok(false),
            _ => Err(error),
        },
    }
}

/// Makes a plain-text response that is not cached.
#[must_use]
pub fn text_response(status: StatusCode, text: impl Into<Bytes>) -> FullResponse {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_whose_queue_is_full_is_in_use_and_not_waited_for() {
        let path = std::env::temp_dir().join(format!("vestibule-full-queue-{}", std::process::id()));
        let address = SockAddr::unix(&path).expect("an address");
        let new = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("made");
            socket.set_nonblocking(true).expect("set");
            socket
        };
        let listener = new();
        listener.bind(&address).expect("bound");
        listener.listen(0).expect("listens");
        let mut queued = Vec::new();
        while let Some(socket) = Some(new()).filter(|socket| socket.connect(&address).is_ok()) {
            queued.push(socket);
        }
        let (send, bound) = std::sync::mpsc::channel();
        let asked = path.clone();
        std::thread::spawn(move || {
            send.send(unix_listener(&asked, 0o600, 1).map(|_| ()).map_err(|error| error.kind()))
        });
        let bound = bound.recv_timeout(std::time::Duration::from_secs(30));
        let _ = std::fs::remove_file(&path);
        assert_eq!(bound, Ok(Err(io::ErrorKind::AddrInUse)));
    }

    #[test]
    fn a_socket_of_another_kind_is_not_removed() {
        let path = std::env::temp_dir().join(format!("vestibule-datagrams-{}", std::process::id()));
        let other = Socket::new(Domain::UNIX, Type::DGRAM, None).expect("made");
        other.bind(&SockAddr::unix(&path).expect("an address")).expect("bound");
        let bound = unix_listener(&path, 0o600, 1);
        let is_there = path.exists();
        let _ = std::fs::remove_file(&path);
        assert!(bound.is_err() && is_there, "{bound:?}");
    }

    #[tokio::test]
    async fn idle_connections_make_room_before_one_that_is_being_answered() {
        const BODY_BYTES: usize = 32 << 20;
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).expect("bound");
        let address = listener.address().expect("an address");
        let body = Bytes::from(vec![0; BODY_BYTES]);
        let _server = listener.serve(move |_| std::future::ready(Response::new(Full::new(body.clone()))));
        let mut slow = TcpStream::connect(address).await.expect("connected");
        slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = vec![0; 1];
        slow.read_exact(&mut answer).await.expect("the answer has begun");
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.expect("connected"));
        }
        // The oldest of them is closed before its head is late.
        let began = tokio::time::Instant::now();
        assert_eq!(idle[0].read(&mut [0]).await.expect("closed"), 0);
        assert!(began.elapsed() < HEAD_TIMEOUT);
        slow.read_to_end(&mut answer).await.expect("the whole answer");
        assert!(answer.len() > BODY_BYTES, "{}", answer.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_accepted_is_retried_after_a_pause() {
        let began = tokio::time::Instant::now();
        let mut attempts = 0;
        let accepted = accept(|| {
            attempts += 1;
            std::future::ready(match attempts {
                1..=3 => Err(io::Error::other("no descriptor")),
                // The client has closed the connection, and the next one need not wait.
                4 => Err(io::ErrorKind::ConnectionAborted.into()),
                _ => Ok(attempts),
            })
        });
        assert_eq!(accepted.await, 5);
        assert_eq!(began.elapsed(), 3 * ACCEPT_RETRY_DELAY);
    }
}
