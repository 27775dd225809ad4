//! Publishes to other instances which users were seen here and which have many open sockets, and reads theirs.

use std::convert::Infallible;
use std::time::Duration;

use redis::{Value, cmd};
use tokio::time::{Instant, sleep_until};

use super::engine::{EngineConnection, EngineError, text};
use super::message::Message;
use super::open_sockets::OpenSockets;
use super::peers::CLOCKS;
use super::state::Inner;
use crate::auth::digest::Digest;
use crate::auth::{unix_millis, unix_seconds};

/// The interval at which the seen users are written.
const WRITE: Duration = Duration::from_secs(10);
/// The maximum number of users that are written at once.
const CHUNK: usize = 500;
/// The time in seconds by which another clock may be ahead. A later time is not accepted.
const AHEAD: u64 = 30;
/// The interval at which instances exchange the numbers of open sockets.
const EXCHANGE: Duration = Duration::from_secs(4);
/// The time in milliseconds for which another instance's numbers are in force.
const PUBLISHED_MILLIS: u64 = 30_000;
/// The maximum number of instances that are read.
const INSTANCES: usize = 200;

impl Inner {
    /// Writes the users that were seen here, and reads those whose sockets are due.
    pub(super) async fn keep_presence(&self, mut connection: EngineConnection) -> Result<Infallible, EngineError> {
        let mut write = Instant::now() + WRITE;
        loop {
            tokio::select! {
                () = sleep_until(write) => {
                    write = Instant::now() + WRITE;
                    self.write_seen(&mut connection).await?;
                }
                () = self.presences.asked() => {}
            }
            loop {
                let users = self.presences.unanswered();
                if users.is_empty() {
                    break;
                }
                self.ask_seen(&mut connection, &users).await?;
            }
        }
    }

    async fn write_seen(&self, connection: &mut EngineConnection) -> Result<(), EngineError> {
        let seen = self.presences.take_seen();
        for chunk in seen.users.chunks(CHUNK) {
            let mut write = cmd("ZADD");
            write.arg(self.key("seen")).arg("GT");
            for (user, at) in chunk {
                write.arg(*at).arg(&user.0[..]);
            }
            let _: Value = connection.ask(&write).await?;
        }
        let (longest, has_written) = (self.presences.longest(), !seen.users.is_empty());
        seen.written();
        if has_written && longest > 0 {
            let mut removal = cmd("ZREMRANGEBYSCORE");
            let oldest = unix_seconds().saturating_sub(longest.saturating_mul(2));
            removal.arg(self.key("seen")).arg("-inf").arg(oldest);
            let _: Value = connection.ask(&removal).await?;
        }
        Ok(())
    }

    async fn ask_seen(&self, connection: &mut EngineConnection, users: &[Digest]) -> Result<(), EngineError> {
        let mut question = cmd("ZMSCORE");
        question.arg(self.key("seen"));
        for user in users {
            question.arg(&user.0[..]);
        }
        let answers: Vec<Value> = connection.ask(&question).await?;
        let now = unix_seconds();
        for (user, answer) in users.iter().zip(answers.iter().map(Some).chain(std::iter::repeat(None))) {
            let seen = answer.and_then(text).and_then(|score| score.parse::<u64>().ok());
            // Scores are not authenticated; users of the engine could set any.
            self.presences.answer(*user, seen.filter(|at| *at <= now.saturating_add(AHEAD)).map(|at| at.min(now)));
        }
        Ok(())
    }
}

/// The numbers of other instances during one connection. They are removed when it ends, so that without the engine the
/// local limit is in force.
struct ElsewhereGuard<'a>(&'a OpenSockets);

impl Drop for ElsewhereGuard<'_> {
    fn drop(&mut self) {
        self.0.set_elsewhere(Vec::new());
    }
}

impl Inner {
    /// Publishes the users near the limit, and reads those of other instances.
    pub(super) async fn exchange_open_sockets(
        &self,
        mut connection: EngineConnection,
    ) -> Result<Infallible, EngineError> {
        let guard = ElsewhereGuard(&self.open_sockets);
        loop {
            let next = Instant::now() + EXCHANGE;
            let instances = u32::try_from(self.peers.live(self.instance)).unwrap_or(u32::MAX);
            let near = if instances > 1 { guard.0.near_limit(instances) } else { Vec::new() };
            let had_any = self.set_published_users(near.len());
            if !had_any && !near.is_empty() {
                // Other instances read only from those whose heartbeat announces such users.
                self.lock().wants_heartbeat = true;
                self.attention.notify_one();
            }
            if had_any || !near.is_empty() {
                let message = Message::Open { instance: self.instance, at: unix_millis(), users: near };
                let mut write = cmd("SET");
                write
                    .arg(self.open_key(self.instance))
                    .arg(self.codes.seal(message.bytes()))
                    .arg("PX")
                    .arg(PUBLISHED_MILLIS);
                let _: Value = connection.ask(&write).await?;
            }
            let publishers = self.peers.with_published_users(self.instance, INSTANCES);
            let mut elsewhere = Vec::new();
            if !publishers.is_empty() {
                let mut read = cmd("MGET");
                for publisher in &publishers {
                    read.arg(self.open_key(*publisher));
                }
                let found: Vec<Option<Vec<u8>>> = connection.ask(&read).await?;
                for (publisher, sealed) in publishers.iter().zip(found) {
                    elsewhere.extend(
                        sealed.and_then(|sealed| self.read_open_sockets(*publisher, &sealed)).unwrap_or_default(),
                    );
                }
            }
            guard.0.set_elsewhere(elsewhere);
            sleep_until(next).await;
        }
    }

    /// Reads the numbers of an instance, if they are authenticated, its own and not old.
    fn read_open_sockets(&self, publisher: u128, sealed: &[u8]) -> Option<Vec<(Digest, u32)>> {
        match Message::read(self.codes.open(sealed)?)? {
            Message::Open { instance, at, users }
                if instance == publisher && at.abs_diff(unix_millis()) < PUBLISHED_MILLIS + CLOCKS =>
            {
                Some(users)
            }
            _ => None,
        }
    }

    fn open_key(&self, instance: u128) -> String {
        self.key(&format!("open:{instance:032x}"))
    }
}
