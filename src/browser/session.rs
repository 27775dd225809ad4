//! `/.vestibule/session`: POST with a Bearer token begins a session or renews it, DELETE ends it, so that a copy of its
//! cookie is dead too (docs/contract.md section 8).

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, SET_COOKIE};
use hyper::{Method, Response, StatusCode};
use serde_json::json;

use crate::auth::token::Extracted;
use crate::auth::{Carrier, Identity, OWN_SESSIONS, Target, allow, now};
use crate::http::{Answer, OwnRequest, Refusal, ResponseBody};
use crate::runtime::{Runtime, Shared};
use crate::telemetry::AccessLine;

/// Serves the endpoint.
///
/// # Errors
/// The refusal that is the answer.
pub async fn serve(
    shared: &Shared,
    runtime: &Runtime,
    mut own: OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    if runtime.verifier.sessions().is_none() {
        return Err(Refusal::not_found());
    }
    let method = own.head().method.clone();
    if !matches!(method, Method::POST | Method::DELETE) {
        return Err(Refusal::method_not_allowed(Some("POST, DELETE")));
    }
    own.may_change(&runtime.policy)?;
    let (cookie, name) = own.take_session(&runtime.policy);
    let former = match &cookie {
        Some(cookie) => runtime.verifier.verify_session(cookie).await.ok(),
        None => None,
    };
    let former = former.as_ref().map(|former| &**former.identity());
    let mut answer = if method == Method::DELETE {
        if let Some(former) = former {
            line.user = Some(former.user_id().to_owned());
            end(shared, runtime, former).await;
        }
        Response::new(ResponseBody::ours(""))
    } else {
        begin(shared, runtime, &mut own, former, name.as_deref(), line).await?
    };
    if method == Method::DELETE {
        *answer.status_mut() = StatusCode::NO_CONTENT;
        if let Some(gone) = name.as_deref().and_then(|name| cookie_line(name, "", 0)) {
            answer.headers_mut().insert(SET_COOKIE, gone);
        }
    }
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    line.outcome = "own";
    Ok(answer)
}

async fn begin(
    shared: &Shared,
    runtime: &Runtime,
    own: &mut OwnRequest,
    former: Option<&Identity>,
    name: Option<&str>,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let policy = &runtime.policy;
    let token = match own.extract(policy) {
        Ok(Extracted::Token(token, _)) => token,
        Ok(_) => return Err(Refusal::missing_token()),
        Err(bad) => return Err(Refusal::bad_credential(bad)),
    };
    line.carrier = Some(Carrier::Header.name());
    let judged = shared.verify(runtime, own.client().counted(), token, Carrier::Header, None).await;
    let verified = judged.map_err(|refused| refused.refusal(policy.verbose_errors))?;
    let identity = verified.identity();
    line.user = Some(identity.user_id().to_owned());
    // What one route asks is asked there; who may enter at all, here.
    allow::permits(&[], identity).map_err(|denied| Refusal::denied(&denied))?;
    if former.is_some_and(|former| former.user() != identity.user()) {
        return Err(Refusal::other_user());
    }
    let name = name.ok_or_else(Refusal::needs_https)?;
    shared.see(policy, identity);
    let now = now();
    let begun = runtime.verifier.sessions().and_then(|sessions| sessions.begin(identity, former, now));
    let begun = begun.ok_or_else(Refusal::session_too_large)?;
    let expires_in = begun.until.saturating_sub(now);
    let cookie = cookie_line(name, &begun.value, expires_in).ok_or_else(Refusal::session_too_large)?;
    let body = json!({"user_id": identity.user_id(), "expires_at": begun.until, "expires_in": expires_in});
    let mut answer = Response::new(ResponseBody::ours(body.to_string()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(SET_COOKIE, cookie);
    Ok(answer)
}

/// Revokes a session until the end of every cookie of it.
async fn end(shared: &Shared, runtime: &Runtime, identity: &Identity) {
    let Some((id, sessions)) = identity.own_session().zip(runtime.verifier.sessions()) else { return };
    let (now, limit) = (now(), runtime.policy.limits.revocations);
    let keep = sessions.remembered_ended(identity.expires_at(), now);
    match shared.revocations.revoke(OWN_SESSIONS, &Target::Session(id.to_owned()), now, keep, limit) {
        Ok(revocation) => {
            shared.bell.ring();
            let written = tokio::task::spawn_blocking(|| revocation.write_down()).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::error!(
                    "control.revocation_file could not be written; the session is ended until this process ends"
                );
            }
        }
        Err(full) => tracing::error!("a session could not be ended for its copies: {full}"),
    }
}

/// The cookie's line. Session cookies of `__Host-` names are for this host alone, by https alone.
fn cookie_line(name: &str, value: &str, max_age: u64) -> Option<HeaderValue> {
    let secure = if name.starts_with("__Host-") { "; Secure" } else { "" };
    let line = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}{secure}");
    let mut line = HeaderValue::try_from(line).ok()?;
    line.set_sensitive(true);
    Some(line)
}
