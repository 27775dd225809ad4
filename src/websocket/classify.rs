//! Decides whether a client's message could be a message of the dialect in any reading of its members (docs/contract.md
//! section 4.4), byte by byte and without keeping the bytes.
//!
//! The upstream may read a message in other ways than the proxy: without regard to case (Go, .NET), the first or the
//! last of duplicate members, NaN and comments and single quotes, any depth, UTF-16 and UTF-32 in binary frames. So
//! nothing is parsed here. A lexer that accepts what any of them accepts follows the members that the rules name. A
//! rule fits as soon as each of its members was found once with a value that fits. Errors go in one direction only: an
//! unusual message may be taken for a message of the dialect, but never the reverse.

mod scanner;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::policy::{DialectSpec, Expectation};
use scanner::{Ambiguity, LineEnds, Scanner};

/// The messages that a rule recognises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// Messages of the client's dialect that the upstream acts on too.
    Shared,
    /// Messages of the client's dialect that mean nothing to the upstream, and an application's pings.
    ProxyOnly,
    /// Messages that hold the field of `token-field`.
    Field,
    /// Messages of the dialect that only the proxy sends to the upstream.
    UpstreamOnly,
}

/// The value that a member must hold.
#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Present,
    Text(String),
    Number(f64),
    Bool(bool),
    /// An object or an array with any content.
    Container,
    /// No condition: readers take an absent member for null.
    Null,
}

/// One segment of the path to a member.
#[derive(Clone, Debug)]
struct Segment {
    /// Case-folded.
    name: String,
    index: Option<u64>,
}

/// A member that a rule names.
#[derive(Clone, Debug)]
struct Key {
    path: Vec<Segment>,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
struct Rule {
    kind: MessageKind,
    /// The keys of the rule, a bit for each.
    keys: u64,
}

/// The rules by which the messages of a socket's dialects are recognised.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    keys: Vec<Key>,
    rules: Vec<Rule>,
    /// The keys without a condition, a bit for each.
    given: u64,
    /// Whether each line of a text may be a message.
    lines: bool,
    /// The number of segments of the longest path.
    depth: usize,
    /// The number of characters that are kept of a name or a value.
    longest: usize,
    /// Whether a top-level array may fit.
    arrays: bool,
}

/// The length in characters above which a number matches every wanted number, since its digits are not all kept.
const LONG_NUMBER: usize = 64;

impl Rules {
    /// Makes the rules for a client that uses `dialect` and an upstream to which the proxy uses `upstream_dialect`.
    /// Returns `None` where the upstream acts on no message of either.
    pub(super) fn of(dialect: Option<&DialectSpec>, upstream_dialect: Option<&DialectSpec>) -> Option<Self> {
        let guards =
            upstream_dialect.is_some() || dialect.is_some_and(|spoken| spoken.field.is_some() || spoken.forwards());
        if !guards {
            return None;
        }
        let mut rules = Self {
            keys: Vec::new(),
            rules: Vec::new(),
            given: 0,
            lines: dialect.into_iter().chain(upstream_dialect).any(|dialect| dialect.lines),
            depth: 0,
            longest: LONG_NUMBER,
            arrays: false,
        };
        if let Some(field) = dialect.and_then(|dialect| dialect.field.as_ref()) {
            let path = field.pointer.iter().map(|name| Segment::of(name)).collect();
            rules.add(MessageKind::Field, vec![Key { path, wanted: Wanted::Present }]);
        } else if let Some(spoken) = dialect {
            let shared = spoken.forwards() || upstream_dialect == Some(spoken);
            let kind = if shared { MessageKind::Shared } else { MessageKind::ProxyOnly };
            rules.add_messages(kind, spoken);
            if let Some(ping) = &spoken.ping {
                rules.add(MessageKind::ProxyOnly, keys(&ping.matches));
            }
        }
        if let Some(upstream_dialect) = upstream_dialect.filter(|upstream_dialect| dialect != Some(upstream_dialect)) {
            rules.add_messages(MessageKind::UpstreamOnly, upstream_dialect);
        }
        Some(rules)
    }

