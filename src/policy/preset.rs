//! Presets: one row an identity provider. What a row says, each key of the file can still set.

use jsonwebtoken::Algorithm;

/// How a preset comes to its keys when the file names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultKeys {
    /// OIDC discovery below the issuer.
    Discovery,
    /// The file must say.
    Named,
    /// A shared secret.
    Secret,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) keys: DefaultKeys,
    pub(super) algorithms: &'static [Algorithm],
}

pub(super) const ASYMMETRIC: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

pub(super) const PRESETS: [Preset; 3] = [
    Preset { name: "oidc", keys: DefaultKeys::Discovery, algorithms: &ASYMMETRIC },
    Preset { name: "jwt", keys: DefaultKeys::Named, algorithms: &ASYMMETRIC },
    Preset { name: "shared-secret", keys: DefaultKeys::Secret, algorithms: &[Algorithm::HS256] },
];

/// Secrets that anyone can read in documentation; long enough to pass a length check.
pub(super) const PUBLISHED_SECRETS: [&str; 4] = [
    "a-string-secret-at-least-256-bits-long",
    "your-super-secret-jwt-token-with-at-least-32-characters-long",
    "super-secret-jwt-token-with-at-least-32-characters-long",
    "your-256-bit-secret-your-256-bit-secret",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shared_secret_preset_signs_with_hmac() {
        for preset in &PRESETS {
            let hmac =
                preset.algorithms.iter().any(|a| matches!(a, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512));
            assert_eq!(hmac, preset.keys == DefaultKeys::Secret, "{}", preset.name);
        }
    }
}
