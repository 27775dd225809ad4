//! Shares the records of login sessions with other instances through a [`SessionStore`]. A session that began at
//! another instance is loaded from there, one instance at a time renews it, and a record that the store has lost is
//! written again.
//!
//! Each record has a generation, which grows with each change. The store keeps the latest one. A record with a lower
//! generation than one seen here is not accepted from the store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::super::client::ProviderToken;
use super::super::keys::SessionKey;
use super::super::store::{
    LOCK_LIFE, RecordWrite, SEALED_BYTES, SealedRecord, SessionStore, StoreUnavailable, Written,
};
use super::super::{Login, LoginError};
use super::lease::Lease;
use super::sealed::{RecordContent, RecordKey};
use super::{LoginSession, LoginSessions, Origin};
use crate::auth::digest::Digest;
use crate::auth::{BrowserSession, Rejection, boot_millis, unix_millis, unix_seconds};
use crate::random::{NoRandomNumbers, random};

/// The time for which a record that the store does not have is not requested again.
const ABSENT: Duration = Duration::from_secs(1);
/// The interval at which an instance that waits for another's renewal checks whether it is finished.
const POLL: Duration = Duration::from_millis(200);
/// The maximum time that an instance waits for another's renewal: the other's lock has ended by then, unless it was
/// extended.
const LOCK_WAIT: Duration = LOCK_LIFE.saturating_add(Duration::from_secs(1));
/// How long something that another instance may just have written is awaited.
const LATE: Duration = Duration::from_secs(2);
/// The number of sessions whose generations are compared at once.
const CHUNK: usize = 200;
/// The number of records that are written again at once.
const WRITES: usize = 8;
/// The `Retry-After` for a client whose session's record could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// The data about a session whose record is not here.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    /// The latest generation that was seen here.
    generation: u64,
    /// The time since which the store has not had it.
    absent_since: Option<Instant>,
}

/// The access of all login sessions to their store.
pub(super) struct Sharing {
    store: OnceLock<Arc<dyn SessionStore>>,
    /// The data about sessions without a record here, at most `limits.login_sessions`.
    noted: Cache<Arc<str>, Noted>,
    /// The limit on concurrent reads of requests: `limits.login_requests`.
    reads: ArcSwap<Semaphore>,
    /// Whether a record could not be written.
    has_unsaved: AtomicBool,
    /// Whether sign-outs of other instances have come.
    pub(super) has_sign_outs: AtomicBool,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            store: OnceLock::new(),
            noted: Cache::new(1),
            reads: ArcSwap::from_pointee(Semaphore::new(1)),
            has_unsaved: AtomicBool::new(false),
            has_sign_outs: AtomicBool::new(false),
        }
    }
}

impl Sharing {
    pub(super) fn configure(&self, sessions: usize, requests: usize) {
        self.noted.set_capacity(sessions.max(1) as u64);
        self.reads.store(Arc::new(Semaphore::new(requests.max(1))));
    }

    /// Keeps the generation of a record that is removed here.
    pub(super) fn note_generation(&self, id: &Arc<str>, generation: u64) {
        if self.store.get().is_some() {
            self.noted.insert(Arc::clone(id), Noted { generation, absent_since: None });
        }
    }
}

/// The data of the store about a session.
struct Stored {
    /// The record and its generation, if there is one that can be decrypted and is not older than the latest seen.
    record: Option<(u64, RecordContent)>,
    /// The generation, as it is written, of a record that cannot be decrypted.
    undecryptable: Option<Vec<u8>>,
}

/// The result of waiting for the turn to renew a session.
pub(super) enum Turn {
    /// This instance renews the session, with a lock if there are other instances.
    Ours(Option<Lease>),
    /// Another instance has renewed the session.
    RenewedElsewhere,
}

impl From<NoRandomNumbers> for StoreUnavailable {
    fn from(error: NoRandomNumbers) -> Self {
        Self(error.to_string())
    }
}

impl From<StoreUnavailable> for LoginError {
    /// Reports a store that cannot be used as unavailable.
    fn from(error: StoreUnavailable) -> Self {
        Self::down(error.to_string())
    }
}

