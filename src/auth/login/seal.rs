//! What a sign-in keeps at the browser, sealed: the state that goes to the provider and back, and the cookie that binds
//! it to one browser. Nonce and PKCE verifier are derived from both, so that nothing is stored here.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::policy::{LoginPrompt, Secret};

/// Apart from every other use of the same secret.
const PURPOSE: &[u8] = b"vestibule login 1";
const STATE: &[u8] = b"vestibule login state 1";
const COOKIE: &[u8] = b"vestibule login cookie 1";
pub(super) const SESSION: &[u8] = b"vestibule login session 2";

/// How long a state is good, milliseconds.
pub(super) const STATE_LIFE: u64 = 10 * 60 * 1_000;
/// How long the cookie is good, milliseconds.
pub(super) const COOKIE_LIFE: u64 = 60 * 60 * 1_000;
/// A longer return path is not kept.
const RETURN_PATH_BYTES: usize = 1_024;
/// Where a browser came back so often within [`LOOP_MILLIS`] without a session, it does not keep our cookie.
const LOOP_TURNS: usize = 3;
const LOOP_MILLIS: u64 = 60_000;

/// What seals states and cookies of sign-ins, and from which nonces are derived.
pub struct LoginKeys {
    seal: LessSafeKey,
    digest: hmac::Key,
    derive: Prk,
    is_of_process: bool,
}

impl LoginKeys {
    /// By the secret of `browser.session`, or by one of this process, which a reload keeps.
    pub(super) fn new(secret: Option<&Secret>, former: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if secret.is_none()
            && let Some(former) = former.filter(|former| former.is_of_process)
        {
            return Some(Arc::clone(former));
        }
        let derive = match secret {
            Some(secret) => Salt::new(HKDF_SHA256, PURPOSE).extract(secret.expose()),
            None => Salt::new(HKDF_SHA256, PURPOSE).extract(&random::<32>()?),
        };
        let key = |name: &[u8]| {
            let mut bytes = [0; 32];
            derive.expand(&[name], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
            Some(bytes)
        };
        let seal = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key(b"seal")?).ok()?);
        let digest = hmac::Key::new(hmac::HMAC_SHA256, &key(b"digest")?);
        Some(Arc::new(Self { seal, digest, derive, is_of_process: secret.is_none() }))
    }

    pub(super) fn seal(&self, purpose: &'static [u8], content: &Value) -> Option<String> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = content.to_string().into_bytes();
        self.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut sealed)
            .ok()?;
        let mut bytes = nonce.to_vec();
        bytes.extend_from_slice(&sealed);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn open(&self, purpose: &'static [u8], text: &str) -> Option<Map<String, Value>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        if bytes.len() < NONCE_LEN {
            return None;
        }
        let mut sealed = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let content = self.seal.open_in_place(nonce, Aad::from(purpose), &mut sealed).ok()?;
        match serde_json::from_slice(content).ok()? {
            Value::Object(content) => Some(content),
            _ => None,
        }
    }

    fn derived(&self, what: &'static [u8], secret: &[u8; 32], attempt: &[u8; 16]) -> Option<String> {
        let mut bytes = [0; 32];
        self.derive.expand(&[what, secret, attempt], HKDF_SHA256).ok()?.fill(&mut bytes).ok()?;
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    fn digest_of(&self, secret: &[u8; 32]) -> [u8; 32] {
        let tag = hmac::sign(&self.digest, secret);
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }
}

impl std::fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginKeys")
    }
}

pub(super) fn random<const LENGTH: usize>() -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// A path of ours that people may be sent to after a sign-in: `/` for one that could lead elsewhere.
#[must_use]
pub fn local_path(path: &str) -> &str {
    // One slash first, no backslash, nothing invisible: what a browser would read as another site.
    let is_local = path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains('\\')
        && path.len() <= RETURN_PATH_BYTES
        && path.bytes().all(|b| (0x21..=0x7e).contains(&b));
    // A sign-in that ends at the sign-in would go round in circles.
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    if is_local && !bare.to_ascii_lowercase().starts_with("/.vestibule") { path } else { "/" }
}

/// What goes to the provider and comes back: one attempt to sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginState {
    /// Which attempt.
    pub(super) attempt: [u8; 16],
    /// At which provider.
    pub provider: String,
    /// Which issuer that name stood for: a reload may give it to another.
    issuer: [u8; 32],
    /// Where to go afterwards.
    pub return_path: String,
    /// When it began, milliseconds since the epoch.
    pub at: u64,
    /// How often it was begun again.
    pub tries: u8,
    /// What the provider was told to ask its user, for this sign-in alone.
    pub prompt: Option<LoginPrompt>,
    cookie: [u8; 32],
}

