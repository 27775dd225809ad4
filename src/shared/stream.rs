//! Parses the engine's replies about a stream: ids, messages and their content.

use redis::Value;

use super::engine::text;

/// The id of a message in the log: milliseconds and a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StreamId(pub(super) u64, u64);

impl StreamId {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (millis, number) = text.split_once('-')?;
        Some(Self(millis.parse().ok()?, number.parse().ok()?))
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// Returns the messages of an answer to `XREAD` of one stream.
pub(super) fn messages(answer: &Value) -> &[Value] {
    let Value::Array(streams) = answer else { return &[] };
    let Some(Value::Array(stream)) = streams.first() else { return &[] };
    let Some(Value::Array(messages)) = stream.get(1) else { return &[] };
    messages
}

/// Returns the id of a message as `XRANGE` and `XREAD` return it.
pub(super) fn message_id(message: &Value) -> Option<StreamId> {
    let Value::Array(parts) = message else { return None };
    StreamId::read(&text(parts.first()?)?)
}

/// Returns the content of a message, if it has the one field of instances' messages.
pub(super) fn content(message: &Value) -> Option<&[u8]> {
    let Value::Array(parts) = message else { return None };
    let Value::Array(fields) = parts.get(1)? else { return None };
    match &fields[..] {
        [Value::BulkString(name), Value::BulkString(content)] if name == b"m" => Some(content),
        _ => None,
    }
}
