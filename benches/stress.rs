//! Opens thousands of sockets through the built program while many events happen: messages in fragments, readers that
//! are slow or pause, cut connections, half-closes, refreshes, revocations, reloads, tokens that end, and a drain at
//! the end of each round. Each message names its user, its socket, its direction and its sequence number. No message
//! may be lost, reordered, duplicated or another user's, and each end must have a known reason.
//!
//! `cargo bench --bench stress -- --seconds 900 --sockets 2000 --seed 1 --transport tcp|tls|unix|all`; without
//! arguments 20 s. Loopback only. Exits with 1 on any violation.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a command for developers")]
#![allow(clippy::cast_possible_truncation, clippy::format_push_string)]

#[path = "stress/end.rs"]
mod end;
#[path = "stress/message.rs"]
mod message;
#[path = "stress/pair.rs"]
mod pair;
#[path = "stress/rng.rs"]
mod rng;
#[path = "stress/round.rs"]
mod round;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
mod support;
#[path = "stress/transport.rs"]
mod transport;
#[path = "stress/verdict.rs"]
mod verdict;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use round::{Round, Summary};
use transport::Transport;

/// The maximum duration of a round. A drain ends it, and the next begins with a new process.
const LONGEST_ROUND: Duration = Duration::from_secs(110);
/// The maximum number of violations that are printed.
const SHOWN: usize = 20;

#[derive(clap::Parser)]
#[command(about = "Thousands of sockets through the built program, and whether nothing was lost")]
struct Arguments {
    /// How long it runs in all, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Sockets that are open at once.
    #[arg(long, default_value_t = 200)]
    sockets: u64,
    /// The same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The kind of connection on both sides of the proxy: tcp, tls, unix or all.
    #[arg(long, default_value = "all")]
    transport: String,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let transports: Vec<Transport> = [("tcp", Transport::Tcp), ("tls", Transport::Tls), ("unix", Transport::Unix)]
        .into_iter()
        .filter(|(name, _)| arguments.transport == "all" || arguments.transport == *name)
        .map(|(_, transport)| transport)
        .collect();
    if transports.is_empty() {
        println!("--transport is tcp, tls, unix or all, not {}", arguments.transport);
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let each = Duration::from_secs(arguments.seconds) / transports.len() as u32;
    let rounds = each.as_secs().div_ceil(LONGEST_ROUND.as_secs()).max(1);
    let mut total = Summary::default();
    let mut number = 0;
    for transport in transports {
        for _ in 0..rounds {
            number += 1;
            let round = Round {
                transport,
                length: each / rounds as u32,
                sockets: arguments.sockets,
                seed: arguments.seed.wrapping_mul(1_000).wrapping_add(number),
            };
            let summary = runtime.block_on(round.run());
            println!("round {number} over {transport:?}: {}", summary.line());
            for violation in summary.violations.iter().take(SHOWN) {
                println!("  VIOLATION {violation}");
            }
            total.add(summary);
        }
    }
    report(&total);
    if total.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(total: &Summary) {
    println!("\nin all: {}", total.line());
    let mut endings: BTreeMap<&str, u64> = BTreeMap::new();
    for (ending, count) in &total.endings {
        *endings.entry(ending).or_default() += count;
    }
    for (ending, count) in endings {
        println!("  {count:7}  {ending}");
    }
    println!("violations: {}", total.violations.len());
}
