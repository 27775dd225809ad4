//! The bytes of one read that are forwarded.

use std::ops::Range;

/// The bytes to forward. They are a range of the input as long as nothing is held back, inserted or left out, so that
/// ordinary messages are not copied.
#[derive(Default)]
pub(super) struct Outgoing {
    range: Range<usize>,
    copied: Vec<u8>,
}

impl Outgoing {
    /// Forwards a range of the input.
    pub(super) fn forward(&mut self, input: &[u8], range: Range<usize>) {
        if !self.copied.is_empty() {
            self.copied.extend_from_slice(&input[range]);
        } else if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.insert(input, &input[range]);
        }
    }

    /// Forwards bytes that do not come from this place of the input.
    pub(super) fn insert(&mut self, input: &[u8], bytes: &[u8]) {
        if self.copied.is_empty() {
            self.copied.extend_from_slice(&input[std::mem::take(&mut self.range)]);
        }
        self.copied.extend_from_slice(bytes);
    }

    pub(super) fn bytes<'a>(&'a self, input: &'a [u8]) -> &'a [u8] {
        if self.copied.is_empty() { &input[self.range.clone()] } else { &self.copied }
    }
}
