//! A TCP relay on either side of the proxy that delays, pauses, cuts, resets, half-closes and corrupts its connections.
//!
//! It owns the bytes between two programs and remembers which connections it has damaged. It does not know what the
//! bytes mean. Bytes are corrupted only on their way to the proxy: what the proxy sends is judged as it was sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::rng::Rng;
use crate::support::unused_port;

/// The size of a chunk that is relayed at once, in bytes.
const CHUNK: usize = 16 << 10;
/// The time within which the target of a connection accepts it.
const CONNECT: Duration = Duration::from_secs(5);

/// The way in which a chunk damages its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Both directions end in good order, possibly inside a message.
    Cut,
    Reset,
    /// One direction ends; the other goes on.
    HalfClose,
    /// A byte is changed, if the chunk goes to the proxy.
    Corrupt,
}

/// What a relay does to all of its connections.
#[derive(Clone, Default)]
pub(crate) struct Interference {
    /// The maximum delay of a chunk.
    pub(crate) delay: Duration,
    pub(crate) is_paused: bool,
    /// Whether connections are refused, and open ones reset.
    pub(crate) is_down: bool,
    /// The damage, and how many in a thousand chunks do it.
    pub(crate) damage: Option<(Damage, u64)>,
    /// Each new value resets the connections that are damaged and still open.
    pub(crate) cleanups: u64,
    /// Each new value resets all connections.
    pub(crate) resets: u64,
}

/// What happened to one connection.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) is_damaged: AtomicBool,
    pub(crate) is_corrupted: AtomicBool,
}

impl Trace {
    pub(crate) fn is_damaged(&self) -> bool {
        self.is_damaged.load(Ordering::SeqCst)
    }

    pub(crate) fn is_corrupted(&self) -> bool {
        self.is_corrupted.load(Ordering::SeqCst)
    }
}

/// The side of the proxy on which a relay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Between the clients and the proxy: traces are found by the client's port.
    Clients,
    /// Between the proxy and the upstream: traces are found by the port that the upstream sees.
    Upstream,
}

pub(crate) struct FaultyRelay {
    pub(crate) address: SocketAddr,
    place: Place,
    target: SocketAddr,
    interference: watch::Sender<Interference>,
    traces: Mutex<HashMap<u16, Arc<Trace>>>,
    pub(crate) connections: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

/// The reason why a connection ends before both directions have.
enum Ended {
    Cut,
    Reset,
}

impl FaultyRelay {
    /// Starts a relay on a port of its own.
    pub(crate) fn start(place: Place, target: SocketAddr, rng: Rng) -> Arc<Self> {
        let relay = Arc::new(Self {
            address: SocketAddr::from(([127, 0, 0, 1], unused_port())),
            place,
            target,
            interference: watch::Sender::new(Interference::default()),
            traces: Mutex::default(),
            connections: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&relay).serve(rng));
        relay
    }

    pub(crate) fn interfere(&self, change: impl FnOnce(&mut Interference)) {
        self.interference.send_modify(change);
    }

    /// Returns the trace of the open connection from this port, or to this port of the upstream's peer. Where the
    /// connection has ended already it counts as damaged.
    pub(crate) async fn trace(&self, port: u16) -> Arc<Trace> {
        for _ in 0..200 {
            if let Some(trace) = self.traces.lock().expect("lock").get(&port) {
                return Arc::clone(trace);
            }
            sleep(Duration::from_millis(5)).await;
        }
        let trace = Trace::default();
        trace.is_damaged.store(true, Ordering::SeqCst);
        Arc::new(trace)
    }

