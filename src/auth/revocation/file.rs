//! The revocation file: one JSON object per line, appended and synced before the revocation is confirmed. The file is
//! rewritten without expired lines when it is opened, and when it has twice as many lines as revocations can be kept.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use super::{BROWSER_SESSIONS, RevocationTarget};
use crate::json;
use crate::telemetry::FileWrites;

/// The reason why the revocation file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RevocationFileError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// A line is not a revocation.
    #[error(
        "{path}:{line}: not a revocation; correct or remove the line (without it, what it revoked is accepted again)"
    )]
    Line {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
    },
}

/// A line of the file. For sign-outs (issuer [`BROWSER_SESSIONS`]) `sid` is owner and session, with `browser` all sessions
/// of that browser end too, and `sub` with `at` in milliseconds ends all sessions that the owner began until then.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) issuer: String,
    pub(super) target: RevocationTarget,
    /// The browser whose sessions have ended. Earlier versions do not read it.
    pub(super) browser: Option<String>,
    pub(super) at: u64,
    pub(super) until: u64,
}

impl Record {
    fn read(line: &[u8]) -> Option<Self> {
        let object = json::object(line).ok()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = |name: &str| object.get(name).and_then(Value::as_u64);
        let mut targets = [
            text("sub").map(RevocationTarget::User),
            text("raw_sub").map(RevocationTarget::Subject),
            text("sid").map(RevocationTarget::Session),
            text("jti").map(RevocationTarget::Token),
        ]
        .into_iter()
        .flatten();
        let target = targets.next().filter(|_| targets.next().is_none())?;
        let (issuer, browser) = (text("issuer")?, text("browser"));
        Some(Self { issuer, target, browser, at: number("at")?, until: number("until")? })
    }

    fn line(&self) -> String {
        let Self { issuer, target, browser, at, until } = self;
        let (kind, id) = match target {
            RevocationTarget::User(id) => ("sub", id),
            RevocationTarget::Subject(id) => ("raw_sub", id),
            RevocationTarget::Session(id) => ("sid", id),
            RevocationTarget::Token(id) => ("jti", id),
        };
        let mut line = json!({"issuer": issuer, kind: id, "at": at, "until": until});
        if let Some(browser) = browser {
            line["browser"] = browser.as_str().into();
        }
        format!("{line}\n")
    }
}

#[derive(Debug)]
pub(super) struct RevocationFile {
    path: PathBuf,
    limit: usize,
    open: Mutex<Open>,
    writes: OnceLock<FileWrites>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// The file's device and number.
    id: (u64, u64),
    lines: usize,
}

impl Open {
    fn new(file: File, lines: usize, path: &Path) -> Result<Self, RevocationFileError> {
        let metadata = file.metadata().map_err(|source| failed(path, source))?;
        Ok(Self { id: id_of(&metadata), file, lines })
    }
}

fn id_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn failed(path: &Path, source: io::Error) -> RevocationFileError {
    RevocationFileError::Io { path: path.display().to_string(), source }
}

impl RevocationFile {
    /// Reads the records that have not expired and rewrites the file with only these. Creates the file if necessary.
    pub(super) fn open(path: &Path, limit: usize, now: u64) -> Result<(Self, Vec<Record>), RevocationFileError> {
        let records = read(path, now)?;
        let file = rewrite(path, &records)?;
        let open = Mutex::new(Open::new(file, records.len(), path)?);
        Ok((Self { path: path.to_owned(), limit, open, writes: OnceLock::new() }, records))
    }

    /// Counts each append by these counters from now on. Only the first call counts.
    pub(super) fn count_writes_by(&self, writes: FileWrites) {
        let _ = self.writes.set(writes);
    }

    /// Appends a record and returns when it is on the disk.
    pub(super) fn append(&self, record: &Record, now: u64) -> Result<(), RevocationFileError> {
        let appended = self.try_append(record, now);
        if let Some(writes) = self.writes.get() {
            writes.count(appended.is_ok());
        }
        appended
    }

