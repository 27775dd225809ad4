//! The log writer: lines are buffered, and a thread of its own writes them at 64 KiB or every 100 ms, whichever comes
//! first. No request waits for a terminal or a pipe, not even for one that nobody reads.

use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

const BUFFER: usize = 64 << 10;
const INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of bytes that wait to be written; further lines are dropped and counted.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// The longest wait of [`flush`]: a pipe that nobody reads must not keep the process from ending.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

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
    /// Notified when the thread has written.
    written: Condvar,
    /// The thread that writes; unset where it could not be started.
    writer: OnceLock<Thread>,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The buffer that was written last, empty again: a new one would be enlarged and copied with every few lines.
    spare: Vec<u8>,
    dropped: u64,
    /// Whether lines that were taken from here are being written.
    is_writing: bool,
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Sets the format once and starts the thread that writes.
pub(super) fn start(format: Format) {
    if OUTPUT.set(Output::new(format)).is_err() {
        return;
    }
    let Some(output) = OUTPUT.get() else { return };
    let writer = std::thread::Builder::new().name("log".to_owned());
    // Without the thread, lines are written when the buffer is full and at exit.
    let started = writer.spawn(|| {
        loop {
            std::thread::park_timeout(INTERVAL);
            output.write(&mut std::io::stdout());
        }
    });
    if let Ok(started) = started {
        let _ = output.writer.set(started.thread().clone());
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
    fn new(format: Format) -> Self {
        Self { format, waiting: Mutex::default(), written: Condvar::new(), writer: OnceLock::new() }
    }

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
            None => self.write(&mut std::io::stdout()),
        }
    }

    /// Writes the buffered lines, unless another caller is writing: lines stay in order.
    fn write(&self, out: &mut impl std::io::Write) {
        let mut taken = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_writing || waiting.bytes.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut waiting.spare);
            std::mem::replace(&mut *waiting, Waiting { bytes, is_writing: true, ..Waiting::default() })
        };
        // An error here must not stop the proxy.
        let _ = out.write_all(&taken.bytes);
        if taken.dropped > 0 {
            let message = format!("{} log lines were dropped because they were not read fast enough", taken.dropped);
            let _ = match self.format {
                Format::Pretty => writeln!(out, "warn  {message}"),
                Format::Json | Format::Silent => writeln!(out, "{{\"level\":\"warn\",\"msg\":\"{message}\"}}"),
            };
        }
        let _ = out.flush();
        taken.bytes.clear();
        // What a reader that fell behind made it grow to is given back.
        taken.bytes.shrink_to(2 * BUFFER);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.spare = taken.bytes;
        waiting.is_writing = false;
        drop(waiting);
        self.written.notify_all();
    }

    /// Waits until every line is written, but no longer than `limit`.
    fn wait(&self, limit: Duration) {
        self.write_soon();
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unwritten = |waiting: &mut Waiting| waiting.is_writing || !waiting.bytes.is_empty();
        let _ = self.written.wait_timeout_while(waiting, limit, is_unwritten);
    }
}

/// Has the buffered lines written now, without waiting for it: requests may run on the caller's thread.
pub fn write_soon() {
    if let Some(output) = OUTPUT.get() {
        output.write_soon();
    }
}

/// Waits until the buffered lines are written, but no longer than [`FLUSH_WAIT`]; called where no request can wait.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.wait(FLUSH_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_logs_wakes_the_writer_and_never_writes() {
        let (woken, is_woken) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            std::thread::park();
            woken.send(()).expect("heard");
        });
        let output = Output::new(Format::Json);
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

    /// A reader that takes nothing until it is told to.
    struct Unread(std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<usize>);

    impl std::io::Write for Unread {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_thread_that_waits_for_the_log_waits_for_its_reader_but_not_without_end() {
        let ((read, is_read), (taken, was_taken)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        let output: &'static Output = Box::leak(Box::new(Output::new(Format::Json)));
        output.append("a line");
        let writer = std::thread::spawn(move || output.write(&mut Unread(is_read, taken)));
        output.writer.set(writer.thread().clone()).expect("unset");
        output.wait(Duration::from_millis(10));
        assert!(was_taken.try_recv().is_err(), "it gave up");
        read.send(()).expect("the writer");
        output.wait(Duration::from_secs(30));
        assert_eq!(was_taken.try_recv(), Ok("a line\n".len()), "it waited until the line was written");
        writer.join().expect("ended");
    }
}
