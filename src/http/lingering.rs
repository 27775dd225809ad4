//! Connections on their way out: a last answer is written, and the client has a moment to take it, since closing with
//! bytes unread would reset the connection and take the answer with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::DiscardLimits;
use super::forwarding::new_request_id;
use super::refusal::{Refusal, refusal_bytes};
use super::socket::Socket;

/// A client has this long to take its answer, and so many do at once.
const TIME: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 64;

/// The places of those that linger.
#[derive(Clone, Debug)]
pub struct Lingering(Arc<Semaphore>);

/// The place of one of them.
#[derive(Debug)]
pub struct Place(OwnedSemaphorePermit);

impl Default for Lingering {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Lingering {
    /// A place, as soon as one is free.
    pub async fn place(&self) -> Option<Place> {
        Arc::clone(&self.0).acquire_owned().await.ok().map(Place)
    }

    /// A place, if one is free now.
    #[must_use]
    pub fn free_place(&self) -> Option<Place> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Place)
    }
}

impl Place {
    /// Answers without a request having been read, and closes.
    pub fn refuse(self, mut socket: Socket, refusal: &Refusal) {
        // A socket that cannot take this at once is dropped without it.
        if socket.write_now(&refusal_bytes(refusal, &new_request_id())).is_err() {
            return;
        }
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TIME, async {
                socket.shutdown().await?;
                read_away(socket, usize::MAX).await
            })
            .await;
            drop(self.0);
        });
    }

    /// Breaks an answer off, and reads on for a client that is still sending a body.
    pub(super) fn discard(self, socket: Socket, limits: DiscardLimits) {
        // Without a runtime the process is ending, and every connection with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Nobody may take what was given for whole.
        if socket.break_off().is_err() {
            return;
        }
        runtime.spawn(async move {
            let _ = tokio::time::timeout(limits.timeout, read_away(socket, limits.bytes)).await;
            drop(self.0);
        });
    }
}

/// Reads so many bytes at most until the client closes its end.
async fn read_away(mut socket: Socket, mut left: usize) -> io::Result<()> {
    let mut discarded = [0; 8 << 10];
    loop {
        match left.checked_sub(socket.read(&mut discarded).await?) {
            Some(further) if further < left => left = further,
            _ => return Ok(()),
        }
    }
}
