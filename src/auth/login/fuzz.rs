//! A fuzz target of what is encrypted for a browser, a provider or a store: it is opened unchanged and for its own
//! purpose alone.

#![allow(clippy::expect_used, reason = "a failed expectation is what a fuzzer looks for")]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::LoginCookie;
use super::keys::{LoginKeys, Purpose, SessionKey};
use super::records::sealed::{RecordContent, RecordKey};
use super::state::LoginState;
use crate::auth::{SessionCookie, SessionCookies, StoredIdentity};
use crate::fuzz::Input;
use crate::policy::{Secret, SessionSpec};

/// The generation of the record.
const GENERATION: u64 = 3;
/// Every kind of thing that is encrypted.
const KINDS: usize = 5;
/// The time at which cookies are made and read, in Unix milliseconds.
const NOW: u64 = 1_000_000;

/// The keys of all kinds, which come from one secret, and an example of each kind as base64url text.
struct Sealed {
    login: std::sync::Arc<LoginKeys>,
    sessions: SessionCookies,
    record: RecordKey,
    texts: [String; KINDS],
}

static SEALED: LazyLock<Sealed> = LazyLock::new(|| {
    let secret = Secret::for_tests(b"one secret for every kind");
    let login = LoginKeys::new(Some(&secret), None).expect("keys");
    let spec = SessionSpec { secret: Some(secret), ..SessionSpec::default() };
    let sessions = SessionCookies::new(&spec, None).expect("keys");
    let record = RecordKey::new(&SessionKey::generate().expect("random"), "id").expect("keys");
    let cookie = LoginCookie::new(NOW).expect("random");
    let state = LoginState::new(&login, &cookie, ("main", Some("https://a")), "/lab", (0, None), NOW).expect("random");
    let identity = StoredIdentity::example(2_000).restore().expect("an identity");
    let texts = [
        state.encrypt(&login).expect("encrypted"),
        cookie.encrypt(&login).expect("encrypted"),
        login.encrypt(Purpose::SessionCookie, &json!({ "i": "a" })).expect("encrypted"),
        sessions.issue(&identity, None, NOW).expect("encrypted").value,
        URL_SAFE_NO_PAD.encode(record.seal(GENERATION, &RecordContent::example()).expect("encrypted")),
    ];
    Sealed { login, sessions, record, texts }
});

impl Sealed {
    /// Returns whether a text is opened as one of the kinds.
    fn opens(&self, kind: usize, text: &str) -> bool {
        match kind {
            0 => LoginState::decrypt(&self.login, text).is_some(),
            1 => LoginCookie::decrypt(&self.login, text, NOW).is_some(),
            2 => self.login.decrypt(Purpose::SessionCookie, text).is_some(),
            3 => SessionCookie::parse(text).is_some_and(|cookie| self.sessions.decrypt_session(&cookie).is_some()),
            _ => URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| self.record.open(GENERATION, &bytes).is_some()),
        }
    }
}

/// Returns keys of the sign-in.
pub(crate) fn keys() -> &'static LoginKeys {
    &SEALED.login
}

/// Checks that nothing is opened that was changed, or that is of another kind.
///
/// The first byte chooses the kind and the second one what is done to it. Then come the changes.
pub fn sealing(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, change) = (input.below(KINDS), input.below(6));
    let original = &SEALED.texts[kind];
    let mut bytes = original.as_bytes().to_vec();
    match change {
        // Other bytes at some places of the text.
        0 => {
            while !input.is_empty() {
                let at = usize::from(u16::from_be_bytes([input.byte(), input.byte()])) % bytes.len();
                bytes[at] = input.byte();
            }
        }
        // Other bits at some places of what is encoded.
        1 => {
            let mut decoded = URL_SAFE_NO_PAD.decode(original).expect("base64url");
            while !input.is_empty() {
                let at = usize::from(u16::from_be_bytes([input.byte(), input.byte()])) % decoded.len();
                decoded[at] ^= input.byte();
            }
            bytes = URL_SAFE_NO_PAD.encode(decoded).into_bytes();
        }
        // Less.
        2 => bytes.truncate(usize::from(u16::from_be_bytes([input.byte(), input.byte()]))),
        // More.
        3 => bytes.extend_from_slice(input.rest()),
        4 => bytes = [input.rest(), &bytes].concat(),
        // Something else.
        _ => bytes = input.rest().to_vec(),
    }
    let Ok(text) = std::str::from_utf8(&bytes) else { return };
    for other in 0..KINDS {
        let expected = text == SEALED.texts[other];
        assert_eq!(SEALED.opens(other, text), expected, "kind {kind} changed in way {change}, as kind {other}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_sealing_opens_nothing_else() {
        crate::fuzz::run_corpus("sealing", super::sealing);
    }
}
