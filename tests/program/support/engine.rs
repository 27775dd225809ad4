//! A real `redis-server` in a process of its own, and what tests do with it. Where the program is not installed its tests
//! say so and pass: set `REDIS_SERVER` to demand it.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::proxy::TempFolder;
use super::{unused_port, within};

pub struct Engine {
    pub address: SocketAddr,
    _folder: TempFolder,
    arguments: Vec<String>,
    child: Child,
}

/// Whether there is a `redis-server` on this machine.
pub fn is_installed() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("REDIS_SERVER").is_none(), "redis-server is not installed");
    if !found {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"redis-server is not installed: not tried\n");
    }
    found
}

impl Engine {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(more: &[&str]) -> Self {
        let folder = TempFolder::new();
        let port = unused_port();
        let arguments: Vec<String> =
            ["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"]
                .into_iter()
                .chain([folder.0.to_str().expect("utf-8")])
                .chain(more.iter().copied())
                .map(str::to_owned)
                .collect();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = spawn(&arguments);
        let engine = Self { address, _folder: folder, arguments, child };
        engine.is_there().await;
        engine
    }

    async fn is_there(&self) {
        within("the engine to answer", async {
            while TcpStream::connect(self.address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Sends a command and returns the first bytes of its answer.
    pub async fn command(&self, parts: &[&[u8]]) -> Vec<u8> {
        command(self.address, parts).await
    }

    pub fn signal(&self, name: &str) {
        super::signal(&self.child, name);
    }

    /// Kills it, as a machine that is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at the same place, with nothing in it.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.arguments);
        self.is_there().await;
    }
}

fn spawn(arguments: &[String]) -> Child {
    Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn().expect("redis-server starts")
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("CONT");
        }
        self.kill();
    }
}

/// A command in the Redis protocol.
pub async fn command(address: SocketAddr, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend(format!("${}\r\n", part.len()).into_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(&bytes).await.expect("written");
    let mut answer = vec![0; 64 << 10];
    let length = within("an answer of the engine", stream.read(&mut answer)).await.expect("read");
    answer.truncate(length);
    answer
}

/// A TCP relay that holds every chunk from the engine back for a while.
pub struct Relay {
    pub address: SocketAddr,
    delay: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let delay = Arc::new(AtomicU64::new(0));
        let delayed = Arc::clone(&delay);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let delay = Arc::clone(&delayed);
                tokio::spawn(async move {
                    let Ok(engine) = TcpStream::connect(target).await else { return };
                    let ((mut from_client, mut to_client), (mut from_engine, mut to_engine)) =
                        (client.into_split(), engine.into_split());
                    let up = async {
                        let _ = tokio::io::copy(&mut from_client, &mut to_engine).await;
                    };
                    // Each chunk is late by itself, and none waits for another.
                    let (late, mut due) = tokio::sync::mpsc::unbounded_channel();
                    let read = async {
                        let mut chunk = vec![0; 64 << 10];
                        while let Ok(length @ 1..) = from_engine.read(&mut chunk).await {
                            let at = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
                            let _ = late.send((at, chunk[..length].to_vec()));
                        }
                    };
                    let write = async {
                        while let Some((at, chunk)) = due.recv().await {
                            tokio::time::sleep_until(at).await;
                            if to_client.write_all(&chunk).await.is_err() {
                                break;
                            }
                        }
                    };
                    let down = async {
                        tokio::select! {
                            () = read => {}
                            () = write => {}
                        }
                    };
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                    }
                });
            }
        });
        Self { address, delay, task }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn delay(&self, millis: u64) {
        self.delay.store(millis, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
