//! Listeners: bind the addresses, accept connections, and serve HTTP/1.1 on each until it ends or the process
//! drains.

mod accepted_socket;
mod expiry;
#[cfg(test)]
mod model;
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
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::auth::{LastToken, unix_seconds};
use crate::budget::{HTTP_CONNECTION_BYTES, MemoryReservation, TLS_STATE_BYTES};
use crate::config::Finding;
use crate::drain::Drain;
use crate::http::{ClientStream, Connection, LingerLimit, Refusal, RequestPhase, Socket, set_tcp_options};
use crate::policy::{CertificateFiles, ListenPlace, Policy};
use crate::proxy::{self, ClientConnection};
use crate::runtime::{ConnectionCount, Limit, ProxyState};
use crate::small_server::{Listener, accept, unix_listener};
use crate::workers::Workers;

use accepted_socket::AcceptedSocket;
pub use tls::CertificateError;

const BACKLOG: i32 = 1024;
/// The maximum number of connections that are taken from the system's queue when accepting ends.
const MAX_LAST_ACCEPTED: usize = 1024;
/// The time that open connections without a request stay open when the process drains: a request that the client has
/// sent already arrives within it, and is answered with `Connection: close`.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// The mode of a Unix socket's file. Its group may connect, since a proxy in front may run as another user.
const UNIX_SOCKET_MODE: u32 = 0o660;

/// The reason why a listener could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use, not an address of this host, or not permitted.
    #[error("listen: {address}: {source}{}", hint(.source))]
    Bind {
        /// The address, as it was written.
        address: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The listener's certificate cannot be used.
    #[error("listen.tls: {0}")]
    Certificate(#[from] CertificateError),
}

/// Loads the certificates of the listeners, and returns what is wrong with them. Adds a warning to the policy for each one
/// that has expired, or does so soon.
pub fn check_certificates(policy: &mut Policy) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, listen) in policy.listen.iter().enumerate() {
        let Some(files) = &listen.tls else { continue };
        let at = |message| Finding::new(format!("listen[{index}].tls"), message);
        match tls::check(files) {
            Ok(expiry) => {
                policy.warnings.extend(expiry.warning(&files.certificate, unix_seconds()).map(at));
            }
            Err(error) => found.push(at(error.to_string())),
        }
    }
    found
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another program listens there: end it, or write another address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege: write 8080, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

/// Listeners that are bound and do not accept yet.
#[derive(Debug)]
pub struct Listeners(Vec<BoundListener>);

#[derive(Debug)]
struct BoundListener {
    /// The address as the configuration has it; a label of metrics.
    name: String,
    socket: Listener,
    tls: Option<CertificateFiles>,
}

impl Listeners {
    /// Binds every address of the policy.
    ///
    /// # Errors
    /// Returns an error that names the first address that cannot be bound.
    pub fn bind(policy: &Policy) -> Result<Self, ListenError> {
        let mut listeners = Vec::new();
        for listen in &policy.listen {
            match &listen.place {
                ListenPlace::Tcp(addresses) => {
                    for address in addresses {
                        let socket = bind(*address)
                            .map_err(|source| ListenError::Bind { address: address.to_string(), source })?;
                        let name = listen.written.clone();
                        listeners.push(BoundListener { name, socket: Listener::Tcp(socket), tls: listen.tls.clone() });
                    }
                }
                ListenPlace::Unix(path) => {
                    let (socket, file) = unix_listener(path, UNIX_SOCKET_MODE, BACKLOG)
                        .map_err(|source| ListenError::Bind { address: listen.written.clone(), source })?;
                    let name = listen.written.clone();
                    listeners.push(BoundListener {
                        name,
                        socket: Listener::Unix(socket, file),
                        tls: listen.tls.clone(),
                    });
                }
            }
        }
        Ok(Self(listeners))
    }

