//! Header names that no client may set, compared by their letters and digits alone.
//!
//! Backends that turn header names into CGI or WSGI variables read `X_USER.ID` as `X-User-Id` (CVE-2025-64484,
//! CVE-2026-39858, CVE-2026-52845), so every comparison uses the same folded form.

mod known;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use hyper::header::HeaderName;

use super::check::Check;

/// The names that the proxy handles itself. Other spellings of them, with the same letters and digits, are removed.
pub(super) const PROTECTED: [&str; 6] =
    ["Host", "Content-Length", "Transfer-Encoding", "Authorization", "Cookie", "X-Request-Id"];

/// The maximum length of a configured name. A longer name of a client can only match a family, by its beginning.
pub(super) const LONGEST: usize = 64;

/// Folds a header name to its letters and digits in lower case.
#[must_use]
pub fn fold(name: &str) -> Folded {
    let mut folded = Folded { bytes: [0; LONGEST], length: 0, is_whole: true };
    for byte in name.bytes().filter(u8::is_ascii_alphanumeric) {
        let Some(slot) = folded.bytes.get_mut(folded.length) else {
            folded.is_whole = false;
            break;
        };
        *slot = byte.to_ascii_lowercase();
        folded.length += 1;
    }
    folded
}

/// A folded name, on the stack, because every header of every request is folded once.
#[derive(Clone, Copy, Debug)]
pub struct Folded {
    bytes: [u8; LONGEST],
    length: usize,
    /// Whether the name was not truncated. A truncated name equals no other.
    is_whole: bool,
}

impl Folded {
    /// Returns the letters and digits, truncated to the maximum length of a reserved name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl PartialEq for Folded {
    fn eq(&self, other: &Self) -> bool {
        self.is_whole && other.is_whole && self.as_bytes() == other.as_bytes()
    }
}

/// The treatment of a client's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// An identity header or its look-alike: removed and counted.
    Identity,
    /// Another spelling of a name that decides about framing, credentials or forwarding: removed.
    LookAlike,
    /// A forwarding field: removed, and set anew by the proxy.
    Forwarding,
    /// A name by which some backends read another path, host, scheme or method: never forwarded.
    Override,
    /// The header of an upstream's own secret: never forwarded from a client.
    Credential,
    /// A header that may carry a client's token, in its exact spelling: forwarded where no token is read.
    TokenSource,
}

/// The meaning of a folded name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Always(Reserved),
    /// A token source in its exact spelling, otherwise a look-alike of one.
    TokenSource,
    /// A protected name in its exact spelling, which is forwarded, otherwise a look-alike of one.
    Protected,
}

/// The set of reserved names of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedNames(Arc<Names>);

#[derive(Debug, PartialEq, Eq)]
struct Names {
    exact: Table<Meaning>,
    families: Table<Reserved>,
    /// The headers that may carry tokens, in their exact spelling.
    token_sources: Vec<Box<str>>,
    /// The usual headers that are ordinary under this configuration, by the length of their names.
    ordinary: Vec<Vec<&'static str>>,
}

/// Headers of most requests. Under most configurations they are ordinary ones, and to find a name among them takes a
/// fifth of the instructions of folding it and looking it up.
const USUAL: [&str; 24] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "if-modified-since",
    "if-none-match",
    "origin",
    "priority",
    "referer",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-websocket-key",
    "sec-websocket-version",
    "upgrade",
    "user-agent",
];

/// The names that the configuration reserves in addition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConfiguredNames<'a> {
    /// The headers that carry an identity, and further ones to remove from requests.
    pub(crate) identity: &'a [&'a str],
    /// The headers that may carry a token.
    pub(crate) token_sources: &'a [&'a str],
    /// The headers of the upstreams' own secrets.
    pub(crate) credentials: &'a [&'a str],
    /// Whether a rule names methods. Then no header may change the method.
    pub(crate) rules_by_method: bool,
}

impl Default for ReservedNames {
    /// Returns the names that are reserved under every configuration. They are collected once: each dialect begins with
    /// them, and each configured header is compared with them.
    fn default() -> Self {
        static NAMES: LazyLock<ReservedNames> = LazyLock::new(|| ReservedNames::new(ConfiguredNames::default()));
        NAMES.clone()
    }
}

