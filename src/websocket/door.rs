//! A credential on the upgrade: verified before anything is answered, then the upstream is asked first,
//! and its answer is the client's. Who is refused hears it in the terms it can read.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_EXTENSIONS, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::timeout;

use super::admission::{Admission, Needs, admit};
use super::ending::Ending;
use super::frame::close_payload;
use super::introduction::introduce;
use super::judge::{Judge, PublicJudge};
use super::relay::{Beginning, Outcome, now};
use super::session::Session;
use super::{Context, Served, client_socket, handshake, life, relay_to_the_end, waiting};
use crate::auth::{Carrier, Token};
use crate::http::{
    Answer, AuthenticatedRequest, ProtectedRequest, PublicRequest, Refusal, ResponseBody, Sealed, Upgraded, seal_public,
};
use crate::policy::{DialectSpec, WebSocketSpec};
use crate::runtime::{Runtime, Shared};
use crate::telemetry::{AccessLine, AnsweredBy, Label, Outcome as LineOutcome};

/// Serves an upgrade whose user is known.
pub(super) async fn with_user(
    mut context: Context,
    authenticated: AuthenticatedRequest,
    door: Door,
    line: &mut AccessLine,
) -> Served {
    let route = authenticated.request().route();
    let spec = route.websocket.clone();
    let needs = Needs::of(route, context.policy());
    let admission = match admit(&mut context, authenticated, &needs) {
        Ok(admission) => admission,
        Err((refusal, ending)) => return door.refuse(context, refusal, ending, line),
    };
    let Admission { sealed, token, judge, standing, .. } = admission;
    let session = Session::open(spec.dialect.clone(), life(&spec), standing, now());
    let asked = ask(context.way_up(), sealed, &needs, token.as_ref());
    let Some(asked) = while_serving(&context.shared, asked).await else {
        return door.refuse(context, Refusal::busy(DRAINING), Ending::Drain(spec.drain_code), line);
    };
    match asked {
        Asked::Open(head, upgraded) => {
            context.line.outcome = LineOutcome::Accepted;
            // The 101 is the upstream's; what becomes of the socket is a line of its own.
            line.answered_by = AnsweredBy::Upstream;
            let token = token.filter(|_| needs.token);
            let relaying = Relaying { session, judge: Box::new(judge), spec, needs, token };
            Served::Upgraded(open(context, door.upgrade, head, upgraded, relaying))
        }
        Asked::Answered(answer) if door.answers_over_http() => {
            *line = context.line;
            Served::Answered(answer)
        }
        Asked::Answered(answer) => {
            let ending = upstream_ending(answer.status());
            let refusal = Refusal::upstream_failed(upgrade_refused(answer.status()));
            door.refuse(context, refusal, ending, line)
        }
        Asked::Failed(refusal, ending) => door.refuse(context, refusal, ending, line),
    }
}

