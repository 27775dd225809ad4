//! Who is refused although the token is good: users, sessions and tokens that were revoked from outside
//! (docs/contract.md section 5). In memory, bounded, each for as long as a token of its kind may live; written to a
//! file too, where the configuration names one.
//!
//! Sign-outs stand apart, with limits of their own (`sign_outs`): no user's doing takes the operator's room, nor the
//! operator's a user's.
//!
//! Owns the revocation keys and the file. Who may revoke, and how open sockets hear of it, is others'.

mod file;
mod sign_outs;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;

use super::claims::time;
use super::{BrowserSession, Identity, Rejection};
use crate::policy::{Claim, ProviderSpec};

pub use file::RevocationFileError;
use file::{Record, RevocationFile};
pub use sign_outs::SignOutLimits;
use sign_outs::{BrowserSessionKeys, Kept, SignOuts};

/// What is revoked, of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A user, by the user id as the log shows it: its tokens issued until now.
    User(String),
    /// A user by the raw `sub`, where the user id is another claim.
    Subject(String),
    /// A session of the provider's (`sid`).
    Session(String),
    /// One token (`jti`).
    Token(String),
}

/// The issuer of sessions of ours, in the file; no provider's `iss` is a path.
const OWN: &str = "/.vestibule/session";

impl RevocationKeys {
    /// Of a later token on a socket that came by a session of ours: it ends with that session all the same.
    #[must_use]
    pub fn in_browser_session_of(mut self, former: &Self) -> Self {
        self.own = self.own.or(former.own);
        self
    }
}

/// As many are in force as the named limit keeps; nothing was revoked, and nothing forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.{0} are in force")]
pub struct LimitReached(&'static str);

impl LimitReached {
    /// The limit's key.
    #[must_use]
    pub const fn limit(&self) -> &'static str {
        self.0
    }
}

/// A revocation that is in force.
#[derive(Debug)]
#[must_use = "it does not outlive the process before it is written down"]
pub struct Revocation {
    record: Record,
    now: u64,
    file: Option<Arc<RevocationFile>>,
}

impl Revocation {
    /// Writes it into the file, where there is one, and waits until it is on the disk: blocks.
    ///
    /// # Errors
    /// When it could not be written; it is in force until the process ends all the same.
    pub fn save(self) -> Result<(), RevocationFileError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.append(&self.record, self.now)
    }
}

/// Two independent hashes under keys of this process: so nobody can choose names whose keys collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RevocationKey(u64, u64);

/// What an identity can be revoked by; what a socket keeps for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationKeys {
    user: RevocationKey,
    /// By the raw `sub`, where the user id is another claim.
    subject: Option<RevocationKey>,
    session: Option<RevocationKey>,
    token: Option<RevocationKey>,
    /// Of the session of ours.
    own: Option<BrowserSessionKeys>,
    /// `None`: it does not say, and counts as issued before any moment.
    issued_at: Option<u64>,
    clock_skew: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    until: u64,
}

/// Everything that is revoked.
#[derive(Debug, Default)]
pub struct Revocations {
    hashers: (RandomState, RandomState),
    entries: RwLock<HashMap<RevocationKey, Entry>>,
    /// How many: read by every request, and zero for nearly all.
    count: AtomicUsize,
    sign_outs: SignOuts,
    file: Mutex<Option<Arc<RevocationFile>>>,
}

