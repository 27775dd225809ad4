//! Rules by path and method: patterns, and the spelling they match.
//!
//! A rule that opens (`auth: none`, `optional`) matches one exact spelling. A rule that closes
//! matches every spelling that could mean its path: letters of any case, percent-encoding decoded
//! once, trailing slashes, methods of any case. So a misread can only close.

use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::{Requirement, TokenSources, WebSocketSpec};
use crate::config::AuthMode;

/// One rule, complete: what it does not say itself was filled in from the defaults.
#[derive(Debug)]
pub struct Route {
    /// The pattern as written, also the `route` label of logs and metrics; `default` for the last.
    pub label: Arc<str>,
    /// `None` matches every path.
    pub pattern: Option<Pattern>,
    /// Empty: every method.
    pub methods: Vec<String>,
    /// Whether a credential is needed.
    pub auth: AuthMode,
    /// What the identity must show beyond being verified.
    pub require: Requirement,
    /// Which of the policy's upstreams it goes to.
    pub upstream: usize,
    /// Which carriers of a token are read.
    pub token_from: TokenSources,
    /// How its `WebSockets` live.
    pub websocket: WebSocketSpec,
}

/// A rule and what its path variables stood for.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The rule.
    pub route: Arc<Route>,
    /// Its variables.
    pub variables: PathVariables,
}

/// `{name}` of a pattern and the segment it stood for, percent-decoded once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathVariables(Vec<(String, Option<String>)>);

impl PathVariables {
    /// The decoded segment; `None` when it is not UTF-8 or there is no such variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_deref())
    }
}

impl Route {
    fn opens(&self) -> bool {
        matches!(self.auth, AuthMode::None | AuthMode::Optional)
    }

    pub(super) fn matches(&self, method: &str, path: &str) -> Option<PathVariables> {
        if !self.methods.is_empty() {
            let named = |wanted: &String| {
                let same = if self.opens() { wanted == method } else { wanted.eq_ignore_ascii_case(method) };
                same || (wanted == "GET"
                    && (method == "HEAD" || (!self.opens() && method.eq_ignore_ascii_case("HEAD"))))
            };
            if !self.methods.iter().any(named) {
                return None;
            }
        }
        match &self.pattern {
            None => Some(PathVariables::default()),
            Some(pattern) => pattern.matches(path, if self.opens() { Spelling::Exact } else { Spelling::Any }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Exact,
    Any,
}

/// `/files/{user}/**`: `*` one segment, `**` any number including none, `{name}` one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One,
    Any,
    Variable(String),
}

/// More segments than any real path has; with at most one `**` matching stays linear in the path.
const SEGMENTS: usize = 64;

impl Pattern {
    /// A path that it matches.
    #[must_use]
    pub fn example(&self, filling: &str) -> String {
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            path.push_str(match segment {
                Segment::Literal(text) => text,
                Segment::One | Segment::Any | Segment::Variable(_) => filling,
            });
        }
        path
    }

    /// Parses a pattern.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write.
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
                part => Segment::Literal(part.to_owned()),
            });
        }
        if segments.len() > SEGMENTS || segments.iter().filter(|segment| **segment == Segment::Any).count() > 1 {
            return Err(format!("more than {SEGMENTS} segments, or more than one `**`"));
        }
        Ok(Self { segments })
    }

    /// The names of its variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Variable(name) => Some(name.as_str()),
            _ => None,
        })
    }

    fn matches(&self, path: &str, spelling: Spelling) -> Option<PathVariables> {
        let mut path = path.strip_prefix('/')?;
        if spelling == Spelling::Any {
            path = path.trim_end_matches('/');
        }
        let parts: Vec<&str> = path.split('/').collect();
        let mut segments = self.segments.as_slice();
        if spelling == Spelling::Any {
            // `/x/` as a closing rule is `/x` too.
            while let [rest @ .., Segment::Literal(last)] = segments
                && last.is_empty()
                && !rest.is_empty()
            {
                segments = rest;
            }
        }
        let mut variables = Vec::new();
        matches_from(segments, &parts, spelling, &mut variables).then_some(PathVariables(variables))
    }
}

fn matches_from(
    segments: &[Segment],
    parts: &[&str],
    spelling: Spelling,
    variables: &mut Vec<(String, Option<String>)>,
) -> bool {
    let Some((segment, rest)) = segments.split_first() else {
        return parts.is_empty();
    };
    if *segment == Segment::Any {
        // Greedy is as good as lazy: only whether it matches counts, and what variables behind it hold.
        return (0..=parts.len()).any(|skipped| {
            let before = variables.len();
            let matched = matches_from(rest, &parts[skipped..], spelling, variables);
            if !matched {
                variables.truncate(before);
            }
            matched
        });
    }
    let Some((part, others)) = parts.split_first() else { return false };
    let fits = match segment {
        Segment::Literal(literal) if spelling == Spelling::Exact => literal == part,
        Segment::Literal(literal) => same_any_spelling(literal, part),
        Segment::One => spelling == Spelling::Any || !part.is_empty(),
        Segment::Variable(name) => {
            let decoded = percent_decode_str(part).decode_utf8().ok().map(std::borrow::Cow::into_owned);
            variables.push((name.clone(), decoded.filter(|value| !value.is_empty())));
            spelling == Spelling::Any || !part.is_empty()
        }
        Segment::Any => false,
    };
    fits && matches_from(rest, others, spelling, variables)
}

fn same_any_spelling(literal: &str, part: &str) -> bool {
    percent_decode_str(literal)
        .map(|byte| byte.to_ascii_lowercase())
        .eq(percent_decode_str(part).map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(pattern: &str, path: &str, spelling: Spelling) -> bool {
        Pattern::parse(pattern).expect("pattern").matches(path, spelling).is_some()
    }

    #[test]
    fn patterns_match_as_documented() {
        for (pattern, path, exact, any) in [
            ("/health", "/health", true, true),
            ("/health", "/health/", false, true),
            ("/health", "/Health", false, true),
            ("/health", "/healthy", false, false),
            ("/health", "/%68ealth", false, true),
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
            ("/admin/", "/admin", false, true),
            ("/admin/", "/ADMIN//", false, true),
        ] {
            assert_eq!(matched(pattern, path, Spelling::Exact), exact, "{pattern} {path} exact");
            assert_eq!(matched(pattern, path, Spelling::Any), any, "{pattern} {path} any");
        }
    }

    #[test]
    fn variables_are_decoded_once() {
        let pattern = Pattern::parse("/files/{user}/**").expect("pattern");
        let variables = pattern.matches("/files/a%20b/c", Spelling::Any).expect("matches");
        assert_eq!(variables.get("user"), Some("a b"));
        let variables = pattern.matches("/files/%ff/c", Spelling::Any).expect("matches, as closed");
        assert_eq!(variables.get("user"), None);
    }

    #[test]
    fn patterns_that_would_mislead_are_refused() {
        for pattern in ["health", "/a*", "/a/{b", "/x?y", "/{a-b}", "/a#b", "/**/a/**"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn matching_is_bounded_on_hostile_paths() {
        let pattern = Pattern::parse("/**/a/b").expect("pattern");
        let path = "/a".repeat(4_000);
        assert!(pattern.matches(&path, Spelling::Any).is_none());
    }
}
