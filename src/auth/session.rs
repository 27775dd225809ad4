//! Our session cookie: what a verified token said, sealed with a key of ours. Never a token, good nowhere else
//! (docs/contract.md section 8).
//!
//! Owns the seal. Where the cookie stands is `token`'s, who may have one is `browser`'s.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::Identity;
use crate::policy::{Secret, SessionSpec};

/// What the seal is for: nothing sealed for another purpose opens here.
const PURPOSE: &[u8] = b"vestibule session 1";
/// Browsers keep cookies of at most 4096 bytes, name and attributes among them.
const LONGEST: usize = 3_900;

/// Beyond the end of a cookie whose renewals end when their tokens do.
const A_DAY: u64 = 86_400;
/// Clocks of replicas differ.
const A_MINUTE: u64 = 60;

/// A session cookie as a browser sent it. Cannot be printed.
pub struct SessionCookie(Box<str>);

impl SessionCookie {
    pub(super) fn presented(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= LONGEST).then(|| Self(text.into()))
    }
}

impl fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionCookie({} bytes)", self.0.len())
    }
}

/// A session that was begun, for its cookie.
#[derive(Debug)]
pub struct Begun {
    /// The value of the cookie.
    pub value: String,
    /// Until when it is good, Unix seconds.
    pub until: u64,
}

/// What a cookie of ours holds.
pub(super) struct Opened {
    pub(super) id: Arc<str>,
    pub(super) provider: String,
    pub(super) claims: Map<String, Value>,
    pub(super) until: u64,
}

/// Seals sessions and opens them.
pub struct Sessions {
    spec: SessionSpec,
    key: Arc<LessSafeKey>,
}

impl Sessions {
    /// By the key of `session.secret_file`, or one of this process, which a reload keeps.
    pub(super) fn new(spec: &SessionSpec, former: Option<&Self>) -> Option<Self> {
        let key = match (&spec.secret, former) {
            (None, Some(former)) if former.spec.secret.is_none() => Arc::clone(&former.key),
            (secret, _) => Arc::new(key(secret.as_ref())?),
        };
        Some(Self { spec: spec.clone(), key })
    }

    /// How sessions live.
    pub(super) fn spec(&self) -> &SessionSpec {
        &self.spec
    }

    /// Seals what an identity says; one that is in a session of ours already keeps its id. `None` where it does not
    /// fit a cookie.
    #[must_use]
    pub fn begin(&self, identity: &Identity, former: Option<&Identity>, now: u64) -> Option<Begun> {
        let until = match self.spec.max_age {
            Some(age) => now.saturating_add(age.as_secs()),
            None => identity.expires_at(),
        };
        let id = match former.and_then(Identity::own_session) {
            Some(id) => id.to_owned(),
            None => URL_SAFE_NO_PAD.encode(random::<16>()?),
        };
        let held = json!({"i": id, "p": identity.provider().name, "u": until, "c": identity.claims()});
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = held.to_string().into_bytes();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(unique, Aad::from(PURPOSE), &mut sealed).ok()?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        let value = URL_SAFE_NO_PAD.encode(bytes);
        (value.len() <= LONGEST).then_some(Begun { value, until })
    }

    /// How long an ended session has to be remembered as ended: a renewal that was under way may have sealed a cookie
    /// of the same session that ends later than the one that was shown.
    #[must_use]
    pub fn remembered_ended(&self, shown_until: u64, now: u64) -> Duration {
        let left = shown_until.saturating_sub(now);
        let longest = match self.spec.max_age {
            Some(age) => left.max(age.as_secs()),
            None => left.saturating_add(A_DAY),
        };
        Duration::from_secs(longest.saturating_add(A_MINUTE))
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
        let Value::Object(mut held) = serde_json::from_slice(held).ok()? else { return None };
        let Some(Value::Object(claims)) = held.shift_remove("c") else { return None };
        Some(Opened {
            id: held.get("i")?.as_str()?.into(),
            provider: held.get("p")?.as_str()?.to_owned(),
            claims,
            until: held.get("u")?.as_u64()?,
        })
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

fn random<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

fn key(secret: Option<&Secret>) -> Option<LessSafeKey> {
    let mut bytes = [0; 32];
    match secret {
        Some(secret) => {
            let derived = Salt::new(HKDF_SHA256, PURPOSE).extract(secret.expose());
            derived.expand(&[b"seal"], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        }
        None => bytes = random()?,
    }
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Remembered;

    fn sessions(secret: Option<&str>) -> Sessions {
        let secret = secret.map(|secret| Secret::for_tests(secret.as_bytes()));
        Sessions::new(&SessionSpec { max_age: None, secret, revalidate_every: None }, None).expect("a key")
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_secret_and_with_no_other() {
        let identity = Remembered::example(2_000).recalled().expect("an identity");
        let begun = sessions(Some("a")).begin(&identity, None, 1_000).expect("fits");
        assert_eq!(begun.until, 2_000);
        let cookie = SessionCookie::presented(&begun.value).expect("a cookie");
        let opened = sessions(Some("a")).open(&cookie).expect("opens");
        assert_eq!((opened.until, opened.claims["sub"].as_str()), (2_000, Some("alice")));
        assert!(sessions(Some("b")).open(&cookie).is_none());
        assert!(sessions(None).open(&cookie).is_none());
        assert!(!begun.value.contains("alice") && !format!("{cookie:?}").contains(&begun.value));
    }

    #[test]
    fn an_ended_session_is_remembered_until_its_last_possible_cookie_has_ended() {
        for (max_age, shown_until, at_least) in
            [(Some(600), 1_010, 600), (Some(600), 9_000, 8_000), (None, 1_010, A_DAY)]
        {
            let spec = SessionSpec { max_age: max_age.map(Duration::from_secs), secret: None, revalidate_every: None };
            let sessions = Sessions::new(&spec, None).expect("a key");
            let kept = sessions.remembered_ended(shown_until, 1_000).as_secs();
            assert!(kept > at_least, "{max_age:?} {shown_until}: {kept}");
        }
    }

    #[test]
    fn no_bit_of_it_can_be_changed() {
        let identity = Remembered::example(2_000).recalled().expect("an identity");
        let sessions = sessions(None);
        let begun = sessions.begin(&identity, None, 1_000).expect("fits");
        let bytes = URL_SAFE_NO_PAD.decode(&begun.value).expect("base64url");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let cookie = SessionCookie::presented(&URL_SAFE_NO_PAD.encode(changed)).expect("a cookie");
            assert!(sessions.open(&cookie).is_none(), "byte {at}");
        }
        for text in ["AAAA", "x", "…", &begun.value[..20]] {
            assert!(SessionCookie::presented(text).is_none_or(|cookie| sessions.open(&cookie).is_none()), "{text}");
        }
    }
}
