//! What a waiting client has sent: its first message, and the bytes behind it, in a buffer that is
//! ours from the first byte to the last. Nothing behind the first message may be lost, so nothing
//! else ever reads this socket.

use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{FrameParser, Opcode, Piece, Sender, apply_mask, close_code};

/// The first message: one text of at most this many bytes, unless the dialect says otherwise…
pub(super) const MESSAGE_BYTES: usize = 16 << 10;
/// …in at most this many frames…
const FRAGMENTS: usize = 64;
/// …beside at most this many control frames.
const CONTROL_FRAMES: usize = 16;
/// What is kept of what comes behind it until the upstream stands.
pub(super) const BEHIND_BYTES: usize = 64 << 10;

/// What the buffer holds next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The whole first message.
    Message(Vec<u8>),
    /// A ping to answer.
    Ping(Vec<u8>),
    /// A Close, with its payload.
    Close(Vec<u8>),
}

/// The buffer and how far it has been looked through.
#[derive(Debug)]
pub(super) struct FirstMessageReader {
    bytes: Vec<u8>,
    /// Everything before this has been looked at.
    at: usize,
    parser: FrameParser,
    message_bytes: usize,
    message: Option<Vec<u8>>,
    opcode: Opcode,
    mask: [u8; 4],
    last: bool,
    control: Vec<u8>,
    /// Where the current control frame began in the buffer.
    control_from: usize,
    fragments: usize,
    controls: usize,
    /// Pings of ours that the client has not answered.
    pinged: usize,
    begun: bool,
}

impl FirstMessageReader {
    /// An empty one, whose first message may be this long.
    #[must_use]
    pub(super) fn new(message_bytes: usize) -> Self {
        Self {
            message_bytes,
            bytes: Vec::new(),
            at: 0,
            parser: FrameParser::new(Sender::Client, false),
            message: Some(Vec::new()),
            opcode: Opcode::Text,
            mask: [0; 4],
            last: false,
            control: Vec::new(),
            control_from: 0,
            fragments: 0,
            controls: 0,
            pinged: 0,
            begun: false,
        }
    }

    /// Appends what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether there is room to read more.
    #[must_use]
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < BEHIND_BYTES
    }

    /// How much memory it has taken.
    #[must_use]
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.control.capacity() + self.message.as_ref().map_or(0, Vec::capacity)
    }

    /// Whether a fragment of the first message has come; a ping is no word.
    #[must_use]
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the first message has begun and not ended.
    #[must_use]
    pub(super) fn is_in_message(&self) -> bool {
        self.message.is_some() && self.fragments > 0
    }

    /// A ping of ours has been sent: one pong does not count among the control frames.
    pub(super) fn expect_pong(&mut self) {
        self.pinged += 1;
    }

    /// What is left behind the first message, as it came, for the relay.
    #[must_use]
    pub(super) fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    /// The message was an application's ping: the next one is the first message. Pings count among the
    /// control frames, since a socket may not be kept waiting by them.
    ///
    /// # Errors
    /// When there were too many.
    pub(super) fn expect_another(&mut self) -> Result<(), CloseReason> {
        self.controls += 1;
        if self.controls > CONTROL_FRAMES {
            return Err(CloseReason::ControlFrames);
        }
        self.message = Some(Vec::new());
        self.fragments = 0;
        Ok(())
    }

    /// Looks on; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The row of section 4.2 that ends it.
    pub(super) fn next(&mut self) -> Result<Option<Received>, CloseReason> {
        while let Some((piece, next)) = self.parser.advance(&self.bytes, self.at).map_err(|_| CloseReason::Protocol)? {
            self.at = next;
            match piece {
                Piece::Header(header, _) => {
                    if header.opcode.is_control() {
                        if header.opcode == Opcode::Pong && self.pinged > 0 {
                            self.pinged -= 1;
                        } else {
                            self.controls += 1;
                        }
                        if self.controls > CONTROL_FRAMES {
                            return Err(CloseReason::ControlFrames);
                        }
                        self.control.clear();
                        // Read only behind the first message, where the buffer holds the whole frame.
                        self.control_from = next.saturating_sub(header.raw().len());
                    } else if self.message.is_some() {
                        self.begin_fragment(header.opcode, header.length)?;
                        self.last = header.fin;
                    }
                    self.opcode = header.opcode;
                    self.mask = header.mask.unwrap_or_default();
                    if header.length == 0
                        && let Some(arrived) = self.frame_ended()?
                    {
                        return Ok(Some(arrived));
                    }
                }
                Piece::Payload { range, offset, last } => {
                    let target = if self.opcode.is_control() { Some(&mut self.control) } else { self.message.as_mut() };
                    if let Some(target) = target {
                        let start = target.len();
                        target.extend_from_slice(&self.bytes[range]);
                        apply_mask(&mut target[start..], self.mask, offset);
                    }
                    if last && let Some(arrived) = self.frame_ended()? {
                        return Ok(Some(arrived));
                    }
                }
            }
        }
        // The parser keeps a header that is not complete yet.
        self.at = self.bytes.len();
        if self.message.is_some() {
            // What belongs to the first message is copied out already.
            self.bytes.clear();
            self.at = 0;
        }
        Ok(None)
    }

    fn begin_fragment(&mut self, opcode: Opcode, length: u64) -> Result<(), CloseReason> {
        if opcode == Opcode::Binary {
            return Err(CloseReason::InvalidMessage);
        }
        self.begun = true;
        self.fragments += 1;
        let so_far = self.message.as_ref().map_or(0, Vec::len) as u64;
        if so_far.saturating_add(length) > self.message_bytes as u64 || self.fragments > FRAGMENTS {
            return Err(CloseReason::TooLarge);
        }
        Ok(())
    }

    fn frame_ended(&mut self) -> Result<Option<Received>, CloseReason> {
        if self.opcode.is_control() {
            // It is answered here, so the upstream must not see it. Among the fragments of the first
            // message nothing is kept for the upstream anyway.
            if self.message.is_none() {
                self.bytes.drain(self.control_from..self.at);
                self.at = self.control_from;
            }
            let payload = std::mem::take(&mut self.control);
            return match self.opcode {
                Opcode::Ping => Ok(Some(Received::Ping(payload))),
                Opcode::Close if close_code(&payload).is_err() => Err(CloseReason::Protocol),
                Opcode::Close => Ok(Some(Received::Close(payload))),
                _ => Ok(None),
            };
        }
        if !self.last {
            return Ok(None);
        }
        let Some(message) = self.message.take() else { return Ok(None) };
        self.bytes.drain(..self.at);
        self.at = 0;
        match String::from_utf8(message) {
            Ok(text) => Ok(Some(Received::Message(text.into_bytes()))),
            Err(_) => Err(CloseReason::NotUtf8),
        }
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
            ([fragment(0x01, b"x"), many(FRAGMENTS, fragment(0x00, b"x"))].concat(), CloseReason::TooLarge),
            (many(CONTROL_FRAMES + 1, frame(Opcode::Pong, b"")), CloseReason::ControlFrames),
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
        /// Whatever the split, the first message is read and what is behind it stays byte for byte,
        /// without the pings that were answered.
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
            prop_assert_eq!(messages, vec![b"abc".repeat(fragments)]);
            prop_assert_eq!(answered, pings + usize::from(pings > 0));
            prop_assert_eq!(reader.into_rest(), behind);
        }
    }
}
