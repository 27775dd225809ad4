//! The keys of one provider: fetched at start, refreshed at an interval, fetched at once for an unknown `kid` (at
//! most once per cool-down), and kept while the provider is down.
//!
//! One task per provider does all fetching, so at most one request is in flight however many callers wait. `set`
//! parses a key set, and `fetch` makes the request.

mod by_id;
mod fetch;
mod set;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::unix_seconds;
use super::{Inspection, Rejection};
use crate::config::Finding;
use crate::policy::{KeySource, Policy, ProviderSpec};
use crate::telemetry::{KeySetGauges, Label, Metrics};

use by_id::KeysById;
use fetch::FetchedKeys;
pub(super) use fetch::placeholder_issuer;
pub use set::KeyFingerprint;
pub(super) use set::{Candidates, KeySet};

/// The time in which unknown `kid`s cause at most one fetch per provider. The fetch at start and the refreshes do not
/// count, so tokens signed with a key that is rotated in during the first 30 seconds are accepted.
const COOLDOWN: Duration = Duration::from_secs(30);
/// The delay before a failed fetch is retried; it doubles up to [`MAX_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The maximum delay before a retry.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// The result of the fetches so far.
#[derive(Clone, Debug, Default)]
struct FetchState {
    keys: Option<Arc<KeySet>>,
    last_good: Option<Instant>,
    last_failed: Option<(Instant, String)>,
    /// The reason why the last fetch failed; `None` if it succeeded.
    failure: Option<String>,
    /// The seconds by which the provider's clock is ahead of this machine's, if that is worth a warning.
    clock_offset: Option<i64>,
    /// The number of finished fetches; waiters wait for it to grow.
    finished: u64,
    /// The time of the next fetch that is made without a request; `None` while a fetch is in progress.
    next: Option<Instant>,
}

impl FetchState {
    fn has_keys(&self) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.len() > 0)
    }

    /// Returns the last key set that was fetched, unless it is older than `max_stale`.
    fn usable(&self, max_stale: Option<Duration>) -> Option<&Arc<KeySet>> {
        let is_stale = |good: Instant| max_stale.is_some_and(|limit| good.elapsed() > limit);
        self.keys.as_ref().filter(|_| self.last_good.is_some_and(|good| !is_stale(good)))
    }
}

/// A fetch that was requested because of an unknown `kid`.
#[derive(Clone, Copy, Debug)]
struct RefetchRequest {
    at: Instant,
    /// The value of [`FetchState::finished`] once it is done.
    awaited: u64,
}

/// The state of a provider's keys, for the log at start, `/readyz` and `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHealth {
    /// Whether the first fetch has finished.
    pub attempted: bool,
    /// The number of usable keys.
    pub keys: usize,
    /// The algorithms of the keys.
    pub algorithms: Vec<String>,
    /// The reason why the last fetch failed.
    pub failure: Option<String>,
    /// The time since the last successful fetch.
    pub good: Option<Duration>,
    /// The seconds by which the provider's clock is ahead of this machine's, at the last successful fetch; `None` if they
    /// agree or that cannot be told.
    pub clock_offset: Option<i64>,
    /// The time since the last failed fetch, and its error, also if a successful one followed.
    pub failed: Option<(Duration, String)>,
}

/// The keys of one provider.
#[derive(Debug)]
pub struct ProviderKeys {
    provider: Arc<ProviderSpec>,
    state: watch::Receiver<FetchState>,
    /// The last fetch that an unknown `kid` caused.
    last_refetch: Mutex<Option<RefetchRequest>>,
    demand: Arc<Notify>,
    max_stale: Option<Duration>,
    task: Option<AbortHandle>,
    /// The keys of a provider that has no key set.
    by_id: Option<KeysById>,
    /// The metrics of keys that are not fetched, exported as long as these are in use. The task has those of the others.
    _gauges: Option<KeySetGauges>,
}

