//! Frames (RFC 6455 section 5), without I/O: a parser for headers with the checks of that section, a parser that
//! follows a stream frame by frame, and the encoding of the proxy's own frames.
//!
//! The parser keeps no payload. It returns ranges of its input, so payload is forwarded as it came.

use std::ops::Range;

use aws_lc_rs::rand;

/// The payload of the proxy's pings, by which it recognises its pongs.
pub(super) const PING: &[u8] = b"vestibule";

/// The sender of a stream. Clients mask their frames, servers do not (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// A client's frames.
    Client,
    /// A server's frames.
    Server,
}

/// The opcodes of section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn parse(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    /// Returns whether this is a control frame, which may come between the fragments of a message (section 5.4).
    #[must_use]
    pub(super) const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A violation of RFC 6455. The proxy closes the client's socket with 1002.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// A reserved bit is set without an extension that defines it.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// The RFC does not define the opcode.
    #[error("an unknown opcode")]
    Opcode,
    /// A control frame is fragmented.
    #[error("a fragmented control frame")]
    FragmentedControl,
    /// A control frame is longer than 125 bytes.
    #[error("a control frame longer than 125 bytes")]
    LongControl,
    /// A length is not in its shortest form, or has its top bit set.
    #[error("a length that is not minimal")]
    Length,
    /// A client's frame is not masked, or a server's is.
    #[error("masking is wrong for this side")]
    Mask,
    /// A Close has a single byte of payload, or a code that no endpoint may send (section 7.4).
    #[error("a Close with a code that may not be sent")]
    CloseCode,
    /// A continuation without a message to continue.
    #[error("a continuation without a message")]
    Continuation,
    /// A message begins inside another.
    #[error("a message inside another message")]
    Interleaved,
}

/// The length of the longest header in bytes: two, eight of length, four of mask.
const HEADER: usize = 14;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether this is the last frame of its message.
    pub(super) fin: bool,
    /// RSV1, RSV2 and RSV3 at their places in the first byte.
    pub(super) reserved: u8,
    /// The opcode.
    pub(super) opcode: Opcode,
    /// The masking key.
    pub(super) mask: Option<[u8; 4]>,
    /// The number of payload bytes.
    pub(super) length: u64,
    raw: [u8; HEADER],
    raw_length: u8,
}

impl Header {
    /// Parses the header at the start of `bytes`; `None` when it is not complete yet.
    ///
    /// # Errors
    /// Returns the first violation found.
    pub(super) fn parse(bytes: &[u8], sender: Sender, extensions: bool) -> Result<Option<Self>, Violation> {
        let [first, second, ..] = *bytes else { return Ok(None) };
        let reserved = first & 0x70;
        if reserved != 0 && !extensions {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::parse(first & 0x0f).ok_or(Violation::Opcode)?;
        let fin = first & 0x80 != 0;
        let masked = second & 0x80 != 0;
        if masked != (sender == Sender::Client) {
            return Err(Violation::Mask);
        }
        let short = second & 0x7f;
        if opcode.is_control() {
            if !fin {
                return Err(Violation::FragmentedControl);
            }
            if short > 125 {
                return Err(Violation::LongControl);
            }
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let raw_length = 2 + extended + if masked { 4 } else { 0 };
        let Some(raw_bytes) = bytes.get(..raw_length) else { return Ok(None) };
        let length = raw_bytes[2..2 + extended].iter().fold(0, |length: u64, byte| length << 8 | u64::from(*byte));
        let length = match short {
            126 if length < 126 => return Err(Violation::Length),
            127 if length < 1 << 16 || length >> 63 != 0 => return Err(Violation::Length),
            126 | 127 => length,
            short => u64::from(short),
        };
        let mask = masked.then(|| {
            [raw_bytes[raw_length - 4], raw_bytes[raw_length - 3], raw_bytes[raw_length - 2], raw_bytes[raw_length - 1]]
        });
        let mut raw = [0; HEADER];
        raw[..raw_length].copy_from_slice(raw_bytes);
        Ok(Some(Self { fin, reserved, opcode, mask, length, raw, raw_length: u8::try_from(raw_length).unwrap_or(0) }))
    }

    /// Returns the bytes of the header as received.
    #[must_use]
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw[..usize::from(self.raw_length)]
    }
}

/// A part of a stream that [`FrameParser::advance`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The header of a frame, and its range when it was whole in this input.
    Header(Header, Option<Range<usize>>),
    /// Payload of the current frame.
    Payload {
        /// The frame's header.
        header: Header,
        /// The range in the input.
        range: Range<usize>,
        /// The offset of the range in the frame's payload.
        offset: u64,
        /// Whether the frame ends with it.
        last: bool,
    },
}

