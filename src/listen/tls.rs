//! The certificate of a listener: loaded at start and again when its files change. If a new one cannot be loaded,
//! the current one is kept. Its expiry is watched. ALPN offers HTTP/1.1 only.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _, SectionKind};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::expiry::{CertificateExpiry, ExpiryWatch};
use crate::config::{FILE_BYTES, read_bounded};
use crate::file_work::{FILE_LIMIT, FileWork};
use crate::policy::CertificateFiles;

/// The interval at which the files are checked for changes; certificates are renewed weeks before they expire.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The reason why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file does not hold the expected PEM section.
    #[error("{path}: no {what} in PEM")]
    NoPem {
        /// The path of the file.
        path: String,
        /// The kind of section: a certificate or a private key.
        what: &'static str,
    },
    /// A section of the chain is broken. Without it clients would get an incomplete chain.
    #[error("{path}:{line}: broken PEM: {source}")]
    BrokenPem {
        /// The path of the file.
        path: String,
        /// The line up to which the file was read.
        line: usize,
        /// The parser's error.
        source: pem::Error,
    },
    /// The key is not that of the certificate.
    #[error(
        "the key in {key} does not belong to the certificate in {certificate}; name the key that the certificate was issued for, or get a certificate for this key"
    )]
    Mismatch {
        /// The path of the certificate's file.
        certificate: String,
        /// The path of the key's file.
        key: String,
    },
    /// The certificate cannot be parsed, or the kind of key is not supported.
    #[error("{path}: {source}")]
    Unusable {
        /// The path of the file.
        path: String,
        /// The TLS library's error.
        source: rustls::Error,
    },
}

/// The certificate that handshakes use now.
#[derive(Debug)]
struct CurrentCertificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Loads a certificate as the start does, and returns when it or another one of its chain expires.
///
/// # Errors
/// Returns an error when the certificate cannot be used.
pub(super) fn check(files: &CertificateFiles) -> Result<CertificateExpiry, CertificateError> {
    load(files).map(|loaded| loaded.expiry)
}

/// Loads a certificate and makes an acceptor that uses it. A task replaces it when its files change, until `closing`
/// is cancelled. `gauges` get the time when the current one, or another one of its chain, expires.
///
/// # Errors
/// Returns an error when the certificate cannot be used.
pub(super) fn acceptor(
    files: &CertificateFiles,
    gauges: Vec<Gauge>,
    closing: CancellationToken,
) -> Result<TlsAcceptor, CertificateError> {
    let current = reloading(files, gauges, closing)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| CertificateError::Unusable { path: files.certificate.display().to_string(), source })?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Loads a certificate that a task replaces when its files change.
fn reloading(
    files: &CertificateFiles,
    gauges: Vec<Gauge>,
    closing: CancellationToken,
) -> Result<Arc<CurrentCertificate>, CertificateError> {
    // Before the files are read, so that no later change is missed.
    let loaded = modification_marks(files);
    let LoadedCertificate { key, expiry } = load(files)?;
    let current = Arc::new(CurrentCertificate(ArcSwap::from(key)));
    let watch = ExpiryWatch::start(&files.certificate, gauges, expiry);
    tokio::spawn(reload_on_change(Arc::new(files.clone()), loaded, Arc::clone(&current), watch, closing));
    Ok(current)
}

/// The modification time and size of both files; `None` if they cannot be had.
type Marks = Option<[(SystemTime, u64); 2]>;

async fn reload_on_change(
    files: Arc<CertificateFiles>,
    mut loaded: Marks,
    current: Arc<CurrentCertificate>,
    mut watch: ExpiryWatch,
    closing: CancellationToken,
) {
    let (mut checking, mut loading) = (FileWork::default(), FileWork::default());
    let mut is_late = false;
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
        watch.warn_if_due();
        let (checked, read) = (Arc::clone(&files), Arc::clone(&files));
        let read = match checking.run(FILE_LIMIT, move || modification_marks(&checked)).await {
            Ok(found) if found == loaded => continue,
            Ok(found) => {
                loaded = found;
                loading.run(FILE_LIMIT, move || load(&read)).await
            }
            Err(error) => Err(error),
        };
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // It is logged once, since every further check fails likewise until the file system answers.
                if !is_late {
                    tracing::warn!(file = %files.certificate.display(), %error, "certificate reload failed, keeping the current one");
                }
                (is_late, loaded) = (true, None);
                continue;
            }
        };
        is_late = false;
        match read {
            Ok(LoadedCertificate { key, expiry }) => {
                current.0.store(key);
                tracing::info!(file = %files.certificate.display(), "certificate reloaded");
                watch.replace(expiry);
            }
            // One file may have been replaced before the other, so that the next check tries again.
            Err(error) => {
                tracing::warn!(error = %error, "certificate reload failed, keeping the current one");
                loaded = None;
            }
        }
    }
}

/// Returns the modification time and size of both files. Links are followed: Kubernetes replaces a `ConfigMap` by
/// changing a link, and the new target has its own time.
fn modification_marks(files: &CertificateFiles) -> Marks {
    let mark_of = |path| std::fs::metadata(path).and_then(|meta| Ok((meta.modified()?, meta.len())));
    Some([mark_of(&files.certificate).ok()?, mark_of(&files.key).ok()?])
}

