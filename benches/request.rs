//! Measures the cost of a request, in CPU time of the process between client and upstream. It compares Vestibule with
//! all defaults (RS256; a token from the cache, a token repeated on its connection, a new token every time) with a bare
//! hyper proxy without authentication. Run `cargo bench --bench request`; loopback only, the proxy on one core and the
//! load on another where there is `taskset`; about a minute. With `SHARED=redis://127.0.0.1:6379` another row has the
//! shared state through that engine. `cargo bench --bench compare` has more programs and more rows.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod middle;
#[path = "../tests/program/support/mod.rs"]
#[allow(dead_code, clippy::needless_pass_by_value, reason = "written for the tests")]
#[allow(clippy::cast_possible_truncation, clippy::format_push_string, reason = "as in the tests")]
mod support;

use std::sync::Arc;
use std::time::Instant;

use middle::requests::{Load, Until, get};
use middle::vestibule::Settings;
use middle::{Middle, bare, pinned, tokens, upstream, vestibule};
use support::proxy::{TempFile, TempFolder};

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 4_000;
const WARM_UP: usize = 500;

fn main() {
    if bare::is_asked() {
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(compare());
}

async fn compare() {
    middle::pin_load();
    let upstream = upstream::start(None).await;
    let (issuer, folder) = (tokens::Issuer::new(), TempFolder::new());
    let key = TempFile::new(&issuer.public_pem);
    let secret = TempFile::new("0123456789abcdefghijklmnopqrstuvwxyz-bench");
    println!("signing {} tokens", CONNECTIONS * REQUESTS);
    let request = |number: usize| get("/api/cells", &issuer.token(number));
    let many: Vec<Vec<u8>> = (0..CONNECTIONS * REQUESTS).map(request).collect();
    let few = Arc::new(many[..100].to_vec());
    let own = Arc::new(many[..1].to_vec());
    let many = Arc::new(many);
    let url = format!("http://{upstream}");
    let vestibule = |limits: &str, more: &str| {
        let settings = Settings { upstream: &url, providers: vestibule::provider(key.path()), limits, more };
        let program = || pinned("0", vestibule::program());
        Middle::start(|listen| vestibule::run(program(), &folder, listen, &settings)).expect("starts")
    };
    let bare = Middle::start(|listen| bare::command("0", listen, &upstream)).expect("starts");
    let (usual, forgetful) = (vestibule("", ""), vestibule(", token_cache: 0", ""));
    let mut rows = vec![
        ("bare hyper proxy, no authentication", &bare, Arc::clone(&own)),
        ("vestibule, token repeated on its connection", &usual, own),
        ("vestibule, token seen before elsewhere", &usual, Arc::clone(&few)),
        ("vestibule, every token new", &forgetful, many),
    ];
    let shared = std::env::var("SHARED").ok().map(|url| {
        let more = format!("shared: {{ url: \"{url}\", name: bench, secret_file: \"{}\" }}\n", secret.path());
        vestibule("", &more)
    });
    if let Some(shared) = &shared {
        // An instance with this engine is ready once it has its first copy.
        vestibule::ready(&shared.address).await;
        rows.push(("vestibule with shared, token seen before", shared, few));
    }
    println!("{CONNECTIONS} connections, {REQUESTS} requests each; three runs in turn");
    for run in 1..=3 {
        for (name, middle, requests) in &rows {
            middle.clear_log();
            let mut load = Load::connect(&middle.address, None, requests, CONNECTIONS).await;
            load.run(Until::Count(WARM_UP)).await;
            let (before, began) = (middle.cpu(), Instant::now());
            let requests = load.run(Until::Count(REQUESTS)).await.len() as f64;
            let micros = middle.cpu().saturating_sub(before).as_secs_f64() * 1e6 / requests;
            let rate = requests / began.elapsed().as_secs_f64();
            println!("run {run}  {name:<44} {micros:6.2} µs of CPU a request, {rate:7.0} requests a second");
        }
    }
}
