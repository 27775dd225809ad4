//! The load of WebSocket connections: opening and closing them, and messages of 64 bytes back and forth.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::middle::requests::Until;

/// The size of a message in bytes.
pub(crate) const PAYLOAD: usize = 64;
/// Opcodes (RFC 6455 section 5.2).
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// How a client says who it is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Entry {
    /// By `Authorization` on the upgrade.
    Header,
    /// By the first message.
    InBand,
}

/// An open WebSocket.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(crate) async fn open(address: &str, token: &str, entry: Entry) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let credential = match entry {
            Entry::Header => format!("Authorization: Bearer {token}\r\n"),
            Entry::InBand => String::new(),
        };
        let upgrade = format!(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{credential}\r\n"
        );
        let mut socket = Self { stream, buffer: vec![0; 1024], start: 0, end: 0 };
        socket.stream.write_all(upgrade.as_bytes()).await?;
        let head = loop {
            if let Some(at) = socket.unread().windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            socket.more().await?;
        };
        if !socket.unread().starts_with(b"HTTP/1.1 101") {
            return Err(std::io::Error::other(String::from_utf8_lossy(&socket.unread()[..head]).into_owned()));
        }
        socket.start += head;
        if entry == Entry::InBand {
            let message = format!("{{\"type\":\"authenticate\",\"token\":\"{token}\"}}");
            socket.send(TEXT, message.as_bytes()).await?;
            let (_, payload) = socket.receive().await?;
            if !payload.windows(15).any(|window| window == b"\"authenticated\"") {
                return Err(std::io::Error::other(String::from_utf8_lossy(&payload).into_owned()));
            }
        }
        Ok(socket)
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    async fn more(&mut self) -> std::io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            return Err(std::io::Error::other("longer than anything that is expected"));
        }
        let length = self.stream.read(&mut self.buffer[self.end..]).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.end += length;
        Ok(())
    }

    /// Sends a message, masked with zeros, so that the load has little to do.
    async fn send(&mut self, opcode: u8, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = Vec::with_capacity(8 + payload.len());
        frame.push(0x80 | opcode);
        match u8::try_from(payload.len()) {
            Ok(length) if length < 126 => frame.push(0x80 | length),
            _ => {
                frame.push(0xfe);
                frame.extend(u16::try_from(payload.len()).expect("a short message").to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).await
    }

    /// Receives the next message that is no Ping; those are answered.
    async fn receive(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        loop {
            let (opcode, payload) = self.frame().await?;
            if opcode != PING {
                return Ok((opcode, payload));
            }
            self.send(PONG, &payload).await?;
        }
    }

    async fn frame(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        loop {
            let bytes = self.unread();
            let header = match bytes.get(1) {
                Some(126) if bytes.len() >= 4 => Some((4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]])))),
                Some(length @ 0..126) => Some((2, usize::from(*length))),
                _ => None,
            };
            if let Some((head, length)) = header
                && bytes.len() >= head + length
            {
                let frame = (bytes[0] & 0x0f, bytes[head..head + length].to_vec());
                self.start += head + length;
                return Ok(frame);
            }
            self.more().await?;
        }
    }

    /// Sends a message and waits for its echo.
    pub(crate) async fn echo(&mut self) -> std::io::Result<()> {
        let payload = [b'e'; PAYLOAD];
        self.send(BINARY, &payload).await?;
        let (opcode, answer) = self.receive().await?;
        assert!(opcode == BINARY && answer == payload, "not the echo: opcode {opcode}");
        Ok(())
    }

    /// Closes it with a Close on both sides, and waits for the end of the connection.
    pub(crate) async fn close(mut self) -> std::io::Result<()> {
        self.send(CLOSE, &1000_u16.to_be_bytes()).await?;
        while self.receive().await?.0 != CLOSE {}
        while self.more().await.is_ok() {
            self.start = self.end;
        }
        Ok(())
    }

    /// Lives on without sending anything but Pongs, until it is closed or the task ends.
    pub(crate) async fn idle(mut self) {
        while self.receive().await.is_ok_and(|(opcode, _)| opcode != CLOSE) {}
    }
}

/// Open sockets, which echo at the same time.
pub(crate) struct Sockets(Vec<Socket>);

impl Sockets {
    pub(crate) async fn open(address: &str, token: &str, entry: Entry, count: usize) -> std::io::Result<Self> {
        let mut sockets = Vec::new();
        for _ in 0..count {
            sockets.push(Socket::open(address, token, entry).await?);
        }
        Ok(Self(sockets))
    }

    /// Sends messages on all of them and returns the latency of each in microseconds.
    pub(crate) async fn echo(&mut self, until: Until) -> Vec<u32> {
        let echo = |mut socket: Socket| async move {
            let mut latencies = Vec::new();
            while until.has_next(latencies.len()).await {
                let began = Instant::now();
                socket.echo().await.expect("an echo");
                latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            (socket, latencies)
        };
        let sockets: Vec<_> = self.0.drain(..).map(|socket| tokio::spawn(echo(socket))).collect();
        let mut latencies = Vec::new();
        for socket in sockets {
            let (socket, own) = socket.await.expect("ends");
            self.0.push(socket);
            latencies.extend(own);
        }
        latencies
    }
}
