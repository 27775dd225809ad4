//! `vestibule healthcheck`: asks the running proxy of this configuration whether it lives, or with `--ready` whether
//! it may get traffic; for platforms that check a container by a command in it.
//!
//! Exit code 0: yes; 1: no, or no answer; 2: it cannot be told where to ask.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
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

use super::{HealthcheckArguments, USAGE, fail};
use crate::config::{self, Environment};
use crate::http::Socket;
use crate::policy::{self, ListenPlace};

/// Shorter than any platform waits, so that it is we who say what was wrong.
const LIMIT: Duration = Duration::from_secs(3);
/// No answer of ours is longer.
const ANSWER_BYTES: u64 = 16 << 10;

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn healthcheck(arguments: &HealthcheckArguments) -> ExitCode {
    let loaded = match config::load(&arguments.config.flags(), &Environment::process()) {
        Ok(loaded) => loaded,
        Err(report) => return fail(&report, USAGE),
    };
    // Only this one key is looked at: what else has become wrong in the file since the start is the reload's affair,
    // and no reason to end a process that serves.
    let place = policy::first_listener(&loaded.config)
        .map_err(|finding| format!("{}: {}", finding.path(), finding.message()))
        .and_then(|(place, speaks_tls)| Place::of(place, speaks_tls));
    let place = match place {
        Ok(place) => place,
        Err(problem) => return fail(&format!("{}: {problem}", loaded.source), USAGE),
    };
    let path = if arguments.ready { "/.vestibule/readyz" } else { "/.vestibule/healthz" };
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = executor.and_then(|executor| {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", LIMIT.as_secs()));
        executor.block_on(async { timeout(LIMIT, ask(&place, path)).await.map_err(late)? })
    });
    match asked.map(|answer| Health::read(&answer)) {
        Ok(Health::Yes) => println!("ok"),
        Ok(Health::Busy) if !arguments.ready => println!("ok, though every connection is taken (limits.connections)"),
        Ok(Health::Busy) => return fail(&format!("{place}: every connection is taken (limits.connections)"), 1),
        Ok(Health::No(said)) => return fail(&format!("{place}{path}: {said}"), 1),
        Err(error) => return fail(&format!("{place}: {error}"), 1),
    }
    ExitCode::SUCCESS
}

/// Where the proxy is asked.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Http(SocketAddr),
    Https(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    fn of(place: ListenPlace, speaks_tls: bool) -> Result<Self, String> {
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

/// What the answer means.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    Yes,
    /// It answers, that it has no room: alive, and ending it would make matters worse.
    Busy,
    No(String),
}

impl Health {
    fn read(answer: &[u8]) -> Self {
        let answer = String::from_utf8_lossy(answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        match status.strip_prefix("HTTP/1.1 ").unwrap_or_default().get(..4) {
            Some("200 ") => Self::Yes,
            Some("503 ") if is_busy(body) => Self::Busy,
            _ if status.is_empty() => Self::No("closed without an answer".to_owned()),
            _ => Self::No(format!("{status:?} {:?}", body.trim_end())),
        }
    }
}

fn is_busy(body: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(body).is_ok_and(|problem| problem["code"] == "busy")
}

async fn ask(place: &Place, path: &str) -> io::Result<Vec<u8>> {
    let mut socket = match place {
        Place::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
        Place::Http(address) => Socket::Tcp(TcpStream::connect(address).await?),
        Place::Https(address) => {
            let name = ServerName::IpAddress(address.ip().into());
            let tls = connector()?.connect(name, TcpStream::connect(address).await?).await?;
            Socket::Tls(Box::new(tls.into()))
        }
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // Where every connection is taken the answer is there before the question, and the end soon after.
    let asked = async {
        socket.write_all(request.as_bytes()).await?;
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

/// Believes any certificate: its names are those that clients use, not an address of this machine's, and nothing
/// secret is said here. Whether it has expired is for whoever watches from outside.
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

    #[test]
    fn only_200_is_yes_and_no_room_is_alive() {
        let read = |answer: &str| Health::read(answer.as_bytes());
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nok\n"), Health::Yes);
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"code\":\"busy\"}"), Health::Busy);
        for no in ["", "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready\n", "HTTP/1.1 2000 OK\r\n\r\n", "200"] {
            assert!(matches!(read(no), Health::No(_)), "{no}");
        }
    }
}
