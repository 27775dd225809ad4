//! What docs/contract.md section 4 says of one connection, as a state machine of its own: it foretells what each peer
//! receives. It shares no code with the product, and knows nothing of bytes, tasks and timers.

mod time;

use super::peer::Item;
use super::step::Step;
use super::window::{Unread, Window};

/// The time limits of the policy, in milliseconds.
pub(super) const AUTH_TIMEOUT: u64 = 10_000;
pub(super) const PROVIDER_TIMEOUT: u64 = 3_000;
pub(super) const HANDSHAKE_TIMEOUT: u64 = 8_000;
/// The time that a session lives on after its token.
pub(super) const GRACE: u64 = 5_000;
/// The validity of a token.
pub(super) const TOKEN_LIFE: u64 = 60_000;
/// The time that a peer has after a Close, and a half-closed connection without a message.
const LINGER: u64 = 5_000;
/// The number of refreshes in one order. Beyond five at once they would wait for their second.
const MAX_REFRESHES: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    Alice,
    Bob,
}

impl User {
    pub(super) const fn id(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Bob => "bob",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Verdict {
    User(User),
    Bad,
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The first message is awaited.
    Pending,
    /// The first verdict is awaited.
    Verifying,
    /// The upstream's answer is awaited.
    Dialing,
    /// Messages are relayed, also while a peer has closed and the other one has not.
    Relay,
    /// The connection ends, and nothing is forwarded.
    Over,
}

/// A question of the proxy to the provider that is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    /// The configuration by which it was asked.
    generation: u32,
    asked_at: u64,
}

/// A message of the client that waits until the upstream is connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Waiting {
    Message(String),
    Refresh,
}

/// What one peer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    messages: u32,
    close: bool,
    /// The end of its stream.
    end: bool,
    pub(super) is_gone: bool,
}

/// The state of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Contract {
    /// The time in milliseconds since the connection.
    pub(super) now: u64,
    phase: Phase,
    /// The end of the wait in `Pending` and `Dialing`.
    until: u64,
    question: Option<Question>,
    /// Whether a refresh waits for the verdict on another one.
    has_queued_refresh: bool,
    refreshes: u32,
    refused_refreshes: u32,
    waiting: Vec<Waiting>,
    /// The user of the first verdict.
    pub(super) user: Option<User>,
    session_end: u64,
    generation: u32,
    is_excluded: bool,
    is_revoked: bool,
    is_drained: bool,
    pub(super) client: Sent,
    pub(super) upstream: Sent,
    /// The time since which the upstream is connected.
    dialed_at: Option<u64>,
    /// Whether a Close, or the end of the stream, went to this peer.
    client_is_told: bool,
    upstream_is_told: bool,
    pub(super) to_client: Vec<Item>,
    pub(super) to_upstream: Vec<Item>,
    client_window: Window,
    upstream_window: Window,
    /// The time of the first Close, or end of a stream.
    closed_at: Option<u64>,
    /// Whether the time after it stands still, because something waits for a peer.
    awaits_delivery: bool,
    /// The time by which both connections have ended, once it is known.
    gone_by: Option<u64>,
}

impl Contract {
    /// Begins with a connection that was answered 101 and has sent nothing.
    pub(super) fn begin(now: u64) -> Self {
        Self {
            now,
            phase: Phase::Pending,
            until: AUTH_TIMEOUT,
            question: None,
            has_queued_refresh: false,
            refreshes: 0,
            refused_refreshes: 0,
            waiting: Vec::new(),
            user: None,
            session_end: u64::MAX,
            generation: 0,
            is_excluded: false,
            is_revoked: false,
            is_drained: false,
            client: Sent::default(),
            upstream: Sent::default(),
            dialed_at: None,
            client_is_told: false,
            upstream_is_told: false,
            to_client: Vec::new(),
            to_upstream: Vec::new(),
            client_window: Window::default(),
            upstream_window: Window::default(),
            closed_at: None,
            awaits_delivery: false,
            gone_by: None,
        }
    }

    /// Returns whether the upstream may have been connected.
    pub(super) fn has_dialed(&self) -> bool {
        self.dialed_at.is_some()
    }

