#![forbid(unsafe_code)]
pub mod auth;
pub mod config;
pub mod json;
pub mod policy;
