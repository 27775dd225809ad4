//! Dialects as data (DESIGN.md section 4.3): what each message of an in-band handshake looks like.

use serde_json::{Value, json};

/// The message shapes of an in-band WebSocket handshake, and its close codes.
#[derive(Clone, Debug, PartialEq)]
pub struct DialectSpec {
    /// Its name in the file.
    pub name: String,
    /// The first message.
    pub authenticate: MessageSpec,
    /// A later one that renews the token.
    pub refresh: MessageSpec,
    /// What a refusal looks like before the Close; `None`: the Close alone.
    pub error: Option<Value>,
    /// Codes that differ from the table of section 4.2.
    pub close: Vec<(Close, u16)>,
}

/// How to recognise a message and where it keeps its token.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageSpec {
    /// Top-level members or RFC 6901 pointers, and what stands there.
    pub matches: Vec<(String, Expectation)>,
    /// RFC 6901 pointers; the first one present is the token.
    pub token: Vec<String>,
    /// The answer; `None`: none of ours.
    pub acknowledge: Option<Value>,
}

/// What a member must be for a message to match.
#[derive(Clone, Debug, PartialEq)]
pub enum Expectation {
    /// Exactly this value.
    Equals(Value),
    /// There at all.
    Present,
}

/// Why a session ends: a row of the table in section 4.2, and a key of `close:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the key of `close:` with its name")]
pub enum Close {
    Timeout,
    InvalidMessage,
    UnexpectedMessage,
    MissingToken,
    InvalidToken,
    Expired,
    Lifetime,
    Idle,
    TokenInUrl,
    Forbidden,
    TooMany,
    IdentityChanged,
    Unavailable,
    UpstreamRefused,
    UpstreamNotFound,
    UpstreamFailed,
    UpstreamLost,
}

impl Close {
    /// The code of section 4.2 where the dialect names no other.
    #[must_use]
    pub const fn default_code(self) -> u16 {
        match self {
            Self::Timeout
            | Self::InvalidMessage
            | Self::UnexpectedMessage
            | Self::MissingToken
            | Self::InvalidToken
            | Self::TokenInUrl
            | Self::Forbidden
            | Self::TooMany
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
    /// The default dialect (section 4.2).
    #[must_use]
    pub fn vestibule() -> Self {
        let typed = |name: &str| vec![("type".to_owned(), Expectation::Equals(json!(name)))];
        Self {
            name: "vestibule".to_owned(),
            authenticate: MessageSpec {
                matches: typed("authenticate"),
                token: vec!["/token".to_owned()],
                acknowledge: Some(json!({
                    "type": "authenticated",
                    "user_id": "{user_id}",
                    "expires_at": "{exp}",
                    "expires_in": "{expires_in}"
                })),
            },
            refresh: MessageSpec {
                matches: typed("refresh_auth"),
                token: vec!["/token".to_owned()],
                acknowledge: Some(json!({
                    "type": "auth_refreshed",
                    "expires_at": "{exp}",
                    "expires_in": "{expires_in}"
                })),
            },
            error: Some(json!({ "type": "error", "message": "{message}" })),
            close: Vec::new(),
        }
    }

    /// The code a session of this dialect ends with.
    #[must_use]
    pub fn code(&self, close: Close) -> u16 {
        self.close.iter().find(|(key, _)| *key == close).map_or(close.default_code(), |(_, code)| *code)
    }
}
