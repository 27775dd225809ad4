//! Requests to the control listener on its Unix socket.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::within;

/// Posts to the control listener and returns the status of its answer.
pub async fn post(socket: &Path, target: &str, body: &str) -> u16 {
    within("an answer", try_post(socket, target, body)).await.expect("a status")
}

/// Posts like [`post`]; an error when the program is not there or ends first.
pub async fn try_post(socket: &Path, target: &str, body: &str) -> std::io::Result<u16> {
    let mut stream = UnixStream::connect(socket).await?;
    let text = format!("POST {target} HTTP/1.1\r\nHost: control\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}