    fn try_append(&self, record: &Record, now: u64) -> Result<(), RevocationFileError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // The next process, which starts before this one has stopped, or an editor may have put another file in its place.
        let was_replaced = std::fs::metadata(&self.path).map_or(true, |there| id_of(&there) != open.id);
        if was_replaced || open.lines >= self.limit.saturating_mul(2).max(16) {
            let records = read(&self.path, now)?;
            *open = Open::new(rewrite(&self.path, &records)?, records.len(), &self.path)?;
        }
        let line = record.line();
        let written = open.file.write_all(line.as_bytes()).and_then(|()| open.file.sync_data());
        if let Err(source) = written {
            // Part of the line may have been written. The file is rewritten before the next append, so that the next
            // line does not continue it.
            open.lines = usize::MAX;
            return Err(failed(&self.path, source));
        }
        open.lines += 1;
        Ok(())
    }
}

#[cfg(test)]
impl RevocationFile {
    /// Makes the next append fail, after which the file is written anew.
    pub(super) fn fill_disk_once(&self) {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("opens");
        self.open.lock().expect("lock").file = full;
    }
}

fn read(path: &Path, now: u64) -> Result<Vec<Record>, RevocationFileError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(failed(path, source)),
    };
    // A last line without a line break was being written when the process ended; it was never confirmed.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let lines = whole.split(|byte| *byte == b'\n').enumerate();
    let mut records: Vec<Record> = Vec::new();
    for (index, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let record = Record::read(line)
            .ok_or_else(|| RevocationFileError::Line { path: path.display().to_string(), line: index + 1 })?;
        if record.until > now {
            records.push(record);
        }
    }
    // Of several lines for one target the last counts.
    let mut seen = std::collections::HashSet::new();
    records.reverse();
    records.retain(|record| seen.insert((record.issuer.clone(), record.target.clone(), record.browser.clone())));
    records.reverse();
    remove_covered_sign_outs(&mut records);
    Ok(records)
}

/// Removes sign-outs of single sessions that a later line for all sessions of the same user covers.
fn remove_covered_sign_outs(records: &mut Vec<Record>) {
    let mut all_ended_at = std::collections::HashMap::new();
    for (index, record) in records.iter().enumerate().filter(|(_, record)| record.issuer == BROWSER_SESSIONS) {
        if let RevocationTarget::User(owner) = &record.target {
            all_ended_at.insert(owner.clone(), index);
        }
    }
    let mut index = 0;
    records.retain(|record| {
        index += 1;
        let RevocationTarget::Session(name) = &record.target else { return true };
        let owner = name.split_once('/').map(|(owner, _)| owner);
        record.issuer != BROWSER_SESSIONS
            || owner.and_then(|owner| all_ended_at.get(owner)).is_none_or(|at| index > *at)
    });
}

