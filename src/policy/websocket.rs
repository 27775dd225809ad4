//! The settings of `WebSockets` on a route: those of the route, else those for all routes, else the defaults of the
//! backend's or the provider's preset; and the combinations that are errors.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderName;

use super::check::Check;
use super::dialect::Dialects;
use super::dialect::is_sendable;
use super::provider_preset::{Quirks, preset_of};
use super::{DialectSpec, OriginPattern, UpstreamPreset};
use crate::config::{self, Config, DialectChoice, OnExpiry, Time};

/// The settings of `WebSockets` on a route.
#[derive(Clone, Debug, PartialEq)]
pub struct WebSocketSpec {
    /// The dialect of the handshake; `None` for `dialect: none`.
    pub dialect: Option<Arc<DialectSpec>>,
    /// The time limit from the 101 to the complete first message.
    pub auth_timeout: Option<Duration>,
    /// The time that a session stays open after `exp`; at least the clock skew.
    pub grace: Duration,
    /// The setting that decides whether a socket ends with its token. Under `keep` and `auto` `max_lifetime` is set.
    pub on_expiry: OnExpiry,
    /// Under `auto`: the time that a session stays open after its user was last seen.
    pub presence: Duration,
    /// The maximum duration of a socket, whatever its tokens allow.
    pub max_lifetime: Option<Duration>,
    /// The interval at which the provider is asked about an open socket's session.
    pub revalidate_every: Option<Duration>,
    /// The time that a session continues while the provider does not answer.
    pub revalidate_grace: Duration,
    /// The part of these settings that an open socket keeps.
    pub limits: Arc<SocketLimits>,
    /// The subprotocols that the proxy may accept before the upstream is connected.
    pub subprotocols: Vec<String>,
    /// The accepted origins; if set, every upgrade with an `Origin` is checked.
    pub allowed_origins: Option<Vec<OriginPattern>>,
}

/// The timeouts and limits of open sockets. All sockets of a route share them, and keep them when a reload changes them.
#[derive(Clone, Debug, PartialEq)]
pub struct SocketLimits {
    /// The time without bytes from a peer after which it is pinged.
    pub ping_interval: Duration,
    /// The time after a ping within which a peer must send something. After it the peer is dead.
    pub ping_timeout: Duration,
    /// The time without data from either side after which the socket is closed.
    pub idle_timeout: Option<Duration>,
    /// The time after which a peer that accepts no byte is dead.
    pub send_timeout: Duration,
    /// The maximum length in bytes of a token that is read from a message.
    pub token_bytes: usize,
    /// The maximum length in bytes of a client's message in a dialect that reads whole messages.
    pub message_bytes: usize,
    /// The close code of a drain.
    pub drain_code: u16,
}

/// The default of `max_lifetime` under `auto`.
const AUTO_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// The default of `auth_timeout`, from the 101 to the complete first message.
const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
/// The minimum of `message_bytes`: as much as is read before authentication.
const LEAST_MESSAGE: usize = 64 << 10;
const MOST_MESSAGE: usize = 64 << 20;

