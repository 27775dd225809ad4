//! Who is about: how many sockets each user has open, and when each was seen last with a valid token.
//!
//! Both are kept by fingerprints under keys of this process, so that an entry costs the same whatever a
//! user is called.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use crate::auth::{Identity, User};

/// Forgetting everyone who was seen long ago is tried again only after this many seconds, since it looks at
/// every entry.
const SWEEP_SECONDS: u64 = 10;

/// Two independent hashes: nobody chooses users whose fingerprints meet.
type Fingerprint = (u64, u64);

/// Every user that is about.
#[derive(Clone, Debug, Default)]
pub struct Users {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hashers: (RandomState, RandomState),
    open: Mutex<HashMap<Fingerprint, u32>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Seconds since the epoch.
    at: HashMap<Fingerprint, u64>,
    swept: u64,
}

/// A user and, where its tokens name one, the provider's session: what presence is kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence(Fingerprint);

/// One open socket of a user; counted until dropped.
#[derive(Debug)]
pub struct OpenSocket {
    users: Users,
    user: Fingerprint,
}

impl Users {
    fn fingerprint(&self, key: &impl std::hash::Hash) -> Fingerprint {
        (self.inner.hashers.0.hash_one(key), self.inner.hashers.1.hash_one(key))
    }

    /// Counts a socket, unless its user has `limit` open.
    #[must_use]
    pub fn open(&self, user: &User, limit: u32) -> Option<OpenSocket> {
        let user = self.fingerprint(user);
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(user).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(OpenSocket { users: self.clone(), user })
    }

    /// What presence of this identity is kept by.
    #[must_use]
    pub fn presence(&self, identity: &Identity) -> Presence {
        Presence(self.fingerprint(&(identity.user(), identity.session_id())))
    }

    /// How many were seen with a valid token, where presence counts.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).at.len()
    }

    /// Notes that a valid token of this identity was seen. `limit` entries are kept, each for `keep` seconds;
    /// a newcomer to a full table is not noted, so its sockets end with their tokens.
    pub fn see(&self, identity: &Identity, now: u64, limit: usize, keep: u64) {
        let Presence(key) = self.presence(identity);
        let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *seen;
        if seen.at.len() >= limit && !seen.at.contains_key(&key) {
            if now < seen.swept + SWEEP_SECONDS {
                return;
            }
            seen.swept = now;
            seen.at.retain(|_, at| *at + keep > now);
            if seen.at.len() >= limit {
                return;
            }
        }
        seen.at.insert(key, now);
    }

    /// When it was seen last, seconds since the epoch.
    #[must_use]
    pub fn last_seen(&self, presence: Presence) -> Option<u64> {
        self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner).at.get(&presence.0).copied()
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let mut open = self.users.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.user) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
