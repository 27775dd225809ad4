//! Where a token may stand: `token_from`, of the whole and of a route.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, flag, written};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenFrom {
    pub header: Option<OneOrMany>,
    pub message: bool,
    pub query: Option<QuerySource>,
    pub subprotocol: Vec<SubprotocolSource>,
    pub cookie: Option<String>,
}

impl Default for TokenFrom {
    fn default() -> Self {
        Self {
            header: Some(OneOrMany(vec!["Authorization".to_owned()])),
            message: true,
            query: Some(QuerySource::default()),
            subprotocol: Vec::new(),
            cookie: None,
        }
    }
}

/// `token_from` of a route: what is not written stays as it is above.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RouteTokenFrom {
    #[serde(deserialize_with = "written")]
    pub header: Option<Option<OneOrMany>>,
    #[serde(deserialize_with = "flag")]
    pub message: Option<bool>,
    #[serde(deserialize_with = "written")]
    pub query: Option<Option<QuerySource>>,
    pub subprotocol: Option<Vec<SubprotocolSource>>,
    #[serde(deserialize_with = "written")]
    pub cookie: Option<Option<String>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuerySource {
    pub name: OneOrMany,
    pub mode: QueryMode,
    #[serde(rename = "for")]
    pub uses: Vec<QueryUse>,
}

impl Default for QuerySource {
    fn default() -> Self {
        Self { name: OneOrMany(vec!["token".to_owned()]), mode: QueryMode::Move, uses: vec![QueryUse::Websocket] }
    }
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SubprotocolSource {
    pub prefix: String,
    pub encoding: TokenEncoding,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenEncoding {
    #[default]
    Plain,
    Base64url,
    Url,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryMode {
    Move,
    Deny,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum QueryUse {
    Websocket,
    Events,
}
