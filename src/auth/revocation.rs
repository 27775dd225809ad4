//! Revoked users, provider sessions and tokens (docs/contract.md section 5). Revocations are kept in memory, up to a
//! limit and for as long as such a token may be valid, and in a file if the configuration names one.
//!
//! Sign-outs from browser sessions are kept separately with limits of their own (`sign_outs`), so that neither users
//! nor operators can use up the other's limit.
//!
//! `control` decides who may revoke, and `runtime` notifies open sessions.

mod browser_sessions;
mod entry;
mod file;
mod gate;
mod sign_outs;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::claims::numeric_date;
use super::digest::DigestKeys;
use super::identity::log_digest;
use super::revocation_keys::{RevocationKey, RevocationKeys};
use super::{Identity, Rejection, unix_seconds};
use crate::policy::{Claim, ProviderSpec};
use crate::telemetry::FileWrites;

use entry::Tally;
pub use entry::{CopyDigest, EntryKind, NAME_BYTES, SharedEntry, TIMES_BYTES};
pub use file::RevocationFileError;
use file::{Record, RevocationFile};
pub use gate::{Gate, boot_millis};
pub use sign_outs::SignOutLimits;
use sign_outs::{Change, SignOuts};

/// The target of a revocation: a user, session or token of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RevocationTarget {
    /// A user, by the user id as it appears in the log; revokes tokens issued until now.
    User(String),
    /// A user by the claim `sub`, where the user id is another claim.
    Subject(String),
    /// A provider session (`sid`). A login session whose user authenticated later is not covered.
    Session(String),
    /// One token (`jti`).
    Token(String),
}

impl RevocationTarget {
    /// Returns a digest of the id, for the log. The id cannot be derived from it.
    #[must_use]
    pub fn id_digest(&self) -> Option<String> {
        match self {
            Self::User(_) | Self::Subject(_) => None,
            Self::Session(id) | Self::Token(id) => Some(log_digest(id)),
        }
    }
}

/// For the log: the name of the member in the request, and the user id, or the digest of another id.
impl std::fmt::Display for RevocationTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(id) | Self::Subject(id) => write!(f, "sub {id}"),
            Self::Session(id) => write!(f, "sid with digest {}", log_digest(id)),
            Self::Token(id) => write!(f, "jti with digest {}", log_digest(id)),
        }
    }
}

/// The name in place of the issuer in records of browser sessions. No provider's issuer is a path.
const BROWSER_SESSIONS: &str = "/.vestibule/session";

/// The error at a limit: nothing was revoked, and no earlier revocation was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limits.{0} is reached")]
pub struct LimitReached(&'static str);

impl LimitReached {
    /// Returns the limit's key under `limits`.
    #[must_use]
    pub const fn limit(&self) -> &'static str {
        self.0
    }
}

/// A publisher of this instance's revocations to other instances.
pub trait Publish: Send + Sync {
    /// Publishes the added entries and those that they replaced. The receiver resolves when other instances can read
    /// them.
    fn publish(&self, added: SharedEntry, removed: &[SharedEntry]) -> oneshot::Receiver<()>;
}

/// A revocation that is in force but not yet saved.
#[derive(Debug)]
#[must_use = "a revocation that is not saved is lost when the process stops"]
pub struct Revocation {
    record: Record,
    now: u64,
    file: Option<Arc<RevocationFile>>,
    published: Vec<oneshot::Receiver<()>>,
}

impl Revocation {
    /// Returns receivers that resolve when other instances can read the revocation; none if there are no instances, or
    /// at a second call.
    pub fn published(&mut self) -> Vec<oneshot::Receiver<()>> {
        std::mem::take(&mut self.published)
    }

    /// Appends it to the file, if there is one, and blocks until it is on the disk.
    ///
    /// # Errors
    /// Returns an error when the file cannot be written. The revocation stays in force until the process ends.
    pub fn save(self) -> Result<(), RevocationFileError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.append(&self.record, self.now)
    }

    /// Saves each of these. One that cannot be saved does not keep the others from it: the file is written anew before the
    /// next append, which may succeed.
    ///
    /// # Errors
    /// Returns the first error of [`Self::save`].
    pub fn save_all(revocations: Vec<Self>) -> Result<(), RevocationFileError> {
        revocations.into_iter().map(Self::save).fold(Ok(()), Result::and)
    }
}

/// Logs that a revocation could not be saved.
pub fn log_revocation_not_saved(error: &impl std::fmt::Display) {
    tracing::error!(
        %error,
        "writing control.revocation_file failed, revocations are in force until the process ends"
    );
}

