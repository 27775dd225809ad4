//! The idle connections of an upstream, and how a connection in use returns to them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use super::timer::MovableTimer;
use super::{BodyEnd, ClientBody};

/// The number of idle connections that are kept per pool. Open connections need no limit of their own: each belongs to
/// a client connection, and those are limited.
const MAX_IDLE_CONNECTIONS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) idle: Mutex<Vec<IdleConnection>>,
    /// Whether a task is removing idle connections that are too old.
    is_reaping: std::sync::atomic::AtomicBool,
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
    pub(super) fn return_to_pool(self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if !self.body.is_complete() || self.connection.sender.is_closed() {
            return;
        }
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= MAX_IDLE_CONNECTIONS {
            return;
        }
        idle.push(IdleConnection { connection: self.connection, since: Instant::now() });
        drop(idle);
        if !pool.is_reaping.swap(true, std::sync::atomic::Ordering::AcqRel) {
            tokio::spawn(remove_idle(Arc::downgrade(&pool), self.idle_timeout));
        }
    }
}

/// Removes connections that are idle for `idle_timeout`, until the pool is empty.
async fn remove_idle(pool: Weak<Pool>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout.max(Duration::from_millis(50))).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < idle_timeout && !idle.connection.sender.is_closed());
        if idle.is_empty() {
            idle.shrink_to_fit();
            pool.is_reaping.store(false, std::sync::atomic::Ordering::Release);
            return;
        }
    }
}
