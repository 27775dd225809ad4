//! Path patterns, and their comparison with one reading of a path.
//!
//! A comparison is exact, or it ignores letter case and trailing slashes.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_decode_str, percent_encode};

use super::path_readings::PathReading;

/// The variables of a pattern (`{name}`), each with the segment that it matched, percent-decoded once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathVariables(Vec<(String, Option<String>)>);

impl PathVariables {
    /// Returns the decoded segment; `None` when it is not UTF-8 or there is no such variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_deref())
    }
}

impl PathVariables {
    /// Returns the first variable with another value in `other`.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Option<&str> {
        self.0.iter().find(|(name, value)| other.get(name) != value.as_deref()).map(|(name, _)| name.as_str())
    }
}

/// The way in which a pattern is compared with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// Exactly, byte by byte.
    Exact,
    /// Without regard to letter case and trailing slashes. Rules that open are still compared exactly.
    Folded,
}

/// A path pattern such as `/files/{user}/**`: `*` is one segment, `**` any number including none, `{name}` one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// A literal segment, percent-decoded once.
    Literal(Vec<u8>),
    One,
    Any,
    Variable(String),
}

/// The characters that are escaped in a segment of an example path.
const IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The maximum number of segments, more than any real path has. With at most one `**` matching is linear in the path.
const SEGMENTS: usize = 64;

/// The maximum ratio of the bytes of a segment to those of a literal that it equals: three for an escape, times three
/// for letters that become two or three, times four for one letter.
const LONGEST_SAME: usize = 36;

impl Pattern {
    /// Returns a path that the pattern matches.
    #[must_use]
    pub fn example(&self, filling: &str) -> String {
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            match segment {
                Segment::Literal(bytes) => path.extend(percent_encode(bytes, IN_SEGMENT)),
                Segment::One | Segment::Any | Segment::Variable(_) => path.push_str(filling),
            }
        }
        path
    }

    /// Parses a pattern.
    ///
    /// # Errors
    /// Returns a sentence with the error and the correct form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("\"{text}\" must start with a slash: \"/{text}\""));
        };
        if text.contains(['?', '#']) {
            return Err("a rule looks at the path only; leave `?` and `#` and what follows out".to_owned());
        }
        let mut segments = Vec::new();
        for part in rest.split('/') {
            segments.push(match part {
                "*" => Segment::One,
                "**" => Segment::Any,
                part if part.starts_with('{') && part.ends_with('}') && part.len() > 2 => {
                    let name = &part[1..part.len() - 1];
                    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                        return Err(format!("{{{name}}} is not a variable name: letters, digits and _"));
                    }
                    Segment::Variable(name.to_owned())
                }
                part if part.contains(['*', '{', '}']) => {
                    return Err(format!("\"{part}\": `*`, `**` and {{name}} stand for whole segments; write /a/*/b"));
                }
                part => Segment::Literal(percent_decode_str(part).collect()),
            });
        }
        let mut names: Vec<&str> = segments.iter().filter_map(Segment::variable).collect();
        names.sort_unstable();
        if let Some([name, ..]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("{{{name}}} is used twice; give each variable a name of its own"));
        }
        if segments.len() > SEGMENTS || segments.iter().filter(|segment| **segment == Segment::Any).count() > 1 {
            return Err(format!("more than {SEGMENTS} segments, or more than one `**`"));
        }
        Ok(Self { segments })
    }

    /// Returns the names of the pattern's variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::variable)
    }

    /// Returns whether some path matches both patterns when letter case is ignored, and none does otherwise.
    #[must_use]
    pub fn overlaps_by_case_only(&self, other: &Self) -> bool {
        let overlap = |comparison| overlaps(&self.segments, &other.segments, comparison);
        overlap(Comparison::Folded) && !overlap(Comparison::Exact)
    }

    /// Returns whether every path that `other` matches is matched by this pattern too, in this comparison.
    ///
    /// It may return `false` for patterns of which only their paths show that one includes the other, never `true` by
    /// mistake.
    pub(super) fn includes(&self, other: &Self, comparison: Comparison) -> bool {
        includes(
            compared_segments(&self.segments, comparison),
            compared_segments(&other.segments, comparison),
            comparison,
        )
    }

    /// Returns whether any literal has a letter that is not lower case.
    #[must_use]
    pub fn has_other_than_small_letters(&self) -> bool {
        self.segments.iter().any(|segment| match segment {
            Segment::Literal(bytes) => !bytes.is_ascii() || bytes.iter().any(u8::is_ascii_uppercase),
            _ => false,
        })
    }

    pub(super) fn matches(&self, reading: PathReading<'_>, comparison: Comparison) -> bool {
        let (segments, rest) = self.compared(reading, comparison);
        Matching { comparison, decoded: reading.decoded }.run(segments, rest, &mut |_, _| {})
    }

    pub(super) fn bind(&self, reading: PathReading<'_>, comparison: Comparison) -> PathVariables {
        let (segments, rest) = self.compared(reading, comparison);
        let mut bound: Vec<(String, Option<String>)> = Vec::new();
        Matching { comparison, decoded: reading.decoded }.run(segments, rest, &mut |name, value| {
            let value = String::from_utf8(value.into_owned()).ok().filter(|value| !value.is_empty());
            bound.push((name.to_owned(), value));
        });
        PathVariables(bound)
    }

    /// Returns the segments and the path that are compared, both without trailing slashes where these are ignored.
    fn compared<'s, 'p>(
        &'s self,
        reading: PathReading<'p>,
        comparison: Comparison,
    ) -> (&'s [Segment], Option<&'p [u8]>) {
        let mut path = reading.path.strip_prefix(b"/");
        if comparison == Comparison::Folded {
            while let Some([rest @ .., b'/']) = path {
                path = Some(rest);
            }
        }
        (compared_segments(&self.segments, comparison), path)
    }
}

