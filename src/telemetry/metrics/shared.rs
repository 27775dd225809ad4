//! Metrics of the state that instances share. None is exported unless `shared` is configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::collected::Encode;

/// The results of reading and of writing the records of login sessions.
const READS: [&str; 3] = ["found", "missing", "unavailable"];
const WRITES: [&str; 3] = ["written", "refused", "unavailable"];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    outcome: &'static str,
}

#[derive(Debug, Default)]
struct Values {
    is_shared: AtomicBool,
    is_up: AtomicBool,
    lag_millis: AtomicU64,
    instances: AtomicU64,
    entries_refused: AtomicU64,
    resyncs: AtomicU64,
    session_reads: Family<Result, Counter>,
    session_writes: Family<Result, Counter>,
}

/// Metrics of the shared state.
#[derive(Clone, Debug, Default)]
pub struct SharedMetrics(Arc<Values>);

impl SharedMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register_collector(Box::new(this.clone()));
        this
    }

    /// Creates the values of all metrics.
    pub fn create_series(&self) {
        self.0.instances.store(1, Ordering::Relaxed);
        self.0.is_shared.store(true, Ordering::Relaxed);
        for outcome in READS {
            let _ = self.0.session_reads.get_or_create(&Result { outcome });
        }
        for outcome in WRITES {
            let _ = self.0.session_writes.get_or_create(&Result { outcome });
        }
    }

    /// Sets whether the engine answers.
    pub fn set_up(&self, is_up: bool) {
        self.0.is_up.store(is_up, Ordering::Relaxed);
    }

    /// Sets the values that are read at each scrape.
    pub fn observe(&self, lag: Duration, instances: usize) {
        self.0.lag_millis.store(u64::try_from(lag.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.instances.store(instances as u64, Ordering::Relaxed);
    }

    /// Counts entries whose authentication failed.
    pub fn refused(&self, count: u64) {
        self.0.entries_refused.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a read of a login session's record: `found`, `missing` or `unavailable`.
    pub fn session_read(&self, outcome: &'static str) {
        self.0.session_reads.get_or_create(&Result { outcome }).inc();
    }

    /// Counts a write of a login session's record: `written`, `refused` or `unavailable`.
    pub fn session_written(&self, outcome: &'static str) {
        self.0.session_writes.get_or_create(&Result { outcome }).inc();
    }

    /// Counts a load of the whole copy of the shared state.
    pub fn resynced(&self) {
        self.0.resyncs.fetch_add(1, Ordering::Relaxed);
    }
}

impl Collector for SharedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        if !self.0.is_shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut put = |name: &str, help: &str, metric: &dyn Encode| metric.encode_as(&mut encoder, name, help);
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let up = i64::from(self.0.is_up.load(Ordering::Relaxed));
        put("shared_up", "Whether the engine of the shared state answers", &ConstGauge::new(up))?;
        let lag = Duration::from_millis(count(&self.0.lag_millis)).as_secs_f64();
        let help = "How long ago this instance wrote the last heartbeat that it has read back from the engine";
        put("shared_lag_seconds", help, &ConstGauge::new(lag))?;
        let help = "Live instances with the same shared secret, this one among them";
        let instances = i64::try_from(count(&self.0.instances)).unwrap_or(i64::MAX);
        put("shared_instances", help, &ConstGauge::new(instances))?;
        let help = "Entries in the engine that are ignored: no shared secret authenticates them, or they are too long";
        put("shared_entries_refused", help, &ConstCounter::new(count(&self.0.entries_refused)))?;
        put("shared_resyncs", "Loads of the whole copy", &ConstCounter::new(count(&self.0.resyncs)))?;
        put("shared_session_reads", "Reads of login sessions' records", &self.0.session_reads)?;
        put("shared_session_writes", "Writes of login sessions' records", &self.0.session_writes)
    }
}