impl ReservedNames {
    /// Collects the names that are reserved under a configuration.
    pub(crate) fn new(configured: ConfiguredNames<'_>) -> Self {
        let ConfiguredNames { identity, token_sources, credentials, rules_by_method } = configured;
        let families = [
            (&known::IDENTITY_FAMILIES[..], Reserved::Identity),
            (&known::FORWARDING_FAMILIES, Reserved::Forwarding),
            (&known::OVERRIDE_FAMILIES, Reserved::Override),
        ];
        let families = Table::new(families.into_iter().flat_map(|(names, kind)| names.iter().map(move |n| (*n, kind))));
        let methods = if rules_by_method { &known::METHODS[..] } else { &[] };
        // If a name has several meanings, the last one counts.
        let mut exact = Vec::new();
        for (names, meaning) in [
            (credentials, Meaning::Always(Reserved::Credential)),
            (token_sources, Meaning::TokenSource),
            (methods, Meaning::Always(Reserved::Override)),
            (&known::OVERRIDES, Meaning::Always(Reserved::Override)),
            (&known::FORWARDING, Meaning::Always(Reserved::Forwarding)),
            (&known::IDENTITIES, Meaning::Always(Reserved::Identity)),
            (&PROTECTED, Meaning::Protected),
            (&["Authorization"], Meaning::TokenSource),
            (identity, Meaning::Always(Reserved::Identity)),
        ] {
            exact.extend(names.iter().map(|name| (*name, meaning)));
        }
        // A name that belongs to a family keeps the family's meaning, however else it is used.
        exact.retain(|(name, meaning)| {
            let yields_to_family = matches!(meaning, Meaning::TokenSource | Meaning::Always(Reserved::Credential));
            !(yields_to_family && families.beginning_of(fold(name).as_bytes()).is_some())
        });
        let spelled = token_sources.iter().copied().chain(["authorization"]);
        let token_sources = spelled.map(|name| name.to_ascii_lowercase().into()).collect();
        let mut names = Names { exact: Table::new(exact), families, token_sources, ordinary: Vec::new() };
        for name in USUAL {
            if names.classify(name).is_none() {
                let length = names.ordinary.len().max(name.len() + 1);
                names.ordinary.resize_with(length, Vec::new);
                names.ordinary[name.len()].push(name);
            }
        }
        Self(Arc::new(names))
    }

    /// Returns the treatment of `name`, as a client sent it; `None` for an ordinary header.
    #[must_use]
    pub fn classify(&self, name: &str) -> Option<Reserved> {
        if self.0.ordinary.get(name.len()).is_some_and(|ordinary| ordinary.contains(&name)) {
            return None;
        }
        self.0.classify(name)
    }
}

impl Names {
    fn classify(&self, name: &str) -> Option<Reserved> {
        let folded = fold(name);
        let letters = folded.as_bytes();
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        if folded.is_whole
            && let Some(meaning) = self.exact.get(letters)
        {
            return match meaning {
                Meaning::Always(kind) => Some(kind),
                Meaning::TokenSource if self.token_sources.iter().any(|known| is(known)) => Some(Reserved::TokenSource),
                Meaning::Protected if PROTECTED.into_iter().any(is) => None,
                Meaning::TokenSource | Meaning::Protected => Some(Reserved::LookAlike),
            };
        }
        if let Some(kind) = self.families.beginning_of(letters) {
            return Some(kind);
        }
        let is_certificate = known::FORWARDING_ENDINGS.iter().any(|ending| letters.ends_with(ending));
        is_certificate.then_some(Reserved::Forwarding)
    }
}

/// Folded names in order, indexed by first letter, so that most headers are excluded by their first letter.
#[derive(Debug, PartialEq, Eq)]
struct Table<T> {
    names: Vec<(Box<[u8]>, T)>,
    /// The index at which the names with each first letter or digit begin, and the end of the last.
    begins: [usize; 37],
}

