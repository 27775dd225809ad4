//! Issues and reads session cookies: the claims of a verified token, encrypted with a key of this process or of
//! `session.secret_file`. A cookie never contains a token, and only this proxy can read it (docs/contract.md section
//! 8).
//!
//! `token::cookie` finds the cookie in a request, and `browser::session_endpoint` decides which clients get one.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quick_cache::sync::Cache;
use serde_json::{Map, Value, json};

use super::identify::VerifiedClaims;
use super::identity::{BrowserSession, CookieTimes, Expiry, SessionScope, VerifiedBy};
use super::kind::{Category, TokenKindHeader};
use super::token::MAX_COOKIE_VALUE;
use super::{Identity, KeyFingerprint, SessionCookie, issuer_or_name};
use crate::json;
use crate::policy::{CLOCK_ALLOWANCE, Secret, SessionSpec};
use crate::random::random;

/// The associated data of the encryption, so that nothing encrypted for another purpose can be read as a cookie.
const PURPOSE: &[u8] = b"vestibule session 2";
/// The time in seconds by which another replica's cookie of the same session may expire later, where cookies expire
/// with their tokens.
const ONE_DAY: u64 = 86_400;

/// A session cookie that was issued for a new or a renewed browser session.
#[derive(Debug)]
pub struct IssuedCookie {
    /// The value of the cookie.
    pub value: String,
    /// The Unix time in seconds at which it expires.
    pub expires_at: u64,
    /// The browser session that it belongs to.
    pub session: BrowserSession,
}

/// The decrypted content of a session cookie: the token's claims, and what is needed to check them again.
pub(super) struct CookieContent {
    pub(super) session: BrowserSession,
    /// The provider's name.
    pub(super) provider: String,
    /// The provider's preset.
    pub(super) preset: String,
    pub(super) claims: Map<String, Value>,
    kind: TokenKindHeader,
    verified_by: VerifiedBy,
    pub(super) times: CookieTimes,
}

impl CookieContent {
    /// Returns the token's claims, to be checked again, with another expiry.
    pub(super) fn into_claims(self, expires_at: u64) -> VerifiedClaims {
        let expiry = Expiry::At(expires_at);
        VerifiedClaims { claims: self.claims, kind: self.kind, expiry, verified_by: self.verified_by }
    }

    fn from_json(mut held: Map<String, Value>, key: KeyFingerprint) -> Option<Self> {
        let Some(Value::Object(claims)) = held.shift_remove("c") else { return None };
        let text = |name: &str| held.get(name).and_then(Value::as_str);
        let number = |name: &str| held.get(name).and_then(Value::as_u64);
        let token_end = number("e")?;
        let times = CookieTimes { issued_at: number("s")?, token_end, expires_at: number("u")? };
        let fingerprint = KeyFingerprint::from_text(text("k")?)?;
        let verified_by = match text("a")? {
            "" => VerifiedBy::Provider(fingerprint),
            algorithm => VerifiedBy::Key { fingerprint, algorithm: algorithm.parse().ok()?, until: token_end },
        };
        let session = BrowserSession {
            id: text("i")?.into(),
            owner: text("o")?.into(),
            browser: None,
            began: number("b")?,
            last_end: number("l")?,
            authenticated_at: None,
            key,
            cookie_times: Some(times),
        };
        let is_access_token = held.get("t")?.as_bool()?;
        Some(Self {
            session,
            provider: text("p")?.to_owned(),
            preset: text("f")?.to_owned(),
            kind: TokenKindHeader { is_access_token, category: Category::from_name(text("y")?)? },
            verified_by,
            times,
            claims,
        })
    }
}

/// Issues session cookies and decrypts them.
pub struct SessionCookies {
    spec: SessionSpec,
    key: Arc<LessSafeKey>,
    key_fingerprint: KeyFingerprint,
    /// The time at which the last cookie of each recently renewed session expires. An older cookie of the session does
    /// not contain a later renewal.
    last_ends: Arc<Cache<Arc<str>, u64>>,
}

/// Returns the digest of a user by which all of the user's sessions can be ended.
#[must_use]
pub fn session_owner(identity: &Identity) -> Arc<str> {
    let issuer = issuer_or_name(identity.provider());
    KeyFingerprint::of(&[b"user", issuer.as_bytes(), identity.user_id().as_bytes()]).text().into()
}

