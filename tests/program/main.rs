//! The program over real sockets: the built binary, a real issuer with real keys, an upstream that the
//! test scripts byte by byte, and a client that does the same.

#![allow(clippy::missing_docs_in_private_items, reason = "modules of one test program")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failed expectation is the answer")]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines, clippy::cast_possible_truncation)]
#![allow(clippy::needless_pass_by_value, clippy::items_after_statements, clippy::unused_self)]
#![allow(clippy::missing_panics_doc, clippy::large_futures, clippy::large_stack_arrays, clippy::format_push_string)]

mod support;

mod addresses;
mod advisories;
mod assertion;
mod attacks;
mod command_line;
mod configuration;
mod control;
mod cors;
mod descriptors;
mod doctor;
mod documents;
mod early;
mod entry;
mod faults;
mod fixture;
mod framing;
mod handover;
mod healthcheck;
mod http;
mod identity;
mod imports;
mod limits;
mod login;
mod logs;
mod metrics;
mod paths;
mod protected_resource;
mod providers;
mod raw;
mod refused_connections;
mod reload;
mod remote;
mod request_fields;
mod request_ids;
mod sessions;
mod shared;
mod shutdown;
mod strangers;
mod token_sources;
mod transport;
mod websocket;
