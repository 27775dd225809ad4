//! Our session cookie: what a verified token said, sealed with a key of ours. Never a token, good nowhere else
//! (docs/contract.md section 8).
//!
//! Owns the seal. Where the cookie stands is `token`'s, who may have one is `browser`'s.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use quick_cache::sync::Cache;
use serde_json::{Map, Value, json};

use super::identify::Said;
use super::identity::{BrowserSession, Expiry, VerifiedBy};
use super::kind::{Category, KindHeader};
use super::{Identity, KeyFingerprint, issuer_or_name};
use crate::policy::{Secret, SessionSpec};

/// What the seal is for: nothing sealed for another purpose opens here.
const PURPOSE: &[u8] = b"vestibule session 2";
/// Browsers keep cookies of at most 4096 bytes, name and attributes among them.
pub(super) const LONGEST: usize = 3_900;

/// How much later than the known cookies of a session another may end, where they end when their tokens do.
const A_DAY: u64 = 86_400;
/// Clocks of replicas differ.
const A_MINUTE: u64 = 60;

/// A session cookie as a browser sent it. Cannot be printed.
pub struct SessionCookie(Box<str>);

impl SessionCookie {
    pub(super) fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= LONGEST).then(|| Self(text.into()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionCookie({} bytes)", self.0.len())
    }
}

/// A session that was issued or renewed, for its cookie.
#[derive(Debug)]
pub struct IssuedCookie {
    /// The value of the cookie.
    pub value: String,
    /// Until when it is good, Unix seconds.
    pub expires_at: u64,
    /// Which session it is of.
    pub session: BrowserSession,
}

/// What a cookie of ours holds: what its token said, and all that is needed to judge that again.
pub(super) struct Opened {
    pub(super) session: BrowserSession,
    /// The name of its provider, and of the preset that was made from.
    pub(super) provider: String,
    pub(super) preset: String,
    pub(super) claims: Map<String, Value>,
    kind: KindHeader,
    verified_by: VerifiedBy,
    /// The token's end, Unix seconds.
    pub(super) token_end: u64,
    /// When the cookie was sealed, and until when it was good by the policy of that moment.
    sealed_at: u64,
    until: u64,
}

impl Opened {
    /// What the token said, for a session that is good until then.
    pub(super) fn said(self, until: u64) -> Said {
        Said { claims: self.claims, kind: self.kind, end: Expiry::At(until), verified_by: self.verified_by }
    }

    fn read(mut held: Map<String, Value>, seal: KeyFingerprint) -> Option<Self> {
        let Some(Value::Object(claims)) = held.shift_remove("c") else { return None };
        let text = |name: &str| held.get(name).and_then(Value::as_str);
        let number = |name: &str| held.get(name).and_then(Value::as_u64);
        let token_end = number("e")?;
        let print = KeyFingerprint::from_text(text("k")?)?;
        let verified_by = match text("a")? {
            "" => VerifiedBy::Provider(print),
            algorithm => VerifiedBy::Key { print, algorithm: algorithm.parse().ok()?, until: token_end },
        };
        let session = BrowserSession {
            id: text("i")?.into(),
            owner: text("o")?.into(),
            began: number("b")?,
            last_end: number("l")?,
            seal,
        };
        let is_access_token = held.get("t")?.as_bool()?;
        Some(Self {
            session,
            provider: text("p")?.to_owned(),
            preset: text("f")?.to_owned(),
            kind: KindHeader { is_access_token, category: Category::named(text("y")?)? },
            verified_by,
            token_end,
            sealed_at: number("s")?,
            until: number("u")?,
            claims,
        })
    }
}

/// Seals sessions and opens them.
pub struct SessionCookies {
    spec: SessionSpec,
    key: Arc<LessSafeKey>,
    seal: KeyFingerprint,
    /// The last end of the sessions that were renewed lately: a renewal that another cookie of the session does not
    /// know of may end later than anything that one holds.
    last_ends: Arc<Cache<Arc<str>, u64>>,
}

/// Renewed sessions remembered in [`SessionCookies::last_ends`].
const RENEWED: usize = 10_000;

impl SessionCookies {
    /// By the key of `session.secret_file`, or one of this process, which a reload keeps.
    pub(super) fn new(spec: &SessionSpec, former: Option<&Self>) -> Option<Self> {
        let (key, seal) = match (&spec.secret, former) {
            (None, Some(former)) if former.spec.secret.is_none() => (Arc::clone(&former.key), former.seal),
            (secret, _) => {
                let (key, seal) = key(secret.as_ref())?;
                (Arc::new(key), seal)
            }
        };
        let last_ends = former.map_or_else(|| Arc::new(Cache::new(RENEWED)), |former| Arc::clone(&former.last_ends));
        Some(Self { spec: spec.clone(), key, seal, last_ends })
    }