/// Parses one direction of a WebSocket. It is kept as small as it can be, since every socket has two.
#[derive(Clone, Debug)]
pub(super) struct FrameParser {
    sender: Sender,
    extensions: bool,
    /// Whether a message has begun and its last frame has not.
    open: bool,
    has_read_data: bool,
    /// The number of bytes of a header that is not complete yet.
    partial_length: u8,
    /// The bytes of that header, or the whole header of the current frame.
    raw_header: [u8; HEADER],
    /// The number of payload bytes of the current frame that are still to come.
    left: u64,
}

impl FrameParser {
    /// Starts at the beginning of a stream. With `extensions` reserved bits are allowed, since both ends agreed on
    /// their meaning.
    #[must_use]
    pub(super) fn new(sender: Sender, extensions: bool) -> Self {
        Self {
            sender,
            extensions,
            open: false,
            has_read_data: false,
            partial_length: 0,
            raw_header: [0; HEADER],
            left: 0,
        }
    }

    /// Returns whether the stream is between two messages, where the proxy may send a message of its own.
    #[must_use]
    pub(super) fn is_between_messages(&self) -> bool {
        self.is_between_frames() && !self.open
    }

    /// Returns whether the stream is between two frames, where the proxy may send a control frame.
    #[must_use]
    pub(super) fn is_between_frames(&self) -> bool {
        self.left == 0 && self.partial_length == 0
    }

    /// Returns whether a part of a data frame was read since this was last called.
    pub(super) fn take_has_read_data(&mut self) -> bool {
        std::mem::take(&mut self.has_read_data)
    }

    /// Drops the bytes of a header that will not be completed. None of them was forwarded.
    pub(super) fn abandon_header(&mut self) {
        self.partial_length = 0;
    }

    /// Drops the rest of a control frame that will not be completed.
    pub(super) fn abandon_payload(&mut self) {
        self.left = 0;
    }

    /// Returns the next part of `input` from `at` on, and where it ends; `None` at the end of the input.
    ///
    /// # Errors
    /// Returns a violation of RFC 6455, after which the stream cannot be parsed further.
    pub(super) fn advance(&mut self, input: &[u8], at: usize) -> Result<Option<(Piece, usize)>, Violation> {
        let rest = &input[at..];
        if rest.is_empty() {
            return Ok(None);
        }
        if self.left > 0
            && let Some(header) = Header::parse(&self.raw_header, self.sender, self.extensions)?
        {
            let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
            self.has_read_data |= !header.opcode.is_control();
            let offset = header.length - self.left;
            self.left -= taken as u64;
            let piece = Piece::Payload { header, range: at..at + taken, offset, last: self.left == 0 };
            return Ok(Some((piece, at + taken)));
        }
        let (header, range, next) = if self.partial_length == 0
            && let Some(header) = Header::parse(rest, self.sender, self.extensions)?
        {
            let end = at + header.raw().len();
            (header, Some(at..end), end)
        } else {
            // The header is split over two reads. It is collected byte by byte, at most 14 bytes.
            let mut next = at;
            loop {
                let Some(byte) = input.get(next) else { return Ok(None) };
                self.raw_header[usize::from(self.partial_length)] = *byte;
                self.partial_length += 1;
                next += 1;
                let collected = &self.raw_header[..usize::from(self.partial_length)];
                if let Some(header) = Header::parse(collected, self.sender, self.extensions)? {
                    self.partial_length = 0;
                    break (header, None, next);
                }
            }
        };
        match header.opcode {
            Opcode::Continuation if !self.open => return Err(Violation::Continuation),
            Opcode::Text | Opcode::Binary if self.open => return Err(Violation::Interleaved),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => self.open = !header.fin,
            Opcode::Close | Opcode::Ping | Opcode::Pong => {}
        }
        self.has_read_data |= !header.opcode.is_control();
        self.left = header.length;
        self.raw_header = header.raw;
        Ok(Some((Piece::Header(header, range), next)))
    }
}

