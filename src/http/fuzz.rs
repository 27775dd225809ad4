//! A fuzz target of tokens in requests: where they are found, and what is left of them in what goes to the upstream.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation is what a fuzzer looks for")]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, REFERER, SEC_WEBSOCKET_PROTOCOL};
use hyper::{HeaderMap, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::headers::{TokenHeaders, strip};
use crate::auth::Carrier;
use crate::auth::token::{BadCredential, Extracted, Purpose, extract};
use crate::fuzz::Input;
use crate::policy::Policy;

/// The largest token in bytes.
const TOKEN_BYTES: usize = 256;
const PURPOSES: [Purpose; 3] = [Purpose::Plain, Purpose::Events, Purpose::WebSocket];
/// The fields in which a credential may be.
const FIELDS: [&str; 5] = ["authorization", "x-token", "sec-websocket-protocol", "cookie", "referer"];
/// The name of the proxy's session cookie.
const SESSION: &str = "__Host-vestibule";
const PREFIXES: [&str; 3] = ["plain.", "k8s.", "url."];

/// Policies that read tokens in every place: one for JWTs and one for opaque tokens.
static POLICIES: LazyLock<[Policy; 2]> = LazyLock::new(|| {
    let sources = |cookie: &str| {
        format!(
            "token_from:\n  header: [Authorization, X-Token]\n  basic: true\n  query: {{ name: [token, jwt], for: [websocket, events] }}\n  cookie: {cookie}\n  subprotocol:\n    - {{ prefix: plain. }}\n    - {{ prefix: k8s., encoding: base64url }}\n    - {{ prefix: url., encoding: url }}\n"
        )
    };
    let jwt = "providers: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX, audience: any }]\n";
    let opaque = "providers: [{ preset: introspection, audience: any, remote: { mode: instead, url: \"https://a.example/introspect\", client_id: a, client_secret: 0123456789abcdef0123456789abcdefX } }]\n";
    let policy = |providers: &str, cookie: &str| {
        let file = format!("upstream: http://127.0.0.1:1\n{providers}{}", sources(cookie));
        crate::policy::validate(&crate::config::load_yaml(&file).expect("loads").config).expect("valid")
    };
    [policy(jwt, "__session"), policy(opaque, "{ name: sb-abc-auth-token, encoding: supabase }")]
});

/// A request as far as credentials go.
#[derive(Clone)]
struct Head {
    headers: HeaderMap,
    uri: Uri,
}

impl Head {
    fn extract(&mut self, policy: &Policy, purpose: Purpose) -> Result<Extracted, BadCredential> {
        let sources = &policy.routes.last().expect("a rule").token_from;
        extract(&mut self.headers, &mut self.uri, sources, purpose, Some(SESSION), TOKEN_BYTES, None)
    }

    /// Returns the values of a field, as they came.
    fn values(&self, name: &HeaderName) -> Vec<Vec<u8>> {
        self.headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect()
    }
}

/// Checks that no credential is left in a request whose credential was taken out, that nothing else is changed, and
/// that a token is found in each place where one may be.
///
/// The first byte chooses the rules and the kind of request. Then come the target and the fields.
pub fn tokens(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let policy = &POLICIES[usize::from(choice & 1)];
    let purpose = PURPOSES[usize::from(choice >> 1) % PURPOSES.len()];
    let is_round_trip = choice & 0x40 != 0;
    let place = input.below(6);
    let text = input.part();
    let target = [b"/", input.part()].concat();
    let Ok(uri) = Uri::try_from(target) else { return };
    if uri.authority().is_some() {
        return;
    }
    let mut head = Head { headers: HeaderMap::new(), uri };
    while !input.is_empty() {
        let (name, value) = (input.byte(), input.part());
        let name = match FIELDS.get(usize::from(name)) {
            Some(name) => HeaderName::from_static(name),
            None => HeaderName::from_static(if name & 1 == 0 { "x-other" } else { "accept" }),
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            head.headers.append(name, value);
        }
    }
    if is_round_trip {
        round_trip(policy, head, place, text);
    } else {
        taken_out(policy, &head, purpose);
    }
}

/// Checks that a credential is taken out whole, whatever the request is.
fn taken_out(policy: &Policy, sent: &Head, purpose: Purpose) {
    let mut head = sent.clone();
    let first = head.extract(policy, purpose);
    strip(&mut head.headers, policy, true, TokenHeaders::Removed);
    let mut left = head.clone();
    let second = left.extract(policy, purpose);
    assert!(matches!(second, Ok(Extracted::Nothing(_))), "after {first:?} there still is {second:?}");
    assert_eq!((&left.headers, &left.uri), (&head.headers, &head.uri), "something is taken out at the second time");
    for name in ["x-other", "accept"].map(HeaderName::from_static) {
        assert_eq!(head.values(&name), sent.values(&name), "{name} is changed");
    }
    assert_eq!(head.uri.path(), sent.uri.path());
    let others = |uri: &Uri| -> Vec<String> {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !is_token_parameter(pair));
        pairs.map(str::to_owned).collect()
    };
    let (before, after) = (others(&sent.uri), others(&head.uri));
    // Without its parameters a query is empty.
    assert!(before == after || (before.is_empty() && after == [""]), "{before:?} {after:?}");
    let Ok(Extracted::Token(token, carrier)) = &first else { return };
    let token = token.expose();
    for name in [AUTHORIZATION, HeaderName::from_static("x-token")] {
        assert!(!head.headers.contains_key(&name), "{name} is forwarded beside a token of {carrier:?}");
    }
    for line in head.values(&SEC_WEBSOCKET_PROTOCOL) {
        let text: String = line.iter().map(|byte| char::from(*byte)).collect();
        let is_token = |entry: &str| PREFIXES.iter().any(|prefix| entry.trim().starts_with(prefix));
        let is_read = purpose == Purpose::WebSocket && text.split(',').any(is_token);
        assert!(!is_read, "an offer with a token is forwarded: {text}");
    }
    let queries = head.values(&REFERER).into_iter().map(|line| line.iter().map(|byte| char::from(*byte)).collect());
    for query in queries.chain([head.uri.to_string()]) {
        let query: &str = query.split_once('?').map_or("", |(_, query)| query);
        let holds = |pair: &str| {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            is_token_parameter(pair) && percent_decode_str(value).decode_utf8_lossy() == token
        };
        assert!(!query.split('&').any(holds), "the token is forwarded in {query}");
    }
    for line in head.values(&COOKIE) {
        let names = line.split(|byte| *byte == b';').map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            pair[..at].trim_ascii()
        });
        for name in names {
            assert!(name != SESSION.as_bytes(), "the session cookie is forwarded");
        }
    }
}

