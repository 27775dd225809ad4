//! A request that was checked and can be routed.

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request};

use super::{ClientAddress, ClientBody, UnreadBody};
use crate::policy::Limits;

/// The head and body of a request. It is in a box from when hyper has read the head until it is sent: every step between
/// would copy its 240 bytes, and the future of each would have room for them.
#[derive(Debug)]
pub struct RequestMessage {
    pub(super) parts: Parts,
    pub(super) body: ClientBody,
}

impl RequestMessage {
    /// Wraps a request of a client; `unread` tracks its body.
    #[must_use]
    pub fn boxed(request: Request<Incoming>, limits: &Limits, unread: Option<UnreadBody>) -> Box<Self> {
        let (parts, incoming) = request.into_parts();
        let body = ClientBody::new(incoming, limits.body_bytes, limits.body_idle_timeout, unread);
        Box::new(Self { parts, body })
    }

    /// Returns the head.
    #[must_use]
    pub fn head(&self) -> &Parts {
        &self.parts
    }

    /// Takes the client's side of an upgrade.
    pub(super) fn take_upgrade(&mut self) -> OnUpgrade {
        // hyper keeps it among the extensions, and takes it from a request only.
        let mut request = Request::new(());
        std::mem::swap(request.extensions_mut(), &mut self.parts.extensions);
        let upgrade = hyper::upgrade::on(&mut request);
        std::mem::swap(request.extensions_mut(), &mut self.parts.extensions);
        upgrade
    }
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
