//! The seal: everything a client must not say is stripped, then what we vouch for is inserted. In
//! that order, so that nothing a client sends (`Connection: X-User-Id`, a look-alike, a second copy)
//! can remove or double ours (CVE-2025-48865, CVE-2024-45410, CVE-2025-64484).

use std::sync::Arc;

use hyper::body::Body as _;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, ORIGIN,
    SEC_WEBSOCKET_EXTENSIONS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use hyper::{HeaderMap, Request, Uri, Version};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::ClientBody;
use super::admit::lists;
use super::assertion::AssertionSigner;
use super::forwarding;
use super::request::{Admitted, Allowed, PreflightRequest, PublicRequest};
use crate::auth::{Identity, Token, token};
use crate::policy::{Encode, HostHeader, Policy, Reserved, TokenToHttp, TokenToUpgrade, TrustedHeader, UpstreamSpec};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// RFC 3986 unreserved characters stay.
const PERCENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request that may go to the upstream: nothing in it is the client's word for who it is.
#[derive(Debug)]
pub struct Sealed {
    request: Request<ClientBody>,
    verified: bool,
    /// Which of the policy's upstreams it is for.
    upstream: usize,
    /// The client takes trailers (RFC 9110 section 10.1.4).
    takes_trailers: bool,
    /// Identity headers that the client had sent; mostly none.
    stripped: Vec<HeaderName>,
}

impl Sealed {
    /// Identity headers that the client had sent.
    pub fn stripped(&self) -> impl Iterator<Item = &str> {
        self.stripped.iter().map(HeaderName::as_str)
    }

    /// Whether a verified user stands behind it; connections are not shared between the two.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// Which upstream it is for: it holds that one's secret, and no other may see it.
    pub(super) fn upstream(&self) -> usize {
        self.upstream
    }

    /// Whether announced trailers of the answer may go on.
    pub(super) fn takes_trailers(&self) -> bool {
        self.takes_trailers
    }

    /// The request, for the upstream client alone.
    pub(super) fn into_request(self) -> Request<ClientBody> {
        self.request
    }

    /// The method, for what may be sent twice.
    #[must_use]
    pub fn method(&self) -> &hyper::Method {
        self.request.method()
    }

    /// `Sec-WebSocket-Key` of an upgrade, as the client sent it.
    #[must_use]
    pub fn websocket_key(&self) -> Option<&HeaderValue> {
        self.request.headers().get(hyper::header::SEC_WEBSOCKET_KEY)
    }

    /// How its body ended, once it has.
    #[must_use]
    pub fn body_end(&self) -> super::BodyEnd {
        self.request.body().end()
    }
}

/// The trusted headers of one identity. Comparable: a refreshed token must not change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedHeaders(Vec<(HeaderName, HeaderValue)>);

/// Why an identity cannot be handed on; for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// A claim cannot stand in its header.
    #[error("claim {claim} {problem}, so header {header} cannot be made")]
    Claim {
        /// The header.
        header: String,
        /// The claim.
        claim: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An assertion is due, and none could be signed.
    #[error("no assertion could be signed")]
    Unsigned,
}

impl TrustedHeaders {
    /// Makes the headers for an identity. An absent claim means no header.
    ///
    /// # Errors
    /// When a claim cannot stand in a header; nothing is truncated or guessed.
    pub fn of(headers: &[TrustedHeader], identity: &Identity) -> Result<Self, Unsendable> {
        let mut out = Vec::with_capacity(headers.len());
        for header in headers {
            let Some(value) = identity.claim(&header.claim) else { continue };
            let unsendable = |problem| Unsendable::Claim {
                header: header.name.to_string(),
                claim: header.claim.to_string(),
                problem,
            };
            let text = text(&value, header.encode).map_err(unsendable)?;
            let visible = text.bytes().all(|b| (0x20..=0x7e).contains(&b)) && text.trim() == text;
            let value = HeaderValue::from_str(&text).ok().filter(|_| visible);
            out.push((
                header.name.clone(),
                value.ok_or_else(|| unsendable("holds other than visible ASCII (encode: percent allows any text)"))?,
            ));
        }
        Ok(Self(out))
    }
}

