//! The state machine of one authenticated WebSocket, without I/O and without a clock: events are its input, actions its
//! output (docs/contract.md sections 4.2 and 4.5). The time comes with each event, in milliseconds since the epoch;
//! [`Session::deadline`] returns the time of the next event.

mod event;
mod refresh;
mod revalidation;

use std::sync::Arc;
use std::time::Duration;

use super::close_reason::CloseReason;
use super::dialect::{FirstMessage, LaterMessage, PresentedToken};
use super::template::{Copies, Values, render};
use crate::auth::{RemoteCheck, Revalidation, RevocationKeys, StoredIdentity};
use crate::policy::{DialectSpec, OnExpiry, WebSocketSpec};
use crate::runtime::Millis;
use refresh::{Acknowledgement, Refreshes};
use revalidation::{Consequence, Revalidator};

pub(super) use event::{Action, Event, Verdict};
pub(super) use revalidation::RevalidationPlan;

/// The credential on which a session depends: its user, the end of the token, and the keys by which both can be
/// revoked.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    /// The user, and the end of the token; where the token has no end, the time of the next revalidation.
    pub(super) identity: StoredIdentity,
    /// Whether the token has no end, so that only a revalidation ends the session.
    pub(super) is_open_ended: bool,
    /// The provider's clock skew: a session stays open at least this long after its token expires.
    pub(super) clock_skew: Duration,
    /// The keys by which the session can be revoked; `None` where revocation is off.
    pub(super) revocation_keys: Option<Arc<RevocationKeys>>,
    /// The plan by which the provider is asked again.
    pub(super) revalidation: Option<Box<RevalidationPlan>>,
    /// Whether the credential is a session cookie, which the page renews. Then the session ends with it, also under
    /// `auto`.
    pub(super) renews: bool,
}

/// The part of a [`Credential`] that is kept as long as the session is open.
#[derive(Debug)]
struct CurrentCredential {
    identity: StoredIdentity,
    revocation_keys: Option<Arc<RevocationKeys>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    AwaitingFirstMessage {
        /// The end of `auth_timeout`.
        deadline: u64,
    },
    /// The token of the first message is being verified.
    Verifying,
    /// The upstream's 101 is awaited.
    Connecting(Box<Authenticated>),
    /// Messages are relayed.
    Open,
    Closed,
}

/// The content of the `authenticated` that the client gets once the upstream is connected.
#[derive(Debug, PartialEq, Eq)]
struct Authenticated {
    user_id: String,
}

/// The limits on the time that a route's sessions stay open.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionLimits {
    /// The time that a session stays open after its token expires; at least the clock skew.
    pub(super) grace: Duration,
    /// The setting that decides whether a session ends with its token.
    pub(super) on_expiry: OnExpiry,
    /// Under `auto`: the time that a session stays open after its user was last seen.
    pub(super) presence: Duration,
    /// The maximum duration of a session, whatever its tokens allow.
    pub(super) max_lifetime: Option<Duration>,
}

impl SessionLimits {
    /// Returns the limits of a route's sessions.
    #[must_use]
    pub(super) fn of(spec: &WebSocketSpec) -> Self {
        let WebSocketSpec { grace, on_expiry, presence, max_lifetime, .. } = *spec;
        Self { grace, on_expiry, presence, max_lifetime }
    }
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { grace: Duration::ZERO, on_expiry: OnExpiry::Close, presence: Duration::ZERO, max_lifetime: None }
    }
}

/// The state of one session. Times are milliseconds since the epoch, `u64::MAX` for never; durations are milliseconds.
/// It is kept small, since a proxy holds thousands of sessions.
#[derive(Debug)]
pub(super) struct Session {
    dialect: Option<Arc<DialectSpec>>,
    phase: Phase,
    grace: Millis,
    presence: u64,
    on_expiry: OnExpiry,
    /// The end of `max_lifetime`, or of the login session.
    lifetime_end: u64,
    /// The current credential; `None` until a token was verified, and on public routes.
    credential: Option<CurrentCredential>,
    /// The end of the token and of its grace.
    credential_end: u64,
    revalidator: Option<Box<Revalidator>>,
    refreshes: Refreshes,
    /// The values that the answer to the current message copies from it.
    reply_copies: Copies,
    /// Whether the client has shown that it can renew its token.
    renews: bool,
}

