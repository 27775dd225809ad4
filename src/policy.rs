//! The rules, valid by construction: what [`validate()`] makes of a [`Config`](crate::config::Config).
//!
//! Owns the vocabulary (routes and patterns, requirements, providers, dialects, origins, hosts,
//! reserved header names) and matching on plain strings. Evaluates nothing that needs a token, a
//! request or a socket: `auth::allow`, `http::rule` and `websocket::dialect` do.

mod admin;
mod assertion;
mod authority;
mod browser;
mod check;
mod contact;
mod control;
mod cookie_source;
mod cors;
mod dialect;
mod limits;
mod listener;
mod login;
mod memory;
mod names;
mod origin;
mod path_readings;
mod pattern;
mod provider;
mod provider_preset;
mod provider_tokens;
mod remote;
mod requirement;
mod route;
mod route_match;
mod secret;
mod shared;
mod summary;
mod token_sources;
mod trusted_header;
mod upstream;
mod upstream_preset;
mod validate;
mod websocket;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use admin::AdminSpec;
pub use assertion::{AssertionKey, AssertionSpec};
pub use authority::CertificateAuthority;
pub use browser::{BrowserSpec, SessionSpec, SignInUrl};
pub use contact::Contact;
pub use control::{ControlAddress, ControlSpec};
pub use cookie_source::CookieSource;
pub use cors::CorsSpec;
pub use dialect::{Close, DialectSpec, Expectation, FieldMode, FieldSpec, MessageSpec, PingSpec};
pub use limits::MemorySpec;
pub use listener::{CertificateFiles, ListenPlace, ListenSpec, first_listener, is_private};
pub use login::{ClientCredential, ClientKey, LoginPrompt, LoginSpec, Pushed, Renew};
pub use names::{Reserved, ReservedNames, fold};
pub use origin::{Hosts, Origin, OriginPattern, is_loopback_name};
pub use path_readings::{PathReadings, TooManyReadings};
pub use pattern::{PathVariables, Pattern};
pub use provider::{AllowSpec, Audience, AuthorizedParties, KeySource, Kinds, ProviderSpec};
pub use provider_preset::{Family, RefreshTokens};
pub use provider_tokens::ProviderTokens;
pub use remote::{RemoteQuestion, RemoteSpec};
pub use requirement::{Claim, Expected, Requirement};
pub use route::Route;
pub use route_match::{Conflict, RouteMatch, RouteRequirement};
pub use secret::Secret;
pub use shared::{EngineAddress, EngineTls, SharedSpec};
pub use summary::{UpstreamIsolation, UserNames, isolation_of, sockets, summary, token_source_list};
pub use token_sources::{QueryParameter, TokenSources, TokenSubprotocol};
pub use trusted_header::TrustedHeader;
pub use upstream::{CredentialSpec, TokenToUpgrade, UpstreamAddress, UpstreamSpec, UpstreamTls};
pub use upstream_preset::UpstreamPreset;
pub use validate::validate;
pub use websocket::WebSocketSpec;

pub use crate::config::{
    AuthMode, ClientAuth, Encode, HostHeader, Limits, Log, LogFormat, LogLevel, OnExpiry, OnLoss, QueryMode,
    TokenEncoding, TokenToHttp,
};

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
    /// What the instances of one deployment share.
    pub shared: Option<SharedSpec>,
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
    /// How preflights are answered here; `None`: the upstream answers them.
    pub cors: Option<CorsSpec>,
    /// Whether a stream of events ends with its token.
    pub events_end_with_token: bool,
    /// How browsers are met.
    pub browser: BrowserSpec,
    /// Limits, as written or by default.
    pub limits: Limits,
    /// Bounds of memory, whose defaults depend on this process.
    pub memory: MemorySpec,
    /// Whether a client hears why its token was refused.
    pub verbose_errors: bool,
    /// Logging.
    pub log: Log,
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
