//! One end of a socket, the client's or the upstream's: a writer and a reader, each with a pace of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, sleep_until, timeout};

use super::message::Stamp;
use super::rng::Rng;
use super::transport::Boxed;
use crate::support::socket::{Side, frame, parse};

/// The events at an end.
#[derive(Default)]
pub(crate) struct Record {
    /// The number of messages whose first byte may have been written; `sent` counts those whose last byte was.
    pub(crate) begun: u64,
    pub(crate) sent: u64,
    pub(crate) got: u64,
    pub(crate) bytes_got: u64,
    /// The Close that this end sent; `close_got` is the code of the other end's; 1005 for a Close without a code.
    pub(crate) close_sent: Option<(u16, Instant)>,
    pub(crate) close_got: Option<u16>,
    /// Whether the stream to this end has ended.
    pub(crate) is_over: bool,
    /// Whether it ended inside a message.
    pub(crate) is_torn: bool,
    /// The times at which its reader paused. Pauses between which it read less than [`FELT`] count as one.
    pub(crate) pauses: Vec<(Instant, Instant)>,
    /// The number of bytes that had been read when the last pause began.
    read_before: usize,
    pub(crate) is_authenticated: bool,
    pub(crate) refreshes_asked: u32,
    pub(crate) refreshes_accepted: u32,
    pub(crate) refreshes_refused: u32,
    /// The violations that were found.
    pub(crate) violations: Vec<String>,
}

impl Record {
    /// Whether the message that was sent first has no answer yet.
    const fn is_unanswered(&self) -> bool {
        !self.is_authenticated && self.close_got.is_none() && !self.is_over
    }

    fn violates(&mut self, what: String) {
        // The first ones are enough: after one lost message every later one is wrong.
        if self.violations.len() < 3 {
            self.violations.push(what);
        }
    }
}

/// A command to a writer, by its reader or from outside.
pub(crate) enum Command {
    Pong(Vec<u8>),
    /// Answer the other end's Close with this payload.
    Answer(Vec<u8>),
    Close(Option<u16>),
    /// End the stream without a Close.
    HalfClose,
    /// Both Closes have passed.
    Shut,
    /// Send a few last messages, then a Close: the other end has ended its stream.
    Finish,
    /// Send nothing any more.
    Stop,
}

/// A function that makes the token of a refresh, given the number of earlier refreshes.
pub(crate) type Tokens = Arc<dyn Fn(&mut Rng, u32) -> String + Send + Sync>;

/// The behaviour of an end.
#[derive(Clone)]
pub(crate) struct Manner {
    pub(crate) stamp: Stamp,
    /// The values in the other end's messages.
    pub(crate) expected: Stamp,
    pub(crate) side: Side,
    /// The mean time between two messages.
    pub(crate) pace: Duration,
    pub(crate) longest_pause: Duration,
    /// Whether it reads little at a time, with pauses.
    pub(crate) is_slow: bool,
    /// The message that is sent first.
    pub(crate) first: Option<String>,
    /// Whether nothing else is sent until that message was answered.
    pub(crate) waits: bool,
    pub(crate) refreshes: Option<Tokens>,
}

/// A running end.
pub(crate) struct End {
    pub(crate) task: tokio::task::JoinHandle<()>,
    pub(crate) commands: UnboundedSender<Command>,
    pub(crate) record: Arc<Mutex<Record>>,
    stopped: Arc<AtomicBool>,
}

