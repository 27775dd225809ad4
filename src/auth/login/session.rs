//! The session cookie of a sign-in. It has the claims that the policy uses, encrypted once. At each use it is checked
//! by the current policy and the records of this process.
//!
//! The cookie also contains the [`SessionKey`], 16 random bytes. They are stored only in the cookie and in the memory
//! of the processes that have read it ([`LoginSession::key`]). A record that leaves this process must be encrypted with
//! a key derived from it, so that access to the store does not give access to the record.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::completion::CompletedSignIn;
use super::cookie::LoginCookie;
use super::keys::{Purpose, SessionKey};
use super::records::LoginSession;
use super::{Login, Logins};
use crate::auth::identify::{VerifiedClaims, identify_again};
use crate::auth::identity::{BrowserSession, Expiry, VerifiedBy};
use crate::auth::kind::{Category, TokenKindHeader};
use crate::auth::token::MAX_COOKIE_VALUE;
use crate::auth::{
    Identity, IssuedCookie, KeyFingerprint, Rejection, SessionCookie, session_owner, unix_millis, unix_seconds,
};
use crate::random::random;

/// The prefix of the value, which distinguishes it from a cookie that was issued for a Bearer token.
const PREFIX: &str = "login.";
/// The claims that are kept in the cookie when the policy's claims do not fit.
const FEWEST: [&str; 7] = ["iss", "sub", "aud", "azp", "iat", "sid", "token_use"];

/// The decrypted content of a login session's cookie.
pub(in crate::auth) struct LoginSessionCookie {
    pub(in crate::auth) session: BrowserSession,
    key: SessionKey,
    pub(in crate::auth) provider: String,
    preset: String,
    claims: Map<String, Value>,
    kind: TokenKindHeader,
    verified_by: VerifiedBy,
    /// The Unix time in seconds until which the cookie is accepted without a record of the session.
    soft_end: u64,
    /// Whether the cookie has all claims that the policy used.
    is_whole: bool,
    /// A digest of the names of those claims.
    names: String,
}

