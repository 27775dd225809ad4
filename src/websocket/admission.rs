//! The steps from a verified token to a session that may begin: allowed on the route, counted among the user's sockets,
//! prepared for the upstream. They are the same whether the token came on the upgrade or in a message.

use std::sync::Arc;

use super::authorizer::UserAuthorizer;
use super::close_reason::CloseReason;
use super::context::SocketContext;
use super::session::Credential;
use super::token_forwarding::TokenForwarding;
use crate::auth::Token;
use crate::http::{AuthenticatedRequest, Refusal, UpstreamRequest, prepare};
use crate::runtime::Network;

/// A verified user who is allowed on the route, with everything that the session needs.
pub(super) struct AdmittedSession {
    /// The upgrade request for the upstream.
    pub(super) upstream_request: UpstreamRequest,
    /// The token, where it is needed later.
    pub(super) token: Option<Token>,
    pub(super) authorizer: UserAuthorizer,
    pub(super) credential: Credential,
    pub(super) user_id: String,
}

/// Admits the user of a verified token.
///
/// Returns the refusal over HTTP, and the close reason of docs/contract.md section 4.2.
pub(super) fn admit_user(
    context: &mut SocketContext,
    authenticated: AuthenticatedRequest,
    forwarding: &TokenForwarding,
) -> Result<AdmittedSession, (Refusal, CloseReason)> {
    let (request, verified) = (authenticated.request(), authenticated.verified());
    let spec = &request.route().websocket;
    let presence = context.presence(spec, verified.identity());
    let path: Box<str> = request.head().uri.path().into();
    let limited_address = request.client().limited_address().map(Network::from);
    let identity = Arc::clone(verified.identity());
    let credential = Credential::of(verified, &context.state, spec);
    let allowed = authenticated.allow().map_err(|refusal| (refusal, CloseReason::Denied))?;
    let limit = context.policy().limits.websockets_per_user;
    context.user_socket = context.state.users.open_socket(&identity, limit);
    if context.user_socket.is_none() {
        context.state.metrics.limited("websockets_per_user");
        let refusal = Refusal::busy("this user has limits.websockets_per_user sockets open");
        return Err((refusal, CloseReason::TooManyConnections));
    }
    let (upstream_request, identity, token) = prepare(allowed, context.policy(), context.runtime.signer.as_ref())
        .map_err(|error| (Refusal::unusable_identity(&error.to_string()), CloseReason::Denied))?;
    let keeps_token = forwarding.needs_later_tokens();
    let mut login = identity.browser_session().and_then(|session| context.runtime.verifier.open_login_socket(session));
    if let Some(login) = login.as_mut().filter(|_| forwarding.upstream_dialect.is_some()) {
        login.pass_tokens();
    }
    let authorizer = UserAuthorizer {
        state: Arc::clone(&context.state),
        path,
        headers: Arc::clone(&context.policy().trusted_headers),
        generation: context.runtime.generation,
        limited_address,
        presence,
        keeps_token,
        login: login.map(Box::new),
    };
    Ok(AdmittedSession {
        upstream_request,
        token: token.filter(|_| keeps_token),
        authorizer,
        credential,
        user_id: identity.user_id().to_owned(),
    })
}