/// A public route is a plain tunnel.
pub(super) async fn tunnel(
    context: Context,
    public: PublicRequest,
    upgrade: OnUpgrade,
    line: &mut AccessLine,
) -> Served {
    let spec = WebSocketSpec { dialect: None, ..public.route().websocket.clone() };
    let judge = PublicJudge {
        shared: Arc::clone(&context.shared),
        path: public.head().uri.path().into(),
        generation: context.runtime.generation,
        _share: Arc::clone(&context.share),
    };
    let sealed = seal_public(public, context.policy());
    let needs = Needs::default();
    let asked = ask(context.way_up(), sealed, &needs, None);
    let Some(asked) = while_serving(&context.shared, asked).await else {
        *line = context.line;
        return Served::Refused(Refusal::busy(DRAINING));
    };
    match asked {
        Asked::Open(head, upgraded) => {
            let relaying = Relaying { session: Session::unending(), judge: Box::new(judge), spec, needs, token: None };
            line.answered_by = AnsweredBy::Upstream;
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

/// A client at the door: what is needed to refuse it in its own terms.
pub(super) struct Door {
    upgrade: OnUpgrade,
    /// The 101 that a refusal in band needs.
    accepted: Answer,
    carrier: Option<Carrier>,
    dialect: Option<Arc<DialectSpec>>,
    drain_code: u16,
}

impl Door {
    pub(super) fn new(request: &ProtectedRequest, upgrade: OnUpgrade, carrier: Option<Carrier>) -> Self {
        let offer = handshake::first_offer(&request.head().headers);
        let accepted = handshake::switching(&request.head().headers, offer.as_ref());
        let spec = &request.route().websocket;
        Self { upgrade, accepted, carrier, dialect: spec.dialect.clone(), drain_code: spec.drain_code }
    }

    /// The client's side of the upgrade, where nothing is refused.
    pub(super) fn into_upgrade(self) -> OnUpgrade {
        self.upgrade
    }

    /// Whoever sent a header, or a cookie, hears the answer as HTTP.
    fn answers_over_http(&self) -> bool {
        matches!(self.carrier, Some(Carrier::Header | Carrier::Cookie) | None)
    }

    pub(super) fn refuse_for_drain(self, context: Context, line: &mut AccessLine) -> Served {
        let ending = Ending::Drain(self.drain_code);
        self.refuse(context, Refusal::busy(DRAINING), ending, line)
    }

    /// HTTP where the client can read a status, a Close where it can read only that (docs/contract.md
    /// section 4.1).
    pub(super) fn refuse(
        self,
        mut context: Context,
        refusal: Refusal,
        ending: Ending,
        line: &mut AccessLine,
    ) -> Served {
        if self.answers_over_http() {
            *line = context.line;
            return Served::Refused(refusal);
        }
        refusal.note(&mut context.line);
        let (upgrade, dialect) = (self.upgrade, self.dialect);
        let held = context.shared.drain.track();
        tokio::spawn(async move {
            match client_socket(upgrade).await {
                Some((client, _)) => {
                    let dialect = dialect.as_deref();
                    let close = close_payload(ending.code(dialect), ending.reason());
                    waiting::say_goodbye(client, ending.said(dialect, &Vec::new()), &close).await;
                    context.ended(&Outcome::refused(ending.code(dialect)));
                }
                None => context.left(),
            }
            drop(held);
        });
        Served::Upgraded(self.accepted)
    }
}

/// What an upgrade is refused for that meets the drain.
pub(super) const DRAINING: &str = "draining";

/// Waits as long as the process serves. `None`: it is draining, and a provider or an upstream that does not answer must
/// not hold it.
pub(super) async fn while_serving<T>(shared: &Shared, answer: impl Future<Output = T>) -> Option<T> {
    let closing = shared.drain.closing_token();
    tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = closing.cancelled() => None,
    }
}

/// What the upstream made of an upgrade.
pub(super) enum Asked {
    Open(HeaderMap, Upgraded),
    Answered(Answer),
    Failed(Refusal, Ending),
}

/// What asking the upstream takes beside the request.
pub(super) struct WayUp {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) route: Label,
}

/// Asks the upstream, and introduces the user where it wants that.
pub(super) async fn ask(way_up: WayUp, sealed: Sealed, needs: &Needs, token: Option<&Token>) -> Asked {
    let WayUp { shared, runtime, route } = way_up;
    let requests = &shared.metrics.requests;
    for header in sealed.stripped() {
        requests.stripped(header);
    }
    let sent = Instant::now();
    let answered = runtime.upstreams.upgrade(sealed).await;
    if answered.is_ok() {
        requests.answered(&route, sent.elapsed());
    }
    let (head, upgraded) = match answered {
        Ok(Ok(open)) => open,
        Ok(Err(answer)) => return Asked::Answered(answer),
        Err(error) => {
            if let Some(reason) = error.reason() {
                requests.upstream_failed(&route, reason);
            }
            return Asked::Failed(Refusal::of_upstream(&error), Ending::UpstreamFailed);
        }
    };
    let Some((dialect, token)) = needs.introduced.as_deref().zip(token) else { return Asked::Open(head, upgraded) };
    match timeout(needs.within, introduce(upgraded, dialect, token)).await {
        Ok(Ok(upgraded)) => Asked::Open(head, upgraded),
        Ok(Err(Ending::UpstreamRefused)) => {
            Asked::Failed(Refusal::upstream_failed("the upstream refused the first message"), Ending::UpstreamRefused)
        }
        Ok(Err(ending)) => {
            Asked::Failed(Refusal::upstream_failed("the upstream did not acknowledge the first message"), ending)
        }
        Err(_) => Asked::Failed(
            Refusal::upstream_timeout(
                "the upstream did not acknowledge the first message within upstream.handshake_timeout",
            ),
            Ending::UpstreamFailed,
        ),
    }
}

/// Says which status an upstream answered an upgrade with, and what helps where it wants the token itself.
pub(super) fn upgrade_refused(status: StatusCode) -> String {
    let checks_itself = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let hint = if checks_itself { "; if it checks tokens itself, set upstream.token_to.websocket" } else { "" };
    format!("the upstream answered {} to the upgrade{hint}", status.as_u16())
}

/// The row of section 4.2 for an upstream that answered an upgrade with a status.
pub(super) fn upstream_ending(status: StatusCode) -> Ending {
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
    needs: Needs,
    token: Option<Token>,
}

/// The upstream's 101 is the client's: its accept key, subprotocol and extensions.
fn open(mut context: Context, upgrade: OnUpgrade, head: HeaderMap, upstream: Upgraded, relaying: Relaying) -> Answer {
    let is_read = relaying.spec.dialect.is_some() || relaying.needs.introduced.is_some();
    let extensions = !is_read && head.contains_key(SEC_WEBSOCKET_EXTENSIONS);
    let mut response = Response::new(ResponseBody::own(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = head;
    let headers = response.headers_mut();
    crate::http::strip_hop_by_hop(headers);
    crate::http::strip_own_set_cookie(headers);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if is_read {
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    }
    context.line.answered_by = AnsweredBy::Upstream;
    let held = context.shared.drain.track();
    tokio::spawn(async move {
        if let Some((client, from_client)) = client_socket(upgrade).await {
            let Relaying { session, judge, spec, needs, token } = relaying;
            let beginning = Beginning {
                client,
                upstream: upstream.socket,
                from_client,
                from_upstream: upstream.early,
                say: Vec::new(),
                first: None,
                extensions,
                session,
                introduced: needs.introduced,
                token,
                held_messages: context.shared.held_messages.clone(),
            };
            relay_to_the_end(context, beginning, judge, &spec);
        } else {
            context.left();
        }
        drop(held);
    });
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use hyper::Request;
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;
    use crate::auth::Revocations;
    use crate::http::Socket;
    use crate::telemetry::{self, Observed};

    /// The same as a client whose connection is reset while its 101 is written, a moment that no client can choose.
    #[tokio::test]
    async fn a_client_that_left_between_the_upstreams_101_and_ours_has_its_line() {
        static LINES: Mutex<Vec<AccessLine>> = Mutex::new(Vec::new());
        telemetry::observe(Box::new(|observed| {
            if let Observed::Access(line) = observed {
                LINES.lock().expect("lock").push(line.clone());
            }
        }));
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: any }]\n";
        let config = crate::config::load_yaml(yaml).expect("loads").config;
        let policy = crate::policy::validate(&config).expect("valid");
        let shared = Arc::new(Shared::start(policy, Revocations::default()));
        let runtime = shared.current();
        let (count, share) = shared.connect(None, &prometheus_client::metrics::gauge::Gauge::default()).expect("room");
        let (count, share) = (Arc::new(count), Arc::new(share));
        let line = AccessLine { request_id: "between".into(), outcome: LineOutcome::Accepted, ..AccessLine::default() };
        let context = Context::new(&shared, &runtime, &count, &share, &line);
        let (mut backend, upstream) = duplex(64);
        let relaying = Relaying {
            session: Session::unending(),
            judge: Box::new(PublicJudge {
                shared: Arc::clone(&shared),
                path: "/".into(),
                generation: 0,
                _share: Arc::clone(&share),
            }),
            spec: runtime.policy.routes[0].websocket.clone(),
            needs: Needs::default(),
            token: None,
        };
        let never = hyper::upgrade::on(Request::new(()));
        let upgraded = Upgraded { socket: Socket::Memory(Box::new(upstream)), early: Vec::new() };
        let _ = open(context, never, HeaderMap::new(), upgraded, relaying);
        assert_eq!(backend.read(&mut [0]).await.ok(), Some(0), "the upstream is let go");
        while shared.drain.tracked_count() > 0 {
            tokio::task::yield_now().await;
        }
        let lines = LINES.lock().expect("lock");
        let line = lines.iter().find(|line| &*line.request_id == "between").expect("its line");
        assert_eq!(
            (line.outcome, line.socket.as_ref().map(|life| life.closed_by)),
            (LineOutcome::Left, Some("client"))
        );
    }
}
