//! The messages of both ends. Each names its sender, its socket, its direction and its sequence number.

use std::sync::LazyLock;

use super::rng::Rng;
use crate::support::socket::{Side, frame};

/// The maximum length of a message's filling in bytes.
const LONGEST: usize = 1 << 20;
const LETTERS: usize = 26;

static FILLING: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..LONGEST + LETTERS).map(|at| b'a' + (at % LETTERS) as u8).collect());

/// The values that every message of one direction of one socket has.
#[derive(Clone)]
pub(crate) struct Stamp {
    pub(crate) user: String,
    pub(crate) number: u64,
    pub(crate) way: &'static str,
}

impl Stamp {
    /// Returns the text before and after the filling of the message with this sequence number. A third is binary, a
    /// third begins like a message of the dialect.
    fn around(&self, sequence: u64) -> (String, &'static str) {
        let Self { user, number, way } = self;
        let (begin, end) = match sequence % 3 {
            0 => ("B{", "\"}"),
            1 => ("{", "\"}"),
            _ => ("{\"type\":\"cell\",", "\"}"),
        };
        let text = format!(
            "{begin}\"user\":\"{user}\",\"socket\":{number},\"way\":\"{way}\",\"sequence\":{sequence},\"filling\":\""
        );
        (text, end)
    }

    /// Returns the message with this sequence number, as WebSocket frames that are split at random.
    pub(crate) fn frames(&self, sequence: u64, side: Side, rng: &mut Rng) -> Vec<Vec<u8>> {
        let length = match rng.below(1000) {
            0 => rng.below(LONGEST as u64),
            1..=5 => rng.below(300_000),
            6..=55 => rng.below(20_000),
            56..=155 => 0,
            _ => rng.below(200),
        } as usize;
        let (begin, end) = self.around(sequence);
        let from = sequence as usize % LETTERS;
        let whole = [begin.as_bytes(), &FILLING[from..from + length], end.as_bytes()].concat();
        let mut cuts = vec![0, whole.len()];
        if rng.in_thousand(300) {
            cuts.extend((0..=rng.below(3)).map(|_| rng.below(whole.len() as u64 + 1) as usize));
            cuts.sort_unstable();
        }
        let last = cuts.len() - 2;
        let opcode = if sequence.is_multiple_of(3) { 2 } else { 1 };
        cuts.windows(2)
            .enumerate()
            .map(|(at, cut)| {
                let first = if at == 0 { opcode } else { 0 } | if at == last { 0x80 } else { 0 };
                frame(side, first, &whole[cut[0]..cut[1]])
            })
            .collect()
    }

    /// Returns an error unless these bytes are the message with this sequence number.
    pub(crate) fn check(&self, sequence: u64, is_text: bool, bytes: &[u8]) -> Result<(), String> {
        let (begin, end) = self.around(sequence);
        let from = sequence as usize % LETTERS;
        let filling = bytes.strip_prefix(begin.as_bytes()).and_then(|rest| rest.strip_suffix(end.as_bytes()));
        let is_whole = filling.is_some_and(|filling| FILLING[from..].starts_with(filling));
        if is_whole && is_text != sequence.is_multiple_of(3) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        Err(format!("instead of {begin}…: {shown} ({} bytes)", bytes.len()))
    }
}
