//! Extracts tokens from request heads.
//!
//! [`extract`] removes the token from every place that the configuration names, so that nothing forwarded contains
//! it. The first place with a credential decides alone (docs/contract.md section 4.1). [`NoCredential`] proves that
//! there was none.

mod cookie;
mod query;
mod subprotocol;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, REFERER};
use hyper::{HeaderMap, Uri};

use super::jwt;
pub use super::token_error::TokenError;
use crate::policy::{BALANCER_HEADER, Secret, TokenSources};
pub(in crate::auth) use cookie::MAX_COOKIE_VALUE;
use cookie::take_cookie;
pub use cookie::{
    SessionCookie, has_session_cookie, login_cookie_name, own_cookie_value, session_cookie_name, sets_session_cookie,
    take_all_session_cookies, take_session_cookie, without_credentials,
};
pub(crate) use query::into_query;
pub use query::without_tokens;
use query::{QueryTokens, credential};
use subprotocol::take_subprotocol;

/// A token as it was presented. It has no `Display` and no `Serialize`, and `Debug` shows only its length.
pub struct Token(Arc<str>);

impl Token {
    /// Parses a token, with the same limits wherever it came from.
    ///
    /// # Errors
    /// Returns an error when the text is empty, longer than `limit` bytes, or has other than token68 characters.
    pub fn parse(text: &str, limit: usize) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > limit {
            return Err(TokenError::TooLong { bytes: text.len(), limit });
        }
        let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
        let body = &text[..text.len() - padding];
        // Without a branch, so that the compiler checks 16 bytes at once: with `all` a token of 700 bytes took 9,000
        // instructions, a tenth of those of a request.
        #[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch")]
        let token68 = |b: u8| b.is_ascii_alphanumeric() | matches!(b, b'-' | b'.' | b'_' | b'~' | b'+') | (b == b'/');
        if body.is_empty() || !body.bytes().fold(true, |fits, b| fits & token68(b)) {
            return Err(TokenError::Characters);
        }
        Ok(Self(text.into()))
    }

    /// Returns another reference to this token if a header's value is `Bearer` and its text. Clients mostly repeat their
    /// token, and to look at each of its characters again took a twentieth of a request's instructions. The comparison need
    /// not run in constant time: its timing could only reveal a token of the same connection.
    fn repeated(&self, value: &[u8], limit: usize) -> Option<Self> {
        let text = value.strip_prefix(b"Bearer ").filter(|text| text.len() <= limit);
        let is_repeated = text.is_some_and(|text| is_equal(text, self.0.as_bytes()));
        is_repeated.then(|| self.duplicate())
    }

    /// Parses a token whose parts may have padding each, as load balancers of AWS write theirs in a header of their own.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_padded(text: &str, limit: usize) -> Result<Self, TokenError> {
        if text.len() > limit {
            return Err(TokenError::TooLong { bytes: text.len(), limit });
        }
        let part = |part: &str| part.is_empty() || Self::parse(part, limit).is_ok();
        if text.contains("=.") && text.split('.').all(part) { Ok(Self(text.into())) } else { Self::parse(text, limit) }
    }

    /// Returns another reference to the token, for what outlives its request.
    pub(crate) fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Returns the text, for verification, and for forwarding where the configuration demands that.
    #[must_use]
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether two tokens of one connection have the same text, not in constant time, as in [`Self::repeated`].
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }

    /// Formats `Bearer <token>`, marked sensitive.
    pub(crate) fn bearer(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Compares two texts in blocks of 32 bytes. The C library of a static binary compares byte after byte, which took 3,900
/// instructions for a token of 700 bytes.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
    a.len() == b.len() && a_blocks.iter().zip(b_blocks).all(|(a, b)| a == b) && a_rest == b_rest
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

/// The place in a request where a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization`, or another header beside that of a load balancer.
    Header,
    /// A header that a load balancer may write: its own, or where that is no token source, any other than `Authorization`.
    OwnHeader,
    /// A subprotocol entry of a WebSocket upgrade.
    Subprotocol,
    /// A query parameter of a WebSocket upgrade.
    Query,
    /// The first message of a WebSocket, or a refresh.
    Message,
    /// The provider's cookie.
    Cookie,
}

