//! The demo's issuer: a key made at every start, discovery document and JWKS over loopback, and tokens.

use std::convert::Infallible;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tokio::net::TcpListener;

use super::DemoError;
use crate::auth::unix_seconds;
use crate::small_server::accept;

/// The audience of the issuer's tokens.
pub(super) const AUDIENCE: &str = "vestibule-demo";
const KEY_ID: &str = "demo";

/// A running issuer. It serves until the process ends.
pub(super) struct Issuer {
    url: String,
    key: EncodingKey,
}

impl Issuer {
    pub(super) async fn start() -> Result<Self, DemoError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| DemoError::Key)?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).map_err(|_| DemoError::Key)?;
        // An uncompressed point: 4, then x and y of 32 bytes each.
        let [_, point @ ..] = pair.public_key().as_ref() else { return Err(DemoError::Key) };
        let (x, y) = point.split_at(32);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "kid": KEY_ID, "x": encode(x), "y": encode(y)}]});
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/jwks")});
        tokio::spawn(serve(listener, Arc::new((discovery.to_string(), jwks.to_string()))));
        Ok(Self { url, key: EncodingKey::from_ec_der(pkcs8.as_ref()) })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Signs a token for `user` that is valid for `ttl` seconds.
    pub(super) fn token(&self, user: &str, ttl: u64) -> Result<String, DemoError> {
        let now = unix_seconds();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(KEY_ID.to_owned());
        let claims = json!({"iss": self.url, "aud": AUDIENCE, "sub": user, "iat": now, "nbf": now, "exp": now + ttl});
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| DemoError::Key)
    }
}

async fn serve(listener: TcpListener, documents: Arc<(String, String)>) {
    loop {
        let (stream, _) = accept(|| listener.accept()).await;
        let documents = Arc::clone(&documents);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let body = match request.uri().path() {
                    "/.well-known/openid-configuration" => Some(documents.0.clone()),
                    "/jwks" => Some(documents.1.clone()),
                    _ => None,
                };
                async move {
                    let mut response = Response::new(Full::new(Bytes::from(body.clone().unwrap_or_default())));
                    if body.is_none() {
                        *response.status_mut() = StatusCode::NOT_FOUND;
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
