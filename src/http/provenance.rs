//! Checks which page made a request. Browsers send cookies with requests of any page, so a credential in a cookie
//! counts only on a request of the proxy's own origin or of those in `origins` (docs/contract.md section 8).

use hyper::header::{HOST, HeaderName, ORIGIN, UPGRADE};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use url::Url;

use super::{Admitted, ClientAddress, Refusal};
use crate::auth::token;
use crate::policy::{OriginPattern, Policy, is_loopback_name};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Checks that a cookie may be the credential of this request.
///
/// # Errors
/// Returns 403 `foreign_origin`.
pub(super) fn check_cookie_origin(head: &Parts, client: &ClientAddress, policy: &Policy) -> Result<(), Refusal> {
    let headers = &head.headers;
    let mut origins = headers.get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        let upgrade = headers.contains_key(UPGRADE);
        let safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) && !upgrade;
        // `SameSite=None` sends the cookie with every request of every site, so a browser must say that this one is ours.
        let in_frames = policy.browser.is_in_frames();
        let says_where_from = !in_frames || headers.contains_key(SEC_FETCH_SITE);
        let is_allowed = safe
            && ((says_where_from && is_same_origin_or_direct(headers))
                || is_navigation(&head.method, headers, in_frames));
        return if is_allowed { Ok(()) } else { Err(Refusal::foreign_origin("a request without Origin")) };
    };
    let text = origin.to_str().unwrap_or("not ASCII");
    // An entry with a wildcard does not count: otherwise any host under it could use the cookies of all users.
    let listed = |pattern: &OriginPattern| matches!(pattern, OriginPattern::Exact(exact) if exact.as_str() == text);
    if origins.next().is_none() && (is_own_origin(text, headers, client, policy) || policy.origins.iter().any(listed)) {
        return Ok(());
    }
    Err(Refusal::foreign_origin(text))
}

/// Checks that a request may change state on the proxy's own endpoints: its `Origin` is the proxy's or listed, or it
/// has none and does not come from a browser.
///
/// # Errors
/// Returns 403 `foreign_origin`.
pub(super) fn check_state_change(head: &Parts, client: &ClientAddress, policy: &Policy) -> Result<(), Refusal> {
    let headers = &head.headers;
    if headers.contains_key(ORIGIN) {
        return check_cookie_origin(head, client, policy);
    }
    let is_browser = headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"));
    if is_browser { Err(Refusal::foreign_origin("a page without Origin")) } else { Ok(()) }
}

/// Returns whether the client uses https, by the connection, the forwarding headers and `public_url`.
fn is_https(client: &ClientAddress, policy: &Policy) -> bool {
    client.scheme == "https" || policy.public_url.as_ref().is_some_and(|url| url.as_str().starts_with("https://"))
}

/// Returns the name of the session cookie for this client. Over plain http it has the port in it, since cookies are
/// shared between the ports of a host.
pub(super) fn session_cookie_name(admitted: &Admitted, policy: &Policy) -> String {
    token::session_cookie_name(policy.browser.cookie_name(), is_https(&admitted.client, policy), port(admitted))
}

/// Returns the name of the cookie that binds a sign-in to this client's browser.
pub(super) fn login_cookie_name(admitted: &Admitted, policy: &Policy) -> String {
    token::login_cookie_name(policy.browser.cookie_name(), is_https(&admitted.client, policy), port(admitted))
}

fn port(admitted: &Admitted) -> u16 {
    let host = admitted.message.parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80)
}

/// Returns whether a session cookie can be set: over https, or on a loopback name, whose traffic crosses no network.
pub(super) fn can_have_cookie(admitted: &Admitted, policy: &Policy) -> bool {
    let host = admitted.message.parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    is_https(&admitted.client, policy) || is_loopback_name(name.trim_start_matches('[').trim_end_matches(']'))
}

/// Returns whether a field is there once, with this value.
fn has_value(headers: &HeaderMap, name: &HeaderName, value: &str) -> bool {
    let mut found = headers.get_all(name).iter();
    found.next().is_some_and(|found| found.as_bytes() == value.as_bytes()) && found.next().is_none()
}

