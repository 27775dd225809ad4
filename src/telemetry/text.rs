//! Text in log lines: times, and strings from outside, truncated, escaped and without tokens.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// The maximum length in bytes of a string from outside; the rest is cut off.
pub(super) const MAX_VALUE_BYTES: usize = 256;

thread_local! {
    /// The second that this thread wrote last, since 1970, and its text.
    static LAST_SECOND: Cell<(u64, [u8; 24])> = const { Cell::new((u64::MAX, [0; 24])) };
}

/// Returns the time since 1970 by this machine's clock.
pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Appends a time, given since 1970, in RFC 3339, UTC, with milliseconds.
pub(super) fn time(out: &mut String, since_1970: Duration) {
    let (second, mut text) = LAST_SECOND.get();
    if second != since_1970.as_secs() {
        text = text_of_second(since_1970.as_secs());
        LAST_SECOND.set((since_1970.as_secs(), text));
    }
    digits(&mut text[20..23], u64::from(since_1970.subsec_millis()));
    out.push_str(std::str::from_utf8(&text).unwrap_or_default());
}

/// Returns the time of a second since 1970, with no milliseconds.
fn text_of_second(since_1970: u64) -> [u8; 24] {
    let (year, month, day) = civil(since_1970 / 86_400);
    let second = since_1970 % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (at, length, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3_600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
    ] {
        digits(&mut text[at..at + length], value);
    }
    text
}

/// Writes the last digits of a number. The formatting machinery took ten times as long for a line's time.
fn digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
}

/// Appends an address as `to_string` returns it. For IPv4 that took 1,600 instructions, twice a request.
pub fn address(out: &mut String, address: IpAddr) {
    let IpAddr::V4(v4) = address else {
        let _ = write!(out, "{address}");
        return;
    };
    for (at, octet) in v4.octets().into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        out.push_str(itoa::Buffer::new().format(octet));
    }
}

/// Appends a decimal number.
pub(super) fn number(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Converts days since 1970 to year, month and day. Years are counted from March, so that the leap day is the last one.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Returns a text for the log: every JWT in it is replaced, then it is truncated.
#[must_use]
pub fn printable(text: &str, at: usize) -> Cow<'_, str> {
    match without_jwts(text) {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, at)),
        Cow::Owned(text) => Cow::Owned(cut(&text, at).to_owned()),
    }
}

