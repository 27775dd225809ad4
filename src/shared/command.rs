//! What a command of the program does with the shared state, from any place that can reach the engine: it writes one
//! entry and waits for the instances that have applied it, or checks whether the engine is suitable.

use std::collections::HashSet;
use std::time::Duration;

use redis::{Value, cmd, pipe};
use tokio::time::Instant;

use super::engine::{Engine, EngineConnection, EngineError, key, text};
use super::follow::MOST_LEAD;
use super::message::{Codes, Message};
use super::session_store::probe as probe_sessions;
use super::stream::{StreamId, content, message_id, messages};
use crate::auth::{Inspection, SharedEntry, unix_millis};
use crate::policy::SharedSpec;
use crate::random::random;

/// The time that the answers of the running instances are awaited.
const ANSWERS: Duration = Duration::from_secs(2);
/// The time in milliseconds since its last heartbeat within which an instance counts as running.
const LIVE_MILLIS: u64 = 16_000;
/// The number of the last messages that are searched for heartbeats.
const MESSAGES: usize = 2_000;
/// The difference of clocks in milliseconds above which revocations take effect too early or too late.
const CLOCKS: u64 = 5_000;

/// The number of instances that have applied an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of running instances that reported it.
    pub taken: usize,
    /// The running instances.
    pub live: usize,
}

/// Writes an entry, and waits for a short time until the running instances report that they have applied it.
///
/// # Errors
/// Where it could not be written.
pub async fn write_entry(
    spec: &SharedSpec,
    limit: usize,
    entry: impl FnOnce(u64) -> SharedEntry,
) -> Result<Written, EngineError> {
    let codes = Codes::new(&spec.secrets, &spec.name)?;
    let engine = Engine::new(spec)?;
    let mut connection = engine.connect(spec.timeout.max(ANSWERS * 2)).await?;
    let live = live(spec, &codes, &mut connection).await?;
    let clock = clock(&mut connection).await?;
    let ours = unix_millis();
    let entry = entry(clock.clamp(ours, ours.saturating_add(MOST_LEAD)));
    let question = random()?;
    let log = key(&spec.name, "log");
    let mut writes = pipe();
    writes.atomic();
    writes.cmd("HSET").arg(key(&spec.name, "revoked")).arg(&entry.name()[..]).arg(codes.seal_entry(&entry)).ignore();
    writes.cmd("XADD").arg(&log).arg("MAXLEN").arg("~").arg(limit).arg("*");
    writes.arg("m").arg(codes.seal(Message::Entry(entry, Some(question)).bytes()));
    let ids: Vec<String> = connection.ask_all(&writes).await?;
    let mut cursor = ids.first().and_then(|id| StreamId::read(id)).unwrap_or_default();
    let mut taken = HashSet::new();
    let end = Instant::now() + ANSWERS;
    while taken.len() < live.len() && Instant::now() < end {
        let mut read = cmd("XREAD");
        let left = end.saturating_duration_since(Instant::now()).as_millis().clamp(1, 2_000);
        read.arg("COUNT").arg(500).arg("BLOCK").arg(u64::try_from(left).unwrap_or(1));
        read.arg("STREAMS").arg(&log).arg(cursor.to_string());
        // The entry is written, so missing answers are no failure.
        let Ok(found) = connection.ask::<Value>(&read).await else { break };
        for message in messages(&found) {
            cursor = message_id(message).unwrap_or(cursor).max(cursor);
            let message = content(message).and_then(|sealed| codes.open(sealed)).and_then(Message::read);
            if let Some(Message::Taken { question: answered, instance }) = message
                && answered == question
            {
                taken.insert(u128::from_le_bytes(instance));
            }
        }
    }
    Ok(Written { taken: taken.len(), live: live.len().max(taken.len()) })
}

/// Checks whether the engine is suitable: whether it keeps what is written, its version, its clock.
pub async fn inspect(spec: &SharedSpec, has_logins: bool, inspection: &mut Inspection) {
    if let Err(error) = look(spec, has_logins, inspection).await {
        inspection.problems.push(error.to_string());
    }
}

