//! Recognises the client's messages on which the upstream may act itself (docs/contract.md section 4.4).

use crate::websocket::classify::{Classifier, MessageKind, Rules};
use crate::websocket::frame::{Header, Opcode, apply_mask};

/// The size in bytes of the buffer through which masked payload is classified.
const CHUNK: usize = 1 << 10;

/// Recognises messages by rules, and classifies the current one.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) rules: Rules,
    message: Option<Classifier>,
    /// The maximum length of a kept message in bytes.
    pub(super) max_kept_bytes: usize,
    /// Whether the dialect reads whole messages. Then a longer message that is not decided yet ends the session.
    pub(super) reads_whole_messages: bool,
}

impl Guard {
    pub(super) fn new(rules: Rules, reads_whole_messages: bool, max_kept_bytes: usize) -> Self {
        Self { rules, message: None, max_kept_bytes, reads_whole_messages }
    }

    pub(super) fn begin_message(&mut self, opcode: Opcode) {
        self.message = Some(Classifier::new(&self.rules, opcode == Opcode::Text));
    }

    /// Classifies payload that begins `offset` bytes into the payload of its frame.
    pub(super) fn push_payload(&mut self, payload: &[u8], header: &Header, offset: u64) {
        let Some(message) = &mut self.message else { return };
        let mut chunk = [0; CHUNK];
        let mut at = offset;
        for part in payload.chunks(CHUNK) {
            let plain = &mut chunk[..part.len()];
            plain.copy_from_slice(part);
            if let Some(mask) = header.mask {
                apply_mask(plain, mask, at);
            }
            message.feed(&self.rules, plain);
            at += part.len() as u64;
        }
    }

    pub(super) fn end_message(&mut self) {
        if let Some(message) = &mut self.message {
            message.end(&self.rules);
        }
    }

    /// Returns whether the upstream could act on the message.
    pub(super) fn concerns_upstream(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.is_guarded(&self.rules))
    }

    /// Returns the kinds of the rules that some reading of the message fits.
    pub(super) fn kinds(&self) -> Vec<MessageKind> {
        self.message.as_ref().map(|message| message.kinds(&self.rules).collect()).unwrap_or_default()
    }

    /// Returns whether the message is one that the proxy reads, or may still turn out to be one.
    pub(super) fn may_be_read(&self) -> bool {
        self.message.as_ref().is_some_and(|message| message.proxy_may_read() || message.kinds(&self.rules).count() > 0)
    }
}
