//! The keys of the state that the instances of one deployment share: `shared`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, Toggle};
use crate::config::value::Time;

/// What several instances tell each other, through Redis or Valkey.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SharedState {
    /// The engine: `rediss://host:port`, or `redis://host:port` without TLS. A list names Sentinels (with `sentinel`) or the
    /// nodes of a cluster (with `cluster`). Database 0 is used.
    pub url: Option<OneOrMany>,
    /// The deployment: instances of one name share. Unset: `vestibule`.
    pub name: Option<String>,
    /// The user of the engine's access control list.
    pub username: Option<String>,
    /// The file with the engine's password, read at each connect.
    pub password_file: Option<String>,
    /// A further certificate authority for `rediss://`, in PEM.
    pub ca_file: Option<String>,
    /// The name that the Sentinels know the master by; `url` then names Sentinels.
    pub sentinel: Option<String>,
    /// Whether `url` names nodes of a cluster.
    pub cluster: Toggle<false>,
    /// The limit for one command. Unset: 500ms.
    pub timeout: Option<Time>,
    /// How old the copy may be before `on_loss` applies. Unset: 5m.
    pub max_stale: Option<Time>,
    /// What happens to credentials once the copy is older than `max_stale`.
    pub on_loss: OnLoss,
    /// The secret that all instances have, from which digests and codes are derived. Unset: that of `browser.session`. A
    /// list replaces one: the first writes, all verify.
    pub secret_file: Option<OneOrMany>,
}

/// What happens to credentials once the copy of the shared state is older than `max_stale`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// They are judged by the last copy.
    #[default]
    Serve,
    /// They get 503, and `/readyz` does; open sockets live on.
    Refuse,
}
