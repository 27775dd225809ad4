//! The interface through which login sessions reach the other instances; `shared` implements it. A store gets a
//! session's record only encrypted, with a digest as its name.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::auth::digest::Digest;

/// The maximum length of an encrypted record in bytes: tokens and claims have 64 KiB at most, and the claims may be in
/// it twice.
pub const SEALED_BYTES: usize = 256 << 10;

/// A session's record as a store keeps it.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedRecord {
    /// The record's generation in decimal digits, as the store has it: nothing authenticates it before the record is
    /// decrypted.
    pub generation: Vec<u8>,
    /// The encrypted record.
    pub sealed: Vec<u8>,
}

/// A record that is to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordWrite {
    /// The record's generation. The store keeps a record of the same or a later generation.
    pub generation: u64,
    /// The encrypted record.
    pub sealed: Vec<u8>,
    /// The Unix time in seconds at which the store removes the record.
    pub ends_at: u64,
    /// The generation of a record that could not be decrypted, which is replaced whatever its number is.
    pub replaces: Option<Vec<u8>>,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The store has the record.
    Stored,
    /// The store has a record of the same or a later generation.
    Newer,
    /// The session has just been signed out: its record was removed.
    Removed,
}

/// The error of a store that cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shared state cannot be used: {0}")]
pub struct StoreUnavailable(pub String);

/// The answer of a store.
pub type StoreAnswer<'a, T> = BoxFuture<'a, Result<T, StoreUnavailable>>;

/// The identity of the holder of a lock: random bytes.
pub type LockHolder = [u8; 16];

/// The time for which a lock is held unless its holder extends it. It covers one request to a provider, which takes 10
/// s at most.
pub const LOCK_LIFE: Duration = Duration::from_secs(15);

/// A store for the data on which the instances must agree: the records of login sessions, the instance that renews
/// each, and the completed sign-ins. Each call waits for [`SessionStore::timeout`] at most.
pub trait SessionStore: Send + Sync {
    /// Returns the maximum time that a call waits.
    fn timeout(&self) -> Duration;

    /// Reads a record.
    fn read(&self, name: Digest) -> StoreAnswer<'_, Option<SealedRecord>>;

    /// Writes a record, unless the store has one of the same or a later generation.
    fn write(&self, name: Digest, record: RecordWrite) -> StoreAnswer<'_, Written>;

    /// Removes a record. For a minute none of that name can be written.
    fn remove(&self, name: Digest) -> StoreAnswer<'_, ()>;

    /// Returns the generations of the records with these names.
    fn generations(&self, names: Vec<Digest>) -> StoreAnswer<'_, Vec<Option<u64>>>;

    /// Takes a session's lock for [`LOCK_LIFE`]. Returns whether it was free.
    fn lock(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, bool>;

    /// Extends a lock to [`LOCK_LIFE`] from now. Returns whether this holder still has it.
    fn extend(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, bool>;

    /// Releases a lock, if this holder has it.
    fn unlock(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, ()>;

    /// Marks a name as used for `life`, and returns whether it was unused.
    fn use_once(&self, name: Digest, life: Duration) -> StoreAnswer<'_, bool>;

    /// Counts a record that could not be decrypted, or is older than one that was seen before.
    fn count_refused(&self);
}
