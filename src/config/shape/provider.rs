//! `providers`: the issuers whose tokens are accepted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;
use super::{Json, OneOrMany};

/// An identity provider.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Provider {
    /// The name in logs and metrics; unique. Unset: the preset's name.
    pub name: Option<String>,
    /// `oidc`, `clerk`, `supabase`, `auth0`, `cognito`, `keycloak`, `entra`, `google`, `aws-alb`, `jwt`, `shared-secret` or
    /// `introspection`.
    pub preset: Option<String>,
    /// The `iss` of its tokens, exactly. A preset can derive it from other keys. It is a name; where its keys are fetched
    /// from can be another address (`jwks.url`).
    pub issuer: Option<String>,
    /// `clerk`: the publishable key, `pk_live_…`.
    pub publishable_key: Option<String>,
    /// `supabase`: the project's reference, such as `abcdefgh`.
    pub project: Option<String>,
    /// `auth0`: the tenant's domain, such as `tenant.eu.auth0.com`.
    pub domain: Option<String>,
    /// `cognito`: the region, such as `eu-central-1`; with `user_pool_id`. `aws-alb`: unset, that of `signer`.
    pub region: Option<String>,
    /// `cognito`: the user pool, such as `eu-central-1_AbC`.
    pub user_pool_id: Option<String>,
    /// `keycloak`: its URL, such as `https://id.example.com`; with `realm`.
    pub url: Option<String>,
    /// `keycloak`: the realm.
    pub realm: Option<String>,
    /// `entra`: the directory (tenant) ID. A provider for each tenant.
    pub tenant: Option<String>,
    /// `aws-alb`: the ARN of the load balancer that signs, or a list of them.
    pub signer: Option<OneOrMany>,
    /// The public keys.
    pub jwks: Jwks,
    /// `shared-secret`, and projects of `supabase` that still have one: the secret. At least 32 bytes, 8 of them
    /// different.
    pub secret: Option<String>,
    /// The file that holds the secret, instead.
    pub secret_file: Option<String>,
    /// The signature algorithms that are accepted. Unset: those of the preset; with a shared secret HS256.
    pub algorithms: Option<Vec<String>>,
    /// Whom tokens must be for (`aud`): a name, a list (one of them suffices), or `any`.
    pub audience: Option<OneOrMany>,
    /// The `azp` values that are accepted; once written, a token must have one, and those of native applications and of
    /// some providers (`cognito`, `supabase`) have none. Unset: under `clerk` those of
    /// `origins`, where a token has one.
    pub authorized_parties: Option<Vec<String>>,
    /// The tolerance for `exp`, `nbf` and `iat`.
    pub clock_skew: Option<Time>,
    /// The claim that names the user. `email` counts only where it is verified.
    pub user_id: Option<String>,
    /// Put in front of every user id. Needed with several providers.
    pub user_prefix: Option<String>,
    /// The claims that every token must have: a value, a list of values, or `{ present: true }` (any value but
    /// null).
    pub require: BTreeMap<String, Json>,
    /// Who may enter. Empty: everyone whom the provider signs in.
    pub allow: Allow,
    /// Whether `email` counts without `email_verified: true`.
    pub trust_unverified_email: bool,
    /// The kinds of token that are accepted.
    pub accept: Option<Vec<Accept>>,
    /// How long a verified token is remembered, at most until it expires. 0s: not at all.
    pub cache_ttl: Option<Time>,
    /// The provider is asked about tokens. null: it is not.
    pub remote: Option<Remote>,
}

/// Who may enter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Allow {
    /// User ids, with prefix.
    pub users: Vec<String>,
    /// E-mail addresses.
    pub emails: Vec<String>,
    /// Domains of e-mail addresses.
    pub email_domains: Vec<String>,
}

/// A kind of token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Access tokens, and tokens that do not name their kind.
    AccessToken,
    /// ID tokens.
    IdToken,
    /// `clerk`: tokens from a template, which have no session.
    Template,
}

/// Where public keys come from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Jwks {
    /// The JWKS (`aws-alb`: the URL below which each key is), where it is not below the issuer, or the issuer cannot be reached from here. Unset: as the preset says, or
    /// by discovery.
    pub url: Option<String>,
    /// A JWKS on disk, instead.
    pub file: Option<String>,
    /// Public keys or certificates in PEM, instead.
    pub pem_file: Option<String>,
    /// A file with a token that is sent as `Authorization: Bearer` to `url`, as the API server of Kubernetes wants it. Read
    /// at each fetch.
    pub token_file: Option<String>,
    /// How long fetched keys are fresh.
    pub refresh: Option<Time>,
    /// How long the last good keys are used while the provider cannot be reached.
    pub max_stale: Option<Time>,
    /// A further certificate authority, PEM.
    pub ca_file: Option<String>,
    /// Whether keys may be fetched by plain http from another machine.
    pub allow_http: bool,
}

/// How a provider is asked about a token or a session.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Remote {
    /// Which tokens it is asked about.
    pub mode: Option<RemoteMode>,
    /// The introspection endpoint. Under `clerk` and `supabase`: the base, known by default.
    pub url: Option<String>,
    /// `clerk`: the secret key; `supabase`: the API key.
    pub secret_key: Option<String>,
    /// The file that holds the key, instead.
    pub secret_key_file: Option<String>,
    /// The client id at the introspection endpoint.
    pub client_id: Option<String>,
    /// The client's secret there.
    pub client_secret: Option<String>,
    /// The file that holds the secret, instead.
    pub client_secret_file: Option<String>,
    /// How long an answer is kept. `Retry-After` of a 429 is obeyed.
    pub cache: Option<Time>,
    /// How long an answer may take.
    pub timeout: Option<Time>,
    /// Requests at once; half of them are kept for `revalidate_every`.
    pub concurrency: Option<u32>,
    /// A further certificate authority, PEM.
    pub ca_file: Option<String>,
    /// Whether it may be asked by plain http on another machine.
    pub allow_http: bool,
}

/// Which tokens a provider is asked about.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RemoteMode {
    /// Opaque tokens.
    Instead,
    /// Every token, beside its signature.
    Also,
}
