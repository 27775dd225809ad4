//! The settings of the signed assertion: a header with the user that the upstream can verify.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use hyper::header::HeaderName;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::check::Check;
use crate::config::Config;

/// A P-256 key. It has no `Display`, and its `Debug` does not show it.
#[derive(Clone)]
pub struct AssertionKey(pub(crate) Arc<EcdsaKeyPair>);

impl AssertionKey {
    /// Reads a PKCS#8 key; `None` when it is no P-256 key.
    #[must_use]
    pub fn read(pkcs8: &[u8]) -> Option<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok()?;
        Some(Self(Arc::new(key)))
    }
}

impl std::fmt::Debug for AssertionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AssertionKey")
    }
}

/// The header, key and audience of assertions.
#[derive(Clone, Debug)]
pub struct AssertionSpec {
    /// The header that carries the assertion.
    pub header: HeaderName,
    /// The signing key, which `validate` has read or generated.
    pub key: AssertionKey,
    /// Whether the key comes from a file, so that it is the same after a restart.
    pub is_kept: bool,
    /// The audience of assertions for the default upstream; for others it is their URL.
    pub audience: Option<String>,
}

pub(super) const HEADER: &str = "X-Vestibule-Assertion";

impl AssertionSpec {
    /// Makes the settings for a key alone, to print its public key.
    #[must_use]
    pub fn of_key(key: AssertionKey) -> Self {
        Self { header: HeaderName::from_static("x-vestibule-assertion"), key, is_kept: true, audience: None }
    }
}

impl Check {
    pub(super) fn assertion(&mut self, config: &Config) -> Option<AssertionSpec> {
        let assertion = config.identity.assertion.as_ref()?;
        let at = "identity.assertion";
        let name = assertion.header.as_deref().unwrap_or(HEADER);
        let header = self.header_name(&format!("{at}.header"), name)?;
        if config.identity.headers.keys().any(|other| super::fold(other) == super::fold(name)) {
            self.error(
                format!("{at}.header"),
                format!("\"{name}\" carries a claim already; give the assertion a header of its own"),
            );
        }
        let audience = assertion.audience.clone().filter(|audience| !audience.is_empty());
        let Some(file) = &assertion.key_file else {
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).ok();
            let made =
                made.and_then(|key| AssertionKey::read(key.as_ref())).ok_or_else(|| "no key could be made".to_owned());
            let key = self.ok_or_report(at, made)?;
            return Some(AssertionSpec { header, key, is_kept: false, audience });
        };
        let path = format!("{at}.key_file");
        let pem = self.file(&path, file)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).ok();
        let key = key.and_then(|key| AssertionKey::read(key.secret_pkcs8_der()));
        let Some(key) = key else {
            self.error(path, format!("{file} holds no P-256 private key in PKCS#8 PEM. Make one: vestibule token assertion-key --new {file}"));
            return None;
        };
        Some(AssertionSpec { header, key, is_kept: true, audience })
    }
}
