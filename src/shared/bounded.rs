//! A connection to the engine with bounded answers. Parts that are too long are dropped as they arrive, so that they need no
//! memory and do not end the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::auth::login::SEALED_BYTES;

/// The most bytes of one answer. One step of a scan fits, also where the engine keeps a small hash in one piece.
const ANSWER_BYTES: usize = 16 << 20;
/// The longest text in an answer: the record of a login session.
const TEXT_BYTES: usize = SEALED_BYTES;
/// The longest line: a number, a status, an error.
const LINE_BYTES: usize = 4 << 10;
/// Lists within each other in an answer.
const LISTS: usize = 16;
/// The code of the error in place of an answer that is too long.
pub(super) const TOO_LONG: &str = "TOOLONG";
/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What the next byte of an answer belongs to.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// A line that begins a part of the answer.
    Line,
    /// A text, with so many bytes left, the line break behind it among them.
    Text(usize),
    /// The same, of a text that is left out.
    LeftOut(usize),
}

/// Keeps answers in the Redis protocol (RESP2) small. A text that is longer than [`TEXT_BYTES`] is replaced by none, an
/// answer that is longer than [`ANSWER_BYTES`] by the error [`TOO_LONG`].
#[derive(Debug)]
struct Filter {
    place: Place,
    line: Vec<u8>,
    /// The number of parts that are left of each list that the next part is in.
    lists: Vec<usize>,
    /// The answer so far.
    answer: Vec<u8>,
    is_too_long: bool,
}

impl Filter {
    fn new() -> Self {
        Self { place: Place::Line, line: Vec::new(), lists: Vec::new(), answer: Vec::new(), is_too_long: false }
    }

