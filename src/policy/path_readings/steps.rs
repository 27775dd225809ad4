//! The steps by which servers change a path before they route it, each in a function of its own.
//!
//! A step returns the changed path, or `None` if it changes nothing. Every path begins with a slash before and after
//! it. `path_readings` decides the order of the steps.

use std::borrow::Cow;

/// A step that changes a path.
pub(super) struct Step {
    /// Whether it percent-decodes the whole path, which is done a limited number of times.
    pub(super) decodes: bool,
    /// The function, which returns the changed path, or `None` if nothing changes.
    pub(super) apply: fn(&[u8]) -> Option<Vec<u8>>,
}

const fn step(apply: fn(&[u8]) -> Option<Vec<u8>>) -> Step {
    Step { decodes: false, apply }
}

/// All steps of docs/contract.md section 3.
pub(super) const STEPS: [Step; 18] = [
    Step { decodes: true, apply: percent_decode },
    step(decode_dots),
    step(resolve_dot_segments),
    step(merge_empty_segments),
    step(backslashes_as_slashes),
    step(drop_authority),
    step(drop_authority_behind_slashes),
    step(drop_parameters),
    step(drop_last_parameters),
    step(|path| cut_at(path, 0)),
    step(|path| cut_at(path, b'?')),
    step(|path| cut_at(path, b'#')),
    step(drop_line_breaks),
    step(trim_path),
    step(trim_segments),
    step(decode_overlong),
    step(replace_invalid),
    step(drop_invalid),
];

fn percent_decode(path: &[u8]) -> Option<Vec<u8>> {
    match percent_encoding::percent_decode(path).into() {
        Cow::Borrowed(_) => None,
        Cow::Owned(decoded) => Some(decoded),
    }
}

/// Decodes `%2e` to a dot, and nothing else, as WHATWG URL parsers do.
fn decode_dots(path: &[u8]) -> Option<Vec<u8>> {
    let is_dot = |at: usize| path[at..].get(..3).is_some_and(|escape| escape.eq_ignore_ascii_case(b"%2e"));
    (0..path.len()).any(is_dot).then(|| {
        let mut out = Vec::with_capacity(path.len());
        let mut at = 0;
        while at < path.len() {
            let dot = is_dot(at);
            out.push(if dot { b'.' } else { path[at] });
            at += if dot { 3 } else { 1 };
        }
        out
    })
}

