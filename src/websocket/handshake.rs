//! The upgrade as bytes: our own 101, which subprotocol it names, and who may open one from where.

use hyper::header::{
    CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{HeaderMap, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::http::{Refusal, ResponseBody};
use crate::policy::WebSocketSpec;

/// A 101 of our own (RFC 6455 section 4.2.2), without extensions.
#[must_use]
pub(super) fn switching(request: &HeaderMap, subprotocol: Option<&HeaderValue>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::own(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = request.get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    if let Some(accept) = accept.and_then(|accept| HeaderValue::try_from(accept).ok()) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(subprotocol) = subprotocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol.clone());
    }
    response
}

/// The subprotocols a client offers, in its order.
fn offers(request: &HeaderMap) -> impl Iterator<Item = &str> {
    request
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|offer| !offer.is_empty())
}

/// The first offer that the route names, for a 101 that is given before the upstream was asked.
#[must_use]
pub(super) fn chosen(request: &HeaderMap, route: &WebSocketSpec) -> Option<HeaderValue> {
    let offer = offers(request).find(|offer| route.subprotocols.iter().any(|name| name == offer))?;
    HeaderValue::try_from(offer).ok()
}

/// The first offer, for a 101 that only refuses: without it Chromium shows the page 1006.
#[must_use]
pub(super) fn first_offer(request: &HeaderMap) -> Option<HeaderValue> {
    offers(request).next().and_then(|offer| HeaderValue::try_from(offer).ok())
}

/// Whether any subprotocol was offered.
#[must_use]
pub(super) fn offers_any(request: &HeaderMap) -> bool {
    offers(request).next().is_some()
}

/// Where `allowed_origins` is written, every upgrade that sends an `Origin` is checked.
///
/// # Errors
/// The refusal, before anything else is decided.
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
