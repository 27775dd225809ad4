//! The collector of configuration errors. It imports no other file of `policy`; each topic adds its own checks to it.

use std::path::{Path, PathBuf};

use crate::config::{FILE_BYTES, Finding, Time, read_bounded, shown_file};

/// A collector of errors and warnings. Every step continues after an error, to find the next one.
#[derive(Default)]
pub(super) struct Check {
    pub(super) findings: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// The files that keys name and that were read.
    pub(super) files: Vec<PathBuf>,
    /// Whether published secrets are accepted, since the listeners are on loopback only.
    pub(super) is_insecure_dev: bool,
}

impl Check {
    /// Adds an error about the key at `path`.
    pub(super) fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::new(path, message));
    }

    /// Returns the number of errors so far.
    pub(super) fn error_count(&self) -> usize {
        self.findings.len()
    }

    /// Adds a warning, which every start prints.
    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(Finding::new("", warning));
    }

    /// Adds a warning about the key at `path`, which every start prints with its place.
    pub(super) fn warn_at(&mut self, path: impl Into<String>, warning: impl Into<String>) {
        self.warnings.push(Finding::new(path, warning));
    }

    /// Returns the value, or adds the error at `path`.
    pub(super) fn ok_or_report<T>(&mut self, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.error(path, message)).ok()
    }

    /// Reads a file that a key names, without one trailing newline.
    pub(super) fn file(&mut self, path: &str, file: &str) -> Option<Vec<u8>> {
        self.files.push(PathBuf::from(file));
        match read_bounded(Path::new(file), FILE_BYTES) {
            Ok(None) => {
                self.error(path, format!("{file} is larger than 1 MiB"));
                None
            }
            Ok(Some(mut bytes)) => {
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                    if bytes.last() == Some(&b'\r') {
                        bytes.pop();
                    }
                }
                Some(bytes)
            }
            Err(error) => {
                self.error(path, format!("{}: {error}", shown_file(file)));
                None
            }
        }
    }

    /// Returns a secret that is given as a value or as the name of a file. Both together are an error.
    pub(super) fn secret(
        &mut self,
        path: &str,
        value: Option<&String>,
        file_path: &str,
        file: Option<&String>,
    ) -> Option<Vec<u8>> {
        match (value, file) {
            (Some(_), Some(_)) => {
                self.error(file_path, format!("is set beside {}; keep one", path.rsplit('.').next().unwrap_or(path)));
                None
            }
            (Some(value), None) => Some(value.clone().into_bytes()),
            (None, Some(file)) => self.file(file_path, file),
            (None, None) => None,
        }
    }

    /// Adds an error where a duration is zero.
    pub(super) fn not_zero(&mut self, path: &str, value: Option<Time>) {
        if value.is_some_and(|time| time.0.is_zero()) {
            self.error(path, "must be greater than zero");
        }
    }
}
