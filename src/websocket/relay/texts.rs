//! Texts that are more than bytes to us: a client's that may be a refresh or carry a token, the few that we
//! say to the upstream ourselves, and the answers to those.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::guarded::Guard;
use super::peer::{Held, Outgoing};
use super::{MAX_QUEUED_MESSAGES, Relay};
use crate::auth::Token;
use crate::budget::{MemoryBudget, MemoryReservation};
use crate::json;
use crate::policy::{DialectSpec, FieldSpec};
use crate::websocket::classify::Rules;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::dialect::{self, Forward, upstream_message};
use crate::websocket::field;
use crate::websocket::frame::{Opcode, encode, masking_key};
use crate::websocket::session::Event;
use crate::websocket::template::matches_template;

/// Client texts longer than this are no handshake messages of ours, unless the dialect reads whole messages.
pub(super) const LOOKED_INTO: usize = 16 << 10;

/// An upstream has this long to answer a refresh; later it is a message like any other.
const ANSWER: Duration = Duration::from_secs(30);

/// Unfinished messages of this length are not counted: they are within what a socket may cost.
const NOT_COUNTED: usize = 64 << 10;

/// What only some sockets keep, so that the others do not pay for it.
#[derive(Default)]
pub(super) struct RelayExtras {
    /// How messages that the upstream acts on are recognised.
    pub(super) guard: Option<Guard>,
    /// The token in force: messages are compared with it, or carry it to the upstream.
    token: Option<Token>,
    /// The upstream was introduced to the user in this dialect, and hears of refreshes in it.
    introduced: Option<Arc<DialectSpec>>,
    /// Answers of the upstream's to what we said, still to be swallowed, and until when.
    awaited: u32,
    awaited_until: Option<Instant>,
    /// An upstream text that may be such an answer.
    upstream_text: Option<Held>,
    /// Messages to the upstream that the client did not write as they are, each a whole frame.
    say: VecDeque<Vec<u8>>,
    /// A message that waits for the verdict on its token.
    waiting: Option<Pending>,
    /// What the client sent behind it.
    behind: Vec<u8>,
    /// What the unfinished messages of all users may hold, and the share of this one.
    held_messages: MemoryBudget,
    reservation: Option<MemoryReservation>,
}

struct Pending {
    accepted: Vec<u8>,
    /// What of it goes on without its token.
    refused: Option<Vec<u8>>,
}

impl RelayExtras {
    /// What these sockets need; `None` for most.
    pub(super) fn new(
        dialect: Option<&DialectSpec>,
        introduced: Option<Arc<DialectSpec>>,
        token: Option<Token>,
        message_bytes: usize,
        held_messages: MemoryBudget,
    ) -> Option<Box<Self>> {
        let is_whole = dialect.is_some_and(|dialect| dialect.field.is_some() || dialect.forwards());
        let rules = Rules::of(dialect, introduced.as_deref());
        let guard = rules.map(|rules| Guard::new(rules, is_whole, message_bytes));
        let wanted = guard.is_some() || token.is_some();
        wanted.then(|| Box::new(Self { guard, token, introduced, held_messages, ..Self::default() }))
    }
}

fn to_upstream(opcode: Opcode, text: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(&mut frame, opcode, text, Some(masking_key()));
    frame
}

