//! Extracts credentials from cookies: the proxy's session cookie, and a token in the provider's cookie.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use hyper::HeaderMap;
use hyper::header::{COOKIE, HeaderValue};
use percent_encoding::percent_decode;
use serde_json::Value;

use super::Token;
use crate::json;
use crate::policy::{COOKIE_NAME, CookieEncoding, CookieSource};

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

/// The maximum number of parts of a cookie of Supabase. Each has about 3 KiB, and a session two or three.
const MAX_PARTS: usize = 10;

/// The form of the provider's cookie, by what follows its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CookieForm {
    /// The name alone.
    Whole,
    /// With a suffix of Clerk's.
    Suffixed,
    /// With the number of a part, from Supabase; `None` for a part that no session has.
    Part(Option<usize>),
}

impl CookieForm {
    /// Reads what follows the cookie's name. Returns `None` for another cookie.
    fn of(source: &CookieSource, rest: &[u8]) -> Option<Self> {
        if rest.is_empty() {
            return Some(Self::Whole);
        }
        if source.encoding == CookieEncoding::Supabase {
            let digits = rest.strip_prefix(b".").filter(|digits| !digits.is_empty())?;
            let is_number = digits.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(digits).ok().filter(|text| text.len() == 1 || !text.starts_with('0'));
            let number = number.and_then(|text| text.parse().ok()).filter(|number| *number < MAX_PARTS);
            return is_number.then_some(Self::Part(number));
        }
        let known = |suffix: &[u8]| {
            source.suffixes.is_empty() || source.suffixes.iter().any(|known| known.as_bytes() == suffix)
        };
        (source.name == "__session" && rest.strip_prefix(b"_").is_some_and(known)).then_some(Self::Suffixed)
    }
}

