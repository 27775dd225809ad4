//! Reads and writes the messages of a dialect (docs/contract.md section 4.3): matching is on parsed JSON,
//! templates are written by a JSON serializer.

use serde_json::{Map, Value};

use crate::auth::Token;
use crate::json;
use crate::policy::{DialectSpec, Expectation, MessageSpec};

/// What templates copy from the message being answered: pointer and value.
pub(super) type Copies = Vec<(String, Value)>;

fn copies(dialect: &DialectSpec, message: &Map<String, Value>) -> Copies {
    dialect
        .copied
        .iter()
        .map(|pointer| (pointer.clone(), member(message, pointer).cloned().unwrap_or(Value::Null)))
        .collect()
}

/// What a client's first message was.
#[derive(Debug)]
pub enum First {
    /// It carries a token.
    Authenticate(Token),
    /// A ping of the application's, and its answer; what follows is the first message.
    Ping(String),
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
    /// A ping of the application's, and its answer.
    Ping(String),
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

/// Reads the first message, and what its answer copies from it.
#[must_use]
pub(super) fn first(dialect: &DialectSpec, text: &[u8], token_bytes: usize) -> (First, Copies) {
    let Ok(message) = json::object(text) else { return (First::InvalidMessage, Vec::new()) };
    let copies = copies(dialect, &message);
    if let Some(reply) = pong(dialect, &message, &copies) {
        return (First::Ping(reply), copies);
    }
    if !matches(&dialect.authenticate.matches, &message) {
        return (First::Unexpected, copies);
    }
    let first = match token(&dialect.authenticate, &message, token_bytes) {
        Presented::Token(token) => First::Authenticate(token),
        Presented::Missing => First::MissingToken,
        Presented::NotAToken => First::NotAToken,
    };
    (first, copies)
}

/// Whether a later text message is for us; `None` passes on as it came, also when it is malformed.
#[must_use]
pub(super) fn later(dialect: &DialectSpec, text: &[u8], token_bytes: usize) -> Option<(Later, Copies)> {
    let rules = [Some(&dialect.authenticate.matches), dialect.refresh.as_ref().map(|refresh| &refresh.matches)];
    let rules = rules.into_iter().chain([dialect.ping.as_ref().map(|ping| &ping.matches)]);
    if !rules.flatten().any(|matches| could_match(matches, text)) {
        return None;
    }
    let message = json::object(text).ok()?;
    let copies = copies(dialect, &message);
    if let Some(reply) = pong(dialect, &message, &copies) {
        return Some((Later::Ping(reply), copies));
    }
    if let Some(refresh) = &dialect.refresh
        && matches(&refresh.matches, &message)
    {
        return Some((Later::Refresh(token(refresh, &message, token_bytes)), copies));
    }
    if matches(&dialect.authenticate.matches, &message) {
        return Some((Later::Authenticate(token(&dialect.authenticate, &message, token_bytes)), copies));
    }
    None
}

fn pong(dialect: &DialectSpec, message: &Map<String, Value>, copies: &Copies) -> Option<String> {
    let ping = dialect.ping.as_ref()?;
    matches(&ping.matches, message).then(|| render(&ping.reply, &Values { copies, ..Values::default() }))
}

/// Spares the parser the messages that cannot match: a literal of the rule is not in the text, and
/// no escape could spell it otherwise.
fn could_match(matches: &[(String, Expectation)], text: &[u8]) -> bool {
    if text.contains(&b'\\') {
        return true;
    }
    matches.iter().all(|(_, expectation)| match expectation {
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

fn matches(rule: &[(String, Expectation)], message: &Map<String, Value>) -> bool {
    rule.iter().all(|(key, expectation)| match (member(message, key), expectation) {
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
    /// `{/pointer}`
    pub copies: &'a [(String, Value)],
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
            text if text.starts_with("{/") && text.find('}') == Some(text.len() - 1) => {
                copied(values, &text[1..text.len() - 1]).cloned().unwrap_or(Value::Null)
            }
            _ => Value::String(replaced(text, values)),
        },
        Value::Array(items) => items.iter().map(|item| filled(item, values)).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, item)| (key.clone(), filled(item, values))).collect())
        }
        other => other.clone(),
    }
}

fn copied<'a>(values: &Values<'a>, pointer: &str) -> Option<&'a Value> {
    values.copies.iter().find(|(name, _)| name == pointer).map(|(_, value)| value)
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
        } else if let Some(end) = rest.find('}').filter(|_| rest.starts_with("{/")) {
            match copied(values, &rest[1..end]) {
                Some(Value::String(text)) => out.push_str(text),
                Some(value) => out.push_str(&value.to_string()),
                None => {}
            }
            rest = &rest[end + 1..];
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
        match first(&DialectSpec::vestibule(), text.as_bytes(), 64).0 {
            First::Authenticate(_) => "token",
            First::InvalidMessage => "invalid",
            First::Unexpected => "unexpected",
            First::MissingToken => "missing",
            First::NotAToken => "not a token",
            First::Ping(_) => "ping",
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
    fn pings_of_an_application_are_answered_with_what_they_asked() {
        let mut dialect = DialectSpec::vestibule();
        let matches =
            vec![("/m/type".to_owned(), Expectation::Equals(json!("ping"))), ("n".to_owned(), Expectation::Present)];
        dialect.ping = Some(crate::policy::PingSpec { matches, reply: json!({"pong": "{/n}"}) });
        dialect.copied = vec!["/n".to_owned()];
        for (text, expected) in [
            (r#"{"m":{"type":"ping"},"n":[1]}"#, Some(r#"{"pong":[1]}"#)),
            (r#"{"m":{"type":"ping"}}"#, None),
            (r#"{"m":{"type":"pong"},"n":1}"#, None),
        ] {
            let found = match later(&dialect, text.as_bytes(), 64) {
                Some((Later::Ping(reply), _)) => Some(reply),
                _ => None,
            };
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn templates_keep_json_types_and_never_expand_a_value() {
        let copies = [("/ref".to_owned(), json!(7)), ("/topic".to_owned(), json!("a{exp}"))];
        let values = Values { user_id: "{exp}\"x", exp: 7, expires_in: 3, message: "m", code: 1008, copies: &copies };
        let template = json!({"u": "{user_id}", "e": "{exp}", "t": "in {expires_in} s for {user_id}", "n": null, "l": ["{code}", "{other}"], "r": "{/ref}", "s": "{/topic}:{/ref}", "a": "{/absent}"});
        assert_eq!(
            render(&template, &values),
            r#"{"u":"{exp}\"x","e":7,"t":"in 3 s for {exp}\"x","n":null,"l":[1008,"{other}"],"r":7,"s":"a{exp}:7","a":null}"#
        );
    }
}
