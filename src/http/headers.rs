//! The headers of a request to the upstream: identity headers that the client sent are removed first, then the trusted
//! headers of the verified user are set. In this order nothing that a client sends (`Connection: X-User-Id`, a similar
//! name, a second copy) can remove or duplicate those of the proxy (CVE-2025-48865, CVE-2024-45410, CVE-2025-64484).

use std::sync::Arc;

use hyper::body::Body as _;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, ORIGIN,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_EXTENSIONS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, VIA,
};
use hyper::{HeaderMap, Uri, Version};

use super::admitted::{Admitted, RequestMessage};
use super::assertion::AssertionSigner;
use super::forwarding;
use super::list_field::lists;
use super::request::{Allowed, PreflightRequest, PublicRequest};
use super::trusted_headers::{IdentityHeaderError, TrustedHeaders};
use crate::auth::{Identity, Token, token};
use crate::policy::{HostHeader, Policy, Reserved, TokenToHttp, TokenToUpgrade, UpstreamSpec};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request that may be sent to the upstream: no identity header in it comes from the client.
#[derive(Debug)]
pub struct UpstreamRequest {
    message: Box<RequestMessage>,
    verified: bool,
    /// The index of the upstream in the policy.
    upstream: usize,
    /// Whether the client accepts trailers (RFC 9110 section 10.1.4).
    takes_trailers: bool,
    /// The identity headers that were removed from the client's request.
    stripped: Vec<HeaderName>,
}

impl UpstreamRequest {
    /// Returns the identity headers that were removed from the client's request.
    pub fn stripped(&self) -> impl Iterator<Item = &str> {
        self.stripped.iter().map(HeaderName::as_str)
    }

    /// Returns whether the user was verified. Verified and anonymous requests do not share upstream connections.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// Returns the index of the upstream in the policy. The request may hold a credential for that upstream only.
    pub(super) fn upstream(&self) -> usize {
        self.upstream
    }

    /// Returns whether announced trailers of the response may be forwarded.
    pub(super) fn takes_trailers(&self) -> bool {
        self.takes_trailers
    }

    /// Returns the head and body, for the upstream client only.
    pub(super) fn into_message(self) -> Box<RequestMessage> {
        self.message
    }

    /// Returns the `Sec-WebSocket-Key` of an upgrade, as the client sent it.
    #[must_use]
    pub fn websocket_key(&self) -> Option<&HeaderValue> {
        self.message.parts.headers.get(hyper::header::SEC_WEBSOCKET_KEY)
    }

    /// Returns the shared record of how the body ends.
    #[must_use]
    pub fn body_end(&self) -> super::BodyEnd {
        self.message.body.end()
    }
}

/// Prepares an allowed request: removes every header that could contradict the verified user, then sets the user's
/// trusted headers.
///
/// # Errors
/// Returns an error when a claim is not a valid header value, or the assertion cannot be signed.
pub fn prepare(
    allowed: Allowed,
    policy: &Policy,
    signer: Option<&AssertionSigner>,
) -> Result<(UpstreamRequest, Arc<Identity>, Option<Token>), IdentityHeaderError> {
    let trusted = TrustedHeaders::of(&policy.trusted_headers, &allowed.identity)?;
    let Allowed { mut admitted, identity, token, route } = allowed;
    let to = policy.upstream(&route);
    let read_by_us =
        route.websocket.dialect.is_some() || matches!(to.token_to_websocket, TokenToUpgrade::FirstMessage(_));
    let (takes_trailers, stripped) =
        strip(&mut admitted.message.parts.headers, policy, read_by_us, TokenHeaders::Removed);
    let headers = &mut admitted.message.parts.headers;
    for (name, value) in trusted {
        headers.insert(name, value);
    }
    if let Some(token) = &token {
        pass_on(&mut admitted, token, to);
    }
    if let Some(signer) = signer {
        let assertion = signer.sign(identity.user_id(), &admitted.message.parts, to, route.upstream == 0);
        let (name, value) = assertion.ok_or(IdentityHeaderError::Unsigned)?;
        admitted.message.parts.headers.insert(name, value);
    }
    let headers = &mut admitted.message.parts.headers;
    if let Some(credential) = &to.credential {
        headers.insert(credential.header.clone(), credential.value.clone());
    }
    let upstream = route.upstream;
    let upstream_request =
        UpstreamRequest { message: rebuilt(*admitted, to, policy), verified: true, upstream, takes_trailers, stripped };
    Ok((upstream_request, identity, token))
}

