//! Explores every order of events up to a depth on the state machine itself, and checks the conditions that must hold
//! after each of them. States that were reached before are not explored again. A fuzz target tries long orders.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation is what the model looks for")]

#[cfg(test)]
use std::collections::HashSet;

use super::*;
use crate::auth::Token;
use crate::fuzz::Input;

/// The maximum length of an order of the exploration.
#[cfg(test)]
const DEPTH: usize = 7;
const START: u64 = 1_000_000_000;
/// The validity of a token in milliseconds, from the start of the session or from its refresh.
const TOKEN_LIFE: u64 = 60_000;

/// The kind of an event. Its content is made each time that it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstToken,
    FirstPing,
    FirstUnexpected,
    Refresh,
    RefreshWithoutToken,
    Authenticate,
    FieldToken,
    Ping,
    Accept,
    Refuse,
    Expired,
    Deny,
    AnotherUser,
    ChangedIdentity,
    UpstreamOpens,
    StillActive,
    NoLongerActive,
    ProviderUnavailable,
    /// The deadline comes, and the user was seen just before.
    DeadlineSeen,
    /// The deadline comes, and the user was not seen.
    DeadlineUnseen,
    UpstreamLost,
    Revoked,
    Drain,
    Violation,
}

const STEPS: [Step; 24] = [
    Step::FirstToken,
    Step::FirstPing,
    Step::FirstUnexpected,
    Step::Refresh,
    Step::RefreshWithoutToken,
    Step::Authenticate,
    Step::FieldToken,
    Step::Ping,
    Step::Accept,
    Step::Refuse,
    Step::Expired,
    Step::Deny,
    Step::AnotherUser,
    Step::ChangedIdentity,
    Step::UpstreamOpens,
    Step::StillActive,
    Step::NoLongerActive,
    Step::ProviderUnavailable,
    Step::DeadlineSeen,
    Step::DeadlineUnseen,
    Step::UpstreamLost,
    Step::Revoked,
    Step::Drain,
    Step::Violation,
];

/// A session with the requests that it has made and that are not answered.
struct Model {
    session: Session,
    credential: Credential,
    now: u64,
    verifying: u32,
    has_token: bool,
    is_connecting: bool,
    is_revalidating: bool,
    has_accepted: bool,
    is_relaying: bool,
    is_closed: bool,
}

impl Model {
    fn start(dialect: &Arc<DialectSpec>, on_expiry: OnExpiry, credential: &Credential, starts_open: bool) -> Self {
        let limits = SessionLimits {
            on_expiry,
            presence: Duration::from_secs(600),
            max_lifetime: Some(Duration::from_secs(3_600)),
            ..SessionLimits::default()
        };
        let dialect = Arc::clone(dialect);
        let session = if starts_open {
            Session::open(Some(dialect), limits, credential.clone(), START)
        } else {
            Session::pending(dialect, Some(Duration::from_secs(10)), limits, START)
        };
        Self {
            session,
            credential: credential.clone(),
            now: START,
            verifying: 0,
            has_token: starts_open,
            is_connecting: false,
            is_revalidating: false,
            has_accepted: starts_open,
            is_relaying: starts_open,
            is_closed: false,
        }
    }

    /// Returns the event, or `None` if it cannot come now.
    fn event(&mut self, step: Step) -> Option<Event> {
        let token = || Token::parse("t", 16).expect("token");
        let verdict = |model: &Self, verdict| (model.verifying > 0).then_some(Event::Verdict(verdict));
        let user_id = || "alice".to_owned();
        Some(match step {
            // The first message is read until it has brought a token, later ones while messages are relayed.
            Step::FirstToken | Step::FirstPing | Step::FirstUnexpected if self.has_token => return None,
            Step::Refresh | Step::RefreshWithoutToken | Step::Authenticate | Step::FieldToken | Step::Ping
                if !self.is_relaying =>
            {
                return None;
            }
            Step::FirstToken => Event::FirstMessage(FirstMessage::Authenticate(token()), Copies::default()),
            Step::FirstPing => Event::FirstMessage(FirstMessage::Ping("pong".to_owned()), Copies::default()),
            Step::FirstUnexpected => Event::FirstMessage(FirstMessage::Unexpected, Copies::default()),
            Step::Refresh => later(LaterMessage::Refresh(PresentedToken::Token(token()))),
            Step::RefreshWithoutToken => later(LaterMessage::Refresh(PresentedToken::Missing)),
            Step::Authenticate => later(LaterMessage::Authenticate(PresentedToken::Token(token()))),
            Step::FieldToken => Event::FieldToken(token()),
            Step::Ping => later(LaterMessage::Ping("pong".to_owned())),
            Step::Accept => {
                let mut credential = self.credential.clone();
                credential.identity = credential.identity.expiring((self.now + TOKEN_LIFE) / 1_000);
                verdict(self, Verdict::Accepted { user_id: user_id(), credential, token: Some(token()) })?
            }
            Step::Refuse => verdict(self, Verdict::Refused(CloseReason::InvalidToken))?,
            Step::Expired => verdict(self, Verdict::Expired { user_id: user_id() })?,
            Step::Deny => verdict(self, Verdict::Denied)?,
            Step::AnotherUser => verdict(self, Verdict::AnotherUser)?,
            Step::ChangedIdentity => verdict(self, Verdict::IdentityChanged)?,
            Step::UpstreamOpens if !self.is_connecting => return None,
            Step::UpstreamOpens => Event::UpstreamOpen,
            Step::StillActive | Step::NoLongerActive | Step::ProviderUnavailable if !self.is_revalidating => {
                return None;
            }
            Step::StillActive => Event::Revalidation(Revalidation::Active),
            Step::NoLongerActive => Event::Revalidation(Revalidation::Revoked),
            Step::ProviderUnavailable => Event::Revalidation(Revalidation::Unavailable),
            Step::DeadlineSeen | Step::DeadlineUnseen => {
                self.now = self.now.max(self.session.deadline()?);
                Event::Deadline { last_seen: (step == Step::DeadlineSeen).then_some(self.now - 1_000) }
            }
            Step::UpstreamLost => Event::Close(CloseReason::UpstreamLost),
            Step::Revoked => Event::Close(CloseReason::Revoked),
            Step::Drain => Event::Close(CloseReason::Drain(1012)),
            Step::Violation => Event::Close(CloseReason::Protocol),
        })
    }

