//! Revoked users, provider sessions and tokens (docs/contract.md section 5). Revocations are kept in memory, up to a
//! limit and for as long as such a token may be valid, and in a file if the configuration names one.
//!
//! Sign-outs from browser sessions are kept separately with limits of their own (`sign_outs`), so that neither users
//! nor operators can use up the other's limit.
//!
//! `control` decides who may revoke, and `runtime` notifies open sessions.

mod file;
mod sign_outs;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;

use super::claims::numeric_date;
use super::identity::log_digest;
use super::{BrowserSession, Identity, Rejection};
use crate::policy::{Claim, ProviderSpec};

pub use file::RevocationFileError;
use file::{Record, RevocationFile};
pub use sign_outs::SignOutLimits;
use sign_outs::{BrowserSessionKeys, RecordedSignOut, SignOuts};

/// What is revoked: a user, session or token of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A user, by the user id as it appears in the log; revokes tokens issued until now.
    User(String),
    /// A user by the claim `sub`, where the user id is another claim.
    Subject(String),
    /// A provider session (`sid`).
    Session(String),
    /// One token (`jti`).
    Token(String),
}

impl RevocationTarget {
    /// Returns a digest of the id, for the log: whoever reads it cannot use the id.
    #[must_use]
    pub fn id_digest(&self) -> Option<String> {
        match self {
            Self::User(_) | Self::Subject(_) => None,
            Self::Session(id) | Self::Token(id) => Some(log_digest(id)),
        }
    }
}

/// Stands for the issuer in records of browser sessions; no provider's issuer is a path.
const BROWSER_SESSIONS: &str = "/.vestibule/session";

impl RevocationKeys {
    /// Adds the browser session of the former token. A WebSocket that was opened with a session cookie ends with that
    /// browser session even after a refresh with a token.
    #[must_use]
    pub fn in_browser_session_of(mut self, former: &Self) -> Self {
        self.browser_session = self.browser_session.or(former.browser_session);
        self
    }
}

/// A limit is reached: nothing was revoked, and no earlier revocation was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.{0} is reached")]
pub struct LimitReached(&'static str);

impl LimitReached {
    /// The limit's key under `limits`.
    #[must_use]
    pub const fn limit(&self) -> &'static str {
        self.0
    }
}

/// A revocation that is in force but not yet saved.
#[derive(Debug)]
#[must_use = "a revocation that is not saved is lost when the process stops"]
pub struct Revocation {
    record: Record,
    now: u64,
    file: Option<Arc<RevocationFile>>,
}

impl Revocation {
    /// Appends it to the file, if there is one, and blocks until it is on the disk.
    ///
    /// # Errors
    /// When the file cannot be written. The revocation stays in force until the process ends.
    pub fn save(self) -> Result<(), RevocationFileError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.append(&self.record, self.now)
    }
}

/// The key of a revocation: two independent hashes with random keys, so nobody can choose names whose keys collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RevocationKey(u64, u64);

/// The keys by which an identity can be revoked. An open session keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationKeys {
    user: RevocationKey,
    /// By the raw `sub`, where the user id is another claim.
    subject: Option<RevocationKey>,
    session: Option<RevocationKey>,
    token: Option<RevocationKey>,
    browser_session: Option<BrowserSessionKeys>,
    /// The token's `iat`; a token without it counts as issued before any revocation.
    issued_at: Option<u64>,
    clock_skew: u64,
}

/// When something was revoked and until when that is kept, Unix seconds.
#[derive(Clone, Copy, Debug)]
struct RevokedAt {
    at: u64,
    until: u64,
}

/// All revocations.
#[derive(Debug, Default)]
pub struct Revocations {
    hashers: (RandomState, RandomState),
    entries: RwLock<HashMap<RevocationKey, RevokedAt>>,
    /// The number of entries, so that requests need not take the lock while there are none.
    count: AtomicUsize,
    sign_outs: SignOuts,
    file: Mutex<Option<Arc<RevocationFile>>>,
}

