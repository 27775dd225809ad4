//! Reload: replaces the policy without closing a connection, when its files change or on SIGHUP.
//!
//! This module decides when to reload. A configuration that is invalid, or that needs a restart, changes nothing. `cli`
//! loads the configuration, `websocket` authorizes open sockets again, and `listen::tls` reloads certificates by itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep};

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

/// The files of a policy, with their metadata from before they were read.
#[derive(Debug)]
pub struct Watched {
    name: String,
    digest: String,
    files: Vec<PathBuf>,
    known: Vec<Fingerprint>,
}

impl Watched {
    /// Reads the metadata of the policy's files. It must be called before the policy is used, so that no later change
    /// is missed.
    #[must_use]
    pub fn of(loaded_policy: &LoadedPolicy) -> Self {
        let files: Vec<_> = loaded_policy.file.iter().chain(&loaded_policy.policy.files).cloned().collect();
        Self {
            name: loaded_policy.name.clone(),
            digest: loaded_policy.digest.clone(),
            known: fingerprints(&files),
            files,
        }
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
}

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
        Self { state: Arc::clone(state), load: Arc::new(load), watched, last, rejected: None }
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
        let Ok(found) = tokio::task::spawn_blocking(move || fingerprints(&files)).await else { return false };
        let is_settled = found == self.last;
        self.last = found;
        let should_retry = self.rejected.as_ref().is_some_and(|rejected| rejected.at.elapsed() >= RETRY_INTERVAL);
        (is_settled && self.last != self.watched.known) || should_retry
    }

    async fn reload(&mut self, is_requested: bool) {
        let (load, files) = (Arc::clone(&self.load), self.watched.files.clone());
        let loading = tokio::task::spawn_blocking(move || {
            // The metadata is read before the files, so that a write meanwhile counts as another change.
            let before = fingerprints(&files);
            (load(), before)
        });
        let (loaded, before) = match loading.await {
            Ok(read) => read,
            Err(panic) => {
                tracing::debug!(error = %panic, "loading the configuration failed");
                // It is loaded again when a file changes, and after `RETRY_INTERVAL`.
                self.watched.known.clone_from(&self.last);
                return self.reject("internal error while the configuration was loaded".to_owned(), is_requested);
            }
        };
        self.watched.known.clone_from(&before);
        self.last = before;
        let former = self.state.current();
        let loaded = loaded.and_then(|loaded_policy| match needs_restart(&former.policy, &loaded_policy.policy) {
            Some(key) => Err(format!("{key}: cannot be changed by a reload; restart required")),
            None => Ok(loaded_policy),
        });
        let applied = match loaded {
            Ok(loaded_policy) => self.apply(loaded_policy, &former.policy).await,
            Err(reason) => Err(reason),
        };
        match applied {
            Ok(()) => self.rejected = None,
            Err(reason) => self.reject(reason, is_requested),
        }
    }

    /// Puts a policy in force. The error is a line that says why it could not be.
    async fn apply(&mut self, loaded_policy: LoadedPolicy, former: &Policy) -> Result<(), String> {
        let is_new = |warning: &&String| !former.warnings.contains(warning);
        let warnings: Vec<_> = loaded_policy.policy.warnings.iter().filter(is_new).cloned().collect();
        let level = loaded_policy.policy.log.level;
        // Not on this thread, which accepts connections: the files may be on a file system that hangs, and the clients of
        // providers and upstreams read the certificates that the system trusts.
        let state = Arc::clone(&self.state);
        let replacing = tokio::task::spawn_blocking(move || {
            let watched = Watched::of(&loaded_policy);
            state.replace(loaded_policy.policy);
            watched
        });
        // The text of the error differs each time, and the reason must not, or each attempt would be reported.
        let watched = replacing.await.map_err(|panic| {
            tracing::debug!(error = %panic, "putting the configuration in force failed");
            "internal error while the configuration was put in force".to_owned()
        })?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        // If the files are the same, their metadata from before they were read counts.
        let known = std::mem::take(&mut self.watched.known);
        self.watched = if watched.files == self.watched.files { Watched { known, ..watched } } else { watched };
        self.last.clone_from(&self.watched.known);
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
