//! Dialects as data (docs/contract.md section 4.3): the form of each message of an in-band handshake.
//!
//! This module owns the types and the built-in dialects; `written` reads those of the configuration.

mod written;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{CookieSource, ReservedNames};
pub use crate::config::FieldMode;
pub(super) use written::is_sendable;

/// The dialects of a configuration by name, built-in ones and those from the file.
pub(super) type Dialects = BTreeMap<String, Arc<DialectSpec>>;

/// The message shapes of an in-band WebSocket handshake, and its close codes.
#[derive(Clone, Debug, PartialEq)]
pub struct DialectSpec {
    /// The name in the configuration.
    pub name: String,
    /// The message that the server sends first, in protocols that have one.
    pub greeting: Option<Value>,
    /// The first message.
    pub authenticate: MessageSpec,
    /// The later message that renews the token.
    pub refresh: Option<MessageSpec>,
    /// The message of a refusal before the Close; `None`: only the Close is sent.
    pub error: Option<Value>,
    /// The application's own ping, and its answer.
    pub ping: Option<PingSpec>,
    /// The pointers that templates copy from the message being answered.
    pub copied: Vec<String>,
    /// The close codes that differ from the table of section 4.2.
    pub close: Vec<(Close, u16)>,
    /// Whether one message may hold several JSON values, separated by newlines.
    pub lines: bool,
    /// Pointers to members of a forwarded message that backends read as request headers.
    pub header_maps: Vec<String>,
    /// The header names that are removed from such a member.
    pub reserved: ReservedNames,
    /// The names of further headers that carry credentials. They are removed from such a member too.
    pub credentials: Vec<String>,
    /// The cookies that carry credentials. They are removed from a `Cookie` header in such a member.
    pub cookies: Vec<CookieSource>,
    /// The subprotocol that identifies this dialect.
    pub subprotocol: Option<&'static str>,
    /// The member in which every client message may carry the token.
    pub field: Option<FieldSpec>,
}

/// The member in which each message of a client may carry a token (`token-field`), and the value that the upstream gets
/// there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// The unescaped member names of the path to it.
    pub pointer: Vec<String>,
    /// Whether the token is forwarded.
    pub upstream: FieldMode,
}

/// The rule that recognises a message, and the places of its token.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageSpec {
    /// The top-level members or RFC 6901 pointers, each with the value that it must have.
    pub matches: Vec<(String, Expectation)>,
    /// The RFC 6901 pointers to the token; the first one present is used.
    pub token: Vec<String>,
    /// Whether the message is forwarded to the upstream, without its token.
    pub forward: bool,
    /// The answer; `None` if the proxy sends none.
    pub acknowledge: Option<Value>,
}

/// A ping of the application, which the proxy answers, also before authentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PingSpec {
    /// The members that recognise it.
    pub matches: Vec<(String, Expectation)>,
    /// The answer.
    pub reply: Value,
}

/// The condition that a member must meet for a message to match.
#[derive(Clone, Debug, PartialEq)]
pub enum Expectation {
    /// It has exactly this value.
    Equals(Value),
    /// It is present.
    Present,
}

/// The reason why a session ends: a row of the table in section 4.2, and a key of `close:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::missing_docs_in_private_items, reason = "each is the key of `close:` with its name")]
pub enum Close {
    Timeout,
    InvalidMessage,
    UnexpectedMessage,
    MissingToken,
    InvalidToken,
    ExpiredOnArrival,
    Expired,
    Lifetime,
    Idle,
    TokenInUrl,
    Forbidden,
    TooMany,
    IdentityChanged,
    Revoked,
    Unavailable,
    UpstreamRefused,
    UpstreamNotFound,
    UpstreamFailed,
    UpstreamLost,
}

/// The keys of `close:`.
const CLOSE_KEYS: [(&str, Close); 19] = [
    ("timeout", Close::Timeout),
    ("invalid_message", Close::InvalidMessage),
    ("unexpected_message", Close::UnexpectedMessage),
    ("missing_token", Close::MissingToken),
    ("invalid_token", Close::InvalidToken),
    ("expired_on_arrival", Close::ExpiredOnArrival),
    ("expired", Close::Expired),
    ("lifetime", Close::Lifetime),
    ("idle", Close::Idle),
    ("token_in_url", Close::TokenInUrl),
    ("forbidden", Close::Forbidden),
    ("too_many", Close::TooMany),
    ("identity_changed", Close::IdentityChanged),
    ("revoked", Close::Revoked),
    ("unavailable", Close::Unavailable),
    ("upstream_refused", Close::UpstreamRefused),
    ("upstream_not_found", Close::UpstreamNotFound),
    ("upstream_failed", Close::UpstreamFailed),
    ("upstream_lost", Close::UpstreamLost),
];

impl Close {
    /// Returns the close code of section 4.2, which applies unless the dialect names another.
    #[must_use]
    pub const fn default_code(self) -> u16 {
        match self {
            Self::Timeout
            | Self::InvalidMessage
            | Self::UnexpectedMessage
            | Self::MissingToken
            | Self::InvalidToken
            // Front ends that stop only on 1008 would reconnect forever with the same token.
            | Self::ExpiredOnArrival
            | Self::TokenInUrl
            | Self::Forbidden
            | Self::TooMany
            | Self::Revoked
            | Self::UpstreamRefused
            | Self::UpstreamNotFound => 1008,
            Self::Expired | Self::Lifetime => 4401,
            Self::Idle => 1001,
            Self::IdentityChanged => 1012,
            Self::Unavailable => 1013,
            Self::UpstreamFailed | Self::UpstreamLost => 1011,
        }
    }
}

