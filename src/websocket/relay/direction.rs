//! The common part of both directions of a relay: frames are read, control frames forwarded, and messages of the proxy
//! sent between two messages of the stream.

use std::collections::VecDeque;
use std::ops::Range;

use super::outgoing::Outgoing;
use crate::websocket::assembler::{ControlFrame, FrameReader};
use crate::websocket::frame::{Header, Opcode, PING, Sender};

/// The maximum number of the proxy's messages that wait for the end of the stream's message.
const MAX_QUEUED_MESSAGES: usize = 16;
/// The maximum number of waiting answers to an application's pings. The oldest is dropped for a newer one.
const MAX_QUEUED_PONGS: usize = 64;

/// A message of the proxy.
#[derive(Debug)]
struct QueuedMessage {
    frame: Vec<u8>,
    /// Whether the message answers an application's ping.
    is_pong: bool,
}

/// Messages of the proxy that wait for the end of the stream's message.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<QueuedMessage>,
}

/// The error when too many messages wait, which happens only if the sender of the stream never ends its message.
#[derive(Debug)]
pub(super) struct QueueFull;

/// One direction of a relay.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) frames: FrameReader,
    queue: Option<Box<Queue>>,
}

impl Direction {
    pub(super) fn new(sender: Sender, has_extensions: bool) -> Self {
        Self { frames: FrameReader::new(sender, has_extensions), queue: None }
    }

    pub(super) fn has_queued(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a message of the proxy. `frame` is a whole frame.
    ///
    /// # Errors
    /// Returns [`QueueFull`] when too many messages wait.
    pub(super) fn enqueue(&mut self, frame: Vec<u8>) -> Result<(), QueueFull> {
        let messages = &mut self.queue.get_or_insert_default().messages;
        if messages.iter().filter(|queued| !queued.is_pong).count() >= MAX_QUEUED_MESSAGES {
            return Err(QueueFull);
        }
        messages.push_back(QueuedMessage { frame, is_pong: false });
        Ok(())
    }

    /// Queues an answer to an application's ping. When too many wait, the oldest is dropped: a client that is still
    /// connected has sent another ping since.
    pub(super) fn enqueue_pong(&mut self, frame: Vec<u8>) {
        let messages = &mut self.queue.get_or_insert_default().messages;
        let mut pongs = messages.iter().enumerate().filter(|(_, queued)| queued.is_pong);
        if let (Some((oldest, _)), true) = (pongs.next(), pongs.count() + 1 >= MAX_QUEUED_PONGS) {
            messages.remove(oldest);
        }
        messages.push_back(QueuedMessage { frame, is_pong: true });
    }

    pub(super) fn clear_queue(&mut self) {
        self.queue = None;
    }

    /// Takes the queued messages where they may be sent: between two messages of the stream.
    pub(super) fn take_queued(&mut self) -> Option<Vec<u8>> {
        if !self.frames.is_between_messages() {
            return None;
        }
        self.take_all_queued()
    }

    /// Takes the queued messages, whose receiver is between two messages.
    pub(super) fn take_all_queued(&mut self) -> Option<Vec<u8>> {
        let queue = self.queue.take()?;
        Some(queue.messages.into_iter().flat_map(|queued| queued.frame).collect())
    }

    /// Sends the queued messages after the bytes forwarded so far, where they may be sent.
    pub(super) fn send_queued(&mut self, input: &[u8], out: &mut Outgoing) {
        if let Some(messages) = self.take_queued() {
            out.insert(input, &messages);
        }
    }
}

/// Forwards a header that is not held back.
pub(super) fn forward_header(header: &Header, range: Option<Range<usize>>, input: &[u8], out: &mut Outgoing) {
    match range {
        Some(range) => out.forward(input, range),
        None => out.insert(input, header.raw()),
    }
}

/// Forwards a control frame, except for the pongs that answer the proxy's own pings. A Close is returned instead.
pub(super) fn forward_control(control: ControlFrame, input: &[u8], out: &mut Outgoing) -> Option<ControlFrame> {
    match control.opcode {
        Opcode::Close => return Some(control),
        // Every byte of a peer counts as a sign of life, so nothing else is done with the pong.
        Opcode::Pong if control.payload == PING => {}
        _ => out.insert(input, &control.raw),
    }
    None
}
