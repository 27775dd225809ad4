//! Presets: one row an identity provider, and what people hold of one turned into its issuer. What a row says,
//! each key of the file can still set.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;

use crate::config;

/// How a preset comes to its keys when the file names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultKeys {
    /// OIDC discovery below the issuer.
    Discovery,
    /// At this path below the issuer.
    Below(&'static str),
    /// The file must say.
    Named,
    /// A shared secret.
    Secret,
    /// None: the provider is asked about every token.
    Asked,
}

impl DefaultKeys {
    /// Whether keys are looked for below the issuer.
    pub(super) fn need_issuer(self) -> bool {
        matches!(self, Self::Discovery | Self::Below(_))
    }
}

/// Whose tokens these are, where a provider has claims of its own that decide (docs/contract.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Nothing beyond the RFCs and OpenID Connect.
    Generic,
    /// `cat`, `sts`, `sid`, machine tokens, organisations in `o`.
    Clerk,
    /// `role` beside `aud`.
    Supabase,
    /// `token_use`; an access token's audience is its `client_id`.
    Cognito,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) keys: DefaultKeys,
    pub(super) algorithms: &'static [Algorithm],
    pub(super) family: Family,
    /// The issuer, where there is only one.
    pub(super) issuer: Option<&'static str>,
    /// Whom its tokens are for, where that is fixed.
    pub(super) audience: Option<&'static str>,
    /// Which kind of token it gives to applications.
    pub(super) accept: config::Accept,
    /// What the issuer may be derived from: the keys, all of them needed.
    pub(super) derived_from: &'static [&'static str],
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

const OIDC: Preset = Preset {
    name: "oidc",
    keys: DefaultKeys::Discovery,
    algorithms: &ASYMMETRIC,
    family: Family::Generic,
    issuer: None,
    audience: None,
    accept: config::Accept::AccessToken,
    derived_from: &[],
};

pub(super) const PRESETS: [Preset; 10] = [
    OIDC,
    Preset {
        name: "clerk",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256],
        family: Family::Clerk,
        derived_from: &["publishable_key"],
        ..OIDC
    },
    Preset {
        name: "supabase",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA],
        family: Family::Supabase,
        audience: Some("authenticated"),
        derived_from: &["project"],
        ..OIDC
    },
    Preset {
        name: "auth0",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256, Algorithm::PS256],
        derived_from: &["domain"],
        ..OIDC
    },
    Preset {
        name: "cognito",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256],
        family: Family::Cognito,
        derived_from: &["region", "user_pool_id"],
        ..OIDC
    },
    Preset { name: "keycloak", derived_from: &["url", "realm"], ..OIDC },
    Preset {
        name: "google",
        algorithms: &[Algorithm::RS256],
        issuer: Some("https://accounts.google.com"),
        accept: config::Accept::IdToken,
        ..OIDC
    },
    Preset { name: "jwt", keys: DefaultKeys::Named, ..OIDC },
    Preset { name: "shared-secret", keys: DefaultKeys::Secret, algorithms: &[Algorithm::HS256], ..OIDC },
    Preset { name: "introspection", keys: DefaultKeys::Asked, algorithms: &[], ..OIDC },
];

/// The keys an issuer can be derived from.
const DERIVING: [&str; 7] = ["publishable_key", "project", "domain", "region", "user_pool_id", "url", "realm"];

/// The issuer from what people hold of a provider. `None`: nothing of it is written.
///
/// # Errors
/// The key and what is wrong with it.
pub(super) fn derived_issuer(
    preset: &Preset,
    provider: &config::Provider,
) -> Result<Option<String>, (&'static str, String)> {
    let value = |key: &str| {
        let value = match key {
            "publishable_key" => &provider.publishable_key,
            "project" => &provider.project,
            "domain" => &provider.domain,
            "region" => &provider.region,
            "user_pool_id" => &provider.user_pool_id,
            "url" => &provider.url,
            _ => &provider.realm,
        };
        value.as_deref().filter(|value| !value.is_empty())
    };
    if let Some(foreign) = DERIVING.into_iter().find(|key| value(key).is_some() && !preset.derived_from.contains(key)) {
        return Err((foreign, format!("means nothing to preset {}", preset.name)));
    }
    if preset.derived_from.iter().all(|key| value(key).is_none()) {
        return Ok(None);
    }
    if let Some(missing) = preset.derived_from.iter().find(|key| value(key).is_none()) {
        return Err((preset.derived_from[0], format!("needs {missing} beside it, or write issuer instead of both")));
    }
    let plain = |key: &'static str| {
        let text = value(key).unwrap_or_default();
        let fits = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        if fits {
            Ok(text)
        } else {
            Err((key, format!("\"{text}\" is not a name; write it without scheme and slashes")))
        }
    };
    let issuer = match preset.name {
        "clerk" => format!("https://{}", frontend_api(value("publishable_key").unwrap_or_default())?),
        "supabase" => format!("https://{}.supabase.co/auth/v1", plain("project")?),
        // With its trailing slash: so the tokens say.
        "auth0" => format!("https://{}/", plain("domain")?),
        "cognito" => {
            format!("https://cognito-idp.{}.amazonaws.com/{}", plain("region")?, plain("user_pool_id")?)
        }
        _ => format!("{}/realms/{}", value("url").unwrap_or_default().trim_end_matches('/'), plain("realm")?),
    };
    Ok(Some(issuer))
}