impl DialectSpec {
    /// Makes the default dialect (section 4.2).
    #[must_use]
    pub fn vestibule() -> Self {
        let typed = |name: &str| vec![("type".to_owned(), Expectation::Equals(json!(name)))];
        Self {
            authenticate: MessageSpec {
                matches: typed("authenticate"),
                token: vec!["/token".to_owned()],
                forward: false,
                acknowledge: Some(json!({
                    "type": "authenticated",
                    "user_id": "{user_id}",
                    "expires_at": "{exp}",
                    "expires_in": "{expires_in}"
                })),
            },
            refresh: Some(MessageSpec {
                matches: typed("refresh_auth"),
                token: vec!["/token".to_owned()],
                forward: false,
                acknowledge: Some(json!({
                    "type": "auth_refreshed",
                    "expires_at": "{exp}",
                    "expires_in": "{expires_in}"
                })),
            }),
            error: Some(json!({ "type": "error", "message": "{message}" })),
            ..Self::empty("vestibule")
        }
    }

    /// Makes the dialect of GraphQL over WebSocket, `graphql-transport-ws`. The client's `connection_init` carries the
    /// token and is forwarded without it; the upstream's own `connection_ack` is the acknowledgement. Its client
    /// library reconnects on 4403 and never on 4401, 1008 or 1011.
    #[must_use]
    pub fn graphql_transport_ws(reserved: ReservedNames) -> Self {
        let pointers = ["/payload/Authorization", "/payload/headers/Authorization", "/payload/authToken"];
        Self {
            authenticate: MessageSpec {
                matches: vec![("type".to_owned(), Expectation::Equals(json!("connection_init")))],
                token: pointers.map(str::to_owned).to_vec(),
                forward: true,
                acknowledge: None,
            },
            close: vec![
                (Close::Timeout, 4408),
                (Close::InvalidMessage, 4400),
                (Close::MissingToken, 4401),
                (Close::InvalidToken, 4401),
                (Close::UnexpectedMessage, 4401),
                (Close::ExpiredOnArrival, 4403),
                (Close::Expired, 4403),
                (Close::Forbidden, 4403),
                (Close::TooMany, 4429),
                (Close::UpstreamFailed, 1013),
                (Close::UpstreamLost, 1013),
            ],
            header_maps: ["/payload", "/payload/headers"].map(str::to_owned).to_vec(),
            reserved,
            subprotocol: Some("graphql-transport-ws"),
            ..Self::empty("graphql-transport-ws")
        }
    }

    /// Makes the dialect `token-field`: each message is the application's own and may carry the token in one member.
    #[must_use]
    pub fn token_field(field: FieldSpec) -> Self {
        Self {
            error: Some(json!({ "type": "error", "error": "{message}", "message": "{message}" })),
            close: [Close::MissingToken, Close::InvalidToken, Close::ExpiredOnArrival, Close::Forbidden]
                .map(|close| (close, 4001))
                .to_vec(),
            field: Some(field),
            ..Self::empty("token-field")
        }
    }

    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            greeting: None,
            authenticate: MessageSpec { matches: Vec::new(), token: Vec::new(), forward: false, acknowledge: None },
            refresh: None,
            error: None,
            ping: None,
            copied: Vec::new(),
            close: Vec::new(),
            lines: false,
            header_maps: Vec::new(),
            reserved: ReservedNames::default(),
            credentials: Vec::new(),
            cookies: Vec::new(),
            subprotocol: None,
            field: None,
        }
    }

    /// Returns whether any message of a handshake is forwarded to the upstream. Then names and tokens are removed from
    /// a client's messages, so they have to be read whole.
    #[must_use]
    pub fn forwards(&self) -> bool {
        self.authenticate.forward || self.refresh.as_ref().is_some_and(|refresh| refresh.forward)
    }

    /// Returns whether a message may be an array: every key that recognises it is a pointer.
    #[must_use]
    pub fn takes_arrays(&self) -> bool {
        self.authenticate.matches.iter().all(|(key, _)| key.starts_with('/'))
    }

    /// Returns the number of fixed members by which the acknowledgement is recognised.
    #[must_use]
    pub fn acknowledge_literals(&self) -> usize {
        self.authenticate.acknowledge.as_ref().map_or(0, literals)
    }

    /// Returns every pointer that may lead to a token.
    pub fn token_places(&self) -> impl Iterator<Item = &str> {
        let later = self.refresh.iter().flat_map(|refresh| &refresh.token);
        self.authenticate.token.iter().chain(later).map(String::as_str)
    }

    /// Returns the close code with which a session of this dialect ends for a reason.
    #[must_use]
    pub fn code(&self, close: Close) -> u16 {
        self.close.iter().find(|(key, _)| *key == close).map_or(close.default_code(), |(_, code)| *code)
    }
}

/// Returns the number of fixed values in a template: neither placeholders nor containers.
fn literals(template: &Value) -> usize {
    match template {
        Value::String(text) => usize::from(!text.contains('{')),
        Value::Array(items) => items.iter().map(literals).sum(),
        Value::Object(members) => members.values().map(literals).sum(),
        _ => 1,
    }
}