impl LoginState {
    /// A new attempt in the browser that has this cookie.
    #[must_use]
    pub fn begin(
        keys: &LoginKeys,
        cookie: &LoginCookie,
        (provider, issuer): (&str, Option<&str>),
        return_path: &str,
        (tries, prompt): (u8, Option<LoginPrompt>),
        now: u64,
    ) -> Option<Self> {
        Some(Self {
            attempt: random()?,
            provider: provider.to_owned(),
            issuer: digest_of(issuer),
            return_path: local_path(return_path).to_owned(),
            at: now,
            tries,
            prompt,
            cookie: keys.digest_of(&cookie.secret),
        })
    }

    /// As it goes to the provider.
    #[must_use]
    pub fn sealed(&self, keys: &LoginKeys) -> Option<String> {
        let content = json!({
            "a": URL_SAFE_NO_PAD.encode(self.attempt), "p": self.provider,
            "i": URL_SAFE_NO_PAD.encode(self.issuer), "r": self.return_path, "t": self.at, "n": self.tries,
            "q": self.prompt.map(LoginPrompt::name), "c": URL_SAFE_NO_PAD.encode(self.cookie),
        });
        keys.seal(STATE, &content)
    }

    /// As it came back; `None` where another key sealed it, or none.
    #[must_use]
    pub fn open(keys: &LoginKeys, text: &str) -> Option<Self> {
        let content = keys.open(STATE, text)?;
        let text = |name: &str| content.get(name).and_then(Value::as_str);
        Some(Self {
            attempt: bytes(text("a")?)?,
            provider: text("p")?.to_owned(),
            issuer: bytes(text("i")?)?,
            return_path: local_path(text("r")?).to_owned(),
            at: content.get("t")?.as_u64()?,
            tries: u8::try_from(content.get("n")?.as_u64()?).ok()?,
            prompt: text("q").and_then(LoginPrompt::named),
            cookie: bytes(text("c")?)?,
        })
    }

    /// Whether it is young enough.
    #[must_use]
    pub fn is_fresh(&self, now: u64) -> bool {
        // Clocks of two instances differ.
        self.at <= now.saturating_add(60_000) && now < self.at.saturating_add(STATE_LIFE)
    }

    /// Whether it was begun at this issuer: code and verifier go to no other.
    #[must_use]
    pub fn is_at(&self, issuer: Option<&str>) -> bool {
        self.issuer == digest_of(issuer)
    }

    /// Whether it was begun in the browser that has this cookie.
    #[must_use]
    pub fn fits(&self, keys: &LoginKeys, cookie: &LoginCookie) -> bool {
        verify_slices_are_equal(&self.cookie, &keys.digest_of(&cookie.secret)).is_ok()
    }

    /// The nonce that the ID token must hold.
    pub(super) fn nonce(&self, keys: &LoginKeys, cookie: &LoginCookie) -> Option<String> {
        keys.derived(b"nonce", &cookie.secret, &self.attempt)
    }

    /// The PKCE verifier (RFC 7636).
    pub(super) fn verifier(&self, keys: &LoginKeys, cookie: &LoginCookie) -> Option<String> {
        keys.derived(b"pkce", &cookie.secret, &self.attempt)
    }
}

/// The S256 challenge of a PKCE verifier.
pub(super) fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

fn digest_of(issuer: Option<&str>) -> [u8; 32] {
    let digest = digest(&SHA256, issuer.unwrap_or_default().as_bytes());
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

fn bytes<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// What a browser keeps while its user signs in: one small cookie, whatever number of tabs. Its secret cannot be
/// printed.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginCookie {
    secret: [u8; 32],
    /// When it was made, milliseconds since the epoch.
    pub made: u64,
    /// The provider of the last sign-in.
    pub provider: Option<String>,
    /// When a sign-in was completed after which no valid session has been seen yet.
    pub completed: Option<u64>,
    /// When sign-ins began anew although one had just been completed.
    turns: Vec<u64>,
}

impl std::fmt::Debug for LoginCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginCookie")
    }
}

impl LoginCookie {
    /// A new one.
    #[must_use]
    pub fn new(now: u64) -> Option<Self> {
        Some(Self { secret: random()?, made: now, provider: None, completed: None, turns: Vec::new() })
    }