    /// Compares the questions with those that the provider has. Returns whether they agree: only a connection that has
    /// ended, or one of whose peers is gone and which may end at any time, may have left a question unasked, or asked
    /// one in vain. An upstream's end is noticed later where a peer takes nothing.
    pub(super) fn agrees_on_question(&mut self, is_asked: bool) -> bool {
        let is_end_unread = self.upstream.is_gone && (self.client_window.was_full || self.upstream_window.was_full);
        let may_differ = self.phase == Phase::Over || self.client.is_gone || is_end_unread;
        if may_differ && !is_asked {
            self.question = None;
        }
        may_differ || self.question.is_some() == is_asked
    }

    /// Returns whether the event can happen. `since` is the time of the last one that the proxy has seen.
    pub(super) fn can(&self, step: Step, since: u64) -> bool {
        // What a peer sends in the very moment in which it ceases to be read may be read with what came before.
        let is_read = |window: &Window| window.since.is_none_or(|since| since < self.now);
        let client_sends = !self.client.end
            && !self.client.is_gone
            && !self.upstream_window.unread.contains(&Unread::End)
            && is_read(&self.upstream_window);
        // An upstream whose connection the proxy gave up can do nothing that anybody sees.
        let upstream_sends = self.dialed_at.is_some_and(|at| at < since)
            && self.is_upstream_connected()
            && !self.upstream.end
            && !self.upstream.is_gone
            && !self.client_window.unread.contains(&Unread::End)
            && is_read(&self.client_window);
        let is_relaying = self.phase == Phase::Relay;
        let is_answering = upstream_sends && self.phase == Phase::Dialing;
        let is_open = upstream_sends && self.phase != Phase::Dialing;
        let is_asked = self.question.is_some_and(|question| question.asked_at < since);
        match step {
            Step::Authenticate => client_sends && self.phase == Phase::Pending,
            Step::ClientMessage | Step::ClientClose | Step::ClientHalfClose => client_sends,
            Step::Refresh => client_sends && self.phase != Phase::Pending && self.refreshes < MAX_REFRESHES,
            Step::ClientGone => !self.client.is_gone,
            Step::ClientStopsReading => is_relaying && !self.client_window.was_full && !self.client.is_gone,
            Step::ClientReadsAgain => self.client_window.is_full,
            Step::UpstreamStopsReading => is_relaying && !self.upstream_window.was_full && upstream_sends,
            Step::UpstreamReadsAgain => self.upstream_window.is_full,
            Step::UpstreamMessage | Step::UpstreamClose => is_open,
            Step::UpstreamHalfClose => upstream_sends,
            Step::UpstreamGone => upstream_sends,
            Step::UpstreamOpen | Step::UpstreamRefused => is_answering,
            Step::VerdictGood | Step::VerdictOther | Step::VerdictBad | Step::VerdictLate => is_asked,
            Step::Revocation => !self.is_revoked,
            Step::ReloadAdmitting | Step::ReloadExcluding => self.generation < 2,
            Step::Drain => !self.is_drained,
            Step::UpstreamLate => self.phase == Phase::Dialing,
            Step::Expiry => self.phase == Phase::Relay,
            Step::Stall => self.is_client_unread() || self.is_upstream_unread(),
        }
    }

    /// Returns whether the client is not read, since the upstream takes nothing. After a Close nothing more is forwarded,
    /// so the rest is read.
    fn is_client_unread(&self) -> bool {
        self.phase == Phase::Relay && !self.upstream_window.waiting.is_empty() && !self.upstream_is_told
    }

    /// Returns whether the upstream is not read, since the client takes nothing.
    fn is_upstream_unread(&self) -> bool {
        self.phase == Phase::Relay && !self.client_window.waiting.is_empty() && !self.client_is_told
    }

    /// Returns whether the proxy still has a connection to the upstream that was open once.
    fn is_upstream_connected(&self) -> bool {
        matches!(self.phase, Phase::Dialing) || self.has_relayed()
    }

    /// Returns whether the upstream has answered 101.
    pub(super) fn has_relayed(&self) -> bool {
        self.to_client.iter().any(|item| matches!(item, Item::Proxy(text) if text.starts_with("authenticated")))
            || self.phase == Phase::Relay
    }