impl End {
    /// Starts both halves; `buffer` has bytes that were read already.
    pub(crate) fn start(stream: Boxed, buffer: Vec<u8>, manner: Manner, mut rng: Rng) -> Self {
        #[allow(clippy::disallowed_methods, reason = "its reader and its writer pause apart from each other")]
        let (read, write) = tokio::io::split(stream);
        let (commands, orders) = unbounded_channel();
        let (record, stopped) = (Arc::new(Mutex::new(Record::default())), Arc::new(AtomicBool::new(false)));
        let writer = Writer {
            half: write,
            manner: manner.clone(),
            rng: Rng::new(rng.next()),
            orders,
            is_ordered_to_end: false,
            record: Arc::clone(&record),
        };
        let reader = Reader {
            half: read,
            buffer,
            message: None,
            manner,
            rng,
            commands: commands.clone(),
            record: Arc::clone(&record),
            stopped: Arc::clone(&stopped),
        };
        let task = tokio::spawn(async move {
            let writer = writer.run();
            tokio::pin!(writer);
            let reads = reader.run();
            tokio::pin!(reads);
            let mut written = false;
            loop {
                tokio::select! {
                    () = &mut writer, if !written => written = true,
                    () = &mut reads => break,
                }
            }
            if !written {
                // A message that has begun is sent to its end, also to a slow reader.
                let _ = timeout(LAST_WORDS, writer).await;
            }
        });
        Self { task, commands, record, stopped }
    }

    /// Ends reading and writing.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = self.commands.send(Command::Stop);
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("lock")
    }
}

struct Writer {
    half: WriteHalf<Boxed>,
    manner: Manner,
    rng: Rng,
    orders: UnboundedReceiver<Command>,
    /// Whether its reader has sent the command to end the stream, its last command.
    is_ordered_to_end: bool,
    record: Arc<Mutex<Record>>,
}

impl Writer {
    async fn run(mut self) {
        // The reader reports that the stream has ended.
        let _ = self.talk().await;
        while !self.is_ordered_to_end
            && let Some(order) = self.orders.recv().await
        {
            self.is_ordered_to_end = matches!(order, Command::Shut | Command::Finish);
        }
        let _ = self.half.shutdown().await;
    }

    async fn talk(&mut self) -> std::io::Result<()> {
        if let Some(first) = self.manner.first.take() {
            let bytes = frame(self.manner.side, 0x81, first.as_bytes());
            self.write(&bytes).await?;
            while self.manner.waits && self.record.lock().expect("lock").is_unanswered() {
                sleep(Duration::from_millis(5)).await;
            }
        }
        let mut next = tokio::time::Instant::now() + self.rng.up_to(self.manner.pace);
        let mut next_refresh = tokio::time::Instant::now() + self.rng.up_to(Duration::from_secs(15));
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Command::Pong(payload)) => {
                        let bytes = frame(self.manner.side, 0x8a, &payload);
                        self.write(&bytes).await?;
                    }
                    Some(Command::Answer(payload)) => return self.close(payload, true).await,
                    Some(Command::Close(code)) => {
                        return self.close(code.map_or_else(Vec::new, |code| code.to_be_bytes().to_vec()), false).await;
                    }
                    Some(Command::HalfClose) => return self.half.shutdown().await,
                    Some(Command::Finish) => {
                        self.is_ordered_to_end = true;
                        last = Some(tokio::time::Instant::now() + self.rng.up_to(Duration::from_secs(1)));
                    }
                    Some(Command::Stop) => std::future::pending().await,
                    Some(Command::Shut) | None => {
                        self.is_ordered_to_end = true;
                        return Ok(());
                    }
                },
                () = sleep_until(last.map_or(next, |last| next.min(last))) => {
                    let now = tokio::time::Instant::now();
                    if last.is_some_and(|last| last <= now) {
                        return self.close(1000_u16.to_be_bytes().to_vec(), true).await;
                    }
                    self.say(&mut next_refresh).await?;
                    // One in twenty is followed by a burst.
                    let burst = self.rng.in_thousand(200) || self.rng.in_thousand(50);
                    let gap = if burst { Duration::ZERO } else { self.rng.up_to(self.manner.pace * 2) };
                    next = tokio::time::Instant::now() + gap;
                }
            }
        }
    }

    async fn say(&mut self, next_refresh: &mut tokio::time::Instant) -> std::io::Result<()> {
        if self.rng.in_thousand(10) {
            let bytes = frame(self.manner.side, 0x89, b"from an end");
            self.write(&bytes).await?;
        }
        if *next_refresh <= tokio::time::Instant::now()
            && let Some(token) = &self.manner.refreshes
        {
            let before = self.record.lock().expect("lock").refreshes_asked;
            let text = format!(r#"{{"type":"refresh_auth","token":"{}"}}"#, token(&mut self.rng, before));
            *next_refresh =
                tokio::time::Instant::now() + Duration::from_secs(3) + self.rng.up_to(Duration::from_secs(20));
            self.record.lock().expect("lock").refreshes_asked += 1;
            let bytes = frame(self.manner.side, 0x81, text.as_bytes());
            self.write(&bytes).await?;
        }
        let sequence = {
            let mut record = self.record.lock().expect("lock");
            record.begun += 1;
            record.sent
        };
        for part in self.manner.stamp.frames(sequence, self.manner.side, &mut self.rng) {
            self.write(&part).await?;
            if self.rng.in_thousand(20) {
                sleep(self.rng.up_to(Duration::from_millis(50))).await;
            }
        }
        self.record.lock().expect("lock").sent += 1;
        Ok(())
    }

    /// Writes in pieces of random sizes, each a segment of its own if the kernel allows that.
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut rest = bytes;
        let mut cuts = if self.rng.in_thousand(200) { 1 + self.rng.below(12) } else { 0 };
        while cuts > 0 && rest.len() > 1 {
            let size = self.rng.one_of(&[1, 2, 7, 100, 1_400, 16_000, 65_536]).min(rest.len());
            self.half.write_all(&rest[..size]).await?;
            self.half.flush().await?;
            rest = &rest[size..];
            cuts -= 1;
            if self.rng.in_thousand(100) {
                sleep(self.rng.up_to(Duration::from_millis(20))).await;
            }
        }
        self.half.write_all(rest).await?;
        self.half.flush().await
    }

    /// The upstream ends the connection once both Closes have passed, as a server does.
    async fn close(&mut self, payload: Vec<u8>, is_last: bool) -> std::io::Result<()> {
        let bytes = frame(self.manner.side, 0x88, &payload);
        self.write(&bytes).await?;
        self.record.lock().expect("lock").close_sent = Some((code_of(&payload), Instant::now()));
        if is_last && self.manner.side == Side::Server {
            self.half.shutdown().await?;
        }
        Ok(())
    }
}