    /// Processes an event and checks the actions of the session. Returns `false` if the event cannot come now.
    fn take(&mut self, step: Step, order: &[Step]) -> bool {
        let Some(event) = self.event(step) else { return false };
        self.has_token |= step == Step::FirstToken;
        match &event {
            Event::Verdict(verdict) => {
                self.verifying -= 1;
                // A verdict that comes after the end accepts nothing.
                self.has_accepted |= matches!(verdict, Verdict::Accepted { .. }) && !self.is_closed;
            }
            Event::UpstreamOpen => self.is_connecting = false,
            Event::Revalidation(_) => self.is_revalidating = false,
            _ => {}
        }
        let was_closed = self.is_closed;
        for action in self.session.on(event, self.now) {
            assert!(!self.is_closed, "{action:?} after the end: {order:?}");
            match action {
                Action::Verify(_) => {
                    assert_eq!(self.verifying, 0, "two tokens are verified at once: {order:?}");
                    self.verifying += 1;
                }
                Action::Connect => {
                    assert!(self.has_accepted, "connects before a token was accepted: {order:?}");
                    assert!(!self.is_connecting && !self.is_relaying, "connects twice: {order:?}");
                    self.is_connecting = true;
                }
                Action::StartRelay => {
                    assert!(self.has_accepted && !self.is_relaying, "relays too early or twice: {order:?}");
                    assert_eq!(step, Step::UpstreamOpens, "{order:?}");
                    self.is_relaying = true;
                }
                Action::ForwardToken(_) => {
                    assert!(self.is_relaying && step == Step::Accept, "forwards a token not accepted: {order:?}");
                }
                Action::Revalidate => {
                    assert!(!self.is_revalidating, "asks twice: {order:?}");
                    self.is_revalidating = true;
                }
                Action::ContinueExpired => {
                    assert_eq!(step, Step::DeadlineSeen, "continues though nobody saw the user: {order:?}");
                }
                Action::Close(_) => self.is_closed = true,
                Action::Send(_) | Action::SendPong(_) => {}
            }
        }
        let ends_at_once = matches!(
            step,
            Step::UpstreamLost
                | Step::Revoked
                | Step::Drain
                | Step::Violation
                | Step::NoLongerActive
                | Step::Deny
                | Step::ChangedIdentity
                | Step::FirstUnexpected
        );
        let is_superseded_answer = step == Step::NoLongerActive && !self.is_closed;
        // The answer about a token that was renewed since does not concern the new one.
        assert!(was_closed || self.is_closed || !ends_at_once || is_superseded_answer, "goes on: {order:?}");
        assert!(was_closed || !is_superseded_answer || order.contains(&Step::Accept), "goes on: {order:?}");
        self.assert_unexpired(order);
        true
    }

    /// Checks that an open session is not past its end, unless something is awaited that could renew it.
    fn assert_unexpired(&self, order: &[Step]) {
        if self.is_closed || !self.is_relaying {
            return;
        }
        assert!(self.has_accepted, "open without a user: {order:?}");
        assert!(self.session.identity().is_some(), "open without an identity: {order:?}");
        let deadline = self.session.deadline();
        assert!(
            deadline.is_some() || self.session.is_verifying() || self.is_revalidating,
            "nothing would end the session: {order:?}"
        );
    }