/// Returns the segments that are compared: without trailing slashes where these are ignored.
fn compared_segments(mut segments: &[Segment], comparison: Comparison) -> &[Segment] {
    while let [rest @ .., Segment::Literal(last)] = segments
        && comparison == Comparison::Folded
        && last.is_empty()
        && !rest.is_empty()
    {
        segments = rest;
    }
    segments
}

impl Segment {
    fn variable(&self) -> Option<&str> {
        match self {
            Self::Variable(name) => Some(name),
            _ => None,
        }
    }
}

/// The settings for comparing segments with a path.
#[derive(Clone, Copy)]
struct Matching {
    comparison: Comparison,
    decoded: bool,
}

impl Matching {
    /// Returns whether the segments match the rest of a path; `None` is a rest without any segment. Calls `bind` with
    /// each variable that it passes.
    fn run(self, segments: &[Segment], rest: Option<&[u8]>, bind: &mut dyn FnMut(&str, Cow<'_, [u8]>)) -> bool {
        let Some((segment, following)) = segments.split_first() else { return rest.is_none() };
        if *segment == Segment::Any {
            // There is no second `**`, so the following segments match the last ones of the path.
            return match following.len().checked_sub(1) {
                None => true,
                Some(before) => rest
                    .and_then(|path| last_segments(path, before))
                    .is_some_and(|last| self.run(following, Some(last), bind)),
            };
        }
        let Some((part, others)) = rest.map(split) else { return false };
        let fits = match segment {
            Segment::Literal(literal) => self.is_same(literal, part),
            _ => self.comparison == Comparison::Folded || !part.is_empty(),
        };
        if let (true, Some(name)) = (fits, segment.variable()) {
            bind(name, self.decode(part));
        }
        fits && self.run(following, others, bind)
    }

    fn decode(self, part: &[u8]) -> Cow<'_, [u8]> {
        if self.decoded { Cow::Borrowed(part) } else { percent_decode(part).into() }
    }

    fn is_same(self, literal: &[u8], part: &[u8]) -> bool {
        if part.len() > literal.len() * LONGEST_SAME {
            // A long segment of a hostile path is not decoded for every literal of every rule.
            return false;
        }
        let part = self.decode(part);
        match self.comparison {
            Comparison::Exact => *literal == *part,
            Comparison::Folded => is_same_folded(literal, &part),
        }
    }
}

/// Returns the last segment of a path and `before` segments before it; `None` if it has fewer.
fn last_segments(path: &[u8], before: usize) -> Option<&[u8]> {
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    let mut starts = slashes.map(|(at, _)| at + 1).chain([0]);
    starts.nth(before).map(|start| &path[start..])
}

/// Returns the first segment of a path, and the rest after its slash.
fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|byte| *byte == b'/') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

