//! Reads JSON strictly: no duplicate members, bounded depth, nothing after the value.
//!
//! Parsers differ in their treatment of duplicate members, so tokens and handshake messages that have them are refused.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The maximum depth. No token and no handshake message needs more; `serde_json`'s own limit is 128.
const DEPTH: usize = 32;
/// The maximum depth of JSON that the proxy wrote itself: claims with what is around them.
const OWN_DEPTH: usize = DEPTH + 8;

/// The error for a text that is not strict JSON.
#[derive(Debug, thiserror::Error)]
#[error("not strict JSON")]
pub struct NotStrict(#[from] serde_json::Error);

/// Reads one JSON object. Only white space may follow it.
///
/// # Errors
/// Returns an error when the text is not JSON, not an object, has duplicate members at any level, or nests deeper than
/// 32.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, NotStrict> {
    match value(bytes)? {
        Value::Object(map) => Ok(map),
        _ => Err(NotStrict(serde_json::Error::custom("not an object"))),
    }
}

/// Reads one JSON value with the same rules.
///
/// # Errors
/// Returns the errors of [`object`], except that any value is allowed.
pub fn value(bytes: &[u8]) -> Result<Value, NotStrict> {
    read(bytes, DEPTH)
}

/// Reads one JSON object that the proxy wrote itself: the claims of a token, or something around them.
///
/// `serde_json` reads its own `Value` in another way where the feature `raw_value` is on: an object whose first member has
/// the name that is reserved for raw values becomes the JSON in the text of that member, so claims would not come back as
/// they were verified.
///
/// # Errors
/// Returns the errors of [`object`]; the depth is a little larger.
pub fn own_object(bytes: &[u8]) -> Result<Map<String, Value>, NotStrict> {
    match read(bytes, OWN_DEPTH)? {
        Value::Object(map) => Ok(map),
        _ => Err(NotStrict(serde_json::Error::custom("not an object"))),
    }
}

/// Deserializes a member that holds an object, or null, as [`own_object`] does.
///
/// # Errors
/// Returns the deserializer's error, and one for any other value.
pub fn own_member<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Map<String, Value>>, D::Error> {
    match (Strict { left: OWN_DEPTH }).deserialize(deserializer)? {
        Value::Object(map) => Ok(Some(map)),
        Value::Null => Ok(None),
        _ => Err(D::Error::custom("not an object")),
    }
}

fn read(bytes: &[u8], depth: usize) -> Result<Value, NotStrict> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { left: depth }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    /// The number of levels that may still follow.
    left: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Self { left })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(deeper)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let item = entries.next_value_seed(deeper)?;
            if out.insert(key, item).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_reading_is_accepted() {
        for (text, accepted) in [
            (r#"{"a":1}"#, true),
            (" \n{\"a\":[1,{\"b\":null}]}\t", true),
            (r#"{"a":1,"a":1}"#, false),
            (r#"{"a":{"b":1,"\u0062":2}}"#, false),
            (r#"{"a":1}x"#, false),
            (r#"{"a":1}{}"#, false),
            (r"[1]", false),
            (r#"{"a":1e400}"#, false),
            (r#"{"a":NaN}"#, false),
            ("", false),
            ("{\"a\":\"\u{1}\"}", false),
        ] {
            assert_eq!(object(text.as_bytes()).is_ok(), accepted, "{text}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn what_the_proxy_wrote_is_read_as_it_was() {
        // The name that serde_json reserves for raw values.
        let reserved = r#"{"a":{"$serde_json::private::RawValue":"{\"b\":1}"}}"#;
        let read = own_object(reserved.as_bytes()).expect("an object");
        assert_eq!(Value::Object(read).to_string(), reserved);
        // Without serde_json's feature `float_roundtrip` this is another number once it was written and read again.
        let long = object(br#"{"a":1022222222222222222222222222222200059}"#).expect("an object");
        let again = own_object(Value::Object(long.clone()).to_string().as_bytes()).expect("an object");
        assert_eq!(again, long);
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(own_object(nested(OWN_DEPTH - 1).as_bytes()).is_ok());
        assert!(own_object(nested(OWN_DEPTH).as_bytes()).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(31).as_bytes()).is_ok());
        assert!(object(nested(32).as_bytes()).is_err());
        assert!(object(nested(100_000).as_bytes()).is_err());
    }
}
