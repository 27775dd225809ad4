//! A certificate authority of the tests' own, and both ends of TLS under it.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::proxy::TempFile;

/// Signs certificates that only those who ask it trust.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        Self(CertifiedIssuer::self_signed(params, key).expect("authority"))
    }

    pub fn pem(&self) -> TempFile {
        TempFile::new(&self.0.pem())
    }

    /// Certificate and key for a name, both PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        self.issue_params(CertificateParams::new(vec![name.to_owned()]).expect("params"))
    }

    /// Issues like [`Self::issue`] a certificate that is valid until a Unix time, in seconds.
    pub fn issue_until(&self, name: &str, end: u64) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(end);
        self.issue_params(params)
    }

    /// Issues a certificate through an intermediate authority, each valid until a Unix time. Returns both and the key.
    pub fn issue_chain_until(&self, name: &str, end: u64, intermediate_end: u64) -> (String, String) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(intermediate_end);
        let key = KeyPair::generate().expect("key");
        let intermediate = Self(CertifiedIssuer::signed_by(params, key, &self.0).expect("authority"));
        let (certificate, key) = intermediate.issue_until(name, end);
        (certificate + &intermediate.0.pem(), key)
    }

    fn issue_params(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    pub fn connector(&self, protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.pem().as_bytes()).expect("pem")).expect("added");
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    pub fn acceptor(&self, name: &str) -> TlsAcceptor {
        let (certificate, key) = self.issue(name);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("pem")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("config");
        TlsAcceptor::from(Arc::new(config))
    }
}
