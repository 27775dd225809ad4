//! The keys of one provider: had at start, refreshed before they go stale, fetched at once for an
//! unknown `kid` but at most once per cool-down, and kept while the provider is down.
//!
//! One task per provider does all fetching, so there is never more than one request under way
//! however many callers wait. Reading a set is `set`'s, the bounded GET is `fetch`'s.

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
use crate::policy::{KeySource, ProviderSpec};
use crate::telemetry::{Label, Metrics};

pub use set::KeyFingerprint;
pub(super) use set::{Candidates, KeySet};

/// Unknown `kid`s cause at most one fetch per provider in this time; the start-up fetch and
/// background refreshes do not count, so a rotation in the first half minute locks nobody out.
const COOLDOWN: Duration = Duration::from_secs(30);
/// A failed fetch is tried again after this, doubling up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What the last fetches came to.
#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    last_good: Option<Instant>,
    last_failed: Option<(Instant, String)>,
    /// The last fetch failed, and why.
    failure: Option<String>,
    /// Counts finished fetches; a waiter waits for it to grow.
    finished: u64,
    /// When the task will try next by itself.
    next: Option<Instant>,
}

/// An unknown `kid` that caused a fetch: when, and which fetch answers it.
#[derive(Clone, Copy, Debug)]
struct Claim {
    at: Instant,
    awaited: u64,
}

/// How a provider's keys are, for the start and for `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHealth {
    /// Whether the first attempt has ended.
    pub attempted: bool,
    /// How many keys are usable.
    pub keys: usize,
    /// Their algorithms, for a sentence.
    pub algorithms: Vec<String>,
    /// Why the last fetch failed.
    pub failure: Option<String>,
    /// How long ago the last good one was.
    pub good: Option<Duration>,
    /// How long ago the last failed one was, and why it was, also where a good one came after it.
    pub failed: Option<(Duration, String)>,
}

/// The keys of one provider.
#[derive(Debug)]
pub struct ProviderKeys {
    provider: Arc<ProviderSpec>,
    state: watch::Receiver<State>,
    /// When an unknown `kid` last caused a fetch.
    claim: Mutex<Option<Claim>>,
    demand: Arc<Notify>,
    max_stale: Option<Duration>,
    task: Option<AbortHandle>,
}

impl Drop for ProviderKeys {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl ProviderKeys {
    /// Reads the keys the policy holds, or starts fetching them. Must be called inside a runtime.
    #[must_use]
    pub fn start(provider: Arc<ProviderSpec>, metrics: Arc<Metrics>) -> Self {
        let label: Label = provider.name.as_str().into();
        if provider.keys != KeySource::Asked {
            metrics.credentials.introduce_keys(&label);
        }
        let demand = Arc::new(Notify::new());
        let (send, state) = watch::channel(State::default());
        let mut task = None;
        let mut max_stale = None;
        match KeySet::given(&provider.keys) {
            Some(Ok(keys)) => {
                metrics.credentials.keys_at_hand(&label, keys.len());
                let (keys, last_good) = (Some(Arc::new(keys)), Some(Instant::now()));
                send.send_replace(State { keys, last_good, finished: 1, ..State::default() });
            }
            Some(Err(reason)) => {
                send.send_replace(State { failure: Some(reason.to_string()), finished: 1, ..State::default() });
            }
            None => {
                if let KeySource::Fetched { max_stale: stale, .. } = &provider.keys {
                    max_stale = Some(*stale);
                }
                let fetching = keep_fetching(Arc::clone(&provider), send, Arc::clone(&demand), (label, metrics));
                task = Some(tokio::spawn(fetching).abort_handle());
            }
        }
        Self { provider, state, claim: Mutex::new(None), demand, max_stale, task }
    }

