//! The phase of a client connection: whether a request is in progress.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::task::AtomicWaker;

/// The phase of a client connection, which says whether a request is in progress; shared by the connection and the
/// request's handler.
///
/// It is a counter: even between requests, odd from a complete head until the response has ended and the body was read.
/// A flag would not do, because a fast response may begin and end between two reads.
#[derive(Debug, Default)]
pub struct RequestPhase {
    pub(super) count: AtomicU32,
    /// Whether a limit for discarding the rest of a body was reached.
    pub(super) has_stopped_discarding: AtomicBool,
    /// The waker of the connection, while it waits for bytes of a request's body.
    pub(super) reader: AtomicWaker,
}

impl RequestPhase {
    /// Marks the beginning of a request: its head is complete.
    pub fn begin_request(&self) {
        self.count.fetch_or(1, Ordering::Relaxed);
    }

    /// Marks the end of a request: its response has ended and its body was read.
    pub fn end_request(&self) {
        let in_progress = self.count.load(Ordering::Relaxed) | 1;
        self.count.store(in_progress.wrapping_add(1), Ordering::Relaxed);
    }

    /// Stops reading the rest of a body, also while the connection is closing.
    pub(super) fn stop_discarding(&self) {
        self.has_stopped_discarding.store(true, Ordering::Relaxed);
    }

    /// Wakes the connection, so that it reads the phase again.
    pub(super) fn wake_reader(&self) {
        self.reader.wake();
    }
}
