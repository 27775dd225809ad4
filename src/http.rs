//! The steps of a request from the listener to the upstream, as types: each step consumes the value that the step before
//! made, so that a skipped check does not compile.
//!
//! ```text
//! Request ─admit─► Admitted ─route─► ProtectedRequest ─authenticated─► AuthenticatedRequest ─allow─► Allowed
//!                                 │                                                                   │ prepare
//!                                 └───► PublicRequest ───────────── prepare_public ──────────► UpstreamRequest ─► Upstreams
//! ```
//!
//! This module owns admission, matching of rules, refusals and their JSON form, header rules, bodies, and the upstream
//! client. `proxy` decides which refusal is sent, and `browser` turns the refusal of a page navigation into a page.
//! `auth` decides what a token means.
//!
//! A request without a verified user cannot be allowed:
//!
//! ```compile_fail
//! fn forget_to_verify(request: vestibule::invariants::ProtectedRequest) {
//!     let allowed = request.allow();
//! }
//! ```
//!
//! (a request with a verified user can be decided:
//!
//! ```
//! fn decides(request: vestibule::invariants::AuthenticatedRequest) {
//!     let allowed = request.allow();
//! }
//! ```
//! )
//!
//! A request that was not allowed cannot be prepared for the upstream:
//!
//! ```compile_fail
//! fn forget_to_allow(request: vestibule::invariants::AuthenticatedRequest, policy: &vestibule::invariants::Policy) {
//!     let prepared = vestibule::invariants::prepare(request, policy, None);
//! }
//! ```
//!
//! (an allowed request can:
//!
//! ```
//! fn prepares(allowed: vestibule::invariants::Allowed, policy: &vestibule::invariants::Policy) {
//!     let prepared = vestibule::invariants::prepare(allowed, policy, None);
//! }
//! ```
//! )
//!
//! and a request that was not prepared cannot be sent:
//!
//! ```compile_fail
//! async fn forget_to_prepare(upstream: &vestibule::invariants::Upstreams, request: hyper::Request<hyper::body::Incoming>) {
//!     upstream.send(request).await.ok();
//! }
//! ```
//! (a prepared request can:
//!
//! ```
//! async fn sends(upstream: &vestibule::invariants::Upstreams, prepared: vestibule::invariants::UpstreamRequest) {
//!     upstream.send(prepared).await.ok();
//! }
//! ```
//! )

mod accept_key;
mod admit;
mod admitted;
mod assertion;
mod body;
mod cors;
mod dial;
mod forwarding;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod headers;
mod lingering;
mod list_field;
mod name_lookup;
mod pool;
mod provenance;
mod refusal;
mod request;
mod request_phase;
mod response_body;
mod route;
mod served;
mod socket;
mod stream;
mod timer;
mod trusted_headers;
mod unread;
mod upstream;
mod upstream_error;

pub use accept_key::accept_key;
pub use admit::admit;
pub use admitted::{Admitted, RequestMessage};
pub use assertion::AssertionSigner;
pub use body::{BodyEnd, ClientBody};
pub use cors::{add_cors_headers, answer_preflight, replace_cors_headers, unlisted_origin};
pub use dial::tls_client;
pub use forwarding::{AddressSharing, ClientAddress, Connection, network};
pub(crate) use headers::strip_hop_by_hop;
pub use headers::{UpstreamRequest, prepare, prepare_preflight, prepare_public, strip_own_set_cookie};
pub use lingering::LingerLimit;
pub use list_field::accepts;
pub use refusal::{ChallengeSource, Refusal, render_refusal};
pub use request::{
    Allowed, AuthenticatedRequest, OwnRequest, PreflightRequest, ProtectedRequest, PublicRequest,
    check_sender_of_balancer_token,
};
pub use request_phase::{RequestNumber, RequestPhase};
pub use response_body::{AbortSignal, Answer, BodyEnded, BodyOutcome, ResponseBody};
pub use route::{RoutedRequest, route_request};
pub use served::Served;
pub use socket::{Socket, set_tcp_options};
pub use stream::{ClientStream, TimedStream};
pub use trusted_headers::TrustedHeaders;
pub use unread::{DiscardLimits, UnreadBody};
pub use upstream::{UpstreamHealth, UpstreamSocket, Upstreams};
pub use upstream_error::UpstreamError;
