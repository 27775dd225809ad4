//! One round: the program with everything around it, the load, one fault after another, and what is left at the end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::fault::Fault;
use super::ledger::{Findings, Ledger};
use super::load::Load;
use super::relay::{FaultyRelay, Place};
use super::rng::Rng;
use super::upstream::Upstream;
use crate::support::client::{Answer, Client};
use crate::support::control::try_post;
use crate::support::engine::{Engine, is_installed};
use crate::support::issuer::{AUDIENCE, Issuer, Key};
use crate::support::proxy::{Proxy, TempFolder, command, on_one_processor};
use crate::support::{now, unused_port};

/// The names that resolve while nothing is wrong.
pub(crate) const HOSTS: &str = "127.0.0.1 localhost upstream.internal\n";
/// The resolver's file while nothing is wrong: no name server listens there, so names that are not in `HOSTS` fail at
/// once.
pub(crate) const RESOLVER: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
/// The time within which the program serves again after a fault.
const RECOVERED: Duration = Duration::from_secs(60);
/// The time within which `/.vestibule/healthz` answers, whatever is wrong around it.
const HEALTHY: Duration = Duration::from_secs(10);
/// The time within which nothing is left of the load: idle connections are closed after 4 s, those of a client that
/// does not read after 20 s.
const EMPTY: Duration = Duration::from_secs(40);
/// The memory in bytes that may be held in addition to one and a half times what it was under load.
const SLACK: usize = 32 << 20;
/// The number of descriptors that may be held in addition to those at the beginning: of the engine and the provider.
const MORE_DESCRIPTORS: usize = 8;
const SECRET: &str = "0123456789abcdefghijklmnopqrstuvwxyz-faults";

/// What a round has besides the faults that every round has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Few file descriptors.
    Plain,
    /// A shared engine.
    Engine,
    /// A clock that jumps.
    Clock,
    /// A mount namespace with names and a disk of its own.
    Namespace,
    /// A single processor.
    OneCore,
}

impl Variant {
    pub(crate) const ALL: [Self; 5] = [Self::Plain, Self::Engine, Self::Clock, Self::Namespace, Self::OneCore];

    /// Returns what is missing on this machine for this variant.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Engine => (!is_installed()).then_some("redis-server is not installed"),
            Self::Clock => clock_library().is_none().then_some("libfaketime is not installed"),
            Self::Namespace => {
                let can = std::process::Command::new("unshare").args(["-m", "true"]).output();
                if !can.is_ok_and(|output| output.status.success()) {
                    return Some("`unshare -m` is not allowed: run as root");
                }
                SilentNameServer::start().is_err().then_some("port 53 of the loopback interface cannot be had")
            }
            Self::OneCore => on_one_processor().is_none().then_some("`taskset -c 0` does not work"),
        }
    }
}

/// Returns the library that, loaded before the program, changes its clock.
fn clock_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// The size and the choices of a round.
pub(crate) struct Round {
    pub(crate) variant: Variant,
    pub(crate) length: Duration,
    /// The faults to run in turn; `None` draws from all of the variant.
    pub(crate) faults: Option<Vec<Fault>>,
    pub(crate) clients: u64,
    pub(crate) sockets: u64,
    /// The time that the proxy waits for the upstream's response.
    pub(crate) response_timeout: Duration,
    pub(crate) seed: u64,
}

/// The result of one round or of several.
#[derive(Default)]
pub(crate) struct Summary {
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
    pub(crate) violation_count: u64,
    pub(crate) slowest_recovery: Duration,
    pub(crate) slowest_end: Duration,
    /// What was left at the end of each round.
    pub(crate) left: Vec<String>,
}

impl Summary {
    pub(crate) fn add(&mut self, other: Self) {
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.violations.extend(other.violations);
        self.violation_count += other.violation_count;
        self.slowest_recovery = self.slowest_recovery.max(other.slowest_recovery);
        self.slowest_end = self.slowest_end.max(other.slowest_end);
        self.left.extend(other.left);
    }
}

