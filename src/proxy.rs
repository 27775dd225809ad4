//! The path of every request: admit, route, authenticate, allow, prepare, forward.
//!
//! This module owns the order of the steps and which response is sent. Each step is implemented in its own module.

mod access_entry;
mod events;
mod head;
mod own;
mod warnings;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, HeaderValue};
use hyper::{Request, StatusCode};

use crate::auth::{Carrier, LastToken};
use crate::authenticate::{Authentication, Authenticator, PresentedCredential};
use crate::browser::render_for_navigation;
use crate::budget::{HTTP_CONNECTION_BYTES, MemoryReservation, PUBLIC_REQUEST_BYTES};
use crate::http::{
    Admitted, Answer, ChallengeSource, Connection, ProtectedRequest, Refusal, RequestMessage, RequestNumber,
    RequestPhase, ResponseBody, RoutedRequest, Served, UnreadBody, UpstreamRequest, add_cors_headers, admit,
    answer_preflight, prepare, prepare_preflight, prepare_public, render_refusal, replace_cors_headers, route_request,
    strip_own_set_cookie, unlisted_origin,
};
use crate::policy::Policy;
use crate::runtime::{ConnectionCount, Limit, ProxyState, Runtime};
use crate::telemetry::{AccessLine, AnsweredBy, Outcome, in_request};
use crate::websocket;

pub use head::DOCTOR_USER_AGENT;

use access_entry::AccessEntry;
use head::RequestHead;
use warnings::{warn_of_lost_upgrade, warn_of_refused_health_check, warn_of_untrusted_balancer, warn_of_upstream_401};

/// One connection of a client.
pub struct ClientConnection {
    /// The addresses and transport of the connection.
    pub connection: Connection,
    /// Whether a request is in progress on the connection.
    pub phase: Arc<RequestPhase>,
    /// The count of the connection toward `limits.connections`. A WebSocket shares it, so that it counts until the
    /// socket ends.
    pub count: Arc<ConnectionCount>,
    /// The memory of the connection, which counts until a user was verified on it.
    pub reservation: Arc<MemoryReservation>,
    /// The token that was verified last on the connection.
    pub last_token: LastToken,
}