impl Revocations {
    /// Loads the revocations in a file and appends to it from now on. Returns how many were loaded.
    ///
    /// # Errors
    /// When the file cannot be read or written or has other content; starting anyway would admit revoked users.
    pub fn attach_file(&self, path: &std::path::Path, limit: usize, now: u64) -> Result<usize, RevocationFileError> {
        let (file, records) = RevocationFile::open(path, limit, now)?;
        let count = records.len();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if record.issuer == BROWSER_SESSIONS {
                self.restore_sign_out(&record);
                continue;
            }
            let entry = RevokedAt { at: record.at, until: record.until };
            entries.insert(self.key(&record.issuer, &record.target), entry);
        }
        self.count.store(entries.len(), Ordering::Release);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        Ok(count)
    }

    /// The number of revocations, including some that have just expired.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Revokes something for `keep`. The revocation is in force when this returns; [`Revocation::save`] makes it
    /// survive a restart.
    ///
    /// # Errors
    /// When there are `limit` revocations already.
    pub fn revoke(
        &self,
        issuer: &str,
        target: &RevocationTarget,
        now: u64,
        keep: Duration,
        limit: usize,
    ) -> Result<Revocation, LimitReached> {
        let key = self.key(issuer, target);
        let mut entry = RevokedAt { at: now, until: now.saturating_add(keep.as_secs()) };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = entries.get(&key) {
            // A clock that was set back must not shorten a revocation.
            entry = RevokedAt { at: entry.at.max(earlier.at), until: entry.until.max(earlier.until) };
        }
        if !entries.contains_key(&key) && entries.len() >= limit {
            entries.retain(|_, entry| entry.until > now);
            if entries.len() >= limit {
                return Err(LimitReached("revocations"));
            }
        }
        entries.insert(key, entry);
        self.count.store(entries.len(), Ordering::Release);
        let (at, until) = (entry.at, entry.until);
        Ok(self.to_write(Record { issuer: issuer.to_owned(), target: target.clone(), at, until }, now))
    }

    /// Ends a browser session with all its cookies at `now`, milliseconds since the epoch, and keeps that until
    /// `until`, Unix seconds. It is in force when this returns; [`Revocation::save`] makes it survive a restart. At
    /// `limits.sign_outs_per_user` one entry that ends all sessions the user began before now replaces the others.
    ///
    /// # Errors
    /// When there are `limits.sign_outs` already.
    pub fn end_session(
        &self,
        session: &BrowserSession,
        now: u64,
        until: u64,
        limits: SignOutLimits,
    ) -> Result<Revocation, LimitReached> {
        let keys = self.browser_session_keys(session);
        let record = match self.sign_outs.end(&keys, now, until, limits).ok_or(LimitReached("sign_outs"))? {
            RecordedSignOut::Session { until } => {
                // A line has one field for an id, so it has both the owner's and the session's.
                let target = RevocationTarget::Session(format!("{}/{}", session.owner, session.id));
                Record { issuer: BROWSER_SESSIONS.to_owned(), target, at: now / 1_000, until }
            }
            RecordedSignOut::AllBefore { until } => {
                tracing::warn!("limits.sign_outs_per_user reached, ended all earlier browser sessions of one user");
                Record {
                    issuer: BROWSER_SESSIONS.to_owned(),
                    target: RevocationTarget::User(session.owner.to_string()),
                    at: now,
                    until,
                }
            }
        };
        Ok(self.to_write(record, now / 1_000))
    }

    /// Whether a browser session was ended.
    #[must_use]
    pub fn is_ended(&self, session: &BrowserSession, now: u64) -> bool {
        self.sign_outs.has_ended(&self.browser_session_keys(session), now)
    }

    /// The number of sign-outs, including some that have just expired.
    #[must_use]
    pub fn sign_outs(&self) -> usize {
        self.sign_outs.count()
    }

    fn to_write(&self, record: Record, now: u64) -> Revocation {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Revocation { record, now, file }
    }

    /// Restores a sign-out from the file. To be called in the file's order.
    fn restore_sign_out(&self, record: &Record) {
        match &record.target {
            RevocationTarget::Session(name) => {
                // Earlier versions wrote ids of cookies that can no longer be decrypted.
                let Some((owner, id)) = name.split_once('/') else { return };
                let keys = self.browser_session_keys_of(owner, id, 0);
                self.sign_outs.restore_session(&keys, record.until);
            }
            RevocationTarget::User(owner) => {
                self.sign_outs.restore_all_before(
                    self.browser_session_keys_of(owner, "", 0).owner,
                    record.at,
                    record.until,
                );
            }
            RevocationTarget::Subject(_) | RevocationTarget::Token(_) => {}
        }
    }

    fn browser_session_keys(&self, session: &BrowserSession) -> BrowserSessionKeys {
        self.browser_session_keys_of(&session.owner, &session.id, session.began)
    }

    fn browser_session_keys_of(&self, owner: &str, id: &str, began: u64) -> BrowserSessionKeys {
        BrowserSessionKeys {
            owner: self.key(BROWSER_SESSIONS, &RevocationTarget::User(owner.to_owned())),
            session: self.key(BROWSER_SESSIONS, &RevocationTarget::Session(id.to_owned())),
            began,
        }
    }

    /// Computes the keys by which an identity can be revoked.
    #[must_use]
    pub fn keys_of(&self, identity: &Identity) -> RevocationKeys {
        let provider = identity.provider();
        let text = |name: &str| identity.claims().get(name).and_then(Value::as_str).map(str::to_owned);
        let issuer = issuer_or_name(provider);
        RevocationKeys {
            user: self.key(issuer, &RevocationTarget::User(identity.user_id().to_owned())),
            subject: (provider.user_id != Claim::Name("sub".to_owned()))
                .then(|| text("sub").map(|sub| self.key(issuer, &RevocationTarget::Subject(sub))))
                .flatten(),
            session: text("sid").map(|sid| self.key(issuer, &RevocationTarget::Session(sid))),
            token: text("jti").map(|jti| self.key(issuer, &RevocationTarget::Token(jti))),
            browser_session: identity.browser_session().map(|session| self.browser_session_keys(session)),
            issued_at: numeric_date(identity.claims(), "iat", f64::floor).ok().flatten(),
            clock_skew: provider.clock_skew.as_secs(),
        }
    }

    /// Returns the claim by which one of these keys is revoked: `sub`, `sid`, `jti`, or `session` for a browser session.
    #[must_use]
    pub fn revoked(&self, keys: &RevocationKeys, now: u64) -> Option<&'static str> {
        if self.is_empty() {
            return None;
        }
        if keys.browser_session.as_ref().is_some_and(|session| self.sign_outs.has_ended(session, now)) {
            return Some("session");
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let in_force = |key: &RevocationKey| entries.get(key).filter(|entry| entry.until > now);
        // A provider whose clock is ahead of ours may date a token later than a revocation that came after it.
        let before =
            |entry: &RevokedAt| keys.issued_at.is_none_or(|iat| iat <= entry.at.saturating_add(keys.clock_skew));
        let users = [Some(&keys.user), keys.subject.as_ref()];
        if users.into_iter().flatten().filter_map(in_force).any(before) {
            return Some("sub");
        }
        if keys.session.as_ref().and_then(in_force).is_some() {
            return Some("sid");
        }
        keys.token.as_ref().and_then(in_force).map(|_| "jti")
    }

    /// Rejects a revoked identity.
    ///
    /// # Errors
    /// [`Rejection::Revoked`].
    pub fn check(&self, identity: &Identity, now: u64) -> Result<(), Rejection> {
        if self.is_empty() {
            return Ok(());
        }
        self.revoked(&self.keys_of(identity), now).map_or(Ok(()), |by| Err(Rejection::Revoked(by)))
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && self.sign_outs.count() == 0
    }

    fn key(&self, issuer: &str, target: &RevocationTarget) -> RevocationKey {
        RevocationKey(self.hashers.0.hash_one((issuer, target)), self.hashers.1.hash_one((issuer, target)))
    }
}

