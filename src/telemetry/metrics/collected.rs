//! Metrics whose values are read at each scrape.

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};

/// Writes a metric with its description.
pub(super) trait Encode {
    /// Writes the metric under this name.
    fn encode_as(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<T: EncodeMetric> Encode for T {
    fn encode_as(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, self.metric_type())?;
        self.encode(metric)
    }
}
