//! An HTTP client that sends exactly the given bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::backend::{Backend, Heard};
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
        Self::over(stream)
    }

    /// Makes a client on an open connection.
    pub fn over(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("the proxy to take bytes", self.stream.write_all(bytes.as_ref())).await.expect("written");
    }

    pub async fn answer(&mut self) -> Answer {
        within("an answer", self.try_answer()).await.expect("an answer")
    }

    /// Returns the next response; `None` when the connection ends first.
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
        if status < 200 || status == 204 || status == 304 {
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

    /// Reads raw bytes until they end with this text.
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

    /// Returns whether the proxy closes without another byte.
    pub async fn is_closed(&mut self) -> bool {
        within("the proxy to close", async {
            while self.more().await.is_some() {}
            self.buffer.is_empty()
        })
        .await
    }

    /// Ends the client's side of the connection.
    pub async fn finish(&mut self) {
        // The other side may have closed first.
        let _ = self.stream.shutdown().await;
    }

    /// Returns one response up to its last byte: status, significant fields, and whether it is complete.
    pub async fn whole(&mut self, is_head: bool) -> String {
        within("an answer", async {
            loop {
                if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                    self.buffer.drain(..at + 4);
                    return self.rest_of(&head, is_head).await;
                }
                if self.more().await.is_none() {
                    return "closed without an answer".to_owned();
                }
            }
        })
        .await
    }

    async fn rest_of(&mut self, head: &str, is_head: bool) -> String {
        let mut lines = head.lines();
        let status = lines.next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned();
        let fields: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .filter(|(name, _)| !matches!(name.as_str(), "date" | "x-request-id" | "cache-control" | "content-type"))
            .collect();
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let mut shown: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        shown.sort();
        shown.dedup();
        let is_empty = is_head || status.starts_with("204") || status.starts_with("304");
        let (body, whole) = if is_empty {
            (Vec::new(), true)
        } else if field("transfer-encoding") == Some("chunked") {
            let end: &[u8] = b"0\r\n";
            loop {
                // The end is a last chunk, its trailers, and an empty line.
                let ended = self.buffer.ends_with(b"\r\n\r\n") && self.buffer.windows(3).any(|window| window == end);
                if ended || self.more().await.is_none() {
                    break (std::mem::take(&mut self.buffer), ended);
                }
            }
        } else {
            let length = field("content-length").and_then(|length| length.parse::<usize>().ok());
            loop {
                let whole = length.is_some_and(|length| self.buffer.len() >= length);
                if whole || self.more().await.is_none() {
                    break (std::mem::take(&mut self.buffer), whole || length.is_none());
                }
            }
        };
        let mut body = String::from_utf8_lossy(&body).into_owned();
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(&body) {
            body = json["code"].as_str().map_or(body, str::to_owned);
            shown.retain(|field| !field.starts_with("content-length"));
        }
        let whole = if whole { "whole" } else { "broken off" };
        format!("{status} [{}] {whole} {body:?}", shown.join(" | "))
    }

    pub fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }
}

/// Sends one request on a connection of its own; `fields` are whole lines.
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

/// Sends a GET, which the backend answers with 200 if the proxy forwards it. Returns the response, and the request that
/// the backend received.
pub async fn get_served(
    proxy: SocketAddr,
    backend: &Backend,
    target: &str,
    fields: &[&str],
) -> (Answer, Option<Heard>) {
    let answer = get(proxy, target, fields);
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => (answer, None),
        heard = backend.answer("ok") => (answer.await, Some(heard)),
    }
}

/// Returns the header field `Authorization: Bearer …`.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}
