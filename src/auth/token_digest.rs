//! Digests by which this process finds tokens and provider sessions in its caches. They are never stored or sent; what
//! must be found at other instances or after a restart has those of [`digest`](super::digest).

use std::sync::LazyLock;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;

use super::Token;

/// The bytes of a digest.
const BYTES: usize = 16;

/// The digest of a whole token or of a provider session's id: the authentication tag (GMAC, NIST SP 800-38D) that the text
/// has as additional data under a random key of this process.
///
/// It must be impossible to find two texts with one digest, since the identity of the one would be given to the other. For
/// two different texts of at most n blocks of 16 bytes, chosen without knowing the key or any tag, the probability of an
/// equal tag is at most (n + 1)/2^128: less than 2^-111 for the longest token that a configuration can allow. Tags never
/// leave the process, so the nonce may be the same each time: what a repeated nonce gives away, it gives to those who see
/// tags.
///
/// SHA-256 takes 10 times as long on a processor without instructions for it (measured for 700 bytes: 3 µs), which is a
/// seventh of what a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenDigest([u8; BYTES]);

static KEY: LazyLock<LessSafeKey> = LazyLock::new(|| {
    let mut bytes = [0; BYTES];
    #[expect(clippy::expect_used, reason = "without random numbers nothing can be verified")]
    rand::fill(&mut bytes).expect("the system has random numbers");
    #[expect(clippy::expect_used, reason = "a key of AES-128 is any 16 bytes")]
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &bytes).expect("16 bytes"))
});

impl TokenDigest {
    /// Returns the digest of a token.
    pub(super) fn of(token: &Token) -> Self {
        Self::of_text(token.expose())
    }

    /// Returns the digest of a provider session, given its id.
    pub(super) fn of_session(id: &str) -> Self {
        // The space keeps this from being the digest of a token, since tokens have none.
        Self::of_text(&format!("session {id}"))
    }

    fn of_text(text: &str) -> Self {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = KEY.seal_in_place_separate_tag(nonce, Aad::from(text.as_bytes()), &mut []);
        // An equal value for all texts instead of a panic would give one user's identity to another.
        #[expect(clippy::expect_used, reason = "additional data of less than 2^61 bytes has a tag of 16")]
        Self(tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).expect("a tag"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> TokenDigest {
        TokenDigest::of(&Token::parse(text, 1 << 20).expect("token"))
    }

    #[test]
    fn a_token_has_one_digest_which_is_the_tag_of_its_whole_text() {
        let texts: Vec<String> = (1..200).map(|length| "a".repeat(length)).collect();
        let mut found: Vec<[u8; BYTES]> = texts.iter().map(|text| of(text).0).collect();
        assert!(texts.iter().zip(&found).all(|(text, digest)| of(text).0 == *digest));
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), texts.len(), "texts of different lengths have different digests");
    }

    #[test]
    fn each_character_of_a_token_counts() {
        let text = "abcdefghijklmnopqrstuvwxyz0123456789".repeat(20);
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'a' { b'b' } else { b'a' };
            assert_ne!(of(&text), of(std::str::from_utf8(&changed).expect("ASCII")), "character {index}");
        }
    }

    #[test]
    fn a_session_is_not_found_by_a_token_of_the_same_text() {
        assert_ne!(of("sess_1"), TokenDigest::of_session("sess_1"));
        assert_eq!(TokenDigest::of_session("sess_1"), TokenDigest::of_session("sess_1"));
    }
}
