//! Open sockets of a login session. While there is one, the session is renewed, and each socket is notified of changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::client::ProviderToken;
use super::{LoginSession, LoginSessions};
use crate::auth::Token;

impl LoginSession {
    /// Registers an open socket. While there is one, a task renews the session.
    #[must_use]
    pub fn socket(self: &Arc<Self>, sessions: &Arc<LoginSessions>) -> OpenLoginSocket {
        // It is counted before the lock is taken, so that a task that is about to end counts this socket.
        self.sockets.fetch_add(1, Ordering::AcqRel);
        let (renewals, was_watched) = {
            let mut state = self.lock();
            (state.renewals, std::mem::replace(&mut state.is_watched, true))
        };
        if !was_watched {
            tokio::spawn(Arc::clone(self).keep_renewed(Arc::clone(sessions)));
        }
        // A renewal may have come between verification and registration, so the first check reports a change.
        OpenLoginSocket { session: Arc::clone(self), seen: None, renewals: Some(renewals), has_moved: false }
    }
}

/// An open socket of a login session.
#[derive(Debug)]
pub struct OpenLoginSocket {
    session: Arc<LoginSession>,
    /// The version of the session at the last check.
    seen: Option<u64>,
    /// The number of the renewal whose token the upstream has; `None` if it has the token of another session.
    renewals: Option<u64>,
    /// Whether the socket was opened by another session, which this one replaced.
    has_moved: bool,
}

impl OpenLoginSocket {
    /// Returns the session of the socket.
    #[must_use]
    pub fn session(&self) -> &Arc<LoginSession> {
        &self.session
    }

    /// Marks the socket as one whose upstream receives each new token, by [`Self::renewed_token`].
    pub fn pass_tokens(&mut self) {
        self.session.passes_token.store(true, Ordering::Relaxed);
    }

    /// Returns the access token if it has changed since the last call.
    pub fn renewed_token(&mut self) -> Option<Token> {
        let state = self.session.lock();
        if self.renewals.replace(state.renewals) == Some(state.renewals) {
            return None;
        }
        state.access_token.as_ref().and_then(ProviderToken::to_token)
    }

    /// Marks the socket as opened by another session: its upstream has the token of that one.
    pub(in crate::auth) fn note_move(&mut self) {
        self.renewals = None;
        self.has_moved = true;
    }

    /// Returns whether this session has replaced the one by which the socket was opened.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Returns whether the session has changed since the last call.
    pub fn has_changed(&mut self) -> bool {
        let version = self.session.version.load(Ordering::Acquire);
        self.seen.replace(version) != Some(version)
    }
}

impl Drop for OpenLoginSocket {
    fn drop(&mut self) {
        if self.session.sockets.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.session.wake.notify_one();
        }
    }
}
