//! From a code to an identity: the exchange, the ID token judged by the rules of every token of its provider, and what
//! the `UserInfo` endpoint adds.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::client::{ProviderToken, Tokens};
use super::seal::{LoginCookie, LoginState};
use super::{Login, LoginError, Logins, Metadata};
use crate::auth::identify::{VerifiedClaims, identify};
use crate::auth::identity::{Expiry, VerifiedBy};
use crate::auth::kind::KindHeader;
use crate::auth::provider_state::{Lookup, verify_signature};
use crate::auth::{Identity, KeyFingerprint, Rejection, allow, claims, jwt, unix_seconds};
use crate::policy::Renew;

/// What a completed sign-in gave.
pub struct Grant {
    pub(super) login: Arc<Login>,
    pub(super) identity: Identity,
    pub(super) judged: Judged,
    pub(super) tokens: Tokens,
    pub(super) nonce: String,
    /// The end of the access token, else of the ID token, Unix seconds.
    pub(super) token_end: u64,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grant({:?})", self.identity)
    }
}

impl Grant {
    /// Who signed in.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the session can be renewed.
    #[must_use]
    pub fn is_renewable(&self) -> bool {
        self.tokens.refresh_token.is_some() && self.login.spec.renew != Renew::Off
    }
}

/// An ID token that was judged good.
#[derive(Clone)]
pub(super) struct Judged {
    pub(super) claims: Map<String, Value>,
    pub(super) kind: KindHeader,
    pub(super) print: KeyFingerprint,
    pub(super) algorithm: jsonwebtoken::Algorithm,
    /// Its end, Unix seconds.
    pub(super) end: u64,
    /// When its user last signed in at the provider, where it says so.
    pub(super) auth_time: Option<u64>,
}