    async fn serve(self: Arc<Self>, mut rng: Rng) {
        let mut interference = self.interference.subscribe();
        loop {
            let Ok(listener) = TcpListener::bind(self.address).await else {
                // Another program has the port for a moment.
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, peer)) = accepted else { continue };
                        let (relay, rng) = (Arc::clone(&self), Rng::new(rng.next()));
                        tokio::spawn(async move { relay.relay(stream, peer, rng).await });
                    }
                    down = interference.wait_for(|interference| interference.is_down) => {
                        if down.is_err() {
                            return;
                        }
                        break;
                    }
                }
            }
            drop(listener);
            if interference.wait_for(|interference| !interference.is_down).await.is_err() {
                return;
            }
        }
    }

    async fn relay(self: Arc<Self>, mut near: TcpStream, peer: SocketAddr, rng: Rng) {
        let trace = Arc::new(Trace::default());
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut port = peer.port();
        if self.place == Place::Clients {
            self.traces.lock().expect("lock").insert(port, Arc::clone(&trace));
        }
        let Ok(Ok(mut far)) = timeout(CONNECT, TcpStream::connect(self.target)).await else {
            trace.is_damaged.store(true, Ordering::SeqCst);
            self.traces.lock().expect("lock").remove(&port);
            return;
        };
        if self.place == Place::Upstream {
            port = far.local_addr().map_or(0, |address| address.port());
            self.traces.lock().expect("lock").insert(port, Arc::clone(&trace));
        }
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ended = {
            let (near_read, near_write) = near.split();
            let (far_read, far_write) = far.split();
            let mut seeds = rng;
            let pump = |is_to_proxy, rng| Pump {
                relay: &self,
                trace: &trace,
                interference: self.interference.subscribe(),
                is_to_proxy,
                rng,
            };
            let forward = pump(self.place == Place::Clients, Rng::new(seeds.next()));
            let back = pump(self.place == Place::Upstream, Rng::new(seeds.next()));
            let both = async { tokio::try_join!(forward.run(near_read, far_write), back.run(far_read, near_write)) };
            tokio::select! {
                ended = both => ended.err(),
                () = self.is_over(&trace) => Some(Ended::Reset),
            }
        };
        if matches!(ended, Some(Ended::Reset)) {
            self.damage(&trace);
            for stream in [&near, &far] {
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            }
        }
        // The port is free for another connection once these streams are closed.
        self.traces.lock().expect("lock").remove(&port);
    }

    fn damage(&self, trace: &Trace) {
        if !trace.is_damaged.swap(true, Ordering::SeqCst) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until this connection is to be reset from outside.
    async fn is_over(&self, trace: &Trace) {
        let mut interference = self.interference.subscribe();
        let (cleanups, resets) = {
            let now = interference.borrow_and_update();
            (now.cleanups, now.resets)
        };
        loop {
            {
                let now = interference.borrow_and_update();
                if now.is_down || now.resets != resets || (now.cleanups != cleanups && trace.is_damaged()) {
                    return;
                }
            }
            if interference.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// One direction of a connection.
struct Pump<'a> {
    relay: &'a FaultyRelay,
    trace: &'a Trace,
    interference: watch::Receiver<Interference>,
    is_to_proxy: bool,
    rng: Rng,
}

impl Pump<'_> {
    async fn run(
        mut self,
        mut from: tokio::net::tcp::ReadHalf<'_>,
        mut to: tokio::net::tcp::WriteHalf<'_>,
    ) -> Result<(), Ended> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = match from.read(&mut chunk).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(_) => return Err(Ended::Reset),
            };
            if self.interference.wait_for(|interference| !interference.is_paused).await.is_err() {
                return Err(Ended::Reset);
            }
            let (delay, damage) = {
                let now = self.interference.borrow();
                (now.delay, now.damage)
            };
            if !delay.is_zero() {
                sleep(self.rng.up_to(delay)).await;
            }
            let damage = damage.filter(|(_, often)| self.rng.in_thousand(*often)).map(|(damage, _)| damage);
            let mut end = length;
            match damage {
                Some(Damage::Corrupt) if self.is_to_proxy => {
                    self.trace.is_corrupted.store(true, Ordering::SeqCst);
                    self.relay.damage(self.trace);
                    let at = self.rng.below(length as u64) as usize;
                    chunk[at] ^= 1 << self.rng.below(8);
                }
                Some(Damage::Corrupt) | None => {}
                Some(_) => {
                    self.relay.damage(self.trace);
                    end = self.rng.below(length as u64 + 1) as usize;
                }
            }
            if to.write_all(&chunk[..end]).await.is_err() {
                return Err(Ended::Reset);
            }
            match damage {
                Some(Damage::Cut) => return Err(Ended::Cut),
                Some(Damage::Reset) => return Err(Ended::Reset),
                Some(Damage::HalfClose) => break,
                Some(Damage::Corrupt) | None => {}
            }
        }
        let _ = to.shutdown().await;
        Ok(())
    }
}