impl Revocations {
    /// Takes up what a file says and writes to it from now on.
    ///
    /// # Errors
    /// When it cannot be read or written, or holds something else: who was revoked would be let in again.
    pub fn attach_file(&self, path: &std::path::Path, limit: usize, now: u64) -> Result<usize, RevocationFileError> {
        let (file, records) = RevocationFile::open(path, limit, now)?;
        let count = records.len();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if record.issuer == OWN {
                self.take_up(&record);
                continue;
            }
            let entry = Entry { at: record.at, until: record.until };
            entries.insert(self.mark(&record.issuer, &record.target), entry);
        }
        self.count.store(entries.len(), Ordering::Release);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        Ok(count)
    }

    /// How many are in force, or were until a moment ago.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Revokes from now on, for `keep`; `limit` are kept. In force when this returns; [`Revocation::save`] makes
    /// it last.
    ///
    /// # Errors
    /// When `limit` are in force already.
    pub fn revoke(
        &self,
        issuer: &str,
        target: &RevocationTarget,
        now: u64,
        keep: Duration,
        limit: usize,
    ) -> Result<Revocation, LimitReached> {
        let mark = self.mark(issuer, target);
        let mut entry = Entry { at: now, until: now.saturating_add(keep.as_secs()) };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = entries.get(&mark) {
            // A clock that was set back must not take anything back.
            entry = Entry { at: entry.at.max(earlier.at), until: entry.until.max(earlier.until) };
        }
        if !entries.contains_key(&mark) && entries.len() >= limit {
            entries.retain(|_, entry| entry.until > now);
            if entries.len() >= limit {
                return Err(LimitReached("revocations"));
            }
        }
        entries.insert(mark, entry);
        self.count.store(entries.len(), Ordering::Release);
        let (at, until) = (entry.at, entry.until);
        Ok(self.to_write(Record { issuer: issuer.to_owned(), target: target.clone(), at, until }, now))
    }

    /// Ends a session of ours at `now`, milliseconds since the epoch, for every cookie of it; kept until `until`, Unix
    /// seconds. In force when this returns; [`Revocation::save`] makes it last. A user who has ended as many as one
    /// may keeps all of them ended by one entry for every session begun before now.
    ///
    /// # Errors
    /// When `limits.sign_outs` are in force already.
    pub fn end_session(
        &self,
        session: &BrowserSession,
        now: u64,
        until: u64,
        limits: SignOutLimits,
    ) -> Result<Revocation, LimitReached> {
        let revocation_keys = self.browser_session_keys(session);
        let owner = || session.owner.to_string();
        let record = match self.sign_outs.end(&revocation_keys, now, until, limits).ok_or(LimitReached("sign_outs"))? {
            Kept::One { until } => {
                // The file has one place for a name, and a session is its owner's.
                let target = RevocationTarget::Session(format!("{}/{}", session.owner, session.id));
                Record { issuer: OWN.to_owned(), target, at: now / 1_000, until }
            }
            Kept::AllBefore { until } => {
                tracing::warn!("limits.sign_outs_per_user: all sessions of one user begun before now have ended");
                Record { issuer: OWN.to_owned(), target: RevocationTarget::User(owner()), at: now, until }
            }
        };
        Ok(self.to_write(record, now / 1_000))
    }

    /// Whether a session of ours was ended.
    #[must_use]
    pub fn is_ended(&self, session: &BrowserSession, now: u64) -> bool {
        self.sign_outs.has_ended(&self.browser_session_keys(session), now)
    }

    /// How many sign-outs are in force, or were until a moment ago.
    #[must_use]
    pub fn sign_outs(&self) -> usize {
        self.sign_outs.count()
    }

    fn to_write(&self, record: Record, now: u64) -> Revocation {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Revocation { record, now, file }
    }

    /// A sign-out of an earlier run, in the order of the file.
    fn take_up(&self, record: &Record) {
        match &record.target {
            RevocationTarget::Session(name) => {
                // What an earlier version wrote names cookies that nothing opens any more.
                let Some((owner, id)) = name.split_once('/') else { return };
                let revocation_keys = self.browser_session_keys_of(owner, id, 0);
                self.sign_outs.take_up_one(&revocation_keys, record.until);
            }
            RevocationTarget::User(owner) => {
                self.sign_outs.take_up_all(self.browser_session_keys_of(owner, "", 0).owner, record.at, record.until);
            }
            RevocationTarget::Subject(_) | RevocationTarget::Token(_) => {}
        }
    }

    fn browser_session_keys(&self, session: &BrowserSession) -> BrowserSessionKeys {
        self.browser_session_keys_of(&session.owner, &session.id, session.began)
    }

    fn browser_session_keys_of(&self, owner: &str, id: &str, began: u64) -> BrowserSessionKeys {
        BrowserSessionKeys {
            owner: self.mark(OWN, &RevocationTarget::User(owner.to_owned())),
            session: self.mark(OWN, &RevocationTarget::Session(id.to_owned())),
            began,
        }
    }

    /// What an identity can be revoked by.
    #[must_use]
    pub fn keys_of(&self, identity: &Identity) -> RevocationKeys {
        let provider = identity.provider();
        let text = |name: &str| identity.claims().get(name).and_then(Value::as_str).map(str::to_owned);
        let issuer = issuer_or_name(provider);
        RevocationKeys {
            user: self.mark(issuer, &RevocationTarget::User(identity.user_id().to_owned())),
            subject: (provider.user_id != Claim::Name("sub".to_owned()))
                .then(|| text("sub").map(|sub| self.mark(issuer, &RevocationTarget::Subject(sub))))
                .flatten(),
            session: text("sid").map(|sid| self.mark(issuer, &RevocationTarget::Session(sid))),
            token: text("jti").map(|jti| self.mark(issuer, &RevocationTarget::Token(jti))),
            own: identity.browser_session().map(|session| self.browser_session_keys(session)),
            issued_at: time(identity.claims(), "iat", f64::floor).ok().flatten(),
            clock_skew: provider.clock_skew.as_secs(),
        }
    }

    /// By what these are revoked, if they are.
    #[must_use]
    pub fn revoked(&self, revocation_keys: &RevocationKeys, now: u64) -> Option<&'static str> {
        if self.is_empty() {
            return None;
        }
        if revocation_keys.own.as_ref().is_some_and(|own| self.sign_outs.has_ended(own, now)) {
            return Some("session");
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let in_force = |mark: &RevocationKey| entries.get(mark).filter(|entry| entry.until > now);
        // A clock that runs ahead of ours must not date a token behind its revocation.
        let before = |entry: &Entry| {
            revocation_keys.issued_at.is_none_or(|iat| iat <= entry.at.saturating_add(revocation_keys.clock_skew))
        };
        let users = [Some(&revocation_keys.user), revocation_keys.subject.as_ref()];
        if users.into_iter().flatten().filter_map(in_force).any(before) {
            return Some("sub");
        }
        if revocation_keys.session.as_ref().and_then(in_force).is_some() {
            return Some("sid");
        }
        revocation_keys.token.as_ref().and_then(in_force).map(|_| "jti")
    }

    /// Refuses an identity that was revoked.
    pub(super) fn check(&self, identity: &Identity, now: u64) -> Result<(), Rejection> {
        if self.is_empty() {
            return Ok(());
        }
        self.revoked(&self.keys_of(identity), now).map_or(Ok(()), |by| Err(Rejection::Revoked(by)))
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && self.sign_outs.count() == 0
    }

    fn mark(&self, issuer: &str, target: &RevocationTarget) -> RevocationKey {
        RevocationKey(self.hashers.0.hash_one((issuer, target)), self.hashers.1.hash_one((issuer, target)))
    }
}

