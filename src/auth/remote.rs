//! Asking a provider about a token or a session (docs/contract.md section 5): bounded in time and number, one
//! question however many wait for it, answers kept apart (yes, no) and never for long, and a provider that says
//! it has had enough is left alone for as long as it asks.
//!
//! Owns when to ask. How each provider is asked, and what its answer means, is `question`'s.

mod question;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::digest;
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::cache::Digest;
use super::kind::is_kind_member;
use super::{Inspection, KeyFingerprint, Token, outbound};
use crate::policy::{ProviderSpec, RemoteQuestion, RemoteSpec};
use crate::telemetry::{Label, Metrics};

/// Open sockets wait this long for their turn: a slow answer is better than none.
const REVALIDATION_WAIT: Duration = Duration::from_secs(30);
/// What a provider's 429 may ask of us at most, and what it asks when it does not say.
const LONGEST_REST: Duration = Duration::from_secs(120);
const USUAL_REST: Duration = Duration::from_secs(5);
/// Unused connections to a provider.
const IDLE_CONNECTIONS: usize = 4;

/// How a provider is asked, for what it has vouched for: another endpoint is another's word.
pub(super) fn asked_how(spec: &RemoteSpec) -> KeyFingerprint {
    let (how, url) = match &spec.question {
        RemoteQuestion::Introspection { url, .. } => (&b"introspection"[..], url),
        RemoteQuestion::Clerk { base, .. } => (&b"clerk"[..], base),
        RemoteQuestion::Supabase { base, .. } => (&b"supabase"[..], base),
    };
    KeyFingerprint::of(&[how, url.as_str().as_bytes()])
}

/// What a provider is asked about; keeps what the question needs for as long as a socket lives.
#[derive(Clone, Debug)]
pub struct RemoteCheck {
    about: About,
    /// By which it is known among those under way.
    digest: Digest,
}

#[derive(Clone, Debug)]
enum About {
    /// The token, and the session it names.
    Token(Arc<Token>, Option<Box<str>>),
    /// The provider's session.
    Session(Box<str>),
}

impl RemoteCheck {
    /// About a token whose digest is known, and the session it names.
    pub(super) fn token(token: &Token, digest: Digest, session: Option<&str>) -> Self {
        Self { about: About::Token(Arc::new(token.duplicate()), session.map(Box::from)), digest }
    }

    /// A question, for tests of when it is asked.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self::session("sess_example")
    }

    /// About a session of the provider's.
    pub(super) fn session(id: &str) -> Self {
        // No token's digest: tokens have no space in them.
        let digest = digest::digest(&digest::SHA256, format!("session {id}").as_bytes());
        Self { about: About::Session(id.into()), digest: digest.as_ref().try_into().unwrap_or_default() }
    }
}

/// What a provider says.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Good, and what it says of it.
    Yes(Arc<Map<String, Value>>),
    /// Not, and why, for the log.
    No(Arc<str>),
}

/// Nobody can say now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    pub(super) reason: String,
    pub(super) retry_after: Duration,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

type Outcome = Result<Answer, Unanswered>;

/// Who asks: a request at the door, or a socket that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    Admission,
    Revalidation,
}

/// The questions to one provider.
#[derive(Clone)]
pub(super) struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    label: Label,
    metrics: Arc<Metrics>,
    spec: Arc<RemoteSpec>,
    client: Result<reqwest::Client, String>,
    yes: Cache<Digest, Kept>,
    no: Cache<Digest, Kept>,
    under_way: Mutex<HashMap<Digest, UnderWay>>,
    admissions: Semaphore,
    revalidations: Semaphore,
    resting_until: Mutex<Option<Instant>>,
}

/// A question that someone has asked already.
#[derive(Clone)]
struct UnderWay {
    outcome: Weak<watch::Sender<Option<Outcome>>>,
    /// An admission waits for it too, so it need not wait for its turn among the revalidations.
    at_the_door: CancellationToken,
}

#[derive(Clone)]
struct Kept {
    answer: Answer,
    until: Instant,
}

