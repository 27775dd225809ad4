//! Admission: rejects malformed and ambiguous requests that hyper accepts.

use hyper::body::Body as _;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Version};

use super::admitted::RequestMessage;
use super::cors::preflight_method;
use super::list_field::lists;
use super::{Admitted, ClientAddress, ClientBody, Connection, Refusal};
use crate::policy::Policy;

/// Checks a request and turns it into an [`Admitted`]; nothing else makes one.
///
/// # Errors
/// Returns a refusal of docs/contract.md section 3: malformed, wrong method, Host not served, something over its limit.
pub fn admit(
    mut request: Request<ClientBody>,
    connection: &Connection,
    policy: &Policy,
) -> Result<Box<Admitted>, (Refusal, ClientAddress)> {
    let client = ClientAddress::of(connection, request.headers(), policy);
    let websocket = match check(&mut request, policy) {
        Ok(websocket) => websocket,
        Err(refusal) => return Err((refusal, client)),
    };
    let upgrade = websocket.then(|| hyper::upgrade::on(&mut request));
    let message = Box::<RequestMessage>::from(request);
    // `check_framing` has removed the framing fields, so only the body itself shows whether there is one.
    let announced =
        preflight_method(&message.parts, !message.body.is_end_stream()).filter(|method| !is_misspelt(method));
    Ok(Box::new(Admitted { message, client, upgrade, announced }))
}

fn check(request: &mut Request<ClientBody>, policy: &Policy) -> Result<bool, Refusal> {
    let method = request.method();
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal::method_not_allowed(None));
    }
    if is_misspelt(method) {
        return Err(Refusal::bad_request("a known method in other letters"));
    }
    check_size(request, policy.limits.header_bytes)?;
    check_host(request, policy)?;
    check_framing(request)?;
    let path = request.uri().path();
    if has_broken_escape(path) {
        return Err(Refusal::bad_request("an escape that is not two hex digits"));
    }
    if !path.starts_with('/') {
        return Err(Refusal::bad_request("the target is not a path"));
    }
    if policy.limits.body_bytes.is_some_and(|limit| request.body().size_hint().lower() > limit as u64) {
        return Err(Refusal::body_too_large());
    }
    is_websocket(request)
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

/// Checks the size of the head as it was on the wire, except for optional white space.
fn check_size(request: &Request<ClientBody>, limit: usize) -> Result<(), Refusal> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or(1, |target| target.as_str().len())
        + uri.authority().map_or(0, |authority| authority.as_str().len() + "http://".len());
    if target > limit {
        return Err(Refusal::target_too_long());
    }
    let line = request.method().as_str().len() + target + "  HTTP/1.1\r\n".len();
    let fields: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    if line + fields + "\r\n".len() > limit { Err(Refusal::head_too_large()) } else { Ok(()) }
}

fn check_host(request: &mut Request<ClientBody>, policy: &Policy) -> Result<(), Refusal> {
    let is_probe = matches!(request.uri().path(), "/.vestibule/healthz" | "/.vestibule/readyz");
    // HTTP/1.0 has no Host, and many health checks use it.
    if is_probe
        && request.version() == Version::HTTP_10
        && request.uri().authority().is_none()
        && !request.headers().contains_key(HOST)
    {
        return Ok(());
    }
    let mut values = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (values.next(), values.next()) else {
        return Err(Refusal::bad_request("not exactly one Host"));
    };
    let text = host.to_str().map_err(|_| Refusal::bad_request("Host is not ASCII"))?;
    let host: Authority = text.parse().map_err(|_| Refusal::bad_request("Host is not host and port"))?;
    // `Authority` accepts any text as a port.
    let colon = text.bytes().rposition(|byte| byte == b':');
    let port = colon.map(|colon| &text[colon + 1..]).filter(|port| !port.ends_with(']'));
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    // A program that expects a list would split the value at a comma.
    let name = host.host();
    if text.bytes().any(|byte| matches!(byte, b'@' | b',')) || name.is_empty() || !port.is_none_or(is_port) {
        return Err(Refusal::bad_request("Host is not host and port"));
    }
    if let Some(authority) = request.uri().authority() {
        // RFC 9112 section 3.2.2 prefers the target. A request with two names is rejected instead, because other
        // programs may prefer the Host.
        if !authority.as_str().eq_ignore_ascii_case(text) {
            return Err(Refusal::bad_request("an absolute target whose authority is not the Host"));
        }
        if !matches!(request.uri().scheme_str(), Some("http" | "https")) {
            return Err(Refusal::bad_request("an absolute target that is neither http nor https"));
        }
        let target = request.uri().path_and_query().cloned();
        let target = target.ok_or_else(|| Refusal::bad_request("the target has no path"))?;
        *request.uri_mut() = target.as_str().parse().map_err(|_| Refusal::bad_request("the target is not a path"))?;
    }
    if is_probe || policy.hosts.answers(name) { Ok(()) } else { Err(Refusal::host_not_served()) }
}

/// Checks the framing fields after hyper has read them: what a backend might read differently is refused or replaced.
fn check_framing(request: &mut Request<ClientBody>) -> Result<(), Refusal> {
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let only_chunked = codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
            && codings.next().is_none();
        if !only_chunked || request.version() != Version::HTTP_11 {
            return Err(Refusal::bad_request("a transfer coding other than chunked"));
        }
        // hyper's client frames the body itself, so nothing of the client's framing is forwarded.
        request.headers_mut().remove(TRANSFER_ENCODING);
        request.headers_mut().remove(CONTENT_LENGTH);
    } else if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::bad_request("more than one Content-Length"));
    }
    Ok(())
}

/// Returns whether a request is a complete WebSocket upgrade (RFC 6455 section 4.2.1). An incomplete one is an error.
fn is_websocket(request: &Request<ClientBody>) -> Result<bool, Refusal> {
    let headers = request.headers();
    if !lists(headers, &UPGRADE, "websocket") {
        return Ok(false);
    }
    let upgrade = lists(headers, &CONNECTION, "upgrade") && *request.method() == Method::GET;
    if !upgrade || request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
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
    path.split('%').skip(1).any(|rest| !is_escape(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

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