impl Drop for ProviderKeys {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl ProviderKeys {
    /// Parses the keys in the configuration, or starts fetching them. Must be called inside a Tokio runtime.
    #[must_use]
    pub fn start(provider: Arc<ProviderSpec>, metrics: Arc<Metrics>) -> Self {
        let label: Label = provider.name.as_str().into();
        if matches!(provider.keys, KeySource::Fetched { .. } | KeySource::ById { .. }) {
            metrics.keys.create_series(&label);
        }
        // Of a provider without a key set neither the number of keys nor their age says anything, and an alert would take
        // no keys for an outage.
        let has_set = !matches!(provider.keys, KeySource::Introspection | KeySource::ById { .. });
        let mut gauges = has_set.then(|| metrics.keys.gauges(&label));
        let demand = Arc::new(Notify::new());
        let (send, state) = watch::channel(FetchState::default());
        let mut task = None;
        let mut max_stale = None;
        let by_id = matches!(provider.keys, KeySource::ById { .. })
            .then(|| KeysById::new(Arc::clone(&provider), (label.clone(), Arc::clone(&metrics))));
        match KeySet::configured(&provider.keys) {
            Some(Ok(keys)) => {
                if let Some(gauges) = &gauges {
                    gauges.set_keys(keys.len());
                }
                let (keys, last_good) = (Some(Arc::new(keys)), Some(Instant::now()));
                send.send_replace(FetchState { keys, last_good, finished: 1, ..FetchState::default() });
            }
            Some(Err(reason)) => {
                send.send_replace(FetchState {
                    failure: Some(reason.to_string()),
                    finished: 1,
                    ..FetchState::default()
                });
            }
            None => {
                if let KeySource::Fetched { max_stale: stale, .. } = &provider.keys {
                    max_stale = Some(*stale);
                }
                let metrics = FetchMetrics { all: metrics, provider: label, gauges: gauges.take() };
                let fetching = keep_fetching(Arc::clone(&provider), send, Arc::clone(&demand), metrics);
                task = Some(tokio::spawn(fetching).abort_handle());
            }
        }
        Self { provider, state, last_refetch: Mutex::new(None), demand, max_stale, task, by_id, _gauges: gauges }
    }

    /// Returns the current state of the keys.
    #[must_use]
    pub fn health(&self) -> KeyHealth {
        let state = self.state.borrow();
        if let Some(by_id) = &self.by_id {
            return KeyHealth {
                attempted: true,
                keys: by_id.len(),
                algorithms: vec!["ES256".to_owned()],
                failure: None,
                good: None,
                clock_offset: None,
                failed: by_id.last_failed(),
            };
        }
        KeyHealth {
            attempted: state.finished > 0,
            keys: state.keys.as_ref().map_or(0, |keys| keys.len()),
            algorithms: state.keys.as_ref().map_or_else(Vec::new, |keys| keys.algorithms()),
            failure: state.failure.clone(),
            good: state.last_good.map(|good| good.elapsed()),
            clock_offset: state.clock_offset,
            failed: state.last_failed.as_ref().map(|(at, reason)| (at.elapsed(), reason.clone())),
        }
    }

    /// Returns whether a key that verified the token of an open session is still one of the provider's. While no key
    /// set is available it counts as current, since the provider has not removed it.
    #[must_use]
    pub fn is_current(&self, fingerprint: KeyFingerprint, algorithm: Algorithm) -> bool {
        // Where keys are fetched one by one, the provider does not say that it has removed one.
        self.by_id.is_some()
            || self.state.borrow().keys.as_ref().is_none_or(|keys| keys.contains(fingerprint, algorithm))
    }

    /// Returns whether this key would verify a token now: it is in the current key set, and that is not too old.
    pub(super) fn is_usable(&self, fingerprint: KeyFingerprint, algorithm: Algorithm) -> bool {
        match &self.by_id {
            Some(by_id) => by_id.is_usable(fingerprint, algorithm),
            None => {
                self.state.borrow().usable(self.max_stale).is_some_and(|keys| keys.contains(fingerprint, algorithm))
            }
        }
    }