    fn add_messages(&mut self, kind: MessageKind, dialect: &DialectSpec) {
        let later = dialect.refresh.as_ref().map(|refresh| &refresh.matches);
        for matches in [Some(&dialect.authenticate.matches), later].into_iter().flatten() {
            self.add(kind, keys(matches));
        }
    }

    fn add(&mut self, kind: MessageKind, keys: Vec<Key>) {
        let mut rule = Rule { kind, keys: 0 };
        for key in keys {
            // A key without a bit is left out: then the rule fits more, never less.
            let Some(bit) = u32::try_from(self.keys.len()).ok().and_then(|at| 1u64.checked_shl(at)) else { break };
            rule.keys |= bit;
            if key.wanted == Wanted::Null {
                self.given |= bit;
            }
            self.depth = self.depth.max(key.path.len());
            let texts = key.path.iter().map(|segment| &segment.name).chain(match &key.wanted {
                Wanted::Text(text) => Some(text),
                _ => None,
            });
            self.longest = texts.map(|text| text.chars().count()).chain([self.longest]).max().unwrap_or(self.longest);
            self.arrays |= key.path.first().is_some_and(|segment| segment.index.is_some());
            self.keys.push(key);
        }
        self.rules.push(rule);
    }

    /// Returns the kinds of the rules that a whole text satisfies.
    pub(super) fn kinds_of(&self, text: &str) -> Vec<MessageKind> {
        let mut classifier = Classifier::new(self, true);
        classifier.feed(self, text.as_bytes());
        classifier.end(self);
        classifier.kinds(self).collect()
    }

    /// Returns the rules that fit when these keys are satisfied, a bit for each rule.
    fn fitting(&self, satisfied: u64) -> u32 {
        let mut fits = 0;
        for (index, rule) in self.rules.iter().enumerate() {
            fits |= u32::from(rule.keys & !satisfied == 0) << index;
        }
        fits
    }
}

fn keys(matches: &[(String, Expectation)]) -> Vec<Key> {
    matches
        .iter()
        .map(|(key, expectation)| {
            let path = match key.strip_prefix('/') {
                Some(pointer) => {
                    pointer.split('/').map(|part| Segment::of(&part.replace("~1", "/").replace("~0", "~"))).collect()
                }
                None => vec![Segment::of(key)],
            };
            Key { path, wanted: Wanted::of(expectation) }
        })
        .collect()
}

impl Segment {
    fn of(name: &str) -> Self {
        let is_index = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        Self { name: without_case(name), index: is_index.then(|| name.parse().ok()).flatten() }
    }
}

impl Wanted {
    fn of(expectation: &Expectation) -> Self {
        match expectation {
            Expectation::Present => Self::Present,
            Expectation::Equals(Value::Null) => Self::Null,
            Expectation::Equals(Value::Bool(wanted)) => Self::Bool(*wanted),
            Expectation::Equals(Value::Number(number)) => number.as_f64().map_or(Self::Present, Self::Number),
            Expectation::Equals(Value::String(text)) => Self::Text(without_case(text)),
            Expectation::Equals(Value::Array(_) | Value::Object(_)) => Self::Container,
        }
    }
}

/// Folds the case of a text as case-insensitive readers do: Go's `encoding/json` takes the Kelvin sign for a k and the
/// long s for an s. Control characters, byte order marks and U+FFFD, which decoders write for a broken sequence, are left
/// out.
pub(super) fn without_case(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        push_without_case(&mut out, c);
    }
    out
}

fn push_without_case(out: &mut String, c: char) {
    if c.is_ascii() {
        if !c.is_ascii_control() {
            out.push(c.to_ascii_lowercase());
        }
    } else if c != char::REPLACEMENT_CHARACTER && c != '\u{feff}' {
        let lower = c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase);
        out.extend(lower);
    }
}

