//! Lingering close of connections that are rejected before a request was read: the response is written, and the client
//! has a second to read it. Closing with bytes unread would reset the connection, and the client would lose the response.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::DiscardLimits;
use super::forwarding::new_request_id;
use super::refusal::{Refusal, refusal_bytes};
use super::socket::Socket;

/// The time that a client has to read its response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of connections of one listener that linger at once.
const MAX_LINGERING: usize = 64;

/// Limits how many connections of a listener linger at once.
#[derive(Clone, Debug)]
pub struct LingerLimit(Arc<Semaphore>);

/// The permission for one connection to linger.
#[derive(Debug)]
pub struct LingerPermit(OwnedSemaphorePermit);

impl Default for LingerLimit {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LINGERING)))
    }
}

impl LingerLimit {
    /// Waits for a permit.
    pub async fn acquire(&self) -> Option<LingerPermit> {
        Arc::clone(&self.0).acquire_owned().await.ok().map(LingerPermit)
    }

    /// Takes a permit if one is free now.
    #[must_use]
    pub fn try_acquire(&self) -> Option<LingerPermit> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(LingerPermit)
    }
}

impl LingerPermit {
    /// Writes the response to a request that was not read, and closes the connection.
    pub fn reject(self, mut socket: Socket, refusal: &Refusal) {
        // A socket that cannot take the response without waiting is closed without it.
        if socket.write_now(&refusal_bytes(refusal, &new_request_id())).is_err() {
            return;
        }
        tokio::spawn(async move {
            let _ = tokio::time::timeout(LINGER_TIMEOUT, async {
                socket.shutdown().await?;
                read_away(socket, usize::MAX).await
            })
            .await;
            drop(self.0);
        });
    }

    /// Aborts a response, and reads on for a client that is still sending a body.
    pub(super) fn discard(self, socket: Socket, limits: DiscardLimits) {
        // Without a runtime the process is ending, and all connections with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // The client must not take what was sent for a complete response.
        if socket.break_off().is_err() {
            return;
        }
        runtime.spawn(async move {
            let _ = tokio::time::timeout(limits.timeout, read_away(socket, limits.bytes)).await;
            drop(self.0);
        });
    }
}

/// Reads at most `left` bytes, until the client closes its side.
async fn read_away(mut socket: Socket, mut left: usize) -> io::Result<()> {
    let mut discarded = [0; 8 << 10];
    loop {
        match left.checked_sub(socket.read(&mut discarded).await?) {
            Some(further) if further < left => left = further,
            _ => return Ok(()),
        }
    }
}
