//! Logout tokens (OpenID Connect Back-Channel Logout 1.0), by which a provider reports that a user's session has ended.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};

use super::{Login, Logins};
use crate::auth::provider_state::{Lookup, verify_signature};
use crate::auth::revocation::RevocationTarget;
use crate::auth::{Rejection, claims, jwt, unix_millis, unix_seconds};
use crate::policy::{CLOCK_ALLOWANCE, Claim};

/// The member of `events` that identifies a logout token.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// The maximum age of a logout token, by its `iat`.
const OLDEST: Duration = Duration::from_secs(300);

/// The sessions that a logout token ends.
#[derive(Debug)]
pub struct ProviderLogout {
    /// The name of the provider.
    pub provider: String,
    /// The issuer.
    pub issuer: String,
    /// The targets of the revocation; at least one.
    pub targets: Vec<RevocationTarget>,
    /// The time for which the revocation must be kept at least: until every login session that it concerns has ended.
    pub keep: Duration,
    /// The token's `iat`, Unix seconds: sessions of the user that began since have not ended.
    pub issued_at: u64,
    id: [u8; 16],
}

impl Logins {
    /// Verifies a logout token.
    ///
    /// # Errors
    /// Returns the reason why the token is refused, or that keys are not available now.
    pub async fn verify_logout_token(&self, token: &str) -> Result<ProviderLogout, Rejection> {
        let parsed = jwt::parse_logout(token)?;
        let login = self.iter().find(|login| login.check_issuer(&parsed.claims).is_ok());
        let login = login.ok_or_else(|| {
            let issuer = parsed.claims.get("iss").and_then(Value::as_str).unwrap_or_default();
            Rejection::UnknownIssuer(issuer.chars().take(256).collect())
        })?;
        login.check_header(&parsed)?;
        verify_signature(&login.provider, &parsed, Lookup::MayFetch, &mut ()).await?;
        // If ID tokens have no `sid`, only the subject identifies the session.
        let says_sid = login.metadata().await.is_ok_and(|metadata| metadata.logout_names_session);
        let found = login.logout_of(&parsed.claims, says_sid, unix_seconds())?;
        if self.logout_tokens.is_used(&found.id) {
            return Err(Rejection::Claim { claim: "jti".to_owned(), problem: "was used before" });
        }
        Ok(found)
    }

    /// Records a logout token whose sessions have ended, so that it cannot be used again.
    pub fn use_logout_token(&self, logout: &ProviderLogout) {
        let _ = self.logout_tokens.mark(logout.id, unix_millis(), self.limits.attempts);
    }
}

impl Login {
    fn logout_of(&self, claims: &Map<String, Value>, says_sid: bool, now: u64) -> Result<ProviderLogout, Rejection> {
        let spec = &self.spec.provider_spec;
        let wrong = |claim: &str, problem: &'static str| Rejection::Claim { claim: claim.to_owned(), problem };
        claims::check_times(spec, claims, now, &mut ())?;
        claims::required_exp(claims)?;
        crate::auth::kind::check_audience(spec, claims)?;
        let issued_at = claims::numeric_date(claims, "iat", f64::floor)?.ok_or_else(|| wrong("iat", "is missing"))?;
        if issued_at.saturating_add(OLDEST.as_secs()).saturating_add(spec.clock_skew.as_secs()) < now {
            return Err(wrong("iat", "is longer ago than five minutes"));
        }
        match claims.get("events") {
            Some(Value::Object(events)) if events.get(EVENT).is_some_and(Value::is_object) => {}
            _ => return Err(wrong("events", "does not say that a session has ended")),
        }
        if claims.contains_key("nonce") {
            return Err(wrong("nonce", "is there, so it is an ID token"));
        }
        let text = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(wrong(name, "is empty or not a string")),
        };
        let id = text("jti")?.ok_or_else(|| wrong("jti", "is missing"))?;
        let (session, subject) = (text("sid")?, text("sub")?);
        let by_subject = |subject: String| match &spec.user_id {
            Claim::Name(name) if name == "sub" => {
                RevocationTarget::User(format!("{}{subject}", spec.user_prefix.as_deref().unwrap_or_default()))
            }
            _ => RevocationTarget::Subject(subject),
        };
        let targets = match (session, subject) {
            (Some(session), subject) => {
                let subject = subject.filter(|_| !says_sid).map(by_subject);
                [Some(RevocationTarget::Session(session)), subject].into_iter().flatten().collect()
            }
            (None, Some(subject)) => vec![by_subject(subject)],
            (None, None) => return Err(wrong("sid", "is missing, and so is sub")),
        };
        let issuer = spec.issuer.clone().unwrap_or_default();
        let digest = digest(&SHA256, format!("{issuer} {id}").as_bytes());
        Ok(ProviderLogout {
            provider: self.spec.name.clone(),
            issuer,
            targets,
            keep: self.spec.session_max_age.saturating_add(CLOCK_ALLOWANCE),
            issued_at,
            id: digest.as_ref().first_chunk().copied().unwrap_or_default(),
        })
    }
}
