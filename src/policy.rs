//! The rules, valid by construction: what [`validate()`] makes of a [`Config`](crate::config::Config).
//!
//! Owns the vocabulary (routes and patterns, requirements, providers, dialects, origins, hosts,
//! reserved header names) and matching on plain strings. Evaluates nothing that needs a token, a
//! request or a socket: `auth::allow`, `http::rule` and `websocket::dialect` do.

mod admin;
mod assertion;
mod authority;
mod backend;
mod browser;
mod contact;
mod control;
mod cors;
mod dialect;
mod exposure;
mod issued;
mod judgement;
mod login;
mod memory;
mod names;
mod origin;
mod preset;
mod provider;
mod readings;
mod remote;
mod requirement;
mod route;
mod secret;
mod summary;
mod upstream;
mod validate;
mod websocket;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

pub use admin::AdminSpec;
pub use assertion::{AssertionKey, AssertionSpec};
pub use authority::CertificateAuthority;
pub use backend::BackendPreset;
pub use browser::{BrowserSpec, SessionSpec, SignInUrl};
pub use contact::Contact;
pub use control::{ControlAddress, ControlSpec};
pub use cors::CorsSpec;
pub use dialect::{Close, DialectSpec, Expectation, FieldMode, FieldSpec, MessageSpec, PingSpec};
pub use exposure::{first_listener, is_private};
pub use issued::IssuedTokens;
pub use judgement::{Conflict, Demand, Judgement};
pub use login::{ClientCredential, ClientKey, LoginPrompt, LoginSpec, Pushed, Renew};
pub use names::{Reserved, ReservedNames, fold};
pub use origin::{Hosts, Origin, OriginPattern, is_loopback_name};
pub use preset::Family;
pub use provider::{AllowSpec, Audience, KeySource, Kinds, Parties, ProviderSpec};
pub use readings::{Readings, TooManyReadings};
pub use remote::{RemoteQuestion, RemoteSpec};
pub use requirement::{Claim, Expected, Requirement};
pub use route::{PathVariables, Pattern, Route};
pub use secret::Secret;
pub use summary::{Names, Wall, carriers, sockets, summary, walls};
pub use validate::validate;

pub use crate::config::{
    AuthMode, ClientAuth, Encode, HostHeader, LogFormat, LogLevel, OnExpiry, QueryMode, TokenEncoding, TokenToHttp,
};

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// As written, for messages.
    pub written: String,
    /// Where it binds.
    pub place: ListenPlace,
    /// Its certificate, where it speaks TLS.
    pub tls: Option<CertificateFiles>,
}

/// Where a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenPlace {
    /// More than one address where `localhost` has two.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A certificate chain and its key, both PEM; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A backend and how to speak to it.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSpec {
    /// As written, for people.
    pub url: String,
    /// A backend we know.
    pub preset: Option<BackendPreset>,
    /// Where to connect.
    pub address: UpstreamAddress,
    /// What it is called in `Host`, where it sees its own.
    pub authority: String,
    /// Whose `Host` the upstream sees.
    pub host_header: HostHeader,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// Until a WebSocket upgrade is answered.
    pub handshake_timeout: Duration,
    /// Until a response head has come.
    pub response_timeout: Duration,
    /// How long an unused connection is kept.
    pub pool_idle_timeout: Duration,
    /// Whether connections are used again at all.
    pub reuse: bool,
    /// Whether the verified token goes up on HTTP requests.
    pub token_to_http: TokenToHttp,
    /// Whether, and where, it goes up on WebSocket upgrades.
    pub token_to_websocket: TokenToUpgrade,
    /// The backend's own secret, sent for verified callers only.
    pub credential: Option<CredentialSpec>,
}

impl UpstreamSpec {
    /// Whether it is to get the verified token of an upgrade, or of any other request.
    #[must_use]
    pub fn wants_token(&self, is_websocket: bool) -> bool {
        if is_websocket {
            self.token_to_websocket != TokenToUpgrade::None
        } else {
            self.token_to_http != TokenToHttp::None
        }
    }
}

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A name or an address, and a port.
    Tcp {
        /// To resolve, without brackets.
        host: String,
        /// To connect to.
        port: u16,
        /// What its certificate must be for, where it speaks TLS.
        tls: Option<UpstreamTls>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// How the certificate of an upstream is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name it must be for.
    pub server_name: String,
    /// A further certificate authority.
    pub authority: Option<CertificateAuthority>,
}

