//! The keys of the state that the instances of one deployment share: `shared`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, Toggle};
use crate::config::value::Time;

/// The Redis or Valkey server through which several instances share state.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SharedState {
    /// The server has this address: `rediss://host:port`, or `redis://host:port` without TLS. A list of at most 16
    /// names Sentinels (with `sentinel`) or the nodes of a cluster (with `cluster`). Database 0 is used.
    pub url: Option<OneOrMany>,
    /// Instances with the same name share their state. Default: `vestibule`.
    pub name: Option<String>,
    /// The proxy authenticates as this user of the server's access control list. It needs `password_file`. Default:
    /// none.
    pub username: Option<String>,
    /// This file holds the password for the server. It is read at each connect. Default: no password.
    pub password_file: Option<String>,
    /// This further certificate authority, in PEM, is trusted for `rediss://`. Default: none.
    pub ca_file: Option<String>,
    /// The Sentinels know the master by this name; `url` then names Sentinels. Default: none.
    pub sentinel: Option<String>,
    /// If true, `url` names nodes of a cluster. Default: false.
    pub cluster: Toggle<false>,
    /// One command may take this long. 1ms to 5s. Default: `500ms`.
    pub timeout: Option<Time>,
    /// If the copy of the shared state at this instance is older than this, `on_loss` applies. At least 30s. Default:
    /// `5m`.
    pub max_stale: Option<Time>,
    /// Credentials are treated in this way once the copy is older than `max_stale`. Default: `serve`.
    pub on_loss: OnLoss,
    /// This file holds the secret, the same at all instances, from which the keys for shared entries are derived. To
    /// replace a secret, write a list: entries are written with the first and verified with all. Default: the secret of
    /// `browser.session`.
    pub secret_file: Option<OneOrMany>,
}

/// The treatment of credentials once the copy of the shared state is older than `max_stale`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// They are checked against the last copy.
    #[default]
    Serve,
    /// They get 503, and so does `/readyz`. Open WebSockets stay open.
    Refuse,
}
