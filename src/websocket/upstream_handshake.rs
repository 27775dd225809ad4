//! Introduces a user to an upstream that checks tokens itself and wants them in its first message
//! (docs/contract.md section 4.4): our message in its dialect goes up as soon as its 101 has come, its
//! acknowledgement is swallowed, and its refusal is a row of section 4.2.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::close_reason::CloseReason;
use super::dialect::upstream_message;
use super::frame::{FrameParser, Opcode, Piece, Sender, encode, masking_key};
use super::template::matches_template;
use crate::auth::Token;
use crate::http::{Socket, Upgraded};
use crate::json;
use crate::policy::DialectSpec;

/// What an upstream says before it acknowledges is held, and follows.
const HELD: usize = 64 << 10;
/// Codes with which backends close on a token they do not like.
const REFUSALS: [u16; 3] = [1008, 4001, 4401];

/// Says who it is; the caller bounds the time.
///
/// # Errors
/// Why the upstream did not take it.
pub(super) async fn authenticate(
    upgraded: Upgraded,
    dialect: &DialectSpec,
    token: &Token,
) -> Result<Upgraded, CloseReason> {
    let mut reader = Reader::new(upgraded);
    if dialect.greeting.is_some() {
        let greeting = reader.message().await?;
        if !says(&greeting, dialect.greeting.as_ref()) {
            reader.hold(&greeting)?;
        }
    }
    reader.say(Opcode::Text, upstream_message(&dialect.authenticate, token).as_bytes()).await?;
    loop {
        let message = reader.message().await?;
        if says(&message, dialect.authenticate.acknowledge.as_ref()) {
            return Ok(reader.into_rest());
        }
        if says(&message, dialect.error.as_ref()) {
            return Err(CloseReason::UpstreamRefused);
        }
        reader.hold(&message)?;
    }
}

/// One message as it came, and what it says when it is a text.
struct Message {
    raw: Vec<u8>,
    text: Option<Vec<u8>>,
}

fn says(message: &Message, template: Option<&serde_json::Value>) -> bool {
    let read = message.text.as_ref().and_then(|text| json::value(text).ok());
    template.zip(read).is_some_and(|(template, message)| matches_template(template, &message))
}

struct Reader {
    socket: Socket,
    /// Read and not yet looked at.
    input: Vec<u8>,
    parser: FrameParser,
    held: Vec<u8>,
}

impl Reader {
    fn new(upgraded: Upgraded) -> Self {
        Self {
            socket: upgraded.socket,
            input: upgraded.early,
            parser: FrameParser::new(Sender::Server, false),
            held: Vec::new(),
        }
    }

    fn hold(&mut self, message: &Message) -> Result<(), CloseReason> {
        self.held.extend_from_slice(&message.raw);
        if self.held.len() > HELD { Err(CloseReason::UpstreamFailed) } else { Ok(()) }
    }

    async fn say(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), CloseReason> {
        let mut frame = Vec::new();
        encode(&mut frame, opcode, payload, Some(masking_key()));
        self.socket.write_all(&frame).await.map_err(|_| CloseReason::UpstreamFailed)?;
        self.socket.flush().await.map_err(|_| CloseReason::UpstreamFailed)
    }

    /// What was held, and what has been read behind it.
    fn into_rest(self) -> Upgraded {
        let mut early = self.held;
        early.extend_from_slice(&self.input);
        Upgraded { socket: self.socket, early }
    }

    /// The next whole message; pings are answered, a Close ends it.
    async fn message(&mut self) -> Result<Message, CloseReason> {
        let mut message = Message { raw: Vec::new(), text: None };
        let mut control = Vec::new();
        let (mut opcode, mut last) = (Opcode::Continuation, false);
        let mut at = 0;
        loop {
            let piece = self.parser.advance(&self.input, at).map_err(|_| CloseReason::UpstreamFailed)?;
            let Some((piece, next)) = piece else {
                self.input.clear();
                at = 0;
                if self.socket.read_buf(&mut self.input).await.map_err(|_| CloseReason::UpstreamFailed)? == 0 {
                    return Err(CloseReason::UpstreamFailed);
                }
                continue;
            };
            at = next;
            let ended = match piece {
                Piece::Header(header, _) => {
                    opcode = header.opcode;
                    if !opcode.is_control() {
                        last = header.fin;
                        message.raw.extend_from_slice(header.raw());
                        if opcode == Opcode::Text {
                            message.text = Some(Vec::new());
                        }
                    }
                    header.length == 0
                }
                Piece::Payload { range, last, .. } => {
                    let payload = &self.input[range];
                    if opcode.is_control() {
                        control.extend_from_slice(payload);
                    } else {
                        message.raw.extend_from_slice(payload);
                        if let Some(text) = &mut message.text {
                            text.extend_from_slice(payload);
                        }
                    }
                    last
                }
            };
            if message.raw.len() > HELD {
                return Err(CloseReason::UpstreamFailed);
            }
            if !ended {
                continue;
            }
            match opcode {
                Opcode::Ping => self.say(Opcode::Pong, &std::mem::take(&mut control)).await?,
                Opcode::Pong => control.clear(),
                Opcode::Close => {
                    let code = control.first_chunk().map(|code| u16::from_be_bytes(*code));
                    let refused = code.is_some_and(|code| REFUSALS.contains(&code));
                    return Err(if refused { CloseReason::UpstreamRefused } else { CloseReason::UpstreamFailed });
                }
                _ if last => {
                    self.input.drain(..at);
                    return Ok(message);
                }
                _ => {}
            }
        }
    }
}
