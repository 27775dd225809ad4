//! Counts the instructions that a request and a new WebSocket of Vestibule take in user space, under callgrind of valgrind.
//! Other programs on the machine do not touch these figures, as they do a time. It exits with 1 if one is more than 3 %
//! above that in `benches/instructions.txt`.
//!
//! `cargo bench --bench instructions`, a minute; `-- --write` stores the figures. Without valgrind it says so and exits
//! with 0. The figures are those of the release profile; with another profile they are printed and not compared.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod middle;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
#[allow(clippy::cast_possible_truncation, clippy::format_push_string, reason = "as in the tests")]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Parser as _;

use middle::requests::{Load, Until, get};
use middle::sockets::{Entry, Socket};
use middle::vestibule::Settings;
use middle::{Middle, installed, pinned, tokens, upstream, vestibule};
use support::proxy::{TempFile, TempFolder};

/// How often each work is done. The difference between the two runs is free of the start and the end.
const FEW: usize = 200;
const MANY: usize = 1_200;
/// The tokens of a load that changes them: each is verified once, in both runs.
const TOKENS: usize = 64;
/// How far above the stored figure is too far.
const MOST: f64 = 1.03;

#[derive(clap::Parser)]
#[command(about = "The instructions that a request and a new WebSocket take")]
struct Arguments {
    /// Store the figures.
    #[arg(long)]
    write: bool,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(valgrind) = installed("valgrind") else {
        println!("skipped: valgrind is not installed");
        return ExitCode::SUCCESS;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let figures: Vec<_> =
        WORKS.iter().map(|(name, work)| (*name, runtime.block_on(instructions(&valgrind, *work)))).collect();
    for (name, figure) in &figures {
        println!("{figure:.0} {name}");
    }
    let is_release = vestibule::program().components().any(|part| part.as_os_str() == "release");
    if !is_release || vestibule::named().is_some() {
        println!("not compared: the figures are those of cargo's release profile, and this is another build");
        return ExitCode::SUCCESS;
    }
    if arguments.write {
        store(&figures);
        return ExitCode::SUCCESS;
    }
    compare(&figures)
}

/// What is counted, one at a time over one connection or one socket after the other.
#[derive(Clone, Copy)]
enum Work {
    /// Requests with so many tokens in turn.
    Request(usize),
    /// Sockets that are opened, send a message there and back, and close.
    Socket(Entry),
}

/// The names are those of the lines in the file.
const WORKS: [(&str, Work); 4] = [
    ("a request, one token repeated", Work::Request(1)),
    ("a request, tokens in turn", Work::Request(TOKENS)),
    ("a new WebSocket, token in a header", Work::Socket(Entry::Header)),
    ("a new WebSocket, token in its first message", Work::Socket(Entry::InBand)),
];

/// Returns how many instructions the program executes for one more of this work.
async fn instructions(valgrind: &Path, work: Work) -> f64 {
    let (upstream, issuer, folder) = (upstream::start(None).await, tokens::Issuer::new(), TempFolder::new());
    let key = TempFile::new(&issuer.public_pem);
    let url = format!("http://{upstream}");
    let mut counted = Vec::new();
    for count in [FEW, MANY] {
        let settings = Settings { upstream: &url, providers: vestibule::provider(key.path()), limits: "", more: "" };
        let make = |listen: &str| {
            // One core: one worker thread, so that nothing depends on which of several threads is free.
            let mut command = pinned("0", valgrind);
            command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(vestibule::program());
            vestibule::run(command, &folder, listen, &settings)
        };
        let middle = Middle::start(make).expect("starts");
        match work {
            Work::Request(tokens) => {
                let requests = Arc::new((0..tokens).map(|number| get("/api/cells", &issuer.token(number))).collect());
                Load::connect(&middle.address, None, &requests, 1).await.run(Until::Count(count)).await;
            }
            Work::Socket(entry) => {
                let token = issuer.token(0);
                for _ in 0..count {
                    let mut socket = Socket::open(&middle.address, &token, entry).await.expect("a socket");
                    socket.echo().await.expect("an echo");
                    socket.close().await.expect("closed");
                }
            }
        }
        let said = middle.stop();
        let line = said.lines().find_map(|line| line.split_once("Collected : "));
        counted.push(line.and_then(|(_, number)| number.trim().parse::<u64>().ok()).expect("what callgrind counted"));
    }
    counted[1].saturating_sub(counted[0]) as f64 / (MANY - FEW) as f64
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn store(figures: &[(&str, f64)]) {
    let lines: Vec<String> = figures.iter().map(|(name, figure)| format!("{figure:.0} {name}\n")).collect();
    let text = format!(
        "# Instructions in user space; `cargo bench --bench instructions -- --write` stores them.\n# {}, {}\n{}",
        compiler(),
        std::env::consts::ARCH,
        lines.concat()
    );
    std::fs::write(file(), text).expect("written");
    println!("written: {}", file().display());
}

fn compare(figures: &[(&str, f64)]) -> ExitCode {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    if !text.contains(&compiler()) {
        println!("the stored figures are of another compiler than {}", compiler());
    }
    let mut outcome = ExitCode::SUCCESS;
    for (name, figure) in figures {
        let stored = text.lines().filter_map(|line| line.split_once(' ')).find(|(_, stored)| stored == name);
        let Some(stored) = stored.and_then(|(stored, _)| stored.parse::<f64>().ok()) else {
            println!("not compared: {} has no figure of {name}; --write stores it", file().display());
            outcome = ExitCode::FAILURE;
            continue;
        };
        println!("{:+.1} % against the stored {stored:.0}: {name}", (figure / stored - 1.0) * 100.0);
        if *figure > stored * MOST {
            println!(
                "too many: at most {:.0}. Find out which change it was, or store the new figures with --write",
                stored * MOST
            );
            outcome = ExitCode::FAILURE;
        }
    }
    outcome
}
