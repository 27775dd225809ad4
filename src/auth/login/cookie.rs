//! The login cookie, which binds sign-ins to one browser, however many tabs are open.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::keys::{LoginKeys, Purpose, STATE_LIFE, bytes};
use crate::auth::KeyFingerprint;
use crate::random::random;

/// The lifetime of the cookie, in milliseconds.
pub(super) const COOKIE_LIFE: u64 = 60 * 60 * 1_000;
/// The number of times that a browser may return without a session within [`LOOP_MILLIS`]. Then it is not keeping the
/// session cookie.
const LOOP_TURNS: usize = 3;
const LOOP_MILLIS: u64 = 60_000;

/// The content of the login cookie. Its secret is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginCookie {
    pub(super) secret: [u8; 32],
    /// The time at which the cookie was made, in Unix milliseconds.
    pub made: u64,
    /// The provider of the last sign-in.
    pub provider: Option<String>,
    /// The time in Unix milliseconds at which the last sign-in was completed, unless a valid session was presented
    /// since.
    pub completed: Option<u64>,
    /// The times, in Unix milliseconds, at which sign-ins began directly after a completed one.
    turns: Vec<u64>,
}

impl std::fmt::Debug for LoginCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginCookie")
    }
}

impl LoginCookie {
    /// Makes a new cookie. Returns `None` when the system has no random numbers.
    #[must_use]
    pub fn new(now: u64) -> Option<Self> {
        Some(Self { secret: random().ok()?, made: now, provider: None, completed: None, turns: Vec::new() })
    }

    /// Copies the data about this browser from the former cookie, but not its secret.
    #[must_use]
    pub fn succeeding(self, former: Self) -> Self {
        Self { provider: former.provider, completed: former.completed, turns: former.turns, ..self }
    }

    /// Encrypts the cookie's value.
    #[must_use]
    pub fn encrypt(&self, keys: &LoginKeys) -> Option<String> {
        let content = json!({
            "s": URL_SAFE_NO_PAD.encode(self.secret), "m": self.made, "p": self.provider, "d": self.completed,
            "l": self.turns,
        });
        keys.encrypt(Purpose::LoginCookie, &content)
    }

    /// Decrypts a cookie's value, or returns `None` if it has expired or was not encrypted with these keys.
    #[must_use]
    pub fn decrypt(keys: &LoginKeys, text: &str, now: u64) -> Option<Self> {
        let content = keys.decrypt(Purpose::LoginCookie, text)?;
        let number = |name: &str| content.get(name).and_then(Value::as_u64);
        let made = number("m")?;
        if now >= made.saturating_add(COOKIE_LIFE) {
            return None;
        }
        let turns = content.get("l").and_then(Value::as_array)?;
        Some(Self {
            secret: bytes(content.get("s")?.as_str()?)?,
            made,
            provider: content.get("p").and_then(Value::as_str).map(str::to_owned),
            completed: number("d"),
            turns: turns.iter().filter_map(Value::as_u64).take(LOOP_TURNS).collect(),
        })
    }

    /// Returns a digest of the secret, by which the sessions that this browser begins belong together.
    #[must_use]
    pub fn browser(&self) -> Arc<str> {
        KeyFingerprint::of(&[b"browser", &self.secret]).text().into()
    }

    /// Returns whether the cookie expires later than a state that is made now.
    #[must_use]
    pub fn outlives_a_state(&self, now: u64) -> bool {
        now.saturating_add(STATE_LIFE) < self.made.saturating_add(COOKIE_LIFE)
    }

    /// Records that a sign-in begins without a valid session. Returns whether this browser has returned so often
    /// directly after a completed sign-in that it cannot be keeping the session cookie.
    pub fn note_begin(&mut self, now: u64) -> bool {
        self.turns.retain(|turn| now < turn.saturating_add(LOOP_MILLIS));
        if self.completed.take().is_some_and(|completed| now < completed.saturating_add(LOOP_MILLIS)) {
            self.turns.push(now);
        }
        if self.turns.len() < LOOP_TURNS {
            return false;
        }
        self.turns.clear();
        true
    }

    /// Records that a sign-in was completed.
    pub fn note_completed(&mut self, provider: &str, now: u64) {
        self.provider = Some(provider.to_owned());
        self.completed = Some(now);
    }

    /// Records a sign-out, which resets the record of earlier sign-ins.
    pub fn note_signed_out(&mut self) {
        self.completed = None;
        self.turns.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Secret;

    #[test]
    fn a_browser_that_keeps_no_session_is_noticed_at_the_third_turn() {
        let mut cookie = LoginCookie::new(0).expect("random");
        for turn in 1..=3 {
            cookie.note_completed("main", turn * 1_000);
            assert_eq!(cookie.note_begin(turn * 1_000 + 500), turn == 3, "turn {turn}");
        }
        for turn in 1..=3 {
            cookie.note_completed("main", turn * 100_000);
            cookie.note_signed_out();
            assert!(!cookie.note_begin(turn * 100_000 + 1), "after a sign-out");
        }
        assert!((1..9).all(|at| !cookie.note_begin(at)), "without a completed sign-in");
    }

    #[test]
    fn the_cookie_comes_back_as_it_was_for_an_hour() {
        let keys = LoginKeys::new(Some(&Secret::for_tests(b"a")), None).expect("keys");
        let mut cookie = LoginCookie::new(1_000).expect("random");
        cookie.note_completed("main", 2_000);
        let text = cookie.encrypt(&keys).expect("encrypted");
        assert_eq!(LoginCookie::decrypt(&keys, &text, 3_000), Some(cookie));
        assert_eq!(LoginCookie::decrypt(&keys, &text, 1_000 + COOKIE_LIFE), None);
    }
}
