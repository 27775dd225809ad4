//! Requests to the control listener on its Unix socket.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::within;

/// Posts to the control listener and returns the status of its answer.
pub async fn post(socket: &Path, target: &str, body: &str) -> u16 {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    let text = format!("POST {target} HTTP/1.1\r\nHost: control\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.expect("written");
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.expect("read");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}