    /// Returns the addresses of the listeners, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let shown = |bound: &BoundListener| match &bound.socket {
            Listener::Tcp(listener) => {
                let scheme = if bound.tls.is_some() { "https" } else { "http" };
                listener.local_addr().map_or_else(|_| String::new(), |address| format!("{scheme}://{address}"))
            }
            Listener::Unix(_, file) => format!("unix:{}", file.path().display()),
        };
        self.0.iter().map(shown).collect()
    }

    /// Starts a task for each listener that accepts until the drain closes. `workers` serve the connections.
    ///
    /// # Errors
    /// Returns an error when a certificate cannot be used.
    pub fn serve(self, state: &Arc<ProxyState>, workers: &Workers) -> Result<(), ListenError> {
        let mut certificates = Certificates::of(&self.0, state);
        for BoundListener { name, socket, tls } in self.0 {
            let tls = tls.map(|files| certificates.acceptor(files, state)).transpose()?;
            let acceptor = Acceptor {
                state: Arc::clone(state),
                workers: workers.clone(),
                tls,
                linger_limit: LingerLimit::default(),
                open_connections: state.metrics.connections(&name),
            };
            let listening = state.drain.track_listener();
            tokio::spawn(async move {
                acceptor.accept(socket).await;
                drop(listening);
            });
        }
        Ok(())
    }
}

/// The certificates of the listeners. Each is loaded once, however many listeners have it, so that one task watches it.
struct Certificates {
    /// The metrics of the listeners with TLS.
    expiries: Vec<(CertificateFiles, Gauge)>,
    loaded: Vec<(CertificateFiles, TlsAcceptor)>,
}

impl Certificates {
    fn of(listeners: &[BoundListener], state: &ProxyState) -> Self {
        let expiry =
            |bound: &BoundListener| Some((bound.tls.clone()?, state.metrics.certificate_not_after(&bound.name)));
        Self { expiries: listeners.iter().filter_map(expiry).collect(), loaded: Vec::new() }
    }

    fn acceptor(&mut self, files: CertificateFiles, state: &ProxyState) -> Result<TlsAcceptor, CertificateError> {
        if let Some((_, acceptor)) = self.loaded.iter().find(|(known, _)| *known == files) {
            return Ok(acceptor.clone());
        }
        let expiries = self.expiries.iter().filter(|(of, _)| *of == files);
        let gauges = expiries.map(|(_, gauge)| gauge.clone()).collect();
        let acceptor = tls::acceptor(&files, gauges, state.drain.closing_token())?;
        self.loaded.push((files, acceptor.clone()));
        Ok(acceptor)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_one(address) {
        // `:8080` means every address, which on a machine without IPv6 is every IPv4 address.
        Err(_) if address == SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, address.port())) => {
            bind_one(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())))
        }
        result => result,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // The system copies them to each connection, which saves four system calls for it.
    set_tcp_options(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The state of one listener's accept loop.
struct Acceptor {
    state: Arc<ProxyState>,
    workers: Workers,
    tls: Option<TlsAcceptor>,
    linger_limit: LingerLimit,
    /// The metric of this listener's open connections.
    open_connections: Gauge,
}

impl Acceptor {
    async fn accept(self, listener: Listener) {
        let closing = self.state.drain.closing_token();
        loop {
            let (socket, peer) = tokio::select! {
                () = closing.cancelled() => break,
                accepted = accept(|| accept_next(&listener)) => accepted,
            };
            self.accept_or_reject(socket, peer).await;
        }
        // The clients of queued connections are already connected from their side, so these are served as well. The
        // listener is closed first, so that no further ones are queued.
        let last: Vec<_> = std::iter::from_fn(|| accept_queued(&listener)).take(MAX_LAST_ACCEPTED).collect();
        drop(listener);
        for (socket, peer) in last {
            self.accept_or_reject(socket, peer).await;
        }
    }

    /// Serves a connection, or rejects it when a limit is reached.
    async fn accept_or_reject(&self, socket: Socket, peer: Option<SocketAddr>) {
        let limit = match self.state.connect(peer.map(|peer| peer.ip()), &self.open_connections) {
            Ok((count, reservation)) => {
                let socket = if self.workers.are_threads() {
                    AcceptedSocket::detach(socket)
                } else {
                    Ok(AcceptedSocket::Registered(socket))
                };
                let accepted = AcceptedConnection {
                    peer,
                    accepted_at: Instant::now(),
                    count,
                    reservation: Arc::new(reservation),
                    drain_token: self.state.drain.track(),
                };
                let (state, tls, linger_limit) = (Arc::clone(&self.state), self.tls.clone(), self.linger_limit.clone());
                // Boxed, because its way into the task moves it several times.
                self.workers.spawn(Box::pin(serve_connection(state, socket, accepted, tls, linger_limit)));
                return;
            }
            Err(limit) => limit,
        };
        if self.tls.is_some() {
            // A response needs a TLS handshake first, for which there is no memory at this limit.
            return;
        }
        // Other connections must not wait for what this client does, and do not.
        self.linger_limit.reject(socket, &Refusal::busy(limit.key())).await;
    }
}

/// Accepts the first connection of the system's queue without waiting. It calls `accept` directly, because Tokio's
/// readiness may be out of date.
fn accept_queued(listener: &Listener) -> Option<(Socket, Option<SocketAddr>)> {
    let queue = match listener {
        Listener::Tcp(listener) => SockRef::from(listener),
        Listener::Unix(listener, _file) => SockRef::from(listener),
    };
    let (socket, peer) = queue.accept().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(match listener {
        Listener::Tcp(_) => (Socket::Tcp(TcpStream::from_std(socket.into()).ok()?), peer.as_socket()),
        Listener::Unix(..) => (Socket::Unix(Box::new(UnixStream::from_std(socket.into()).ok()?)), None),
    })
}

async fn accept_next(listener: &Listener) -> io::Result<(Socket, Option<SocketAddr>)> {
    match listener {
        Listener::Tcp(listener) => listener.accept().await.map(|(tcp, peer)| (Socket::Tcp(tcp), Some(peer))),
        Listener::Unix(listener, _file) => {
            listener.accept().await.map(|(unix, _)| (Socket::Unix(Box::new(unix)), None))
        }
    }
}

/// An accepted connection without its socket: who connected and when, and the values that count it toward the limits.
struct AcceptedConnection {
    peer: Option<SocketAddr>,
    accepted_at: Instant,
    count: ConnectionCount,
    reservation: Arc<MemoryReservation>,
    /// The connection counts as work of the drain before its task runs: another thread may begin with it later.
    drain_token: TaskTrackerToken,
}

/// Waits for the first byte of a connection, then serves HTTP on it.
async fn serve_connection(
    state: Arc<ProxyState>,
    socket: io::Result<AcceptedSocket>,
    accepted: AcceptedConnection,
    tls: Option<TlsAcceptor>,
    linger_limit: LingerLimit,
) {
    let socket = match socket.and_then(AcceptedSocket::attach) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(error = %error, "an accepted connection could not be served");
            return;
        }
    };
    let header_timeout = state.current().policy.limits.header_timeout;
    let reservation = Arc::clone(&accepted.reservation);
    // A connection that has sent nothing costs no HTTP state.
    let has_begun = tokio::select! {
        read = timeout_at(accepted.accepted_at + header_timeout, socket.readable()) => read.is_ok_and(|read| read.is_ok()),
        () = reservation.evicted() => false,
        () = drain_grace_elapsed(&state.drain) => false,
    };
    if has_begun {
        Box::pin(serve_http(Arc::clone(&state), socket, accepted, tls, linger_limit)).await;
    } else if reservation.is_evicted() && tls.is_none() {
        linger_limit.reject(socket, &Refusal::busy(Limit::Unauthenticated.key())).await;
    }
    if reservation.is_evicted() {
        state.record_memory_limit();
    }
}