    /// The same with what the former one knew of this browser, and a secret of its own.
    #[must_use]
    pub fn following(self, former: Self) -> Self {
        Self { provider: former.provider, completed: former.completed, turns: former.turns, ..self }
    }

    /// As the browser keeps it.
    #[must_use]
    pub fn sealed(&self, keys: &LoginKeys) -> Option<String> {
        let content = json!({
            "s": URL_SAFE_NO_PAD.encode(self.secret), "m": self.made, "p": self.provider, "d": self.completed,
            "l": self.turns,
        });
        keys.seal(COOKIE, &content)
    }

    /// As it came; `None` where it is too old, or another key sealed it.
    #[must_use]
    pub fn open(keys: &LoginKeys, text: &str, now: u64) -> Option<Self> {
        let content = keys.open(COOKIE, text)?;
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

    /// Whether it outlives a state that is made now.
    #[must_use]
    pub fn outlives_a_state(&self, now: u64) -> bool {
        now.saturating_add(STATE_LIFE) < self.made.saturating_add(COOKIE_LIFE)
    }

    /// Notes that a sign-in begins without a valid session, and returns whether this browser has come back so often
    /// right after a completed one that it cannot be keeping our session cookie.
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

    /// Notes that a sign-in was completed.
    pub fn note_completed(&mut self, provider: &str, now: u64) {
        self.provider = Some(provider.to_owned());
        self.completed = Some(now);
    }

    /// Notes a sign-out, after which everything begins anew.
    pub fn note_signed_out(&mut self) {
        self.completed = None;
        self.turns.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &[u8]) -> Arc<LoginKeys> {
        LoginKeys::new(Some(&Secret::for_tests(secret)), None).expect("keys")
    }

    #[test]
    fn a_state_fits_one_browser_and_one_key_only() {
        let (ours, theirs) = (keys(b"a"), keys(b"b"));
        let (cookie, other) = (LoginCookie::new(5).expect("random"), LoginCookie::new(5).expect("random"));
        let state = LoginState::begin(
            &ours,
            &cookie,
            ("main", Some("https://a")),
            "/lab?x=1",
            (1, Some(LoginPrompt::Login)),
            1_000,
        )
        .expect("random");
        let text = state.sealed(&ours).expect("sealed");
        assert_eq!(LoginState::open(&ours, &text).as_ref(), Some(&state));
        assert!(LoginState::open(&theirs, &text).is_none());
        assert!(LoginCookie::open(&ours, &text, 10).is_none(), "sealed for another purpose");
        assert!(state.is_at(Some("https://a")) && !state.is_at(Some("https://b")) && !state.is_at(None));
        assert!(state.fits(&ours, &cookie) && !state.fits(&ours, &other));
        assert_ne!(state.nonce(&ours, &cookie), state.nonce(&ours, &other));
        assert_ne!(state.nonce(&ours, &cookie), state.verifier(&ours, &cookie));
        let again = LoginState::begin(&ours, &cookie, ("main", None), "/", (0, None), 1_000).expect("random");
        assert_ne!(state.verifier(&ours, &cookie), again.verifier(&ours, &cookie), "of another attempt");
        assert!(state.is_fresh(600_999) && !state.is_fresh(601_000));
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64url");
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(LoginState::open(&ours, &URL_SAFE_NO_PAD.encode(&bytes)).is_none(), "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn return_paths_lead_nowhere_else() {
        let long = format!("/{}", "a".repeat(1_024));
        for (path, expected) in [
            ("/lab?x=1#cell", "/lab?x=1#cell"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/a\\b", "/"),
            ("https://evil.example", "/"),
            ("javascript:alert(1)", "/"),
            ("/a\r\nSet-Cookie: x", "/"),
            ("/a\tb", "/"),
            ("/a b", "/"),
            ("/caf\u{e9}", "/"),
            ("", "/"),
            ("/.vestibule/login", "/"),
            ("/.Vestibule/logout?x", "/"),
            (&long, "/"),
        ] {
            assert_eq!(local_path(path), expected, "{path:?}");
        }
    }

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
        let keys = keys(b"a");
        let mut cookie = LoginCookie::new(1_000).expect("random");
        cookie.note_completed("main", 2_000);
        let text = cookie.sealed(&keys).expect("sealed");
        assert_eq!(LoginCookie::open(&keys, &text, 3_000), Some(cookie));
        assert_eq!(LoginCookie::open(&keys, &text, 1_000 + COOKIE_LIFE), None);
    }
}
