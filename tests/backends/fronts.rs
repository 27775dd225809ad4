//! nginx and `HAProxy` in front: an answer that comes before the end of its request reaches the client behind them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::within;
use crate::{Backend, provider};

/// Refusals of each size.
const TIMES: usize = 100;
/// Uploads at once.
const AT_ONCE: usize = 4;

/// Whether the program is there; without it these tests say so and pass, except where `CI` is set.
fn is_there(program: &str, version: &str) -> bool {
    let there = Command::new(program).arg(version).output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var_os("CI").is_none(), "{program} is needed for the tests with proxies in front");
    if !there {
        eprintln!("skipped: this test needs {program}");
    }
    there
}

/// Uploads as browsers do, which read while they write; the status of the answer, 0 for none.
async fn upload(to: SocketAddr, target: &str, length: usize) -> u16 {
    let Ok(stream) = TcpStream::connect(to).await else { return 0 };
    let (mut reading, mut writing) = stream.into_split();
    let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    let send = async {
        // Refused, it may be told to stop; the answer counts.
        if writing.write_all(head.as_bytes()).await.is_ok() {
            let _ = writing.write_all(&vec![b'x'; length]).await;
        }
        std::future::pending::<()>().await;
    };
    let hear = async {
        let mut heard = Vec::new();
        while !heard.windows(4).any(|window| window == b"\r\n\r\n") {
            if !matches!(reading.read_buf(&mut heard).await, Ok(1..)) {
                return 0;
            }
        }
        String::from_utf8_lossy(&heard).split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    };
    tokio::select! {
        status = hear => status,
        () = send => 0,
    }
}

/// Every upload without a token is answered with our 401.
async fn every_refusal_arrives(front: SocketAddr, target: &'static str) {
    for length in [100_000, 1_000_000, 5_000_000] {
        let senders = (0..AT_ONCE).map(|_| {
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                for _ in 0..TIMES / AT_ONCE {
                    statuses.push(within("an answer", upload(front, target, length)).await);
                }
                statuses
            })
        });
        let mut statuses = Vec::new();
        for sender in senders.collect::<Vec<_>>() {
            statuses.extend(sender.await.expect("no panic"));
        }
        let lost = statuses.iter().filter(|status| **status != 401).count();
        assert_eq!((statuses.len(), lost), (TIMES, 0), "{target}, {length} bytes: {statuses:?}");
    }
}

async fn guarded() -> (Issuer, Proxy) {
    let issuer = Issuer::start().await;
    let yaml = format!("upstream: http://127.0.0.1:1\nhosts: [localhost]\n{}", provider(&issuer));
    let proxy = Proxy::start(&yaml).await;
    (issuer, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn early_refusals_reach_the_client_through_nginx() {
    if !is_there("nginx", "-v") {
        return;
    }
    let (_issuer, proxy) = guarded().await;
    // `Backend` ends its process and takes its folder along.
    let to = proxy.address;
    let file = std::env::temp_dir().join(format!("vestibule-nginx-{}.conf", std::process::id()));
    let arguments = |port: u16| {
        let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {name}; "))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_max_body_size 20m; {folders}\n\
             server {{ listen 127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Host localhost;\n\
             location /whole/ {{ proxy_pass http://{to}; }}\n\
             location /streamed/ {{ proxy_pass http://{to}; proxy_request_buffering off; }} }} }}\n"
        );
        std::fs::write(&file, text).expect("written");
        let file = file.to_str().expect("UTF-8").to_owned();
        ["-e", "stderr", "-p", ".", "-c"].map(str::to_owned).into_iter().chain([file]).collect()
    };
    let front = Backend::start("nginx", Path::new("nginx"), arguments, |_| {}).await;
    let _ = std::fs::remove_file(&file);
    every_refusal_arrives(front.address, "/whole/x").await;
    every_refusal_arrives(front.address, "/streamed/x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn early_refusals_reach_the_client_through_haproxy() {
    if !is_there("haproxy", "-v") {
        return;
    }
    let (_issuer, proxy) = guarded().await;
    let to = proxy.address;
    let file = std::env::temp_dir().join(format!("vestibule-haproxy-{}.cfg", std::process::id()));
    let arguments = |port: u16| {
        let text = format!(
            "global\n maxconn 64\ndefaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             frontend front\n bind 127.0.0.1:{port}\n default_backend guarded\nbackend guarded\n server one {to}\n"
        );
        std::fs::write(&file, text).expect("written");
        ["-db", "-f", file.to_str().expect("UTF-8")].map(str::to_owned).to_vec()
    };
    let front = Backend::start("haproxy", Path::new("haproxy"), arguments, |_| {}).await;
    let _ = std::fs::remove_file(&file);
    every_refusal_arrives(front.address, "/x").await;
}
