//! Measures the cost of a request, in CPU time of the process between client and upstream. It compares Vestibule with
//! all defaults (RS256; a token from the cache, a token repeated on its connection, a new token every time) with a bare
//! hyper proxy without authentication. Run `cargo bench --bench request`; loopback only, the proxy on one core and the
//! load on another where there is `taskset`; about a minute. With `SHARED=redis://127.0.0.1:6379` another row has the
//! shared state through that engine.

#![allow(clippy::missing_docs_in_private_items, reason = "a program of its own")]
#![allow(clippy::expect_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark")]

mod middle;

use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use middle::Middle;

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 4_000;
const WARM_UP: usize = 500;

fn main() {
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, listen, upstream] = arguments.as_slice()
        && mode == "--bare"
    {
        return one().block_on(bare(listen.clone(), upstream.clone()));
    }
    one().block_on(compare());
}

/// Runs a minimal HTTP proxy between a client and an upstream: hyper on both sides, one upstream connection for each
/// client connection.
async fn bare(listen: String, upstream: String) {
    let listener = TcpListener::bind(listen).await.expect("port");
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        stream.set_nodelay(true).expect("nodelay");
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let tcp = TcpStream::connect(upstream).await.expect("upstream");
            tcp.set_nodelay(true).expect("nodelay");
            let (sender, connection) = client::handshake(TokioIo::new(tcp)).await.expect("handshake");
            tokio::spawn(connection);
            let sender = Arc::new(Mutex::new(sender));
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = Arc::clone(&sender);
                async move {
                    let answer: Response<Incoming> =
                        sender.lock().await.send_request(request).await.expect("an answer");
                    Ok::<_, Infallible>(answer)
                }
            });
            let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.drain(..at + 4);
            return Ok(());
        }
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer.extend_from_slice(&chunk[..length]);
    }
}

/// Answers every request with an empty body.
async fn answers(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        head(&mut stream, &mut buffer).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
    }
}

/// The tokens of a connection: its own repeatedly, or a new one every time.
#[derive(Clone)]
enum Tokens {
    Own(String),
    Turn(Arc<Vec<String>>),
}

async fn load(address: String, tokens: Tokens, number: usize, requests: usize) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.set_nodelay(true).expect("nodelay");
    let mut buffer = Vec::new();
    for index in 0..requests {
        let token = match &tokens {
            Tokens::Own(token) => token,
            Tokens::Turn(tokens) => &tokens[(number * requests + index) % tokens.len()],
        };
        let request = format!(
            "GET /api/cells/{index} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        head(&mut stream, &mut buffer).await.expect("an answer");
    }
}

async fn all(address: &str, tokens: &Tokens, requests: usize) {
    let loads: Vec<_> = (0..CONNECTIONS)
        .map(|number| tokio::spawn(load(address.to_owned(), tokens.clone(), number, requests)))
        .collect();
    for load in loads {
        load.await.expect("ends");
    }
}

/// Returns a command that runs on the first core, where programs can be pinned.
fn pinned(program: &str) -> Command {
    let there = Command::new("taskset").arg("--version").stdout(Stdio::null()).status().is_ok();
    if there {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]);
        return command;
    }
    Command::new(program)
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

