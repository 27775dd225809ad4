//! Measures what one small instance serves: 0.25 of a core and 64 MB, held by control groups (version 1, as root), with
//! RS256, the access log, the metrics and the trusted header on. Then the memory and the processor time of idle sockets,
//! without a limit, and what a million of them would need.
//!
//! `cargo bench --bench scale` takes three minutes, with `-- --quick` one and a half. `--write` puts the tables into
//! `docs/scaling.md`. Loopback only; the instance on one core, the load on the other. Where there are no such control
//! groups it says so and does nothing.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded for people")]

#[path = "scale/group.rs"]
mod group;
mod middle;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
#[allow(clippy::cast_possible_truncation, clippy::format_push_string, reason = "as in the tests")]
mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;

use group::Group;
use middle::requests::{Load, Until, get};
use middle::sockets::{Entry, Socket, Sockets};
use middle::vestibule::Settings;
use middle::work::{CONNECTIONS, Cost, Meter, allow_sockets, new_sockets};
use middle::{Middle, page, pinned, tokens, upstream, vestibule};
use support::proxy::{TempFile, TempFolder};

/// The instance: a quarter of a core, and memory in bytes.
const CORES: f64 = 0.25;
const MEMORY: u64 = 64 << 20;
const TOKENS: usize = 2_000;
/// The default of `websocket.ping_interval`.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const MILLION: f64 = 1e6;

#[derive(clap::Parser)]
#[command(about = "What one small instance serves, and what a million sockets need")]
struct Arguments {
    /// Shorter, for trying.
    #[arg(long)]
    quick: bool,
    /// Write the tables into the documentation.
    #[arg(long)]
    write: bool,
    /// Idle sockets.
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What an instance is made of.
struct Parts {
    folder: TempFolder,
    key: TempFile,
    url: String,
    token: String,
    many: Vec<String>,
}

impl Parts {
    /// Starts an instance, in these groups if any. A quarter of a core is one worker thread, so the core is pinned too.
    fn start(&self, group: Option<&Group>, limits: &str) -> Middle {
        let providers = vestibule::provider(self.key.path());
        let settings = Settings { upstream: &self.url, providers, limits, more: "" };
        let make = |listen: &str| {
            let command = match group {
                Some(group) => group.command(pinned("0", Path::new("sh")), vestibule::program()),
                None => pinned("0", vestibule::program()),
            };
            vestibule::run(command, &self.folder, listen, &settings)
        };
        Middle::start(make).expect("starts")
    }
}

/// A kind of load and what came of it.
struct Served {
    name: &'static str,
    /// How many a second at most.
    rate: f64,
    /// Latencies in milliseconds at that rate, and at half of it.
    full: Option<Latency>,
    half: Option<Latency>,
    /// Microseconds of processor time of each.
    micros: f64,
}

/// The median and the 99th percentile, in milliseconds.
struct Latency(f64, f64);

impl Latency {
    fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at =
            |part: usize| micros.get(micros.len() * part / 100).map_or(f64::NAN, |micros| f64::from(*micros) / 1e3);
        Self(at(50), at(99))
    }
}

/// What idle sockets take.
struct Idle {
    count: usize,
    /// Resident memory of the process with none of them and with all of them, in bytes.
    before: u64,
    after: u64,
    /// Microseconds of processor time of each in a second.
    micros: f64,
}

impl Idle {
    fn bytes(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64 / self.count as f64
    }
}

