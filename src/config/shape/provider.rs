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
    /// Logs, metrics and `browser.login` call the provider by this name, which no other provider may have. Default: the
    /// name of the preset.
    pub name: Option<String>,
    /// The preset sets what is known of a kind of provider: `oidc` (the default), `clerk`, `supabase`, `auth0`,
    /// `cognito`, `keycloak`, `entra`, `google`, `aws-alb`, `jwt`, `shared-secret` or `introspection`.
    pub preset: Option<String>,
    /// The `iss` of a token must equal this text exactly. Some presets derive it from other keys. Keys are looked for
    /// below it, unless `jwks` says otherwise.
    pub issuer: Option<String>,
    /// `clerk`: the issuer is derived from this publishable key, `pk_live_…` or `pk_test_…`.
    pub publishable_key: Option<String>,
    /// `supabase`: the issuer is derived from this project reference, such as `abcdefgh`.
    pub project: Option<String>,
    /// `auth0`: the issuer is derived from the domain of the tenant, such as `tenant.eu.auth0.com`.
    pub domain: Option<String>,
    /// `cognito`: the issuer is derived from this region, such as `eu-central-1`, and `user_pool_id`. `aws-alb`: this
    /// must be the region of `signer`, from which it is taken by default.
    pub region: Option<String>,
    /// `cognito`: the issuer is derived from this user pool, such as `eu-central-1_AbC`, and `region`.
    pub user_pool_id: Option<String>,
    /// `keycloak`: the issuer is derived from the URL of the server, such as `https://id.example.com`, and `realm`.
    pub url: Option<String>,
    /// `keycloak`: the issuer is derived from this realm and `url`.
    pub realm: Option<String>,
    /// `entra`: the issuer is derived from this directory (tenant) ID. Each tenant is a provider of its own.
    pub tenant: Option<String>,
    /// `aws-alb`: tokens must be signed by the load balancer with this ARN, or by one of a list. It must be set.
    pub signer: Option<OneOrMany>,
    /// These keys set where the public keys of the provider come from.
    pub jwks: Jwks,
    /// `shared-secret`, and projects of `supabase` that still have a secret: tokens are signed with this secret, of at
    /// least 32 bytes, 8 of them different.
    pub secret: Option<String>,
    /// This file holds the secret, in place of `secret`.
    pub secret_file: Option<String>,
    /// Only these signature algorithms are accepted. Default: those of the preset; with a secret, HS256.
    pub algorithms: Option<Vec<String>>,
    /// A token must be for this audience (`aud`), or for one of a list; `any` accepts the tokens of every application
    /// of this issuer. It may be left out if `authorized_parties` is set, the preset knows the audience, the key is a
    /// secret or a PEM file, or tokens are for a `protected_resource`. With `browser.login` it may be left out too:
    /// then no Bearer token of the provider is accepted.
    pub audience: Option<OneOrMany>,
    /// A token must have an `azp`, and one of these. Tokens of native applications and of some providers (`cognito`,
    /// `supabase`) have none. Default: not checked; under `clerk`, an `azp` must be one of `origins` if the token has
    /// one.
    pub authorized_parties: Option<Vec<String>>,
    /// The clock of the provider may differ this much: `exp`, `nbf` and `iat` are compared with this tolerance.
    /// More than 5m is a warning.
    pub clock_skew: Option<Time>,
    /// This claim is the user id: the name of a member, or an RFC 6901 pointer. `email` counts only if the token says
    /// `email_verified: true`.
    pub user_id: Option<String>,
    /// This text is put in front of every user id of the provider. With several providers each needs one, unless
    /// `shared_user_ids` is true. Default: none.
    pub user_prefix: Option<String>,
    /// Every token must have all of these claims, else it is refused. A claim must equal the value or one of a list of
    /// values; `{ present: true }` is any value but null.
    pub require: BTreeMap<String, Json>,
    /// Only these users of the provider may enter; others get 403. One entry of one list is enough. If all lists are
    /// empty, every user may.
    pub allow: Allow,
    /// If true, `email` counts although the token does not say `email_verified: true`.
    pub trust_unverified_email: bool,
    /// Tokens of these kinds are accepted. Default: `[access_token]`; under `google` `[id_token]`.
    pub accept: Option<Vec<Accept>>,
    /// A verified token is remembered this long, at most until it expires. `0s`: it is verified each time.
    pub cache_ttl: Option<Time>,
    /// The provider itself is asked about tokens or sessions. null: it is not.
    pub remote: Option<Remote>,
}

