//! The three kinds of connection on both sides of the proxy: TCP, TLS and Unix sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::authority::Authority;
use crate::support::proxy::{TempFile, TempFolder};

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection of any kind, boxed.
pub(crate) type Boxed = Box<dyn Stream>;

/// The options of a connection, which are set before anything is sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Socket {
    /// Whether its buffers are small, so that the sender notices a reader that stops.
    pub(crate) is_narrow: bool,
    /// Whether closing it sends a reset.
    pub(crate) resets: bool,
}

/// The size of a small buffer in bytes, far below the largest segment of loopback: the sender notices at once when a
/// reader stops.
const NARROW: usize = 16 << 10;
/// The maximum segment size, as in a network. Segments of loopback are larger than a small buffer, and the system sends
/// parts of them only after timers that grow to half a minute, which does not happen in networks while the reader
/// reads.
const SEGMENT: u32 = 1_448;

impl Socket {
    fn apply(self, socket: &SockRef<'_>) -> std::io::Result<()> {
        if self.is_narrow {
            socket.set_recv_buffer_size(NARROW)?;
            socket.set_send_buffer_size(NARROW)?;
        }
        if self.resets {
            socket.set_linger(Some(std::time::Duration::ZERO))?;
        }
        Ok(())
    }
}

/// The kind of connection on both sides of the proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Transport {
    Tcp,
    Tls,
    Unix,
}

enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

/// Both sides of the proxy: where it listens, and the upstream's listener.
pub(crate) struct Ends {
    listener: Listener,
    connector: Option<TlsConnector>,
    path: PathBuf,
    /// The proxy's `listen` and `upstream`, as YAML.
    pub(crate) yaml: String,
    _files: (TempFolder, Vec<TempFile>),
}

impl Ends {
    pub(crate) async fn new(transport: Transport) -> Self {
        let (folder, authority) = (TempFolder::new(), Authority::new());
        let tcp = || async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
            SockRef::from(&listener).set_tcp_mss(SEGMENT).expect("segments");
            listener
        };
        let path = folder.0.join("proxy.sock");
        let upstream_path = folder.0.join("upstream.sock");
        let (mut files, mut connector) = (Vec::new(), None);
        let (listener, yaml) = match transport {
            Transport::Tcp => {
                let listener = tcp().await;
                let yaml = format!("upstream: \"http://{}\"\n", listener.local_addr().expect("address"));
                (Listener::Tcp(listener), yaml)
            }
            Transport::Tls => {
                let listener = tcp().await;
                let (certificate, key) = authority.issue("localhost");
                files.extend([TempFile::new(&certificate), TempFile::new(&key), authority.pem()]);
                let yaml = format!(
                    "listen: [{{ address: \"127.0.0.1:0\", tls: {{ certificate_file: \"{}\", key_file: \"{}\" }} }}]\nupstream: {{ url: \"https://localhost:{}\", tls: {{ ca_file: \"{}\" }} }}\n",
                    files[0].path(),
                    files[1].path(),
                    listener.local_addr().expect("address").port(),
                    files[2].path()
                );
                connector = Some(authority.connector(&[]));
                (Listener::Tls(listener, authority.acceptor("localhost")), yaml)
            }
            Transport::Unix => {
                let listener = UnixListener::bind(&upstream_path).expect("bound");
                // The address by TCP is the one that its log names once it is ready.
                let yaml = format!(
                    "listen: [\"127.0.0.1:0\", \"unix:{}\"]\nupstream: \"unix:{}\"\n",
                    path.display(),
                    upstream_path.display()
                );
                (Listener::Unix(listener), yaml)
            }
        };
        Self { listener, connector, path, yaml, _files: (folder, files) }
    }

    /// Returns the way in which clients reach the proxy.
    pub(crate) fn dialler(&self, address: SocketAddr) -> Dialler {
        match (&self.listener, &self.connector) {
            (Listener::Unix(_), _) => Dialler::Unix(self.path.clone()),
            (_, Some(connector)) => Dialler::Tls(address, connector.clone()),
            _ => Dialler::Tcp(address),
        }
    }

    /// Waits for the proxy's next connection; the TLS handshake is done by [`Accepted::open`].
    pub(crate) async fn accept(&self) -> Accepted {
        match &self.listener {
            Listener::Tcp(listener) => Accepted::Tcp(listener.accept().await.expect("accepts").0, None),
            Listener::Tls(listener, acceptor) => {
                Accepted::Tcp(listener.accept().await.expect("accepts").0, Some(acceptor.clone()))
            }
            Listener::Unix(listener) => Accepted::Unix(listener.accept().await.expect("accepts").0),
        }
    }
}

/// A connection of the proxy to the upstream.
pub(crate) enum Accepted {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

impl Accepted {
    pub(crate) async fn open(self, socket: Socket) -> std::io::Result<Boxed> {
        match self {
            Self::Tcp(stream, acceptor) => {
                stream.set_nodelay(true)?;
                socket.apply(&SockRef::from(&stream))?;
                match acceptor {
                    Some(acceptor) => Ok(Box::new(acceptor.accept(stream).await?)),
                    None => Ok(Box::new(stream)),
                }
            }
            Self::Unix(stream) => {
                socket.apply(&SockRef::from(&stream))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// The way in which clients reach the proxy.
#[derive(Clone)]
pub(crate) enum Dialler {
    Tcp(SocketAddr),
    Tls(SocketAddr, TlsConnector),
    Unix(PathBuf),
}

impl Dialler {
    pub(crate) async fn dial(&self, socket: Socket) -> std::io::Result<Boxed> {
        match self {
            Self::Tcp(address) => Ok(Box::new(dial_tcp(*address, socket).await?)),
            Self::Tls(address, connector) => {
                let name = ServerName::try_from("localhost").expect("a name");
                Ok(Box::new(connector.connect(name, dial_tcp(*address, socket).await?).await?))
            }
            Self::Unix(path) => dial_unix(path, socket).await,
        }
    }
}

async fn dial_tcp(address: SocketAddr, socket: Socket) -> std::io::Result<TcpStream> {
    let connecting = TcpSocket::new_v4()?;
    SockRef::from(&connecting).set_tcp_mss(SEGMENT)?;
    socket.apply(&SockRef::from(&connecting))?;
    let stream = connecting.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn dial_unix(path: &Path, socket: Socket) -> std::io::Result<Boxed> {
    let stream = UnixStream::connect(path).await?;
    socket.apply(&SockRef::from(&stream))?;
    Ok(Box::new(stream))
}
