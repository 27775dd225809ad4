//! The keys of the file, their defaults and their documentation.
//!
//! The comment of a key is its text in the JSON Schema and in `docs/configuration.md`. `config.example.yaml` shows each key
//! with its default, and tests hold the two together. A key stands here from the moment it does something.

mod browser;
mod limits;
mod login;
mod operation;
mod protected_resource;
mod provider;
mod shared;
mod token_from;
mod upstream;
mod websocket;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

pub use browser::{Browser, Cors, Events, EventsOnExpiry, SameSite, Session};
pub use limits::Limits;
pub use login::{ClaimsFrom, ClientAuth, Login, LoginPrompt, Logins, LogoutScope, Pushed, Renew};
pub use operation::{Admin, Control, Drain, Errors, Listen, ListenTls, Log, LogFormat};
pub use protected_resource::ProtectedResource;
pub use provider::{Accept, Allow, Jwks, Provider, Remote, RemoteMode};
pub use shared::{OnLoss, SharedState};
pub use token_from::{
    CookieChoice, CookieEncoding, QueryMode, QuerySource, QueryUse, RouteTokenFrom, SubprotocolSource, TokenEncoding,
    TokenFrom,
};
pub use upstream::{Credential, HostHeader, Toggle, TokenToHttp, TokenToWebSocket, Upstream};
pub use websocket::{Dialect, DialectChoice, FieldMode, OnExpiry, RouteWebSocket, WebSocket};

/// A JSON value of the file: what a claim must equal.
pub(super) type Json = serde_json::Value;

/// The whole file. Plain data that may be wrong; `policy::validate` says where.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// Where to listen: one address or a list of them. `127.0.0.1:8080`, `":8080"` (every address) or `unix:/path`
    /// (mode 0660).
    pub listen: Vec<Listen>,
    /// The address of this proxy as browsers see it, such as `https://app.example.com`.
    pub public_url: Option<String>,
    /// The `Host` values that are answered: names without port, or `any`. Unset: localhost, `*.localhost`, loopback
    /// addresses and the host of `public_url` where every listener is on loopback, else any.
    pub hosts: Option<OneOrMany>,
    /// Whose `X-Forwarded-*` headers are believed: addresses, CIDRs, `private_ranges`, `unix`.
    pub trusted_proxies: Vec<String>,
    /// The origins of your front ends: `https://app.example.com`, `https://*.example.com`; of an extension or an
    /// application as its pages send it: `chrome-extension://<id>`, `capacitor://localhost`.
    pub origins: Vec<String>,
    /// The listener for operators: `/status`, `/metrics`, `/healthz`, `/readyz`, GET only. Unset: `127.0.0.1:9180`
    /// if that port is free; null: none.
    pub admin: Option<Admin>,
    /// The listener on which revocations and the drain are requested. null: none.
    pub control: Option<Control>,
    /// What several instances tell each other, through Redis or Valkey. null: nothing. The URL alone may be written in
    /// place of the mapping. A change needs a restart.
    pub shared: Option<SharedState>,
    /// The server behind the proxy. The URL alone may be written in place of the mapping.
    pub upstream: Option<Upstream>,
    /// The identity providers whose tokens are accepted.
    pub providers: Vec<Provider>,
    /// What OAuth clients are told about this server (RFC 9728), at `/.well-known/oauth-protected-resource` and in
    /// `WWW-Authenticate`. `{}` has the defaults; null: nothing.
    pub protected_resource: Option<ProtectedResource>,
    /// Whether several providers share one set of users, so that no `user_prefix` is needed.
    pub shared_user_ids: bool,
    /// Where a token is looked for. Each key stands alone: writing one leaves the others as they are.
    pub token_from: TokenFrom,
    /// What the upstream is told about the verified user.
    pub identity: Identity,
    /// The rules by path and method. The first match wins; a request that matches none needs a valid token.
    pub routes: Vec<Route>,
    /// How WebSocket connections authenticate, live and end.
    pub websocket: WebSocket,
    /// The message shapes of other protocols, by the name that `websocket.dialect` uses.
    pub dialects: BTreeMap<String, Dialect>,
    /// Preflights are answered by the proxy, for `origins`. null: the upstream answers them.
    pub cors: Option<Cors>,
    /// Event streams (`text/event-stream`).
    pub events: Events,
    /// What people at browsers get: session cookies, pages, sign-in.
    pub browser: Browser,
    /// Limits of connections, memory, sizes and times.
    pub limits: Limits,
    /// What a client is told about a refused token.
    pub errors: Errors,
    /// Allows `errors: verbose` on listeners that other machines reach.
    pub insecure_verbose_errors: bool,
    /// Logging.
    pub log: Log,
    /// The shutdown after SIGTERM.
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
            shared: None,
            upstream: None,
            providers: Vec::new(),
            protected_resource: None,
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

