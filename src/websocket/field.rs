//! Implements the dialect `token-field`: finds the member of a client's message that may carry the token, and removes
//! or empties it without changing any other byte (docs/contract.md section 4.3).
//!
//! `serde_json` parses the message and returns the place of each value. Only what is between two values (white space, a
//! comma, the next member's name) is parsed here.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::classify::without_case;
use crate::policy::{FieldMode, FieldSpec};

/// The result of reading the field of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FieldRead<'a> {
    /// The text in the field; `None` where the field is absent, null or empty.
    pub(super) token: Option<Cow<'a, str>>,
    /// Whether the field holds neither a text nor null.
    pub(super) is_not_text: bool,
    /// The message for the upstream, if it differs from the client's.
    pub(super) edited: Option<String>,
}

impl FieldRead<'_> {
    /// Returns the token without a leading `Bearer `.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref().map(without_scheme).filter(|token| !token.is_empty())
    }
}

/// Returns a token without a leading `Bearer `, which some front ends write everywhere.
pub(super) fn without_scheme(text: &str) -> &str {
    match text.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer ") => rest.trim_start_matches(' '),
        _ => text,
    }
}

/// The error for a message that is not one JSON object, or holds the field twice or in another letter case.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not one JSON object with the field at most once")]
pub(super) struct UnreadableMessage;

/// Reads one message.
///
/// # Errors
/// Returns an error when the message is not one JSON object, or holds the field, or an object around it, twice or in a
/// spelling that only readers without regard to case accept.
pub(super) fn read<'a>(spec: &FieldSpec, text: &'a str) -> Result<FieldRead<'a>, UnreadableMessage> {
    let mut within = text;
    let mut found = None;
    for (depth, name) in spec.pointer.iter().enumerate() {
        let Some(member) = find(within, name)? else { break };
        if depth + 1 == spec.pointer.len() {
            found = Some((within, member));
        } else if member.value.get().starts_with('{') {
            within = member.value.get();
        } else {
            break;
        }
    }
    let Some((object, member)) = found else { return Ok(FieldRead { token: None, is_not_text: false, edited: None }) };
    let value = member.value.get();
    let token: Option<Cow<'a, str>> = match value.as_bytes() {
        [b'"', body @ .., b'"'] if !body.contains(&b'\\') => Some(Cow::Borrowed(&value[1..value.len() - 1])),
        [b'"', ..] => Some(Cow::Owned(serde_json::from_str(value).map_err(|_| UnreadableMessage)?)),
        _ => None,
    };
    let is_not_text = token.is_none() && value != "null";
    // The offset of the value in the whole text. Both are parts of one allocation.
    let start = value.as_ptr().addr() - text.as_ptr().addr();
    let at = start..start + value.len();
    let edited = match spec.upstream {
        FieldMode::Keep => None,
        FieldMode::Replace => Some(format!("{}\"\"{}", &text[..at.start], &text[at.end..])),
        FieldMode::Remove => {
            let object_start = object.as_ptr().addr() - text.as_ptr().addr();
            let before =
                member.before.map(|value| value.get().as_ptr().addr() - text.as_ptr().addr() + value.get().len());
            let out = member_range(text, object_start, before, at);
            Some(format!("{}{}", &text[..out.start], &text[out.end..]))
        }
    };
    Ok(FieldRead { token: token.filter(|token| !token.is_empty()), is_not_text, edited })
}

/// Returns the range of a member with the comma before it, or after it when it is the first member.
fn member_range(text: &str, object_start: usize, before: Option<usize>, value: Range<usize>) -> Range<usize> {
    let next =
        |from: usize, wanted: u8| text.as_bytes()[from..].iter().position(|byte| *byte == wanted).map(|at| from + at);
    if let Some(before) = before {
        // Between two values there can only be white space and the comma before the next name.
        return next(before, b',').unwrap_or(before)..value.end;
    }
    let name = next(object_start + 1, b'"').unwrap_or(value.start);
    let behind = text[value.end..].bytes().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    match behind.map(|at| value.end + at) {
        Some(comma) if text.as_bytes()[comma] == b',' => name..comma + 1,
        _ => name..value.end,
    }
}

struct Member<'a> {
    value: &'a RawValue,
    /// The preceding value in the same object.
    before: Option<&'a RawValue>,
}

/// Finds a member of an object, and checks that everything around it is JSON.
fn find<'a>(object: &'a str, name: &str) -> Result<Option<Member<'a>>, UnreadableMessage> {
    let mut deserializer = serde_json::Deserializer::from_str(object);
    let found = Find { name }.deserialize(&mut deserializer).map_err(|_| UnreadableMessage)?;
    deserializer.end().map_err(|_| UnreadableMessage)?;
    Ok(found)
}

struct Find<'n> {
    name: &'n str,
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = Option<Member<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Option<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut before) = (None, None);
        while let Some(name) = members.next_key_seed(Named(self.name))? {
            let value: &'de RawValue = members.next_value()?;
            let is_twice = name == Name::Field && found.replace(Member { value, before }).is_some();
            if is_twice || name == Name::LooksAlike {
                return Err(serde::de::Error::custom("the field has two readings"));
            }
            before = Some(value);
        }
        Ok(found)
    }
}

/// The result of comparing a member's name with that of the field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Field,
    /// Equal without regard to case.
    LooksAlike,
    Another,
}

