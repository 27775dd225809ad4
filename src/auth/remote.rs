//! Remote checks: asks a provider whether a token or session is active (docs/contract.md section 5). Requests are
//! limited in time and number, callers with the same question share one request, answers are cached briefly, and a
//! provider that responds 429 is not asked until its `Retry-After` has passed.
//!
//! This module decides when to ask. `endpoint` builds each provider's request and interprets its response.

mod endpoint;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::kind::is_kind_member;
use super::token_digest::TokenDigest;
use super::{Inspection, Token, outbound};
use crate::policy::{ProviderSpec, RemoteSpec};
use crate::telemetry::{Label, Metrics, in_current_request};

/// The maximum time that a check of an open socket's session waits for a permit. A request waits for less.
const REVALIDATION_WAIT: Duration = Duration::from_secs(30);
/// Upper bound on `Retry-After` of a provider's 429.
const MAX_PAUSE: Duration = Duration::from_secs(120);
/// The pause after a 429 without `Retry-After`, and the `Retry-After` of clients after a failed check.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);
/// The maximum number of idle connections to a provider.
const IDLE_CONNECTIONS: usize = 4;

/// A check of a token or a session by its provider. An open session keeps one.
#[derive(Clone, Debug)]
pub struct RemoteCheck {
    subject: Subject,
    /// The digest that identifies the check among cached answers and pending checks.
    digest: TokenDigest,
}

#[derive(Clone, Debug)]
enum Subject {
    /// The token, and the id of the session that it names.
    Token(Arc<Token>, Option<Box<str>>),
    /// The provider session id.
    Session(Box<str>),
}

impl RemoteCheck {
    /// Makes a check of a token, given its digest and the session that it names.
    pub(super) fn token(token: &Token, digest: TokenDigest, session: Option<&str>) -> Self {
        Self { subject: Subject::Token(Arc::new(token.duplicate()), session.map(Box::from)), digest }
    }

    /// Makes an example, for tests of when a check is made.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn example() -> Self {
        Self::session("sess_example")
    }

    /// Makes a check of a provider session.
    pub(super) fn session(id: &str) -> Self {
        Self { subject: Subject::Session(id.into()), digest: TokenDigest::of_session(id) }
    }
}

/// A provider's answer.
#[derive(Clone, Debug)]
pub(super) enum RemoteAnswer {
    /// The token or session is active; with the claims in the response.
    Active(Arc<Map<String, Value>>),
    /// The token or session is not active; with the reason, for the log.
    Inactive(Arc<str>),
}

/// The reason why a provider gave no answer, and the time after which to ask again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoAnswer {
    pub(super) reason: String,
    pub(super) retry_after: Duration,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

type Outcome = Result<RemoteAnswer, NoAnswer>;

/// What waits for a check. It decides the half of `remote.concurrency` to which the check belongs, and the longest wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// A request or handshake with a token.
    Admission,
    /// A request with a browser session. Its check belongs to the half of open sessions, so that tokens which anybody can
    /// invent do not keep it waiting.
    BrowserSession,
    /// An open socket, whose session is checked again.
    Revalidation,
}

/// Makes the remote checks of one provider.
#[derive(Clone)]
pub(super) struct RemoteChecker {
    inner: Arc<CheckerInner>,
}

struct CheckerInner {
    label: Label,
    metrics: Arc<Metrics>,
    spec: Arc<RemoteSpec>,
    client: Result<reqwest::Client, String>,
    yes: Cache<TokenDigest, CachedAnswer>,
    no: Cache<TokenDigest, CachedAnswer>,
    pending: Mutex<HashMap<TokenDigest, PendingCheck>>,
    admissions: Semaphore,
    revalidations: Semaphore,
    paused_until: Mutex<Option<Instant>>,
}

/// Sends the outcome of a check to the callers that wait for it. It also tells apart two checks of the same token.
type OutcomeSender = watch::Sender<Option<Outcome>>;

/// A check that is waiting for a permit or for its response.
#[derive(Clone)]
struct PendingCheck {
    outcome: Weak<OutcomeSender>,
    /// The token that is cancelled when a request waits for a check that an open session began. Then the check may use
    /// a permit for admissions.
    admission_waits: CancellationToken,
    /// Whether the last caller has given up. The next one replaces the check by another.
    is_abandoned: bool,
}

#[derive(Clone)]
struct CachedAnswer {
    answer: RemoteAnswer,
    until: Instant,
}