impl Carrier {
    /// One value of each name.
    pub const ALL: [Self; 5] = [Self::Header, Self::Subprotocol, Self::Query, Self::Message, Self::Cookie];

    /// Returns the `carrier` label of metrics and access lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header | Self::OwnHeader => "header",
            Self::Subprotocol => "subprotocol",
            Self::Query => "query",
            Self::Message => "message",
            Self::Cookie => "cookie",
        }
    }
}

/// Proof that a request had no credential. Only [`extract`] constructs it.
#[derive(Debug)]
pub struct NoCredential(());

/// The result of [`extract`].
#[derive(Debug)]
pub enum Extracted {
    /// A token to verify.
    Token(Token, Carrier),
    /// Only cookies. Browsers send them without being asked, so rejected ones count as absent; the proof for that case
    /// is included.
    Cookies(Cookies, NoCredential),
    /// No credential in any configured place.
    Nothing(NoCredential),
}

/// Credentials in cookies; the session cookie is tried before the provider's token.
#[derive(Debug)]
pub struct Cookies {
    /// The proxy's session cookie.
    pub session: Option<SessionCookie>,
    /// The token in the provider's cookie.
    pub token: Option<Token>,
    /// The opaque text in the query that may be a token. It counts where no cookie is accepted.
    pub opaque_in_query: Found,
}

/// The kind of a request, which decides whether a token may be in its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An ordinary request.
    Plain,
    /// A GET for an event stream, to which a page cannot add a header either.
    Events,
    /// A WebSocket upgrade.
    WebSocket,
}

/// A credential that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCredential {
    /// The place where it was found.
    pub carrier: Carrier,
    /// The problem with it.
    pub problem: Problem,
}

/// The reason why a credential cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The header is not `Bearer <token>`.
    Format,
    /// There are two in the same place.
    Twice,
    /// The text cannot be a token.
    NotAToken(TokenError),
    /// A token in the URL where the configuration says `deny`.
    InUrl,
}

/// Removes credentials from a request head and returns the one that counts.
///
/// A query parameter counts only where the sources allow it for this `purpose`. `session_cookie_name` is the name of
/// the proxy's session cookie, if sessions are configured. `known` is the token that the connection presented last.
///
/// # Errors
/// Returns an error when the first place with a credential does not have exactly one token.
pub fn extract(
    headers: &mut HeaderMap,
    uri: &mut Uri,
    sources: &TokenSources,
    purpose: Purpose,
    session_cookie_name: Option<&str>,
    limit: usize,
    known: Option<&Token>,
) -> Result<Extracted, BadCredential> {
    let mut found: Option<Result<(Token, Carrier), BadCredential>> = None;
    for name in &sources.headers {
        let from_header = take_header(headers, name, sources, limit, known);
        found = found.or(from_header);
    }
    if purpose == Purpose::WebSocket && !sources.subprotocols.is_empty() {
        let from_subprotocol = take_subprotocol(headers, &sources.subprotocols, limit);
        found = found.or(from_subprotocol);
    }
    let session = session_cookie_name.and_then(|name| take_session_cookie(headers, name));
    let mut opaque_in_query = None;
    let from_cookie = sources.cookie.as_ref().and_then(|source| take_cookie(headers, source, limit));
    if let Some(parameter) = &sources.query
        && (uri.query().is_some() || headers.contains_key(REFERER))
    {
        let in_head = found.as_ref().and_then(|found| found.as_ref().ok()).map(|(token, _)| token);
        let presented: Vec<&str> = in_head.into_iter().chain(&from_cookie).map(Token::expose).collect();
        let in_urls =
            QueryTokens { parameter, presented: &presented, upstream_secret: sources.upstream_secret.as_ref() };
        let tokens = in_urls.take_from_target(uri);
        in_urls.take_from_referer(headers);
        let is_read = match purpose {
            Purpose::Plain => parameter.http,
            Purpose::Events => parameter.events || parameter.http,
            Purpose::WebSocket => parameter.websocket,
        };
        if is_read {
            let in_query = credential(parameter, &tokens, limit);
            // Where opaque tokens are accepted, any text can be one, also a parameter of the backend's own. A cookie that
            // is good must not lose to it.
            let has_cookie = session.is_some() || from_cookie.is_some();
            if found.is_none() && has_cookie && tokens.iter().all(|token| jwt::is_opaque(token)) {
                opaque_in_query = in_query;
            } else {
                found = found.or(in_query);
            }
        }
    }
    match found {
        Some(Ok((token, carrier))) => Ok(Extracted::Token(token, carrier)),
        Some(Err(problem)) => Err(problem),
        None if session.is_some() || from_cookie.is_some() => {
            Ok(Extracted::Cookies(Cookies { session, token: from_cookie, opaque_in_query }, NoCredential(())))
        }
        None => Ok(Extracted::Nothing(NoCredential(()))),
    }
}

