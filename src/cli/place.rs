//! Asking a listener from the machine it is on: the proxy for `healthcheck` and `doctor`, and for the latter the
//! backend too. One request, byte by byte as it was written, and a bounded answer.

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

/// No answer is read further.
const ANSWER_BYTES: u64 = 256 << 10;

/// Where the proxy is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Http(SocketAddr),
    Https(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    /// Where a listener can be reached from its own machine.
    pub(super) fn of(place: ListenPlace, speaks_tls: bool) -> Result<Self, String> {
        let addresses = match place {
            ListenPlace::Unix(path) => return Ok(Self::Unix(path)),
            ListenPlace::Tcp(addresses) => addresses,
        };
        let Some(address) = addresses.first().filter(|address| address.port() != 0) else {
            return Err("listen: the system chooses that port at each start; write one".to_owned());
        };
        let address = SocketAddr::new(near(address.ip()), address.port());
        Ok(if speaks_tls { Self::Https(address) } else { Self::Http(address) })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The proxy is on this machine: whoever listens on every address listens on IPv4's loopback, be it by a dual-stack
/// socket.
fn near(address: IpAddr) -> IpAddr {
    if address.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address }
}

impl Place {
    /// Connects.
    pub(super) async fn connect(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            Self::Http(address) => Socket::Tcp(TcpStream::connect(address).await?),
            Self::Https(address) => {
                let name = ServerName::IpAddress(address.ip().into());
                let tls = connector()?.connect(name, TcpStream::connect(address).await?).await?;
                Socket::Tls(Box::new(tls.into()))
            }
        })
    }

    /// Sends a request that ends its connection, and returns what comes until its end, within `limit`.
    pub(super) async fn ask(&self, request: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
        timeout(limit, async { exchange(self.connect().await?, request).await }).await.map_err(late)?
    }
}

async fn exchange(mut socket: Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    // Where every connection is taken the answer is there before the question, and the end soon after.
    let asked = async {
        socket.write_all(request).await?;
        socket.flush().await
    }
    .await;
    let mut answer = Vec::new();
    let read = socket.take(ANSWER_BYTES).read_to_end(&mut answer).await;
    if answer.is_empty() {
        asked?;
        read?;
    }
    Ok(answer)
}

fn connector() -> io::Result<TlsConnector> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    config.enable_sni = false;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Believes any certificate: its names are those that clients use, not an address of this machine's, which is the only
/// thing asked here, so that what is said (`doctor --token-file`) does not leave the machine. Whether it has expired is
/// for whoever watches from outside.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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

    #[test]
    fn it_asks_where_the_proxy_can_be_reached_from_its_own_machine() {
        let asked = |listen: &str| {
            let listen = config::Listen { address: listen.into(), tls: None };
            let config = config::Config { listen: vec![listen], ..Default::default() };
            let (place, speaks_tls) = policy::first_listener(&config).expect("an address");
            Place::of(place, speaks_tls).map_err(|_| "refused")
        };
        let http = |address: &str| Ok(Place::Http(address.parse().expect("address")));
        assert_eq!(asked(":8080"), http("127.0.0.1:8080"));
        assert_eq!(asked("0.0.0.0:8080"), http("127.0.0.1:8080"));
        assert_eq!(asked("[::1]:8080"), http("[::1]:8080"));
        assert_eq!(asked("192.0.2.1:8080"), http("192.0.2.1:8080"));
        assert_eq!(asked("unix:/run/v.sock"), Ok(Place::Unix("/run/v.sock".into())));
        assert_eq!(asked("127.0.0.1:0"), Err("refused"));
    }
}
