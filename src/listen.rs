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
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::auth::LastToken;
use crate::budget::{SPEAKING_BYTES, Share, TLS_BYTES};
use crate::drain::Drain;
use crate::http::{ClientStream, Connection, Lingering, Phase, Refusal, Socket, tune};
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
                lingering: Lingering::default(),
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
    lingering: Lingering,
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
            Ok((count, share)) => {
                let accepted = Accepted { socket, peer, at: Instant::now(), count, share: Arc::new(share) };
                tokio::spawn(serve(Arc::clone(&self.shared), accepted, self.tls.clone(), self.lingering.clone()));
                return;
            }
            Err(limit) => limit,
        };
        if self.tls.is_some() {
            // Nothing can be said before a handshake, and there is no room for one.
            return;
        }
        let place = match limit {
            // Nobody comes in, and with so many on their way out accepting pauses: the system's queue is the next
            // bound.
            Limit::Connections | Limit::Unauthenticated => self.lingering.place().await,
            // One address is in nobody else's way: beyond that it hears nothing.
            Limit::PerAddress => self.lingering.free_place(),
        };
        if let Some(place) = place {
            place.refuse(socket, &Refusal::busy(limit.key()));
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

/// A connection and what it counts for.
struct Accepted {
    socket: Socket,
    peer: Option<SocketAddr>,
    at: Instant,
    count: ConnectionCount,
    share: Arc<Share>,
}

async fn serve(shared: Arc<Shared>, accepted: Accepted, tls: Option<TlsAcceptor>, lingering: Lingering) {
    let held = shared.drain.hold();
    let header_timeout = shared.current().policy.limits.header_timeout;
    let share = Arc::clone(&accepted.share);
    // Nothing of HTTP is made for a connection that has sent nothing.
    let has_begun = tokio::select! {
        read = timeout_at(accepted.at + header_timeout, accepted.socket.readable()) => read.is_ok_and(|read| read.is_ok()),
        () = share.has_to_give_way() => false,
        () = last_call(&shared.drain) => false,
    };
    if has_begun {
        Box::pin(speak(Arc::clone(&shared), accepted, tls, lingering)).await;
    } else if share.gives_way()
        && tls.is_none()
        && let Some(place) = lingering.free_place()
    {
        place.refuse(accepted.socket, &Refusal::busy(Limit::Unauthenticated.key()));
    }
    if share.gives_way() {
        shared.gave_way();
    }
    drop(held);
}

/// Serves HTTP on a connection that has begun to send.
async fn speak(shared: Arc<Shared>, accepted: Accepted, tls: Option<TlsAcceptor>, lingering: Lingering) {
    let Accepted { socket, peer, at, count, share } = accepted;
    let limits = shared.current().policy.limits.clone();
    let speaks_tls = tls.is_some();
    let socket = match prepared(socket, tls, &share, at + limits.header_timeout).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(peer = ?peer, "no TLS connection: {error}");
            return;
        }
    };
    let phase = Arc::new(Phase::default());
    let (phase_of, share_of) = (Arc::clone(&phase), Arc::clone(&share));
    let stream = ClientStream::new(socket, at, (&limits).into(), phase_of, share_of, lingering);
    let connection = Connection { peer, tls: speaks_tls };
    let drain = shared.drain.clone();
    let count = Arc::new(count);
    let caller = Arc::new(Caller { connection, phase, count, share, last_token: LastToken::default() });
    let service = service_fn(move |request| proxy::handle(Arc::clone(&shared), Arc::clone(&caller), request));
    let mut builder = http1::Builder::new();
    // hyper's own bound is soft; `admit` counts exactly.
    builder.max_buf_size((limits.header_bytes * 2).max(64 << 10)).header_read_timeout(None);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = last_call(&drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Time-outs of idle connections and clients that leave are everyday.
        tracing::debug!(peer = ?peer, "connection ended: {error}");
    }
}

/// Resolves when connections without a request are closed.
async fn last_call(drain: &Drain) {
    drain.closing().cancelled().await;
    tokio::time::sleep(LAST_CALL.min(drain.leave_within())).await;
}

/// Sets what a socket of its kind wants, and shakes hands where TLS is spoken, until `late`.
async fn prepared(socket: Socket, tls: Option<TlsAcceptor>, share: &Share, late: Instant) -> io::Result<Socket> {
    if let Socket::Tcp(tcp) = &socket {
        tune(tcp);
    }
    match (socket, tls) {
        (Socket::Tcp(tcp), Some(tls)) => {
            if !share.hold(SPEAKING_BYTES + TLS_BYTES) {
                return Err(io::Error::other(Limit::Unauthenticated.key()));
            }
            let shaken = tokio::select! {
                shaken = timeout_at(late, tls.accept(tcp)) => shaken,
                () = share.has_to_give_way() => return Err(io::Error::other(Limit::Unauthenticated.key())),
            };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake within header_timeout");
            Ok(Socket::Tls(Box::new(shaken.map_err(late)??.into())))
        }
        (socket, _) => Ok(socket),
    }
}
