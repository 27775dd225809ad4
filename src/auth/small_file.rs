//! Reads small files whose content their platform may replace at any time: tokens, assertions and passwords.

use std::io;
use std::path::Path;

use crate::config::read_bounded;

/// Reads a text file of at most `limit` bytes, without blocking the caller's thread. Returns `None` if it is longer.
///
/// # Errors
/// Returns an error when the file cannot be read or is not UTF-8.
pub async fn read_small_file(path: &Path, limit: usize) -> io::Result<Option<String>> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let Some(bytes) = read_bounded(&path, limit)? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
    });
    read.await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_up_to_its_limit() {
        let folder = std::env::temp_dir().join(format!("vestibule-small-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
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
}