    /// How the keys are now.
    #[must_use]
    pub fn health(&self) -> KeyHealth {
        let state = self.state.borrow();
        KeyHealth {
            attempted: state.finished > 0,
            keys: state.keys.as_ref().map_or(0, |keys| keys.len()),
            algorithms: state.keys.as_ref().map_or_else(Vec::new, |keys| keys.algorithms()),
            failure: state.failure.clone(),
            good: state.last_good.map(|good| good.elapsed()),
            failed: state.last_failed.as_ref().map(|(at, reason)| (at.elapsed(), reason.clone())),
        }
    }

    /// Whether a key that once verified a token still stands for this provider. While no set is at hand
    /// nobody has withdrawn anything.
    #[must_use]
    pub fn is_current(&self, print: KeyFingerprint, algorithm: Algorithm) -> bool {
        self.state.borrow().keys.as_ref().is_none_or(|keys| keys.holds(print, algorithm))
    }

    /// Whether this key would verify a token now: it is in the set in force, and that is not too old.
    pub(super) fn verifies_with(&self, print: KeyFingerprint, algorithm: Algorithm) -> bool {
        self.in_force(&self.state.borrow()).is_some_and(|keys| keys.holds(print, algorithm))
    }

    /// Whether this key would verify a token now, for what was made elsewhere, where a newer set may have been at hand:
    /// waits for keys as a token would, and asks the provider again as for an unknown `kid`.
    ///
    /// # Errors
    /// [`Rejection::KeysUnavailable`] when nobody can say.
    pub(super) async fn still_verifies_with(
        &self,
        print: KeyFingerprint,
        algorithm: Algorithm,
    ) -> Result<bool, Rejection> {
        if self.current().await?.holds(print, algorithm) {
            return Ok(true);
        }
        Ok(self.look_again().await?.holds(print, algorithm))
    }

