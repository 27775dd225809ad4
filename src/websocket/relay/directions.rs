//! What of each direction goes on: payload as it came, control frames whole, texts of the client that
//! could be for us looked into first, messages of ours between two of the upstream's.

use std::ops::Range;

use tokio::time::Instant;

use super::peer::{Held, Outgoing};
use super::texts::LOOKED_INTO;
use super::{ClosedBy, Relay};
use crate::websocket::dialect::may_be_dialect_message;
use crate::websocket::frame::{Header, Opcode, PING, Piece, Violation, apply_mask, close_code};

impl Relay {
    /// Looks at what the client sent; what is returned goes up.
    pub(super) fn take_from_client(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        loop {
            self.say_up_between(input, &mut out);
            let (piece, next) = match self.from_client.advance(input, at) {
                Ok(Some(found)) => found,
                Ok(None) => return (out, None),
                Err(violation) => return (out, Some(violation)),
            };
            at = next;
            match piece {
                Piece::Header(header, range) => {
                    self.client_frame = Some(header);
                    if header.opcode.is_control() {
                        self.client_control.raw.extend_from_slice(header.raw());
                    } else {
                        self.last_data = Instant::now();
                        self.client_data_begins(header, range, input, next, &mut out);
                    }
                    if header.length == 0
                        && let Err(violation) = self.client_frame_ends(header, input, &mut out)
                    {
                        return (out, Some(violation));
                    }
                }
                Piece::Payload { range, offset, last } => {
                    let Some(header) = self.client_frame else { continue };
                    if !header.opcode.is_control() {
                        self.last_data = Instant::now();
                    }
                    if header.opcode.is_control() {
                        self.client_control.raw.extend_from_slice(&input[range.clone()]);
                        unmask_onto(&mut self.client_control.payload, &input[range], header.mask, offset);
                    } else if self.is_guarded() {
                        self.guarded_payload(header, range, offset, input, &mut out);
                        if self.closing.is_some() {
                            return (out, None);
                        }
                    } else if let Some(held) = &mut self.held {
                        held.keep_raw(&input[range.clone()]);
                        unmask_onto(&mut held.text, &input[range], header.mask, offset);
                        self.decide_held(input, &mut out);
                    } else {
                        out.keep(input, range);
                    }
                    if last && let Err(violation) = self.client_frame_ends(header, input, &mut out) {
                        return (out, Some(violation));
                    }
                }
            }
            if self.upstream.told_close || self.closing.is_some() {
                return (out, None);
            }
            if self.is_holding() {
                self.keep_behind(&input[at..]);
                return (out, None);
            }
        }
    }

    fn client_data_begins(
        &mut self,
        header: Header,
        range: Option<Range<usize>>,
        input: &[u8],
        next: usize,
        out: &mut Outgoing,
    ) {
        if self.is_guarded() {
            return self.guarded_frame_begins(header, range, input, out);
        }
        if header.opcode == Opcode::Text
            && header.length <= LOOKED_INTO as u64
            && let Some(dialect) = self.session.dialect()
        {
            // Most texts show with their first byte that they are not for us, and are not copied.
            let first = input.get(next).zip(header.mask).map(|(byte, mask)| byte ^ mask[0]);
            if header.length == 0 || first.is_none_or(|first| may_be_dialect_message(dialect, &[first])) {
                self.held = Some(Held::new(header.opcode));
            }
        }
        if self.held.as_ref().is_some_and(|held| held.raw.len() > 2 * LOOKED_INTO) {
            // Fragments without end and without content are no refresh.
            self.release(input, out);
        }
        match (&mut self.held, range) {
            (Some(held), _) => held.keep_raw(header.raw()),
            (None, Some(range)) => out.keep(input, range),
            (None, None) => out.add(input, header.raw()),
        }
    }

    /// Goes on at once as soon as it shows that it is not for us.
    fn decide_held(&mut self, input: &[u8], out: &mut Outgoing) {
        let (Some(held), Some(dialect)) = (&self.held, self.session.dialect()) else { return };
        if !may_be_dialect_message(dialect, &held.text) || held.text.len() > LOOKED_INTO {
            self.release(input, out);
        }
    }

    fn client_frame_ends(&mut self, header: Header, input: &[u8], out: &mut Outgoing) -> Result<(), Violation> {
        if header.opcode.is_control() {
            let control = std::mem::take(&mut self.client_control);
            match header.opcode {
                // That it lives is known by any byte of its.
                Opcode::Pong if control.payload == PING => {}
                Opcode::Close => {
                    // What it held back of a message that never ends would reach nobody.
                    self.held = None;
                    let code = close_code(&control.payload)?;
                    self.client.said_close = true;
                    self.first_close.get_or_insert((code, ClosedBy::Client));
                    self.upstream.told_close = true;
                    out.add(input, &control.raw);
                }
                _ => out.add(input, &control.raw),
            }
        } else if header.fin
            && let Some(held) = self.held.take()
        {
            if self.is_guarded() {
                self.guarded_message_ends(held, input, out);
            } else {
                self.client_message_ends(&held, input, out);
            }
        }
        Ok(())
    }