/// What a place that may carry a token has; `None` where it has none.
pub type Found = Option<Result<(Token, Carrier), BadCredential>>;

/// Returns whether a text is the upstream's own secret, which the upstream's pages send back.
fn is_upstream_secret(text: &str, upstream_secret: Option<&Secret>) -> bool {
    upstream_secret
        .is_some_and(|upstream_secret| verify_slices_are_equal(text.as_bytes(), upstream_secret.expose()).is_ok())
}

/// Returns a field's value with one character for each byte. What is beside a token may be other than ASCII, and the token
/// is taken out all the same.
fn characters(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

/// Makes a field's value of what [`characters`] returned, or of a part of it.
fn field_value(text: &str) -> Option<HeaderValue> {
    let bytes: Vec<u8> = text.chars().filter_map(|character| u8::try_from(character).ok()).collect();
    HeaderValue::from_bytes(&bytes).ok()
}

fn take_header(
    headers: &mut HeaderMap,
    name: &HeaderName,
    sources: &TokenSources,
    limit: usize,
    known: Option<&Token>,
) -> Found {
    let bad = |problem| Some(Err(BadCredential { carrier: Carrier::Header, problem }));
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next()?.clone(), values.next().is_some());
    headers.remove(name);
    if second {
        return bad(Problem::Twice);
    }
    // Where the upstream has a secret, the value could be that.
    if name == AUTHORIZATION
        && sources.upstream_secret.is_none()
        && let Some(token) = known.and_then(|known| known.repeated(first.as_bytes(), limit))
    {
        return Some(Ok((token, Carrier::Header)));
    }
    let text = first.to_str().map(str::trim);
    let text = match text {
        Ok("") => return None,
        Ok(text) => text,
        Err(_) => return bad(Problem::Format),
    };
    let token = if name == AUTHORIZATION {
        // RFC 6750 section 2.1: the scheme, one or more spaces, a token68.
        match text.split_once(' ') {
            Some((_, secret)) if is_upstream_secret(secret, sources.upstream_secret.as_ref()) => return None,
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Cow::Borrowed(token.trim_start_matches(' '))
            }
            Some((scheme, pair)) if sources.basic && scheme.eq_ignore_ascii_case("basic") => match password(pair) {
                Some(password) => Cow::Owned(password),
                None => return bad(Problem::Format),
            },
            _ => return bad(Problem::Format),
        }
    } else {
        Cow::Borrowed(text)
    };
    let parsed = if name == AUTHORIZATION { Token::parse(&token, limit) } else { Token::parse_padded(&token, limit) };
    // A client writes the others, and the balancer passes them on.
    let is_own = name != AUTHORIZATION && (name == BALANCER_HEADER || !sources.headers.contains(&BALANCER_HEADER));
    let carrier = if is_own { Carrier::OwnHeader } else { Carrier::Header };
    match parsed {
        Ok(token) => Some(Ok((token, carrier))),
        Err(error @ TokenError::TooLong { .. }) => bad(Problem::NotAToken(error)),
        Err(TokenError::Empty | TokenError::Characters) => bad(Problem::Format),
    }
}

/// The password of Basic credentials (RFC 7617 section 2); the user name in front of the first colon is not looked at.
fn password(credentials: &str) -> Option<String> {
    let pair = STANDARD.decode(credentials.trim_start_matches(' ')).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    String::from_utf8(pair.get(colon + 1..)?.to_vec()).ok()
}