    /// Takes the bytes that came in, and adds the answers that they complete to `ready`.
    fn push(&mut self, mut bytes: &[u8], ready: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            let (Place::Text(left) | Place::LeftOut(left)) = self.place else {
                let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                let (part, rest) = bytes.split_at(end);
                self.line.extend_from_slice(part);
                bytes = rest;
                if self.line.len() > LINE_BYTES {
                    return Err(io::Error::other(format!("a line of an answer is longer than {LINE_BYTES} bytes")));
                }
                if part.ends_with(b"\n") {
                    self.end_line(ready)?;
                }
                continue;
            };
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            let is_kept = matches!(self.place, Place::Text(_));
            if is_kept {
                self.keep(part);
            }
            match left - part.len() {
                0 => self.end_part(ready),
                left if is_kept => self.place = Place::Text(left),
                left => self.place = Place::LeftOut(left),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, ready: &mut Vec<u8>) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let number = line.get(1..).and_then(|number| std::str::from_utf8(number).ok());
        let number = number.and_then(|number| number.trim_ascii_end().parse::<usize>().ok());
        match (line.first(), number) {
            (Some(b'$'), Some(length)) if length > TEXT_BYTES => {
                self.keep(b"$-1\r\n");
                self.place = Place::LeftOut(length.saturating_add(2));
            }
            (Some(b'$'), Some(length)) => {
                self.keep(&line);
                self.place = Place::Text(length + 2);
            }
            (Some(b'*'), Some(parts @ 1..)) => {
                self.keep(&line);
                self.lists.push(parts);
                if self.lists.len() > LISTS {
                    return Err(io::Error::other(format!("an answer has more than {LISTS} lists within each other")));
                }
            }
            _ => {
                self.keep(&line);
                self.end_part(ready);
            }
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_too_long |= self.answer.len() + bytes.len() > ANSWER_BYTES;
        if self.is_too_long {
            self.answer = Vec::new();
        } else {
            self.answer.extend_from_slice(bytes);
        }
    }

    /// Ends a part, with it each list whose last part it is, and with the outermost the answer.
    fn end_part(&mut self, ready: &mut Vec<u8>) {
        self.place = Place::Line;
        while let Some(left) = self.lists.last_mut() {
            *left -= 1;
            if *left > 0 {
                return;
            }
            self.lists.pop();
        }
        if std::mem::take(&mut self.is_too_long) {
            ready
                .extend_from_slice(format!("-{TOO_LONG} an answer is longer than {ANSWER_BYTES} bytes\r\n").as_bytes());
        } else if ready.is_empty() {
            *ready = std::mem::take(&mut self.answer);
        } else {
            ready.append(&mut self.answer);
        }
    }
}

/// A stream whose answers are bounded.
pub(super) struct Bounded {
    stream: Box<dyn Stream>,
    filter: Filter,
    incoming: Box<[u8]>,
    /// Whole answers.
    ready: Vec<u8>,
    /// How many of their bytes were handed on.
    taken: usize,
}

impl Bounded {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, filter: Filter::new(), incoming: vec![0; READ_BYTES].into(), ready: Vec::new(), taken: 0 }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut incoming = ReadBuf::new(&mut this.incoming);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut incoming))?;
            if incoming.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.push(incoming.filled(), &mut this.ready)?;
        }
        let rest = &this.ready[this.taken..];
        let part = &rest[..rest.len().min(buf.remaining())];
        buf.put_slice(part);
        this.taken += part.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn read(answer: &[u8], piece: usize) -> io::Result<String> {
        let (mut engine, ours) = tokio::io::duplex(piece);
        let mut bounded = Bounded::new(Box::new(ours));
        let answer = answer.to_vec();
        let written = async move {
            // The reader may end before it has everything.
            let _ = engine.write_all(&answer).await;
        };
        let mut found = Vec::new();
        let ((), read) = tokio::join!(written, bounded.read_to_end(&mut found));
        read.map(|_| String::from_utf8_lossy(&found).into_owned())
    }

    #[tokio::test]
    async fn long_texts_are_left_out_wherever_the_answer_is_cut() {
        let long = "x".repeat(TEXT_BYTES + 1);
        let fits = "$30000\r\n".repeat(TEXT_BYTES / 8);
        let answer = |long: &str| {
            let fits = format!("${}\r\n{fits}", fits.len());
            format!(
                "*4\r\n*2\r\n$3\r\na\r\n\r\n{long}\r\n*0\r\n:7\r\n$-1\r\n+OK\r\n*1\r\n{fits}\r\n-ERR no\r\n$0\r\n\r\n"
            )
        };
        let expected = answer("$-1");
        for piece in [3, 1_000, 1 << 20] {
            let found = read(answer(&format!("${}\r\n{long}", long.len())).as_bytes(), piece).await.expect("an answer");
            assert_eq!(found, expected, "{piece}");
        }
    }

    #[tokio::test]
    async fn a_long_answer_is_an_error_and_the_next_one_is_read() {
        let part = "$20000\r\n".to_owned() + &"x".repeat(20_000) + "\r\n";
        let answer = format!("+OK\r\n*900\r\n{}*2\r\n:1\r\n:2\r\n", part.repeat(900));
        let found = read(answer.as_bytes(), 1 << 20).await.expect("answers");
        assert_eq!(found, "+OK\r\n-TOOLONG an answer is longer than 16777216 bytes\r\n*2\r\n:1\r\n:2\r\n");
    }

    #[tokio::test]
    async fn a_long_line_and_deep_lists_end_the_connection_and_half_an_answer_is_none() {
        for (answer, expected) in [
            ("+".repeat(LINE_BYTES + 1), "a line of an answer is longer"),
            ("*1\r\n".repeat(LISTS + 1), "lists within each other"),
        ] {
            let error = read(answer.as_bytes(), 1 << 20).await.expect_err("an error");
            assert!(error.to_string().contains(expected), "{error}");
        }
        for answer in [format!("${}\r\nx", usize::MAX), "*2\r\n:1\r\n".to_owned(), "+O".to_owned()] {
            assert_eq!(read(answer.as_bytes(), 100).await.expect("nothing"), "");
        }
    }
}