async fn is_ready(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    let request = format!("GET /.vestibule/readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let asked = stream.write_all(request.as_bytes()).await.is_ok() && stream.read_to_end(&mut answer).await.is_ok();
    asked && answer.starts_with(b"HTTP/1.1 200")
}

async fn compare() {
    let _ = Command::new("taskset").args(["-cp", "1", &std::process::id().to_string()]).stdout(Stdio::null()).status();
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let upstream = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answers(stream));
        }
    });
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("key");
    let private: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("pkcs8");
    let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().expect("spki");
    let key_file = std::env::temp_dir().join(format!("vestibule-bench-{}.pem", std::process::id()));
    std::fs::write(&key_file, pem("PUBLIC KEY", public.as_ref())).expect("written");
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).expect("rsa");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = |number: usize| {
        let claims = serde_json::json!({"iss": "https://bench.example", "aud": "bench", "sub": "user_2abcdefghijklmnop", "sid": "sess_2abcdefghijklmnop", "jti": format!("{number:08}"), "iat": now, "nbf": now, "exp": now + 3_600, "email": "someone@example.com", "org_id": "org_2abcdefghijklmnop"});
        jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256), &claims, &key).expect("signed")
    };
    println!("signing {} tokens", CONNECTIONS * REQUESTS);
    let many: Arc<Vec<String>> = Arc::new((0..CONNECTIONS * REQUESTS).map(token).collect());
    let few: Arc<Vec<String>> = Arc::new(many.iter().take(100).cloned().collect());
    let configuration = |listen: &str, cache: usize| {
        format!(
            "listen: {listen}\nadmin: null\nupstream: http://{upstream}\nproviders: [{{ preset: jwt, issuer: \"https://bench.example\", audience: bench, jwks: {{ pem_file: \"{}\" }} }}]\nlimits: {{ token_cache: {cache} }}\nlog: {{ format: json }}\n",
            key_file.display()
        )
    };
    let vestibule = |cache: usize| {
        Middle::start(|listen| {
            let mut command = pinned(env!("CARGO_BIN_EXE_vestibule"));
            command.arg("run").env("VESTIBULE_CONFIG_YAML", configuration(listen, cache));
            command
        })
        .expect("starts")
    };
    let bare = Middle::start(|listen| {
        let itself = std::env::current_exe().expect("itself");
        let mut command = pinned(itself.to_str().expect("a path"));
        command.args(["--bare", listen, &upstream]);
        command
    })
    .expect("starts");
    let (usual, forgetful) = (vestibule(10_000), vestibule(0));
    let own = Tokens::Own(many[0].clone());
    let secret_file = std::env::temp_dir().join(format!("vestibule-bench-{}.secret", std::process::id()));
    // Waits until an instance with this engine has its first copy.
    let shared = std::env::var("SHARED").ok().map(|url| {
        std::fs::write(&secret_file, "0123456789abcdefghijklmnopqrstuvwxyz-bench").expect("written");
        let more = format!("shared: {{ url: \"{url}\", name: bench, secret_file: \"{}\" }}\n", secret_file.display());
        Middle::start(|listen| {
            let mut command = pinned(env!("CARGO_BIN_EXE_vestibule"));
            command.arg("run").env("VESTIBULE_CONFIG_YAML", configuration(listen, 10_000) + &more);
            command
        })
        .expect("starts")
    });
    if let Some(shared) = &shared {
        while !is_ready(&shared.address).await {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    let mut rows = vec![
        ("bare hyper proxy, no authentication", &bare, own.clone()),
        ("vestibule, token repeated on its connection", &usual, own),
        ("vestibule, token seen before elsewhere", &usual, Tokens::Turn(Arc::clone(&few))),
        ("vestibule, every token new", &forgetful, Tokens::Turn(many)),
    ];
    rows.extend(shared.as_ref().map(|shared| ("vestibule with shared, token seen before", shared, Tokens::Turn(few))));
    println!("{CONNECTIONS} connections, {REQUESTS} requests each; three runs in turn");
    for run in 1..=3 {
        for (name, middle, tokens) in &rows {
            all(&middle.address, tokens, WARM_UP).await;
            let (before, began) = (middle.cpu(), Instant::now());
            all(&middle.address, tokens, REQUESTS).await;
            let requests = (CONNECTIONS * REQUESTS) as f64;
            let micros = middle.cpu().saturating_sub(before).as_secs_f64() * 1e6 / requests;
            let rate = requests / began.elapsed().as_secs_f64();
            println!("run {run}  {name:<44} {micros:6.2} µs of CPU a request, {rate:7.0} requests a second");
        }
    }
    let _ = std::fs::remove_file(key_file);
    let _ = std::fs::remove_file(secret_file);
}