/// The time of a revocation and the time until which it is kept, both in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RevokedAt {
    at: u64,
    until: u64,
}

/// All revocations.
#[derive(Default)]
pub struct Revocations {
    digests: Arc<DigestKeys>,
    entries: RwLock<HashMap<RevocationKey, RevokedAt>>,
    /// The number of entries, so that requests need not take the lock while there are none.
    count: AtomicUsize,
    /// The Unix time in seconds at which the first entry ends, or earlier.
    first_end: AtomicU64,
    sign_outs: SignOuts,
    file: Mutex<Option<Arc<RevocationFile>>>,
    tally: Mutex<Tally>,
    publish: OnceLock<Box<dyn Publish>>,
    /// The gate that is open while the revocations known here are current.
    pub gate: Gate,
    /// The time in milliseconds by which the clock of the shared state is ahead of this one.
    clock_lead: AtomicU64,
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Revocations")
    }
}

impl RevokedAt {
    fn entry(self, key: RevocationKey) -> SharedEntry {
        let owner = RevocationKey::default();
        SharedEntry { kind: EntryKind::Revocation, owner, key, at: self.at.saturating_mul(1_000), until: self.until }
    }
}

impl Revocations {
    /// Makes an empty list whose digests are the same at other instances.
    #[must_use]
    pub fn with_keys(digests: DigestKeys) -> Self {
        Self { digests: Arc::new(digests), ..Self::default() }
    }

    /// Returns the keys of the digests.
    #[must_use]
    pub fn digests(&self) -> &Arc<DigestKeys> {
        &self.digests
    }

    /// Sets the publisher of each revocation and sign-out from now on. Only the first call counts.
    pub fn publish_by(&self, publish: Box<dyn Publish>) {
        let _ = self.publish.set(publish);
    }

    /// Sets the time in milliseconds by which the clock of the shared state is ahead of this one.
    pub fn set_clock_lead(&self, lead: u64) {
        self.clock_lead.store(lead, Ordering::Relaxed);
    }

    /// Removes expired revocations and sign-outs, those of other instances among them. `now` is in Unix seconds. It takes
    /// a lock only when one has expired since the last call.
    pub fn remove_expired(&self, now: u64) {
        self.sign_outs.remove_expired(now);
        if self.first_end.load(Ordering::Relaxed) > now {
            return;
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.until > now);
        self.first_end.store(entries.values().map(|entry| entry.until).min().unwrap_or(u64::MAX), Ordering::Relaxed);
        self.count.store(entries.len(), Ordering::Release);
    }

    /// Adds an entry of another instance, regardless of the limits: what is in force is never left out.
    /// [`Self::remove_expired`] removes it again. Returns whether it changed anything.
    pub fn merge(&self, entry: &SharedEntry, now: u64) -> bool {
        if entry.until <= now {
            return false;
        }
        if entry.kind != EntryKind::Revocation {
            let change = self.sign_outs.merge(entry);
            return self.note(&change);
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let received = RevokedAt { at: entry.at / 1_000, until: entry.until };
        let (former, merged) = Self::merged(&entries, entry.key, received);
        if former == Some(merged) {
            return false;
        }
        self.insert(&mut entries, entry.key, merged);
        true
    }

    /// Returns every revocation and sign-out that has not expired.
    #[must_use]
    pub fn live(&self, now: u64) -> Vec<SharedEntry> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let live = entries.iter().filter(|(_, entry)| entry.until > now);
        let mut live: Vec<SharedEntry> = live.map(|(key, entry)| entry.entry(*key)).collect();
        drop(entries);
        self.sign_outs.for_each_live(now, |entry| live.push(entry));
        live
    }

    /// Returns the digest of the revocations and sign-outs that end after this minute, counted from the epoch.
    #[must_use]
    pub fn copy_digest(&self, minute: u64) -> CopyDigest {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.forget_before(unix_seconds() / 60);
        tally.digest(minute)
    }

    /// Returns the entry of a revocation that is not made by a running proxy.
    #[must_use]
    pub fn entry_of(&self, issuer: &str, target: &RevocationTarget, now_ms: u64, keep: Duration) -> SharedEntry {
        let now = now_ms / 1_000;
        RevokedAt { at: now, until: now.saturating_add(keep.as_secs()) }.entry(self.key(0, issuer, target))
    }

