//! A provider's own cookie, as a source of tokens.

use crate::config::CookieEncoding;

/// A cookie of the provider that carries its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieSource {
    /// The name of the cookie.
    pub name: String,
    /// The suffixes that Clerk appends to the name of the same cookie of one application, where its publishable keys
    /// are configured. Empty: any suffix.
    pub suffixes: Vec<String>,
    /// How the token is written in the cookie.
    pub encoding: CookieEncoding,
}
