//! What is outside the process, for tests on a paused clock: the wall clock, the network to upstreams, and the provider
//! that is asked about tokens. It belongs to one thread, and is there as long as its [`Simulation`].
//!
//! This module owns the points at which the product meets it. The test decides what comes and when.

use std::cell::RefCell;

use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The number of bytes that fit between the proxy and an upstream.
const PIPE_BYTES: usize = 64 << 10;

thread_local! {
    static CURRENT: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// The side of the product.
struct World {
    began: Instant,
    /// The time at which it began, in milliseconds since the epoch.
    unix_millis: u64,
    connections: mpsc::UnboundedSender<DuplexStream>,
    questions: mpsc::UnboundedSender<Question>,
}

/// The side of the test.
pub struct Simulation {
    /// The connections that the proxy opens to its upstream: the upstream's ends.
    pub connections: mpsc::UnboundedReceiver<DuplexStream>,
    /// The questions that the proxy asks the provider.
    pub questions: mpsc::UnboundedReceiver<Question>,
}

/// A request to the provider.
pub struct Question {
    /// The body of the request.
    pub body: Vec<u8>,
    /// The receiver of the response's body. If it is dropped, the connection is lost.
    pub answer: oneshot::Sender<Vec<u8>>,
}

impl Simulation {
    /// Begins at this time, in milliseconds since the epoch. It must be called inside a Tokio runtime.
    pub fn begin(unix_millis: u64) -> Self {
        let (connect, connections) = mpsc::unbounded_channel();
        let (ask, questions) = mpsc::unbounded_channel();
        let world = World { began: Instant::now(), unix_millis, connections: connect, questions: ask };
        CURRENT.set(Some(world));
        Self { connections, questions }
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Returns the milliseconds since the epoch; `None` outside a simulation.
pub fn unix_millis() -> Option<u64> {
    CURRENT.with_borrow(|world| {
        let world = world.as_ref()?;
        Some(world.unix_millis + u64::try_from(world.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    })
}

/// Opens a connection to the upstream; `None` outside a simulation.
pub fn connect() -> Option<DuplexStream> {
    CURRENT.with_borrow(|world| {
        let (ours, theirs) = duplex(PIPE_BYTES);
        world.as_ref()?.connections.send(theirs).ok()?;
        Some(ours)
    })
}

/// Asks the provider; `None` outside a simulation.
pub fn ask(body: &[u8]) -> Option<oneshot::Receiver<Vec<u8>>> {
    CURRENT.with_borrow(|world| {
        let (answer, answered) = oneshot::channel();
        world.as_ref()?.questions.send(Question { body: body.to_vec(), answer }).ok()?;
        Some(answered)
    })
}
