//! The load: clients that send requests and open sockets through the relay, and judge what they get.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::ledger::{Credential, Expected, Ledger, Validity};
use super::relay::{FaultyRelay, Trace};
use super::rng::Rng;
use super::traffic::{self, Kind, Target};
use super::upstream::Upstream;
use crate::support::issuer::{AUDIENCE, Issuer, Key};
use crate::support::now;

/// The number of users. Each has many requests and sockets.
const USERS: u64 = 25;
/// The time within which every request ends, with whatever outcome.
pub(crate) const BOUND: Duration = Duration::from_secs(40);
/// Half an hour in seconds: half of the largest jump of the clock.
const HALF_AN_HOUR: i64 = 1_800;
const DAY: i64 = 86_400;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What all clients share.
pub(crate) struct Load {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) relay: Arc<FaultyRelay>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) issuer: Issuer,
    /// The key that signs tokens; the last one that a client has been served with.
    pub(crate) key: Mutex<Key>,
    /// A key of nobody, under the name of the provider's own.
    pub(crate) foreign: Key,
    /// Users that are revoked, or soon will be, with their token.
    pub(crate) revoked_users: Mutex<Vec<(String, String)>>,
    /// Whether no further requests and sockets are begun.
    pub(crate) quiet: watch::Receiver<bool>,
}

/// A connection of a client.
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    pub(crate) trace: Arc<Trace>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response, as far as it came.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) cookie: Option<String>,
    /// `None` when it broke off.
    body: Option<Bytes>,
}

impl Load {
    pub(crate) fn user(rng: &mut Rng) -> String {
        format!("user-{}", rng.below(USERS))
    }

    /// Signs a token of this user that is valid from `from` to `to` seconds after now.
    fn sign(&self, key: &Key, user: &str, audience: &str, valid: (i64, i64)) -> (String, Validity) {
        let at = |offset: i64| now().saturating_add_signed(offset);
        let (from, to) = (at(valid.0), at(valid.1));
        let claims = json!({"iss": self.issuer.url, "aud": audience, "sub": user, "iat": from, "nbf": from, "exp": to});
        (key.sign(&claims), Validity::Between(from, to))
    }

    /// Returns a token that is valid whatever the clock of the proxy.
    pub(crate) fn good(&self, user: &str) -> Credential {
        let key = self.key.lock().expect("lock").clone();
        self.good_by(&key, user)
    }

    pub(crate) fn good_by(&self, key: &Key, user: &str) -> Credential {
        let (token, validity) = self.sign(key, user, AUDIENCE, (-2 * 3_600, DAY));
        Credential { kind: "valid", user: user.to_owned(), token, validity }
    }

    /// Returns a token that is expired whatever the clock of the proxy.
    pub(crate) fn expired(&self, user: &str) -> String {
        let key = self.key.lock().expect("lock").clone();
        self.sign(&key, user, AUDIENCE, (-4 * 3_600, -2 * 3_600)).0
    }

    /// Returns a token of any kind.
    pub(crate) fn any(&self, rng: &mut Rng) -> Credential {
        let user = Self::user(rng);
        let key = self.key.lock().expect("lock").clone();
        let half = HALF_AN_HOUR;
        let always = (-2 * 3_600, DAY);
        let (kind, (token, validity)) = match rng.below(100) {
            0..=59 => return self.good(&user),
            // These three depend on the proxy's clock, which some faults set an hour ahead or back.
            60..=67 => ("expired half an hour ago", self.sign(&key, &user, AUDIENCE, (-2 * 3_600, -half))),
            68..=72 => ("valid for half an hour", self.sign(&key, &user, AUDIENCE, (-2 * 3_600, half))),
            73..=76 => ("valid in half an hour", self.sign(&key, &user, AUDIENCE, (half, DAY))),
            77..=81 => ("signed by another key", self.sign(&self.foreign, &user, AUDIENCE, always)),
            82..=85 => ("for another audience", self.sign(&key, &user, "another-api", always)),
            86..=88 => {
                // The claims of one user with the signature of another's.
                let (token, _) = self.sign(&key, &user, AUDIENCE, always);
                let (other, _) = self.sign(&key, "another-user", AUDIENCE, always);
                let signature = other.rsplit_once('.').map_or("", |(_, signature)| signature);
                let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
                ("with another's signature", (format!("{signed}.{signature}"), Validity::Never))
            }
            89 => {
                let mut key = key;
                "unknown".clone_into(&mut key.id);
                ("of an unknown key", self.sign(&key, &user, AUDIENCE, always))
            }
            90..=92 => ("none", (String::new(), Validity::Never)),
            _ => {
                let revoked_users = self.revoked_users.lock().expect("lock");
                let Some((user, token)) = revoked_users.get(rng.below(revoked_users.len() as u64) as usize).cloned()
                else {
                    return self.good(&user);
                };
                let validity = Validity::Between(now() - 3_600, now().saturating_add_signed(DAY));
                return Credential { kind: "of a user who is revoked", user, token, validity };
            }
        };
        let validity = match kind {
            "signed by another key" | "for another audience" | "of an unknown key" | "none" => Validity::Never,
            _ => validity,
        };
        Credential { kind, user, token, validity }
    }

