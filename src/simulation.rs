//! What is outside the process, for tests on a paused clock: the wall clock, the network to upstreams, and the provider
//! that is asked about tokens. It belongs to one thread, and is there as long as its [`Simulation`].
//!
//! This module owns the points at which the product meets it. The test decides what comes and when.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// The number of bytes that fit between the proxy and a peer.
const PIPE_BYTES: usize = 64 << 10;

thread_local! {
    static CURRENT: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// The side of the product.
struct World {
    began: Instant,
    /// The time at which it began, in milliseconds since the epoch.
    unix_millis: u64,
    connections: mpsc::UnboundedSender<PeerEnd>,
    questions: mpsc::UnboundedSender<Question>,
}

/// The side of the test.
pub struct Simulation {
    /// The connections that the proxy opens to its upstream: the upstream's ends.
    pub connections: mpsc::UnboundedReceiver<PeerEnd>,
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

/// A peer's end of a connection.
pub struct PeerEnd {
    pub stream: DuplexStream,
    pub window: ReceiveWindow,
}

/// The proxy's end of a connection. It takes no byte while the peer's receive window is full.
#[derive(Debug)]
pub struct ProxyEnd {
    stream: DuplexStream,
    window: ReceiveWindow,
}

/// The receive window of a peer; clones share it.
#[derive(Clone, Debug, Default)]
pub struct ReceiveWindow(Arc<Mutex<WindowState>>);

#[derive(Debug, Default)]
struct WindowState {
    is_full: bool,
    /// The task that waits for room.
    writer: Option<Waker>,
}

impl ReceiveWindow {
    /// Makes the window full, or empties it.
    pub fn set_full(&self, is_full: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_full = is_full;
        if !is_full && let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }

    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_full {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl AsyncRead for ProxyEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ProxyEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        std::task::ready!(this.window.poll_room(cx));
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Makes both ends of a connection.
pub fn connection() -> (ProxyEnd, PeerEnd) {
    connection_of(PIPE_BYTES)
}

/// Makes both ends of a connection between which this number of bytes fits.
pub fn connection_of(pipe_bytes: usize) -> (ProxyEnd, PeerEnd) {
    let (ours, theirs) = duplex(pipe_bytes);
    let window = ReceiveWindow::default();
    (ProxyEnd { stream: ours, window: window.clone() }, PeerEnd { stream: theirs, window })
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
pub fn connect() -> Option<ProxyEnd> {
    CURRENT.with_borrow(|world| {
        let (ours, theirs) = connection();
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