/// Where the verified token stands on an upgrade that goes up.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenToUpgrade {
    /// Nowhere.
    None,
    /// `Authorization: Bearer`.
    Header,
    /// This query parameter.
    Query(String),
    /// A first message in this dialect, said by us when the upstream's 101 has come.
    FirstMessage(Arc<DialectSpec>),
}

/// A header the backend demands; its value is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialSpec {
    /// Header name.
    pub header: HeaderName,
    /// Header value, marked sensitive.
    pub value: HeaderValue,
}

impl std::fmt::Debug for CredentialSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialSpec").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Which carriers of a token are read, for one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSources {
    /// Headers; in `Authorization` a Bearer token, in others the bare token.
    pub headers: Vec<HeaderName>,
    /// Whether a WebSocket may say its token in its first message.
    pub message: bool,
    /// A query parameter on WebSocket upgrades.
    pub query: Option<QueryParameter>,
    /// Subprotocol entries of WebSocket upgrades that begin like this.
    pub subprotocols: Vec<TokenSubprotocol>,
    /// A cookie of the provider's, under the `Origin` rule.
    pub cookie: Option<CookieSource>,
    /// The backend's own secret, which its pages send back to us.
    pub echo: Option<Secret>,
}

/// A provider's cookie that carries its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieSource {
    /// Its name.
    pub name: String,
    /// What Clerk writes behind the name of the same cookie of one application, where its publishable keys
    /// are known; empty: any.
    pub suffixes: Vec<String>,
}

/// A subprotocol entry that carries a token behind its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubprotocol {
    /// What the entry begins with.
    pub prefix: String,
    /// How the token is written behind it.
    pub encoding: TokenEncoding,
}

/// The query parameter that may carry a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameter {
    /// Its names after percent-decoding; at least one.
    pub names: Vec<String>,
    /// Which of its values are tokens; the others are the backend's own.
    pub issued: Arc<IssuedTokens>,
    /// Whether it is moved or refused.
    pub mode: QueryMode,
    /// Whether it is read on `WebSocket` upgrades.
    pub websocket: bool,
    /// Whether it is read on requests for event streams.
    pub events: bool,
}

/// One trusted header: which claim it carries, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedHeader {
    /// The header's name as it was written, for people.
    pub written: String,
    /// The header's name.
    pub name: HeaderName,
    /// The claim it carries.
    pub claim: Claim,
    /// Whether its text is percent-encoded.
    pub encode: Option<Encode>,
}

/// How `WebSockets` of a route live.
#[derive(Clone, Debug, PartialEq)]
pub struct WebSocketSpec {
    /// The shape of the handshake; `None` for `dialect: none`.
    pub dialect: Option<Arc<DialectSpec>>,
    /// From the 101 to the complete first message.
    pub auth_timeout: Option<Duration>,
    /// Beyond `exp`, at least the clock skew.
    pub grace: Duration,
    /// Whether a socket ends with its token; under `keep` and `auto` `max_lifetime` is set.
    pub on_expiry: OnExpiry,
    /// Under `auto`: how long after its user was seen last.
    pub presence: Duration,
    /// How long a socket may live, whatever its tokens say.
    pub max_lifetime: Option<Duration>,
    /// How often the provider is asked about an open socket's session.
    pub revalidate_every: Option<Duration>,
    /// How long it may leave that unanswered.
    pub revalidate_grace: Duration,
    /// Silence after which a ping is sent.
    pub ping_interval: Duration,
    /// Silence after a ping that means dead.
    pub ping_timeout: Duration,
    /// Without a data frame for this long it is closed.
    pub idle_timeout: Option<Duration>,
    /// The longest message of a client in a dialect that reads them whole.
    pub message_bytes: usize,
    /// Subprotocols we may accept before the upstream was asked.
    pub subprotocols: Vec<String>,
    /// When set, every upgrade that sends an `Origin` is checked.
    pub allowed_origins: Option<Vec<OriginPattern>>,
    /// Close code on shutdown.
    pub drain_code: u16,
}

