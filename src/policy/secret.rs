//! The secrets of the configuration. They are never printed, and their strength is checked.

use super::check::Check;
use super::provider_preset::PUBLISHED_SECRETS;

/// A shared secret. Its `Debug` shows the length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn for_tests(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Returns the bytes, for the one place that computes an HMAC.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// The minimum length in bytes. HMAC keys shorter than the digest can be guessed (RFC 7518 section 3.2); surrounding
/// white space does not count.
const SHORTEST: usize = 32;
/// The minimum number of distinct bytes. A repeated character or a short pattern can be guessed.
const FEWEST_DISTINCT: usize = 8;

impl Check {
    /// Reports a secret that others could guess. It protects tokens, session cookies or the control listener.
    pub(super) fn hard_to_guess(&mut self, path: &str, secret: &[u8]) {
        if let Some(problem) = weakness(secret) {
            self.error(path, format!("{problem}. Make one: openssl rand -base64 48"));
        }
    }
}

fn weakness(secret: &[u8]) -> Option<String> {
    let trimmed = secret.trim_ascii();
    let mut seen = [false; 256];
    for byte in trimmed {
        seen[usize::from(*byte)] = true;
    }
    let distinct = seen.iter().filter(|seen| **seen).count();
    if trimmed.len() < SHORTEST {
        return Some(format!("has {} bytes, and needs at least {SHORTEST}", trimmed.len()));
    }
    if distinct < FEWEST_DISTINCT {
        return Some(format!("has {distinct} different characters, and needs at least {FEWEST_DISTINCT}"));
    }
    is_published(secret).then(|| "is a default that is published in documentation; anyone can sign with it".to_owned())
}

/// Returns whether a secret is published in documentation.
pub(super) fn is_published(secret: &[u8]) -> bool {
    PUBLISHED_SECRETS.iter().any(|known| known.as_bytes() == secret.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_varied_and_nobody_else_s() {
        let spaces = " ".repeat(64);
        let padded = format!("{}{spaces}", &"0123456789abcdef0123456789abcdef"[..31]);
        for (secret, expected) in [
            ("0123456789abcdef0123456789abcdef", None),
            ("short", Some("has 5 bytes")),
            (spaces.as_str(), Some("has 0 bytes")),
            (padded.as_str(), Some("has 31 bytes")),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Some("has 1 different")),
            ("abcdefgabcdefgabcdefgabcdefgabcdefg", Some("has 7 different")),
            ("a-string-secret-at-least-256-bits-long", Some("is a default that is published")),
            ("a-string-secret-at-least-256-bits-long ", Some("is a default that is published")),
        ] {
            let found = weakness(secret.as_bytes());
            let fits = match (&found, expected) {
                (None, None) => true,
                (Some(found), Some(expected)) => found.starts_with(expected),
                _ => false,
            };
            assert!(fits, "{secret:?}: {found:?}");
        }
    }
}
