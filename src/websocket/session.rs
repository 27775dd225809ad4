//! One authenticated WebSocket's life as a state machine, without I/O and without a clock: events in,
//! actions out (docs/contract.md sections 4.2 and 4.5). Time comes with each event, in milliseconds since the
//! epoch; [`Session::deadline`] says when to come back.

mod asking;

use std::sync::Arc;
use std::time::Duration;

use super::dialect::{First, Later, Presented};
use super::ending::Ending;
use super::template::{Copies, Values, render};
use crate::auth::{RemoteCheck, Revalidation, RevocationKeys, StoredIdentity, Token};
use crate::policy::{DialectSpec, OnExpiry};
use asking::{Asking, Consequence};

pub use asking::Again;

/// Refreshes: at most one a second, this many at once.
const BURST: u64 = 5;
const REFRESH_MILLIS: u64 = 1_000;
/// This many refused refreshes in a row end the session.
const REFUSALS: u8 = 5;

/// What a session lives by: the end of its token, and who vouched for it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Whose it is, and until when: of a token without an end, when its provider is asked again.
    pub remembered: StoredIdentity,
    /// The token says no end: asking again is what ends it.
    pub is_open_ended: bool,
    /// How long beyond its end a socket of this provider may live, at least.
    pub clock_skew: Duration,
    /// What it can be revoked by, where anyone can revoke.
    pub revocation_keys: Option<Box<RevocationKeys>>,
    /// How its provider is asked again.
    pub again: Option<Box<Again>>,
    /// It came by a session of ours, whose page renews it: it ends with it, also under `auto`.
    pub renews: bool,
}

/// What is kept of it for as long as the session lives.
#[derive(Debug)]
struct Kept {
    remembered: StoredIdentity,
    revocation_keys: Option<Box<RevocationKeys>>,
}

/// What became of a token.
#[derive(Debug)]
pub enum Verdict {
    /// Verified and allowed.
    Accepted {
        /// With the provider's prefix.
        user_id: String,
        /// What it lives by from now on.
        standing: Standing,
        /// The token, where it is still needed.
        token: Option<Token>,
    },
    /// Not verified, and the row that says why.
    Refused(Ending),
    /// Expired and otherwise good, and the same user's.
    Expired {
        /// With the provider's prefix.
        user_id: String,
    },
    /// Verified, and not allowed on this route.
    Denied,
    /// A refresh with another user's token.
    AnotherUser,
    /// A refresh that would change a trusted header.
    IdentityChanged,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The client's first message.
    First(First, Copies),
    /// A later message that is for us.
    Later(Later, Copies),
    /// A message of the application's that waits until the token it carries is verified.
    Field(Token),
    /// The verdict on the token under verification.
    Verdict(Verdict),
    /// The provider's answer to a question about the session.
    Revalidation(Revalidation),
    /// The upstream's 101 has come.
    UpstreamOpen,
    /// Something that ends it: a bound, a violation, the upstream, the drain.
    End(Ending),
    /// [`Session::deadline`] has passed.
    Deadline {
        /// When its user was seen last, milliseconds; what `auto` asks.
        seen: Option<u64>,
    },
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Verify this token; come back with the verdict.
    Verify(Token),
    /// Ask the provider [`Session::question`]; come back with the answer.
    AskAgain,
    /// Dial the upstream.
    Connect,
    /// Say this to the client, between two of the upstream's messages.
    Say(String),
    /// Answer an application's ping, likewise.
    Pong(String),
    /// Let messages flow.
    Relay,
    /// A later token was accepted: the upstream may have it, and the message that waited for it.
    HandOn(Token),
    /// Its token has ended, and it goes on: for the count.
    Outlive,
    /// Say the ending and close.
    End(Ending),
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// For the first message.
    Waiting,
    /// For the verdict on it.
    Verifying,
    /// For the upstream.
    Dialling,
    /// Messages flow.
    Open,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Authenticated,
    Refreshed,
    /// The message goes on.
    Field,
}

/// A token that waits for its turn.
#[derive(Debug)]
struct Queued {
    token: Token,
    answer: Answer,
    copies: Copies,
}