/// Replaces everything that begins like a JWT and is at least as long as the shortest one. Its characters may be
/// percent-encoded, any number of times: `%2E` and `%252E` are dots.
fn without_jwts(text: &str) -> Cow<'_, str> {
    const BEGINNING: &[u8] = b"eyJ";
    const SHORTEST: usize = 40;
    let bytes = text.as_bytes();
    if bytes.len() < SHORTEST {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let (mut copied, mut looked_at) = (0, 0);
    while let Some(found) = bytes[looked_at..].iter().position(|byte| matches!(byte, b'e' | b'%')) {
        let start = looked_at + found;
        let (mut end, mut length, mut has_dot) = (start, 0, false);
        while let Some((character, size)) = decoded(&bytes[end..]) {
            let fits = match BEGINNING.get(length) {
                Some(expected) => character == *expected,
                None => character.is_ascii_alphanumeric() || matches!(character, b'-' | b'_' | b'.'),
            };
            if !fits {
                break;
            }
            has_dot |= character == b'.';
            length += 1;
            end += size;
        }
        if length < BEGINNING.len() {
            looked_at = start + 1;
            continue;
        }
        if length >= SHORTEST && has_dot {
            // Both are beside an ASCII character, so they are boundaries of characters.
            out.push_str(&text[copied..start]);
            out.push_str("[token]");
            copied = end;
        }
        looked_at = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Reads a byte that may be percent-encoded, any number of times, and the number of bytes that it is written with.
fn decoded(bytes: &[u8]) -> Option<(u8, usize)> {
    let first = *bytes.first()?;
    if first != b'%' {
        return Some((first, 1));
    }
    let mut digits = 1;
    while bytes[digits..].starts_with(b"25") {
        digits += 2;
    }
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let byte = digit(digits).zip(digit(digits + 1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
    // A percent sign without digits is a plain character.
    Some(byte.map_or((b'%', digits), |byte| (byte, digits + 2)))
}

fn cut(text: &str, at: usize) -> &str {
    let mut end = text.len().min(at);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a JSON string.
pub(super) fn quote(out: &mut String, text: &str, at: usize) {
    out.push('"');
    let text = printable(text, at);
    // Without a branch, so that the compiler looks at 16 bytes at once. Nearly every text is plain.
    #[expect(clippy::needless_bitwise_bool, clippy::manual_range_contains, reason = "a lazy operator is a branch")]
    let is_plain = |b: u8| (b >= b' ') & (b < 0x7f) & (b != b'"') & (b != b'\\');
    if text.bytes().fold(true, |plain, b| plain & is_plain(b)) {
        out.push_str(&text);
        out.push('"');
        return;
    }
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends a text for a terminal, with control characters and direction overrides escaped.
pub(super) fn escape(out: &mut String, text: &str, at: usize) {
    for character in printable(text, at).chars() {
        push_visible(out, character);
    }
}

/// Appends the value of a field for a terminal, as [`escape`] does. It is quoted where it could be read as further fields.
pub(super) fn value(out: &mut String, text: &str, at: usize) {
    let text = printable(text, at);
    let is_plain = |c: char| !c.is_whitespace() && !is_invisible(c) && !matches!(c, '"' | '\\');
    if !text.is_empty() && text.chars().all(is_plain) {
        out.push_str(&text);
        return;
    }
    out.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        push_visible(out, character);
    }
    out.push('"');
}

fn push_visible(out: &mut String, character: char) {
    if is_invisible(character) {
        let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
    } else {
        out.push(character);
    }
}

/// Returns whether a character moves the cursor or the direction of the text, or has no width.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_written_in_utc() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_000_000_000, "2001-09-09T01:46:40.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
        ] {
            assert_eq!(text_of_second(second), text.as_bytes());
        }
    }

    #[test]
    fn dates_are_civil() {
        for (days, expected) in
            [(0, (1970, 1, 1)), (19_782, (2024, 2, 29)), (19_783, (2024, 3, 1)), (20_454, (2026, 1, 1))]
        {
            assert_eq!(civil(days), expected);
        }
    }

    #[test]
    fn a_jwt_is_written_nowhere() {
        let jwt = format!("eyJhbGciOiJub25lIn0.{}.c2lnbmF0dXJl", "eyJzdWIiOiJhbGljZSJ9".repeat(40));
        for (text, expected) in [
            (format!("/x/{jwt}"), "/x/[token]"),
            (format!("Bearer%20{jwt}; a={jwt}&b"), "Bearer%20[token]; a=[token]&b"),
            (jwt, "[token]"),
            ("/keyJar/keyJar.tar.gz".to_owned(), "/keyJar/keyJar.tar.gz"),
            (format!("/{}", "keyJar".repeat(20)), &format!("/{}", "keyJar".repeat(20))),
        ] {
            let mut out = String::new();
            escape(&mut out, &text, MAX_VALUE_BYTES);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_percent_encoded_jwt_is_written_nowhere() {
        let parts = ["eyJhbGciOiJub25lIn0".to_owned(), "eyJzdWIiOiJhbGljZSJ9".repeat(40), "c2lnbmF0dXJl".to_owned()];
        for dot in ["%2E", "%2e", "%252E", "%25252e"] {
            let jwt = parts.join(dot);
            assert_eq!(without_jwts(&format!("/é/{jwt}/x")), "/é/[token]/x", "{dot}");
            assert_eq!(without_jwts(&format!("/%25{jwt}")), "/%25[token]", "{dot}");
        }
        let whole = parts.join(".").bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02x}"));
        assert_eq!(without_jwts(&whole), "[token]");
        for kept in ["", "%", "%%2", "%25", "100%25%", "/%2e%2e/%65yJ", "/eyJ%2e", "%e2%82%ac", "é%", "/file%20eyJ.tar"]
        {
            assert_eq!(without_jwts(kept), kept);
        }
        // Two of them follow each other, and one is truncated.
        let jwt = parts.join("%2E");
        assert_eq!(without_jwts(&format!("{jwt}%20{jwt}%2")), "[token]%20[token]%2");
    }

    #[test]
    fn a_value_cannot_be_read_as_another_field() {
        for (text, expected) in [
            ("alice@example.com", "alice@example.com"),
            ("a=b", "a=b"),
            ("", "\"\""),
            ("x outcome=ok", "\"x outcome=ok\""),
            ("x\u{a0}outcome=ok", "\"x\u{a0}outcome=ok\""),
            ("x\u{3000}y", "\"x\u{3000}y\""),
            ("x\"  outcome=ok  y=\"", "\"x\\\"  outcome=ok  y=\\\"\""),
            ("x\\", "\"x\\\\\""),
            ("a\nb", "\"a\\u{a}b\""),
            ("a\u{202e}b", "\"a\\u{202e}b\""),
        ] {
            let mut out = String::new();
            value(&mut out, text, MAX_VALUE_BYTES);
            assert_eq!(out, expected, "{text:?}");
        }
    }

    #[test]
    fn hostile_text_stays_one_valid_line() {
        let hostile = "a\r\n{\"level\":\"error\"}\u{1b}[31m\u{7f}\u{2028}\"\\";
        let mut out = String::new();
        quote(&mut out, hostile, MAX_VALUE_BYTES);
        assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), hostile);
        assert!(!out.contains(['\n', '\r', '\u{1b}']));
        let mut out = String::new();
        escape(&mut out, hostile, MAX_VALUE_BYTES);
        assert!(out.chars().all(|c| !c.is_control()));
        let mut out = String::new();
        quote(&mut out, &"é".repeat(1_000), MAX_VALUE_BYTES);
        assert!(out.len() <= MAX_VALUE_BYTES + 2);
    }
}
