//! The keys for pages and browsers: `browser`, `cors`, `events`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::value::Time;
use super::{Logins, written};

/// The answers to preflights.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cors {
    /// These methods are in `Access-Control-Allow-Methods`. Default: GET, HEAD, POST, PUT, PATCH, DELETE.
    pub allowed_methods: Vec<String>,
    /// These headers are in `Access-Control-Allow-Headers`. Default: Authorization, Content-Type.
    pub allowed_headers: Vec<String>,
    /// These headers are in `Access-Control-Expose-Headers`, in addition to `WWW-Authenticate`, `Retry-After`,
    /// `X-Request-Id` and those that the upstream's answer exposes. Default: none.
    pub exposed_headers: Vec<String>,
    /// Browsers may keep the answer to a preflight this long (`Access-Control-Max-Age`). Default: `10m`.
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

/// Session cookies, pages and sign-in for people with browsers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Browser {
    /// A POST to `/.vestibule/session` with a token begins a browser session with a cookie, and a DELETE ends it. `{}`
    /// uses the defaults. null: there are no sessions. If the key is not written, there are sessions only with an
    /// upstream preset or with `login`.
    #[serde(deserialize_with = "written")]
    pub session: Option<Option<Session>>,
    /// A page navigation without a credential is redirected to this path or URL: `/sign-in?back={return_path}`, or
    /// `https://id.example.com/in?back={return_url}` where `public_url` is set. null: the answer is a small page with
    /// status 401.
    pub sign_in_url: Option<String>,
    /// The pages that people see show this contact: a mail address, an https URL, or a line of text, of at most 200
    /// bytes. null: none.
    pub contact: Option<String>,
    /// People sign in by OpenID Connect at this provider, or at one of a list from which they choose on a page. It
    /// needs `public_url`. null: the proxy has no sign-in of its own.
    pub login: Option<Logins>,
}

/// The session cookies of browsers.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Session {
    /// A session ends this long after the last token was posted, or after the sign-in by `login`. Default: with the
    /// token that was posted, or 12h after the sign-in.
    pub max_age: Option<Time>,
    /// Session cookies are encrypted with this secret, of at least 32 bytes, 8 of them different. Default: a random key
    /// of each process, so that a restart ends all sessions and two instances do not accept each other's.
    pub secret: Option<String>,
    /// This file holds the secret, in place of `secret`.
    pub secret_file: Option<String>,
    /// The provider is asked this often whether a session that is used is still active, such as `60s`. It needs a
    /// provider with `remote` that can be asked about a session (`clerk`). Default: never.
    pub revalidate_every: Option<Time>,
    /// This is the `SameSite` of the cookies over https. Default: `lax`.
    pub same_site: SameSite,
    /// If true, the cookies are `Partitioned`: browsers keep one for each site that shows a page of this proxy in a
    /// frame. It needs `same_site: none`. Default: false.
    pub partitioned: bool,
    /// This is the name of the cookies, without their prefix `__Host-`: `vestibule`, or `vestibule-` with lower-case
    /// letters, digits and dashes behind it, so that several instances can run on one host. Default: `vestibule`.
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

/// The requests of other sites' pages with which browsers send the cookies.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum SameSite {
    /// Pages of other sites send the cookies with navigations only.
    Lax,
    /// Pages of other sites send the cookies with every request, also from frames. The proxy serves only those of pages
    /// in `origins`.
    None,
}

/// Event streams (`text/event-stream`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Events {
    /// An event stream whose token expires is treated in this way.
    pub on_expiry: EventsOnExpiry,
}

impl Default for Events {
    fn default() -> Self {
        Self { on_expiry: EventsOnExpiry::Keep }
    }
}

/// The treatment of an event stream whose token expires.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EventsOnExpiry {
    /// The stream goes on.
    Keep,
    /// The stream is aborted, `websocket.grace` after the end of the token.
    Close,
}