/// The program with everything around it.
pub(crate) struct Environment {
    pub(crate) variant: Variant,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) load: Arc<Load>,
    pub(crate) upstream_relay: Arc<FaultyRelay>,
    pub(crate) engine: Option<Engine>,
    pub(crate) proxy: Proxy,
    pub(crate) folder: TempFolder,
    /// The name server that does not answer, in the variant with names of its own.
    pub(crate) name_server: Option<SilentNameServer>,
    /// The number of reloads.
    pub(crate) generation: u64,
    pub(crate) rotation: Option<JoinHandle<()>>,
    /// The limit of descriptors while it is lowered.
    pub(crate) descriptor_limit: Option<u64>,
    /// The offset of the proxy's clock in seconds.
    pub(crate) offset: Cell<i64>,
    pub(crate) slowest_end: Duration,
    slowest_recovery: Duration,
    settings: Settings,
    /// The descriptors of the process before the load reached it.
    descriptors_at_start: usize,
    /// The memory of the process under load, in bytes.
    memory: usize,
    /// What was left after the load, for the report.
    remains: Option<String>,
}

/// A name server that receives questions and answers none.
pub(crate) struct SilentNameServer {
    pub(crate) ip: Ipv4Addr,
    _socket: UdpSocket,
}

impl SilentNameServer {
    /// Starts it at an address of its own: a resolver asks at one port only.
    fn start() -> std::io::Result<Self> {
        let [.., high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 77, high, low);
        Ok(Self { ip, _socket: UdpSocket::bind((ip, 53))? })
    }
}

/// What the configuration is made of.
struct Settings {
    address: SocketAddr,
    admin: SocketAddr,
    control: PathBuf,
    upstream: String,
    issuer: String,
    engine: Option<String>,
    response_timeout: Duration,
    folder: PathBuf,
}

impl Settings {
    /// Returns the configuration after so many reloads.
    fn yaml(&self, generation: u64) -> String {
        let Self { address, admin, control, upstream, issuer, engine, response_timeout, folder } = self;
        let (control, folder) = (control.display(), folder.display());
        let timeout = response_timeout.as_secs();
        let shared =
            engine.as_ref().map_or(String::new(), |url| format!("shared: {{ url: \"{url}\", name: faults }}\n"));
        format!(
            "listen: \"{address}\"\nadmin: {{ listen: \"{admin}\" }}\n\
             upstream: {{ url: \"{upstream}\", connect_timeout: 3s, response_timeout: {timeout}s, handshake_timeout: {timeout}s }}\n\
             providers: [{{ preset: oidc, issuer: \"{issuer}\", audience: {AUDIENCE}, cache_ttl: 20s, jwks: {{ refresh: 30s }} }}]\n\
             control: {{ listen: \"unix:{control}\", revocation_file: \"{folder}/revocations\" }}\n\
             browser: {{ session: {{ secret_file: \"{folder}/secret\" }} }}\n\
             routes: [{{ path: /nothing/{generation}, auth: deny }}]\n\
             websocket: {{ ping_interval: 5s, ping_timeout: 10s, grace: 0s }}\n\
             limits: {{ websockets_per_user: 10000, failed_tokens_per_minute: null, body_idle_timeout: 8s, send_timeout: 20s }}\n\
             drain: {{ timeout: 5s }}\n{shared}"
        )
    }

    async fn start(&self, variant: Variant, yaml: &str) -> Proxy {
        match variant {
            Variant::Plain => Proxy::with_descriptors(yaml, "-n 600").await,
            Variant::Engine => Proxy::start(yaml).await,
            Variant::OneCore => Proxy::on_one_processor(yaml).await,
            Variant::Clock => {
                let mut command = command();
                command
                    .env("LD_PRELOAD", clock_library().expect("the library"))
                    .env("FAKETIME_TIMESTAMP_FILE", self.folder.join("clock"))
                    .env("FAKETIME_NO_CACHE", "1")
                    .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
                Proxy::with_command(yaml, "debug", command).await
            }
            Variant::Namespace => {
                let script = "set -e; cd \"$1\"; shift
                    mount --bind hosts /etc/hosts; mount --bind resolv.conf /etc/resolv.conf
                    mount -t tmpfs -o size=256m none log; : > log/log
                    tail -f --pid=$$ log/log & exec \"$@\" >> log/log";
                let mut unshare = std::process::Command::new("unshare");
                unshare.args(["-m", "sh", "-c", script, "sh"]).arg(&self.folder).arg(command().get_program());
                Proxy::with_command(yaml, "debug", unshare).await
            }
        }
    }
}

