//! Extracts a token from the subprotocols that a WebSocket upgrade offers.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::SEC_WEBSOCKET_PROTOCOL;
use percent_encoding::percent_decode_str;

use super::{BadCredential, Carrier, Found, Problem, Token, TokenError, characters, field_value};
use crate::policy::{TokenEncoding, TokenSubprotocol};

/// Removes the subprotocol with the token and keeps the other subprotocols that are offered.
pub(super) fn take_subprotocol(headers: &mut HeaderMap, sources: &[TokenSubprotocol], limit: usize) -> Found {
    let mut siblings: Vec<String> = Vec::new();
    let mut tokens: Vec<Option<String>> = Vec::new();
    let lines: Vec<String> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().map(characters).collect();
    for entry in lines.iter().flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty()) {
        let carried = sources.iter().find_map(|source| entry.strip_prefix(&source.prefix).map(|rest| (source, rest)));
        match carried {
            Some((source, rest)) => tokens.push(decoded(source.encoding, rest)),
            None => siblings.push(entry.to_owned()),
        }
    }
    if tokens.is_empty() {
        return None;
    }
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(left) = field_value(&siblings.join(", "))
        && !siblings.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, left);
    }
    let bad = |problem| Some(Err(BadCredential { carrier: Carrier::Subprotocol, problem }));
    match tokens.as_slice() {
        [Some(token)] => match Token::parse(token, limit) {
            Ok(token) => Some(Ok((token, Carrier::Subprotocol))),
            Err(error) => bad(Problem::NotAToken(error)),
        },
        // A text that is not in the configured encoding has characters which that does not use.
        [_] => bad(Problem::NotAToken(TokenError::Characters)),
        _ => bad(Problem::Twice),
    }
}

fn decoded(encoding: TokenEncoding, text: &str) -> Option<String> {
    match encoding {
        TokenEncoding::Plain => Some(text.to_owned()),
        TokenEncoding::Base64url => String::from_utf8(URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?).ok(),
        TokenEncoding::Url => percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned),
    }
}
