//! Presets of identity providers: one row for each, and functions that derive its issuer from other keys. Each key of
//! the configuration can override a value of the row.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;

use crate::config;

/// The source of a preset's keys when the configuration names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DefaultKeys {
    /// OIDC discovery below the issuer.
    Discovery,
    /// A JWKS at this path below the issuer.
    Below(&'static str),
    /// None: the configuration must name the keys.
    Configured,
    /// A shared secret.
    Secret,
    /// None: the provider is asked about every token.
    Introspection,
    /// One by one, by the `kid` of a token.
    ById,
}

impl DefaultKeys {
    /// Returns whether an issuer is needed: keys are fetched from below it, or its tokens are told by it.
    pub(super) fn need_issuer(self) -> bool {
        matches!(self, Self::Discovery | Self::Below(_) | Self::ById)
    }
}

/// The family of providers with claims of their own that are checked (docs/contract.md section 5).
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
    /// ID tokens that may lack `at_hash`; access tokens are opaque.
    Google,
    /// Access tokens name their client (`azp`), ID tokens do not.
    Entra,
    /// Tokens of a load balancer: signer, client and expiry stand in the header.
    AwsAlb,
}

/// The availability of sign-in at a provider by `browser.login`.
#[derive(Clone, Copy, Debug)]
pub(super) enum SignIn {
    /// Available by OpenID Connect, with the endpoints of discovery.
    Discovery,
    /// Not available; with the alternative.
    Unavailable(&'static str),
}

/// The condition under which a provider gives a refresh token at a sign-in.
#[derive(Clone, Copy, Debug)]
pub enum RefreshTokens {
    /// At every sign-in.
    Always,
    /// For the scope `offline_access`, if discovery lists it.
    ByScope,
    /// For a parameter of the authorization request.
    ByParameter {
        /// The parameter and its value.
        parameter: (&'static str, &'static str),
        /// The warning when the parameter is not configured.
        missing: &'static str,
    },
}

/// The parameters of a provider's `end_session_endpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutRequest {
    /// Those of OpenID Connect RP-Initiated Logout 1.0.
    Standard,
    /// `client_id`, and `logout_uri` in place of `post_logout_redirect_uri`.
    LogoutUri,
}

/// The API that is called under `remote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RemoteApi {
    /// RFC 7662, by client id and secret.
    Introspection,
    /// Clerk's Backend API, by secret key.
    Clerk,
    /// The user endpoint of Supabase, by API key.
    Supabase,
}

/// The source of an issuer that the configuration does not name.
#[derive(Debug)]
pub(super) enum DefaultIssuer {
    /// No source.
    None,
    /// The only issuer of the provider.
    Fixed(&'static str),
    /// Derived from keys that identify the tenant, all of which are needed.
    Derived {
        /// The keys.
        from: &'static [IssuerKey],
        /// The function that derives the issuer from their values.
        issuer: fn(&config::Provider) -> Result<String, KeyError>,
    },
}

/// The key with an error, and the message.
pub(super) type KeyError = (&'static str, String);

/// A key of a provider from which an issuer can be derived.
#[derive(Clone, Copy, Debug)]
pub(super) struct IssuerKey {
    /// The name in the configuration.
    pub(super) name: &'static str,
    read: fn(&config::Provider) -> &Option<String>,
}

impl IssuerKey {
    fn value(self, provider: &config::Provider) -> Option<&str> {
        (self.read)(provider).as_deref().filter(|value| !value.is_empty())
    }

    fn is(self, other: &Self) -> bool {
        self.name == other.name
    }

    /// Returns the value, if it is a plain name as in a host or a path.
    fn plain(self, provider: &config::Provider) -> Result<&str, KeyError> {
        let text = self.value(provider).unwrap_or_default();
        if text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
            Ok(text)
        } else {
            Err((self.name, format!("\"{text}\" is not a name; write it without scheme and slashes")))
        }
    }
}

const PUBLISHABLE_KEY: IssuerKey = IssuerKey { name: "publishable_key", read: |provider| &provider.publishable_key };
const PROJECT: IssuerKey = IssuerKey { name: "project", read: |provider| &provider.project };
const DOMAIN: IssuerKey = IssuerKey { name: "domain", read: |provider| &provider.domain };
const REGION: IssuerKey = IssuerKey { name: "region", read: |provider| &provider.region };
const USER_POOL_ID: IssuerKey = IssuerKey { name: "user_pool_id", read: |provider| &provider.user_pool_id };
const URL: IssuerKey = IssuerKey { name: "url", read: |provider| &provider.url };
const REALM: IssuerKey = IssuerKey { name: "realm", read: |provider| &provider.realm };
const TENANT: IssuerKey = IssuerKey { name: "tenant", read: |provider| &provider.tenant };

/// Every key of a provider from which an issuer can be derived. With a preset that does not use it, it is an error.
const ISSUER_KEYS: [IssuerKey; 8] = [PUBLISHABLE_KEY, PROJECT, DOMAIN, REGION, USER_POOL_ID, URL, REALM, TENANT];

/// The differences of a provider from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quirks {
    /// Whether users may not change the name claims of their tokens, unless an administrator allows it.
    pub(super) names_are_fixed: bool,
    /// The end that its issuers have, and the warning about one without it.
    pub(super) issuer_end: Option<(&'static str, &'static str)>,
    /// Whether tokens are valid for about a minute, so that a page that cannot renew them in band would lose its
    /// socket.
    pub(super) is_short_lived: bool,
    /// Whether it is asked about a session, also after the token has expired; others are asked about the token.
    pub(super) answers_about_sessions: bool,
    /// Whether it issues tokens from templates, which have no session: `accept: [template]`.
    pub(super) has_template_tokens: bool,
    /// Whether the issuer belongs to one application, and the `azp` of a token is the origin of the page that requested
    /// it.
    pub(super) azp_is_page_origin: bool,
    /// The key that says whose tokens count, where tokens have no `azp`.
    pub(super) instead_of_azp: Option<&'static str>,
    /// Whether old projects sign with a shared secret.
    pub(super) may_sign_with_secret: bool,
    /// Whether anyone can have an account there.
    pub(super) is_open_to_everyone: bool,
}