impl Round {
    pub(crate) async fn run(&self) -> Summary {
        let mut rng = Rng::new(self.seed);
        let (quiet, is_quiet) = watch::channel(false);
        let mut environment = self.environment(&mut rng, is_quiet).await;
        // The first keys, and the first copy of a shared state, are there before the load.
        environment.recover(&[]).await;
        environment.slowest_recovery = Duration::ZERO;
        let mut tasks = JoinSet::new();
        for _ in 0..self.clients {
            tasks.spawn(Arc::clone(&environment.load).send_requests(Rng::new(rng.next())));
        }
        for _ in 0..self.sockets {
            tasks.spawn(Arc::clone(&environment.load).open_sockets(Rng::new(rng.next())));
        }
        let control = environment.settings.control.clone();
        tasks.spawn(revoke_users(Arc::clone(&environment.load), control));
        tasks.spawn(ask_health(Arc::clone(&environment.load), environment.settings.address));
        self.faults(&mut environment, &mut rng).await;
        quiet.send_replace(true);
        let mut broken = 0;
        let all = async {
            while let Some(task) = tasks.join_next().await {
                broken += u64::from(task.is_err());
            }
        };
        if timeout(super::load::BOUND * 3, all).await.is_err() {
            environment.ledger.violation("the load did not end".to_owned());
        }
        if broken > 0 {
            environment.ledger.violation(format!("{broken} clients panicked"));
        }
        environment.judge_remains().await;
        environment.finish("TERM").await;
        let Findings { counts, violations, violation_count } = environment.ledger.take_findings();
        let left = format!(
            "{:?}: {} MiB under load, {}",
            self.variant,
            environment.memory >> 20,
            environment.remains.take().unwrap_or_default()
        );
        Summary {
            counts,
            violations,
            violation_count,
            slowest_recovery: environment.slowest_recovery,
            slowest_end: environment.slowest_end,
            left: vec![left],
        }
    }

    /// Starts everything around the program.
    async fn environment(&self, rng: &mut Rng, quiet: watch::Receiver<bool>) -> Environment {
        let folder = TempFolder::new();
        let file = |name: &str, text: &str| std::fs::write(folder.0.join(name), text).expect("written");
        file("secret", SECRET);
        file("clock", "+0");
        file("hosts", HOSTS);
        file("resolv.conf", RESOLVER);
        std::fs::create_dir(folder.0.join("log")).expect("a folder");
        let ledger = Arc::new(Ledger::new());
        let key = Key::ec("key", jsonwebtoken::Algorithm::ES256);
        let foreign = Key::ec("key", jsonwebtoken::Algorithm::ES256);
        let issuer = Issuer::with(key.clone()).await;
        let (upstream, upstream_address) = Upstream::start(Arc::clone(&ledger)).await;
        let upstream_relay = FaultyRelay::start(Place::Upstream, upstream_address, Rng::new(rng.next()));
        upstream.is_behind(Arc::clone(&upstream_relay));
        let engine = if self.variant == Variant::Engine { Some(Engine::start().await) } else { None };
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let name = if self.variant == Variant::Namespace { "upstream.internal" } else { "127.0.0.1" };
        let settings = Settings {
            address: loopback(unused_port()),
            admin: loopback(unused_port()),
            control: folder.0.join("control.sock"),
            upstream: format!("http://{name}:{}", upstream_relay.address.port()),
            issuer: issuer.url.clone(),
            engine: engine.as_ref().map(Engine::url),
            response_timeout: self.response_timeout,
            folder: folder.0.clone(),
        };
        let relay = FaultyRelay::start(Place::Clients, settings.address, Rng::new(rng.next()));
        let load = Arc::new(Load {
            ledger: Arc::clone(&ledger),
            relay,
            upstream,
            issuer,
            key: std::sync::Mutex::new(key),
            foreign,
            revoked_users: std::sync::Mutex::default(),
            quiet,
        });
        let proxy = settings.start(self.variant, &settings.yaml(0)).await;
        Environment {
            variant: self.variant,
            ledger,
            load,
            upstream_relay,
            engine,
            folder,
            name_server: (self.variant == Variant::Namespace)
                .then(|| SilentNameServer::start().expect("port 53 of an address of the loopback interface")),
            generation: 0,
            rotation: None,
            descriptor_limit: None,
            offset: Cell::new(0),
            slowest_end: Duration::ZERO,
            slowest_recovery: Duration::ZERO,
            settings,
            descriptors_at_start: proxy.descriptors(),
            memory: 0,
            remains: None,
            proxy,
        }
    }

