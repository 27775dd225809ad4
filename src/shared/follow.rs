//! Following the log: each message is verified and taken as it comes.

use std::convert::Infallible;

use redis::{Value, cmd};
use tokio::time::Instant;

use super::copy::message_id;
use super::engine::{Connection, EngineError};
use super::message::{Beat, Message};
use super::peers::Heard;
use super::state::{BLOCK_MILLIS, Inner, StreamId};
use crate::auth::{unix_millis, unix_seconds};

/// Messages that are read at once.
const COUNT: usize = 500;
/// No message of ours is longer.
const MESSAGE_BYTES: usize = 4_096;
/// How far the engine's clock may be ahead and be believed.
const MOST_LEAD: u64 = 60_000;
/// Questions that are answered; whoever asks more often is answered less.
const QUESTIONS: usize = 64;

impl Inner {
    /// Reads the log from this message on.
    pub(super) async fn follow(
        &self,
        mut connection: Connection,
        mut cursor: StreamId,
    ) -> Result<Infallible, EngineError> {
        self.lock().cursor = cursor;
        let key = self.key("log");
        loop {
            let mut read = cmd("XREAD");
            read.arg("COUNT").arg(COUNT).arg("BLOCK").arg(BLOCK_MILLIS);
            read.arg("STREAMS").arg(&key).arg(cursor.to_string());
            let found: Value = connection.ask(&read).await?;
            let mut has_changed = false;
            for message in messages(&found) {
                let Some(id) = message_id(message) else { continue };
                cursor = cursor.max(id);
                has_changed |= content(message).is_some_and(|sealed| self.hear(id, sealed));
            }
            self.lock().cursor = cursor;
            if has_changed {
                (self.notify)();
            }
        }
    }

    /// Takes a message; returns whether something is revoked by it that was not.
    fn hear(&self, id: StreamId, sealed: &[u8]) -> bool {
        let opened = (sealed.len() <= MESSAGE_BYTES).then(|| self.codes.open(sealed)).flatten();
        let Some(message) = opened.and_then(Message::read) else {
            self.metrics.shared.refused(1);
            if let Some(beat) = Message::foreign_beat(sealed).filter(|_| sealed.len() <= MESSAGE_BYTES) {
                self.peers.heard_foreign(beat);
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
            Message::Beat(beat) => {
                self.hear_beat(id, beat);
                false
            }
            Message::LoadAgain => {
                self.want_load();
                false
            }
            Message::Open { .. } | Message::Taken { .. } => false,
        }
    }

    fn hear_beat(&self, id: StreamId, beat: Beat) {
        if beat.instance == self.instance {
            self.hear_own_beat(id, beat.number);
        }
        let is_own = beat.instance == self.instance;
        let ours = self.revocations.copy_digest(beat.minute);
        let heard = self.peers.heard(beat, ours, unix_millis());
        if is_own || heard == Heard::Ignored {
            return;
        }
        let mut progress = self.lock();
        let is_complete = progress.is_complete;
        match heard {
            Heard::Same | Heard::Differs(_) => progress.complete_peer = Some(Instant::now()),
            Heard::Asks { is_same } => {
                progress.wants_beat |= is_complete;
                progress.wants_load |= is_complete && !is_same;
            }
            Heard::Ignored => {}
        }
        progress.wants_comparison |= matches!(heard, Heard::Differs(times) if times >= 2);
        drop(progress);
        if heard == Heard::Same {
            self.set_complete("another instance has the same");
        }
        self.attention.notify_one();
    }

    /// Whoever reads back its own message has read all that came before it.
    fn hear_own_beat(&self, id: StreamId, number: u64) {
        let mut progress = self.lock();
        let Some(at) = progress.beats.iter().position(|(known, _)| *known == number) else { return };
        let (_, written) = progress.beats[at];
        progress.beats.drain(..=at);
        progress.fresh = progress.fresh.max(Some(written));
        drop(progress);
        self.revocations.set_clock_lead(id.0.saturating_sub(unix_millis()).min(MOST_LEAD));
        self.set_gate();
    }
}

/// The messages of an answer to `XREAD` of one stream.
pub(super) fn messages(answer: &Value) -> &[Value] {
    let Value::Array(streams) = answer else { return &[] };
    let Some(Value::Array(stream)) = streams.first() else { return &[] };
    let Some(Value::Array(messages)) = stream.get(1) else { return &[] };
    messages
}

/// What a message holds, if it is one of ours.
pub(super) fn content(message: &Value) -> Option<&[u8]> {
    let Value::Array(parts) = message else { return None };
    let Value::Array(fields) = parts.get(1)? else { return None };
    match &fields[..] {
        [Value::BulkString(name), Value::BulkString(content)] if name == b"m" => Some(content),
        _ => None,
    }
}