/// Resolves dot segments (RFC 3986 section 5.2.4).
fn resolve_dot_segments(path: &[u8]) -> Option<Vec<u8>> {
    let segments = || path[1..].split(|byte| *byte == b'/');
    if !segments().any(|segment| matches!(segment, b"." | b"..")) {
        return None;
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_in_slash = false;
    for segment in segments() {
        ends_in_slash = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    if ends_in_slash {
        kept.push(b"");
    }
    Some(joined(kept))
}

fn merge_empty_segments(path: &[u8]) -> Option<Vec<u8>> {
    path.windows(2).any(|pair| pair == b"//").then(|| {
        let mut out = path.to_vec();
        out.dedup_by(|next, previous| (*next, *previous) == (b'/', b'/'));
        out
    })
}

fn backslashes_as_slashes(path: &[u8]) -> Option<Vec<u8>> {
    path.contains(&b'\\').then(|| path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect())
}

/// Drops the host of a path that begins with two slashes, in either direction, as Python's `urlsplit` and Node's
/// `url.parse` do.
fn drop_authority(path: &[u8]) -> Option<Vec<u8>> {
    matches!(path.get(1), Some(b'/' | b'\\')).then(|| {
        let after = path[2..].iter().position(|byte| *byte == b'/');
        after.map_or_else(|| b"/".to_vec(), |at| path[2 + at..].to_vec())
    })
}

/// Drops the host after any number of leading slashes, in either direction, up to the next slash, as WHATWG URL parsers
/// do (`new URL("///host/a", base)` in Node, Deno and Bun).
fn drop_authority_behind_slashes(path: &[u8]) -> Option<Vec<u8>> {
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let host = path.iter().position(|byte| !is_slash(byte)).filter(|slashes| *slashes > 2)?;
    let after = path[host..].iter().position(is_slash);
    Some(after.map_or_else(|| b"/".to_vec(), |at| [b"/", &path[host + at + 1..]].concat()))
}

fn without_parameters(segment: &[u8]) -> &[u8] {
    let end = segment.iter().position(|byte| *byte == b';').unwrap_or(segment.len());
    &segment[..end]
}

/// Drops `;parameters` of every segment, as Java servers do.
fn drop_parameters(path: &[u8]) -> Option<Vec<u8>> {
    path.contains(&b';').then(|| joined(path[1..].split(|byte| *byte == b'/').map(without_parameters)))
}

/// Drops `;parameters` of the last segment, as Python's `urlparse` does.
fn drop_last_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let last = path.iter().rposition(|byte| *byte == b'/')? + 1;
    let kept = without_parameters(&path[last..]).len();
    (last + kept < path.len()).then(|| path[..last + kept].to_vec())
}

fn cut_at(path: &[u8], end: u8) -> Option<Vec<u8>> {
    path.iter().position(|byte| *byte == end).map(|at| path[..at].to_vec())
}

/// Drops tab, CR and LF everywhere, as WHATWG URL parsers and Python's `urlsplit` do.
fn drop_line_breaks(path: &[u8]) -> Option<Vec<u8>> {
    let is_dropped = |byte: &u8| matches!(byte, b'\t' | b'\r' | b'\n');
    path.iter().any(is_dropped).then(|| path.iter().copied().filter(|byte| !is_dropped(byte)).collect())
}

/// Drops white space and control characters at the end of the path. A route that ends in a regular expression's `$`
/// also matches before a final newline (Starlette).
fn trim_path(path: &[u8]) -> Option<Vec<u8>> {
    let trimmed = &path[..path.len() - trimmed_end(path)];
    (trimmed.len() < path.len()).then(|| trimmed.to_vec())
}

fn trim_segments(path: &[u8]) -> Option<Vec<u8>> {
    let trimmed = joined(path[1..].split(|byte| *byte == b'/').map(|segment| {
        let segment = &segment[..segment.len() - trimmed_end(segment)];
        &segment[trimmed_start(segment)..]
    }));
    (trimmed != path).then_some(trimmed)
}

/// Returns whether a character is trimmed: Unicode's `White_Space`, control characters (C0, C1), and U+FEFF, which
/// ECMAScript's `trim` removes too.
fn is_trimmed(character: char) -> bool {
    character.is_whitespace() || character.is_control() || character == '\u{feff}'
}

/// Returns the number of bytes to trim at the end. Bytes that are not UTF-8 are kept.
fn trimmed_end(bytes: &[u8]) -> usize {
    let Some(tail) = bytes.utf8_chunks().last().filter(|chunk| chunk.invalid().is_empty()) else { return 0 };
    tail.valid().len() - tail.valid().trim_end_matches(is_trimmed).len()
}

fn trimmed_start(bytes: &[u8]) -> usize {
    let Some(head) = bytes.utf8_chunks().next() else { return 0 };
    head.valid().len() - head.valid().trim_start_matches(is_trimmed).len()
}

/// Replaces an overlong UTF-8 sequence by the character that it encodes, as lenient decoders do.
fn decode_overlong(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let (mut at, mut changed) = (0, false);
    while at < path.len() {
        if let Some((character, length)) = overlong(&path[at..]) {
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            at += length;
            changed = true;
        } else {
            out.push(path[at]);
            at += 1;
        }
    }
    changed.then_some(out)
}

/// Returns the character of an overlong sequence at the start, and the sequence's length.
fn overlong(bytes: &[u8]) -> Option<(char, usize)> {
    // The bits of the first byte, the number of bytes that follow, and the smallest code point that needs so many.
    let (bits, following, least) = match *bytes.first()? {
        first @ 0xc0..=0xdf => (first & 0x1f, 1, 0x80),
        first @ 0xe0..=0xef => (first & 0x0f, 2, 0x800),
        first @ 0xf0..=0xf7 => (first & 0x07, 3, 0x1_0000),
        first @ 0xf8..=0xfb => (first & 0x03, 4, 0x20_0000),
        first @ 0xfc..=0xfd => (first & 0x01, 5, 0x400_0000),
        _ => return None,
    };
    let mut code = u32::from(bits);
    for byte in bytes.get(1..=following)? {
        if byte & 0xc0 != 0x80 {
            return None;
        }
        code = code << 6 | u32::from(byte & 0x3f);
    }
    let character = char::from_u32(code).filter(|_| code < least)?;
    Some((character, following + 1))
}

/// Replaces bytes that are not UTF-8 by U+FFFD.
fn replace_invalid(path: &[u8]) -> Option<Vec<u8>> {
    match String::from_utf8_lossy(path) {
        Cow::Borrowed(_) => None,
        Cow::Owned(replaced) => Some(replaced.into_bytes()),
    }
}

/// Drops bytes that are not UTF-8.
fn drop_invalid(path: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(path).is_err().then(|| path.utf8_chunks().flat_map(|chunk| chunk.valid().bytes()).collect())
}

fn joined<'s>(segments: impl IntoIterator<Item = &'s [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for segment in segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Returns whether a segment of any reading could be this name. It may return `true` wrongly, never `false`: only
/// letters and digits are compared, since the steps that join separate parts drop other bytes only.
pub(super) fn could_name(path: &[u8], name: &[u8]) -> bool {
    fn letters(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect()
    }
    fn holds(path: &[u8], name: &[u8], decodes: u8) -> bool {
        if letters(path).windows(name.len()).any(|window| window == name) {
            return true;
        }
        let mapped = decode_overlong(path);
        let dropped = drop_invalid(path);
        let alternatives = [Some(path), mapped.as_deref(), dropped.as_deref()];
        alternatives.into_iter().flatten().any(|path| {
            let is_mapped = mapped.as_deref() == Some(path);
            (is_mapped && letters(path).windows(name.len()).any(|window| window == name))
                || (decodes > 0 && percent_decode(path).is_some_and(|path| holds(&path, name, decodes - 1)))
        })
    }
    holds(path, &letters(name), 2)
}
