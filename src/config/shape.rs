//! The keys of the file and their defaults (config.example.yaml), as far as they exist.
//!
//! A key stands here from the moment it does something; `config.example.yaml` shows each with its
//! default, and a test holds the two together.

mod login;
mod provider;
mod token_from;
mod websocket;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::value::{Size, Time};
pub use login::{ClaimsFrom, ClientAuth, Login, LoginPrompt, Logins, LogoutScope, Pushed, Renew};
pub use provider::{Accept, Allow, Jwks, Provider, Remote, RemoteMode};
pub use token_from::{QueryMode, QuerySource, QueryUse, RouteTokenFrom, SubprotocolSource, TokenEncoding, TokenFrom};
pub use websocket::{
    Dialect, DialectChoice, DialectMessage, DialectPing, DialectRefresh, FieldMode, OnExpiry, RouteWebSocket, WebSocket,
};

/// A JSON value of the file: what a claim must equal.
pub(super) type Json = serde_json::Value;

/// The whole file. Plain data: may be wrong, `policy::validate` says where.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub public_url: Option<String>,
    pub hosts: Option<OneOrMany>,
    pub trusted_proxies: Vec<String>,
    pub origins: Vec<String>,
    pub admin: Option<Admin>,
    pub control: Option<Control>,
    pub upstream: Option<Upstream>,
    pub providers: Vec<Provider>,
    pub shared_user_ids: bool,
    pub token_from: TokenFrom,
    pub identity: Identity,
    pub routes: Vec<Route>,
    pub websocket: WebSocket,
    pub dialects: BTreeMap<String, Dialect>,
    pub cors: Option<Cors>,
    pub events: Events,
    pub browser: Browser,
    pub limits: Limits,
    pub errors: Errors,
    pub insecure_verbose_errors: bool,
    pub log: Log,
    pub drain: Drain,
    /// Set by `run --insecure-dev` and by nothing in the file.
    #[serde(skip)]
    pub(crate) insecure_dev: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen { address: "127.0.0.1:8080".to_owned(), tls: None }],
            public_url: None,
            hosts: None,
            trusted_proxies: Vec::new(),
            origins: Vec::new(),
            admin: Some(Admin::default()),
            control: None,
            upstream: None,
            providers: Vec::new(),
            shared_user_ids: false,
            token_from: TokenFrom::default(),
            identity: Identity::default(),
            routes: Vec::new(),
            websocket: WebSocket::default(),
            dialects: BTreeMap::new(),
            cors: None,
            events: Events::default(),
            browser: Browser::default(),
            limits: Limits::default(),
            errors: Errors::Generic,
            insecure_verbose_errors: false,
            log: Log::default(),
            drain: Drain::default(),
            insecure_dev: false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct Listen {
    pub address: String,
    #[serde(default)]
    pub tls: Option<ListenTls>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenTls {
    pub certificate_file: Option<String>,
    pub key_file: Option<String>,
}

/// What operators look at, on a listener of its own; without `listen` at its usual place, if that is free.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Admin {
    pub listen: Option<String>,
    pub hosts: Vec<String>,
}

/// What changes state from outside, on a listener of its own.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Control {
    pub listen: Option<String>,
    pub token: Option<String>,
    pub token_file: Option<String>,
    pub revocation_file: Option<String>,
    pub revocation_keep: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Upstream {
    pub url: Option<String>,
    pub preset: Option<String>,
    pub host: Option<HostHeader>,
    pub connect_timeout: Option<Time>,
    pub handshake_timeout: Option<Time>,
    pub response_timeout: Option<Time>,
    pub pool_idle_timeout: Option<Time>,
    pub reuse: Toggle<true>,
    pub tls: UpstreamTls,
    pub token_to: TokenTo,
    pub credential: Option<Credential>,
}

/// How an `https` upstream is known.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpstreamTls {
    pub ca_file: Option<String>,
    pub server_name: Option<String>,
}

/// A boolean with its default in the type, so that a partly written struct keeps it.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Toggle<const DEFAULT: bool>(pub bool);

impl<const DEFAULT: bool> Default for Toggle<DEFAULT> {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum HostHeader {
    Client,
    Upstream,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenTo {
    pub http: TokenToHttp,
    pub websocket: TokenToWebSocket,
}

/// `none`, `header`, `{ query: token }` or `{ first_message: vestibule }`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenToWebSocket {
    pub form: Option<String>,
    pub query: Option<String>,
    pub first_message: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenToHttp {
    #[default]
    None,
    Header,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Credential {
    pub header: Option<String>,
    pub value: Option<String>,
    pub value_file: Option<String>,
}

/// One string, or a list of them; one string is split at commas.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(transparent)]
pub struct OneOrMany(pub Vec<String>);

impl OneOrMany {
    /// Whether it is just this one word (`any`).
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        matches!(self.0.as_slice(), [only] if only == word)
    }
}

/// `false` is a value here, not a feature switched off.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    bool::deserialize(deserializer).map(Some)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Time::deserialize(deserializer).map(|time| time.0)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Size::deserialize(deserializer).map(|size| size.0)
}

fn optional_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Option::<Size>::deserialize(deserializer)?.map(|size| size.0))
}

