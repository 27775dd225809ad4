#![forbid(unsafe_code)]
pub mod auth;
pub mod config;
pub mod drain;
pub mod http;
pub mod json;
pub mod policy;
pub mod runtime;
pub mod telemetry;
pub mod websocket;
