//! A minimal HTTP client for listeners on this machine: `healthcheck` and `doctor` send a request byte by byte, as it was
//! written, and read a bounded answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::http::Socket;
use crate::policy::ListenPlace;

/// The maximum length in bytes of an answer that is read.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// The address of a listener, with its transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Http(SocketAddr),
    Https(SocketAddr),
    Unix(PathBuf),
}

impl Endpoint {
    /// Returns the address by which a listener can be reached from its own machine.
    ///
    /// # Errors
    /// Returns the message for the user, where the port is chosen at each start.
    pub(super) fn of_listener(listener: ListenPlace, uses_tls: bool) -> Result<Self, String> {
        let addresses = match listener {
            ListenPlace::Unix(path) => return Ok(Self::Unix(path)),
            ListenPlace::Tcp(addresses) => addresses,
        };
        let Some(address) = addresses.first().filter(|address| address.port() != 0) else {
            return Err("listen: port 0 is chosen anew at each start; write a port".to_owned());
        };
        let address = SocketAddr::new(local_address(address.ip()), address.port());
        Ok(if uses_tls { Self::Https(address) } else { Self::Http(address) })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Returns the loopback address for a listener on every address: a dual-stack socket accepts IPv4 too.
fn local_address(address: IpAddr) -> IpAddr {
    if address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address }
}

impl Endpoint {
    /// Opens a connection, with TLS where the listener uses it.
    ///
    /// # Errors
    /// Returns any error of the connection, and `TimedOut` when it is not open within `limit`.
    pub(super) async fn connect(&self, limit: Duration) -> io::Result<Socket> {
        timeout(limit, self.open()).await.map_err(|_| timed_out(limit))?
    }

    async fn open(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(path) => Socket::Unix(Box::new(UnixStream::connect(path).await?)),
            Self::Http(address) => Socket::Tcp(TcpStream::connect(address).await?),
            Self::Https(address) => {
                let name = ServerName::IpAddress(address.ip().into());
                let tls = connector()?.connect(name, TcpStream::connect(address).await?).await?;
                Socket::Tls(Box::new(tls.into()))
            }
        })
    }

    /// Sends a request that says `Connection: close`, and returns the answer up to the end of the connection.
    ///
    /// # Errors
    /// Returns any error of the connection, and `TimedOut` when the answer is not complete within `limit`.
    pub(super) async fn send(&self, request: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        self.receive(request, limit, &mut answer).await?;
        Ok(answer)
    }

    /// Sends a request like [`Self::send`], but returns what has come by then of an answer whose head is complete: a
    /// stream of events has no end.
    pub(super) async fn send_for_head(&self, request: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        match self.receive(request, limit, &mut answer).await {
            Err(_) if answer.windows(4).any(|window| window == b"\r\n\r\n") => Ok(answer),
            result => result.map(|()| answer),
        }
    }

    async fn receive(&self, request: &[u8], limit: Duration, answer: &mut Vec<u8>) -> io::Result<()> {
        let exchanged = async { exchange(self.open().await?, request, answer).await };
        timeout(limit, exchanged).await.map_err(|_| timed_out(limit))?
    }
}

pub(super) fn timed_out(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()))
}

async fn exchange(mut socket: Socket, request: &[u8], answer: &mut Vec<u8>) -> io::Result<()> {
    // At `limits.connections` the proxy answers 503 and closes before it has read the request, so that sending may fail
    // although there is an answer.
    let sent = async {
        socket.write_all(request).await?;
        socket.flush().await
    }
    .await;
    let received = socket.take(MAX_ANSWER_BYTES).read_to_end(answer).await;
    if answer.is_empty() {
        sent?;
        received?;
    }
    Ok(())
}

fn connector() -> io::Result<TlsConnector> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
        .with_no_client_auth();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A verifier that accepts any certificate. A certificate names the host that clients use, while this client connects
/// to an address of this machine: a name could not be verified, and what is sent (the token of `doctor --token-file`)
/// does not leave the machine. Monitoring from outside detects an expired certificate.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, policy};

    #[tokio::test]
    async fn a_listener_that_accepts_and_says_nothing_is_waited_for_no_longer_than_the_limit() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let endpoint = Endpoint::Https(listener.local_addr().expect("address"));
        let connecting = endpoint.connect(Duration::from_millis(10));
        let connected = timeout(Duration::from_secs(30), connecting).await.expect("ended by itself");
        assert_eq!(connected.map(|_| ()).map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    }

    #[test]
    fn a_listener_is_reached_by_loopback_unless_it_has_an_address() {
        let endpoint = |listen: &str| {
            let listen = config::Listen { address: listen.into(), tls: None };
            let config = config::Config { listen: vec![listen], ..Default::default() };
            let (listener, uses_tls) = policy::first_listener(&config).expect("an address");
            Endpoint::of_listener(listener, uses_tls).map_err(|_| "refused")
        };
        let http = |address: &str| Ok(Endpoint::Http(address.parse().expect("address")));
        assert_eq!(endpoint(":8080"), http("127.0.0.1:8080"));
        assert_eq!(endpoint("0.0.0.0:8080"), http("127.0.0.1:8080"));
        assert_eq!(endpoint("[::1]:8080"), http("[::1]:8080"));
        assert_eq!(endpoint("192.0.2.1:8080"), http("192.0.2.1:8080"));
        assert_eq!(endpoint("unix:/run/v.sock"), Ok(Endpoint::Unix("/run/v.sock".into())));
        assert_eq!(endpoint("127.0.0.1:0"), Err("refused"));
    }
}