async fn look(spec: &SharedSpec, has_logins: bool, inspection: &mut Inspection) -> Result<(), EngineError> {
    let codes = Codes::new(&spec.secrets, &spec.name)?;
    let mut connection = Engine::new(spec)?.connect(spec.timeout).await?;
    let begun = Instant::now();
    let probe = random().map(u128::from_le_bytes).unwrap_or_default().to_string();
    let mut both = pipe();
    both.cmd("SET").arg(key(&spec.name, "check")).arg(&probe).arg("PX").arg(60_000).ignore();
    both.cmd("GET").arg(key(&spec.name, "check"));
    let found: Vec<Value> = connection.ask_all(&both).await?;
    if found.first().and_then(text).as_deref() != Some(&*probe) {
        inspection.problems.push("what was written was not read back".to_owned());
    }
    inspection.found.push(format!("writes and reads in {} ms", begun.elapsed().as_millis()));
    if has_logins {
        let id = random().unwrap_or_default();
        match probe_sessions(&spec.name, spec.timeout, connection.clone(), id).await {
            Ok(()) => inspection.found.push("keeps sessions that begin with a sign-in".to_owned()),
            Err(error) => inspection.problems.push(format!(
                "sessions that begin with a sign-in cannot be kept: {error}; docs/shared-state.md lists the rights that its user needs"
            )),
        }
    }
    inspection.found.push(if spec.tls.is_some() { "TLS: yes".to_owned() } else { "TLS: no".to_owned() });
    let clock = clock(&mut connection).await?;
    let apart = clock.abs_diff(unix_millis());
    if apart > CLOCKS {
        inspection.problems.push(format!("its clock and this one differ by {} s; synchronize them", apart / 1_000));
    }
    let mut info = String::new();
    for section in ["server", "memory"] {
        let part: String = connection.ask(cmd("INFO").arg(section)).await?;
        info.push_str(&part);
    }
    let value = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|value| value.trim().to_owned())
    };
    for (name, field, least) in [("Valkey", "valkey_version", (7, 2)), ("Redis", "redis_version", (6, 2))] {
        let Some(version) = value(field) else { continue };
        let shown: String = version.chars().take(20).filter(|c| !c.is_control()).collect();
        let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
        inspection.found.push(format!("{name} {shown}"));
        if (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) < least {
            inspection.problems.push(format!("{name} {shown} is too old; {}.{} is needed", least.0, least.1));
        }
        break;
    }
    match value("maxmemory_policy").as_deref() {
        Some(policy) if policy.starts_with("allkeys") => inspection.problems.push(format!(
            "maxmemory-policy {policy} removes revocations when memory is short, and revoked tokens are accepted again; set noeviction"
        )),
        Some(policy) if policy.starts_with("volatile") => inspection.found.push(format!(
            "warning: maxmemory-policy is {policy}: revocations stay, but entries that expire are removed when memory is short; noeviction is better"
        )),
        Some("noeviction") => inspection.found.push("maxmemory-policy noeviction".to_owned()),
        _ => inspection.found.push("its maxmemory-policy cannot be seen; it must be noeviction".to_owned()),
    }
    let live = live(spec, &codes, &mut connection).await?;
    inspection.found.push(format!("{} running instances", live.len()));
    Ok(())
}

/// Returns the engine's clock, in milliseconds since the epoch.
async fn clock(connection: &mut EngineConnection) -> Result<u64, EngineError> {
    let (seconds, micros): (u64, u64) = connection.ask(&cmd("TIME")).await?;
    Ok(seconds.saturating_mul(1_000).saturating_add(micros / 1_000))
}

/// Returns the instances with authenticated and recent heartbeats.
async fn live(
    spec: &SharedSpec,
    codes: &Codes,
    connection: &mut EngineConnection,
) -> Result<HashSet<u128>, EngineError> {
    let mut last = cmd("XREVRANGE");
    last.arg(key(&spec.name, "log")).arg("+").arg("-").arg("COUNT").arg(MESSAGES);
    let found: Vec<Value> = connection.ask(&last).await?;
    let now = unix_millis();
    let opened = found.iter().filter_map(content).filter_map(|sealed| Message::read(codes.open(sealed)?));
    // The last heartbeat of each instance comes first, and shows whether the instance stops.
    let mut seen = HashSet::new();
    let last = opened.filter_map(|message| match message {
        Message::Heartbeat(heartbeat) => seen.insert(heartbeat.instance).then_some(heartbeat),
        _ => None,
    });
    let live = last.filter(|heartbeat| heartbeat.at.abs_diff(now) < LIVE_MILLIS && !heartbeat.is_leaving);
    Ok(live.map(|heartbeat| heartbeat.instance).collect())
}