    pub(super) fn release(&mut self, input: &[u8], out: &mut Outgoing) {
        if let Some(held) = self.held.take() {
            out.add(input, &held.raw);
        }
    }

    /// Looks at what the upstream sent; what is returned goes to the client.
    pub(super) fn take_from_upstream(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        loop {
            self.say_between(input, &mut out);
            // Once it is being ended, only what belongs to the open message still goes on.
            if self.closing.is_some() && self.from_upstream.is_between_messages() && !self.still_hears_upstream() {
                return (out, None);
            }
            let (piece, next) = match self.from_upstream.advance(input, at) {
                Ok(Some(found)) => found,
                Ok(None) => return (out, None),
                Err(violation) => return (out, Some(violation)),
            };
            at = next;
            let header = match piece {
                Piece::Header(header, range) => {
                    self.upstream_frame = Some(header);
                    if header.opcode.is_control() {
                        self.upstream_control.raw.extend_from_slice(header.raw());
                    } else {
                        self.last_data = Instant::now();
                        self.upstream_data_begins(header, range, input, &mut out);
                    }
                    if header.length > 0 {
                        continue;
                    }
                    header
                }
                Piece::Payload { range, last, .. } => {
                    let Some(header) = self.upstream_frame else { continue };
                    if !header.opcode.is_control() {
                        self.last_data = Instant::now();
                    }
                    if header.opcode.is_control() {
                        self.upstream_control.raw.extend_from_slice(&input[range.clone()]);
                        self.upstream_control.payload.extend_from_slice(&input[range]);
                    } else if let Some(held) = self.upstream_text() {
                        held.keep_raw(&input[range.clone()]);
                        held.text.extend_from_slice(&input[range]);
                    } else {
                        out.keep(input, range);
                    }
                    if !last {
                        continue;
                    }
                    header
                }
            };
            if header.opcode.is_control() {
                if let Err(violation) = self.upstream_control_ends(header.opcode, input, &mut out) {
                    return (out, Some(violation));
                }
            } else if header.fin {
                self.upstream_text_ends(input, &mut out);
            }
            if self.client.told_close {
                return (out, None);
            }
        }
    }

    fn upstream_data_begins(&mut self, header: Header, range: Option<Range<usize>>, input: &[u8], out: &mut Outgoing) {
        if header.opcode == Opcode::Text && self.awaits_answer() {
            self.hold_upstream_text();
        }
        let held = self.upstream_text();
        if held.is_some_and(|held| held.raw.len() as u64 + header.length > LOOKED_INTO as u64) {
            self.release_upstream_text(input, out);
        }
        match (self.upstream_text(), range) {
            (Some(held), _) => held.keep_raw(header.raw()),
            (None, Some(range)) => out.keep(input, range),
            (None, None) => out.add(input, header.raw()),
        }
    }

    fn upstream_control_ends(&mut self, opcode: Opcode, input: &[u8], out: &mut Outgoing) -> Result<(), Violation> {
        let control = std::mem::take(&mut self.upstream_control);
        match opcode {
            // That it lives is known by any byte of its.
            Opcode::Pong if control.payload == PING => {}
            Opcode::Close if self.closing.is_none() => {
                let code = close_code(&control.payload)?;
                self.upstream.said_close = true;
                self.client.told_close = true;
                self.first_close.get_or_insert((code, ClosedBy::Upstream));
                out.add(input, &control.raw);
            }
            // Two Closes would be one too many; ours is on its way.
            Opcode::Close => self.upstream.said_close = true,
            _ => out.add(input, &control.raw),
        }
        Ok(())
    }

    /// Our messages go out between two of the upstream's.
    pub(super) fn say_between(&mut self, input: &[u8], out: &mut Outgoing) {
        if !self.say.is_empty() && self.from_upstream.is_between_messages() && self.upstream_control.raw.is_empty() {
            for saying in self.say.drain(..) {
                out.add(input, &saying.frame);
            }
        }
    }
}

pub(super) fn unmask_onto(target: &mut Vec<u8>, bytes: &[u8], mask: Option<[u8; 4]>, offset: u64) {
    let start = target.len();
    target.extend_from_slice(bytes);
    if let Some(mask) = mask {
        apply_mask(&mut target[start..], mask, offset);
    }
}
