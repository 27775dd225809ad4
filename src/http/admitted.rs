//! A request that was checked and can be routed.

use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request};

use super::{ClientAddress, ClientBody};

/// The head and body of a request. It is in a box from [`admit`](super::admit()) until it is sent: every step between
/// would copy its 240 bytes, and the future of each would have room for them.
#[derive(Debug)]
pub(super) struct RequestMessage {
    pub(super) parts: Parts,
    pub(super) body: ClientBody,
}

impl From<Request<ClientBody>> for Box<RequestMessage> {
    fn from(request: Request<ClientBody>) -> Self {
        let (parts, body) = request.into_parts();
        Self::new(RequestMessage { parts, body })
    }
}

impl From<Box<RequestMessage>> for Request<ClientBody> {
    fn from(message: Box<RequestMessage>) -> Self {
        let RequestMessage { parts, body } = *message;
        Self::from_parts(parts, body)
    }
}

/// A request with one valid Host, unambiguous framing and a path without broken escapes. Only [`admit`](super::admit())
/// creates it, in a box, because it is moved through every step.
#[derive(Debug)]
pub struct Admitted {
    pub(super) message: Box<RequestMessage>,
    pub(super) client: ClientAddress,
    /// The client's side of a valid WebSocket upgrade (RFC 6455 section 4.2.1). It resolves when the 101 was written.
    pub(super) upgrade: Option<OnUpgrade>,
    /// The method that a preflight announces; `None` for any other request.
    pub(super) announced: Option<Method>,
}
