//! Metrics of the providers' keys. The gauges of a key set are exported while the set is in use: those of a provider that
//! a reload removed would stay as they are, and be taken for an outage.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Attempt;
use crate::telemetry::Label;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvider {
    provider: Label,
}

const FETCHES: [&str; 2] = ["ok", "failed"];

/// The metrics of keys.
#[derive(Clone, Debug)]
pub struct KeyMetrics {
    keys: Family<OfProvider, Gauge>,
    last_success: Family<OfProvider, Gauge>,
    clock_ahead: Family<OfProvider, Gauge>,
    fetches: Family<Attempt, Counter>,
    /// The number of [`KeySetGauges`] of each provider: two while a reload replaces a configuration.
    owners: Arc<Mutex<HashMap<Label, usize>>>,
}

impl KeyMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let this = Self {
            keys: Family::default(),
            last_success: Family::default(),
            clock_ahead: Family::default(),
            fetches: Family::default(),
            owners: Arc::default(),
        };
        registry.register("jwks_keys", "Usable keys of a provider", this.keys.clone());
        let at = "Time of the last successful key fetch";
        registry.register("jwks_last_success_timestamp_seconds", at, this.last_success.clone());
        let ahead = "Seconds by which a provider's clock is ahead of this machine's";
        registry.register("provider_clock_ahead_seconds", ahead, this.clock_ahead.clone());
        registry.register("jwks_fetches", "Fetches of a provider's keys", this.fetches.clone());
        this
    }

    /// Creates the counts of fetches of a provider, which start at zero.
    pub fn create_series(&self, provider: &Label) {
        for outcome in FETCHES {
            self.fetches.get_or_create_owned(&Attempt { provider: Arc::clone(provider), outcome });
        }
    }

    /// Counts a fetch of a provider's keys.
    pub fn fetched(&self, provider: &Label, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "failed" };
        self.fetches.get_or_create(&Attempt { provider: Arc::clone(provider), outcome }).inc();
    }

    /// Exports the gauges of a provider's key set, which has no keys yet, until the result is dropped.
    #[must_use]
    pub fn gauges(&self, provider: &Label) -> KeySetGauges {
        let of = OfProvider { provider: Arc::clone(provider) };
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        *owners.entry(Arc::clone(provider)).or_default() += 1;
        self.keys.get_or_create_owned(&of);
        drop(owners);
        KeySetGauges { metrics: self.clone(), of }
    }
}

/// The gauges of one provider's key set.
#[derive(Debug)]
pub struct KeySetGauges {
    metrics: KeyMetrics,
    of: OfProvider,
}

impl KeySetGauges {
    /// Sets the number of usable keys.
    pub fn set_keys(&self, keys: usize) {
        self.metrics.keys.get_or_create(&self.of).set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// Sets the time of the last successful fetch, in Unix seconds.
    pub fn set_last_success(&self, now: u64) {
        self.metrics.last_success.get_or_create(&self.of).set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// Sets the seconds by which the provider's clock is ahead of this machine's; negative if it is behind.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.metrics.clock_ahead.get_or_create(&self.of).set(seconds);
    }
}

impl Drop for KeySetGauges {
    fn drop(&mut self) {
        let mut owners = self.metrics.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = owners.get_mut(&self.of.provider) else { return };
        *count -= 1;
        if *count == 0 {
            owners.remove(&self.of.provider);
            self.metrics.keys.remove(&self.of);
            self.metrics.last_success.remove(&self.of);
            self.metrics.clock_ahead.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn lines(registry: &Registry) -> Vec<String> {
        let mut text = String::new();
        encode(&mut text, registry).expect("text");
        let of_gauges = |line: &&str| line.starts_with("jwks_keys{") || line.starts_with("jwks_last");
        text.lines().filter(of_gauges).map(str::to_owned).collect()
    }

    #[test]
    fn gauges_are_exported_as_long_as_a_configuration_has_the_provider() {
        let mut registry = Registry::default();
        let metrics = KeyMetrics::registered(&mut registry);
        let main: Label = "main".into();
        let first = metrics.gauges(&main);
        first.set_keys(2);
        first.set_last_success(1_000);
        let both = [r#"jwks_keys{provider="main"} 2"#, r#"jwks_last_success_timestamp_seconds{provider="main"} 1000"#];
        // A reload that keeps the provider.
        let second = metrics.gauges(&main);
        assert_eq!(lines(&registry), both);
        drop(first);
        assert_eq!(lines(&registry), both);
        // A reload that removes it.
        drop(second);
        assert_eq!(lines(&registry), Vec::<String>::new());
        let _third = metrics.gauges(&main);
        assert_eq!(lines(&registry), [r#"jwks_keys{provider="main"} 0"#]);
    }
}
