//! Vestibule: an authenticating reverse proxy for live web apps.
//!
//! It verifies bearer tokens on HTTP, moves WebSocket tokens out of the URL into a first message, signs people in at
//! OpenID Connect providers, and tells the upstream who the verified user is in a header that no client can set.
//!
//! # The path of a request
//!
//! ```text
//! client ─► listen ─► admit ─► rule ─► extract ─► verify ─► allow ─► prepare ─► upstream
//!           limits    checks   which   takes the  token →   may this strips and
//!                     the head route   token out  Identity  user     sets headers
//! ```
//!
//! [`proxy`] is that path. [`authenticate`] is *extract* and *verify*, also for WebSocket upgrades, which [`websocket`]
//! serves. A WebSocket without a credential is accepted and waits for its first message before the upstream is connected.
//!
//! # Modules
//!
//! Imports point one way, from left to right, and so do those between the files inside each module. `tests/program/imports.rs`
//! checks both.
//!
//! ```text
//! main → cli → {listen, admin, control, reload, demo} → proxy → {websocket, browser} → authenticate → runtime → shared → http → auth → policy → config
//! leaves that take plain values: telemetry, drain, budget, json, page, small_server
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `cli` | the commands: run, check, doctor, token, demo |
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
//! | `http` | the types that a request goes through, the client of upstreams, refusals |
//! | `auth` | tokens, keys, verification, identities, sessions, revocations |
//! | `policy` | the rules, valid by construction |
//! | `config` | the file, the environment and the flags as data, with the place of each value |
//! | `telemetry` | log lines and metrics |
//! | `drain`, `budget` | the shutdown; a bound on memory that callers share |
//! | `json`, `page`, `small_server` | strict JSON objects, HTML pages, the server of the admin and control listeners |
//!
//! # Words
//!
//! *Client* and *upstream* are the two sides. A *token* is the credential as it was presented; an
//! *identity* is what a verified token says; a *user* is the pair of issuer and user id. A *route* is
//! a rule by path and method. A *dialect* is the message shapes of an in-band WebSocket handshake; a
//! *session* is one authenticated WebSocket's life.

#![forbid(unsafe_code)]

pub mod admin;
pub mod auth;
pub mod authenticate;
pub mod browser;
pub mod budget;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod drain;
pub mod http;
pub mod json;
pub mod listen;
pub mod page;
pub mod policy;
pub mod proxy;
pub mod reload;
pub mod runtime;
pub mod shared;
pub mod small_server;
pub mod telemetry;
pub mod websocket;