/// Limits of config.example.yaml.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the key of its name under `limits`")]
pub struct LimitSpec {
    pub connections: u32,
    pub connections_per_address: u32,
    pub waiting_websockets: u32,
    pub waiting_websockets_per_address: u32,
    pub websockets_per_user: u32,
    pub presence: usize,
    pub unauthenticated_bytes: usize,
    pub held_message_bytes: usize,
    /// Not a key: what the cgroup of this process may use.
    pub cgroup_bytes: Option<usize>,
    pub token_cache: usize,
    pub revocations: usize,
    pub sign_outs: usize,
    pub sign_outs_per_user: usize,
    pub login_sessions: usize,
    pub login_attempts: usize,
    pub login_requests: usize,
    pub failed_tokens_per_minute: Option<u32>,
    pub token_bytes: usize,
    pub header_bytes: usize,
    pub header_timeout: Duration,
    pub keep_alive_timeout: Duration,
    pub body_bytes: Option<usize>,
    pub body_idle_timeout: Duration,
    pub discard_body_bytes: usize,
    pub discard_body_timeout: Duration,
    pub send_timeout: Duration,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the key of its name under `log`")]
pub struct LogSpec {
    pub format: LogFormat,
    pub level: LogLevel,
    pub access: bool,
    pub query: bool,
    pub quiet: Vec<String>,
}

/// Everything that was decided before the first request.
#[derive(Debug)]
pub struct Policy {
    /// Where to listen.
    pub listen: Vec<ListenSpec>,
    /// Which Host values are answered.
    pub hosts: Hosts,
    /// Our own origin as browsers see it, when it is fixed.
    pub public_url: Option<Origin>,
    /// Whose forwarding fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether those of callers over a Unix socket are.
    pub trusts_unix: bool,
    /// The front ends.
    pub origins: Vec<OriginPattern>,
    /// Where operators look.
    pub admin: Option<AdminSpec>,
    /// Where revocations and drains are asked for.
    pub control: Option<ControlSpec>,
    /// The backends: that of every route which names none comes first.
    pub upstreams: Vec<UpstreamSpec>,
    /// Who issues tokens.
    pub providers: Vec<Arc<ProviderSpec>>,
    /// The signed assertion that goes up beside them.
    pub assertion: Option<AssertionSpec>,
    /// Which identity headers go up.
    pub trusted_headers: Arc<[TrustedHeader]>,
    /// Which names a client can never set.
    pub reserved: ReservedNames,
    /// Rules in order; the last one is the default and matches everything.
    pub routes: Vec<Arc<Route>>,
    /// Whether any two rules treat a request differently, so that the readings of its path matter.
    pub rules_by_path: bool,
    /// The longest `presence` of routes under `on_expiry: auto`.
    pub longest_presence: Option<Duration>,
    /// Whether any rule names methods, so that method overrides must not pass.
    pub rules_by_method: bool,
    /// How preflights are answered here; `None`: the upstream answers them.
    pub cors: Option<CorsSpec>,
    /// Whether a stream of events ends with its token.
    pub events_end_with_token: bool,
    /// How browsers are met.
    pub browser: BrowserSpec,
    /// Limits.
    pub limits: LimitSpec,
    /// Whether a client hears why its token was refused.
    pub verbose_errors: bool,
    /// Logging.
    pub log: LogSpec,
    /// Still accepting after SIGTERM.
    pub drain_delay: Duration,
    /// From the end of the delay to exit.
    pub drain_timeout: Duration,
    /// Said at every start.
    pub warnings: Vec<String>,
    /// Every file that a key names and that was read: what a policy is made of beside the configuration.
    pub files: Vec<PathBuf>,
}

impl Policy {
    /// Whether forwarding fields of this peer are believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    /// The backend of a route.
    #[must_use]
    pub fn upstream(&self, route: &Route) -> &UpstreamSpec {
        // `validate` numbers only what is there.
        &self.upstreams[route.upstream]
    }

    /// Whether any backend is to get the verified token.
    #[must_use]
    pub fn passes_tokens(&self) -> bool {
        self.upstreams.iter().any(|upstream| upstream.wants_token(false) || upstream.wants_token(true))
    }

    /// Whether an origin is one of the front ends.
    #[must_use]
    pub fn lists_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|pattern| pattern.matches(origin))
    }
}
