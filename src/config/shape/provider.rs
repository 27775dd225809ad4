//! Who vouches for tokens: `providers`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;
use super::{Json, OneOrMany};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Provider {
    pub name: Option<String>,
    pub preset: Option<String>,
    pub issuer: Option<String>,
    pub publishable_key: Option<String>,
    pub project: Option<String>,
    pub domain: Option<String>,
    pub region: Option<String>,
    pub user_pool_id: Option<String>,
    pub url: Option<String>,
    pub realm: Option<String>,
    pub tenant: Option<String>,
    pub jwks: Jwks,
    pub secret: Option<String>,
    pub secret_file: Option<String>,
    pub algorithms: Option<Vec<String>>,
    pub audience: Option<OneOrMany>,
    pub authorized_parties: Option<Vec<String>>,
    pub clock_skew: Option<Time>,
    pub user_id: Option<String>,
    pub user_prefix: Option<String>,
    pub require: BTreeMap<String, Json>,
    pub allow: Allow,
    pub trust_unverified_email: bool,
    pub accept: Option<Vec<Accept>>,
    pub cache_ttl: Option<Time>,
    pub remote: Option<Remote>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Allow {
    pub users: Vec<String>,
    pub emails: Vec<String>,
    pub email_domains: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    AccessToken,
    IdToken,
    Template,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Jwks {
    pub url: Option<String>,
    pub file: Option<String>,
    pub pem_file: Option<String>,
    pub refresh: Option<Time>,
    pub max_stale: Option<Time>,
    pub ca_file: Option<String>,
    pub allow_http: bool,
}

/// How a provider is asked about a token or a session.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Remote {
    pub mode: Option<RemoteMode>,
    pub url: Option<String>,
    pub secret_key: Option<String>,
    pub secret_key_file: Option<String>,
    pub client_id: Option<String>,
    pub client_secret: Option<String>,
    pub client_secret_file: Option<String>,
    pub cache: Option<Time>,
    pub timeout: Option<Time>,
    pub concurrency: Option<u32>,
    pub ca_file: Option<String>,
    pub allow_http: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RemoteMode {
    Instead,
    Also,
}
