//! Removes keys of this deployment that cannot be used: keys of the wrong type, and a log without further ids. The instances
//! write the entries again, as after a loss of the engine's data.

use redis::{Value, cmd, pipe};

use super::engine::{EngineConnection, EngineError};
use super::message::Message;
use super::state::Inner;
use super::stream::StreamId;

/// The keys of a deployment that always have these names, with their types.
const KEYS: [(&str, &str); 4] = [("log", "stream"), ("revoked", "hash"), ("epoch", "string"), ("seen", "zset")];
/// The text of the engine's answer to `XADD` if the last id is the largest one.
const NO_IDS: &str = "exhausted the last possible ID";

impl Inner {
    /// Removes keys of another type than ours.
    pub(super) async fn remove_wrong_types(&self, connection: &mut EngineConnection) -> Result<(), EngineError> {
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

    /// Appends a message to the log and returns its id, from which this instance reads. Messages of others need not be read
    /// to find the end of the log.
    pub(super) async fn write_position(&self, connection: &mut EngineConnection) -> Result<StreamId, EngineError> {
        match self.append(connection, &Message::Position).await {
            Err(EngineError::Refused(reason)) if reason.contains(NO_IDS) => {
                self.remove(connection, "log", "a log without further ids").await?;
                self.append(connection, &Message::Position).await
            }
            position => position,
        }
    }

    async fn remove(
        &self,
        connection: &mut EngineConnection,
        what: &str,
        reason: &'static str,
    ) -> Result<(), EngineError> {
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
