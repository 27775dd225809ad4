//! Measures the cost of a WebSocket message: 64 bytes back and forth on 50 sockets, in CPU time of the process between
//! client and upstream. It compares Vestibule (authenticated by header, dialect `vestibule`) with a bare relay of a few
//! lines and, where it is installed, `HAProxy`. Run `cargo bench --bench echo`; loopback only, about a minute.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod middle;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
#[allow(clippy::cast_possible_truncation, clippy::format_push_string, reason = "as in the tests")]
mod support;

use std::process::Command;
use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};

use middle::requests::Until;
use middle::sockets::{Entry, PAYLOAD, Sockets};
use middle::vestibule::Settings;
use middle::{Middle, tokens, upstream, vestibule};
use support::proxy::{TempFile, TempFolder};

const SOCKETS: usize = 50;
const ROUNDS: usize = 4_000;
const WARM_UP: usize = 200;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, listen, upstream] = arguments.as_slice()
        && mode == "--relay"
    {
        let both = tokio::runtime::Runtime::new().expect("runtime");
        return both.block_on(relay(listen.clone(), upstream.clone()));
    }
    runtime.block_on(compare());
}

/// A relay that copies bytes between two sockets and does nothing else.
async fn relay(listen: String, upstream: String) {
    let listener = TcpListener::bind(listen).await.expect("port");
    loop {
        let (mut client, _) = listener.accept().await.expect("accepts");
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let mut upstream = TcpStream::connect(upstream).await.expect("upstream");
            client.set_nodelay(true).expect("nodelay");
            upstream.set_nodelay(true).expect("nodelay");
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
    }
}

async fn compare() {
    let (upstream, issuer) = (upstream::start(None).await, tokens::Issuer::new());
    let (key, folder) = (TempFile::new(&issuer.public_pem), TempFolder::new());
    let token = issuer.token(0);
    let url = format!("http://{upstream}");
    let settings = Settings { upstream: &url, providers: vestibule::provider(key.path()), limits: "", more: "" };
    let middles = [
        (
            "bare relay",
            Middle::start(|listen| {
                let mut command = Command::new(std::env::current_exe().expect("itself"));
                command.args(["--relay", listen, &upstream]);
                command
            }),
        ),
        (
            "vestibule",
            Middle::start(|listen| vestibule::run(Command::new(vestibule::program()), &folder, listen, &settings)),
        ),
        (
            "haproxy",
            Middle::start(|listen| {
                let text = format!(
                    "global\n  nbthread 2\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  timeout connect 5s\n  timeout tunnel 1h\nlisten bench\n  bind {listen}\n  server echo {upstream}\n"
                );
                let file = folder.0.join("haproxy.cfg");
                let _ = std::fs::write(&file, text);
                let mut command = Command::new("haproxy");
                command.arg("-f").arg(file);
                command
            }),
        ),
    ];
    println!("{SOCKETS} sockets, {PAYLOAD} bytes there and back, {ROUNDS} times each; three runs in turn");
    for run in 1..=3 {
        for (name, middle) in &middles {
            let Ok(middle) = middle else { continue };
            let mut sockets = Sockets::open(&middle.address, &token, Entry::Header, SOCKETS).await.expect("sockets");
            sockets.echo(Until::Count(WARM_UP)).await;
            let (before, began) = (middle.cpu(), Instant::now());
            let trips = sockets.echo(Until::Count(ROUNDS)).await.len() as f64;
            let micros = middle.cpu().saturating_sub(before).as_secs_f64() * 1e6 / trips;
            let rate = trips / began.elapsed().as_secs_f64();
            println!("run {run}  {name:<11} {micros:6.2} µs of CPU a round trip, {rate:7.0} round trips a second");
        }
    }
}
