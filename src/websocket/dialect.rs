//! Reads and writes the messages of a dialect (DESIGN.md section 4.3): matching is on parsed JSON,
//! templates are written by a JSON serializer.

use serde_json::{Map, Value};

use crate::auth::Token;
use crate::json;
use crate::policy::{DialectSpec, Expectation, MessageSpec};

/// What a client's first message was.
#[derive(Debug)]
pub enum First {
    /// It carries a token.
    Authenticate(Token),
    /// Not one JSON object, or with a member twice.
    InvalidMessage,
    /// Another message.
    Unexpected,
    /// The right message without a token.
    MissingToken,
    /// What it carries cannot be a token.
    NotAToken,
}

/// What a later message of a client is to us.
#[derive(Debug)]
pub enum Later {
    /// `authenticate` again; answered as such.
    Authenticate(Presented),
    /// A refresh.
    Refresh(Presented),
}

/// The token of a later message.
#[derive(Debug)]
pub enum Presented {
    /// One to verify.
    Token(Token),
    /// None there.
    Missing,
    /// What is there cannot be one.
    NotAToken,
}

/// Reads the first message.
#[must_use]
pub(super) fn first(dialect: &DialectSpec, text: &[u8], token_bytes: usize) -> First {
    let Ok(message) = json::object(text) else { return First::InvalidMessage };
    if !matches(&dialect.authenticate, &message) {
        return First::Unexpected;
    }
    match token(&dialect.authenticate, &message, token_bytes) {
        Presented::Token(token) => First::Authenticate(token),
        Presented::Missing => First::MissingToken,
        Presented::NotAToken => First::NotAToken,
    }
}

/// Whether a later text message is for us; `None` passes on as it came, also when it is malformed.
#[must_use]
pub(super) fn later(dialect: &DialectSpec, text: &[u8], token_bytes: usize) -> Option<Later> {
    if !could_match(&dialect.refresh, text) && !could_match(&dialect.authenticate, text) {
        return None;
    }
    let message = json::object(text).ok()?;
    if matches(&dialect.refresh, &message) {
        return Some(Later::Refresh(token(&dialect.refresh, &message, token_bytes)));
    }
    if matches(&dialect.authenticate, &message) {
        return Some(Later::Authenticate(token(&dialect.authenticate, &message, token_bytes)));
    }
    None
}

/// Spares the parser the messages that cannot match: a literal of the rule is not in the text, and
/// no escape could spell it otherwise.
fn could_match(spec: &MessageSpec, text: &[u8]) -> bool {
    if text.contains(&b'\\') {
        return true;
    }
    spec.matches.iter().all(|(_, expectation)| match expectation {
        Expectation::Equals(Value::String(literal)) if !literal.is_empty() => {
            text.windows(literal.len()).any(|window| window == literal.as_bytes())
        }
        _ => true,
    })
}

fn member<'a>(message: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let Some(rest) = key.strip_prefix('/') else { return message.get(key) };
    let first = rest.split('/').next().unwrap_or(rest);
    let value = message.get(&first.replace("~1", "/").replace("~0", "~"))?;
    value.pointer(&rest[first.len()..])
}

fn matches(spec: &MessageSpec, message: &Map<String, Value>) -> bool {
    spec.matches.iter().all(|(key, expectation)| match (member(message, key), expectation) {
        (Some(found), Expectation::Equals(value)) => found == value,
        (Some(_), Expectation::Present) => true,
        (None, _) => false,
    })
}

fn token(spec: &MessageSpec, message: &Map<String, Value>, limit: usize) -> Presented {
    match spec.token.iter().find_map(|pointer| member(message, pointer)) {
        Some(Value::String(text)) if !text.is_empty() => match Token::presented(text, limit) {
            Ok(token) => Presented::Token(token),
            Err(_) => Presented::NotAToken,
        },
        Some(_) | None => Presented::Missing,
    }
}

/// What a template may speak of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values<'a> {
    /// `{user_id}`
    pub user_id: &'a str,
    /// `{exp}`, Unix seconds.
    pub exp: u64,
    /// `{expires_in}`, seconds.
    pub expires_in: u64,
    /// `{message}`
    pub message: &'a str,
    /// `{code}`
    pub code: u16,
}

/// Writes a message from a template. A string that is exactly one placeholder becomes the value with
/// its JSON type.
#[must_use]
pub(super) fn render(template: &Value, values: &Values<'_>) -> String {
    filled(template, values).to_string()
}

