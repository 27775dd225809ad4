//! An HTTP client that sends exactly what it is given.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::within;

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("to connect", TcpStream::connect(address)).await.expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the proxy to take bytes", self.stream.write_all(bytes.as_ref())).await.expect("written");
    }

    pub async fn answer(&mut self) -> Answer {
        within("an answer", self.try_answer()).await.expect("an answer")
    }

    /// `None` when the connection ends first.
    pub async fn try_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("ascii");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let mut answer = Answer { status, head, body: String::new() };
        if status == 101 || status == 204 || status == 304 {
            return Some(answer);
        }
        if let Some(length) = answer.field("content-length").and_then(|length| length.parse::<usize>().ok()) {
            while self.buffer.len() < length {
                self.more().await?;
            }
            answer.body = String::from_utf8(self.buffer.drain(..length).collect()).expect("text");
        } else if answer.field("transfer-encoding").is_none() {
            while self.more().await.is_some() {}
            answer.body = String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned();
        }
        Some(answer)
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

    /// Reads raw bytes until they end with this.
    pub async fn until(&mut self, end: &str) -> String {
        within(end, async {
            loop {
                if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end.as_bytes()) {
                    return String::from_utf8(self.buffer.drain(..at + end.len()).collect()).expect("text");
                }
                assert!(self.more().await.is_some(), "the connection ended before {end:?}: {:?}", self.buffer);
            }
        })
        .await
    }

    /// Whether the proxy closes without another byte.
    pub async fn is_closed(&mut self) -> bool {
        within("the proxy to close", async {
            while self.more().await.is_some() {}
            self.buffer.is_empty()
        })
        .await
    }

    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }
}

/// One request on a connection of its own; `fields` are whole lines.
pub async fn request(address: SocketAddr, method: &str, target: &str, fields: &[&str], body: &str) -> Answer {
    let mut client = Client::connect(address).await;
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    client.send(format!("{text}Connection: close\r\n\r\n{body}")).await;
    client.answer().await
}

pub async fn get(address: SocketAddr, target: &str, fields: &[&str]) -> Answer {
    request(address, "GET", target, fields, "").await
}

/// `Authorization: Bearer …`
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}
