//! The `state` of an authorization request: one attempt to sign in, encrypted, which is sent to the provider and
//! returned by it.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::cookie::LoginCookie;
use super::keys::{LoginKeys, Purpose, STATE_LIFE, bytes};
use crate::policy::{CLOCK_ALLOWANCE, LoginPrompt, may_be_own};
use crate::random::random;

/// The maximum difference between the clocks of two instances, in milliseconds.
const CLOCK_DIFFERENCE: u64 = CLOCK_ALLOWANCE.as_secs() * 1_000;
/// The maximum length of a return path in bytes.
const RETURN_PATH_BYTES: usize = 1_024;

/// Returns the path if a browser may be redirected there after a sign-in, and `/` if it could lead to another site.
#[must_use]
pub fn local_path(path: &str) -> &str {
    // Browsers read a second slash, a backslash or a control character as the start of another host.
    let is_local = path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains('\\')
        && path.len() <= RETURN_PATH_BYTES
        && path.bytes().all(|b| (0x21..=0x7e).contains(&b));
    // A sign-in that returns to the proxy's own endpoints would loop.
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    if is_local && !may_be_own(bare) { path } else { "/" }
}

/// One attempt to sign in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginState {
    /// A random id, which is used once.
    pub(super) attempt: [u8; 16],
    /// The provider's name.
    pub provider: String,
    /// A digest of the provider's issuer: a reload may give the name to another issuer.
    issuer: [u8; 32],
    /// The path to which the browser returns.
    pub return_path: String,
    /// The time at which the attempt began, in Unix milliseconds.
    pub at: u64,
    /// The number of times that the sign-in was started again.
    pub tries: u8,
    /// The `prompt` of this sign-in, in place of the configured one.
    pub prompt: Option<LoginPrompt>,
    /// A keyed digest of the login cookie's secret.
    cookie: [u8; 32],
}

impl LoginState {
    /// Begins an attempt in the browser that has this cookie. Returns `None` when the system has no random numbers.
    #[must_use]
    pub fn new(
        keys: &LoginKeys,
        cookie: &LoginCookie,
        (provider, issuer): (&str, Option<&str>),
        return_path: &str,
        (tries, prompt): (u8, Option<LoginPrompt>),
        now: u64,
    ) -> Option<Self> {
        Some(Self {
            attempt: random().ok()?,
            provider: provider.to_owned(),
            issuer: issuer_digest(issuer),
            return_path: local_path(return_path).to_owned(),
            at: now,
            tries,
            prompt,
            cookie: keys.digest_of(&cookie.secret),
        })
    }

    /// Encrypts the state for the authorization request.
    #[must_use]
    pub fn encrypt(&self, keys: &LoginKeys) -> Option<String> {
        let content = json!({
            "a": URL_SAFE_NO_PAD.encode(self.attempt), "p": self.provider,
            "i": URL_SAFE_NO_PAD.encode(self.issuer), "r": self.return_path, "t": self.at, "n": self.tries,
            "q": self.prompt.map(LoginPrompt::name), "c": URL_SAFE_NO_PAD.encode(self.cookie),
        });
        keys.encrypt(Purpose::State, &content)
    }

    /// Decrypts a state, or returns `None` for a text that was not encrypted with these keys.
    #[must_use]
    pub fn decrypt(keys: &LoginKeys, text: &str) -> Option<Self> {
        let content = keys.decrypt(Purpose::State, text)?;
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

    /// Returns whether the state has not expired.
    #[must_use]
    pub fn is_fresh(&self, now: u64) -> bool {
        self.at <= now.saturating_add(CLOCK_DIFFERENCE) && now < self.at.saturating_add(STATE_LIFE)
    }

    /// Returns whether the attempt began at this issuer. Code and PKCE verifier are sent to no other.
    #[must_use]
    pub fn is_at(&self, issuer: Option<&str>) -> bool {
        self.issuer == issuer_digest(issuer)
    }

    /// Returns whether the attempt began in the browser that has this cookie.
    #[must_use]
    pub fn belongs_to(&self, keys: &LoginKeys, cookie: &LoginCookie) -> bool {
        verify_slices_are_equal(&self.cookie, &keys.digest_of(&cookie.secret)).is_ok()
    }

    /// Returns the nonce that the ID token must contain.
    pub(super) fn nonce(&self, keys: &LoginKeys, cookie: &LoginCookie) -> Option<String> {
        keys.derive(b"nonce", &cookie.secret, &self.attempt)
    }

    /// Returns the PKCE verifier (RFC 7636).
    pub(super) fn verifier(&self, keys: &LoginKeys, cookie: &LoginCookie) -> Option<String> {
        keys.derive(b"pkce", &cookie.secret, &self.attempt)
    }
}

/// Returns the S256 challenge of a PKCE verifier.
pub(super) fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

fn issuer_digest(issuer: Option<&str>) -> [u8; 32] {
    let digest = digest(&SHA256, issuer.unwrap_or_default().as_bytes());
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::Secret;

    fn keys(secret: &[u8]) -> Arc<LoginKeys> {
        LoginKeys::new(Some(&Secret::for_tests(secret)), None).expect("keys")
    }

    #[test]
    fn a_state_belongs_to_one_browser_and_one_key() {
        let (ours, theirs) = (keys(b"a"), keys(b"b"));
        let (cookie, other) = (LoginCookie::new(5).expect("random"), LoginCookie::new(5).expect("random"));
        let state = LoginState::new(
            &ours,
            &cookie,
            ("main", Some("https://a")),
            "/lab?x=1",
            (1, Some(LoginPrompt::Login)),
            1_000,
        )
        .expect("random");
        let text = state.encrypt(&ours).expect("encrypted");
        assert_eq!(LoginState::decrypt(&ours, &text).as_ref(), Some(&state));
        assert!(LoginState::decrypt(&theirs, &text).is_none());
        assert!(LoginCookie::decrypt(&ours, &text, 10).is_none(), "encrypted for another purpose");
        assert!(state.is_at(Some("https://a")) && !state.is_at(Some("https://b")) && !state.is_at(None));
        assert!(state.belongs_to(&ours, &cookie) && !state.belongs_to(&ours, &other));
        assert_ne!(state.nonce(&ours, &cookie), state.nonce(&ours, &other));
        assert_ne!(state.nonce(&ours, &cookie), state.verifier(&ours, &cookie));
        let again = LoginState::new(&ours, &cookie, ("main", None), "/", (0, None), 1_000).expect("random");
        assert_ne!(state.verifier(&ours, &cookie), again.verifier(&ours, &cookie), "of another attempt");
        assert!(state.is_fresh(600_999) && !state.is_fresh(601_000));
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64url");
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(LoginState::decrypt(&ours, &URL_SAFE_NO_PAD.encode(&bytes)).is_none(), "byte {at}");
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
            ("/./.vestibule/login", "/"),
            ("/a/%2e%2e/.vestibule/login", "/"),
            ("/?/../.vestibule/login", "/?/../.vestibule/login"),
            (&long, "/"),
        ] {
            assert_eq!(local_path(path), expected, "{path:?}");
        }
    }
}
