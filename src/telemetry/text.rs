//! Text in log lines: times, and strings from outside, truncated, escaped and without tokens.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

/// Upper bound on a string from outside, in bytes; the rest is cut off.
pub(super) const MAX_VALUE_BYTES: usize = 256;

/// Appends the time in RFC 3339, UTC, with milliseconds.
pub(super) fn time(out: &mut String) {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(elapsed.as_secs() / 86_400);
    let second = elapsed.as_secs() % 86_400;
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        elapsed.subsec_millis()
    );
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

/// Returns a text as it may be logged: every JWT in it replaced, then truncated.
#[must_use]
pub fn printable(text: &str, at: usize) -> Cow<'_, str> {
    match without_jwts(text) {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, at)),
        Cow::Owned(text) => Cow::Owned(cut(&text, at).to_owned()),
    }
}

/// Replaces everything that begins like a JWT and is at least as long as the shortest one.
fn without_jwts(text: &str) -> Cow<'_, str> {
    const BEGINNING: &str = "eyJ";
    const SHORTEST: usize = 40;
    let mut out = String::new();
    let (mut rest, mut looked_at) = (text, 0);
    while let Some(found) = rest[looked_at..].find(BEGINNING) {
        let start = looked_at + found;
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let end = rest[start..].find(|c| !is_part(c)).map_or(rest.len(), |length| start + length);
        if end - start >= SHORTEST && rest[start..end].contains('.') {
            out.push_str(&rest[..start]);
            out.push_str("[token]");
            (rest, looked_at) = (&rest[end..], 0);
        } else {
            looked_at = end;
        }
    }
    if rest.len() == text.len() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
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
    for character in printable(text, at).chars() {
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
        match character {
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
