//! Connects to an upstream: over TCP, TLS, or a Unix socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls_platform_verifier::Verifier;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::name_lookup::NameLookup;
use super::socket::set_tcp_options;
use super::{Socket, UpstreamError};
use crate::policy::{CertificateAuthority, UpstreamAddress, UpstreamSpec, UpstreamTls};

/// Opens connections to one upstream.
pub(super) struct UpstreamConnector {
    address: UpstreamAddress,
    lookup: NameLookup,
    /// The URL as it was written, for error messages.
    url: String,
    timeout: Duration,
    tls: Option<Result<(TlsConnector, ServerName<'static>), String>>,
}

impl UpstreamConnector {
    pub(super) fn new(spec: &UpstreamSpec) -> Self {
        let tls = match &spec.address {
            UpstreamAddress::Tcp { tls: Some(tls), .. } => Some(tls_connector(tls)),
            UpstreamAddress::Tcp { tls: None, .. } | UpstreamAddress::Unix(_) => None,
        };
        let (address, url) = (spec.address.clone(), spec.url.clone());
        Self { address, lookup: NameLookup::default(), url, timeout: spec.connect_timeout, tls }
    }

    /// Opens a connection, including the TLS handshake, within `connect_timeout`.
    pub(super) async fn connect(&self) -> Result<Socket, UpstreamError> {
        let upstream = || self.url.clone();
        timeout(self.timeout, self.open())
            .await
            .map_err(|_| UpstreamError::ConnectTimeout { upstream: upstream() })?
            .map_err(|source| UpstreamError::Connect { upstream: upstream(), source })
    }

    async fn open(&self) -> io::Result<Socket> {
        #[cfg(test)]
        if let Some(stream) = crate::simulation::connect() {
            return Ok(Socket::Memory(Box::new(stream)));
        }
        let (host, port) = match &self.address {
            UpstreamAddress::Unix(path) => {
                return UnixStream::connect(path).await.map(|unix| Socket::Unix(Box::new(unix)));
            }
            UpstreamAddress::Tcp { host, port, .. } => (host.as_str(), *port),
        };
        let addresses = self.lookup.addresses(host, port).await?;
        let tcp = TcpStream::connect(&addresses[..]).await?;
        set_tcp_options(&tcp);
        match &self.tls {
            None => Ok(Socket::Tcp(tcp)),
            Some(Ok((connector, name))) => {
                // Boxed: a handshake is large, and what awaits a connection without TLS would have that size too.
                let tls = Box::pin(connector.connect(name.clone(), tcp)).await?;
                Ok(Socket::Tls(Box::new(tls.into())))
            }
            Some(Err(reason)) => Err(io::Error::other(reason.clone())),
        }
    }
}

impl std::fmt::Debug for UpstreamConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UpstreamConnector({})", self.url)
    }
}

/// Makes the TLS client of an upstream, which offers HTTP/1.1 only.
fn tls_connector(tls: &UpstreamTls) -> Result<(TlsConnector, ServerName<'static>), String> {
    let connector = tls_client(tls.authority.as_ref(), &[b"http/1.1"])?;
    let name = ServerName::try_from(tls.server_name.clone()).map_err(|error| error.to_string())?;
    Ok((connector, name))
}

/// Makes a TLS client that trusts the system's certificate authorities and those of the configured file, and offers
/// these application protocols.
///
/// # Errors
/// Returns the reason why the client cannot be made.
pub fn tls_client(authority: Option<&CertificateAuthority>, protocols: &[&[u8]]) -> Result<TlsConnector, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut extra_roots = Vec::new();
    if let Some(authority) = authority {
        for certificate in CertificateDer::pem_slice_iter(&authority.pem) {
            extra_roots.push(certificate.map_err(|error| format!("{}: {error}", authority.file.display()))?);
        }
    }
    let verifier =
        Verifier::new_with_extra_roots(extra_roots, Arc::clone(&provider)).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsConnector::from(Arc::new(config)))
}