impl LoginSessionCookie {
    pub(in crate::auth) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

fn digest_of(names: &[String]) -> String {
    let parts: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    KeyFingerprint::of(&parts).text()
}

impl Logins {
    /// Begins a session in the browser that has this login cookie: issues its cookie and keeps its record. Returns `None`
    /// when the claims do not fit the cookie or the system has no random numbers.
    #[must_use]
    pub fn begin(
        &self,
        completed: CompletedSignIn,
        cookie: &LoginCookie,
        cookie_key: KeyFingerprint,
    ) -> Option<(IssuedCookie, Arc<LoginSession>)> {
        let login = Arc::clone(&completed.login);
        let spec = &login.spec;
        let now = unix_millis();
        let ends_at = (now / 1_000).saturating_add(spec.session_max_age.as_secs());
        let soft_end = if completed.is_renewable() { completed.token_end.min(ends_at) } else { ends_at };
        let identity = &completed.identity;
        let browser = cookie.browser();
        let session = BrowserSession {
            id: URL_SAFE_NO_PAD.encode(random::<16>().ok()?).into(),
            owner: session_owner(identity),
            browser: Some(Arc::clone(&browser)),
            began: now,
            last_end: ends_at,
            authenticated_at: identity.authenticated_at(),
            key: cookie_key,
            cookie_times: None,
        };
        let key = SessionKey::generate()?;
        let (print, algorithm) = match identity.verified_by() {
            VerifiedBy::Key { fingerprint, algorithm, .. } => (fingerprint, format!("{algorithm:?}")),
            VerifiedBy::Provider(print) => (print, String::new()),
        };
        let kind = identity.kind();
        let encrypted = |is_whole: bool| {
            let keeps = |name: &str| {
                if is_whole { spec.claims.iter().any(|known| known == name) } else { FEWEST.contains(&name) }
            };
            let claims: Map<String, Value> = (identity.claims().iter())
                .filter(|(name, _)| keeps(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let content = json!({
                "i": &*session.id, "x": key.to_text(), "o": &*session.owner, "b": session.began, "l": ends_at, "s": soft_end,
                "r": &*browser, "p": spec.name, "f": spec.provider_spec.preset, "k": print.text(), "a": algorithm,
                "t": kind.is_access_token, "y": kind.category.name(),
                "w": is_whole, "d": digest_of(&spec.claims), "c": claims, "n": session.authenticated_at,
            });
            let value = format!("{PREFIX}{}", self.keys.encrypt(Purpose::SessionCookie, &content)?);
            (value.len() <= MAX_COOKIE_VALUE).then_some(value)
        };
        let value = encrypted(true).or_else(|| encrypted(false))?;
        let kept = self.sessions.insert(completed, &session, key);
        Some((IssuedCookie { value, expires_at: ends_at, session }, kept))
    }

    /// Decrypts a cookie, if it is one of a login session. `cookie_key` is the fingerprint of the current key.
    pub(in crate::auth) fn decrypt_session_cookie(
        &self,
        cookie: &SessionCookie,
        cookie_key: KeyFingerprint,
    ) -> Option<LoginSessionCookie> {
        let content = self.keys.decrypt(Purpose::SessionCookie, cookie.expose().strip_prefix(PREFIX)?)?;
        let text = |name: &str| content.get(name).and_then(Value::as_str);
        let number = |name: &str| content.get(name).and_then(Value::as_u64);
        let flag = |name: &str| content.get(name).and_then(Value::as_bool);
        let print = KeyFingerprint::from_text(text("k")?)?;
        Some(LoginSessionCookie {
            session: BrowserSession {
                id: text("i")?.into(),
                owner: text("o")?.into(),
                // Earlier versions issued cookies without it.
                browser: text("r").map(Arc::from),
                began: number("b")?,
                last_end: number("l")?,
                // Earlier versions issued cookies without it.
                authenticated_at: number("n"),
                key: cookie_key,
                cookie_times: None,
            },
            key: SessionKey::from_text(text("x")?)?,
            provider: text("p")?.to_owned(),
            preset: text("f")?.to_owned(),
            claims: content.get("c")?.as_object()?.clone(),
            kind: TokenKindHeader { is_access_token: flag("t")?, category: Category::from_name(text("y")?)? },
            verified_by: VerifiedBy::Key { fingerprint: print, algorithm: text("a")?.parse().ok()?, until: 0 },
            soft_end: number("s")?,
            is_whole: flag("w")?,
            names: text("d")?.to_owned(),
        })
    }

    /// Returns the record of a session that is being ended, from this process or from the shared state.
    pub(in crate::auth) async fn record_of(&self, cookie: &LoginSessionCookie) -> Option<Arc<LoginSession>> {
        let login = self.get(&cookie.provider)?;
        let found = self.sessions.find(&cookie.session, &cookie.key, login).await?;
        found.key.equals(&cookie.key).then_some(found)
    }

    /// Verifies a login session by the current policy. The caller checks revocations of the returned identity.
    ///
    /// # Errors
    /// Returns the reason why the session is not accepted, or that this cannot be decided now.
    pub(in crate::auth) async fn verify_session(
        &self,
        cookie: LoginSessionCookie,
    ) -> Result<(Identity, Option<Arc<LoginSession>>), Rejection> {
        let gone = || Rejection::UnknownIssuer(cookie.provider.clone());
        let login = self.get(&cookie.provider).ok_or_else(gone)?;
        // An earlier version accepted such a token as an ID token, and its cookies may still be in use.
        cookie.kind.check_no_access_token()?;
        let now = unix_seconds();
        let began = cookie.session.began / 1_000;
        // `session.max_age` may be shorter now than when the session began.
        let ends_at = cookie.session.last_end.min(began.saturating_add(login.spec.session_max_age.as_secs()));
        if now >= ends_at {
            return Err(Rejection::Expired { exp: ends_at, now });
        }
        let known = match self.sessions.get(&cookie.session.id) {
            Some(known) => Some(known),
            // The record is being removed from the store.
            None if self.sessions.revocations().is_ended(&cookie.session, now) => {
                return Err(Rejection::Revoked("session"));
            }
            None => self.sessions.load(&cookie.session, &cookie.key, login).await?,
        };
        if let Some(known) = known {
            if !known.key.equals(&cookie.key) {
                return Err(Rejection::Malformed("the cookie has another key than its session"));
            }
            if !known.is_of(login) {
                return Err(gone());
            }
            // A revoked session is not renewed. It ends permanently, because the cookie may have an older `sid` than
            // the revoked one.
            if let Err(revoked) = self.sessions.revocations().check(&known.identity(), now) {
                match revoked {
                    // The end is recorded already.
                    Rejection::Revoked("session") => self.sessions.discard_ended(&known),
                    _ => self.sessions.end(&known),
                }
                return Err(revoked);
            }
            known.ensure(&self.sessions, login.spec.renewal_grace).await?;
            let identity = login.reidentify(&known.identity(), ends_at)?;
            return Ok((identity.in_session(Some(cookie.session)), Some(known)));
        }
        // There is no record: the session began in another process or before a restart, without shared state, or its
        // record was removed for newer ones. The cookie alone is accepted until its soft end, so its claims are at most
        // as old as one token.
        if !cookie.is_whole || cookie.names != digest_of(&login.spec.claims) {
            return Err(Rejection::Malformed(
                "the cookie has not all claims that the policy uses, and there is no record",
            ));
        }
        let until = cookie.soft_end.min(ends_at);
        if now >= until {
            return Err(Rejection::Expired { exp: until, now });
        }
        let verified = VerifiedClaims {
            claims: cookie.claims,
            kind: cookie.kind,
            expiry: Expiry::At(until),
            verified_by: cookie.verified_by,
        };
        let identity = identify_again(&login.spec.provider_spec, &cookie.preset, verified)?;
        Ok((identity.in_session(Some(cookie.session)), None))
    }
}

impl Login {
    /// Checks the identity of a session by the current policy.
    ///
    /// # Errors
    /// Returns the reason why the current policy does not accept the identity.
    pub(in crate::auth) fn reidentify(&self, identity: &Identity, ends_at: u64) -> Result<Identity, Rejection> {
        if **identity.provider_spec() == *self.spec.provider_spec {
            return Ok(identity.clone().lasting(Expiry::At(ends_at)));
        }
        let verified = VerifiedClaims {
            claims: identity.claims().clone(),
            kind: identity.kind(),
            expiry: Expiry::At(ends_at),
            verified_by: identity.verified_by(),
        };
        identify_again(&self.spec.provider_spec, identity.provider().preset, verified)
    }
}
