//! The metrics for Prometheus, with their names, labels and initial values. No label is a user, an address, a path or
//! anything else that a client chooses.

mod collected;
mod credentials;
mod keys;
mod last_series;
mod logins;
mod process;
mod requests;
mod shared;
mod sockets;

use std::fmt;
use std::hash::{Hash, Hasher};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::label::Label;

pub(super) use credentials::Credentials;
use keys::KeyMetrics;
pub use keys::KeySetGauges;
pub(super) use logins::LoginMetrics;
pub use logins::{LogoutOutcome, RenewalOutcome, SignInOutcome};
pub(super) use requests::Requests;
pub(super) use shared::SharedMetrics;
pub use sockets::PassedBytes;
pub(super) use sockets::Sockets;

#[derive(Clone, Debug, PartialEq, Eq, EncodeLabelSet)]
struct OfRoute {
    route: Label,
}

impl Hash for OfRoute {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_labels(state, 0, &[&self.route]);
    }
}

/// Feeds label values to a hasher as one number. The hasher of their maps took 300 instructions for each series when it was
/// fed text by text. No label is chosen by a client, so nobody can make values collide.
fn hash_labels<H: Hasher>(state: &mut H, code: u16, texts: &[&str]) {
    let mut hash = u64::from(code);
    for text in texts {
        for part in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            hash = (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    state.write_u64(hash);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfListener {
    listener: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    provider: Label,
    outcome: &'static str,
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
struct Build {
    version: &'static str,
    revision: &'static str,
}

/// The keys of `limits` at which requests or connections are refused.
const LIMITS: [&str; 8] = [
    "connections",
    "connections_per_address",
    "waiting_websockets",
    "websockets_per_user",
    "failed_tokens_per_minute",
    "sign_outs",
    "unauthenticated_bytes",
    "held_message_bytes",
];
const RELOADS: [&str; 2] = ["ok", "refused"];
const WRITES: [&str; 2] = ["ok", "failed"];
/// The source revision, if the build set it.
const REVISION: &str = match option_env!("VESTIBULE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The counters of writes to a file.
#[derive(Clone, Debug, Default)]
pub struct FileWrites(Family<Outcome, Counter>);

impl FileWrites {
    /// Counts a write.
    pub fn count(&self, succeeded: bool) {
        let [ok, failed] = WRITES;
        self.0.get_or_create(&Outcome { outcome: if succeeded { ok } else { failed } }).inc();
    }
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    /// The metrics of tokens and providers.
    pub credentials: Credentials,
    /// The metrics of the providers' keys.
    pub keys: KeyMetrics,
    /// The metrics of sign-ins by `OpenID Connect`.
    pub logins: LoginMetrics,
    /// The metrics of requests.
    pub requests: Requests,
    /// The metrics of the state that instances share.
    pub shared: SharedMetrics,
    /// The metrics of `WebSockets`.
    pub sockets: Sockets,
    /// The counters of writes to `control.revocation_file`.
    pub revocation_writes: FileWrites,
    limited: Family<Limit, Counter>,
    connections: Family<OfListener, Gauge>,
    certificates: Family<OfListener, Gauge>,
    reloads: Family<Outcome, Counter>,
    last_reload: Gauge,
    config: Family<Version, Gauge>,
    draining: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Registry::default();
        all.register_collector(Box::new(process::Process::new()));
        let registry = all.sub_registry_with_prefix("vestibule");
        let (credentials, keys) = (Credentials::registered(registry), KeyMetrics::registered(registry));
        let requests = Requests::registered(registry);
        let (sockets, logins) = (Sockets::registered(registry), LoginMetrics::registered(registry));
        let shared = SharedMetrics::registered(registry);
        let (limited, connections) = (Family::<Limit, Counter>::default(), Family::<OfListener, Gauge>::default());
        let (reloads, config) = (Family::<Outcome, Counter>::default(), Family::<Version, Gauge>::default());
        let certificates = Family::<OfListener, Gauge>::default();
        let (build, draining) = (Family::<Build, Gauge>::default(), Gauge::default());
        let last_reload = Gauge::default();
        last_reload.set(1);
        let revocation_writes = FileWrites::default();
        for outcome in WRITES {
            revocation_writes.0.get_or_create_owned(&Outcome { outcome });
        }
        for limit in LIMITS {
            limited.get_or_create_owned(&Limit { limit });
        }
        for outcome in RELOADS {
            reloads.get_or_create_owned(&Outcome { outcome });
        }
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION"), revision: REVISION }).set(1);
        registry.register("limited", "Requests and connections that were refused at a limit", limited.clone());
        registry.register("connections_open", "Client connections, including sockets", connections.clone());
        let at = "Time when a certificate of a listener's chain expires, the first of all to do so";
        registry.register("certificate_not_after_timestamp_seconds", at, certificates.clone());
        let written = "Revocations and sign-outs that were written to control.revocation_file";
        registry.register("revocation_file_writes", written, revocation_writes.0.clone());
        registry.register("config_reloads", "Reloads of the configuration", reloads.clone());
        let is_current = "Whether the configuration on disk was accepted when it was last read";
        registry.register("config_last_reload_successful", is_current, last_reload.clone());
        registry.register("config_info", "The current configuration", config.clone());
        registry.register("build_info", "Version and revision of this program", build);
        registry.register("draining", "Whether the process is draining", draining.clone());
        Self {
            registry: all,
            credentials,
            keys,
            logins,
            requests,
            shared,
            sockets,
            revocation_writes,
            limited,
            connections,
            certificates,
            reloads,
            last_reload,
            config,
            draining,
        }
    }
}

impl Metrics {
    /// Creates the values of a policy's routes and trusted headers, which start at zero; `carriers` are the places of tokens.
    pub fn create_series<'a>(
        &self,
        routes: impl Iterator<Item = &'a Label>,
        carriers: &[&'static str],
        headers: impl Iterator<Item = &'a str>,
    ) {
        for route in routes {
            self.requests.create_series(route);
            self.sockets.create_series(route, carriers);
        }
        self.requests.introduce_headers(headers);
    }

    /// Counts a refusal at this key of `limits`.
    pub fn limited(&self, limit: &'static str) {
        self.limited.get_or_create(&Limit { limit }).inc();
    }

    /// Returns the number of a listener's open connections.
    #[must_use]
    pub fn connections(&self, listener: &str) -> Gauge {
        self.connections.get_or_create_owned(&OfListener { listener: listener.into() })
    }

    /// Returns the Unix time, in seconds, when a certificate of the chain of a listener with TLS expires, the first of all to
    /// do so. 0 if that cannot be read.
    #[must_use]
    pub fn certificate_not_after(&self, listener: &str) -> Gauge {
        self.certificates.get_or_create_owned(&OfListener { listener: listener.into() })
    }

    /// Sets the digest of the current configuration.
    pub fn set_config_digest(&self, digest: &str) {
        self.config.clear();
        self.config.get_or_create(&Version { digest: digest.to_owned() }).set(1);
    }

    /// Counts a reload, which was accepted or rejected; `digest` is that of the current configuration.
    pub fn reloaded(&self, accepted: bool, digest: &str) {
        self.reloads.get_or_create(&Outcome { outcome: if accepted { "ok" } else { "refused" } }).inc();
        self.last_reload.set(i64::from(accepted));
        self.set_config_digest(digest);
    }

    /// Returns whether the configuration on disk was rejected when it was last read.
    #[must_use]
    pub fn is_reload_rejected(&self) -> bool {
        self.last_reload.get() == 0
    }

    /// Encodes all metrics as `OpenMetrics` text. `waiting` and `draining` are the values of the gauges that are read at
    /// each scrape.
    #[must_use]
    pub fn text(&self, waiting: usize, draining: bool) -> String {
        self.sockets.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.draining.set(i64::from(draining));
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_label_values_start_at_zero_and_are_counted() {
        let metrics = Metrics::default();
        let main: Label = "main".into();
        metrics.create_series([&Label::from("/ws/**")].into_iter(), &["message"], ["x-user-id"].into_iter());
        metrics.credentials.create_series(&main, &["header"], &["accepted", "expired"], true);
        metrics.keys.create_series(&main);
        metrics.credentials.verified(&main, "header", "accepted");
        metrics.credentials.looked_up("hit");
        let gauges = metrics.keys.gauges(&main);
        gauges.set_keys(2);
        gauges.set_last_success(1_000);
        metrics.keys.fetched(&main, false);
        metrics.credentials.asked(&main, "no", Duration::from_millis(30));
        metrics.requests.stripped("x-user-id");
        metrics.requests.stripped("made-up-by-a-client");
        let text = metrics.text(3, true);
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
            r#"vestibule_websockets_open{route="/ws/**"} 0"#,
            r#"vestibule_websocket_refreshes_total{route="/ws/**",outcome="accepted"} 0"#,
            r#"vestibule_websockets_opened_total{route="/ws/**",carrier="message"} 0"#,
            r#"vestibule_websockets_refused_total{reason="timeout"} 0"#,
            r#"vestibule_access_denied_total{route="/ws/**",rule="require"} 0"#,
            r#"vestibule_identity_headers_stripped_total{header="x-user-id"} 1"#,
            r#"vestibule_identity_headers_stripped_total{header="other"} 1"#,
            "vestibule_websockets_waiting 3",
            "vestibule_draining 1",
            r#"vestibule_config_reloads_total{outcome="refused"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("\nprocess_cpu_seconds_total ") && text.contains("\nprocess_start_time_seconds "));
        assert!(!text.contains("made-up"), "{text}");
    }
}