fn text(value: &Value, encode: Option<Encode>) -> Result<String, &'static str> {
    let encoded = |text: &str| match encode {
        Some(Encode::Percent) => utf8_percent_encode(text, PERCENT).to_string(),
        None => text.to_owned(),
    };
    match value {
        Value::String(text) => Ok(encoded(text)),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Array(members) => {
            let texts: Vec<String> = members
                .iter()
                .map(|member| match member {
                    Value::String(text) if text.contains(',') && encode.is_none() => {
                        Err("has a member with a comma in it")
                    }
                    Value::Array(_) | Value::Object(_) | Value::Null => {
                        Err("is an array of other than text, numbers and booleans")
                    }
                    member => text_of_member(member, encode),
                })
                .collect::<Result<_, _>>()?;
            Ok(texts.join(","))
        }
        Value::Object(_) | Value::Null => Err("is an object"),
    }
}

fn text_of_member(member: &Value, encode: Option<Encode>) -> Result<String, &'static str> {
    match member {
        Value::Array(_) => Err("is an array of arrays"),
        member => text(member, encode),
    }
}

/// Seals an allowed request: the verified user's headers in, everything that could contradict them
/// out.
///
/// # Errors
/// When a claim cannot stand in its header.
pub fn seal(
    allowed: Allowed,
    policy: &Policy,
    signer: Option<&AssertionSigner>,
) -> Result<(Sealed, Arc<Identity>, Option<Token>), Unsendable> {
    let trusted = TrustedHeaders::of(&policy.trusted_headers, &allowed.identity)?;
    let Allowed { mut admitted, identity, token, route } = allowed;
    let to = policy.upstream(&route);
    let read_by_us =
        route.websocket.dialect.is_some() || matches!(to.token_to_websocket, TokenToUpgrade::FirstMessage(_));
    let (takes_trailers, stripped) = strip(&mut admitted.parts.headers, policy, read_by_us, TokenHeaders::Removed);
    let headers = &mut admitted.parts.headers;
    for (name, value) in trusted.0 {
        headers.insert(name, value);
    }
    if let Some(token) = &token {
        pass_on(&mut admitted, token, to);
    }
    if let Some(signer) = signer {
        let assertion = signer.sign(identity.user_id(), &admitted.parts, to, route.upstream == 0);
        let (name, value) = assertion.ok_or(Unsendable::Unsigned)?;
        admitted.parts.headers.insert(name, value);
    }
    let headers = &mut admitted.parts.headers;
    if let Some(credential) = &to.credential {
        headers.insert(credential.header.clone(), credential.value.clone());
    }
    let upstream = route.upstream;
    let sealed = Sealed { request: rebuilt(admitted, to), verified: true, upstream, takes_trailers, stripped };
    Ok((sealed, identity, token))
}

