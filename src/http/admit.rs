//! Admission: rejects malformed and ambiguous requests that hyper accepts.

use hyper::body::Body as _;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, Version};

use super::admitted::RequestMessage;
use super::cors::preflight_method;
use super::list_field::lists;
use super::{Admitted, ClientAddress, Connection, Refusal};
use crate::policy::Policy;

/// Checks a request and turns it into an [`Admitted`]; nothing else makes one.
///
/// # Errors
/// Returns a refusal of docs/contract.md section 3: malformed, wrong method, Host not served, something over its limit.
pub fn admit(
    mut message: Box<RequestMessage>,
    connection: &Connection,
    policy: &Policy,
) -> Result<Box<Admitted>, (Refusal, ClientAddress)> {
    let client = ClientAddress::of(connection, &message.parts.headers, policy);
    let websocket = match check(&mut message, policy) {
        Ok(websocket) => websocket,
        Err(refusal) => return Err((refusal, client)),
    };
    let upgrade = websocket.then(|| message.take_upgrade());
    // `check_framing` has removed the framing fields, so only the body itself shows whether there is one.
    let announced =
        preflight_method(&message.parts, !message.body.is_end_stream()).filter(|method| !is_misspelt(method));
    Ok(Box::new(Admitted { message, client, upgrade, announced }))
}

fn check(message: &mut RequestMessage, policy: &Policy) -> Result<bool, Refusal> {
    let RequestMessage { parts, body } = message;
    let method = &parts.method;
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal::method_not_allowed(None));
    }
    if is_misspelt(method) {
        return Err(Refusal::bad_request("a known method in other letters"));
    }
    let lines = check_size(parts, policy.limits.header_bytes)?;
    check_host(parts, lines.hosts, policy)?;
    check_framing(parts, &lines)?;
    let path = parts.uri.path();
    if has_broken_escape(path) {
        return Err(Refusal::bad_request("an escape that is not two hex digits"));
    }
    if !path.starts_with('/') {
        return Err(Refusal::bad_request("the target is not a path"));
    }
    if policy.limits.body_bytes.is_some_and(|limit| body.size_hint().lower() > limit as u64) {
        return Err(Refusal::body_too_large());
    }
    if lines.upgrades == 0 { Ok(false) } else { is_websocket(parts, body.is_end_stream()) }
}

/// Returns whether a method is a known one in another case. Methods are case-sensitive, but a backend that treats `get`
/// as `GET` would answer a request to which no rule for `GET` was applied.
fn is_misspelt(method: &Method) -> bool {
    // Methods that hyper knows are values, not text, so the usual ones need no comparison of text.
    if matches!(*method, Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::PATCH | Method::OPTIONS) {
        return false;
    }
    let name = method.as_str();
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    known.iter().any(|known| known.eq_ignore_ascii_case(name) && *known != name)
}

/// The number of lines of the fields that are checked here, counted while the head is measured: a search for each takes
/// ten times as long.
#[derive(Default)]
struct Lines {
    hosts: usize,
    codings: usize,
    lengths: usize,
    upgrades: usize,
}

/// Checks the size of the head as it was on the wire, except for optional white space. Returns the number of lines of
/// the fields that are checked further.
fn check_size(head: &Parts, limit: usize) -> Result<Lines, Refusal> {
    let uri = &head.uri;
    let target = uri.path_and_query().map_or(1, |target| target.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len() + "http://".len());
    if target > limit {
        return Err(Refusal::target_too_long());
    }
    let mut size = head.method.as_str().len() + target + "  HTTP/1.1\r\n".len() + "\r\n".len();
    let mut lines = Lines::default();
    for (name, value) in &head.headers {
        size += name.as_str().len() + value.len() + ": \r\n".len();
        lines.hosts += usize::from(*name == HOST);
        lines.codings += usize::from(*name == TRANSFER_ENCODING);
        lines.lengths += usize::from(*name == CONTENT_LENGTH);
        lines.upgrades += usize::from(*name == UPGRADE);
    }
    if size > limit { Err(Refusal::head_too_large()) } else { Ok(lines) }
}

fn check_host(head: &mut Parts, lines: usize, policy: &Policy) -> Result<(), Refusal> {
    let is_probe = matches!(head.uri.path(), "/.vestibule/healthz" | "/.vestibule/readyz");
    // HTTP/1.0 has no Host, and many health checks use it.
    if is_probe && head.version == Version::HTTP_10 && head.uri.authority().is_none() && lines == 0 {
        return Ok(());
    }
    let Some(host) = head.headers.get(HOST).filter(|_| lines == 1) else {
        return Err(Refusal::bad_request("not exactly one Host"));
    };
    let text = host.to_str().map_err(|_| Refusal::bad_request("Host is not ASCII"))?;
    let name = host_name(text).ok_or_else(|| Refusal::bad_request("Host is not host and port"))?;
    if let Some(authority) = head.uri.authority() {
        // RFC 9112 section 3.2.2 prefers the target. A request with two names is rejected instead, because other
        // programs may prefer the Host.
        if !authority.as_str().eq_ignore_ascii_case(text) {
            return Err(Refusal::bad_request("an absolute target whose authority is not the Host"));
        }
        if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
            return Err(Refusal::bad_request("an absolute target that is neither http nor https"));
        }
        let target = head.uri.path_and_query().cloned();
        let target = target.ok_or_else(|| Refusal::bad_request("the target has no path"))?;
        head.uri = target.as_str().parse().map_err(|_| Refusal::bad_request("the target is not a path"))?;
    }
    if is_probe || policy.hosts.answers(name) { Ok(()) } else { Err(Refusal::host_not_served()) }
}

