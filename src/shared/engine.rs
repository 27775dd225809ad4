//! Connections to the engine: by plain TCP or TLS, to the master that Sentinels name, or to the node of a cluster that
//! holds the proxy's keys (they share one hash tag, so that it is one node).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, Value, cmd,
};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::task::AbortOnDropHandle;

use super::bounded::{Bounded, Stream, TOO_LONG};
use crate::auth::read_small_file;
use crate::config::{FILE_BYTES, Time};
use crate::http::tls_client;
use crate::policy::{EngineAddress, SharedSpec};
use crate::random::NoRandomNumbers;

/// The timeout for a connection, including TLS, Sentinels and the search for a cluster's node.
const CONNECT: Duration = Duration::from_secs(5);
/// The maximum number of parts into which [`CONNECT`] is divided where there are several addresses: one for each of them,
/// and one for the engine that they name.
const MOST_SHARES: u32 = 5;
/// The maximum number of characters of an engine's error that are shown.
const SHOWN: usize = 200;

/// What the engine answers to a write when its memory is full, behind its code.
const FULL: &str = "command not allowed when used memory > 'maxmemory'";

/// The reason why the engine could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No connection to an address.
    #[error("{address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// No connection in time.
    #[error("no connection within {}", Time(*.0))]
    ConnectTimeout(Duration),
    /// No answer in time.
    #[error("no answer within {}", Time(*.0))]
    Timeout(Duration),
    /// The password cannot be read.
    #[error("shared.password_file: {0}")]
    Password(String),
    /// TLS cannot be used.
    #[error("shared: {0}")]
    Tls(String),
    /// No key can be derived from a secret.
    #[error("shared: no key can be derived from its secret; write another one to shared.secret_file")]
    UnusableSecret,
    /// An instance or a message gets no random id.
    #[error("shared: {0}")]
    NoRandomNumbers(#[from] NoRandomNumbers),
    /// One answer is longer than any should be.
    #[error("an answer of the engine is too long")]
    AnswerTooLong,
    /// The engine has no memory for what is written. It still answers what is read.
    #[error("the engine is full, raise its maxmemory: {0}")]
    Full(String),
    /// The engine refused a command, or the connection ended.
    #[error("{0}")]
    Refused(String),
    /// The engine holds more than may be loaded.
    #[error(
        "the copy of the shared revocations is larger than {0} bytes; raise limits.revocations and limits.sign_outs, or remove what others wrote into its keys"
    )]
    TooLarge(usize),
    /// A key cannot be used, and this user may not remove it.
    #[error("{key} is {reason} and could not be removed: {error}; delete it")]
    Unusable {
        /// The key.
        key: String,
        /// The reason why it cannot be used.
        reason: &'static str,
        /// The engine's answer.
        error: String,
    },
    /// Neither Sentinels nor cluster nodes have an address to connect to.
    #[error("{0}")]
    NotFound(String),
}

impl From<RedisError> for EngineError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some(TOO_LONG) {
            return Self::AnswerTooLong;
        }
        // The text comes from the engine, so it is truncated and cleaned.
        let shown: String = error.to_string().chars().take(SHOWN).filter(|c| !c.is_control()).collect();
        // The errors of a script and of several commands have the code in other places.
        if shown.contains(FULL) { Self::Full(shown) } else { Self::Refused(shown) }
    }
}

/// The settings of connections to the engine.
pub(super) struct Engine {
    spec: SharedSpec,
    tls: Option<TlsConnector>,
}

impl Engine {
    pub(super) fn new(spec: &SharedSpec) -> Result<Self, EngineError> {
        let tls = spec.tls.as_ref().map(|tls| tls_client(tls.authority.as_ref(), &[]));
        Ok(Self { spec: spec.clone(), tls: tls.transpose().map_err(EngineError::Tls)? })
    }

    /// Connects. A command on this connection may take as long as `limit`.
    pub(super) async fn connect(&self, limit: Duration) -> Result<EngineConnection, EngineError> {
        let connecting = async {
            match &self.spec.sentinel {
                Some(master) => self.by_sentinel(master, limit).await,
                None if self.spec.is_cluster => self.in_cluster(limit).await,
                None => match self.spec.addresses.first() {
                    Some(address) => self.open(address, limit, true).await,
                    None => Err(EngineError::NotFound("shared.url names no address".to_owned())),
                },
            }
        };
        timeout(CONNECT, connecting).await.map_err(|_| EngineError::ConnectTimeout(CONNECT))?
    }

