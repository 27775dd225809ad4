//! The record of a login session as it leaves this process: encrypted with a key that is derived from the session's
//! key, which is in the cookie and in no store. Name and generation are authenticated with it, so that no record can
//! replace that of another session or of another generation.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::super::keys::SessionKey;
use crate::auth::digest::{Digest, digest};
use crate::json;
use crate::random::random;

const PURPOSE: &[u8] = b"vestibule login record 1";

/// The content of a record.
#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug, PartialEq))]
pub(in crate::auth::login) struct RecordContent {
    /// The issuer, the client's id and the preset of the login that began the session.
    #[serde(rename = "i")]
    pub(in crate::auth::login) issuer: Option<String>,
    #[serde(rename = "w")]
    pub(in crate::auth::login) client_id: String,
    #[serde(rename = "f")]
    pub(in crate::auth::login) preset: String,
    #[serde(rename = "n")]
    pub(in crate::auth::login) nonce: String,
    #[serde(rename = "t")]
    pub(in crate::auth::login) first_auth_time: Option<u64>,
    #[serde(rename = "b")]
    pub(in crate::auth::login) issued_at: Option<Value>,
    /// The claims of the last ID token.
    #[serde(rename = "c", deserialize_with = "claims")]
    pub(in crate::auth::login) id_token_claims: Map<String, Value>,
    /// The claims of the user, if they are not those of the ID token.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none", deserialize_with = "json::own_member")]
    pub(in crate::auth::login) claims: Option<Map<String, Value>>,
    #[serde(rename = "y")]
    pub(in crate::auth::login) is_access_token: bool,
    #[serde(rename = "g")]
    pub(in crate::auth::login) category: String,
    #[serde(rename = "k")]
    pub(in crate::auth::login) key_fingerprint: String,
    #[serde(rename = "a")]
    pub(in crate::auth::login) algorithm: String,
    /// The `exp` and `auth_time` of the last ID token, Unix seconds.
    #[serde(rename = "x")]
    pub(in crate::auth::login) id_token_end: u64,
    #[serde(rename = "s")]
    pub(in crate::auth::login) auth_time: Option<u64>,
    #[serde(rename = "h")]
    pub(in crate::auth::login) id_token: Option<String>,
    #[serde(rename = "p")]
    pub(in crate::auth::login) access_token: Option<String>,
    #[serde(rename = "r")]
    pub(in crate::auth::login) refresh_token: Option<String>,
    /// The Unix time in seconds at which the tokens expire.
    #[serde(rename = "e")]
    pub(in crate::auth::login) token_end: u64,
    /// The Unix time in milliseconds of the next renewal.
    #[serde(rename = "d")]
    pub(in crate::auth::login) renew_at: u64,
}

fn claims<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    json::own_member(deserializer)?.ok_or_else(|| D::Error::custom("no claims"))
}

#[cfg(any(test, fuzzing))]
impl RecordContent {
    /// Makes an example.
    pub(in crate::auth::login) fn example() -> Self {
        Self {
            issuer: Some("https://a".to_owned()),
            client_id: "b".to_owned(),
            preset: "oidc".to_owned(),
            nonce: "c".to_owned(),
            first_auth_time: None,
            issued_at: Some(5.into()),
            // The name that serde_json reserves for raw values.
            id_token_claims: Map::from_iter([(
                "m".to_owned(),
                serde_json::json!({ "$serde_json::private::RawValue": "{}" }),
            )]),
            claims: None,
            is_access_token: false,
            category: String::new(),
            key_fingerprint: "d".to_owned(),
            algorithm: "RS256".to_owned(),
            id_token_end: 6,
            auth_time: Some(7),
            id_token: None,
            access_token: None,
            refresh_token: Some("secret-refresh".to_owned()),
            token_end: 8,
            renew_at: 9,
        }
    }
}

/// Encrypts and decrypts the records of one session.
pub(in crate::auth::login) struct RecordKey {
    cipher: LessSafeKey,
    name: Digest,
}

impl RecordKey {
    /// Derives the keys of a session's record. Returns `None` where the cryptography library does not.
    pub(in crate::auth::login) fn new(key: &SessionKey, session_id: &str) -> Option<Self> {
        let cipher = UnboundKey::new(&AES_256_GCM, &key.derive(b"encrypt")?).ok()?;
        let name = hmac::Key::new(hmac::HMAC_SHA256, &key.derive(b"name")?);
        Some(Self { cipher: LessSafeKey::new(cipher), name: digest(&name, &[session_id.as_bytes()]) })
    }

    /// Returns the name of the record in a store.
    pub(in crate::auth::login) fn name(&self) -> Digest {
        self.name
    }

    fn associated_data(&self, generation: u64) -> Aad<Vec<u8>> {
        Aad::from([PURPOSE, &self.name.0[..], &generation.to_be_bytes()[..]].concat())
    }

    /// Encrypts a record: a random nonce, then the ciphertext (AES-256-GCM). Returns `None` when the system has no random
    /// numbers.
    pub(in crate::auth::login) fn seal(&self, generation: u64, content: &RecordContent) -> Option<Vec<u8>> {
        let nonce = random::<NONCE_LEN>().ok()?;
        let mut encrypted = serde_json::to_vec(content).ok()?;
        let associated_data = self.associated_data(generation);
        self.cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), associated_data, &mut encrypted)
            .ok()?;
        Some([&nonce[..], &encrypted].concat())
    }

    /// Decrypts a record. Returns `None` for one of another session, another generation or another key.
    pub(in crate::auth::login) fn open(&self, generation: u64, sealed: &[u8]) -> Option<RecordContent> {
        let (nonce, encrypted) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut encrypted = encrypted.to_vec();
        let content = self.cipher.open_in_place(nonce, self.associated_data(generation), &mut encrypted).ok()?;
        serde_json::from_slice(content).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_by_its_session_s_key_as_its_own_generation_alone() {
        let (key, other) = (SessionKey::generate().expect("random"), SessionKey::generate().expect("random"));
        let record = |key: &SessionKey, id: &str| RecordKey::new(key, id).expect("keys");
        let ours = record(&key, "id");
        let sealed = ours.seal(3, &RecordContent::example()).expect("sealed");
        assert!(!sealed.windows(6).any(|part| part == b"secret"), "encrypted");
        assert_ne!(sealed, ours.seal(3, &RecordContent::example()).expect("sealed"), "each with a nonce of its own");
        assert_eq!(record(&key, "id").open(3, &sealed), Some(RecordContent::example()));
        assert_eq!(ours.open(2, &sealed), None, "another generation");
        assert_eq!(record(&key, "other").open(3, &sealed), None, "another session");
        assert_eq!(record(&other, "id").open(3, &sealed), None, "another key");
        assert_eq!(ours.name(), record(&key, "id").name());
        assert_ne!(ours.name(), record(&key, "other").name());
        assert_ne!(ours.name(), record(&other, "id").name());
        for at in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[at] ^= 1;
            assert_eq!(ours.open(3, &forged), None, "byte {at}");
        }
        for length in [0, 11, 12, 27, sealed.len() - 1] {
            assert_eq!(ours.open(3, &sealed[..length]), None, "{length} bytes");
        }
    }
}
