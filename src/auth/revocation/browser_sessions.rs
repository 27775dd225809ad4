//! Browser sessions that have ended: records and publishes each end, and looks for it.

use super::entry::{EntryKind, SharedEntry};
use super::file::Record;
use super::sign_outs::{RecordedSignOut, SignOutLimits};
use super::{BROWSER_SESSIONS, LimitReached, Revocation, RevocationTarget, Revocations};
use crate::auth::revocation_keys::{BrowserSessionKeys, RevocationKey};
use crate::auth::{BrowserSession, SessionScope};

impl Revocations {
    /// Ends a browser session with all its cookies at `now`, milliseconds since the epoch, and the others that end with
    /// it. Keeps the entries until `until`, Unix seconds. They are in force when this returns; [`Revocation::save`] makes
    /// them survive a restart. At `limits.sign_outs_per_user` one entry that ends all sessions that the user began before
    /// now, or before the one that has replaced this session, replaces the others.
    ///
    /// # Errors
    /// Returns an error when there are `limits.sign_outs` already.
    pub fn end_session(
        &self,
        session: &BrowserSession,
        scope: SessionScope,
        now: u64,
        until: u64,
        limits: SignOutLimits,
    ) -> Result<Revocation, LimitReached> {
        let browser = session.browser.as_deref().filter(|_| scope == SessionScope::Browser);
        // The session has an entry of its own beside that of its browser: earlier versions know no other.
        let keys = self.browser_session_keys_of(0, &session.owner, &session.id, browser);
        let keys = BrowserSessionKeys { began: session.began, ..keys };
        let moment = self.now_of_all(now);
        let all_until = match scope {
            // The session that has replaced this one began before now, and must not end with it.
            SessionScope::Replaced { began } => began.saturating_sub(1),
            SessionScope::Session | SessionScope::Browser => moment,
        };
        let ended = self.sign_outs.end(&keys, moment, all_until, until, limits);
        let (kept, change) = ended.ok_or(LimitReached("sign_outs"))?;
        self.note(&change);
        let issuer = BROWSER_SESSIONS.to_owned();
        let (record, entries) = match kept {
            RecordedSignOut::Session { until } => {
                // A line has one field for an id, so the field has both the owner's and the session's id.
                let target = RevocationTarget::Session(format!("{}/{}", session.owner, session.id));
                let browser = browser.map(str::to_owned);
                // Not before the session began, which may be by a clock ahead of this one: an entry that ends all sessions
                // until then is taken to include this one.
                let at_ms = moment.max(session.began);
                // This includes a session that had ended already: its earlier publication may be lost.
                let record = Record { issuer, target, browser, at: at_ms.div_ceil(1_000), at_ms: Some(at_ms), until };
                (record, self.sign_outs.entries_of(&keys))
            }
            RecordedSignOut::AllBefore { at, until } => {
                tracing::warn!("limits.sign_outs_per_user reached, ended all earlier browser sessions of one user");
                let target = RevocationTarget::User(session.owner.to_string());
                (Record { issuer, target, browser: None, at, at_ms: None, until }, change.added)
            }
        };
        let published = self.publish(&entries, &change.removed);
        Ok(self.to_write(record, now / 1_000, published))
    }

    /// Returns whether a browser session was ended.
    #[must_use]
    pub fn is_ended(&self, session: &BrowserSession, now: u64) -> bool {
        !self.sign_outs.is_empty()
            && (0..self.digests.len())
                .any(|secret| self.sign_outs.has_ended(&self.browser_session_keys(secret, session), now))
    }

    /// Restores a sign-out from the file. It must be called in the file's order.
    pub(super) fn restore_sign_out(&self, record: &Record) {
        let (owner, id, kind, at) = match &record.target {
            RevocationTarget::Session(name) => {
                // Earlier versions wrote ids of cookies that can no longer be decrypted.
                let Some((owner, id)) = name.split_once('/') else { return };
                (owner, id, EntryKind::SignOut, record.signed_out_at())
            }
            RevocationTarget::User(owner) => (owner.as_str(), "", EntryKind::AllSessions, record.at),
            RevocationTarget::Subject(_) | RevocationTarget::Token(_) => return,
        };
        let keys = self.browser_session_keys_of(0, owner, id, record.browser.as_deref());
        let all = (kind == EntryKind::AllSessions).then(RevocationKey::default);
        for key in [all.or(Some(keys.session)), keys.browser].into_iter().flatten() {
            let change = self.sign_outs.merge(&SharedEntry { kind, owner: keys.owner, key, at, until: record.until });
            self.note(&change);
        }
    }

    pub(super) fn browser_session_keys(&self, secret: usize, session: &BrowserSession) -> BrowserSessionKeys {
        let keys = self.browser_session_keys_of(secret, &session.owner, &session.id, session.browser.as_deref());
        BrowserSessionKeys { began: session.began, ..keys }
    }

    fn browser_session_keys_of(
        &self,
        secret: usize,
        owner: &str,
        id: &str,
        browser: Option<&str>,
    ) -> BrowserSessionKeys {
        let key = |target| self.key(secret, BROWSER_SESSIONS, &target);
        let session = |id: &str| key(RevocationTarget::Session(id.to_owned()));
        BrowserSessionKeys {
            owner: key(RevocationTarget::User(owner.to_owned())),
            session: session(id),
            browser: browser.map(|browser| RevocationKey::of_browser(session(browser).0)),
            began: 0,
        }
    }

    /// Returns whether this user has signed out in a browser that begins another session with the same login cookie,
    /// which would count as ended too.
    #[must_use]
    pub fn has_signed_out(&self, owner: &str, browser: &str, now: u64) -> bool {
        !self.sign_outs.is_empty()
            && (0..self.digests.len()).any(|secret| {
                let keys = self.browser_session_keys_of(secret, owner, "", Some(browser));
                self.sign_outs.has_ended(&BrowserSessionKeys { began: u64::MAX, ..keys }, now)
            })
    }
}