impl Session {
    /// Starts a session that awaits its first message.
    #[must_use]
    pub(super) fn pending(
        dialect: Arc<DialectSpec>,
        auth_timeout: Option<Duration>,
        limits: SessionLimits,
        now: u64,
    ) -> Self {
        let deadline = auth_timeout.map_or(u64::MAX, |timeout| now.saturating_add(millis(timeout)));
        Self::new(Phase::AwaitingFirstMessage { deadline }, Some(dialect), limits, now)
    }

    /// Starts a session whose credential came on the upgrade, after the upstream's 101.
    #[must_use]
    pub(super) fn open(
        dialect: Option<Arc<DialectSpec>>,
        limits: SessionLimits,
        credential: Credential,
        now: u64,
    ) -> Self {
        let mut session = Self::new(Phase::Open, dialect, limits, now);
        session.apply_credential(credential, now);
        session
    }

    /// Starts a session on a public route, which no token ends.
    #[must_use]
    pub(super) fn public() -> Self {
        Self::new(Phase::Open, None, SessionLimits::default(), 0)
    }

    fn new(phase: Phase, dialect: Option<Arc<DialectSpec>>, limits: SessionLimits, now: u64) -> Self {
        Self {
            dialect,
            phase,
            grace: limits.grace.into(),
            presence: millis(limits.presence),
            on_expiry: limits.on_expiry,
            lifetime_end: limits.max_lifetime.map_or(u64::MAX, |lifetime| now.saturating_add(millis(lifetime))),
            credential: None,
            credential_end: u64::MAX,
            revalidator: None,
            refreshes: Refreshes::default(),
            reply_copies: Copies::default(),
            renews: false,
        }
    }

    fn apply_credential(&mut self, credential: Credential, now: u64) {
        let grace = millis(self.grace.get().max(credential.clock_skew));
        self.credential_end = match self.on_expiry {
            OnExpiry::Keep => u64::MAX,
            _ if credential.is_open_ended => u64::MAX,
            _ => credential.identity.expires_at().saturating_mul(1_000).saturating_add(grace),
        };
        if let Some(at) = credential.identity.login_session_ends_at() {
            self.credential_end = u64::MAX;
            self.lifetime_end = self.lifetime_end.min(at.saturating_mul(1_000));
        }
        self.revalidator = credential.revalidation.map(|plan| {
            Box::new(match self.revalidator.take() {
                Some(revalidator) => revalidator.renewed(*plan, now),
                None => Revalidator::new(*plan, now),
            })
        });
        self.renews |= credential.renews;
        let Credential { identity, revocation_keys, .. } = credential;
        let former = self.credential.take().and_then(|credential| credential.revocation_keys);
        // A sign-out of the session cookie that opened the socket ends the session also after a refresh with another
        // token.
        let revocation_keys = match (revocation_keys, former) {
            (Some(revocation_keys), Some(former)) => Some(revocation_keys.in_browser_session_of(&former)),
            (revocation_keys, former) => revocation_keys.or(former),
        };
        self.credential = Some(CurrentCredential { identity, revocation_keys });
    }

    /// Sets the Unix time in seconds at which the session cookie of the credential expires: a reload may have changed
    /// `session.max_age`.
    pub(super) fn set_cookie_expiry(&mut self, at: u64) {
        let Some(credential) = &mut self.credential else { return };
        let former = credential.identity.expires_at().saturating_mul(1_000);
        credential.identity.set_expires_at(at);
        // Under `on_expiry: keep` no expiry ends the session.
        if self.credential_end != u64::MAX {
            let grace = self.credential_end.saturating_sub(former);
            self.credential_end = at.saturating_mul(1_000).saturating_add(grace);
        }
    }

    /// Returns the check by which the provider is asked about the session.
    #[must_use]
    pub(super) fn revalidation_check(&self) -> Option<&RemoteCheck> {
        self.revalidator.as_ref().map(|revalidator| revalidator.check())
    }

    /// Returns the keys by which the session can be revoked.
    #[must_use]
    pub(super) fn revocation_keys(&self) -> Option<&RevocationKeys> {
        self.credential.as_ref()?.revocation_keys.as_deref()
    }