/// What an ID token is expected to say beside what its provider's tokens say.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected<'a> {
    /// At a sign-in: this nonce.
    SignIn { nonce: &'a str },
    /// At a renewal: this nonce or none (OpenID Connect Core section 12.2), and `auth_time` may be absent.
    Renewal { nonce: &'a str },
}

impl Logins {
    /// Finishes a sign-in whose state fits the browser's cookie and was used for the first time.
    ///
    /// # Errors
    /// Why nobody is signed in.
    pub async fn finish(
        &self,
        login: &Arc<Login>,
        state: &LoginState,
        cookie: &LoginCookie,
        code: &str,
    ) -> Result<Grant, LoginError> {
        let metadata = login.metadata().await?;
        let broken = || LoginError::down("the state's secrets could not be derived".to_owned());
        let verifier = state.verifier(&self.keys, cookie).ok_or_else(broken)?;
        let nonce = state.nonce(&self.keys, cookie).ok_or_else(broken)?;
        let tokens = login.exchange(&metadata, code, &verifier).await?;
        let id_token = tokens.id_token.as_ref();
        let id_token = id_token.ok_or_else(|| LoginError::refused("the token endpoint gave no id_token".to_owned()))?;
        let judged = login.judge(id_token, Expected::SignIn { nonce: &nonce }).await?;
        let more = login.more_claims(&metadata, &tokens, &judged.claims).await?;
        let identity = login.identity(&judged, more)?;
        allow::permits(&[], &identity).map_err(|denied| LoginError::Denied(denied.to_string()))?;
        if login.spec.renew == Renew::Required && tokens.refresh_token.is_none() {
            return Err(LoginError::NoRefreshToken);
        }
        let now = unix_seconds();
        if let Err(Rejection::Revoked(by)) = self.sessions.revocations().check(&identity, now) {
            return Err(LoginError::Revoked(by));
        }
        let token_end = tokens.expires_in.map_or(judged.end, |life| now.saturating_add(life));
        Ok(Grant { login: Arc::clone(login), identity, judged, tokens, nonce, token_end })
    }
}

impl Login {
    /// Judges an ID token that came from the token endpoint.
    pub(super) async fn judge(&self, token: &ProviderToken, expected: Expected<'_>) -> Result<Judged, LoginError> {
        self.judged(token.expose(), expected).await.map_err(|rejection| match rejection {
            Rejection::KeysUnavailable { reason, retry_after, .. } => {
                LoginError::unavailable(reason, Some(retry_after))
            }
            other => LoginError::refused(format!("the ID token is refused: {other}")),
        })
    }

    async fn judged(&self, token: &str, expected: Expected<'_>) -> Result<Judged, Rejection> {
        let spec = &self.spec.judged_by;
        let parsed = jwt::parse(token)?;
        self.is_ours(&parsed.claims)?;
        if !spec.algorithms.contains(&parsed.algorithm) {
            return Err(Rejection::Algorithm(format!("{:?}", parsed.algorithm)));
        }
        let print = verify_signature(&self.provider, &parsed, Lookup::MayFetch, &mut ()).await?;
        let now = unix_seconds();
        claims::check_times(spec, &parsed.claims, now, &mut ())?;
        let end = claims::required_exp(&parsed.claims)?;
        claims::check_audience_and_kind(spec, parsed.kind, &parsed.claims, &mut ())?;
        let wrong = |claim: &str, problem: &'static str| Rejection::Claim { claim: claim.to_owned(), problem };
        let has = |name: &str| parsed.claims.contains_key(name);
        if !has("iat") {
            return Err(wrong("iat", "is missing"));
        }
        // OpenID Connect Core section 3.1.3.7.
        let has_several = parsed.claims.get("aud").and_then(Value::as_array).is_some_and(|aud| aud.len() > 1);
        if has_several && !has("azp") {
            return Err(wrong("azp", "is missing beside several audiences"));
        }
        match (expected, parsed.claims.get("nonce")) {
            (Expected::SignIn { nonce } | Expected::Renewal { nonce }, Some(Value::String(found)))
                if found == nonce => {}
            (Expected::Renewal { .. }, None) => {}
            (_, None) => return Err(wrong("nonce", "is missing")),
            (_, Some(_)) => return Err(wrong("nonce", "is another's")),
        }
        let auth_time = claims::numeric_date(&parsed.claims, "auth_time", f64::floor)?;
        if let Some(max_age) = self.spec.max_age {
            let limit = max_age.as_secs().saturating_add(spec.clock_skew.as_secs());
            match (auth_time, expected) {
                // Of a renewal the caller judges: that session ends.
                (_, Expected::Renewal { .. }) => {}
                (None, _) => return Err(wrong("auth_time", "is missing, and max_age asks for it")),
                (Some(at), _) if at.saturating_add(limit) < now => {
                    return Err(wrong("auth_time", "is longer ago than max_age"));
                }
                (Some(_), _) => {}
            }
        }
        let algorithm = parsed.algorithm;
        Ok(Judged { kind: parsed.kind, claims: parsed.claims, print, algorithm, end, auth_time })
    }

    /// Whether these claims name our issuer.
    pub(super) fn is_ours(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        let spec = &self.spec.judged_by;
        match claims.get("iss") {
            Some(Value::String(issuer)) if Some(issuer) == spec.issuer.as_ref() => Ok(()),
            Some(Value::String(issuer)) => Err(Rejection::UnknownIssuer(issuer.chars().take(256).collect())),
            _ => Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is missing or no string" }),
        }
    }

    /// What the `UserInfo` endpoint says, where it is asked.
    pub(super) async fn more_claims(
        &self,
        metadata: &Metadata,
        tokens: &Tokens,
        claims: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>, LoginError> {
        if !self.spec.asks_userinfo {
            return Ok(None);
        }
        let access = tokens.access_token.as_ref();
        let access =
            access.ok_or_else(|| LoginError::refused("no access token came to ask userinfo with".to_owned()))?;
        let more = self.userinfo(metadata, access).await?;
        // OpenID Connect Core section 5.3.2.
        let subject = claims.get("sub").and_then(Value::as_str);
        if subject.is_none() || more.get("sub").and_then(Value::as_str) != subject {
            return Err(LoginError::refused("userinfo is about another sub than the ID token".to_owned()));
        }
        Ok(Some(more))
    }

    /// Who an ID token, and what `UserInfo` adds, say it is. Members of the ID token win.
    pub(super) fn identity(&self, judged: &Judged, more: Option<Map<String, Value>>) -> Result<Identity, LoginError> {
        let mut claims = more.unwrap_or_default();
        // What says whom a token is for and of which kind it is comes from the ID token alone.
        claims.retain(|name, _| !crate::auth::kind::is_kind_member(name) && !PROTOCOL.contains(&name.as_str()));
        // An address and the word that it is verified come from one place.
        if EMAIL.iter().any(|name| judged.claims.contains_key(*name)) {
            claims.retain(|name, _| !EMAIL.contains(&name.as_str()));
        }
        for (name, value) in &judged.claims {
            claims.insert(name.clone(), value.clone());
        }
        let has_overage = claims.contains_key("_claim_names");
        let said = VerifiedClaims {
            claims,
            kind: judged.kind,
            expiry: Expiry::At(judged.end),
            // A login session is not judged by the key of its token, or each rotation would end it.
            verified_by: VerifiedBy::Key { fingerprint: judged.print, algorithm: judged.algorithm, until: 0 },
        };
        identify(&self.spec.judged_by, said, &mut ()).map_err(|rejection| match rejection {
            Rejection::Required(claim) => {
                if has_overage {
                    tracing::warn!(
                        provider = %self.spec.name,
                        claim,
                        "group overage: the provider left the groups out of the ID token because there are too many; use claims_from: userinfo, or assign fewer groups to the application"
                    );
                }
                LoginError::Denied(format!("required claim {claim} is not satisfied"))
            }
            other => LoginError::refused(format!("the ID token is refused: {other}")),
        })
    }
}

const EMAIL: [&str; 2] = ["email", "email_verified"];

/// Members of a token that `UserInfo` does not speak of.
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
