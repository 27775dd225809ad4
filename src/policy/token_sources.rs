//! Where a token is read on one route, as the file describes it.

use std::sync::Arc;

use hyper::header::HeaderName;

use super::check::Check;
use super::dialect::Dialects;
use super::{CookieSource, ProviderTokens, Secret};
use crate::config::{self, OneOrMany, QueryMode, TokenEncoding};

/// The places where a token is read, for one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSources {
    /// Headers; in `Authorization` a Bearer token, in others the bare token.
    pub headers: Vec<HeaderName>,
    /// Whether a WebSocket may say its token in its first message.
    pub message: bool,
    /// A query parameter on WebSocket upgrades.
    pub query: Option<QueryParameter>,
    /// Subprotocol entries of WebSocket upgrades that begin like this.
    pub subprotocols: Vec<TokenSubprotocol>,
    /// A cookie of the provider's, under the `Origin` rule.
    pub cookie: Option<CookieSource>,
    /// The upstream's own secret, which its pages send back; it is no token.
    pub upstream_secret: Option<Secret>,
}

/// A subprotocol entry that carries a token behind its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubprotocol {
    /// What the entry begins with.
    pub prefix: String,
    /// How the token is written behind it.
    pub encoding: TokenEncoding,
}

/// The query parameter that may carry a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameter {
    /// The names after percent-decoding; at least one.
    pub names: Vec<String>,
    /// Which of its values are tokens; the others are the backend's own.
    pub issued: Arc<ProviderTokens>,
    /// Whether it is moved or refused.
    pub mode: QueryMode,
    /// Whether it is read on `WebSocket` upgrades.
    pub websocket: bool,
    /// Whether it is read on requests for event streams.
    pub events: bool,
}

impl QueryParameter {
    /// Whether this is one of its names.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

/// What routes need of the rest of the configuration.
pub(super) struct RouteContext {
    /// Tells the providers' tokens from other values.
    pub(super) issued: Arc<ProviderTokens>,
    /// The suffixes of Clerk's cookies, one for each publishable key that is written.
    pub(super) cookie_suffixes: Vec<String>,
    /// The dialects by name.
    pub(super) dialects: Dialects,
}

/// The keys of `token_from` that hold for one route: its own, else those for all.
pub(super) struct WrittenSources<'a> {
    pub(super) header: Option<&'a OneOrMany>,
    pub(super) message: bool,
    pub(super) query: Option<&'a config::QuerySource>,
    pub(super) subprotocols: &'a [config::SubprotocolSource],
    pub(super) cookie: Option<&'a str>,
}

impl Check {
    pub(super) fn token_from(
        &mut self,
        path: &str,
        written: &WrittenSources<'_>,
        context: &RouteContext,
    ) -> TokenSources {
        let WrittenSources { header, message, query, subprotocols, cookie } = *written;
        let mut headers = Vec::new();
        for name in header.map_or(&[][..], |names| &names.0) {
            if let Some(name) = self.header_name(&format!("{path}.header"), name) {
                headers.push(name);
            }
        }
        if query.is_some_and(|query| query.name.0.is_empty() || query.name.0.iter().any(String::is_empty)) {
            self.error(format!("{path}.query.name"), "is empty; write the parameter's name, such as token");
        }
        let query = query.filter(|query| !query.uses.is_empty()).map(|query| QueryParameter {
            names: query.name.0.clone(),
            issued: Arc::clone(&context.issued),
            mode: query.mode,
            websocket: query.uses.contains(&config::QueryUse::Websocket),
            events: query.uses.contains(&config::QueryUse::Events),
        });
        // RFC 6265 section 4.1.1: a cookie's name is a token, as a header's is.
        if let Some(name) = cookie.filter(|name| HeaderName::try_from(*name).is_err()) {
            self.error(format!("{path}.cookie"), format!("\"{name}\" is not a cookie's name; write it as __session"));
        }
        let subprotocols = subprotocols
            .iter()
            .enumerate()
            .map(|(index, source)| {
                let at = format!("{path}.subprotocol[{index}].prefix");
                if source.prefix.is_empty() {
                    self.error(&at, "is empty: every offer would be taken for a token; write it as base64url.bearer.authorization.k8s.io.");
                } else if HeaderName::try_from(source.prefix.as_str()).is_err() {
                    self.error(&at, format!("\"{}\" cannot begin a subprotocol", source.prefix));
                }
                TokenSubprotocol { prefix: source.prefix.clone(), encoding: source.encoding }
            })
            .collect();
        let cookie =
            cookie.map(|name| CookieSource { name: name.to_owned(), suffixes: context.cookie_suffixes.clone() });
        TokenSources { headers, message, query, subprotocols, cookie, upstream_secret: None }
    }
}
