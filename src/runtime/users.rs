//! The users that are active: how many sockets each of them has open, and when each last presented a valid token.
//!
//! Users are kept as fingerprints under keys of this process, so that every entry has the same size.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::{Identity, User};

/// The minimum time between two removals of expired presence entries, in seconds: a removal visits every entry.
const SWEEP_SECONDS: u64 = 10;

/// Two independent keyed hashes, so that nobody can choose users with the same fingerprint.
type Fingerprint = (u64, u64);

/// All active users; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Users {
    state: Arc<UsersState>,
}

#[derive(Debug, Default)]
struct UsersState {
    hashers: (RandomState, RandomState),
    open_sockets: Mutex<HashMap<Fingerprint, u32>>,
    presence: Mutex<PresenceTable>,
}

#[derive(Debug, Default)]
struct PresenceTable {
    /// The time of the last valid token, in seconds since the epoch.
    last_seen: HashMap<Fingerprint, u64>,
    swept_at: u64,
}

/// Identifies a presence entry: a user and, if its tokens name one, the provider session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceKey(Fingerprint);

/// One open socket of a user; counted until dropped.
#[derive(Debug)]
pub struct OpenSocket {
    users: Users,
    user: Fingerprint,
}

impl Users {
    fn fingerprint(&self, key: &impl std::hash::Hash) -> Fingerprint {
        (self.state.hashers.0.hash_one(key), self.state.hashers.1.hash_one(key))
    }

    /// Counts a socket, unless its user has `limit` open.
    #[must_use]
    pub fn open_socket(&self, user: &User, limit: u32) -> Option<OpenSocket> {
        let user = self.fingerprint(user);
        let mut open = self.state.open_sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(user).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(OpenSocket { users: self.clone(), user })
    }

    /// The key of an identity's presence entry.
    #[must_use]
    pub fn presence_key(&self, identity: &Identity) -> PresenceKey {
        PresenceKey(self.fingerprint(&(identity.user(), identity.session_id())))
    }

    /// The number of presence entries.
    #[must_use]
    pub fn presence_entries(&self) -> usize {
        self.state.presence.lock().unwrap_or_else(PoisonError::into_inner).last_seen.len()
    }

    /// Records that a valid token of this identity was presented. At most `limit` entries are kept, each for `keep`
    /// seconds. When the table is full a new user is not recorded, so its sockets close when their tokens expire.
    pub fn record_presence(&self, identity: &Identity, now: u64, limit: usize, keep: u64) {
        let PresenceKey(key) = self.presence_key(identity);
        let mut table = self.state.presence.lock().unwrap_or_else(PoisonError::into_inner);
        let PresenceTable { last_seen, swept_at } = &mut *table;
        if last_seen.len() >= limit && !last_seen.contains_key(&key) {
            if now < *swept_at + SWEEP_SECONDS {
                return;
            }
            *swept_at = now;
            last_seen.retain(|_, at| *at + keep > now);
            if last_seen.len() >= limit {
                return;
            }
        }
        last_seen.insert(key, now);
    }

    /// The time of the last valid token, in seconds since the epoch.
    #[must_use]
    pub fn last_seen(&self, presence: PresenceKey) -> Option<u64> {
        self.state.presence.lock().unwrap_or_else(PoisonError::into_inner).last_seen.get(&presence.0).copied()
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let mut open = self.users.state.open_sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.user) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
