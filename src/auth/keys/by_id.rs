//! Keys that are fetched one by one, by the `kid` of a token. Load balancers of AWS publish no key set; each of their keys
//! is a PEM file of its own, under its `kid`.
//!
//! A `kid` is read from a token that is not verified yet, so it is a UUID before it is put into a URL, and unknown ones
//! cause few requests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};

use super::fetch::{self, FetchError, TIME};
use super::set::{KeyFingerprint, KeySet};
use crate::auth::Rejection;
use crate::policy::{KeySource, ProviderSpec, is_uuid};
use crate::telemetry::{Label, Metrics};
use jsonwebtoken::Algorithm;

/// The maximum number of keys that are kept. A load balancer has one or two at a time.
const MAX_KEYS: usize = 8;
/// The maximum number of `kid`s without a key that are remembered.
const MAX_ABSENT: usize = 64;
/// The time for which a `kid` without a key is remembered, and in which at most [`MAX_FETCHES`] keys are fetched.
const WINDOW: Duration = Duration::from_secs(30);
/// The maximum number of fetches in a [`WINDOW`].
const MAX_FETCHES: u32 = 10;

/// The keys of one provider by their `kid`.
#[derive(Debug)]
pub(super) struct KeysById {
    provider: Arc<ProviderSpec>,
    client: Result<reqwest::Client, FetchError>,
    state: Mutex<State>,
    /// Held while a key is fetched, so that callers with the same `kid` share one request.
    fetching: AsyncMutex<()>,
    metrics: (Label, Arc<Metrics>),
}

#[derive(Debug)]
struct State {
    /// The keys, the one that was fetched first in front.
    known: VecDeque<Known>,
    absent: VecDeque<(String, Instant)>,
    window_began: Instant,
    /// The number of fetches since `window_began`.
    fetches: u32,
    last_failed: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Known {
    id: String,
    set: Arc<KeySet>,
    fetched: Instant,
}

/// What is known of a `kid` without a fetch.
enum Cached {
    Key(Arc<KeySet>),
    Absent,
    Unknown,
}

impl KeysById {
    pub(super) fn new(provider: Arc<ProviderSpec>, metrics: (Label, Arc<Metrics>)) -> Self {
        let client = fetch::client(&provider.keys);
        let state = State {
            known: VecDeque::new(),
            absent: VecDeque::new(),
            window_began: Instant::now(),
            fetches: 0,
            last_failed: None,
        };
        Self { provider, client, state: Mutex::new(state), fetching: AsyncMutex::new(()), metrics }
    }

    /// Returns the key with this `kid`, after fetching it if that is allowed and necessary.
    ///
    /// # Errors
    /// [`Rejection::UnknownKey`] when there is none or it may not be fetched, [`Rejection::KeysUnavailable`] when the
    /// fetch failed or too many were made.
    pub(super) async fn get(&self, id: Option<&str>, may_fetch: bool) -> Result<Arc<KeySet>, Rejection> {
        let unknown = || Rejection::UnknownKey(id.map(str::to_owned));
        let id = id.filter(|id| is_uuid(id)).ok_or_else(unknown)?;
        match self.cached(id) {
            Cached::Key(set) => return Ok(set),
            Cached::Unknown if may_fetch => {}
            Cached::Absent | Cached::Unknown => return Err(unknown()),
        }
        let busy = |_| self.unavailable("other keys are being fetched".to_owned(), TIME);
        let _fetching = timeout(TIME, self.fetching.lock()).await.map_err(busy)?;
        // Another caller may have fetched it meanwhile.
        match self.cached(id) {
            Cached::Key(set) => return Ok(set),
            Cached::Absent => return Err(unknown()),
            Cached::Unknown => {}
        }
        self.count_fetch()?;
        let (KeySource::ById { base, .. }, Ok(client)) = (&self.provider.keys, &self.client) else {
            let reason = self.client.as_ref().err().map_or_else(String::new, ToString::to_string);
            return Err(self.unavailable(reason, WINDOW));
        };
        let fetched = fetch::key_by_id(client, base, id).await;
        self.metrics.1.keys.fetched(&self.metrics.0, matches!(fetched, Ok(Some(_))));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match fetched {
            Ok(Some(set)) => {
                let set = Arc::new(set);
                state.known.retain(|known| known.id != id);
                if state.known.len() >= MAX_KEYS {
                    state.known.pop_front();
                }
                state.known.push_back(Known { id: id.to_owned(), set: Arc::clone(&set), fetched: now });
                tracing::info!(provider = %self.provider.name, kid = id, "key fetched");
                Ok(set)
            }
            Ok(None) => {
                if state.absent.len() >= MAX_ABSENT {
                    state.absent.pop_front();
                }
                state.absent.push_back((id.to_owned(), now));
                Err(unknown())
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(provider = %self.provider.name, error = %reason, "key fetch failed");
                state.last_failed = Some((now, reason.clone()));
                Err(self.unavailable(reason, TIME))
            }
        }
    }

    fn cached(&self, id: &str) -> Cached {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.known.iter().find(|known| known.id == id && self.is_fresh(known)) {
            return Cached::Key(Arc::clone(&known.set));
        }
        let is_absent = state.absent.iter().any(|(absent, at)| absent == id && at.elapsed() < WINDOW);
        if is_absent { Cached::Absent } else { Cached::Unknown }
    }

    fn is_fresh(&self, known: &Known) -> bool {
        matches!(&self.provider.keys, KeySource::ById { max_stale, .. } if known.fetched.elapsed() < *max_stale)
    }

    fn count_fetch(&self) -> Result<(), Rejection> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = state.window_began.elapsed();
        if spent >= WINDOW {
            (state.window_began, state.fetches) = (Instant::now(), 0);
        } else if state.fetches >= MAX_FETCHES {
            return Err(
                self.unavailable("too many unknown keys were asked for".to_owned(), WINDOW.saturating_sub(spent))
            );
        }
        state.fetches += 1;
        Ok(())
    }

    fn unavailable(&self, reason: String, retry_after: Duration) -> Rejection {
        let retry_after = retry_after.max(Duration::from_secs(1));
        Rejection::KeysUnavailable { provider: self.provider.name.clone(), reason, retry_after }
    }

    /// Returns whether a key that is still kept would verify a token now.
    pub(super) fn is_usable(&self, fingerprint: KeyFingerprint, algorithm: Algorithm) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known.iter().any(|known| self.is_fresh(known) && known.set.contains(fingerprint, algorithm))
    }

    /// The number of keys that are kept.
    pub(super) fn len(&self) -> usize {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known.len()
    }

    /// The time since the last failed fetch, and its error.
    pub(super) fn last_failed(&self) -> Option<(Duration, String)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_failed.as_ref().map(|(at, reason)| (at.elapsed(), reason.clone()))
    }
}
