//! Completes a sign-in: exchanges the code, verifies the ID token as any token of its provider is verified, and adds the
//! claims of the `UserInfo` endpoint.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::client::{ProviderToken, Tokens};
use super::{Login, LoginCookie, LoginError, LoginState, Logins, Metadata};
use crate::auth::identify::{VerifiedClaims, identify};
use crate::auth::identity::{Expiry, VerifiedBy};
use crate::auth::kind::TokenKindHeader;
use crate::auth::provider_state::{Lookup, verify_signature};
use crate::auth::{Identity, KeyFingerprint, Rejection, allow, claims, jwt, unix_seconds};
use crate::policy::Renew;

/// The result of a completed sign-in.
pub struct CompletedSignIn {
    pub(super) login: Arc<Login>,
    pub(super) identity: Identity,
    pub(super) id_token: VerifiedIdToken,
    pub(super) tokens: Tokens,
    pub(super) nonce: String,
    /// The Unix time in seconds at which the access token expires, or the ID token if that is not known.
    pub(super) token_end: u64,
}

impl std::fmt::Debug for CompletedSignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompletedSignIn({:?})", self.identity)
    }
}

impl CompletedSignIn {
    /// Returns the user who signed in.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns whether the session can be renewed.
    #[must_use]
    pub fn is_renewable(&self) -> bool {
        self.tokens.refresh_token.is_some() && self.login.spec.renew != Renew::Off
    }
}

/// A verified ID token.
#[derive(Clone)]
pub(super) struct VerifiedIdToken {
    pub(super) claims: Map<String, Value>,
    pub(super) kind: TokenKindHeader,
    pub(super) key_fingerprint: KeyFingerprint,
    pub(super) algorithm: jsonwebtoken::Algorithm,
    /// The token's `exp`, Unix seconds.
    pub(super) expires_at: u64,
    /// The Unix time of the user's last sign-in at the provider, if the token has it.
    pub(super) auth_time: Option<u64>,
}

impl VerifiedIdToken {
    /// Returns when the user last authenticated at the provider, in Unix seconds by this machine's clock at the latest
    /// `now`, which is the moment of the sign-in. A time further in the future than clocks may differ is in milliseconds or
    /// wrong, and counts as none.
    fn authenticated_at(&self, now: u64, clock_skew: Duration) -> Option<u64> {
        let latest = now.saturating_add(clock_skew.as_secs());
        // A session that is dated later than it began would count as newer than a revocation that comes next.
        self.auth_time.filter(|at| *at <= latest).map(|at| at.min(now))
    }
}