    /// Returns whether this key would verify a token now. Like the verification of a token, it waits for keys, and
    /// fetches them again if this one is unknown: a session cookie may come from a replica that has newer keys.
    ///
    /// # Errors
    /// [`Rejection::KeysUnavailable`] when there are no keys to decide by.
    pub(super) async fn is_usable_or_refetch(
        &self,
        fingerprint: KeyFingerprint,
        algorithm: Algorithm,
    ) -> Result<bool, Rejection> {
        // A fingerprint has no `kid` by which the key could be fetched again. The session cookie was made from a token that
        // this provider's key verified, and its issuer and signer are checked again.
        if self.by_id.is_some() || self.current().await?.contains(fingerprint, algorithm) {
            return Ok(true);
        }
        Ok(self.refetch().await?.contains(fingerprint, algorithm))
    }

    /// Returns whether the first fetch has finished, successfully or not.
    #[must_use]
    pub fn is_attempted(&self) -> bool {
        self.state.borrow().finished > 0
    }

    /// Returns whether tokens of this provider can be verified: there are keys, or the provider is asked about every
    /// token.
    #[must_use]
    pub fn can_verify(&self) -> bool {
        self.provider.keys == KeySource::Introspection || self.by_id.is_some() || self.state.borrow().has_keys()
    }

