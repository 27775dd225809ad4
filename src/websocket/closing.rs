//! Writes to a client whose socket is not relayed: small frames without waiting, and the final Close.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::frame::{Opcode, encode};
use crate::http::Socket;
use crate::small_server::discard_until_closed;

/// The time that a client has to receive the Close and answer it.
const LINGER: Duration = Duration::from_secs(5);

/// A frame of which the client has taken a part only. The stream cannot be continued: the next frame, a Close too, would be
/// read as the rest of this one.
#[derive(Debug)]
pub(super) struct TruncatedFrame;

/// Writes a small frame without waiting. A client whose buffers are full does not get it.
///
/// # Errors
/// Returns [`TruncatedFrame`] when only a part was written, after which the socket must be dropped.
pub(super) fn write_at_once(client: &mut Socket, opcode: Opcode, payload: &[u8]) -> Result<(), TruncatedFrame> {
    let mut frame = Vec::new();
    encode(&mut frame, opcode, payload, None);
    if client.write_now(&frame).is_ok_and(|written| written < frame.len()) {
        return Err(TruncatedFrame);
    }
    Ok(())
}

/// Sends the message, if there is one, and the Close, then waits until the client has received both: closing a socket
/// with unread bytes resets the connection and can discard what was sent.
pub(super) async fn close_gracefully(mut client: Socket, message: Option<String>, close_payload: &[u8]) {
    let mut bytes = Vec::new();
    if let Some(message) = message {
        encode(&mut bytes, Opcode::Text, message.as_bytes(), None);
    }
    encode(&mut bytes, Opcode::Close, close_payload, None);
    // The socket is dropped whether the client was in time or not.
    let _ = timeout(LINGER, async {
        client.write_all(&bytes).await?;
        client.shutdown().await?;
        discard_until_closed(&mut client, &mut [0; 512], usize::MAX).await
    })
    .await;
}
