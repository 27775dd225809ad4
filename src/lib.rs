//! Vestibule: an authenticating reverse proxy for live web apps.
//!
//! It verifies bearer tokens on HTTP, moves WebSocket tokens out of the URL into a first message, and
//! hands the backend the verified user as a header that no client can set.
//!
//! # The path
//!
//! ```text
//! client ─► listen ─► admit ─► rule ─► extract ─► verify ─► allow ─► seal ─► upstream
//!           limits    one      which   take the   token →   may this strip,
//!                     reading  route   token out  Identity  user     then insert
//! ```
//!
//! [`proxy`] is that path; [`websocket`] is what becomes of an upgrade on it; [`authenticate`] is *extract* and *verify*
//! for both. A socket without a credential waits in the vestibule between *extract* and *verify*.
//!
//! # The house
//!
//! Imports point one way, from left to right, and a test holds them to it:
//!
//! ```text
//! main → cli → {listen, admin, control, reload, demo} → proxy → {websocket, browser} → authenticate → runtime → shared → http → auth → policy → config
//! leaves that take plain values: telemetry, drain, budget, json, page, small_server
//! ```
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
