//! Ends a browser session, and writes the cookie lines that begin and end one.

use hyper::header::HeaderValue;

use crate::auth::{BrowserSession, SignOutLimits, unix_millis, unix_seconds};
use crate::http::Refusal;
use crate::runtime::{Runtime, Shared};

/// Ends a session until the end of every cookie of it, whatever provider and policy think of it now: they may think
/// otherwise later.
pub(super) async fn end(shared: &Shared, runtime: &Runtime, session: &BrowserSession) -> Result<(), Refusal> {
    let Some(sessions) = runtime.verifier.session_cookies() else { return Ok(()) };
    let limits = &runtime.policy.limits;
    let limits = SignOutLimits { all: limits.sign_outs, per_user: limits.sign_outs_per_user };
    let mut revocation = None;
    // Again where it was renewed meanwhile.
    while let Some(until) = sessions.keep_ended_until(session, unix_seconds()) {
        let kept = shared.revocations.end_session(session, unix_millis(), until, limits);
        revocation = Some(kept.map_err(|full| {
            shared.metrics.limited(full.limit());
            tracing::error!(error = %full, "ending a session failed");
            Refusal::not_signed_out(&full.to_string())
        })?);
        if sessions
            .keep_ended_until(session, unix_seconds())
            .is_none_or(|again| again <= until.saturating_add(A_MOMENT))
        {
            break;
        }
    }
    let Some(revocation) = revocation else { return Ok(()) };
    shared.enforce_and_save(vec![revocation]).await.map_err(|error| {
        tracing::error!(
            error,
            "control.revocation_file could not be written; a session is ended until this process ends"
        );
        Refusal::not_signed_out("control.revocation_file could not be written")
    })
}

/// While it was being ended time went on; a renewal meanwhile makes it longer than that.
const A_MOMENT: u64 = 10;

/// The cookie's line. Session cookies of `__Host-` names are for this host alone, by https alone.
pub(super) fn cookie_line(name: &str, value: &str, max_age: u64) -> Option<HeaderValue> {
    let secure = if name.starts_with("__Host-") { "; Secure" } else { "" };
    let line = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}{secure}");
    let mut line = HeaderValue::try_from(line).ok()?;
    line.set_sensitive(true);
    Some(line)
}