fn main() {
    let arguments = Arguments::parse();
    if let Err(error) = Group::try_out() {
        println!("skipped: no control groups of version 1 can be made here: {error}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(scale(&arguments));
}

async fn scale(arguments: &Arguments) {
    middle::pin_load();
    let sockets = allow_sockets(arguments.sockets);
    let issuer = tokens::Issuer::new();
    let many: Vec<String> = (0..TOKENS).map(|number| issuer.token(number)).collect();
    let parts = Parts {
        folder: TempFolder::new(),
        key: TempFile::new(&issuer.public_pem),
        url: format!("http://{}", upstream::start(None).await),
        token: many[0].clone(),
        many,
    };
    println!("{}", page::machine());
    let length = Duration::from_secs(if arguments.quick { 2 } else { 10 });
    let mut served = Vec::new();
    let one = Arc::new(vec![get("/api/cells", &parts.token)]);
    let turn = Arc::new(parts.many.iter().map(|token| get("/api/cells", token)).collect::<Vec<_>>());
    served.push(requests(&parts, "requests", "", &one, length).await);
    served.push(requests(&parts, "requests with a new token each (RS256)", ", token_cache: 0", &turn, length).await);
    served.push(messages(&parts, length).await);
    served.push(opened(&parts, length).await);
    let fits = fitting(&parts, sockets).await;
    let idle = idle(&parts, sockets, if arguments.quick { 1 } else { 2 }).await;

    let (instance, million) = (instance_table(&served, &fits), million_table(&served, &idle));
    println!("\n{instance}\n\n{million}");
    if arguments.write {
        let form = page::form(arguments.quick);
        let words = format!("Measured{form} {}.", page::machine());
        page::replace("scaling.md", "instance", &format!("{words}\n\n{instance}"));
        page::replace("scaling.md", "million", &format!("{words}\n\n{million}"));
    }
}

/// The interval of each connection at which all of them together have half the rate.
fn half(rate: f64) -> Duration {
    Duration::from_secs_f64(CONNECTIONS as f64 / (rate / 2.0))
}

async fn requests(
    parts: &Parts,
    name: &'static str,
    limits: &str,
    requests: &Arc<Vec<Vec<u8>>>,
    length: Duration,
) -> Served {
    let group = Group::new(CORES, MEMORY).expect("groups");
    let middle = parts.start(Some(&group), limits);
    let mut load = Load::connect(&middle.address, None, requests, CONNECTIONS).await;
    load.run(Until::after(length / 5)).await;
    let meter = Meter::start(&middle);
    let full = load.run(Until::after(length)).await;
    let Cost { micros, rate } = meter.stop(full.len());
    middle.clear_log();
    let half = load.run(Until::Paced(Instant::now() + length, half(rate))).await;
    let (full, half) = (Some(Latency::of(full)), Some(Latency::of(half)));
    Served { name, rate, full, half, micros }.print(&middle)
}

async fn messages(parts: &Parts, length: Duration) -> Served {
    let group = Group::new(CORES, MEMORY).expect("groups");
    let middle = parts.start(Some(&group), "");
    let mut sockets = Sockets::open(&middle.address, &parts.token, Entry::InBand, CONNECTIONS).await.expect("sockets");
    sockets.echo(Until::after(length / 5)).await;
    let meter = Meter::start(&middle);
    let full = sockets.echo(Until::after(length)).await;
    let Cost { micros, rate } = meter.stop(full.len());
    let half = sockets.echo(Until::Paced(Instant::now() + length, half(rate))).await;
    let (full, half) = (Some(Latency::of(full)), Some(Latency::of(half)));
    Served { name: "messages of 64 bytes, there and back", rate, full, half, micros }.print(&middle)
}

async fn opened(parts: &Parts, length: Duration) -> Served {
    let group = Group::new(CORES, MEMORY).expect("groups");
    let middle = parts.start(Some(&group), "");
    new_sockets(&middle.address, &parts.token, Entry::InBand, Until::after(length / 5)).await;
    let meter = Meter::start(&middle);
    let count = new_sockets(&middle.address, &parts.token, Entry::InBand, Until::after(length)).await;
    let Cost { micros, rate } = meter.stop(count);
    let name = "new WebSockets, token in the first message, and closed again";
    Served { name, rate, full: None, half: None, micros }.print(&middle)
}

impl Served {
    fn print(self, middle: &Middle) -> Self {
        let resident = middle.memory() as f64 / 1e6;
        println!("{:<62} {:6.0} a second, {:6.1} µs, {resident:.1} MB", self.name, self.rate, self.micros);
        self
    }
}

/// How many idle sockets the instance holds, up to a number, and what its group then counts.
struct Fits {
    count: usize,
    wanted: usize,
    resident: u64,
    group: u64,
}

async fn fitting(parts: &Parts, wanted: usize) -> Fits {
    let group = Group::new(CORES, MEMORY).expect("groups");
    let middle = parts.start(Some(&group), "");
    let mut fits = Fits { count: 0, wanted, resident: 0, group: 0 };
    let mut open = Vec::new();
    while open.len() < wanted {
        let Ok(socket) = Socket::open(&middle.address, &parts.token, Entry::InBand).await else { break };
        open.push(tokio::spawn(socket.idle()));
        if open.len() % 100 == 0 || open.len() == wanted {
            fits = Fits { count: open.len(), wanted, resident: middle.memory(), group: group.memory() };
        }
    }
    for socket in open {
        socket.abort();
    }
    println!(
        "{} of {wanted} idle sockets fit: {} bytes resident, {} in the group",
        fits.count, fits.resident, fits.group
    );
    fits
}

/// Measures idle sockets without limits over so many intervals of pings.
async fn idle(parts: &Parts, count: usize, intervals: u32) -> Idle {
    let middle = parts.start(None, "");
    let mut open = Vec::new();
    for _ in 0..100 {
        let socket = Socket::open(&middle.address, &parts.token, Entry::InBand).await.expect("a socket");
        open.push(tokio::spawn(socket.idle()));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = middle.memory();
    for _ in 0..count {
        let socket = Socket::open(&middle.address, &parts.token, Entry::InBand).await.expect("a socket");
        open.push(tokio::spawn(socket.idle()));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let length = PING_INTERVAL * intervals;
    let (cpu, after) = (middle.cpu(), middle.memory());
    tokio::time::sleep(length).await;
    let cpu = middle.cpu().saturating_sub(cpu).as_secs_f64();
    assert!(open.iter().all(|socket| !socket.is_finished()), "a socket was closed");
    let idle = Idle { count, before, after, micros: cpu * 1e6 / length.as_secs_f64() / count as f64 };
    println!("{count} idle sockets: {:.0} bytes and {:.2} µs a second each", idle.bytes(), idle.micros);
    idle
}

/// Rounds to two digits, since more would be noise, and writes thousands with commas.
fn rough(number: f64) -> String {
    let magnitude = 10_f64.powf((number.abs().log10().floor() - 1.0).max(0.0));
    let digits = ((number / magnitude).round() * magnitude) as u64;
    let text = digits.to_string();
    let parts: Vec<&str> = text.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

fn instance_table(served: &[Served], fits: &Fits) -> String {
    let mut text = "| of these alone | at most a second | CPU time of each | 50th and 99th percentile there | at half of it |\n|---|---|---|---|---|".to_owned();
    let latency = |latency: &Option<Latency>| {
        latency.as_ref().map_or_else(String::new, |Latency(median, high)| format!("{median:.1} and {high:.0} ms"))
    };
    for Served { name, rate, full, half, micros } in served {
        let _ =
            write!(text, "\n| {name} | {} | {micros:.0} µs | {} | {} |", rough(*rate), latency(full), latency(half));
    }
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let (count, resident) = (rough(fits.count as f64), megabytes(fits.resident));
    let group = megabytes(fits.group);
    let _ = if fits.count == fits.wanted {
        write!(
            text,
            "\n\n{count} idle sockets, as many as were tried, fit: {resident} resident, {group} as the group counts it, with the kernel's part."
        )
    } else {
        write!(
            text,
            "\n\n{count} idle sockets fit: {resident} resident, {group} as the group counts it, with the kernel's part. Then the memory is full."
        )
    };
    text
}

/// Returns what a million sockets need: everything but the first row is calculated.
fn million_table(served: &[Served], idle: &Idle) -> String {
    let opened = served.last().map_or(f64::NAN, |served| served.micros);
    let messages = served.iter().rev().nth(1).map_or(f64::NAN, |served| served.micros);
    let (count, bytes) = (idle.count as f64, idle.bytes());
    let megabytes = |sockets: f64| format!("{:.0} MB", (idle.before as f64 + bytes * sockets) / 1e6);
    let gigabytes = |sockets: f64| format!("{:.1} GB", (idle.before as f64 + bytes * sockets) / 1e9);
    let cores = |micros: f64| format!("{:.2}", micros / 1e6);
    format!(
        "| | {} sockets, measured | a million, calculated |\n|---|---|---|\n| resident memory, {bytes:.0} bytes a socket | {} | {} |\n| cores for pings, {:.2} µs a socket and second | {} | {} |\n| cores, if each socket also has a message there and back every 10 s | {} | {} |\n| processor time to open all of them again | {:.1} s | {:.0} s |\n| descriptors, two a socket | {} | 2,000,000 |\n| instances with the default `limits.connections` of 10,000 | 1 | 100 |",
        rough(count),
        megabytes(count),
        gigabytes(MILLION),
        idle.micros,
        cores(idle.micros * count),
        cores(idle.micros * MILLION),
        cores((idle.micros + messages / 10.0) * count),
        cores((idle.micros + messages / 10.0) * MILLION),
        opened * count / 1e6,
        opened,
        rough(2.0 * count),
    )
}
