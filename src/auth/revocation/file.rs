//! The revocation file: one JSON object per line, appended and synced before the revocation is confirmed. The file is
//! rewritten without expired lines when it is opened, and when it has twice as many lines as revocations can be kept.
//!
//! Several processes may have the same file, for example during a rolling update. Each holds a lock while it rewrites or
//! appends: a line that is appended between another's reading and renaming would be lost.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{BROWSER_SESSIONS, RevocationTarget};
use crate::json;
use crate::telemetry::FileWrites;

/// The maximum time for which another process's lock is waited for. It is held while the file is read and written, so for
/// longer only by a process that is stopped, or on a file system that hangs.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// The interval at which it is tried again. The system has no wait for a lock that ends at a time.
const LOCK_POLL: Duration = Duration::from_millis(5);

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
    /// The time of a session's sign-out in milliseconds, which `at` has rounded up. Earlier versions do not read it.
    pub(super) at_ms: Option<u64>,
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
        Some(Self { issuer, target, browser, at: number("at")?, at_ms: number("at_ms"), until: number("until")? })
    }

    /// Returns the time of a session's sign-out in milliseconds, or the end of its second in a line without it.
    pub(super) fn signed_out_at(&self) -> u64 {
        self.at_ms.unwrap_or(self.at.saturating_mul(1_000))
    }

    fn line(&self) -> String {
        let Self { issuer, target, browser, at, at_ms, until } = self;
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
        if let Some(at_ms) = at_ms {
            line["at_ms"] = (*at_ms).into();
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

    /// Returns whether the open file is the one at the path, and ends with a whole line.
    fn can_continue(&self, path: &Path) -> bool {
        let Ok(mut there) = File::open(path) else { return false };
        let mut last = [0];
        there.metadata().is_ok_and(|there| id_of(&there) == self.id)
            && match there.seek(SeekFrom::End(-1)) {
                Ok(_) => there.read_exact(&mut last).is_ok() && last == *b"\n",
                // It is empty.
                Err(_) => true,
            }
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
        let there = &followed(path);
        let _lock = lock(there, Instant::now() + LOCK_WAIT)?;
        let Content { records, .. } = read(there, now)?;
        let file = rewrite(there, &records)?;
        let open = Mutex::new(Open::new(file, records.len(), there)?);
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
        // The wait for the lock begins before that for another thread, which waits for the lock too: one after the other they
        // would wait for as long as all of them together.
        let deadline = Instant::now() + LOCK_WAIT;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &followed(&self.path);
        let _lock = lock(path, deadline)?;
        let max_lines = self.limit.saturating_mul(2).max(16);
        if open.lines >= max_lines || !open.can_continue(path) {
            // Another process or an editor may have put another file in its place, or have stopped within a line.
            let Content { records, lines, is_whole } = read(path, now)?;
            *open = if is_whole && lines < max_lines {
                Open::new(open_to_append(path)?, lines, path)?
            } else {
                Open::new(rewrite(path, &records)?, records.len(), path)?
            };
        }
        let line = record.line();
        let written = open.file.write_all(line.as_bytes()).and_then(|()| open.file.sync_data());
        if let Err(source) = written {
            // Part of the line may have been written. The file is rewritten before the next append, so that the next
            // line does not continue it.
            open.lines = usize::MAX;
            return Err(failed(path, source));
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

/// What the file has.
struct Content {
    /// The records that have not expired, one for each target.
    records: Vec<Record>,
    /// The number of lines.
    lines: usize,
    /// Whether the file exists and its last line is complete.
    is_whole: bool,
}

fn read(path: &Path, now: u64) -> Result<Content, RevocationFileError> {
    let (bytes, exists) = match std::fs::read(path) {
        Ok(bytes) => (bytes, true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), false),
        Err(source) => return Err(failed(path, source)),
    };
    // A last line without a line break was being written when the process ended; it was never confirmed.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let mut lines = 0;
    let mut records: Vec<Record> = Vec::new();
    let numbered = whole.split(|byte| *byte == b'\n').enumerate();
    for (index, line) in numbered.inspect(|_| lines += 1).filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let record = Record::read(line)
            .ok_or_else(|| RevocationFileError::Line { path: path.display().to_string(), line: index + 1 })?;
        if record.until > now {
            records.push(record);
        }
    }
    merge_targets(&mut records);
    remove_covered_sign_outs(&mut records);
    Ok(Content { records, lines, is_whole: exists && bytes.last().is_none_or(|last| *last == b'\n') })
}

/// Keeps the last of several lines for one target, with the latest times of them: another process, which did not know of the
/// former line, may have written the last one.
fn merge_targets(records: &mut Vec<Record>) {
    let mut latest = HashMap::new();
    for record in &*records {
        let key = (record.issuer.clone(), record.target.clone(), record.browser.clone());
        let (at, at_ms, until) = latest.entry(key).or_insert((0, 0, 0));
        *at_ms = record.signed_out_at().max(*at_ms);
        (*at, *until) = (record.at.max(*at), record.until.max(*until));
    }
    records.reverse();
    records.retain_mut(|record| {
        let key = (record.issuer.clone(), record.target.clone(), record.browser.clone());
        let Some((at, at_ms, until)) = latest.remove(&key) else { return false };
        (record.at, record.at_ms, record.until) = (at, record.at_ms.map(|_| at_ms), until);
        true
    });
    records.reverse();
}

/// Removes sign-outs of single sessions that a line for all sessions of the same user covers.
fn remove_covered_sign_outs(records: &mut Vec<Record>) {
    let mut all_ended = HashMap::new();
    for record in records.iter().filter(|record| record.issuer == BROWSER_SESSIONS) {
        if let RevocationTarget::User(owner) = &record.target {
            all_ended.insert(owner.clone(), (record.at, record.until));
        }
    }
    records.retain(|record| {
        let RevocationTarget::Session(name) = &record.target else { return true };
        let owner = name.split_once('/').map(|(owner, _)| owner);
        let all = owner.filter(|_| record.issuer == BROWSER_SESSIONS).and_then(|owner| all_ended.get(owner));
        // A line of another process, or of a session that replaced another one, is not covered if its session may have begun
        // later.
        all.is_none_or(|(at, until)| record.signed_out_at() > *at || record.until > *until)
    });
}

/// Returns the file that a path leads to: a link is kept, and the file behind it replaced. With the link in its place the
/// lines would be where nobody looks for them, for example outside of a volume.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // As many as the system follows.
    for _ in 0..40 {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Returns the path of a file beside this one.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(extension);
    PathBuf::from(beside)
}

/// Waits for the lock of the file, which is that of a file beside it, since the file itself is replaced. It is released
/// when the returned file is dropped. On a file system without locks there is none: one process alone needs none.
fn lock(path: &Path, deadline: Instant) -> Result<Option<File>, RevocationFileError> {
    let path = beside(path, ".lock");
    let failed = |source| failed(&path, source);
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "another process holds the lock")));
            }
        }
    }
}