/// How a session's life is bounded, as its route says.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Beyond its token's end, at least the clock skew.
    pub grace: Duration,
    /// Whether it ends with its token.
    pub on_expiry: OnExpiry,
    /// Under `auto`: how long it lives after its user was seen last.
    pub presence: Duration,
    /// From its beginning, whatever its tokens say.
    pub max_lifetime: Option<Duration>,
}

impl Default for Life {
    fn default() -> Self {
        Self { grace: Duration::ZERO, on_expiry: OnExpiry::Close, presence: Duration::ZERO, max_lifetime: None }
    }
}

/// The state of one socket.
#[derive(Debug)]
pub struct Session {
    dialect: Option<Arc<DialectSpec>>,
    phase: Phase,
    /// When waiting ends, milliseconds.
    waiting_until: u64,
    /// As [`Life`], in milliseconds; there are thousands of these.
    grace: u64,
    presence: u64,
    on_expiry: OnExpiry,
    /// Milliseconds: the end of `max_lifetime`.
    last_moment: u64,
    /// The user id, until `authenticated` has been said.
    user_id: Box<str>,
    /// `None` until someone was verified, and on public routes.
    standing: Option<Kept>,
    /// Milliseconds: `exp + max(clock_skew, grace)`.
    end: u64,
    asking: Option<Box<Asking>>,
    verifying: Option<Answer>,
    queued: Option<Box<Queued>>,
    /// What the answer to the message in hand copies from it.
    answering: Copies,
    /// The token bucket of refreshes: when it would be full again.
    full_at: u64,
    refusals: u8,
    refreshes: u32,
    /// The client has shown that it can renew its token.
    renews: bool,
}

impl Session {
    /// A socket that waits in the vestibule for its first message.
    #[must_use]
    pub fn waiting(dialect: Arc<DialectSpec>, auth_timeout: Option<Duration>, life: Life, now: u64) -> Self {
        let mut session = Self::new(Some(dialect), life, now);
        session.waiting_until = auth_timeout.map_or(u64::MAX, |timeout| now.saturating_add(millis(timeout)));
        session
    }

    /// A socket whose credential came on the upgrade, with the upstream's 101 in hand.
    #[must_use]
    pub fn open(dialect: Option<Arc<DialectSpec>>, life: Life, standing: Standing, now: u64) -> Self {
        let mut session = Self::new(dialect, life, now);
        session.phase = Phase::Open;
        session.stands_by(standing, now);
        session
    }

    /// A socket of a public route: nobody's token ends it.
    #[must_use]
    pub fn unending() -> Self {
        let mut session = Self::new(None, Life::default(), 0);
        session.phase = Phase::Open;
        session
    }

    fn new(dialect: Option<Arc<DialectSpec>>, life: Life, now: u64) -> Self {
        Self {
            dialect,
            phase: Phase::Waiting,
            waiting_until: u64::MAX,
            grace: millis(life.grace),
            presence: millis(life.presence),
            on_expiry: life.on_expiry,
            last_moment: life.max_lifetime.map_or(u64::MAX, |lifetime| now.saturating_add(millis(lifetime))),
            user_id: Box::default(),
            standing: None,
            end: u64::MAX,
            asking: None,
            verifying: None,
            queued: None,
            answering: Vec::new(),
            full_at: 0,
            refusals: 0,
            refreshes: 0,
            renews: false,
        }
    }

    fn stands_by(&mut self, standing: Standing, now: u64) {
        let beyond = self.grace.max(millis(standing.clock_skew));
        self.end = match self.on_expiry {
            OnExpiry::Keep => u64::MAX,
            _ if standing.is_open_ended => u64::MAX,
            _ => standing.remembered.expires_at().saturating_mul(1_000).saturating_add(beyond),
        };
        if let Some(at) = standing.remembered.login_session_ends_at() {
            self.end = u64::MAX;
            self.last_moment = self.last_moment.min(at.saturating_mul(1_000));
        }
        self.asking = standing.again.map(|again| {
            Box::new(match self.asking.take() {
                Some(asking) => asking.renewed(*again, now),
                None => Asking::new(*again, now),
            })
        });
        self.renews |= standing.renews;
        let Standing { remembered, revocation_keys, .. } = standing;
        let former = self.standing.take().and_then(|standing| standing.revocation_keys);
        // Whoever signs out of the session by which it came means this socket too.
        let revocation_keys = match (revocation_keys, former) {
            (Some(revocation_keys), Some(former)) => Some(Box::new(revocation_keys.in_browser_session_of(&former))),
            (revocation_keys, former) => revocation_keys.or(former),
        };
        self.standing = Some(Kept { remembered, revocation_keys });
    }