impl LoginSession {
    fn record_key(&self) -> Result<RecordKey, StoreUnavailable> {
        record_key(&self.key, &self.session)
    }

    fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Notes that other instances can know the record in this generation.
    fn note_saved(&self, generation: u64) {
        let mut state = self.lock();
        state.saved = state.saved.max(generation);
    }

    fn is_due(&self) -> bool {
        self.lock().renew_at <= unix_millis()
    }
}

fn refresh_token(content: &RecordContent) -> Option<ProviderToken> {
    content.refresh_token.as_deref().map(ProviderToken::new)
}

fn warn_record_stays(error: &StoreUnavailable) {
    tracing::warn!(reason = %error, "the record of an ended session stays in the shared state until the session's end");
}

fn record_key(key: &SessionKey, session: &BrowserSession) -> Result<RecordKey, StoreUnavailable> {
    RecordKey::new(key, &session.id).ok_or_else(|| StoreUnavailable("no key could be derived".to_owned()))
}

impl LoginSessions {
    /// Shares the records with other instances through this store from now on. Only the first call counts.
    pub fn share_by(&self, store: Arc<dyn SessionStore>) {
        let _ = self.sharing.store.set(store);
    }

    pub(super) fn is_shared(&self) -> bool {
        self.store().is_some()
    }

    fn store(&self) -> Option<&Arc<dyn SessionStore>> {
        self.sharing.store.get()
    }

