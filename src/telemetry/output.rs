//! The log writer: lines are buffered and written at 64 KiB or every 100 ms, whichever comes first, so that no request
//! waits for a terminal or a pipe.

use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
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
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
}

static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Sets the format once and starts the thread that writes.
pub(super) fn start(format: Format) {
    if OUTPUT.set(Output { format, waiting: Mutex::default() }).is_ok() {
        let writer = std::thread::Builder::new().name("log".to_owned());
        // Without the thread, lines are written when the buffer is full and at exit.
        let _ = writer.spawn(|| {
            loop {
                std::thread::sleep(INTERVAL);
                flush();
            }
        });
    }
}

pub(super) fn format() -> Format {
    OUTPUT.get().map_or(Format::Json, |output| output.format)
}

/// Appends one line; `line` has no line break.
pub(super) fn line(line: &str) {
    let Some(output) = OUTPUT.get() else { return };
    let full = {
        let mut waiting = output.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes.len() + line.len() > MAX_WAITING_BYTES {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line.as_bytes());
        waiting.bytes.push(b'\n');
        waiting.bytes.len() >= BUFFER
    };
    if full {
        flush();
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
