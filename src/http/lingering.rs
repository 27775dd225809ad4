//! Lingering close: connections on which the client may still be sending when the proxy has sent its last byte, most of
//! them rejected before a request was read. Closing with bytes unread would reset the connection, and the client would
//! lose the response. So the proxy closes its side only, and reads on until the client closes too, for a limited time.
//!
//! A listener has a limited number of places for such connections, since each holds a file descriptor beyond
//! `limits.connections`. When all are taken, the connection that has lingered longest is closed for the next one.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::DiscardLimits;
use super::refusal::{Refusal, refusal_bytes};
use super::socket::Socket;
use crate::small_server::discard_until_closed;
use crate::telemetry::RequestId;

/// The time that a client has to read its response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of connections of one listener that linger at once.
const MAX_LINGERING: usize = 64;

/// Limits how many connections of a listener linger at once; clones share the places.
#[derive(Clone, Debug)]
pub struct LingerLimit {
    places: Arc<Semaphore>,
    lingering: Arc<Mutex<Lingering>>,
}

/// The connections that linger, except those that were told to end.
#[derive(Debug, Default)]
struct Lingering {
    next_id: u64,
    /// By age; a connection that is to end is told so by its token.
    by_id: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection that lingers; free again when dropped.
#[derive(Debug)]
struct LingerPlace {
    lingering: Arc<Mutex<Lingering>>,
    id: u64,
    must_end: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Default for LingerLimit {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_LINGERING)), lingering: Arc::default() }
    }
}

fn lock(lingering: &Mutex<Lingering>) -> MutexGuard<'_, Lingering> {
    lingering.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LingerLimit {
    /// Writes the response to a request that was not read, and closes the connection.
    ///
    /// When all places are taken, waits until the connection that has lingered longest is closed. That takes one turn of
    /// its task, whatever its client does.
    pub async fn reject(&self, mut socket: Socket, refusal: &Refusal) {
        if write_response(&mut socket, refusal).is_err() {
            return;
        }
        if let Some(place) = self.try_place() {
            return place.linger_after_response(socket);
        }
        let oldest = lock(&self.lingering).by_id.pop_first();
        if let Some((_, must_end)) = oldest {
            must_end.cancel();
        }
        if let Ok(permit) = Arc::clone(&self.places).acquire_owned().await {
            self.place(permit).linger_after_response(socket);
        }
    }

    /// Does the same without waiting. When all places are taken, only what has arrived is read before the close.
    pub(super) fn reject_now(&self, mut socket: Socket, refusal: &Refusal) {
        if write_response(&mut socket, refusal).is_err() {
            return;
        }
        match self.try_place() {
            Some(place) => place.linger_after_response(socket),
            None => socket.discard_received(),
        }
    }

    /// Aborts a response, and reads on for a client that is still sending a body, if a place is free.
    pub(super) fn discard(&self, socket: Socket, limits: DiscardLimits) {
        // The client must not take what was sent for a complete response.
        if let Some(place) = self.try_place()
            && socket.break_off().is_ok()
        {
            place.linger(socket, Side::BrokenOff, limits);
        }
    }

    fn try_place(&self) -> Option<LingerPlace> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(|permit| self.place(permit))
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> LingerPlace {
        let mut lingering = lock(&self.lingering);
        let (id, must_end) = (lingering.next_id, CancellationToken::new());
        lingering.next_id += 1;
        lingering.by_id.insert(id, must_end.clone());
        LingerPlace { lingering: Arc::clone(&self.lingering), id, must_end, _permit: permit }
    }
}

/// Writes a response without waiting. A socket that cannot take it at once does not get it.
fn write_response(socket: &mut Socket, refusal: &Refusal) -> io::Result<usize> {
    socket.write_now(&refusal_bytes(refusal, &RequestId::unique()))
}

impl LingerPlace {
    fn linger_after_response(self, socket: Socket) {
        self.linger(socket, Side::Open, DiscardLimits { bytes: usize::MAX, timeout: LINGER_TIMEOUT });
    }

    /// Closes the proxy's side, then reads until the client closes its side, a limit is reached, or the place is needed.
    fn linger(self, mut socket: Socket, side: Side, limits: DiscardLimits) {
        // Without a runtime the process is ending, and all connections with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let reading = tokio::time::timeout(limits.timeout, async {
                if let Side::Open = side {
                    socket.shutdown().await?;
                }
                discard_until_closed(&mut socket, &mut [0; 8 << 10], limits.bytes).await
            });
            tokio::select! {
                _ = reading => {}
                () = self.must_end.cancelled() => {}
            }
            socket.discard_received();
            // The descriptor is free before the place is.
            drop(socket);
            drop(self);
        });
    }
}

/// The proxy's side of a connection that begins to linger.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// It is to be closed, which tells a client with TLS that the response is complete.
    Open,
    /// It was broken off: the response is incomplete.
    BrokenOff,
}

impl Drop for LingerPlace {
    fn drop(&mut self) {
        lock(&self.lingering).by_id.remove(&self.id);
    }
}
