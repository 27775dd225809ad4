//! `POST /.vestibule/backchannel-logout`: a provider reports that a session of one of its users has ended (OpenID
//! Connect Back-Channel Logout 1.0).

use std::sync::Arc;

use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::{Method, Response, StatusCode};

use super::super::sign_out::save;
use super::parameters;
use crate::auth::login::{Logins, ProviderLogout};
use crate::auth::{RevocationTarget, unix_seconds};
use crate::http::{Answer, ClientAddress, OwnRequest, Refusal, ResponseBody};
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{Audit, AuditEvent, LogoutOutcome};

/// The maximum length of the form in bytes: a logout token has the size limit of any token, and the form adds little.
const FORM_BYTES: usize = 32 << 10;

/// Serves the endpoint.
///
/// # Errors
/// Returns 405 for another method, 503 when the token cannot be verified now or the logout cannot be recorded.
pub(super) async fn serve(
    state: &Arc<ProxyState>,
    runtime: &Arc<Runtime>,
    logins: &Logins,
    own: &mut OwnRequest,
) -> Result<Answer, Refusal> {
    if own.head().method != Method::POST {
        return Err(Refusal::method_not_allowed(Some("POST")));
    }
    let body = own.body(FORM_BYTES).await?;
    let form = std::str::from_utf8(&body).ok();
    let Some([Some(token)]) = parameters(form, ["logout_token"]) else {
        return Ok(answer(StatusCode::BAD_REQUEST, "{\"error\":\"invalid_request\"}"));
    };
    let logout = match logins.verify_logout_token(&token).await {
        Ok(logout) => logout,
        Err(rejection) if rejection.is_unavailable() => {
            return Err(Refusal::rejected(&rejection, false));
        }
        Err(rejection) => {
            for login in logins.iter().filter(|login| login.is_named_by(&token)) {
                state.metrics.logins.signed_out(&login.spec.name, LogoutOutcome::Refused);
            }
            tracing::warn!(reason = %rejection, "logout token refused");
            return Ok(answer(StatusCode::BAD_REQUEST, "{\"error\":\"invalid_request\"}"));
        }
    };
    if let Err(refusal) = revoke(state, runtime, &logout).await {
        // The provider may not repeat it, and its sessions have ended here.
        if refusal.is_in_force {
            audit(&logout, own.client());
        }
        return Err(refusal);
    }
    logins.use_logout_token(&logout);
    state.metrics.logins.signed_out(&logout.provider, LogoutOutcome::Backchannel);
    audit(&logout, own.client());
    Ok(answer(StatusCode::OK, ""))
}

async fn revoke(state: &Arc<ProxyState>, runtime: &Arc<Runtime>, logout: &ProviderLogout) -> Result<(), Refusal> {
    let limit = runtime.policy.limits.revocations;
    let by_policies = runtime.policy.bearer_revocation_keep(&logout.issuer).max(runtime.least_revocation_keep);
    let keep = logout.keep.max(by_policies);
    let mut revocations = Vec::new();
    let mut limit_reached = None;
    let (all, now) = (&state.revocations, unix_seconds());
    for target in &logout.targets {
        let revoked = match target {
            // The provider has ended this session. What it says to have begun in it before now has ended too, whichever of
            // the provider's clocks it is dated by.
            RevocationTarget::Session(_) => all.revoke(&logout.issuer, target, now, keep, limit),
            _ => all.revoke_until(&logout.issuer, target, logout.issued_at, now, keep, limit),
        };
        match revoked {
            Ok(revocation) => revocations.push(revocation),
            Err(full) => {
                tracing::error!(reason = %full, "a provider's logout could not be recorded");
                limit_reached = Some(full);
            }
        }
    }
    // Where only one of two targets was revoked, that one is in force, so open sockets must end and the file must have it.
    let saved = save(state, revocations).await;
    limit_reached.map_or(saved, |full| Err(Refusal::not_signed_out(&full.to_string())))
}

fn audit(logout: &ProviderLogout, client: &ClientAddress) {
    let (mut user, mut session) = (None, None);
    for target in &logout.targets {
        match target {
            RevocationTarget::User(id) => user = Some(id.as_str()),
            RevocationTarget::Session(_) => session = target.id_digest(),
            RevocationTarget::Subject(_) | RevocationTarget::Token(_) => {}
        }
    }
    let address = client.address.to_string();
    Audit {
        user,
        provider: Some(&logout.provider),
        provider_session: session.as_deref(),
        client: Some(&address),
        ..Audit::default()
    }
    .log(AuditEvent::BackchannelLogout);
}

fn answer(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(ResponseBody::from_proxy(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
