//! Reads the first message of a pending client. Everything that the client sends after it is kept, byte for byte, for
//! the relay. Nothing else reads the socket meanwhile.

use crate::websocket::assembler::{ControlFrame, FrameReader, Keep, MessageBuffer, Part};
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Header, Opcode, Sender, close_code};

/// The maximum length of a first message in bytes, unless the dialect allows more.
pub(in crate::websocket) const MESSAGE_BYTES: usize = 16 << 10;
/// The maximum number of fragments of a first message.
const MAX_FRAGMENTS: usize = 64;
/// The maximum number of control frames before and inside a first message.
const MAX_CONTROL_FRAMES: usize = 16;
/// The number of buffered bytes at which the client is no longer read until the upstream is connected.
const BUFFER_BYTES: usize = 64 << 10;

/// A message or control frame that a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::websocket) enum Received {
    /// The whole first message.
    Message(String),
    /// A ping to answer, with its payload.
    Ping(Vec<u8>),
    /// A Close, with its payload.
    Close(Vec<u8>),
}

/// A reader of everything that a client sends before it is authenticated.
#[derive(Debug)]
pub(in crate::websocket) struct FirstMessageReader {
    buffer: Vec<u8>,
    /// The offset in the buffer up to which it was read.
    at: usize,
    frames: FrameReader,
    max_message_bytes: usize,
    /// The first message, until it is complete.
    message: Option<MessageBuffer>,
    fragments: usize,
    control_frames: usize,
    /// The number of the proxy's pings that the client has not answered.
    awaited_pongs: usize,
    has_begun: bool,
}

