//! `token_from`, at the top level and of a route: where a request may carry its token.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, flag, written};

/// The places in a request where a token is looked for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenFrom {
    /// The token is looked for in this header, or in each of a list: in `Authorization` as `Bearer <token>`, in others
    /// as the bare token. null: in none.
    pub header: Option<OneOrMany>,
    /// If true, a WebSocket may send its token in its first message.
    pub message: bool,
    /// The token is looked for in this parameter of the query. null: in none.
    pub query: Option<QuerySource>,
    /// The token is looked for in these entries of `Sec-WebSocket-Protocol`.
    pub subprotocol: Vec<SubprotocolSource>,
    /// The token is looked for in this cookie of the provider, such as `__session`, in requests from the proxy's own
    /// pages and those of `origins` only. Clerk's cookie with a suffix counts before the one without; with
    /// `publishable_key` only the suffix of that application does. The name alone may be written in place of the
    /// mapping.
    pub cookie: Option<CookieChoice>,
    /// If true, the password of `Authorization: Basic` is the token, for tools that know nothing else, such as git and
    /// pip. A missing credential is then challenged with Basic too.
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

/// `token_from` of a route; a key that is not written is as above.
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
    /// The cookie has this name, such as `__session` or `sb-abcdefgh-auth-token`.
    pub name: String,
    /// The token is written in the cookie in this way. Default: `plain`.
    pub encoding: CookieEncoding,
}

/// The form of a token in a cookie.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum CookieEncoding {
    /// The value is the token.
    #[default]
    Plain,
    /// The token is `access_token` of the session that Supabase's libraries keep: JSON, mostly in base64url behind
    /// `base64-`, and in parts (`.0`, `.1`) if it is long.
    Supabase,
}

/// A query parameter that carries a token.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuerySource {
    /// The parameter has this name, or one of a list.
    pub name: OneOrMany,
    /// A token in the query is treated in this way.
    pub mode: QueryMode,
    /// Only these requests may carry a token in their query.
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
    /// The entry begins with this text, such as `base64url.bearer.authorization.k8s.io.`, and the token follows.
    pub prefix: String,
    /// The token is written behind the prefix in this way. Default: `plain`.
    pub encoding: TokenEncoding,
}

/// The form of a token in a subprotocol entry.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenEncoding {
    /// It is written as it is.
    #[default]
    Plain,
    /// It is written in base64url.
    Base64url,
    /// It is percent-encoded (`v1.token.websocket.jupyter.org.`).
    Url,
}

/// The treatment of a token in a query.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryMode {
    /// The token is removed from the URL and used. Clients should not rely on it: it is deprecated.
    Move,
    /// The request is refused.
    Deny,
}

/// Requests that may carry a token in their query.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryUse {
    /// WebSocket upgrades may.
    Websocket,
    /// GET requests that accept `text/event-stream` may.
    Events,
    /// Every request that is no upgrade may.
    Http,
}
