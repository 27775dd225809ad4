//! The server behind the programs: it answers requests with bodies of any size, says what the trusted header was, and
//! echoes WebSocket messages. It runs in the process of the load.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The accept value for the key that [`crate::middle::sockets`] sends (RFC 6455 section 1.3).
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The size of an answer whose path names none, in bytes.
const USUAL: usize = 200;

/// Starts the server and returns its address.
pub(crate) async fn start(tls: Option<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                match tls {
                    Some(tls) => serve(tls.accept(stream).await?).await,
                    None => serve(stream).await,
                }
            });
        }
    });
    address
}

/// The bytes of a connection that were read and not used yet.
struct Input<S> {
    stream: S,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl<S: AsyncRead + Unpin> Input<S> {
    /// Reads more, behind what is there.
    async fn more(&mut self) -> std::io::Result<()> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        let length = self.stream.read(&mut self.bytes[self.end..]).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.end += length;
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Reads to the end of a head and returns it.
    async fn head(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(at) = self.unread().windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.unread()[..at + 2]).into_owned();
                self.start += at + 4;
                return Ok(head);
            }
            self.more().await?;
        }
    }

    async fn discard(&mut self, mut length: usize) -> std::io::Result<()> {
        if length > self.bytes.len() {
            self.bytes.resize(64 << 10, 0);
        }
        loop {
            let there = length.min(self.end - self.start);
            self.start += there;
            length -= there;
            if length == 0 {
                return Ok(());
            }
            (self.start, self.end) = (0, 0);
            self.more().await?;
        }
    }
}

/// The value of a field of a head; names in lower or mixed case.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> std::io::Result<()> {
    // Small: idle sockets have one each.
    let mut input = Input { stream, bytes: vec![0; 2048], start: 0, end: 0 };
    let (mut answer, mut size) = (Vec::new(), usize::MAX);
    loop {
        let head = input.head().await?;
        if field(&head, "upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            let switching = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            );
            input.stream.write_all(switching.as_bytes()).await?;
            return echo(input).await;
        }
        if let Some(length) = field(&head, "content-length").and_then(|value| value.parse().ok()) {
            input.discard(length).await?;
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path == "/whoami" {
            let user = field(&head, "x-user-id").unwrap_or_default();
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{user}", user.len());
            input.stream.write_all(text.as_bytes()).await?;
        } else {
            let wanted = path.strip_prefix("/bytes/").and_then(|size| size.parse().ok()).unwrap_or(USUAL);
            if wanted != size {
                size = wanted;
                answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n").into();
                answer.resize(answer.len() + size, b'x');
            }
            input.stream.write_all(&answer).await?;
        }
        input.stream.flush().await?;
    }
}

/// Sends every message back, and a Pong for a Ping, until a Close.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut input: Input<S>) -> std::io::Result<()> {
    let mut frame = Vec::new();
    loop {
        while input.unread().len() < 6 || input.unread().len() < 6 + usize::from(input.unread()[1] & 0x7f) {
            input.more().await?;
        }
        let bytes = input.unread();
        let (opcode, length) = (bytes[0] & 0x0f, usize::from(bytes[1] & 0x7f));
        assert!(length < 126 && bytes[1] & 0x80 != 0, "a short masked frame");
        let key = &bytes[2..6];
        frame.clear();
        frame.extend([0x80 | if opcode == 9 { 10 } else { opcode }, bytes[1] & 0x7f]);
        frame.extend(bytes[6..6 + length].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        input.start += 6 + length;
        if opcode != 10 {
            input.stream.write_all(&frame).await?;
            input.stream.flush().await?;
        }
        if opcode == 8 {
            return Ok(());
        }
    }
}
