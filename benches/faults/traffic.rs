//! The forms of requests, responses, bodies and events. Each names its number, and each response its user.

use bytes::Bytes;

/// The field of requests and responses that repeats the number.
pub(crate) const NUMBER: &str = "x-number";
/// The number of events in a stream.
const EVENTS: u64 = 20;
/// The length of a large body in bytes.
const LARGE: u64 = 300_000;

/// The kind of a request, which its path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A short response.
    Short,
    /// A long response.
    Large,
    /// A request body of a known length, or in chunks.
    Upload,
    Events,
    Socket,
}

const KINDS: [(&str, Kind); 5] = [
    ("short", Kind::Short),
    ("large", Kind::Large),
    ("upload", Kind::Upload),
    ("events", Kind::Events),
    ("socket", Kind::Socket),
];

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
}

/// Returns the number with a check value, so that a corrupted one is no other number.
pub(crate) fn format_number(number: u64) -> String {
    let check = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    format!("{number}-{check:08x}")
}

pub(crate) fn parse_number(text: &str) -> Option<u64> {
    let number = text.split_once('-')?.0.parse().ok()?;
    (format_number(number) == text).then_some(number)
}

impl Target {
    pub(crate) fn path(self) -> String {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        format!("/{name}/{}", format_number(self.number))
    }

    pub(crate) fn parse(path: &str) -> Option<Self> {
        let (name, number) = path.strip_prefix('/')?.split_once('/')?;
        let kind = KINDS.iter().find(|(known, _)| *known == name)?.1;
        Some(Self { kind, number: parse_number(number)? })
    }
}

/// Returns bytes that only this number has.
fn filling(number: u64, length: u64) -> Bytes {
    (0..length).map(|at| (number.wrapping_mul(31).wrapping_add(at * 7) % 251) as u8).collect()
}

pub(crate) fn request_body(target: Target) -> Bytes {
    match target.kind {
        Kind::Upload if target.number.is_multiple_of(7) => filling(target.number, LARGE),
        Kind::Upload => filling(target.number, 1 + target.number % 5_000),
        _ => Bytes::new(),
    }
}

pub(crate) fn response_body(target: Target, user: &str) -> Bytes {
    let mut body = format!("{}|{user}|", format_number(target.number)).into_bytes();
    if target.kind == Kind::Large {
        body.extend_from_slice(&filling(target.number, LARGE));
    }
    Bytes::from(body)
}

/// Returns the event with this index; `None` after the last.
pub(crate) fn event(number: u64, user: &str, index: u64) -> Option<String> {
    (index < EVENTS).then(|| format!("id: {index}\ndata: {}|{user}|\n\n", format_number(number)))
}

/// Returns the body of a complete response of this user.
pub(crate) fn whole_response(target: Target, user: &str) -> Bytes {
    match target.kind {
        Kind::Events => Bytes::from((0..EVENTS).filter_map(|at| event(target.number, user, at)).collect::<String>()),
        _ => response_body(target, user),
    }
}
