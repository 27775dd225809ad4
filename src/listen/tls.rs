//! The certificate of a listener: read at start, read again when its files change, and kept when what is there
//! then is no good. HTTP/1.1 only, whatever a client offers.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::policy::CertificateFiles;

/// The files are looked at this often; certificates are renewed weeks before they end.
const LOOK: Duration = Duration::from_secs(5);

/// Why a certificate is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path}: no {what} in PEM")]
    NoPem {
        /// Which.
        path: String,
        /// What was looked for.
        what: &'static str,
    },
    /// The two do not belong together, or the key is of no kind we know.
    #[error("{path}: {source}")]
    Unusable {
        /// The certificate's.
        path: String,
        /// Why.
        source: rustls::Error,
    },
}

/// The certificate in force.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Reads a certificate and answers with it, and with its successors, until `closing`.
///
/// # Errors
/// When it cannot be used.
pub(super) fn acceptor(files: &CertificateFiles, closing: CancellationToken) -> Result<TlsAcceptor, CertificateError> {
    let current = Arc::new(Current(ArcSwap::from(load(files)?)));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| CertificateError::Unusable { path: files.certificate.display().to_string(), source })?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    tokio::spawn(follow(files.clone(), current, closing));
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn follow(files: CertificateFiles, current: Arc<Current>, closing: CancellationToken) {
    let mut known = modified(&files);
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let found = modified(&files);
        if found == known {
            continue;
        }
        known = found;
        match load(&files) {
            Ok(key) => {
                current.0.store(key);
                tracing::info!("certificate read again: {}", files.certificate.display());
            }
            // The other of the two may be a moment behind.
            Err(error) => {
                tracing::warn!("certificate not taken, still serving the former one: {error}");
                known = None;
            }
        }
    }
}

/// When each was written; a `ConfigMap` swaps the link, and its target has a time of its own.
fn modified(files: &CertificateFiles) -> Option<[(SystemTime, u64); 2]> {
    let look = |path| std::fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len())));
    Some([look(&files.certificate).ok()?, look(&files.key).ok()?])
}

fn load(files: &CertificateFiles) -> Result<Arc<CertifiedKey>, CertificateError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|source| CertificateError::Io { path: path.display().to_string(), source })
    };
    let (certificate, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&read(&files.certificate)?).filter_map(Result::ok).collect();
    if chain.is_empty() {
        return Err(CertificateError::NoPem { path: certificate, what: "certificate" });
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| CertificateError::NoPem { path: key, what: "private key" })?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map(Arc::new)
        .map_err(|source| CertificateError::Unusable { path: certificate, source })
}
