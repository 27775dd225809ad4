//! The hash in the engine that holds every revocation and sign-out: loads it into this instance's copy, writes the entries
//! that it lacks, and removes expired ones. New entries are written to the hash and appended to the log.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::time::Duration;

use redis::{Value, cmd, pipe};
use tokio::time::Instant;

use super::engine::{EngineConnection, EngineError, text};
use super::message::Message;
use super::outbox::{Name, Outbox, Outgoing};
use super::state::{Inner, RECONNECT, TOO_LONG, UNVERIFIED};
use super::stream::{StreamId, content, message_id};
use crate::auth::{EntryKind, SharedEntry, TIMES_BYTES, unix_seconds};
use crate::random::random;

/// The number of entries in one step of a write.
const CHUNK: usize = 500;
/// The number of entries in one step of a scan. The longest ones of instances are far within the bytes of an answer.
const SCAN: usize = 200;
/// The timeout of one step of a scan.
const STEP: Duration = Duration::from_secs(5);
/// The maximum number of bytes of one loaded entry, field and value; twice as many as an entry has.
const ENTRY_BYTES: usize = 256;
/// The number of bytes that may always be loaded.
const LEAST_BYTES: usize = 16 << 20;
/// The number of messages at the end of the log that are searched for heartbeats, and the number read at once.
const TAIL: usize = 2_000;
const TAIL_STEP: usize = 200;
/// The time in milliseconds before the last heartbeat in which all running instances have sent one.
const GONE_MILLIS: u64 = 16_000;
/// The time in seconds after which expired entries are removed from the engine, for instances whose clocks are behind.
const KEPT: u64 = 3_600;

fn is_epoch(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The result of a load.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// The entries that this instance has and the hash lacked.
    pub(super) missing: Vec<SharedEntry>,
    /// The names of entries that have expired, or are included in another entry.
    pub(super) expired: Vec<Name>,
}

/// Entries of the outbox that are being written. Those that were not written are queued again when this is dropped.
struct InFlight<'a> {
    outbox: &'a Outbox,
    entries: Vec<Outgoing>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.entries.is_empty() {
            self.outbox.put_back(std::mem::take(&mut self.entries));
        }
    }
}

impl Inner {
    /// Prepares a load over a new connection: reads the epoch and, at a starting instance, begins the question to the others.
    /// `position` is the place in the log from which this instance reads.
    pub(super) async fn prepare_load(
        &self,
        connection: &mut EngineConnection,
        position: StreamId,
    ) -> Result<(), EngineError> {
        self.read_epoch(connection).await?;
        if !self.lock().is_complete {
            let question = random()?;
            {
                let mut progress = self.lock();
                progress.question = u128::from_le_bytes(question);
                progress.may_miss_others = false;
            }
            let ran_before = self.instances_before(connection, position).await?;
            if !ran_before.is_empty() {
                tracing::info!(count = ran_before.len(), "waiting for instances that shared through this engine last");
            }
            self.peers.begin_question(ran_before, Instant::now() + RECONNECT);
        }
        Ok(())
    }

    /// Returns the complete instances with heartbeats at the end of the log before this message, except those that have
    /// stopped. After a failover some of them may not be connected yet, and may have entries that the engine has lost.
    /// The end is that of the last heartbeat, however old: while there is no engine none is written.
    async fn instances_before(
        &self,
        connection: &mut EngineConnection,
        position: StreamId,
    ) -> Result<HashSet<u128>, EngineError> {
        let (mut last, mut before) = (None, position);
        let (mut seen, mut complete) = (HashSet::new(), HashSet::new());
        for _ in 0..TAIL / TAIL_STEP {
            let mut step = cmd("XREVRANGE");
            step.arg(self.key("log")).arg(format!("({before}")).arg("-").arg("COUNT").arg(TAIL_STEP);
            let found: Vec<Value> = match connection.ask(&step).await {
                Err(EngineError::AnswerTooLong) => {
                    self.lock().may_miss_others = true;
                    return Ok(complete);
                }
                found => found?,
            };
            for message in &found {
                let Some(id) = message_id(message) else { continue };
                before = before.min(id);
                let opened = content(message).and_then(|sealed| Message::read(self.codes.open(sealed)?));
                let Some(Message::Heartbeat(heartbeat)) = opened else { continue };
                let end = *last.get_or_insert(id.0);
                if end.saturating_sub(id.0) > GONE_MILLIS {
                    return Ok(complete);
                }
                if seen.insert(heartbeat.instance) && heartbeat.is_complete && !heartbeat.is_leaving {
                    complete.insert(heartbeat.instance);
                }
            }
            if found.len() < TAIL_STEP {
                break;
            }
        }
        Ok(complete)
    }

    /// Reads the random number that the engine loses with its data, or writes one where there is none. Returns whether
    /// it has changed.
    pub(super) async fn read_epoch(&self, connection: &mut EngineConnection) -> Result<bool, EngineError> {
        let new = random().map(u128::from_le_bytes).unwrap_or_default();
        let mut commands = pipe();
        commands.cmd("SET").arg(self.key("epoch")).arg(format!("{new:032x}")).arg("NX").ignore();
        commands.cmd("GET").arg(self.key("epoch"));
        let found: Vec<Value> = connection.ask_all(&commands).await?;
        let mut epoch = found.first().and_then(text).filter(|epoch| is_epoch(epoch));
        if epoch.is_none() {
            // Another writer's value does not change when the engine loses its data, so a loss would not be noticed.
            self.refuse(1, "an epoch that no instance wrote");
            let new = format!("{new:032x}");
            let _: Value = connection.ask(cmd("SET").arg(self.key("epoch")).arg(&new)).await?;
            epoch = Some(new);
        }
        let mut progress = self.lock();
        let has_changed = progress.epoch.is_some() && progress.epoch != epoch;
        progress.epoch = epoch;
        Ok(has_changed)
    }

