//! The signed assertion (docs/contract.md section 6): an ES256 JWT, valid for one minute, in a header of its own. It is
//! bound to one upstream, one method and one path, so that a backend can distinguish the proxy's requests from those of
//! other hosts in its network.

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

/// The validity in seconds: long enough for a busy backend, short enough to limit the use of a stolen assertion.
const LIFETIME: u64 = 60;
/// The `iss` of every assertion.
const ISSUER: &str = "vestibule";

/// Signs assertions.
pub struct AssertionSigner {
    key: Arc<EcdsaKeyPair>,
    random: SystemRandom,
    /// The encoded JWS header, `{"alg":"ES256",…}`, which is the same for every assertion.
    header: String,
    key_id: String,
    name: HeaderName,
    audience: Option<String>,
}

impl AssertionSigner {
    /// Makes a signer with the key of the policy.
    #[must_use]
    pub fn new(spec: &AssertionSpec) -> Self {
        let key = Arc::clone(&spec.key.0);
        let key_id = thumbprint(&key);
        let header = encode(&json!({"alg": "ES256", "typ": "JWT", "kid": key_id}));
        let (name, audience) = (spec.header.clone(), spec.audience.clone());
        Self { key, random: SystemRandom::new(), header, key_id, name, audience }
    }

    /// Returns the public key as a JWKS (RFC 7517), for the backends that verify assertions.
    #[must_use]
    pub fn public_keys(&self) -> Value {
        let (x, y) = coordinates(&self.key);
        let key =
            json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id, "x": x, "y": y});
        json!({ "keys": [key] })
    }

    /// Signs an assertion about this user, request and upstream, and returns the header for it. `None` when signing
    /// failed: the request must not be forwarded then.
    pub(super) fn sign(
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
            "exp": issued + LIFETIME,
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

impl std::fmt::Debug for AssertionSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AssertionSigner({})", self.key_id)
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Returns the coordinates of the public key: its uncompressed point without the leading byte, in halves.
fn coordinates(key: &EcdsaKeyPair) -> (String, String) {
    let point = key.public_key().as_ref().get(1..).unwrap_or_default();
    let (x, y) = point.split_at(point.len() / 2);
    (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
}

/// Returns the thumbprint of the key (RFC 7638), which serves as its key id.
fn thumbprint(key: &EcdsaKeyPair) -> String {
    let (x, y) = coordinates(key);
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, canonical.as_bytes()))
}
