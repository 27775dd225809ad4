//! The direction from the client to the upstream. Most messages are forwarded as they came. A text that may be for the
//! proxy is kept until it is decided whether it is.
//!
//! The upstream may act on messages of a dialect itself (docs/contract.md section 4.4). Then a message that the
//! upstream could take as one of these is kept until it is complete, and then read. As soon as a message cannot be one
//! that the proxy reads, its bytes are forwarded as they come. It is still classified: if another reading of it turns
//! up later, its last byte is never forwarded, and no reader acts on an incomplete message.

mod extras;
mod guard;

use std::ops::Range;
use std::sync::Arc;
use std::task::Context;

use super::direction::{Direction, QueueFull, forward_control, forward_header};
use super::outgoing::Outgoing;
use crate::auth::Token;
use crate::auth::token::TokenError;
use crate::budget::MemoryBudget;
use crate::policy::{DialectSpec, FieldSpec};
use crate::websocket::assembler::{ControlFrame, Keep, MessageBuffer, Part};
use crate::websocket::classify::MessageKind;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::dialect::{
    self, Forward, LaterMessage, PresentedToken, may_be_dialect_message, upstream_message,
};
use crate::websocket::field;
use crate::websocket::frame::{Header, Opcode, Sender, Violation, encode, masking_key};
use crate::websocket::session::Event;
use extras::{AwaitingVerdict, RelayExtras};
use guard::Guard;

/// The maximum length in bytes of a client's handshake message, unless the dialect reads whole messages.
const HANDSHAKE_BYTES: usize = 16 << 10;

/// The events that [`FromClient::next`] returns.
#[derive(Debug)]
pub(super) enum FromClientEvent {
    /// Events for the session.
    Session(Vec<Event>),
    /// A Close, which is not forwarded yet.
    Close(ControlFrame),
}

/// What became of a message that awaited a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageEnd {
    /// It was forwarded, or there was none.
    Forwarded,
    /// It was not forwarded, except for other lines of the same text.
    Dropped,
}

/// The settings for reading a client's messages.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) dialect: Option<&'a DialectSpec>,
    /// The largest token that is read from a message.
    pub(super) token_bytes: usize,
}

/// The direction from the client to the upstream.
pub(super) struct FromClient {
    pub(super) direction: Direction,
    /// The message that is kept until it is decided whether it is forwarded.
    kept: Option<Box<MessageBuffer>>,
    extras: Option<Box<RelayExtras>>,
}

/// The input of [`FromClient::new`].
pub(super) struct FromClientInput<'a> {
    pub(super) has_extensions: bool,
    pub(super) dialect: Option<&'a DialectSpec>,
    pub(super) upstream_dialect: Option<Arc<DialectSpec>>,
    pub(super) token: Option<Token>,
    /// The largest message of a dialect that reads whole messages.
    pub(super) message_bytes: usize,
    pub(super) held_messages: MemoryBudget,
}

impl FromClient {
    pub(super) fn new(input: FromClientInput<'_>) -> Self {
        let direction = Direction::new(Sender::Client, input.has_extensions);
        Self { direction, kept: None, extras: RelayExtras::new(input) }
    }

