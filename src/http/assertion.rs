//! The signed assertion (docs/contract.md section 6): an ES256 JWT of one minute in a header of its own, for one
//! upstream, one method and one path, so that a backend can tell our word from a neighbour's.

use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use serde_json::{Value, json};

use crate::auth::unix_seconds;
use crate::policy::{AssertionSpec, UpstreamSpec};

/// Seconds: long enough for a busy backend, short enough to be worth little elsewhere.
const LIFE: u64 = 60;
/// Who asserts.
const ISSUER: &str = "vestibule";

/// Signs assertions.
pub struct Signer {
    key: Arc<EcdsaKeyPair>,
    random: SystemRandom,
    /// `{"alg":"ES256",…}`, encoded: the same for every assertion.
    header: String,
    key_id: String,
    name: HeaderName,
    audience: Option<String>,
}

impl Signer {
    /// From the key of the policy.
    #[must_use]
    pub fn new(spec: &AssertionSpec) -> Self {
        let key = Arc::clone(&spec.key.0);
        let key_id = thumbprint(&key);
        let header = encode(&json!({"alg": "ES256", "typ": "JWT", "kid": key_id}));
        let (name, audience) = (spec.header.clone(), spec.audience.clone());
        Self { key, random: SystemRandom::new(), header, key_id, name, audience }
    }

    /// The public key as a JWKS (RFC 7517), for whoever verifies.
    #[must_use]
    pub fn public_keys(&self) -> Value {
        let (x, y) = coordinates(&self.key);
        let key =
            json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id, "x": x, "y": y});
        json!({ "keys": [key] })
    }

    /// The header's name, and the assertion that this user asks this of this upstream. `None` when nothing could
    /// be signed: then the request must not go up.
    pub(super) fn assert(
        &self,
        user: &str,
        head: &Parts,
        upstream: &UpstreamSpec,
        is_default: bool,
    ) -> Option<(HeaderName, HeaderValue)> {
        let audience = self.audience.as_deref().filter(|_| is_default).unwrap_or(&upstream.url);
        let mut id = [0; 16];
        rand::fill(&mut id).ok()?;
        let issued = unix_seconds();
        let claims = encode(&json!({
            "iss": ISSUER,
            "sub": user,
            "aud": audience,
            "iat": issued,
            "exp": issued + LIFE,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "method": head.method.as_str(),
            "path": head.uri.path(),
        }));
        let signed = format!("{}.{claims}", self.header);
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        let mut value = HeaderValue::try_from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))).ok()?;
        value.set_sensitive(true);
        Some((self.name.clone(), value))
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.key_id)
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// The public point without its leading 4, in halves.
fn coordinates(key: &EcdsaKeyPair) -> (String, String) {
    let point = key.public_key().as_ref().get(1..).unwrap_or_default();
    let (x, y) = point.split_at(point.len() / 2);
    (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

/// RFC 7638: the same key has the same name wherever it is.
fn thumbprint(key: &EcdsaKeyPair) -> String {
    let (x, y) = coordinates(key);
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
}
