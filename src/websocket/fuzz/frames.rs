//! Compares the reading of frames with that of another implementation, tungstenite, and with itself at other splits.

use std::io::{self, Read, Write};

use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use crate::fuzz::Input;
use crate::websocket::assembler::{FrameReader, Keep, MessageBuffer, Part};
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Opcode, Sender, Violation, close_code};
use crate::websocket::pending::first_message::{FirstMessageReader, MESSAGE_BYTES, Received};

/// The maximum length of a frame and of a message for tungstenite, which reserves memory for what a header announces.
const MAX_FRAME: usize = 64 << 10;

/// What a reader takes from a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Taken {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
}

/// Returns whether a message was taken, and no control frame.
fn is_data(taken: &Taken) -> bool {
    matches!(taken, Taken::Text(_) | Taken::Binary(_))
}

/// How a reader comes to the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More bytes are needed, or the stream was closed.
    Open,
    Violation(Violation),
    NotUtf8,
}

/// Checks that any bytes at any splits are read as by tungstenite, and that every byte is forwarded as it came.
///
/// The first byte chooses the sender and how many of its messages are pings of its application that precede the first
/// message, and the second byte the number of splits, which follow.
pub fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    let sender = if flags & 1 == 0 { Sender::Client } else { Sender::Server };
    let cuts: Vec<usize> = (0..input.below(8)).map(|_| usize::from(input.byte())).collect();
    let stream = input.rest();

    let (taken, end) = read(sender, &[stream]);
    assert_eq!(read(sender, &split(stream, &cuts)), (taken.clone(), end), "depends on where the stream is split");
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(read(sender, &bytes), (taken.clone(), end), "depends on where the stream is split");
    assert_like_tungstenite(sender, stream, &taken, end);
    if sender == Sender::Client {
        first_message(stream, &cuts, usize::from(flags >> 1 & 3), &taken, end);
    }
}

/// Splits a stream at distances from the last split.
fn split<'a>(mut stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    for cut in cuts {
        let (part, rest) = stream.split_at((*cut).min(stream.len()));
        parts.push(part);
        stream = rest;
    }
    parts.push(stream);
    parts
}

/// Reads a stream with the proxy's reader, up to a Close. Checks that the parts together are the stream.
fn read(sender: Sender, inputs: &[&[u8]]) -> (Vec<Taken>, End) {
    let mut reader = FrameReader::new(sender, false);
    let mut taken = Vec::new();
    let mut message = MessageBuffer::new(Opcode::Text, Keep::RawAndPayload);
    // Data frames and control frames in the order of the stream, as they came. A part of a header and of a control
    // frame is kept by the reader until it is complete.
    let mut forwarded: Vec<u8> = Vec::new();
    let whole = inputs.concat();
    for input in inputs {
        let mut at = 0;
        loop {
            let part = match reader.next(input, &mut at) {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(violation) => return (taken, End::Violation(violation)),
            };
            let ends_message = part.ends_message();
            match part {
                Part::DataHeader(header, range) => {
                    if let Some(range) = range {
                        assert_eq!(&input[range], header.raw(), "another header than the one that came");
                    }
                    forwarded.extend_from_slice(header.raw());
                    if header.opcode != Opcode::Continuation {
                        message = MessageBuffer::new(header.opcode, Keep::RawAndPayload);
                    }
                    message.push_header(&header);
                }
                Part::Payload { header, range, offset, .. } => {
                    forwarded.extend_from_slice(&input[range.clone()]);
                    message.push_payload(&input[range], &header, offset);
                }
                Part::Control(control) => {
                    forwarded.extend_from_slice(&control.raw);
                    taken.push(match control.opcode {
                        Opcode::Ping => Taken::Ping(control.payload),
                        Opcode::Pong => Taken::Pong(control.payload),
                        _ => match close_code(&control.payload) {
                            Ok(code) => {
                                taken.push(Taken::Close(code));
                                return (taken, End::Open);
                            }
                            Err(violation) => return (taken, End::Violation(violation)),
                        },
                    });
                }
            }
            assert!(whole.starts_with(&forwarded), "forwards other bytes than those that came");
            if ends_message {
                assert_raw_is_read_alike(sender, &message);
                let payload = std::mem::take(&mut message.payload);
                if message.opcode == Opcode::Binary {
                    taken.push(Taken::Binary(payload));
                } else if std::str::from_utf8(&payload).is_ok() {
                    taken.push(Taken::Text(payload));
                } else {
                    return (taken, End::NotUtf8);
                }
            }
        }
    }
    if reader.is_between_frames() {
        assert_eq!(forwarded, whole, "forwards less than what came");
    }
    (taken, End::Open)
}