/// Serves HTTP on a connection whose first bytes have arrived.
async fn serve_http(
    state: Arc<ProxyState>,
    socket: Socket,
    accepted: AcceptedConnection,
    tls: Option<TlsAcceptor>,
    linger_limit: LingerLimit,
) {
    let AcceptedConnection { peer, accepted_at, count, reservation, drain_token: _drain_token } = accepted;
    let (stream_limits, header_timeout, header_bytes) = {
        let runtime = state.current();
        let limits = &runtime.policy.limits;
        (limits.into(), limits.header_timeout, limits.header_bytes)
    };
    let is_tls = tls.is_some();
    let socket = match prepare_socket(socket, tls, &reservation, accepted_at + header_timeout, &state.drain).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(peer = ?peer, error = %error, "TLS handshake failed");
            return;
        }
    };
    let phase = Arc::new(RequestPhase::default());
    let (stream_phase, stream_reservation) = (Arc::clone(&phase), Arc::clone(&reservation));
    let stream = ClientStream::new(socket, accepted_at, stream_limits, stream_phase, stream_reservation, linger_limit);
    let connection = Connection::new(peer, is_tls);
    let drain = state.drain.clone();
    let count = Arc::new(count);
    let caller = Arc::new(ClientConnection { connection, phase, count, reservation, last_token: LastToken::default() });
    let service = service_fn(move |request| proxy::handle(Arc::clone(&state), Arc::clone(&caller), request));
    let mut builder = http1::Builder::new();
    // hyper may exceed its own limit; `admit` counts exactly.
    builder.max_buf_size((header_bytes * 2).max(64 << 10)).header_read_timeout(None);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain_grace_elapsed(&drain) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // At `debug`, because timeouts of idle connections and clients that disconnect are normal.
        tracing::debug!(peer = ?peer, error = %error, "connection ended with an error");
    }
}

