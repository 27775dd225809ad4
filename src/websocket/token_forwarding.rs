//! The uses of a session's tokens after they were verified.

use std::sync::Arc;
use std::time::Duration;

use crate::policy::{DialectSpec, Policy, Route, TokenToUpgrade};

/// The recipients of a session's tokens after verification.
#[derive(Clone, Default)]
pub(super) struct TokenForwarding {
    /// The dialect in which the proxy authenticates the user to the upstream, and forwards refreshes.
    pub(super) upstream_dialect: Option<Arc<DialectSpec>>,
    /// Whether the relay keeps the current token: messages are compared with it, or carry it to the upstream.
    pub(super) relay_keeps_token: bool,
    /// Whether the upstream wants the token in a first message, the proxy's or the client's own.
    pub(super) in_first_message: bool,
    /// The time that the upstream has to acknowledge the proxy's first message.
    pub(super) handshake_timeout: Duration,
}

impl TokenForwarding {
    pub(super) fn of(route: &Route, policy: &Policy) -> Self {
        let client_dialect = route.websocket.dialect.as_ref();
        let compares = client_dialect.is_some_and(|dialect| dialect.field.is_some());
        let upstream = policy.upstream(route);
        let forwarding =
            Self { relay_keeps_token: compares, handshake_timeout: upstream.handshake_timeout, ..Self::default() };
        match &upstream.token_to_websocket {
            // The client's own message is forwarded with its token; the proxy sends none.
            TokenToUpgrade::FirstMessage(_) if client_dialect.is_some_and(|dialect| dialect.forwards()) => {
                Self { relay_keeps_token: true, in_first_message: true, ..forwarding }
            }
            TokenToUpgrade::FirstMessage(dialect) => {
                Self { upstream_dialect: Some(Arc::clone(dialect)), in_first_message: true, ..forwarding }
            }
            _ => forwarding,
        }
    }

    /// Returns whether tokens that are accepted later are needed.
    pub(super) fn needs_later_tokens(&self) -> bool {
        self.relay_keeps_token || self.upstream_dialect.is_some()
    }
}