    async fn faults(&self, environment: &mut Environment, rng: &mut Rng) {
        if let Some(faults) = &self.faults {
            for fault in faults {
                sleep(Duration::from_millis(500)).await;
                environment.run_faults(&[*fault], Duration::from_millis(700)).await;
            }
            environment.calm(rng).await;
            return;
        }
        let began = Instant::now();
        let mut rest: Vec<Fault> = Vec::new();
        let mut next = |rng: &mut Rng| {
            if rest.is_empty() {
                rest = Fault::of_variant(self.variant);
                for at in (1..rest.len()).rev() {
                    rest.swap(at, rng.below(at as u64 + 1) as usize);
                }
            }
            rest.pop().expect("a fault")
        };
        while began.elapsed() < self.length {
            environment.calm(rng).await;
            let mut faults = vec![next(rng)];
            if rng.in_thousand(250) {
                let second = next(rng);
                if faults[0].can_be_with(second) {
                    faults.push(second);
                }
            }
            let length = Duration::from_millis(800) + rng.up_to(faults[0].longest());
            environment.run_faults(&faults, length).await;
        }
        environment.calm(rng).await;
    }
}

/// Names users, and revokes each a little later, until it is confirmed.
async fn revoke_users(load: Arc<Load>, control: PathBuf) {
    let mut quiet = load.quiet.clone();
    for number in 0.. {
        let user = format!("revoked-{number}");
        let issued = now() - 3_600;
        let token = load.issuer.token_with(&user, json!({"iat": issued, "nbf": issued, "exp": now() + 80_000}));
        // The provider's key may have been replaced.
        let token =
            if load.key.lock().expect("lock").id == load.issuer.key.id { token } else { load.good(&user).token };
        load.revoked_users.lock().expect("lock").push((user.clone(), token));
        tokio::select! {
            () = sleep(Duration::from_millis(1_500)) => {}
            _ = quiet.wait_for(|quiet| *quiet) => return,
        }
        load.ledger.revocation_asked(&user);
        let body = json!({"issuer": load.issuer.url, "sub": user}).to_string();
        loop {
            let answer = timeout(HEALTHY, try_post(&control, "/revoke", &body)).await;
            match answer {
                Ok(Ok(204)) => break load.ledger.revocation_confirmed(&user),
                Ok(Ok(status)) => load.ledger.count(&format!("revocations answered {status}, repeated")),
                Ok(Err(_)) => {}
                Err(_) => load.ledger.violation("a revocation was not answered".to_owned()),
            }
            if *load.quiet.borrow() {
                return;
            }
            sleep(Duration::from_millis(300)).await;
        }
        load.ledger.count("users revoked");
    }
}

/// Asks without pause whether the process answers.
async fn ask_health(load: Arc<Load>, address: SocketAddr) {
    while !*load.quiet.borrow() {
        let sent = Instant::now();
        let status = ask(address, "/.vestibule/healthz").await.map(|answer| answer.status);
        let excused = load.ledger.is_disturbed(|disturbs| disturbs.health, sent, Instant::now());
        if status != Some(200) && !excused {
            let after = sent.elapsed();
            load.ledger.violation(format!("/.vestibule/healthz was answered {status:?} after {after:.1?}"));
        }
        load.ledger.count("health checks");
        sleep(Duration::from_millis(250)).await;
    }
}

/// Sends a GET without a credential; `None` without an answer in time.
async fn ask(address: SocketAddr, path: &str) -> Option<Answer> {
    let answer = async {
        let mut client = Client::over(TcpStream::connect(address).await.ok()?);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        client.stream.write_all(request.as_bytes()).await.ok()?;
        client.try_answer().await
    };
    timeout(HEALTHY, answer).await.ok().flatten()
}

