//! The tokens of the benchmarks: RS256 under a key of 2048 bits, with the claims that a provider's tokens have.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// The `iss` of the tokens.
pub(crate) const ISSUER: &str = "https://bench.example";
/// The `sub` of the tokens.
pub(crate) const USER: &str = "user_2abcdefghijklmnop";

/// A key that signs tokens.
pub(crate) struct Issuer {
    key: jsonwebtoken::EncodingKey,
    /// The public key, PEM.
    pub(crate) public_pem: String,
    /// The public key as a JWKS.
    pub(crate) jwks: String,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("key");
        let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("pkcs8");
        let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().expect("spki");
        // PKCS #8 has the PKCS #1 key, which jsonwebtoken needs, after a prefix of 26 bytes.
        let key = jsonwebtoken::EncodingKey::from_rsa_der(&private.as_ref()[26..]);
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let modulus = number(pair.public_key().modulus().big_endian_without_leading_zero());
        let exponent = number(pair.public_key().exponent().big_endian_without_leading_zero());
        let jwks =
            serde_json::json!({"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "n": modulus, "e": exponent}]});
        Self { key, public_pem: pem("PUBLIC KEY", public.as_ref()), jwks: jwks.to_string() }
    }

    /// Returns a token; each number makes another one.
    pub(crate) fn token(&self, number: usize) -> String {
        self.token_of(ISSUER, number)
    }

    /// Returns a token of another issuer with the same key.
    pub(crate) fn token_of(&self, issuer: &str, number: usize) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = serde_json::json!({"iss": issuer, "aud": "bench", "sub": USER, "sid": "sess_2abcdefghijklmnop", "jti": format!("{number:08}"), "iat": now, "nbf": now, "exp": now + 3_600, "email": "someone@example.com", "org_id": "org_2abcdefghijklmnop"});
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
        jsonwebtoken::encode(&header, &claims, &self.key).expect("signed")
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}
