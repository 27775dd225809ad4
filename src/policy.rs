//! The validated rules: the result of [`validate()`] on a [`Config`](crate::config::Config).
//!
//! This module owns the types of the rules (routes and patterns, requirements, providers, dialects, origins, hosts,
//! reserved header names) and how they match plain strings. Code that needs a token, a request or a socket is
//! elsewhere: `auth::allow`, `http::route_request` and `websocket::dialect`.

mod admin;
mod assertion;
mod authority;
mod bound_audience;
mod browser;
mod check;
mod contact;
mod control;
mod cookie_source;
mod cors;
mod dialect;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod isolation;
mod key_source;
mod limits;
mod listener;
mod login;
mod loose_rules;
mod memory;
mod names;
mod origin;
mod path_readings;
mod pattern;
mod protected_resource;
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
mod unused_rules;
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
pub use bound_audience::{BoundAudience, ProtectedResourceSpec};
pub use browser::{BrowserSpec, COOKIE_NAME, SessionSpec};
pub use contact::Contact;
pub use control::{CLOCK_ALLOWANCE, ControlAddress, ControlSpec};
pub use cookie_source::CookieSource;
pub use cors::CorsSpec;
#[cfg(test)]
pub use dialect::PingSpec;
pub use dialect::{Close, DialectSpec, Expectation, FieldMode, FieldSpec, MessageSpec};
pub use isolation::{UpstreamIsolation, isolation_of};
pub use key_source::KeySource;
pub use limits::MemorySpec;
pub use listener::{CERTIFICATE_SOON, CertificateFiles, ListenPlace, ListenSpec, first_listener, is_private};
pub use login::{ClientCredential, LoginPrompt, LoginSpec, Pushed, Renew};
pub use names::{Reserved, ReservedNames, fold};
pub use origin::{Hosts, Origin, OriginPattern, is_loopback_name};
pub use path_readings::may_be_own;
pub use pattern::{PathVariables, Pattern};
pub use provider::{AllowSpec, Audience, AuthorizedParties, Kinds, ProviderSpec};
pub use provider_preset::{Family, LogoutRequest, RefreshTokens, is_uuid};
pub use provider_tokens::ProviderTokens;
pub use remote::{RemoteQuestion, RemoteSpec};
pub use requirement::{Claim, Expected, Requirement};
pub use route::Route;
#[cfg(fuzzing)]
pub use route_match::lenient_server::paths;
pub use route_match::{Conflict, RouteMatch, RouteRequirement};
pub use secret::Secret;
pub use shared::{EngineAddress, SharedSpec};
pub use summary::{UserNames, keys_not_shown, sockets, summary, tokens};
pub use token_sources::{BALANCER_HEADER, QueryParameter, TokenSources, TokenSubprotocol};
pub use trusted_header::TrustedHeader;
pub use upstream::{TokenToUpgrade, UpstreamAddress, UpstreamSpec, UpstreamTls};
pub use upstream_preset::UpstreamPreset;
pub use validate::{DEVELOPMENT_TOKENS, validate};
pub use websocket::{SocketLimits, WebSocketSpec};

use crate::config::Finding;
pub use crate::config::{
    AuthMode, ClientAuth, CookieEncoding, Encode, HostHeader, Limits, Log, LogFormat, OnExpiry, OnLoss, QueryMode,
    TokenEncoding, TokenToHttp,
};

/// All settings, validated before the first request.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Policy {
    /// The addresses and sockets to listen on.
    pub listen: Vec<ListenSpec>,
    /// The Host values that are accepted.
    pub hosts: Hosts,
    /// The proxy's own origin as browsers see it, if it is configured.
    pub public_url: Option<Origin>,
    /// The networks whose `X-Forwarded-*` and `Forwarded` fields are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the forwarding fields of callers over a Unix socket are trusted.
    pub trusts_unix: bool,
    /// The origins whose pages may use the proxy.
    pub origins: Vec<OriginPattern>,
    /// The admin listener.
    pub admin: Option<AdminSpec>,
    /// The control listener, which accepts revocations and drains.
    pub control: Option<ControlSpec>,
    /// The state that the instances of one deployment share.
    pub shared: Option<SharedSpec>,
    /// The upstreams. The first one serves every route that names none.
    pub upstreams: Vec<UpstreamSpec>,
    /// The issuers of tokens.
    pub providers: Vec<Arc<ProviderSpec>>,
    /// The signed assertion that the upstream gets in addition to the trusted headers.
    pub assertion: Option<AssertionSpec>,
    /// The headers that carry the verified user to the upstream.
    pub trusted_headers: Arc<Vec<TrustedHeader>>,
    /// The header names that no client can set.
    pub reserved: ReservedNames,
    /// The routes in order. The last one is the default and matches everything.
    pub routes: Vec<Arc<Route>>,
    /// The metadata documents of protected resources (RFC 9728), by their paths.
    pub resource_documents: Vec<(String, Arc<ProtectedResourceSpec>)>,
    /// Whether two routes treat a request differently, so that each reading of its path must be matched.
    pub rules_by_path: bool,
    /// The longest `presence` of routes under `on_expiry: auto`.
    pub longest_presence: Option<Duration>,
    /// The fields of preflight responses; `None` if the upstream answers preflights.
    pub cors: Option<CorsSpec>,
    /// Whether a server-sent event stream ends when its token expires.
    pub events_end_with_token: bool,
    /// Session cookies, sign-in and pages.
    pub browser: BrowserSpec,
    /// The limits, as configured or by default.
    pub limits: Limits,
    /// The bounds on memory. Their defaults depend on the memory of this process.
    pub memory: MemorySpec,
    /// Whether a client gets the reason why its token was refused.
    pub verbose_errors: bool,
    /// The settings of the log.
    pub log: Log,
    /// The time for which new connections are still accepted after SIGTERM.
    pub drain_delay: Duration,
    /// The time from the end of `drain_delay` to the exit of the process.
    pub drain_timeout: Duration,
    /// Warnings that are logged at every start. `config::Loaded::locate` adds their places.
    pub warnings: Vec<Finding>,
    /// Every file that a key names and that was read.
    pub files: Vec<PathBuf>,
}

impl Policy {
    /// Returns whether forwarding fields of this peer are trusted.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }

    /// Returns the protected resource whose document is served at exactly this path.
    #[must_use]
    pub fn resource_at(&self, path: &str) -> Option<&ProtectedResourceSpec> {
        self.resource_documents.iter().find(|(known, _)| known == path).map(|(_, resource)| &**resource)
    }

    /// Returns the upstream of a route.
    #[must_use]
    pub fn upstream(&self, route: &Route) -> &UpstreamSpec {
        // `validate` gives routes the indices of existing upstreams only.
        &self.upstreams[route.upstream]
    }

    /// Returns whether any upstream gets the verified token.
    #[must_use]
    pub fn passes_tokens(&self) -> bool {
        self.upstreams.iter().any(|upstream| upstream.wants_token(false) || upstream.wants_token(true))
    }

    /// Returns whether an origin is listed in `origins`.
    #[must_use]
    pub fn lists_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|pattern| pattern.matches(origin))
    }
}
