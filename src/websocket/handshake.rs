//! The opening handshake (RFC 6455 section 4): the proxy's 101, its subprotocol, the `Origin` check, and the client's
//! socket after it.

use hyper::header::{CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::http::{ClientStream, Refusal, ResponseBody, Socket, accept_key};
use crate::policy::WebSocketSpec;

/// Makes a 101 of the proxy (RFC 6455 section 4.2.2) for the client's `Sec-WebSocket-Key`, without extensions.
#[must_use]
pub(super) fn switching_protocols(
    key: Option<&HeaderValue>,
    subprotocol: Option<&HeaderValue>,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from_proxy(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = key.map(accept_key);
    if let Some(accept) = accept.and_then(|accept| HeaderValue::try_from(accept).ok()) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(subprotocol) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol.clone());
    }
    response
}

/// Returns the subprotocols that the client offers, in its order.
fn offers(request: &HeaderMap) -> impl Iterator<Item = &str> {
    request
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|offer| !offer.is_empty())
}

/// Selects the first offer that the route names, for a 101 that is sent before the upstream is connected.
#[must_use]
pub(super) fn select_subprotocol(request: &HeaderMap, route: &WebSocketSpec) -> Option<HeaderValue> {
    let offer = offers(request).find(|offer| route.subprotocols.iter().any(|name| name == offer))?;
    HeaderValue::try_from(offer).ok()
}

/// Returns the first subprotocol that the client offers, for a 101 that is followed by a refusing Close. Without a
/// subprotocol Chromium reports 1006 to the page instead of the close code.
#[must_use]
pub(super) fn first_offered_subprotocol(request: &HeaderMap) -> Option<HeaderValue> {
    offers(request).next().and_then(|offer| HeaderValue::try_from(offer).ok())
}

/// Returns whether the client offers any subprotocol.
#[must_use]
pub(super) fn offers_subprotocols(request: &HeaderMap) -> bool {
    offers(request).next().is_some()
}

/// Checks the `Origin` of an upgrade, where it sends one and the route has `allowed_origins`.
///
/// # Errors
/// Returns the refusal of an origin that is not allowed.
pub(super) fn check_origin(request: &HeaderMap, route: &WebSocketSpec) -> Result<(), Refusal> {
    let Some(allowed) = &route.allowed_origins else { return Ok(()) };
    for origin in request.get_all(ORIGIN) {
        let origin = origin.to_str().unwrap_or("not ASCII");
        if !allowed.iter().any(|pattern| pattern.matches(origin)) {
            return Err(Refusal::foreign_origin(origin));
        }
    }
    Ok(())
}

/// Returns whether the upstream accepted the one subprotocol that it was offered.
pub(super) fn is_accepted(subprotocol: Option<&HeaderValue>, upstream_head: &HeaderMap) -> bool {
    upstream_head.get(SEC_WEBSOCKET_PROTOCOL) == subprotocol
}

/// Awaits the end of the upgrade. Returns the client's socket without hyper's layers, and the bytes that the client has
/// sent after its request; `None` if the client disconnected before its 101 was written.
pub(super) async fn client_socket(upgrade: OnUpgrade) -> Option<(Socket, Vec<u8>)> {
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<ClientStream>>().ok()?;
    // Copied, since even an empty slice keeps the whole of hyper's read buffer alive.
    let early = parts.read_buf.to_vec();
    Some((parts.io.into_inner().into_socket(), early))
}