    /// Merges a received revocation with the one that is kept under the key. Returns the kept one and the merged one.
    fn merged(
        entries: &HashMap<RevocationKey, RevokedAt>,
        key: RevocationKey,
        received: RevokedAt,
    ) -> (Option<RevokedAt>, RevokedAt) {
        let former = entries.get(&key).copied();
        // A clock that was set back must not shorten a revocation.
        let merged = former.map_or(received, |former| RevokedAt {
            at: received.at.max(former.at),
            until: received.until.max(former.until),
        });
        (former, merged)
    }

    fn insert(&self, entries: &mut HashMap<RevocationKey, RevokedAt>, key: RevocationKey, entry: RevokedAt) {
        let former = entries.insert(key, entry);
        self.first_end.fetch_min(entry.until, Ordering::Relaxed);
        self.count.store(entries.len(), Ordering::Release);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = former {
            tally.remove(&former.entry(key));
        }
        tally.add(&entry.entry(key));
    }

    /// Updates the digest by a change of the sign-outs. Returns whether there was a change.
    fn note(&self, change: &Change) -> bool {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &change.removed {
            tally.remove(entry);
        }
        for entry in &change.added {
            tally.add(entry);
        }
        !change.added.is_empty()
    }

    fn now_of_all(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.clock_lead.load(Ordering::Relaxed))
    }

    /// Loads the revocations in a file and appends to it from now on. Returns how many were loaded.
    ///
    /// # Errors
    /// Returns an error when the file cannot be read or written or has other content. Starting without it would admit
    /// revoked users.
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
            self.insert(&mut entries, self.key(0, &record.issuer, &record.target), entry);
        }
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(file));
        Ok(count)
    }

    /// Counts each write to the file by these counters from now on, if there is a file. Only the first call counts.
    pub fn count_writes_by(&self, writes: FileWrites) {
        if let Some(file) = &*self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            file.count_writes_by(writes);
        }
    }

    /// Returns the number of revocations, including some that have just expired.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Revokes a target for `keep`. The revocation is in force when this returns; [`Revocation::save`] makes it survive
    /// a restart.
    ///
    /// # Errors
    /// Returns an error when there are `limit` revocations already.
    pub fn revoke(
        &self,
        issuer: &str,
        target: &RevocationTarget,
        now: u64,
        keep: Duration,
        limit: usize,
    ) -> Result<Revocation, LimitReached> {
        let at = self.now_of_all(now.saturating_mul(1_000)) / 1_000;
        self.revoke_until(issuer, target, at, now, keep, limit)
    }

    /// Revokes a target as [`Self::revoke`] does, but only what was issued until `at`, Unix seconds by the issuer's clock.
    /// A message of the issuer that comes late, or a second time, ends no session that has begun since.
    ///
    /// # Errors
    /// Returns an error when there are `limit` revocations already.
    pub fn revoke_until(
        &self,
        issuer: &str,
        target: &RevocationTarget,
        at: u64,
        now: u64,
        keep: Duration,
        limit: usize,
    ) -> Result<Revocation, LimitReached> {
        let key = self.key(0, issuer, target);
        let received = RevokedAt { at, until: now.saturating_add(keep.as_secs()) };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let (former, entry) = Self::merged(&entries, key, received);
        if former.is_none() && entries.len() >= limit {
            entries.retain(|_, entry| entry.until > now);
            if entries.len() >= limit {
                return Err(LimitReached("revocations"));
            }
        }
        self.insert(&mut entries, key, entry);
        drop(entries);
        let (at, until) = (entry.at, entry.until);
        // This includes a target that was revoked already: its earlier publication may be lost.
        let published = self.publish(&[entry.entry(key)], &[]);
        let record =
            Record { issuer: issuer.to_owned(), target: target.clone(), browser: None, at, at_ms: None, until };
        Ok(self.to_write(record, now, published))
    }

    /// Publishes entries to other instances, if there are any, and those that they replaced.
    fn publish(&self, entries: &[SharedEntry], removed: &[SharedEntry]) -> Vec<oneshot::Receiver<()>> {
        let Some(publish) = self.publish.get() else { return Vec::new() };
        // Entries are written in any order, so none may remove another.
        let is_replaced = |gone: &&SharedEntry| entries.iter().all(|entry| entry.name() != gone.name());
        let removed: Vec<SharedEntry> = removed.iter().filter(is_replaced).copied().collect();
        entries.iter().map(|entry| publish.publish(*entry, &removed)).collect()
    }

    /// Returns the number of sign-outs, including some that have just expired.
    #[must_use]
    pub fn sign_outs(&self) -> usize {
        self.sign_outs.count()
    }

    fn to_write(&self, record: Record, now: u64, published: Vec<oneshot::Receiver<()>>) -> Revocation {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Revocation { record, now, file, published }
    }

    /// Computes the keys by which an identity can be revoked.
    #[must_use]
    pub fn keys_of(&self, identity: &Identity) -> Arc<RevocationKeys> {
        Arc::clone(identity.revocation_keys(|| self.compute_keys(identity)))
    }

    fn compute_keys(&self, identity: &Identity) -> RevocationKeys {
        let former = (1..self.digests.len()).rev().fold(None, |former, secret| {
            Some(Box::new(RevocationKeys { former, ..self.keys_under(secret, identity) }))
        });
        RevocationKeys { former, ..self.keys_under(0, identity) }
    }

    fn keys_under(&self, secret: usize, identity: &Identity) -> RevocationKeys {
        let provider = identity.provider();
        let text = |name: &str| identity.claims().get(name).and_then(Value::as_str).map(str::to_owned);
        let issuer = issuer_or_name(provider);
        let key = |target| self.key(secret, issuer, &target);
        RevocationKeys {
            user: key(RevocationTarget::User(identity.user_id().to_owned())),
            subject: (provider.user_id != Claim::Name("sub".to_owned()))
                .then(|| text("sub").map(|sub| key(RevocationTarget::Subject(sub))))
                .flatten(),
            session: text("sid").map(|sid| key(RevocationTarget::Session(sid))),
            token: text("jti").map(|jti| key(RevocationTarget::Token(jti))),
            browser_session: identity.browser_session().map(|session| self.browser_session_keys(secret, session)),
            issued_at: numeric_date(identity.claims(), "iat", f64::floor).ok().flatten(),
            authenticated_at: identity.authenticated_at(),
            clock_skew: provider.clock_skew.as_secs(),
            former: None,
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
        // A provider whose clock is ahead of this one may date a token later than a revocation that came after it.
        let covers = |entry: &RevokedAt, time: Option<u64>| {
            time.is_none_or(|time| time <= entry.at.saturating_add(keys.clock_skew))
        };
        let users = [Some(&keys.user), keys.subject.as_ref()];
        if users.into_iter().flatten().filter_map(in_force).any(|entry| covers(entry, keys.issued_at)) {
            return Some("sub");
        }
        // Within a session that was revoked a provider may go on issuing tokens, so only a later authentication counts.
        if keys.session.as_ref().and_then(in_force).is_some_and(|entry| covers(entry, keys.authenticated_at)) {
            return Some("sid");
        }
        if keys.token.as_ref().and_then(in_force).is_some() {
            return Some("jti");
        }
        drop(entries);
        keys.former.as_ref().and_then(|former| self.revoked(former, now))
    }

    /// Rejects a revoked identity, and every identity while the gate is closed. It is for credentials that a request
    /// presents; open sessions are checked by [`Self::check`].
    ///
    /// # Errors
    /// [`Rejection::Revoked`], or [`Rejection::RevocationsUnknown`].
    pub fn check_presented(&self, identity: &Identity, now: u64) -> Result<(), Rejection> {
        self.gate.check()?;
        self.check(identity, now)
    }

    /// Rejects a revoked identity.
    ///
    /// # Errors
    /// [`Rejection::Revoked`].
    pub fn check(&self, identity: &Identity, now: u64) -> Result<(), Rejection> {
        if self.is_empty() {
            return Ok(());
        }
        let keys = identity.revocation_keys(|| self.compute_keys(identity));
        self.revoked(keys, now).map_or(Ok(()), |by| Err(Rejection::Revoked(by)))
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0 && self.sign_outs.is_empty()
    }

    fn key(&self, secret: usize, issuer: &str, target: &RevocationTarget) -> RevocationKey {
        let (kind, id) = match target {
            RevocationTarget::User(id) => ("user", id),
            RevocationTarget::Subject(id) => ("subject", id),
            RevocationTarget::Session(id) => ("session", id),
            RevocationTarget::Token(id) => ("token", id),
        };
        RevocationKey(self.digests.with(secret, &[kind.as_bytes(), issuer.as_bytes(), id.as_bytes()]))
    }
}

/// Returns the name of a provider in revocations: its issuer, or the provider's name if its tokens have no issuer.
#[must_use]
pub fn issuer_or_name(provider: &ProviderSpec) -> &str {
    provider.issuer.as_deref().unwrap_or(&provider.name)
}

#[cfg(test)]
mod tests;
