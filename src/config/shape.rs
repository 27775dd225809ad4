//! The keys of the file, their defaults and their documentation.
//!
//! The comment of a key is its text in the JSON Schema and in `docs/configuration.md`. `config.example.yaml` shows each key
//! with its default, and tests hold the two together. A key is added together with the code
//! that uses it.

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
    /// The proxy accepts connections at this address, or at each of a list of addresses: `127.0.0.1:8080`, `":8080"`
    /// (every address of this machine) or `unix:/path` (a Unix socket of mode 0660). A change needs a restart.
    pub listen: Vec<Listen>,
    /// This is the address of the proxy as browsers see it: scheme, host and port, such as `https://app.example.com`.
    /// The upstream gets its scheme and host in `X-Forwarded-Proto` and `X-Forwarded-Host`. `browser.login` needs it.
    /// null: the `Host` of each request is used, and `X-Forwarded-Proto` from a trusted proxy.
    pub public_url: Option<String>,
    /// Only requests with these `Host` values are served; others get 421. Write names without port, or `any`. The host
    /// of `public_url` is always included. null: `localhost`, `*.localhost` and loopback addresses where every listener
    /// is on a loopback address, else any.
    pub hosts: Option<OneOrMany>,
    /// `X-Forwarded-For` and `X-Forwarded-Proto` are used only from these peers, such as your load balancer: addresses,
    /// CIDR ranges, `private_ranges` (private, shared, link-local and loopback addresses) or `unix` (callers over a
    /// Unix socket).
    pub trusted_proxies: Vec<String>,
    /// Pages of these origins, your front ends, may read the proxy's own answers (CORS) and use its session cookies:
    /// `https://app.example.com`, or `https://*.example.com` for one label (which does not count for cookies, nor for
    /// the session endpoint, which sets them). The origin of an extension or an application is written as it sends it:
    /// `chrome-extension://<id>`, `capacitor://localhost`.
    pub origins: Vec<String>,
    /// The listener for operators serves `/status`, `/metrics`, `/healthz`, `/readyz` and `/assertion-keys.json`, to
    /// GET only. If the key is not written, it listens on `127.0.0.1:9180` if that port is free. null: there is no such
    /// listener. A change of its address needs a restart.
    pub admin: Option<Admin>,
    /// The control listener accepts revocations (`POST /revoke`) and the request to drain (`POST /drain`). null: there
    /// is no such listener. A change of its address or of `revocation_file` needs a restart.
    pub control: Option<Control>,
    /// Several instances share revocations, sign-outs, sign-in sessions and some limits through this Redis or Valkey
    /// server. null: each instance knows only its own. The URL alone may be written in place of the mapping. A change
    /// needs a restart.
    pub shared: Option<SharedState>,
    /// The proxy forwards requests to this server. It must be set. The URL alone may be written in place of the
    /// mapping.
    pub upstream: Option<Upstream>,
    /// Tokens of these identity providers are accepted. At least one is needed, unless the routes leave no path that
    /// needs a token.
    pub providers: Vec<Provider>,
    /// OAuth clients, such as those of MCP, find here which provider issues tokens for this server (RFC 9728): at
    /// `/.well-known/oauth-protected-resource` and in `WWW-Authenticate`. `{}` uses the defaults. null: nothing is
    /// published.
    pub protected_resource: Option<ProtectedResource>,
    /// If true, the same user id at two providers is the same user. If false, each of several providers needs a
    /// `user_prefix`.
    pub shared_user_ids: bool,
    /// A token is looked for in these places of a request. Writing one of the keys leaves the others at
    /// their defaults.
    pub token_from: TokenFrom,
    /// The upstream learns from these headers who the verified user is.
    pub identity: Identity,
    /// These rules say by path and method who may pass. The first rule that matches a request is used; a request that
    /// matches none needs a valid token.
    pub routes: Vec<Route>,
    /// These keys set how WebSocket connections authenticate, how long they stay open, and how they end.
    pub websocket: WebSocket,
    /// Each entry describes the messages of another WebSocket protocol, under the name that `websocket.dialect` uses.
    pub dialects: BTreeMap<String, Dialect>,
    /// The proxy answers CORS preflights itself, for pages of `origins`. null: the upstream answers them.
    pub cors: Option<Cors>,
    /// These keys set how long event streams (`text/event-stream`) last.
    pub events: Events,
    /// These keys are for people with browsers: session cookies, pages and sign-in.
    pub browser: Browser,
    /// These limits bound connections, memory, sizes and times.
    pub limits: Limits,
    /// The answer to a refused token has this much detail.
    pub errors: Errors,
    /// If true, `errors: verbose` is allowed although other machines can reach a listener.
    pub insecure_verbose_errors: bool,
    /// These keys set what is logged, and in which format.
    pub log: Log,
    /// These keys set the times of the shutdown after SIGTERM.
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