    /// How sessions live.
    pub(super) fn spec(&self) -> &SessionSpec {
        &self.spec
    }

    /// Which key seals them.
    pub(super) fn seal(&self) -> KeyFingerprint {
        self.seal
    }

    /// Seals what an identity says at `now`, milliseconds since the epoch. A user's session that a cookie of theirs is of
    /// (`former`) goes on. `None` where it does not fit a cookie.
    #[must_use]
    pub fn issue(&self, identity: &Identity, former: Option<&BrowserSession>, now: u64) -> Option<IssuedCookie> {
        let sealed_at = now / 1_000;
        let token_end = identity.expires_at();
        let until = self.spec.max_age.map_or(token_end, |age| sealed_at.saturating_add(age.as_secs()));
        let owner = KeyFingerprint::of(&[
            b"user",
            issuer_or_name(identity.provider()).as_bytes(),
            identity.user_id().as_bytes(),
        ]);
        let owner = owner.text();
        let session = match former.filter(|former| *former.owner == *owner) {
            Some(former) => BrowserSession { last_end: self.last_end(former).max(until), ..former.clone() },
            None => BrowserSession {
                id: URL_SAFE_NO_PAD.encode(random::<16>()?).into(),
                owner: owner.into(),
                began: now,
                last_end: until,
                seal: self.seal,
            },
        };
        if former.is_some() {
            self.last_ends.insert(Arc::clone(&session.id), session.last_end);
        }
        let (print, algorithm) = match identity.verified_by() {
            VerifiedBy::Key { print, algorithm, .. } => (print, format!("{algorithm:?}")),
            VerifiedBy::Provider(print) => (print, String::new()),
        };
        let (provider, kind) = (identity.provider(), identity.kind());
        let held = json!({
            "i": &*session.id, "o": &*session.owner, "b": session.began, "l": session.last_end,
            "p": provider.name, "f": provider.preset, "k": print.text(), "a": algorithm,
            "t": kind.is_access_token, "y": kind.category.name(),
            "e": token_end, "s": sealed_at, "u": until, "c": identity.claims(),
        });
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = held.to_string().into_bytes();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(unique, Aad::from(PURPOSE), &mut sealed).ok()?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        let value = URL_SAFE_NO_PAD.encode(bytes);
        (value.len() <= LONGEST).then_some(IssuedCookie { value, expires_at: until, session })
    }

    /// The session that a cookie is of, by its seal alone: to end it, whatever the policy thinks of it.
    #[must_use]
    pub fn decrypt_session(&self, cookie: &SessionCookie) -> Option<BrowserSession> {
        self.open(cookie).map(|opened| opened.session)
    }

    /// Until when an ended session has to be remembered as ended, Unix seconds: the last end that a cookie of it was
    /// sealed with. `None` where all of them have ended.
    #[must_use]
    pub fn keep_ended_until(&self, session: &BrowserSession, now: u64) -> Option<u64> {
        let known = self.last_end(session);
        if known.saturating_add(A_MINUTE) <= now {
            return None;
        }
        // Another instance may have renewed it from a cookie that this one does not know.
        let possible = now.saturating_add(self.spec.max_age.map_or(A_DAY, |age| age.as_secs()));
        Some(known.max(possible).saturating_add(A_MINUTE))
    }

    fn last_end(&self, session: &BrowserSession) -> u64 {
        self.last_ends.get(&session.id).map_or(session.last_end, |end| end.max(session.last_end))
    }

    /// Until when a cookie is good by the policy in force, which another may have sealed.
    pub(super) fn end_of(&self, opened: &Opened) -> u64 {
        let by_policy = match self.spec.max_age {
            Some(age) => opened.sealed_at.saturating_add(age.as_secs()),
            None => opened.token_end,
        };
        opened.until.min(by_policy)
    }

    pub(super) fn open(&self, cookie: &SessionCookie) -> Option<Opened> {
        let mut bytes = URL_SAFE_NO_PAD.decode(cookie.0.as_bytes()).ok()?;
        if bytes.len() < NONCE_LEN {
            return None;
        }
        let sealed = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let mut sealed = sealed;
        let held = self.key.open_in_place(nonce, Aad::from(PURPOSE), &mut sealed).ok()?;
        let Value::Object(held) = serde_json::from_slice(held).ok()? else { return None };
        Opened::read(held, self.seal)
    }
}

impl fmt::Debug for SessionCookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionCookies")
    }
}

