//! The path of a WebSocket: who it is is proved on the upgrade or by its first message, then messages
//! flow until its token ends, someone leaves, or the process stops.
//!
//! Owns everything between an admitted upgrade and the last byte of its socket: the 101, the
//! vestibule where a socket waits, the dialect, the session's state and the relay. Whether a token is
//! good is `auth`'s, what goes up on the upgrade `http`'s.

mod dialect;
mod ending;
pub mod frame;
mod handshake;
mod intake;
mod relay;
pub mod session;
mod waiting;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use hyper::header::{CONNECTION, HeaderValue, ORIGIN, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::auth::token::{BadCredential, Extracted, Problem};
use crate::auth::{Carrier, Token, User, allow, now};
use crate::http::{
    Answer, ClientStream, ProtectedRequest, PublicRequest, Refusal, ResponseBody, Sealed, TrustedHeaders, Upgraded,
    UpstreamError, seal, seal_public,
};
use crate::policy::{AuthMode, Policy, WebSocketSpec};
use crate::runtime::{ConnectionCount, Runtime, Shared};
use crate::telemetry::{AccessLine, SocketLife, access};

use ending::Ending;
use relay::{Beginning, ClosedBy, Judge, Outcome, Relay, Times};
use session::{Life, Session, Verdict};

/// What became of an upgrade.
pub enum Served {
    /// A 101; the socket writes its own access line when it ends.
    Upgraded(Answer),
    /// The upstream's own answer.
    Answered(Answer),
    /// An answer of one of our own endpoints.
    Ours(Answer),
    /// Ours, in the words of a refusal.
    Refused(Refusal),
}

/// What every socket of this request shares.
struct Context {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
    /// The place of its connection among `limits.connections`, until the socket has gone.
    count: Arc<ConnectionCount>,
    line: AccessLine,
    started: Instant,
}

impl Context {
    /// Takes a copy of the request's line: until the socket stands the request may still need its own,
    /// also when its client leaves meanwhile.
    fn new(shared: &Arc<Shared>, runtime: &Arc<Runtime>, count: &Arc<ConnectionCount>, line: &AccessLine) -> Self {
        Self {
            shared: Arc::clone(shared),
            runtime: Arc::clone(runtime),
            count: Arc::clone(count),
            line: line.clone(),
            started: Instant::now(),
        }
    }

    fn policy(&self) -> &Policy {
        &self.runtime.policy
    }

    fn times(&self, spec: &WebSocketSpec) -> Times {
        Times {
            ping_interval: spec.ping_interval,
            ping_timeout: spec.ping_timeout,
            idle_timeout: spec.idle_timeout,
            send_timeout: self.policy().limits.send_timeout,
            token_bytes: self.policy().limits.token_bytes,
            drain_code: spec.drain_code,
        }
    }

