//! The active users: the number of open sockets of each, and the time at which each last presented a valid token.
//!
//! Users are kept by keyed digests, so that every entry has the same size, and instances can share entries without user
//! ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::auth::digest::{Digest, DigestKeys};
use crate::auth::{Identity, unix_seconds};
use crate::shared::{ASK_AGAIN_SECONDS, OpenSockets, Presences, SeenElsewhere};

/// The minimum time between two removals of expired presence entries, in seconds: a removal visits every entry.
const SWEEP_SECONDS: u64 = 10;
/// The maximum number of users that are asked of other instances, or published to them, at once.
const ASKED: usize = 100_000;

/// All active users; clones share them.
#[derive(Clone, Debug)]
pub struct Users {
    state: Arc<UsersState>,
}

#[derive(Debug)]
struct UsersState {
    digests: Arc<DigestKeys>,
    open_sockets: Arc<OpenSockets>,
    presence: Mutex<PresenceTable>,
    /// The users that were seen at other instances, if `shared` is configured.
    elsewhere: Option<Arc<Presences>>,
}

#[derive(Debug, Default)]
struct PresenceTable {
    /// The time of the last valid token, in seconds since the epoch.
    last_seen: HashMap<Digest, u64>,
    swept_at: u64,
}

/// The key of a presence entry: a user and, if its tokens name one, the provider session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceKey {
    user: Digest,
    /// The time in seconds that the user's sockets stay open after it was seen.
    presence: u32,
}

/// One open socket of a user; counted until dropped.
#[derive(Debug)]
pub struct OpenSocket {
    sockets: Arc<OpenSockets>,
    user: Digest,
}

impl Users {
    /// Makes a registry without users.
    pub(super) fn new(
        digests: Arc<DigestKeys>,
        open_sockets: Arc<OpenSockets>,
        elsewhere: Option<Arc<Presences>>,
    ) -> Self {
        let state = UsersState { digests, open_sockets, presence: Mutex::default(), elsewhere };
        Self { state: Arc::new(state) }
    }

    /// Counts a socket, unless its user has `limit` open sockets at this instance and others together.
    #[must_use]
    pub fn open_socket(&self, identity: &Identity, limit: u32) -> Option<OpenSocket> {
        let user = identity.user_digest(&self.state.digests);
        let sockets = Arc::clone(&self.state.open_sockets);
        // The value is made only if the socket was counted, because dropping it subtracts one.
        sockets.open(user, limit).then(|| OpenSocket { sockets, user })
    }

    /// Returns the number of open sockets of all users at this instance.
    #[cfg(test)]
    pub fn open_sockets(&self) -> usize {
        self.state.open_sockets.count()
    }

    /// Returns the key of an identity's presence entry, on a route where sockets stay open for `presence`.
    #[must_use]
    pub fn presence_key(&self, identity: &Identity, presence: Duration) -> PresenceKey {
        let presence = u32::try_from(presence.as_secs()).unwrap_or(u32::MAX);
        PresenceKey { user: identity.presence(&self.state.digests), presence }
    }

    /// Returns the number of presence entries.
    #[must_use]
    pub fn presence_entries(&self) -> usize {
        self.state.presence.lock().unwrap_or_else(PoisonError::into_inner).last_seen.len()
    }

    /// Records that a valid token of this identity was presented. At most `limit` entries are kept, each for `keep`
    /// seconds. When the table is full a new user is not recorded, so its sockets close when their tokens expire.
    pub fn record_presence(&self, identity: &Identity, now: u64, limit: usize, keep: u64) {
        let key = identity.presence(&self.state.digests);
        if let Some(elsewhere) = &self.state.elsewhere {
            elsewhere.seen(key, now, limit);
        }
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

    /// Returns the time of the last valid token, in seconds since the epoch. If the user was not seen here for too long
    /// and other instances are being asked, returns a time that makes the caller ask again soon.
    #[must_use]
    pub fn last_seen(&self, key: PresenceKey) -> Option<u64> {
        let here = self.state.presence.lock().unwrap_or_else(PoisonError::into_inner).last_seen.get(&key.user).copied();
        let Some(elsewhere) = &self.state.elsewhere else { return here };
        let (now, presence) = (unix_seconds(), u64::from(key.presence));
        if here.is_some_and(|here| here.saturating_add(presence) > now) {
            return here;
        }
        match elsewhere.last_seen_elsewhere(key.user, Duration::from_secs(presence), ASKED) {
            SeenElsewhere::At(seen) => here.max(Some(seen)),
            SeenElsewhere::Never => here,
            SeenElsewhere::Asked => Some(now.saturating_add(ASK_AGAIN_SECONDS).saturating_sub(presence)),
        }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.sockets.close(self.user);
    }
}
