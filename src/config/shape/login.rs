//! Sign-in by OpenID Connect: `browser.login`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;

/// One login, or a list of logins; one may be written without the list.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Logins(pub Vec<Login>);

/// The settings of sign-in at one provider.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Login {
    /// People sign in at the provider of this name. It may be left out where there is only one.
    pub provider: Option<String>,
    /// This is the id of the client that you registered at the provider.
    pub client_id: Option<String>,
    /// The client authenticates with this secret. Without a secret, a key and an assertion it is a public client.
    pub client_secret: Option<String>,
    /// This file holds the secret, in place of `client_secret`.
    pub client_secret_file: Option<String>,
    /// The client authenticates by `private_key_jwt` with this key: P-256, or RSA of at least 2048 bits, in PKCS#8 PEM.
    pub client_key_file: Option<String>,
    /// The client authenticates with the assertion in this file, which another program renews. It is read at each use.
    pub client_assertion_file: Option<String>,
    /// The client authenticates at the token endpoint in this way. Default: `private_key_jwt` with a key or an
    /// assertion; with a secret `basic`, or `post` where the provider lists only that; else `none`.
    pub client_auth: Option<ClientAuth>,
    /// These scopes are requested; `openid` must be among them. `offline_access` is added where the provider lists it,
    /// unless `renew` is `off`. Default: `[openid, email]`.
    pub scopes: Option<Vec<String>>,
    /// The claims of a user come from this place. Default: `id_token`.
    pub claims_from: ClaimsFrom,
    /// The provider asks the user to do this at each sign-in. Default: the provider decides.
    pub prompt: Option<LoginPrompt>,
    /// The user must have signed in at the provider within this time, such as `8h`; else the provider asks again. A
    /// sign-in without `auth_time` is then refused. Default: no limit.
    pub max_age: Option<Time>,
    /// Sessions are renewed by refresh token in these cases. Default: `auto`.
    pub renew: Renew,
    /// Authorization requests are pushed (RFC 9126) in these cases. Default: `auto`.
    pub pushed: Pushed,
    /// A sign-out ends this. Default: `provider`.
    pub logout: LogoutScope,
    /// These parameters are added to the authorization request, such as `{ access_type: offline }`. Default: none.
    pub parameters: BTreeMap<String, String>,
    /// The page on which people choose a provider shows this text. Default: the name of the provider.
    pub label: Option<String>,
    /// If true, a small page comes before the sign-in, so that the part of the address behind `#` is there again after
    /// it. Default: false.
    pub keep_fragment: bool,
}

/// The way in which a client authenticates at a provider's token endpoint.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// The secret is sent in `Authorization: Basic`.
    Basic,
    /// The secret is sent in the form.
    Post,
    /// An assertion is sent (RFC 7523), signed with the key or taken from the file.
    PrivateKeyJwt,
    /// The client is public and has no secret.
    None,
}

/// The source of a user's claims.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ClaimsFrom {
    /// The claims are those of the ID token.
    #[default]
    IdToken,
    /// The userinfo endpoint is requested too. Where both have a claim, that of the ID token counts.
    Userinfo,
}

/// The step that the provider asks of its user.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LoginPrompt {
    /// The user signs in again.
    Login,
    /// The user chooses an account.
    SelectAccount,
    /// The user consents.
    Consent,
}

impl LoginPrompt {
    /// Returns the value of the parameter `prompt`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::SelectAccount => "select_account",
            Self::Consent => "consent",
        }
    }

    /// Returns the prompt of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Login, Self::SelectAccount, Self::Consent].into_iter().find(|prompt| prompt.name() == name)
    }
}

/// The cases in which sessions are renewed by refresh token.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Renew {
    /// They are renewed where the provider gives a refresh token.
    #[default]
    Auto,
    /// They are always renewed. A sign-in without a refresh token fails.
    Required,
    /// They are never renewed.
    Off,
}

/// The cases in which authorization requests are pushed (RFC 9126).
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Pushed {
    /// They are pushed where the provider lists the endpoint.
    #[default]
    Auto,
    /// They are always pushed. A sign-in fails where the provider lists no endpoint.
    Required,
    /// They are never pushed.
    Off,
}

/// The sessions that a sign-out ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogoutScope {
    /// The session here ends, and the one at the provider.
    #[default]
    Provider,
    /// Only the session here ends.
    Local,
}
