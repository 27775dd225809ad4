//! The read buffer of a thread. Sockets read into it one after the other, so an idle socket holds no buffer.

use std::cell::RefCell;

/// The number of bytes read at a time.
const SCRATCH_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Calls `f` with the thread's buffer. Calls must not be nested.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| f(scratch))
}