    /// Writes the socket's line.
    fn ended(mut self, outcome: &Outcome) {
        self.line.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        self.line.duration = self.started.elapsed();
        self.line.bytes_in = outcome.bytes_in;
        self.line.bytes_out = outcome.bytes_out;
        self.line.answered_by = if self.line.answered_by.is_empty() { "vestibule" } else { self.line.answered_by };
        self.line.socket = Some(SocketLife {
            close_code: outcome.code,
            closed_by: match outcome.closed_by {
                ClosedBy::Client => "client",
                ClosedBy::Upstream => "upstream",
                ClosedBy::Vestibule => "vestibule",
            },
            refreshes: outcome.refreshes,
        });
        access(&self.line, self.policy().log.access);
        drop(self.count);
    }
}

/// Serves an upgrade on a route that wants, or takes, a credential.
pub async fn serve(
    shared: &Arc<Shared>,
    runtime: &Arc<Runtime>,
    count: &Arc<ConnectionCount>,
    mut request: ProtectedRequest,
    line: &mut AccessLine,
) -> Served {
    if shared.drain.is_closing() {
        return Served::Refused(Refusal::busy("draining"));
    }
    let route = Arc::clone(request.route());
    if let Err(refusal) = handshake::check_origin(&request.head().headers, &route.websocket) {
        return Served::Refused(refusal);
    }
    let found = request.extract(&runtime.policy);
    count_query_token(shared, &request, &found);
    let Some(upgrade) = request.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    let context = |line: &AccessLine| Context::new(shared, runtime, count, line);
    match found {
        Ok(Extracted::Token(token, carrier)) => {
            line.carrier = Some(carrier.name());
            if carrier == Carrier::Query {
                tracing::debug!("the token was moved out of the URL of {}", request.head().uri.path());
            }
            with_credential(context(line), request, upgrade, token, carrier, line).await
        }
        Ok(Extracted::Nothing(proof)) => match request.without_credential(proof) {
            Ok(public) => tunnel_upgrade(context(line), public, upgrade, line).await,
            Err((request, _proof)) => {
                let (Some(dialect), true) = (&route.websocket.dialect, route.token_from.message) else {
                    return Served::Refused(Refusal::missing_token());
                };
                let limits = &runtime.policy.limits;
                let address = request.client().address;
                let Some(seat) =
                    shared.room.enter(address, limits.waiting_websockets, limits.waiting_websockets_per_address)
                else {
                    return Served::Refused(Refusal::busy("the waiting room is full"));
                };
                let subprotocol = handshake::chosen(&request.head().headers, &route.websocket);
                if subprotocol.is_none() && handshake::offers_any(&request.head().headers) {
                    tracing::warn!(route = %route.label, "no offered subprotocol is in websocket.subprotocols of this route; the socket has none");
                }
                let response = handshake::switching(&request.head().headers, subprotocol.as_ref());
                let context = context(line);
                let held = shared.drain.hold();
                let waiting = waiting::Waiting { request, seat, dialect: Arc::clone(dialect), subprotocol };
                tokio::spawn(async move {
                    waiting.run(context, upgrade).await;
                    drop(held);
                });
                Served::Upgraded(response)
            }
        },
        Err(bad) => refuse_credential(context(line), request, upgrade, bad, line),
    }
}

/// Tells who still puts tokens into URLs, once a day for each route and origin.
fn count_query_token(shared: &Shared, request: &ProtectedRequest, found: &Result<Extracted, BadCredential>) {
    let in_query = match found {
        Ok(Extracted::Token(_, carrier)) => *carrier == Carrier::Query,
        Ok(Extracted::Nothing(_)) => false,
        Err(bad) => bad.carrier == Carrier::Query,
    };
    if !in_query {
        return;
    }
    let origin = request.head().headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin =
        origin.map_or_else(|| "a client without Origin".to_owned(), |origin| origin.chars().take(256).collect());
    let route = &request.route().label;
    if shared.query_tokens.count(route, &origin, now()) {
        tracing::warn!("deprecated ?token= from {origin} on {route}; send it as the first message");
    }
}

/// Serves an upgrade on a public route: a plain tunnel.
pub async fn tunnel(
    shared: &Arc<Shared>,
    runtime: &Arc<Runtime>,
    count: &Arc<ConnectionCount>,
    mut public: PublicRequest,
    line: &mut AccessLine,
) -> Served {
    if shared.drain.is_closing() {
        return Served::Refused(Refusal::busy("draining"));
    }
    let Some(upgrade) = public.take_upgrade() else {
        return Served::Refused(Refusal::bad_request("no upgrade"));
    };
    tunnel_upgrade(Context::new(shared, runtime, count, line), public, upgrade, line).await
}

async fn tunnel_upgrade(context: Context, public: PublicRequest, upgrade: OnUpgrade, line: &mut AccessLine) -> Served {
    let route = Arc::clone(public.route());
    let sealed = seal_public(public, context.policy());
    let session = Session::unending();
    match ask(&context, sealed).await {
        Asked::Open(head, upgraded) => {
            let relaying = Relaying { session, judge: Box::new(NoRefresh), spec: route.websocket.clone() };
            Served::Upgraded(open(context, upgrade, head, upgraded, relaying))
        }
        Asked::Answered(answer) => {
            *line = context.line;
            Served::Answered(answer)
        }
        Asked::Failed(refusal, _) => {
            *line = context.line;
            Served::Refused(refusal)
        }
    }
}

/// A credential on the upgrade: verified before anything is answered, then the upstream is asked
/// first.
async fn with_credential(
    mut context: Context,
    request: ProtectedRequest,
    upgrade: OnUpgrade,
    token: Token,
    carrier: Carrier,
    line: &mut AccessLine,
) -> Served {
    let route = Arc::clone(request.route());
    let offer = handshake::first_offer(&request.head().headers);
    let accepted = handshake::switching(&request.head().headers, offer.as_ref());
    let path: Box<str> = request.head().uri.path().into();
    let door = Door { upgrade, accepted, carrier, spec: route.websocket.clone() };
    let verified = match context.runtime.verifier.verify(token).await {
        Ok(verified) => verified,
        Err(rejection) => {
            let refusal = Refusal::rejected(&rejection, context.policy().verbose_errors);
            return door.refuse(context, refusal, Ending::of(&rejection), line);
        }
    };
    context.line.user = Some(verified.identity().user_id().to_owned());
    let allowed = match request.allow(verified) {
        Ok(allowed) => allowed,
        Err(refusal) => return door.refuse(context, refusal, Ending::Denied, line),
    };
    let (sealed, identity, _token, trusted) = match seal(allowed, context.policy()) {
        Ok(sealed) => sealed,
        Err(unsendable) => {
            return door.refuse(context, Refusal::unsendable(&unsendable.to_string()), Ending::Denied, line);
        }
    };
    let session = Session::open(
        route.websocket.dialect.clone(),
        life(&route.websocket),
        identity.expires_at(),
        identity.provider().clock_skew,
        relay::now(),
    );
    let judge = RefreshJudge { shared: Arc::clone(&context.shared), path, user: identity.user(), trusted };
    drop(identity);
    match ask(&context, sealed).await {
        Asked::Open(head, upgraded) => {
            context.line.outcome = "accepted";
            let Door { upgrade, spec, .. } = door;
            let relaying = Relaying { session, judge: Box::new(judge), spec };
            Served::Upgraded(open(context, upgrade, head, upgraded, relaying))
        }
        Asked::Answered(answer) if carrier == Carrier::Header => {
            *line = context.line;
            Served::Answered(answer)
        }
        Asked::Answered(answer) => {
            let ending = upstream_ending(answer.status());
            let refusal = Refusal::upstream_failed(format!("answered {} to the upgrade", answer.status().as_u16()));
            door.refuse(context, refusal, ending, line)
        }
        Asked::Failed(refusal, ending) => door.refuse(context, refusal, ending, line),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a refused request ends here")]
fn refuse_credential(
    context: Context,
    request: ProtectedRequest,
    upgrade: OnUpgrade,
    bad: BadCredential,
    line: &mut AccessLine,
) -> Served {
    let route = Arc::clone(request.route());
    let offer = handshake::first_offer(&request.head().headers);
    let accepted = handshake::switching(&request.head().headers, offer.as_ref());
    let ending = if bad.problem == Problem::InUrl { Ending::TokenInUrl } else { Ending::InvalidToken };
    let refusal = Refusal::bad_credential(bad);
    Door { upgrade, accepted, carrier: bad.carrier, spec: route.websocket.clone() }
        .refuse(context, refusal, ending, line)
}

/// A client at the door: what is needed to refuse it in its own terms.
struct Door {
    upgrade: OnUpgrade,
    /// The 101 that a refusal in band needs.
    accepted: Answer,
    carrier: Carrier,
    spec: WebSocketSpec,
}

impl Door {
    /// HTTP where the client can read a status, a Close where it can read only that (docs/contract.md
    /// section 4.1).
    fn refuse(self, mut context: Context, refusal: Refusal, ending: Ending, line: &mut AccessLine) -> Served {
        if self.carrier == Carrier::Header {
            *line = context.line;
            return Served::Refused(refusal);
        }
        context.line.outcome = refusal.outcome;
        context.line.reason = refusal.reason;
        let (upgrade, dialect) = (self.upgrade, self.spec.dialect);
        let held = context.shared.drain.hold();
        tokio::spawn(async move {
            if let Some((tcp, _)) = client_socket(upgrade).await {
                waiting::say_goodbye(tcp, dialect.as_deref(), ending, &Vec::new()).await;
                context.ended(&Outcome::refused(ending.code(dialect.as_deref())));
            }
            drop(held);
        });
        Served::Upgraded(self.accepted)
    }
}

fn life(spec: &WebSocketSpec) -> Life {
    Life { grace: spec.grace, keep: spec.keep, max_lifetime: spec.max_lifetime }
}

/// What the upstream made of an upgrade.
enum Asked {
    Open(HeaderMap, Upgraded),
    Answered(Answer),
    Failed(Refusal, Ending),
}

async fn ask(context: &Context, sealed: Sealed) -> Asked {
    match context.runtime.upstream.upgrade(sealed).await {
        Ok(Ok((head, upgraded))) => Asked::Open(head, upgraded),
        Ok(Err(answer)) => Asked::Answered(answer),
        Err(error @ (UpstreamError::ResponseTimeout { .. } | UpstreamError::ConnectTimeout { .. })) => {
            Asked::Failed(Refusal::upstream_timeout(error.to_string()), Ending::UpstreamFailed)
        }
        Err(error) => Asked::Failed(Refusal::upstream_failed(error.to_string()), Ending::UpstreamFailed),
    }
}

/// The row of section 4.2 for an upstream that answered an upgrade with a status.
fn upstream_ending(status: StatusCode) -> Ending {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ending::UpstreamRefused,
        StatusCode::NOT_FOUND => Ending::UpstreamNotFound,
        StatusCode::SERVICE_UNAVAILABLE => Ending::UpstreamBusy,
        _ => Ending::UpstreamFailed,
    }
}

struct Relaying {
    session: Session,
    judge: Box<dyn Judge>,
    spec: WebSocketSpec,
}

/// The upstream's 101 is the client's: its accept key, subprotocol and extensions.
fn open(mut context: Context, upgrade: OnUpgrade, head: HeaderMap, upstream: Upgraded, relaying: Relaying) -> Answer {
    let extensions = relaying.spec.dialect.is_none() && head.contains_key(SEC_WEBSOCKET_EXTENSIONS);
    let mut response = Response::new(ResponseBody::ours(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = head;
    let headers = response.headers_mut();
    crate::http::strip_hop_by_hop(headers);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if relaying.spec.dialect.is_some() {
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    }
    context.line.answered_by = "upstream";
    let held = context.shared.drain.hold();
    tokio::spawn(async move {
        if let Some((client, from_client)) = client_socket(upgrade).await {
            let Relaying { session, judge, spec } = relaying;
            let beginning = Beginning {
                client,
                upstream: upstream.tcp,
                from_client,
                from_upstream: upstream.early,
                say: Vec::new(),
                extensions,
                session,
            };
            relay_to_the_end(context, beginning, judge, &spec);
        }
        drop(held);
    });
    response
}

/// The relay is a task of its own: it lives for hours, and should not carry the room that the
/// handshake needed.
fn relay_to_the_end(context: Context, beginning: Beginning, judge: Box<dyn Judge>, spec: &WebSocketSpec) {
    let closing = context.shared.drain.closing();
    let drain = Box::pin(async move { closing.cancelled().await });
    let relay = Relay::new(beginning, judge, drain, context.times(spec));
    let held = context.shared.drain.hold();
    tokio::spawn(async move {
        let outcome = relay.await;
        context.ended(&outcome);
        drop(held);
    });
}

/// The client's bare socket and what it had sent behind its upgrade.
async fn client_socket(upgrade: OnUpgrade) -> Option<(TcpStream, Vec<u8>)> {
    // An error is a client that left before its 101 was written.
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<ClientStream>>().ok()?;
    // Copied out: even an empty slice of hyper's read buffer keeps the whole of it alive.
    let early = parts.read_buf.to_vec();
    Some((parts.io.into_inner().into_tcp(), early))
}

/// Whether the upstream took the one subprotocol it was offered.
fn took(head: &HeaderMap, offered: Option<&HeaderValue>) -> bool {
    head.get(SEC_WEBSOCKET_PROTOCOL) == offered
}

/// Judges refreshes: the three functions that admitted the first token, under the policy now in
/// force.
struct RefreshJudge {
    shared: Arc<Shared>,
    path: Box<str>,
    user: User,
    trusted: TrustedHeaders,
}

impl Judge for RefreshJudge {
    fn judge(&self, token: Token) -> Pin<Box<dyn Future<Output = Verdict> + Send>> {
        let runtime = self.shared.current();
        let (path, user, trusted) = (self.path.clone(), self.user.clone(), self.trusted.clone());
        Box::pin(async move {
            let verified = match runtime.verifier.verify(token).await {
                Ok(verified) => verified,
                Err(rejection) => return Verdict::Refused(Ending::of(&rejection)),
            };
            let identity = verified.identity();
            if identity.user() != user {
                return Verdict::AnotherUser;
            }
            let matched = runtime.policy.route("GET", &path);
            let denied = matched.route.auth == AuthMode::Deny
                || allow::permits(&matched.route.require, &matched.variables, identity).is_err();
            if denied {
                return Verdict::Denied;
            }
            match TrustedHeaders::of(&runtime.policy.trusted_headers, identity) {
                Ok(headers) if headers == trusted => {
                    tracing::debug!("refresh verified: still user {}", identity.user_id());
                    Verdict::Accepted {
                        user_id: identity.user_id().to_owned(),
                        expires_at: identity.expires_at(),
                        clock_skew: identity.provider().clock_skew,
                    }
                }
                _ => Verdict::IdentityChanged,
            }
        })
    }
}

/// Nothing on a public route is a refresh.
struct NoRefresh;

impl Judge for NoRefresh {
    fn judge(&self, _token: Token) -> Pin<Box<dyn Future<Output = Verdict> + Send>> {
        Box::pin(std::future::ready(Verdict::Refused(Ending::InvalidToken)))
    }
}
