//! Dialects as data (docs/contract.md section 4.3): what each message of an in-band handshake looks like.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::validate::Check;
use crate::config;

/// The message shapes of an in-band WebSocket handshake, and its close codes.
#[derive(Clone, Debug, PartialEq)]
pub struct DialectSpec {
    /// Its name in the file.
    pub name: String,
    /// What the server says first, where a protocol wants that.
    pub greeting: Option<Value>,
    /// The first message.
    pub authenticate: MessageSpec,
    /// A later one that renews the token.
    pub refresh: Option<MessageSpec>,
    /// What a refusal looks like before the Close; `None`: the Close alone.
    pub error: Option<Value>,
    /// A message that only asks whether someone is there, and the answer.
    pub ping: Option<PingSpec>,
    /// The pointers that templates copy from the message being answered.
    pub copied: Vec<String>,
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

/// An application's own ping: answered by us, before authentication too.
#[derive(Clone, Debug, PartialEq)]
pub struct PingSpec {
    /// How to recognise it.
    pub matches: Vec<(String, Expectation)>,
    /// The answer.
    pub reply: Value,
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

/// The keys of `close:`.
const CLOSE_KEYS: [(&str, Close); 17] = [
    ("timeout", Close::Timeout),
    ("invalid_message", Close::InvalidMessage),
    ("unexpected_message", Close::UnexpectedMessage),
    ("missing_token", Close::MissingToken),
    ("invalid_token", Close::InvalidToken),
    ("expired", Close::Expired),
    ("lifetime", Close::Lifetime),
    ("idle", Close::Idle),
    ("token_in_url", Close::TokenInUrl),
    ("forbidden", Close::Forbidden),
    ("too_many", Close::TooMany),
    ("identity_changed", Close::IdentityChanged),
    ("unavailable", Close::Unavailable),
    ("upstream_refused", Close::UpstreamRefused),
    ("upstream_not_found", Close::UpstreamNotFound),
    ("upstream_failed", Close::UpstreamFailed),
    ("upstream_lost", Close::UpstreamLost),
];

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
            greeting: None,
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
            refresh: Some(MessageSpec {
                matches: typed("refresh_auth"),
                token: vec!["/token".to_owned()],
                acknowledge: Some(json!({
                    "type": "auth_refreshed",
                    "expires_at": "{exp}",
                    "expires_in": "{expires_in}"
                })),
            }),
            error: Some(json!({ "type": "error", "message": "{message}" })),
            ping: None,
            copied: Vec::new(),
            close: Vec::new(),
        }
    }

    /// The code a session of this dialect ends with.
    #[must_use]
    pub fn code(&self, close: Close) -> u16 {
        self.close.iter().find(|(key, _)| *key == close).map_or(close.default_code(), |(_, code)| *code)
    }
}

/// Whether a code may stand in a Close that is sent (RFC 6455 section 7.4).
pub(super) fn is_sendable(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 1008 | 1011..=1014 | 3000..=4999)
}

impl Check {
    /// The built-in dialects and those the file writes.
    pub(super) fn dialects(
        &mut self,
        written: &BTreeMap<String, config::Dialect>,
    ) -> BTreeMap<String, Arc<DialectSpec>> {
        let mut out = BTreeMap::from([("vestibule".to_owned(), Arc::new(DialectSpec::vestibule()))]);
        for (name, dialect) in written {
            let at = format!("dialects.{name}");
            if out.contains_key(name) || name == "none" {
                self.wrong(&at, "is the name of a built-in dialect; choose another");
            }
            let spec = self.dialect(&at, name, dialect);
            out.insert(name.clone(), Arc::new(spec));
        }
        out
    }

    fn dialect(&mut self, at: &str, name: &str, dialect: &config::Dialect) -> DialectSpec {
        let path = format!("{at}.authenticate");
        let authenticate = MessageSpec {
            matches: self.matches(&path, &dialect.authenticate.matches),
            token: self.pointers(&path, &dialect.authenticate.token),
            acknowledge: dialect.acknowledge.clone(),
        };
        let refresh = dialect.refresh.as_ref().map(|refresh| {
            let path = format!("{at}.refresh");
            MessageSpec {
                matches: self.matches(&path, &refresh.matches),
                token: self.pointers(&path, &refresh.token),
                acknowledge: refresh.acknowledge.clone(),
            }
        });
        let ping = dialect.ping.as_ref().and_then(|ping| {
            let path = format!("{at}.ping");
            let matches = self.matches(&path, &ping.matches);
            if ping.reply.is_none() {
                self.wrong(&path, "has no reply; write reply: { type: pong }");
            }
            ping.reply.clone().map(|reply| PingSpec { matches, reply })
        });
        let mut close = Vec::new();
        for (key, code) in &dialect.close {
            let path = format!("{at}.close.{key}");
            match CLOSE_KEYS.iter().find(|(name, _)| name == key) {
                None => {
                    let known: Vec<&str> = CLOSE_KEYS.iter().map(|(name, _)| *name).collect();
                    self.wrong(path, format!("unknown key; known here: {}", known.join(", ")));
                }
                Some(_) if !is_sendable(*code) => {
                    self.wrong(path, format!("{code} cannot be sent in a Close; write 1008, 1011, or 3000 to 4999"));
                }
                Some((_, close_key)) => close.push((*close_key, *code)),
            }
        }
        let mut copied = Vec::new();
        let templates = [
            authenticate.acknowledge.as_ref(),
            refresh.as_ref().and_then(|refresh| refresh.acknowledge.as_ref()),
            dialect.error.as_ref(),
            ping.as_ref().map(|ping| &ping.reply),
        ];
        for template in templates.into_iter().flatten() {
            collect_pointers(template, &mut copied);
        }
        DialectSpec {
            name: name.to_owned(),
            greeting: dialect.greeting.clone(),
            authenticate,
            refresh,
            error: dialect.error.clone(),
            ping,
            copied,
            close,
        }
    }

    fn matches(&mut self, at: &str, written: &BTreeMap<String, Value>) -> Vec<(String, Expectation)> {
        if written.is_empty() {
            self.wrong(at, "has no match: every message would be taken for it; write match: { type: authenticate }");
        }
        let present = json!({"present": true});
        written
            .iter()
            .map(|(key, value)| {
                let expectation =
                    if *value == present { Expectation::Present } else { Expectation::Equals(value.clone()) };
                (key.clone(), expectation)
            })
            .collect()
    }

    fn pointers(&mut self, at: &str, written: &[String]) -> Vec<String> {
        if written.is_empty() {
            self.wrong(at, "has no token; write where it stands, as in token: [/token]");
        }
        for (index, pointer) in written.iter().enumerate() {
            if !pointer.starts_with('/') {
                self.wrong(
                    format!("{at}.token[{index}]"),
                    format!("\"{pointer}\" is not an RFC 6901 pointer; write /{pointer}"),
                );
            }
        }
        written.to_vec()
    }
}

/// Every `{/pointer}` of a template.
fn collect_pointers(template: &Value, out: &mut Vec<String>) {
    match template {
        Value::String(text) => {
            for part in text.split("{/").skip(1) {
                if let Some((pointer, _)) = part.split_once('}') {
                    let pointer = format!("/{pointer}");
                    if !out.contains(&pointer) {
                        out.push(pointer);
                    }
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_pointers(item, out)),
        Value::Object(members) => members.values().for_each(|item| collect_pointers(item, out)),
        _ => {}
    }
}