impl Remote {
    /// For a provider that can be asked; keeps at most `remembered` answers of either kind.
    pub(super) fn new(provider: &Arc<ProviderSpec>, remembered: usize, metrics: &Arc<Metrics>) -> Option<Self> {
        let spec = Arc::clone(provider.remote.as_ref()?);
        // A cache of nothing is one entry, which the next answer replaces.
        let remembered = remembered.max(1);
        let half = spec.concurrency / 2;
        let inner = Inner {
            label: provider.name.as_str().into(),
            metrics: Arc::clone(metrics),
            client: outbound::client(spec.authority.as_ref(), spec.timeout, IDLE_CONNECTIONS),
            yes: Cache::new(remembered),
            no: Cache::new(remembered),
            under_way: Mutex::default(),
            admissions: Semaphore::new(spec.concurrency - half),
            revalidations: Semaphore::new(half),
            resting_until: Mutex::default(),
            spec,
        };
        Some(Self { inner: Arc::new(inner) })
    }

    pub(super) fn spec(&self) -> &RemoteSpec {
        &self.inner.spec
    }

    /// An answer about the token of this digest that is still good.
    pub(super) fn at_hand(&self, digest: &Digest) -> Option<Answer> {
        self.inner.kept(digest)
    }

    /// Asks, whatever is at hand. An admission has its answer within `timeout`, its turn included.
    pub(super) async fn ask(&self, question: &RemoteCheck, priority: Priority) -> Outcome {
        let mut outcome = self.join(question, priority);
        let answer = outcome.wait_for(Option::is_some);
        let answered = match priority {
            Priority::Revalidation => Some(answer.await),
            Priority::Admission => bounded(self.inner.spec.timeout, answer).await,
        };
        let Some(answered) = answered else {
            let slow = question::Failed::slow(self.inner.spec.timeout);
            return Err(self.inner.unanswered(&slow.reason, USUAL_REST));
        };
        // The task that answers cannot go without answering, unless the process does.
        let answered = answered.ok().and_then(|outcome| outcome.clone());
        answered.unwrap_or_else(|| Err(Unanswered { reason: "stopping".to_owned(), retry_after: USUAL_REST }))
    }

    /// The question under way, or a new one. It is a task of its own: whoever asked first may leave. When all of them
    /// have left before its turn has come it is not asked, so that callers who do not wait cannot pile questions up.
    fn join(&self, question: &RemoteCheck, priority: Priority) -> watch::Receiver<Option<Outcome>> {
        let mut under_way = self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose task is gone without an answer is nobody's any more.
        let asked = under_way.get(&question.digest);
        if let Some((asked, outcome)) = asked.and_then(|asked| Some((asked, asked.outcome.upgrade()?))) {
            if priority == Priority::Admission {
                asked.at_the_door.cancel();
            }
            return outcome.subscribe();
        }
        let (send, outcome) = watch::channel(None);
        let send = Arc::new(send);
        let at_the_door = CancellationToken::new();
        let asked = UnderWay { outcome: Arc::downgrade(&send), at_the_door: at_the_door.clone() };
        under_way.insert(question.digest, asked);
        let (inner, question) = (Arc::clone(&self.inner), question.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let Some(turn) = inner.turn_or_nobody(&question, priority, &at_the_door, &send).await else { return };
            let answered = match turn {
                Ok(_turn) => inner.answered(&question).await,
                Err(too_many) => Err(too_many),
            };
            let outcome = match &answered {
                Ok(Answer::Yes(_)) => "yes",
                Ok(Answer::No(_)) => "no",
                Err(_) => "unanswered",
            };
            inner.metrics.credentials.asked(&inner.label, outcome, began.elapsed());
            inner.keep(question.digest, &answered);
            // Kept first, so that nobody asks anew in between.
            inner.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&question.digest);
            send.send_replace(Some(answered));
        });
        outcome
    }
}

impl Inner {
    fn kept(&self, digest: &Digest) -> Option<Answer> {
        let now = Instant::now();
        // A later no replaces an earlier yes, so at most one of them holds.
        [&self.no, &self.yes]
            .into_iter()
            .filter_map(|kept| kept.get(digest))
            .find(|kept| kept.until > now)
            .map(|kept| kept.answer)
    }

    fn keep(&self, digest: Digest, outcome: &Outcome) {
        let Ok(answer) = outcome else { return };
        let until = Instant::now() + self.spec.cache;
        match answer {
            // What stands for a token is remembered as a verified token, claims and all.
            Answer::Yes(_) if self.spec.instead => {}
            Answer::Yes(claims) => {
                let compared =
                    |(name, _): &(&String, &Value)| matches!(name.as_str(), "sub" | "iss") || is_kind_member(name);
                let claims = claims.iter().filter(compared).map(|(name, value)| (name.clone(), value.clone()));
                self.yes.insert(digest, Kept { answer: Answer::Yes(Arc::new(claims.collect())), until });
                self.no.remove(&digest);
            }
            Answer::No(_) => {
                self.no.insert(digest, Kept { answer: answer.clone(), until });
                self.yes.remove(&digest);
            }
        }
    }

