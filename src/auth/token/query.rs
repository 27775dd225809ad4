//! Extracts tokens from URLs, before anything is logged or forwarded, and adds one for upstreams that require it.

use hyper::header::{HeaderValue, REFERER};
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;

use super::{BadCredential, Carrier, Found, Problem, Token, characters, field_value, is_upstream_secret};
use crate::auth::jwt;
use crate::policy::{Policy, ProviderTokens, QueryMode, QueryParameter, Secret};

/// The rules that decide which values of a query parameter are removed from URLs.
pub(super) struct QueryTokens<'a> {
    pub(super) parameter: &'a QueryParameter,
    /// The credentials that were found elsewhere in the request.
    pub(super) presented: &'a [&'a str],
    /// The upstream's own secret, which the upstream's pages send back. It is removed and does not count as a
    /// credential.
    pub(super) upstream_secret: Option<&'a Secret>,
}

impl QueryTokens<'_> {
    /// Removes the tokens from a request target and returns them.
    pub(super) fn take_from_target(&self, uri: &mut Uri) -> Vec<String> {
        let Some((rest, tokens)) = uri.query().and_then(|query| self.split(query)) else { return Vec::new() };
        let path = uri.path();
        let target = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
        // Removing parameters from a valid target leaves a valid target; the fallback is never used.
        let target = PathAndQuery::try_from(target).unwrap_or_else(|_| PathAndQuery::from_static("/"));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target);
        *uri = Uri::from_parts(parts).unwrap_or_default();
        tokens
    }

    /// Removes the tokens from `Referer`, where they are if the page was loaded with `?token=`.
    pub(super) fn take_from_referer(&self, headers: &mut HeaderMap) {
        let cleaned = |value: &HeaderValue| {
            let text = characters(value);
            let (page, query) = text.split_once('?')?;
            let (rest, _) = self.split(query)?;
            Some(if rest.is_empty() { page.to_owned() } else { format!("{page}?{rest}") })
        };
        if !headers.get_all(REFERER).iter().any(|value| cleaned(value).is_some()) {
            return;
        }
        let values: Vec<_> = headers.get_all(REFERER).iter().cloned().collect();
        headers.remove(REFERER);
        for value in values {
            match cleaned(&value).map(|cleaned| field_value(&cleaned)) {
                None => headers.append(REFERER, value),
                Some(Some(cleaned)) => headers.append(REFERER, cleaned),
                Some(None) => false,
            };
        }
    }

    /// Splits a query into the rest, unchanged byte for byte, and the decoded tokens. Returns `None` when nothing is to
    /// be removed.
    fn split(&self, query: &str) -> Option<(String, Vec<String>)> {
        let mut tokens = Vec::new();
        let mut removed = false;
        let kept = without(query, |name, value| {
            let is_named = self.parameter.is_named(name);
            let is_upstream_secret = is_named && is_upstream_secret(value, self.upstream_secret);
            let is_token = is_named
                && !is_upstream_secret
                && (is_issued(&self.parameter.issued, value) || self.presented.contains(&value));
            if is_token {
                tokens.push(value.to_owned());
            }
            removed |= is_upstream_secret || is_token;
            is_upstream_secret || is_token
        });
        removed.then_some((kept, tokens))
    }
}

/// Turns the tokens found in a query into a credential.
pub(super) fn credential(parameter: &QueryParameter, tokens: &[String], limit: usize) -> Found {
    let token = match tokens {
        [] => return None,
        [_] if parameter.mode == QueryMode::Deny => Err(Problem::InUrl),
        [token] => Token::parse(token, limit).map_err(Problem::NotAToken),
        _ => Err(Problem::Twice),
    };
    Some(match token {
        Ok(token) => Ok((token, Carrier::Query)),
        Err(problem) => Err(BadCredential { carrier: Carrier::Query, problem }),
    })
}

/// Removes every token that some route accepts in a URL from a target (path and query), for display.
#[must_use]
pub fn without_tokens(target: &str, policy: &Policy) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let parameters = || policy.routes.iter().filter_map(|route| route.token_from.query.as_ref());
    let rest = without(query, |name, value| {
        parameters().any(|parameter| parameter.is_named(name) && is_issued(&parameter.issued, value))
    });
    if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") }
}

/// Returns whether a text may be a token of a configured provider: a JWT with its issuer, or any other text if a
/// provider issues opaque tokens.
fn is_issued(issued: &ProviderTokens, text: &str) -> bool {
    // Some clients put the scheme before the token, with a space or a plus sign.
    let text = match text.split_at_checked(7) {
        Some((scheme, token)) if ["bearer ", "bearer+"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) => token,
        _ => text,
    };
    let text = text.trim();
    if text.is_empty() {
        return false;
    }
    if jwt::is_opaque(text) {
        return issued.opaque;
    }
    issued.any_issuer || jwt::claimed_issuer(text).map_or(issued.no_issuer, |issuer| issued.issuers.contains(&issuer))
}

/// Returns a query without the parameters that `is_removed` selects, the others unchanged byte for byte.
fn without(query: &str, mut is_removed: impl FnMut(&str, &str) -> bool) -> String {
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Form decoding reads `+` as a space; names are compared either way.
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
            !is_removed(&decoded(name), &decoded(value))
        })
        .collect();
    kept.join("&")
}

/// Sets a query parameter to a token, replacing any parameter of that name.
pub(crate) fn into_query(uri: &Uri, name: &str, token: &Token) -> Option<PathAndQuery> {
    let rest = without(uri.query().unwrap_or_default(), |found, _| found == name);
    let separator = if rest.is_empty() { "" } else { "&" };
    let encode = |text: &str| percent_encoding::utf8_percent_encode(text, UNRESERVED).to_string();
    PathAndQuery::try_from(format!("{}?{rest}{separator}{}={}", uri.path(), encode(name), encode(token.expose()))).ok()
}

/// Encodes everything but the unreserved characters of RFC 3986.
const UNRESERVED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
