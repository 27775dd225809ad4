//! The upstream: it answers requests with their number and user, checks each arrival against the ledger, and upgrades
//! sockets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::ledger::Ledger;
use super::relay::{FaultyRelay, Trace};
use super::traffic::{self, Kind, Target};
use super::transport::Boxed;

/// The time between two events of a stream.
const EVENT_EVERY: Duration = Duration::from_millis(60);

/// The behaviour of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Serves,
    /// Requests are read and not answered until it serves again.
    Hangs,
    /// Connections are answered with what is not HTTP.
    Garbage,
}

/// The upstream's end of a socket, the user that the proxy named, and what happened to the connection.
pub(crate) struct Upgraded {
    pub(crate) stream: Boxed,
    pub(crate) user: String,
    pub(crate) trace: Arc<Trace>,
}

pub(crate) struct Upstream {
    ledger: Arc<Ledger>,
    behaviour: watch::Sender<Behaviour>,
    /// The sockets for which clients wait, by their number.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Upgraded>>>,
    relay: Mutex<Option<Arc<FaultyRelay>>>,
}

/// The connection of a request.
#[derive(Clone)]
struct Connection {
    upstream: Arc<Upstream>,
    trace: Arc<Trace>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Upstream {
    /// Starts it and returns its address.
    pub(crate) async fn start(ledger: Arc<Ledger>) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address");
        let upstream = Arc::new(Self {
            ledger,
            behaviour: watch::Sender::new(Behaviour::Serves),
            waiting: Mutex::default(),
            relay: Mutex::default(),
        });
        let this = Arc::clone(&upstream);
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let upstream = Arc::clone(&this);
                tokio::spawn(async move {
                    let relay = upstream.relay.lock().expect("lock").clone().expect("a relay");
                    let trace = relay.trace(peer.port()).await;
                    Connection { upstream, trace }.serve(stream).await;
                });
            }
        });
        (upstream, address)
    }

    /// Sets the relay through which the proxy reaches it.
    pub(crate) fn is_behind(&self, relay: Arc<FaultyRelay>) {
        *self.relay.lock().expect("lock") = Some(relay);
    }

    pub(crate) fn behaves(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// Returns where the upstream's end of a socket will arrive.
    pub(crate) fn expect(&self, number: u64) -> oneshot::Receiver<Upgraded> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().expect("lock").insert(number, sender);
        receiver
    }

    pub(crate) fn forget(&self, number: u64) {
        self.waiting.lock().expect("lock").remove(&number);
    }
}

impl Connection {
    async fn serve(self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        if *self.upstream.behaviour.borrow() == Behaviour::Garbage {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"\x15\x03\x01\0\x02\x02\x46 what is this\r\n\r\n").await;
            return;
        }
        let service = service_fn(move |request| self.clone().answer(request));
        // A connection that the proxy or a relay ended.
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let users: Vec<String> = request
            .headers()
            .get_all("x-user-id")
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        let ledger = &self.upstream.ledger;
        // A client's corrupted connection may have changed the path or this field, hardly both into valid ones.
        let named = Target::parse(request.uri().path());
        let field = request.headers().get(traffic::NUMBER).and_then(|value| value.to_str().ok());
        let number = named.map(|target| target.number).or_else(|| field.and_then(traffic::parse_number));
        if !number.is_some_and(|number| ledger.arrived(number, &users, &self.trace)) {
            ledger.count("arrivals without a known number, from corrupted connections");
        }
        let mut behaviour = self.upstream.behaviour.subscribe();
        let now = *behaviour.borrow();
        match now {
            Behaviour::Serves => {}
            Behaviour::Hangs => {
                let _ = behaviour.wait_for(|now| *now != Behaviour::Hangs).await;
            }
            Behaviour::Garbage => return Err("an upstream that is out of order".into()),
        }
        let Some(target) = named else { return Ok(empty(StatusCode::NOT_FOUND)) };
        let user = users.first().cloned().unwrap_or_default();
        if target.kind == Kind::Socket {
            return Ok(self.upgrade(request, target.number, user));
        }
        let is_chunked = request.headers().contains_key("transfer-encoding");
        let body = request.into_body().collect().await?.to_bytes();
        let wanted = traffic::request_body(target);
        if body != wanted {
            let (came, sent) = (body.len(), wanted.len());
            let what = format!("{came} bytes instead of {sent} arrived as a complete body (chunked: {is_chunked})");
            ledger.body_differs(target.number, &what);
        }
        let builder = Response::builder().header(traffic::NUMBER, target.number);
        if target.kind == Kind::Events {
            let events = stream::unfold(0, move |at| {
                let event = traffic::event(target.number, &user, at);
                async move {
                    let event = event?;
                    sleep(EVENT_EVERY).await;
                    Some((Ok(Frame::data(Bytes::from(event))), at + 1))
                }
            });
            return Ok(builder
                .header(CONTENT_TYPE, "text/event-stream")
                .body(StreamBody::new(events).boxed_unsync())?);
        }
        let answer = traffic::response_body(target, &user);
        Ok(builder.header(CONTENT_TYPE, "application/octet-stream").body(Full::new(answer).boxed_unsync())?)
    }

    fn upgrade(&self, mut request: Request<Incoming>, number: u64, user: String) -> Response<Body> {
        let trace = Arc::clone(&self.trace);
        let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
            return empty(StatusCode::BAD_REQUEST);
        };
        let waiting = self.upstream.waiting.lock().expect("lock").remove(&number);
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let (Ok(upgraded), Some(waiting)) = (upgraded.await, waiting) {
                let stream = Box::new(TokioIo::new(upgraded));
                let _ = waiting.send(Upgraded { stream, user, trace });
            }
        });
        let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
        let accept = derive_accept_key(key.as_bytes());
        for (name, value) in
            [(CONNECTION.as_str(), "Upgrade"), (UPGRADE.as_str(), "websocket"), ("sec-websocket-accept", &accept)]
        {
            let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            response.headers_mut().insert(name, value.parse().expect("a value"));
        }
        response
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = status;
    response
}
