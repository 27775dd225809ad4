//! Templates of a dialect's messages (docs/contract.md section 4.3). A JSON serializer writes the messages, so no value
//! can change their structure; a message of the upstream is recognised by the fixed members of its template.

use serde_json::Value;

/// The values that templates copy from the message that is answered, each with its JSON pointer. Most messages have
/// none, and then they take eight bytes: each open session has these.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Copies(Option<Box<Copied>>);

#[derive(Clone, Debug, PartialEq)]
struct Copied(Vec<(String, Value)>);

impl FromIterator<(String, Value)> for Copies {
    fn from_iter<T: IntoIterator<Item = (String, Value)>>(values: T) -> Self {
        let values = Vec::from_iter(values);
        Self((!values.is_empty()).then(|| Box::new(Copied(values))))
    }
}

impl std::ops::Deref for Copies {
    type Target = [(String, Value)];

    fn deref(&self) -> &[(String, Value)] {
        self.0.as_ref().map_or(&[], |copied| &copied.0)
    }
}

/// The values of a template's placeholders.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values<'a> {
    /// `{user_id}`
    pub user_id: &'a str,
    /// `{exp}`, in Unix seconds.
    pub exp: u64,
    /// `{expires_in}`, in seconds.
    pub expires_in: u64,
    /// `{message}`
    pub message: &'a str,
    /// `{code}`
    pub code: u16,
    /// `{request_id}`; empty where the message does not end a socket. A member that is exactly this placeholder is left out
    /// then.
    pub request_id: &'a str,
    /// `{/pointer}`
    pub copies: &'a [(String, Value)],
}

/// Writes a message from a template. A string that is exactly one placeholder becomes the value with its JSON type.
#[must_use]
pub(super) fn render(template: &Value, values: &Values<'_>) -> String {
    fill(template, values).to_string()
}

fn fill(template: &Value, values: &Values<'_>) -> Value {
    match template {
        Value::String(text) => match text.as_str() {
            "{user_id}" => values.user_id.into(),
            "{exp}" => values.exp.into(),
            "{expires_in}" => values.expires_in.into(),
            "{message}" => values.message.into(),
            "{code}" => values.code.into(),
            "{request_id}" => values.request_id.into(),
            text if text.starts_with("{/") && text.find('}') == Some(text.len() - 1) => {
                find_copy(values, &text[1..text.len() - 1]).cloned().unwrap_or(Value::Null)
            }
            _ => Value::String(interpolate(text, values)),
        },
        Value::Array(items) => items.iter().map(|item| fill(item, values)).collect(),
        Value::Object(members) => {
            let is_absent = |item: &Value| values.request_id.is_empty() && item.as_str() == Some("{request_id}");
            let present = members.iter().filter(|(_, item)| !is_absent(item));
            Value::Object(present.map(|(key, item)| (key.clone(), fill(item, values))).collect())
        }
        other => other.clone(),
    }
}

fn find_copy<'a>(values: &Values<'a>, pointer: &str) -> Option<&'a Value> {
    values.copies.iter().find(|(name, _)| name == pointer).map(|(_, value)| value)
}

/// Replaces the placeholders of a string in one pass, so that placeholders inside a value are not replaced.
fn interpolate(text: &str, values: &Values<'_>) -> String {
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
            ("{request_id}", values.request_id.to_owned()),
        ];
        if let Some((name, value)) = known.iter().find(|(name, _)| rest.starts_with(name)) {
            out.push_str(value);
            rest = &rest[name.len()..];
        } else if let Some(end) = rest.find('}').filter(|_| rest.starts_with("{/")) {
            match find_copy(values, &rest[1..end]) {
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

/// Returns whether this template could have produced a message: all its fixed values are in their places.
#[must_use]
pub(super) fn matches_template(template: &Value, message: &Value) -> bool {
    match (template, message) {
        (Value::String(text), _) if text.contains('{') => true,
        (Value::Object(members), Value::Object(found)) => members
            .iter()
            .all(|(key, item)| found.get(key).map_or(is_optional(item), |found| matches_template(item, found))),
        (Value::Array(items), Value::Array(found)) => {
            items.len() == found.len() && items.iter().zip(found).all(|(item, found)| matches_template(item, found))
        }
        (template, message) => template == message,
    }
}

/// Returns whether a template has no fixed value, so that a message may lack the member.
fn is_optional(template: &Value) -> bool {
    match template {
        Value::String(text) => text.contains('{'),
        Value::Array(items) => items.iter().all(is_optional),
        Value::Object(members) => members.values().all(is_optional),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_keep_json_types_and_never_expand_a_value() {
        let copies = [("/ref".to_owned(), json!(7)), ("/topic".to_owned(), json!("a{exp}"))];
        let values = Values {
            user_id: "{exp}\"x",
            exp: 7,
            expires_in: 3,
            message: "m",
            code: 1008,
            request_id: "r1",
            copies: &copies,
        };
        let template = json!({"u": "{user_id}", "e": "{exp}", "t": "in {expires_in} s for {user_id}", "n": null, "l": ["{code}", "{other}"], "r": "{/ref}", "s": "{/topic}:{/ref}", "a": "{/absent}", "i": "{request_id}"});
        assert_eq!(
            render(&template, &values),
            r#"{"u":"{exp}\"x","e":7,"t":"in 3 s for {exp}\"x","n":null,"l":[1008,"{other}"],"r":7,"s":"a{exp}:7","a":null,"i":"r1"}"#
        );
    }

    #[test]
    fn a_request_id_that_is_not_known_is_left_out() {
        let template = json!({"type": "error", "id": "{request_id}", "text": "{message} ({request_id})"});
        let values = Values { message: "m", ..Values::default() };
        assert_eq!(render(&template, &values), r#"{"type":"error","text":"m ()"}"#);
        assert!(matches_template(&template, &json!({"type": "error", "text": "m"})));
    }

    #[test]
    fn a_message_is_recognised_by_the_fixed_members_of_its_template() {
        let template = json!({"type": "ok", "user": "{user_id}", "data": {"v": 1, "exp": "{exp}"}});
        for (message, expected) in [
            (json!({"type": "ok", "user": 7, "data": {"v": 1}, "more": []}), true),
            (json!({"type": "ok", "data": {"v": 1, "exp": 3}}), true),
            (json!({"type": "ok", "user": "x"}), false),
            (json!({"type": "no", "user": "x", "data": {"v": 1}}), false),
            (json!(["ok"]), false),
        ] {
            assert_eq!(matches_template(&template, &message), expected, "{message}");
        }
        assert!(matches_template(&json!(["{/0}", null, "phx_reply"]), &json!(["1", null, "phx_reply"])));
        assert!(!matches_template(&json!(["{/0}", null, "phx_reply"]), &json!(["1", null, "phx_close"])));
    }
}