    /// What the provider is asked about it.
    #[must_use]
    pub fn question(&self) -> Option<&RemoteCheck> {
        self.asking.as_ref().map(|asking| asking.question())
    }

    /// What it can be revoked by.
    #[must_use]
    pub fn revocation_keys(&self) -> Option<&RevocationKeys> {
        self.standing.as_ref()?.revocation_keys.as_deref()
    }

    /// Whose it is; nobody's on a public route.
    #[must_use]
    pub fn remembered(&self) -> Option<&StoredIdentity> {
        self.standing.as_ref().map(|standing| &standing.remembered)
    }

    /// Whose it is while its token has not expired: an expired one is not judged by its key, or every rotation
    /// would end the sockets that outlive their tokens.
    #[must_use]
    pub fn judged_by_key(&self, now: u64) -> Option<&StoredIdentity> {
        let standing = self.remembered().filter(|remembered| now < remembered.expires_at().saturating_mul(1_000));
        standing.filter(|_| self.phase == Phase::Open)
    }

    /// Its dialect; `None` for `none`.
    #[must_use]
    pub fn dialect(&self) -> Option<&Arc<DialectSpec>> {
        self.dialect.as_ref()
    }

    /// What an answer to the message in hand copies from it.
    #[must_use]
    pub fn answering(&self) -> &Copies {
        &self.answering
    }

    /// Whether a verdict is awaited, or a token waits for its turn.
    #[must_use]
    pub fn is_judging(&self) -> bool {
        self.verifying.is_some() || self.queued.is_some()
    }

    /// How many refreshes were accepted.
    #[must_use]
    pub fn refreshes(&self) -> u32 {
        self.refreshes
    }

