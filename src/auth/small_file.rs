//! Reads small files whose content their platform may replace at any time: tokens, assertions and passwords.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::config::read_bounded;

/// The time limit of a read. A file on a mount that does not answer is waited for as long as a provider is.
const TIME: Duration = Duration::from_secs(5);

/// Held by the one read of a file that is in progress.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The turns of the files that are being read. A read that hangs cannot be cancelled and keeps its thread, so each file is
/// read by one thread at a time for all callers, also through reloads.
static TURNS: LazyLock<Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>> = LazyLock::new(Mutex::default);

/// Reads a text file of at most `limit` bytes, without blocking the caller's thread, within five seconds. Returns `None` if
/// it is longer.
///
/// # Errors
/// Returns an error when the file cannot be read, is not read in time, or is not UTF-8.
pub async fn read_small_file(path: &Path, limit: usize) -> io::Result<Option<String>> {
    read_within(path, limit, TIME).await
}

async fn read_within(path: &Path, limit: usize, time: Duration) -> io::Result<Option<String>> {
    let deadline = Instant::now() + time;
    let late = |what: &str| {
        let text = format!("{what} after {} s; check whether its file system answers", time.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let Ok(turn) = timeout_at(deadline, turn_of(path).lock_owned()).await else {
        return Err(late("an earlier read has not ended"));
    };
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let Some(bytes) = read_bounded(&path, limit)? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
    });
    timeout_at(deadline, read).await.map_err(|_| late("it has not been read"))??
}

fn turn_of(path: &Path) -> Turn {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.retain(|_, turn| turn.strong_count() > 0);
    if let Some(turn) = turns.get(path).and_then(Weak::upgrade) {
        return turn;
    }
    let turn = Turn::default();
    turns.insert(path.to_owned(), Arc::downgrade(&turn));
    turn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("vestibule-small-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        folder
    }

    #[tokio::test]
    async fn a_file_is_read_up_to_its_limit() {
        let folder = folder("limit");
        let path = folder.join("token");
        for (content, expected) in [(&b"1234"[..], Some("1234")), (b"12345", None), (b"", Some(""))] {
            std::fs::write(&path, content).expect("written");
            assert_eq!(read_small_file(&path, 4).await.expect("read").as_deref(), expected);
        }
        std::fs::write(&path, b"\xff").expect("written");
        assert_eq!(read_small_file(&path, 4).await.expect_err("no text").kind(), io::ErrorKind::InvalidData);
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(read_small_file(&path, 4).await.expect_err("no file").kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_given_up_and_has_one_thread() {
        let folder = folder("pipe");
        let path = folder.join("token");
        // Opening a pipe without a writer hangs, as opening a file does on a mount that does not answer.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        let time = Duration::from_millis(50);
        for text in ["it has not been read", "an earlier read has not ended"] {
            let error = read_within(&path, 16, time).await.expect_err("it hangs");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(error.to_string().starts_with(text), "{error}");
        }
        // The first read gets this, and the next one has a turn again.
        let written = path.clone();
        tokio::task::spawn_blocking(move || std::fs::write(written, b"late"))
            .await
            .expect("a thread")
            .expect("written");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, b"anew").expect("written");
        assert_eq!(read_small_file(&path, 16).await.expect("read").as_deref(), Some("anew"));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
