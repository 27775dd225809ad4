//! An upstream that the test controls: it returns each connection and the request that it received.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::socket::{Side, Socket};
use super::within;

pub struct Backend {
    listener: TcpListener,
}

pub struct Conn {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Heard {
    /// Request line and fields, as they came.
    pub head: String,
    pub body: Vec<u8>,
}

impl Heard {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or("")
    }

    /// Every value of a field, name compared without case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }
}

impl Backend {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("port") }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("address")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub async fn accept(&self) -> Conn {
        let (stream, _) = within("the upstream to be dialled", self.listener.accept()).await.expect("accepts");
        Conn { stream, buffer: Vec::new() }
    }

    /// Returns whether no connection has been opened.
    pub fn is_untouched(&mut self) -> bool {
        use std::future::Future as _;
        let waker = std::task::Waker::noop();
        let mut context = std::task::Context::from_waker(waker);
        std::pin::pin!(self.listener.accept()).as_mut().poll(&mut context).is_pending()
    }

    /// Answers one request with 200 and this body, and returns the request.
    pub async fn answer(&self, body: &str) -> Heard {
        let mut conn = self.accept().await;
        let heard = conn.request().await;
        conn.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
            .await;
        heard
    }

    /// Accepts an upgrade.
    pub async fn websocket(&self) -> (Heard, Socket) {
        self.accept().await.switch("").await
    }
}

impl Conn {
    pub async fn request(&mut self) -> Heard {
        within("a request at the upstream", self.try_request()).await.expect("a request")
    }

    /// `None` when the connection ends before a request.
    pub async fn try_request(&mut self) -> Option<Heard> {
        let heard = self.try_head().await?;
        self.try_body(heard).await
    }

    /// A request's head, its body not read.
    pub async fn head(&mut self) -> Heard {
        within("a head at the upstream", self.try_head()).await.expect("a head")
    }

    /// Reads the body after a head.
    pub async fn body(&mut self, head: Heard) -> Heard {
        within("a body at the upstream", self.try_body(head)).await.expect("a body")
    }

    async fn try_head(&mut self) -> Option<Heard> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("ascii");
        Some(Heard { head, body: Vec::new() })
    }

    async fn try_body(&mut self, mut heard: Heard) -> Option<Heard> {
        if heard.all("transfer-encoding") == ["chunked"] {
            heard.body = self.chunked().await?;
        } else if let Some(length) = heard.all("content-length").first().and_then(|length| length.parse::<usize>().ok())
        {
            while self.buffer.len() < length {
                self.more().await?;
            }
            heard.body = self.buffer.drain(..length).collect();
        }
        Some(heard)
    }

    async fn more(&mut self) -> Option<()> {
        let mut chunk = vec![0; 16 << 10];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => None,
            Ok(length) => {
                self.buffer.extend_from_slice(&chunk[..length]);
                Some(())
            }
        }
    }

    async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_end = loop {
                if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.more().await?;
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[..line_end]).ok()?, 16).ok()?;
            while self.buffer.len() < line_end + 2 + size + 2 {
                self.more().await?;
            }
            self.buffer.drain(..line_end + 2);
            body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
            if size == 0 {
                return Some(body);
            }
        }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within("the proxy to take bytes", self.stream.write_all(bytes.as_ref())).await.expect("written");
    }

    /// Ends the connection, and waits until the proxy has left it too.
    ///
    /// To drop it does not end it at once: a program that another test starts has a copy of every descriptor of this
    /// process until it runs. On a busy machine the proxy sent its next request on a connection that nobody read any more.
    pub async fn end(mut self) {
        // The proxy may have left first.
        let _ = self.stream.shutdown().await;
        self.is_closed().await;
    }

    /// Whether the other end has gone.
    pub async fn is_closed(&mut self) -> bool {
        within("the proxy to leave", async { while self.more().await.is_some() {} }).await;
        true
    }

    /// Reads an upgrade request and answers 101; `extra` are further fields.
    pub async fn switch(mut self, extra: &str) -> (Heard, Socket) {
        let heard = self.request().await;
        let socket = self.accepts_with(&heard, extra).await;
        (heard, socket)
    }

    /// Answers an upgrade request that was read with 101.
    pub async fn accepts(self, heard: &Heard) -> Socket {
        self.accepts_with(heard, "").await
    }

    async fn accepts_with(mut self, heard: &Heard, extra: &str) -> Socket {
        let key = heard.all("sec-websocket-key").first().copied().expect("a key").to_owned();
        let accept = derive_accept_key(key.as_bytes());
        self.write(format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n{extra}\r\n")).await;
        Socket::new(self.stream, Side::Server, self.buffer)
    }
}