fn filled(template: &Value, values: &Values<'_>) -> Value {
    match template {
        Value::String(text) => match text.as_str() {
            "{user_id}" => values.user_id.into(),
            "{exp}" => values.exp.into(),
            "{expires_in}" => values.expires_in.into(),
            "{message}" => values.message.into(),
            "{code}" => values.code.into(),
            _ => Value::String(replaced(text, values)),
        },
        Value::Array(items) => items.iter().map(|item| filled(item, values)).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, item)| (key.clone(), filled(item, values))).collect())
        }
        other => other.clone(),
    }
}

/// One pass over the text, so that a value is never looked at for placeholders itself.
fn replaced(text: &str, values: &Values<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = [
            ("{user_id}", values.user_id.to_owned()),
            ("{exp}", values.exp.to_string()),
            ("{expires_in}", values.expires_in.to_string()),
            ("{message}", values.message.to_owned()),
            ("{code}", values.code.to_string()),
        ];
        if let Some((name, value)) = known.iter().find(|(name, _)| rest.starts_with(name)) {
            out.push_str(value);
            rest = &rest[name.len()..];
        } else {
            out.push('{');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn first_of(text: &str) -> &'static str {
        match first(&DialectSpec::vestibule(), text.as_bytes(), 64) {
            First::Authenticate(_) => "token",
            First::InvalidMessage => "invalid",
            First::Unexpected => "unexpected",
            First::MissingToken => "missing",
            First::NotAToken => "not a token",
        }
    }

    #[test]
    fn the_first_message_is_read_strictly() {
        for (text, expected) in [
            (r#"{"type":"authenticate","token":"abc"}"#, "token"),
            (r#" {"token":"abc","type":"authenticate","more":[1]} "#, "token"),
            (r#"{"\u0074ype":"authenticate","token":"abc"}"#, "token"),
            (r#"{"type":"authenticate"}"#, "missing"),
            (r#"{"type":"authenticate","token":""}"#, "missing"),
            (r#"{"type":"authenticate","token":null}"#, "missing"),
            (r#"{"type":"authenticate","token":7}"#, "missing"),
            (r#"{"type":"authenticate","token":"a b"}"#, "not a token"),
            (r#"{"type":"hello","token":"abc"}"#, "unexpected"),
            (r#"{"token":"abc"}"#, "unexpected"),
            (r#"{"type":"authenticate","token":"abc","token":"abd"}"#, "invalid"),
            (r#"{"type":"authenticate","token":"abc"}x"#, "invalid"),
            (r#"["authenticate"]"#, "invalid"),
            ("hello", "invalid"),
            ("", "invalid"),
        ] {
            assert_eq!(first_of(text), expected, "{text}");
        }
    }

    #[test]
    fn later_messages_pass_unless_they_are_ours() {
        let dialect = DialectSpec::vestibule();
        let is_ours = |text: &str| later(&dialect, text.as_bytes(), 64).is_some();
        for (text, ours) in [
            (r#"{"type":"refresh_auth","token":"abc"}"#, true),
            (r#"{"token":"abc","type":"refresh_auth"}"#, true),
            (r#"{"type":"refresh\u005fauth","token":"abc"}"#, true),
            (r#"{"type":"refresh_auth"}"#, true),
            (r#"{"type":"authenticate","token":"abc"}"#, true),
            (r#"{"type":"run_cell","code":"refresh_auth"}"#, false),
            (r#"{"type":"refresh_auth","token":"a","token":"b"}"#, false),
            (r#"{"type":"refresh_auth""#, false),
            (r#"{"type":["refresh_auth"]}"#, false),
        ] {
            assert_eq!(is_ours(text), ours, "{text}");
        }
    }

    #[test]
    fn templates_keep_json_types_and_never_expand_a_value() {
        let values = Values { user_id: "{exp}\"x", exp: 7, expires_in: 3, message: "m", code: 1008 };
        let template = json!({"u": "{user_id}", "e": "{exp}", "t": "in {expires_in} s for {user_id}", "n": null, "l": ["{code}", "{other}"]});
        assert_eq!(
            render(&template, &values),
            r#"{"u":"{exp}\"x","e":7,"t":"in 3 s for {exp}\"x","n":null,"l":[1008,"{other}"]}"#
        );
    }
}