impl<T: Copy> Table<T> {
    fn new<'a>(names: impl IntoIterator<Item = (&'a str, T)>) -> Self {
        let names: BTreeMap<Box<[u8]>, T> =
            names.into_iter().map(|(name, meaning)| (fold(name).as_bytes().into(), meaning)).collect();
        let names: Vec<_> = names.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let begins = std::array::from_fn(|number| names.partition_point(|(name, _)| number_of(name[0]) < number));
        Self { names, begins }
    }

    /// Returns the names with the same first letter or digit.
    fn with_first_of(&self, letters: &[u8]) -> &[(Box<[u8]>, T)] {
        let Some(first) = letters.first() else { return &[] };
        let number = number_of(*first);
        &self.names[self.begins[number]..self.begins[number + 1]]
    }

    /// Returns the meaning of exactly this name.
    fn get(&self, letters: &[u8]) -> Option<T> {
        let names = self.with_first_of(letters);
        let at = names.binary_search_by(|(name, _)| (**name).cmp(letters)).ok()?;
        Some(names[at].1)
    }

    /// Returns the meaning of the family with which these letters begin. Only one family can match, because none is the
    /// beginning of another: the last one that does not sort after the letters.
    fn beginning_of(&self, letters: &[u8]) -> Option<T> {
        let names = self.with_first_of(letters);
        let end = names.partition_point(|(name, _)| **name <= *letters);
        let (name, meaning) = names.get(end.checked_sub(1)?)?;
        letters.starts_with(name).then_some(*meaning)
    }
}

/// Returns the index of a letter or digit: digits before letters, as in ASCII.
fn number_of(letter: u8) -> usize {
    usize::from(if letter.is_ascii_digit() { letter - b'0' } else { letter.wrapping_sub(b'a').wrapping_add(10) })
}

