//! A client or an upstream in memory: sends what the model wants, and records what the proxy sends to it. It reads HTTP
//! and WebSocket frames by itself, without the product's code.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, DuplexStream, ReadBuf};

use crate::simulation::{PeerEnd, ReceiveWindow};

/// A WebSocket message that a peer received.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Item {
    /// A message of the other peer.
    Text(String),
    /// A message of the proxy: its type, with the text of an error or the user id.
    Proxy(String),
    /// A Close with this code.
    Close(u16),
}

/// One end of a connection of the proxy.
pub(super) struct FakePeer {
    /// The stream, until the peer is gone.
    stream: Option<DuplexStream>,
    window: ReceiveWindow,
    is_client: bool,
    /// Bytes that were received and not read yet.
    pub(super) bytes: Vec<u8>,
    /// The head of the HTTP request or response, once it is complete.
    pub(super) head: Option<String>,
    pub(super) items: Vec<Item>,
    /// Whether the proxy has ended its stream.
    pub(super) has_ended: bool,
}

impl FakePeer {
    pub(super) fn new(PeerEnd { stream, window }: PeerEnd, is_client: bool) -> Self {
        Self {
            stream: Some(stream),
            window,
            is_client,
            bytes: Vec::new(),
            head: None,
            items: Vec::new(),
            has_ended: false,
        }
    }

    /// Stops reading, with the receive window full, or reads again.
    pub(super) fn set_reading(&self, is_reading: bool) {
        self.window.set_full(!is_reading);
    }

    /// Sends bytes. The pipe has room for all that a peer sends in one order; a proxy that has closed it takes none.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        assert!(stream.write_all(bytes).now_or_never().is_some(), "the pipe is full");
    }

    /// Sends a frame (RFC 6455 section 5.2), masked where it is a client's.
    pub(super) fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        const KEY: [u8; 4] = [0x1f, 0x2e, 0x3d, 0x4c];
        let mask_bit = if self.is_client { 0x80 } else { 0 };
        let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("a short frame");
        let mut frame = vec![0x80 | opcode, mask_bit | length];
        if self.is_client {
            frame.extend_from_slice(&KEY);
            frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
        } else {
            frame.extend_from_slice(payload);
        }
        self.send(&frame);
    }

    pub(super) fn send_text(&mut self, text: &str) {
        self.send_frame(1, text.as_bytes());
    }

    /// Sends a Close with 1000.
    pub(super) fn send_close(&mut self) {
        self.send_frame(8, &1_000_u16.to_be_bytes());
    }

    /// Ends the stream to the proxy, and still reads.
    pub(super) fn half_close(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        assert!(stream.shutdown().now_or_never().is_some(), "a pipe ends at once");
    }

    /// Disconnects: what the proxy writes from now on fails.
    pub(super) fn disconnect(&mut self) {
        self.stream = None;
        self.window.set_full(false);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Reads what the proxy has sent.
    pub(super) fn receive(&mut self) {
        self.receive_bytes();
        if self.head.is_some() {
            while let Some((opcode, payload)) = self.next_frame() {
                self.record(opcode, &payload);
            }
        }
    }

    /// Takes what the proxy has sent, without reading frames.
    pub(super) fn receive_bytes(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut cx = Context::from_waker(Waker::noop());
        let mut room = [0; 4 << 10];
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            match Pin::new(&mut *stream).poll_read(&mut cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(result) => {
                    if result.is_err() || buffer.filled().is_empty() {
                        self.has_ended = true;
                        break;
                    }
                    self.bytes.extend_from_slice(buffer.filled());
                }
            }
        }
        if self.head.is_none()
            && let Some(end) = self.bytes.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head: Vec<u8> = self.bytes.drain(..end + 4).collect();
            self.head = Some(String::from_utf8(head).expect("a head is ASCII"));
        }
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (first, second) = (*self.bytes.first()?, *self.bytes.get(1)?);
        assert_eq!(first & 0xf0, 0x80, "a whole frame without extensions");
        assert_eq!(second & 0x80 == 0, self.is_client, "masked to the upstream alone");
        let (mut at, mut length) = (2, usize::from(second & 0x7f));
        if length == 126 {
            length = usize::from(u16::from_be_bytes([*self.bytes.get(2)?, *self.bytes.get(3)?]));
            at = 4;
        }
        assert!(length < 1 << 16, "a short frame");
        let mut key = [0; 4];
        if !self.is_client {
            key.copy_from_slice(self.bytes.get(at..at + 4)?);
            at += 4;
        }
        let masked = self.bytes.get(at..at + length)?;
        let payload = masked.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        self.bytes.drain(..at + length);
        Some((first & 0x0f, payload))
    }

    fn record(&mut self, opcode: u8, payload: &[u8]) {
        let item = match opcode {
            1 => {
                let text = String::from_utf8(payload.to_vec()).expect("UTF-8");
                if self.is_client { proxy_message(&text).unwrap_or(Item::Text(text)) } else { Item::Text(text) }
            }
            8 => Item::Close(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))),
            other => panic!("a frame with opcode {other}"),
        };
        let is_closed = self.items.iter().any(|item| matches!(item, Item::Close(_)));
        assert!(!is_closed, "{item:?} after a Close");
        self.items.push(item);
    }
}

/// Returns a message of the dialect `vestibule`; `None` for an application's.
fn proxy_message(text: &str) -> Option<Item> {
    let message: Value = serde_json::from_str(text).ok()?;
    let member = |name: &str| message.get(name).and_then(Value::as_str);
    let kind = member("type")?;
    let detail = member("message").or(member("user_id"));
    Some(Item::Proxy(detail.map_or_else(|| kind.to_owned(), |detail| format!("{kind}: {detail}"))))
}