/// The maximum number of renewed sessions in [`SessionCookies::last_ends`].
const RENEWED_SESSIONS: usize = 10_000;

impl SessionCookies {
    /// Uses the key of `session.secret_file`, or a random key, which a reload copies from `former`. Returns `None` when
    /// the system has no random numbers.
    pub(super) fn new(spec: &SessionSpec, former: Option<&Self>) -> Option<Self> {
        let (key, key_fingerprint) = match (&spec.secret, former) {
            (None, Some(former)) if former.spec.secret.is_none() => (Arc::clone(&former.key), former.key_fingerprint),
            (secret, _) => {
                let (key, key_fingerprint) = encryption_key(secret.as_ref())?;
                (Arc::new(key), key_fingerprint)
            }
        };
        let last_ends =
            former.map_or_else(|| Arc::new(Cache::new(RENEWED_SESSIONS)), |former| Arc::clone(&former.last_ends));
        Some(Self { spec: spec.clone(), key, key_fingerprint, last_ends })
    }

    /// Returns the configuration, `browser.session`.
    pub(super) fn spec(&self) -> &SessionSpec {
        &self.spec
    }

    /// Returns the fingerprint of the encryption key.
    pub(super) fn key_fingerprint(&self) -> KeyFingerprint {
        self.key_fingerprint
    }

    /// Issues a cookie for an identity at `now`, milliseconds since the epoch. If `former` is a session of the same
    /// user, the cookie renews it; otherwise it begins a new one. Returns `None` when the claims do not fit a cookie.
    #[must_use]
    pub fn issue(&self, identity: &Identity, former: Option<&BrowserSession>, now: u64) -> Option<IssuedCookie> {
        let issued_at = now / 1_000;
        let token_end = identity.expires_at();
        let until = self.spec.max_age.map_or(token_end, |age| issued_at.saturating_add(age.as_secs()));
        let owner = session_owner(identity);
        let times = CookieTimes { issued_at, token_end, expires_at: until };
        let session = match former.filter(|former| *former.owner == *owner) {
            Some(former) => BrowserSession {
                last_end: self.last_end(former).max(until),
                cookie_times: Some(times),
                ..former.clone()
            },
            None => BrowserSession {
                id: URL_SAFE_NO_PAD.encode(random::<16>().ok()?).into(),
                owner,
                browser: None,
                began: now,
                last_end: until,
                authenticated_at: None,
                key: self.key_fingerprint,
                cookie_times: Some(times),
            },
        };
        if former.is_some() {
            self.last_ends.insert(Arc::clone(&session.id), session.last_end);
        }
        let (fingerprint, algorithm) = match identity.verified_by() {
            VerifiedBy::Key { fingerprint, algorithm, .. } => (fingerprint, format!("{algorithm:?}")),
            VerifiedBy::Provider(endpoint) => (endpoint, String::new()),
        };
        let (provider, kind) = (identity.provider(), identity.kind());
        let held = json!({
            "i": &*session.id, "o": &*session.owner, "b": session.began, "l": session.last_end,
            "p": provider.name, "f": provider.preset, "k": fingerprint.text(), "a": algorithm,
            "t": kind.is_access_token, "y": kind.category.name(),
            "e": token_end, "s": issued_at, "u": until, "c": identity.claims(),
        });
        let nonce = random::<NONCE_LEN>().ok()?;
        let mut encrypted = held.to_string().into_bytes();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(unique, Aad::from(PURPOSE), &mut encrypted).ok()?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&encrypted);
        let value = URL_SAFE_NO_PAD.encode(bytes);
        (value.len() <= MAX_COOKIE_VALUE).then_some(IssuedCookie { value, expires_at: until, session })
    }

    /// Returns the browser session of a cookie that can be decrypted, without any other check: a sign-out must work
    /// even where the configuration no longer accepts the cookie.
    #[must_use]
    pub fn decrypt_session(&self, cookie: &SessionCookie) -> Option<BrowserSession> {
        self.decrypt(cookie).map(|content| content.session)
    }

    /// Returns the Unix time in seconds until which an ended session must be kept in the list of ended sessions: until
    /// its last cookie expires, and the last one of the sessions that end with it. Returns `None` when all its cookies have
    /// expired.
    #[must_use]
    pub fn keep_ended_until(&self, session: &BrowserSession, scope: SessionScope, now: u64) -> Option<u64> {
        let known = self.last_end(session);
        if known.saturating_add(CLOCK_ALLOWANCE.as_secs()) <= now {
            return None;
        }
        // Another replica may have renewed the session without notice to this one.
        let possible = now.saturating_add(self.spec.max_age.map_or(ONE_DAY, |age| age.as_secs()));
        // The others of the browser began before now and last as long.
        let last_of_browser = match (scope, &session.browser) {
            (SessionScope::Browser, Some(_)) => {
                now.saturating_add(session.last_end.saturating_sub(session.began / 1_000))
            }
            (SessionScope::Browser, None) | (SessionScope::Session | SessionScope::Replaced { .. }, _) => 0,
        };
        Some(known.max(possible).max(last_of_browser).saturating_add(CLOCK_ALLOWANCE.as_secs()))
    }

    fn last_end(&self, session: &BrowserSession) -> u64 {
        self.last_ends.get(&session.id).map_or(session.last_end, |end| end.max(session.last_end))
    }

    /// Returns the Unix time in seconds at which a cookie expires: the earlier one by the current configuration and by
    /// the configuration at its issue.
    pub(super) fn expiry_of(&self, times: CookieTimes) -> u64 {
        let by_current = match self.spec.max_age {
            Some(age) => times.issued_at.saturating_add(age.as_secs()),
            None => times.token_end,
        };
        times.expires_at.min(by_current)
    }

    /// Decrypts a cookie. Returns `None` if it was not encrypted with this key.
    pub(super) fn decrypt(&self, cookie: &SessionCookie) -> Option<CookieContent> {
        let mut bytes = URL_SAFE_NO_PAD.decode(cookie.expose().as_bytes()).ok()?;
        if bytes.len() < NONCE_LEN {
            return None;
        }
        let mut encrypted = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let held = self.key.open_in_place(nonce, Aad::from(PURPOSE), &mut encrypted).ok()?;
        CookieContent::from_json(json::own_object(held).ok()?, self.key_fingerprint)
    }
}

