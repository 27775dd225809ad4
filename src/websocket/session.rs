//! One authenticated WebSocket's life as a state machine, without I/O and without a clock: events in,
//! actions out (docs/contract.md sections 4.2 and 4.5). Time comes with each event, in milliseconds since the
//! epoch; [`Session::deadline`] says when to come back.

use std::sync::Arc;
use std::time::Duration;

use super::dialect::{First, Later, Presented};
use super::ending::Ending;
use super::template::{Copies, Values, render};
use crate::auth::{KeyPrint, Token};
use crate::policy::{DialectSpec, OnExpiry};

/// Refreshes: at most one a second, this many at once.
const BURST: u64 = 5;
const REFRESH_MILLIS: u64 = 1_000;
/// This many refused refreshes in a row end the session.
const REFUSALS: u8 = 5;

/// What a session lives by: the end of its token, and the key that vouched for it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Unix seconds.
    pub expires_at: u64,
    /// How long beyond its end a socket of this provider may live, at least.
    pub clock_skew: Duration,
    /// The key that verified it.
    pub key: KeyPrint,
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
    /// Dial the upstream.
    Connect,
    /// Say this to the client, between two of the upstream's messages.
    Say(String),
    /// Let messages flow.
    Relay,
    /// A later token was accepted: the upstream may have it, and the message that waited for it.
    HandOn(Token),
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
    life: Life,
    /// Milliseconds: the end of `max_lifetime`.
    last_moment: u64,
    /// The user id, until `authenticated` has been said.
    user_id: Box<str>,
    /// `None` until someone was verified, and on public routes.
    standing: Option<Standing>,
    /// Milliseconds: `exp + max(clock_skew, grace)`.
    end: u64,
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
    pub fn waiting(dialect: Arc<DialectSpec>, auth_timeout: Duration, life: Life, now: u64) -> Self {
        let mut session = Self::new(Some(dialect), life, now);
        session.waiting_until = now.saturating_add(millis(auth_timeout));
        session
    }

    /// A socket whose credential came on the upgrade, with the upstream's 101 in hand.
    #[must_use]
    pub fn open(dialect: Option<Arc<DialectSpec>>, life: Life, standing: Standing, now: u64) -> Self {
        let mut session = Self::new(dialect, life, now);
        session.phase = Phase::Open;
        session.stands_by(standing);
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
            life,
            last_moment: life.max_lifetime.map_or(u64::MAX, |lifetime| now.saturating_add(millis(lifetime))),
            user_id: Box::default(),
            standing: None,
            end: u64::MAX,
            verifying: None,
            queued: None,
            answering: Vec::new(),
            full_at: 0,
            refusals: 0,
            refreshes: 0,
            renews: false,
        }
    }

    fn stands_by(&mut self, standing: Standing) {
        self.standing = Some(standing);
        if self.life.on_expiry != OnExpiry::Keep {
            let beyond = millis(self.life.grace.max(standing.clock_skew));
            self.end = standing.expires_at.saturating_mul(1_000).saturating_add(beyond);
        }
    }

    /// The key that vouches for it, while its token has not expired: an expired one is not judged by its
    /// key, or every rotation would end the sockets that outlive their tokens.
    #[must_use]
    pub fn key(&self, now: u64) -> Option<KeyPrint> {
        let standing = self.standing.filter(|standing| now < standing.expires_at.saturating_mul(1_000));
        standing.filter(|_| self.phase == Phase::Open).map(|standing| standing.key)
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
            Phase::Waiting => Some(self.waiting_until),
            // The verdict and the dial have bounds of their own.
            Phase::Verifying | Phase::Dialling | Phase::Ended => None,
            // A refresh under verification at the token's end is awaited.
            Phase::Open if self.verifying.is_some() => Self::known(self.last_moment),
            Phase::Open => match &self.queued {
                Some(_) => Self::known(self.end.min(self.last_moment).min(self.next_refresh())),
                None => Self::known(self.end.min(self.last_moment)),
            },
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
            (Phase::Verifying, Event::Verdict(verdict)) => self.admitted(verdict),
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

    fn admitted(&mut self, verdict: Verdict) -> Vec<Action> {
        match verdict {
            Verdict::Accepted { user_id, standing, .. } => {
                self.phase = Phase::Dialling;
                self.user_id = user_id.into();
                self.stands_by(standing);
                vec![Action::Connect]
            }
            Verdict::Refused(ending) => self.finish(ending),
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
        let exp = self.standing.map_or(0, |standing| standing.expires_at);
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
            Later::Ping(reply) => return vec![Action::Say(reply)],
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
        let mut actions = match verdict {
            Verdict::Accepted { user_id, standing, token } => {
                self.refusals = 0;
                self.refreshes += 1;
                self.renews = true;
                self.stands_by(standing);
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
            actions.extend(self.due(now, None));
        }
        actions
    }

    fn due(&mut self, now: u64, seen: Option<u64>) -> Vec<Action> {
        if now >= self.last_moment {
            return self.finish(Ending::Lifetime);
        }
        if self.verifying.is_some() {
            return Vec::new();
        }
        if now >= self.end && self.life.on_expiry == OnExpiry::Auto && !self.renews {
            let until = seen.map_or(0, |seen| seen.saturating_add(millis(self.life.presence)));
            if until > now {
                self.end = until;
            }
        }
        if now >= self.end && self.queued.is_none() {
            return self.finish(Ending::Expired);
        }
        let actions = self.next(now);
        if actions.is_empty() && now >= self.end {
            return self.finish(Ending::Expired);
        }
        actions
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{FieldMode, FieldSpec};

    const NOW: u64 = 1_000_000_000;

    fn life(grace: u64) -> Life {
        Life { grace: Duration::from_secs(grace), ..Life::default() }
    }

    #[test]
    fn max_lifetime_holds_whatever_the_tokens_say() {
        let life = Life { max_lifetime: Some(Duration::from_secs(40)), ..life(30) };
        let mut session = Session::open(None, life, standing(NOW / 1_000 + 600), NOW);
        assert_eq!(session.deadline(), Some(NOW + 40_000));
        assert_eq!(
            shown(&session.on(Event::Deadline { seen: None }, NOW + 40_000)),
            ["Session expired 4401 Session expired"]
        );
        let mut session = Session::open(None, life, standing(NOW / 1_000 + 600), NOW);
        refresh(&mut session, NOW + 39_000);
        assert_eq!(session.deadline(), Some(NOW + 40_000), "a refresh under verification does not hold it up");
    }

    #[test]
    fn keep_outlives_the_token_until_max_lifetime() {
        let life = Life { on_expiry: OnExpiry::Keep, max_lifetime: Some(Duration::from_secs(900)), ..life(30) };
        let mut session = Session::open(None, life, standing(NOW / 1_000 + 60), NOW);
        assert_eq!(session.deadline(), Some(NOW + 900_000));
        assert!(session.on(Event::Deadline { seen: None }, NOW + 500_000).is_empty());
    }

    fn standing(expires_at: u64) -> Standing {
        Standing { expires_at, clock_skew: Duration::from_secs(5), key: KeyPrint::default() }
    }

    fn token() -> Token {
        Token::presented("t", 16).expect("token")
    }

    fn accepted(expires_at: u64) -> Event {
        Event::Verdict(Verdict::Accepted { user_id: "alice".into(), standing: standing(expires_at), token: None })
    }

    fn waiting() -> Session {
        Session::waiting(Arc::new(DialectSpec::vestibule()), Duration::from_secs(10), life(30), NOW)
    }

    fn opened() -> Session {
        let mut session = waiting();
        session.on(Event::First(First::Authenticate(token()), Vec::new()), NOW);
        session.on(accepted(NOW / 1_000 + 60), NOW);
        session.on(Event::UpstreamOpen, NOW);
        session
    }

    fn shown(actions: &[Action]) -> Vec<String> {
        actions
            .iter()
            .map(|action| match action {
                Action::Verify(_) => "verify".to_owned(),
                Action::Connect => "connect".to_owned(),
                Action::Say(text) => text.clone(),
                Action::Relay => "relay".to_owned(),
                Action::HandOn(_) => "hand on".to_owned(),
                Action::End(ending) => {
                    let dialect = DialectSpec::vestibule();
                    format!("{} {} {}", ending.message().unwrap_or("-"), ending.code(Some(&dialect)), ending.reason())
                }
            })
            .collect()
    }

    fn refresh(session: &mut Session, now: u64) -> Vec<String> {
        shown(&session.on(Event::Later(Later::Refresh(Presented::Token(token())), Vec::new()), now))
    }

    #[test]
    fn a_good_first_message_dials_and_is_answered_when_the_upstream_stands() {
        let mut session = waiting();
        assert_eq!(shown(&session.on(Event::First(First::Authenticate(token()), Vec::new()), NOW)), ["verify"]);
        assert_eq!(shown(&session.on(accepted(NOW / 1_000 + 60), NOW)), ["connect"]);
        assert_eq!(
            shown(&session.on(Event::UpstreamOpen, NOW + 2_000)),
            [r#"{"type":"authenticated","user_id":"alice","expires_at":1000060,"expires_in":58}"#, "relay"]
        );
    }

    #[test]
    fn every_bad_first_message_ends_with_its_row() {
        for (first, expected) in [
            (First::InvalidMessage, "Invalid message format 1008 Invalid message format"),
            (First::Unexpected, "Expected authentication message 1008 Expected authentication message"),
            (First::MissingToken, "Missing authentication token 1008 Missing token"),
            (First::NotAToken, "Invalid authentication token 1008 Invalid token"),
        ] {
            assert_eq!(shown(&waiting().on(Event::First(first, Vec::new()), NOW)), [expected]);
        }
    }

    #[test]
    fn every_refused_first_token_ends_with_its_row() {
        for (verdict, expected) in [
            (Verdict::Refused(Ending::ExpiredOnArrival), "Token has expired 4401 Token expired"),
            (Verdict::Refused(Ending::InvalidToken), "Invalid authentication token 1008 Invalid token"),
            (Verdict::Refused(Ending::AuthUnavailable), "Authentication service unavailable 1013 Try again later"),
            (Verdict::Denied, "Access denied 1008 Access denied"),
        ] {
            let mut session = waiting();
            session.on(Event::First(First::Authenticate(token()), Vec::new()), NOW);
            assert_eq!(shown(&session.on(Event::Verdict(verdict), NOW)), [expected]);
        }
    }

    #[test]
    fn waiting_ends_in_time_and_only_then() {
        let mut session = waiting();
        assert_eq!(session.deadline(), Some(NOW + 10_000));
        assert!(session.on(Event::Deadline { seen: None }, NOW + 9_999).is_empty());
        assert_eq!(
            shown(&session.on(Event::Deadline { seen: None }, NOW + 10_000)),
            ["Authentication timeout 1008 Authentication timeout"]
        );
        assert!(session.on(Event::First(First::Authenticate(token()), Vec::new()), NOW + 10_001).is_empty());
    }

    #[test]
    fn a_refresh_moves_the_end() {
        let mut session = opened();
        assert_eq!(session.deadline(), Some(NOW + 90_000));
        assert_eq!(refresh(&mut session, NOW + 50_000), ["verify"]);
        assert_eq!(
            shown(&session.on(accepted(NOW / 1_000 + 110), NOW + 50_000)),
            [r#"{"type":"auth_refreshed","expires_at":1000110,"expires_in":60}"#]
        );
        assert_eq!(session.deadline(), Some(NOW + 140_000));
        assert_eq!(session.refreshes(), 1);
    }

    #[test]
    fn authenticate_again_is_a_refresh_answered_as_authenticated() {
        let mut session = opened();
        session.on(Event::Later(Later::Authenticate(Presented::Token(token())), Vec::new()), NOW);
        assert_eq!(
            shown(&session.on(accepted(NOW / 1_000 + 70), NOW)),
            [r#"{"type":"authenticated","user_id":"alice","expires_at":1000070,"expires_in":70}"#]
        );
    }

    #[test]
    fn the_end_comes_with_4401() {
        let mut session = opened();
        assert!(session.on(Event::Deadline { seen: None }, NOW + 89_999).is_empty());
        assert_eq!(
            shown(&session.on(Event::Deadline { seen: None }, NOW + 90_000)),
            ["Token expired 4401 Token expired"]
        );
    }

    #[test]
    fn a_refresh_under_verification_at_the_end_is_awaited() {
        let mut session = opened();
        refresh(&mut session, NOW + 89_000);
        assert_eq!(session.deadline(), None);
        assert!(session.on(Event::Deadline { seen: None }, NOW + 95_000).is_empty());
        let refused = Event::Verdict(Verdict::Refused(Ending::InvalidToken));
        assert_eq!(
            shown(&session.on(refused, NOW + 96_000)),
            [
                r#"{"type":"error","message":"Token refresh failed: Invalid authentication token"}"#,
                "Token expired 4401 Token expired"
            ]
        );
    }

    #[test]
    fn refused_refreshes_keep_the_old_identity_and_five_in_a_row_end_it() {
        let mut session = opened();
        for attempt in 1..=5 {
            let now = NOW + attempt * 2_000;
            refresh(&mut session, now);
            let said = shown(&session.on(Event::Verdict(Verdict::AnotherUser), now));
            if attempt < 5 {
                assert_eq!(said, [r#"{"type":"error","message":"Token refresh failed: another user"}"#]);
                assert_eq!(session.deadline(), Some(NOW + 90_000));
            } else {
                assert_eq!(said, ["Too many refreshes 1008 Too many refreshes"]);
            }
        }
    }

    #[test]
    fn an_accepted_refresh_forgets_the_refusals() {
        let mut session = opened();
        for attempt in 0..4 {
            session.on(Event::Later(Later::Refresh(Presented::Missing), Vec::new()), NOW + attempt);
        }
        refresh(&mut session, NOW + 10);
        session.on(accepted(NOW / 1_000 + 60), NOW + 10);
        let said = shown(&session.on(Event::Later(Later::Refresh(Presented::Missing), Vec::new()), NOW + 20));
        assert_eq!(said, [r#"{"type":"error","message":"Missing token in refresh request"}"#]);
    }

    #[test]
    fn a_refresh_that_loses_its_right_or_changes_a_header_ends_it() {
        for (verdict, expected) in [
            (Verdict::Denied, "Access denied 1008 Access denied"),
            (Verdict::IdentityChanged, "- 1012 Identity changed"),
        ] {
            let mut session = opened();
            refresh(&mut session, NOW);
            assert_eq!(shown(&session.on(Event::Verdict(verdict), NOW)), [expected]);
        }
    }

    #[test]
    fn refreshes_are_verified_one_at_a_time_and_the_newest_waits() {
        let mut session = opened();
        assert_eq!(refresh(&mut session, NOW), ["verify"]);
        assert!(refresh(&mut session, NOW).is_empty());
        assert!(refresh(&mut session, NOW).is_empty());
        let after = shown(&session.on(accepted(NOW / 1_000 + 60), NOW));
        assert_eq!(after.last().map(String::as_str), Some("verify"));
        assert_eq!(shown(&session.on(accepted(NOW / 1_000 + 60), NOW)).len(), 1);
    }

    #[test]
    fn refreshes_beyond_the_burst_wait_for_their_second() {
        let mut session = opened();
        for _ in 0..BURST {
            assert_eq!(refresh(&mut session, NOW), ["verify"]);
            session.on(accepted(NOW / 1_000 + 60), NOW);
        }
        assert!(refresh(&mut session, NOW).is_empty());
        assert_eq!(session.deadline(), Some(NOW + 1_000));
        assert!(session.on(Event::Deadline { seen: None }, NOW + 999).is_empty());
        assert_eq!(shown(&session.on(Event::Deadline { seen: None }, NOW + 1_000)), ["verify"]);
    }

    #[test]
    fn a_session_with_a_credential_on_the_upgrade_hears_nothing_unasked() {
        let mut session = Session::open(None, life(30), standing(NOW / 1_000 + 60), NOW);
        assert_eq!(session.deadline(), Some(NOW + 90_000));
        assert_eq!(
            shown(&session.on(Event::Deadline { seen: None }, NOW + 90_000)),
            ["Token expired 4401 Token expired"]
        );
        assert_eq!(Ending::Expired.said(None, &Vec::new()), None);
    }

    #[test]
    fn grace_is_at_least_the_clock_skew() {
        let session = Session::open(None, Life::default(), standing(100), 0);
        assert_eq!(session.deadline(), Some(105_000));
    }

    #[test]
    fn auto_lives_on_while_its_user_is_seen_and_closes_once_the_client_renews() {
        let life = Life {
            on_expiry: OnExpiry::Auto,
            presence: Duration::from_secs(1_800),
            max_lifetime: Some(Duration::from_secs(43_200)),
            ..life(30)
        };
        let open = || Session::open(None, life, standing(NOW / 1_000 + 60), NOW);
        let mut session = open();
        assert_eq!(session.deadline(), Some(NOW + 90_000));
        assert!(session.on(Event::Deadline { seen: Some(NOW + 80_000) }, NOW + 90_000).is_empty());
        assert_eq!(session.deadline(), Some(NOW + 1_880_000), "presence after it was seen");
        let gone = session.on(Event::Deadline { seen: Some(NOW + 80_000) }, NOW + 1_880_000);
        assert_eq!(shown(&gone), ["Token expired 4401 Token expired"]);
        let mut session = open();
        assert_eq!(
            shown(&session.on(Event::Deadline { seen: None }, NOW + 90_000)),
            ["Token expired 4401 Token expired"]
        );
        let mut session = open();
        refresh(&mut session, NOW + 50_000);
        session.on(accepted(NOW / 1_000 + 110), NOW + 50_000);
        let seen = Event::Deadline { seen: Some(NOW + 139_000) };
        assert_eq!(shown(&session.on(seen, NOW + 140_000)), ["Token expired 4401 Token expired"], "it can renew");
        let mut session = open();
        let seen = Event::Deadline { seen: Some(NOW + 43_199_000) };
        assert_eq!(shown(&session.on(seen, NOW + 43_200_000)), ["Session expired 4401 Session expired"]);
    }

    #[test]
    fn a_refused_token_in_a_message_ends_it_with_the_row_of_its_refusal() {
        let dialect =
            || Arc::new(DialectSpec::token_field(FieldSpec { pointer: vec!["t".into()], upstream: FieldMode::Keep }));
        for (verdict, expected) in [
            (Verdict::Refused(Ending::InvalidToken), (4001, "Invalid token")),
            (Verdict::Refused(Ending::ExpiredOnArrival), (4401, "Token expired")),
            (Verdict::AnotherUser, (4001, "Invalid token")),
            (Verdict::Denied, (4001, "Access denied")),
            (Verdict::IdentityChanged, (1012, "Identity changed")),
        ] {
            let mut session = Session::open(Some(dialect()), life(30), standing(NOW / 1_000 + 60), NOW);
            assert_eq!(shown(&session.on(Event::Field(token()), NOW)), ["verify"]);
            let ended = session.on(Event::Verdict(verdict), NOW);
            let [Action::End(ending)] = ended.as_slice() else { panic!("{ended:?}") };
            assert_eq!((ending.code(Some(&dialect())), ending.reason()), expected);
        }
    }
}
