//! Gives login sessions the connection to the engine, writes their records again when the engine has lost them, and lets
//! those be discarded that have ended at another instance.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::engine::{EngineConnection, EngineError};
use super::session_store::EngineSessions;
use super::state::{Inner, fraction};

/// The interval at which records are looked for that are lost, or have ended.
const LOOK: Duration = Duration::from_secs(1);
/// How often the records in the engine are compared with the ones here, unless the engine has lost its data.
const COMPARE: Duration = Duration::from_secs(60);
/// The time within which one of several instances begins to write the lost records.
const WRITE_BACK: Duration = Duration::from_secs(3);

/// The access of login sessions to their records, until it is dropped.
struct Reachable<'a>(&'a EngineSessions);

impl Drop for Reachable<'_> {
    fn drop(&mut self) {
        self.0.set_connection(None);
    }
}

impl Inner {
    /// Gives login sessions the connection, and lets their records be written again when the engine may have lost them.
    pub(super) async fn keep_login_sessions(&self, connection: EngineConnection) -> Result<Infallible, EngineError> {
        self.engine_sessions.set_connection(Some(connection));
        let _reachable = Reachable(&self.engine_sessions);
        let mut known_epoch = None;
        let mut due = Instant::now() + WRITE_BACK.mul_f64(fraction());
        loop {
            // The epoch changes when the engine has lost its data.
            let epoch = self.lock().epoch.clone();
            if epoch != known_epoch {
                known_epoch = epoch;
                due = Instant::now() + WRITE_BACK.mul_f64(fraction());
            }
            self.login_sessions.discard_signed_out();
            if self.login_sessions.take_unsaved() {
                due = Instant::now();
            }
            if due <= Instant::now() {
                due = Instant::now() + COMPARE.mul_f64(0.5 + fraction());
                match self.login_sessions.write_back().await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "wrote login sessions that the shared state had lost"),
                    Err(error) => {
                        tracing::warn!(reason = %error, "login sessions could not be written to the shared state, retrying");
                        due = Instant::now() + WRITE_BACK;
                    }
                }
            }
            sleep(LOOK).await;
        }
    }
}
