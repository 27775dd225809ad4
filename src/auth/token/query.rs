//! A token in the URL: taken out before anything logs or forwards it, and put there where a backend
//! insists.

use hyper::header::{HeaderValue, REFERER};
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;

use super::{BadCredential, Carrier, Found, Problem, Token};
use crate::policy::{QueryMode, QueryParameter};

pub(super) fn take_query(uri: &mut Uri, parameter: &QueryParameter, limit: usize) -> Found {
    let query = uri.query()?;
    let (rest, values) = without_parameter(query, &parameter.name);
    if values.is_empty() {
        return None;
    }
    let token = match values.as_slice() {
        [_] if parameter.mode == QueryMode::Deny => Err(Problem::InUrl),
        [value] => Token::presented(value, limit).map_err(|_| Problem::NotAToken),
        _ => Err(Problem::Twice),
    };
    let path = uri.path();
    let target = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
    // Removing bytes from a valid target leaves a valid target; a bare path is the safe fallback.
    let target = PathAndQuery::try_from(target).unwrap_or_else(|_| PathAndQuery::from_static("/"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target);
    *uri = Uri::from_parts(parts).unwrap_or_default();
    Some(match token {
        Ok(token) => Ok((token, Carrier::Query)),
        Err(problem) => Err(BadCredential { carrier: Carrier::Query, problem }),
    })
}

/// A page that was loaded with `?token=` repeats it in `Referer`.
pub(super) fn clean_referer(headers: &mut HeaderMap, name: &str) {
    let Some(referer) = headers.get(REFERER).and_then(|value| value.to_str().ok()) else { return };
    let Some((page, query)) = referer.split_once('?') else { return };
    let (rest, values) = without_parameter(query, name);
    if values.is_empty() {
        return;
    }
    let cleaned = if rest.is_empty() { page.to_owned() } else { format!("{page}?{rest}") };
    match HeaderValue::try_from(cleaned) {
        Ok(value) => headers.insert(REFERER, value),
        Err(_) => headers.remove(REFERER),
    };
}

/// The query without a parameter, the others byte for byte, and the parameter's decoded values.
fn without_parameter(query: &str, name: &str) -> (String, Vec<String>) {
    let mut values = Vec::new();
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Form decoding reads `+` as a space; names are compared either way.
            let decoded = percent_decode_str(key).decode_utf8_lossy();
            if decoded != name {
                return true;
            }
            values.push(percent_decode_str(value).decode_utf8_lossy().into_owned());
            false
        })
        .collect();
    (kept.join("&"), values)
}

/// Puts a token into a target's query, in place of any parameter of that name.
pub(crate) fn into_query(uri: &Uri, name: &str, token: &Token) -> Option<PathAndQuery> {
    let (rest, _) = without_parameter(uri.query().unwrap_or_default(), name);
    let separator = if rest.is_empty() { "" } else { "&" };
    let encode = |text: &str| percent_encoding::utf8_percent_encode(text, UNRESERVED).to_string();
    PathAndQuery::try_from(format!("{}?{rest}{separator}{}={}", uri.path(), encode(name), encode(token.expose()))).ok()
}

/// RFC 3986 unreserved characters stay.
const UNRESERVED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