impl Check {
    pub(super) fn websocket(
        &mut self,
        config: &Config,
        route: &config::RouteWebSocket,
        path: &str,
        backend: Option<UpstreamPreset>,
        dialects: &Dialects,
    ) -> WebSocketSpec {
        let base = &config.websocket;
        let path_of =
            |written: bool, key: &str| if written { format!("{path}.{key}") } else { format!("websocket.{key}") };
        // A page that opens its sockets by itself cannot send a first message.
        let name = if backend.is_some() { "none" } else { "vestibule" };
        let usual = DialectChoice { name: name.to_owned(), ..DialectChoice::default() };
        let choice = route.dialect.as_ref().or(base.dialect.as_ref()).unwrap_or(&usual);
        let dialect = self.chosen_dialect(&path_of(route.dialect.is_some(), "dialect"), choice, dialects);
        let drain_code = route.drain_code.unwrap_or(base.drain_code);
        if !is_sendable(drain_code) {
            self.error(
                path_of(route.drain_code.is_some(), "drain_code"),
                format!("{drain_code} cannot be sent in a Close; write 1012, 1001, or 3000 to 4999"),
            );
        }
        // In an application such as a chat, no message is sent until the user acts.
        let waits = dialect.as_ref().is_some_and(|dialect| dialect.field.is_some());
        let usual = (!waits).then_some(Time(AUTH_TIMEOUT));
        let auth_timeout = route.auth_timeout.or(base.auth_timeout).unwrap_or(usual);
        self.not_zero(&path_of(route.auth_timeout.is_some(), "auth_timeout"), auth_timeout);
        let ping_interval = route.ping_interval.unwrap_or(base.ping_interval);
        self.not_zero(&path_of(route.ping_interval.is_some(), "ping_interval"), Some(ping_interval));
        let ping_timeout = route.ping_timeout.unwrap_or(base.ping_timeout);
        self.not_zero(&path_of(route.ping_timeout.is_some(), "ping_timeout"), Some(ping_timeout));
        let mut subprotocols = route.subprotocols.clone().unwrap_or_else(|| base.subprotocols.clone());
        for protocol in &subprotocols {
            if HeaderName::try_from(protocol.as_str()).is_err() {
                self.error(
                    path_of(route.subprotocols.is_some(), "subprotocols"),
                    format!("\"{protocol}\" is not a subprotocol name"),
                );
            }
        }
        // A configured dialect implies its subprotocol.
        if let Some(own) = dialect.as_ref().and_then(|dialect| dialect.subprotocol)
            && !subprotocols.iter().any(|name| name == own)
        {
            subprotocols.push(own.to_owned());
        }
        let quirk_of = |provider, quirk: fn(&Quirks) -> bool| preset_of(provider).is_some_and(|row| quirk(&row.quirks));
        let short_lived = !config.providers.is_empty()
            && config.providers.iter().all(|provider| quirk_of(provider, |quirks| quirks.is_short_lived));
        let usual = if short_lived { OnExpiry::Auto } else { OnExpiry::Close };
        let on_expiry = route.on_expiry.or(base.on_expiry).unwrap_or(usual);
        let mut max_lifetime = route.max_lifetime.unwrap_or(base.max_lifetime);
        if on_expiry == OnExpiry::Auto {
            max_lifetime.get_or_insert(Time(AUTO_LIFETIME));
        }
        let presence = route.presence.unwrap_or(base.presence);
        self.not_zero(&path_of(route.presence.is_some(), "presence"), Some(presence));
        let message_bytes = route.message_bytes.unwrap_or(base.message_bytes).0;
        if !(LEAST_MESSAGE..=MOST_MESSAGE).contains(&message_bytes) {
            let at = path_of(route.message_bytes.is_some(), "message_bytes");
            self.error(at, "must be between 64KiB and 64MiB");
        }
        self.not_zero(&path_of(route.max_lifetime.is_some(), "max_lifetime"), max_lifetime);
        if on_expiry == OnExpiry::Keep && max_lifetime.is_none() {
            let at = path_of(route.on_expiry.is_some(), "on_expiry");
            self.error(at, "keep lets sockets outlive their tokens, so max_lifetime must be set beside it, as in max_lifetime: 12h");
        }
        let revalidate_every = route.revalidate_every.unwrap_or(base.revalidate_every);
        let at = path_of(route.revalidate_every.is_some(), "revalidate_every");
        self.not_zero(&at, revalidate_every);
        if revalidate_every.is_some() {
            self.can_be_asked(config, &at, on_expiry);
        }
        let idle_timeout = route.idle_timeout.unwrap_or(base.idle_timeout);
        self.not_zero(&path_of(route.idle_timeout.is_some(), "idle_timeout"), idle_timeout);
        let allowed = route.allowed_origins.as_ref().or(base.allowed_origins.as_ref());
        let at = path_of(route.allowed_origins.is_some(), "allowed_origins");
        WebSocketSpec {
            dialect,
            auth_timeout: auth_timeout.map(|time| time.0),
            grace: route.grace.unwrap_or(base.grace).0,
            on_expiry,
            presence: presence.0,
            max_lifetime: max_lifetime.map(|time| time.0),
            revalidate_every: revalidate_every.map(|time| time.0),
            revalidate_grace: route.revalidate_grace.unwrap_or(base.revalidate_grace).0,
            limits: Arc::new(SocketLimits {
                ping_interval: ping_interval.0,
                ping_timeout: ping_timeout.0,
                idle_timeout: idle_timeout.map(|time| time.0),
                send_timeout: config.limits.send_timeout,
                token_bytes: config.limits.token_bytes,
                message_bytes,
                drain_code,
            }),
            subprotocols,
            allowed_origins: allowed.map(|origins| self.origins(&at, origins)),
        }
    }

    /// Checks that the provider can be asked about an open socket, for as long as the socket may stay open.
    fn can_be_asked(&mut self, config: &Config, at: &str, on_expiry: OnExpiry) {
        let mut asked = config.providers.iter().filter(|provider| provider.remote.is_some()).peekable();
        if asked.peek().is_none() && !config.providers.is_empty() {
            self.error(at, "asks the provider about open sockets, and no provider has `remote`");
        }
        let by_token = asked.find(|provider| preset_of(provider).is_none_or(|row| !row.quirks.answers_about_sessions));
        if let (Some(provider), true) = (by_token, on_expiry != OnExpiry::Close) {
            let name = provider.name.as_deref().or(provider.preset.as_deref()).unwrap_or("oidc");
            self.error(
                at,
                format!(
                    "provider {name} can be asked only about a token that has not ended, so sockets cannot outlive it;
use on_expiry: close"
                ),
            );
        }
    }
}
