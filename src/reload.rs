//! Reload: replaces the policy without closing a connection, when its files change or on SIGHUP.
//!
//! This module decides when to reload. A configuration that is invalid, or that needs a restart, changes nothing. `cli`
//! loads the configuration, `websocket` authorizes open sockets again, and `listen::tls` reloads certificates by itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep};

use crate::config::Finding;
use crate::file_work::{FILE_LIMIT, FileWork, FileWorkError};
use crate::policy::Policy;
use crate::runtime::ProxyState;
use crate::telemetry;

/// The interval at which the files' metadata is read. Polling costs microseconds and works on every file system; kernel
/// events do not come from network mounts, nor for the targets of links that `ConfigMap`s swap.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which a rejected configuration is loaded again, for a file that it names and that did not exist yet.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A validated policy and its source.
#[derive(Debug)]
pub struct LoadedPolicy {
    /// The policy.
    pub policy: Policy,
    /// The source and digest: `vestibule.yaml (3f9a1c)`.
    pub name: String,
    /// The digest of the configuration.
    pub digest: String,
    /// The configuration file, if it is a file.
    pub file: Option<PathBuf>,
}

impl LoadedPolicy {
    fn files(&self) -> Vec<PathBuf> {
        self.file.iter().chain(&self.policy.files).cloned().collect()
    }
}

/// The files of a policy, with their metadata from before they were read.
#[derive(Debug)]
pub struct Watched {
    name: String,
    digest: String,
    files: Vec<PathBuf>,
    known: Vec<Fingerprint>,
}

/// The maximum number of times that a configuration is loaded at once.
const MOST_LOADS: usize = 3;

/// Loads a policy with the metadata of its files from before they were read, so that a write meanwhile counts as a later
/// change. `files` are those that it is expected to have. If it has others, it is loaded once more.
///
/// # Errors
/// Returns the error of `load`.
pub fn load_watched<E>(
    mut files: Vec<PathBuf>,
    mut load: impl FnMut() -> Result<LoadedPolicy, E>,
) -> Result<(LoadedPolicy, Watched), E> {
    let mut loads = 0;
    loop {
        let before = fingerprints(&files);
        let loaded = load()?;
        let read = loaded.files();
        loads += 1;
        let known = if read == files {
            before
        } else if read.iter().any(|file| !file.is_file()) {
            // A pipe can be read once, so what was not expected is watched from now on.
            let known_before = |file| files.iter().position(|expected| expected == file).map(|at| before[at]);
            let after = fingerprints(&read);
            read.iter().zip(after).map(|(file, after)| known_before(file).unwrap_or(after)).collect()
        } else if loads < MOST_LOADS {
            files = read;
            continue;
        } else {
            // The files change faster than they are read. The next poll finds that they differ, and loads again.
            vec![None; read.len()]
        };
        let watched = Watched { name: loaded.name.clone(), digest: loaded.digest.clone(), files: read, known };
        return Ok((loaded, watched));
    }
}

/// Loads and validates the configuration; the error is one line.
pub type Load = Box<dyn Fn() -> Result<LoadedPolicy, String> + Send + Sync>;

/// Reloads the policy when its files change.
pub struct Reload {
    state: Arc<ProxyState>,
    load: Arc<Load>,
    watched: Watched,
    /// The metadata at the last poll. A file whose metadata differs from it may still be written.
    last: Vec<Fingerprint>,
    rejected: Option<Rejected>,
    checking: FileWork<Vec<Fingerprint>>,
    loading: FileWork<(LoadResult, Vec<Fingerprint>)>,
    replacing: FileWork<()>,
}

type LoadResult = Result<(LoadedPolicy, Watched), String>;

struct Rejected {
    reason: String,
    at: Instant,
}

/// The metadata of a file, which differs between two of its versions; `None` if the file does not exist.
type Fingerprint = Option<[i64; 5]>;

