//! Logs warnings about the configuration that requests reveal: each at most once a minute, or once per peer.

use super::head::RequestHead;
use crate::http::{AddressSharing, ClientAddress, Refusal};
use crate::runtime::ProxyState;
use crate::telemetry::{AccessLine, OncePerMinute};

static UPSTREAM_401: OncePerMinute = OncePerMinute::new();
static HEALTH_CHECKER: OncePerMinute = OncePerMinute::new();
static LOST_UPGRADE: OncePerMinute = OncePerMinute::new();

/// Calls `log` at most once a minute, for a warning that many requests could cause.
fn once_a_minute(last: &OncePerMinute, log: impl FnOnce()) {
    if last.is_due(crate::auth::unix_seconds()) {
        log();
    }
}

/// Warns of a load balancer that is not in `trusted_proxies`, whose clients cannot be distinguished.
pub(super) fn warn_of_untrusted_balancer(state: &ProxyState, client: &ClientAddress) {
    if client.sharing == AddressSharing::Balancer && state.addresses.record_balancer(client.address) {
        let address = client.address;
        tracing::warn!(
            %address,
            scheme = %client.scheme,
            "a peer sends X-Forwarded-For but is not in trusted_proxies: all its clients share its address, and the backend sees its scheme; add trusted_proxies: [private_ranges]"
        );
    }
}

/// Warns that a health check was refused.
pub(super) fn warn_of_refused_health_check(refusal: &Refusal, head: &RequestHead, line: &AccessLine) {
    // A warning only: a user agent never grants access.
    if let Some(agent) = &head.user_agent {
        once_a_minute(&HEALTH_CHECKER, || {
            let (method, path, status) = (&line.method, &line.path, refusal.status.as_u16());
            tracing::warn!(
                %method,
                %path,
                user_agent = %agent,
                status,
                "health checker refused; add routes: [{{ path: …, auth: none }}] with this path, or let it request /.vestibule/readyz"
            );
        });
    }
}

/// Warns that an upstream refused a request whose token the proxy had verified.
pub(super) fn warn_of_upstream_401() {
    once_a_minute(&UPSTREAM_401, || {
        tracing::warn!(
            "upstream answered 401 to a request whose token was verified; if it checks tokens itself, set upstream.token_to.http: header"
        );
    });
}

/// Warns of a WebSocket handshake whose `Upgrade` a proxy in front has removed.
pub(super) fn warn_of_lost_upgrade(head: &RequestHead, line: &AccessLine) {
    if head.lacks_upgrade {
        once_a_minute(&LOST_UPGRADE, || {
            tracing::warn!(
                method = %line.method,
                path = %line.path,
                "a WebSocket handshake came without Upgrade, so it is a plain request: a proxy in front removed the field; nginx needs proxy_http_version 1.1 and proxy_set_header for Upgrade and Connection"
            );
        });
    }
}
