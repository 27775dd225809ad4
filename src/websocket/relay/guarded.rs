//! Client messages where the upstream acts on some of them itself (docs/contract.md section 4.4): what it could take
//! for one of the dialect's is read whole and judged, everything else goes on.
//!
//! A message is held while it may still turn out to be one that we take. As soon as it cannot, its bytes go on as
//! they come, and are still looked at: should another reading of it show up later, its last byte never goes up,
//! and no reader acts on a message that has not ended.

use std::ops::Range;

use super::Relay;
use super::peer::{Held, Outgoing};
use super::texts::LOOKED_INTO;
use crate::websocket::classify::{Classifier, Kind, Rules};
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{FrameParser, Header, Opcode, Piece, Sender, apply_mask};
use crate::websocket::session::Event;

/// Masked payload is looked at through a buffer of this size.
const CHUNK: usize = 1 << 10;

/// How the messages of one client are recognised, and what is known of the one that is coming.
pub(super) struct Guard {
    pub(super) rules: Rules,
    message: Option<Classifier>,
    /// The longest message that is held.
    held_bytes: usize,
    /// The dialect reads whole messages, so one that is longer and undecided ends the session.
    is_whole: bool,
}

impl Guard {
    pub(super) fn new(rules: Rules, is_whole: bool, message_bytes: usize) -> Self {
        // A handshake message of ours is never longer, whatever the route's messages may be.
        let held_bytes = if is_whole { message_bytes } else { message_bytes.min(LOOKED_INTO) };
        Self { rules, message: None, held_bytes, is_whole }
    }

    fn feed(&mut self, payload: &[u8], mask: Option<[u8; 4]>, offset: u64) {
        let Some(message) = &mut self.message else { return };
        let mut chunk = [0; CHUNK];
        let mut at = offset;
        for part in payload.chunks(CHUNK) {
            let plain = &mut chunk[..part.len()];
            plain.copy_from_slice(part);
            if let Some(mask) = mask {
                apply_mask(plain, mask, at);
            }
            message.feed(&self.rules, plain);
            at += part.len() as u64;
        }
    }

    fn end(&mut self) {
        if let Some(message) = &mut self.message {
            message.end(&self.rules);
        }
    }

    fn is_guarded(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.is_guarded(&self.rules))
    }

    fn kinds(&self) -> Vec<Kind> {
        self.message.as_ref().map(|message| message.kinds(&self.rules).collect()).unwrap_or_default()
    }

    /// Whether it may still be one that we take, or is one already.
    fn is_held(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.could_be_sound() || message.kinds(&self.rules).count() > 0)
    }
}

impl Relay {
    fn guard(&mut self) -> Option<&mut Guard> {
        self.extra.as_mut()?.guard.as_mut()
    }

    pub(super) fn is_guarded(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.guard.is_some())
    }

    /// A data frame of the client's begins. `range`: where its header stands in the input.
    pub(super) fn guarded_frame_begins(
        &mut self,
        header: Header,
        range: Option<Range<usize>>,
        input: &[u8],
        out: &mut Outgoing,
    ) {
        let Some(guard) = self.guard() else { return };
        if header.opcode != Opcode::Continuation {
            let is_text = header.opcode == Opcode::Text;
            guard.message = Some(Classifier::new(&guard.rules, is_text));
            // A binary message is never one that we take.
            self.held = is_text.then(|| Held::new(header.opcode));
        }
        let ends = header.fin && header.length == 0;
        if ends && let Some(guard) = self.guard() {
            guard.end();
        }
        if self.held.is_none() {
            return match range {
                _ if ends && self.refuses_what_went_on() => {}
                Some(range) => out.keep(input, range),
                None => out.add(input, header.raw()),
            };
        }
        if let Some(held) = &mut self.held {
            held.keep_raw(header.raw());
        }
        self.bound_held(header.length, input, out);
    }

    /// Payload of a data frame of the client's.
    pub(super) fn guarded_payload(
        &mut self,
        header: Header,
        range: Range<usize>,
        offset: u64,
        input: &[u8],
        out: &mut Outgoing,
    ) {
        let payload = &input[range.clone()];
        let end = offset + payload.len() as u64;
        let Some(guard) = self.guard() else { return };
        guard.feed(payload, header.mask, offset);
        if header.fin && end == header.length {
            guard.end();
        }
        let (fits, stays) = (guard.is_guarded(), guard.is_held());
        let Some(held) = &mut self.held else {
            if !self.refuses_what_went_on() {
                out.keep(input, range);
            }
            return;
        };
        held.keep_raw(payload);
        if held.to_the_end {
            super::directions::unmask_onto(&mut held.text, payload, header.mask, offset);
        } else if fits {
            // What is held from here on goes up only as we write it.
            held.text = payload_of(&held.raw);
            held.stay_to_the_end();
        } else if !stays {
            return self.release(input, out);
        }
        self.bound_held(header.length - end, input, out);
    }

    /// Refuses a message whose beginning went up already, before what would complete it does.
    fn refuses_what_went_on(&mut self) -> bool {
        let is_guarded = self.guard().is_some_and(|guard| guard.is_guarded());
        if is_guarded {
            tracing::debug!("the upstream could take a message that had begun to go on for one of the dialect's");
            self.act_on(Event::Close(CloseReason::InvalidMessage));
        }
        is_guarded
    }

    /// Keeps what is held within its bound; `coming` more bytes of it have been announced.
    fn bound_held(&mut self, coming: u64, input: &[u8], out: &mut Outgoing) {
        let Some(guard) = self.extra.as_ref().and_then(|extra| extra.guard.as_ref()) else { return };
        let Some(held) = &self.held else { return };
        let limit = guard.held_bytes;
        // Announced bytes count only of a message that is read to its end.
        let too_long = if held.to_the_end {
            (held.text.len() as u64).saturating_add(coming) > limit as u64
        } else {
            // Headers and all: fragments without content are a bound of their own.
            held.raw.len() > limit + LOOKED_INTO
        };
        if !too_long {
            return;
        }
        if held.to_the_end || guard.is_whole {
            return self.act_on(Event::Close(CloseReason::TooLarge));
        }
        self.release(input, out);
    }

    /// A message of the client's has ended that was held to its end.
    pub(super) fn guarded_message_ends(&mut self, mut held: Held, input: &[u8], out: &mut Outgoing) {
        let kinds = self.guard().map(|guard| guard.kinds()).unwrap_or_default();
        if kinds.is_empty() {
            return out.add(input, &held.raw);
        }
        if !held.to_the_end {
            held.text = payload_of(&held.raw);
        }
        if kinds.contains(&Kind::UpstreamAlone) {
            // Only we speak to the upstream in that dialect.
            return self.act_on(Event::Close(CloseReason::InvalidMessage));
        }
        self.client_message_ends(&held, input, out);
    }
}

/// What stands in these data frames, unmasked; the last one may not have ended yet.
fn payload_of(raw: &[u8]) -> Vec<u8> {
    let mut parser = FrameParser::new(Sender::Client, false);
    let (mut text, mut mask, mut at) = (Vec::new(), None, 0);
    // They were walked before, so there is no violation in them.
    while let Ok(Some((piece, next))) = parser.advance(raw, at) {
        at = next;
        match piece {
            Piece::Header(header, _) => mask = header.mask,
            Piece::Payload { range, offset, .. } => {
                super::directions::unmask_onto(&mut text, &raw[range], mask, offset);
            }
        }
    }
    text
}
