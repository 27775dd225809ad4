//! Assembles the parts of a stream that the proxy has to read: all control frames, and messages where they are wanted.
//! The relay, the reader of first messages and the handshake with an upstream all read streams through this module.

use std::ops::Range;

use super::frame::{FrameParser, Header, Opcode, Piece, Sender, Violation, apply_mask};

/// A part of a stream.
#[derive(Debug)]
pub(super) enum Part {
    /// The header of a data frame, and its range when it was whole in this input.
    DataHeader(Header, Option<Range<usize>>),
    /// Payload of the current data frame.
    Payload {
        header: Header,
        /// The range in the input.
        range: Range<usize>,
        /// The offset of the range in the frame's payload.
        offset: u64,
        /// Whether the frame ends with it.
        is_last: bool,
    },
    /// A whole control frame.
    Control(ControlFrame),
}

impl Part {
    /// Returns whether a message ends with this part.
    pub(super) const fn ends_message(&self) -> bool {
        match self {
            Self::DataHeader(header, _) => header.fin && header.length == 0,
            Self::Payload { header, is_last, .. } => header.fin && *is_last,
            Self::Control(_) => false,
        }
    }
}

/// A control frame.
#[derive(Debug)]
pub(super) struct ControlFrame {
    pub(super) opcode: Opcode,
    /// The frame as it came.
    pub(super) raw: Vec<u8>,
    /// The payload without its mask.
    pub(super) payload: Vec<u8>,
}

/// Reads one direction of a WebSocket: data frames in parts, control frames whole.
#[derive(Debug)]
pub(super) struct FrameReader {
    parser: FrameParser,
    control: Option<Box<PartialControl>>,
}

/// A control frame that is not complete yet. Nothing of it was returned.
#[derive(Debug, Default)]
struct PartialControl {
    raw: Vec<u8>,
}

impl FrameReader {
    /// Starts at the beginning of a stream. With `has_extensions` reserved bits are allowed.
    pub(super) fn new(sender: Sender, has_extensions: bool) -> Self {
        Self { parser: FrameParser::new(sender, has_extensions), control: None }
    }

    /// Returns whether the stream is between two messages, where the proxy may send a message of its own.
    pub(super) fn is_between_messages(&self) -> bool {
        self.parser.is_between_messages()
    }

    /// Returns whether the stream is between two frames, where the proxy may send a control frame.
    pub(super) fn is_between_frames(&self) -> bool {
        self.parser.is_between_frames()
    }

    /// Returns whether data frames were read since this was last called.
    pub(super) fn take_has_read_data(&mut self) -> bool {
        self.parser.take_has_read_data()
    }

    /// Drops a header or a control frame that will not be completed. The stream is then where it was before.
    pub(super) fn abandon_partial(&mut self) {
        self.parser.abandon_header();
        if self.control.take().is_some() {
            self.parser.abandon_payload();
        }
    }

    /// Returns the next part of `input` from `at` on, and moves `at` to its end; `None` at the end of the input.
    ///
    /// # Errors
    /// Returns a violation of RFC 6455, after which the stream cannot be read further.
    pub(super) fn next(&mut self, input: &[u8], at: &mut usize) -> Result<Option<Part>, Violation> {
        while let Some((piece, next)) = self.parser.advance(input, *at)? {
            *at = next;
            let (header, is_whole) = match piece {
                Piece::Header(header, range) => {
                    if !header.opcode.is_control() {
                        return Ok(Some(Part::DataHeader(header, range)));
                    }
                    self.control.get_or_insert_default().raw.extend_from_slice(header.raw());
                    (header, header.length == 0)
                }
                Piece::Payload { header, range, offset, last } => {
                    if !header.opcode.is_control() {
                        return Ok(Some(Part::Payload { header, range, offset, is_last: last }));
                    }
                    self.control.get_or_insert_default().raw.extend_from_slice(&input[range]);
                    (header, last)
                }
            };
            if is_whole {
                let raw = self.control.take().unwrap_or_default().raw;
                let mut payload = raw[header.raw().len()..].to_vec();
                if let Some(mask) = header.mask {
                    apply_mask(&mut payload, mask, 0);
                }
                return Ok(Some(Part::Control(ControlFrame { opcode: header.opcode, raw, payload })));
            }
        }
        Ok(None)
    }
}

/// The bytes of a message that a [`MessageBuffer`] keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The frames as they came: the message may still be forwarded before it is complete.
    Raw,
    /// The payload without its mask: the message is read once it is complete.
    Payload,
    /// Both.
    RawAndPayload,
}

/// A message that is kept until it is decided whether it is forwarded.
#[derive(Debug)]
pub(super) struct MessageBuffer {
    pub(super) opcode: Opcode,
    keep: Keep,
    /// The frames as they came, where they are kept.
    pub(super) raw: Vec<u8>,
    /// The payload without its mask, where it is kept.
    pub(super) payload: Vec<u8>,
}

impl MessageBuffer {
    pub(super) const fn new(opcode: Opcode, keep: Keep) -> Self {
        Self { opcode, keep, raw: Vec::new(), payload: Vec::new() }
    }

    /// Returns how much memory the buffer has taken.
    pub(super) fn memory(&self) -> usize {
        self.raw.capacity() + self.payload.capacity()
    }

    /// Returns whether the message can no longer be forwarded before it is complete.
    pub(super) fn is_payload_only(&self) -> bool {
        self.keep == Keep::Payload
    }

    pub(super) fn push_header(&mut self, header: &Header) {
        if self.keep != Keep::Payload {
            self.raw.extend_from_slice(header.raw());
        }
    }

    /// Appends payload that begins `offset` bytes into the payload of its frame.
    pub(super) fn push_payload(&mut self, bytes: &[u8], header: &Header, offset: u64) {
        if self.keep != Keep::Payload {
            extend(&mut self.raw, bytes);
        }
        if self.keep != Keep::Raw {
            push_unmasked(&mut self.payload, bytes, header.mask, offset);
        }
    }

    /// Keeps the payload alone from now on.
    pub(super) fn keep_payload_only(&mut self) {
        self.read_payload();
        self.keep = Keep::Payload;
        self.raw = Vec::new();
    }

    /// Makes the payload available where only frames were kept. The last of them may not be complete.
    pub(super) fn read_payload(&mut self) {
        if self.keep != Keep::Raw {
            return;
        }
        let mut parser = FrameParser::new(Sender::Client, false);
        let mut at = 0;
        // The frames were parsed before, so there is no violation in them.
        while let Ok(Some((piece, next))) = parser.advance(&self.raw, at) {
            at = next;
            if let Piece::Payload { header, range, offset, .. } = piece {
                push_unmasked(&mut self.payload, &self.raw[range], header.mask, offset);
            }
        }
    }
}

fn push_unmasked(target: &mut Vec<u8>, bytes: &[u8], mask: Option<[u8; 4]>, offset: u64) {
    let start = target.len();
    extend(target, bytes);
    if let Some(mask) = mask {
        apply_mask(&mut target[start..], mask, offset);
    }
}

/// The length in bytes from which on a buffer grows by a quarter.
const LONG: usize = 64 << 10;

/// Appends bytes. A long buffer is not doubled: what it takes in advance counts toward `limits.held_message_bytes`.
fn extend(target: &mut Vec<u8>, bytes: &[u8]) {
    if target.len() >= LONG && target.capacity() - target.len() < bytes.len() {
        target.reserve_exact(bytes.len().max(target.len() / 4));
    }
    target.extend_from_slice(bytes);
}