/// Handles one request.
///
/// # Errors
/// Returns no error; every failure is a response.
pub fn handle(
    state: Arc<ProxyState>,
    caller: Arc<ClientConnection>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Answer, Infallible>> + Send {
    // This is not in the future: hyper continues to read before it polls that, and the head is complete now.
    let number = caller.phase.begin_request();
    caller.reservation.set_request_in_progress(true);
    let runtime = state.current();
    let limits = &runtime.policy.limits;
    let unread = UnreadBody::track(&request, &caller.phase, number, limits);
    let message = RequestMessage::boxed(request, limits, unread.clone());
    in_request(respond(state, runtime, caller, message, InProgress { number, unread }))
}

/// The request that a response ends.
struct InProgress {
    number: RequestNumber,
    /// The body, if there is one.
    unread: Option<UnreadBody>,
}

async fn respond(
    state: Arc<ProxyState>,
    runtime: Arc<Runtime>,
    caller: Arc<ClientConnection>,
    message: Box<RequestMessage>,
    in_progress: InProgress,
) -> Result<Answer, Infallible> {
    let policy = &runtime.policy;
    let head = RequestHead::of(message.head(), policy);
    let mut entry = AccessEntry::begin(message.head(), policy, Arc::clone(&state));
    let has_room = caller.reservation.resize(caller.reservation.bytes().max(HTTP_CONNECTION_BYTES));
    let served = match admit(message, &caller.connection, policy) {
        Ok(admitted) => {
            entry.set_client(admitted.client(), &head);
            let handler = RequestHandler { state: &state, runtime: &runtime, caller: &caller };
            if has_room {
                warn_of_untrusted_balancer(&state, admitted.client());
                handler.handle(admitted, &mut entry).await
            } else {
                handler.refuse_for_memory()
            }
        }
        Err((refusal, client)) => {
            entry.set_client(&client, &head);
            Served::Refused(refusal)
        }
    };
    warn_of_lost_upgrade(&head, &entry.line);
    let response = match served {
        Served::Upgraded(response) => {
            record_upgrade(&state, response.status(), entry);
            return Ok(response);
        }
        Served::Answered(answer) => forwarded(answer, &head, &mut entry.line, policy),
        Served::Preflight(answer) => {
            entry.line.answered_by = AnsweredBy::Vestibule;
            answer
        }
        Served::Local(mut answer) => {
            entry.line.answered_by = AnsweredBy::Vestibule;
            add_cors_headers(head.origin.as_ref(), answer.headers_mut(), policy);
            answer
        }
        Served::Refused(refusal) => refused(&refusal, &head, &mut entry.line, policy),
    };
    Ok(finished(response, entry, caller, in_progress, state.drain.is_closing()))
}

/// Counts an upgrade. Its socket writes the access line when it ends.
fn record_upgrade(state: &ProxyState, status: StatusCode, mut entry: Box<AccessEntry>) {
    entry.line.status = status.as_u16();
    if entry.line.answered_by == AnsweredBy::Nobody {
        entry.line.answered_by = AnsweredBy::Vestibule;
    }
    state.record_upgrade(&entry.line);
    entry.discard();
}

/// Makes the response of the upstream's answer.
fn forwarded(mut answer: Answer, head: &RequestHead, line: &mut AccessLine, policy: &Policy) -> Answer {
    line.answered_by = AnsweredBy::Upstream;
    strip_own_set_cookie(answer.headers_mut());
    replace_cors_headers(head.origin.as_ref(), answer.headers_mut(), policy);
    if line.carrier == Some(Carrier::Cookie.name()) {
        // A cache between the client and the proxy cannot detect that the response is for one user.
        answer.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private"));
    }
    answer
}

/// Makes the response of a refusal: a problem, or a page for a navigation.
fn refused(refusal: &Refusal, head: &RequestHead, line: &mut AccessLine, policy: &Policy) -> Answer {
    line.answered_by = AnsweredBy::Vestibule;
    refusal.record(line);
    warn_of_refused_health_check(refusal, head, line);
    let mut answer = render_refusal(refusal, &line.request_id, head.wants_problem_json).map(ResponseBody::from_proxy);
    if let Some(navigation) = &head.navigation {
        render_for_navigation(navigation, refusal, &line.request_id, policy, &mut answer);
    }
    add_cors_headers(head.origin.as_ref(), answer.headers_mut(), policy);
    answer
}

/// Completes a response: what its end is to do, and whether the connection closes after it.
fn finished(
    mut response: Answer,
    mut entry: Box<AccessEntry>,
    caller: Arc<ClientConnection>,
    in_progress: InProgress,
    is_draining: bool,
) -> Answer {
    let InProgress { number, unread } = in_progress;
    if is_draining {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let has_body = unread.is_some();
    if let Some(unread) = unread {
        unread.add_close_if_unread(response.headers_mut());
        response.body_mut().set_request_body(unread);
    }
    entry.line.status = response.status().as_u16();
    response.body_mut().on_end(Box::new(move |ended| {
        if !has_body {
            caller.phase.end_request(number);
        }
        caller.reservation.set_request_in_progress(false);
        entry.end(ended);
    }));
    response
}

/// Adds to a refusal what the route's challenge says.
fn challenging(served: Served, source: &ChallengeSource) -> Served {
    match served {
        Served::Refused(refusal) => Served::Refused(refusal.with_challenge_of(source)),
        served => served,
    }
}

/// Handles one request with the policy that it began with.
struct RequestHandler<'a> {
    state: &'a Arc<ProxyState>,
    runtime: &'a Arc<Runtime>,
    caller: &'a ClientConnection,
}

impl RequestHandler<'_> {
    async fn handle(&self, admitted: Box<Admitted>, entry: &mut AccessEntry) -> Served {
        let policy = &self.runtime.policy;
        let routed = match route_request(policy, admitted) {
            Ok(routed) => routed,
            Err(refusal) => return Served::Refused(refusal),
        };
        if let Some(route) = routed.route() {
            entry.line.route = Arc::clone(&route.label);
        }
        match routed {
            // Boxed, as below: these are rare, and their futures are larger than that of a request.
            RoutedRequest::Own(own) => Box::pin(own::serve(self.state, self.runtime, own, &mut entry.line)).await,
            RoutedRequest::Preflight(preflight) => {
                entry.line.outcome = Outcome::Preflight;
                if preflight.is_answered_here() {
                    if let Some(reason) = unlisted_origin(&preflight.head().headers, policy) {
                        entry.line.reason = reason;
                    }
                    return Served::Preflight(answer_preflight(&preflight.head().headers, policy));
                }
                self.forward(prepare_preflight(preflight, policy), entry).await
            }
            RoutedRequest::Public(public) if public.is_websocket() => {
                let context = self.context(&entry.line);
                // Boxed: the future of an upgrade is larger, and every request would have that size.
                self.count_refused_upgrade(Box::pin(websocket::serve_public(context, public, &mut entry.line)).await)
            }
            RoutedRequest::Public(public) => {
                entry.line.outcome = Outcome::Public;
                self.forward(prepare_public(public, policy), entry).await
            }
            RoutedRequest::Protected(request) if request.is_websocket() => {
                let context = self.context(&entry.line);
                let source = request.challenge_source();
                let served = Box::pin(websocket::serve(context, request, &mut entry.line)).await;
                self.count_refused_upgrade(challenging(served, &source))
            }
            RoutedRequest::Protected(request) => {
                let source = request.challenge_source();
                challenging(self.protected(request, entry).await, &source)
            }
        }
    }

    /// Refuses a request for which `limits.unauthenticated_bytes` leaves no memory.
    fn refuse_for_memory(&self) -> Served {
        self.state.record_memory_limit();
        Served::Refused(Refusal::busy(Limit::Unauthenticated.key()))
    }

    fn context(&self, line: &AccessLine) -> websocket::SocketContext {
        let ClientConnection { count, reservation, .. } = self.caller;
        websocket::SocketContext::new(self.state, self.runtime, count, reservation, line)
    }

    /// Counts an upgrade that was refused with an HTTP response.
    fn count_refused_upgrade(&self, served: Served) -> Served {
        if let Served::Refused(refusal) = &served {
            self.state.metrics.sockets.refused(refusal.outcome);
        }
        served
    }

    async fn protected(&self, request: ProtectedRequest, entry: &mut AccessEntry) -> Served {
        let policy = &self.runtime.policy;
        let ClientConnection { reservation, last_token, .. } = self.caller;
        let authenticator =
            Authenticator { state: self.state, runtime: self.runtime, reservation, last: Some(last_token) };
        let presented = PresentedCredential::extract(request, policy, Some(last_token));
        presented.count_query_token(self.state);
        let authenticated = match authenticator.authenticate(presented, &mut entry.line).await {
            Authentication::User(authenticated) => authenticated,
            Authentication::Public(public) => {
                entry.line.outcome = Outcome::Public;
                return self.forward(prepare_public(public, policy), entry).await;
            }
            Authentication::Missing(..) => return Served::Refused(Refusal::missing_token()),
            Authentication::Refused(failure) => return Served::Refused(failure.refusal(policy.verbose_errors)),
        };
        let request = authenticated.request();
        let events_grace = request.wants_event_stream().then_some(request.route().websocket.grace);
        let allowed = match authenticated.allow() {
            Ok(allowed) => allowed,
            Err(refusal) => return Served::Refused(refusal),
        };
        match prepare(allowed, policy, self.runtime.signer.as_ref()) {
            Ok((upstream_request, identity, ..)) => {
                entry.line.outcome = Outcome::Accepted;
                let mut served = self.forward(upstream_request, entry).await;
                if let Served::Answered(answer) = &mut served
                    && let Some(grace) = events_grace
                    && let Some(end) = events::abort_signal(self.state, policy, &identity, grace)
                {
                    answer.body_mut().abort_when(end);
                }
                served
            }
            Err(error) => Served::Refused(Refusal::unusable_identity(&error.to_string())),
        }
    }

    async fn forward(&self, upstream_request: UpstreamRequest, entry: &mut AccessEntry) -> Served {
        let verified = upstream_request.is_verified();
        let reservation = &self.caller.reservation;
        if !verified && !reservation.resize(reservation.bytes().max(PUBLIC_REQUEST_BYTES)) {
            return self.refuse_for_memory();
        }
        entry.received = Some(upstream_request.body_end());
        let requests = &self.state.metrics.requests;
        for header in upstream_request.stripped() {
            requests.stripped(header);
        }
        match self.runtime.upstreams.send(upstream_request).await {
            Ok((answer, took)) => {
                requests.answered(&entry.line.route, took);
                if verified && answer.status() == StatusCode::UNAUTHORIZED {
                    warn_of_upstream_401();
                }
                Served::Answered(answer)
            }
            Err(error) => {
                if let Some(reason) = error.reason() {
                    requests.upstream_failed(&entry.line.route, reason);
                }
                Served::Refused(Refusal::of_upstream(&error))
            }
        }
    }
}