    /// Opens a connection through the relay.
    pub(crate) async fn connect(&self) -> Option<Connection> {
        let stream = timeout(BOUND, TcpStream::connect(self.relay.address)).await.ok()?.ok()?;
        let _ = stream.set_nodelay(true);
        let port = stream.local_addr().ok()?.port();
        let trace = self.relay.trace(port).await;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Some(Connection { sender, trace, task })
    }

    /// Sends requests on one connection after another, until the load ends.
    pub(crate) async fn send_requests(self: Arc<Self>, mut rng: Rng) {
        while !*self.quiet.borrow() {
            let Some(mut connection) = self.connect().await else {
                sleep(Duration::from_millis(20) + rng.up_to(Duration::from_millis(100))).await;
                continue;
            };
            // A cookie of the user who signed in on this connection.
            let mut cookie = None;
            for _ in 0..=rng.below(12) {
                if *self.quiet.borrow() || connection.sender.ready().await.is_err() {
                    break;
                }
                if rng.in_thousand(60) {
                    cookie = self.sign_in(&mut connection, &mut rng).await;
                    continue;
                }
                let credential = match &cookie {
                    Some(cookie) if rng.in_thousand(500) => Credential::clone(cookie),
                    _ => self.any(&mut rng),
                };
                if !self.request(&mut connection, &credential, &mut rng).await {
                    break;
                }
                sleep(rng.up_to(Duration::from_millis(120))).await;
            }
        }
    }

    /// Begins a session and returns its cookie as a credential.
    async fn sign_in(&self, connection: &mut Connection, rng: &mut Rng) -> Option<Credential> {
        let mut credential = self.good(&Self::user(rng));
        let request = Request::post("/.vestibule/session")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", credential.token))
            .body(Full::new(Bytes::new()).boxed_unsync())
            .expect("a request");
        let sent = Instant::now();
        let answer = self.exchange(connection, request).await;
        let status = answer.as_ref().map(|answer| answer.status);
        self.ledger.count(&format!("sign-ins answered {}", status.map_or("nothing".to_owned(), |it| it.to_string())));
        if status != Some(200) && self.is_undisturbed(&connection.trace, sent) {
            self.ledger.violation(format!("a sign-in of {} was answered {status:?}", credential.user));
        }
        answer?.cookie?.split(';').next()?.clone_into(&mut credential.token);
        credential.kind = "session cookie";
        Some(credential)
    }

    /// Whether nothing excuses a failure of a request that was sent then on this connection.
    fn is_undisturbed(&self, trace: &Trace, sent: Instant) -> bool {
        !trace.is_damaged() && !self.ledger.is_disturbed(|disturbs| disturbs.requests, sent, Instant::now())
    }

    /// Sends a request and judges its outcome. Returns whether the connection can be used again.
    async fn request(&self, connection: &mut Connection, credential: &Credential, rng: &mut Rng) -> bool {
        let number = self.ledger.next_number();
        let kind = match rng.below(100) {
            0..=54 => Kind::Short,
            55..=64 => Kind::Large,
            65..=89 => Kind::Upload,
            _ => Kind::Events,
        };
        let target = Target { kind, number };
        self.ledger.enter(number, credential, &connection.trace, kind == Kind::Upload);
        let sent = Instant::now();
        let request = build(target, credential, rng);
        let answer = self.exchange(connection, request).await;
        let elapsed = sent.elapsed();
        let outcome = answer.as_ref().map_or("no answer".to_owned(), |answer| {
            format!("{}{}", answer.status, if answer.body.is_none() { ", broken off" } else { "" })
        });
        let side = self.ledger.expected(credential, sent, sent).words();
        self.ledger.count(&format!("requests {side}: {outcome}"));
        let about =
            format!("{kind:?} {number} of {} ({}): {outcome} after {elapsed:.1?}", credential.user, credential.kind);
        if elapsed >= BOUND {
            self.ledger.violation(format!("{about}: it did not end"));
        }
        self.judge(target, credential, answer.as_ref(), sent, &connection.trace, &about);
        answer.is_some_and(|answer| answer.body.is_some()) && !connection.sender.is_closed()
    }