/// The purpose for which an ID token was issued, which decides its required claims.
#[derive(Clone, Copy, Debug)]
pub(super) enum IdTokenUse<'a> {
    /// A sign-in: the nonce must be present.
    SignIn { nonce: &'a str },
    /// A renewal: nonce and `auth_time` may be absent (OpenID Connect Core section 12.2).
    Renewal { nonce: &'a str },
}

impl Logins {
    /// Completes a sign-in whose state belongs to the browser's cookie and was not used before. `client` is the address of
    /// the client, if it is one client's.
    ///
    /// # Errors
    /// Returns the reason why the sign-in failed.
    pub async fn complete(
        &self,
        login: &Arc<Login>,
        state: &LoginState,
        cookie: &LoginCookie,
        code: &str,
        client: Option<IpAddr>,
    ) -> Result<CompletedSignIn, LoginError> {
        let metadata = login.metadata().await?;
        let broken = || LoginError::down("the state's secrets could not be derived".to_owned());
        let verifier = state.verifier(&self.keys, cookie).ok_or_else(broken)?;
        let nonce = state.nonce(&self.keys, cookie).ok_or_else(broken)?;
        let tokens = login.exchange(&metadata, code, &verifier, client).await?;
        let missing = || LoginError::refused("the token endpoint gave no id_token".to_owned());
        let id_token = tokens.id_token.as_ref().ok_or_else(missing)?;
        let id_token = login.verify_id_token(id_token, IdTokenUse::SignIn { nonce: &nonce }).await?;
        let userinfo = login.userinfo_claims(&metadata, &tokens, &id_token.claims).await?;
        let now = unix_seconds();
        let authenticated_at = id_token.authenticated_at(now, login.spec.provider_spec.clock_skew);
        let identity = login.identity(&id_token, userinfo)?.authenticated(authenticated_at);
        tokens.check_size(&identity)?;
        allow::permits(&[], &identity).map_err(|denied| LoginError::Denied {
            user: Some(identity.user_id().to_owned()),
            reason: denied.to_string(),
        })?;
        if login.spec.renew == Renew::Required && tokens.refresh_token.is_none() {
            return Err(LoginError::NoRefreshToken);
        }
        if let Err(Rejection::Revoked(by)) = self.sessions.revocations().check(&identity, now) {
            return Err(LoginError::Revoked(by));
        }
        let token_end = tokens.expires_in.map_or(id_token.expires_at, |life| now.saturating_add(life));
        Ok(CompletedSignIn { login: Arc::clone(login), identity, id_token, tokens, nonce, token_end })
    }
}

/// The maximum number of bytes of the tokens and claims of one session. With `limits.login_sessions` it limits the
/// memory.
const SESSION_BYTES: usize = 64 << 10;

impl Tokens {
    /// Checks that a session's tokens and claims are not too large to be kept.
    ///
    /// # Errors
    /// [`LoginError::Refused`] with the size and the remedy.
    pub(super) fn check_size(&self, identity: &Identity) -> Result<(), LoginError> {
        let tokens = [&self.id_token, &self.access_token, &self.refresh_token];
        let tokens: usize = tokens.into_iter().flatten().map(|token| token.expose().len()).sum();
        let claims = serde_json::to_string(identity.claims()).map_or(SESSION_BYTES, |text| text.len());
        let size = tokens.saturating_add(claims);
        if size <= SESSION_BYTES {
            return Ok(());
        }
        Err(LoginError::refused(format!(
            "tokens and claims have {size} bytes, at most {SESSION_BYTES} are kept of a session; request fewer scopes, or assign fewer groups to the application"
        )))
    }
}

impl Login {
    /// Verifies an ID token that came from the token endpoint.
    pub(super) async fn verify_id_token(
        &self,
        token: &ProviderToken,
        usage: IdTokenUse<'_>,
    ) -> Result<VerifiedIdToken, LoginError> {
        self.verify_jwt(token.expose(), usage).await.map_err(|rejection| match rejection {
            Rejection::KeysUnavailable { reason, retry_after, .. } => {
                LoginError::unavailable(reason, Some(retry_after))
            }
            other => LoginError::refused(format!("ID token rejected: {other}")),
        })
    }

    async fn verify_jwt(&self, token: &str, usage: IdTokenUse<'_>) -> Result<VerifiedIdToken, Rejection> {
        let spec = &self.spec.provider_spec;
        let parsed = jwt::parse(token)?;
        self.check_issuer(&parsed.claims)?;
        self.check_header(&parsed)?;
        self.provider.keys.fetch_if_missing().await;
        let key_fingerprint = verify_signature(&self.provider, &parsed, Lookup::MayFetch, &mut ()).await?;
        let now = unix_seconds();
        claims::check_times(spec, &parsed.claims, now, &mut ())?;
        let expires_at = claims::required_exp(&parsed.claims)?;
        claims::check_audience_and_kind(spec, parsed.kind, &parsed.claims, &mut ())?;
        let wrong = |claim: &str, problem: &'static str| Rejection::Claim { claim: claim.to_owned(), problem };
        let has = |name: &str| parsed.claims.contains_key(name);
        if !has("iat") {
            return Err(wrong("iat", "is missing"));
        }
        // OpenID Connect Core section 3.1.3.7.
        let has_several = parsed.claims.get("aud").and_then(Value::as_array).is_some_and(|aud| aud.len() > 1);
        if has_several && !has("azp") {
            return Err(wrong("azp", "is missing, and the token has several audiences"));
        }
        match (usage, parsed.claims.get("nonce")) {
            (IdTokenUse::SignIn { nonce } | IdTokenUse::Renewal { nonce }, Some(Value::String(found)))
                if found == nonce => {}
            (IdTokenUse::Renewal { .. }, None) => {}
            (_, None) => return Err(wrong("nonce", "is missing")),
            (_, Some(_)) => return Err(wrong("nonce", "belongs to another sign-in")),
        }
        let auth_time = claims::numeric_date(&parsed.claims, "auth_time", f64::floor)?;
        // At a renewal the caller checks it, because the session ends.
        if matches!(usage, IdTokenUse::SignIn { .. }) {
            self.check_max_age(auth_time, now).map_err(|problem| wrong("auth_time", problem))?;
        }
        let algorithm = parsed.algorithm;
        Ok(VerifiedIdToken {
            kind: parsed.kind,
            claims: parsed.claims,
            key_fingerprint,
            algorithm,
            expires_at,
            auth_time,
        })
    }

    /// Checks that the user signed in at the provider no longer ago than `max_age`, if that is configured.
    ///
    /// # Errors
    /// Returns what is wrong with `auth_time`.
    pub(super) fn check_max_age(&self, auth_time: Option<u64>, now: u64) -> Result<(), &'static str> {
        let Some(max_age) = self.spec.max_age else { return Ok(()) };
        let skew = self.spec.provider_spec.clock_skew.as_secs();
        match auth_time {
            None => Err("is missing, and max_age asks for it"),
            // Such as one in milliseconds, which would be younger than any max_age.
            Some(at) if at > now.saturating_add(skew) => Err("is in the future, and max_age asks for it"),
            Some(at) if at.saturating_add(max_age.as_secs()).saturating_add(skew) < now => {
                Err("is longer ago than max_age")
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks that the header of an ID token or a logout token has an algorithm of the provider, and does not name an
    /// access token (RFC 9068): the same client may be the audience of both.
    ///
    /// # Errors
    /// [`Rejection::WrongKind`] or [`Rejection::Algorithm`].
    pub(super) fn check_header(&self, parsed: &jwt::Parsed<'_>) -> Result<(), Rejection> {
        parsed.kind.check_no_access_token()?;
        if self.spec.provider_spec.algorithms.contains(&parsed.algorithm) {
            return Ok(());
        }
        Err(Rejection::Algorithm(format!("{:?}", parsed.algorithm)))
    }

    /// Checks that these claims name the provider's issuer.
    ///
    /// # Errors
    /// Returns an error when `iss` is missing or differs.
    pub(super) fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        let spec = &self.spec.provider_spec;
        match claims.get("iss") {
            Some(Value::String(issuer)) if Some(issuer) == spec.issuer.as_ref() => Ok(()),
            Some(Value::String(issuer)) => Err(Rejection::UnknownIssuer(issuer.chars().take(256).collect())),
            _ => Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is missing or not a string" }),
        }
    }

    /// Returns the claims of the `UserInfo` endpoint, or `None` unless `claims_from: userinfo` is configured.
    pub(super) async fn userinfo_claims(
        &self,
        metadata: &Metadata,
        tokens: &Tokens,
        claims: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, LoginError> {
        if !self.spec.asks_userinfo {
            return Ok(None);
        }
        let access = tokens.access_token.as_ref();
        let access = access.ok_or_else(|| {
            LoginError::refused("claims_from: userinfo, and the token endpoint gave no access token".to_owned())
        })?;
        let userinfo = self.userinfo(metadata, access).await?;
        // OpenID Connect Core section 5.3.2.
        let subject = claims.get("sub").and_then(Value::as_str);
        if subject.is_none() || userinfo.get("sub").and_then(Value::as_str) != subject {
            return Err(LoginError::refused("userinfo has another sub than the ID token".to_owned()));
        }
        Ok(Some(userinfo))
    }

    /// Makes an identity of an ID token and the claims of `UserInfo`. If both have a claim, that of the ID token is
    /// used.
    ///
    /// # Errors
    /// Returns an error when the provider's configuration does not accept the claims.
    pub(super) fn identity(
        &self,
        id_token: &VerifiedIdToken,
        userinfo: Option<Map<String, Value>>,
    ) -> Result<Identity, LoginError> {
        let mut claims = userinfo.unwrap_or_default();
        // Issuer, audience, kind and times come from the ID token only.
        claims.retain(|name, _| !crate::auth::kind::is_kind_member(name) && !PROTOCOL.contains(&name.as_str()));
        // `email` and `email_verified` come from the same source.
        if EMAIL.iter().any(|name| id_token.claims.contains_key(*name)) {
            claims.retain(|name, _| !EMAIL.contains(&name.as_str()));
        }
        for (name, value) in &id_token.claims {
            claims.insert(name.clone(), value.clone());
        }
        let has_overage = claims.contains_key("_claim_names");
        let user = claims::user_id(&self.spec.provider_spec, &claims).ok();
        let verified = VerifiedClaims {
            claims,
            kind: id_token.kind,
            expiry: Expiry::At(id_token.expires_at),
            // A login session does not check whether the key is current, or each key rotation would end it.
            verified_by: VerifiedBy::Key {
                fingerprint: id_token.key_fingerprint,
                algorithm: id_token.algorithm,
                until: 0,
            },
        };
        identify(&self.spec.provider_spec, verified, &mut ()).map_err(|rejection| match &rejection {
            Rejection::Required(claim) => {
                if has_overage {
                    tracing::warn!(
                        provider = %self.spec.name,
                        claim,
                        "group overage: the provider left the groups out of the ID token because there are too many; use claims_from: userinfo, or assign fewer groups to the application"
                    );
                }
                LoginError::Denied { user, reason: rejection.to_string() }
            }
            other => LoginError::refused(format!("ID token rejected: {other}")),
        })
    }
}

const EMAIL: [&str; 2] = ["email", "email_verified"];

/// The claims that are taken from the ID token only.
const PROTOCOL: [&str; 14] = [
    "iss",
    "aud",
    "azp",
    "exp",
    "nbf",
    "iat",
    "jti",
    "sid",
    "nonce",
    "auth_time",
    "at_hash",
    "c_hash",
    "events",
    "client_id",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_authenticated_at_the_sign_in_at_the_latest_and_at_no_time_that_cannot_be() {
        let now = 1_800_000_000;
        for (auth_time, expected) in [
            (None, None),
            (Some(0), Some(0)),
            (Some(now - 3_600), Some(now - 3_600)),
            (Some(now), Some(now)),
            (Some(now + 5), Some(now)),
            (Some(now + 6), None),
            (Some((now - 3_600) * 1_000), None),
            (Some(u64::MAX), None),
        ] {
            let id_token = VerifiedIdToken {
                claims: Map::new(),
                kind: TokenKindHeader::default(),
                key_fingerprint: KeyFingerprint::default(),
                algorithm: jsonwebtoken::Algorithm::RS256,
                expires_at: now + 600,
                auth_time,
            };
            assert_eq!(id_token.authenticated_at(now, Duration::from_secs(5)), expected, "{auth_time:?}");
        }
    }
}