/// Masks or unmasks payload that begins `offset` bytes into the payload of its frame (section 5.3).
pub(super) fn apply_mask(bytes: &mut [u8], mut mask: [u8; 4], offset: u64) {
    // Only the low two bits matter.
    mask.rotate_left((offset & 3) as usize);
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Eight bytes at once: one by one, each took twelve instructions.
    let (words, rest) = bytes.as_chunks_mut();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// Appends a whole frame to `out`, masked when it is sent to a server.
pub(super) fn encode(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    out.push(0x80 | opcode.bits());
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        length @ 0..=125 => out.push(masked | u8::try_from(length).unwrap_or(125)),
        length @ 126..=0xffff => {
            out.push(masked | 0x7e);
            out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
        length => {
            out.push(masked | 0x7f);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let start = out.len() + mask.map_or(0, |_| 4);
    if let Some(mask) = mask {
        out.extend_from_slice(&mask);
    }
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[start..], mask, 0);
    }
}

/// Returns the code in the payload of a Close; `None` when the payload is empty.
///
/// # Errors
/// Returns an error for a single byte, or a code that no endpoint may send: 1004, 1005, 1006, 1015, unassigned ones
/// below 3000, and all outside of 1000 to 4999 (section 7.4; the registry of section 11.7 ends at 1014).
pub(super) fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some(code) = payload.first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::CloseCode) };
    };
    match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(code)),
        _ => Err(Violation::CloseCode),
    }
}

/// Makes the payload of a Close: code and reason, within 125 bytes (section 5.5.1).
#[must_use]
pub(super) fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    payload
}

