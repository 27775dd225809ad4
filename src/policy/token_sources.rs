//! The places where a token is read on one route, from the configuration.

use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderName};

use super::check::Check;
use super::dialect::Dialects;
use super::{CookieSource, ProviderTokens, Secret};
use crate::config::{self, CookieEncoding, OneOrMany, QueryMode, TokenEncoding};

/// The header in which load balancers of AWS send their tokens.
pub const BALANCER_HEADER: HeaderName = HeaderName::from_static("x-amzn-oidc-data");

/// The places where a token is read, for one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSources {
    /// The headers: in `Authorization` a Bearer token, in others the bare token.
    pub headers: Vec<HeaderName>,
    /// Whether a WebSocket may send its token in its first message.
    pub message: bool,
    /// A query parameter on WebSocket upgrades.
    pub query: Option<QueryParameter>,
    /// The subprotocol entries of WebSocket upgrades that carry a token after a prefix.
    pub subprotocols: Vec<TokenSubprotocol>,
    /// A cookie of the provider; the `Origin` rule applies.
    pub cookie: Option<CookieSource>,
    /// Whether the password of Basic in `Authorization` is a token.
    pub basic: bool,
    /// The upstream's own secret, which its pages send back. It is no token.
    pub upstream_secret: Option<Secret>,
}

/// A subprotocol entry that carries a token after its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubprotocol {
    /// The prefix of the entry.
    pub prefix: String,
    /// The encoding of the token after the prefix.
    pub encoding: TokenEncoding,
}

/// The query parameter that may carry a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryParameter {
    /// The names after percent-decoding; at least one.
    pub names: Vec<String>,
    /// The rules that decide which of its values are tokens; the others are the backend's own.
    pub issued: Arc<ProviderTokens>,
    /// Whether a token is moved or refused.
    pub mode: QueryMode,
    /// Whether it is read on `WebSocket` upgrades.
    pub websocket: bool,
    /// Whether it is read on requests for event streams.
    pub events: bool,
    /// Whether it is read on every other request, too.
    pub http: bool,
}

impl QueryParameter {
    /// Returns whether this is one of the parameter's names.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

/// The parts of the configuration that routes depend on.
pub(super) struct RouteContext {
    /// The rules that distinguish the providers' tokens from other values.
    pub(super) issued: Arc<ProviderTokens>,
    /// The suffixes of Clerk's cookies, one for each configured publishable key.
    pub(super) cookie_suffixes: Vec<String>,
    /// The dialects by name.
    pub(super) dialects: Dialects,
}

/// The keys of `token_from` for one route: its own, otherwise those for all routes.
pub(super) struct WrittenSources<'a> {
    pub(super) header: Option<&'a OneOrMany>,
    pub(super) message: bool,
    pub(super) query: Option<&'a config::QuerySource>,
    pub(super) subprotocols: &'a [config::SubprotocolSource],
    pub(super) cookie: Option<&'a config::CookieChoice>,
    pub(super) basic: bool,
}

impl<'a> WrittenSources<'a> {
    /// Takes each key from the route where it has it, else from `base`.
    pub(super) fn of(base: &'a config::TokenFrom, route: &'a config::RouteTokenFrom) -> Self {
        Self {
            header: route.header.as_ref().map_or(base.header.as_ref(), Option::as_ref),
            message: route.message.unwrap_or(base.message),
            query: route.query.as_ref().map_or(base.query.as_ref(), Option::as_ref),
            subprotocols: route.subprotocol.as_ref().unwrap_or(&base.subprotocol),
            cookie: route.cookie.as_ref().unwrap_or(&base.cookie).as_ref(),
            basic: route.basic.unwrap_or(base.basic),
        }
    }
}

impl Check {
    pub(super) fn token_from(
        &mut self,
        path: &str,
        written: &WrittenSources<'_>,
        context: &RouteContext,
    ) -> TokenSources {
        let WrittenSources { header, message, query, subprotocols, cookie, basic } = *written;
        let mut headers = Vec::new();
        for name in header.map_or(&[][..], |names| &names.0) {
            if let Some(name) = self.header_name(&format!("{path}.header"), name) {
                headers.push(name);
            }
        }
        if basic && !headers.contains(&AUTHORIZATION) {
            self.error(format!("{path}.basic"), "needs Authorization in token_from.header, where Basic is");
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
            http: query.uses.contains(&config::QueryUse::Http),
        });
        // RFC 6265 section 4.1.1: a cookie's name has the same syntax as a header's.
        let name = cookie.map(|cookie| cookie.name.as_str());
        if let Some(name) = name.filter(|name| HeaderName::try_from(*name).is_err()) {
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
        if let Some(cookie) = cookie
            && cookie.encoding == CookieEncoding::Plain
            && cookie.name.starts_with("sb-")
            && cookie.name.ends_with("-auth-token")
        {
            self.warn_at(
                format!("{path}.cookie"),
                format!(
                    "{} is Supabase's, whose token stands inside; write cookie: {{ name: {0}, encoding: supabase }}",
                    cookie.name
                ),
            );
        }
        let cookie = cookie.map(|cookie| CookieSource {
            name: cookie.name.clone(),
            suffixes: context.cookie_suffixes.clone(),
            encoding: cookie.encoding,
        });
        TokenSources { headers, message, query, subprotocols, cookie, basic, upstream_secret: None }
    }
}
