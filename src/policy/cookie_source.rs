//! A provider's own cookie, as a source of tokens.

/// A provider's cookie that carries its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieSource {
    /// The name of the cookie.
    pub name: String,
    /// What Clerk writes behind the name of the same cookie of one application, where its publishable keys
    /// are known; empty: any.
    pub suffixes: Vec<String>,
}
