//! The ids of requests and sockets, and the id of the current task: every log line of the task has it as the field
//! `request_id`.
//!
//! The id of a task is a task-local and not a `tracing` span: a span costs an allocation and two calls of the subscriber
//! for every request, also when nothing is logged. This costs a swap of two words for each poll.

use std::cell::OnceCell;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::HeaderValue;
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static REQUEST_ID: OnceCell<RequestId>;
}

/// The maximum length of an id that a trusted proxy gave, in bytes.
const MAX_GIVEN_BYTES: usize = 128;
/// The digits of an id that was made here.
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The id of a request or socket: the value of `X-Request-Id`. Its text is short and has no character that needs an escape
/// in a header, in JSON or in HTML.
///
/// It takes 16 bytes and, unless a trusted proxy gave it, no allocation: an open socket keeps its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestId(Form);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Form {
    /// There is no id: the text is empty.
    #[default]
    Unknown,
    /// The id was made here. The text is its 16 hexadecimal digits.
    Made(u64),
    /// A trusted proxy gave the id. The pointer is a thin one, so that the form of every id fits two words.
    Given(Arc<Box<str>>),
}

impl RequestId {
    /// Makes an id that is unique in this process and very likely beyond it. It is not a secret.
    #[must_use]
    pub fn unique() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        static SEED: OnceLock<u64> = OnceLock::new();
        let seed = *SEED.get_or_init(|| {
            let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos());
            // The low bits are the ones that differ between two processes.
            u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or(0) ^ (u64::from(std::process::id()) << 32)
        });
        // SplitMix64: a bijection, so two ids of one process never collide.
        let mut id = seed.wrapping_add(COUNTER.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(Form::Made(id ^ (id >> 31)))
    }

    /// Returns the id that a proxy gave, if it is well-formed: at most 128 letters, digits and `-_.=:/+`.
    #[must_use]
    pub fn given(text: &[u8]) -> Option<Self> {
        let is_allowed =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b':' | b'/' | b'+');
        let is_well_formed = !text.is_empty() && text.len() <= MAX_GIVEN_BYTES && text.iter().all(is_allowed);
        let text = std::str::from_utf8(text).ok().filter(|_| is_well_formed)?;
        Some(Self(Form::Given(Arc::new(text.into()))))
    }

    /// Returns the text, which is empty if there is no id.
    #[must_use]
    pub fn text(&self) -> RequestIdText<'_> {
        RequestIdText(match &self.0 {
            Form::Unknown => Text::Given(""),
            Form::Made(id) => Text::Made(digits(*id)),
            Form::Given(text) => Text::Given(text),
        })
    }

    /// Returns the value of the header `X-Request-Id`, if there is an id.
    #[must_use]
    pub fn to_header(&self) -> Option<HeaderValue> {
        match &self.0 {
            Form::Unknown => None,
            Form::Made(id) => HeaderValue::from_bytes(&digits(*id)).ok(),
            Form::Given(text) => HeaderValue::from_str(text).ok(),
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// The text of a [`RequestId`].
#[derive(Debug)]
pub struct RequestIdText<'a>(Text<'a>);

#[derive(Debug)]
enum Text<'a> {
    Made([u8; 16]),
    Given(&'a str),
}

impl Deref for RequestIdText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            // Hexadecimal digits are UTF-8.
            Text::Made(digits) => std::str::from_utf8(digits).unwrap_or_default(),
            Text::Given(text) => text,
        }
    }
}

/// Returns the hexadecimal digits of a number. The formatting machinery took three times as long.
fn digits(id: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (digit, byte) in digits.chunks_exact_mut(2).zip(id.to_be_bytes()) {
        digit.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    digits
}

/// A future with a request id.
pub type InRequest<F> = TaskLocalFuture<OnceCell<RequestId>, F>;

/// Wraps a future that handles a request. The id is set by [`set_request_id`] once it is known.
pub fn in_request<F: Future>(future: F) -> InRequest<F> {
    REQUEST_ID.scope(OnceCell::new(), future)
}

/// Wraps a future that works for the request with this id, such as the task of a socket.
pub fn in_request_with_id<F: Future>(id: RequestId, future: F) -> InRequest<F> {
    REQUEST_ID.scope(OnceCell::from(id), future)
}

/// Wraps a future that works for the current request in a task of its own. It is boxed, because its way into the task
/// moves it several times: for a pending socket that was 3,500 instructions.
pub fn in_current_request<F: Future>(future: F) -> InRequest<Pin<Box<F>>> {
    let id = REQUEST_ID.try_with(OnceCell::clone).unwrap_or_default();
    REQUEST_ID.scope(id, Box::pin(future))
}

/// Sets the id of the current request; a second call has no effect.
pub fn set_request_id(id: &RequestId) {
    // It fails outside of a request, and when the id is set already.
    let _ = REQUEST_ID.try_with(|current| current.set(id.clone()));
}

/// Returns the id of the current request.
#[must_use]
pub fn current_request_id() -> Option<RequestId> {
    REQUEST_ID.try_with(|id| id.get().cloned()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_differ_and_are_hexadecimal() {
        let ids: std::collections::HashSet<String> = (0..1_000).map(|_| RequestId::unique().to_string()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.len() == 16 && id.bytes().all(|byte| HEX.contains(&byte))), "{ids:?}");
        assert_eq!(RequestId(Form::Made(0x0123_4567_89ab_cdef)).to_string(), "0123456789abcdef");
    }

    #[test]
    fn an_id_that_was_given_is_kept_as_it_is_or_not_at_all() {
        let longest = "a".repeat(MAX_GIVEN_BYTES);
        for text in ["1", "Root=1-67891233-abcdef012345678912345678", "a/b+c:d_e.f-g=", &longest] {
            let id = RequestId::given(text.as_bytes()).expect(text);
            assert_eq!((&*id.text(), id.to_header().expect(text).as_bytes()), (text, text.as_bytes()));
        }
        for text in ["", " ", "a b", "a,b", "\"", "<a>", "é", "a\n", &format!("{longest}a")] {
            assert_eq!(RequestId::given(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn without_an_id_there_is_neither_text_nor_header() {
        assert_eq!((&*RequestId::default().text(), RequestId::default().to_header()), ("", None));
    }

    /// Checks the size, because each open session has an id.
    #[test]
    fn an_id_stays_small() {
        assert_eq!(std::mem::size_of::<OnceCell<RequestId>>(), 16);
    }
}