const NO_QUIRKS: Quirks = Quirks {
    names_are_fixed: false,
    issuer_end: None,
    is_short_lived: false,
    answers_about_sessions: false,
    has_template_tokens: false,
    azp_is_page_origin: false,
    instead_of_azp: None,
    may_sign_with_secret: false,
    is_open_to_everyone: false,
};

/// A row of the table.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) keys: DefaultKeys,
    pub(super) algorithms: &'static [Algorithm],
    pub(super) family: Family,
    /// The source of the issuer when the configuration does not name it.
    pub(super) issuer: DefaultIssuer,
    /// The audience of its tokens, if it is fixed.
    pub(super) audience: Option<&'static str>,
    /// The kind of token that it gives to applications.
    pub(super) accept: config::Accept,
    /// A claim and the value that every token must have, unless `require` names the claim.
    pub(super) required_claim: Option<(&'static str, &'static str)>,
    /// Whether people can sign in there.
    pub(super) sign_in: SignIn,
    /// The condition under which it gives a refresh token.
    pub(super) refresh_tokens: RefreshTokens,
    /// The parameters of its sign-out page.
    pub(super) logout_request: LogoutRequest,
    /// The API that is called under `remote`.
    pub(super) remote: RemoteApi,
    /// The differences from other providers.
    pub(super) quirks: Quirks,
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
    issuer: DefaultIssuer::None,
    audience: None,
    accept: config::Accept::AccessToken,
    required_claim: None,
    sign_in: SignIn::Discovery,
    refresh_tokens: RefreshTokens::ByScope,
    logout_request: LogoutRequest::Standard,
    remote: RemoteApi::Introspection,
    quirks: NO_QUIRKS,
};

const NO_DISCOVERY: SignIn = SignIn::Unavailable("it has no OpenID Connect discovery; use preset oidc with its issuer");