impl Relay {
    /// Whether the client is not read until a verdict has come.
    pub(super) fn is_holding(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.waiting.is_some())
    }

    /// Keeps what stands behind a message that waits; it is in memory already, and nothing more is read.
    pub(super) fn keep_behind(&mut self, bytes: &[u8]) {
        if let Some(extra) = &mut self.extra {
            extra.behind.extend_from_slice(bytes);
        }
    }

    /// Counts what is held of the client's message toward `limits.held_message_bytes`.
    pub(super) fn count_held(&mut self) {
        let held = self.held.as_ref().map_or(0, |held| held.raw.len() + held.text.len());
        let Some(extra) = &mut self.extra else { return };
        let waiting = extra.waiting.as_ref().map_or(0, |pending| pending.accepted.len());
        let held = held + waiting + extra.behind.len();
        if held <= NOT_COUNTED {
            extra.reservation = None;
            return;
        }
        let fits = if let Some(reservation) = &extra.reservation {
            reservation.resize(held)
        } else {
            extra.reservation = extra.held_messages.reserve(held);
            extra.reservation.is_some()
        };
        if !fits {
            self.give_way();
        }
    }

    /// Whether the message gives way to those of other users, and the session ends.
    pub(super) fn gives_way(&mut self, cx: &mut Context<'_>) -> bool {
        let reservation = self.extra.as_ref().and_then(|extra| extra.reservation.as_ref());
        let gives_way = reservation.is_some_and(|reservation| reservation.poll_evicted(cx).is_ready());
        if gives_way {
            self.give_way();
        }
        gives_way
    }

    fn give_way(&mut self) {
        self.authorizer.count_limit("held_message_bytes");
        self.act_on(Event::Close(CloseReason::TooManyConnections));
        self.held = None;
        self.forget_waiting();
        if let Some(extra) = &mut self.extra {
            extra.reservation = None;
        }
    }

    /// What stood behind a message that waited.
    pub(super) fn take_behind(&mut self) -> Vec<u8> {
        self.extra.as_mut().map(|extra| std::mem::take(&mut extra.behind)).unwrap_or_default()
    }

    /// Nothing that waits will go on any more.
    pub(super) fn forget_waiting(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.waiting = None;
            extra.behind = Vec::new();
            extra.say.clear();
        }
    }

    /// A verdict has come: without an accepted token only what needs none goes on.
    pub(super) fn settle_waiting(&mut self) {
        let judging = self.session.is_verifying();
        let Some(extra) = &mut self.extra else { return };
        if !judging && let Some(Pending { refused: Some(frame), .. }) = extra.waiting.take() {
            extra.say.push_back(frame);
        }
    }

    /// An accepted token goes where it is needed: to the upstream, and with the message that carried it.
    pub(super) fn hand_on(&mut self, token: Token) {
        let Some(extra) = &mut self.extra else { return };
        if let Some(dialect) = &extra.introduced
            && let Some(refresh) = &dialect.refresh
        {
            extra.say.push_back(to_upstream(Opcode::Text, upstream_message(refresh, &token).as_bytes()));
            extra.awaited += u32::from(refresh.acknowledge.is_some());
            extra.awaited_until = Some(Instant::now() + ANSWER);
        }
        if let Some(waiting) = extra.waiting.take() {
            extra.say.push_back(waiting.accepted);
        }
        if extra.token.is_some() {
            extra.token = Some(token);
        }
        if extra.say.len() > MAX_QUEUED_MESSAGES {
            // Only a client that never ends its message lets this many wait.
            self.act_on(Event::Close(CloseReason::TooManyRefreshes));
        }
    }

    /// Our messages to the upstream go out between two of the client's.
    pub(super) fn say_up_between(&mut self, input: &[u8], out: &mut Outgoing) {
        let between =
            self.from_client.is_between_messages() && self.held.is_none() && self.client_control.raw.is_empty();
        if let Some(extra) = &mut self.extra
            && between
        {
            for frame in extra.say.drain(..) {
                out.add(input, &frame);
            }
        }
    }

    pub(super) fn has_sayings_up(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| !extra.say.is_empty())
    }

    /// A whole text of the client's.
    pub(super) fn client_message_ends(&mut self, held: &Held, input: &[u8], out: &mut Outgoing) {
        let Some(dialect) = self.session.dialect().cloned() else { return };
        if let Some(field) = &dialect.field {
            return self.field_message(field, held, input, out);
        }
        let extra = self.extra.as_ref();
        let in_force = extra.and_then(|extra| extra.token.as_ref());
        let rules = extra.and_then(|extra| extra.guard.as_ref()).map(|guard| &guard.rules);
        let read = match dialect::read_later(&dialect, &held.text, self.settings.token_bytes, in_force, rules) {
            Ok(read) => read,
            Err(reason) => return self.act_on(Event::Close(reason)),
        };
        match read.forward {
            Forward::Unchanged if held.raw.is_empty() => out.add(input, &to_upstream(held.opcode, &held.text)),
            Forward::Unchanged => out.add(input, &held.raw),
            Forward::Rewritten(text) => out.add(input, &to_upstream(held.opcode, text.as_bytes())),
            Forward::AfterVerdict { accepted, refused } => {
                if let Some(extra) = &mut self.extra {
                    let refused = refused.map(|text| to_upstream(held.opcode, text.as_bytes()));
                    extra.waiting = Some(Pending { accepted: to_upstream(held.opcode, accepted.as_bytes()), refused });
                }
            }
            Forward::Nothing => {}
        }
        for (later, copies) in read.messages {
            self.act_on(Event::LaterMessage(later, copies));
        }
    }

    /// A message that may carry the token in a field.
    fn field_message(&mut self, spec: &FieldSpec, held: &Held, input: &[u8], out: &mut Outgoing) {
        let Ok(text) = std::str::from_utf8(&held.text) else {
            return self.act_on(Event::Close(CloseReason::NotUtf8));
        };
        let Ok(read) = field::read(spec, text) else {
            return self.act_on(Event::Close(CloseReason::InvalidMessage));
        };
        let frame = to_upstream(Opcode::Text, read.edited.as_deref().unwrap_or(text).as_bytes());
        let in_force = self.extra.as_ref().and_then(|extra| extra.token.as_ref());
        let token = match read.token() {
            None if read.is_no_text => return self.act_on(Event::Close(CloseReason::InvalidToken)),
            None => return out.add(input, &frame),
            // Compared whole: it is the one that was verified.
            Some(token) if in_force.is_some_and(|known| known.expose() == token) => return out.add(input, &frame),
            Some(token) => token,
        };
        match Token::parse(token, self.settings.token_bytes) {
            Ok(token) => {
                if let Some(extra) = &mut self.extra {
                    extra.waiting = Some(Pending { accepted: frame, refused: None });
                }
                self.act_on(Event::FieldToken(token));
            }
            Err(_) => self.act_on(Event::Close(CloseReason::InvalidToken)),
        }
    }

    /// Whether an upstream text may be an answer to what we said.
    pub(super) fn awaits_answer(&self) -> bool {
        self.extra
            .as_ref()
            .is_some_and(|extra| extra.awaited > 0 && extra.awaited_until.is_some_and(|until| Instant::now() < until))
    }

    pub(super) fn upstream_text(&mut self) -> Option<&mut Held> {
        self.extra.as_mut()?.upstream_text.as_mut()
    }

    pub(super) fn hold_upstream_text(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.upstream_text = Some(Held::new(Opcode::Text));
        }
    }

    /// It is too long to be an answer.
    pub(super) fn release_upstream_text(&mut self, input: &[u8], out: &mut Outgoing) {
        if let Some(held) = self.extra.as_mut().and_then(|extra| extra.upstream_text.take()) {
            out.add(input, &held.raw);
        }
    }

    /// An upstream text is whole: an acknowledgement of ours is swallowed, anything else goes on.
    pub(super) fn upstream_text_ends(&mut self, input: &[u8], out: &mut Outgoing) {
        let Some(extra) = &mut self.extra else { return };
        let Some(held) = extra.upstream_text.take() else { return };
        let Some(dialect) = &extra.introduced else { return out.add(input, &held.raw) };
        let answer = json::value(&held.text).ok();
        let says = |template: Option<&serde_json::Value>| {
            template.zip(answer.as_ref()).is_some_and(|(template, answer)| matches_template(template, answer))
        };
        if says(dialect.refresh.as_ref().and_then(|refresh| refresh.acknowledge.as_ref())) {
            extra.awaited -= 1;
            return;
        }
        if says(dialect.error.as_ref()) {
            extra.awaited -= 1;
            // It may as well be an error of the application's own, and a message must not be lost.
            tracing::warn!("the upstream says an error after a refresh whose token was verified here");
        }
        out.add(input, &held.raw);
    }
}
