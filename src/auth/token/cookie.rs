//! Extracts credentials from cookies: the proxy's session cookie, and a token in the provider's cookie.

use std::fmt;

use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};

use super::Token;
use crate::policy::{COOKIE_NAME, CookieSource};

/// The maximum length of a value in bytes. Browsers store cookies of at most 4096 bytes, with name and attributes.
pub(in crate::auth) const MAX_COOKIE_VALUE: usize = 3_900;

/// The value of a session cookie as a browser sent it. It is never printed.
pub struct SessionCookie(Box<str>);

impl SessionCookie {
    /// Parses a cookie's value; `None` if it is empty or too long for a session cookie.
    pub(in crate::auth) fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= MAX_COOKIE_VALUE).then(|| Self(text.into()))
    }

    pub(in crate::auth) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionCookie({} bytes)", self.0.len())
    }
}

/// The prefix of our cookies over https: browsers set one for its own host and over https alone.
const HOST_PREFIX: &str = "__Host-";
/// The part of a name that says that the cookie binds a sign-in to its browser.
const LOGIN: &str = "login";

/// Returns whether a `Set-Cookie` header makes a browser send a cookie with a name of ours.
///
/// A cookie without a name, as in `=vestibule-8080=x` or `vestibule-8080`, is sent as its bare value, which reads as a
/// cookie of that name (RFC 6265bis section 5.5).
#[must_use]
pub fn sets_session_cookie(line: &[u8]) -> bool {
    let pair = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let before = pair.iter().position(|byte| *byte != b'=' && !byte.is_ascii_whitespace()).unwrap_or(pair.len());
    let name = pair[before..].split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
    // Browsers ignore case in the prefix of a name.
    let lower = name.to_ascii_lowercase();
    let host = lower.strip_prefix(HOST_PREFIX.to_ascii_lowercase().as_bytes());
    is_own_cookie(name) || host.is_some_and(is_own_name)
}

/// Returns whether a name begins as all our names do, those of other instances on the same host too: their cookies are
/// sent here, and must not reach the upstream.
fn is_own_name(name: &[u8]) -> bool {
    let rest = name.strip_prefix(COOKIE_NAME.as_bytes());
    let is_part = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with(b"-") && rest.iter().all(is_part)))
}

