//! The lock of a session that is being renewed, as long as this instance holds it: how long it lasts, its extension and its
//! release.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::store::{LOCK_LIFE, LockHolder, SessionStore};
use super::super::{LoginError, TIMEOUT};
use crate::auth::boot_millis;
use crate::auth::digest::Digest;

/// The allowance for a request in addition to its timeout.
const MARGIN: Duration = Duration::from_secs(1);

/// A session's lock, held by this instance.
pub(super) struct Lease {
    store: Arc<dyn SessionStore>,
    name: Digest,
    holder: LockHolder,
    /// The time at which the lock ends, in [`boot_millis`]: a clock that runs while the process or the machine is
    /// suspended.
    ends: AtomicU64,
    /// Whether the lock is released when this is dropped.
    is_released: bool,
}

impl Lease {
    /// The lock of a session, requested at `began` in [`boot_millis`]. It is released when this is dropped.
    pub(super) fn new(store: &Arc<dyn SessionStore>, name: Digest, holder: LockHolder, began: u64) -> Self {
        let ends = AtomicU64::new(lock_end(began));
        Self { store: Arc::clone(store), name, holder, ends, is_released: true }
    }

    fn left(&self) -> Duration {
        Duration::from_millis(self.ends.load(Ordering::Acquire).saturating_sub(boot_millis()))
    }

    /// Returns an error unless the rest of the lock is long enough for a whole request to the provider.
    pub(super) fn check(&self) -> Result<(), LoginError> {
        if self.left() >= TIMEOUT {
            return Ok(());
        }
        Err(LoginError::down("the session's lock ended before the request to the provider was sent".to_owned()))
    }

    /// Extends the lock if its rest is too short for a request to the provider.
    pub(super) async fn extend_if_short(&self) -> Result<(), LoginError> {
        if self.left() >= TIMEOUT + MARGIN { Ok(()) } else { self.extend().await }
    }

    /// Extends the lock to its whole duration from now.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`] when another instance holds it, or the store cannot be used.
    pub(super) async fn extend(&self) -> Result<(), LoginError> {
        let began = boot_millis();
        if !self.store.extend(self.name, self.holder).await? {
            return Err(LoginError::down("another instance holds the session's lock".to_owned()));
        }
        self.ends.store(lock_end(began), Ordering::Release);
        self.check()
    }

    /// Keeps the lock until it ends by itself, so that no other instance takes it before.
    pub(super) fn keep(mut self) {
        self.is_released = false;
    }
}

impl Drop for Lease {
    /// Releases the lock in the background. If that fails, it ends by itself.
    fn drop(&mut self) {
        let (store, name, holder) = (Arc::clone(&self.store), self.name, self.holder);
        if let (true, Ok(runtime)) = (self.is_released, Handle::try_current()) {
            runtime.spawn(async move { store.unlock(name, holder).await });
        }
    }
}

fn lock_end(began: u64) -> u64 {
    began.saturating_add(u64::try_from(LOCK_LIFE.as_millis()).unwrap_or_default())
}
