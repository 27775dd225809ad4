//! Reads the claims of a rejected token without verification. The log has them, so that an operator can find out which
//! of many clients sent the token; they have no other use.

use std::borrow::Cow;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::Token;
use super::claims::decimal_text;
use crate::telemetry::UnverifiedCredential;

/// Upper bound on a value, in characters.
const MAX_CHARACTERS: usize = 256;
/// The number of bytes of a digest that are logged: enough to compare users, in 16 hex digits.
const DIGEST_BYTES: usize = 8;

/// Reads the issuer, the key id and a digest of the subject. Values that cannot be read are absent. The size limit of
/// tokens limits the work.
#[must_use]
pub fn unverified_claims(token: &Token) -> UnverifiedCredential {
    let mut parts = token.expose().split('.');
    let mut object = || -> Map<String, Value> {
        let bytes = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    };
    let (header, claims) = (object(), object());
    let text = |value: Option<&Value>| value?.as_str().map(|text| text.chars().take(MAX_CHARACTERS).collect());
    UnverifiedCredential {
        issuer: text(claims.get("iss")),
        key_id: text(header.get("kid")),
        subject_digest: claims.get("sub").and_then(subject_text).map(|subject| subject_digest(&subject)),
        ..UnverifiedCredential::default()
    }
}

/// Reads a subject as a user id is read: a number by its decimal text.
fn subject_text(subject: &Value) -> Option<Cow<'_, str>> {
    subject.as_str().map(Cow::Borrowed).or_else(|| decimal_text(subject).map(Cow::Owned))
}

/// Returns the first 16 hex digits of the SHA-256 of a subject, as `printf %s SUB | sha256sum | cut -c1-16` prints
/// them.
fn subject_digest(subject: &str) -> String {
    let digest = digest(&SHA256, subject.as_bytes());
    let mut text = String::with_capacity(2 * DIGEST_BYTES);
    for byte in digest.as_ref().iter().take(DIGEST_BYTES) {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_read_and_nothing_else() {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let read = |text: &str| unverified_claims(&Token::parse(text, 1 << 20).expect("a token"));
        let (header, claims) = (r#"{"alg":"RS256","kid":"k1"}"#, r#"{"iss":"https://i","sub":"alice"}"#);
        let found = read(&format!("{}.{}.c2ln", encode(header), encode(claims)));
        assert_eq!((found.issuer.as_deref(), found.key_id.as_deref()), (Some("https://i"), Some("k1")));
        assert_eq!(found.subject_digest.as_deref(), Some("2bd806c97f0e00af"));
        let numbered = read(&format!("e30.{}.c2ln", encode(r#"{"sub":42}"#)));
        // printf %s 42 | sha256sum | cut -c1-16
        assert_eq!(numbered.subject_digest.as_deref(), Some("73475cb40a568e8d"));
        for text in ["opaque", "a.b.c", &format!("{}.{}.c", encode("[]"), encode(r#"{"iss":1,"sub":null}"#))] {
            assert_eq!(read(text), UnverifiedCredential::default(), "{text}");
        }
        let long = format!(r#"{{"iss":"{}"}}"#, "é".repeat(1_000));
        assert_eq!(read(&format!("e30.{}.c", encode(&long))).issuer.map(|text| text.chars().count()), Some(256));
    }
}
