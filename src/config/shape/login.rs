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
    pub provider: Option<String>,
    pub client_id: Option<String>,
    pub client_secret: Option<String>,
    pub client_secret_file: Option<String>,
    pub client_key_file: Option<String>,
    pub client_assertion_file: Option<String>,
    pub client_auth: Option<ClientAuth>,
    pub scopes: Option<Vec<String>>,
    pub claims_from: ClaimsFrom,
    pub prompt: Option<LoginPrompt>,
    pub max_age: Option<Time>,
    pub renew: Renew,
    pub pushed: Pushed,
    pub logout: LogoutScope,
    pub parameters: BTreeMap<String, String>,
    pub label: Option<String>,
    pub keep_fragment: bool,
}

/// How we authenticate at the provider's token endpoint.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    Basic,
    Post,
    PrivateKeyJwt,
    None,
}

/// Where the claims of a user come from.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClaimsFrom {
    #[default]
    IdToken,
    Userinfo,
}

/// What the provider is told to ask its user.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LoginPrompt {
    Login,
    SelectAccount,
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
    #[default]
    Auto,
    Required,
    Off,
}

/// Whether authorization requests are pushed (RFC 9126).
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Pushed {
    #[default]
    Auto,
    Required,
    Off,
}

/// What a sign-out ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogoutScope {
    #[default]
    Provider,
    Local,
}