impl fmt::Debug for SessionCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionCookies")
    }
}

/// Derives the encryption key from a secret (HKDF), or makes a random one.
fn encryption_key(secret: Option<&Secret>) -> Option<(LessSafeKey, KeyFingerprint)> {
    let mut bytes = [0; 32];
    match secret {
        Some(secret) => {
            let derived = Salt::new(HKDF_SHA256, PURPOSE).extract(secret.expose());
            derived.expand(&[b"seal"], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        }
        None => bytes = random().ok()?,
    }
    let fingerprint = KeyFingerprint::of(&[b"seal", &bytes]);
    Some((LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?), fingerprint))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::StoredIdentity;

    fn sessions(secret: Option<&str>) -> SessionCookies {
        let secret = secret.map(|secret| Secret::for_tests(secret.as_bytes()));
        SessionCookies::new(&SessionSpec { secret, ..SessionSpec::default() }, None).expect("a key")
    }

    #[test]
    fn a_cookie_can_be_decrypted_with_the_same_secret_and_with_no_other() {
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let issued = sessions(Some("a")).issue(&identity, None, 1_000_000).expect("fits");
        assert_eq!(issued.expires_at, 2_000);
        let cookie = SessionCookie::parse(&issued.value).expect("a cookie");
        let content = sessions(Some("a")).decrypt(&cookie).expect("decrypts");
        assert_eq!((content.times.expires_at, content.claims["sub"].as_str()), (2_000, Some("alice")));
        assert_eq!((content.verified_by, &content.session), (identity.verified_by(), &issued.session));
        assert!(sessions(Some("b")).decrypt(&cookie).is_none());
        assert!(sessions(None).decrypt(&cookie).is_none());
        assert!(!issued.value.contains("alice") && !format!("{cookie:?}").contains(&issued.value));
    }

    #[test]
    fn a_session_is_kept_as_ended_until_its_last_cookie_expires() {
        let sessions = |max_age: Option<u64>| {
            let spec = SessionSpec { max_age: max_age.map(Duration::from_secs), ..SessionSpec::default() };
            SessionCookies::new(&spec, None).expect("a key")
        };
        let identity = |end| StoredIdentity::example(end).restore().expect("an identity");
        // A token that is valid for days is renewed with one that is valid for an hour, whose cookie is then presented.
        let all = sessions(None);
        let first = all.issue(&identity(900_000), None, 1_000_000).expect("fits");
        let second = all.issue(&identity(4_600), Some(&first.session), 1_000_000).expect("fits");
        assert_eq!((second.expires_at, second.session.last_end), (4_600, 900_000));
        assert_eq!(all.keep_ended_until(&second.session, SessionScope::Session, 2_000), Some(900_060));
        // This is so even when the presented cookie does not contain the other's end.
        let third = all.issue(&identity(2_000_000), Some(&first.session), 1_000_000).expect("fits");
        assert_eq!(third.session.id, second.session.id);
        assert_eq!(all.keep_ended_until(&second.session, SessionScope::Session, 2_000), Some(2_000_060));
        assert_eq!(
            all.keep_ended_until(&second.session, SessionScope::Session, 2_000_060),
            None,
            "all of them have ended"
        );
        let limited = sessions(Some(600));
        let issued = limited.issue(&identity(5_000), None, 1_000_000).expect("fits");
        assert_eq!(
            (issued.expires_at, limited.keep_ended_until(&issued.session, SessionScope::Session, 1_500)),
            (1_600, Some(2_160))
        );
    }

    #[test]
    fn a_sign_out_with_an_expired_cookie_is_not_kept_whatever_ends_with_it() {
        let cookies = sessions(None);
        let identity = StoredIdentity::example(200_000).restore().expect("an identity");
        let issued = cookies.issue(&identity, None, 100_000_000).expect("fits");
        let session = BrowserSession { browser: Some("a".into()), ..issued.session };
        let until = |scope, now| cookies.keep_ended_until(&session, scope, now);
        for scope in [SessionScope::Session, SessionScope::Browser] {
            assert_eq!(until(scope, 200_060), None, "{scope:?}");
            assert_eq!(until(scope, 1_000_000_000), None, "{scope:?}");
        }
        // The session's cookies last for 100,000 s, and another session of its browser may have begun just now.
        assert_eq!(until(SessionScope::Session, 150_000), Some(150_000 + ONE_DAY + 60));
        assert_eq!(until(SessionScope::Browser, 150_000), Some(250_060));
    }

    #[test]
    fn a_shorter_max_age_shortens_sessions_that_exist() {
        let spec = |max_age: Option<u64>| SessionSpec {
            max_age: max_age.map(Duration::from_secs),
            secret: Some(Secret::for_tests(b"a")),
            ..SessionSpec::default()
        };
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let ends = |then: Option<u64>, now: Option<u64>| {
            let issued = SessionCookies::new(&spec(then), None)?.issue(&identity, None, 1_000_000)?;
            let sessions = SessionCookies::new(&spec(now), None)?;
            Some(sessions.expiry_of(sessions.decrypt(&SessionCookie::parse(&issued.value)?)?.times))
        };
        for (then, now, expected) in [
            (Some(9_000), Some(9_000), 10_000),
            (Some(9_000), Some(60), 1_060),
            (Some(9_000), None, 2_000),
            (None, Some(9_000), 2_000),
            (None, Some(60), 1_060),
        ] {
            assert_eq!(ends(then, now), Some(expected), "{then:?} {now:?}");
        }
    }

    #[test]
    fn no_bit_of_a_cookie_can_be_changed() {
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let sessions = sessions(None);
        let issued = sessions.issue(&identity, None, 1_000_000).expect("fits");
        let bytes = URL_SAFE_NO_PAD.decode(&issued.value).expect("base64url");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let cookie = SessionCookie::parse(&URL_SAFE_NO_PAD.encode(changed)).expect("a cookie");
            assert!(sessions.decrypt(&cookie).is_none(), "byte {at}");
        }
        for text in ["AAAA", "x", "…", &issued.value[..20]] {
            assert!(SessionCookie::parse(text).is_none_or(|cookie| sessions.decrypt(&cookie).is_none()), "{text}");
        }
    }
}