/// A certificate that can be used, and when it or another one of its chain expires.
#[derive(Debug)]
struct LoadedCertificate {
    key: Arc<CertifiedKey>,
    expiry: CertificateExpiry,
}

fn load(files: &CertificateFiles) -> Result<LoadedCertificate, CertificateError> {
    let read = |path: &std::path::Path| {
        let whole = read_bounded(path, FILE_BYTES).and_then(|bytes| bytes.ok_or(io::Error::other("larger than 1 MiB")));
        whole.map_err(|source| CertificateError::Io { path: path.display().to_string(), source })
    };
    let (certificate, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    let chain = certificates(&read(&files.certificate)?).map_err(|(line, source)| CertificateError::BrokenPem {
        path: certificate.clone(),
        line,
        source,
    })?;
    if chain.is_empty() {
        return Err(CertificateError::NoPem { path: certificate, what: "certificate" });
    }
    let expiry = CertificateExpiry::of(&chain);
    let private_key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| CertificateError::NoPem { path: key.clone(), what: "private key" })?;
    let signing_key = match aws_lc_rs::default_provider().key_provider.load_private_key(private_key) {
        Ok(signing_key) => signing_key,
        Err(source) => return Err(CertificateError::Unusable { path: key, source }),
    };
    let certified = CertifiedKey::new(chain, signing_key);
    match certified.keys_match() {
        // The public half of some keys is unknown.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(LoadedCertificate { key: Arc::new(certified), expiry })
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::Mismatch { certificate, key }),
        Err(source) => Err(CertificateError::Unusable { path: certificate, source }),
    }
}

/// Returns the certificates in a file in PEM, or the error in one with the line up to which it was read.
fn certificates(file: &[u8]) -> Result<Vec<CertificateDer<'static>>, (usize, pem::Error)> {
    let (mut chain, mut rest) = (Vec::new(), file);
    loop {
        match pem::from_buf(&mut rest) {
            Ok(Some((SectionKind::Certificate, der))) => chain.push(CertificateDer::from(der)),
            // Some keep their key or parameters in the same file.
            Ok(Some(_)) => {}
            Ok(None) => return Ok(chain),
            Err(error) => {
                let read = &file[..file.len() - rest.len()];
                return Err((read.split_inclusive(|byte| *byte == b'\n').count(), error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Files with a certificate; deleted at the end.
    struct TestFiles(CertificateFiles);

    impl TestFiles {
        fn new(name: &str) -> Self {
            let file = |kind| std::env::temp_dir().join(format!("vestibule-tls-{name}-{kind}-{}", std::process::id()));
            let files = Self(CertificateFiles { certificate: file("certificate"), key: file("key") });
            files.replace(&[&["localhost"]], "");
            files
        }

        /// Writes a chain of certificates for these names, with `behind` after it.
        fn replace(&self, chain: &[&[&str]], behind: &str) {
            let key = KeyPair::generate().expect("a key");
            let certificate = |names: &&[&str]| {
                let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
                CertificateParams::new(names).expect("names").self_signed(&key).expect("signed").pem()
            };
            let chain: String = chain.iter().map(certificate).collect();
            std::fs::write(&self.0.certificate, chain + behind).expect("written");
            std::fs::write(&self.0.key, key.serialize_pem()).expect("written");
        }
    }

    impl Drop for TestFiles {
        fn drop(&mut self) {
            for file in [&self.0.certificate, &self.0.key] {
                std::fs::remove_file(file).expect("removed");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_is_replaced_while_it_is_loaded_is_not_missed() {
        let files = TestFiles::new("replaced");
        let current = reloading(&files.0, Vec::new(), CancellationToken::new()).expect("usable");
        let before = current.0.load_full();
        // The task that watches the files has not run yet.
        files.replace(&[&["localhost", "another.example"]], "");
        let replaced = async {
            while Arc::ptr_eq(&before, &current.0.load()) {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        };
        tokio::time::timeout(10 * CHECK_INTERVAL, replaced).await.expect("replaced");
    }

    #[tokio::test]
    async fn broken_pem_in_the_chain_is_an_error_with_its_line() {
        let files = TestFiles::new("broken");
        let pem = std::fs::read_to_string(&files.0.certificate).expect("read");
        let lines = pem.lines().count();
        files.replace(&[&["localhost"], &["intermediate"]], "and a comment");
        assert_eq!(load(&files.0).expect("usable").key.cert.len(), 2);
        let broken = "-----BEGIN CERTIFICATE-----\nMII*\n-----END CERTIFICATE-----\n";
        for (broken, line) in [
            (broken.to_owned() + &pem, lines + 3),
            ("-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned(), lines + 2),
            ("-----BEGIN CERTIFICATE----\nMIIB\n-----END CERTIFICATE-----\n".to_owned(), lines + 1),
        ] {
            files.replace(&[&["localhost"]], &broken);
            let error = load(&files.0).expect_err("broken").to_string();
            let expected = format!("{}:{line}: broken PEM: ", files.0.certificate.display());
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
