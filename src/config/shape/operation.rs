//! The keys for operators: listeners, errors, logs and the shutdown.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// One listener.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Listen {
    /// The address and port, or `unix:/path`.
    pub address: String,
    /// The certificate. null: plain HTTP.
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

/// A certificate and its key, which are read again when the files change.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenTls {
    /// The certificate chain, PEM, leaf first.
    pub certificate_file: Option<String>,
    /// The private key, PEM.
    pub key_file: Option<String>,
}

/// The listener for operators.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Admin {
    /// The address and port.
    pub listen: Option<String>,
    /// Further `Host` names that are answered, beside addresses and localhost.
    pub hosts: Vec<String>,
}

/// The listener on which revocations and the drain are requested.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Control {
    /// `unix:/path` (mode 0600), or a loopback address with a token.
    pub listen: Option<String>,
    /// The bearer token that callers over TCP present. At least 32 bytes, 8 of them different.
    pub token: Option<String>,
    /// The file that holds the token, instead.
    pub token_file: Option<String>,
    /// The file that keeps revocations over a restart. null: a restart forgets them.
    pub revocation_file: Option<String>,
    /// How long a revocation is kept. It must exceed the life of your longest token.
    pub revocation_keep: Option<Time>,
}

/// What a client is told about a refused token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// That it is invalid, expired or missing.
    Generic,
    /// Why it was refused; only where every listener is on loopback, unless `insecure_verbose_errors`.
    Verbose,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    /// The format of log lines.
    pub format: LogFormat,
    /// The level of log lines.
    pub level: LogLevel,
    /// Whether a line is written for each request and each WebSocket.
    pub access: bool,
    /// Whether access lines have the query, with values masked that look like secrets.
    pub query: bool,
    /// Paths whose access lines are written at level debug only, unless the answer is a 5xx.
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
    /// Pretty on a terminal, else JSON.
    Auto,
    /// JSON.
    Json,
    /// For people.
    Pretty,
}

/// The level of log lines.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And what happens.
    Info,
    /// And what is decided, and why.
    Debug,
    /// Everything.
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
    /// How long requests are still accepted while `/readyz` fails already.
    pub delay: Time,
    /// From the end of the delay to the exit.
    pub timeout: Time,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Time::seconds(0), timeout: Time::seconds(25) }
    }
}
