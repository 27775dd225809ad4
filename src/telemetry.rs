//! Log lines and access lines: JSON, or pretty on a terminal, through one bounded writer; and what is counted.
//!
//! A leaf: it takes plain values and knows nothing of requests. Every string from outside is cut at
//! 256 bytes and escaped, in both formats (CVE-2026-54338, CVE-2025-25294).

mod access;
mod format;
mod label;
mod metrics;
mod outcome;
mod output;
mod text;

pub use access::{AccessLine, NO_ROUTE, OWN_ROUTE, Observed, Observer, Rule, SocketLife, access, observe};
pub use format::{set_level, start};
pub use label::Label;
pub use metrics::{Metrics, PassedBytes};
pub use outcome::{AnsweredBy, Outcome};
pub use output::{Format, flush};