/// Forwards the token if `upstream.token_to` demands it, for a backend that verifies it again.
fn pass_on(admitted: &mut Admitted, token: &Token, to: &UpstreamSpec) {
    let parts = &mut admitted.message.parts;
    let in_header = if parts.headers.contains_key(UPGRADE) {
        match &to.token_to_websocket {
            // The proxy sends the token as its first message, after the upstream's 101.
            TokenToUpgrade::None | TokenToUpgrade::FirstMessage(_) => false,
            TokenToUpgrade::Header => true,
            TokenToUpgrade::Query(name) => {
                if let Some(target) = token::into_query(&parts.uri, name, token) {
                    parts.uri = Uri::from(target);
                }
                false
            }
        }
    } else {
        to.token_to_http == TokenToHttp::Header
    };
    if in_header && let Some(bearer) = token.bearer() {
        parts.headers.insert(AUTHORIZATION, bearer);
    }
}

/// Prepares a public request: removes every identity header and sets none.
#[must_use]
pub fn prepare_public(public: PublicRequest, policy: &Policy) -> UpstreamRequest {
    let PublicRequest { mut admitted, route } = public;
    // Webhooks have an `Authorization` of their own, so it is kept.
    let (takes_trailers, stripped) = strip(&mut admitted.message.parts.headers, policy, false, TokenHeaders::Kept);
    let to = policy.upstream(&route);
    let message = rebuilt(*admitted, to, policy);
    UpstreamRequest { message, verified: false, upstream: route.upstream, takes_trailers, stripped }
}

/// Prepares a preflight: only the path without its query, `Origin` and the `Access-Control-Request-*` headers of the
/// client's request are kept.
#[must_use]
pub fn prepare_preflight(preflight: PreflightRequest, policy: &Policy) -> UpstreamRequest {
    let PreflightRequest { mut admitted, route, .. } = preflight;
    let parts = &mut admitted.message.parts;
    let is_kept =
        |name: &HeaderName| *name == HOST || *name == ORIGIN || name.as_str().starts_with("access-control-request-");
    let names: Vec<HeaderName> = parts.headers.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in names {
        parts.headers.remove(name);
    }
    if let Ok(path) = Uri::try_from(parts.uri.path()) {
        parts.uri = path;
    }
    let to = policy.upstream(&route);
    let message = rebuilt(*admitted, to, policy);
    UpstreamRequest { message, verified: false, upstream: route.upstream, takes_trailers: false, stripped: Vec::new() }
}

fn rebuilt(admitted: Admitted, to: &UpstreamSpec, policy: &Policy) -> Box<RequestMessage> {
    let Admitted { mut message, client, .. } = admitted;
    let RequestMessage { parts, body } = &mut *message;
    forwarding::insert(&mut parts.headers, &client, policy.public_url.as_ref());
    if to.host_header == HostHeader::Upstream
        && let Ok(host) = HeaderValue::try_from(to.authority.as_str())
    {
        parts.headers.insert(HOST, host);
    }
    let via = match parts.version {
        Version::HTTP_10 => "1.0 vestibule",
        _ => "1.1 vestibule",
    };
    parts.headers.append(VIA, HeaderValue::from_static(via));
    parts.version = Version::HTTP_11;
    // Extensions hold the state of the client's connection.
    parts.extensions.clear();
    if !body.is_end_stream() && !parts.headers.contains_key(CONTENT_LENGTH) {
        // `admit` removed the framing fields. Without this field hyper would send no body with GET and HEAD.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    message
}

/// Whether `Authorization` and the other headers that may carry a token are removed, in their exact spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenHeaders {
    /// They are kept, because they are not read here and belong to the upstream.
    Kept,
    /// They are removed, also those that were not the credential: the upstream could take them for verified.
    Removed,
}

/// Removes the headers that must not reach the upstream. Returns whether the client accepts trailers, and the identity
/// headers that were removed.
pub(super) fn strip(
    headers: &mut HeaderMap,
    policy: &Policy,
    websocket_is_read: bool,
    token_headers: TokenHeaders,
) -> (bool, Vec<HeaderName>) {
    // Most requests have none of these, and one look at their names is quicker than a search for each.
    let hop_by_hop = has_hop_by_hop(headers);
    let (mut cookies, mut expects) = (false, false);
    for name in headers.keys() {
        cookies |= *name == COOKIE;
        expects |= *name == EXPECT;
    }
    let websocket = hop_by_hop && lists(headers, &UPGRADE, "websocket");
    let takes_trailers = hop_by_hop && !websocket && lists(headers, &TE, "trailers");
    let stripped = strip_reserved(headers, policy, token_headers);
    if cookies {
        // The proxy's cookies never reach the upstream, whether or not one of them was the credential.
        let _ = token::take_session_cookie(headers, "");
    }
    if hop_by_hop {
        strip_hop_by_hop(headers);
    }
    if expects {
        headers.remove(EXPECT);
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if websocket_is_read {
            // Compressed messages cannot be read, and removing one from the stream would break those after it.
            headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        }
    }
    if takes_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    (takes_trailers, stripped)
}

