//! The control listener: revokes users, sessions and tokens, and starts the drain.
//!
//! This module owns the authorization of callers (the mode of a Unix socket, or a token on loopback), the two endpoints
//! and their responses. `auth` records revocations, and the notifier's subscribers end what is revoked.

use std::io;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::auth::{self, RevocationTarget, unix_seconds};
use crate::json;
use crate::policy::{ControlAddress, ControlSpec, Policy};
use crate::runtime::{NotSaved, ProxyState};
use crate::small_server::{FullResponse, Listener, text_response};
use crate::telemetry::{Audit, AuditEvent};

/// Upper bound on a request body: an issuer and an id.
const MAX_BODY_BYTES: usize = 16 << 10;

/// The reason why the control listener could not be started.
#[derive(Debug, thiserror::Error)]
#[error("control.listen: {address}: {source}")]
pub struct ControlError {
    address: String,
    source: io::Error,
}

/// A control listener that is bound and does not accept yet.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
}

impl Control {
    /// Binds the address of the policy.
    ///
    /// # Errors
    /// Returns an error when the address cannot be bound.
    pub fn bind(spec: &ControlSpec) -> Result<Self, ControlError> {
        let (address, bound) = match &spec.address {
            ControlAddress::Unix(path) => (format!("unix:{}", path.display()), Listener::unix(path, 0o600)),
            ControlAddress::Tcp(address) => (address.to_string(), Listener::tcp(*address)),
        };
        let listener = bound.map_err(|source| ControlError { address, source })?;
        Ok(Self { listener })
    }

    /// Serves requests until the handle is dropped.
    pub fn serve(self, state: &Arc<ProxyState>) -> AbortOnDropHandle<()> {
        let handler = ControlHandler { state: Arc::clone(state) };
        self.listener.serve(move |request| {
            let handler = handler.clone();
            async move { handler.handle(request).await }
        })
    }
}

#[derive(Clone)]
struct ControlHandler {
    state: Arc<ProxyState>,
}

impl ControlHandler {
    async fn handle(&self, request: Request<Incoming>) -> FullResponse {
        if !self.is_authorized(&request) {
            let mut answer =
                text_response(StatusCode::UNAUTHORIZED, "the token is missing or is not that of control.token_file\n");
            let challenge = HeaderValue::from_static("Bearer realm=\"vestibule control\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            return answer;
        }
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        match (path.as_str(), method) {
            ("/revoke", Method::POST) => match Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await {
                Ok(body) => self.revoke(body.to_bytes()).await,
                Err(_) => text_response(StatusCode::BAD_REQUEST, "the body is too long or incomplete\n"),
            },
            ("/drain", Method::POST) => {
                tracing::info!("drain requested on the control listener");
                self.state.drain.request();
                text_response(StatusCode::ACCEPTED, "draining\n")
            }
            ("/revoke" | "/drain", _) => {
                let mut answer = text_response(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                answer
            }
            _ => text_response(StatusCode::NOT_FOUND, "POST /revoke or POST /drain\n"),
        }
    }

    fn is_authorized(&self, request: &Request<Incoming>) -> bool {
        // The current policy decides, because a reload may have changed the token.
        let runtime = self.state.current();
        let Some(control) = &runtime.policy.control else { return false };
        let Some(token) = &control.token else { return true };
        let mut presented = request.headers().get_all(AUTHORIZATION).iter();
        let (Some(presented), None) = (presented.next(), presented.next()) else { return false };
        let value = presented.as_bytes();
        let (scheme, rest) = value.split_at(value.len().min(b"Bearer ".len()));
        scheme.eq_ignore_ascii_case(b"Bearer ") && verify_slices_are_equal(rest, token.expose()).is_ok()
    }

    async fn revoke(&self, body: Bytes) -> FullResponse {
        let runtime = self.state.current();
        let policy = &runtime.policy;
        let (issuer, target) = match parse_revocation(&body, policy) {
            Ok(read) => read,
            Err(problem) => return text_response(StatusCode::BAD_REQUEST, format!("{problem}; nothing was revoked\n")),
        };
        let Some(keep) = policy.control.as_ref().map(|control| control.revocation_keep) else {
            return text_response(StatusCode::NOT_FOUND, "control is switched off\n");
        };
        let (keep, limit) = (keep.max(runtime.least_revocation_keep), policy.limits.revocations);
        let revocation = match self.state.revocations.revoke(&issuer, &target, unix_seconds(), keep, limit) {
            Ok(revocation) => revocation,
            Err(full) => {
                tracing::error!(error = %full, "revocation refused");
                return text_response(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "limits.revocations is reached; nothing was revoked\n",
                );
            }
        };
        tracing::info!(issuer = %issuer, subject = %target, "revoked");
        audit(policy, &issuer, &target);
        if let Err(error) = self.state.enforce_and_save(vec![revocation]).await {
            error.log();
            return match error {
                NotSaved::File(_) => text_response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "in force until this process ends; control.revocation_file could not be written\n",
                ),
                NotSaved::NotShared => text_response(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "in force at this instance and queued for the others; the shared state could not be written. Repeat it\n",
                ),
            };
        }
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        answer
    }
}

/// Writes the audit event of a revocation.
fn audit(policy: &Policy, issuer: &str, target: &RevocationTarget) {
    let provider = policy.providers.iter().find(|provider| auth::issuer_or_name(provider) == issuer);
    let digest = target.id_digest();
    let mut audit = Audit { provider: provider.map(|provider| provider.name.as_str()), ..Audit::default() };
    match target {
        RevocationTarget::User(id) => audit.user = Some(id),
        RevocationTarget::Session(_) => audit.provider_session = digest.as_deref(),
        RevocationTarget::Token(_) => audit.token = digest.as_deref(),
        RevocationTarget::Subject(_) => {}
    }
    audit.log(AuditEvent::Revocation);
}

/// Parses the body of `POST /revoke`: `issuer` and one of `sub`, `sid` and `jti`, without other members.
fn parse_revocation(body: &[u8], policy: &Policy) -> Result<(String, RevocationTarget), String> {
    const FORM: &str = r#"write {"issuer": "…", "sub": "…"}, or sid or jti instead of sub"#;
    let object = json::object(body).map_err(|_| format!("not a JSON object with each member once; {FORM}"))?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut issuer = None;
    let mut target = None;
    for (name, value) in &object {
        let value = || text(value).ok_or_else(|| format!("{name} is empty or not a text; {FORM}"));
        let read = match name.as_str() {
            "issuer" => {
                issuer = Some(value()?);
                continue;
            }
            "sub" => RevocationTarget::User(value()?),
            "sid" => RevocationTarget::Session(value()?),
            "jti" => RevocationTarget::Token(value()?),
            _ => return Err(format!("{name:?} is none of issuer, sub, sid and jti; remove it, and {FORM}")),
        };
        if target.replace(read).is_some() {
            return Err(format!("more than one of sub, sid and jti; {FORM}"));
        }
    }
    let (Some(issuer), Some(target)) = (issuer, target) else { return Err(FORM.to_owned()) };
    if !policy.providers.iter().any(|provider| auth::issuer_or_name(provider) == issuer) {
        let known: Vec<&str> = policy.providers.iter().map(|provider| auth::issuer_or_name(provider)).collect();
        return Err(format!("{issuer:?} is no configured issuer; there is {}", known.join(", ")));
    }
    Ok((issuer, target))
}