/// Removes the provider's cookie in each of its forms, and leaves the other cookies unchanged, byte for byte.
///
/// Clerk sets `__session` and `__session_<suffix>`. The one with the suffix belongs to one application, so it takes
/// precedence. Where the suffix is configured, cookies of other applications on the same domain are left in place. If
/// there are two with one name, or two suffixes, it is unclear which is right, and none counts.
///
/// Supabase sets one cookie, or several parts of it; the whole one takes precedence, as in its own libraries. All are
/// removed, since they hold the refresh token too.
pub(super) fn take_cookie(headers: &mut HeaderMap, source: &CookieSource, limit: usize) -> Option<Token> {
    let mut found: Vec<(CookieForm, Vec<u8>)> = Vec::new();
    let mut left: Vec<HeaderValue> = Vec::new();
    for line in headers.get_all(COOKIE) {
        let is_ours = |pair: &[u8]| {
            let rest = pair.trim_ascii_start().strip_prefix(source.name.as_bytes())?;
            let at = rest.iter().position(|byte| *byte == b'=')?;
            let form = CookieForm::of(source, rest[..at].trim_ascii_end())?;
            Some((form, rest[at + 1..].trim_ascii().to_vec()))
        };
        let kept: Vec<&[u8]> = line
            .as_bytes()
            .split(|byte| *byte == b';')
            .filter(|pair| match is_ours(pair) {
                None => true,
                Some(ours) => {
                    found.push(ours);
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
    if found.is_empty() {
        return None;
    }
    headers.remove(COOKIE);
    for line in left {
        headers.append(COOKIE, line);
    }
    // The values in one form; more than one is unclear.
    let of = |form: CookieForm| found.iter().filter(move |(own, _)| *own == form).map(|(_, value)| value.as_slice());
    let only = |form: CookieForm| {
        let mut values = of(form);
        values.next().filter(|_| values.next().is_none())
    };
    let text = match source.encoding {
        CookieEncoding::Plain => {
            let form = if of(CookieForm::Suffixed).next().is_some() { CookieForm::Suffixed } else { CookieForm::Whole };
            std::str::from_utf8(only(form)?).ok()?.to_owned()
        }
        CookieEncoding::Supabase => {
            let session = if of(CookieForm::Whole).next().is_some() {
                only(CookieForm::Whole).map(<[u8]>::to_vec)
            } else {
                parts(only, |form| of(form).next().is_some())
            };
            match session.ok_or("two cookies with one name").and_then(|session| access_token(&session)) {
                Ok(token) => token,
                Err(problem) => {
                    tracing::debug!(cookie = %source.name, problem, "cookie of Supabase not readable, treated as absent");
                    return None;
                }
            }
        }
    };
    Token::parse(&text, limit).ok()
}

/// Joins the parts of a cookie, up to the first that is missing; `None` if one is there twice.
fn parts<'a>(only: impl Fn(CookieForm) -> Option<&'a [u8]>, is_there: impl Fn(CookieForm) -> bool) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    for part in (0..MAX_PARTS).map(|number| CookieForm::Part(Some(number))).take_while(|part| is_there(*part)) {
        joined.extend_from_slice(only(part)?);
    }
    Some(joined)
}

/// Reads the access token out of a session of Supabase: JSON in base64url behind `base64-`, or percent-encoded JSON. Older
/// libraries write a list whose first member it is. The size was limited with the request's head.
///
/// # Errors
/// What is wrong with it.
fn access_token(session: &[u8]) -> Result<String, &'static str> {
    const PADDED_OR_NOT: GeneralPurpose = GeneralPurpose::new(
        &URL_SAFE,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let json = match session.strip_prefix(b"base64-") {
        Some(encoded) => PADDED_OR_NOT.decode(encoded).map_err(|_| "not base64url; a part may be missing")?,
        None => percent_decode(session).collect(),
    };
    let session = json::value(&json).map_err(|_| "not JSON with each member once; a part may be missing")?;
    let token = match &session {
        Value::Array(members) => members.first(),
        session => session.get("access_token"),
    };
    token.and_then(Value::as_str).map(str::to_owned).ok_or("it has no access_token")
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
            let source = CookieSource { name: name.to_owned(), suffixes: Vec::new(), encoding: CookieEncoding::Plain };
            let found = take_cookie(&mut headers, &source, 64);
            assert_eq!(found.as_ref().map(Token::expose), expected, "{lines:?}");
            let kept: Vec<&str> = headers.get_all(COOKIE).iter().map(|v| v.to_str().expect("ascii")).collect();
            assert_eq!(kept.join("|"), left, "{lines:?}");
        }
    }

    #[test]
    fn a_session_of_supabase_is_read_whole_and_in_parts() {
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let json = r#"{"access_token":"a.b.c","token_type":"bearer","refresh_token":"r","user":{"name":"José"}}"#;
        let whole = format!("base64-{}", URL_SAFE_NO_PAD.encode(json));
        let (first, second) = whole.split_at(40);
        let plain = percent_encoding::utf8_percent_encode(json, percent_encoding::NON_ALPHANUMERIC).to_string();
        for (line, expected, left) in [
            (format!("sb-x-auth-token={whole}; a=1"), Some("a.b.c"), "a=1"),
            (format!("sb-x-auth-token.0={first}; a=1; sb-x-auth-token.1={second}"), Some("a.b.c"), "a=1"),
            (format!("sb-x-auth-token.1={second}; sb-x-auth-token.0={first}"), Some("a.b.c"), ""),
            // A part of an earlier session that was longer is left over.
            (
                format!("sb-x-auth-token.0={first}; sb-x-auth-token.1={second}; sb-x-auth-token.3=old"),
                Some("a.b.c"),
                "",
            ),
            (format!("sb-x-auth-token={whole}; sb-x-auth-token.0=old"), Some("a.b.c"), ""),
            (format!("sb-x-auth-token={plain}"), Some("a.b.c"), ""),
            ("sb-x-auth-token=%5B%22a.b.c%22%2C%22r%22%5D".to_owned(), Some("a.b.c"), ""),
            (format!("sb-x-auth-token.0={first}"), None, ""),
            (format!("sb-x-auth-token.1={second}"), None, ""),
            (format!("sb-x-auth-token={whole}; sb-x-auth-token={whole}"), None, ""),
            (format!("sb-x-auth-token.0={first}; sb-x-auth-token.0={first}; sb-x-auth-token.1={second}"), None, ""),
            (format!("sb-x-auth-token.00={first}; sb-x-auth-token.99={second}"), None, ""),
            ("sb-x-auth-token=a.b.c".to_owned(), None, ""),
            ("sb-x-auth-token=base64-e30".to_owned(), None, ""),
            ("sb-x-auth-token=%7B%22access_token%22%3A%22a%22%2C%22access_token%22%3A%22b%22%7D".to_owned(), None, ""),
            (
                "sb-x-auth-token-code-verifier=v; sb-x-auth-token.x=1; sb-y-auth-token=z".to_owned(),
                None,
                "sb-x-auth-token-code-verifier=v; sb-x-auth-token.x=1; sb-y-auth-token=z",
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(COOKIE, HeaderValue::try_from(&line).expect("a value"));
            let source = CookieSource {
                name: "sb-x-auth-token".to_owned(),
                suffixes: Vec::new(),
                encoding: CookieEncoding::Supabase,
            };
            let found = take_cookie(&mut headers, &source, 64);
            assert_eq!(found.as_ref().map(Token::expose), expected, "{line}");
            let kept: Vec<&str> = headers.get_all(COOKIE).iter().map(|v| v.to_str().expect("ascii")).collect();
            assert_eq!(kept.join("|"), left, "{line}");
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
            let source = CookieSource {
                name: "__session".to_owned(),
                suffixes: vec!["mine".to_owned()],
                encoding: CookieEncoding::Plain,
            };
            let found = take_cookie(&mut headers, &source, 64);
            assert_eq!(found.as_ref().map(Token::expose), expected, "{line}");
            assert_eq!(headers[COOKIE], left, "{line}");
        }
    }
}