    /// Returns the identity of the user; `None` on a public route.
    #[must_use]
    pub(super) fn identity(&self) -> Option<&StoredIdentity> {
        self.credential.as_ref().map(|credential| &credential.identity)
    }

    /// Returns the identity of an open session while its token has not expired. The key of an expired token is not
    /// checked: every rotation would end the sessions that outlive their tokens.
    #[must_use]
    pub(super) fn unexpired_identity(&self, now: u64) -> Option<&StoredIdentity> {
        let identity = self.identity().filter(|identity| now < identity.expires_at().saturating_mul(1_000));
        identity.filter(|_| self.phase == Phase::Open)
    }

    /// Returns the dialect; `None` for `dialect: none`.
    #[must_use]
    pub(super) fn dialect(&self) -> Option<&Arc<DialectSpec>> {
        self.dialect.as_ref()
    }

    /// Returns the values that the answer to the current message copies from it.
    #[must_use]
    pub(super) fn reply_copies(&self) -> &Copies {
        &self.reply_copies
    }

    /// Returns whether a later token is being verified, or waits to be.
    #[must_use]
    pub(super) fn is_verifying(&self) -> bool {
        self.refreshes.is_verifying() || self.refreshes.is_queued()
    }

    /// Returns the number of accepted refreshes.
    #[must_use]
    pub(super) fn refreshes(&self) -> u32 {
        self.refreshes.accepted()
    }