    /// Lets time pass without any answer: the session must end by itself.
    fn assert_ends(mut self, order: &[Step]) {
        for _ in 0..200 {
            if self.is_closed {
                return;
            }
            // Verification, connecting and revalidation have time limits of their own, after which they fail.
            let step = if self.verifying > 0 {
                Step::Refuse
            } else if self.is_revalidating {
                Step::ProviderUnavailable
            } else if self.is_connecting {
                Step::UpstreamLost
            } else {
                Step::DeadlineUnseen
            };
            assert!(self.take(step, order), "waits for nothing: {order:?}");
        }
        panic!("does not end: {order:?}");
    }

    /// Lets time pass, at most until the next deadline.
    fn wait(&mut self, millis: u64) {
        let latest = self.session.deadline().map_or(u64::MAX, |deadline| deadline.max(self.now));
        self.now = self.now.saturating_add(millis).min(latest);
    }

    /// Returns all that decides what the session does next.
    #[cfg(test)]
    fn state(&self) -> String {
        let session = &self.session;
        format!(
            "{:?} {:?} {} {} {:?} {:?} {} {} {} {} {} {} {}",
            session.phase,
            session.deadline(),
            session.credential_end,
            session.lifetime_end,
            session.refreshes,
            session.revalidator,
            session.renews,
            self.now,
            self.verifying,
            self.is_connecting,
            self.is_revalidating,
            self.is_relaying,
            self.is_closed,
        )
    }
}

fn later(message: LaterMessage) -> Event {
    Event::LaterMessage(message, Copies::default())
}

/// Makes a credential whose token ends [`TOKEN_LIFE`] after the start, and that is revalidated where that is asked.
fn credential(revalidated: bool) -> Credential {
    let plan = RevalidationPlan {
        check: RemoteCheck::example(),
        interval: Duration::from_secs(30),
        grace: Duration::from_secs(60),
    };
    Credential {
        identity: StoredIdentity::example((START + TOKEN_LIFE) / 1_000),
        is_open_ended: false,
        clock_skew: Duration::from_secs(5),
        revocation_keys: None,
        revalidation: revalidated.then(|| Box::new(plan)),
        renews: false,
    }
}

/// Checks the conditions of the model for an order of any length, and that the session ends by itself after it.
///
/// The first byte chooses the settings. Each of the others is a step, or lets time pass.
pub(in crate::websocket) fn session(data: &[u8]) {
    /// The maximum number of steps. After each the whole order is kept for the message of a failure.
    const MAX_STEPS: usize = 2_000;

    let mut input = Input::new(data);
    let settings = input.byte();
    let dialect = Arc::new(DialectSpec::vestibule());
    let mut credential = credential(settings & 1 != 0);
    credential.renews = settings & 2 != 0;
    let on_expiry = [OnExpiry::Close, OnExpiry::Auto, OnExpiry::Keep][usize::from(settings >> 3) % 3];
    let mut model = Model::start(&dialect, on_expiry, &credential, settings & 4 != 0);
    let mut order = Vec::new();
    while !input.is_empty() && order.len() < MAX_STEPS {
        let byte = input.byte();
        match STEPS.get(usize::from(byte)) {
            Some(step) => {
                order.push(*step);
                if !model.take(*step, &order) {
                    order.pop();
                }
            }
            None => model.wait(1 << (byte % 20)),
        }
    }
    model.assert_ends(&order);
}

/// Explores every order of steps, and returns the number of states.
#[cfg(test)]
fn explore(start: impl Fn() -> Model) -> usize {
    let mut seen = HashSet::new();
    let mut orders: Vec<Vec<Step>> = vec![Vec::new()];
    seen.insert(start().state());
    for _ in 0..DEPTH {
        let mut longer = Vec::new();
        for order in &orders {
            for step in STEPS {
                let mut order = order.clone();
                order.push(step);
                let mut model = start();
                if order.iter().all(|step| model.take(*step, &order)) && seen.insert(model.state()) {
                    model.assert_ends(&order);
                    longer.push(order);
                }
            }
        }
        orders = longer;
    }
    seen.len()
}

#[test]
fn no_order_of_events_relays_without_a_user_or_outlives_its_end() {
    let dialect = Arc::new(DialectSpec::vestibule());
    for on_expiry in [OnExpiry::Close, OnExpiry::Auto, OnExpiry::Keep] {
        for (revalidated, starts_open) in [(false, false), (true, false), (true, true)] {
            let credential = credential(revalidated);
            let states = explore(|| Model::start(&dialect, on_expiry, &credential, starts_open));
            println!("{on_expiry:?}, revalidated: {revalidated}, opened: {starts_open}: {states} states");
            assert!(states > 100, "{states}");
        }
    }
}

#[test]
fn the_corpus_of_sessions_keeps_the_conditions() {
    crate::fuzz::run_corpus("session", session);
}
