//! `token_from`, at the top level and of a route: where a request may carry its token.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, flag, written};

/// Where a token is looked for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenFrom {
    /// One header or a list. In `Authorization` a Bearer token, in others the bare token.
    pub header: Option<OneOrMany>,
    /// Whether a WebSocket's first message may carry it.
    pub message: bool,
    /// A query parameter that carries it. null: not looked at.
    pub query: Option<QuerySource>,
    /// Subprotocol entries of an upgrade that carry it.
    pub subprotocol: Vec<SubprotocolSource>,
    /// The provider's own cookie, such as `__session`, from pages of our own and of `origins` only. Of Clerk's two
    /// forms the suffixed one counts, its own where `publishable_key` is written. The name alone may be written in place of
    /// the mapping.
    pub cookie: Option<CookieChoice>,
    /// Whether the password of Basic in `Authorization` is the token, for git, pip and other tools that know nothing else.
    /// A missing credential is then challenged with Basic too.
    pub basic: bool,
}

impl Default for TokenFrom {
    fn default() -> Self {
        Self {
            header: Some(OneOrMany(vec!["Authorization".to_owned()])),
            message: true,
            query: Some(QuerySource::default()),
            subprotocol: Vec::new(),
            cookie: None,
            basic: false,
        }
    }
}

/// `token_from` of a route; what is not written stays as it is above.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RouteTokenFrom {
    /// As `token_from.header`.
    #[serde(deserialize_with = "written")]
    pub header: Option<Option<OneOrMany>>,
    /// As `token_from.message`.
    #[serde(deserialize_with = "flag")]
    pub message: Option<bool>,
    /// As `token_from.query`.
    #[serde(deserialize_with = "written")]
    pub query: Option<Option<QuerySource>>,
    /// As `token_from.subprotocol`.
    pub subprotocol: Option<Vec<SubprotocolSource>>,
    /// As `token_from.cookie`.
    #[serde(deserialize_with = "written")]
    pub cookie: Option<Option<CookieChoice>>,
    /// As `token_from.basic`.
    #[serde(deserialize_with = "flag")]
    pub basic: Option<bool>,
}

/// A cookie of the provider that carries its token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
pub struct CookieChoice {
    /// The name of the cookie, such as `__session` or `sb-abcdefgh-auth-token`.
    pub name: String,
    /// How the token is written in it.
    pub encoding: CookieEncoding,
}

/// How a token is written in a cookie.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum CookieEncoding {
    /// As it is.
    #[default]
    Plain,
    /// As `access_token` of the session that Supabase's libraries keep: JSON, mostly in base64url behind `base64-`, and in
    /// parts (`.0`, `.1`) where it is long.
    Supabase,
}

/// A query parameter that carries a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuerySource {
    /// One name or a list.
    pub name: OneOrMany,
    /// Whether the token is taken or refused.
    pub mode: QueryMode,
    /// Which requests may carry it there.
    #[serde(rename = "for")]
    pub uses: Vec<QueryUse>,
}

impl Default for QuerySource {
    fn default() -> Self {
        Self { name: OneOrMany(vec!["token".to_owned()]), mode: QueryMode::Move, uses: vec![QueryUse::Websocket] }
    }
}

/// A subprotocol entry that carries a token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SubprotocolSource {
    /// What the entry begins with, such as `base64url.bearer.authorization.k8s.io.`.
    pub prefix: String,
    /// How the token is written behind the prefix.
    pub encoding: TokenEncoding,
}

/// How a token is written in a subprotocol entry.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenEncoding {
    /// As it is.
    #[default]
    Plain,
    /// In base64url.
    Base64url,
    /// Percent-encoded (`v1.token.websocket.jupyter.org.`).
    Url,
}

/// What happens to a token in a query.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryMode {
    /// It is taken out of the URL and used. Deprecated for clients.
    Move,
    /// The request is refused.
    Deny,
}

/// Requests that may carry a token in their query.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryUse {
    /// WebSocket upgrades.
    Websocket,
    /// GET requests that accept `text/event-stream`.
    Events,
    /// Every request that is no upgrade.
    Http,
}
