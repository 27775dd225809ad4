//! Moves bytes between the two peers: reads from one, forwards, and writes to the other.

use std::task::{Context, Poll};

use super::from_client::{FromClientEvent, Reading};
use super::from_upstream::StopAfter;
use super::outgoing::Outgoing;
use super::scratch::with_scratch;
use super::{ClosedBy, Relay};
use crate::runtime::Moment;
use crate::websocket::close_reason::CloseReason;
use crate::websocket::frame::{Violation, close_code};
use crate::websocket::session::Event;

impl Relay {
    /// Forwards the bytes that both peers had sent before the relay began.
    pub(super) fn forward_early(&mut self, from_client: &[u8], from_upstream: &[u8]) {
        self.traffic.count_in(from_client.len(), &self.upstream.socket);
        let (outgoing, violation) = self.read_from_upstream(from_upstream);
        let to_client = outgoing.bytes(from_upstream);
        self.traffic.count_out(to_client.len(), &self.client.socket);
        self.client.out().extend_from_slice(to_client);
        if violation.is_some() {
            self.close_for_upstream_violation();
        }
        if self.closing.is_some() {
            return;
        }
        let (outgoing, violation) = self.read_from_client(from_client);
        self.upstream.out().extend_from_slice(outgoing.bytes(from_client));
        if violation.is_some() {
            self.close_for_client_violation();
        }
    }

    /// Reads input of the client, and returns the part that is forwarded.
    fn read_from_client(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        let violation = loop {
            let reading = Reading {
                dialect: self.session.dialect().map(|dialect| &**dialect),
                token_bytes: self.limits.token_bytes,
            };
            match self.from_client.next(input, &mut at, &mut out, reading) {
                Ok(None) => break None,
                Ok(Some(FromClientEvent::Session(events))) => {
                    for event in events {
                        self.process(event);
                    }
                }
                Ok(Some(FromClientEvent::Close(close))) => match close_code(&close.payload) {
                    Ok(code) => {
                        self.client.close_received = true;
                        self.upstream.forwarding_ended = true;
                        self.first_close.get_or_insert((code, ClosedBy::Client));
                        out.insert(input, &close.raw);
                    }
                    Err(violation) => break Some(violation),
                },
                Err(violation) => break Some(violation),
            }
            if self.upstream.forwarding_ended || self.closing.is_some() {
                break None;
            }
            if self.from_client.is_awaiting_verdict() {
                self.from_client.keep_behind(&input[at..]);
                break None;
            }
        };
        if self.from_client.direction.frames.take_has_read_data() {
            self.last_data = Moment::now();
        }
        (out, violation)
    }

    /// Reads input of the upstream, and returns the part that is forwarded.
    fn read_from_upstream(&mut self, input: &[u8]) -> (Outgoing, Option<Violation>) {
        let mut out = Outgoing::default();
        let mut at = 0;
        let violation = loop {
            let stop = match &self.closing {
                Some(_) if self.awaits_upstream() => StopAfter::Input,
                Some(closing) if closing.message_end_timed_out() => StopAfter::Frame,
                Some(_) => StopAfter::Message,
                None => StopAfter::Input,
            };
            match self.from_upstream.next(input, &mut at, &mut out, stop) {
                Ok(None) => break None,
                // A second Close would follow; the proxy's own is being sent.
                Ok(Some(_)) if self.closing.is_some() => self.upstream.close_received = true,
                Ok(Some(close)) => match close_code(&close.payload) {
                    Ok(code) => {
                        self.upstream.close_received = true;
                        self.client.forwarding_ended = true;
                        self.first_close.get_or_insert((code, ClosedBy::Upstream));
                        out.insert(input, &close.raw);
                    }
                    Err(violation) => break Some(violation),
                },
                Err(violation) => break Some(violation),
            }
            if self.client.forwarding_ended {
                break None;
            }
        };
        if self.from_upstream.direction.frames.take_has_read_data() {
            self.last_data = Moment::now();
        }
        (out, violation)
    }