    /// Merges every entry of the hash into the copy, and finds the entries that the hash lacks.
    pub(super) async fn load(&self, connection: &EngineConnection) -> Result<Loaded, EngineError> {
        let mut connection = connection.with_limit(STEP.max(self.spec.timeout));
        let max_bytes = self.limit.saturating_mul(ENTRY_BYTES).max(LEAST_BYTES);
        let (mut bytes, mut unverified, mut too_long, mut has_changed) = (0_usize, 0_u64, 0_u64, false);
        let mut stored: HashMap<Name, [u8; TIMES_BYTES]> = HashMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut step = cmd("HSCAN");
            step.arg(self.key("revoked")).arg(&cursor).arg("COUNT").arg(SCAN);
            let (next, found): (String, Vec<Value>) = connection.ask(&step).await?;
            let now = unix_seconds();
            for pair in found.chunks_exact(2) {
                let [Value::BulkString(field), Value::BulkString(value)] = pair else {
                    too_long += 1;
                    continue;
                };
                bytes = bytes.saturating_add(field.len()).saturating_add(value.len());
                let Some(entry) = self.codes.open_entry(field, value) else {
                    unverified += 1;
                    continue;
                };
                has_changed |= self.revocations.merge(&entry, now);
                stored.insert(entry.name(), entry.times());
            }
            if bytes > max_bytes {
                self.refuse(unverified, UNVERIFIED);
                return Err(EngineError::TooLarge(max_bytes));
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        self.metrics.shared.resynced();
        self.refuse(unverified, UNVERIFIED);
        self.refuse(too_long, TOO_LONG);
        if has_changed {
            self.login_sessions.note_sign_outs();
            (self.notify)();
        }
        self.end_gap();
        Ok(self.compare(&stored))
    }

    /// Compares the entries of the hash with those of the copy.
    fn compare(&self, stored: &HashMap<Name, [u8; TIMES_BYTES]>) -> Loaded {
        let now = unix_seconds();
        let mut loaded = Loaded::default();
        let mut known = HashSet::new();
        for entry in self.revocations.live(now) {
            if stored.get(&entry.name()) != Some(&entry.times()) {
                loaded.missing.push(entry);
            }
            known.insert(entry.name());
        }
        for (name, times) in stored {
            let Some(entry) = SharedEntry::read(name, times) else { continue };
            let is_covered = entry.kind == EntryKind::SignOut && entry.until > now && !known.contains(name);
            if is_covered || entry.until.saturating_add(KEPT) < now {
                loaded.expired.push(*name);
            }
        }
        loaded
    }

    /// Writes the entries that the hash lacked, and notifies the other instances to load it.
    pub(super) async fn write_missing(
        &self,
        connection: &mut EngineConnection,
        missing: &[SharedEntry],
    ) -> Result<(), EngineError> {
        for chunk in missing.chunks(CHUNK) {
            let mut writes = cmd("HSET");
            writes.arg(self.key("revoked"));
            for entry in chunk {
                writes.arg(&entry.name()[..]).arg(self.codes.seal_entry(entry));
            }
            let _: Value = connection.ask(&writes).await?;
        }
        tracing::info!(count = missing.len(), "wrote revocations that the shared state had lost");
        self.append(connection, &Message::LoadAgain).await?;
        Ok(())
    }

    /// Removes entries from the hash.
    pub(super) async fn remove_entries(
        &self,
        connection: &mut EngineConnection,
        names: &[Name],
    ) -> Result<(), EngineError> {
        for chunk in names.chunks(CHUNK) {
            let mut removal = cmd("HDEL");
            removal.arg(self.key("revoked"));
            for name in chunk {
                removal.arg(&name[..]);
            }
            let _: Value = connection.ask(&removal).await?;
        }
        Ok(())
    }

    /// Appends a message to the log and returns its id.
    pub(super) async fn append(
        &self,
        connection: &mut EngineConnection,
        message: &Message,
    ) -> Result<StreamId, EngineError> {
        let mut write = cmd("XADD");
        write.arg(self.key("log")).arg("MAXLEN").arg("~").arg(self.limit).arg("*");
        write.arg("m").arg(self.codes.seal(message.bytes()));
        let id: String = connection.ask(&write).await?;
        StreamId::read(&id).ok_or_else(|| EngineError::Refused("the engine gave no id".to_owned()))
    }

    /// Writes the entries of the outbox to the hash and the log, as they come.
    pub(super) async fn publish(&self, mut connection: EngineConnection) -> Result<Infallible, EngineError> {
        loop {
            loop {
                let mut batch = InFlight { outbox: &self.outbox, entries: self.outbox.take(CHUNK) };
                if batch.entries.is_empty() {
                    break;
                }
                let mut writes = pipe();
                writes.atomic();
                for Outgoing { entry, removed, .. } in &batch.entries {
                    for name in removed {
                        writes.cmd("HDEL").arg(self.key("revoked")).arg(&name[..]).ignore();
                    }
                    let value = self.codes.seal_entry(entry);
                    writes.cmd("HSET").arg(self.key("revoked")).arg(&entry.name()[..]).arg(value).ignore();
                    writes.cmd("XADD").arg(self.key("log")).arg("MAXLEN").arg("~").arg(self.limit).arg("*");
                    writes.arg("m").arg(self.codes.seal(Message::Entry(*entry, None).bytes())).ignore();
                }
                let _: Value = connection.ask_all(&writes).await?;
                for written in std::mem::take(&mut batch.entries) {
                    written.written();
                }
            }
            self.outbox.changed().await;
        }
    }
}
