//! Certificate authorities beside the system's, that a key names by a file.

use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::check::Check;

/// A further certificate authority. What stood in the file counts: one that was renewed is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority {
    /// Where it stood, for messages.
    pub file: PathBuf,
    /// PEM.
    pub pem: Vec<u8>,
}

impl Check {
    /// The authority that the key at `path` names, where it names one.
    pub(super) fn authority(&mut self, path: &str, file: Option<&String>) -> Option<CertificateAuthority> {
        let file = file?;
        let pem = self.file(path, file)?;
        if !holds_certificates(&pem) {
            self.error(path, format!("{file} holds no certificate in PEM"));
        }
        Some(CertificateAuthority { file: PathBuf::from(file), pem })
    }
}

fn holds_certificates(pem: &[u8]) -> bool {
    let mut certificates = CertificateDer::pem_slice_iter(pem).peekable();
    certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
}
