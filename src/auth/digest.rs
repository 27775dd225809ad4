//! Keyed digests of names. Users, sessions and tokens are revoked and recorded by digests, so that every entry has the
//! same size, clients cannot choose names with equal digests, and a digest does not reveal the name.
//!
//! Without `shared` the key is random for this process. With it the key is derived from a secret of all instances.

use std::hash::{BuildHasher as _, RandomState};

use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::hmac::{self, HMAC_SHA256};

use crate::policy::Secret;

/// The bytes of a digest.
pub const DIGEST_BYTES: usize = 16;

/// A keyed digest: the first 16 bytes of an HMAC-SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

/// The keys of digests: the first is the one in use, the others belong to secrets that are being replaced.
#[derive(Debug)]
pub struct DigestKeys(Vec<hmac::Key>);

impl Default for DigestKeys {
    /// Makes a random key of this process.
    fn default() -> Self {
        // Each `RandomState` has keys of its own from the system's random numbers.
        let halves = [RandomState::new(), RandomState::new()];
        let mut key = [0; 32];
        for (index, part) in key.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&halves[index % 2].hash_one(index).to_le_bytes());
        }
        Self(vec![hmac::Key::new(HMAC_SHA256, &key)])
    }
}

impl DigestKeys {
    /// Derives the keys from the secrets, with the same result at every instance. Returns `None` where there is no
    /// secret.
    #[must_use]
    pub fn derived(secrets: &[Secret], name: &str) -> Option<Self> {
        let keys: Vec<_> = secrets.iter().filter_map(|secret| derive(secret, name, b"digest")).collect();
        (!keys.is_empty() && keys.len() == secrets.len()).then_some(Self(keys))
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the digest of these parts under the key with this number.
    pub(super) fn with(&self, index: usize, parts: &[&[u8]]) -> Digest {
        self.0.get(index).map_or_else(Digest::default, |key| digest(key, parts))
    }

    /// Returns the digest of these parts under the key in use.
    #[must_use]
    pub fn digest(&self, parts: &[&[u8]]) -> Digest {
        self.with(0, parts)
    }
}

/// Derives a key for one purpose from a shared secret (HKDF, RFC 5869).
#[must_use]
pub fn derive(secret: &Secret, name: &str, purpose: &[u8]) -> Option<hmac::Key> {
    let mut bytes = [0; 32];
    let derived = Salt::new(HKDF_SHA256, b"vestibule shared 1").extract(secret.expose());
    derived.expand(&[purpose, b" ", name.as_bytes()], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
    Some(hmac::Key::new(HMAC_SHA256, &bytes))
}

/// Returns the digest of these parts. The length of each part is included, so that two lists of parts never have the
/// same input.
#[must_use]
pub fn digest(key: &hmac::Key, parts: &[&[u8]]) -> Digest {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut bytes = [0; DIGEST_BYTES];
    bytes.copy_from_slice(&context.sign().as_ref()[..DIGEST_BYTES]);
    Digest(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_with_one_secret_and_name_agree_and_no_others() {
        let of = |secret: &[u8], name: &str| {
            DigestKeys::derived(&[Secret::for_tests(secret)], name).expect("keys").digest(&[b"user", b"alice"])
        };
        assert_eq!(of(b"a", "x"), of(b"a", "x"));
        assert_ne!(of(b"a", "x"), of(b"a", "y"));
        assert_ne!(of(b"a", "x"), of(b"b", "x"));
        let process = DigestKeys::default();
        assert_ne!(process.digest(&[b"a"]), DigestKeys::default().digest(&[b"a"]));
        assert_ne!(process.digest(&[b"ab", b"c"]), process.digest(&[b"a", b"bc"]));
    }
}