    fn judge(
        &self,
        target: Target,
        credential: &Credential,
        answer: Option<&Answer>,
        sent: Instant,
        trace: &Trace,
        about: &str,
    ) {
        let arrivals = self.ledger.arrivals(target.number);
        let is_corrupted = trace.is_corrupted()
            || arrivals.iter().any(|trace| trace.is_corrupted())
            // The response of a corrupted connection that the proxy could not know to be another's.
            || (arrivals.is_empty() && !self.is_undisturbed(trace, sent));
        let expected = self.ledger.expected(credential, sent, Instant::now());
        let status = answer.map(|answer| answer.status);
        if let Some(Answer { status: 200, body, .. }) = answer {
            let wanted = traffic::whole_response(target, &credential.user);
            if body.as_ref().is_some_and(|body| *body != wanted) && !is_corrupted {
                let shown =
                    body.as_ref().map_or("", |body| std::str::from_utf8(&body[..body.len().min(60)]).unwrap_or("?"));
                self.ledger.violation(format!("{about}: a wrong response, {shown:?}"));
            }
            if expected == Expected::Refused && !is_corrupted {
                self.ledger.violation(format!("{about}: an invalid token was answered 200"));
            }
        }
        if !self.is_undisturbed(trace, sent) || arrivals.iter().any(|trace| trace.is_damaged()) {
            return;
        }
        let is_whole = answer.is_some_and(|answer| answer.body.is_some());
        match expected {
            // An event stream of a user who is revoked meanwhile breaks off.
            Expected::Accepted if status != Some(200) || !is_whole => {
                self.ledger.violation(format!("{about}, and nothing was wrong"));
            }
            // 503 while the keys of an unknown signer cannot be fetched.
            Expected::Refused if !matches!(status, Some(401 | 403 | 503)) => {
                self.ledger.violation(format!("{about}, not refused with 401, 403 or 503"));
            }
            _ => {}
        }
    }

    /// Sends a request and reads its response; `None` without a response.
    pub(crate) async fn exchange(&self, connection: &mut Connection, request: Request<Body>) -> Option<Answer> {
        let response = timeout(BOUND, connection.sender.send_request(request)).await.ok()?.ok()?;
        let status = response.status().as_u16();
        let cookie = response.headers().get("set-cookie").and_then(|cookie| cookie.to_str().ok()).map(str::to_owned);
        let body = timeout(BOUND, response.into_body().collect()).await.ok().and_then(Result::ok);
        Some(Answer { status, cookie, body: body.map(http_body_util::Collected::to_bytes) })
    }

    /// Sends one short request with this credential on a connection of its own and returns the status of its answer.
    pub(crate) async fn probe(&self, credential: &Credential) -> Option<u16> {
        let mut connection = self.connect().await?;
        let target = Target { kind: Kind::Short, number: self.ledger.next_number() };
        self.ledger.enter(target.number, credential, &connection.trace, false);
        let request = head(target, credential).body(Full::new(Bytes::new()).boxed_unsync()).expect("a request");
        let answer = self.exchange(&mut connection, request).await?;
        answer.body.map(|_| answer.status)
    }

    /// Asks for a socket and returns the response.
    pub(crate) async fn upgrade(
        &self,
        connection: &mut Connection,
        target: Target,
        credential: Option<&Credential>,
    ) -> Option<Response<Incoming>> {
        let nobody = Credential { kind: "none", user: String::new(), token: String::new(), validity: Validity::Never };
        let request = head(target, credential.unwrap_or(&nobody))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(Full::new(Bytes::new()).boxed_unsync())
            .expect("a request");
        timeout(BOUND, connection.sender.send_request(request)).await.ok()?.ok()
    }
}

/// Begins a request with the fields that all have.
fn head(target: Target, credential: &Credential) -> hyper::http::request::Builder {
    let method = if target.kind == Kind::Upload { "POST" } else { "GET" };
    let builder = Request::builder()
        .method(method)
        .uri(target.path())
        .header("host", "localhost")
        .header(traffic::NUMBER, traffic::format_number(target.number));
    match credential.kind {
        "none" => builder,
        // As a page of the proxy's own origin does.
        "session cookie" => builder
            .header("cookie", credential.token.as_str())
            .header("sec-fetch-site", "same-origin")
            .header("origin", "http://localhost"),
        _ => builder.header("authorization", format!("Bearer {}", credential.token)),
    }
}

fn build(target: Target, credential: &Credential, rng: &mut Rng) -> Request<Body> {
    let mut builder = head(target, credential);
    if rng.in_thousand(200) {
        // No client may name a user.
        builder = builder.header("x-user-id", "mallory").header("x_user_id", "mallory");
    }
    let body = traffic::request_body(target);
    let body = if target.kind == Kind::Upload && rng.in_thousand(500) {
        let chunks: Vec<Bytes> = body.chunks(1 + body.len() / 4).map(Bytes::copy_from_slice).collect();
        let chunks = stream::unfold(chunks.into_iter(), |mut chunks| async move {
            let chunk = chunks.next()?;
            sleep(Duration::from_millis(3)).await;
            Some((Ok::<_, Infallible>(Frame::data(chunk)), chunks))
        });
        StreamBody::new(chunks).boxed_unsync()
    } else {
        Full::new(body).boxed_unsync()
    };
    builder.body(body).expect("a request")
}
