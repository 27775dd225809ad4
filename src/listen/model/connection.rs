//! One connection of the product between a client and an upstream in memory: accepted as from a listener, with the real
//! HTTP server, verification, relay, revocations, reloads and drain. Only the clock, the pipes and the provider's HTTP
//! server are simulated.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::contract::{Contract, TOKEN_LIFE, User};
use super::peer::FakePeer;
use super::step::Step;
use crate::auth::{RevocationTarget, Revocations, unix_seconds};
use crate::drain::DrainTimes;
use crate::http::{LingerLimit, Socket};
use crate::listen::Acceptor;
use crate::policy::{Policy, validate};
use crate::runtime::{Moment, ProxyState};
use crate::simulation::{PeerEnd, ProxyEnd, Question, Simulation};

/// The time at which each connection begins, in milliseconds since the epoch.
const BEGIN: u64 = 1_900_000_000_000;
/// The beginning of every token. Nothing that the upstream receives may contain it.
const TOKEN_PREFIX: &str = "secret-token-";
/// The time within which everything that has happened is processed: the clock moves only once all tasks wait.
const SETTLE: Duration = Duration::from_millis(1);
const ISSUER: &str = "https://issuer.example.com";

/// The configurations of the model, read once.
pub(super) struct Configurations {
    admitting: Policy,
    excluding: Policy,
}

impl Configurations {
    pub(super) fn read() -> Self {
        let yaml = |rule: &str| {
            format!(
                r#"
upstream: {{ url: "http://127.0.0.1:1", handshake_timeout: 8s }}
control: {{ listen: "unix:/nonexistent/control.sock" }}
providers:
  - preset: introspection
    issuer: {ISSUER}
    audience: model
    clock_skew: 5s
    remote: {{ url: "{ISSUER}/introspect", client_id: model, client_secret: some-secret, timeout: 3s }}
websocket: {{ grace: 5s, auth_timeout: 10s, ping_interval: 1h }}
limits: {{ failed_tokens_per_minute: null }}
routes:
  - path: /socket{rule}
"#
            )
        };
        let read = |yaml: &str| {
            let config = crate::config::load_yaml(yaml).expect("loads").config;
            validate(&config).expect("valid")
        };
        Self { admitting: read(&yaml("")), excluding: read(&yaml("\n    require: { sub: nobody }")) }
    }
}

/// A connection with everything around it.
pub(super) struct Connection<'a> {
    configurations: &'a Configurations,
    state: Arc<ProxyState>,
    simulation: Simulation,
    began: Instant,
    /// The tasks of the process without a connection.
    idle_tasks: usize,
    pub(super) client: FakePeer,
    pub(super) upstream: Option<FakePeer>,
    /// The questions to the provider that wait for an answer.
    questions: VecDeque<Question>,
    tokens: u32,
}

impl<'a> Connection<'a> {
    /// Opens a connection, which is answered with 101 at once.
    pub(super) async fn open(configurations: &'a Configurations) -> Self {
        Self::open_through(configurations, crate::simulation::connection()).await
    }

    /// Opens a connection whose client has this end.
    pub(super) async fn open_through(configurations: &'a Configurations, (ours, theirs): (ProxyEnd, PeerEnd)) -> Self {
        let simulation = Simulation::begin(BEGIN);
        let began = Instant::now();
        let state = ProxyState::start(configurations.admitting.clone(), Revocations::default()).expect("starts");
        let state = Arc::new(state);
        // The first task that waits until a time starts the one that wakes them all.
        let waiting = state.notifier.subscribe();
        let _ = poll_fn(|cx| Poll::Ready(waiting.poll_until(cx, Moment::now()))).await;
        drop(waiting);
        sleep(SETTLE).await;
        let idle_tasks = Handle::current().metrics().num_alive_tasks();
        let acceptor = Acceptor {
            workers: crate::workers::Workers::default(),
            state: Arc::clone(&state),
            tls: None,
            linger_limit: LingerLimit::default(),
            open_connections: Gauge::default(),
        };
        let address = ([127, 0, 0, 1], 40_000).into();
        acceptor.accept_or_reject(Socket::Memory(Box::new(ours)), Some(address)).await;
        let mut connection = Self {
            configurations,
            state,
            simulation,
            began,
            idle_tasks,
            client: FakePeer::new(theirs, true),
            upstream: None,
            questions: VecDeque::new(),
            tokens: 0,
        };
        connection.client.send(
            b"GET /socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-User-Id: mallory\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        connection.settle().await;
        let head = connection.client.head.as_deref().expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        connection
    }

    /// Returns the milliseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("small")
    }

