//! The server behind the proxy: `upstream`, of the whole and of a route.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// A server behind the proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Upstream {
    /// `http://`, `https://` or `unix:/path`.
    pub url: Option<String>,
    /// A known server, `jupyter` or `marimo`: dialect none, session cookies, and `check` prints what the server
    /// needs.
    pub preset: Option<String>,
    /// Whose `Host` the upstream sees. Unset: `upstream` for https, else `client`.
    pub host: Option<HostHeader>,
    /// How long connecting may take.
    pub connect_timeout: Option<Time>,
    /// How long the answer to a WebSocket upgrade may take.
    pub handshake_timeout: Option<Time>,
    /// How long the response head may take from the end of the request; bodies are not limited.
    pub response_timeout: Option<Time>,
    /// How long an unused connection is kept. Keep it below the server's own keep-alive (uvicorn: 5s).
    pub pool_idle_timeout: Option<Time>,
    /// Whether connections are used again. false: a new one for every request, with `Connection: close`.
    pub reuse: Toggle<true>,
    /// How an https upstream is verified.
    pub tls: UpstreamTls,
    /// Whether the upstream gets the verified token, for one that checks tokens itself.
    pub token_to: TokenTo,
    /// The upstream's own secret, which is sent for verified callers only. null: none.
    pub credential: Option<Credential>,
}

/// How an `https` upstream is verified.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpstreamTls {
    /// A further certificate authority, PEM.
    pub ca_file: Option<String>,
    /// The name that the certificate must be for. null: the host of the URL.
    pub server_name: Option<String>,
}

/// A boolean with its default in the type, so that a partly written struct keeps it.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Toggle<const DEFAULT: bool>(pub bool);

impl<const DEFAULT: bool> Default for Toggle<DEFAULT> {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

/// Whose `Host` the upstream sees.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum HostHeader {
    /// The client's.
    Client,
    /// The upstream's own.
    Upstream,
}

/// How the upstream gets the verified token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenTo {
    /// On HTTP requests.
    pub http: TokenToHttp,
    /// On WebSocket upgrades: `none`, `header`, `{ query: token }` or `{ first_message: vestibule }`.
    pub websocket: TokenToWebSocket,
}

/// How an upstream gets the token of a WebSocket.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenToWebSocket {
    /// `none` or `header`, as the short form.
    pub form: Option<String>,
    /// The query parameter that carries the token.
    pub query: Option<String>,
    /// The dialect in which the upstream expects the token in a first message.
    pub first_message: Option<String>,
}

/// How an upstream gets the token of a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenToHttp {
    /// It does not.
    #[default]
    None,
    /// As `Authorization: Bearer`.
    Header,
}

/// The upstream's own secret.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Credential {
    /// The header that carries the secret.
    pub header: Option<String>,
    /// The header's value.
    pub value: Option<String>,
    /// The file that holds the value, instead.
    pub value_file: Option<String>,
}
