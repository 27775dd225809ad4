//! Sends requests and opens sockets through the built program while faults come and go: connections that are delayed,
//! cut, reset, half-closed and corrupted on both sides; a provider, a shared engine and an upstream that fail in many
//! ways; no descriptors, a full disk, a log that nobody reads or that is closed; a single processor; a clock that jumps;
//! names that do not resolve; a name server that does not answer; reloads, drains and kills. Every request that reaches
//! the upstream must be that of the user whose token was sent, none with an invalid token may reach it, and what a fault
//! does not touch must be served as without it.
//!
//! `cargo bench --profile quick --bench faults -- --seconds 1800 --seed 1`; without arguments 60 s. Loopback only. A part
//! that needs what this machine does not have says so and is left out: `redis-server`, libfaketime (Debian package
//! `libfaketime`), `taskset`, and root for a mount namespace. Exits with 1 on any violation.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a command for developers")]
#![allow(clippy::cast_possible_truncation, clippy::format_push_string)]

#[path = "faults/mod.rs"]
mod run;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use run::{Round, Summary, Variant};

/// The maximum duration of a round; the next begins with a new process of another variant.
const LONGEST_ROUND: u64 = 150;
/// The maximum number of violations that are printed per round.
const SHOWN: usize = 20;

#[derive(clap::Parser)]
#[command(about = "A mixed load through the built program while faults come and go")]
struct Arguments {
    /// How long it runs in all, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The only variant to run: plain, engine, clock, namespace or onecore.
    #[arg(long)]
    variant: Option<String>,
    /// Clients that send requests at once.
    #[arg(long, default_value_t = 30)]
    clients: u64,
    /// Sockets that are open at once.
    #[arg(long, default_value_t = 40)]
    sockets: u64,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut variants = Variant::ALL.to_vec();
    if let Some(name) = &arguments.variant {
        variants.retain(|variant| format!("{variant:?}").eq_ignore_ascii_case(name));
    }
    variants.retain(|variant| {
        if let Some(why) = variant.missing() {
            println!("{variant:?} is left out: {why}");
        }
        variant.missing().is_none()
    });
    if variants.is_empty() {
        println!("no variant to run: --variant is plain, engine, clock, namespace or onecore");
        return ExitCode::from(2);
    }
    let rounds = arguments.seconds.div_ceil(LONGEST_ROUND).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let mut total = Summary::default();
    for number in 0..rounds {
        let round = Round {
            variant: variants[(arguments.seed + number) as usize % variants.len()],
            length: Duration::from_secs(arguments.seconds) / rounds as u32,
            faults: None,
            clients: arguments.clients,
            sockets: arguments.sockets,
            response_timeout: Duration::from_secs(6),
            seed: arguments.seed.wrapping_mul(1_000).wrapping_add(number),
        };
        let summary = runtime.block_on(round.run());
        println!("round {} of {rounds}: {}; {} violations", number + 1, summary.left.join(""), summary.violation_count);
        for violation in summary.violations.iter().take(SHOWN) {
            println!("  VIOLATION {violation}");
        }
        total.add(summary);
    }
    report(&total);
    if total.violation_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(total: &Summary) {
    println!("\nin all:");
    for (what, count) in &total.counts {
        println!("  {count:8}  {what}");
    }
    println!("slowest recovery {:.1?}, slowest end {:.1?}", total.slowest_recovery, total.slowest_end);
    println!("violations: {}", total.violation_count);
}