/// Returns the name or address in a Host, without the port; `None` if it is not a host with or without a port.
fn host_name(text: &str) -> Option<&str> {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // Nearly every Host is of letters, digits, dots and hyphens, which need no parser.
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if !name.is_empty() && name.bytes().all(is_plain) && port.is_none_or(is_port) {
        return Some(name);
    }
    let host: Authority = text.parse().ok()?;
    // `Authority` accepts any text as a port.
    let colon = text.bytes().rposition(|byte| byte == b':');
    let port = colon.map(|colon| &text[colon + 1..]).filter(|port| !port.ends_with(']'));
    // A program that expects a list would split the value at a comma. Without an `@` the name comes first.
    let name = text.get(..host.host().len())?;
    let is_host = !text.bytes().any(|byte| matches!(byte, b'@' | b',')) && !name.is_empty();
    (is_host && port.is_none_or(is_port)).then_some(name)
}

/// Checks the framing fields after hyper has read them: what a backend might read differently is refused or replaced.
fn check_framing(head: &mut Parts, lines: &Lines) -> Result<(), Refusal> {
    if lines.codings > 0 {
        let coding = head.headers.get(TRANSFER_ENCODING);
        let only_chunked =
            lines.codings == 1 && coding.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
        if !only_chunked || head.version != Version::HTTP_11 {
            return Err(Refusal::bad_request("a transfer coding other than chunked"));
        }
        // hyper's client frames the body itself, so nothing of the client's framing is forwarded.
        head.headers.remove(TRANSFER_ENCODING);
        head.headers.remove(CONTENT_LENGTH);
    } else if lines.lengths > 1 {
        return Err(Refusal::bad_request("more than one Content-Length"));
    }
    Ok(())
}

/// Returns whether a request is a complete WebSocket upgrade (RFC 6455 section 4.2.1). An incomplete one is an error.
fn is_websocket(head: &Parts, has_no_body: bool) -> Result<bool, Refusal> {
    let headers = &head.headers;
    if !lists(headers, &UPGRADE, "websocket") {
        return Ok(false);
    }
    let upgrade = lists(headers, &CONNECTION, "upgrade") && head.method == Method::GET;
    if !upgrade || head.version != Version::HTTP_11 || !has_no_body {
        return Err(Refusal::bad_request("an incomplete WebSocket upgrade"));
    }
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    if one(&SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::websocket_version());
    }
    if !one(&SEC_WEBSOCKET_KEY).is_some_and(|key| is_websocket_key(key.as_bytes())) {
        return Err(Refusal::bad_request("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    Ok(true)
}

fn is_websocket_key(key: &[u8]) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)
}

/// Returns whether a `%` is not followed by two hex digits. Programs disagree on the meaning of such a path.
fn has_broken_escape(path: &str) -> bool {
    let is_escape =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    path.as_bytes().contains(&b'%') && path.split('%').skip(1).any(|rest| !is_escape(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for (text, name) in [
            ("a.example", Some("a.example")),
            ("A-1.example:8080", Some("A-1.example")),
            ("a.example.:65535", Some("a.example.")),
            ("127.0.0.1:1", Some("127.0.0.1")),
            ("a_b:80", Some("a_b")),
            ("[::1]", Some("[::1]")),
            ("[::1]:80", Some("[::1]")),
            ("", None),
            (":80", None),
            ("a:", None),
            ("a_b:", None),
            ("a:+1", None),
            ("a:65536", None),
            ("a_b:65536", None),
            ("a:1:2", None),
            ("a,b", None),
            ("user@a", None),
            ("user:1@a", None),
            ("a b", None),
            ("a/b", None),
            ("a%", None),
            ("[::1", None),
            ("[::1]x", None),
        ] {
            assert_eq!(host_name(text), name, "{text}");
        }
    }

    #[test]
    fn escapes_are_two_hex_digits() {
        for (path, broken) in [
            ("/a%20", false),
            ("/a%", true),
            ("/a%2", true),
            ("/a%zz", true),
            ("/a%2g", true),
            ("/%%20", true),
            ("/%2%0", true),
        ] {
            assert_eq!(has_broken_escape(path), broken, "{path}");
        }
    }
}
