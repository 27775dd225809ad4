//! Who is refused although the token is good: users, sessions and tokens that were revoked from outside
//! (docs/contract.md section 5). In memory, bounded, each for as long as a token of its kind may live; written to a
//! file too, where the configuration names one.
//!
//! Owns the marks and the file. Who may revoke, and how open sockets hear of it, is others'.

mod file;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;

use super::claims::time;
use super::{Identity, Rejection};
use crate::policy::ProviderSpec;

pub use file::FileError;
use file::RevocationFile;

/// What is revoked, of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A user, by the user id as the log shows it: its tokens issued until now.
    User(String),
    /// A session of the provider's (`sid`).
    Session(String),
    /// One token (`jti`).
    Token(String),
}

/// The issuer of sessions of ours; no provider's `iss` is a path.
pub const OWN: &str = "/.vestibule/session";

impl Marks {
    /// Of a later token on a socket that came by a session of ours: it ends with that session all the same.
    #[must_use]
    pub fn in_session_of(mut self, former: &Self) -> Self {
        self.own = self.own.or(former.own);
        self
    }
}

/// As many are revoked as are kept; nothing was forgotten for this one.
#[derive(Debug, thiserror::Error)]
#[error("limits.revocations are in force")]
pub struct Full;

/// A revocation that is in force.
#[derive(Debug)]
#[must_use = "it does not outlive the process before it is written down"]
pub struct Revocation {
    issuer: String,
    target: Target,
    entry: Entry,
    file: Option<Arc<RevocationFile>>,
}

impl Revocation {
    /// Writes it into the file, where there is one, and waits until it is on the disk: blocks.
    ///
    /// # Errors
    /// When it could not be written; it is in force until the process ends all the same.
    pub fn write_down(self) -> Result<(), FileError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.append(&self.issuer, &self.target, self.entry.at, self.entry.until, self.entry.at)
    }
}

/// Two independent hashes under keys of this process: nobody chooses names whose marks meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(u64, u64);

/// What an identity can be revoked by; what a socket keeps for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    user: Mark,
    session: Option<Mark>,
    token: Option<Mark>,
    /// Of the session of ours.
    own: Option<Mark>,
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
    entries: RwLock<HashMap<Mark, Entry>>,
    /// How many: read by every request, and zero for nearly all.
    count: AtomicUsize,
    file: Mutex<Option<Arc<RevocationFile>>>,
}

impl Revocations {
    /// Takes up what a file says and writes to it from now on.
    ///
    /// # Errors
    /// When it cannot be read or written, or holds something else: who was revoked would be let in again.
    pub fn keep_in(&self, path: &std::path::Path, limit: usize, now: u64) -> Result<usize, FileError> {
        let (file, records) = RevocationFile::open(path, limit, now)?;
        let count = records.len();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
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

    /// Revokes from now on, for `keep`; `limit` are kept. In force when this returns; [`Revocation::write_down`] makes
    /// it last.
    ///
    /// # Errors
    /// When `limit` are in force already.
    pub fn revoke(
        &self,
        issuer: &str,
        target: &Target,
        now: u64,
        keep: Duration,
        limit: usize,
    ) -> Result<Revocation, Full> {
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
                return Err(Full);
            }
        }
        entries.insert(mark, entry);
        self.count.store(entries.len(), Ordering::Release);
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Revocation { issuer: issuer.to_owned(), target: target.clone(), entry, file })
    }

    /// What an identity can be revoked by.
    #[must_use]
    pub fn marks(&self, identity: &Identity) -> Marks {
        let provider = identity.provider();
        let text = |name: &str| identity.claims().get(name).and_then(Value::as_str).map(str::to_owned);
        let issuer = named(provider);
        Marks {
            user: self.mark(issuer, &Target::User(identity.user_id().to_owned())),
            session: text("sid").map(|sid| self.mark(issuer, &Target::Session(sid))),
            token: text("jti").map(|jti| self.mark(issuer, &Target::Token(jti))),
            own: identity.own_session().map(|id| self.mark(OWN, &Target::Session(id.to_owned()))),
            issued_at: time(identity.claims(), "iat").ok().flatten(),
            clock_skew: provider.clock_skew.as_secs(),
        }
    }

    /// By what these are revoked, if they are.
    #[must_use]
    pub fn revoked(&self, marks: &Marks, now: u64) -> Option<&'static str> {
        if self.is_empty() {
            return None;
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let in_force = |mark: &Mark| entries.get(mark).filter(|entry| entry.until > now);
        // A clock that runs ahead of ours must not date a token behind its revocation.
        let before = |entry: &Entry| marks.issued_at.is_none_or(|iat| iat <= entry.at.saturating_add(marks.clock_skew));
        if in_force(&marks.user).is_some_and(before) {
            return Some("sub");
        }
        if marks.session.as_ref().and_then(in_force).is_some() {
            return Some("sid");
        }
        if marks.own.as_ref().and_then(in_force).is_some() {
            return Some("session");
        }
        marks.token.as_ref().and_then(in_force).map(|_| "jti")
    }

    /// Refuses an identity that was revoked.
    pub(super) fn check(&self, identity: &Identity, now: u64) -> Result<(), Rejection> {
        if self.is_empty() {
            return Ok(());
        }
        self.revoked(&self.marks(identity), now).map_or(Ok(()), |by| Err(Rejection::Revoked(by)))
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn mark(&self, issuer: &str, target: &Target) -> Mark {
        Mark(self.hashers.0.hash_one((issuer, target)), self.hashers.1.hash_one((issuer, target)))
    }
}

