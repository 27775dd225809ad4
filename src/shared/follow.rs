//! Follows the log: verifies and applies each message.

use std::convert::Infallible;

use redis::{Value, cmd};
use tokio::time::Instant;

use super::engine::{EngineConnection, EngineError};
use super::message::{Heartbeat, Message};
use super::peers::Comparison;
use super::state::{BLOCK_MILLIS, Inner, TOO_LONG, UNVERIFIED};
use super::stream::{StreamId, content, message_id, messages};
use crate::auth::{unix_millis, unix_seconds};

/// The maximum number of messages that are read at once.
const COUNT: usize = 500;
/// The maximum length of a message in bytes.
const MESSAGE_BYTES: usize = 4_096;
/// The maximum time in milliseconds by which the engine's clock may be ahead.
pub(super) const MOST_LEAD: u64 = 60_000;
/// The maximum number of questions that wait for an answer. Further ones are ignored.
const QUESTIONS: usize = 64;

impl Inner {
    /// Reads the log from this message on.
    pub(super) async fn follow(
        &self,
        mut connection: EngineConnection,
        mut cursor: StreamId,
    ) -> Result<Infallible, EngineError> {
        self.lock().cursor = cursor;
        let key = self.key("log");
        let mut count = COUNT;
        loop {
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(count).arg("BLOCK").arg(BLOCK_MILLIS);
            read.arg("STREAMS").arg(&key).arg(cursor.to_string());
            let found: Value = match connection.ask(&read).await {
                Err(EngineError::AnswerTooLong) => {
                    cursor = self.skip(&mut connection, &mut count).await?.unwrap_or(cursor);
                    continue;
                }
                found => found?,
            };
            count = (count * 2).min(COUNT);
            let mut has_changed = false;
            for message in messages(&found) {
                let Some(id) = message_id(message) else { continue };
                cursor = cursor.max(id);
                let Some(sealed) = content(message) else {
                    self.refuse(1, TOO_LONG);
                    continue;
                };
                has_changed |= self.apply(id, sealed);
            }
            self.lock().cursor = cursor;
            if has_changed {
                self.login_sessions.note_sign_outs();
                (self.notify)();
            }
        }
    }

    /// Reduces the number of messages that are read at once, after an answer that was too long. Where one message was too long,
    /// returns the place behind it and requests a load, since the hash has the entries in between.
    async fn skip(
        &self,
        connection: &mut EngineConnection,
        count: &mut usize,
    ) -> Result<Option<StreamId>, EngineError> {
        if std::mem::replace(count, 1) > 1 {
            return Ok(None);
        }
        self.refuse(1, TOO_LONG);
        let position = self.write_position(connection).await?;
        self.want_load();
        Ok(Some(position))
    }

    /// Applies a message. Returns whether it revokes something that was not revoked.
    fn apply(&self, id: StreamId, sealed: &[u8]) -> bool {
        let opened = (sealed.len() <= MESSAGE_BYTES).then(|| self.codes.open(sealed)).flatten();
        let Some(message) = opened.and_then(Message::read) else {
            self.refuse(1, UNVERIFIED);
            if let Some(heartbeat) = Message::foreign_heartbeat(sealed).filter(|_| sealed.len() <= MESSAGE_BYTES) {
                self.peers.record_foreign(heartbeat);
            }
            return false;
        };
        match message {
            Message::Entry(entry, question) => {
                let has_changed = self.revocations.merge(&entry, unix_seconds());
                if let Some(question) = question {
                    let mut progress = self.lock();
                    if progress.questions.len() < QUESTIONS {
                        progress.questions.push(question);
                    }
                    drop(progress);
                    self.attention.notify_one();
                }
                has_changed
            }
            Message::Heartbeat(heartbeat) => {
                self.apply_heartbeat(id, heartbeat);
                false
            }
            Message::LoadAgain => {
                self.want_load();
                false
            }
            Message::Open { .. } | Message::Taken { .. } | Message::Position => false,
        }
    }

    fn apply_heartbeat(&self, id: StreamId, heartbeat: Heartbeat) {
        if heartbeat.instance == self.instance {
            self.apply_own_heartbeat(id, heartbeat.number);
        }
        let is_own = heartbeat.instance == self.instance;
        let ours = self.revocations.copy_digest(heartbeat.minute);
        let asked_by_it = heartbeat.question;
        let asked_here = self.lock().question;
        let comparison = self.peers.record(heartbeat, ours, unix_millis(), asked_here);
        if is_own || comparison == Comparison::Ignored {
            return;
        }
        let mut progress = self.lock();
        let is_complete = progress.is_complete;
        if let Comparison::Starting { is_same } = comparison
            && is_complete
        {
            progress.wants_heartbeat = true;
            progress.wants_load |= !is_same;
            let is_new = asked_by_it != 0 && !progress.starting.contains(&asked_by_it);
            if is_new && progress.starting.len() < QUESTIONS {
                progress.starting.push(asked_by_it);
            }
        }
        progress.wants_comparison |= matches!(comparison, Comparison::Differs(times) if times >= 2);
        drop(progress);
        self.attention.notify_one();
    }

    /// Processes an own heartbeat that was read back: every message before it has been read.
    fn apply_own_heartbeat(&self, id: StreamId, number: u64) {
        let mut progress = self.lock();
        let Some(at) = progress.unread_heartbeats.iter().position(|(known, _)| *known == number) else { return };
        let (_, written) = progress.unread_heartbeats[at];
        progress.unread_heartbeats.drain(..=at);
        if !progress.has_gap {
            progress.fresh = progress.fresh.max(Some(written));
        }
        if !progress.is_complete {
            progress.asked.get_or_insert_with(Instant::now);
        }
        drop(progress);
        self.revocations.set_clock_lead(id.0.saturating_sub(unix_millis()).min(MOST_LEAD));
        self.set_gate();
    }
}