    /// Waits until there are keys. Never resolves if the provider is asked about every token and has none.
    pub async fn until_usable(&self) {
        let mut state = self.state.clone();
        if state.wait_for(FetchState::has_keys).await.is_err() {
            // Keys in the configuration do not change.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the first fetch has finished, successfully or not.
    pub async fn first_attempt(&self) {
        let mut state = self.state.clone();
        // This cannot fail: the fetching task owns the sender and lives as long as `self`. For keys in the
        // configuration the condition is true at once.
        let _ = state.wait_for(|state| state.finished > 0).await;
    }

    /// Returns the key of this `kid`, for a provider whose keys are fetched one by one; `None` for any other.
    pub(super) async fn by_id(&self, id: Option<&str>, may_fetch: bool) -> Option<Result<Arc<KeySet>, Rejection>> {
        match &self.by_id {
            Some(by_id) => Some(by_id.get(id, may_fetch).await),
            None => None,
        }
    }

    /// Returns the current key set, after waiting for the first fetch.
    ///
    /// # Errors
    /// Returns [`Rejection::KeysUnavailable`] when there is none, or it is older than `max_stale`.
    pub(super) async fn current(&self) -> Result<Arc<KeySet>, Rejection> {
        if self.state.borrow().finished == 0 {
            // Each request of the fetch has a time limit, and so has reading `jwks.token_file`; so this wait has one too.
            self.first_attempt().await;
        }
        let state = self.state.borrow();
        state.usable(self.max_stale).cloned().ok_or_else(|| self.unavailable(&state))
    }

    /// Fetches the key set at once where there is none, and waits for the result. Otherwise a sign-in would report the
    /// cause of an earlier fetch until the next retry, up to [`MAX_RETRY`] later. After a failure it does nothing for
    /// [`FIRST_RETRY`].
    pub(super) async fn fetch_if_missing(&self) {
        let mut state = self.state.clone();
        let awaited = {
            let state = state.borrow_and_update();
            let has_just_failed = state.last_failed.as_ref().is_some_and(|(at, _)| at.elapsed() < FIRST_RETRY);
            match state.next {
                _ if self.max_stale.is_none() || state.usable(self.max_stale).is_some() => return,
                Some(_) if has_just_failed => return,
                Some(_) => self.demand.notify_one(),
                // A fetch is in progress.
                None => {}
            }
            state.finished + 1
        };
        // This wait has a time limit, since the fetch has one.
        let _ = state.wait_for(|state| state.finished >= awaited).await;
    }

    /// Returns the key set after another fetch, for a token whose `kid` is not in the current set. Fetches if the
    /// cool-down allows it, or waits for the fetch that a token within the cool-down caused. It waits for two fetches at
    /// most: where one is in progress that no token caused, for its end and for the next one.
    ///
    /// # Errors
    /// [`Rejection::KeysUnavailable`] when that fetch failed.
    pub(super) async fn refetch(&self) -> Result<Arc<KeySet>, Rejection> {
        if self.max_stale.is_none() {
            return self.current().await;
        }
        let mut state = self.state.clone();
        let awaited = {
            let mut last_refetch = self.last_refetch.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let (finished, running) = {
                let state = state.borrow_and_update();
                (state.finished, state.next.is_none())
            };
            match *last_refetch {
                // Another token caused a fetch within the cool-down; its result counts for this one too.
                Some(last) if now.duration_since(last.at) < COOLDOWN => last.awaited,
                _ => {
                    // A fetch in progress may have been answered before the rotation, so the next one counts.
                    let awaited = finished + if running { 2 } else { 1 };
                    *last_refetch = Some(RefetchRequest { at: now, awaited });
                    self.demand.notify_one();
                    awaited
                }
            }
        };
        let _ = state.wait_for(|state| state.finished >= awaited).await;
        let failure = {
            let state = self.state.borrow();
            state.failure.is_some().then(|| self.unavailable(&state))
        };
        match failure {
            Some(unavailable) => Err(unavailable),
            None => self.current().await,
        }
    }

    fn unavailable(&self, state: &FetchState) -> Rejection {
        let reason =
            state.failure.clone().unwrap_or_else(|| "the last fetched keys are older than jwks.max_stale".to_owned());
        let retry_after = state.next.map_or(FIRST_RETRY, |next| next.saturating_duration_since(Instant::now()));
        Rejection::KeysUnavailable {
            provider: self.provider.name.clone(),
            reason,
            retry_after: retry_after.clamp(FIRST_RETRY, MAX_RETRY),
        }
    }
}

/// The maximum difference in seconds between the provider's clock and this machine's that is not reported. With a
/// larger one, new tokens are rejected or expired ones are accepted.
const CLOCK_TOLERANCE: i64 = 5;
/// The same for the running process, which may be busy when a response arrives.
const RUNNING_CLOCK_TOLERANCE: i64 = 30;

/// Parses the keys in files of the configuration, and returns what is wrong with them. Adds a warning to the policy for each
/// key that cannot be used while others can.
pub fn check_files(policy: &mut Policy) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, provider) in policy.providers.iter().enumerate() {
        let key = match &provider.keys {
            KeySource::Pem(_) => "pem_file",
            KeySource::Jwks(_) => "file",
            _ => continue,
        };
        let at = |message| Finding::new(format!("providers[{index}].jwks.{key}"), message);
        match KeySet::configured(&provider.keys) {
            Some(Err(error)) => found.push(at(error.to_string())),
            Some(Ok(keys)) => {
                policy
                    .warnings
                    .extend(keys.skipped().iter().map(|skipped| at(format!("a key is not used: {skipped}"))));
            }
            None => {}
        }
    }
    found
}

/// Fetches a provider's keys once, and compares its clock and the issuer that it names with the configuration, for
/// `vestibule check --online`.
pub async fn inspect(provider: &ProviderSpec, inspection: &mut Inspection) {
    if let KeySource::ById { base, .. } = &provider.keys {
        inspection.found.push(format!("each key is fetched when a token names it, at {base}/<kid>"));
        return;
    }
    let client = match fetch::client(&provider.keys) {
        Ok(client) => client,
        Err(error) => {
            inspection.problems.push(error.to_string());
            return;
        }
    };
    let keys = match KeySet::configured(&provider.keys) {
        Some(configured) => configured.map_err(|error| error.to_string()),
        None => fetch::keys(&client, provider).await.map(|fetched| fetched.keys).map_err(|error| error.to_string()),
    };
    match keys {
        Ok(keys) => {
            inspection.found.push(format!("{} usable keys, {}", keys.len(), keys.algorithms().join(", ")));
            inspection.found.extend(keys.skipped().iter().map(|skipped| format!("skipped {skipped}")));
        }
        Err(reason) => inspection.problems.push(reason),
    }
    let (KeySource::Fetched { .. }, Some(issuer)) = (&provider.keys, &provider.issuer) else { return };
    // Without a discovery document neither can be checked.
    let Ok(discovery) = fetch::inspect_discovery(&client, issuer).await else { return };
    match discovery.issuer {
        Some(name) if name != *issuer => {
            let sentence = fetch::FetchError::OtherIssuer { found: name }.to_string();
            if !inspection.problems.contains(&sentence) {
                inspection.problems.push(sentence);
            }
        }
        Some(_) => inspection.found.push("names the configured issuer in its discovery document".to_owned()),
        None => {}
    }
    match discovery.clock_offset {
        Some(offset) if offset.abs() > CLOCK_TOLERANCE => {
            let side = if offset > 0 { "ahead of" } else { "behind" };
            inspection.problems.push(format!("its clock is {} s {side} this machine's", offset.abs()));
        }
        Some(_) => inspection.found.push("its clock agrees with this machine's".to_owned()),
        None => {}
    }
}

/// The metrics of the fetches of one provider's keys.
struct FetchMetrics {
    all: Arc<Metrics>,
    provider: Label,
    gauges: Option<KeySetGauges>,
}

impl FetchMetrics {
    /// Counts a fetch; `keys` is the number of keys, or `None` if it failed, after which the keys of an earlier one may
    /// have become unusable.
    fn fetched(&self, keys: Option<usize>, is_earlier_usable: bool) {
        self.all.keys.fetched(&self.provider, keys.is_some());
        let Some(gauges) = &self.gauges else { return };
        match keys {
            Some(keys) => {
                gauges.set_keys(keys);
                gauges.set_last_success(unix_seconds());
            }
            None if !is_earlier_usable => gauges.set_keys(0),
            None => {}
        }
    }
}

/// Logs that a provider's clock differs from this machine's, once until they agree.
fn log_clock(provider: &str, former: Option<i64>, offset: Option<i64>) {
    match (former, offset) {
        (None, Some(offset)) => tracing::warn!(
            provider,
            provider_ahead_s = offset,
            "the clocks of this machine and of the provider differ, so valid tokens are refused or ended ones accepted; set both by NTP"
        ),
        (Some(_), None) => tracing::info!(provider, "the clocks of this machine and of the provider agree again"),
        _ => {}
    }
}

/// Fetches the keys at start, at each interval, after failures and on demand, until the task is aborted.
async fn keep_fetching(
    provider: Arc<ProviderSpec>,
    state: watch::Sender<FetchState>,
    demand: Arc<Notify>,
    metrics: FetchMetrics,
) {
    let KeySource::Fetched { refresh, max_stale, .. } = &provider.keys else { return };
    let client = fetch::client(&provider.keys);
    let mut retry = FIRST_RETRY;
    loop {
        state.send_modify(|state| state.next = None);
        let fetched = match &client {
            Ok(client) => fetch::keys(client, &provider).await,
            Err(error) => Err(error.clone()),
        };
        let is_earlier_usable = state.borrow().usable(Some(*max_stale)).is_some();
        metrics.fetched(fetched.as_ref().ok().map(|fetched| fetched.keys.len()), is_earlier_usable);
        let wait = if fetched.is_ok() {
            retry = FIRST_RETRY;
            *refresh
        } else {
            let wait = retry;
            retry = (retry * 2).min(MAX_RETRY);
            wait
        };
        let now = Instant::now();
        state.send_modify(|state| {
            state.finished += 1;
            state.next = Some(now + wait);
            match fetched {
                Ok(FetchedKeys { keys, clock_offset }) => {
                    if let (Some(gauges), Some(offset)) = (&metrics.gauges, clock_offset) {
                        gauges.set_clock_ahead(offset);
                    }
                    let clock_offset = clock_offset.filter(|offset| offset.abs() > RUNNING_CLOCK_TOLERANCE);
                    log_clock(&provider.name, state.clock_offset, clock_offset);
                    state.clock_offset = clock_offset;
                    for skipped in keys.skipped() {
                        tracing::debug!(provider = %provider.name, reason = %skipped, "JWKS key skipped");
                    }
                    if state.failure.take().is_some() || state.keys.is_none() {
                        tracing::info!(provider = %provider.name, keys = keys.len(), "JWKS fetched");
                    }
                    state.keys = Some(Arc::new(keys));
                    state.last_good = Some(now);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if state.failure.as_ref() != Some(&reason) {
                        tracing::warn!(provider = %provider.name, error = %reason, "JWKS fetch failed");
                    }
                    state.last_failed = Some((now, reason.clone()));
                    state.failure = Some(reason);
                }
            }
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = demand.notified() => {}
        }
    }
}
