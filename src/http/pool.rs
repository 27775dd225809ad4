//! The idle connections of an upstream, and how a connection in use returns to them.
//!
//! A connection belongs to the runtime of the thread that opened it, so each thread that serves connections has a list of
//! its own: a request on another thread would wake that one for each of its steps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::timer::MovableTimer;
use super::{BodyEnd, ClientBody};
use crate::workers;

/// The number of idle connections that are kept per pool, each thread having its part. Open connections need no limit of
/// their own: each belongs to a client connection, and those are limited.
const MAX_IDLE_CONNECTIONS: usize = 256;
/// The part of a thread where there are many.
const MIN_PER_THREAD: usize = 16;

#[derive(Debug)]
pub(super) struct Pool {
    /// The lists, one for each thread.
    idle: Box<[Mutex<Vec<IdleConnection>>]>,
    /// Whether a task is removing idle connections that are too old.
    is_reaping: AtomicBool,
}

impl Default for Pool {
    fn default() -> Self {
        Self { idle: (0..workers::count()).map(|_| Mutex::default()).collect(), is_reaping: AtomicBool::default() }
    }
}

impl Pool {
    /// Takes the idle connection of this thread that was used last.
    pub(super) fn take(&self) -> Option<IdleConnection> {
        self.of_this_thread().pop()
    }

    fn of_this_thread(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        // There is a list for each thread that serves connections.
        self.idle[workers::current() % self.idle.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to an upstream, on which one request at a time is sent. It is in a box, because each response holds one
/// and is moved through every step.
#[derive(Debug)]
pub(super) struct UpstreamConnection {
    pub(super) sender: SendRequest<ClientBody>,
    /// The end of the wait for a response. It belongs to the connection, so that a request needs none of its own.
    pub(super) timer: MovableTimer,
}

#[derive(Debug)]
pub(super) struct IdleConnection {
    pub(super) connection: Box<UpstreamConnection>,
    pub(super) since: Instant,
}

/// A connection in use, which can return to its pool once the response has ended.
#[derive(Debug)]
pub(super) struct PooledConnection {
    pub(super) connection: Box<UpstreamConnection>,
    pub(super) pool: Weak<Pool>,
    pub(super) body: BodyEnd,
    pub(super) idle_timeout: Duration,
}

impl PooledConnection {
    /// Returns the connection to its pool, unless the request body was not sent completely: a later response to it would
    /// be taken for the response to the next request.
    pub(super) fn return_to_pool(self, now: Instant) {
        let Some(pool) = self.pool.upgrade() else { return };
        if !self.body.is_complete() || self.connection.sender.is_closed() {
            return;
        }
        let mut idle = pool.of_this_thread();
        if idle.len() >= (MAX_IDLE_CONNECTIONS / pool.idle.len()).max(MIN_PER_THREAD) {
            return;
        }
        idle.push(IdleConnection { connection: self.connection, since: now });
        drop(idle);
        if let Some(reaping) = Reaping::begin(&pool) {
            tokio::spawn(remove_idle(reaping, self.idle_timeout));
        }
    }
}

/// The mark that a task is removing idle connections. It is cleared when this is dropped, also by a panic: a mark that
/// stayed would keep the idle connections until the upstream closes them.
struct Reaping(Weak<Pool>);

impl Reaping {
    /// Sets the mark, or returns `None` if it is set.
    fn begin(pool: &Arc<Pool>) -> Option<Self> {
        (!pool.is_reaping.swap(true, Ordering::AcqRel)).then(|| Self(Arc::downgrade(pool)))
    }
}

impl Drop for Reaping {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.is_reaping.store(false, Ordering::Release);
        }
    }
}

/// Removes connections that are idle for `idle_timeout`, until the pool is empty.
async fn remove_idle(reaping: Reaping, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout.max(Duration::from_millis(50))).await;
        let Some(pool) = reaping.0.upgrade() else { return };
        // All lists are locked until the end, so that no connection returns to one that was found empty.
        let mut lists: Vec<_> =
            pool.idle.iter().map(|list| list.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        for idle in &mut lists {
            idle.retain(|idle| idle.since.elapsed() < idle_timeout && !idle.connection.sender.is_closed());
            if idle.is_empty() {
                idle.shrink_to_fit();
            }
        }
        if lists.iter().all(|idle| idle.is_empty()) {
            // While the lists are locked: the next connection that returns starts another task.
            drop(reaping);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_panic_of_the_task_another_can_begin() {
        // Without a timer the task panics where it waits.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let pool = Arc::new(Pool::default());
        let reaping = Reaping::begin(&pool).expect("none before");
        assert!(Reaping::begin(&pool).is_none(), "one at a time");
        let removal = runtime.spawn(remove_idle(reaping, Duration::from_secs(1)));
        assert!(runtime.block_on(removal).is_err_and(|error| error.is_panic()));
        assert!(Reaping::begin(&pool).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_removal_ends_where_no_connection_is_idle() {
        let pool = Arc::new(Pool::default());
        remove_idle(Reaping::begin(&pool).expect("none before"), Duration::from_secs(1)).await;
        assert!(Reaping::begin(&pool).is_some());
    }
}