/// Hands the token on where the configuration says that the backend checks it again.
fn pass_on(admitted: &mut Admitted, token: &Token, to: &UpstreamSpec) {
    let parts = &mut admitted.parts;
    let in_header = if parts.headers.contains_key(UPGRADE) {
        match &to.token_to_websocket {
            // What we say first once the upstream's 101 has come.
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

/// Seals a public request: every identity header out, none in.
#[must_use]
pub fn seal_public(public: PublicRequest, policy: &Policy) -> Sealed {
    let PublicRequest { mut admitted, route } = public;
    // Webhooks bring an Authorization of their own.
    let (takes_trailers, stripped) = strip(&mut admitted.parts.headers, policy, false, TokenHeaders::Kept);
    let to = policy.upstream(&route);
    let request = rebuilt(admitted, to);
    Sealed { request, verified: false, upstream: route.upstream, takes_trailers, stripped }
}

/// Seals a preflight: a request made by us, of the path without its query, `Origin`, what the page asks for, and
/// nothing else of the client's.
#[must_use]
pub fn seal_preflight(preflight: PreflightRequest, policy: &Policy) -> Sealed {
    let PreflightRequest { mut admitted, route, .. } = preflight;
    let parts = &mut admitted.parts;
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
    let request = rebuilt(admitted, to);
    Sealed { request, verified: false, upstream: route.upstream, takes_trailers: false, stripped: Vec::new() }
}

fn rebuilt(admitted: Admitted, to: &UpstreamSpec) -> Request<ClientBody> {
    let Admitted { mut parts, body, client, .. } = admitted;
    let host = parts.headers.get(HOST).cloned();
    forwarding::insert(&mut parts.headers, &client, host.as_ref());
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
    // Extensions hold the connection's own state, which ends here.
    parts.extensions.clear();
    if !body.is_end_stream() && !parts.headers.contains_key(CONTENT_LENGTH) {
        // Its framing went when it was admitted. hyper would send no body at all with GET and HEAD unless told so.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    Request::from_parts(parts, *body)
}

/// What becomes of `Authorization` and the other headers that may carry a token, in their own spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenHeaders {
    /// Nobody reads them here, so they are the upstream's.
    Kept,
    /// Whether or not one was the credential: what was not verified must not look as if it were.
    Removed,
}

/// Takes out what must not go up. Returns whether the client takes trailers, which the upstream is told anew, and
/// the identity headers that were there.
fn strip(
    headers: &mut HeaderMap,
    policy: &Policy,
    websocket_is_read: bool,
    token_headers: TokenHeaders,
) -> (bool, Vec<HeaderName>) {
    let websocket = lists(headers, &UPGRADE, "websocket");
    let takes_trailers = !websocket && lists(headers, &TE, "trailers");
    let stripped = strip_reserved(headers, policy, token_headers);
    // Whether or not it was the credential: our cookies are nobody else's.
    let _ = token::take_session_cookie(headers, "");
    strip_hop_by_hop(headers);
    headers.remove(EXPECT);
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if websocket_is_read {
            // Compressed messages cannot be read, and swallowing one breaks the rest.
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

/// Takes what an upstream says of our cookies out of its answer: it cannot set them.
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

/// RFC 9110 section 7.6.1: what `Connection` names (all its lines, any case), then the fixed ones.
/// Fields that decide about the message itself stay, whoever names them.
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
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove(hyper::header::PROXY_AUTHENTICATE);
    headers.remove(hyper::header::PROXY_AUTHORIZATION);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_text_or_a_refusal() {
        for (value, encode, expected) in [
            (json!("a"), None, Ok("a")),
            (json!(7), None, Ok("7")),
            (json!(true), None, Ok("true")),
            (json!(["a", 1, false]), None, Ok("a,1,false")),
            (json!([]), None, Ok("")),
            (json!(["a,b"]), None, Err(())),
            (json!(["a,b"]), Some(Encode::Percent), Ok("a%2Cb")),
            (json!("José"), Some(Encode::Percent), Ok("Jos%C3%A9")),
            (json!({"a": 1}), None, Err(())),
            (json!([["a"]]), None, Err(())),
            (json!([null]), None, Err(())),
        ] {
            let found = text(&value, encode);
            assert_eq!(found.as_deref().map_err(|_| ()), expected, "{value}");
        }
    }

    #[test]
    fn connection_takes_what_it_names_but_not_the_message_itself() {
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
            fn every_identity_header_is_ours_alone_or_not_there(fields in prop::collection::vec((name(), value()), 0..24)) {
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
                    prop_assert!(!ours.contains(&fold(name.as_str())), "{name} of the client's stays");
                }
                // What `seal` puts in afterwards is there once, whatever was named in `Connection`.
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
