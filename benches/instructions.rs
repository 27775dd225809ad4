//! Counts the instructions that a request of Vestibule takes in user space, under callgrind of valgrind. Other programs
//! on the machine do not touch this figure, as they do a time. It exits with 1 if the figure is more than 3 % above the
//! one in `benches/instructions.txt`.
//!
//! `cargo bench --bench instructions`, half a minute; `-- --write` stores the figure. Without valgrind it says so and
//! exits with 0. The figure is that of the release profile; with another profile it is printed and not compared.

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
use middle::vestibule::Settings;
use middle::{Middle, installed, pinned, tokens, upstream, vestibule};
use support::proxy::{TempFile, TempFolder};

/// The numbers of requests. The difference between the two runs is free of the start and the end.
const FEW: usize = 200;
const MANY: usize = 2_200;
/// How far above the stored figure is too far.
const MOST: f64 = 1.03;

#[derive(clap::Parser)]
#[command(about = "The instructions that a request takes")]
struct Arguments {
    /// Store the figure.
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
    let figure = runtime.block_on(per_request(&valgrind));
    println!("{figure:.0} instructions a request");
    let is_release = vestibule::program().components().any(|part| part.as_os_str() == "release");
    if !is_release || vestibule::named().is_some() {
        println!("not compared: the figure is that of cargo's release profile, and this is another build");
        return ExitCode::SUCCESS;
    }
    if arguments.write {
        store(figure);
        return ExitCode::SUCCESS;
    }
    compare(figure)
}

/// Returns the instructions of a request: one connection, one request at a time, the token repeated.
async fn per_request(valgrind: &Path) -> f64 {
    let (upstream, issuer, folder) = (upstream::start(None).await, tokens::Issuer::new(), TempFolder::new());
    let key = TempFile::new(&issuer.public_pem);
    let requests = Arc::new(vec![get("/api/cells", &issuer.token(0))]);
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
        Load::connect(&middle.address, None, &requests, 1).await.run(Until::Count(count)).await;
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

fn store(figure: f64) {
    let text = format!(
        "# Instructions that a request takes in user space; `cargo bench --bench instructions -- --write` stores it.\n# {}, {}\n{figure:.0}\n",
        compiler(),
        std::env::consts::ARCH
    );
    std::fs::write(file(), text).expect("written");
    println!("written: {}", file().display());
}

fn compare(figure: f64) -> ExitCode {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let Some(stored) = text.lines().find_map(|line| line.parse::<f64>().ok()) else {
        println!("not compared: {} has no figure; --write stores it", file().display());
        return ExitCode::FAILURE;
    };
    println!("{:+.1} % against the stored {stored:.0}", (figure / stored - 1.0) * 100.0);
    if !text.contains(&compiler()) {
        println!("the stored figure is of another compiler than {}", compiler());
    }
    if figure <= stored * MOST {
        return ExitCode::SUCCESS;
    }
    println!(
        "too many: at most {:.0}. Find out which change it was, or store the new figure with --write",
        stored * MOST
    );
    ExitCode::FAILURE
}