fn random<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// The key, and what it is known by.
fn key(secret: Option<&Secret>) -> Option<(LessSafeKey, KeyFingerprint)> {
    let mut bytes = [0; 32];
    match secret {
        Some(secret) => {
            let derived = Salt::new(HKDF_SHA256, PURPOSE).extract(secret.expose());
            derived.expand(&[b"seal"], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        }
        None => bytes = random()?,
    }
    let seal = KeyFingerprint::of(&[b"seal", &bytes]);
    Some((LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?), seal))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::StoredIdentity;

    fn sessions(secret: Option<&str>) -> SessionCookies {
        let secret = secret.map(|secret| Secret::for_tests(secret.as_bytes()));
        SessionCookies::new(&SessionSpec { max_age: None, secret, revalidate_every: None }, None).expect("a key")
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_secret_and_with_no_other() {
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let issued = sessions(Some("a")).issue(&identity, None, 1_000_000).expect("fits");
        assert_eq!(issued.expires_at, 2_000);
        let cookie = SessionCookie::parse(&issued.value).expect("a cookie");
        let opened = sessions(Some("a")).open(&cookie).expect("opens");
        assert_eq!((opened.until, opened.claims["sub"].as_str()), (2_000, Some("alice")));
        assert_eq!((opened.verified_by, &opened.session), (identity.verified_by(), &issued.session));
        assert!(sessions(Some("b")).open(&cookie).is_none());
        assert!(sessions(None).open(&cookie).is_none());
        assert!(!issued.value.contains("alice") && !format!("{cookie:?}").contains(&issued.value));
    }

    #[test]
    fn a_session_is_remembered_as_ended_until_the_last_end_of_its_cookies() {
        let sessions = |max_age: Option<u64>| {
            let spec = SessionSpec { max_age: max_age.map(Duration::from_secs), secret: None, revalidate_every: None };
            SessionCookies::new(&spec, None).expect("a key")
        };
        let identity = |end| StoredIdentity::example(end).restore().expect("an identity");
        // A token of days is renewed by one of an hour, and the cookie of that one is shown.
        let all = sessions(None);
        let first = all.issue(&identity(900_000), None, 1_000_000).expect("fits");
        let second = all.issue(&identity(4_600), Some(&first.session), 1_000_000).expect("fits");
        assert_eq!((second.expires_at, second.session.last_end), (4_600, 900_000));
        assert_eq!(all.keep_ended_until(&second.session, 2_000), Some(900_060));
        // Even when the shown one does not know of the other.
        let third = all.issue(&identity(2_000_000), Some(&first.session), 1_000_000).expect("fits");
        assert_eq!(third.session.id, second.session.id);
        assert_eq!(all.keep_ended_until(&second.session, 2_000), Some(2_000_060));
        assert_eq!(all.keep_ended_until(&second.session, 2_000_060), None, "all of them have ended");
        let limited = sessions(Some(600));
        let issued = limited.issue(&identity(5_000), None, 1_000_000).expect("fits");
        assert_eq!((issued.expires_at, limited.keep_ended_until(&issued.session, 1_500)), (1_600, Some(2_160)));
    }

    #[test]
    fn a_policy_that_makes_sessions_shorter_shortens_those_that_are_open() {
        let spec = |max_age: Option<u64>| SessionSpec {
            max_age: max_age.map(Duration::from_secs),
            secret: Some(Secret::for_tests(b"a")),
            revalidate_every: None,
        };
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let ends = |sealed: Option<u64>, opened: Option<u64>| {
            let issued = SessionCookies::new(&spec(sealed), None)?.issue(&identity, None, 1_000_000)?;
            let sessions = SessionCookies::new(&spec(opened), None)?;
            Some(sessions.end_of(&sessions.open(&SessionCookie::parse(&issued.value)?)?))
        };
        for (sealed, opened, expected) in [
            (Some(9_000), Some(9_000), 10_000),
            (Some(9_000), Some(60), 1_060),
            (Some(9_000), None, 2_000),
            (None, Some(9_000), 2_000),
            (None, Some(60), 1_060),
        ] {
            assert_eq!(ends(sealed, opened), Some(expected), "{sealed:?} {opened:?}");
        }
    }

    #[test]
    fn no_bit_of_it_can_be_changed() {
        let identity = StoredIdentity::example(2_000).restore().expect("an identity");
        let sessions = sessions(None);
        let issued = sessions.issue(&identity, None, 1_000_000).expect("fits");
        let bytes = URL_SAFE_NO_PAD.decode(&issued.value).expect("base64url");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let cookie = SessionCookie::parse(&URL_SAFE_NO_PAD.encode(changed)).expect("a cookie");
            assert!(sessions.open(&cookie).is_none(), "byte {at}");
        }
        for text in ["AAAA", "x", "…", &issued.value[..20]] {
            assert!(SessionCookie::parse(text).is_none_or(|cookie| sessions.open(&cookie).is_none()), "{text}");
        }
    }
}
