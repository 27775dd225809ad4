//! A fault run: a mixed load through the built program while faults come and go, and what was wrong.
//!
//! `round` starts the program with everything around it and judges a round; `fault` has the kinds of faults; `load` and
//! `sockets` are the clients, `upstream` the server; `relay` stands between them and the program; `ledger` knows what
//! was sent and collects violations. The command is `benches/faults.rs`; `tests/program/faults.rs` runs a short form.

#[allow(dead_code, reason = "parts of the stress that this run does not need")]
#[path = "../stress/end.rs"]
mod end;
mod fault;
mod ledger;
mod load;
#[path = "../stress/message.rs"]
mod message;
mod relay;
#[path = "../stress/rng.rs"]
mod rng;
mod round;
mod sockets;
mod traffic;
#[allow(dead_code, reason = "parts of the stress that this run does not need")]
#[path = "../stress/transport.rs"]
mod transport;
mod upstream;

#[allow(unused_imports, reason = "the faults that the short form names")]
pub(crate) use fault::{Fault, Provider};
#[allow(unused_imports, reason = "the faults that the short form names")]
pub(crate) use relay::{Damage, Place};
#[allow(unused_imports, reason = "the command adds several summaries")]
pub(crate) use round::{Round, Summary, Variant};
