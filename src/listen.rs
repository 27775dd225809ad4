//! Listeners: binding, accepting, and serving HTTP/1.1 on each connection until it ends or the
//! process drains.

mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::auth::LastToken;
use crate::http::{ClientStream, Connection, Phase, Refusal, Socket, new_request_id, problem, tune};
use crate::policy::{CertificateFiles, ListenPlace, Policy};
use crate::proxy::{self, Caller};
use crate::runtime::{ConnectionCount, Limit, Shared};
use crate::small_server::{Listener, REST, unix_listener};

pub use tls::CertificateError;

const BACKLOG: i32 = 1024;
/// So many at most are taken from the queue when nobody listens any more.
const QUEUE: usize = 1024;
/// When the process drains, a request that is on its way on an open connection arrives within this; it is answered
/// with `Connection: close`.
const LAST_CALL: Duration = Duration::from_secs(1);
/// A socket's group may come in: the proxy before us runs as another user.
const UNIX_MODE: u32 = 0o660;
/// A refused client has this long to take its answer, and so many do at once.
const LINGER: Duration = Duration::from_secs(1);
const LINGERING: usize = 64;

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or not allowed.
    #[error("listen: {address}: {source}{}", hint(.source))]
    Bind {
        /// Which one.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its certificate is of no use.
    #[error("listen.tls: {0}")]
    Certificate(#[from] CertificateError),
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: end it, or write another place",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege: write 8080, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// Bound listeners, not accepting yet.
#[derive(Debug)]
pub struct Listeners(Vec<Bound>);

#[derive(Debug)]
struct Bound {
    /// As it was written.
    name: String,
    socket: Listener,
    tls: Option<CertificateFiles>,
}

impl Listeners {
    /// Binds every address of the policy.
    ///
    /// # Errors
    /// The first address that cannot be had.
    pub fn bind(policy: &Policy) -> Result<Self, ListenError> {
        let mut listeners = Vec::new();
        for listen in &policy.listen {
            match &listen.place {
                ListenPlace::Tcp(addresses) => {
                    for address in addresses {
                        let socket = bind(*address)
                            .map_err(|source| ListenError::Bind { address: address.to_string(), source })?;
                        let name = listen.written.clone();
                        listeners.push(Bound { name, socket: Listener::Tcp(socket), tls: listen.tls.clone() });
                    }
                }
                ListenPlace::Unix(path) => {
                    let (socket, file) = unix_listener(path, UNIX_MODE, BACKLOG)
                        .map_err(|source| ListenError::Bind { address: listen.written.clone(), source })?;
                    let name = listen.written.clone();
                    listeners.push(Bound { name, socket: Listener::Unix(socket, file), tls: listen.tls.clone() });
                }
            }
        }
        Ok(Self(listeners))
    }

    /// Where they listen, with the ports the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let shown = |bound: &Bound| match &bound.socket {
            Listener::Tcp(listener) => {
                let scheme = if bound.tls.is_some() { "https" } else { "http" };
                listener.local_addr().map_or_else(|_| String::new(), |address| format!("{scheme}://{address}"))
            }
            Listener::Unix(_, file) => format!("unix:{}", file.path().display()),
        };
        self.0.iter().map(shown).collect()
    }

    /// Accepts until the drain closes.
    ///
    /// # Errors
    /// When a certificate is of no use.
    pub fn serve(self, shared: &Arc<Shared>) -> Result<(), ListenError> {
        for Bound { name, socket, tls } in self.0 {
            let tls = tls.map(|files| tls::acceptor(&files, shared.drain.closing())).transpose()?;
            let house = House {
                shared: Arc::clone(shared),
                tls,
                lingering: Arc::new(Semaphore::new(LINGERING)),
                open: shared.metrics.connections(&name),
            };
            tokio::spawn(house.accept(socket));
        }
        Ok(())
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bound(address) {
        // `:8080` means every address; a machine without IPv6 has the IPv4 ones.
        Err(_) if address == SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, address.port())) => {
            bound(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// One listener's, whatever comes to it.
struct House {
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    /// Those on their way out.
    lingering: Arc<Semaphore>,
    /// How many are in, for the count.
    open: Gauge,
}

impl House {
    async fn accept(self, listener: Listener) {
        let closing = self.shared.drain.closing();
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => break,
                accepted = next(&listener) => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.welcome(socket, peer).await,
                // One connection that is gone again is no reason to stop; a full table needs a moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("accepting failed, resting a moment: {error}");
                    tokio::time::sleep(REST).await;
                }
            }
        }
        // The system has told these that they are connected. Nobody listens any more before they are welcomed.
        let last: Vec<_> = std::iter::from_fn(|| first_in_line(&listener)).take(QUEUE).collect();
        drop(listener);
        for (socket, peer) in last {
            self.welcome(socket, peer).await;
        }
    }

    /// Serves a connection, or refuses it where there is no room.
    async fn welcome(&self, socket: Socket, peer: Option<SocketAddr>) {
        let limit = match self.shared.connect(peer.map(|peer| peer.ip()), &self.open) {
            Ok(count) => {
                tokio::spawn(serve(Arc::clone(&self.shared), socket, self.tls.clone(), peer, count));
                return;
            }
            Err(limit) => limit,
        };
        let place = match limit {
            // Nobody comes in, and with so many on their way out accepting pauses: the system's queue is the next
            // bound.
            Limit::Connections => Arc::clone(&self.lingering).acquire_owned().await.ok(),
            // One address is in nobody else's way: beyond that it hears nothing.
            Limit::PerAddress => Arc::clone(&self.lingering).try_acquire_owned().ok(),
        };
        if let Some(place) = place {
            refuse(socket, self.tls.is_some(), limit, place);
        }
    }
}