impl Reload {
    /// Creates it for the current policy, which was loaded from the watched files.
    #[must_use]
    pub fn new(state: &Arc<ProxyState>, load: Load, watched: Watched) -> Self {
        state.metrics.set_config_digest(&watched.digest);
        state.set_policy_name(&watched.name);
        state.describe(&watched.digest);
        let last = watched.known.clone();
        Self {
            state: Arc::clone(state),
            load: Arc::new(load),
            watched,
            last,
            rejected: None,
            checking: FileWork::default(),
            loading: FileWork::default(),
            replacing: FileWork::default(),
        }
    }

    /// Reloads until the process drains.
    pub async fn run(mut self, mut hangup: Signal) {
        let closing = self.state.drain.closing_token();
        loop {
            let is_requested = tokio::select! {
                () = closing.cancelled() => return,
                _ = hangup.recv() => true,
                () = sleep(POLL_INTERVAL) => false,
            };
            if is_requested || self.is_due().await {
                self.reload(is_requested).await;
            }
        }
    }

    /// Returns whether a file has changed and was not changed since the last poll, or a rejected configuration should
    /// be retried.
    async fn is_due(&mut self) -> bool {
        let files = self.watched.files.clone();
        let found = match self.checking.run(FILE_LIMIT, move || fingerprints(&files)).await {
            Ok(found) => found,
            Err(error) => {
                self.reject(format!("the configuration: {error}"), false);
                return false;
            }
        };
        let is_settled = found == self.last;
        self.last = found;
        let should_retry = self.rejected.as_ref().is_some_and(|rejected| rejected.at.elapsed() >= RETRY_INTERVAL);
        (is_settled && self.last != self.watched.known) || should_retry
    }

    async fn reload(&mut self, is_requested: bool) {
        let (load, files) = (Arc::clone(&self.load), self.watched.files.clone());
        let loading = move || {
            let before = fingerprints(&files);
            (load_watched(files, || load()), before)
        };
        let (loaded, before) = match self.loading.run(FILE_LIMIT, loading).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(?error, "loading the configuration failed");
                // It is loaded again when a file changes, and after `RETRY_INTERVAL`.
                self.watched.known.clone_from(&self.last);
                return self.reject(format!("the configuration: {error}"), is_requested);
            }
        };
        self.watched.known.clone_from(&before);
        self.last = before;
        let former = self.state.current();
        let applied = match loaded {
            Ok((loaded_policy, watched)) => match needs_restart(&former.policy, &loaded_policy.policy) {
                Some(key) => Err(format!("{key}: cannot be changed by a reload; restart required")),
                None => self.apply(loaded_policy, watched, &former.policy).await,
            },
            Err(reason) => Err(reason),
        };
        match applied {
            Ok(()) => self.rejected = None,
            Err(reason) => self.reject(reason, is_requested),
        }
    }

    /// Puts a policy in force. The error is a line that says why it could not be.
    async fn apply(&mut self, loaded_policy: LoadedPolicy, watched: Watched, former: &Policy) -> Result<(), String> {
        let is_new = |warning: &&Finding| !former.warnings.iter().any(|known| known.is_same(warning));
        let warnings: Vec<_> = loaded_policy.policy.warnings.iter().filter(is_new).cloned().collect();
        let level = loaded_policy.policy.log.level;
        // Not on this thread, which accepts connections: the clients of providers and upstreams read the certificates that
        // the system trusts, and these may be on a file system that hangs.
        let (state, decided) = (Arc::clone(&self.state), Arc::new(AtomicBool::new(false)));
        let decides = Arc::clone(&decided);
        let replacing = move || state.replace(loaded_policy.policy, || !decides.swap(true, Ordering::AcqRel));
        match self.replacing.run(FILE_LIMIT, replacing).await {
            Ok(()) => {}
            // The text of the error differs each time, and the reason must not, or each attempt would be reported.
            Err(FileWorkError::Panicked(panic)) => {
                tracing::debug!(error = %panic, "putting the configuration in force failed");
                return Err("internal error while the configuration was put in force".to_owned());
            }
            // What comes of it later is dropped. If the thread was first, it is putting the policy in force just now.
            Err(error @ (FileWorkError::Late | FileWorkError::NotBegun)) => {
                if !decided.swap(true, Ordering::AcqRel) {
                    return Err(format!("the certificates that the system trusts: {error}"));
                }
            }
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.last.clone_from(&watched.known);
        self.watched = watched;
        self.state.set_policy_name(&self.watched.name);
        self.state.describe(&self.watched.digest);
        self.state.metrics.reloaded(true, &self.watched.digest);
        // Logged at the more verbose of the two levels.
        telemetry::set_level(level.max(former.log.level).name());
        tracing::info!(config = self.watched.name, "configuration reloaded, authorizing open sockets again");
        telemetry::set_level(level.name());
        Ok(())
    }

    fn reject(&mut self, reason: String, is_requested: bool) {
        let is_new = self.rejected.as_ref().is_none_or(|rejected| rejected.reason != reason);
        if is_requested || is_new {
            self.state.metrics.reloaded(false, &self.watched.digest);
            tracing::error!(
                config = self.watched.name,
                error = reason,
                "reload rejected, keeping the current configuration"
            );
        }
        self.rejected = Some(Rejected { reason, at: Instant::now() });
    }
}