impl RemoteChecker {
    /// Creates the checker of a provider that can be asked. It caches at most `cache_limit` answers of either kind.
    pub(super) fn new(provider: &Arc<ProviderSpec>, cache_limit: usize, metrics: &Arc<Metrics>) -> Option<Self> {
        let spec = Arc::clone(provider.remote.as_ref()?);
        // The cache cannot have zero entries; with one, the next answer replaces it.
        let cache_limit = cache_limit.max(1);
        let half = spec.concurrency / 2;
        let inner = CheckerInner {
            label: provider.name.as_str().into(),
            metrics: Arc::clone(metrics),
            client: outbound::client(spec.authority.as_ref(), spec.timeout, IDLE_CONNECTIONS),
            yes: Cache::new(cache_limit),
            no: Cache::new(cache_limit),
            pending: Mutex::default(),
            admissions: Semaphore::new(spec.concurrency - half),
            revalidations: Semaphore::new(half),
            paused_until: Mutex::default(),
            spec,
        };
        Some(Self { inner: Arc::new(inner) })
    }

    /// Returns the configuration, `remote`.
    pub(super) fn spec(&self) -> &RemoteSpec {
        &self.inner.spec
    }

    /// Returns whether an answer from the last `remote.cache` says that this token, or the session that it names, is not
    /// active.
    pub(super) fn reports_inactive(&self, digest: &TokenDigest, session: Option<&str>) -> bool {
        let is_inactive = |digest: &TokenDigest| matches!(self.cached(digest), Some(RemoteAnswer::Inactive(_)));
        let session = session.filter(|_| !self.spec().question.carries_token());
        is_inactive(digest) || session.is_some_and(|session| is_inactive(&RemoteCheck::session(session).digest))
    }

    /// Returns a cached answer about the token with this digest.
    pub(super) fn cached(&self, digest: &TokenDigest) -> Option<RemoteAnswer> {
        self.inner.cached(digest)
    }

    /// Asks the provider, without using the cache. For a request it ends within `remote.timeout`, including the time for a
    /// permit.
    pub(super) async fn ask(&self, check: &RemoteCheck, priority: Priority) -> Outcome {
        let (asked, mut outcome) = self.join(check, priority);
        let answer = async { outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone()) };
        let answered = match priority {
            Priority::Revalidation => Some(answer.await),
            Priority::Admission | Priority::BrowserSession => bounded(self.inner.spec.timeout, answer).await,
        };
        let Some(answered) = answered else {
            self.inner.give_up(&check.digest, &asked, outcome);
            let slow = endpoint::CheckFailed::slow(self.inner.spec.timeout);
            return Err(self.inner.no_answer(&slow.reason, DEFAULT_PAUSE));
        };
        // The task always sends an answer, unless the process stops.
        answered.unwrap_or_else(|| Err(NoAnswer { reason: "stopping".to_owned(), retry_after: DEFAULT_PAUSE }))
    }

    /// Joins the pending check with the same digest, or starts one in a task of its own, so that it does not depend on
    /// the first caller. If all callers are dropped before it has a permit, the provider is not asked, so that clients
    /// that disconnect cannot fill the queue.
    fn join(&self, check: &RemoteCheck, priority: Priority) -> (Weak<OutcomeSender>, watch::Receiver<Option<Outcome>>) {
        let mut pending = self.inner.pending();
        // An entry whose task ended without an answer is ignored.
        let asked = pending.get(&check.digest).filter(|asked| !asked.is_abandoned);
        if let Some((asked, outcome)) = asked.and_then(|asked| Some((asked, asked.outcome.upgrade()?))) {
            if priority == Priority::Admission {
                asked.admission_waits.cancel();
            }
            return (Weak::clone(&asked.outcome), outcome.subscribe());
        }
        let (send, outcome) = watch::channel(None);
        let send = Arc::new(send);
        let admission_waits = CancellationToken::new();
        let asked = Arc::downgrade(&send);
        let entry = PendingCheck {
            outcome: Weak::clone(&asked),
            admission_waits: admission_waits.clone(),
            is_abandoned: false,
        };
        pending.insert(check.digest, entry);
        let (inner, check) = (Arc::clone(&self.inner), check.clone());
        tokio::spawn(in_current_request(async move {
            let began = Instant::now();
            let Some(permit) = inner.permit_or_abandoned(&check, priority, &admission_waits, &send).await else {
                return;
            };
            let answered = match permit {
                Ok(_permit) => inner.ask_now(&check).await,
                Err(too_many) => Err(too_many),
            };
            let outcome = match &answered {
                Ok(RemoteAnswer::Active(_)) => "yes",
                Ok(RemoteAnswer::Inactive(_)) => "no",
                Err(_) => "unanswered",
            };
            let mut pending = inner.pending();
            // Otherwise it was abandoned, and a caller has asked anew. That check may have got another answer, which this
            // one must not replace.
            let is_last = remove_if_same(&mut pending, &check.digest, &Arc::downgrade(&send));
            if is_last {
                inner.cache_answer(check.digest, &answered);
            }
            drop(pending);
            inner.metrics.credentials.asked(&inner.label, outcome, began.elapsed());
            if is_last {
                send.send_replace(Some(answered));
            }
        }));
        (asked, outcome)
    }
}

