//! A very lenient server: it changes a path step by step in an order of its own, and serves the result without regard to
//! letter case. It is written independently of `path_readings`.

#![allow(clippy::expect_used, reason = "a failed expectation is what a fuzzer looks for")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use super::*;
use crate::fuzz::Input;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Habit {
    Decode,
    DecodeDots,
    Normalize,
    Merge,
    Backslash,
    Authority,
    AuthorityBehindSlashes,
    Parameters,
    LastParameters,
    CutNul,
    CutQuery,
    CutFragment,
    DropBreaks,
    TrimPath,
    TrimSegments,
    DropInvalid,
    ReplaceInvalid,
}

use Habit::*;
const HABITS: [Habit; 17] = [
    Decode,
    DecodeDots,
    Normalize,
    Merge,
    Backslash,
    Authority,
    AuthorityBehindSlashes,
    Parameters,
    LastParameters,
    CutNul,
    CutQuery,
    CutFragment,
    DropBreaks,
    TrimPath,
    TrimSegments,
    DropInvalid,
    ReplaceInvalid,
];

fn cut(path: &str, end: char) -> String {
    path.split(end).next().unwrap_or_default().to_owned()
}

fn each_segment(path: &str, change: impl Fn(&str) -> &str) -> String {
    path.split('/').map(change).collect::<Vec<_>>().join("/")
}

fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c.is_control())
}

/// Decodes a path. Bytes that are not UTF-8 become private characters until they are dropped or replaced.
fn decode(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        let escape = rest.get(1..3).filter(|_| first == '%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escape.filter(|_| rest.as_bytes()[1..3].iter().all(u8::is_ascii_hexdigit)) {
            bytes.push(byte);
            rest = &rest[3..];
        } else {
            bytes.extend(first.to_string().bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| char::from_u32(0xe000 + u32::from(*byte)).expect("private")));
    }
    text
}

fn is_invalid(c: char) -> bool {
    ('\u{e000}'..='\u{e0ff}').contains(&c)
}

fn apply(path: &str, habit: Habit) -> String {
    match habit {
        Decode => decode(path),
        DecodeDots => path.replace("%2e", ".").replace("%2E", "."),
        Normalize => {
            let mut kept: Vec<&str> = Vec::new();
            for segment in path.split('/').skip(1) {
                match segment {
                    "." => {}
                    ".." => drop(kept.pop()),
                    segment => kept.push(segment),
                }
            }
            format!("/{}", kept.join("/"))
        }
        Merge => {
            let mut merged = path.to_owned();
            while merged.contains("//") {
                merged = merged.replace("//", "/");
            }
            merged
        }
        Backslash => path.replace('\\', "/"),
        Authority => match path.strip_prefix("//").or_else(|| path.strip_prefix("/\\")) {
            Some(rest) => rest.split_once('/').map_or("/".to_owned(), |(_, path)| format!("/{path}")),
            None => path.to_owned(),
        },
        AuthorityBehindSlashes => {
            let host = path.trim_start_matches(['/', '\\']);
            if path.len() - host.len() < 2 {
                return path.to_owned();
            }
            host.split_once(['/', '\\']).map_or("/".to_owned(), |(_, path)| format!("/{path}"))
        }
        Parameters => each_segment(path, |segment| segment.split(';').next().unwrap_or_default()),
        LastParameters => {
            let (before, last) = path.rsplit_once('/').unwrap_or_default();
            format!("{before}/{}", cut(last, ';'))
        }
        CutNul => cut(path, '\0'),
        CutQuery => cut(path, '?'),
        CutFragment => cut(path, '#'),
        DropBreaks => path.replace(['\t', '\r', '\n'], ""),
        TrimPath => trim(path).to_owned(),
        TrimSegments => each_segment(path, trim),
        DropInvalid => path.replace(is_invalid, ""),
        ReplaceInvalid => path.replace(is_invalid, "\u{fffd}"),
    }
}

