//! The Tokio runtime that the commands run on.

use std::future::Future;
use std::io;
use std::time::Duration;

/// The time that a file has which is still being written when a command ends. What else blocks a thread is then a name
/// that is looked up: nothing can end a lookup, and at a name server that does not answer it lasts for 10 s and more.
pub(super) const UNFINISHED_WAIT: Duration = Duration::from_secs(1);

/// The error when the runtime cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("the runtime could not be started: {0}")]
pub(super) struct NotStarted(#[from] pub(super) io::Error);

/// Runs a command on a Tokio runtime of one thread. `run` serves connections on
/// [`WorkerThreads`](crate::workers::WorkerThreads).
///
/// # Errors
/// Returns an error when the runtime cannot be started.
pub(super) fn block_on<T>(command: impl Future<Output = T>) -> Result<T, NotStarted> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_timeout(UNFINISHED_WAIT);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_lookup_without_an_answer_keeps_no_command_from_ending() {
        let ((may_end, wait), (ended, has_ended)) = (mpsc::channel::<()>(), mpsc::channel());
        std::thread::spawn(move || {
            let outcome = block_on(async {
                let (begin, has_begun) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    let _ = begin.send(());
                    let _ = wait.recv();
                });
                has_begun.await
            });
            let _ = ended.send(outcome.is_ok_and(|has_begun| has_begun.is_ok()));
        });
        assert_eq!(has_ended.recv_timeout(Duration::from_secs(30)), Ok(true));
        may_end.send(()).expect("it still waits for its answer");
    }
}
