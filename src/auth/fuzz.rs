//! Fuzz targets of key sets and of tokens.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation is what a fuzzer looks for")]

mod jwks;
mod jwt;

#[cfg_attr(not(fuzzing), allow(unused_imports, reason = "fuzz/ calls them"))]
pub use self::{jwks::jwks, jwt::jwt};
