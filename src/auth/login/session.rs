//! The session cookie of a sign-in: the claims that the policy uses, encrypted once, and checked at each use by the current
//! policy and by what this process knows of the session.
//!
//! The cookie also contains the [`SessionKey`], 16 random bytes that are stored nowhere else than in the cookie and in the
//! memory of the processes that have read it ([`LoginSession::key`]). A record of the session that leaves this process is
//! to be encrypted with a key derived from it, so that whoever can read the store cannot read the record.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::grant::Grant;
use super::records::LoginSession;
use super::seal::{SESSION, random};
use super::{Login, Logins};
use crate::auth::identify::{VerifiedClaims, identify_again};
use crate::auth::identity::{BrowserSession, Expiry, VerifiedBy};
use crate::auth::kind::{Category, KindHeader};
use crate::auth::token::MAX_COOKIE_VALUE;
use crate::auth::{
    Identity, IssuedCookie, KeyFingerprint, Rejection, SessionCookie, issuer_or_name, unix_millis, unix_seconds,
};

/// In front of the value: told from a cookie that was made of a Bearer token.
const PREFIX: &str = "login.";
/// What is left of the claims where all of them are too many for a cookie.
const FEWEST: [&str; 7] = ["iss", "sub", "aud", "azp", "iat", "sid", "token_use"];