/// What a provider is called by whoever revokes: its issuer, or where its tokens say none its name.
#[must_use]
pub fn named(provider: &ProviderSpec) -> &str {
    provider.issuer.as_deref().unwrap_or(&provider.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn marks(of: &Revocations, issued_at: Option<u64>) -> Marks {
        let mark = |target| of.mark("https://i", &target);
        Marks {
            user: mark(Target::User("alice".into())),
            session: Some(mark(Target::Session("s".into()))),
            token: Some(mark(Target::Token("t".into()))),
            own: None,
            issued_at,
            clock_skew: 5,
        }
    }

    fn revoke(revocations: &Revocations, issuer: &str, target: &Target) {
        let revoked = revocations.revoke(issuer, target, 100, KEEP, 10).expect("room");
        revoked.write_down().expect("no file to fail");
    }

    #[test]
    fn a_user_s_tokens_until_now_and_none_issued_later() {
        let revocations = Revocations::default();
        assert_eq!(revocations.revoked(&marks(&revocations, Some(100)), 100), None);
        revoke(&revocations, "https://i", &Target::User("alice".into()));
        for (issued_at, expected) in [
            (Some(90), Some("sub")),
            (Some(100), Some("sub")),
            (Some(105), Some("sub")),
            (Some(106), None),
            (None, Some("sub")),
        ] {
            assert_eq!(revocations.revoked(&marks(&revocations, issued_at), 101), expected, "{issued_at:?}");
        }
        assert_eq!(revocations.revoked(&marks(&revocations, Some(90)), 160), None, "kept no longer than promised");
    }

    #[test]
    fn a_clock_that_was_set_back_takes_nothing_back() {
        let revocations = Revocations::default();
        let alice = Target::User("alice".into());
        revoke(&revocations, "https://i", &alice);
        let again = revocations.revoke("https://i", &alice, 50, KEEP, 10).expect("room");
        again.write_down().expect("no file to fail");
        assert_eq!(revocations.revoked(&marks(&revocations, Some(100)), 150), Some("sub"));
    }

    #[test]
    fn a_session_and_a_token_whenever_they_were_issued_and_of_their_issuer_only() {
        let revocations = Revocations::default();
        revoke(&revocations, "https://other", &Target::Session("s".into()));
        revoke(&revocations, "https://i", &Target::User("s".into()));
        assert_eq!(revocations.revoked(&marks(&revocations, Some(90)), 101), None);
        revoke(&revocations, "https://i", &Target::Token("t".into()));
        assert_eq!(revocations.revoked(&marks(&revocations, Some(900)), 101), Some("jti"));
        revoke(&revocations, "https://i", &Target::Session("s".into()));
        assert_eq!(revocations.revoked(&marks(&revocations, Some(900)), 101), Some("sid"));
    }

    #[test]
    fn when_full_nothing_is_forgotten_and_the_over_make_room() {
        let revocations = Revocations::default();
        let revoke = |id: &str, now| revocations.revoke("https://i", &Target::Session(id.into()), now, KEEP, 2);
        assert!(revoke("a", 100).is_ok() && revoke("b", 110).is_ok());
        assert!(revoke("c", 120).is_err());
        assert!(revoke("a", 120).is_ok(), "one that is in force needs no room");
        assert!(revoke("c", 171).is_ok(), "b is over");
        assert!(revoke("d", 171).is_err());
    }
}