impl Environment {
    /// Lets the load go on for a time in which everything must be served.
    async fn calm(&mut self, rng: &mut Rng) {
        sleep(Duration::from_millis(500) + rng.up_to(Duration::from_millis(1_500))).await;
        self.memory = self.memory.max(self.proxy.resident_memory());
    }

    pub(crate) fn yaml(&self) -> String {
        self.settings.yaml(self.generation)
    }

    /// Starts the program again.
    pub(crate) async fn start_proxy(&mut self) {
        self.proxy = self.settings.start(self.variant, &self.yaml()).await;
        // The load is there already.
        self.descriptors_at_start = self.descriptors_at_start.min(self.proxy.descriptors());
    }

    /// Returns the sum of a metric's values; `None` when there is no answer.
    pub(crate) async fn metric(&self, name: &str) -> Option<u64> {
        let answer = ask(self.settings.admin, "/metrics").await?;
        let values = answer.body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next()?.parse::<u64>().ok())?
        });
        Some(values.sum())
    }

    /// Waits until requests are served again.
    pub(crate) async fn recover(&mut self, faults: &[Fault]) {
        let began = Instant::now();
        let mut served = 0;
        while served < 3 {
            let credential = self.load.good("user-of-probes");
            if timeout(RECOVERED, self.load.probe(&credential)).await == Ok(Some(200)) {
                served += 1;
            } else {
                served = 0;
                sleep(Duration::from_millis(100)).await;
            }
            if began.elapsed() > RECOVERED {
                self.ledger.violation(format!("not served again within {RECOVERED:?} after {faults:?}"));
                break;
            }
        }
        self.slowest_recovery = self.slowest_recovery.max(began.elapsed());
    }

    /// Judges what the process holds once the load has ended.
    async fn judge_remains(&mut self) {
        const GAUGES: [&str; 3] =
            ["vestibule_connections_open", "vestibule_websockets_open", "vestibule_websockets_waiting"];
        let began = Instant::now();
        loop {
            let mut held = Vec::new();
            for name in GAUGES {
                // This question is a connection of the admin listener.
                let own = u64::from(name == GAUGES[0]);
                let value = self.metric(name).await.unwrap_or(u64::MAX);
                if value > own {
                    held.push(format!("{name} {value}"));
                }
            }
            let descriptors = self.proxy.descriptors();
            let memory = self.proxy.resident_memory();
            if descriptors > self.descriptors_at_start + MORE_DESCRIPTORS {
                held.push(format!("{descriptors} descriptors, {} at the beginning", self.descriptors_at_start));
            }
            if memory > self.memory + self.memory / 2 + SLACK {
                held.push(format!("{} MiB of memory", memory >> 20));
            }
            if held.is_empty() || began.elapsed() > EMPTY {
                if !held.is_empty() {
                    self.ledger.violation(format!("left after the load: {}", held.join(", ")));
                }
                self.remains = Some(format!(
                    "{} MiB and {descriptors} descriptors ({} at the beginning) {:.0?} after it",
                    memory >> 20,
                    self.descriptors_at_start,
                    began.elapsed()
                ));
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Judges that lines are logged again after a time in which they could not be.
    pub(crate) async fn judge_log_goes_on(&self) {
        let lines = self.proxy.log().len();
        let logged = self.proxy.logged_after(lines, "a further line", |line| line.contains("\"msg\":\"request\""));
        let probe = self.load.good("user-of-probes");
        let (logged, _) = tokio::join!(timeout(HEALTHY, logged), self.load.probe(&probe));
        if logged.is_err() {
            self.ledger
                .violation(format!("no line was logged within {HEALTHY:?} after the log could be written again"));
        }
    }

    /// Judges the log of the process that has ended.
    pub(crate) fn judge_log(&self) {
        let log = self.proxy.log();
        self.ledger.count_by("log lines", log.len() as u64);
        for line in &log {
            let shown: String = line.chars().take(300).collect();
            if line.contains("panicked") {
                self.ledger.violation(format!("a panic: {shown}"));
            }
            // Every token begins like this, and so does its second part.
            if line.contains("eyJ") {
                self.ledger.violation(format!("a token in the log: {shown}"));
            }
            if line.contains("log lines were dropped") {
                self.ledger.count("times log lines were dropped");
            }
        }
    }
}
