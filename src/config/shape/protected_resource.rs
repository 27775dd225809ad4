//! `protected_resource`, at the top level and of a route: what OAuth clients are told about this server (RFC 9728).

use schemars::JsonSchema;
use serde::Deserialize;

/// A resource that OAuth clients, such as those of MCP, find their authorization server for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProtectedResource {
    /// The URL of the resource, which its tokens name as their audience. null: `public_url`, with the path of the route.
    pub resource: Option<String>,
    /// The scopes that clients may request there.
    pub scopes: Vec<String>,
}