    /// Returns the time of the next [`Event::Deadline`], in milliseconds since the epoch.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<u64> {
        let deadline = match self.phase {
            Phase::AwaitingFirstMessage { deadline } => deadline,
            // Verifying and connecting have time limits of their own.
            Phase::Verifying | Phase::Connecting(_) | Phase::Closed => u64::MAX,
            Phase::Open => {
                // A refresh that is being verified when the token ends is awaited.
                let expiry = if self.refreshes.is_verifying() {
                    u64::MAX
                } else if self.refreshes.is_queued() {
                    self.credential_end.min(self.refreshes.next_at())
                } else {
                    self.credential_end
                };
                let revalidation = self.revalidator.as_ref().map_or(u64::MAX, |revalidator| revalidator.deadline());
                expiry.min(self.lifetime_end).min(revalidation)
            }
        };
        (deadline != u64::MAX).then_some(deadline)
    }

    /// Processes an event at `now`.
    pub(super) fn on(&mut self, event: Event, now: u64) -> Vec<Action> {
        match (&self.phase, event) {
            (Phase::Closed, _) => Vec::new(),
            (_, Event::Close(reason)) => self.close(reason),
            (Phase::AwaitingFirstMessage { .. }, Event::FirstMessage(message, copies)) => {
                self.reply_copies = copies;
                self.first_message(message)
            }
            (Phase::AwaitingFirstMessage { deadline }, Event::Deadline { .. }) if now >= *deadline => {
                self.close(CloseReason::Timeout)
            }
            (Phase::Verifying, Event::Verdict(verdict)) => self.first_verdict(verdict, now),
            (Phase::Connecting(_), Event::UpstreamOpen) => self.upstream_opened(now),
            (Phase::Open, Event::LaterMessage(message, copies)) => self.later_message(message, copies, now),
            (Phase::Open, Event::FieldToken(token)) => {
                self.refreshes.enqueue(token, Acknowledgement::None, Copies::default());
                self.start_refresh(now)
            }
            (Phase::Open, Event::Verdict(verdict)) => self.refresh_verdict(verdict, now),
            (Phase::Open, Event::Revalidation(answer)) => self.revalidated(&answer, now),
            (Phase::Open, Event::Deadline { last_seen }) => self.deadline_passed(now, last_seen),
            // An event that is too late for its phase changes nothing.
            (_, _) => Vec::new(),
        }
    }

    fn close(&mut self, reason: CloseReason) -> Vec<Action> {
        self.phase = Phase::Closed;
        self.refreshes.clear_queue();
        vec![Action::Close(reason)]
    }

    fn first_message(&mut self, message: FirstMessage) -> Vec<Action> {
        match message {
            FirstMessage::Authenticate(token) => {
                self.phase = Phase::Verifying;
                vec![Action::Verify(token)]
            }
            FirstMessage::Ping(reply) => vec![Action::Send(reply)],
            FirstMessage::InvalidMessage => self.close(CloseReason::InvalidMessage),
            FirstMessage::Unexpected => self.close(CloseReason::Unexpected),
            FirstMessage::MissingToken => self.close(CloseReason::MissingToken),
            FirstMessage::NotAToken(_) => self.close(CloseReason::InvalidToken),
        }
    }

    fn first_verdict(&mut self, verdict: Verdict, now: u64) -> Vec<Action> {
        match verdict {
            Verdict::Accepted { user_id, credential, .. } => {
                self.phase = Phase::Connecting(Box::new(Authenticated { user_id }));
                self.apply_credential(credential, now);
                vec![Action::Connect]
            }
            Verdict::Refused(reason) => self.close(reason),
            Verdict::Expired { .. } => self.close(CloseReason::ExpiredOnArrival),
            Verdict::Denied => self.close(CloseReason::Denied),
            // There is no other token with which a first one could be compared.
            Verdict::AnotherUser | Verdict::IdentityChanged => self.close(CloseReason::InvalidToken),
        }
    }

    fn upstream_opened(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Phase::Connecting(authenticated) = std::mem::replace(&mut self.phase, Phase::Open) {
            actions.extend(self.acknowledge(Acknowledgement::Authenticated, &authenticated.user_id, now));
        }
        self.reply_copies = Copies::default();
        actions.push(Action::StartRelay);
        actions
    }

    fn acknowledge(&self, acknowledgement: Acknowledgement, user_id: &str, now: u64) -> Option<Action> {
        let dialect = self.dialect.as_ref()?;
        let template = match acknowledgement {
            Acknowledgement::Authenticated => dialect.authenticate.acknowledge.as_ref()?,
            Acknowledgement::Refreshed => dialect.refresh.as_ref()?.acknowledge.as_ref()?,
            Acknowledgement::None => return None,
        };
        let exp = self.identity().map_or(0, StoredIdentity::expires_at);
        let expires_in = exp.saturating_sub(now / 1_000);
        let values = Values { user_id, exp, expires_in, copies: &self.reply_copies, ..Values::default() };
        Some(Action::Send(render(template, &values)))
    }

    fn later_message(&mut self, message: LaterMessage, copies: Copies, now: u64) -> Vec<Action> {
        let (presented, acknowledgement) = match message {
            LaterMessage::Ping(reply) => return vec![Action::SendPong(reply)],
            LaterMessage::Authenticate(presented) => (presented, Acknowledgement::Authenticated),
            LaterMessage::Refresh(presented) => (presented, Acknowledgement::Refreshed),
        };
        match presented {
            PresentedToken::Token(token) => {
                self.refreshes.enqueue(token, acknowledgement, copies);
                self.start_refresh(now)
            }
            PresentedToken::Missing => {
                // A refresh that is being verified is answered later, with copies of its own.
                let before = std::mem::replace(&mut self.reply_copies, copies);
                let actions = self.refuse_refresh("Missing token in refresh request");
                self.reply_copies = before;
                actions
            }
            PresentedToken::NotAToken(_) => self.refuse_refresh(&refresh_failed(CloseReason::InvalidToken)),
        }
    }

    /// Starts the queued refresh, if there is one and the rate limit allows it.
    fn start_refresh(&mut self, now: u64) -> Vec<Action> {
        let Some((token, copies)) = self.refreshes.start(now) else { return Vec::new() };
        self.reply_copies = copies;
        vec![Action::Verify(token)]
    }

    fn refuse_refresh(&mut self, message: &str) -> Vec<Action> {
        if self.refreshes.count_refused() {
            return self.close(CloseReason::TooManyRefreshes);
        }
        self.report_error(message)
    }

    /// Answers the current message with an error, after which the session goes on.
    fn report_error(&self, message: &str) -> Vec<Action> {
        let template = self.dialect.as_ref().and_then(|dialect| dialect.error.as_ref());
        let values = Values { message, copies: &self.reply_copies, ..Values::default() };
        template.map(|template| Action::Send(render(template, &values))).into_iter().collect()
    }

    fn refresh_verdict(&mut self, verdict: Verdict, now: u64) -> Vec<Action> {
        let acknowledgement = self.refreshes.finish();
        let outage = match &verdict {
            Verdict::Refused(reason) if reason.is_temporary() => Some(*reason),
            _ => None,
        };
        let verdict = match verdict {
            Verdict::Expired { .. } if acknowledgement != Acknowledgement::Authenticated => {
                Verdict::Refused(CloseReason::ExpiredOnArrival)
            }
            other => other,
        };
        let mut actions = match verdict {
            // A front end that authenticates with the token of its page load waits for this answer. The answer names
            // the end of the session, which does not change.
            Verdict::Expired { user_id } => {
                self.acknowledge(Acknowledgement::Authenticated, &user_id, now).into_iter().collect()
            }
            Verdict::Accepted { user_id, credential, token } => {
                self.refreshes.count_accepted();
                self.renews = true;
                self.apply_credential(credential, now);
                let acknowledgement = self.acknowledge(acknowledgement, &user_id, now);
                token.map(Action::ForwardToken).into_iter().chain(acknowledgement).collect()
            }
            // The message that carried the token is dropped, so the messages after it cannot be forwarded in order.
            Verdict::Refused(reason) if acknowledgement == Acknowledgement::None => self.close(reason),
            Verdict::AnotherUser if acknowledgement == Acknowledgement::None => self.close(CloseReason::InvalidToken),
            // Five outages, or another client at the same address, must not end the session for good.
            Verdict::Refused(reason) if reason.is_temporary() => self.report_error(&refresh_failed(reason)),
            Verdict::Refused(reason) => self.refuse_refresh(&refresh_failed(reason)),
            Verdict::AnotherUser => self.refuse_refresh("Token refresh failed: another user"),
            Verdict::Denied => self.close(CloseReason::Denied),
            Verdict::IdentityChanged => self.close(CloseReason::IdentityChanged),
        };
        if self.phase == Phase::Open {
            self.reply_copies = Copies::default();
            if let Some(reason) = outage.filter(|_| now >= self.credential_end) {
                // Such a refusal does not count, so one token after the other would keep the session open beyond its end
                // for as long as the provider does not answer.
                for copies in self.refreshes.clear_queue() {
                    self.reply_copies = copies;
                    actions.extend(self.report_error(&refresh_failed(reason)));
                }
                self.reply_copies = Copies::default();
            }
            actions.extend(if self.may_outlive_token() {
                // The deadline event says whether the user was seen. It comes at once where the token has expired.
                self.start_refresh(now)
            } else {
                self.deadline_passed(now, None)
            });
        }
        actions
    }

    /// Returns whether the session continues after its token expires, as long as the user is seen.
    fn may_outlive_token(&self) -> bool {
        self.on_expiry == OnExpiry::Auto && !self.renews
    }

    fn deadline_passed(&mut self, now: u64, last_seen: Option<u64>) -> Vec<Action> {
        if now >= self.lifetime_end {
            return self.close(CloseReason::Lifetime);
        }
        let is_check_due = self.revalidator.as_mut().is_some_and(|revalidator| revalidator.start(now));
        let mut actions: Vec<Action> = is_check_due.then_some(Action::Revalidate).into_iter().collect();
        if self.refreshes.is_verifying() {
            return actions;
        }
        if now >= self.credential_end && self.may_outlive_token() {
            let until = last_seen.map_or(0, |last_seen| last_seen.saturating_add(self.presence));
            if until > now {
                self.credential_end = until;
                actions.push(Action::ContinueExpired);
            }
        }
        let refresh = self.start_refresh(now);
        if refresh.is_empty() && now >= self.credential_end {
            return self.close(CloseReason::Expired);
        }
        actions.extend(refresh);
        actions
    }

    fn revalidated(&mut self, answer: &Revalidation, now: u64) -> Vec<Action> {
        match self.revalidator.as_mut().map(|revalidator| revalidator.answered(answer, now)) {
            Some(Consequence::Revoked) => self.close(CloseReason::Revoked),
            Some(Consequence::Unavailable) => self.close(CloseReason::AuthUnavailable),
            Some(Consequence::Continue) | None => Vec::new(),
        }
    }
}

fn refresh_failed(reason: CloseReason) -> String {
    format!("Token refresh failed: {}", reason.message().unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(any(test, fuzzing))]
pub(super) mod model;
#[cfg(test)]
mod tests;