/// Returns the name of a provider in revocations: its issuer, or the provider's name if its tokens have no issuer.
#[must_use]
pub fn issuer_or_name(provider: &ProviderSpec) -> &str {
    provider.issuer.as_deref().unwrap_or(&provider.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn example_keys(of: &Revocations, issued_at: Option<u64>) -> RevocationKeys {
        let key = |target| of.key("https://i", &target);
        RevocationKeys {
            user: key(RevocationTarget::User("alice".into())),
            subject: None,
            session: Some(key(RevocationTarget::Session("s".into()))),
            token: Some(key(RevocationTarget::Token("t".into()))),
            browser_session: None,
            issued_at,
            clock_skew: 5,
        }
    }

    fn revoke(revocations: &Revocations, issuer: &str, target: &RevocationTarget) {
        let revoked = revocations.revoke(issuer, target, 100, KEEP, 10).expect("room");
        revoked.save().expect("no file to fail");
    }

    #[test]
    fn a_user_s_tokens_until_now_and_none_issued_later() {
        let revocations = Revocations::default();
        assert_eq!(revocations.revoked(&example_keys(&revocations, Some(100)), 100), None);
        revoke(&revocations, "https://i", &RevocationTarget::User("alice".into()));
        for (issued_at, expected) in [
            (Some(90), Some("sub")),
            (Some(100), Some("sub")),
            (Some(105), Some("sub")),
            (Some(106), None),
            (None, Some("sub")),
        ] {
            assert_eq!(revocations.revoked(&example_keys(&revocations, issued_at), 101), expected, "{issued_at:?}");
        }
        assert_eq!(
            revocations.revoked(&example_keys(&revocations, Some(90)), 160),
            None,
            "kept no longer than promised"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_takes_nothing_back() {
        let revocations = Revocations::default();
        let alice = RevocationTarget::User("alice".into());
        revoke(&revocations, "https://i", &alice);
        let again = revocations.revoke("https://i", &alice, 50, KEEP, 10).expect("room");
        again.save().expect("no file to fail");
        assert_eq!(revocations.revoked(&example_keys(&revocations, Some(100)), 150), Some("sub"));
    }

    #[test]
    fn a_session_and_a_token_whenever_they_were_issued_and_of_their_issuer_only() {
        let revocations = Revocations::default();
        revoke(&revocations, "https://other", &RevocationTarget::Session("s".into()));
        revoke(&revocations, "https://i", &RevocationTarget::User("s".into()));
        assert_eq!(revocations.revoked(&example_keys(&revocations, Some(90)), 101), None);
        revoke(&revocations, "https://i", &RevocationTarget::Token("t".into()));
        assert_eq!(revocations.revoked(&example_keys(&revocations, Some(900)), 101), Some("jti"));
        revoke(&revocations, "https://i", &RevocationTarget::Session("s".into()));
        assert_eq!(revocations.revoked(&example_keys(&revocations, Some(900)), 101), Some("sid"));
    }

    #[test]
    fn when_full_nothing_is_forgotten_and_the_over_make_room() {
        let revocations = Revocations::default();
        let revoke =
            |id: &str, now| revocations.revoke("https://i", &RevocationTarget::Session(id.into()), now, KEEP, 2);
        assert!(revoke("a", 100).is_ok() && revoke("b", 110).is_ok());
        assert!(revoke("c", 120).is_err());
        assert!(revoke("a", 120).is_ok(), "one that is in force needs no room");
        assert!(revoke("c", 171).is_ok(), "b is over");
        assert!(revoke("d", 171).is_err());
    }
}