/// A deserializer seed that compares a member's name, after its escapes are resolved, with that of the field.
struct Named<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(if name == self.0 {
            Name::Field
        } else if without_case(name) == without_case(self.0) {
            Name::LooksAlike
        } else {
            Name::Another
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(pointer: &[&str], upstream: FieldMode) -> FieldSpec {
        FieldSpec { pointer: pointer.iter().map(|part| (*part).to_owned()).collect(), upstream }
    }

    #[test]
    fn the_field_is_found_and_absent_null_and_empty_are_the_same() {
        for (text, expected, no_text) in [
            (r#"{"auth_token":"abc"}"#, Some("abc"), false),
            (r#"{"prompt":"{\"auth_token\":\"x\"}","auth_token":"abc"}"#, Some("abc"), false),
            (r#"{"auth\u005ftoken":"a\u0062c"}"#, Some("abc"), false),
            (r#"{"a":{"auth_token":"abc"}}"#, None, false),
            (r#"{"auth_token":null}"#, None, false),
            (r#"{"auth_token":""}"#, None, false),
            (r#"{"prompt":"x"}"#, None, false),
            ("{}", None, false),
            (r#"{"auth_token":7}"#, None, true),
            (r#"{"auth_token":["abc"]}"#, None, true),
            (r#"{"auth_token":false}"#, None, true),
        ] {
            let read = read(&spec(&["auth_token"], FieldMode::Keep), text).expect(text);
            assert_eq!((read.token.as_deref(), read.is_not_text, read.edited), (expected, no_text, None), "{text}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for text in [
            r#"{"auth_token":"a","auth_token":"b"}"#,
            r#"{"auth_token":"a","auth\u005ftoken":"b"}"#,
            r#"{"auth_token":"a"}x"#,
            r#"{"auth_token":"a"}{}"#,
            r#"{"Auth_Token":"a"}"#,
            r#"{"auth_token":"a","AUTH_TOKEN":"b"}"#,
            r#"["auth_token"]"#,
            r#"{"auth_token":"a""#,
            r#"{"auth_token":"a",}"#,
            r#"{"x":01,"auth_token":"a"}"#,
            "hello",
            "",
        ] {
            assert_eq!(read(&spec(&["auth_token"], FieldMode::Keep), text), Err(UnreadableMessage), "{text}");
        }
        let nested = spec(&["meta", "token"], FieldMode::Keep);
        assert_eq!(read(&nested, r#"{"meta":{"token":"a"},"meta":{"token":"b"}}"#), Err(UnreadableMessage));
        assert_eq!(read(&nested, r#"{"meta":{"token":"a","token":"b"}}"#), Err(UnreadableMessage));
    }

    #[test]
    fn the_upstream_sees_the_field_as_the_mode_says_and_the_rest_byte_for_byte() {
        for (text, removed, replaced) in [
            (r#"{"auth_token":"abc"}"#, "{}", r#"{"auth_token":""}"#),
            (r#"{"auth_token":"abc", "b":1.50}"#, r#"{ "b":1.50}"#, r#"{"auth_token":"", "b":1.50}"#),
            (r#"{"a":[1, 2] , "auth_token" : "abc" }"#, r#"{"a":[1, 2]  }"#, r#"{"a":[1, 2] , "auth_token" : "" }"#),
            (
                r#"{"a":"\u00e9","auth_token":null,"b":2}"#,
                r#"{"a":"\u00e9","b":2}"#,
                r#"{"a":"\u00e9","auth_token":"","b":2}"#,
            ),
            (r#" {"b":1} "#, r#" {"b":1} "#, r#" {"b":1} "#),
        ] {
            let edited = |mode| read(&spec(&["auth_token"], mode), text).expect(text).edited;
            assert_eq!(edited(FieldMode::Remove).as_deref().unwrap_or(text), removed);
            assert_eq!(edited(FieldMode::Replace).as_deref().unwrap_or(text), replaced);
        }
        let nested = read(&spec(&["m", "t"], FieldMode::Remove), r#"{"x":1,"m":{"t":"abc","u":2}}"#).expect("read");
        assert_eq!(nested.edited.as_deref(), Some(r#"{"x":1,"m":{"u":2}}"#));
    }

    proptest! {
        /// Checks that removing the field leaves exactly the other members, whatever surrounds it.
        #[test]
        fn removing_leaves_the_others(
            before in prop::collection::vec(("[a-z]{1,4}", "[ -~é]{0,8}"), 0..4),
            after in prop::collection::vec(("[a-z]{1,4}", 0i64..1000), 0..4),
            token in "[A-Za-z0-9._-]{1,20}",
        ) {
            let mut members = Vec::new();
            for (name, value) in &before {
                members.push((format!("b{name}"), serde_json::json!(value)));
            }
            for (name, value) in &after {
                members.push((format!("c{name}"), serde_json::json!(value)));
            }
            members.dedup_by(|a, b| a.0 == b.0);
            let written = |with: bool| {
                let mut parts: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                if with {
                    parts.insert(before.len().min(parts.len()), format!("\"auth_token\":\"{token}\""));
                }
                format!("{{{}}}", parts.join(","))
            };
            let text = written(true);
            let found = read(&spec(&["auth_token"], FieldMode::Remove), &text).expect("read");
            prop_assert_eq!(found.token.as_deref(), Some(token.as_str()));
            prop_assert_eq!(found.edited, Some(written(false)));
        }
    }
}
