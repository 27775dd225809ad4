//! A fuzz target of what a browser brings back from a provider: a query, a state and cookies.

#![allow(clippy::expect_used, reason = "a failed expectation is what a fuzzer looks for")]

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};
use url::Url;

use super::parameters;
use crate::auth::login::{LoginCookie, LoginState, fuzz, local_path};
use crate::auth::token::{login_cookie_name, own_cookie_value};
use crate::fuzz::Input;

const NAMES: [&str; 4] = ["code", "state", "iss", "error"];

/// Checks that no query and no cookie that was not made here is accepted, that each parameter is read as it was written,
/// and that a return path leads to this site.
///
/// The data is a path, a cookie, then the query.
pub fn state(data: &[u8]) {
    let mut input = Input::new(data);
    let path = String::from_utf8_lossy(input.part()).into_owned();
    returns_here(&path);
    let cookie = input.part();
    let Ok(query) = std::str::from_utf8(input.rest()) else { return };
    let found = parameters(Some(query), NAMES);
    let pairs =
        || query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    for (at, name) in NAMES.into_iter().enumerate() {
        let values: Vec<String> =
            pairs().filter(|(found, _)| decoded(found) == name).map(|(_, value)| decoded(value)).collect();
        match (&found, values.as_slice()) {
            (None, _) => {}
            (Some(found), []) => assert_eq!(found[at], None, "{name} of {query}"),
            (Some(found), [value]) => assert_eq!(found[at].as_ref(), Some(value), "{name} of {query}"),
            (Some(_), _) => panic!("{name} is there twice: {query}"),
        }
    }
    let is_twice = |name: &str| pairs().filter(|(found, _)| decoded(found) == name).count() > 1;
    assert_eq!(found.is_none(), NAMES.into_iter().any(is_twice), "{query}");
    let keys = fuzz::keys();
    for text in found.iter().flatten().flatten() {
        assert!(LoginState::decrypt(keys, text).is_none(), "a state is accepted that was not made here");
    }
    let Ok(line) = HeaderValue::from_bytes(cookie) else { return };
    let headers = HeaderMap::from_iter([(COOKIE, line)]);
    let value = own_cookie_value(&headers, &login_cookie_name("vestibule", true, 443)).unwrap_or_default();
    assert!(LoginCookie::decrypt(keys, &value, 0).is_none(), "a cookie is accepted that was not made here");
}

/// Decodes a name or a value of a form.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// Checks with the rules of browsers that a path leads to this site, and not to the proxy's own endpoints.
fn returns_here(path: &str) {
    let site = Url::parse("https://app.example/.vestibule/callback").expect("a URL");
    let url = site.join(local_path(path)).expect("a path");
    assert_eq!(url.origin(), site.origin(), "{path:?} leads to {url}");
    let first = url.path_segments().and_then(|mut segments| segments.next().map(str::to_ascii_lowercase));
    assert_ne!(first.as_deref(), Some(".vestibule"), "{path:?} leads to {url}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_state_is_never_accepted() {
        crate::fuzz::run_corpus("state", super::state);
    }
}