/// Whoever waits first in the system's queue, asked directly: what the reactor knows of it may be a moment old.
fn first_in_line(listener: &Listener) -> Option<(Socket, Option<SocketAddr>)> {
    let queue = match listener {
        Listener::Tcp(listener) => SockRef::from(listener),
        Listener::Unix(listener, _file) => SockRef::from(listener),
    };
    let (socket, peer) = queue.accept().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(match listener {
        Listener::Tcp(_) => (Socket::Tcp(TcpStream::from_std(socket.into()).ok()?), peer.as_socket()),
        Listener::Unix(..) => (Socket::Unix(UnixStream::from_std(socket.into()).ok()?), None),
    })
}

async fn next(listener: &Listener) -> io::Result<(Socket, Option<SocketAddr>)> {
    match listener {
        Listener::Tcp(listener) => listener.accept().await.map(|(tcp, peer)| (Socket::Tcp(tcp), Some(peer))),
        Listener::Unix(listener, _file) => listener.accept().await.map(|(unix, _)| (Socket::Unix(unix), None)),
    }
}

/// At the connection limit: a short answer, without waiting for the request. A moment's linger, since
/// closing with the request unread would reset the connection and take the answer with it; `place` is one of
/// the few that linger at once.
fn refuse(mut stream: Socket, speaks_tls: bool, limit: Limit, place: OwnedSemaphorePermit) {
    if speaks_tls {
        // Nothing can be said before a handshake, and there is no room for one.
        return;
    }
    let refusal = Refusal::busy(limit.key());
    let body = problem(&refusal, &new_request_id());
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncache-control: no-store\r\nretry-after: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        refusal.retry_after.unwrap_or(5),
        body.len()
    );
    // A socket that cannot take this at once is dropped without it.
    if stream.write_now(answer.as_bytes()).is_err() {
        return;
    }
    tokio::spawn(async move {
        let _ = tokio::time::timeout(LINGER, async {
            stream.shutdown().await?;
            let mut discarded = [0; 1024];
            while stream.read(&mut discarded).await? > 0 {}
            Ok::<_, io::Error>(())
        })
        .await;
        drop(place);
    });
}

async fn serve(
    shared: Arc<Shared>,
    socket: Socket,
    tls: Option<TlsAcceptor>,
    peer: Option<SocketAddr>,
    count: ConnectionCount,
) {
    let held = shared.drain.hold();
    let limits = shared.current().policy.limits.clone();
    let speaks_tls = tls.is_some();
    let socket = match prepared(socket, tls, limits.header_timeout).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(peer = ?peer, "no TLS connection: {error}");
            return;
        }
    };
    let phase = Arc::new(Phase::default());
    let stream = ClientStream::new(
        socket,
        Arc::clone(&phase),
        limits.header_timeout,
        limits.keep_alive_timeout,
        limits.send_timeout,
        (&limits).into(),
    );
    let connection = Connection { peer, tls: speaks_tls };
    let drain = shared.drain.clone();
    let caller = Arc::new(Caller { connection, phase, count: Arc::new(count), last_token: LastToken::default() });
    let service = service_fn(move |request| proxy::handle(Arc::clone(&shared), Arc::clone(&caller), request));
    let mut builder = http1::Builder::new();
    // hyper's own bound is soft; `admit` counts exactly.
    builder.max_buf_size((limits.header_bytes * 2).max(64 << 10)).header_read_timeout(None);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let last_call = async {
        drain.closing().cancelled().await;
        tokio::time::sleep(LAST_CALL.min(drain.leave_within())).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = last_call => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Time-outs of idle connections and clients that leave are everyday.
        tracing::debug!(peer = ?peer, "connection ended: {error}");
    }
    drop(held);
}

/// Sets what a socket of its kind wants, and shakes hands where TLS is spoken, within `limit`.
async fn prepared(socket: Socket, tls: Option<TlsAcceptor>, limit: Duration) -> io::Result<Socket> {
    if let Socket::Tcp(tcp) = &socket {
        tune(tcp);
    }
    match (socket, tls) {
        (Socket::Tcp(tcp), Some(tls)) => {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake within header_timeout");
            let shaken = tokio::time::timeout(limit, tls.accept(tcp)).await.map_err(late)??;
            Ok(Socket::Tls(Box::new(shaken.into())))
        }
        (socket, _) => Ok(socket),
    }
}