fn strip_reserved(headers: &mut HeaderMap, policy: &Policy, token_headers: TokenHeaders) -> Vec<HeaderName> {
    let is_kept = |kind: Reserved| kind == Reserved::TokenSource && token_headers == TokenHeaders::Kept;
    let reserved: Vec<(HeaderName, Reserved)> = headers
        .keys()
        .filter_map(|name| policy.reserved.classify(name.as_str()).map(|kind| (name.clone(), kind)))
        .filter(|(_, kind)| !is_kept(*kind))
        .collect();
    let mut identities = Vec::new();
    for (name, kind) in reserved {
        headers.remove(&name);
        if kind == Reserved::Identity {
            tracing::debug!(header = %name, "removed an identity header sent by a client");
            identities.push(name);
        }
    }
    identities
}

/// Removes every `Set-Cookie` from an upstream's response that would set one of the proxy's cookies.
pub fn strip_own_set_cookie(headers: &mut HeaderMap) {
    let is_own = |value: &HeaderValue| token::sets_session_cookie(value.as_bytes());
    if !headers.get_all(SET_COOKIE).iter().any(is_own) {
        return;
    }
    let kept: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().filter(|value| !is_own(value)).cloned().collect();
    headers.remove(SET_COOKIE);
    for value in kept {
        headers.append(SET_COOKIE, value);
    }
}

const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    PROXY_CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Returns whether a message has one of the fixed hop-by-hop fields. Without one there is no `Connection` either, which
/// could name others.
pub(super) fn has_hop_by_hop(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| HOP_BY_HOP.contains(name))
}

/// Removes hop-by-hop fields (RFC 9110 section 7.6.1): those that `Connection` names, then the fixed ones. `Host`,
/// `Content-Length`, `Cookie` and `Sec-WebSocket-*` stay, even if `Connection` names them.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, COOKIE].contains(name) && !name.as_str().starts_with("sec-websocket-"))
        .collect();
    for name in named {
        headers.remove(name);
    }
    // To look at the few names of a message is quicker than nine searches.
    while let Some(name) = headers.keys().find(|name| HOP_BY_HOP.contains(name)).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_removes_the_fields_it_names_but_not_framing() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Custom"),
            ("connection", " HOST ,content-length"),
            ("x-custom", "1"),
            ("host", "a"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;
        use crate::policy::fold;

        fn policy() -> Policy {
            let yaml = "upstream: http://127.0.0.1:1\nidentity: { headers: { X-User-Id: sub, x_Team: team }, strip: [X-Own] }\nroutes: [{ path: /**, auth: none }]\n";
            crate::policy::validate(&crate::config::load_yaml(yaml).expect("loads").config).expect("valid")
        }

        fn name() -> impl Strategy<Value = String> {
            prop_oneof![
                "[Xx][-_.]?[Uu]ser[-_.]?[Ii][Dd]",
                "[Xx][-_.]?[Tt][Ee]am",
                "[Xx][-_]?[Oo]wn",
                "(remote|x-forwarded|x-auth-request)[-_](user|email|groups)",
                "[Xx][-_]forwarded[-_](for|proto|host|port|prefix)",
                Just("Connection".to_owned()),
                Just("Proxy-Connection".to_owned()),
                "[a-z][a-z0-9-]{0,12}",
            ]
        }

        fn value() -> impl Strategy<Value = String> {
            prop_oneof![
                "[ -~]{0,20}",
                "(close|keep-alive|x-user-id|X_TEAM|upgrade|te)(, ?(x-user-id|x-team|host|via)){0,3}",
            ]
        }

        proptest! {
            #[test]
            fn an_identity_header_is_only_ever_ours(fields in prop::collection::vec((name(), value()), 0..24)) {
                let policy = policy();
                let mut headers = HeaderMap::new();
                for (name, value) in &fields {
                    let field = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()));
                    if let (Ok(name), Ok(value)) = field {
                        headers.append(name, value);
                    }
                }
                strip(&mut headers, &policy, false, TokenHeaders::Kept);
                let ours = ["x-user-id", "x-team", "x-own"].map(fold);
                for name in headers.keys() {
                    prop_assert!(!ours.contains(&fold(name.as_str())), "{name} of the client stays");
                }
                // A header that `prepare` sets afterwards is present exactly once, whatever `Connection` named.
                for trusted in policy.trusted_headers.iter() {
                    headers.insert(trusted.name.clone(), HeaderValue::from_static("alice"));
                }
                for trusted in policy.trusted_headers.iter() {
                    let values: Vec<_> = headers.get_all(&trusted.name).iter().collect();
                    prop_assert_eq!(values, [&HeaderValue::from_static("alice")]);
                }
            }
        }
    }
}