/// Returns the path that is served: after all steps, decoded at most twice, in lower case, without a slash at
/// its end.
fn served(path: &str, habits: &[Habit]) -> String {
    let mut path = path.to_owned();
    let mut decodings = 0;
    for habit in habits {
        decodings += u32::from(*habit == Decode);
        if *habit == Decode && decodings > 2 {
            continue;
        }
        path = apply(&path, *habit);
    }
    let path = path.replace(is_invalid, "\u{fffd}").to_ascii_lowercase();
    let path = path.trim_end_matches('/');
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

const USERS: [&str; 3] = ["", "a", "b"];

/// Returns whether a user may read the resource of this plain name: the first rule that matches without regard
/// to case decides.
fn may_have(routes: &[(String, &str)], name: &str, user: &str) -> bool {
    let segments: Vec<&str> = name.trim_matches('/').split('/').filter(|s| !s.is_empty()).collect();
    for (pattern, outcome) in routes {
        let wanted: Vec<&str> = pattern.trim_matches('/').split('/').collect();
        let (wanted, any) = match wanted.split_last() {
            Some((&"**", rest)) => (rest, true),
            _ => (wanted.as_slice(), false),
        };
        let mut variable = None;
        let fits = (if any { segments.len() >= wanted.len() } else { segments.len() == wanted.len() })
            && wanted.iter().zip(&segments).all(|(wanted, segment)| {
                if *wanted == "{u}" {
                    variable = Some(*segment);
                }
                *wanted == "{u}" || wanted.eq_ignore_ascii_case(segment)
            });
        if fits {
            return match *outcome {
                "auth: none" => true,
                "auth: deny" => false,
                "require: { role: a }" => user == "a",
                _ => variable.is_none() && !user.is_empty() || variable == Some(user),
            };
        }
    }
    !user.is_empty()
}

fn passes(matched: &RouteMatch, user: &str) -> bool {
    let meets = |requirement: &RouteRequirement| match requirement.route.require.claims.first() {
        Some((_, expected)) if matches!(expected[0], crate::policy::Expected::Variable(_)) => {
            requirement.variables.get("u") == Some(user)
        }
        _ => user == "a",
    };
    match matched.auth {
        AuthMode::Deny => false,
        AuthMode::None => true,
        AuthMode::Optional | AuthMode::Required => !user.is_empty() && matched.requirements.iter().all(meets),
    }
}

fn as_yaml(rules: &[(String, &str)]) -> String {
    let mut yaml = String::new();
    for (pattern, outcome) in rules {
        let outcome = match *outcome {
            "own" if pattern.contains("{u}") => "require: { sub: \"{u}\" }",
            "own" => "auth: required",
            outcome => outcome,
        };
        let _ = writeln!(yaml, "  - path: \"{pattern}\"\n    {outcome}");
    }
    yaml
}

/// The patterns of which a fuzzer chooses.
const PATTERNS: [&str; 12] = [
    "/x",
    "/Y/**",
    "/open/**",
    "/Admin/**",
    "/{u}",
    "/{u}/**",
    "/x/{u}",
    "/open/{u}/x",
    "/a/Y",
    "/Admin",
    "/x/a/**",
    "/**",
];
const OUTCOMES: [&str; 4] = ["auth: none", "auth: deny", "require: { role: a }", "own"];

/// Routers as they read a path, each with its steps in order, as far as they are [`Habit`]s.
const ROUTERS: [&[Habit]; 12] = [
    // Go's ServeMux and gorilla/mux: decoded once, then cleaned.
    &[Decode, Merge, Normalize],
    // Tomcat and Jetty: parameters of each segment are dropped before the path is decoded and normalized.
    &[Parameters, Decode, Merge, Normalize],
    // Spring behind a servlet container that has decoded the path, and matches a decoded path again.
    &[Decode, Parameters, Decode, Merge, Normalize],
    // IIS and ASP.NET: a backslash is a slash.
    &[Decode, Backslash, Merge, Normalize],
    // Python's urlsplit before a WSGI application decodes.
    &[DropBreaks, Authority, LastParameters, Decode],
    // Starlette: decoded once, and `$` matches before a final newline.
    &[Decode, TrimPath],
    // Node's WHATWG URL, then a router that decodes.
    &[DropBreaks, Backslash, AuthorityBehindSlashes, DecodeDots, Normalize, Decode],
    // nginx before a server that decodes again.
    &[Decode, Merge, Normalize, Decode, Normalize],
    // A C program behind a gateway.
    &[Decode, CutNul, Merge, Normalize],
    // A server that builds a URL from a decoded path and parses it again.
    &[Decode, CutFragment, CutQuery, Normalize],
    // A Windows file system, which ignores white space at the end of names.
    &[Decode, Backslash, TrimSegments, Normalize, Merge],
    // Lenient decoders of UTF-8.
    &[Decode, DropInvalid, Decode, ReplaceInvalid, Normalize],
];

/// Checks that nobody gets from a server what the rules keep from them, whatever path is asked for and however the
/// server reads it.
///
/// The first bytes choose the rules and the server's steps. The rest is the path.
pub fn paths(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rules: Vec<(String, &str)> = Vec::new();
    for _ in 0..=input.below(4) {
        let (pattern, outcome) = (input.choose(&PATTERNS), input.choose(&OUTCOMES));
        if !rules.iter().any(|(known, _)| known == pattern) {
            rules.push(((*pattern).to_owned(), outcome));
        }
    }
    let mut habits: Vec<Habit> = (0..input.below(7)).map(|_| *input.choose(&HABITS)).collect();
    if !habits.contains(&Decode) {
        habits.push(Decode);
    }
    let sent = [b"/", input.rest()].concat();
    // What the HTTP parser does not let through reaches no rule.
    let Ok(uri) = hyper::http::uri::PathAndQuery::try_from(sent) else { return };
    let path = uri.path();
    if mentions_private_characters(path) {
        return;
    }
    let policy = policy_of(&rules);
    let readings = match policy.readings(path) {
        Ok(readings) => readings,
        Err(too_many) => {
            let is_own = |habits: &&[Habit]| is_own(&served(path, habits));
            assert!(too_many.may_be_own || !ROUTERS.iter().any(is_own), "{path} may be the proxy's own");
            return;
        }
    };
    let matched = policy.match_route("GET", &readings);
    for habits in ROUTERS.into_iter().chain([&*habits]) {
        let served = served(path, habits);
        for user in USERS {
            assert!(
                !passes(&matched, user) || may_have(&rules, &served, user),
                "{path} is served as {served} to {user:?} by {habits:?} under {rules:?}"
            );
        }
        assert!(!is_own(&served) || readings.is_own(), "{path} is not seen to be the proxy's own by {habits:?}");
    }
}

/// Returns the policy with these rules. Those made before are kept: to make one takes longer than all that is checked with
/// it.
fn policy_of(rules: &[(String, &str)]) -> Arc<Policy> {
    /// The number of policies that are kept.
    const MAX_POLICIES: usize = 2_000;
    static POLICIES: Mutex<BTreeMap<String, Arc<Policy>>> = Mutex::new(BTreeMap::new());

    let file = format!("{HEAD}{}", as_yaml(rules));
    let mut policies = POLICIES.lock().expect("no other thread has failed");
    if policies.len() == MAX_POLICIES {
        policies.clear();
    }
    let make = || {
        let config = crate::config::load_yaml(&file).expect("loads").config;
        Arc::new(crate::policy::validate(&config).expect("valid"))
    };
    Arc::clone(policies.entry(file.clone()).or_insert_with(make))
}

/// Returns whether a served path is under the proxy's own prefix.
fn is_own(served: &str) -> bool {
    served.trim_start_matches('/').split('/').next() == Some(".vestibule")
}

/// Returns whether a path may hold the characters that [`decode`] puts in the place of invalid bytes.
fn mentions_private_characters(path: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    (0..4).any(|_| {
        let is_found = bytes.windows(2).any(|pair| pair[0] == 0xee && (0x80..=0x83).contains(&pair[1]));
        bytes = percent_encoding::percent_decode(&bytes).collect();
        is_found
    })
}

/// The beginning of a configuration, up to its rules.
pub(in crate::policy) const HEAD: &str = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX }]\nroutes:\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::route_match::tests::policy;

    #[test]
    fn the_corpus_of_paths_is_served_as_the_rules_say() {
        crate::fuzz::run_corpus("paths", paths);
    }

    fn rules() -> impl Strategy<Value = Vec<(String, &'static str)>> {
        let segment = prop::sample::select(vec!["x", "Y", "open", "Admin", "{u}", "a"]);
        let pattern = (prop::collection::vec(segment, 1..3), any::<bool>()).prop_map(|(mut segments, any)| {
            let mut seen = false;
            segments.retain(|segment| *segment != "{u}" || !std::mem::replace(&mut seen, true));
            format!("/{}{}", segments.join("/"), if any { "/**" } else { "" })
        });
        let outcome = prop::sample::select(vec!["auth: none", "auth: deny", "require: { role: a }", "own"]);
        prop::collection::vec((pattern, outcome), 1..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn serves_nobody_what_the_rules_keep_from_them(
            rules in rules(),
            path in "/(/|x|Y|y|open|OPEN|Admin|admin|a|b|\\.|\\.\\.|%2e|%2F|%5c|;|\\\\|%61|%41|%20|%0[0ad9]|%3f|%23|%25|%2561|%c2%a0|%ff|\u{e9}){0,9}",
            habits in prop::collection::vec(prop::sample::select(HABITS.to_vec()), 0..7),
        ) {
            let by_case = |one: &str, other: &str| one != other && one.eq_ignore_ascii_case(other);
            prop_assume!(!rules.iter().any(|(one, _)| rules.iter().any(|(other, _)| by_case(one, other))));
            let policy = policy(&as_yaml(&rules));
            // For a server that never decodes, resources have other names than in the rules.
            let mut habits = habits;
            if !habits.contains(&Decode) {
                habits.push(Decode);
            }
            if let Some(matched) = policy.match_path("GET", &path) {
                let served = served(&path, &habits);
                for user in USERS {
                    prop_assert!(
                        !passes(&matched, user) || may_have(&rules, &served, user),
                        "{path} is served as {served} to {user:?} by {habits:?} under {rules:?}"
                    );
                }
            }
        }
    }
}