pub(super) const PRESETS: [Preset; 12] = [
    OIDC,
    Preset {
        name: "clerk",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256],
        family: Family::Clerk,
        issuer: DefaultIssuer::Derived { from: &[PUBLISHABLE_KEY], issuer: clerk_issuer },
        sign_in: SignIn::Unavailable(
            "Clerk signs people in on its own page: use sign_in_url and POST /.vestibule/session",
        ),
        remote: RemoteApi::Clerk,
        quirks: Quirks {
            is_short_lived: true,
            answers_about_sessions: true,
            has_template_tokens: true,
            azp_is_page_origin: true,
            ..NO_QUIRKS
        },
        ..OIDC
    },
    Preset {
        name: "supabase",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA],
        family: Family::Supabase,
        audience: Some("authenticated"),
        // The keys for anonymous and service access are tokens of this issuer too.
        required_claim: Some(("role", "authenticated")),
        sign_in: SignIn::Unavailable(
            "Supabase signs people in on your own page: use sign_in_url and POST /.vestibule/session",
        ),
        remote: RemoteApi::Supabase,
        quirks: Quirks {
            may_sign_with_secret: true,
            instead_of_azp: Some("leave it out, and the preset requires aud and role"),
            issuer_end: Some((
                "/auth/v1",
                "does not end with /auth/v1; the tokens of Supabase say their issuer with it",
            )),
            ..NO_QUIRKS
        },
        issuer: DefaultIssuer::Derived { from: &[PROJECT], issuer: supabase_issuer },
        ..OIDC
    },
    Preset {
        name: "auth0",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256, Algorithm::PS256],
        issuer: DefaultIssuer::Derived { from: &[DOMAIN], issuer: auth0_issuer },
        quirks: Quirks {
            issuer_end: Some(("/", "has no trailing slash; the tokens of Auth0 say their issuer with one")),
            ..NO_QUIRKS
        },
        ..OIDC
    },
    Preset {
        name: "cognito",
        keys: DefaultKeys::Below("/.well-known/jwks.json"),
        algorithms: &[Algorithm::RS256],
        family: Family::Cognito,
        issuer: DefaultIssuer::Derived { from: &[REGION, USER_POOL_ID], issuer: cognito_issuer },
        quirks: Quirks { instead_of_azp: Some("write the app client's id as audience"), ..NO_QUIRKS },
        refresh_tokens: RefreshTokens::Always,
        logout_request: LogoutRequest::LogoutUri,
        ..OIDC
    },
    Preset {
        name: "keycloak",
        issuer: DefaultIssuer::Derived { from: &[URL, REALM], issuer: keycloak_issuer },
        refresh_tokens: RefreshTokens::Always,
        quirks: Quirks { names_are_fixed: true, ..NO_QUIRKS },
        ..OIDC
    },
    Preset {
        name: "entra",
        algorithms: &[Algorithm::RS256],
        family: Family::Entra,
        issuer: DefaultIssuer::Derived { from: &[TENANT], issuer: entra_issuer },
        ..OIDC
    },
    Preset {
        name: "google",
        algorithms: &[Algorithm::RS256],
        family: Family::Google,
        issuer: DefaultIssuer::Fixed("https://accounts.google.com"),
        accept: config::Accept::IdToken,
        refresh_tokens: RefreshTokens::ByParameter {
            parameter: ("access_type", "offline"),
            missing: "Google gives a refresh token only with parameters: { access_type: offline }",
        },
        quirks: Quirks { is_open_to_everyone: true, ..NO_QUIRKS },
        ..OIDC
    },
    Preset {
        name: "aws-alb",
        keys: DefaultKeys::ById,
        algorithms: &[Algorithm::ES256],
        family: Family::AwsAlb,
        sign_in: SignIn::Unavailable("the load balancer signs people in before the request reaches us"),
        quirks: Quirks { is_short_lived: true, ..NO_QUIRKS },
        ..OIDC
    },
    Preset { name: "jwt", keys: DefaultKeys::Configured, sign_in: NO_DISCOVERY, ..OIDC },
    Preset {
        name: "shared-secret",
        keys: DefaultKeys::Secret,
        algorithms: &[Algorithm::HS256],
        sign_in: NO_DISCOVERY,
        ..OIDC
    },
    Preset { name: "introspection", keys: DefaultKeys::Introspection, algorithms: &[], sign_in: NO_DISCOVERY, ..OIDC },
];

impl Preset {
    /// Returns the names of the keys from which the issuer can be derived.
    pub(super) fn issuer_keys(&self) -> Vec<&'static str> {
        match self.issuer {
            DefaultIssuer::Derived { from, .. } => from.iter().map(|key| key.name).collect(),
            DefaultIssuer::None | DefaultIssuer::Fixed(_) => Vec::new(),
        }
    }
}

/// Returns the row that a provider of the configuration names; `None` if there is no such preset, which is an error of
/// its own.
pub(super) fn preset_of(provider: &config::Provider) -> Option<&'static Preset> {
    let name = provider.preset.as_deref().unwrap_or(OIDC.name);
    preset_named(name)
}