    /// Gives an attempt at one of several addresses its share of [`CONNECT`]: a host that is down does not answer at all,
    /// and must not take the time of those behind it.
    async fn in_share<T>(
        &self,
        address: &EngineAddress,
        attempt: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        if self.spec.addresses.len() < 2 {
            return attempt.await;
        }
        let share = CONNECT / u32::try_from(self.spec.addresses.len() + 1).unwrap_or(u32::MAX).min(MOST_SHARES);
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {}", Time(share)));
        let late = |_| EngineError::Connect { address: address.to_string(), source: late() };
        timeout(share, attempt).await.map_err(late)?
    }

    async fn by_sentinel(&self, master: &str, limit: Duration) -> Result<EngineConnection, EngineError> {
        let mut last = None;
        for address in &self.spec.addresses {
            match self.in_share(address, self.master_of(address, master)).await {
                Ok(found) => {
                    let mut connection = self.open(&found, limit, true).await?;
                    let role: Vec<Value> = connection.ask(&cmd("ROLE")).await?;
                    if role.first().and_then(text).as_deref() == Some("master") {
                        return Ok(connection);
                    }
                    last = Some(EngineError::NotFound(format!("{found} is not the master that a Sentinel says it is")));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| EngineError::NotFound("shared.url names no Sentinel".to_owned())))
    }

    async fn master_of(&self, sentinel: &EngineAddress, master: &str) -> Result<EngineAddress, EngineError> {
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        // Sentinels have passwords of their own, or none.
        let asked = match self.open(sentinel, self.spec.timeout, false).await {
            Ok(mut connection) => connection.ask::<Value>(&question).await,
            Err(error) => Err(error),
        };
        let answer = match asked {
            Err(EngineError::Refused(reason)) if reason.contains("NOAUTH") => {
                self.open(sentinel, self.spec.timeout, true).await?.ask(&question).await?
            }
            other => other?,
        };
        let unknown = || EngineError::NotFound(format!("the Sentinel {sentinel} knows no master named {master}"));
        let Value::Array(parts) = answer else { return Err(unknown()) };
        let [host, port] = &parts[..] else { return Err(unknown()) };
        let port = text(port).and_then(|port| port.parse().ok()).ok_or_else(unknown)?;
        Ok(EngineAddress { host: text(host).ok_or_else(unknown)?, port })
    }

    async fn in_cluster(&self, limit: Duration) -> Result<EngineConnection, EngineError> {
        let mut last = None;
        for address in &self.spec.addresses {
            match self.in_share(address, self.node_from(address)).await {
                Ok(found) if found == *address => return self.open(&found, limit, true).await,
                Ok(found) => match self.in_share(&found, self.open(&found, limit, true)).await {
                    Ok(connection) => return Ok(connection),
                    // The node that was asked may not have noticed yet that this one is gone.
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| EngineError::NotFound("shared.url names no cluster node".to_owned())))
    }

    /// Returns the master of the keys' slot, according to one node.
    async fn node_from(&self, address: &EngineAddress) -> Result<EngineAddress, EngineError> {
        let mut connection = self.open(address, self.spec.timeout, true).await?;
        let mut question = cmd("CLUSTER");
        question.arg("KEYSLOT").arg(key(&self.spec.name, "log"));
        let slot: i64 = connection.ask(&question).await?;
        let mut question = cmd("CLUSTER");
        question.arg("SLOTS");
        let ranges: Vec<Value> = connection.ask(&question).await?;
        let found = ranges.iter().find_map(|range| {
            let Value::Array(range) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = &range[..] else { return None };
            let [host, Value::Int(port), ..] = &node[..] else { return None };
            let port = u16::try_from(*port).ok()?;
            // A node without a known name leaves it out.
            let host = text(host).filter(|host| !host.is_empty()).unwrap_or_else(|| address.host.clone());
            (*first <= slot && slot <= *last).then_some(EngineAddress { host, port })
        });
        found.ok_or_else(|| EngineError::NotFound(format!("{address} knows no cluster node for slot {slot}")))
    }

    async fn open(
        &self,
        address: &EngineAddress,
        limit: Duration,
        login: bool,
    ) -> Result<EngineConnection, EngineError> {
        let failed = |source| EngineError::Connect { address: address.to_string(), source };
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(failed)?;
        // The connection has small commands, each of which is awaited.
        let _ = tcp.set_nodelay(true);
        let local = tcp.local_addr().map_err(failed)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name =
                    ServerName::try_from(address.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
                Box::new(tls.connect(name, tcp).await.map_err(failed)?)
            }
        };
        let bounded = Bounded::new(stream);
        // The protocol that long texts are left out of.
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name().set_protocol(ProtocolVersion::RESP2);
        if let Some(file) = self.spec.password_file.as_ref().filter(|_| login) {
            let read = read_small_file(file, FILE_BYTES).await;
            let password = read.map_err(|error| EngineError::Password(error.to_string()))?;
            let password =
                password.ok_or_else(|| EngineError::Password(format!("is larger than {FILE_BYTES} bytes")))?;
            info = info.set_password(password.trim_end_matches(['\r', '\n']));
            if let Some(username) = &self.spec.username {
                info = info.set_username(username);
            }
        }
        // The timeout is set here, since the crate's would end a blocking read.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, bounded, config).await?;
        let driver = Arc::new(AbortOnDropHandle::new(tokio::spawn(driver)));
        Ok(EngineConnection { connection, limit, local, _driver: driver })
    }
}

/// A connection. Clones share it; their commands are answered in the order in which they were sent.
#[derive(Clone)]
pub(super) struct EngineConnection {
    connection: MultiplexedConnection,
    limit: Duration,
    /// This side's address.
    pub(super) local: SocketAddr,
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl EngineConnection {
    /// Sends a command and waits for its answer.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, EngineError> {
        let asked = command.query_async(&mut self.connection);
        Ok(timeout(self.limit, asked).await.map_err(|_| EngineError::Timeout(self.limit))??)
    }

