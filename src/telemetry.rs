//! Log lines and access lines, as JSON or as text for a terminal, through one bounded writer; and the metrics.
//!
//! This module imports nothing of the proxy and takes plain values. Every string from outside is truncated at 256 bytes
//! and escaped, in both formats (CVE-2026-54338, CVE-2025-25294).

mod access;
mod audit;
mod format;
mod label;
mod metrics;
mod open_line;
mod outcome;
mod output;
mod rate;
mod request_id;
mod text;

pub use access::{
    AccessLine, NO_ROUTE, OWN_ROUTE, Observed, Observer, Rule, SocketLife, UnverifiedCredential, access, observe,
};
pub use audit::{Audit, AuditEvent};
pub use format::{set_level, start};
pub use label::Label;
pub use metrics::{FileWrites, KeySetGauges, LogoutOutcome, Metrics, PassedBytes, RenewalOutcome, SignInOutcome};
pub use open_line::OpenLine;
pub use outcome::{AnsweredBy, Outcome, TOKEN_OUTCOMES};
pub use output::{Format, flush, write_soon};
pub use rate::{LastMinute, OncePerMinute};
#[cfg(test)]
pub use request_id::InRequest;
pub use request_id::{
    RequestId, current_request_id, in_current_request, in_request, in_request_with_id, set_request_id,
};
pub use text::{address, printable};