/// A Clerk publishable key is `pk_test_` or `pk_live_` and, in base64, the frontend API's host with a `$` behind.
fn frontend_api(key: &str) -> Result<String, (&'static str, String)> {
    let encoded = key.strip_prefix("pk_test_").or_else(|| key.strip_prefix("pk_live_"));
    let decoded = encoded.and_then(|encoded| STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')).ok());
    let host = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let host = host.as_deref().and_then(|host| host.strip_suffix('$'));
    let fits =
        |host: &&str| host.contains('.') && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    host.filter(fits).map(str::to_owned).ok_or_else(|| {
        ("publishable_key", "is not one of Clerk's: pk_live_… or pk_test_…, as the dashboard shows it".to_owned())
    })
}

/// What stands behind `__session_` in the cookie of one Clerk application: the first eight characters of the
/// base64url of its publishable key's SHA-1.
pub(super) fn cookie_suffix(publishable_key: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, publishable_key.as_bytes());
    URL_SAFE_NO_PAD.encode(digest.as_ref()).chars().take(8).collect()
}

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

    #[test]
    fn a_cookie_s_suffix_is_known_from_the_publishable_key() {
        // printf %s pk_test_abc | openssl sha1 -binary | basenc --base64url | cut -c1-8
        assert_eq!(cookie_suffix("pk_test_abc"), "xAsktmsC");
    }

    fn derived(preset: &str, set: impl Fn(&mut config::Provider)) -> Result<Option<String>, &'static str> {
        let mut provider = config::Provider::default();
        set(&mut provider);
        let preset = PRESETS.iter().find(|row| row.name == preset).expect("a preset");
        derived_issuer(preset, &provider).map_err(|(key, _)| key)
    }

    #[test]
    fn issuers_are_derived_from_what_people_hold() {
        let some = |text: &str| Some(text.to_owned());
        let key = format!("pk_test_{}", STANDARD_NO_PAD.encode("mighty-fox-1.clerk.accounts.dev$"));
        assert_eq!(
            derived("clerk", |p| p.publishable_key = Some(key.clone())),
            Ok(some("https://mighty-fox-1.clerk.accounts.dev"))
        );
        for wrong in ["pk_test_", "pk_test_!!", "sk_test_bWlnaHR5", "pk_live_YWJj"] {
            assert_eq!(derived("clerk", |p| p.publishable_key = some(wrong)), Err("publishable_key"), "{wrong}");
        }
        assert_eq!(
            derived("supabase", |p| p.project = some("abcdefgh")),
            Ok(some("https://abcdefgh.supabase.co/auth/v1"))
        );
        assert_eq!(derived("auth0", |p| p.domain = some("t.eu.auth0.com")), Ok(some("https://t.eu.auth0.com/")));
        assert_eq!(derived("auth0", |p| p.domain = some("https://t.auth0.com/")), Err("domain"));
        let cognito = |p: &mut config::Provider| {
            p.region = some("eu-central-1");
            p.user_pool_id = some("eu-central-1_AbC");
        };
        assert_eq!(
            derived("cognito", cognito),
            Ok(some("https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC"))
        );
        assert_eq!(derived("cognito", |p| p.region = some("eu-central-1")), Err("region"));
        let keycloak = |p: &mut config::Provider| {
            p.url = some("https://id.example.com/");
            p.realm = some("team");
        };
        assert_eq!(derived("keycloak", keycloak), Ok(some("https://id.example.com/realms/team")));
        assert_eq!(derived("oidc", |p| p.project = some("x")), Err("project"));
        assert_eq!(derived("clerk", |_| ()), Ok(None));
    }
}