    /// Returns whether the client must not be read until a verdict has come.
    pub(super) fn is_awaiting_verdict(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.awaiting_verdict.is_some())
    }

    /// Returns whether a control frame may be sent to the upstream. No byte of a kept message has been forwarded.
    pub(super) fn may_send_control(&self) -> bool {
        self.kept.is_some() || self.direction.frames.is_between_frames()
    }

    /// Drops the kept message.
    pub(super) fn drop_kept(&mut self) {
        self.kept = None;
    }

    /// Drops everything that waits to be forwarded.
    pub(super) fn drop_queued(&mut self) {
        self.direction.clear_queue();
        if let Some(extras) = &mut self.extras {
            extras.drop_queued();
        }
    }

    /// Keeps the bytes that the client sent after a message that awaits its verdict. They are in memory already, and
    /// nothing more is read meanwhile.
    pub(super) fn keep_behind(&mut self, bytes: &[u8]) {
        if let Some(extras) = &mut self.extras {
            extras.behind.extend_from_slice(bytes);
        }
    }

    /// Takes the bytes that the client sent after a message that awaited its verdict.
    pub(super) fn take_behind(&mut self) -> Vec<u8> {
        self.extras.as_mut().map(|extras| std::mem::take(&mut extras.behind)).unwrap_or_default()
    }

    /// Reserves memory for the kept bytes, under `limits.held_message_bytes`. Returns whether it was granted.
    pub(super) fn reserve_kept(&mut self) -> bool {
        let kept = self.kept.as_ref().map_or(0, |kept| kept.memory());
        self.extras.as_mut().is_none_or(|extras| extras.reserve(kept))
    }

    /// Returns whether the memory of the kept bytes is needed for the messages of other users.
    pub(super) fn is_evicted(&self, cx: &mut Context<'_>) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.is_evicted(cx))
    }

    /// Drops everything that is kept, and its reservation.
    pub(super) fn evict(&mut self) {
        self.drop_kept();
        self.drop_queued();
        if let Some(extras) = &mut self.extras {
            extras.release_memory();
        }
    }

    /// Records that a token is being verified, which may be that of the message that awaits its verdict.
    pub(super) fn verification_started(&mut self, token: &Token) {
        if let Some(message) = self.extras.as_mut().and_then(|extras| extras.awaiting_verdict.as_mut()) {
            message.is_being_verified = message.token.is_same(token);
        }
    }

    /// Returns whether the next verdict is that on the token of the message that awaits one.
    pub(super) fn is_verifying_message(&self) -> bool {
        let message = self.extras.as_ref().and_then(|extras| extras.awaiting_verdict.as_ref());
        message.is_some_and(|message| message.is_being_verified)
    }

    /// Ends the wait for a verdict. If the token was not accepted, only the part of its message that needs no token is
    /// forwarded, or the form with the token in force if the session goes on with that one.
    ///
    /// # Errors
    /// Returns [`QueueFull`] when too many messages wait.
    pub(super) fn verdict_received(&mut self, has_expired: bool) -> Result<MessageEnd, QueueFull> {
        let message = self.extras.as_mut().and_then(|extras| extras.awaiting_verdict.take());
        let Some(AwaitingVerdict { expired, refused, .. }) = message else { return Ok(MessageEnd::Forwarded) };
        let (frame, end) = match expired.filter(|_| has_expired) {
            Some(expired) => (Some(expired), MessageEnd::Forwarded),
            None => (refused, MessageEnd::Dropped),
        };
        if let Some(frame) = frame {
            self.direction.enqueue(frame)?;
        }
        Ok(end)
    }

    /// Forwards an accepted token to the upstream, together with the message that carried it. Returns the dialect in
    /// which the upstream will acknowledge the token.
    ///
    /// A message that carries another token waits on: an earlier refresh may be accepted, or a login session renewed,
    /// before the verdict on its own.
    ///
    /// # Errors
    /// Returns [`QueueFull`] when too many messages wait.
    pub(super) fn forward_token(&mut self, token: Token) -> Result<Option<Arc<DialectSpec>>, QueueFull> {
        let Some(extras) = &mut self.extras else { return Ok(None) };
        let mut acknowledged_in = None;
        if let Some(dialect) = &extras.upstream_dialect
            && let Some(refresh) = &dialect.refresh
        {
            acknowledged_in = refresh.acknowledge.as_ref().map(|_| Arc::clone(dialect));
            self.direction.enqueue(encode_text(upstream_message(refresh, &token).as_bytes()))?;
        }
        let of_this_token = |message: &mut AwaitingVerdict| message.token.is_same(&token);
        if let Some(message) = extras.awaiting_verdict.take_if(of_this_token) {
            self.direction.enqueue(message.accepted)?;
        }
        if extras.keeps_token {
            extras.token = Some(token);
        }
        Ok(acknowledged_in)
    }

    /// Reads `input` from `at` on and forwards it to `out`, until the end of the input or an event that the relay must
    /// process.
    ///
    /// # Errors
    /// Returns a violation of RFC 6455, after which the stream cannot be read further.
    pub(super) fn next(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut Outgoing,
        reading: Reading<'_>,
    ) -> Result<Option<FromClientEvent>, Violation> {
        loop {
            self.direction.send_queued(input, out);
            let Some(part) = self.direction.frames.next(input, at)? else { return Ok(None) };
            let ends_message = part.ends_message();
            let result = match part {
                Part::Control(control) => {
                    if let Some(close) = forward_control(control, input, out) {
                        // The rest of a kept message will not come.
                        self.kept = None;
                        return Ok(Some(FromClientEvent::Close(close)));
                    }
                    Ok(())
                }
                part if self.has_guard() => self.read_guarded(part, input, out),
                Part::DataHeader(header, range) => {
                    self.begin_frame(&header, range, input, *at, out, reading.dialect);
                    Ok(())
                }
                Part::Payload { header, range, offset, .. } => {
                    self.read_payload(&header, range, offset, input, out, reading.dialect);
                    Ok(())
                }
            };
            let events = match result {
                Ok(()) if ends_message => self.end_message(input, out, reading),
                other => other.map(|()| Vec::new()),
            };
            match events {
                Ok(events) if events.is_empty() && !self.is_awaiting_verdict() => {}
                Ok(events) => return Ok(Some(FromClientEvent::Session(events))),
                Err(reason) => return Ok(Some(FromClientEvent::Session(vec![Event::Close(reason)]))),
            }
        }
    }

    fn begin_frame(
        &mut self,
        header: &Header,
        range: Option<Range<usize>>,
        input: &[u8],
        payload_at: usize,
        out: &mut Outgoing,
        dialect: Option<&DialectSpec>,
    ) {
        if header.opcode == Opcode::Text
            && header.length <= HANDSHAKE_BYTES as u64
            && let Some(dialect) = dialect
        {
            // The first byte of most texts shows that they are not for the proxy. They are not copied.
            let first = input.get(payload_at).zip(header.mask).map(|(byte, mask)| byte ^ mask[0]);
            if header.length == 0 || first.is_none_or(|first| may_be_dialect_message(dialect, &[first])) {
                self.kept = Some(Box::new(MessageBuffer::new(header.opcode, Keep::RawAndPayload)));
            }
        }
        if self.kept.as_ref().is_some_and(|kept| kept.raw.len() > 2 * HANDSHAKE_BYTES) {
            // Empty fragments without end are no refresh.
            self.release(input, out);
        }
        match &mut self.kept {
            Some(kept) => kept.push_header(header),
            None => forward_header(header, range, input, out),
        }
    }

    fn read_payload(
        &mut self,
        header: &Header,
        range: Range<usize>,
        offset: u64,
        input: &[u8],
        out: &mut Outgoing,
        dialect: Option<&DialectSpec>,
    ) {
        let Some(kept) = &mut self.kept else { return out.forward(input, range) };
        kept.push_payload(&input[range], header, offset);
        // It is released as soon as it is known not to be for the proxy.
        let is_released = dialect.is_some_and(|dialect| {
            !may_be_dialect_message(dialect, &kept.payload) || kept.payload.len() > HANDSHAKE_BYTES
        });
        if is_released {
            self.release(input, out);
        }
    }

    /// Forwards the kept message, and the rest of it as it comes.
    fn release(&mut self, input: &[u8], out: &mut Outgoing) {
        if let Some(kept) = self.kept.take() {
            out.insert(input, &kept.raw);
        }
    }

    fn has_guard(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.guard.is_some())
    }

    fn guard(&mut self) -> Option<&mut Guard> {
        self.extras.as_mut()?.guard.as_mut()
    }

    /// Reads a part of a data frame where the upstream acts on messages itself.
    fn read_guarded(&mut self, part: Part, input: &[u8], out: &mut Outgoing) -> Result<(), CloseReason> {
        let ends_message = part.ends_message();
        match part {
            Part::Control(_) => Ok(()),
            Part::DataHeader(header, range) => {
                let Some(guard) = self.guard() else { return Ok(()) };
                if header.opcode != Opcode::Continuation {
                    guard.begin_message(header.opcode);
                }
                if ends_message {
                    guard.end_message();
                }
                if header.opcode != Opcode::Continuation {
                    // The proxy never reads a binary message.
                    let is_text = header.opcode == Opcode::Text;
                    self.kept = is_text.then(|| Box::new(MessageBuffer::new(header.opcode, Keep::Raw)));
                }
                let Some(kept) = &mut self.kept else {
                    if ends_message {
                        self.check_forwarded()?;
                    }
                    forward_header(&header, range, input, out);
                    return Ok(());
                };
                kept.push_header(&header);
                self.limit_kept(header.length, input, out)
            }
            Part::Payload { header, range, offset, .. } => {
                let announced = header.length - offset - range.len() as u64;
                let Some(guard) = self.guard() else { return Ok(()) };
                guard.push_payload(&input[range.clone()], &header, offset);
                if ends_message {
                    guard.end_message();
                }
                let (concerns_upstream, may_be_read) = (guard.concerns_upstream(), guard.may_be_read());
                let Some(kept) = &mut self.kept else {
                    self.check_forwarded()?;
                    out.forward(input, range);
                    return Ok(());
                };
                kept.push_payload(&input[range], &header, offset);
                if concerns_upstream && !kept.is_payload_only() {
                    // From here on the message is forwarded only as the proxy rewrites it.
                    kept.keep_payload_only();
                } else if !concerns_upstream && !may_be_read {
                    self.release(input, out);
                    return Ok(());
                }
                self.limit_kept(announced, input, out)
            }
        }
    }

    /// Refuses a message whose beginning was forwarded, before the bytes that would complete it are forwarded.
    fn check_forwarded(&mut self) -> Result<(), CloseReason> {
        if self.guard().is_some_and(|guard| guard.concerns_upstream()) {
            tracing::debug!("the upstream could take a message that was partly forwarded for one of the dialect's");
            return Err(CloseReason::InvalidMessage);
        }
        Ok(())
    }

    /// Limits the length of the kept message; `announced` is the number of further bytes of the current frame.
    fn limit_kept(&mut self, announced: u64, input: &[u8], out: &mut Outgoing) -> Result<(), CloseReason> {
        let Some(guard) = self.extras.as_ref().and_then(|extras| extras.guard.as_ref()) else { return Ok(()) };
        let Some(kept) = &self.kept else { return Ok(()) };
        let limit = guard.max_kept_bytes;
        // Announced bytes count only for a message that is read as a whole.
        let is_too_long = if kept.is_payload_only() {
            (kept.payload.len() as u64).saturating_add(announced) > limit as u64
        } else {
            // This length includes the headers: empty fragments have a limit of their own.
            kept.raw.len() > limit + HANDSHAKE_BYTES
        };
        if !is_too_long {
            return Ok(());
        }
        if kept.is_payload_only() || guard.reads_whole_messages {
            return Err(CloseReason::TooLarge);
        }
        self.release(input, out);
        Ok(())
    }

    /// Processes a whole kept message. Returns the events for the session.
    fn end_message(
        &mut self,
        input: &[u8],
        out: &mut Outgoing,
        reading: Reading<'_>,
    ) -> Result<Vec<Event>, CloseReason> {
        let Some(mut kept) = self.kept.take() else { return Ok(Vec::new()) };
        if let Some(guard) = self.guard() {
            let kinds = guard.kinds();
            if kinds.is_empty() {
                out.insert(input, &kept.raw);
                return Ok(Vec::new());
            }
            if kinds.contains(&MessageKind::UpstreamOnly) {
                // Only the proxy sends messages of that dialect to the upstream.
                return Err(CloseReason::InvalidMessage);
            }
            kept.read_payload();
        }
        let Some(dialect) = reading.dialect else { return Ok(Vec::new()) };
        match &dialect.field {
            Some(field) => self.read_field(field, &kept, input, out, reading.token_bytes),
            None => self.read_message(dialect, &kept, input, out, reading.token_bytes),
        }
    }

    /// Reads a text that may be for the proxy.
    fn read_message(
        &mut self,
        dialect: &DialectSpec,
        kept: &MessageBuffer,
        input: &[u8],
        out: &mut Outgoing,
        token_bytes: usize,
    ) -> Result<Vec<Event>, CloseReason> {
        let extras = self.extras.as_ref();
        let token = extras.and_then(|extras| extras.token.as_ref());
        let rules = extras.and_then(|extras| extras.guard.as_ref()).map(|guard| &guard.rules);
        let read = dialect::read_later(dialect, &kept.payload, token_bytes, token, rules)?;
        for (message, _) in &read.messages {
            if let LaterMessage::Authenticate(presented) | LaterMessage::Refresh(presented) = message
                && let PresentedToken::NotAToken(error) = presented
            {
                log_refused(*error);
            }
        }
        match read.forward {
            Forward::Unchanged if kept.raw.is_empty() => {
                out.insert(input, &encode_masked(kept.opcode, &kept.payload));
            }
            Forward::Unchanged => out.insert(input, &kept.raw),
            Forward::Rewritten(text) => out.insert(input, &encode_masked(kept.opcode, text.as_bytes())),
            Forward::AfterVerdict { token, after } => {
                if let Some(extras) = &mut self.extras {
                    let encoded = |text: String| encode_masked(kept.opcode, text.as_bytes());
                    extras.awaiting_verdict = Some(AwaitingVerdict {
                        token,
                        is_being_verified: false,
                        accepted: encoded(after.accepted),
                        expired: after.expired.map(encoded),
                        refused: after.refused.map(encoded),
                    });
                }
            }
            Forward::Nothing => {}
        }
        Ok(read.messages.into_iter().map(|(message, copies)| Event::LaterMessage(message, copies)).collect())
    }

    /// Reads a message that may carry the token in a field.
    fn read_field(
        &mut self,
        spec: &FieldSpec,
        kept: &MessageBuffer,
        input: &[u8],
        out: &mut Outgoing,
        token_bytes: usize,
    ) -> Result<Vec<Event>, CloseReason> {
        let text = std::str::from_utf8(&kept.payload).map_err(|_| CloseReason::NotUtf8)?;
        let read = field::read(spec, text).map_err(|_| CloseReason::InvalidMessage)?;
        let frame = encode_text(read.edited.as_deref().unwrap_or(text).as_bytes());
        let current = self.extras.as_ref().and_then(|extras| extras.token.as_ref());
        let token = match read.token() {
            None if read.is_not_text => return Err(CloseReason::InvalidToken),
            // A token that is equal to the current one was verified already.
            Some(token) if current.is_none_or(|current| current.expose() != token) => token,
            _ => {
                out.insert(input, &frame);
                return Ok(Vec::new());
            }
        };
        let token = Token::parse(token, token_bytes).map_err(|error| {
            log_refused(error);
            CloseReason::InvalidToken
        })?;
        if let Some(extras) = &mut self.extras {
            let token = token.duplicate();
            extras.awaiting_verdict = Some(AwaitingVerdict {
                token,
                is_being_verified: false,
                accepted: frame,
                expired: None,
                refused: None,
            });
        }
        Ok(vec![Event::FieldToken(token)])
    }
}