/// One text, or a list of them; one text is split at commas.
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

/// Tells a key that is written as `null` from one that is not written.
#[expect(clippy::option_option, reason = "three states: not written, switched off, written")]
fn written<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What the upstream is told about the verified user.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Identity {
    /// The trusted headers and the claim that each carries: a claim, or `{ claim: name, encode: percent }`.
    pub headers: BTreeMap<String, HeaderClaim>,
    /// Further header names that no client may send.
    pub strip: Vec<String>,
    /// A signed header beside the trusted ones, which the upstream can verify. null: none.
    pub assertion: Option<Assertion>,
}

/// The signed assertion of who asks. `vestibule token assertion-key` prints the public key.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Assertion {
    /// The header that carries the assertion. null: `X-Vestibule-Assertion`.
    pub header: Option<String>,
    /// The private key, P-256 in PKCS#8 PEM. null: a new key at each start.
    pub key_file: Option<String>,
    /// The audience of the assertion. null: the upstream's URL.
    pub audience: Option<String>,
}

impl Default for Identity {
    fn default() -> Self {
        let claim = HeaderClaim { claim: "sub".to_owned(), encode: None };
        Self { headers: BTreeMap::from([("X-User-Id".to_owned(), claim)]), strip: Vec::new(), assertion: None }
    }
}

/// The claim that a trusted header carries.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct HeaderClaim {
    /// The claim: a name, or an RFC 6901 pointer.
    pub claim: String,
    /// How the value is encoded. null: as it is, and a value that no header can carry is refused.
    #[serde(default)]
    pub encode: Option<Encode>,
}

/// How a value is encoded for a header.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Encode {
    /// Percent-encoded, so that any text fits.
    Percent,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Route {
    /// The pattern: `*` is one segment, `**` any number of them, `{name}` a variable. `/api/admin/**` matches
    /// `/api/admin` too.
    pub path: Option<String>,
    /// The methods. GET includes HEAD; null: every method.
    pub methods: Option<Vec<String>>,
    /// Whether a token is needed.
    pub auth: AuthMode,
    /// The claims that the user must have: a value, a list of values, `{ present: true }`, or `"{name}"` for a
    /// variable of the path.
    pub require: BTreeMap<String, Json>,
    /// Another upstream, with keys of its own. Keys of `upstream` above do not apply to it.
    pub upstream: Option<Upstream>,
    /// A protected resource of its own, in place of the one above: `{}` names the path of the rule. null: none.
    #[serde(deserialize_with = "written")]
    pub protected_resource: Option<Option<ProtectedResource>>,
    /// Keys of `token_from` for this rule.
    pub token_from: RouteTokenFrom,
    /// Keys of `websocket` for this rule.
    pub websocket: RouteWebSocket,
}

/// Whether a request needs a token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// A valid token is needed.
    #[default]
    Required,
    /// A token is verified where one is sent.
    Optional,
    /// Tokens are not read.
    None,
    /// Every request is refused.
    Deny,
}