/// Writes a new file and renames it over the old one, so that a crash leaves one of the two complete, and the new one once
/// this has returned.
fn rewrite(path: &Path, records: &[Record]) -> Result<File, RevocationFileError> {
    let failed = |source| failed(path, source);
    let beside = beside(path, ".new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside).map_err(failed)?;
    for record in records {
        file.write_all(record.line().as_bytes()).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)?;
    open_to_append(path)
}

/// Opens the file at the path, whoever has put it there.
fn open_to_append(path: &Path) -> Result<File, RevocationFileError> {
    let failed = |source| failed(path, source);
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
            for path in [self.0.clone(), beside(&self.0, ".lock")] {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn record(target: RevocationTarget, at: u64, until: u64) -> Record {
        Record { issuer: "i".to_owned(), target, browser: None, at, at_ms: None, until }
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
    fn processes_with_one_file_do_not_rewrite_it_in_turn() {
        let path = Scratch::new("turns");
        let [former, next] = [1, 2].map(|_| RevocationFile::open(&path.0, 10, 0).expect("opens").0);
        let number = || std::fs::metadata(&path.0).expect("there").ino();
        let before = number();
        for turn in 0..8 {
            for (file, name) in [(&former, "former"), (&next, "next")] {
                let user = RevocationTarget::User(format!("{name}-{turn}"));
                file.append(&record(user, 1, 100), 1).expect("kept");
                assert_eq!(number(), before);
            }
        }
        // One of them stops within a line.
        let mut file = OpenOptions::new().append(true).open(&path.0).expect("opens");
        file.write_all(b"{\"issuer\":\"i\",\"su").expect("written");
        next.append(&record(RevocationTarget::User("last".into()), 1, 100), 1).expect("kept");
        assert_eq!(RevocationFile::open(&path.0, 10, 2).expect("opens").1.len(), 17);
    }

    #[test]
    fn nothing_is_lost_while_another_process_rewrites_the_file() {
        let path = Scratch::new("at-once");
        let open = || RevocationFile::open(&path.0, 8, 0).expect("opens").0;
        std::thread::scope(|scope| {
            for name in ["a", "b", "c"] {
                let file = open();
                scope.spawn(move || {
                    // From the 16th line on each append rewrites the file.
                    for turn in 0..60 {
                        let user = RevocationTarget::User(format!("{name}-{turn}"));
                        file.append(&record(user, 1, 100), 1).expect("kept");
                    }
                });
            }
        });
        assert_eq!(RevocationFile::open(&path.0, 8, 2).expect("opens").1.len(), 180);
    }

    #[test]
    fn a_lock_that_another_process_holds_is_waited_for_within_a_limit() {
        let path = Scratch::new("lock");
        let after = |wait| Instant::now() + Duration::from_millis(wait);
        let held = lock(&path.0, after(5_000)).expect("locked");
        let late = lock(&path.0, after(20)).expect_err("held").to_string();
        assert!(late.ends_with(".lock: another process holds the lock"), "{late}");
        drop(held);
        lock(&path.0, after(0)).expect("locked");
    }

    #[test]
    fn what_is_revoked_while_the_next_process_reads_the_file_is_not_lost() {
        let path = Scratch::new("meanwhile");
        let (former, _) = RevocationFile::open(&path.0, 1_000, 0).expect("opens");
        let user = |number: u64| RevocationTarget::User(number.to_string());
        let (revoked, revocations) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let revoked = revoked;
                for at in 1..=200 {
                    former.append(&record(user(at), at, 1_000), at).expect("kept");
                    revoked.send(()).expect("waits");
                }
            });
            // Each of these starts while others are being revoked.
            while revocations.recv().is_ok() {
                revocations.try_iter().for_each(drop);
                RevocationFile::open(&path.0, 1_000, 1).expect("opens");
            }
        });
        let (_file, records) = RevocationFile::open(&path.0, 1_000, 1).expect("opens");
        assert_eq!(ids(&records), (1..=200).map(|at| (user(at), at)).collect::<Vec<_>>());
    }

    #[test]
    fn a_line_of_a_process_that_did_not_know_the_former_ones_shortens_none() {
        let path = Scratch::new("unknown");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let own = |target, at, until| Record { issuer: BROWSER_SESSIONS.to_owned(), ..record(target, at, until) };
        let (alice, one) = (RevocationTarget::User("alice".into()), RevocationTarget::Session("alice/1".into()));
        for record in [
            record(alice.clone(), 9, 100),
            record(alice.clone(), 8, 90),
            own(one.clone(), 15, 100),
            own(alice.clone(), 12_000, 100),
            own(alice.clone(), 10_000, 100),
        ] {
            file.append(&record, 1).expect("kept");
        }
        let (_file, records) = RevocationFile::open(&path.0, 10, 1).expect("opens");
        assert_eq!(ids(&records), [(alice.clone(), 9), (one, 15), (alice, 12_000)]);
        assert_eq!(records[0].until, 100);
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
        file.fill_disk_once();
        assert!(file.append(&record(RevocationTarget::User("lost".into()), 1, 100), 1).is_err());
        // A part of its line is there.
        let mut there = OpenOptions::new().append(true).open(&path.0).expect("opens");
        there.write_all(b"{\"issuer\":\"i\",\"su").expect("written");
        file.append(&record(RevocationTarget::User("kept".into()), 2, 100), 2).expect("kept");
        let (_file, records) = RevocationFile::open(&path.0, 10, 3).expect("opens");
        assert_eq!(ids(&records), [(RevocationTarget::User("kept".into()), 2)]);
    }

    #[test]
    fn a_user_s_single_sign_outs_go_when_one_line_ends_them_all() {
        let path = Scratch::new("all");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let own = |target, at| Record { issuer: BROWSER_SESSIONS.to_owned(), ..record(target, at, 100) };
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

    /// The line of one session has its time in seconds too, for earlier versions.
    #[test]
    fn a_sign_out_in_the_second_of_the_line_that_ends_all_earlier_sessions_is_kept_if_it_came_later() {
        let path = Scratch::new("second");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let own = |target, at| Record { issuer: BROWSER_SESSIONS.to_owned(), ..record(target, at, 100) };
        let one = |name: &str| RevocationTarget::Session(name.to_owned());
        let at_ms = |name, at_ms: u64| Record { at_ms: Some(at_ms), ..own(one(name), at_ms.div_ceil(1_000)) };
        let all = RevocationTarget::User("alice".into());
        for record in
            [at_ms("alice/1", 12_000), at_ms("alice/2", 12_300), own(all.clone(), 12_001), at_ms("alice/3", 12_400)]
        {
            file.append(&record, 1).expect("kept");
        }
        let (_file, records) = RevocationFile::open(&path.0, 10, 1).expect("opens");
        assert_eq!(ids(&records), [(one("alice/2"), 13), (all, 12_001), (one("alice/3"), 13)]);
        assert_eq!(records[2].at_ms, Some(12_400));
    }

    #[test]
    fn a_link_to_the_file_stays_one() {
        let (path, link) = (Scratch::new("linked"), Scratch::new("link"));
        let kept = |id: &str| RevocationTarget::User(id.to_owned());
        std::os::unix::fs::symlink(path.0.file_name().expect("a name"), &link.0).expect("linked");
        for (number, id) in ["a", "b", "c"].into_iter().enumerate() {
            // The first time there is no file behind it.
            let (file, before) = RevocationFile::open(&link.0, 10, 0).expect("opens");
            assert_eq!(before.len(), number);
            file.append(&record(kept(id), 1, 100), 1).expect("kept");
        }
        assert!(std::fs::symlink_metadata(&link.0).expect("there").is_symlink());
        assert_eq!(RevocationFile::open(&path.0, 10, 1).expect("opens").1.len(), 3);
    }

    #[test]
    fn what_waits_for_a_lock_together_has_waited_for_it_together() {
        let path = Scratch::new("together");
        let (file, _) = RevocationFile::open(&path.0, 10, 0).expect("opens");
        let _held = lock(&path.0, Instant::now()).expect("locked");
        let began = Instant::now();
        std::thread::scope(|scope| {
            for number in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    let user = RevocationTarget::User(number.to_string());
                    file.append(&record(user, 1, 100), 1).expect_err("held");
                });
            }
        });
        assert!(began.elapsed() < 2 * LOCK_WAIT, "{:?}", began.elapsed());
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