/// Makes a masking key from the system's random source. Section 10.3 demands that it cannot be predicted: in some
/// dialects the client chooses what the proxy's frames to the upstream hold.
pub(super) fn masking_key() -> [u8; 4] {
    let mut key = [0; 4];
    // aws-lc ends the process where it has no entropy, so there is no error to handle.
    let _ = rand::fill(&mut key);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<Header>, Violation> {
        Header::parse(bytes, Sender::Client, false)
    }

    proptest! {
        #[test]
        fn a_mask_is_applied_as_rfc_6455_section_5_3_says(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            mask: [u8; 4],
            offset: u32,
        ) {
            let mut masked = bytes.clone();
            apply_mask(&mut masked, mask, offset.into());
            for (index, byte) in bytes.iter().enumerate() {
                prop_assert_eq!(masked[index], byte ^ mask[(offset as usize + index) % 4]);
            }
        }
    }

    #[test]
    fn rfc_6455_section_5_2_and_5_5_are_held() {
        let mask = [1, 2, 3, 4];
        let frame = |first: u8, lengths: &[u8]| [&[first][..], lengths, &mask].concat();
        for (bytes, expected) in [
            (frame(0x81, &[0x80]), Ok(())),
            (frame(0x81, &[0xfe, 0, 126]), Ok(())),
            (frame(0x81, &[0xfe, 0, 125]), Err(Violation::Length)),
            (frame(0x81, &[0xff, 0, 0, 0, 0, 0, 1, 0, 0]), Ok(())),
            (frame(0x81, &[0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), Err(Violation::Length)),
            (frame(0x81, &[0xff, 0x80, 0, 0, 0, 0, 1, 0, 0]), Err(Violation::Length)),
            (frame(0xc1, &[0x80]), Err(Violation::ReservedBits)),
            (frame(0x83, &[0x80]), Err(Violation::Opcode)),
            (frame(0x8b, &[0x80]), Err(Violation::Opcode)),
            (frame(0x09, &[0x80]), Err(Violation::FragmentedControl)),
            (frame(0x89, &[0xfd]), Ok(())),
            (frame(0x89, &[0xfe, 0, 126]), Err(Violation::LongControl)),
            (vec![0x81, 0x00], Err(Violation::Mask)),
        ] {
            assert_eq!(parse(&bytes).map(|_| ()), expected, "{bytes:?}");
        }
        assert_eq!(Header::parse(&[0x81, 0x80, 1, 2, 3, 4], Sender::Server, false), Err(Violation::Mask));
        assert!(Header::parse(&[0xc1, 0x80, 1, 2, 3, 4], Sender::Client, true).is_ok());
    }

    #[test]
    fn fragments_follow_section_5_4() {
        let frame = |first: u8| vec![first, 0x80, 0, 0, 0, 0];
        let walk = |frames: &[u8]| {
            let mut parser = FrameParser::new(Sender::Client, false);
            let bytes: Vec<u8> = frames.iter().flat_map(|first| frame(*first)).collect();
            let mut at = 0;
            while let Some((_, next)) = parser.advance(&bytes, at)? {
                at = next;
            }
            Ok(parser.is_between_messages())
        };
        assert_eq!(walk(&[0x01, 0x89, 0x00, 0x8a, 0x80]), Ok(true));
        assert_eq!(walk(&[0x01, 0x89]), Ok(false));
        assert_eq!(walk(&[0x80]), Err(Violation::Continuation));
        assert_eq!(walk(&[0x01, 0x81]), Err(Violation::Interleaved));
        assert_eq!(walk(&[0x01, 0x80, 0x80]), Err(Violation::Continuation));
    }

    #[test]
    fn a_close_has_no_code_or_one_that_may_be_sent() {
        let read = |code: u16| close_code(&close_payload(code, "why"));
        for code in [1000, 1001, 1002, 1003, 1007, 1012, 1014, 3000, 4401, 4999] {
            assert_eq!(read(code), Ok(Some(code)));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
            assert_eq!(read(code), Err(Violation::CloseCode), "{code}");
        }
        assert_eq!((close_code(b""), close_code(b"x")), (Ok(None), Err(Violation::CloseCode)));
    }

    #[test]
    fn a_close_reason_stays_within_a_control_frame() {
        let payload = close_payload(1008, &"é".repeat(100));
        assert!(payload.len() <= 125);
        assert!(std::str::from_utf8(&payload[2..]).is_ok());
    }

    fn frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((prop::sample::select(vec![1u8, 2, 8, 9, 10]), 0usize..300), 1..12).prop_map(|frames| {
            frames
                .into_iter()
                .map(|(opcode, length)| (opcode, vec![b'x'; if opcode >= 8 { length.min(125) } else { length }]))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn headers_agree_with_tungstenite_where_it_checks(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let ours = Header::parse(&bytes, Sender::Client, true);
            let mut cursor = std::io::Cursor::new(&bytes[..]);
            let theirs = FrameHeader::parse(&mut cursor);
            if let Ok(Some(header)) = ours {
                let (found, length) = theirs.expect("valid").expect("complete");
                prop_assert_eq!(found.is_final, header.fin);
                prop_assert_eq!(found.mask, header.mask);
                prop_assert_eq!(length, header.length);
                prop_assert_eq!(u8::from(found.opcode), header.opcode.bits());
                prop_assert_eq!(cursor.position(), header.raw().len() as u64);
            } else if let Ok(None) = ours {
                prop_assert!(matches!(theirs, Ok(None)));
            }
        }

        #[test]
        fn any_split_of_a_stream_is_walked_alike(frames in frames(), cuts in prop::collection::vec(0usize..2000, 0..10)) {
            let mut bytes = Vec::new();
            for (opcode, payload) in &frames {
                encode(&mut bytes, Opcode::parse(*opcode).expect("known"), payload, Some([9, 8, 7, 6]));
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut parser = FrameParser::new(Sender::Client, false);
            let mut seen: Vec<(u8, Vec<u8>)> = Vec::new();
            let mut mask = [0; 4];
            for pair in cuts.windows(2) {
                let input = &bytes[pair[0]..pair[1]];
                let mut at = 0;
                while let Some((piece, next)) = parser.advance(input, at).expect("valid") {
                    at = next;
                    match piece {
                        Piece::Header(header, range) => {
                            if let Some(range) = range {
                                prop_assert_eq!(&input[range], header.raw());
                            }
                            mask = header.mask.expect("masked");
                            seen.push((header.opcode.bits(), Vec::new()));
                        }
                        Piece::Payload { range, offset, .. } => {
                            let mut data = input[range].to_vec();
                            apply_mask(&mut data, mask, offset);
                            seen.last_mut().expect("a frame").1.extend_from_slice(&data);
                        }
                    }
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(parser.is_between_messages());
        }
    }
}