    /// Waits for the turn of a question; `None` when nobody waits for the answer any more, and then it is no longer under way.
    async fn turn_or_nobody(
        &self,
        question: &RemoteCheck,
        priority: Priority,
        at_the_door: &CancellationToken,
        send: &watch::Sender<Option<Outcome>>,
    ) -> Option<Result<SemaphorePermit<'_>, Unanswered>> {
        let turn = self.turn(priority, at_the_door);
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                turn = &mut turn => return Some(turn),
                () = send.closed() => {}
            }
            // New askers join under this lock, so none can come between.
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            if send.receiver_count() == 0 {
                under_way.remove(&question.digest);
                return None;
            }
        }
    }

    async fn turn(
        &self,
        priority: Priority,
        at_the_door: &CancellationToken,
    ) -> Result<SemaphorePermit<'_>, Unanswered> {
        let turn = match priority {
            Priority::Admission => bounded(self.spec.timeout, self.admissions.acquire()).await,
            Priority::Revalidation => {
                let hurried = async {
                    at_the_door.cancelled().await;
                    self.admissions.acquire().await
                };
                let turn = async {
                    tokio::select! {
                        turn = self.revalidations.acquire() => turn,
                        turn = hurried => turn,
                    }
                };
                bounded(REVALIDATION_WAIT, turn).await
            }
        };
        match turn {
            Some(Ok(turn)) => Ok(turn),
            _ => Err(self.unanswered("too many questions are under way (remote.concurrency)", USUAL_REST)),
        }
    }

    async fn answered(&self, question: &RemoteCheck) -> Outcome {
        if let Some(rest) = self.rest() {
            return Err(self.unanswered("the provider asked for fewer questions (429)", rest));
        }
        let client = match &self.client {
            Ok(client) => client,
            Err(reason) => return Err(self.unanswered(reason, LONGEST_REST)),
        };
        // The client's own time limit holds as well; this one holds whatever it does.
        let asked = bounded(self.spec.timeout, question::ask(client, &self.spec, &question.about)).await;
        match asked.unwrap_or_else(|| Err(question::Failed::slow(self.spec.timeout))) {
            Ok(answer) => Ok(answer),
            Err(failed) => {
                if let Some(rest) = failed.rest {
                    *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + rest);
                    return Err(self.unanswered(&failed.reason, rest));
                }
                Err(self.unanswered(&failed.reason, USUAL_REST))
            }
        }
    }

    /// How long the provider still wants to be left alone.
    fn rest(&self) -> Option<Duration> {
        let until = *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.and_then(|until| until.checked_duration_since(Instant::now())).filter(|rest| !rest.is_zero())
    }

    fn unanswered(&self, reason: &str, retry_after: Duration) -> Unanswered {
        tracing::debug!(provider = %self.label, "a remote check was not answered: {reason}");
        Unanswered { reason: reason.to_owned(), retry_after }
    }
}

/// `None` when it took too long.
async fn bounded<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}

/// Asks about something that does not exist, which tells whether our credential is accepted; for
/// `vestibule check --online`.
pub async fn inspect(provider: &Arc<ProviderSpec>, inspection: &mut Inspection) {
    let Some(remote) = Remote::new(provider, 1, &Arc::default()) else { return };
    let nobody = Token::parse("vestibule-check", 64).map(Arc::new);
    let session = RemoteCheck::session("sess_vestibule_check");
    let question = match nobody {
        Ok(nobody) if remote.spec().question.carries_token() => {
            RemoteCheck { about: About::Token(nobody, None), digest: Digest::default() }
        }
        _ => session,
    };
    match remote.ask(&question, Priority::Admission).await {
        Ok(Answer::No(_)) => inspection.found.push("answers remote checks".to_owned()),
        Ok(Answer::Yes(_)) => inspection.problems.push("says yes to a token that does not exist".to_owned()),
        Err(unanswered) => inspection.problems.push(format!("remote check: {unanswered}")),
    }
}
