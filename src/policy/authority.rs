//! Certificate authorities in addition to the system's, from files that keys name.

use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::check::Check;

/// An additional certificate authority. Two are equal only if their contents are, so a renewed one is a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority {
    /// The path of the file, for messages.
    pub file: PathBuf,
    /// The content of the file, PEM.
    pub pem: Vec<u8>,
}

impl Check {
    /// Returns the authority of the file that the key at `path` names, if it names one.
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
