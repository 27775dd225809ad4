//! The server behind the proxy: `upstream`, at the top level and of a route.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// A server behind the proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Upstream {
    /// The upstream has this address: `http://host:port`, `https://host:port` or `unix:/path`.
    pub url: Option<String>,
    /// The preset sets what a known server needs, `jupyter` or `marimo`: `dialect: none` and session cookies.
    /// `vestibule check` prints how to start the server. null: none.
    pub preset: Option<String>,
    /// The upstream gets this `Host`. Default: `upstream` for `https://`, else `client`.
    pub host: Option<HostHeader>,
    /// A connection to the upstream must be established within this time; else the answer is 504.
    pub connect_timeout: Option<Time>,
    /// The upstream must answer a WebSocket upgrade within this time, the connection included; else the answer is 504,
    /// or the WebSocket is closed with 1011.
    pub handshake_timeout: Option<Time>,
    /// The head of the response must come within this time after the end of the request; else the answer is 504. The
    /// body may take any time.
    pub response_timeout: Option<Time>,
    /// A connection to the upstream that is unused for this time is not used again. Keep it below the time after which
    /// the server closes it (uvicorn: 5s).
    pub pool_idle_timeout: Option<Time>,
    /// If true, a connection to the upstream serves several requests. If false, each request has its own, with
    /// `Connection: close`.
    pub reuse: Toggle<true>,
    /// These keys set how the certificate of an `https://` upstream is verified.
    pub tls: UpstreamTls,
    /// The upstream gets the verified token in this way, if it checks tokens itself.
    pub token_to: TokenTo,
    /// This secret of the upstream is sent in a header, for verified callers only. null: none.
    pub credential: Option<Credential>,
}

/// The verification of an `https://` upstream.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpstreamTls {
    /// This further certificate authority, in PEM, is trusted.
    pub ca_file: Option<String>,
    /// The certificate must be for this name. null: for the host of the URL.
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

/// The `Host` that the upstream gets.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum HostHeader {
    /// It is the `Host` that the client sent.
    Client,
    /// It is the host of the upstream's URL.
    Upstream,
}

/// The way in which the upstream gets the verified token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenTo {
    /// HTTP requests carry the token in this way.
    pub http: TokenToHttp,
    /// WebSocket upgrades carry the token in this way: `none`, `header` (as `Authorization: Bearer`), `{ query: token
    /// }` or `{ first_message: vestibule }`.
    pub websocket: TokenToWebSocket,
}

/// The way in which an upstream gets the token of a WebSocket.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenToWebSocket {
    /// This is the short form, `none` or `header`.
    pub form: Option<String>,
    /// The token is in this parameter of the query.
    pub query: Option<String>,
    /// The proxy sends the token in a first message of this dialect.
    pub first_message: Option<String>,
}

/// The way in which an upstream gets the token of a request.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TokenToHttp {
    /// The token is not sent.
    #[default]
    None,
    /// The token is sent as `Authorization: Bearer`.
    Header,
}

/// The upstream's own secret.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Credential {
    /// The secret is sent in this header.
    pub header: Option<String>,
    /// The header has this value.
    pub value: Option<String>,
    /// This file holds the value, in place of `value`.
    pub value_file: Option<String>,
}