    /// When [`Event::Deadline`] is due, milliseconds since the epoch.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Waiting => Self::known(self.waiting_until),
            // The verdict and the dial have bounds of their own.
            Phase::Verifying | Phase::Dialling | Phase::Ended => None,
            Phase::Open => {
                let asked = self.asking.as_ref().map_or(u64::MAX, |asking| asking.deadline());
                let ends = match &self.queued {
                    // A refresh under verification at the token's end is awaited.
                    _ if self.verifying.is_some() => u64::MAX,
                    Some(_) => self.end.min(self.next_refresh()),
                    None => self.end,
                };
                Self::known(ends.min(self.last_moment).min(asked))
            }
        }
    }

    fn known(moment: u64) -> Option<u64> {
        (moment != u64::MAX).then_some(moment)
    }

    /// When the bucket has room for one more.
    fn next_refresh(&self) -> u64 {
        self.full_at.saturating_sub((BURST - 1) * REFRESH_MILLIS)
    }

    /// Takes an event; `now` in milliseconds since the epoch.
    pub fn on(&mut self, event: Event, now: u64) -> Vec<Action> {
        match (&self.phase, event) {
            (Phase::Ended, _) => Vec::new(),
            (_, Event::End(ending)) => self.finish(ending),
            (Phase::Waiting, Event::First(first, copies)) => {
                self.answering = copies;
                self.first(first)
            }
            (Phase::Waiting, Event::Deadline { .. }) if now >= self.waiting_until => self.finish(Ending::Timeout),
            (Phase::Verifying, Event::Verdict(verdict)) => self.admitted(verdict, now),
            (Phase::Open, Event::Revalidation(answer)) => self.asked_again(&answer, now),
            (Phase::Dialling, Event::UpstreamOpen) => self.opened(now),
            (Phase::Open, Event::Later(later, copies)) => self.later(later, copies, now),
            (Phase::Open, Event::Field(token)) => {
                self.queued = Some(Box::new(Queued { token, answer: Answer::Field, copies: Vec::new() }));
                self.next(now)
            }
            (Phase::Open, Event::Verdict(verdict)) => self.refreshed(verdict, now),
            (Phase::Open, Event::Deadline { seen }) => self.due(now, seen),
            // An event that came too late for its phase changes nothing.
            (_, _) => Vec::new(),
        }
    }

    fn finish(&mut self, ending: Ending) -> Vec<Action> {
        self.phase = Phase::Ended;
        self.queued = None;
        vec![Action::End(ending)]
    }

    fn first(&mut self, first: First) -> Vec<Action> {
        match first {
            First::Authenticate(token) => {
                self.phase = Phase::Verifying;
                vec![Action::Verify(token)]
            }
            First::Ping(reply) => vec![Action::Say(reply)],
            First::InvalidMessage => self.finish(Ending::InvalidMessage),
            First::Unexpected => self.finish(Ending::Unexpected),
            First::MissingToken => self.finish(Ending::MissingToken),
            First::NotAToken => self.finish(Ending::InvalidToken),
        }
    }

    fn admitted(&mut self, verdict: Verdict, now: u64) -> Vec<Action> {
        match verdict {
            Verdict::Accepted { user_id, standing, .. } => {
                self.phase = Phase::Dialling;
                self.user_id = user_id.into();
                self.stands_by(standing, now);
                vec![Action::Connect]
            }
            Verdict::Refused(ending) => self.finish(ending),
            Verdict::Expired { .. } => self.finish(Ending::ExpiredOnArrival),
            Verdict::Denied => self.finish(Ending::Denied),
            // Neither can be said of a first token.
            Verdict::AnotherUser | Verdict::IdentityChanged => self.finish(Ending::InvalidToken),
        }
    }

    fn opened(&mut self, now: u64) -> Vec<Action> {
        self.phase = Phase::Open;
        let user_id = std::mem::take(&mut self.user_id);
        let mut actions: Vec<Action> = self.acknowledgement(Answer::Authenticated, &user_id, now).into_iter().collect();
        self.answering = Vec::new();
        actions.push(Action::Relay);
        actions
    }

    fn acknowledgement(&self, answer: Answer, user_id: &str, now: u64) -> Option<Action> {
        let dialect = self.dialect.as_ref()?;
        let template = match answer {
            Answer::Authenticated => dialect.authenticate.acknowledge.as_ref()?,
            Answer::Refreshed => dialect.refresh.as_ref()?.acknowledge.as_ref()?,
            Answer::Field => return None,
        };
        let exp = self.standing.as_ref().map_or(0, |standing| standing.remembered.expires_at());
        let expires_in = exp.saturating_sub(now / 1_000);
        let values = Values { user_id, exp, expires_in, copies: &self.answering, ..Values::default() };
        Some(Action::Say(render(template, &values)))
    }

    fn error(&self, message: &str) -> Vec<Action> {
        let template = self.dialect.as_ref().and_then(|dialect| dialect.error.as_ref());
        let values = Values { message, copies: &self.answering, ..Values::default() };
        template.map(|template| Action::Say(render(template, &values))).into_iter().collect()
    }

    fn later(&mut self, later: Later, copies: Copies, now: u64) -> Vec<Action> {
        let (presented, answer) = match later {
            Later::Ping(reply) => return vec![Action::Pong(reply)],
            Later::Authenticate(presented) => (presented, Answer::Authenticated),
            Later::Refresh(presented) => (presented, Answer::Refreshed),
        };
        match presented {
            Presented::Token(token) => {
                self.queued = Some(Box::new(Queued { token, answer, copies }));
                self.next(now)
            }
            Presented::Missing => {
                let before = std::mem::replace(&mut self.answering, copies);
                let said = self.refusal("Missing token in refresh request");
                self.answering = before;
                said
            }
            Presented::NotAToken => {
                self.refusal(&format!("Token refresh failed: {}", Ending::InvalidToken.message().unwrap_or_default()))
            }
        }
    }

    /// Starts the queued refresh when none is under way and the rate allows it.
    fn next(&mut self, now: u64) -> Vec<Action> {
        if self.verifying.is_some() || now < self.next_refresh() {
            return Vec::new();
        }
        let Some(queued) = self.queued.take() else { return Vec::new() };
        let Queued { token, answer, copies } = *queued;
        self.answering = copies;
        self.full_at = self.full_at.max(now).saturating_add(REFRESH_MILLIS);
        self.verifying = Some(answer);
        vec![Action::Verify(token)]
    }

    fn refusal(&mut self, message: &str) -> Vec<Action> {
        self.refusals += 1;
        if self.refusals >= REFUSALS {
            return self.finish(Ending::TooManyRefreshes);
        }
        self.error(message)
    }

    fn refreshed(&mut self, verdict: Verdict, now: u64) -> Vec<Action> {
        let answer = self.verifying.take().unwrap_or(Answer::Refreshed);
        let verdict = match verdict {
            Verdict::Expired { .. } if answer != Answer::Authenticated => Verdict::Refused(Ending::ExpiredOnArrival),
            other => other,
        };
        let mut actions = match verdict {
            // A front end that says its handshake with the token of its page load waits for this answer. It hears
            // the end that holds now, which does not move.
            Verdict::Expired { user_id } => {
                self.acknowledgement(Answer::Authenticated, &user_id, now).into_iter().collect()
            }
            Verdict::Accepted { user_id, standing, token } => {
                self.refusals = 0;
                self.refreshes += 1;
                self.renews = true;
                self.stands_by(standing, now);
                let acknowledgement = self.acknowledgement(answer, &user_id, now);
                token.map(Action::HandOn).into_iter().chain(acknowledgement).collect()
            }
            // The message that carried it is dropped, and with it the order of those behind it.
            Verdict::Refused(ending) if answer == Answer::Field => self.finish(ending),
            Verdict::AnotherUser if answer == Answer::Field => self.finish(Ending::InvalidToken),
            Verdict::Refused(ending) => {
                self.refusal(&format!("Token refresh failed: {}", ending.message().unwrap_or_default()))
            }
            Verdict::AnotherUser => self.refusal("Token refresh failed: another user"),
            Verdict::Denied => self.finish(Ending::Denied),
            Verdict::IdentityChanged => self.finish(Ending::IdentityChanged),
        };
        if self.phase == Phase::Open {
            self.answering = Vec::new();
            actions.extend(if self.may_outlive() {
                // When its user was seen is known when the deadline comes, which is at once where the token has ended.
                self.next(now)
            } else {
                self.due(now, None)
            });
        }
        actions
    }

    /// Whether it goes on after its token's end, as long as its user is seen.
    fn may_outlive(&self) -> bool {
        self.on_expiry == OnExpiry::Auto && !self.renews
    }

    fn due(&mut self, now: u64, seen: Option<u64>) -> Vec<Action> {
        if now >= self.last_moment {
            return self.finish(Ending::Lifetime);
        }
        let asks = self.asking.as_mut().is_some_and(|asking| asking.begins(now));
        let mut actions: Vec<Action> = asks.then_some(Action::AskAgain).into_iter().collect();
        if self.verifying.is_some() {
            return actions;
        }
        if now >= self.end && self.may_outlive() {
            let until = seen.map_or(0, |seen| seen.saturating_add(self.presence));
            if until > now {
                self.end = until;
                actions.push(Action::Outlive);
            }
        }
        if now >= self.end && self.queued.is_none() {
            return self.finish(Ending::Expired);
        }
        let verifies = self.next(now);
        if verifies.is_empty() && now >= self.end {
            return self.finish(Ending::Expired);
        }
        actions.extend(verifies);
        actions
    }

    fn asked_again(&mut self, answer: &Revalidation, now: u64) -> Vec<Action> {
        match self.asking.as_mut().map(|asking| asking.answered(answer, now)) {
            Some(Consequence::Ended) => self.finish(Ending::Revoked),
            Some(Consequence::Unanswered) => self.finish(Ending::AuthUnavailable),
            Some(Consequence::GoesOn) | None => Vec::new(),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
