//! Reload: another policy in force without a connection lost, when its files change or SIGHUP asks for it.
//!
//! Owns when it is tried, and all or nothing: a configuration that is wrong, or that would need a restart, changes
//! nothing. What it is loaded from is `cli`'s, what a change does to open sockets is `websocket::authorizer`'s, and
//! certificates of listeners follow their files by themselves (`listen::tls`).

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep};

use crate::policy::Policy;
use crate::runtime::Shared;
use crate::telemetry;

/// The files are looked at this often. By their metadata, which costs microseconds and works on every file system;
/// events of the kernel do not come from network mounts, nor for the targets of links that `ConfigMap`s swap.
const LOOK: Duration = Duration::from_secs(1);
/// What was refused is tried again, for a file that it names and that was not there yet.
const AGAIN: Duration = Duration::from_secs(30);

/// A policy and what it was read from.
#[derive(Debug)]
pub struct Edition {
    /// The rules.
    pub policy: Policy,
    /// Where they stand and which version it is: `vestibule.yaml (3f9a1c)`.
    pub name: String,
    /// The version alone.
    pub digest: String,
    /// The configuration's own file.
    pub file: Option<PathBuf>,
}

/// The files of an edition, and how they were when it was read.
#[derive(Debug)]
pub struct Watched {
    name: String,
    digest: String,
    files: Vec<PathBuf>,
    known: Vec<Stamp>,
}

impl Watched {
    /// To be called before the edition is put in force: what changes from here on is a change.
    #[must_use]
    pub fn of(edition: &Edition) -> Self {
        let files: Vec<_> = edition.file.iter().chain(&edition.policy.files).cloned().collect();
        Self { name: edition.name.clone(), digest: edition.digest.clone(), known: stamps(&files), files }
    }
}

/// Loads and validates; what is wrong is one line.
pub type Load = Box<dyn Fn() -> Result<Edition, String> + Send + Sync>;

/// Keeps the policy as its files are.
pub struct Reload {
    shared: Arc<Shared>,
    load: Arc<Load>,
    watched: Watched,
    /// As the files were a look ago: whoever writes a file may not be done.
    last: Vec<Stamp>,
    refused: Option<Refused>,
}

struct Refused {
    reason: String,
    at: Instant,
}

/// Tells one state of a file from another; `None`: it is not there.
type Stamp = Option<[i64; 5]>;

impl Reload {
    /// Over the policy in force, which was made from what is watched.
    #[must_use]
    pub fn new(shared: &Arc<Shared>, load: Load, watched: Watched) -> Self {
        shared.metrics.serves(&watched.digest);
        shared.call(&watched.name);
        let last = watched.known.clone();
        Self { shared: Arc::clone(shared), load: Arc::new(load), watched, last, refused: None }
    }

    /// Reloads until the process drains.
    pub async fn run(mut self, mut hangup: Signal) {
        let leaving = self.shared.drain.closing_token();
        loop {
            let asked = tokio::select! {
                () = leaving.cancelled() => return,
                _ = hangup.recv() => true,
                () = sleep(LOOK) => false,
            };
            if asked || self.is_due().await {
                self.reload(asked).await;
            }
        }
    }

    /// Whether something has changed and stays as it is, or a refusal is old enough to be tried again.
    async fn is_due(&mut self) -> bool {
        let files = self.watched.files.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || stamps(&files)).await else { return false };
        let settled = found == self.last;
        self.last = found;
        let again = self.refused.as_ref().is_some_and(|refused| refused.at.elapsed() >= AGAIN);
        (settled && self.last != self.watched.known) || again
    }

    async fn reload(&mut self, asked: bool) {
        let (load, files) = (Arc::clone(&self.load), self.watched.files.clone());
        let loading = tokio::task::spawn_blocking(move || {
            // Before it is read: what is written meanwhile is another change.
            let before = stamps(&files);
            (load(), before)
        });
        let Ok((loaded, before)) = loading.await else { return };
        self.watched.known.clone_from(&before);
        self.last = before;
        let former = self.shared.current();
        let loaded = loaded.and_then(|edition| match needs_restart(&former.policy, &edition.policy) {
            Some(key) => Err(format!("{key}: needs a restart")),
            None => Ok(edition),
        });
        match loaded {
            Ok(edition) => self.take(edition, &former.policy),
            Err(reason) => self.refuse(reason, asked),
        }
    }

    fn take(&mut self, edition: Edition, former: &Policy) {
        self.refused = None;
        let known = std::mem::take(&mut self.watched.known);
        let watched = Watched::of(&edition);
        // Of the same files the state before they were read counts.
        self.watched = if watched.files == self.watched.files { Watched { known, ..watched } } else { watched };
        self.last.clone_from(&self.watched.known);
        let Edition { policy, name, .. } = edition;
        for warning in policy.warnings.iter().filter(|warning| !former.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        let level = policy.log.level;
        self.shared.replace(policy);
        self.shared.call(&name);
        self.shared.metrics.reloaded(true, &self.watched.digest);
        // Said at whichever of the two levels lets it be heard.
        telemetry::set_level(level.max(former.log.level).name());
        tracing::info!(config = name, "reloaded: open sockets are judged by the new configuration");
        telemetry::set_level(level.name());
    }

    fn refuse(&mut self, reason: String, asked: bool) {
        let is_new = self.refused.as_ref().is_none_or(|refused| refused.reason != reason);
        if asked || is_new {
            self.shared.metrics.reloaded(false, &self.watched.digest);
            tracing::error!("reload refused, still serving {}: {reason}", self.watched.digest);
        }
        self.refused = Some(Refused { reason, at: Instant::now() });
    }
}

/// The first key whose change only a restart can follow.
fn needs_restart(former: &Policy, next: &Policy) -> Option<&'static str> {
    let admin = |policy: &Policy| policy.admin.as_ref().map(|admin| admin.address);
    let control = |policy: &Policy| {
        policy.control.as_ref().map(|control| (control.address.clone(), control.revocation_file.clone()))
    };
    [
        (former.listen != next.listen, "listen"),
        (admin(former) != admin(next), "admin"),
        (control(former) != control(next), "control"),
        (former.log.format != next.log.format, "log.format"),
    ]
    .into_iter()
    .find_map(|(differs, key)| differs.then_some(key))
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        let size = i64::try_from(meta.size()).unwrap_or(i64::MAX);
        Some([meta.ino().cast_signed(), size, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()])
    };
    files.iter().map(stamp).collect()
}