impl FirstMessageReader {
    #[must_use]
    pub(in crate::websocket) fn new(max_message_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            at: 0,
            frames: FrameReader::new(Sender::Client, false),
            max_message_bytes,
            message: Some(MessageBuffer::new(Opcode::Text, Keep::Payload)),
            fragments: 0,
            control_frames: 0,
            awaited_pongs: 0,
            has_begun: false,
        }
    }

    /// Appends bytes that were read from the socket.
    pub(in crate::websocket) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns whether the buffer has room to read more.
    #[must_use]
    pub(in crate::websocket) fn has_room(&self) -> bool {
        self.buffer.len() < BUFFER_BYTES
    }

    /// Returns how much memory the reader has taken.
    #[must_use]
    pub(in crate::websocket) fn memory(&self) -> usize {
        self.buffer.capacity() + self.message.as_ref().map_or(0, MessageBuffer::memory)
    }

    /// Returns whether a fragment of the first message has come. A ping does not count.
    #[must_use]
    pub(in crate::websocket) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Returns whether the first message has begun and is not complete.
    #[must_use]
    pub(in crate::websocket) fn is_in_message(&self) -> bool {
        self.message.is_some() && self.fragments > 0
    }

    /// Records that the proxy has sent a ping, so that one pong is not counted among the control frames.
    pub(in crate::websocket) fn expect_pong(&mut self) {
        self.awaited_pongs += 1;
    }

    /// Returns what the client has sent after the first message, as it came.
    #[must_use]
    pub(in crate::websocket) fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    /// Expects another first message, since the last one was an application's ping. Such pings count as control frames,
    /// since a client must not hold its place with them.
    ///
    /// # Errors
    /// Returns the close reason when there were too many.
    pub(in crate::websocket) fn expect_another(&mut self) -> Result<(), CloseReason> {
        self.count_control_frame()?;
        self.message = Some(MessageBuffer::new(Opcode::Text, Keep::Payload));
        self.fragments = 0;
        Ok(())
    }

    /// Reads the next message or control frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// Returns the close reason (docs/contract.md section 4.2) that ends the socket.
    pub(in crate::websocket) fn next(&mut self) -> Result<Option<Received>, CloseReason> {
        while let Some(part) =
            self.frames.next(&self.buffer, &mut self.at).map_err(|_violation| CloseReason::Protocol)?
        {
            let ends_message = part.ends_message();
            match part {
                Part::Control(control) => {
                    if let Some(received) = self.read_control(control)? {
                        return Ok(Some(received));
                    }
                }
                Part::DataHeader(header, _) => self.begin_fragment(&header)?,
                Part::Payload { header, range, offset, .. } => {
                    if let Some(message) = &mut self.message {
                        message.push_payload(&self.buffer[range], &header, offset);
                    }
                }
            }
            if ends_message && let Some(message) = self.message.take() {
                self.buffer.drain(..self.at);
                self.at = 0;
                let text = String::from_utf8(message.payload).map_err(|_| CloseReason::NotUtf8)?;
                return Ok(Some(Received::Message(text)));
            }
        }
        // A header that is not complete is kept by the frame reader.
        self.at = self.buffer.len();
        if self.message.is_some() {
            // The frames of the first message were copied out of the buffer.
            self.buffer.clear();
            self.at = 0;
        }
        Ok(None)
    }

    fn begin_fragment(&mut self, header: &Header) -> Result<(), CloseReason> {
        let Some(message) = &self.message else { return Ok(()) };
        if header.opcode == Opcode::Binary {
            return Err(CloseReason::InvalidMessage);
        }
        self.has_begun = true;
        self.fragments += 1;
        let bytes = (message.payload.len() as u64).saturating_add(header.length);
        if bytes > self.max_message_bytes as u64 || self.fragments > MAX_FRAGMENTS {
            return Err(CloseReason::TooLarge);
        }
        Ok(())
    }

    fn read_control(&mut self, control: ControlFrame) -> Result<Option<Received>, CloseReason> {
        if control.opcode == Opcode::Pong && self.awaited_pongs > 0 {
            self.awaited_pongs -= 1;
        } else {
            self.count_control_frame()?;
        }
        if self.message.is_none() {
            // The upstream must not receive a frame that is answered here. After the first message the buffer holds the
            // whole frame.
            let begin = self.at - control.raw.len();
            self.buffer.drain(begin..self.at);
            self.at = begin;
        }
        match control.opcode {
            Opcode::Ping => Ok(Some(Received::Ping(control.payload))),
            Opcode::Close if close_code(&control.payload).is_err() => Err(CloseReason::Protocol),
            Opcode::Close => Ok(Some(Received::Close(control.payload))),
            _ => Ok(None),
        }
    }

    fn count_control_frame(&mut self) -> Result<(), CloseReason> {
        self.control_frames += 1;
        if self.control_frames > MAX_CONTROL_FRAMES { Err(CloseReason::ControlFrames) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::websocket::frame::encode;

    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, opcode, payload, Some([1, 2, 3, 4]));
        out
    }

    fn fragment(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = frame(Opcode::Text, payload);
        bytes[0] = first;
        bytes
    }

    fn all(bytes: &[u8]) -> (Vec<Received>, Option<CloseReason>, Vec<u8>) {
        let mut reader = FirstMessageReader::new(MESSAGE_BYTES);
        reader.push(bytes);
        let mut arrived = Vec::new();
        loop {
            match reader.next() {
                Ok(Some(next)) => arrived.push(next),
                Ok(None) => return (arrived, None, reader.into_rest()),
                Err(reason) => return (arrived, Some(reason), Vec::new()),
            }
        }
    }

    #[test]
    fn bounds_before_authentication_are_rows_of_the_table() {
        let many = |count: usize, frame: Vec<u8>| frame.repeat(count);
        for (bytes, expected) in [
            (frame(Opcode::Text, &vec![b'x'; MESSAGE_BYTES + 1]), CloseReason::TooLarge),
            ([fragment(0x01, b"x"), many(MAX_FRAGMENTS, fragment(0x00, b"x"))].concat(), CloseReason::TooLarge),
            (many(MAX_CONTROL_FRAMES + 1, frame(Opcode::Pong, b"")), CloseReason::ControlFrames),
            (frame(Opcode::Binary, b"{}"), CloseReason::InvalidMessage),
            (frame(Opcode::Text, b"\xff"), CloseReason::NotUtf8),
            (vec![0x81, 0x00], CloseReason::Protocol),
            (frame(Opcode::Close, b"x"), CloseReason::Protocol),
            (frame(Opcode::Close, &1005_u16.to_be_bytes()), CloseReason::Protocol),
        ] {
            assert_eq!(all(&bytes).1, Some(expected));
        }
    }

    #[test]
    fn a_ping_is_no_word_and_a_fragment_is_one() {
        let mut reader = FirstMessageReader::new(MESSAGE_BYTES);
        reader.push(&frame(Opcode::Ping, b"p"));
        assert_eq!(reader.next(), Ok(Some(Received::Ping(b"p".to_vec()))));
        assert!(!reader.has_begun());
        reader.push(&fragment(0x01, b"{"));
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.has_begun());
    }

    proptest! {
        /// Checks that the first message is read and that the bytes after it are kept, without the pings that were
        /// answered, wherever the input is split.
        #[test]
        fn nothing_behind_the_first_message_is_lost(cuts in prop::collection::vec(0usize..600, 0..8), pings in 0usize..4, fragments in 1usize..4) {
            let mut bytes = Vec::new();
            for index in 0..fragments {
                let first = u8::from(index == 0) | if index + 1 == fragments { 0x80 } else { 0 };
                bytes.extend(fragment(first, b"abc"));
                bytes.extend(frame(Opcode::Ping, b"early").repeat(usize::from(index == 0 && pings > 0)));
            }
            let first = [frame(Opcode::Text, &[b'y'; 200]), fragment(0x02, b"\x00\x01")].concat();
            let behind = [first.clone(), fragment(0x80, b"end")].concat();
            bytes.extend(&first);
            bytes.extend(frame(Opcode::Ping, b"late").repeat(pings));
            bytes.extend(&behind[first.len()..]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut reader = FirstMessageReader::new(MESSAGE_BYTES);
            let mut messages = Vec::new();
            let mut answered = 0;
            for pair in cuts.windows(2) {
                reader.push(&bytes[pair[0]..pair[1]]);
                while let Some(arrived) = reader.next().expect("valid") {
                    match arrived {
                        Received::Message(text) => messages.push(text),
                        Received::Ping(_) => answered += 1,
                        Received::Close(_) => prop_assert!(false),
                    }
                }
            }
            prop_assert_eq!(messages, vec!["abc".repeat(fragments)]);
            prop_assert_eq!(answered, pings + usize::from(pings > 0));
            prop_assert_eq!(reader.into_rest(), behind);
        }
    }
}
