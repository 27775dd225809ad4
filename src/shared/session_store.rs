//! The records of login sessions in the engine: a hash for each, with the session's end as its end, a lock for each that is
//! being renewed, and a key for each sign-in that was completed.
//!
//! Names are digests and records are encrypted (`auth::login`). Scripts do what must be atomic. A key of another type,
//! or a value that is too long, was not written by an instance and is replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::{Cmd, FromRedisValue, Pipeline, cmd, pipe};

use super::engine::{EngineConnection, key};
use crate::auth::digest::Digest;
use crate::auth::login::{
    LOCK_LIFE, LockHolder, RecordWrite, SEALED_BYTES, SealedRecord, SessionStore, StoreAnswer, StoreUnavailable,
    Written,
};
use crate::auth::unix_seconds;
use crate::telemetry::Metrics;

/// The time in milliseconds for which no record can be written in place of a removed one.
const REMOVED: u64 = 60_000;

/// Reads a record: its generation and its content. `ARGV[1]` is the longest content.
const READ: &str = "\
local length = redis.pcall('HSTRLEN', KEYS[1], 'r')
if length == 0 then return {} end
if type(length) == 'table' or length > tonumber(ARGV[1]) or redis.call('HSTRLEN', KEYS[1], 'g') > 20 then
  redis.call('DEL', KEYS[1])
  return {'', ''}
end
return redis.call('HMGET', KEYS[1], 'g', 'r')";

/// Writes a record unless there is one of the same or a later generation. `ARGV`: generation, content, end in
/// milliseconds, and the generation of an undecryptable record that is replaced.
const WRITE: &str = "\
local found = redis.pcall('HGET', KEYS[1], 'g')
if type(found) == 'table' then
  redis.call('DEL', KEYS[1])
  found = false
end
if not found and redis.call('HEXISTS', KEYS[1], 'x') == 1 then return 'removed' end
if found and found ~= ARGV[4] and (tonumber(found) or 0) >= tonumber(ARGV[1]) then return 'newer' end
redis.call('HSET', KEYS[1], 'g', ARGV[1], 'r', ARGV[2])
redis.call('PEXPIREAT', KEYS[1], ARGV[3])
return 'stored'";

/// Reads the generations of several records; an empty text for a missing one.
const GENERATIONS: &str = "\
local found = {}
for index, name in ipairs(KEYS) do
  local generation = redis.pcall('HGET', name, 'g')
  found[index] = type(generation) == 'string' and #generation <= 20 and string.match(generation, '^%d+$') or ''
end
return found";

/// Takes a lock. One that ends too late, or never, was not made by an instance and is replaced. `ARGV`: the holder, the
/// lock's duration in milliseconds.
const LOCK: &str = "\
local left = redis.call('PTTL', KEYS[1])
if left == -1 or left > tonumber(ARGV[2]) then redis.call('DEL', KEYS[1]) end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0";

/// Extends a lock, or releases it where `ARGV[2]` is 0, if `ARGV[1]` holds it.
const HOLD: &str = "\
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// The records in the engine, through the current connection.
pub(super) struct EngineSessions {
    /// The deployment's name.
    name: String,
    timeout: Duration,
    metrics: Arc<Metrics>,
    /// The connection; `None` while there is none.
    connection: Mutex<Option<EngineConnection>>,
}

impl EngineSessions {
    pub(super) fn new(name: &str, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { name: name.to_owned(), timeout, metrics, connection: Mutex::default() }
    }

    pub(super) fn set_connection(&self, connection: Option<EngineConnection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn connection(&self) -> Result<EngineConnection, StoreUnavailable> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        connection.ok_or_else(|| StoreUnavailable("there is no connection".to_owned()))
    }

    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, StoreUnavailable> {
        let asked = self.connection()?.ask(&command).await;
        asked.map_err(|error| StoreUnavailable(error.to_string()))
    }

    async fn ask_all<T: FromRedisValue>(&self, commands: Pipeline) -> Result<T, StoreUnavailable> {
        let asked = self.connection()?.ask_all(&commands).await;
        asked.map_err(|error| StoreUnavailable(error.to_string()))
    }

    fn key(&self, what: &str, name: Digest) -> String {
        let name = name.0.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        key(&self.name, &format!("{what}:{name}"))
    }

    /// Makes a call of a script with one key.
    fn script(&self, script: &str, what: &str, name: Digest) -> Cmd {
        let mut call = cmd("EVAL");
        call.arg(script).arg(1).arg(self.key(what, name));
        call
    }

    async fn read_record(&self, name: Digest) -> Result<Option<SealedRecord>, StoreUnavailable> {
        let mut call = self.script(READ, "session", name);
        call.arg(SEALED_BYTES);
        let mut found: Vec<Vec<u8>> = self.ask(call).await?;
        let (Some(sealed), Some(generation)) = (found.pop(), found.pop()) else { return Ok(None) };
        Ok(Some(SealedRecord { generation, sealed }))
    }