/// Returns whether a name is one of ours, for any instance and port. Over plain http it ends in the port that the client
/// sees, because browsers send cookies to all ports of a host.
fn is_own_cookie(name: &[u8]) -> bool {
    if let Some(rest) = name.strip_prefix(HOST_PREFIX.as_bytes()) {
        return is_own_name(rest);
    }
    let port = name.rsplit(|byte| *byte == b'-').next().unwrap_or_default();
    is_own_name(name) && name != COOKIE_NAME.as_bytes() && !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

/// Returns the name of our session cookie for a client that sees this scheme and port. `base` is the configured name.
#[must_use]
pub fn session_cookie_name(base: &str, is_https: bool, port: u16) -> String {
    if is_https { format!("{HOST_PREFIX}{base}") } else { format!("{base}-{port}") }
}

/// Returns the name of the cookie that binds a sign-in to its browser.
#[must_use]
pub fn login_cookie_name(base: &str, is_https: bool, port: u16) -> String {
    if is_https { format!("{HOST_PREFIX}{base}-{LOGIN}") } else { format!("{base}-{LOGIN}-{port}") }
}

/// Returns whether a session cookie is among the cookies, for any instance and port and of any value.
#[must_use]
pub fn has_session_cookie(headers: &HeaderMap) -> bool {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut names = pairs.map(|pair| pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii());
    let is_login = |name: &[u8]| name.split(|byte| *byte == b'-').any(|part| part == LOGIN.as_bytes());
    names.any(|name| is_own_cookie(name) && !is_login(name))
}

/// Returns the value of one of the proxy's cookies without removing it. If there are two with this name, neither
/// counts.
#[must_use]
pub fn own_cookie_value(headers: &HeaderMap, name: &str) -> Option<String> {
    match take_named(&mut headers.clone(), name).as_slice() {
        [value] => String::from_utf8(value.clone()).ok(),
        _ => None,
    }
}

/// Removes all session cookies, leaves the other cookies unchanged byte for byte, and returns the one with this name.
/// If there are two with this name, neither counts.
pub fn take_session_cookie(headers: &mut HeaderMap, name: &str) -> Option<SessionCookie> {
    match take_named(headers, name).as_slice() {
        [value] => presented(value),
        _ => None,
    }
}

/// Removes all session cookies like [`take_session_cookie`], but returns every one with this name, for a sign-out:
/// another site on this host or port can set a second cookie, which must not prevent the session from being ended.
pub fn take_all_session_cookies(headers: &mut HeaderMap, name: &str) -> Vec<SessionCookie> {
    take_named(headers, name).iter().filter_map(|value| presented(value)).collect()
}

fn presented(value: &[u8]) -> Option<SessionCookie> {
    SessionCookie::parse(std::str::from_utf8(value).ok()?)
}

/// Removes all session cookies and returns the values of those with this name.
fn take_named(headers: &mut HeaderMap, name: &str) -> Vec<Vec<u8>> {
    let holds = |line: &HeaderValue| memmem(line.as_bytes(), b"vestibule");
    if !headers.get_all(COOKIE).iter().any(holds) {
        return Vec::new();
    }
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut left: Vec<HeaderValue> = Vec::new();
    for line in headers.get_all(COOKIE) {
        let kept: Vec<&[u8]> = line
            .as_bytes()
            .split(|byte| *byte == b';')
            .filter(|pair| {
                let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
                let (key, value) = (pair[..at].trim_ascii(), pair.get(at + 1..).unwrap_or_default());
                if key == name.as_bytes() {
                    found.push(value.trim_ascii().to_vec());
                }
                !is_own_cookie(key)
            })
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(kept.join(&b';').trim_ascii())
            && !value.is_empty()
        {
            left.push(value);
        }
    }
    headers.remove(COOKIE);
    for line in left {
        headers.append(COOKIE, line);
    }
    found
}

fn memmem(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Removes the provider's cookie in each of its forms, and leaves the other cookies unchanged, byte for byte.
///
/// Clerk sets `__session` and `__session_<suffix>`. The one with the suffix belongs to one application, so it takes
/// precedence. Where the suffix is configured, cookies of other applications on the same domain are left in place. If
/// there are two with one name, or two suffixes, it is unclear which is right, and none counts.
pub(super) fn take_cookie(headers: &mut HeaderMap, source: &CookieSource, limit: usize) -> Option<Token> {
    let name = source.name.as_str();
    let (mut plain, mut suffixed) = (Vec::new(), Vec::new());
    let mut left: Vec<HeaderValue> = Vec::new();
    let mut removed = false;
    for line in headers.get_all(COOKIE) {
        let is_ours = |pair: &[u8]| {
            let pair = pair.trim_ascii_start();
            let rest = pair.strip_prefix(name.as_bytes())?;
            let at = rest.iter().position(|byte| *byte == b'=')?;
            let (suffix, value) = (rest[..at].trim_ascii_end(), rest[at + 1..].trim_ascii());
            let known = |suffix: &[u8]| {
                source.suffixes.is_empty() || source.suffixes.iter().any(|known| known.as_bytes() == suffix)
            };
            let suffixed = name == "__session" && suffix.strip_prefix(b"_").is_some_and(known);
            let form = suffix.is_empty() || suffixed;
            form.then(|| (!suffix.is_empty(), value.to_vec()))
        };
        let kept: Vec<&[u8]> = line
            .as_bytes()
            .split(|byte| *byte == b';')
            .filter(|pair| match is_ours(pair) {
                None => true,
                Some((has_suffix, value)) => {
                    removed = true;
                    if has_suffix {
                        suffixed.push(value);
                    } else {
                        plain.push(value);
                    }
                    false
                }
            })
            .collect();
        let kept = kept.join(&b';');
        if let Ok(value) = HeaderValue::from_bytes(kept.trim_ascii())
            && !value.is_empty()
        {
            left.push(value);
        }
    }
    if removed {
        headers.remove(COOKIE);
        for line in left {
            headers.append(COOKIE, line);
        }
    }
    let values = if suffixed.is_empty() { plain } else { suffixed };
    let [value] = values.as_slice() else { return None };
    Token::parse(std::str::from_utf8(value).ok()?, limit).ok()
}

/// Returns a `Cookie` header without the proxy's session cookies and the provider's cookies.
#[must_use]
pub fn without_credentials(line: &str, sources: &[CookieSource]) -> String {
    let mut headers = HeaderMap::new();
    // A line that cannot be a header value cannot be sent as a cookie.
    let Ok(value) = HeaderValue::from_str(line) else { return String::new() };
    headers.insert(COOKIE, value);
    let _ = take_session_cookie(&mut headers, "");
    for source in sources {
        let _ = take_cookie(&mut headers, source, 0);
    }
    headers.get(COOKIE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_providers_cookie_is_taken_out_and_the_others_stay() {
        for (lines, name, expected, left) in [
            (&["__session=abc"][..], "__session", Some("abc"), ""),
            (&["a=1; __session=abc; b=2"], "__session", Some("abc"), "a=1; b=2"),
            (&["a=1;__session=abc"], "__session", Some("abc"), "a=1"),
            (&["__session=abc; __session_x1=def"], "__session", Some("def"), ""),
            (&["__session_x1=def; __session_y2=ghi; __session=abc"], "__session", None, ""),
            (&["__session=abc; a=1", "__session=abd"], "__session", None, "a=1"),
            (&["__sessions=abc; a__session=1"], "__session", None, "__sessions=abc; a__session=1"),
            (&["app=abc; app_x=def"], "app", Some("abc"), "app_x=def"),
            (&["__session="], "__session", None, ""),
            (&["__session=a b"], "__session", None, ""),
            (&["__session=\"abc\""], "__session", None, ""),
            (&["a=1"], "__session", None, "a=1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_static(line));
            }
            let source = CookieSource { name: name.to_owned(), suffixes: Vec::new() };
            let found = take_cookie(&mut headers, &source, 64);
            assert_eq!(found.as_ref().map(Token::expose), expected, "{lines:?}");
            let kept: Vec<&str> = headers.get_all(COOKIE).iter().map(|v| v.to_str().expect("ascii")).collect();
            assert_eq!(kept.join("|"), left, "{lines:?}");
        }
    }

    #[test]
    fn no_spelling_of_a_set_cookie_line_sets_one_of_ours() {
        for (line, expected) in [
            ("__Host-vestibule=x; Path=/", true),
            ("vestibule-8080=x", true),
            ("vestibule-8080 =x", true),
            ("__Host-vestibule-login=x", true),
            ("__HOST-vestibule-Login=x", true),
            ("vestibule-login-8080=x", true),
            ("vestibule-login-=x", false),
            ("__Host-vestibule-lab=x", true),
            ("__host-Vestibule-Lab-Login=x", true),
            ("vestibule-lab-8080=x", true),
            ("vestibule-lab-login-8080=x", true),
            ("__Host-vestibules=x", false),
            ("vestibules-8080=x", false),
            ("vestibule=x", false),
            ("\t vestibule-8080\t=x", true),
            ("=vestibule-8080=x", true),
            (" = vestibule-8080=x", true),
            ("==__Host-vestibule=x", true),
            ("vestibule-8080", true),
            ("vestibule-8080; Path=/; Secure", true),
            ("=vestibule-8080; Path=/", true),
            ("__HOST-Vestibule=x", true),
            ("vestibule-=x", false),
            ("vestibule-a=x", false),
            ("theirs=vestibule-8080=x", false),
            ("theirs=1; vestibule-8080=x", false),
            ("=", false),
            ("", false),
        ] {
            assert_eq!(sets_session_cookie(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn another_applications_cookie_is_not_ours() {
        for (line, expected, left) in [
            ("__session_mine=abc; __session_other=def", Some("abc"), "__session_other=def"),
            ("__session=plain; __session_other=def", Some("plain"), "__session_other=def"),
            ("__session_other=def", None, "__session_other=def"),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(COOKIE, HeaderValue::from_static(line));
            let source = CookieSource { name: "__session".to_owned(), suffixes: vec!["mine".to_owned()] };
            let found = take_cookie(&mut headers, &source, 64);
            assert_eq!(found.as_ref().map(Token::expose), expected, "{line}");
            assert_eq!(headers[COOKIE], left, "{line}");
        }
    }
}