fn code_of(payload: &[u8]) -> u16 {
    payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))
}

/// The time for the rest of a message: shorter than the minute for which the proxy serves a client that has ended its
/// stream.
const LAST_WORDS: Duration = Duration::from_secs(50);
/// The number of bytes that a reader must read before the sender notices: the system opens its window after a sixteenth
/// of the receive buffer is free, and a record of TLS is read from it as a whole.
const FELT: usize = 32 << 10;
/// The number of bytes after which a slow reader pauses, for 30 ms on average: it reads some 100 KB a second.
const SLOW_BYTES: usize = 4 << 10;

struct Reader {
    half: ReadHalf<Boxed>,
    buffer: Vec<u8>,
    message: Option<(bool, Vec<u8>)>,
    manner: Manner,
    rng: Rng,
    commands: UnboundedSender<Command>,
    record: Arc<Mutex<Record>>,
    stopped: Arc<AtomicBool>,
}

impl Reader {
    async fn run(mut self) {
        let mut is_more = !self.buffer.is_empty();
        // Pauses are counted by bytes: over TLS a read may be no more than a small record.
        let mut rests_at = self.buffer.len();
        let mut taken = self.buffer.len();
        loop {
            if !is_more {
                if taken >= rests_at {
                    self.rest(taken).await;
                    rests_at = taken + if self.manner.is_slow { SLOW_BYTES } else { 1 };
                }
                let size = if self.manner.is_slow { SLOW_BYTES } else { 16 << 10 };
                self.buffer.reserve(size);
                match (&mut self.half).take(size as u64).read_buf(&mut self.buffer).await {
                    Ok(length) if length > 0 => taken += length,
                    _ => break,
                }
            }
            is_more = false;
            let masked = self.manner.side == Side::Server;
            let mut at = 0;
            while let Some((frame, used)) = parse(&self.buffer[at..], masked) {
                at += used;
                self.take(frame.fin, frame.opcode, frame.payload);
            }
            self.buffer.drain(..at);
            if self.buffer.is_empty() && self.buffer.capacity() > 64 << 10 {
                self.buffer = Vec::new();
            }
        }
        let (is_torn, is_server) =
            (!self.buffer.is_empty() || self.message.is_some(), self.manner.side == Side::Server);
        let mut record = self.record.lock().expect("lock");
        record.is_over = true;
        record.is_torn = is_torn;
        let finishes = is_server && record.close_got.is_none() && record.close_sent.is_none();
        drop(record);
        // The writer ends too, except that of an upstream whose client has only ended its stream.
        let _ = self.commands.send(if finishes { Command::Finish } else { Command::Shut });
    }