/// Checks that a message that was kept as it came has the payload that was read meanwhile.
fn assert_raw_is_read_alike(sender: Sender, message: &MessageBuffer) {
    if sender == Sender::Client {
        let mut kept = MessageBuffer::new(message.opcode, Keep::Raw);
        kept.raw.clone_from(&message.raw);
        kept.read_payload();
        assert_eq!(kept.payload, message.payload, "the payload of a kept message differs");
    }
}

/// The stream that tungstenite reads. What it writes is dropped.
struct Stream<'a>(&'a [u8]);

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a stream with tungstenite, up to a Close. The error is `None` at the end of the stream.
fn read_with_tungstenite(sender: Sender, stream: &[u8]) -> (Vec<Taken>, Option<Error>) {
    let role = if sender == Sender::Client { Role::Server } else { Role::Client };
    let config = WebSocketConfig::default()
        .max_frame_size(Some(MAX_FRAME))
        .max_message_size(Some(1 << 30))
        .read_buffer_size(1 << 10)
        .write_buffer_size(0);
    let mut socket = WebSocket::from_raw_socket(Stream(stream), role, Some(config));
    let mut taken = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => taken.push(Taken::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => taken.push(Taken::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => taken.push(Taken::Ping(bytes.to_vec())),
            Ok(Message::Pong(bytes)) => taken.push(Taken::Pong(bytes.to_vec())),
            Ok(Message::Close(frame)) => {
                taken.push(Taken::Close(frame.map(|frame| frame.code.into())));
                return (taken, None);
            }
            Ok(Message::Frame(_)) => {}
            Err(Error::Protocol(
                tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return (taken, None),
            Err(error) => return (taken, Some(error)),
        }
    }
}

/// Checks that tungstenite takes the same from a stream, but for where the RFC is read more strictly here.
fn assert_like_tungstenite(sender: Sender, stream: &[u8], taken: &[Taken], end: End) {
    let (mut others, error) = read_with_tungstenite(sender, stream);
    // It checks the text of each fragment as it comes, and the reason of a Close, which is forwarded as it came here. Only
    // control frames may come before the end of the message.
    if matches!(error, Some(Error::Utf8(_)))
        && taken.strip_prefix(&*others).is_some_and(|rest| !rest.iter().any(is_data))
    {
        return;
    }
    // 1014 was registered later.
    if let (Some(Taken::Close(Some(1014))), Some(Taken::Close(code @ Some(1002)))) = (taken.last(), others.last_mut()) {
        *code = Some(1014);
    }
    match end {
        End::Open => match error {
            None => assert_eq!(taken, others),
            // It refuses a long frame at its header.
            Some(Error::Capacity(_)) => assert_eq!(taken, others),
            Some(error) => panic!("tungstenite alone refuses: {error}"),
        },
        End::NotUtf8 => panic!("tungstenite reads a text that is not UTF-8"),
        // Section 5.2 wants the shortest form of a length, and tungstenite does not.
        End::Violation(Violation::Length | Violation::LongControl) => {
            assert!(others.starts_with(taken), "{taken:?} {others:?}");
        }
        End::Violation(Violation::CloseCode) => {
            // It answers 1002 to such a code, and reads it as that.
            let (others, is_refused) = match others.split_last() {
                Some((Taken::Close(Some(1002)), before)) => (before, true),
                _ => (&*others, error.is_some()),
            };
            assert_eq!(taken, others);
            assert!(is_refused, "tungstenite takes the Close");
        }
        End::Violation(violation) => {
            // It looks at a frame once its payload has come. All of it is there in the end, unless it is long.
            let mut whole = stream.to_vec();
            whole.resize(stream.len() + MAX_FRAME + 16, 0);
            let (others, error) = read_with_tungstenite(sender, &whole);
            assert_eq!(taken, others);
            assert!(error.is_some(), "tungstenite reads on after: {violation}");
        }
    }
}

/// Checks the reader of first messages against the reader of all messages, at other splits too. So many messages as
/// `pings` says precede the first message.
fn first_message(stream: &[u8], cuts: &[usize], pings: usize, taken: &[Taken], end: End) {
    let (received, reason, rest) = read_first(&[stream], pings);
    let (again, reason_again, rest_again) = read_first(&split(stream, cuts), pings);
    assert_eq!((&received, reason), (&again, reason_again), "the first message depends on where the stream is split");
    if reason.is_none() {
        assert_eq!(rest, rest_again, "what is kept behind the first message depends on where the stream is split");
    }
    let mut expected = taken.iter().filter(|one| !matches!(one, Taken::Pong(_)));
    let mut messages = 0;
    for one in &received {
        let has_message = messages > pings;
        // Later messages are kept for the relay. Control frames among them are answered meanwhile.
        let other = expected.find(|other| !has_message || !is_data(other));
        let is_alike = match (one, other) {
            (Received::Message(text), Some(Taken::Text(bytes))) => text.as_bytes() == bytes,
            (Received::Ping(payload), Some(Taken::Ping(bytes))) => payload == bytes,
            (Received::Close(payload), Some(Taken::Close(code))) => close_code(payload) == Ok(*code),
            // Later texts are not looked at here, so this reads on behind one that is not UTF-8.
            (_, None) => has_message && end == End::NotUtf8,
            _ => false,
        };
        assert!(is_alike, "{one:?} instead of {other:?}");
        if matches!(one, Received::Close(_)) {
            return;
        }
        messages += usize::from(matches!(one, Received::Message(_)));
    }
    let has_message = messages > pings;
    if reason.is_none() {
        let missed = expected.find(|other| !has_message || !is_data(other));
        assert_eq!(missed, None, "it is not read before the relay begins");
    }
    match reason {
        None => {
            assert!(matches!(end, End::Open | End::NotUtf8) || has_message, "{end:?} is not noticed");
            if has_message {
                // The relay reads on where the first message ends: what is left of the stream without the control
                // frames that were answered.
                let data =
                    |taken: &[Taken]| -> Vec<Taken> { taken.iter().filter(|one| is_data(one)).cloned().collect() };
                let (relayed, _) = read(Sender::Client, &[&rest]);
                assert_eq!(
                    data(&relayed),
                    data(taken)[messages..],
                    "what follows the first message is lost or changed"
                );
                assert_eq!(data(&relayed).len(), relayed.len(), "an answered control frame is forwarded");
            }
        }
        // Later texts are not looked at here.
        Some(CloseReason::Protocol) => {
            assert!(matches!(end, End::Violation(_)) || (has_message && end == End::NotUtf8), "{end:?}");
        }
        Some(CloseReason::NotUtf8) => assert_eq!(end, End::NotUtf8),
        Some(CloseReason::InvalidMessage | CloseReason::TooLarge | CloseReason::ControlFrames) => {}
        Some(reason) => panic!("{reason:?} of a reader of frames"),
    }
}

/// Reads a stream with the reader of first messages, up to a Close, and returns what it keeps. So many messages as `pings`
/// says are not the first one.
fn read_first(inputs: &[&[u8]], mut pings: usize) -> (Vec<Received>, Option<CloseReason>, Vec<u8>) {
    let mut reader = FirstMessageReader::new(MESSAGE_BYTES);
    let mut received = Vec::new();
    for input in inputs {
        reader.push(input);
        loop {
            match reader.next() {
                Ok(Some(one)) => {
                    let is_close = matches!(one, Received::Close(_));
                    let is_message = matches!(one, Received::Message(_));
                    received.push(one);
                    if is_close {
                        return (received, None, Vec::new());
                    }
                    if is_message && pings > 0 {
                        pings -= 1;
                        if let Err(reason) = reader.expect_another() {
                            return (received, Some(reason), Vec::new());
                        }
                    }
                }
                Ok(None) => break,
                Err(reason) => return (received, Some(reason), Vec::new()),
            }
        }
    }
    (received, None, reader.into_rest())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_frames_is_read_alike() {
        crate::fuzz::run_corpus("frames", super::frames);
    }
}
