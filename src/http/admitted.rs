//! A request that was checked and can be routed.

use hyper::Method;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;

use super::{ClientAddress, ClientBody};

/// A request with one valid Host, unambiguous framing and a path without broken escapes. Only [`admit`](super::admit())
/// creates it, in a box, because it is moved through every step.
#[derive(Debug)]
pub struct Admitted {
    pub(super) parts: Parts,
    pub(super) body: ClientBody,
    pub(super) client: ClientAddress,
    /// The client's side of a valid WebSocket upgrade (RFC 6455 section 4.2.1). It resolves when the 101 was written.
    pub(super) upgrade: Option<OnUpgrade>,
    /// The method that a preflight announces; `None` for any other request.
    pub(super) announced: Option<Method>,
}