/// Tells a key that is written as `null` from one that is not written.
#[expect(clippy::option_option, reason = "three states: not written, switched off, written")]
fn written<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Identity {
    pub headers: BTreeMap<String, HeaderClaim>,
    pub strip: Vec<String>,
    pub assertion: Option<Assertion>,
}

/// The signed assertion of who asks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Assertion {
    pub header: Option<String>,
    pub key_file: Option<String>,
    pub audience: Option<String>,
}

impl Default for Identity {
    fn default() -> Self {
        let claim = HeaderClaim { claim: "sub".to_owned(), encode: None };
        Self { headers: BTreeMap::from([("X-User-Id".to_owned(), claim)]), strip: Vec::new(), assertion: None }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct HeaderClaim {
    pub claim: String,
    #[serde(default)]
    pub encode: Option<Encode>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Encode {
    Percent,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Route {
    pub path: Option<String>,
    pub methods: Option<Vec<String>>,
    pub auth: AuthMode,
    pub require: BTreeMap<String, Json>,
    pub upstream: Option<Upstream>,
    pub token_from: RouteTokenFrom,
    pub websocket: RouteWebSocket,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    #[default]
    Required,
    Optional,
    None,
    Deny,
}

/// Preflights are answered here, for `origins`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cors {
    pub allowed_methods: Vec<String>,
    pub allowed_headers: Vec<String>,
    pub max_age: Time,
}

impl Default for Cors {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            allowed_methods: list(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            allowed_headers: list(&["Authorization", "Content-Type"]),
            max_age: Time::seconds(600),
        }
    }
}

/// What browsers get.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Browser {
    /// Not written: as the upstream's preset wants it.
    #[serde(deserialize_with = "written")]
    pub session: Option<Option<Session>>,
    pub sign_in_url: Option<String>,
    pub contact: Option<String>,
    pub login: Option<Logins>,
}

/// Sessions by cookie.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Session {
    pub max_age: Option<Time>,
    pub secret: Option<String>,
    pub secret_file: Option<String>,
    pub revalidate_every: Option<Time>,
}

/// `text/event-stream`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Events {
    pub on_expiry: EventsOnExpiry,
}

impl Default for Events {
    fn default() -> Self {
        Self { on_expiry: EventsOnExpiry::Keep }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EventsOnExpiry {
    Keep,
    Close,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    pub connections: u32,
    pub connections_per_address: u32,
    pub waiting_websockets: u32,
    pub waiting_websockets_per_address: u32,
    pub websockets_per_user: u32,
    pub presence: usize,
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub unauthenticated_bytes: Option<usize>,
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub held_message_bytes: Option<usize>,
    pub token_cache: usize,
    pub revocations: usize,
    pub sign_outs: usize,
    pub sign_outs_per_user: usize,
    pub login_sessions: usize,
    pub login_attempts: usize,
    pub login_requests: usize,
    pub failed_tokens_per_minute: Option<u32>,
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub token_bytes: usize,
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub header_bytes: usize,
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub header_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub keep_alive_timeout: Duration,
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub body_bytes: Option<usize>,
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub body_idle_timeout: Duration,
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub discard_body_bytes: usize,
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub discard_body_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub send_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 1_000,
            waiting_websockets: 1_000,
            waiting_websockets_per_address: 50,
            websockets_per_user: 100,
            presence: 100_000,
            unauthenticated_bytes: None,
            held_message_bytes: None,
            token_cache: 10_000,
            revocations: 100_000,
            sign_outs: 100_000,
            sign_outs_per_user: 100,
            login_sessions: 10_000,
            login_attempts: 10_000,
            login_requests: 32,
            failed_tokens_per_minute: Some(60),
            token_bytes: 16 << 10,
            header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            body_bytes: None,
            body_idle_timeout: Duration::from_secs(60),
            discard_body_bytes: 8 << 20,
            discard_body_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(60),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    Generic,
    Verbose,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
    pub access: bool,
    pub query: bool,
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

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Auto,
    Json,
    Pretty,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
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

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Drain {
    pub delay: Time,
    pub timeout: Time,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Time::seconds(0), timeout: Time::seconds(25) }
    }
}