fn is_token_parameter(pair: &str) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    matches!(&*percent_decode_str(name).decode_utf8_lossy(), "token" | "jwt")
}

/// Checks that a token that is alone in a place is found there, as it was written.
fn round_trip(policy: &Policy, mut head: Head, place: usize, text: &[u8]) {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // A JWT of which the header is right, so that it is one in a URL too.
    let written: String = text.iter().map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()])).collect();
    let token = format!("eyJhbGciOiJIUzI1NiJ9.e30.{written}");
    if token.len() > TOKEN_BYTES {
        return;
    }
    for name in FIELDS {
        head.headers.remove(name);
    }
    if head.uri.query().is_some_and(|query| query.split('&').any(is_token_parameter)) {
        return;
    }
    let before = head.clone();
    let mut insert = |name: HeaderName, value: String| {
        head.headers.insert(name, HeaderValue::try_from(value).expect("visible ASCII"));
    };
    let escaped = percent_encode(token.as_bytes(), NON_ALPHANUMERIC).to_string();
    let expected = match place {
        0 => {
            insert(AUTHORIZATION, format!("bEaReR   {token}"));
            Carrier::Header
        }
        1 => {
            insert(AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("git:{token}"))));
            Carrier::Header
        }
        2 => {
            insert(HeaderName::from_static("x-token"), token.clone());
            Carrier::OwnHeader
        }
        3 => {
            insert(SEC_WEBSOCKET_PROTOCOL, format!("v1, k8s.{}, v2", URL_SAFE_NO_PAD.encode(&token)));
            Carrier::Subprotocol
        }
        4 => {
            insert(SEC_WEBSOCKET_PROTOCOL, format!("url.{escaped}"));
            Carrier::Subprotocol
        }
        _ => {
            let separator = if head.uri.query().is_some() { '&' } else { '?' };
            head.uri = format!("{}{separator}%74oken={escaped}", head.uri).parse().expect("a target");
            Carrier::Query
        }
    };
    let found = head.extract(policy, Purpose::WebSocket);
    let Ok(Extracted::Token(found, carrier)) = found else { panic!("{found:?}") };
    assert_eq!((found.expose(), carrier), (token.as_str(), expected));
    head.headers.remove(SEC_WEBSOCKET_PROTOCOL);
    assert_eq!(head.headers, before.headers);
    let query = |uri: &Uri| uri.query().unwrap_or_default().to_owned();
    assert_eq!((head.uri.path(), query(&head.uri)), (before.uri.path(), query(&before.uri)));
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_tokens_leaves_none() {
        crate::fuzz::run_corpus("tokens", super::tokens);
    }
}
