//! The phase of a client connection: whether a request is in progress.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::task::AtomicWaker;

/// The number of a request on its connection: the odd count with which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestNumber(u32);

/// The phase of a client connection, which says whether a request is in progress; shared by the connection and the
/// request's handler.
///
/// It is a counter: even between requests, odd from a complete head until the response has ended and the body was read.
/// A flag would not do, because a fast response may begin and end between two reads, and the next request may begin
/// before somebody has noticed that the last body was read.
#[derive(Debug, Default)]
pub struct RequestPhase {
    pub(super) count: AtomicU32,
    /// Whether a limit for discarding the rest of the last body was reached.
    pub(super) has_stopped_discarding: AtomicBool,
    /// The waker of the connection, while it waits for bytes of a request's body.
    pub(super) reader: AtomicWaker,
}

impl RequestPhase {
    /// Marks the beginning of a request: its head is complete. Only the connection calls it, for one request after the
    /// other, so nobody else makes the counter odd meanwhile.
    pub fn begin_request(&self) -> RequestNumber {
        let count = self.count.load(Ordering::Relaxed);
        // It is odd while the end of the last request was not marked. hyper reads the next head when it has passed on the
        // last body, and the task that reads that body may run later.
        let number = count.wrapping_add(1 + (count & 1));
        self.has_stopped_discarding.store(false, Ordering::Relaxed);
        self.count.store(number, Ordering::Relaxed);
        RequestNumber(number)
    }

    /// Marks the end of a request: its response has ended and its body was read. It has no effect once the next request
    /// has begun.
    pub fn end_request(&self, RequestNumber(number): RequestNumber) {
        let _ = self.count.compare_exchange(number, number.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
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