    /// The set in force: the last good one, unless it is older than `max_stale`.
    fn in_force<'a>(&self, state: &'a State) -> Option<&'a Arc<KeySet>> {
        let stale = |good: Instant| self.max_stale.is_some_and(|limit| good.elapsed() > limit);
        state.keys.as_ref().filter(|_| state.last_good.is_some_and(|good| !stale(good)))
    }

    /// Waits until the first attempt has ended.
    pub async fn first_attempt(&self) {
        let mut state = self.state.clone();
        // The sender lives in the fetching task, which lives as long as `self`; for given keys the
        // condition holds at once.
        let _ = state.wait_for(|state| state.finished > 0).await;
    }

    /// The set in force.
    ///
    /// # Errors
    /// [`Rejection::KeysUnavailable`] when there is none, or it is older than `max_stale`.
    pub(super) async fn current(&self) -> Result<Arc<KeySet>, Rejection> {
        if self.state.borrow().finished == 0 {
            // Bounded by the fetch's own time limit.
            self.first_attempt().await;
        }
        let state = self.state.borrow();
        self.in_force(&state).cloned().ok_or_else(|| self.unavailable(&state))
    }

    /// Called when no key of the current set has the token's `kid`: fetches once if the cool-down
    /// allows it, or waits for the fetch under way.
    ///
    /// # Errors
    /// [`Rejection::KeysUnavailable`] when the last fetch failed; otherwise the caller looks again,
    /// and what is still unknown is refused.
    pub(super) async fn look_again(&self) -> Result<Arc<KeySet>, Rejection> {
        if self.max_stale.is_none() {
            return self.current().await;
        }
        let mut state = self.state.clone();
        let awaited = {
            let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let (finished, running) = {
                let state = state.borrow_and_update();
                (state.finished, state.next.is_none())
            };
            match *claim {
                // Someone's fetch, finished or under way: its answer is everyone's.
                Some(claim) if now.duration_since(claim.at) < COOLDOWN => claim.awaited,
                _ => {
                    // A fetch that is running may have asked before the rotation: wait for the next.
                    let awaited = finished + if running { 2 } else { 1 };
                    *claim = Some(Claim { at: now, awaited });
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

    fn unavailable(&self, state: &State) -> Rejection {
        let reason =
            state.failure.clone().unwrap_or_else(|| "the last good keys are older than jwks.max_stale".to_owned());
        let retry_after = state.next.map_or(FIRST_RETRY, |next| next.saturating_duration_since(Instant::now()));
        Rejection::KeysUnavailable {
            provider: self.provider.name.clone(),
            reason,
            retry_after: retry_after.clamp(FIRST_RETRY, LONGEST_RETRY),
        }
    }
}

/// A clock further off than this has tokens refused that were just issued, or accepted that have ended.
const CLOCK: i64 = 5;

/// Asks a provider once for what it would be asked at start, and looks at its clock and its name; for
/// `vestibule check --online`.
pub async fn inspect(provider: &ProviderSpec, inspection: &mut Inspection) {
    let client = match fetch::client(&provider.keys) {
        Ok(client) => client,
        Err(error) => {
            inspection.problems.push(error.to_string());
            return;
        }
    };
    let keys = match KeySet::given(&provider.keys) {
        Some(given) => given.map_err(|error| error.to_string()),
        None => fetch::keys(&client, provider).await.map_err(|error| error.to_string()),
    };
    match keys {
        Ok(keys) => {
            inspection.found.push(format!("{} usable keys, {}", keys.len(), keys.algorithms().join(", ")));
            inspection.found.extend(keys.skipped().iter().map(|skipped| format!("skipped {skipped}")));
        }
        Err(reason) => inspection.problems.push(reason),
    }
    let (KeySource::Fetched { .. }, Some(issuer)) = (&provider.keys, &provider.issuer) else { return };
    // Without a discovery document there is nothing more to learn.
    let Ok(look) = fetch::look(&client, issuer).await else { return };
    match look.calls_itself {
        Some(name) if name != *issuer => {
            let sentence = fetch::FetchError::OtherIssuer { found: name }.to_string();
            if !inspection.problems.contains(&sentence) {
                inspection.problems.push(sentence);
            }
        }
        Some(_) => inspection.found.push("calls itself by the configured issuer".to_owned()),
        None => {}
    }
    match look.clock {
        Some(lead) if lead.abs() > CLOCK => {
            let side = if lead > 0 { "ahead of" } else { "behind" };
            inspection.problems.push(format!("its clock is {} s {side} ours", lead.abs()));
        }
        Some(_) => inspection.found.push("its clock agrees with ours".to_owned()),
        None => {}
    }
}

async fn keep_fetching(
    provider: Arc<ProviderSpec>,
    state: watch::Sender<State>,
    demand: Arc<Notify>,
    (label, metrics): (Label, Arc<Metrics>),
) {
    let KeySource::Fetched { refresh, .. } = &provider.keys else { return };
    let client = fetch::client(&provider.keys);
    let mut retry = FIRST_RETRY;
    loop {
        // `next: None` says that a fetch is running.
        state.send_modify(|state| state.next = None);
        let fetched = match &client {
            Ok(client) => fetch::keys(client, &provider).await,
            Err(error) => Err(error.clone()),
        };
        metrics.credentials.keys_fetched(&label, fetched.as_ref().ok().map(KeySet::len), unix_seconds());
        let wait = if fetched.is_ok() {
            retry = FIRST_RETRY;
            *refresh
        } else {
            let wait = retry;
            retry = (retry * 2).min(LONGEST_RETRY);
            wait
        };
        let now = Instant::now();
        state.send_modify(|state| {
            state.finished += 1;
            state.next = Some(now + wait);
            match fetched {
                Ok(keys) => {
                    for skipped in keys.skipped() {
                        tracing::debug!(provider = %provider.name, "a key of the set was skipped: {skipped}");
                    }
                    if state.failure.take().is_some() || state.keys.is_none() {
                        tracing::info!(provider = %provider.name, keys = keys.len(), "keys fetched");
                    }
                    state.keys = Some(Arc::new(keys));
                    state.last_good = Some(now);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if state.failure.as_ref() != Some(&reason) {
                        tracing::warn!(provider = %provider.name, "keys could not be fetched: {reason}");
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