impl Check {
    pub(super) fn header_name(&mut self, path: &str, name: &str) -> Option<HeaderName> {
        if name.len() > LONGEST {
            self.error(path, format!("a header name longer than {LONGEST} bytes"));
            return None;
        }
        let parsed = HeaderName::try_from(name).map_err(|_| format!("\"{name}\" is not a header name"));
        self.ok_or_report(path, parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(configured: ConfiguredNames<'_>) -> ReservedNames {
        ReservedNames::new(configured)
    }

    #[test]
    fn look_alikes_fold_onto_the_configured_name() {
        let reserved = with(ConfiguredNames { identity: &["x-team-MEMBER"], ..Default::default() });
        for name in ["X-User-Id", "x_user_id", "X.USER.ID", "xuserid", "X-Team_Member", "X-Pomerium-Claim-Foo"] {
            assert_eq!(reserved.classify(name), Some(Reserved::Identity), "{name}");
        }
    }

    #[test]
    fn framing_names_pass_in_their_own_spelling_only() {
        let reserved = ReservedNames::default();
        assert_eq!(reserved.classify("Content-Length"), None);
        assert_eq!(reserved.classify("content_length"), Some(Reserved::LookAlike));
        assert_eq!(reserved.classify("Transfer.Encoding"), Some(Reserved::LookAlike));
        assert_eq!(reserved.classify("X_Forwarded_For"), Some(Reserved::Forwarding));
        assert_eq!(reserved.classify("X-Forwarded-Prefix"), Some(Reserved::Forwarding));
        assert_eq!(reserved.classify("Accept"), None);
        assert_eq!(reserved.classify(&"x".repeat(200)), None);
        assert_eq!(reserved.classify("---"), None);
    }

    #[test]
    fn a_usual_name_that_is_configured_is_reserved_as_any_other() {
        for name in USUAL {
            let identity = with(ConfiguredNames { identity: &[name], ..Default::default() });
            assert_eq!(identity.classify(name), Some(Reserved::Identity), "{name}");
            let source = with(ConfiguredNames { token_sources: &[name], ..Default::default() });
            for reserved in [ReservedNames::default(), source] {
                assert_eq!(reserved.classify(name), reserved.0.classify(name), "{name}");
            }
        }
    }

    #[test]
    fn a_family_takes_names_of_any_length_with_it() {
        let reserved = ReservedNames::default();
        let long = format!("X-Pomerium-Claim-{}", "a".repeat(100));
        assert_eq!(reserved.classify(&long), Some(Reserved::Identity));
        assert_eq!(reserved.classify("Nginx-Client-Verify"), Some(Reserved::Forwarding));
        // This name is longer than any configured name, so it equals none of them.
        let name = "a".repeat(LONGEST);
        let reserved = with(ConfiguredNames { identity: &[&name], ..Default::default() });
        assert_eq!(reserved.classify(&name), Some(Reserved::Identity));
        assert_eq!(reserved.classify(&format!("{name}b")), None);
    }

    #[test]
    fn every_known_name_is_reserved_in_every_spelling() {
        let reserved = ReservedNames::default();
        for (names, kind) in [
            (&known::IDENTITIES[..], Reserved::Identity),
            (&known::IDENTITY_FAMILIES, Reserved::Identity),
            (&known::FORWARDING, Reserved::Forwarding),
            (&known::FORWARDING_FAMILIES, Reserved::Forwarding),
            (&known::OVERRIDES, Reserved::Override),
            (&known::OVERRIDE_FAMILIES, Reserved::Override),
        ] {
            for name in names {
                for spelled in [(*name).to_owned(), name.replace('-', "_"), name.to_ascii_uppercase()] {
                    assert_eq!(reserved.classify(&spelled), Some(kind), "{spelled}");
                }
            }
        }
    }

    #[test]
    fn no_family_is_the_beginning_of_another() {
        let families = [&known::IDENTITY_FAMILIES[..], &known::FORWARDING_FAMILIES, &known::OVERRIDE_FAMILIES].concat();
        for one in &families {
            for other in &families {
                let covers = fold(other).as_bytes().starts_with(fold(one).as_bytes());
                assert!(one == other || !covers, "{one} covers {other}");
            }
        }
    }

    #[test]
    fn ordinary_names_are_nobodys() {
        let reserved = ReservedNames::default();
        for name in [
            "Accept",
            "Accept-Encoding",
            "Accept-Language",
            "Cache-Control",
            "Content-Type",
            "Content-Disposition",
            "DNT",
            "Destination",
            "Host",
            "If-None-Match",
            "Last-Event-ID",
            "Mcp-Session-Id",
            "Origin",
            "Range",
            "Referer",
            "Sec-Fetch-Mode",
            "Sec-WebSocket-Protocol",
            "Traceparent",
            "Tus-Resumable",
            "Upgrade-Insecure-Requests",
            "User-Agent",
            "X-Api-Key",
            "X-CSRF-Token",
            "X-Client-Info",
            "X-Hub-Signature-256",
            "X-Middleware-Prefetch",
            "X-Original-Filename",
            "X-Requested-With",
            "X-Request-Id",
            "X-Requested-Method",
            "X-User-Agent",
            "X-XSRFToken",
        ] {
            assert_eq!(reserved.classify(name), None, "{name}");
        }
    }

    #[test]
    fn a_token_source_is_itself_in_its_own_spelling_only() {
        let reserved = with(ConfiguredNames {
            token_sources: &["Cf-Access-Jwt-Assertion", "X-Amzn-Oidc-Data"],
            credentials: &["Authorization", "X-Backend-Key"],
            ..Default::default()
        });
        for (name, expected) in [
            ("cf-access-jwt-assertion", Reserved::TokenSource),
            ("Cf_Access_Jwt_Assertion", Reserved::LookAlike),
            ("authorization", Reserved::TokenSource),
            ("Author_ization", Reserved::LookAlike),
            ("X-Backend-Key", Reserved::Credential),
            ("x_backend_key", Reserved::Credential),
            // The identity header of another proxy remains an identity header.
            ("X-Amzn-Oidc-Data", Reserved::Identity),
        ] {
            assert_eq!(reserved.classify(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn method_overrides_go_only_where_a_rule_names_methods() {
        let by_method = |rules_by_method| with(ConfiguredNames { rules_by_method, ..Default::default() });
        assert_eq!(by_method(false).classify("X-HTTP-Method-Override"), None);
        assert_eq!(by_method(true).classify("X-HTTP-Method-Override"), Some(Reserved::Override));
    }
}
