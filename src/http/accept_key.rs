//! The proof in a 101 that its sender has read the opening handshake (RFC 6455 section 4.2.2).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

/// Returns the `Sec-WebSocket-Accept` that answers this `Sec-WebSocket-Key`.
#[must_use]
pub fn accept_key(key: &HeaderValue) -> String {
    // The RFC names SHA-1. Nothing depends on its strength: the key is no secret.
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_answer_of_rfc_6455_section_1_3() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_key(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
