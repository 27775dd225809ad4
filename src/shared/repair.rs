//! Removes keys of this deployment that have become unusable, whoever made them so: one of the wrong type, a log whose ids
//! are used up. What they held is written again by the instances, as after a loss of the engine's data.

use redis::{Value, cmd, pipe};

use super::engine::{Connection, EngineError};
use super::message::Message;
use super::state::Inner;
use super::stream::StreamId;

/// The keys of a deployment that always have these names, with their types.
const KEYS: [(&str, &str); 4] = [("log", "stream"), ("revoked", "hash"), ("epoch", "string"), ("seen", "zset")];
/// What the engine answers to `XADD` where the last id is the largest one.
const NO_IDS: &str = "exhausted the last possible ID";

impl Inner {
    /// Removes keys of another type than ours.
    pub(super) async fn remove_wrong_types(&self, connection: &mut Connection) -> Result<(), EngineError> {
        let mut types = pipe();
        for (what, _) in KEYS {
            types.cmd("TYPE").arg(self.key(what));
        }
        let found: Vec<String> = match connection.ask_all(&types).await {
            // An engine's user without this right: the command that fails says what is wrong.
            Err(EngineError::Refused(_)) => return Ok(()),
            found => found?,
        };
        for ((what, expected), found) in KEYS.iter().zip(found) {
            if found != *expected && found != "none" {
                self.remove(connection, what, "a key of the wrong type").await?;
            }
        }
        Ok(())
    }

    /// Writes a message to the end of the log and returns its id: what is written from now on is read from there. Whatever
    /// others wrote before need not be read to find that place.
    pub(super) async fn write_position(&self, connection: &mut Connection) -> Result<StreamId, EngineError> {
        match self.tell(connection, &Message::Position).await {
            Err(EngineError::Refused(reason)) if reason.contains(NO_IDS) => {
                self.remove(connection, "log", "a log without further ids").await?;
                self.tell(connection, &Message::Position).await
            }
            position => position,
        }
    }

    async fn remove(&self, connection: &mut Connection, what: &str, reason: &'static str) -> Result<(), EngineError> {
        let key = self.key(what);
        match connection.ask::<Value>(cmd("UNLINK").arg(&key)).await {
            Ok(_) => {
                tracing::warn!(key, reason, "removed a key from the engine of the shared state");
                self.refuse(1, reason);
                Ok(())
            }
            Err(EngineError::Refused(error)) => Err(EngineError::Unusable { key, reason, error }),
            Err(error) => Err(error),
        }
    }
}