/// One text, or a list of texts; one text is split at commas.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(transparent)]
pub struct OneOrMany(pub Vec<String>);

impl OneOrMany {
    /// Returns whether it is just this one word (`any`).
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

/// The headers from which the upstream learns who the verified user is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Identity {
    /// Each header carries the value of a claim of the verified token; a client cannot send it. Write the claim, or `{
    /// claim: name, encode: percent }`. `sub` is the user id, with its prefix. An absent claim means no header.
    pub headers: BTreeMap<String, HeaderClaim>,
    /// These further headers are removed from what a client sends.
    pub strip: Vec<String>,
    /// A signed header goes to the upstream beside the others, so that the upstream can verify that the request came
    /// through the proxy. null: there is none.
    pub assertion: Option<Assertion>,
}

/// The signed assertion of who the user is. `vestibule token assertion-key` prints the public key.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Assertion {
    /// The assertion is in this header. Default: `X-Vestibule-Assertion`.
    pub header: Option<String>,
    /// This file holds the private key: P-256, PKCS#8, PEM. Default: none, and each start makes a new key.
    pub key_file: Option<String>,
    /// This is the `aud` of assertions for `upstream`; for the upstream of a route it is its URL. Default: the URL of
    /// `upstream`.
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
    /// This is the claim: the name of a member, or an RFC 6901 pointer such as `/realm_access/roles`.
    pub claim: String,
    /// The value is encoded in this way. null: it is sent as it is, and a request whose value cannot stand in a header
    /// is refused.
    #[serde(default)]
    pub encode: Option<Encode>,
}

/// The encoding of a value for a header.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Encode {
    /// The value is percent-encoded, so that any text can stand in the header.
    Percent,
}

/// One rule by path and method.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Route {
    /// The rule applies to paths of this pattern: `*` is one segment, `**` any number of segments, `{name}` one segment
    /// whose value `require` can use. `/api/admin/**` matches `/api/admin` too.
    pub path: Option<String>,
    /// The rule applies to these methods only, in capitals; GET includes HEAD. null: to every method.
    pub methods: Option<Vec<String>>,
    /// This says whether a request needs a token.
    pub auth: AuthMode,
    /// The user must have all of these claims, else the answer is 403. A claim must equal the value or one of a list of
    /// values; `{ present: true }` is any value but null, and `"{name}"` the value of a variable of the path.
    pub require: BTreeMap<String, Json>,
    /// Requests go to this upstream instead. Its keys have their own defaults; those of `upstream` above do not apply
    /// to it.
    pub upstream: Option<Upstream>,
    /// The route is a protected resource of its own: `{}` names it by `public_url` and the path of the rule. null: the
    /// route is not one. If the key is not written, `protected_resource` above applies.
    #[serde(deserialize_with = "written")]
    pub protected_resource: Option<Option<ProtectedResource>>,
    /// Keys of `token_from` apply to this rule in place of those above.
    pub token_from: RouteTokenFrom,
    /// Keys of `websocket` apply to this rule in place of those above.
    pub websocket: RouteWebSocket,
}

/// The need of a request for a token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// A valid token is needed.
    #[default]
    Required,
    /// A token is verified if one is sent, and a bad one is refused. A request without one passes.
    Optional,
    /// Every request passes, and tokens are not read.
    None,
    /// Every request is refused with 403.
    Deny,
}
