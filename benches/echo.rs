//! What a WebSocket message costs: 64 bytes back and forth on 50 sockets, in CPU time of the process in the
//! middle. Vestibule (authenticated by header, dialect `vestibule`) beside a bare relay of a few lines and, where it
//! is installed, `HAProxy`. `cargo bench --bench echo`; loopback only, about a minute.

#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const SOCKETS: usize = 50;
const ROUNDS: usize = 4_000;
const WARM_UP: usize = 200;
const PAYLOAD: usize = 64;
/// Of `Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==` (RFC 6455 section 1.3).
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

/// The least that stands between two sockets.
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
        // Masked with zeros: the payload stands there as it is.
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

/// CPU time of all threads so far.
fn cpu(child: &Child) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).expect("its threads");
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

struct Middle {
    name: &'static str,
    child: Child,
    address: String,
}

impl Drop for Middle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port()
}

fn start(name: &'static str, make: impl Fn(&str) -> Command) -> Option<Middle> {
    let address = format!("127.0.0.1:{}", free_port());
    let child = make(&address).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let middle = Middle { name, child, address };
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(&middle.address).is_err() {
        assert!(Instant::now() < until, "{name} does not listen");
        // Another program's listener: nothing to await but a connection that succeeds.
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(middle)
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
        start("bare relay", |listen| {
            let mut command = Command::new(std::env::current_exe().expect("itself"));
            command.args(["--relay", listen, &upstream]);
            command
        }),
        start("vestibule", |listen| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vestibule"));
            command.arg("run").env("VESTIBULE_CONFIG_YAML", configuration(listen));
            command
        }),
        start("haproxy", |listen| {
            let text = format!(
                "global\n  nbthread 2\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  timeout connect 5s\n  timeout tunnel 1h\nlisten bench\n  bind {listen}\n  server echo {upstream}\n"
            );
            let _ = std::fs::write(&haproxy_file, text);
            let mut command = Command::new("haproxy");
            command.arg("-f").arg(&haproxy_file);
            command
        }),
    ];
    println!("{SOCKETS} sockets, {PAYLOAD} bytes there and back, {ROUNDS} times each; three runs in turn");
    for run in 1..=3 {
        for middle in middles.iter().flatten() {
            all(&middle.address, &token, WARM_UP).await;
            let (before, began) = (cpu(&middle.child), Instant::now());
            all(&middle.address, &token, ROUNDS).await;
            let trips = (SOCKETS * ROUNDS) as f64;
            let micros = cpu(&middle.child).saturating_sub(before).as_secs_f64() * 1e6 / trips;
            let rate = trips / began.elapsed().as_secs_f64();
            println!(
                "run {run}  {:<11} {micros:6.2} µs of CPU a round trip, {rate:7.0} round trips a second",
                middle.name
            );
        }
    }
    let _ = std::fs::remove_file(haproxy_file);
}
