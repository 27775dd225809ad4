//! Sign-in by OpenID Connect: `browser.login`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// One login, or a list of them; one may be written without the list.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Logins(pub Vec<Login>);

/// How people sign in at one provider.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Login {
    /// The name of the provider. It may be left out where there is one.
    pub provider: Option<String>,
    /// The id of the client that you registered at the provider.
    pub client_id: Option<String>,
    /// The client's secret. Without a secret, a key and an assertion it is a public client.
    pub client_secret: Option<String>,
    /// The file that holds the secret, instead.
    pub client_secret_file: Option<String>,
    /// A private key in PKCS#8 PEM, P-256 or RSA, for `private_key_jwt`.
    pub client_key_file: Option<String>,
    /// A file with a client assertion that another program renews; it is read at each use.
    pub client_assertion_file: Option<String>,
    /// How the client authenticates at the token endpoint. Unset: as discovery lists, else `basic`.
    pub client_auth: Option<ClientAuth>,
    /// The scopes. `offline_access` is added where discovery lists it.
    pub scopes: Option<Vec<String>>,
    /// Where the user's claims come from.
    pub claims_from: ClaimsFrom,
    /// What the provider asks its user. Unset: what it needs.
    pub prompt: Option<LoginPrompt>,
    /// How long ago the user may have signed in at the provider, such as `8h`.
    pub max_age: Option<Time>,
    /// Whether sessions are renewed by refresh token.
    pub renew: Renew,
    /// Whether authorization requests are pushed (RFC 9126).
    pub pushed: Pushed,
    /// What a sign-out ends.
    pub logout: LogoutScope,
    /// Further parameters of the authorization request, such as `{ access_type: offline }`.
    pub parameters: BTreeMap<String, String>,
    /// The provider's name on the page to choose from. Unset: its `name`.
    pub label: Option<String>,
    /// Whether a page before the sign-in keeps the part of an address behind `#`.
    pub keep_fragment: bool,
}

/// How a client authenticates at a provider's token endpoint.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// The secret is sent in `Authorization: Basic`.
    Basic,
    /// The secret is sent in the form.
    Post,
    /// The client signs an assertion (RFC 7523).
    PrivateKeyJwt,
    /// The client is public and has no secret.
    None,
}

/// Where the claims of a user come from.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClaimsFrom {
    /// The ID token.
    #[default]
    IdToken,
    /// The userinfo endpoint too; members of the ID token win.
    Userinfo,
}

/// What the provider asks its user.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LoginPrompt {
    /// To sign in again.
    Login,
    /// To choose an account.
    SelectAccount,
    /// To consent.
    Consent,
}

impl LoginPrompt {
    /// As `prompt` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::SelectAccount => "select_account",
            Self::Consent => "consent",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Login, Self::SelectAccount, Self::Consent].into_iter().find(|prompt| prompt.name() == name)
    }
}

/// Whether sessions are renewed by refresh token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Renew {
    /// Where the provider gives one.
    #[default]
    Auto,
    /// Always; a sign-in without one fails.
    Required,
    /// Never.
    Off,
}

/// Whether authorization requests are pushed (RFC 9126).
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Pushed {
    /// Where discovery lists the endpoint.
    #[default]
    Auto,
    /// Always; a sign-in without the endpoint fails.
    Required,
    /// Never.
    Off,
}

/// What a sign-out ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogoutScope {
    /// The session here and the one at the provider.
    #[default]
    Provider,
    /// The session here.
    Local,
}
