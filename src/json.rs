//! Reads JSON strictly: no duplicate members, bounded depth, nothing after the value.
//!
//! Parsers differ in their treatment of duplicate members, so tokens and handshake messages that have them are refused.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The maximum depth. No token and no handshake message needs more; `serde_json`'s own limit is 128.
const DEPTH: usize = 32;

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
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH { Err(E::custom("nested too deep")) } else { Ok(Self { depth: self.depth + 1 }) }
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
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(31).as_bytes()).is_ok());
        assert!(object(nested(32).as_bytes()).is_err());
        assert!(object(nested(100_000).as_bytes()).is_err());
    }
}