/// Logs the reason why a later message has no token that could be verified.
fn log_refused(error: TokenError) {
    tracing::debug!(rejection = %error, "refresh refused");
}

/// Encodes a message of the proxy to the upstream.
fn encode_text(text: &[u8]) -> Vec<u8> {
    encode_masked(Opcode::Text, text)
}

fn encode_masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(&mut frame, opcode, payload, Some(masking_key()));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::FieldMode;

    /// Checks a session that began by a session cookie. Each verification would count toward the rate of refreshes, which is
    /// one a second.
    #[test]
    fn a_token_in_each_message_is_verified_once_where_the_session_began_without_one() {
        let field = FieldSpec { pointer: vec!["auth_token".to_owned()], upstream: FieldMode::Keep };
        let dialect = DialectSpec::token_field(field);
        let mut from_client = FromClient::new(FromClientInput {
            has_extensions: false,
            dialect: Some(&dialect),
            upstream_dialect: None,
            token: None,
            message_bytes: 1 << 16,
            held_messages: MemoryBudget::default(),
        });
        let input = encode_text(br#"{"prompt":"x","auth_token":"presented"}"#);
        let reading = Reading { dialect: Some(&dialect), token_bytes: 64 };
        for is_verified in [false, true, true] {
            let read = from_client.next(&input, &mut 0, &mut Outgoing::default(), reading).expect("frames");
            assert_eq!((read.is_none(), from_client.is_awaiting_verdict()), (is_verified, !is_verified));
            from_client.forward_token(Token::parse("presented", 64).expect("token")).expect("queued");
        }
    }

    /// Checks that a message with a token of its own waits for the verdict on that, also when the login session that opened
    /// the socket is renewed meanwhile.
    #[test]
    fn a_renewed_token_lets_no_message_with_another_token_through() {
        let token = |text: &str| Token::parse(text, 64).expect("token");
        let field = FieldSpec { pointer: vec!["auth_token".to_owned()], upstream: FieldMode::Keep };
        let dialect = DialectSpec::token_field(field);
        let mut from_client = FromClient::new(FromClientInput {
            has_extensions: false,
            dialect: Some(&dialect),
            upstream_dialect: Some(Arc::new(DialectSpec::vestibule())),
            token: Some(token("current")),
            message_bytes: 1 << 16,
            held_messages: MemoryBudget::default(),
        });
        let input = encode_text(br#"{"prompt":"x","auth_token":"presented"}"#);
        let reading = Reading { dialect: Some(&dialect), token_bytes: 64 };
        let read = from_client.next(&input, &mut 0, &mut Outgoing::default(), reading).expect("frames");
        let Some(FromClientEvent::Session(events)) = read else { panic!("no event") };
        assert!(matches!(&events[..], [Event::FieldToken(token)] if token.expose() == "presented"));
        from_client.forward_token(token("renewed")).expect("queued");
        assert!(from_client.is_awaiting_verdict());
        from_client.forward_token(token("presented")).expect("queued");
        assert!(!from_client.is_awaiting_verdict());
    }
}
