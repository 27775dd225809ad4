//! Connecting to an upstream, wherever it is: a TCP port, a Unix socket, a port that speaks TLS.

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

use super::socket::tune;
use super::{Socket, UpstreamError};
use crate::policy::{UpstreamAddress, UpstreamSpec, UpstreamTls};

/// How to connect to one upstream.
pub(super) struct Dialler {
    address: UpstreamAddress,
    shown: String,
    limit: Duration,
    tls: Option<Result<(TlsConnector, ServerName<'static>), String>>,
}

impl Dialler {
    pub(super) fn new(spec: &UpstreamSpec) -> Self {
        let tls = match &spec.address {
            UpstreamAddress::Tcp { tls: Some(tls), .. } => Some(connector(tls)),
            UpstreamAddress::Tcp { tls: None, .. } | UpstreamAddress::Unix(_) => None,
        };
        Self { address: spec.address.clone(), shown: spec.url.clone(), limit: spec.connect_timeout, tls }
    }

    /// A connection, its TLS handshake included, in time.
    pub(super) async fn connect(&self) -> Result<Socket, UpstreamError> {
        let upstream = || self.shown.clone();
        timeout(self.limit, self.dial())
            .await
            .map_err(|_| UpstreamError::ConnectTimeout { upstream: upstream() })?
            .map_err(|source| UpstreamError::Connect { upstream: upstream(), source })
    }

    async fn dial(&self) -> io::Result<Socket> {
        let (host, port) = match &self.address {
            UpstreamAddress::Unix(path) => return UnixStream::connect(path).await.map(Socket::Unix),
            UpstreamAddress::Tcp { host, port, .. } => (host.as_str(), *port),
        };
        let tcp = TcpStream::connect((host, port)).await?;
        tune(&tcp);
        match &self.tls {
            None => Ok(Socket::Tcp(tcp)),
            Some(Ok((connector, name))) => {
                let tls = connector.connect(name.clone(), tcp).await?;
                Ok(Socket::Tls(Box::new(tls.into())))
            }
            Some(Err(reason)) => Err(io::Error::other(reason.clone())),
        }
    }
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialler({})", self.shown)
    }
}

/// The system's certificate authorities and the one the file names. HTTP/1.1 only.
fn connector(tls: &UpstreamTls) -> Result<(TlsConnector, ServerName<'static>), String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut further = Vec::new();
    if let Some(authority) = &tls.authority {
        for certificate in CertificateDer::pem_slice_iter(&authority.pem) {
            further.push(certificate.map_err(|error| format!("{}: {error}", authority.file.display()))?);
        }
    }
    let verifier = Verifier::new_with_extra_roots(further, Arc::clone(&provider)).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(tls.server_name.clone()).map_err(|error| error.to_string())?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}
