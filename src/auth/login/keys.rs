//! The keys of the sign-in, derived from `browser.session.secret_file` or random for this process. They encrypt the
//! data that browsers and providers carry for the proxy, and nonces and PKCE verifiers are derived from them, so that
//! nothing is stored here.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::auth::digest::{Digest, digest};
use crate::json;
use crate::policy::Secret;
use crate::random::random;

/// The salt of the key derivation, so that no other use of the same secret has the same keys.
const SALT: &[u8] = b"vestibule login 1";

/// The salt of the keys of a session's record.
const RECORD_SALT: &[u8] = b"vestibule login record 1";

/// The lifetime of a state, in milliseconds.
pub(super) const STATE_LIFE: u64 = 10 * 60 * 1_000;

/// The purpose of an encryption. It is the associated data, so that nothing encrypted for one purpose can be decrypted
/// for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A [`LoginState`](super::LoginState).
    State,
    /// A [`LoginCookie`](super::LoginCookie).
    LoginCookie,
    /// The session cookie of a sign-in.
    SessionCookie,
}

impl Purpose {
    const fn associated_data(self) -> &'static [u8] {
        match self {
            Self::State => b"vestibule login state 1",
            Self::LoginCookie => b"vestibule login cookie 1",
            Self::SessionCookie => b"vestibule login session 2",
        }
    }
}

/// The keys of the sign-in. They are never printed.
pub struct LoginKeys {
    encryption: LessSafeKey,
    digest: hmac::Key,
    derivation: Prk,
    /// Whether the keys are random and not derived from a secret.
    is_random: bool,
}

impl LoginKeys {
    /// Derives the keys from the secret of `browser.session`, or makes random ones, which a reload copies from
    /// `former`. Returns `None` when the system has no random numbers.
    pub(super) fn new(secret: Option<&Secret>, former: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if secret.is_none()
            && let Some(former) = former.filter(|former| former.is_random)
        {
            return Some(Arc::clone(former));
        }
        let derivation = match secret {
            Some(secret) => Salt::new(HKDF_SHA256, SALT).extract(secret.expose()),
            None => Salt::new(HKDF_SHA256, SALT).extract(&random::<32>().ok()?),
        };
        let key = |name: &[u8]| {
            let mut bytes = [0; 32];
            derivation.expand(&[name], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
            Some(bytes)
        };
        let encryption = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key(b"seal")?).ok()?);
        let digest = hmac::Key::new(hmac::HMAC_SHA256, &key(b"digest")?);
        Some(Arc::new(Self { encryption, digest, derivation, is_random: secret.is_none() }))
    }

    /// Encrypts an object as base64url text: a random nonce, then the ciphertext (AES-256-GCM).
    pub(super) fn encrypt(&self, purpose: Purpose, content: &Value) -> Option<String> {
        let nonce = random::<NONCE_LEN>().ok()?;
        let mut encrypted = content.to_string().into_bytes();
        let associated_data = Aad::from(purpose.associated_data());
        self.encryption
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), associated_data, &mut encrypted)
            .ok()?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&encrypted);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Decrypts an object, or returns `None` if another key or another purpose was used.
    pub(super) fn decrypt(&self, purpose: Purpose, text: &str) -> Option<Map<String, Value>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        if bytes.len() < NONCE_LEN {
            return None;
        }
        let mut encrypted = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let associated_data = Aad::from(purpose.associated_data());
        let content = self.encryption.open_in_place(nonce, associated_data, &mut encrypted).ok()?;
        json::own_object(content).ok()
    }

    /// Derives a secret of one attempt: its nonce or its PKCE verifier.
    pub(super) fn derive(&self, what: &'static [u8], secret: &[u8; 32], attempt: &[u8; 16]) -> Option<String> {
        let mut bytes = [0; 32];
        self.derivation.expand(&[what, secret, attempt], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Returns the digest of an attempt to sign in, under which instances record that it was completed.
    pub(super) fn name_of_attempt(&self, attempt: &[u8; 16]) -> Digest {
        digest(&self.digest, &[b"attempt", attempt])
    }

    /// Returns a keyed digest of a login cookie's secret.
    pub(super) fn digest_of(&self, secret: &[u8; 32]) -> [u8; 32] {
        let tag = hmac::sign(&self.digest, secret);
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }
}

impl std::fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginKeys")
    }
}

/// The key of one login session. It is never printed.
#[derive(Clone)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// Generates a random key, or returns `None` when the system has no random numbers.
    pub(super) fn generate() -> Option<Self> {
        random().ok().map(Self)
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        bytes(text).map(Self)
    }

    pub(super) fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Derives a key of one purpose for the session's record.
    pub(super) fn derive(&self, purpose: &'static [u8]) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        let derived = Salt::new(HKDF_SHA256, RECORD_SALT).extract(&self.0);
        derived.expand(&[purpose], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Compares two keys in constant time.
    pub(super) fn equals(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionKey")
    }
}

/// Decodes base64url text of a fixed length.
pub(super) fn bytes<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}