    /// Sends commands together and waits for their answers.
    pub(super) async fn ask_all<T: FromRedisValue>(&mut self, commands: &Pipeline) -> Result<T, EngineError> {
        let asked = commands.query_async(&mut self.connection);
        Ok(timeout(self.limit, asked).await.map_err(|_| EngineError::Timeout(self.limit))??)
    }

    /// Returns the same connection with another timeout.
    pub(super) fn with_limit(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }
}

/// Returns the name of a key. The braces keep all keys on one node of a cluster.
pub(super) fn key(name: &str, what: &str) -> String {
    format!("{{vestibule:{name}}}:{what}")
}

/// Returns a text from a reply of the engine.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Binds an address that does not answer: the queue of its listener is full, so that the system drops what comes.
    fn silent() -> (socket2::Socket, Vec<std::net::TcpStream>, SocketAddr) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("made");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
        listener.listen(0).expect("listens");
        let address = listener.local_addr().expect("address").as_socket().expect("of IPv4");
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
        }
        (listener, queued, address)
    }

    /// Answers as a Sentinel that names itself as the master, and as that master.
    async fn serve(listener: TcpListener) {
        let port = listener.local_addr().expect("address").port().to_string();
        let master = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let master = master.clone();
            tokio::spawn(async move {
                let mut read = [0; 1_024];
                while let Ok(length @ 1..) = stream.read(&mut read).await {
                    let asked = String::from_utf8_lossy(&read[..length]);
                    let answer = if asked.contains("SENTINEL") { &master } else { "*1\r\n$6\r\nmaster\r\n" };
                    stream.write_all(answer.as_bytes()).await.expect("taken");
                }
            });
        }
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_those_behind_it() {
        let (_listener, _queued, silent) = silent();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let answering = listener.local_addr().expect("address");
        let _serving = AbortOnDropHandle::new(tokio::spawn(serve(listener)));
        let yaml = format!(
            "upstream: http://127.0.0.1:1\nroutes: [{{ path: /**, auth: none }}]\n\
             browser: {{ session: {{ secret: {:?} }} }}\n\
             shared: {{ url: [\"redis://{silent}\", \"redis://{answering}\"], sentinel: mymaster }}\n",
            "0123456789abcdef".repeat(4)
        );
        let config = crate::config::load_yaml(&yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let engine = Engine::new(policy.shared.as_ref().expect("shared")).expect("made");
        engine.connect(Duration::from_secs(1)).await.map(|_| ()).expect("connected");
    }
}
