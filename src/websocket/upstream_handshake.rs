//! The handshake with an upstream that checks tokens itself and wants them in its first message (docs/contract.md
//! section 4.4). The proxy's message is sent as soon as the upstream's 101 has come. The acknowledgement is dropped,
//! and a refusal becomes a close reason of section 4.2.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::assembler::{ControlFrame, FrameReader, Keep, MessageBuffer, Part};
use super::close_reason::CloseReason;
use super::dialect::upstream_message;
use super::frame::{Opcode, Sender, encode, masking_key};
use super::template::matches_template;
use crate::auth::Token;
use crate::http::{Socket, UpstreamSocket};
use crate::json;
use crate::policy::DialectSpec;

/// The maximum number of bytes that an upstream may send before its acknowledgement. They are kept and forwarded later.
const MAX_KEPT_BYTES: usize = 64 << 10;
/// The close codes by which backends refuse a token.
const REFUSALS: [u16; 3] = [1008, 4001, 4401];

/// Authenticates the user to the upstream. The caller limits the time.
///
/// # Errors
/// Returns the reason why the upstream did not accept the token.
pub(super) async fn authenticate(
    upgraded: UpstreamSocket,
    dialect: &DialectSpec,
    token: &Token,
) -> Result<UpstreamSocket, CloseReason> {
    let mut connection = AuthenticatingUpstream::new(upgraded);
    if dialect.greeting.is_some() {
        let greeting = connection.next_message().await?;
        if !matches(&greeting, dialect.greeting.as_ref()) {
            connection.keep(&greeting)?;
        }
    }
    connection.send(Opcode::Text, upstream_message(&dialect.authenticate, token).as_bytes()).await?;
    loop {
        let message = connection.next_message().await?;
        if matches(&message, dialect.authenticate.acknowledge.as_ref()) {
            return Ok(connection.into_upgraded());
        }
        if matches(&message, dialect.error.as_ref()) {
            return Err(CloseReason::UpstreamRefused);
        }
        connection.keep(&message)?;
    }
}

/// Returns whether a text matches a template.
fn matches(message: &MessageBuffer, template: Option<&serde_json::Value>) -> bool {
    let value = Some(message).filter(|message| message.opcode == Opcode::Text);
    let value = value.and_then(|message| json::value(&message.payload).ok());
    template.zip(value).is_some_and(|(template, message)| matches_template(template, &message))
}

/// The connection to the upstream until the user is authenticated.
struct AuthenticatingUpstream {
    socket: Socket,
    /// Bytes that were received and not read yet.
    input: Vec<u8>,
    frames: FrameReader,
    /// Messages that are forwarded later.
    kept: Vec<u8>,
}

impl AuthenticatingUpstream {
    fn new(upgraded: UpstreamSocket) -> Self {
        let frames = FrameReader::new(Sender::Server, false);
        Self { socket: upgraded.socket, input: upgraded.early, frames, kept: Vec::new() }
    }

    fn keep(&mut self, message: &MessageBuffer) -> Result<(), CloseReason> {
        self.kept.extend_from_slice(&message.raw);
        if self.kept.len() > MAX_KEPT_BYTES { Err(CloseReason::UpstreamFailed) } else { Ok(()) }
    }

    async fn send(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), CloseReason> {
        let mut frame = Vec::new();
        encode(&mut frame, opcode, payload, Some(masking_key()));
        self.socket.write_all(&frame).await.map_err(|_| CloseReason::UpstreamFailed)?;
        self.socket.flush().await.map_err(|_| CloseReason::UpstreamFailed)
    }

    /// Returns the socket with the kept messages and the bytes received after them.
    fn into_upgraded(self) -> UpstreamSocket {
        let mut early = self.kept;
        early.extend_from_slice(&self.input);
        UpstreamSocket { socket: self.socket, early }
    }

    /// Returns the next whole message. Earlier pings are answered.
    async fn next_message(&mut self) -> Result<MessageBuffer, CloseReason> {
        let mut message: Option<MessageBuffer> = None;
        let mut at = 0;
        loop {
            let part = self.frames.next(&self.input, &mut at).map_err(|_violation| CloseReason::UpstreamFailed)?;
            let Some(part) = part else {
                self.input.clear();
                at = 0;
                if self.socket.read_buf(&mut self.input).await.map_err(|_| CloseReason::UpstreamFailed)? == 0 {
                    return Err(CloseReason::UpstreamFailed);
                }
                continue;
            };
            let ends_message = part.ends_message();
            match part {
                Part::Control(control) => self.read_control(control).await?,
                Part::DataHeader(header, _) => {
                    message
                        .get_or_insert_with(|| MessageBuffer::new(header.opcode, Keep::RawAndPayload))
                        .push_header(&header);
                }
                Part::Payload { header, range, offset, .. } => {
                    if let Some(message) = &mut message {
                        message.push_payload(&self.input[range], &header, offset);
                    }
                }
            }
            if message.as_ref().is_some_and(|message| message.raw.len() > MAX_KEPT_BYTES) {
                return Err(CloseReason::UpstreamFailed);
            }
            if ends_message && let Some(message) = message.take() {
                self.input.drain(..at);
                return Ok(message);
            }
        }
    }

    async fn read_control(&mut self, control: ControlFrame) -> Result<(), CloseReason> {
        match control.opcode {
            Opcode::Ping => self.send(Opcode::Pong, &control.payload).await,
            Opcode::Close => {
                let code = control.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let is_refused = code.is_some_and(|code| REFUSALS.contains(&code));
                Err(if is_refused { CloseReason::UpstreamRefused } else { CloseReason::UpstreamFailed })
            }
            _ => Ok(()),
        }
    }
}
