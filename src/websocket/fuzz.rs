//! Fuzz targets of frames and messages.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation is what a fuzzer looks for")]

mod dialects;
mod frames;

#[cfg_attr(not(fuzzing), allow(unused_imports, reason = "fuzz/ calls them"))]
pub use self::{dialects::dialects, frames::frames};

/// Checks the conditions of the session's model for an order of events of any length.
#[cfg(fuzzing)]
pub fn session(data: &[u8]) {
    super::session::model::session(data);
}