impl CheckerInner {
    fn pending(&self) -> MutexGuard<'_, HashMap<TokenDigest, PendingCheck>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a caller's wait for a check, which is abandoned if nobody else waits for it. Then it may go on until a time
    /// limit of its own, so the next caller must not join it: its result is likely a failure.
    fn give_up(&self, digest: &TokenDigest, asked: &Weak<OutcomeSender>, outcome: watch::Receiver<Option<Outcome>>) {
        // Callers join under this lock, so none can join between the count and the mark.
        let mut pending = self.pending();
        drop(outcome);
        let entry = pending.get_mut(digest).filter(|entry| entry.outcome.ptr_eq(asked));
        if let Some(entry) = entry
            && asked.upgrade().is_some_and(|outcome| outcome.receiver_count() == 0)
        {
            entry.is_abandoned = true;
        }
    }

    fn cached(&self, digest: &TokenDigest) -> Option<RemoteAnswer> {
        let now = Instant::now();
        // An answer removes the opposite one, so at most one of them is cached.
        [&self.no, &self.yes]
            .into_iter()
            .filter_map(|kept| kept.get(digest))
            .find(|kept| kept.until > now)
            .map(|kept| kept.answer)
    }

    fn cache_answer(&self, digest: TokenDigest, outcome: &Outcome) {
        let Ok(answer) = outcome else { return };
        let until = Instant::now() + self.spec.cache;
        match answer {
            // In this case the answer is the token's identity, which is cached as a verified token.
            RemoteAnswer::Active(_) if self.spec.verifies_opaque_tokens => {
                self.no.remove(&digest);
            }
            RemoteAnswer::Active(claims) => {
                let compared =
                    |(name, _): &(&String, &Value)| matches!(name.as_str(), "sub" | "iss") || is_kind_member(name);
                let claims = claims.iter().filter(compared).map(|(name, value)| (name.clone(), value.clone()));
                self.yes
                    .insert(digest, CachedAnswer { answer: RemoteAnswer::Active(Arc::new(claims.collect())), until });
                self.no.remove(&digest);
            }
            RemoteAnswer::Inactive(_) => {
                self.no.insert(digest, CachedAnswer { answer: answer.clone(), until });
                self.yes.remove(&digest);
            }
        }
    }

