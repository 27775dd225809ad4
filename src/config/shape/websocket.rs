//! How sockets live and what is said on them: `websocket`, of the whole and of a route, and `dialects`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::{Size, Time};
use super::{Json, written};

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    Close,
    Auto,
    Keep,
}

/// A dialect's name, or `{ name: token-field, field: /auth_token, upstream: keep }`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectChoice {
    pub name: String,
    pub field: Option<String>,
    pub upstream: Option<FieldMode>,
}

/// What the upstream sees of the field that carried a token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FieldMode {
    #[default]
    Keep,
    Remove,
    Replace,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WebSocket {
    pub dialect: Option<DialectChoice>,
    /// Not written: 10 s, and none for `token-field`; null: none.
    #[serde(deserialize_with = "written")]
    pub auth_timeout: Option<Option<Time>>,
    pub on_expiry: Option<OnExpiry>,
    pub grace: Time,
    pub presence: Time,
    pub max_lifetime: Option<Time>,
    pub revalidate_every: Option<Time>,
    pub revalidate_grace: Time,
    pub ping_interval: Time,
    pub ping_timeout: Time,
    pub idle_timeout: Option<Time>,
    pub message_bytes: Size,
    pub subprotocols: Vec<String>,
    pub allowed_origins: Option<Vec<String>>,
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

/// The messages of a handshake that a user writes: matchers and templates.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Dialect {
    pub greeting: Option<Json>,
    pub authenticate: DialectMessage,
    pub forward: bool,
    pub acknowledge: Option<Json>,
    pub refresh: Option<DialectRefresh>,
    pub error: Option<Json>,
    pub ping: Option<DialectPing>,
    pub header_maps: Vec<String>,
    pub lines: bool,
    pub close: BTreeMap<String, u16>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectMessage {
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    pub token: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectRefresh {
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    pub token: Vec<String>,
    pub forward: bool,
    pub acknowledge: Option<Json>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DialectPing {
    #[serde(rename = "match")]
    pub matches: BTreeMap<String, Json>,
    pub reply: Option<Json>,
}

/// `websocket` of a route: what is not written stays as it is above.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RouteWebSocket {
    pub dialect: Option<DialectChoice>,
    #[serde(deserialize_with = "written")]
    pub auth_timeout: Option<Option<Time>>,
    pub on_expiry: Option<OnExpiry>,
    pub grace: Option<Time>,
    pub presence: Option<Time>,
    #[serde(deserialize_with = "written")]
    pub max_lifetime: Option<Option<Time>>,
    #[serde(deserialize_with = "written")]
    pub revalidate_every: Option<Option<Time>>,
    pub revalidate_grace: Option<Time>,
    pub ping_interval: Option<Time>,
    pub ping_timeout: Option<Time>,
    #[serde(deserialize_with = "written")]
    pub idle_timeout: Option<Option<Time>>,
    pub message_bytes: Option<Size>,
    pub subprotocols: Option<Vec<String>>,
    pub allowed_origins: Option<Vec<String>>,
    pub drain_code: Option<u16>,
}
