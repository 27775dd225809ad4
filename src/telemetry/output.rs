//! The log writer: lines are buffered, and a thread of its own writes them at 64 KiB or every 100 ms, whichever comes
//! first. No request waits for a terminal or a pipe, also one that nobody reads.

use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

const BUFFER: usize = 64 << 10;
const INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of bytes that wait to be written; further lines are dropped and counted.
const MAX_WAITING_BYTES: usize = 4 << 20;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Text for a terminal.
    Pretty,
    /// Nothing is written; an observer still receives every line.
    Silent,
}

struct Output {
    format: Format,
    waiting: Mutex<Waiting>,
    /// The thread that writes; unset where it could not be started.
    writer: OnceLock<Thread>,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Sets the format once and starts the thread that writes.
pub(super) fn start(format: Format) {
    let output = Output { format, waiting: Mutex::default(), writer: OnceLock::new() };
    if OUTPUT.set(output).is_ok() {
        let writer = std::thread::Builder::new().name("log".to_owned());
        // Without the thread, lines are written when the buffer is full and at exit.
        let started = writer.spawn(|| {
            loop {
                std::thread::park_timeout(INTERVAL);
                flush();
            }
        });
        if let (Ok(started), Some(output)) = (started, OUTPUT.get()) {
            let _ = output.writer.set(started.thread().clone());
        }
    }
}

pub(super) fn format() -> Format {
    OUTPUT.get().map_or(Format::Json, |output| output.format)
}

/// Appends one line; `line` has no line break.
pub(super) fn line(line: &str) {
    let Some(output) = OUTPUT.get() else { return };
    if output.append(line) {
        output.write_soon();
    }
}

impl Output {
    /// Appends one line, or counts it as dropped. Returns whether there is enough to write.
    fn append(&self, line: &str) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes.len() + line.len() > MAX_WAITING_BYTES {
            waiting.dropped += 1;
            return false;
        }
        waiting.bytes.extend_from_slice(line.as_bytes());
        waiting.bytes.push(b'\n');
        waiting.bytes.len() >= BUFFER
    }

    /// Wakes the thread that writes. The caller itself, a request, must not write: where the pipe is full it would wait
    /// for the reader, and on one core every other request with it.
    fn write_soon(&self) {
        match self.writer.get() {
            Some(writer) => writer.unpark(),
            None => flush(),
        }
    }
}

/// Writes the buffered lines; also called at exit.
pub fn flush() {
    static WRITING: Mutex<()> = Mutex::new(());
    let Some(output) = OUTPUT.get() else { return };
    // Only one caller writes at a time, so that lines stay in order; the others do not wait for it.
    let Ok(_writing) = WRITING.try_lock() else { return };
    let taken = std::mem::take(&mut *output.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    if taken.bytes.is_empty() {
        return;
    }
    let mut out = std::io::stdout().lock();
    // An error here must not stop the proxy.
    let _ = out.write_all(&taken.bytes);
    if taken.dropped > 0 {
        let _ = writeln!(
            out,
            "{{\"level\":\"warn\",\"msg\":\"{} log lines were dropped because they were not read fast enough\"}}",
            taken.dropped
        );
    }
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_logs_wakes_the_writer_and_never_writes() {
        let (woken, is_woken) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            std::thread::park();
            woken.send(()).expect("heard");
        });
        let output = Output { format: Format::Json, waiting: Mutex::default(), writer: OnceLock::new() };
        output.writer.set(writer.thread().clone()).expect("unset");
        let line = "x".repeat(1_023);
        for _ in 0..MAX_WAITING_BYTES / 1_024 {
            if output.append(&line) {
                output.write_soon();
            }
        }
        assert_eq!(is_woken.recv_timeout(Duration::from_secs(30)), Ok(()));
        let waiting = output.waiting.lock().expect("lock");
        assert_eq!((waiting.bytes.len(), waiting.dropped), (MAX_WAITING_BYTES, 0), "all of it waits for the writer");
        drop(waiting);
        assert!(!output.append(&line));
        assert_eq!(output.waiting.lock().expect("lock").dropped, 1);
        writer.join().expect("ended");
    }
}
