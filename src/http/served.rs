//! The answer to a request, by its source, which decides what is added to it.

use super::{Answer, Refusal};

/// The answer to a request, by its source.
pub enum Served {
    /// A 101. The socket writes its own access line when it ends.
    Upgraded(Answer),
    /// The upstream's answer.
    Answered(Answer),
    /// The answer of one of the proxy's own endpoints.
    Local(Answer),
    /// The proxy's answer to a preflight.
    Preflight(Answer),
    /// A refusal of the proxy.
    Refused(Refusal),
}
