//! What is counted, for Prometheus. Names, labels and the values that start at zero stand here alone; no label is
//! ever a user, an address, a path or anything else that a client chooses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A configured name: of a provider.
pub type Label = Arc<str>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verification {
    provider: Label,
    carrier: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lookup {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    provider: Label,
    outcome: &'static str,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    verifications: Family<Verification, Counter>,
    lookups: Family<Lookup, Counter>,
    keys: Family<OfProvider, Gauge>,
    keys_last_success: Family<OfProvider, Gauge>,
    key_fetches: Family<Attempt, Counter>,
    remote_checks: Family<Attempt, Counter>,
    remote_check_duration: Family<Attempt, Histogram>,
    limited: Family<Limit, Counter>,
    reloads: Family<Outcome, Counter>,
    config: Family<Version, Gauge>,
}

/// Where a token that was verified before was found: on its own connection, in the cache, nowhere.
const LOOKUPS: [&str; 3] = ["connection", "hit", "miss"];
const RELOADS: [&str; 2] = ["ok", "refused"];
const FETCHES: [&str; 2] = ["ok", "failed"];
const CHECKS: [&str; 3] = ["yes", "no", "unanswered"];
/// Keys of `limits` that refuse.
const LIMITS: [&str; 5] =
    ["connections", "connections_per_address", "waiting_websockets", "websockets_per_user", "failed_tokens_per_minute"];
/// Seconds: a provider nearby answers in the first, `remote.timeout` is mostly the last.
const CHECK_SECONDS: [f64; 8] = [0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("vestibule"),
            verifications: Family::default(),
            lookups: Family::default(),
            keys: Family::default(),
            keys_last_success: Family::default(),
            key_fetches: Family::default(),
            remote_checks: Family::default(),
            remote_check_duration: Family::new_with_constructor(|| Histogram::new(CHECK_SECONDS)),
            limited: Family::default(),
            reloads: Family::default(),
            config: Family::default(),
        };
        for outcome in RELOADS {
            metrics.reloads.get_or_create_owned(&Outcome { outcome });
        }
        for limit in LIMITS {
            metrics.limited.get_or_create_owned(&Limit { limit });
        }
        for result in LOOKUPS {
            metrics.lookups.get_or_create_owned(&Lookup { result });
        }
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("token_verifications", "Tokens judged", self.verifications.clone());
        registry.register("token_cache_lookups", "Tokens looked for among those verified before", self.lookups.clone());
        registry.register("jwks_keys", "Usable keys of a provider", self.keys.clone());
        registry.register(
            "jwks_last_success_timestamp_seconds",
            "When the keys of a provider were fetched last",
            self.keys_last_success.clone(),
        );
        registry.register("jwks_fetches", "Fetches of a provider's keys", self.key_fetches.clone());
        registry.register("remote_checks", "Questions to a provider", self.remote_checks.clone());
        registry.register(
            "remote_check_duration_seconds",
            "How long a provider took to answer a question",
            self.remote_check_duration.clone(),
        );
        registry.register("limited", "Refused at a limit", self.limited.clone());
        registry.register("config_reloads", "Configurations loaded while running", self.reloads.clone());
        registry.register("config_info", "The configuration in force", self.config.clone());
        self
    }

    /// A provider's values start at zero; `outcomes` are those of a verification.
    pub fn introduce(&self, provider: &Label, carriers: &[&'static str], outcomes: &[&'static str], is_asked: bool) {
        for (carrier, outcome) in carriers.iter().flat_map(|carrier| outcomes.iter().map(move |o| (*carrier, *o))) {
            let labels = Verification { provider: Arc::clone(provider), carrier, outcome };
            self.verifications.get_or_create_owned(&labels);
        }
        for outcome in FETCHES {
            self.key_fetches.get_or_create_owned(&Attempt { provider: Arc::clone(provider), outcome });
        }
        for outcome in CHECKS.into_iter().filter(|_| is_asked) {
            self.remote_checks.get_or_create_owned(&Attempt { provider: Arc::clone(provider), outcome });
        }
    }

    /// A token was judged.
    pub fn verified(&self, provider: &Label, carrier: &'static str, outcome: &'static str) {
        let labels = Verification { provider: Arc::clone(provider), carrier, outcome };
        self.verifications.get_or_create(&labels).inc();
    }

    /// A token was looked for; `result` is `connection`, `hit` or `miss`.
    pub fn looked_up(&self, result: &'static str) {
        self.lookups.get_or_create(&Lookup { result }).inc();
    }

    /// Keys were fetched, at this Unix second, or could not be.
    pub fn keys_fetched(&self, provider: &Label, keys: Option<usize>, now: u64) {
        let outcome = if keys.is_some() { "ok" } else { "failed" };
        self.key_fetches.get_or_create(&Attempt { provider: Arc::clone(provider), outcome }).inc();
        if let Some(keys) = keys {
            self.keys_at_hand(provider, keys);
            let of = OfProvider { provider: Arc::clone(provider) };
            self.keys_last_success.get_or_create(&of).set(i64::try_from(now).unwrap_or(i64::MAX));
        }
    }

    /// So many keys of a provider are usable.
    pub fn keys_at_hand(&self, provider: &Label, keys: usize) {
        let of = OfProvider { provider: Arc::clone(provider) };
        self.keys.get_or_create(&of).set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// A provider was asked; `outcome` is `yes`, `no` or `unanswered`.
    pub fn asked(&self, provider: &Label, outcome: &'static str, took: Duration) {
        let labels = Attempt { provider: Arc::clone(provider), outcome };
        self.remote_checks.get_or_create(&labels).inc();
        self.remote_check_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Someone was refused at this key of `limits`.
    pub fn limited(&self, limit: &'static str) {
        self.limited.get_or_create(&Limit { limit }).inc();
    }

    /// The configuration with this digest is in force.
    pub fn serves(&self, digest: &str) {
        self.config.clear();
        self.config.get_or_create(&Version { digest: digest.to_owned() }).set(1);
    }

    /// Another configuration was taken, or refused; `digest` is the one in force now.
    pub fn reloaded(&self, taken: bool, digest: &str) {
        self.reloads.get_or_create(&Outcome { outcome: if taken { "ok" } else { "refused" } }).inc();
        self.serves(digest);
    }

    /// The whole of it, in the text format of `OpenMetrics`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_starts_at_zero_and_is_counted() {
        let metrics = Metrics::default();
        let main: Label = "main".into();
        metrics.introduce(&main, &["header"], &["accepted", "expired"], true);
        metrics.verified(&main, "header", "accepted");
        metrics.looked_up("hit");
        metrics.keys_fetched(&main, Some(2), 1_000);
        metrics.keys_fetched(&main, None, 2_000);
        metrics.asked(&main, "no", Duration::from_millis(30));
        let text = metrics.text();
        for line in [
            r#"vestibule_token_verifications_total{provider="main",carrier="header",outcome="accepted"} 1"#,
            r#"vestibule_token_verifications_total{provider="main",carrier="header",outcome="expired"} 0"#,
            r#"vestibule_token_cache_lookups_total{result="hit"} 1"#,
            r#"vestibule_token_cache_lookups_total{result="miss"} 0"#,
            r#"vestibule_jwks_keys{provider="main"} 2"#,
            r#"vestibule_jwks_last_success_timestamp_seconds{provider="main"} 1000"#,
            r#"vestibule_jwks_fetches_total{provider="main",outcome="failed"} 1"#,
            r#"vestibule_remote_checks_total{provider="main",outcome="no"} 1"#,
            r#"vestibule_remote_checks_total{provider="main",outcome="yes"} 0"#,
            r#"vestibule_remote_check_duration_seconds_bucket{le="0.05",provider="main",outcome="no"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
