//! How sockets live and what is said on them: `websocket`, of the whole and of a route, and `dialects`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::{Size, Time};
use super::{Json, written};

/// What happens to a WebSocket when its token expires.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// It is closed after `grace`, unless the client has renewed the token.
    Close,
    /// Closed if the client can renew; else it lives while its user is seen within `presence`.
    Auto,
    /// It lives on to `max_lifetime`, which must be set.
    Keep,
}

/// A dialect's name, or `{ name: token-field, field: /auth_token, upstream: keep }`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectChoice {
    /// `vestibule`, `graphql-transport-ws`, `token-field`, `none`, or a name under `dialects`.
    pub name: String,
    /// `token-field`: the member of every message that may carry the token, as an RFC 6901 pointer.
    pub field: Option<String>,
    /// `token-field`: what the upstream sees of that member.
    pub upstream: Option<FieldMode>,
}

/// What the upstream sees of the member that carried a token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FieldMode {
    /// It as it is.
    #[default]
    Keep,
    /// The message without it.
    Remove,
    /// An empty text.
    Replace,
}

/// How WebSocket connections authenticate, live and end.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WebSocket {
    /// The messages by which a client authenticates. Unset: `vestibule`; before an upstream preset `none`.
    pub dialect: Option<DialectChoice>,
    /// From the 101 to the complete first message. Unset: 10s, and none for `token-field`; null: none.
    #[serde(deserialize_with = "written")]
    pub auth_timeout: Option<Option<Time>>,
    /// What happens when the token expires. Unset: `close`; `auto` where tokens are short-lived (`clerk`).
    pub on_expiry: Option<OnExpiry>,
    /// How long after its token a WebSocket is closed.
    pub grace: Time,
    /// Under `auto`: how long ago the user may have been seen, by a valid token on any request or WebSocket.
    pub presence: Time,
    /// The longest life of a WebSocket, whatever its tokens say. null: no limit; under `auto` 12h.
    pub max_lifetime: Option<Time>,
    /// How often the provider is asked whether the session is still active, such as `60s`; it needs `remote`. null:
    /// never.
    pub revalidate_every: Option<Time>,
    /// How long a WebSocket lives on while the provider does not answer.
    pub revalidate_grace: Time,
    /// Silence after which a ping is sent.
    pub ping_interval: Time,
    /// How long its pong may take.
    pub ping_timeout: Time,
    /// How long a WebSocket may be without a message, such as `1h`; pings do not count. null: no limit.
    pub idle_timeout: Option<Time>,
    /// The longest message that is read whole (`token-field`, `forward: true`, `first_message`).
    pub message_bytes: Size,
    /// Subprotocols that may be accepted before the upstream was asked.
    pub subprotocols: Vec<String>,
    /// The origins of upgrades. Once written, every upgrade that sends an `Origin` is checked.
    pub allowed_origins: Option<Vec<String>>,
    /// The close code at a shutdown.
    pub drain_code: u16,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            dialect: None,
            auth_timeout: None,
            on_expiry: None,
            grace: Time::seconds(30),
            presence: Time::seconds(30 * 60),
            max_lifetime: None,
            revalidate_every: None,
            revalidate_grace: Time::seconds(5 * 60),
            ping_interval: Time::seconds(30),
            ping_timeout: Time::seconds(10),
            idle_timeout: None,
            message_bytes: Size(1 << 20),
            subprotocols: Vec::new(),
            allowed_origins: None,
            drain_code: 1012,
        }
    }
}

/// The messages by which clients of another protocol authenticate: matchers and templates.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Dialect {
    /// A message that the server sends first, such as `{ type: auth_required }`. null: none.
    pub greeting: Option<Json>,
    /// The message that carries the token.
    pub authenticate: DialectMessage,
    /// Whether the message goes on to the upstream, without its token.
    pub forward: bool,
    /// The answer to it. `{user_id}`, `{exp}`, `{expires_in}`, and `{/pointer}` of the message that is answered,
    /// are replaced. null: none.
    pub acknowledge: Option<Json>,
    /// The message that renews the token on an open WebSocket. null: there is none.
    pub refresh: Option<DialectRefresh>,
    /// The message that says why a token was refused. `{message}`, `{code}` and, before a Close, `{request_id}` are replaced;
    /// the page can show the id, which finds the line in the log. null: the Close alone.
    pub error: Option<Json>,
    /// A message that the proxy answers itself, also before the client has authenticated. null: none.
    pub ping: Option<DialectPing>,
    /// Members of a forwarded message that the upstream reads as headers, such as `[/payload/headers]`.
    pub header_maps: Vec<String>,
    /// Whether a message may hold several JSON values, one on a line.
    pub lines: bool,
    /// Close codes, by the reason; the others stay those of the dialect `vestibule`.
    pub close: BTreeMap<String, u16>,
}

/// A message with a token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectMessage {
    /// What tells the message: members by name or RFC 6901 pointer, and the value of each; `{ present: true }` is
    /// any value.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// Pointers to the token; the first one present counts.
    pub token: Vec<String>,
}

/// A message that renews the token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectRefresh {
    /// What tells the message, as under `authenticate`.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// Pointers to the token; the first one present counts.
    pub token: Vec<String>,
    /// Whether the message goes on to the upstream, without its token.
    pub forward: bool,
    /// The answer to it. null: none.
    pub acknowledge: Option<Json>,
}

/// A message that the proxy answers itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectPing {
    /// What tells the message, as under `authenticate`.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// The answer.
    pub reply: Option<Json>,
}

/// `websocket` of a route; what is not written stays as it is above.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RouteWebSocket {
    /// As `websocket.dialect`.
    pub dialect: Option<DialectChoice>,
    /// As `websocket.auth_timeout`.
    #[serde(deserialize_with = "written")]
    pub auth_timeout: Option<Option<Time>>,
    /// As `websocket.on_expiry`.
    pub on_expiry: Option<OnExpiry>,
    /// As `websocket.grace`.
    pub grace: Option<Time>,
    /// As `websocket.presence`.
    pub presence: Option<Time>,
    /// As `websocket.max_lifetime`.
    #[serde(deserialize_with = "written")]
    pub max_lifetime: Option<Option<Time>>,
    /// As `websocket.revalidate_every`.
    #[serde(deserialize_with = "written")]
    pub revalidate_every: Option<Option<Time>>,
    /// As `websocket.revalidate_grace`.
    pub revalidate_grace: Option<Time>,
    /// As `websocket.ping_interval`.
    pub ping_interval: Option<Time>,
    /// As `websocket.ping_timeout`.
    pub ping_timeout: Option<Time>,
    /// As `websocket.idle_timeout`.
    #[serde(deserialize_with = "written")]
    pub idle_timeout: Option<Option<Time>>,
    /// As `websocket.message_bytes`.
    pub message_bytes: Option<Size>,
    /// As `websocket.subprotocols`.
    pub subprotocols: Option<Vec<String>>,
    /// As `websocket.allowed_origins`.
    pub allowed_origins: Option<Vec<String>>,
    /// As `websocket.drain_code`.
    pub drain_code: Option<u16>,
}