    /// Reads a session's record from the store. A record with a generation below `least` is not accepted.
    async fn stored(store: &dyn SessionStore, key: &RecordKey, least: u64) -> Result<Stored, StoreUnavailable> {
        let Some(SealedRecord { generation: text, sealed }) = store.read(key.name()).await? else {
            return Ok(Stored { record: None, undecryptable: None });
        };
        let generation = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<u64>().ok());
        let content = generation.filter(|_| sealed.len() <= SEALED_BYTES).and_then(|generation| {
            let content = key.open(generation, &sealed)?;
            Some((generation, content))
        });
        let Some((generation, content)) = content else {
            tracing::warn!("a session's record in the shared state cannot be decrypted, ignoring it");
            store.count_refused();
            return Ok(Stored { record: None, undecryptable: Some(text) });
        };
        Ok(Stored { record: (generation >= least).then_some((generation, content)), undecryptable: None })
    }

    /// Reads the record of a session that began at another instance or before a restart. Returns `None` where there is
    /// no store, or the store has no record. It waits for one response at most.
    ///
    /// # Errors
    /// Returns [`Rejection::SessionUnavailable`] when the store does not answer, or the reason why the login does not
    /// accept the record.
    async fn read_record(
        &self,
        session: &BrowserSession,
        key: &SessionKey,
        login: &Login,
    ) -> Result<Option<Arc<LoginSession>>, Rejection> {
        let Some(store) = self.store() else { return Ok(None) };
        let noted = self.sharing.noted.get(&session.id).unwrap_or_default();
        if noted.absent_since.is_some_and(|since| since.elapsed() < ABSENT) {
            return Ok(None);
        }
        let reading = async {
            let record_key = record_key(key, session)?;
            let reads = self.sharing.reads.load_full();
            let _place = reads.acquire().await.map_err(|error| StoreUnavailable(error.to_string()))?;
            Self::stored(&**store, &record_key, noted.generation).await
        };
        let limit = store.timeout();
        let late = |_| Err(StoreUnavailable("too many reads are under way (limits.login_requests)".to_owned()));
        let stored = timeout(limit, reading)
            .await
            .unwrap_or_else(late)
            .map_err(|error| Rejection::SessionUnavailable { reason: error.to_string(), retry_after: RETRY })?;
        let Some((generation, content)) = stored.record else {
            let absent = Noted { absent_since: Some(Instant::now()), ..noted };
            self.sharing.noted.insert(Arc::clone(&session.id), absent);
            return Ok(None);
        };
        let origin = Origin {
            nonce: content.nonce.as_str().into(),
            first_auth_time: content.first_auth_time,
            issued_at: content.issued_at.clone(),
        };
        let update = content.restore(generation, login, session)?;
        let record = LoginSession::restored(session.clone(), key.clone(), origin, update);
        record.note_saved(generation);
        Ok(Some(record))
    }

    /// Loads the record of a session that this process does not have, and keeps it.
    ///
    /// # Errors
    /// Returns [`Rejection::SessionUnavailable`] when the store does not answer, or the reason why the login does not
    /// accept the record.
    pub(in crate::auth::login) async fn load(
        &self,
        session: &BrowserSession,
        key: &SessionKey,
        login: &Login,
    ) -> Result<Option<Arc<LoginSession>>, Rejection> {
        let read = self.read_record(session, key, login).await?;
        Ok(read.map(|record| self.keep(record)))
    }

    /// Returns the record of a session that is being ended, from this process or from the store.
    pub(in crate::auth) async fn find(
        &self,
        session: &BrowserSession,
        key: &SessionKey,
        login: &Login,
    ) -> Option<Arc<LoginSession>> {
        if let Some(known) = self.get(&session.id) {
            return Some(known);
        }
        match self.read_record(session, key, login).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(reason = %error, "the record of a session that is being ended could not be read");
                None
            }
        }
    }

    /// Writes a session's record. Returns `None` where there is no store, or it cannot be used; then the record is written
    /// later, by [`LoginSessions::write_back`].
    async fn write(&self, record: &LoginSession, replaces: Option<Vec<u8>>) -> Option<Written> {
        let store = self.store()?;
        let writing = async {
            let key = record.record_key()?;
            let (generation, content) = RecordContent::of(record);
            let sealed = key.seal(generation, &content).filter(|sealed| sealed.len() <= SEALED_BYTES);
            let sealed = sealed.ok_or_else(|| StoreUnavailable("a record could not be encrypted".to_owned()))?;
            let write = RecordWrite { generation, sealed, ends_at: record.ends_at, replaces };
            Ok::<_, StoreUnavailable>((generation, store.write(key.name(), write).await?))
        };
        match writing.await {
            Ok((generation, written)) => {
                record.note_saved(generation);
                Some(written)
            }
            Err(error) => {
                tracing::warn!(reason = %error, "a session's record could not be written to the shared state, retrying");
                self.sharing.has_unsaved.store(true, Ordering::Release);
                None
            }
        }
    }

    /// Writes the record of a session that has just begun, so that every instance can load it. It waits for one
    /// response at most; a record that cannot be written now is written later.
    pub async fn publish(&self, record: &LoginSession) {
        self.write(record, None).await;
    }

    /// Replaces the record by that of the store if its generation is at least `least`. Returns whether it was replaced.
    ///
    /// # Errors
    /// [`LoginError::Revoked`] when the session's user is revoked, [`LoginError::Denied`] when the login does not accept the
    /// record.
    fn adopt(
        &self,
        record: &LoginSession,
        login: &Login,
        found: Option<(u64, RecordContent)>,
        least: u64,
    ) -> Result<bool, LoginError> {
        let Some((generation, content)) = found.filter(|(generation, _)| *generation >= least) else {
            return Ok(false);
        };
        // A new `sid` or `jti` must not restore a session that was revoked by the former one.
        if let Err(Rejection::Revoked(by)) = self.revocations.check(&record.identity(), unix_seconds()) {
            return Err(LoginError::Revoked(by));
        }
        let update = content.restore(generation, login, &record.session);
        let update = update.map_err(|rejection| LoginError::down(format!("the session's record: {rejection}")))?;
        record.update(self, login, update);
        record.note_saved(generation);
        Ok(true)
    }

    /// Waits until this instance may renew a session, or another one has.
    ///
    /// # Errors
    /// [`LoginError::Unavailable`] when the store cannot be used: there is no renewal without its lock.
    pub(super) async fn take_turn(&self, record: &LoginSession, login: &Login) -> Result<Turn, LoginError> {
        let Some(store) = self.store() else { return Ok(Turn::Ours(None)) };
        let key = record.record_key()?;
        let holder = random()?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let began = boot_millis();
            let locked = store.lock(key.name(), holder).await;
            // Without an answer the lock may have been taken, and is released.
            let may_be_ours = locked.as_ref().map_or(true, |is_ours| *is_ours);
            let lease = may_be_ours.then(|| Lease::new(store, key.name(), holder, began));
            locked?;
            let known = record.generation();
            let stored = Self::stored(&**store, &key, known).await?;
            let is_lost = stored.record.is_none();
            let was_adopted = self.adopt(record, login, stored.record, known.saturating_add(1))?;
            if was_adopted && !record.is_due() {
                return Ok(Turn::RenewedElsewhere);
            }
            if let Some(lease) = lease {
                if is_lost {
                    self.write(record, stored.undecryptable).await;
                }
                return Ok(Turn::Ours(Some(lease)));
            }
            if self.is_ended(record) {
                return Err(LoginError::Revoked("session"));
            }
            if Instant::now() >= deadline {
                return Err(LoginError::down("another instance has been renewing the session for too long".to_owned()));
            }
            sleep(POLL).await;
        }
    }

    /// Returns whether the session has ended at this instance or, as far as is known here, at another.
    pub(super) fn is_ended(&self, record: &LoginSession) -> bool {
        record.has_ended() || self.revocations.is_ended(&record.session, unix_seconds())
    }

    /// Whether others may renew the session: not while they would use a refresh token that may be spent, because the next
    /// one could not be written.
    pub(super) fn is_saved(&self, record: &LoginSession) -> bool {
        let state = record.lock();
        self.store().is_none() || state.saved >= state.generation
    }

    /// Writes a record that was renewed under a lock. One that cannot be written now is written later.
    ///
    /// # Errors
    /// [`LoginError::Revoked`] when the session has ended meanwhile, and the errors of [`Self::adopt`].
    pub(super) async fn write_renewed(&self, record: &LoginSession, login: &Login) -> Result<(), LoginError> {
        match self.write(record, None).await {
            None | Some(Written::Stored) => Ok(()),
            Some(Written::Removed) => {
                // The sign-out comes by another way, which may take a little longer.
                let deadline = Instant::now() + LATE;
                while !self.is_ended(record) {
                    if Instant::now() >= deadline {
                        return Ok(());
                    }
                    sleep(POLL).await;
                }
                Err(LoginError::Revoked("session"))
            }
            Some(Written::Newer) => {
                // The lock was lost meanwhile, and another instance has renewed the session.
                tracing::warn!(session = %record.session.digest(), "another instance renewed a session meanwhile, taking its record");
                let (Some(store), Ok(key)) = (self.store(), record.record_key()) else { return Ok(()) };
                let known = record.generation();
                let stored = Self::stored(&**store, &key, known).await?;
                self.adopt(record, login, stored.record, known)?;
                Ok(())
            }
        }
    }

    /// Returns whether another instance has renewed a session whose refresh token the provider has not accepted. It
    /// waits for a short time, since that instance may be about to write the record.
    ///
    /// # Errors
    /// Returns the errors of [`Self::adopt`].
    pub(super) async fn was_renewed_elsewhere(&self, record: &LoginSession, login: &Login) -> Result<bool, LoginError> {
        let Some(store) = self.store() else { return Ok(false) };
        let key = record.record_key()?;
        let deadline = Instant::now() + LATE;
        loop {
            let known = record.generation();
            let stored = Self::stored(&**store, &key, known).await?;
            if self.adopt(record, login, stored.record, known.saturating_add(1))? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }

    /// Removes the record of a session that has ended from the store, and returns its latest refresh token, to be
    /// revoked. That is `own`, which was taken from the record here, unless another instance has renewed the session. A
    /// renewal at another instance is awaited, because its refresh token is the valid one.
    pub async fn remove_shared(&self, record: &LoginSession, own: Option<ProviderToken>) -> Option<ProviderToken> {
        let Some(store) = self.store() else { return own };
        match Self::take_stored(store, record, record.generation().saturating_add(1)).await {
            Ok(Some(newer)) => refresh_token(&newer).or(own),
            Ok(None) => own,
            Err(error) => {
                warn_record_stays(&error);
                own
            }
        }
    }

    /// Removes the record of a session that was signed out at another instance from the store, and returns its latest
    /// refresh token, to be revoked: `None` where another instance has removed the record.
    pub(super) async fn remove_left(&self, record: &LoginSession, own: Option<ProviderToken>) -> Option<ProviderToken> {
        let Some(store) = self.store() else { return own };
        match Self::take_stored(store, record, record.generation()).await {
            Ok(Some(latest)) => refresh_token(&latest).or(own),
            // No other instance can have a record that was never written.
            Ok(None) => own.filter(|_| !self.is_saved(record)),
            Err(error) => {
                warn_record_stays(&error);
                own
            }
        }
    }

    /// Removes the record of a session that has ended from the store. Returns what the store had, if its generation is at
    /// least `least`. A renewal at another instance is awaited.
    async fn take_stored(
        store: &Arc<dyn SessionStore>,
        record: &LoginSession,
        least: u64,
    ) -> Result<Option<RecordContent>, StoreUnavailable> {
        let key = record.record_key()?;
        let holder = random()?;
        let deadline = Instant::now() + LOCK_WAIT;
        while !store.lock(key.name(), holder).await? && Instant::now() < deadline {
            sleep(POLL).await;
        }
        let stored = Self::stored(&**store, &key, least).await?;
        store.remove(key.name()).await?;
        store.unlock(key.name(), holder).await?;
        Ok(stored.record.map(|(_, content)| content))
    }

    /// Removes the record of a session whose end has been recorded, here and from the store.
    pub fn forget_shared(&self, id: &str) {
        if let Some(known) = self.forget(id) {
            self.discard(&known);
        }
    }

    /// Removes the record of a session that has ended from the store, in the background.
    pub(super) fn discard(&self, record: &LoginSession) {
        let (Some(store), Ok(key)) = (self.store(), record.record_key()) else { return };
        let store = Arc::clone(store);
        tokio::spawn(async move {
            // A record that remains has no effect: the session has ended.
            let _ = store.remove(key.name()).await;
        });
    }

    /// Returns whether a record could not be written since the last call.
    pub fn take_unsaved(&self) -> bool {
        self.sharing.has_unsaved.swap(false, Ordering::AcqRel)
    }

    /// Writes every record that the store lacks, or has with an older generation. Returns their number.
    ///
    /// # Errors
    /// Returns an error when the store cannot be used.
    pub async fn write_back(&self) -> Result<usize, StoreUnavailable> {
        let Some(store) = self.store() else { return Ok(0) };
        let now = unix_seconds();
        let records: Vec<Arc<LoginSession>> =
            self.lock().values().filter(|record| record.ends_at > now).map(Arc::clone).collect();
        let mut count = 0;
        for chunk in records.chunks(CHUNK) {
            let named: Vec<(Digest, &Arc<LoginSession>)> =
                (chunk.iter()).filter_map(|record| Some((record.record_key().ok()?.name(), record))).collect();
            let found = store.generations(named.iter().map(|(name, _)| *name).collect()).await?;
            let mut lacking = Vec::new();
            for ((_, record), stored) in named.iter().zip(found) {
                if stored.is_none_or(|stored| stored < record.generation()) && !self.is_ended(record) {
                    lacking.push(*record);
                }
            }
            for some in lacking.chunks(WRITES) {
                for written in join_all(some.iter().map(|record| self.write(record, None))).await {
                    let written =
                        written.ok_or_else(|| StoreUnavailable("a record could not be written".to_owned()))?;
                    count += usize::from(written == Written::Stored);
                }
            }
        }
        Ok(count)
    }

    /// Returns whether a sign-in of this name is completed for the first time at any instance. If the store does not
    /// answer it counts as the first: code, PKCE and cookie protect it too.
    pub(in crate::auth::login) async fn is_first_use(&self, name: Digest, life: Duration) -> bool {
        let Some(store) = self.store() else { return true };
        store.use_once(name, life).await.unwrap_or_else(|error| {
            tracing::warn!(reason = %error, "whether a sign-in was completed at another instance is not known");
            true
        })
    }
}
