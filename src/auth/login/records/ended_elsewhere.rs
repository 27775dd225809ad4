//! Discards the records of sessions that a sign-out at another instance has ended. That instance may not have such a
//! record: two tabs that come back from the provider at once may have their sessions at two instances.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::{LoginSession, LoginSessions};
use crate::auth::{Rejection, unix_seconds};

/// The time after a sign-out in which its own instance removes the record from the store and revokes the refresh token,
/// if it has the record.
const OWN_TURN: Duration = Duration::from_secs(1);

impl LoginSessions {
    /// Records that sign-outs of other instances have come.
    pub fn note_sign_outs(&self) {
        self.sharing.has_sign_outs.store(true, Ordering::Release);
    }

    /// Discards the records of sessions that have ended, if sign-outs of other instances have come since the last call.
    pub fn discard_signed_out(self: &Arc<Self>) {
        if !self.sharing.has_sign_outs.swap(false, Ordering::AcqRel) {
            return;
        }
        let now = unix_seconds();
        let records: Vec<Arc<LoginSession>> = self.lock().values().map(Arc::clone).collect();
        for record in records {
            if matches!(self.revocations.check(&record.identity(), now), Err(Rejection::Revoked("session"))) {
                self.discard_ended(&record);
            }
        }
    }

    /// Discards the record of a session whose end is recorded, here and in the store. If its user has signed out, revokes
    /// its refresh token at the provider, unless another instance has removed the record from the store and does so.
    pub(in crate::auth::login) fn discard_ended(self: &Arc<Self>, record: &Arc<LoginSession>) {
        if self.forget(&record.session.id).is_none() {
            return;
        }
        record.note_change(self);
        // The end of a session that a newer one has replaced must not end what both have in common at the provider.
        let session = &record.session;
        let is_signed_out = session
            .browser
            .as_ref()
            .is_some_and(|browser| self.revocations.has_signed_out(&session.owner, browser, unix_seconds()));
        let login = self.login(&record.provider).filter(|login| is_signed_out && record.is_of(login));
        // It is taken now, so that a renewal in progress revokes the token that it receives.
        let token = record.take_refresh_token();
        let (sessions, record) = (Arc::clone(self), Arc::clone(record));
        tokio::spawn(async move {
            if sessions.is_shared() {
                sleep(OWN_TURN).await;
            }
            let left = sessions.remove_left(&record, token).await;
            if let (Some(token), Some(login)) = (left, login) {
                login.revoke_after_sign_out(&token).await;
            }
        });
    }
}
