//! The lifetime of WebSockets and the messages on them: `websocket`, at the top level and of a route, and `dialects`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::{Size, Time};
use super::{Json, written};

/// The treatment of a WebSocket whose token expires.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// It is closed `grace` after the end of the token, unless the client has renewed the token.
    Close,
    /// It is closed like that if the client has renewed its token before. Otherwise it stays open while its user is
    /// seen within `presence`.
    Auto,
    /// It stays open until `max_lifetime`, which must be set.
    Keep,
}

/// A dialect's name, or `{ name: token-field, field: /auth_token, upstream: keep }`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectChoice {
    /// This is the dialect: `vestibule`, `graphql-transport-ws`, `token-field`, `none`, or a name under `dialects`.
    pub name: String,
    /// `token-field`: this member of every message may carry the token. It is an RFC 6901 pointer. Default:
    /// `/auth_token`.
    pub field: Option<String>,
    /// `token-field`: the upstream gets that member in this form. Default: `keep`.
    pub upstream: Option<FieldMode>,
}

/// The form in which the upstream gets the member that carried a token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FieldMode {
    /// The member is as the client sent it.
    #[default]
    Keep,
    /// The message has no such member.
    Remove,
    /// The member is an empty text.
    Replace,
}

/// The authentication, the lifetime and the end of WebSocket connections.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WebSocket {
    /// Clients authenticate by the messages of this dialect. Default: `vestibule`; with an upstream preset `none`.
    pub dialect: Option<DialectChoice>,
    /// The first message must be complete this long after the upgrade was answered; else the WebSocket is closed with
    /// 1008. null: no limit. Default: `10s`; under `token-field` no limit.
    #[serde(deserialize_with = "written")]
    pub auth_timeout: Option<Option<Time>>,
    /// A WebSocket whose token expires is treated in this way. Default: `close`; `auto` if the tokens of all providers
    /// are short-lived (`clerk`, `aws-alb`).
    pub on_expiry: Option<OnExpiry>,
    /// A WebSocket is closed this long after its token's end, or after the provider's `clock_skew` if that is longer.
    pub grace: Time,
    /// Under `auto`: a WebSocket stays open while a valid token of its user came on any request or WebSocket within
    /// this time. Beside `shared` at least 15s.
    pub presence: Time,
    /// A WebSocket is closed with 4401 after this time, whatever its tokens say. null: no limit; under `auto` 12h.
    pub max_lifetime: Option<Time>,
    /// The provider is asked this often whether the session of an open WebSocket is still active, such as `60s`; if it
    /// is not, the WebSocket is closed with 1008. It needs a provider with `remote`. null: never.
    pub revalidate_every: Option<Time>,
    /// If the provider cannot answer, a WebSocket stays open for this time and is then closed with 1013. A session of
    /// `browser.login` that cannot be renewed goes on for this time too.
    pub revalidate_grace: Time,
    /// A ping is sent to a side that has sent nothing for this time.
    pub ping_interval: Time,
    /// A side that sends nothing for this time after a ping is given up, and the WebSocket ends.
    pub ping_timeout: Time,
    /// A WebSocket without a message in either direction for this time is closed with 1001, such as `1h`. Pings do not
    /// count. null: no limit.
    pub idle_timeout: Option<Time>,
    /// A message that must be read whole (`token-field`, `forward: true`, `first_message`) may have this many bytes; a
    /// longer one is closed with 1009. 64KiB to 64MiB.
    pub message_bytes: Size,
    /// If the upgrade has no credential, the first offered subprotocol that is in this list is accepted before the
    /// upstream is connected, which must then accept it too.
    pub subprotocols: Vec<String>,
    /// An upgrade with an `Origin` must have one of these. null: only upgrades with a cookie are checked, as all
    /// requests with a cookie are.
    pub allowed_origins: Option<Vec<String>>,
    /// WebSockets are closed with this code at a shutdown: 1012, 1001, or 3000 to 4999.
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

/// The messages by which clients of another protocol authenticate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Dialect {
    /// The proxy sends this message first, such as `{ type: auth_required }`. null: none.
    pub greeting: Option<Json>,
    /// The client sends its token in this message.
    pub authenticate: DialectMessage,
    /// If true, the message goes on to the upstream, without its token.
    pub forward: bool,
    /// The proxy answers the message with this one. `{user_id}`, `{exp}`, `{expires_in}`, and `{/pointer}` into the
    /// message that is answered, are replaced. null: it does not answer.
    pub acknowledge: Option<Json>,
    /// The client renews its token on an open WebSocket by this message. null: it cannot.
    pub refresh: Option<DialectRefresh>,
    /// The proxy says by this message why a token was refused. `{message}`, `{code}` and, before a Close,
    /// `{request_id}` are replaced. A page can show the request id, by which the line in the log is found. null: only
    /// the Close is sent.
    pub error: Option<Json>,
    /// The proxy answers this message itself, also before the client has authenticated. null: there is none.
    pub ping: Option<DialectPing>,
    /// The upstream reads these members of a forwarded message as headers, such as `[/payload/headers]`. Headers that
    /// no client may send, and credentials, are removed from them.
    pub header_maps: Vec<String>,
    /// If true, a message may hold several JSON values, one on each line.
    pub lines: bool,
    /// A WebSocket that ends for one of these reasons is closed with the code beside it; for others the codes of the
    /// dialect `vestibule` apply. docs/websocket-protocol.md lists the reasons.
    pub close: BTreeMap<String, u16>,
}

/// A message with a token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectMessage {
    /// A message is this one if all of these members, by name or RFC 6901 pointer, have the value beside them; `{
    /// present: true }` is any value.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// The token is at one of these RFC 6901 pointers; the first one present counts.
    pub token: Vec<String>,
}

/// A message that renews the token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectRefresh {
    /// A message is this one if all of these members match, as under `authenticate`.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// The token is at one of these RFC 6901 pointers; the first one present counts.
    pub token: Vec<String>,
    /// If true, the message goes on to the upstream, without its token.
    pub forward: bool,
    /// The proxy answers the message with this one. null: it does not answer.
    pub acknowledge: Option<Json>,
}

/// A message that the proxy answers itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectPing {
    /// A message is this one if all of these members match, as under `authenticate`.
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    /// The proxy answers with this message.
    pub reply: Option<Json>,
}

/// `websocket` of a route; a key that is not written is as above.
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
