//! Vestibule: an authenticating reverse proxy for live web apps.
//!
//! It verifies bearer tokens on HTTP, moves WebSocket tokens out of the URL into a first message, signs people in at
//! OpenID Connect providers, and tells the upstream who the verified user is in a header that no client can set.
//!
//! # The path of a request
//!
//! ```text
//! client ─► listen ─► admit ─► route ─► extract ─► verify ─► allow ─► prepare ─► upstream
//!           limits    checks   which   takes the  token →   may this strips and
//!                     the head route   token out  Identity  user     sets headers
//! ```
//!
//! `proxy` is that path. `authenticate` is *extract* and *verify*, also for WebSocket upgrades, which `websocket`
//! serves. A WebSocket without a credential is accepted and waits for its first message before the upstream is connected.
//!
//! # Modules
//!
//! Imports point one way, from left to right, and so do those between the files inside each module. `tests/program/imports.rs`
//! checks both.
//!
//! ```text
//! main → cli → {listen, admin, control, reload, demo} → proxy → {websocket, browser} → authenticate → runtime → shared → http → auth → policy → config
//! leaves that take plain values: telemetry, drain, budget, workers, file_work, json, der, page, random, small_server, fuzz; in tests simulation
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `cli` | the commands: run, demo, check, healthcheck, doctor, revoke, token, schema |
//! | `listen` | accepts connections, with TLS and limits per address |
//! | `admin` | serves `/status`, `/metrics` and health on the admin listener |
//! | `control` | serves revocations and the drain on the control listener |
//! | `reload` | watches the configuration's files and swaps the policy |
//! | `demo` | an issuer, a page and a notebook to try the proxy with |
//! | `proxy` | takes one request along its path and writes its access line |
//! | `websocket` | authenticates a WebSocket, relays its messages and ends it |
//! | `browser` | session cookies, sign-in and pages for people |
//! | `authenticate` | turns a request's credential into a verified user, or proves that there is none |
//! | `runtime` | the state that requests share and that outlives a reload |
//! | `shared` | the state that several instances share through a Redis server |
//! | `http` | the types that a request goes through, the client of upstreams, refusals |
//! | `auth` | tokens, keys, verification, identities, sessions, revocations |
//! | `policy` | the rules, valid by construction |
//! | `config` | the file, the environment and the flags as data, with the place of each value |
//! | `telemetry` | log lines and metrics |
//! | `drain`, `budget`, `workers` | the shutdown; a bound on memory that callers share; the threads that serve connections |
//! | `file_work` | reads files on threads that may hang, within a limit |
//! | `fuzz` | what fuzz targets share; not in the built program |
//! | `simulation` | the clock, the upstream and the provider in tests on a paused clock |
//! | `json`, `der`, `page`, `random`, `small_server` | strict JSON objects, elements of DER, HTML pages, random bytes, the server of the admin and control listeners |
//!
//! # Words
//!
//! *Client* and *upstream* are the two sides. A *token* is the credential as it was presented; an
//! *identity* is what a verified token says; a *user* is the pair of issuer and user id. A *route* is
//! a rule by path and method. A *dialect* is the message shapes of an in-band WebSocket handshake; a
//! *session* is one authenticated WebSocket's life.

#![forbid(unsafe_code)]

mod admin;
mod auth;
mod authenticate;
mod browser;
mod budget;
pub mod cli;
mod config;
mod control;
mod demo;
mod der;
mod drain;
mod file_work;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod http;
mod json;
mod listen;
mod page;
mod policy;
mod proxy;
mod random;
mod reload;
mod runtime;
mod shared;
#[cfg(test)]
mod simulation;
mod small_server;
mod telemetry;
mod websocket;
mod workers;

/// The types whose misuse does not compile. Examples in the documentation of `auth` and `http` hold that, and they can use
/// nothing but what is public.
pub mod invariants {
    pub use crate::auth::Identity;
    pub use crate::http::{Allowed, AuthenticatedRequest, ProtectedRequest, UpstreamRequest, Upstreams, prepare};
    pub use crate::policy::Policy;
}

/// The fuzz targets, which `fuzz/` starts. Each panics when something does not hold.
#[cfg(fuzzing)]
pub mod fuzz_targets {
    pub use crate::auth::fuzz::{jwks, jwt};
    pub use crate::auth::login::fuzz::sealing;
    pub use crate::browser::state;
    pub use crate::http::fuzz::tokens;
    pub use crate::policy::fuzz::configuration;
    pub use crate::policy::paths;
    pub use crate::websocket::fuzz::{dialects, frames, session};
}