/// What a provider is called by whoever revokes: its issuer, or where its tokens say none its name.
#[must_use]
pub fn issuer_or_name(provider: &ProviderSpec) -> &str {
    provider.issuer.as_deref().unwrap_or(&provider.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn revocation_keys(of: &Revocations, issued_at: Option<u64>) -> RevocationKeys {
        let mark = |target| of.mark("https://i", &target);
        RevocationKeys {
            user: mark(RevocationTarget::User("alice".into())),
            subject: None,
            session: Some(mark(RevocationTarget::Session("s".into()))),
            token: Some(mark(RevocationTarget::Token("t".into()))),
            own: None,
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
        assert_eq!(revocations.revoked(&revocation_keys(&revocations, Some(100)), 100), None);
        revoke(&revocations, "https://i", &RevocationTarget::User("alice".into()));
        for (issued_at, expected) in [
            (Some(90), Some("sub")),
            (Some(100), Some("sub")),
            (Some(105), Some("sub")),
            (Some(106), None),
            (None, Some("sub")),
        ] {
            assert_eq!(revocations.revoked(&revocation_keys(&revocations, issued_at), 101), expected, "{issued_at:?}");
        }
        assert_eq!(
            revocations.revoked(&revocation_keys(&revocations, Some(90)), 160),
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
        assert_eq!(revocations.revoked(&revocation_keys(&revocations, Some(100)), 150), Some("sub"));
    }

    #[test]
    fn a_session_and_a_token_whenever_they_were_issued_and_of_their_issuer_only() {
        let revocations = Revocations::default();
        revoke(&revocations, "https://other", &RevocationTarget::Session("s".into()));
        revoke(&revocations, "https://i", &RevocationTarget::User("s".into()));
        assert_eq!(revocations.revoked(&revocation_keys(&revocations, Some(90)), 101), None);
        revoke(&revocations, "https://i", &RevocationTarget::Token("t".into()));
        assert_eq!(revocations.revoked(&revocation_keys(&revocations, Some(900)), 101), Some("jti"));
        revoke(&revocations, "https://i", &RevocationTarget::Session("s".into()));
        assert_eq!(revocations.revoked(&revocation_keys(&revocations, Some(900)), 101), Some("sid"));
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