/// Reads bytes as characters in one encoding.
#[derive(Clone, Debug)]
enum Encoding {
    Utf8 {
        needs: u8,
        value: u32,
    },
    /// UTF-16 or UTF-32. `bytes` holds the first `count` bytes of a unit; `high` is the first half of a surrogate pair.
    Wide {
        width: u8,
        big_endian: bool,
        bytes: [u8; 4],
        count: u8,
        high: Option<u32>,
    },
}

impl Encoding {
    const UTF8: Self = Self::Utf8 { needs: 0, value: 0 };

    const fn wide(width: u8, big_endian: bool) -> Self {
        Self::Wide { width, big_endian, bytes: [0; 4], count: 0, high: None }
    }

    /// Returns the character that ends with this byte. Broken sequences are left out.
    fn push(&mut self, byte: u8) -> Option<char> {
        match self {
            Self::Utf8 { needs, value } => match byte {
                0..=0x7f => {
                    *needs = 0;
                    Some(char::from(byte))
                }
                0x80..=0xbf if *needs > 0 => {
                    *needs -= 1;
                    *value = *value << 6 | u32::from(byte & 0x3f);
                    // No decoder in use accepts an overlong form of an ASCII character.
                    if *needs == 0 { char::from_u32(*value).filter(|c| !c.is_ascii()) } else { None }
                }
                0xc2..=0xf4 => {
                    (*needs, *value) = match byte {
                        0xc2..=0xdf => (1, u32::from(byte & 0x1f)),
                        0xe0..=0xef => (2, u32::from(byte & 0x0f)),
                        _ => (3, u32::from(byte & 0x07)),
                    };
                    None
                }
                _ => {
                    *needs = 0;
                    None
                }
            },
            Self::Wide { width, big_endian, bytes, count, high } => {
                let at = if *big_endian { *count } else { *width - 1 - *count };
                bytes[usize::from(at)] = byte;
                *count += 1;
                if *count < *width {
                    return None;
                }
                *count = 0;
                let unit = bytes[..usize::from(*width)].iter().fold(0, |unit, byte| unit << 8 | u32::from(*byte));
                match (unit, high.take()) {
                    (0xd800..=0xdbff, _) if *width == 2 => {
                        *high = Some(unit);
                        None
                    }
                    (0xdc00..=0xdfff, Some(high)) => paired(high, unit),
                    _ => char::from_u32(unit),
                }
            }
        }
    }
}

fn paired(high: u32, low: u32) -> Option<char> {
    char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
}

/// The maximum number of readings of a message that are followed. A message with more readings fits every rule.
const MAX_READINGS: usize = 16;

/// One message in one encoding, with a scanner for each way in which its lines and comments can be read.
#[derive(Debug)]
struct Reading {
    encoding: Encoding,
    scanners: Vec<Scanner>,
}

impl Reading {
    fn new(encoding: Encoding, rules: &Rules) -> Self {
        let mut scanners = vec![Scanner::new(rules, None)];
        if rules.lines {
            scanners.extend(LineEnds::ALL.map(|ends| Scanner::new(rules, Some(ends))));
        }
        Self { encoding, scanners }
    }

    /// Reads further bytes, and returns whether there are too many readings.
    #[must_use]
    fn feed(&mut self, rules: &Rules, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() && !self.scanners.is_empty() {
            // The bytes of a long string that no rule compares are skipped.
            if matches!(self.encoding, Encoding::Utf8 { .. })
                && let [only] = self.scanners.as_slice()
                && let Some(skipped) = only.skips(&bytes[at..])
                && skipped > 0
            {
                at += skipped;
                self.encoding = Encoding::UTF8;
                continue;
            }
            if let Some(c) = self.encoding.push(bytes[at]) {
                for index in 0..self.scanners.len() {
                    if let Ambiguity::CommentMayEnd = self.scanners[index].push(rules, c) {
                        if self.scanners.len() >= MAX_READINGS {
                            return true;
                        }
                        let other = self.scanners[index].with_comment_ended();
                        self.scanners.push(other);
                    }
                }
                self.scanners.retain(|scanner| !scanner.is_dead());
            }
            at += 1;
        }
        false
    }
}

