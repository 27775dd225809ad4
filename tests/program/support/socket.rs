//! A WebSocket whose every frame the test writes and reads, either side of it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Answer, Client};
use super::within;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Client,
    Server,
}

pub struct Socket {
    pub stream: TcpStream,
    side: Side,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("text")
    }

    /// Code and reason of a Close.
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.opcode, 8, "{self:?}");
        let code = u16::from_be_bytes([self.payload[0], self.payload[1]]);
        (code, String::from_utf8(self.payload[2..].to_vec()).expect("text"))
    }
}

/// A frame's bytes; a client's are masked.
pub fn frame(side: Side, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let masked = if side == Side::Client { 0x80 } else { 0 };
    match payload.len() {
        length @ 0..=125 => bytes.push(masked | length as u8),
        length @ 126..=0xffff => {
            bytes.push(masked | 0x7e);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(masked | 0x7f);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    if side == Side::Client {
        let mask = [0x11, 0x22, 0x33, 0x44];
        bytes.extend(mask);
        bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    } else {
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// An upgrade request's bytes.
pub fn upgrade(target: &str, fields: &[&str]) -> String {
    let mut text = format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

impl Socket {
    pub fn new(stream: TcpStream, side: Side, buffer: Vec<u8>) -> Self {
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, side, buffer }
    }

    /// Opens one; panics when the answer is no 101.
    pub async fn open(address: SocketAddr, target: &str, fields: &[&str]) -> Self {
        let (answer, socket) = Self::try_open(address, target, fields).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        socket.expect("open")
    }

    pub async fn try_open(address: SocketAddr, target: &str, fields: &[&str]) -> (Answer, Option<Self>) {
        let mut client = Client::connect(address).await;
        client.send(upgrade(target, fields)).await;
        let answer = client.answer().await;
        let socket = (answer.status == 101).then(|| {
            let (stream, buffer) = client.into_parts();
            Self::new(stream, Side::Client, buffer)
        });
        (answer, socket)
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within("bytes to be taken", self.stream.write_all(bytes.as_ref())).await.expect("written");
    }

    pub async fn send(&mut self, first: u8, payload: impl AsRef<[u8]>) {
        let bytes = frame(self.side, first, payload.as_ref());
        self.write(bytes).await;
    }

    pub async fn say(&mut self, text: &str) {
        self.send(0x81, text).await;
    }

    pub async fn next(&mut self) -> Frame {
        within("a frame", self.try_next()).await.expect("a frame before the end")
    }

    /// `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Option<Frame> {
        let masked = self.side == Side::Server;
        loop {
            if let Some(found) = parse(&self.buffer, masked) {
                let (frame, used) = found;
                self.buffer.drain(..used);
                return Some(frame);
            }
            let mut chunk = vec![0; 64 << 10];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
            }
        }
    }

    pub async fn next_text(&mut self) -> String {
        let frame = self.next().await;
        assert_eq!((frame.fin, frame.opcode), (true, 1), "{frame:?}");
        frame.text().to_owned()
    }

    pub async fn next_close(&mut self) -> (u16, String) {
        self.next().await.close()
    }

    /// Whether the stream ends without another frame.
    pub async fn is_over(&mut self) -> bool {
        within("the end of the stream", self.try_next()).await.is_none()
    }

    /// Sends the first message with the token, and waits for the answer.
    pub async fn authenticate(&mut self, token: &str) -> serde_json::Value {
        self.say(&format!(r#"{{"type":"authenticate","token":"{token}"}}"#)).await;
        serde_json::from_str(&self.next_text().await).expect("json")
    }
}

/// The first whole frame of these bytes and its length; panics when masking is wrong.
pub fn parse(bytes: &[u8], masked: bool) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(second & 0x80 != 0, masked, "masking is wrong for this side");
    let (length, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        length => (u64::from(length), 2),
    };
    let mask = if masked {
        at += 4;
        bytes.get(at - 4..at)?.to_vec()
    } else {
        vec![0; 4]
    };
    let end = at + usize::try_from(length).ok()?;
    let payload = bytes.get(at..end)?.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]).collect();
    Some((Frame { fin: first & 0x80 != 0, opcode: first & 0x0f, payload }, end))
}
