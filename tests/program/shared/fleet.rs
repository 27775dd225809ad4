//! Several instances of the program that share one engine, one backend and one issuer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{Answer, bearer, get, request};
use crate::support::control::post;
use crate::support::engine::Engine;
use crate::support::issuer::Issuer;
use crate::support::proxy::{Proxy, TempFolder};
use crate::support::socket::Socket;
use crate::support::{SAFETY, now, unused_port, within};

pub const SECRET: &str = "0123456789abcdefghijklmnopqrstuvwxyz-shared";
pub const SESSION: &str = "/.vestibule/session";

pub struct Fleet {
    pub issuer: Issuer,
    pub backend: Backend,
    pub engine: Engine,
    pub folder: TempFolder,
    began: u64,
}

pub struct Instance {
    pub proxy: Proxy,
    pub control: PathBuf,
    pub admin: std::net::SocketAddr,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::with_engine(Engine::start().await).await
    }

    pub async fn with_engine(engine: Engine) -> Self {
        let folder = TempFolder::new();
        std::fs::write(folder.0.join("secret"), SECRET).expect("written");
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        Self { issuer, backend, engine, folder, began: now() }
    }

    pub fn file(&self, name: &str) -> String {
        self.folder.0.join(name).to_str().expect("utf-8").to_owned()
    }

    /// Returns the configuration of an instance. `shared` has further keys of that section, beside its name and secret.
    pub fn yaml(&self, control: &str, admin: &std::net::SocketAddr, shared: &str, more: &str) -> String {
        format!(
            "upstream: {}\nproviders: [{}]\nadmin: {{ listen: \"{admin}\" }}\ncontrol: {{ listen: \"unix:{control}\" }}\nshared: {{ name: test, {shared} }}\nbrowser: {{ session: {{ max_age: 1h, secret_file: \"{}\" }} }}\n{more}",
            self.backend.url(),
            self.issuer.provider(),
            self.file("secret"),
        )
    }

    pub async fn instance(&self, more: &str) -> Instance {
        self.instance_at(&format!("url: \"{}\"", self.engine.url()), more).await
    }

    pub async fn instance_at(&self, shared: &str, more: &str) -> Instance {
        let instance = self.starting(shared, more).await;
        instance.is_ready(true).await;
        instance
    }

    /// Starts an instance with more keys under `control`, which may not become ready.
    pub async fn starting_with(&self, shared: &str, control: &str) -> Instance {
        self.start_instance(shared, control, "").await
    }

    /// Starts an instance that may not become ready.
    pub async fn starting(&self, shared: &str, more: &str) -> Instance {
        self.start_instance(shared, "", more).await
    }

    async fn start_instance(&self, shared: &str, more_control: &str, more: &str) -> Instance {
        let port = unused_port();
        let control = self.file(&format!("control-{port}.sock"));
        let admin = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let yaml = self.yaml(&control, &admin, shared, more);
        let socket = format!("unix:{control}\"");
        let proxy = Proxy::start(&yaml.replace(&socket, &format!("{socket}{more_control}"))).await;
        Instance { proxy, control: control.into(), admin }
    }

    pub async fn socket(&self, at: &Instance, token: &str) -> (Socket, Socket) {
        let credential = bearer(token);
        let fields = [credential.as_str()];
        let (client, (_, upstream)) =
            tokio::join!(Socket::open(at.proxy.address, "/ws", &fields), self.backend.websocket());
        (client, upstream)
    }

    /// Returns the field with a token that is older than everything that the test revokes: a token that is issued a few
    /// seconds after its user was revoked is accepted.
    pub fn early_token(&self, user: &str) -> String {
        bearer(&self.issuer.token_with(user, json!({"iat": self.began, "nbf": self.began})))
    }

    /// Returns the outcome of a request: its code, or `ok`.
    pub async fn outcome(&self, at: &Instance, field: &str) -> String {
        let fields = [field];
        let asked = get(at.proxy.address, "/x", &fields);
        tokio::pin!(asked);
        tokio::select! {
            biased;
            answer = &mut asked => answer.code(),
            _ = self.backend.answer("ok") => {
                asked.await;
                "ok".to_owned()
            }
        }
    }

    pub async fn revoke(&self, at: &Instance, user: &str) -> u16 {
        let body = json!({"issuer": self.issuer.url, "sub": user}).to_string();
        post(&at.control, "/revoke", &body).await
    }

    /// Returns the cookie of a session that a token began.
    pub async fn signed_in(&self, at: &Instance, user: &str) -> String {
        let answer = request(at.proxy.address, "POST", SESSION, &[&bearer(&self.issuer.token(user))], "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let line = answer.field("set-cookie").expect("a cookie");
        format!("Cookie: {}", line.split(';').next().expect("a pair"))
    }
}

impl Instance {
    /// Waits until the instance reports that it is ready, or that it is not.
    pub async fn is_ready(&self, wanted: bool) {
        self.until(&format!("readiness {wanted}"), || async {
            let answer = get(self.proxy.address, "/.vestibule/readyz", &[]).await;
            (answer.status == 200) == wanted
        })
        .await;
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let answer = get(self.admin, "/metrics", &[]).await;
        let text = answer.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Waits until a metric satisfies the condition.
    pub async fn until_metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        self.until(name, || async { wanted(self.metric(name).await) }).await;
    }

    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut asked: impl FnMut() -> F) {
        within(what, async {
            while !asked().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    pub async fn sign_out(&self, cookie: &str) -> Answer {
        request(self.proxy.address, "DELETE", SESSION, &[cookie], "").await
    }
}

/// Returns the result of a future, and its duration.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let value = future.await;
    assert!(begun.elapsed() < SAFETY);
    (value, begun.elapsed())
}

/// Returns the messages of the log, each with its id. The log must be short: it is read at once.
pub async fn log_messages(engine: &Engine) -> Vec<(Vec<u8>, Vec<u8>)> {
    let answer = engine.command(&[b"XRANGE", b"{vestibule:test}:log", b"-", b"+"]).await;
    let (mut texts, mut rest) = (Vec::new(), &answer[..]);
    while let Some(end) = rest.windows(2).position(|part| part == b"\r\n") {
        let (line, behind) = (&rest[..end], &rest[end + 2..]);
        let length = line.strip_prefix(b"$").and_then(|length| String::from_utf8_lossy(length).parse::<usize>().ok());
        rest = behind;
        if let Some(length) = length {
            let Some(text) = rest.get(..length) else { break };
            texts.push(text.to_vec());
            rest = rest.get(length + 2..).unwrap_or_default();
        }
    }
    let messages = texts.chunks_exact(3).filter(|parts| parts[1] == b"m");
    messages.map(|parts| (parts[0].clone(), parts[2].clone())).collect()
}
