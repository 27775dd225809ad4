//! `protected_resource`, at the top level and of a route: what OAuth clients are told about this server (RFC 9728).

use schemars::JsonSchema;
use serde::Deserialize;

/// The description of a resource for OAuth clients (RFC 9728).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProtectedResource {
    /// This is the URL of the resource, as clients write it. Tokens for it name it as their audience. Default:
    /// `public_url`, with the path of the route.
    pub resource: Option<String>,
    /// The document lists these scopes, which clients may request. Default: none.
    pub scopes: Vec<String>,
}
