//! The load of requests: connections that are kept alive, each with one request at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// When a load ends, and how fast it is.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// After so many requests of each connection.
    Count(usize),
    /// At a time, each connection as fast as it can.
    Time(Instant),
    /// At a time, each connection with a request in each interval.
    Paced(Instant, Duration),
}

impl Until {
    /// A load of this length that begins now.
    pub(crate) fn after(length: Duration) -> Self {
        Self::Time(Instant::now() + length)
    }

    /// Whether there is another request, after `count`; waits for its turn.
    pub(crate) async fn has_next(self, count: usize) -> bool {
        match self {
            Self::Count(most) => count < most,
            Self::Time(end) => Instant::now() < end,
            Self::Paced(end, interval) => {
                // Each turn from the last answer on: no backlog, so a latency is the program's alone.
                tokio::time::sleep(interval).await;
                Instant::now() < end
            }
        }
    }
}

/// Returns a request in full, with the token in its header.
pub(crate) fn get(path: &str, token: &str) -> Vec<u8> {
    with_field("GET", path, &format!("Authorization: Bearer {token}"), 0)
}

/// Returns a request in full, with one more field and a body of this length.
pub(crate) fn with_field(method: &str, path: &str, field: &str, body: usize) -> Vec<u8> {
    let length = if body == 0 { String::new() } else { format!("Content-Length: {body}\r\n") };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\n{field}\r\n{length}\r\n"
    );
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}

/// One connection, with the requests that it sends in turn.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    requests: Arc<Vec<Vec<u8>>>,
    next: usize,
}

impl Client {
    pub(crate) async fn connect(address: &str, tls: Option<&TlsConnector>, requests: &Arc<Vec<Vec<u8>>>) -> Self {
        let tcp = TcpStream::connect(address).await.expect("connects");
        tcp.set_nodelay(true).expect("nodelay");
        let stream: Box<dyn Stream> = match tls {
            Some(tls) => {
                let name = ServerName::try_from("localhost").expect("a name");
                Box::new(tls.connect(name, tcp).await.expect("a handshake"))
            }
            None => Box::new(tcp),
        };
        Self { stream, buffer: vec![0; 16 << 10], requests: Arc::clone(requests), next: 0 }
    }

    /// Sends the next request, reads its answer, and returns the status, the head and the body, where it is short.
    pub(crate) async fn exchange(&mut self) -> std::io::Result<(u16, String, Vec<u8>)> {
        let (head, end) = self.send().await?;
        let status = status(&self.buffer);
        let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        Ok((status, text, self.buffer[head..end].to_vec()))
    }

    /// Sends the next request and reads its answer to the end. Returns where the head and the body end in the buffer.
    async fn send(&mut self) -> std::io::Result<(usize, usize)> {
        self.stream.write_all(&self.requests[self.next]).await?;
        self.stream.flush().await?;
        self.next = (self.next + 1) % self.requests.len();
        let mut end = 0;
        let head = loop {
            let length = self.stream.read(&mut self.buffer[end..]).await?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            end += length;
            if let Some(at) = self.buffer[..end].windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let mut rest = length(&self.buffer[..head]).saturating_sub(end - head);
        while rest > 0 {
            if end == self.buffer.len() {
                // Of a long body the last part is kept.
                end = head;
            }
            let length = self.stream.read(&mut self.buffer[end..]).await?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            end += length;
            rest = rest.saturating_sub(length);
        }
        Ok((head, end))
    }

    async fn run(mut self, until: Until) -> (Self, Vec<u32>) {
        let mut latencies = Vec::new();
        while until.has_next(latencies.len()).await {
            let began = Instant::now();
            self.send().await.expect("an answer");
            let status = status(&self.buffer);
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&self.buffer[..200]));
            latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        (self, latencies)
    }
}

fn status(answer: &[u8]) -> u16 {
    std::str::from_utf8(&answer[9..12]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The `Content-Length` of an answer's head.
fn length(head: &[u8]) -> usize {
    let name = b"content-length:";
    let at = head.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name));
    let digits = at.map_or(&[][..], |at| &head[at + name.len()..]);
    let digits = digits.iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
}

/// The load: all connections.
pub(crate) struct Load(Vec<Client>);

impl Load {
    pub(crate) async fn connect(
        address: &str,
        tls: Option<&TlsConnector>,
        requests: &Arc<Vec<Vec<u8>>>,
        connections: usize,
    ) -> Self {
        let mut clients = Vec::new();
        for number in 0..connections {
            let mut client = Client::connect(address, tls, requests).await;
            client.next = number * requests.len() / connections;
            clients.push(client);
        }
        Self(clients)
    }

    /// Sends requests and returns the latency of each in microseconds. Each answer must be 200.
    pub(crate) async fn run(&mut self, until: Until) -> Vec<u32> {
        let clients: Vec<_> = self.0.drain(..).map(|client| tokio::spawn(client.run(until))).collect();
        let mut latencies = Vec::new();
        for client in clients {
            let (client, own) = client.await.expect("ends");
            self.0.push(client);
            latencies.extend(own);
        }
        latencies
    }
}