    async fn write_record(&self, name: Digest, record: RecordWrite) -> Result<Written, StoreUnavailable> {
        let mut call = self.script(WRITE, "session", name);
        call.arg(record.generation).arg(record.sealed).arg(record.ends_at.saturating_mul(1_000));
        call.arg(record.replaces.unwrap_or_default());
        match self.ask::<String>(call).await?.as_str() {
            "stored" => Ok(Written::Stored),
            "newer" => Ok(Written::Newer),
            "removed" => Ok(Written::Removed),
            other => Err(StoreUnavailable(format!("an unknown answer of {} bytes", other.len()))),
        }
    }
}

impl SessionStore for EngineSessions {
    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn read(&self, name: Digest) -> StoreAnswer<'_, Option<SealedRecord>> {
        async move {
            let read = self.read_record(name).await;
            let outcome = match &read {
                Ok(Some(_)) => "found",
                Ok(None) => "missing",
                Err(_) => "unavailable",
            };
            self.metrics.shared.session_read(outcome);
            read
        }
        .boxed()
    }

    fn write(&self, name: Digest, record: RecordWrite) -> StoreAnswer<'_, Written> {
        async move {
            let written = self.write_record(name, record).await;
            let outcome = match &written {
                Ok(Written::Stored) => "written",
                Ok(Written::Newer | Written::Removed) => "refused",
                Err(_) => "unavailable",
            };
            self.metrics.shared.session_written(outcome);
            written
        }
        .boxed()
    }

    fn remove(&self, name: Digest) -> StoreAnswer<'_, ()> {
        async move {
            let record = self.key("session", name);
            let mut commands = pipe();
            commands.atomic();
            commands.cmd("DEL").arg(&record).ignore();
            commands.cmd("HSET").arg(&record).arg("x").arg(1).ignore();
            commands.cmd("PEXPIRE").arg(&record).arg(REMOVED).ignore();
            self.ask_all(commands).await
        }
        .boxed()
    }

    fn generations(&self, names: Vec<Digest>) -> StoreAnswer<'_, Vec<Option<u64>>> {
        async move {
            if names.is_empty() {
                return Ok(Vec::new());
            }
            let mut call = cmd("EVAL");
            call.arg(GENERATIONS).arg(names.len());
            for name in names {
                call.arg(self.key("session", name));
            }
            let found: Vec<String> = self.ask(call).await?;
            Ok(found.iter().map(|generation| generation.parse().ok()).collect())
        }
        .boxed()
    }

    fn lock(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, bool> {
        async move {
            let mut call = self.script(LOCK, "lock", name);
            call.arg(&holder[..]).arg(lock_millis());
            Ok(self.ask::<i64>(call).await? == 1)
        }
        .boxed()
    }

    fn extend(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, bool> {
        async move {
            let mut call = self.script(HOLD, "lock", name);
            call.arg(&holder[..]).arg(lock_millis());
            Ok(self.ask::<i64>(call).await? == 1)
        }
        .boxed()
    }

    fn unlock(&self, name: Digest, holder: LockHolder) -> StoreAnswer<'_, ()> {
        async move {
            let mut call = self.script(HOLD, "lock", name);
            call.arg(&holder[..]).arg(0);
            self.ask::<i64>(call).await.map(|_| ())
        }
        .boxed()
    }

    fn use_once(&self, name: Digest, life: Duration) -> StoreAnswer<'_, bool> {
        async move {
            let mut set = cmd("SET");
            set.arg(self.key("state", name)).arg(1).arg("NX").arg("EX").arg(life.as_secs().max(1));
            Ok(self.ask::<Option<String>>(set).await?.is_some())
        }
        .boxed()
    }

    fn count_refused(&self) {
        self.metrics.shared.refused(1);
    }
}

/// Runs every command that login sessions need, on records that belong to no session.
///
/// # Errors
/// Returns an error when the engine does not run one of them, for example because its user lacks a right.
pub(super) async fn probe(
    name: &str,
    timeout: Duration,
    connection: EngineConnection,
    id: LockHolder,
) -> Result<(), StoreUnavailable> {
    let store = EngineSessions::new(name, timeout, Arc::default());
    store.set_connection(Some(connection));
    let (name, ends_at) = (Digest(id), unix_seconds().saturating_add(60));
    let record = RecordWrite { generation: 1, sealed: b"check".to_vec(), ends_at, replaces: None };
    store.write(name, record).await?;
    let found = store.read(name).await?;
    if found.is_none_or(|found| found.sealed != b"check") || store.generations(vec![name]).await? != [Some(1)] {
        return Err(StoreUnavailable("a record was not read back".to_owned()));
    }
    store.remove(name).await?;
    let has_lock = store.lock(name, id).await? && store.extend(name, id).await?;
    store.unlock(name, id).await?;
    let is_first = store.use_once(name, Duration::from_secs(1)).await?;
    if has_lock && is_first { Ok(()) } else { Err(StoreUnavailable("a lock could not be taken".to_owned())) }
}

fn lock_millis() -> u64 {
    u64::try_from(LOCK_LIFE.as_millis()).unwrap_or_default()
}
