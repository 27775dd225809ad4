//! The keys for operators: listeners, errors, logs and the shutdown.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// One listener.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Listen {
    /// The listener has this address: address and port, or `unix:/path`.
    pub address: String,
    /// The listener speaks TLS with this certificate. null: plain HTTP.
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

/// A certificate and its key. Both files are read again when they change.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenTls {
    /// This file holds the certificate chain in PEM, the server's certificate first.
    pub certificate_file: Option<String>,
    /// This file holds the private key in PEM.
    pub key_file: Option<String>,
}

/// The listener for operators.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Admin {
    /// The listener has this address and port. `":9180"` is every address of this machine.
    pub listen: Option<String>,
    /// The listener answers to these `Host` names too, in addition to addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// The listener on which revocations and the drain are requested.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Control {
    /// The listener is at `unix:/path` (a Unix socket of mode 0600), or at a loopback address and port, which needs a
    /// token.
    pub listen: Option<String>,
    /// Callers over TCP must send this bearer token, of at least 32 bytes, 8 of them different.
    pub token: Option<String>,
    /// This file holds the token, in place of `token`.
    pub token_file: Option<String>,
    /// This file keeps revocations over a restart. Default: none, and a restart drops them.
    pub revocation_file: Option<String>,
    /// A revocation is in force for this time, which must exceed the life of your longest token, and at least until the
    /// browser sessions that it concerns have ended. At least 1m. Default: `30d`.
    pub revocation_keep: Option<Time>,
}

/// The detail of the answer to a refused token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// The client learns that its token is missing, expired or invalid.
    Generic,
    /// The client learns the reason as well. This is allowed only where every listener is on a loopback address or a
    /// Unix socket, or with `insecure_verbose_errors`.
    Verbose,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// Log lines have this format. A change needs a restart.
    pub format: LogFormat,
    /// Log lines of this level and of the levels above it are written.
    pub level: LogLevel,
    /// If true, a line is written for each request and for each WebSocket at its end.
    pub access: bool,
    /// If true, access lines have the query of the URL. Values of parameters whose names suggest a secret are masked.
    pub query: bool,
    /// Access lines of exactly these paths are written at level `debug` only, unless the answer is a 5xx.
    pub quiet: Vec<String>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            level: LogLevel::Info,
            access: true,
            query: false,
            quiet: vec!["/health".to_owned()],
        }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The format is `pretty` on a terminal, else `json`.
    Auto,
    /// Each line is a JSON object.
    Json,
    /// The lines are for people to read.
    Pretty,
}

/// The level of log lines.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors are logged.
    Error,
    /// Warnings are logged too.
    Warn,
    /// Events of normal operation are logged too, access lines among them.
    Info,
    /// Decisions and their reasons are logged too.
    Debug,
    /// Everything is logged.
    Trace,
}

impl LogLevel {
    /// The name of the level, as the file writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The shutdown after SIGTERM.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Drain {
    /// After SIGTERM the proxy still accepts requests for this time, while `/readyz` already fails, so that a load
    /// balancer can stop sending.
    pub delay: Time,
    /// After the delay, requests and WebSockets have this time to end; then the process exits and drops what is left.
    /// The platform must wait longer than both times together before it kills the process.
    pub timeout: Time,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Time::seconds(0), timeout: Time::seconds(25) }
    }
}
