//! Writes the standard output of the commands. A closed pipe, as of `| head`, is no error; a full disk is.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static FAILED: AtomicBool = AtomicBool::new(false);

/// Prints a line. [`exit_code`] reports a failure.
pub(super) fn print_line(line: impl Display) {
    print(format!("{line}\n").as_bytes());
}

/// Prints bytes without change. [`exit_code`] reports a failure.
pub(super) fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) else { return };
    if error.kind() != ErrorKind::BrokenPipe && !FAILED.swap(true, Ordering::Relaxed) {
        print_error(format_args!("standard output: {error}"));
    }
}

/// Prints a line to standard error. A failure is ignored, since it could not be reported.
pub(super) fn print_error(line: impl Display) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Returns the exit code of a command that succeeded: 1 where its output could not be written.
pub(super) fn exit_code(code: ExitCode) -> ExitCode {
    if code == ExitCode::SUCCESS && FAILED.load(Ordering::Relaxed) { ExitCode::from(1) } else { code }
}
