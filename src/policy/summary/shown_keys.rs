//! The keys that the summary shows. Of the others `check` prints the names of those that are set.

/// The keys whose values the summary shows, with those below them, without the indices of lists.
const SHOWN_KEYS: [&str; 64] = [
    "admin",
    "browser.login",
    "browser.session",
    "browser.sign_in_url",
    "control",
    "drain.delay",
    "errors",
    "events.on_expiry",
    "hosts",
    "identity.headers",
    "insecure_verbose_errors",
    "limits.failed_tokens_per_minute",
    "limits.held_message_bytes",
    "limits.unauthenticated_bytes",
    "listen",
    "log.query",
    "origins",
    "protected_resource",
    "providers.allow",
    "providers.audience",
    "providers.authorized_parties",
    "providers.clock_skew",
    "providers.domain",
    "providers.issuer",
    "providers.jwks.file",
    "providers.jwks.pem_file",
    "providers.jwks.url",
    "providers.name",
    "providers.preset",
    "providers.project",
    "providers.publishable_key",
    "providers.realm",
    "providers.region",
    "providers.remote",
    "providers.require",
    "providers.secret",
    "providers.secret_file",
    "providers.signer",
    "providers.tenant",
    "providers.trust_unverified_email",
    "providers.url",
    "providers.user_pool_id",
    "public_url",
    "routes.auth",
    "routes.methods",
    "routes.path",
    "routes.protected_resource",
    "routes.require",
    "routes.upstream",
    "shared",
    "token_from",
    "trusted_proxies",
    "upstream.credential",
    "upstream.preset",
    "upstream.token_to",
    "upstream.url",
    "websocket.allowed_origins",
    "websocket.dialect",
    "websocket.grace",
    "websocket.idle_timeout",
    "websocket.max_lifetime",
    "websocket.on_expiry",
    "websocket.presence",
    "websocket.revalidate_every",
];

/// Returns those of the keys that the summary does not show.
#[must_use]
pub fn keys_not_shown(keys: Vec<String>) -> Vec<String> {
    let is_shown = |key: &String| {
        let words: Vec<&str> = key.split('.').map(|word| word.split('[').next().unwrap_or_default()).collect();
        let plain = words.join(".");
        // A route's settings of WebSockets are described as those of all are.
        let plain = plain.strip_prefix("routes.websocket").map_or(plain.clone(), |rest| format!("websocket{rest}"));
        let is_below =
            |shown: &&str| plain.strip_prefix(shown).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        // The short form of `upstream` is its URL.
        plain == "upstream" || SHOWN_KEYS.iter().any(is_below)
    };
    keys.into_iter().filter(|key| !is_shown(key)).collect()
}