/// The users who may enter.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Allow {
    /// Users with these ids may enter. An id has its prefix.
    pub users: Vec<String>,
    /// Users with these e-mail addresses may enter.
    pub emails: Vec<String>,
    /// Users with an e-mail address of these domains may enter. A subdomain is another domain.
    pub email_domains: Vec<String>,
}

/// A kind of token.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Access tokens are accepted, and tokens that do not name their kind.
    AccessToken,
    /// ID tokens are accepted.
    IdToken,
    /// `clerk`: tokens from a template are accepted. They have no session, and stay valid after its end.
    Template,
}

/// The source of the keys that verify tokens.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Jwks {
    /// The keys are fetched from this URL of a JWKS. `aws-alb`: each key is fetched from below this URL. Default: a
    /// place below the issuer that the preset knows, or the one that OpenID Connect discovery names.
    pub url: Option<String>,
    /// The keys are read from this file, a JWKS, and not fetched.
    pub file: Option<String>,
    /// The keys are read from this file, public keys or certificates in PEM, and not fetched.
    pub pem_file: Option<String>,
    /// The token in this file is sent to `url` as `Authorization: Bearer`, as the API server of Kubernetes demands it.
    /// It is read at each fetch.
    pub token_file: Option<String>,
    /// Fetched keys are fetched again after this time. At least 30s.
    pub refresh: Option<Time>,
    /// While the provider cannot be reached, the last keys are used this long. Then its tokens get 503.
    pub max_stale: Option<Time>,
    /// This further certificate authority, in PEM, is trusted for the fetch.
    pub ca_file: Option<String>,
    /// If true, keys may be fetched from another machine by plain http.
    pub allow_http: bool,
}

/// The requests to a provider about a token or a session.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Remote {
    /// The provider is asked about these tokens. It must be set, except under preset `introspection` (`instead`).
    pub mode: Option<RemoteMode>,
    /// This is the introspection endpoint (RFC 7662). Under `clerk` and `supabase` it is the base of the API, and has a
    /// default.
    pub url: Option<String>,
    /// `clerk`: this is the secret key. `supabase`: this is the API key.
    pub secret_key: Option<String>,
    /// This file holds the key, in place of `secret_key`.
    pub secret_key_file: Option<String>,
    /// The proxy authenticates at the introspection endpoint with this client id.
    pub client_id: Option<String>,
    /// The proxy authenticates at the introspection endpoint with this secret.
    pub client_secret: Option<String>,
    /// This file holds the secret, in place of `client_secret`.
    pub client_secret_file: Option<String>,
    /// An answer is used this long, at most until the token expires. After a 429 the provider is not asked until its
    /// `Retry-After` has passed.
    pub cache: Option<Time>,
    /// An answer must come within this time; else the request gets 503.
    pub timeout: Option<Time>,
    /// This many requests to the provider may be under way, half of them about new tokens and half about open sessions
    /// (`revalidate_every`). At the limit a token waits for at most `timeout`, then gets 503. 2 to 1000.
    pub concurrency: Option<u32>,
    /// This further certificate authority, in PEM, is trusted for the requests.
    pub ca_file: Option<String>,
    /// If true, the provider may be asked on another machine by plain http.
    pub allow_http: bool,
}

/// The tokens about which a provider is asked.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RemoteMode {
    /// The provider is asked about opaque tokens; JWTs are verified by their signature.
    Instead,
    /// The provider is asked about every token, in addition to its signature.
    Also,
}
