//! Measures the cost of a WebSocket message: 64 bytes back and forth on 50 sockets, in CPU time of the process between
//! client and upstream. It compares Vestibule (authenticated by header, dialect `vestibule`) with a bare relay of a few
//! lines and, where it is installed, `HAProxy`. Run `cargo bench --bench echo`; loopback only, about a minute.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod middle;

use std::process::Command;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use middle::Middle;

const SOCKETS: usize = 50;
const ROUNDS: usize = 4_000;
const WARM_UP: usize = 200;
const PAYLOAD: usize = 64;
/// The accept value for `Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==` (RFC 6455 section 1.3).
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const SECRET: &str = "a-secret-of-this-benchmark-alone-0123456789";

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

/// Answers an upgrade, then sends every message back.
async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    head(&mut stream).await?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    let mut frame = [0; 6 + PAYLOAD];
    loop {
        stream.read_exact(&mut frame).await?;
        // Masked with zeros, so the payload is unchanged.
        let mut answer = [0; 2 + PAYLOAD];
        answer[..2].copy_from_slice(&[0x82, 64]);
        answer[2..].copy_from_slice(&frame[6..]);
        stream.write_all(&answer).await?;
    }
}

async fn head(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = stream.read_u8().await?;
    }
    Ok(())
}

async fn client(address: String, token: String, rounds: usize) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.set_nodelay(true).expect("nodelay");
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.expect("written");
    head(&mut stream).await.expect("an answer");
    let mut frame = [0; 6 + PAYLOAD];
    frame[..2].copy_from_slice(&[0x82, 0x80 | 64]);
    let mut answer = [0; 2 + PAYLOAD];
    for _ in 0..rounds {
        stream.write_all(&frame).await.expect("written");
        stream.read_exact(&mut answer).await.expect("an echo");
    }
}

async fn all(address: &str, token: &str, rounds: usize) {
    let clients: Vec<_> =
        (0..SOCKETS).map(|_| tokio::spawn(client(address.to_owned(), token.to_owned(), rounds))).collect();
    for client in clients {
        client.await.expect("ends");
    }
}

async fn compare() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let upstream = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims =
        serde_json::json!({"iss": "https://bench.example", "aud": "bench", "sub": "alice", "exp": now + 3_600});
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed");

    let configuration = |listen: &str| {
        format!(
            "listen: {listen}\nupstream: http://{upstream}\nproviders: [{{ preset: shared-secret, secret: {SECRET}, issuer: \"https://bench.example\", audience: bench }}]\nlog: {{ format: json, level: warn, access: false }}\n"
        )
    };
    let haproxy_file = std::env::temp_dir().join(format!("vestibule-bench-{}.cfg", std::process::id()));
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
            Middle::start(|listen| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
                command.arg("run").env("VESTIBULE_CONFIG_YAML", configuration(listen));
                command
            }),
        ),
        (
            "haproxy",
            Middle::start(|listen| {
                let text = format!(
                    "global\n  nbthread 2\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  timeout connect 5s\n  timeout tunnel 1h\nlisten bench\n  bind {listen}\n  server echo {upstream}\n"
                );
                let _ = std::fs::write(&haproxy_file, text);
                let mut command = Command::new("haproxy");
                command.arg("-f").arg(&haproxy_file);
                command
            }),
        ),
    ];
    println!("{SOCKETS} sockets, {PAYLOAD} bytes there and back, {ROUNDS} times each; three runs in turn");
    for run in 1..=3 {
        for (name, middle) in &middles {
            let Some(middle) = middle else { continue };
            all(&middle.address, &token, WARM_UP).await;
            let (before, began) = (middle.cpu(), Instant::now());
            all(&middle.address, &token, ROUNDS).await;
            let trips = (SOCKETS * ROUNDS) as f64;
            let micros = middle.cpu().saturating_sub(before).as_secs_f64() * 1e6 / trips;
            let rate = trips / began.elapsed().as_secs_f64();
            println!("run {run}  {name:<11} {micros:6.2} µs of CPU a round trip, {rate:7.0} round trips a second");
        }
    }
    let _ = std::fs::remove_file(haproxy_file);
}