/// Returns whether two texts are equal without regard to letter case, also outside ASCII: Python's `lower` turns the
/// Kelvin sign into a `k`.
fn is_same_folded(literal: &[u8], part: &[u8]) -> bool {
    if literal.is_ascii() && part.is_ascii() {
        return literal.eq_ignore_ascii_case(part);
    }
    let folded = |bytes| -> String {
        String::from_utf8_lossy(bytes).chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
    };
    folded(literal) == folded(part)
}

/// Implements [`Pattern::includes`]. Neither list has more than one `**`.
fn includes(wide: &[Segment], narrow: &[Segment], comparison: Comparison) -> bool {
    let each = |wide: &[Segment], narrow: &[Segment]| {
        wide.iter().zip(narrow).all(|(wide, narrow)| match (wide, narrow) {
            (Segment::Any, _) | (_, Segment::Any) => false,
            (Segment::Literal(wide), Segment::Literal(narrow)) => wide == narrow,
            (Segment::Literal(_), _) => false,
            // `*` is no empty segment where paths are compared exactly.
            (_, Segment::Literal(narrow)) => comparison == Comparison::Folded || !narrow.is_empty(),
            (Segment::One | Segment::Variable(_), Segment::One | Segment::Variable(_)) => true,
        })
    };
    let position = |segments: &[Segment]| segments.iter().position(|segment| *segment == Segment::Any);
    let Some(at) = position(wide) else {
        return wide.len() == narrow.len() && each(wide, narrow);
    };
    let (before, after) = (&wide[..at], &wide[at + 1..]);
    // What surrounds the `**` of the wider pattern must be found around that of the other one, or in all of its segments.
    let (start, end) = match position(narrow) {
        Some(at) => (&narrow[..at], &narrow[at + 1..]),
        None if narrow.len() < before.len() + after.len() => return false,
        None => (narrow, narrow),
    };
    let Some(skipped) = end.len().checked_sub(after.len()) else { return false };
    start.len() >= before.len() && each(before, start) && each(after, &end[skipped..])
}