    /// Writes to the upstream and reads from the client. Returns whether anything has happened.
    pub(super) fn pump_from_client(&mut self, cx: &mut Context<'_>) -> bool {
        if self.from_client.is_evicted(cx) {
            self.close_for_eviction();
            return true;
        }
        if self.closing.is_some() && !self.upstream.forwarding_ended {
            // The Close is sent at once, whatever the client reads, after all of its accepted messages.
            self.close_upstream();
        }
        if !self.upstream.shut {
            match self.upstream.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    // It may still have sent something. The end of its stream is read next.
                    self.upstream.abandon();
                    return true;
                }
                // After a Close nothing of the client is forwarded. Only its own Close, or its end, is awaited.
                Poll::Pending if !self.upstream.forwarding_ended => {
                    self.client.is_paused = true;
                    return false;
                }
                Poll::Pending => {}
            }
            // The stream ends only once the client has its Close, so that the upstream can end its message.
            let is_closed = self.closing.is_some() && self.client.forwarding_ended;
            let is_done = self.client.has_ended() || is_closed;
            if is_done && (self.upstream.has_finished() || self.upstream.has_taken_everything()) {
                self.upstream.shut(cx);
                return true;
            }
        } else if !self.upstream.poll_shut(cx) && self.client.has_ended() {
            return false;
        }
        if self.from_client.direction.has_queued()
            && !self.upstream.shut
            && self.closing.is_none()
            && let Some(messages) = self.from_client.direction.take_queued()
        {
            if self.upstream.write_now(cx, &messages).is_err() {
                self.upstream.shut = true;
            }
            return true;
        }
        if self.client.has_ended() {
            return false;
        }
        if self.from_client.is_awaiting_verdict() {
            self.client.is_paused = true;
            return false;
        }
        if self.client.resume_reading() {
            self.last_data = Moment::now();
            self.restart_disconnect();
        }
        let behind = self.from_client.take_behind();
        let read = if behind.is_empty() {
            with_scratch(|scratch| {
                let length = self.client.read(cx, scratch)?;
                if length == 0 {
                    return Some(Ok(0));
                }
                self.traffic.count_in(length, &self.upstream.socket);
                Some(self.forward_to_upstream(cx, &scratch[..length]))
            })
        } else {
            Some(self.forward_to_upstream(cx, &behind))
        };
        match read {
            None => return false,
            Some(Ok(0)) => {
                self.first_close.get_or_insert((None, ClosedBy::Client));
            }
            Some(Ok(_)) => {
                if !self.from_client.reserve_kept() {
                    self.close_for_eviction();
                }
            }
            Some(Err(_)) => self.close_for_client_violation(),
        }
        true
    }

    /// Forwards input of the client. Returns the number of bytes read.
    fn forward_to_upstream(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<usize, Violation> {
        // After a Close the rest of this direction is dropped.
        if self.upstream.forwarding_ended || self.upstream.shut || self.closing.is_some() {
            return Ok(input.len());
        }
        let (outgoing, violation) = self.read_from_client(input);
        if self.upstream.write_now(cx, outgoing.bytes(input)).is_err() {
            self.upstream.shut = true;
        }
        violation.map_or(Ok(input.len()), Err)
    }

    /// Writes to the client and reads from the upstream. Returns whether anything has happened.
    pub(super) fn pump_from_upstream(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.client.shut {
            let was_write_pending = self.client.is_write_pending();
            let flushed = self.client.poll_flush(cx);
            if was_write_pending && let Some(closing) = &mut self.closing {
                // The upstream was not read, and so its message could not end.
                closing.awaiting_message_end_since = Moment::now();
            }
            match flushed {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.client_stopped_reading();
                    return true;
                }
                // After a Close nothing of the upstream is forwarded. Only its end is awaited.
                Poll::Pending if !self.client.forwarding_ended => {
                    self.upstream.is_paused = true;
                    return false;
                }
                Poll::Pending => {}
            }
            if self.closing.is_none()
                && !self.client.forwarding_ended
                && let Some(messages) = self.from_upstream.direction.take_queued()
            {
                self.write_to_client(cx, &messages);
                return true;
            }
            if self.closing.is_some() && !self.client.forwarding_ended {
                self.send_close();
                if self.client.forwarding_ended {
                    return true;
                }
            }
            let is_done = (self.client.forwarding_ended && self.closing.is_some()) || self.upstream.has_ended();
            if is_done && self.client.has_taken_everything() {
                self.client.shut(cx);
                return true;
            }
        } else if !self.client.poll_shut(cx) && self.upstream.has_ended() {
            return false;
        }
        if self.upstream.has_ended() {
            return false;
        }
        if self.upstream.resume_reading() {
            self.last_data = Moment::now();
            self.restart_disconnect();
        }
        let read = with_scratch(|scratch| {
            let length = self.upstream.read(cx, scratch)?;
            let input = &scratch[..length];
            if length == 0 || self.client.forwarding_ended || self.client.shut {
                return Some(Ok(length));
            }
            let (outgoing, violation) = self.read_from_upstream(input);
            self.write_to_client(cx, outgoing.bytes(input));
            Some(violation.map_or(Ok(length), Err))
        });
        match read {
            None => return false,
            Some(Ok(0)) => {
                if !self.upstream.close_received && !self.client.close_received && !self.client.has_ended() {
                    self.process(Event::Close(CloseReason::UpstreamLost));
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => self.close_for_upstream_violation(),
        }
        true
    }

    fn write_to_client(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        self.traffic.count_out(bytes.len(), &self.client.socket);
        if self.client.write_now(cx, bytes).is_err() {
            self.client_stopped_reading();
        }
    }
}
