//! Work that reads files, on a thread of its own and waited for within a limit: a file system may hang, and then so does
//! the thread.
//!
//! This module imports nothing of the proxy.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

/// The maximum time for which files are waited for.
pub const FILE_LIMIT: Duration = Duration::from_secs(10);

/// The reason why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum FileWorkError {
    /// The files were not read in time.
    #[error("its files are not read within 10 s; check whether their file systems answer")]
    Late,
    /// Earlier work still waits for its files, so this was not begun.
    #[error(
        "an earlier read of its files has not ended: of a pipe that nobody writes, or on a file system that does not answer; end that, or restart"
    )]
    NotBegun,
    /// The work panicked.
    #[error("internal error")]
    Panicked(#[source] JoinError),
}

/// Work of which one piece at most is in progress: a thread that hangs cannot be ended, so no second one is started.
#[derive(Debug)]
pub struct FileWork<T>(Option<JoinHandle<T>>);

impl<T> Default for FileWork<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> FileWork<T> {
    /// Runs the work. An earlier piece that has not ended is waited for first, and its result is dropped, since the files
    /// may have changed.
    ///
    /// # Errors
    /// Returns an error if there is no result within `limit`, or if the work panics.
    pub async fn run(
        &mut self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FileWorkError> {
        let deadline = Instant::now() + limit;
        if let Some(earlier) = &mut self.0 {
            let _ = timeout_at(deadline, earlier).await.map_err(|_| FileWorkError::NotBegun)?;
        }
        let running = self.0.insert(tokio::task::spawn_blocking(work));
        let done = timeout_at(deadline, running).await.map_err(|_| FileWorkError::Late)?;
        self.0 = None;
        done.map_err(FileWorkError::Panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_given_up_and_has_one_thread() {
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let mut work = FileWork::default();
        let brief = Duration::from_millis(20);
        let hanging = move || {
            let _ = ends.recv();
            "first"
        };
        assert!(matches!(work.run(brief, hanging).await, Err(FileWorkError::Late)));
        assert!(matches!(work.run(brief, || "second").await, Err(FileWorkError::NotBegun)));
        drop(end);
        assert_eq!(work.run(FILE_LIMIT, || "third").await.expect("done"), "third");
    }
}