    /// Returns the next message of a peer: every other one looks like one of the dialect's at first.
    pub(super) fn message_of(name: &str, number: u32) -> String {
        if number % 2 == 1 { format!(r#"{{"{name}":{number}}}"#) } else { format!("{name} {number}") }
    }

    pub(super) fn next_client_message(&self) -> String {
        Self::message_of("client", self.client.messages + 1)
    }

    pub(super) fn next_upstream_message(&self) -> String {
        Self::message_of("upstream", self.upstream.messages + 1)
    }

    /// Processes an event at the present time. Those of the clock let the time pass.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Authenticate => {
                self.phase = Phase::Verifying;
                self.ask();
            }
            Step::ClientMessage => {
                let text = self.next_client_message();
                self.client.messages += 1;
                self.client_sends(Unread::Message(text));
            }
            Step::Refresh => {
                self.refreshes += 1;
                self.client_sends(Unread::Refresh);
            }
            Step::ClientClose => self.client_sends(Unread::Close),
            Step::ClientHalfClose => self.client_sends(Unread::End),
            Step::ClientGone => {
                self.client.is_gone = true;
                let window = self.client_window.empty();
                self.client_sends(Unread::End);
                window.unread.into_iter().for_each(|unread| self.upstream_sends(unread));
            }
            Step::UpstreamMessage => {
                let text = self.next_upstream_message();
                self.upstream.messages += 1;
                self.upstream_sends(Unread::Message(text));
            }
            Step::UpstreamClose => self.upstream_sends(Unread::Close),
            Step::UpstreamHalfClose => self.upstream_sends(Unread::End),
            Step::UpstreamGone => {
                self.upstream.is_gone = true;
                let window = self.upstream_window.empty();
                self.upstream_sends(Unread::End);
                window.unread.into_iter().for_each(|unread| self.client_sends(unread));
            }
            Step::ClientStopsReading => self.client_window.fill(),
            Step::UpstreamStopsReading => self.upstream_window.fill(),
            Step::ClientReadsAgain => {
                let window = self.client_window.empty();
                self.to_client.extend(window.waiting);
                self.delivered(window.since);
                window.unread.into_iter().for_each(|unread| self.upstream_sends(unread));
            }
            Step::UpstreamReadsAgain => {
                let window = self.upstream_window.empty();
                self.to_upstream.extend(window.waiting);
                self.delivered(None);
                window.unread.into_iter().for_each(|unread| self.client_sends(unread));
            }
            Step::UpstreamOpen => self.open(),
            Step::UpstreamRefused => self.end(Some("Access denied"), 1008),
            Step::VerdictGood => self.answer(Verdict::User(User::Alice)),
            Step::VerdictOther => self.answer(Verdict::User(User::Bob)),
            Step::VerdictBad => self.answer(Verdict::Bad),
            Step::Revocation | Step::ReloadAdmitting | Step::ReloadExcluding => {
                self.come_into_force(step);
                self.reauthorize();
            }
            Step::Drain => {
                self.is_drained = true;
                self.end(None, 1012);
            }
            Step::VerdictLate | Step::UpstreamLate | Step::Expiry | Step::Stall => self.advance(self.late(step)),
        }
    }

    /// Processes an event that the proxy sees after a revocation or a reload has come into force, and before the session
    /// is authorized again by it.
    pub(super) fn take_amid(&mut self, change: Step, step: Step) {
        self.come_into_force(change);
        self.take(step);
        self.reauthorize();
    }

    /// Processes an event that the proxy sees after a peer takes bytes again and the other one's messages are read, and
    /// before the end of the other one's stream is read.
    pub(super) fn take_before_end(&mut self, reads_again: Step, step: Step) {
        let is_client = reads_again == Step::ClientReadsAgain;
        let window = if is_client { &mut self.client_window } else { &mut self.upstream_window };
        let end = window.unread.pop_if(|last| *last == Unread::End);
        self.take(reads_again);
        self.take(step);
        match end {
            Some(end) if is_client => self.upstream_sends(end),
            Some(end) => self.client_sends(end),
            None => {}
        }
    }

    fn come_into_force(&mut self, change: Step) {
        if change == Step::Revocation {
            self.is_revoked = true;
        } else {
            self.generation += 1;
            self.is_excluded = change == Step::ReloadExcluding;
        }
    }

    /// Returns the time just after the limit that such an event exceeds.
    fn late(&self, step: Step) -> u64 {
        let asked_at = self.question.map_or(self.now, |question| question.asked_at);
        1 + match step {
            Step::VerdictLate => asked_at + PROVIDER_TIMEOUT,
            Step::UpstreamLate => self.until,
            Step::Stall => self.now + LINGER,
            _ => self.session_end.max(self.now),
        }
    }

    /// Processes what the client sends, once it is read.
    fn client_sends(&mut self, sent: Unread) {
        if self.is_client_unread() {
            return self.upstream_window.unread.push(sent);
        }
        match sent {
            Unread::Message(text) => self.client_message(text),
            Unread::Refresh => match self.phase {
                Phase::Pending => self.end(Some("Expected authentication message"), 1008),
                Phase::Verifying | Phase::Dialing if !self.client.close => self.waiting.push(Waiting::Refresh),
                Phase::Relay if !self.client.close => self.refresh(),
                _ => {}
            },
            Unread::Close => self.client_close(),
            Unread::End => self.client_end(),
        }
    }

    /// Processes what the upstream sends, once it is read.
    fn upstream_sends(&mut self, sent: Unread) {
        if self.is_upstream_unread() {
            return self.client_window.unread.push(sent);
        }
        match sent {
            Unread::Message(text) => {
                if self.phase == Phase::Relay && !self.upstream.close {
                    self.tell_client(Item::Text(text));
                    // A half-closed client still receives what comes within this time of the last message.
                    if self.client.end && !self.client.close {
                        self.gone_by = self.gone_by.map(|at| at.max(self.now + LINGER));
                    }
                }
            }
            Unread::Refresh => {}
            Unread::Close => {
                if self.phase == Phase::Relay && !self.upstream.close {
                    self.tell_client(Item::Close(1000));
                    self.end_within_linger();
                }
                self.upstream.close = true;
            }
            Unread::End => self.upstream_end(),
        }
    }

    /// Processes that a peer has taken all that waited for it. `waited_since` is the time since which a client has let
    /// something wait.
    fn delivered(&mut self, waited_since: Option<u64>) {
        if self.phase == Phase::Over {
            // The client has this time from the moment in which it has its Close.
            if waited_since.is_some() {
                self.gone_by = Some(self.now + LINGER);
            }
        } else if self.client_window.waiting.is_empty()
            && self.upstream_window.waiting.is_empty()
            && std::mem::take(&mut self.awaits_delivery)
        {
            self.gone_by = Some(self.now + LINGER);
        }
    }

    fn client_message(&mut self, text: String) {
        if self.client.close {
            return;
        }
        match self.phase {
            Phase::Pending => self.end(Some("Expected authentication message"), 1008),
            Phase::Verifying | Phase::Dialing => self.waiting.push(Waiting::Message(text)),
            Phase::Relay => self.tell_upstream(Item::Text(text)),
            Phase::Over => {}
        }
    }

    fn client_close(&mut self) {
        if !self.client.close {
            match self.phase {
                Phase::Pending | Phase::Verifying | Phase::Dialing => {
                    self.tell_client(Item::Close(1000));
                    self.finish();
                }
                Phase::Relay => {
                    self.tell_upstream(Item::Close(1000));
                    self.end_within_linger();
                }
                Phase::Over => {}
            }
        }
        self.client.close = true;
    }

    fn client_end(&mut self) {
        self.client.end = true;
        match self.phase {
            Phase::Pending | Phase::Verifying | Phase::Dialing => self.finish(),
            Phase::Relay => {
                self.upstream_is_told = true;
                self.end_within_linger();
            }
            Phase::Over => {}
        }
    }

    fn upstream_end(&mut self) {
        self.upstream.end = true;
        match self.phase {
            Phase::Dialing => self.end(Some("Upstream unavailable"), 1011),
            Phase::Relay if self.client.close || self.client.end || self.upstream.close => {
                // There is nothing more to come: the client's stream ends too.
                self.client_is_told = true;
                self.end_within_linger();
            }
            Phase::Relay => self.end(None, 1011),
            Phase::Pending | Phase::Verifying | Phase::Over => {}
        }
    }

    fn ask(&mut self) {
        self.question = Some(Question { generation: self.generation, asked_at: self.now });
    }

    fn refresh(&mut self) {
        if self.question.is_some() {
            self.has_queued_refresh = true;
        } else {
            self.ask();
        }
    }

    fn answer(&mut self, verdict: Verdict) {
        let Some(question) = self.question.take() else { return };
        if self.phase == Phase::Over {
            return;
        }
        // A configuration that came into force meanwhile asks for itself, unless the provider has refused the token or
        // its time is over.
        if question.generation != self.generation && matches!(verdict, Verdict::User(_)) {
            self.ask();
            return;
        }
        match self.phase {
            Phase::Verifying => self.first_verdict(verdict),
            Phase::Relay => self.refresh_verdict(verdict),
            Phase::Pending | Phase::Dialing | Phase::Over => {}
        }
    }

    fn first_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Bad => self.end(Some("Invalid authentication token"), 1008),
            Verdict::Late => self.end(Some("Authentication service unavailable"), 1013),
            Verdict::User(User::Alice) if self.is_revoked => self.end(Some("Invalid authentication token"), 1008),
            Verdict::User(_) if self.is_excluded => self.end(Some("Access denied"), 1008),
            Verdict::User(user) => {
                self.user = Some(user);
                self.session_end = self.end_of_new_token();
                self.phase = Phase::Dialing;
                self.until = self.now + HANDSHAKE_TIMEOUT;
                self.dialed_at = Some(self.now);
            }
        }
    }

    fn refresh_verdict(&mut self, verdict: Verdict) {
        let refused = match verdict {
            Verdict::Bad => Some("Invalid authentication token"),
            // It says nothing about the token, and does not count.
            Verdict::Late => {
                let message = "error: Token refresh failed: Authentication service unavailable";
                self.tell_client(Item::Proxy(message.to_owned()));
                return self.after_refresh();
            }
            Verdict::User(User::Alice) if self.is_revoked => Some("Invalid authentication token"),
            Verdict::User(user) if Some(user) != self.user => Some("another user"),
            Verdict::User(_) => None,
        };
        if let Some(reason) = refused {
            self.refused_refreshes += 1;
            if self.refused_refreshes >= 5 {
                return self.end(Some("Too many refreshes"), 1008);
            }
            self.tell_client(Item::Proxy(format!("error: Token refresh failed: {reason}")));
        } else {
            self.refused_refreshes = 0;
            self.session_end = self.end_of_new_token();
            self.tell_client(Item::Proxy("auth_refreshed".to_owned()));
        }
        self.after_refresh();
    }

    fn after_refresh(&mut self) {
        if std::mem::take(&mut self.has_queued_refresh) {
            self.ask();
        } else if self.now >= self.session_end {
            self.end(Some("Token expired"), 4401);
        }
    }

    /// Returns the end of a session with a token that is issued now, for whole seconds.
    fn end_of_new_token(&self) -> u64 {
        self.now / 1_000 * 1_000 + TOKEN_LIFE + GRACE
    }

    fn open(&mut self) {
        let Some(user) = self.user else { return };
        self.phase = Phase::Relay;
        self.tell_client(Item::Proxy(format!("authenticated: {}", user.id())));
        self.reauthorize();
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                _ if self.phase != Phase::Relay => {}
                Waiting::Message(text) => self.tell_upstream(Item::Text(text)),
                Waiting::Refresh => self.refresh(),
            }
        }
    }

    /// Ends an open session whose user is revoked, or whom the configuration excludes.
    fn reauthorize(&mut self) {
        if self.phase != Phase::Relay {
            return;
        }
        if self.is_revoked && self.user == Some(User::Alice) {
            self.end(Some("Session ended"), 1008);
        } else if self.is_excluded {
            self.end(Some("Access denied"), 1008);
        }
    }

    fn tell_client(&mut self, item: Item) {
        if !self.client_is_told && !self.client.is_gone {
            self.client_is_told = matches!(item, Item::Close(_));
            if self.client_window.is_full {
                self.client_window.wait(item, self.now);
                self.suspend_linger();
            } else {
                self.to_client.push(item);
            }
        }
    }

    fn tell_upstream(&mut self, item: Item) {
        if !self.upstream_is_told && !self.upstream.is_gone {
            self.upstream_is_told = matches!(item, Item::Close(_));
            if self.upstream_window.is_full {
                self.upstream_window.wait(item, self.now);
                self.suspend_linger();
            } else {
                self.to_upstream.push(item);
            }
        }
    }

    /// Ends the connection for a reason of the proxy's.
    fn end(&mut self, error: Option<&str>, code: u16) {
        if self.phase == Phase::Over {
            return;
        }
        if let Some(error) = error {
            self.tell_client(Item::Proxy(format!("error: {error}")));
        }
        self.tell_client(Item::Close(code));
        if self.phase == Phase::Relay {
            self.tell_upstream(Item::Close(1001));
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.phase = Phase::Over;
        self.has_queued_refresh = false;
        self.waiting.clear();
        self.client_window.unread.clear();
        self.upstream_window.unread.clear();
        self.end_within_linger();
    }
}
