//! The standard `process_*` metrics, read from the system at each scrape.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::collected::Encode;

/// The process metrics. Without `/proc`, those that are read from it are left out.
#[derive(Debug)]
pub(super) struct Process {
    started: f64,
}

impl Process {
    /// Creates the metrics. It must be called when the process starts.
    pub(super) fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: since.as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut say = |name: &str, help: &str, metric: &dyn Encode| metric.encode_as(&mut encoder, name, help);
        let used = clock_gettime(ClockId::ProcessCPUTime);
        #[expect(clippy::cast_precision_loss, reason = "seconds of processor time are no astronomic number")]
        let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        say("process_cpu_seconds", "Processor time, user and system", &ConstCounter::new(seconds))?;
        say("process_start_time_seconds", "When it started, Unix time", &ConstGauge::new(self.started))?;
        if let Some((size, resident)) = memory() {
            say("process_virtual_memory_bytes", "Virtual memory", &ConstGauge::new(size))?;
            say("process_resident_memory_bytes", "Resident memory", &ConstGauge::new(resident))?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is that of the directory being read here.
            let open = i64::try_from(open.count().saturating_sub(1)).unwrap_or(i64::MAX);
            say("process_open_fds", "File descriptors open", &ConstGauge::new(open))?;
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            say("process_max_fds", "File descriptors allowed", &ConstGauge::new(most))?;
        }
        Ok(())
    }
}

/// Returns the bytes of virtual and of resident memory.
fn memory() -> Option<(i64, i64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let page = i64::try_from(rustix::param::page_size()).ok()?;
    let mut pages = text.split(' ').map_while(|word| word.parse::<i64>().ok());
    Some((pages.next()?.checked_mul(page)?, pages.next()?.checked_mul(page)?))
}
