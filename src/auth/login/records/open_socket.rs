//! Open sockets of a login session: while there is one the session is renewed, and each learns of what that changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::client::ProviderToken;
use super::{LoginSession, LoginSessions};
use crate::auth::Token;

impl LoginSession {
    /// Registers an open socket; while there is one the session is renewed.
    #[must_use]
    pub fn socket(self: &Arc<Self>, sessions: &Arc<LoginSessions>) -> OpenLoginSocket {
        // Counted before the lock is taken: a task that is about to end under it sees this socket.
        self.sockets.fetch_add(1, Ordering::AcqRel);
        let (renewals, was_watched) = {
            let mut state = self.lock();
            (state.renewals, std::mem::replace(&mut state.is_watched, true))
        };
        if !was_watched {
            tokio::spawn(Arc::clone(self).keep_renewed(Arc::clone(sessions)));
        }
        // It was verified before it was registered, and a renewal may have come in between: it is looked at once.
        OpenLoginSocket { session: Arc::clone(self), seen: None, renewals: Some(renewals), has_moved: false }
    }
}

/// An open socket of a login session.
#[derive(Debug)]
pub struct OpenLoginSocket {
    session: Arc<LoginSession>,
    /// The version of the session that it was judged by last.
    seen: Option<u64>,
    /// The number of the renewal whose token the backend has; `None`: it has that of another session.
    renewals: Option<u64>,
    /// Whether it came by another session, which this one replaced.
    has_moved: bool,
}

impl OpenLoginSocket {
    /// The session that the socket belongs to.
    #[must_use]
    pub fn session(&self) -> &Arc<LoginSession> {
        &self.session
    }

    /// The session's token is told to the backend of this socket: each new one is asked for by [`Self::renewed_token`].
    pub fn pass_tokens(&mut self) {
        self.session.passes_token.store(true, Ordering::Relaxed);
    }

    /// The access token, if it is another than this gave last.
    pub fn renewed_token(&mut self) -> Option<Token> {
        let state = self.session.lock();
        if self.renewals.replace(state.renewals) == Some(state.renewals) {
            return None;
        }
        state.access_token.as_ref().and_then(ProviderToken::to_token)
    }

    /// Says that it came by another session: its backend has the token of that one.
    pub(in crate::auth) fn note_move(&mut self) {
        self.renewals = None;
        self.has_moved = true;
    }

    /// Whether its session replaced the one that it came by.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Whether the session has changed since this was last asked.
    pub fn has_changed(&mut self) -> bool {
        let version = self.session.version.load(Ordering::Acquire);
        self.seen.replace(version) != Some(version)
    }
}

impl Drop for OpenLoginSocket {
    fn drop(&mut self) {
        if self.session.sockets.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.session.socket_left.notify_one();
        }
    }
}
