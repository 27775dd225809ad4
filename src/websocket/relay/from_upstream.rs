//! The direction from the upstream to the client. All of the stream is forwarded as it came, except the answers to
//! refreshes that the proxy has forwarded.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::direction::{Direction, forward_control, forward_header};
use super::outgoing::Outgoing;
use crate::json;
use crate::policy::DialectSpec;
use crate::websocket::assembler::{ControlFrame, Keep, MessageBuffer, Part};
use crate::websocket::frame::{Opcode, Sender, Violation};
use crate::websocket::template::matches_template;

/// The time that the upstream has to answer a refresh. A later answer is forwarded like any message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum length in bytes of an answer to a refresh. A longer text is none.
const ANSWER_BYTES: u64 = 16 << 10;

/// The awaited answers of the upstream to forwarded refreshes.
#[derive(Debug)]
struct AwaitedAnswers {
    dialect: Arc<DialectSpec>,
    count: u32,
    until: Instant,
    /// A text that may be an answer.
    text: Option<MessageBuffer>,
}

/// The unit whose end is the last that is forwarded of the upstream's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum StopAfter {
    /// All of the input.
    Input,
    /// A message that has begun. The session is being ended.
    Message,
    /// A frame that has begun. The end of its message was awaited for too long.
    Frame,
}

/// The direction from the upstream to the client.
#[derive(Debug)]
pub(super) struct FromUpstream {
    pub(super) direction: Direction,
    awaited: Option<Box<AwaitedAnswers>>,
}

impl FromUpstream {
    pub(super) fn new(has_extensions: bool) -> Self {
        Self { direction: Direction::new(Sender::Server, has_extensions), awaited: None }
    }

    /// Expects one more answer to a refresh in this dialect.
    pub(super) fn await_answer(&mut self, dialect: Arc<DialectSpec>) {
        let until = Instant::now() + ANSWER_TIMEOUT;
        match &mut self.awaited {
            Some(awaited) => (awaited.count, awaited.until) = (awaited.count + 1, until),
            None => self.awaited = Some(Box::new(AwaitedAnswers { dialect, count: 1, until, text: None })),
        }
    }

    /// Drops a text that is held back because it may be an answer. Returns whether there was one: nothing of it was
    /// forwarded, so that the client is between two messages.
    pub(super) fn drop_held(&mut self) -> bool {
        self.awaited.as_mut().is_some_and(|awaited| awaited.text.take().is_some())
    }

    /// Reads `input` from `at` on and forwards it to `out`, until the end of the input, the place to stop, or a Close,
    /// which is returned.
    ///
    /// # Errors
    /// Returns a violation of RFC 6455, after which the stream cannot be read further.
    pub(super) fn next(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut Outgoing,
        stop: StopAfter,
    ) -> Result<Option<ControlFrame>, Violation> {
        loop {
            self.direction.send_queued(input, out);
            let is_at_stop = match stop {
                StopAfter::Input => false,
                StopAfter::Message => self.direction.frames.is_between_messages(),
                StopAfter::Frame => self.direction.frames.is_between_frames(),
            };
            if is_at_stop {
                return Ok(None);
            }
            let Some(part) = self.direction.frames.next(input, at)? else { return Ok(None) };
            let ends_message = part.ends_message();
            match part {
                Part::Control(control) => {
                    if let Some(close) = forward_control(control, input, out) {
                        return Ok(Some(close));
                    }
                }
                part if self.awaited.is_some() => self.read_answer(part, input, out),
                Part::DataHeader(header, range) => forward_header(&header, range, input, out),
                Part::Payload { range, .. } => out.forward(input, range),
            }
            if ends_message {
                self.end_message(input, out);
            }
        }
    }

    /// Keeps a text that may be an answer, and forwards everything else.
    fn read_answer(&mut self, part: Part, input: &[u8], out: &mut Outgoing) {
        let Some(awaited) = &mut self.awaited else { return };
        match part {
            Part::DataHeader(header, range) => {
                if header.opcode == Opcode::Text && awaited.count > 0 && Instant::now() < awaited.until {
                    awaited.text = Some(MessageBuffer::new(Opcode::Text, Keep::RawAndPayload));
                }
                let text = awaited.text.take_if(|text| text.raw.len() as u64 + header.length > ANSWER_BYTES);
                if let Some(text) = text {
                    out.insert(input, &text.raw);
                }
                match &mut awaited.text {
                    Some(text) => text.push_header(&header),
                    None => forward_header(&header, range, input, out),
                }
            }
            Part::Payload { header, range, offset, .. } => match &mut awaited.text {
                Some(text) => text.push_payload(&input[range], &header, offset),
                None => out.forward(input, range),
            },
            Part::Control(_) => {}
        }
    }

    /// Drops an awaited acknowledgement, and forwards any other kept text.
    fn end_message(&mut self, input: &[u8], out: &mut Outgoing) {
        let Some(awaited) = &mut self.awaited else { return };
        let Some(text) = awaited.text.take() else { return };
        let answer = json::value(&text.payload).ok();
        let matches = |template: Option<&serde_json::Value>| {
            template.zip(answer.as_ref()).is_some_and(|(template, answer)| matches_template(template, answer))
        };
        if matches(awaited.dialect.refresh.as_ref().and_then(|refresh| refresh.acknowledge.as_ref())) {
            awaited.count -= 1;
            return;
        }
        if matches(awaited.dialect.error.as_ref()) {
            awaited.count -= 1;
            // It may also be an error of the application, which must be delivered.
            tracing::warn!(
                "the upstream answered a refresh with an error; check that it accepts the tokens of every provider that is configured here"
            );
        }
        out.insert(input, &text.raw);
    }
}