/// Returns the row of this name.
pub(super) fn preset_named(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// Returns the issuer of the preset, or the one derived from other keys of the provider; `None` if none of these is
/// configured.
///
/// # Errors
/// Returns the key with an error, and the message.
pub(super) fn derived_issuer(preset: &Preset, provider: &config::Provider) -> Result<Option<String>, KeyError> {
    let (from, issuer) = match &preset.issuer {
        DefaultIssuer::Derived { from, issuer } => (*from, Some(issuer)),
        DefaultIssuer::None | DefaultIssuer::Fixed(_) => (&[][..], None),
    };
    // The region of a load balancer is where its keys are.
    let is_own =
        |key: &IssuerKey| from.iter().any(|own| own.is(key)) || (preset.family == Family::AwsAlb && key.is(&REGION));
    let is_foreign = |key: &IssuerKey| key.value(provider).is_some() && !is_own(key);
    if let Some(foreign) = ISSUER_KEYS.iter().find(|key| is_foreign(key)) {
        return Err((foreign.name, format!("means nothing to preset {}; remove it", preset.name)));
    }
    let (Some(first), Some(issuer)) = (from.first(), issuer) else { return Ok(None) };
    if from.iter().all(|key| key.value(provider).is_none()) {
        return Ok(None);
    }
    if let Some(missing) = from.iter().find(|key| key.value(provider).is_none()) {
        return Err((first.name, format!("needs {} beside it, or write issuer instead of both", missing.name)));
    }
    issuer(provider).map(Some)
}

fn clerk_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    Ok(format!("https://{}", frontend_api(PUBLISHABLE_KEY.value(provider).unwrap_or_default())?))
}

fn supabase_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    Ok(format!("https://{}.supabase.co/auth/v1", PROJECT.plain(provider)?))
}

/// Returns the issuer, which ends with a slash as in Auth0's tokens.
fn auth0_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    Ok(format!("https://{}/", DOMAIN.plain(provider)?))
}

fn cognito_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    let (region, pool) = (REGION.plain(provider)?, USER_POOL_ID.plain(provider)?);
    Ok(format!("https://cognito-idp.{region}.amazonaws.com/{pool}"))
}

fn keycloak_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    let url = URL.value(provider).unwrap_or_default().trim_end_matches('/');
    Ok(format!("{url}/realms/{}", REALM.plain(provider)?))
}

/// Returns the issuer of version 2.0 tokens. They name the tenant by its id, never by a domain.
fn entra_issuer(provider: &config::Provider) -> Result<String, KeyError> {
    let tenant = TENANT.value(provider).unwrap_or_default();
    if let "common" | "organizations" | "consumers" = tenant {
        let message = format!(
            "\"{tenant}\" stands for many tenants, and a token names one; write the tenant's id, and a provider for each tenant"
        );
        return Err((TENANT.name, message));
    }
    if !is_uuid(tenant) {
        let message =
            format!("\"{tenant}\" is not a tenant's id; write the one of 36 characters that Entra's overview shows");
        return Err((TENANT.name, message));
    }
    Ok(format!("https://login.microsoftonline.com/{}/v2.0", tenant.to_ascii_lowercase()))
}

/// Returns whether this is a UUID as text (RFC 9562 section 4).
#[must_use]
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// Returns the host of the frontend API in a Clerk publishable key: `pk_test_` or `pk_live_` and, in base64, the host
/// followed by `$`.
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

/// Returns the suffix after `__session_` in the name of the cookie of one Clerk application: the first eight characters
/// of the base64url of its publishable key's SHA-1.
pub(super) fn cookie_suffix(publishable_key: &str) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, publishable_key.as_bytes());
    URL_SAFE_NO_PAD.encode(digest.as_ref()).chars().take(8).collect()
}

/// The secrets that are published in documentation and long enough to pass a length check.
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
        // The value is that of `printf %s pk_test_abc | openssl sha1 -binary | basenc --base64url | cut -c1-8`.
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
        assert_eq!(
            derived("entra", |p| p.tenant = some("8EAEF023-2B34-4DA1-9BAA-8BC8C9D6A490")),
            Ok(some("https://login.microsoftonline.com/8eaef023-2b34-4da1-9baa-8bc8c9d6a490/v2.0"))
        );
        for wrong in ["common", "contoso.onmicrosoft.com", "{tenantid}", "8eaef023-2b34-4da1-9baa-8bc8c9d6a49"] {
            assert_eq!(derived("entra", |p| p.tenant = some(wrong)), Err("tenant"), "{wrong}");
        }
        assert_eq!(derived("oidc", |p| p.project = some("x")), Err("project"));
        assert_eq!(derived("clerk", |_| ()), Ok(None));
    }
}