/// Returns the first changed key that needs a restart.
fn needs_restart(former: &Policy, next: &Policy) -> Option<&'static str> {
    let admin = |policy: &Policy| policy.admin.as_ref().map(|admin| admin.address);
    let control = |policy: &Policy| {
        policy.control.as_ref().map(|control| (control.address.clone(), control.revocation_file.clone()))
    };
    [
        (former.listen != next.listen, "listen"),
        (admin(former) != admin(next), "admin"),
        (control(former) != control(next), "control"),
        (former.shared != next.shared, "shared"),
        (former.log.format != next.log.format, "log.format"),
    ]
    .into_iter()
    .find_map(|(differs, key)| differs.then_some(key))
}

fn fingerprints(files: &[PathBuf]) -> Vec<Fingerprint> {
    let fingerprint = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        let size = i64::try_from(meta.size()).unwrap_or(i64::MAX);
        Some([meta.ino().cast_signed(), size, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()])
    };
    files.iter().map(fingerprint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(file: &std::path::Path, names: &[PathBuf]) -> LoadedPolicy {
        let yaml = "upstream: http://127.0.0.1:1\nroutes: [{ path: /**, auth: none }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let mut policy = crate::policy::validate(&config).expect("valid");
        policy.files = names.to_vec();
        LoadedPolicy { policy, name: String::new(), digest: String::new(), file: Some(file.to_owned()) }
    }

    /// Loads a configuration that names a file the caller did not expect, and writes one of its files in the last load.
    #[test]
    fn a_write_while_the_files_are_read_is_a_later_change() {
        let folder = std::env::temp_dir().join(format!("vestibule-reload-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (file, other) = (folder.join("vestibule.yaml"), folder.join("secret"));
        for written in [&file, &other] {
            for path in [&file, &other] {
                std::fs::write(path, "before").expect("written");
            }
            let mut loads = 0;
            let (_, watched) = load_watched(vec![file.clone()], || {
                loads += 1;
                if loads == 2 {
                    std::fs::write(written, "written meanwhile").expect("written");
                }
                Ok::<_, ()>(loaded(&file, std::slice::from_ref(&other)))
            })
            .expect("loads");
            assert_eq!((loads, watched.files.len()), (2, 2), "once more for the file that was not expected");
            assert_ne!(watched.known, fingerprints(&watched.files), "{} was written", written.display());
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn files_that_differ_in_every_load_are_loaded_again_later() {
        let mut loads = 0;
        let name = |load: usize| std::path::Path::new("src").join(["lib.rs", "main.rs"][load % 2]);
        let (_, watched) = load_watched(Vec::new(), || {
            loads += 1;
            Ok::<_, ()>(loaded(&name(loads), &[]))
        })
        .expect("loads");
        assert_eq!(loads, MOST_LOADS);
        assert_ne!(watched.known, fingerprints(&watched.files));
    }
}