/// The number of leading bytes that show the encoding.
const HEAD: usize = 4;

/// Classifies one message while it is received.
#[derive(Debug)]
pub(super) struct Classifier {
    /// The first bytes of the message, which show whether it could be UTF-16 or UTF-32.
    head: Vec<u8>,
    /// The message in UTF-8, then in each other encoding that is possible.
    readings: Vec<Reading>,
    /// The rules that fit already, a bit for each.
    fits: u32,
    /// Whether the message may still be one that the proxy reads: a text with only one reading.
    proxy_may_read: bool,
}

impl Classifier {
    /// Starts a message in a text or a binary frame.
    pub(super) fn new(rules: &Rules, is_text: bool) -> Self {
        let readings = vec![Reading::new(Encoding::UTF8, rules)];
        Self { head: Vec::new(), readings, fits: 0, proxy_may_read: is_text }
    }

    /// Classifies the next bytes of the payload, unmasked.
    pub(super) fn feed(&mut self, rules: &Rules, bytes: &[u8]) {
        let (mut too_many, mut wide_from) = (false, 0);
        if self.head.len() < HEAD && !bytes.is_empty() {
            wide_from = bytes.len().min(HEAD - self.head.len());
            self.head.extend_from_slice(&bytes[..wide_from]);
            // JSON begins with an ASCII character, so UTF-16 and UTF-32 begin with a zero byte or a byte order mark.
            if self.head.len() == HEAD && self.head.iter().any(|byte| matches!(byte, 0 | 0xfe | 0xff)) {
                for (width, big_endian) in [(2, false), (2, true), (4, false), (4, true)] {
                    let mut reading = Reading::new(Encoding::wide(width, big_endian), rules);
                    too_many |= reading.feed(rules, &self.head);
                    self.readings.push(reading);
                }
            }
        }
        for (index, reading) in self.readings.iter_mut().enumerate() {
            too_many |= reading.feed(rules, if index == 0 { bytes } else { &bytes[wide_from..] });
        }
        self.note(rules, too_many);
    }

    /// Ends the message.
    pub(super) fn end(&mut self, rules: &Rules) {
        for scanner in self.readings.iter_mut().flat_map(|reading| &mut reading.scanners) {
            scanner.end(rules);
        }
        self.note(rules, false);
    }

    fn note(&mut self, rules: &Rules, too_many: bool) {
        if too_many {
            self.fits = u32::MAX;
            self.proxy_may_read = false;
        }
        for reading in &self.readings {
            for scanner in &reading.scanners {
                self.fits |= scanner.fits();
            }
        }
        // The proxy splits lines at line feeds.
        let ours = rules.lines.then_some(LineEnds::Feed);
        self.proxy_may_read &= self.readings.first().is_some_and(|first| {
            first.scanners.iter().any(|scanner| scanner.lines() == ours && scanner.may_fit_unambiguously(rules))
        });
    }

    /// Returns the kinds of the rules that some reading of the message fits.
    pub(super) fn kinds<'r>(&self, rules: &'r Rules) -> impl Iterator<Item = MessageKind> + use<'r> {
        let fits = self.fits;
        rules.rules.iter().enumerate().filter(move |(index, _)| fits >> index & 1 == 1).map(|(_, rule)| rule.kind)
    }

    /// Returns whether the upstream may act on the message.
    pub(super) fn is_guarded(&self, rules: &Rules) -> bool {
        self.kinds(rules).any(|kind| kind != MessageKind::ProxyOnly)
    }

    /// Returns whether the message may still be one that the proxy reads: a text with only one reading.
    pub(super) fn proxy_may_read(&self) -> bool {
        self.proxy_may_read
    }
}