    /// Waits for a permit. Returns `None` when no caller is waiting any more; then the check is no longer pending.
    async fn permit_or_abandoned(
        &self,
        check: &RemoteCheck,
        priority: Priority,
        admission_waits: &CancellationToken,
        send: &Arc<OutcomeSender>,
    ) -> Option<Result<SemaphorePermit<'_>, NoAnswer>> {
        let permit = self.permit(priority, admission_waits);
        tokio::pin!(permit);
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => return Some(permit),
                () = send.closed() => {}
            }
            // Callers join under this lock, so none can join between the check and the removal.
            let mut pending = self.pending();
            if send.receiver_count() == 0 {
                remove_if_same(&mut pending, &check.digest, &Arc::downgrade(send));
                return None;
            }
        }
    }

    async fn permit(
        &self,
        priority: Priority,
        admission_waits: &CancellationToken,
    ) -> Result<SemaphorePermit<'_>, NoAnswer> {
        let permit = match priority {
            Priority::Admission => bounded(self.spec.timeout, self.admissions.acquire()).await,
            Priority::BrowserSession | Priority::Revalidation => {
                let as_admission = async {
                    admission_waits.cancelled().await;
                    self.admissions.acquire().await
                };
                let permit = async {
                    tokio::select! {
                        permit = self.revalidations.acquire() => permit,
                        permit = as_admission => permit,
                    }
                };
                bounded(REVALIDATION_WAIT, permit).await
            }
        };
        match permit {
            Some(Ok(permit)) => Ok(permit),
            _ => Err(self.no_answer("too many remote checks at once (remote.concurrency)", DEFAULT_PAUSE)),
        }
    }

    async fn ask_now(&self, check: &RemoteCheck) -> Outcome {
        if let Some(pause) = self.pause_left() {
            return Err(self.no_answer("the provider limits requests (429)", pause));
        }
        let client = match &self.client {
            Ok(client) => client,
            Err(reason) => return Err(self.no_answer(reason, MAX_PAUSE)),
        };
        // The HTTP client has the same time limit; this one does not depend on it.
        let asked = bounded(self.spec.timeout, endpoint::ask(client, &self.spec, &check.subject)).await;
        match asked.unwrap_or_else(|| Err(endpoint::CheckFailed::slow(self.spec.timeout))) {
            Ok(answer) => Ok(answer),
            Err(failed) => {
                if let Some(pause) = failed.pause {
                    *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + pause);
                    return Err(self.no_answer(&failed.reason, pause));
                }
                Err(self.no_answer(&failed.reason, DEFAULT_PAUSE))
            }
        }
    }

    /// Returns the remaining time of a pause that the provider demanded.
    fn pause_left(&self) -> Option<Duration> {
        let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.and_then(|until| until.checked_duration_since(Instant::now())).filter(|pause| !pause.is_zero())
    }

    fn no_answer(&self, reason: &str, retry_after: Duration) -> NoAnswer {
        tracing::debug!(provider = %self.label, error = reason, "remote check failed");
        NoAnswer { reason: reason.to_owned(), retry_after }
    }
}

/// Removes a check from the pending ones, and returns whether it was one. A later check with the same digest stays.
fn remove_if_same(
    pending: &mut HashMap<TokenDigest, PendingCheck>,
    digest: &TokenDigest,
    asked: &Weak<OutcomeSender>,
) -> bool {
    let is_pending = pending.get(digest).is_some_and(|entry| entry.outcome.ptr_eq(asked));
    if is_pending {
        pending.remove(digest);
    }
    is_pending
}

/// Runs a future with a time limit; `None` when it is exceeded.
async fn bounded<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}

/// Asks about a token or session that does not exist, which shows whether the provider accepts the proxy's credential,
/// for `vestibule check --online`.
pub async fn inspect(provider: &Arc<ProviderSpec>, inspection: &mut Inspection) {
    let Some(remote) = RemoteChecker::new(provider, 1, &Arc::default()) else { return };
    let nobody = Token::parse("vestibule-check", 64).map(Arc::new);
    let session = RemoteCheck::session("sess_vestibule_check");
    let check = match nobody {
        Ok(nobody) if remote.spec().question.carries_token() => {
            RemoteCheck::token(&nobody, TokenDigest::of(&nobody), None)
        }
        _ => session,
    };
    match remote.ask(&check, Priority::Admission).await {
        Ok(RemoteAnswer::Inactive(_)) => inspection.found.push("answers remote checks".to_owned()),
        Ok(RemoteAnswer::Active(_)) => inspection.problems.push("confirms a token that does not exist".to_owned()),
        Err(unanswered) => inspection.problems.push(format!("remote check: {unanswered}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_request_waits_longer_for_a_permit_than_for_an_answer() {
        let yaml = "upstream: http://127.0.0.1:1\norigins: [\"https://a.example\"]\nproviders:\n  - { preset: clerk, issuer: \"https://clerk.example.com\", remote: { mode: also, secret_key: sk_test_x, timeout: 2s } }\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let checker = RemoteChecker::new(&policy.providers[0], 1, &Arc::default()).expect("asks");
        let taken = |permits: &Semaphore| permits.forget_permits(Semaphore::MAX_PERMITS);
        assert!(taken(&checker.inner.admissions) > 0 && taken(&checker.inner.revalidations) > 0);
        for (priority, longest) in [
            (Priority::Admission, Duration::from_secs(2)),
            (Priority::BrowserSession, Duration::from_secs(2)),
            (Priority::Revalidation, REVALIDATION_WAIT),
        ] {
            let began = Instant::now();
            let answer = checker.ask(&RemoteCheck::session("sess_1"), priority).await;
            assert!(
                answer.is_err() && began.elapsed() <= longest + Duration::from_millis(100),
                "{priority:?}: {:?}",
                began.elapsed()
            );
        }
    }
}
