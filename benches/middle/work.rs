//! What is done through a program in the middle, and what it costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_rustls::TlsConnector;

use crate::middle::Middle;
use crate::middle::requests::{Load, Until};
use crate::middle::sockets::{Entry, Socket, Sockets};

/// Connections, or sockets, at once.
pub(crate) const CONNECTIONS: usize = 64;
/// Descriptors that neither end of a socket needs.
const SPARE: u64 = 200;

/// A kind of load.
pub(crate) enum Work {
    /// These requests in turn, on connections that are kept alive.
    Requests(Arc<Vec<Vec<u8>>>),
    /// Messages on open sockets that this token opened.
    Echo(String),
    /// Sockets that are opened, echo one message and are closed.
    NewSocket(String, Entry),
}

/// The program that is measured, and how it is reached.
pub(crate) struct Target<'a> {
    pub(crate) middle: &'a Middle,
    pub(crate) address: &'a str,
    pub(crate) tls: Option<&'a TlsConnector>,
}

/// What something costs.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// Microseconds of processor time of the program, for each request, message or socket.
    pub(crate) micros: f64,
    /// How many of them there were in a second.
    pub(crate) rate: f64,
}

/// A load that is ready to be measured as often as is wanted: its connections are open, and the program has seen it.
pub(crate) struct Ready<'a> {
    target: Target<'a>,
    load: Open,
}

/// The connections of a load.
enum Open {
    Requests(Load),
    Echo(Sockets),
    NewSocket(String, Entry),
}

impl<'a> Ready<'a> {
    /// Opens the connections, and does for `warm_up` what is measured afterwards.
    pub(crate) async fn new(target: Target<'a>, work: &Work, warm_up: Duration) -> Self {
        let load = match work {
            Work::Requests(requests) => {
                let mut load = Load::connect(target.address, target.tls, requests, CONNECTIONS).await;
                // Each request once: a token's first costs a program that remembers tokens more.
                load.run(Until::Count(requests.len().div_ceil(CONNECTIONS))).await;
                Open::Requests(load)
            }
            Work::Echo(token) => {
                let sockets = Sockets::open(target.address, token, Entry::Header, CONNECTIONS).await;
                Open::Echo(sockets.expect("sockets"))
            }
            Work::NewSocket(token, entry) => Open::NewSocket(token.clone(), *entry),
        };
        let mut ready = Self { target, load };
        ready.run(Until::after(warm_up)).await;
        ready
    }

    /// Measures the load for a while.
    pub(crate) async fn measure(&mut self, length: Duration) -> Cost {
        self.target.middle.clear_log();
        let meter = Meter::start(self.target.middle);
        let count = self.run(Until::after(length)).await;
        meter.stop(count)
    }

    /// Returns how often it was done.
    async fn run(&mut self, until: Until) -> usize {
        match &mut self.load {
            Open::Requests(load) => load.run(until).await.len(),
            Open::Echo(sockets) => sockets.echo(until).await.len(),
            Open::NewSocket(token, entry) => new_sockets(self.target.address, token, *entry, until).await,
        }
    }
}

/// The processor time of a program from a moment on.
pub(crate) struct Meter<'a> {
    middle: &'a Middle,
    before: Duration,
    began: Instant,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(middle: &'a Middle) -> Self {
        Self { middle, before: middle.cpu(), began: Instant::now() }
    }

    pub(crate) fn stop(self, count: usize) -> Cost {
        let (cpu, count) = (self.middle.cpu().saturating_sub(self.before), count as f64);
        Cost { micros: cpu.as_secs_f64() * 1e6 / count, rate: count / self.began.elapsed().as_secs_f64() }
    }
}

/// Opens and closes sockets and returns how many there were.
pub(crate) async fn new_sockets(address: &str, token: &str, entry: Entry, until: Until) -> usize {
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (address, token) = (address.to_owned(), token.to_owned());
            tokio::spawn(async move {
                let mut count = 0;
                while until.has_next(count).await {
                    let mut socket = Socket::open(&address, &token, entry).await.expect("a socket");
                    socket.echo().await.expect("an echo");
                    socket.close().await.expect("closed");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for worker in workers {
        count += worker.await.expect("ends");
    }
    count
}

/// Opens idle sockets and returns the resident memory that each adds, in bytes; `None` with a word where they cannot be
/// opened.
pub(crate) async fn idle_bytes(middle: &Middle, token: &str, count: usize) -> Option<f64> {
    let mut open = Vec::new();
    // What the first sockets need once is not counted.
    for number in 0..100 + count {
        if number == 100 {
            settle().await;
        }
        let before = (number == 100).then(|| middle.memory());
        match Socket::open(&middle.address, token, Entry::Header).await {
            Ok(socket) => open.push((socket, before)),
            Err(error) => {
                println!("no more than {number} sockets: {error}");
                return None;
            }
        }
    }
    settle().await;
    let before = open.iter().find_map(|(_, before)| *before)?;
    Some(middle.memory().saturating_sub(before) as f64 / count as f64)
}

/// Waits until a program has done what follows from the last event: nothing of another program tells it.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Raises the limit of descriptors of this process and its children as far as it may be, and returns how many sockets
/// can be open: each takes two descriptors, in the programs and in the process of the load.
pub(crate) fn allow_sockets(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let most = getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |descriptors| usize::try_from(descriptors.saturating_sub(SPARE) / 2).unwrap_or(usize::MAX));
    if most < wanted + 100 {
        println!("{} idle sockets instead of {wanted}: the limit of descriptors allows no more", most - 100);
    }
    wanted.min(most - 100)
}
