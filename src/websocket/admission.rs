//! From a verified token to a session that may begin: allowed on this route, counted among its user's
//! sockets, sealed for the upstream. The same steps whether the token came on the upgrade or in a message.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use super::ending::Ending;
use super::judge::RefreshJudge;
use super::session::Standing;
use crate::auth::Token;
use crate::http::{AuthenticatedRequest, Refusal, Sealed, seal};
use crate::policy::{DialectSpec, Policy, Route, TokenToUpgrade};

/// What a session needs of its tokens once it is open.
#[derive(Clone, Default)]
pub(super) struct Needs {
    /// The upstream was introduced to the user in this dialect, and hears of refreshes in it.
    pub(super) introduced: Option<Arc<DialectSpec>>,
    /// The relay keeps the token: messages are compared with it, or carry it to the upstream.
    pub(super) token: bool,
    /// The upstream wants the token in a first message, ours or the client's own.
    pub(super) first_message: bool,
    /// How long the introduction may take.
    pub(super) within: Duration,
}

impl Needs {
    pub(super) fn of(route: &Route, policy: &Policy) -> Self {
        let spoken = route.websocket.dialect.as_ref();
        let compares = spoken.is_some_and(|dialect| dialect.field.is_some());
        let upstream = policy.upstream(route);
        let needs = Self { token: compares, within: upstream.handshake_timeout, ..Self::default() };
        match &upstream.token_to_websocket {
            // The client's own message goes on with its token; we say none of ours.
            TokenToUpgrade::FirstMessage(_) if spoken.is_some_and(|dialect| dialect.forwards()) => {
                Self { token: true, first_message: true, ..needs }
            }
            TokenToUpgrade::FirstMessage(dialect) => {
                Self { introduced: Some(Arc::clone(dialect)), first_message: true, ..needs }
            }
            _ => needs,
        }
    }

    /// Whether a token that is accepted later is needed.
    pub(super) fn hands_on(&self) -> bool {
        self.token || self.introduced.is_some()
    }
}

/// A user who may have a session here.
pub(super) struct Admission {
    /// The upgrade for the upstream.
    pub(super) sealed: Sealed,
    /// The token, where it is still needed.
    pub(super) token: Option<Token>,
    pub(super) judge: RefreshJudge,
    pub(super) standing: Standing,
    pub(super) user_id: String,
}

/// Takes the steps from a verified token to a sealed upgrade, and counts the socket among its user's.
///
/// # Errors
/// The refusal over HTTP, and the row of section 4.2.
pub(super) fn admit(
    context: &mut Context,
    authenticated: AuthenticatedRequest,
    needs: &Needs,
) -> Result<Admission, (Refusal, Ending)> {
    let (request, verified) = (authenticated.request(), authenticated.verified());
    let spec = &request.route().websocket;
    let presence = context.presence(spec, verified.identity());
    let path: Box<str> = request.head().uri.path().into();
    let user = verified.identity().user();
    let standing = Standing::of(verified, &context.shared, spec);
    let allowed = authenticated.allow().map_err(|refusal| (refusal, Ending::Denied))?;
    context.open = context.shared.users.open(&user, context.policy().limits.websockets_per_user);
    if context.open.is_none() {
        context.shared.metrics.limited("websockets_per_user");
        let refusal = Refusal::busy("this user has limits.websockets_per_user sockets open");
        return Err((refusal, Ending::TooManyConnections));
    }
    let (sealed, identity, token) = seal(allowed, context.policy(), context.runtime.signer.as_ref())
        .map_err(|unsendable| (Refusal::unsendable(&unsendable.to_string()), Ending::Denied))?;
    let keeps_token = needs.hands_on();
    let mut login = identity.browser_session().and_then(|session| context.runtime.verifier.open_login_socket(session));
    if let Some(login) = login.as_mut().filter(|_| needs.introduced.is_some()) {
        login.pass_tokens();
    }
    let judge = RefreshJudge {
        shared: Arc::clone(&context.shared),
        path,
        headers: Arc::clone(&context.policy().trusted_headers),
        generation: context.runtime.generation,
        presence,
        keeps_token,
        login: login.map(Box::new),
    };
    Ok(Admission {
        sealed,
        token: token.filter(|_| keeps_token),
        judge,
        standing,
        user_id: identity.user_id().to_owned(),
    })
}