/// Returns whether a page of the same origin, or the user directly, made the request, by `Sec-Fetch-Site`. A request
/// without that field does not come from a current browser.
fn is_same_origin_or_direct(headers: &HeaderMap) -> bool {
    !headers.contains_key(SEC_FETCH_SITE)
        || has_value(headers, &SEC_FETCH_SITE, "same-origin")
        || has_value(headers, &SEC_FETCH_SITE, "none")
}

/// Whether a browser reports a navigation: of a whole page, or of a frame where sessions may be in frames.
fn is_navigation(method: &Method, headers: &HeaderMap, in_frames: bool) -> bool {
    method == Method::GET
        && has_value(headers, &SEC_FETCH_MODE, "navigate")
        && (has_value(headers, &SEC_FETCH_DEST, "document")
            || (in_frames && has_value(headers, &SEC_FETCH_DEST, "iframe")))
}

/// Returns whether an origin is the proxy's own: that of `public_url`, or otherwise one with the host and port of the
/// request's `Host`.
///
/// If the request came by https, an http page is another site. A `Host` without a port has the default port of the
/// page's scheme and not of the request's, because a load balancer that is not trusted may have ended TLS.
fn is_own_origin(origin: &str, headers: &HeaderMap, client: &ClientAddress, policy: &Policy) -> bool {
    if let Some(public) = &policy.public_url {
        return public.as_str() == origin;
    }
    let Ok(page) = Url::parse(origin) else { return false };
    if page.origin().ascii_serialization() != origin || (client.scheme == "https" && page.scheme() != "https") {
        return false;
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(own) = host.and_then(|host| Url::parse(&format!("{}://{host}", page.scheme())).ok()) else {
        return false;
    };
    own.origin() == page.origin()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;
    use crate::policy::Origin;

    #[test]
    fn our_origin_is_host_and_port_as_the_client_uses_them() {
        let policy = |public: Option<&str>| {
            let mut config = crate::config::Config::default();
            config.public_url = public.map(str::to_owned);
            config.upstream =
                Some(crate::config::Upstream { url: Some("http://127.0.0.1:1".into()), ..Default::default() });
            config.routes = vec![crate::config::Route {
                path: Some("/**".into()),
                auth: crate::policy::AuthMode::None,
                ..Default::default()
            }];
            config.origins = vec!["https://*.example.org".into(), "https://front.example.com".into()];
            crate::policy::validate(&config).expect("valid")
        };
        assert!(Origin::parse("https://a").is_ok());
        for (public, scheme, host, origin, expected) in [
            (None, "http", "a.example", "http://a.example", true),
            (None, "http", "a.example:80", "http://a.example", true),
            (None, "http", "a.example", "https://a.example", true),
            (None, "https", "a.example", "http://a.example", false),
            (None, "http", "a.example:8080", "http://a.example:8080", true),
            (None, "http", "a.example:8080", "http://a.example:8081", false),
            (None, "http", "a.example", "http://b.a.example", false),
            (None, "http", "a.example", "null", false),
            (None, "http", "a.example", "https://front.example.com", true),
            (None, "http", "a.example", "https://x.example.org", false),
            (Some("https://app.example"), "http", "10.0.0.1", "https://app.example", true),
            (Some("https://app.example"), "http", "10.0.0.1", "http://10.0.0.1", false),
        ] {
            let head = Request::get("/").header("host", host).header("origin", origin).body(()).expect("request");
            let client = ClientAddress {
                address: [127, 0, 0, 1].into(),
                scheme,
                chain: hyper::header::HeaderValue::from_static("127.0.0.1"),
                request_id: crate::telemetry::RequestId::default(),
                sharing: crate::http::AddressSharing::NotShared,
                has_trusted_peer: false,
            };
            let found = check_cookie_origin(&head.into_parts().0, &client, &policy(public)).is_ok();
            assert_eq!(found, expected, "{public:?} {scheme} {host} {origin}");
        }
    }
}