/// Returns whether some path matches both lists of segments.
fn overlaps(one: &[Segment], other: &[Segment], comparison: Comparison) -> bool {
    match (one, other) {
        ([], []) => true,
        ([Segment::Any, rest @ ..], _) => {
            overlaps(rest, other, comparison) || (!other.is_empty() && overlaps(one, &other[1..], comparison))
        }
        (_, [Segment::Any, ..]) => overlaps(other, one, comparison),
        ([], _) | (_, []) => false,
        ([first, one @ ..], [second, other @ ..]) => {
            let fits = match (first, second) {
                (Segment::Literal(first), Segment::Literal(second)) if comparison == Comparison::Exact => {
                    first == second
                }
                (Segment::Literal(first), Segment::Literal(second)) => is_same_folded(first, second),
                _ => true,
            };
            fits && overlaps(one, other, comparison)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(path: &str) -> PathReading<'_> {
        PathReading { path: path.as_bytes(), decoded: false }
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect("pattern")
    }

    #[test]
    fn patterns_match_as_documented() {
        for (written, path, exact, folded) in [
            ("/health", "/health", true, true),
            ("/health", "/health/", false, true),
            ("/health", "/Health", false, true),
            ("/health", "/healthy", false, false),
            ("/health", "/%68ealth", true, true),
            ("/%68ealth", "/health", true, true),
            ("/a%20b", "/a%20b", true, true),
            ("/a b", "/a%20b", true, true),
            ("/x/**", "/x", true, true),
            ("/x/**", "/x/", true, true),
            ("/x/**", "/x/a/b", true, true),
            ("/x/**", "/xy", false, false),
            ("/**", "/", true, true),
            ("/**", "/a/b", true, true),
            ("/", "/", true, true),
            ("/", "/a", false, false),
            ("/*/b", "/a/b", true, true),
            ("/*/b", "//b", false, true),
            ("/a/**/z", "/a/z", true, true),
            ("/a/**/z", "/a/b/c/z", true, true),
            ("/a/**/z", "/a/b/c", false, false),
            ("/a/**/z", "/a", false, false),
            ("/a/**/z", "/z", false, false),
            ("/a/**/y/z", "/a/z", false, false),
            ("/a/**/y/z", "/a/y/z", true, true),
            ("/a/**/y/z", "/a/y/y/z", true, true),
            ("/a/**/*", "/a/", false, false),
            ("/a/**/", "/a/b/", true, true),
            ("/**/z", "/z", true, true),
            ("/**/z", "/", false, false),
            ("/admin/", "/admin", false, true),
            ("/admin/", "/ADMIN//", false, true),
            ("/kelvin", "/\u{212a}elvin", false, true),
        ] {
            let pattern = pattern(written);
            assert_eq!(pattern.matches(sent(path), Comparison::Exact), exact, "{written} {path} exactly");
            assert_eq!(pattern.matches(sent(path), Comparison::Folded), folded, "{written} {path} without case");
        }
    }

    #[test]
    fn a_reading_that_is_decoded_is_compared_as_it_is() {
        let reading = PathReading { path: b"/a%20b", decoded: true };
        assert!(!pattern("/a%20b").matches(reading, Comparison::Exact));
        assert!(pattern("/a%2520b").matches(reading, Comparison::Exact));
    }

    #[test]
    fn variables_are_decoded_once() {
        let pattern = pattern("/files/{user}/**");
        assert_eq!(pattern.bind(sent("/files/a%20b/c"), Comparison::Folded).get("user"), Some("a b"));
        assert_eq!(pattern.bind(sent("/files/%ff/c"), Comparison::Folded).get("user"), None);
        assert_eq!(pattern.bind(sent("/files/Bob/c"), Comparison::Folded).get("user"), Some("Bob"));
    }

    #[test]
    fn a_variable_behind_any_number_of_segments_is_the_one_that_matched() {
        let pattern = pattern("/a/**/u/{user}");
        assert_eq!(pattern.bind(sent("/a/u/x/u/bob"), Comparison::Exact).get("user"), Some("bob"));
    }

    #[test]
    fn patterns_that_would_mislead_are_refused() {
        for pattern in ["health", "/a*", "/a/{b", "/x?y", "/{a-b}", "/a#b", "/**/a/**", "/a/{u}/b/{u}"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn patterns_that_overlap_by_letter_case_only_are_found() {
        for (one, other, found) in [
            ("/API/**", "/api/x", true),
            ("/API/**", "/api/**", true),
            ("/a/{x}/B", "/a/*/b", true),
            ("/api/**", "/api/x", false),
            ("/API/**", "/b/**", false),
            ("/**", "/API", false),
        ] {
            assert_eq!(pattern(one).overlaps_by_case_only(&pattern(other)), found, "{one} {other}");
        }
    }

    #[test]
    fn patterns_that_include_others_are_found() {
        for (wide, narrow, exact, folded) in [
            ("/**", "/admin/**", true, true),
            ("/**", "/", true, true),
            ("/a/**", "/a/b", true, true),
            ("/a/**", "/a", true, true),
            ("/a/**", "/a/", true, true),
            ("/a/**", "/a/*/c/**", true, true),
            ("/a/**", "/a/**/c", true, true),
            ("/a/**", "/ab", false, false),
            ("/a/**", "/**", false, false),
            ("/a/b", "/a/**", false, false),
            ("/a/*", "/a/{user}", true, true),
            ("/a/*", "/a/b", true, true),
            ("/a/*", "/a/", false, false),
            ("/*", "/", false, true),
            ("/a/*", "/a/**", false, false),
            ("/a/{x}", "/a/b/c", false, false),
            ("/a/**/z", "/a/z", true, true),
            ("/a/**/z", "/a/b/**/y/z", true, true),
            ("/a/**/z", "/a/b", false, false),
            ("/a/**/a", "/a", false, false),
            ("/API/**", "/api/x", false, false),
            ("/a", "/%61", true, true),
            ("/a/", "/a", false, true),
        ] {
            let includes = |comparison| pattern(wide).includes(&pattern(narrow), comparison);
            assert_eq!(includes(Comparison::Exact), exact, "{wide} {narrow} exactly");
            assert_eq!(includes(Comparison::Folded), folded, "{wide} {narrow} without case");
        }
    }

    #[test]
    fn matching_is_bounded_on_hostile_paths() {
        let path = "/a".repeat(4_000);
        assert!(!pattern("/**/a/b").matches(sent(&path), Comparison::Folded));
    }
}
