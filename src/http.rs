//! A request's way from the listener to the upstream, as types: each step takes what the step
//! before made, so a skipped check does not compile.
//!
//! ```text
//! Request ─admit─► Admitted ─rule─► Protected ─(authenticate)─► AuthenticatedRequest
//!                                 │                               │ allow
//!                                 └► Public ─seal_public─┐    Allowed ─seal─► Sealed ─► Upstream
//! ```
//!
//! Owns admission, rules applied to requests, refusals as values, header rules, bodies and the
//! upstream client. What a token means is `auth`'s.
//!
//! Nobody is allowed anything without a verified user:
//!
//! ```compile_fail
//! fn forget_to_verify(request: vestibule::http::ProtectedRequest) {
//!     let allowed = request.allow();
//! }
//! ```
//!
//! (with one it is decided:
//!
//! ```
//! fn decides(request: vestibule::http::AuthenticatedRequest) {
//!     let allowed = request.allow();
//! }
//! ```
//! )
//!
//! A request that was not allowed cannot be sealed:
//!
//! ```compile_fail
//! fn forget_to_allow(request: vestibule::http::AuthenticatedRequest, policy: &vestibule::policy::Policy) {
//!     let sealed = vestibule::http::seal(request, policy, None);
//! }
//! ```
//!
//! (what was allowed can:
//!
//! ```
//! fn seals(allowed: vestibule::http::Allowed, policy: &vestibule::policy::Policy) {
//!     let sealed = vestibule::http::seal(allowed, policy, None);
//! }
//! ```
//! )
//!
//! and what is not sealed cannot be sent:
//!
//! ```compile_fail
//! async fn forget_to_seal(upstream: &vestibule::http::Upstreams, request: hyper::Request<hyper::body::Incoming>) {
//!     upstream.send(request).await.ok();
//! }
//! ```
//! (what is sealed can:
//!
//! ```
//! async fn sends(upstream: &vestibule::http::Upstreams, sealed: vestibule::http::Sealed) {
//!     upstream.send(sealed).await.ok();
//! }
//! ```
//! )

mod admit;
mod assertion;
mod body;
mod cors;
mod dial;
mod forwarding;
mod headers;
mod lingering;
mod provenance;
mod refusal;
mod request;
mod rule;
mod socket;
mod stream;
mod unread;
mod upstream;

pub use admit::admit;
pub use assertion::AssertionSigner;
pub use body::{AbortSignal, BodyEnd, BodyOutcome, ClientBody, ResponseBody, ResponseBodyError};
pub use cors::{add_cors_headers, answer_preflight, replace_cors_headers, unlisted_origin};
pub use forwarding::{AddressSharing, ClientAddress, Connection};
pub(crate) use headers::strip_hop_by_hop;
pub use headers::{Sealed, TrustedHeaders, Unsendable, seal, seal_preflight, seal_public, strip_own_set_cookie};
pub use lingering::{LingerLimit, LingerPermit};
pub use refusal::{Challenge, Refusal, refusal_bytes, render_refusal};
pub use request::{
    Admitted, Allowed, AuthenticatedRequest, OwnRequest, PreflightRequest, ProtectedRequest, PublicRequest,
};
pub use rule::{Ruled, rule};
pub use socket::{Socket, set_tcp_options};
pub use stream::{ClientLimits, ClientStream, RequestPhase, TimedStream};
pub use unread::{DiscardLimits, UnreadBody};
pub use upstream::{Answer, Upgraded, UpstreamError, Upstreams};