/// Resolves when connections without a request are to be closed.
async fn drain_grace_elapsed(drain: &Drain) {
    drain.closing_token().cancelled().await;
    tokio::time::sleep(DRAIN_GRACE.min(drain.close_window())).await;
}

/// Sets a TCP socket's options and, on a listener with TLS, does the handshake, until `deadline` or until the drain
/// closes connections without a request.
async fn prepare_socket(
    socket: Socket,
    tls: Option<TlsAcceptor>,
    reservation: &MemoryReservation,
    deadline: Instant,
    drain: &Drain,
) -> io::Result<Socket> {
    // On Linux the listener's options hold; see `bind_one`.
    #[cfg(not(target_os = "linux"))]
    if let Socket::Tcp(tcp) = &socket {
        set_tcp_options(tcp);
    }
    match (socket, tls) {
        (Socket::Tcp(tcp), Some(tls)) => {
            if !reservation.resize(HTTP_CONNECTION_BYTES + TLS_STATE_BYTES) {
                return Err(io::Error::other(Limit::Unauthenticated.key()));
            }
            let handshake = tokio::select! {
                // Boxed: a handshake is large, and a connection without TLS would have room for it.
                handshake = timeout_at(deadline, Box::pin(tls.accept(tcp))) => handshake,
                () = reservation.evicted() => return Err(io::Error::other(Limit::Unauthenticated.key())),
                () = drain_grace_elapsed(drain) => return Err(io::Error::other("the process stops")),
            };
            let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake within header_timeout");
            Ok(Socket::Tls(Box::new(handshake.map_err(timed_out)??.into())))
        }
        (socket, _) => Ok(socket),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::auth::Revocations;
    use crate::drain::DrainTimes;

    /// Checks a process without any other work, whose drain would be over before the listener's task runs.
    #[tokio::test]
    async fn a_connection_in_the_systems_queue_is_served_when_an_idle_process_drains() {
        let yaml = "listen: 127.0.0.1:0\nupstream: http://127.0.0.1:1\nroutes: [{ path: /**, auth: none }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let listeners = Listeners::bind(&policy).expect("bound");
        let address = listeners.addresses()[0].trim_start_matches("http://").to_owned();
        let state = Arc::new(ProxyState::start(policy, Revocations::default()).expect("starts"));
        listeners.serve(&state, &Workers::default()).expect("serves");
        let delay = Duration::from_millis(1);
        let drain = state.drain.run(DrainTimes { delay, ..DrainTimes::immediate(Duration::from_secs(30)) });
        tokio::pin!(drain);
        tokio::select! {
            biased;
            _ = &mut drain => panic!("the delay has not begun"),
            () = std::future::ready(()) => {}
        }
        // Nothing is awaited until the delay is over, so that the listener's task hears of the connection after that.
        let mut client = std::net::TcpStream::connect(address).expect("connected");
        client.write_all(b"GET /.vestibule/healthz HTTP/1.0\r\n\r\n").expect("sent");
        std::thread::sleep(2 * delay);
        assert!(drain.await, "everything has ended");
        client.set_nonblocking(true).expect("set");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).expect("answered before the drain was over");
        assert_eq!(&answer[8..], b" 200");
    }

    #[tokio::test]
    async fn an_accepted_connection_has_the_options_of_every_connection() {
        let listener = bind_one(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
        let connecting = TcpStream::connect(listener.local_addr().expect("address"));
        let (connected, accepted) = tokio::join!(connecting, listener.accept());
        let _client = connected.expect("connected");
        let (tcp, _) = accepted.expect("accepted");
        #[cfg(not(target_os = "linux"))]
        set_tcp_options(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.tcp_nodelay().expect("readable"));
        assert!(socket.keepalive().expect("readable"));
        assert_eq!(socket.tcp_keepalive_time().expect("readable"), Duration::from_secs(60));
        assert_eq!(socket.tcp_keepalive_interval().expect("readable"), Duration::from_secs(10));
    }
}
