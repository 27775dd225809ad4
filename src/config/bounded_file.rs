//! Reads the files that flags and keys name.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The maximum length of a file that a key names, in bytes.
pub const FILE_BYTES: usize = 1 << 20;

/// Reads a file of at most `limit` bytes. Returns `None` if it is longer.
///
/// # Errors
/// Returns an error when the file cannot be read.
pub fn read_bounded(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a longer file is noticed. Its size is not asked for: a pipe and `/dev/zero` have none.
    File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_whole() {
        assert_eq!(read_bounded(Path::new("/dev/zero"), 1 << 10).expect("read"), None);
        assert_eq!(read_bounded(Path::new("/dev/null"), 0).expect("read"), Some(Vec::new()));
    }
}
