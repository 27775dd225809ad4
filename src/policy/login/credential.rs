//! The credentials by which the proxy authenticates at a provider as its client: a secret, a private key, or an
//! assertion that another program writes into a file.

use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, PublicKeyComponents};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::super::check::Check;
use super::super::{AssertionKey, Secret};
use crate::config::{self, ClientAuth};
use crate::der::{Elements, INTEGER, OCTET_STRING, SEQUENCE};

/// The credential of a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientCredential {
    /// No credential: a public client, which PKCE protects.
    Public,
    /// A secret that the provider knows.
    Secret(Secret),
    /// A private key whose public key the provider has (RFC 7523).
    Key(ClientKey),
    /// A file with an assertion that another program renews; it is read at each use.
    AssertionFile(PathBuf),
}

/// A private key that signs client assertions. Its `Debug` does not show it.
#[derive(Clone)]
pub struct ClientKey {
    /// The signing key.
    pub key: Arc<EncodingKey>,
    /// The algorithm of the signatures.
    pub algorithm: Algorithm,
    /// The thumbprint of the key (RFC 7638).
    pub thumbprint: String,
}

impl PartialEq for ClientKey {
    fn eq(&self, other: &Self) -> bool {
        self.thumbprint == other.thumbprint
    }
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientKey({})", self.thumbprint)
    }
}

impl ClientKey {
    /// Reads a PKCS#8 key in PEM: P-256 or RSA of at least 2048 bits.
    fn read(pem: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
        let pkcs8 = der.secret_pkcs8_der();
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        if let Some(AssertionKey(pair)) = AssertionKey::read(pkcs8) {
            // The public key is an uncompressed point: the byte 4, then x and y.
            let point = pair.public_key().as_ref();
            let (x, y) = (b64(point.get(1..33)?), b64(point.get(33..65)?));
            let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
            let key = EncodingKey::from_ec_der(pkcs8);
            return Some(Self { key: Arc::new(key), algorithm: Algorithm::ES256, thumbprint: thumbprint(&jwk) });
        }
        let pair = RsaKeyPair::from_pkcs8(pkcs8).ok()?;
        let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        if n.len() < 256 {
            return None;
        }
        let jwk = format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, b64(&e), b64(&n));
        let key = EncodingKey::from_rsa_der(rsa_key(pkcs8)?);
        Some(Self { key: Arc::new(key), algorithm: Algorithm::RS256, thumbprint: thumbprint(&jwk) })
    }
}

/// Returns the RSA key (PKCS #1) inside of a PKCS #8 key (RFC 5208 section 5).
fn rsa_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let mut fields = Elements::of(pkcs8).take(SEQUENCE)?.elements();
    let (_version, _algorithm) = (fields.take(INTEGER)?, fields.take(SEQUENCE)?);
    fields.take(OCTET_STRING).map(|key| key.content)
}

fn thumbprint(jwk: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, jwk.as_bytes()))
}

impl Check {
    pub(super) fn client_credential(&mut self, at: &str, login: &config::Login) -> Option<ClientCredential> {
        let has_secret = login.client_secret.is_some() || login.client_secret_file.is_some();
        let kinds = [has_secret, login.client_key_file.is_some(), login.client_assertion_file.is_some()];
        if kinds.iter().filter(|written| **written).count() > 1 {
            self.error(
                at,
                "has more than one of client_secret_file, client_key_file and client_assertion_file; keep one",
            );
            return None;
        }
        let (needs, fits) = match login.client_auth {
            None => ("", true),
            Some(ClientAuth::Basic | ClientAuth::Post) => ("needs client_secret_file", has_secret),
            Some(ClientAuth::PrivateKeyJwt) => ("needs client_key_file or client_assertion_file", kinds[1] || kinds[2]),
            Some(ClientAuth::None) => ("is none, but a secret or a key is set too; keep one", !kinds.contains(&true)),
        };
        if !fits {
            self.error(format!("{at}.client_auth"), needs);
            return None;
        }
        if let Some(file) = &login.client_assertion_file {
            return Some(ClientCredential::AssertionFile(PathBuf::from(file)));
        }
        if let Some(file) = &login.client_key_file {
            let path = format!("{at}.client_key_file");
            let pem = self.file(&path, file)?;
            let Some(key) = ClientKey::read(&pem) else {
                self.error(path, format!("{file} holds no private key in PKCS#8 PEM, P-256 or RSA of 2048 bits. Make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {file}"));
                return None;
            };
            return Some(ClientCredential::Key(key));
        }
        if !has_secret {
            return Some(ClientCredential::Public);
        }
        let (path, file_path) = (format!("{at}.client_secret"), format!("{at}.client_secret_file"));
        let file = login.client_secret_file.as_ref();
        let secret = self.secret(&path, login.client_secret.as_ref(), &file_path, file)?;
        if secret.trim_ascii().is_empty() {
            self.error(if file.is_some() { file_path } else { path }, "is empty");
            return None;
        }
        Some(ClientCredential::Secret(Secret::new(secret)))
    }
}
