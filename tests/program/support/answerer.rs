//! A provider that is asked about tokens and sessions. It records every request, counts the concurrent ones, and
//! answers as the test sets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::within;

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Asked {
    pub head: String,
    pub body: String,
}

impl Asked {
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Returns method and target.
    pub fn line(&self) -> &str {
        self.head.split(" HTTP/").next().unwrap_or_default()
    }
}

/// The status, further fields as whole lines, and the body of a response.
pub type Reply = (u16, String, String);

type Answers = Arc<Mutex<Box<dyn Fn(&Asked) -> Reply + Send>>>;

#[derive(Clone)]
pub struct Answerer {
    pub url: String,
    answers: Answers,
    asked: watch::Sender<Vec<Asked>>,
    gate: Arc<Mutex<Arc<Semaphore>>>,
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// Makes a 200 response with this body.
pub fn ok(body: Value) -> Reply {
    (200, String::new(), body.to_string())
}

fn open_gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(Semaphore::MAX_PERMITS >> 1))
}

impl Answerer {
    pub async fn start(answers: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        Self::start_on("127.0.0.1", answers).await
    }

    /// Starts it on another address of this machine. It is asked by loopback all the same.
    pub async fn start_on(address: &str, answers: impl Fn(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind((address, 0)).await.expect("port");
        let answerer = Self {
            url: format!("http://127.0.0.1:{}", listener.local_addr().expect("address").port()),
            answers: Arc::new(Mutex::new(Box::new(answers))),
            asked: watch::Sender::new(Vec::new()),
            gate: Arc::new(Mutex::new(open_gate())),
            under_way: Arc::default(),
            most: Arc::default(),
        };
        let this = answerer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move { this.answer(stream).await });
            }
        });
        answerer
    }

    /// Sets the answers from now on.
    pub fn answers(&self, answers: impl Fn(&Asked) -> Reply + Send + 'static) {
        *self.answers.lock().expect("lock") = Box::new(answers);
    }

    /// Holds all answers until [`Self::open`].
    pub fn hold(&self) {
        self.gate().forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn open(&self) {
        self.gate().add_permits(10_000);
    }

    /// Answers requests from now on, and returns what goes on holding the answers to those that have come already.
    pub fn answer_later_ones(&self) -> Arc<Semaphore> {
        std::mem::replace(&mut *self.gate.lock().expect("lock"), open_gate())
    }

    fn gate(&self) -> Arc<Semaphore> {
        Arc::clone(&self.gate.lock().expect("lock"))
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.borrow().clone()
    }

    pub fn count(&self) -> usize {
        self.asked.borrow().len()
    }

    /// Returns the maximum number of concurrent requests.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub async fn asked_times(&self, count: usize) {
        let mut asked = self.asked.subscribe();
        let _ = within("so many questions", asked.wait_for(|asked| asked.len() >= count)).await.expect("alive");
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let asked = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end + 2]).into_owned();
                let asked = Asked { head, body: String::from_utf8_lossy(&bytes[end + 4..]).into_owned() };
                let length = asked.field("content-length").map_or(0, |length| length.parse().expect("a length"));
                if asked.body.len() >= length {
                    break asked;
                }
            }
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            }
        };
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let (status, fields, body) = (self.answers.lock().expect("lock"))(&asked);
        let gate = self.gate();
        self.asked.send_modify(|all| all.push(asked));
        let permit = gate.acquire().await.expect("open");
        drop(permit);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        let answer = format!(
            "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        // The client may have disconnected.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}