/// The key of one login session. It cannot be printed.
#[derive(Clone)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// Generates a random key, or returns `None` when the system has no random numbers.
    pub(super) fn generate() -> Option<Self> {
        random().map(Self)
    }

    fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    fn equals(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// What a cookie of a login session holds.
pub(in crate::auth) struct OpenedLogin {
    pub(in crate::auth) session: BrowserSession,
    key: SessionKey,
    pub(in crate::auth) provider: String,
    preset: String,
    claims: Map<String, Value>,
    kind: KindHeader,
    verified_by: VerifiedBy,
    /// Until when it is good by itself, Unix seconds.
    soft_end: u64,
    /// Whether the claims are all that the policy used, and a digest of which those were.
    is_whole: bool,
    names: String,
}

impl OpenedLogin {
    pub(in crate::auth) fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

fn digest_of(names: &[String]) -> String {
    let parts: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    KeyFingerprint::of(&parts).text()
}

impl Logins {
    /// Begins a session: the cookie, and what is kept here. `None` where it could not be sealed.
    #[must_use]
    pub fn begin(&self, grant: Grant, seal: KeyFingerprint) -> Option<(IssuedCookie, Arc<LoginSession>)> {
        let login = Arc::clone(&grant.login);
        let spec = &login.spec;
        let now = unix_millis();
        let ends_at = (now / 1_000).saturating_add(spec.session_max_age.as_secs());
        let soft_end = if grant.is_renewable() { grant.token_end.min(ends_at) } else { ends_at };
        let identity = &grant.identity;
        let owner = KeyFingerprint::of(&[
            b"user",
            issuer_or_name(identity.provider()).as_bytes(),
            identity.user_id().as_bytes(),
        ]);
        let session = BrowserSession {
            id: URL_SAFE_NO_PAD.encode(random::<16>()?).into(),
            owner: owner.text().into(),
            began: now,
            last_end: ends_at,
            key: seal,
        };
        let key = SessionKey::generate()?;
        let (print, algorithm) = match identity.verified_by() {
            VerifiedBy::Key { fingerprint, algorithm, .. } => (fingerprint, format!("{algorithm:?}")),
            VerifiedBy::Provider(print) => (print, String::new()),
        };
        let kind = identity.kind();
        let sealed = |is_whole: bool| {
            let keeps = |name: &str| {
                if is_whole { spec.claims.iter().any(|known| known == name) } else { FEWEST.contains(&name) }
            };
            let claims: Map<String, Value> = (identity.claims().iter())
                .filter(|(name, _)| keeps(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let content = json!({
                "i": &*session.id, "x": key.to_text(), "o": &*session.owner, "b": session.began, "l": ends_at, "s": soft_end,
                "p": spec.name, "f": spec.judged_by.preset, "k": print.text(), "a": algorithm,
                "t": kind.is_access_token, "y": kind.category.name(),
                "w": is_whole, "d": digest_of(&spec.claims), "c": claims,
            });
            let value = format!("{PREFIX}{}", self.keys.seal(SESSION, &content)?);
            (value.len() <= MAX_COOKIE_VALUE).then_some(value)
        };
        let value = sealed(true).or_else(|| sealed(false))?;
        let kept = self.sessions.keep(grant, &session, key);
        Some((IssuedCookie { value, expires_at: ends_at, session }, kept))
    }

    /// The provider of the login session that a cookie is of, by its seal alone.
    #[must_use]
    pub fn provider_of(&self, cookie: &SessionCookie) -> Option<String> {
        self.open(cookie, KeyFingerprint::default()).map(|opened| opened.provider)
    }

    /// Opens a cookie, if it is one of a login session.
    pub(in crate::auth) fn open(&self, cookie: &SessionCookie, seal: KeyFingerprint) -> Option<OpenedLogin> {
        let held = self.keys.open(SESSION, cookie.expose().strip_prefix(PREFIX)?)?;
        let text = |name: &str| held.get(name).and_then(Value::as_str);
        let number = |name: &str| held.get(name).and_then(Value::as_u64);
        let flag = |name: &str| held.get(name).and_then(Value::as_bool);
        let print = KeyFingerprint::from_text(text("k")?)?;
        Some(OpenedLogin {
            session: BrowserSession {
                id: text("i")?.into(),
                owner: text("o")?.into(),
                began: number("b")?,
                last_end: number("l")?,
                key: seal,
            },
            key: SessionKey::from_text(text("x")?)?,
            provider: text("p")?.to_owned(),
            preset: text("f")?.to_owned(),
            claims: held.get("c")?.as_object()?.clone(),
            kind: KindHeader { is_access_token: flag("t")?, category: Category::from_name(text("y")?)? },
            verified_by: VerifiedBy::Key { fingerprint: print, algorithm: text("a")?.parse().ok()?, until: 0 },
            soft_end: number("s")?,
            is_whole: flag("w")?,
            names: text("d")?.to_owned(),
        })
    }

    /// Judges a login session by the policy in force. Revocations are the caller's to ask.
    pub(in crate::auth) async fn judge_session(
        &self,
        opened: OpenedLogin,
    ) -> Result<(Identity, Option<Arc<LoginSession>>), Rejection> {
        let gone = || Rejection::UnknownIssuer(opened.provider.clone());
        let login = self.get(&opened.provider).ok_or_else(gone)?;
        let now = unix_seconds();
        let began = opened.session.began / 1_000;
        // By the policy in force, which another may have sealed.
        let ends_at = opened.session.last_end.min(began.saturating_add(login.spec.session_max_age.as_secs()));
        if now >= ends_at {
            return Err(Rejection::Expired { exp: ends_at, now });
        }
        if let Some(known) = self.sessions.get(&opened.session.id) {
            if !known.key.equals(&opened.key) {
                return Err(Rejection::Malformed("the cookie has another key than its session"));
            }
            if !known.is_of(login) {
                return Err(gone());
            }
            // What was revoked is not renewed first. It ends for good: the claims in its cookie are older, and may say
            // another `sid` than the one that was revoked.
            if let Err(revoked) = self.sessions.revocations().check(&known.identity(), now) {
                self.sessions.end(&known);
                return Err(revoked);
            }
            known.ensure(&self.sessions, login.spec.renewal_grace).await?;
            let identity = login.judge_again(&known.identity(), ends_at)?;
            return Ok((identity.in_session(Some(opened.session)), Some(known)));
        }
        // Begun by another process, or before this one started.
        if !opened.is_whole || opened.names != digest_of(&login.spec.claims) {
            return Err(Rejection::Malformed("a session of which this process knows too little"));
        }
        let until = opened.soft_end.min(ends_at);
        if now >= until {
            return Err(Rejection::Expired { exp: until, now });
        }
        let said = VerifiedClaims {
            claims: opened.claims,
            kind: opened.kind,
            expiry: Expiry::At(until),
            verified_by: opened.verified_by,
        };
        let identity = identify_again(&login.spec.judged_by, &opened.preset, said)?;
        Ok((identity.in_session(Some(opened.session)), None))
    }
}

impl Login {
    /// Who a session is of, by the policy in force.
    pub(in crate::auth) fn judge_again(&self, identity: &Identity, ends_at: u64) -> Result<Identity, Rejection> {
        if **identity.provider_spec() == *self.spec.judged_by {
            return Ok(identity.clone().lasting(Expiry::At(ends_at)));
        }
        let said = VerifiedClaims {
            claims: identity.claims().clone(),
            kind: identity.kind(),
            expiry: Expiry::At(ends_at),
            verified_by: identity.verified_by(),
        };
        identify_again(&self.spec.judged_by, identity.provider().preset, said)
    }
}
