//! The keys for pages and browsers: `browser`, `cors`, `events`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;
use super::{Logins, written};

/// How preflights are answered.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cors {
    /// `Access-Control-Allow-Methods`.
    pub allowed_methods: Vec<String>,
    /// `Access-Control-Allow-Headers`.
    pub allowed_headers: Vec<String>,
    /// `Access-Control-Expose-Headers`, beside `WWW-Authenticate`, `Retry-After`, `X-Request-Id` and what the upstream's
    /// answer exposes itself.
    pub exposed_headers: Vec<String>,
    /// `Access-Control-Max-Age`.
    pub max_age: Time,
}

impl Default for Cors {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            allowed_methods: list(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            allowed_headers: list(&["Authorization", "Content-Type"]),
            exposed_headers: Vec::new(),
            max_age: Time::seconds(600),
        }
    }
}

/// What people at browsers get.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Browser {
    /// Session cookies, with POST and DELETE `/.vestibule/session`. Unset: none, but for an upstream preset and for
    /// `login`; `{}` has the defaults.
    #[serde(deserialize_with = "written")]
    pub session: Option<Option<Session>>,
    /// Where a page navigation without a credential is sent: `/sign-in?back={return_path}`, or
    /// `https://id.example.com/in?back={return_url}` where `public_url` is set.
    pub sign_in_url: Option<String>,
    /// The contact on the pages that people see: a mail address, an https URL, or a line of at most 200 bytes.
    pub contact: Option<String>,
    /// Sign-in by OpenID Connect; it needs `public_url`. One provider, or a list of them, from which people choose
    /// on a page.
    pub login: Option<Logins>,
}

/// Session cookies.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Session {
    /// How long a session lives from the last token shown. null: as long as that token, or 12h after a sign-in by
    /// `login`.
    pub max_age: Option<Time>,
    /// The secret that encrypts session cookies. At least 32 bytes, 8 of them different. null: a key of each
    /// process, so that a restart ends sessions and two instances do not share them.
    pub secret: Option<String>,
    /// The file that holds the secret, instead.
    pub secret_file: Option<String>,
    /// How often the provider is asked whether the session is still active, such as `60s`; it needs `remote`. null:
    /// never.
    pub revalidate_every: Option<Time>,
    /// `SameSite` of the cookies over https: `lax`, or `none` for pages in frames of other sites.
    pub same_site: SameSite,
    /// `Partitioned`: a cookie of its own for each site whose pages have a frame of this one. It needs `same_site: none`.
    pub partitioned: bool,
    /// The name of the cookies: `vestibule`, or what begins with `vestibule-`, for several instances on one host.
    pub name: String,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            max_age: None,
            secret: None,
            secret_file: None,
            revalidate_every: None,
            same_site: SameSite::Lax,
            partitioned: false,
            name: "vestibule".to_owned(),
        }
    }
}

/// When browsers send the cookies with requests of other sites' pages.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SameSite {
    /// With navigations only.
    Lax,
    /// With every request; which pages may use them is checked here.
    None,
}

/// Event streams (`text/event-stream`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Events {
    /// What happens to a stream when its token expires.
    pub on_expiry: EventsOnExpiry,
}

impl Default for Events {
    fn default() -> Self {
        Self { on_expiry: EventsOnExpiry::Keep }
    }
}

/// What happens to an event stream when its token expires.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EventsOnExpiry {
    /// It goes on.
    Keep,
    /// It is broken off.
    Close,
}