/// Writes a new file and renames it over the old one, so that a crash leaves one of the two complete, and the new one once
/// this has returned.
fn rewrite(path: &Path, records: &[Record]) -> Result<File, RevocationFileError> {
    let failed = |source| failed(path, source);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside).map_err(failed)?;
    for record in records {
        file.write_all(record.line().as_bytes()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)?;
    // Lines that are written and synced after this must not be lost with the new name of their file.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems cannot sync a folder.
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Err(failed(error)),
        _ => {}
    }
    OpenOptions::new().append(true).open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("vestibule-revocations-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn record(target: RevocationTarget, at: u64, until: u64) -> Record {
        Record { issuer: "i".to_owned(), target, browser: None, at, until }
    }

    fn ids(records: &[Record]) -> Vec<(RevocationTarget, u64)> {
        records.iter().map(|record| (record.target.clone(), record.at)).collect()
    }

    #[test]
    fn what_is_in_force_is_there_again_and_the_rest_is_not() {
        let path = Scratch::new("again");
        let (file, records) = RevocationFile::open(&path.0, 10, 100).expect("opens");
        assert!(records.is_empty());
        let user = |id: &str| RevocationTarget::User(id.to_owned());
        file.append(&record(user("over"), 100, 110), 100).expect("kept");
        file.append(&record(user("a\"\nb"), 100, 200), 100).expect("kept");
        file.append(&record(user("a\"\nb"), 105, 205), 105).expect("kept");
        file.append(&record(RevocationTarget::Session("s".into()), 106, 206), 106).expect("kept");
        let (_file, records) = RevocationFile::open(&path.0, 10, 150).expect("opens");
        assert_eq!(ids(&records), [(user("a\"\nb"), 105), (RevocationTarget::Session("s".into()), 106)]);
        assert_eq!(std::fs::read_to_string(&path.0).expect("text").lines().count(), 2);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path.0).expect("there").permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_revoked_while_the_next_process_has_begun_is_not_lost() {
        let path = Scratch::new("next");
        let user = |id: &str| RevocationTarget::User(id.to_owned());
        let (former, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        former.append(&record(user("before"), 1, 100), 1).expect("kept");
        let (next, _) = RevocationFile::open(&path.0, 10, 2).expect("opens");
        for (file, id, at) in [(&former, "a", 3), (&next, "b", 4), (&former, "c", 5)] {
            file.append(&record(user(id), at, 100), at).expect("kept");
        }
        let (_file, records) = RevocationFile::open(&path.0, 10, 6).expect("opens");
        assert_eq!(ids(&records), [(user("before"), 1), (user("a"), 3), (user("b"), 4), (user("c"), 5)]);
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let path = Scratch::new("grow");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        for at in 0..1_000 {
            file.append(&record(RevocationTarget::User("alice".into()), at, at + 1_000), at).expect("kept");
        }
        assert!(std::fs::read_to_string(&path.0).expect("text").lines().count() <= 20);
    }

    #[test]
    fn after_a_line_that_could_not_be_written_the_next_stands_alone() {
        let path = Scratch::new("half");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let whole = std::mem::replace(&mut file.open.lock().expect("lock").file, full_disk(&path.0));
        drop(whole);
        assert!(file.append(&record(RevocationTarget::User("lost".into()), 1, 100), 1).is_err());
        file.append(&record(RevocationTarget::User("kept".into()), 2, 100), 2).expect("kept");
        let (_file, records) = RevocationFile::open(&path.0, 10, 3).expect("opens");
        assert_eq!(ids(&records), [(RevocationTarget::User("kept".into()), 2)]);
    }

    /// Returns a file in which half a line was written before the disk was full.
    fn full_disk(path: &Path) -> File {
        let mut file = OpenOptions::new().append(true).open(path).expect("opens");
        file.write_all(b"{\"issuer\":\"i\",\"su").expect("written");
        OpenOptions::new().write(true).open("/dev/full").expect("opens")
    }

    #[test]
    fn a_user_s_single_sign_outs_go_when_one_line_ends_them_all() {
        let path = Scratch::new("all");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let own = |target, at| Record { issuer: BROWSER_SESSIONS.to_owned(), target, browser: None, at, until: 100 };
        let one = |name: &str| RevocationTarget::Session(name.to_owned());
        for (target, at) in [
            (one("alice/1"), 1),
            (one("bob/1"), 1),
            (one("alice/2"), 1),
            (RevocationTarget::User("alice".into()), 2_000),
            (one("alice/3"), 3),
        ] {
            file.append(&own(target, at), 1).expect("kept");
        }
        let (_file, records) = RevocationFile::open(&path.0, 10, 1).expect("opens");
        let expected = [(one("bob/1"), 1), (RevocationTarget::User("alice".into()), 2_000), (one("alice/3"), 3)];
        assert_eq!(ids(&records), expected);
    }

    #[test]
    fn a_torn_last_line_is_nothing_and_any_other_is_an_error() {
        let path = Scratch::new("torn");
        let good = record(RevocationTarget::Token("t".into()), 1, 100).line();
        // The text is cut within an `ü`.
        let torn = [good.as_bytes(), b"{\"issuer\":\"i\",\"sub\":\"J\xc3"].concat();
        std::fs::write(&path.0, torn).expect("written");
        assert_eq!(RevocationFile::open(&path.0, 10, 50).expect("opens").1.len(), 1);
        for wrong in [
            "{}",
            "garbage",
            r#"{"issuer":"i","sub":"a","sid":"b","at":1,"until":9}"#,
            r#"{"issuer":"i","at":1,"until":9}"#,
        ] {
            std::fs::write(&path.0, format!("{good}{wrong}\n")).expect("written");
            let error = RevocationFile::open(&path.0, 10, 50).expect_err("an error").to_string();
            assert!(error.contains(":2: not a revocation"), "{error}");
        }
    }
}