    /// Waits until every task waits, and receives what came.
    pub(super) async fn settle(&mut self) {
        sleep(SETTLE).await;
        self.receive();
    }

    /// Lets the time pass until then.
    pub(super) async fn wait_until(&mut self, millis: u64) {
        sleep_until(self.began + Duration::from_millis(millis)).await;
        self.receive();
    }

    fn receive(&mut self) {
        while let Ok(end) = self.simulation.connections.try_recv() {
            assert!(self.upstream.is_none(), "a second connection to the upstream");
            self.upstream = Some(FakePeer::new(end, false));
        }
        while let Ok(question) = self.simulation.questions.try_recv() {
            self.questions.push_back(question);
        }
        self.questions.retain(|question| !question.answer.is_closed());
        self.client.receive();
        if let Some(upstream) = &mut self.upstream {
            upstream.receive();
        }
    }

    /// Returns whether the provider has a question that waits for its answer.
    pub(super) fn is_asked(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Makes an event happen, without waiting for the proxy. `before` foretells what the peers send next.
    pub(super) fn inject(&mut self, step: Step, before: &Contract) {
        match step {
            Step::Authenticate => self.present_token("authenticate"),
            Step::Refresh => self.present_token("refresh_auth"),
            Step::ClientMessage => self.client.send_text(&before.next_client_message()),
            Step::ClientClose => self.client.send_close(),
            Step::ClientHalfClose => self.client.half_close(),
            Step::ClientGone => self.client.disconnect(),
            Step::ClientStopsReading => self.client.set_reading(false),
            Step::ClientReadsAgain => self.client.set_reading(true),
            Step::UpstreamMessage => self.upstream().send_text(&before.next_upstream_message()),
            Step::UpstreamClose => self.upstream().send_close(),
            Step::UpstreamHalfClose => self.upstream().half_close(),
            Step::UpstreamGone => self.upstream().disconnect(),
            Step::UpstreamStopsReading => self.upstream().set_reading(false),
            Step::UpstreamReadsAgain => self.upstream().set_reading(true),
            Step::UpstreamOpen => self.accept_upgrade(),
            Step::UpstreamRefused => {
                self.upstream().send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
            }
            Step::VerdictGood => self.answer_question(Some(User::Alice)),
            Step::VerdictOther => self.answer_question(Some(User::Bob)),
            Step::VerdictBad => self.answer_question(None),
            Step::Revocation => self.revoke_alice(),
            Step::ReloadAdmitting => self.state.replace(self.configurations.admitting.clone(), || true),
            Step::ReloadExcluding => self.state.replace(self.configurations.excluding.clone(), || true),
            Step::Drain => {
                let state = Arc::clone(&self.state);
                let policy = &state.current().policy;
                let times = DrainTimes::gradual(Duration::ZERO, policy.drain_timeout);
                tokio::spawn(async move { state.drain.run(times).await });
            }
            // The clock moves while the model waits.
            Step::VerdictLate | Step::UpstreamLate | Step::Expiry | Step::Stall => {}
        }
    }

    fn upstream(&mut self) -> &mut FakePeer {
        self.upstream.as_mut().expect("connected")
    }

    fn present_token(&mut self, kind: &str) {
        self.tokens += 1;
        self.client.send_text(&format!(r#"{{"type":"{kind}","token":"{TOKEN_PREFIX}{}"}}"#, self.tokens));
    }

    fn accept_upgrade(&mut self) {
        let upstream = self.upstream();
        let head = upstream.head.clone().expect("a request");
        let key = header(&head, "sec-websocket-key").expect("a key").to_owned();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        upstream.send(answer.as_bytes());
    }

    fn answer_question(&mut self, user: Option<User>) {
        let question = self.questions.pop_front().expect("a question");
        assert!(question.body.starts_with(b"token=secret-token-"), "the token is asked about");
        let body = match user {
            Some(user) => json!({
                "active": true, "iss": ISSUER, "aud": "model", "sub": user.id(), "exp": unix_seconds() + TOKEN_LIFE / 1_000,
            }),
            None => json!({ "active": false }),
        };
        question.answer.send(body.to_string().into_bytes()).expect("somebody waits");
    }

    /// Revokes as the control listener does.
    fn revoke_alice(&self) {
        let policy = &self.state.current().policy;
        let keep = policy.control.as_ref().expect("control").revocation_keep;
        let target = RevocationTarget::User(User::Alice.id().to_owned());
        let limit = policy.limits.revocations;
        let revocation =
            self.state.revocations.revoke(ISSUER, &target, unix_seconds(), keep, limit).expect("room for one");
        let state = Arc::clone(&self.state);
        tokio::spawn(async move { state.enforce_and_save(vec![revocation]).await });
    }

    /// Returns the lines of the metrics that count refused sockets.
    pub(super) fn refused_sockets(&self) -> Vec<String> {
        let metrics = self.state.metrics.text(0, false);
        let is_refusal = |line: &&str| line.starts_with("vestibule_websockets_refused_total{") && !line.ends_with(" 0");
        metrics.lines().filter(is_refusal).map(str::to_owned).collect()
    }

    /// Returns what is wrong with what the peers received, whatever the order was.
    pub(super) fn violation(&self, user: Option<User>) -> Option<String> {
        let Some(upstream) = &self.upstream else { return None };
        let texts = upstream.items.iter().map(|item| format!("{item:?}"));
        let received: String = upstream.head.iter().cloned().chain(texts).collect();
        if received.contains(TOKEN_PREFIX) {
            return Some(format!("a token reached the upstream: {received}"));
        }
        let Some(user) = user else { return Some("connected to the upstream without a user".to_owned()) };
        if let Some(head) = &upstream.head {
            let ids: Vec<&str> = headers(head, "x-user-id").collect();
            if ids != [user.id()] {
                return Some(format!("the upstream was told {ids:?}, not {user:?}"));
            }
        }
        None
    }

    /// Returns what is left of a connection that must have ended, with all its tasks and places.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut check = |name: &str, count: usize| {
            if count > 0 {
                left.push(format!("{name}: {count}"));
            }
        };
        let is_open = |peer: &FakePeer| peer.is_connected() && !peer.has_ended;
        check("client not disconnected", usize::from(is_open(&self.client)));
        check("upstream not disconnected", usize::from(self.upstream.as_ref().is_some_and(is_open)));
        check("connections", self.state.connections() as usize);
        check("pending sockets", self.state.pending_sockets.len());
        check("users' sockets", self.state.users.open_sockets());
        check("unauthenticated bytes", self.state.budget.reserved());
        check("held bytes", self.state.held_messages.reserved());
        check("tracked tasks", self.state.drain.tracked_count());
        check("questions", self.questions.len());
        check("tasks", Handle::current().metrics().num_alive_tasks().saturating_sub(self.idle_tasks));
        left
    }
}

fn headers<'h>(head: &'h str, name: &str) -> impl Iterator<Item = &'h str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    headers(head, name).next()
}