    /// Pauses the reader from time to time.
    async fn rest(&mut self, taken: usize) {
        if self.stopped.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.manner.is_slow {
            sleep(self.rng.up_to(Duration::from_millis(60))).await;
        }
        let pause = match self.rng.below(1000) {
            0..=2 => self.manner.longest_pause / 2 + self.rng.up_to(self.manner.longest_pause / 2),
            3..=20 => self.rng.up_to(self.manner.longest_pause / 4),
            21..=60 => self.rng.up_to(Duration::from_millis(100)),
            _ => return,
        };
        let began = Instant::now();
        sleep(pause).await;
        let mut record = self.record.lock().expect("lock");
        let is_felt = taken >= record.read_before + FELT;
        match record.pauses.last_mut().filter(|_| !is_felt) {
            Some(last) => last.1 = Instant::now(),
            None => record.pauses.push((began, Instant::now())),
        }
        record.read_before = taken;
    }

    fn take(&mut self, fin: bool, opcode: u8, payload: Vec<u8>) {
        let mut record = self.record.lock().expect("lock");
        if record.close_got.is_some() {
            record.violates(format!("a frame of opcode {opcode} behind the Close"));
        }
        match opcode {
            9 => {
                let _ = self.commands.send(Command::Pong(payload));
            }
            10 => {}
            8 => {
                record.close_got = Some(code_of(&payload));
                let both = record.close_sent.is_some();
                let _ = self.commands.send(if both { Command::Shut } else { Command::Answer(payload) });
            }
            _ => {
                let whole = match (&mut self.message, opcode) {
                    (None, 1 | 2) => self.message.insert((opcode == 1, payload)),
                    (Some(message), 0) => {
                        message.1.extend_from_slice(&payload);
                        message
                    }
                    _ => {
                        record.violates(format!("a frame of opcode {opcode} in the wrong place"));
                        return;
                    }
                };
                if fin {
                    let (is_text, bytes) = std::mem::take(whole);
                    self.message = None;
                    message_came(&mut record, &self.manner, is_text, &bytes);
                }
            }
        }
    }
}

fn message_came(record: &mut Record, manner: &Manner, is_text: bool, bytes: &[u8]) {
    if manner.side == Side::Client && is_text {
        if bytes.starts_with(br#"{"type":"authenticated""#) {
            let user = format!(r#""user_id":"{}""#, manner.stamp.user);
            let is_own = bytes.windows(user.len()).any(|window| window == user.as_bytes());
            if record.is_authenticated || record.got > 0 || !is_own {
                record.violates(format!("an unexpected {}", String::from_utf8_lossy(bytes)));
            }
            record.is_authenticated = true;
            return;
        }
        if bytes.starts_with(br#"{"type":"auth_refreshed""#) {
            record.refreshes_accepted += 1;
            return;
        }
        if bytes.starts_with(br#"{"type":"error","message":"Token refresh failed"#) {
            record.refreshes_refused += 1;
            return;
        }
        if bytes.starts_with(br#"{"type":"error""#) {
            return;
        }
    }
    if let Err(error) = manner.expected.check(record.got, is_text, bytes) {
        record.violates(format!("message {error}"));
    }
    record.got += 1;
    record.bytes_got += bytes.len() as u64;
}
