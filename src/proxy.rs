//! The path of every request, on one screen: admit, rule, extract, verify, allow, seal, send.
//!
//! Owns the order of the steps and how a refusal is rendered. What each step decides is its own
//! module's.

mod events;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, ORIGIN, RETRY_AFTER, SEC_WEBSOCKET_VERSION,
    USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};

use crate::auth::{Carrier, LastToken};
use crate::authenticate::{Authentication, Authenticator, Presented};
use crate::browser::{ClientFile, Navigation, answer_navigation, is_login_path, serve_login, serve_session_endpoint};
use crate::budget::{HTTP_CONNECTION_BYTES, MemoryReservation, PUBLIC_REQUEST_BYTES};
use crate::http::{
    Admitted, Answer, BodyEnd, Challenge, ClientAddress, ClientBody, Connection, Fate, OwnRequest, Phase,
    ProtectedRequest, Refusal, ResponseBody, Ruled, Sealed, Sharing, UnreadBody, admit, answer_preflight, let_read,
    problem, replace_cors, rule, seal, seal_preflight, seal_public, strip_own_set_cookie, unlisted_origin,
};
use crate::policy::Policy;
use crate::runtime::{ConnectionCount, Limit, Runtime, Shared};
use crate::telemetry::{AccessLine, NO_ROUTE, OWN_ROUTE};
use crate::websocket::{self, Served};

/// One connection of a client's.
pub struct Caller {
    /// Whose it is.
    pub connection: Connection,
    /// Whether a request is under way on it.
    pub phase: Arc<Phase>,
    /// Its place among `limits.connections`; a socket takes a share in it along.
    pub count: Arc<ConnectionCount>,
    /// What it holds as long as nobody was verified on it.
    pub share: Arc<MemoryReservation>,
    /// The token it presented last.
    pub last_token: LastToken,
}

/// Answers one request.
///
/// # Errors
/// Never: whatever goes wrong is an answer.
pub fn handle(
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Answer, Infallible>> + Send {
    // At once: hyper reads on before it asks for the answer, and the head is complete.
    caller.phase.busy();
    caller.share.set_serving(true);
    answered(shared, caller, request)
}

async fn answered(shared: Arc<Shared>, caller: Arc<Caller>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let runtime = shared.current();
    let head = Head::of(&request, &runtime.policy);
    let limits = &runtime.policy.limits;
    let unread = UnreadBody::of(&request, &caller.phase, limits);
    let request =
        request.map(|incoming| ClientBody::new(incoming, limits.body_bytes, limits.body_idle_timeout, unread.clone()));
    let mut entry = Entry::new(head.line(&runtime.policy), head.started, Arc::clone(&shared));
    let has_room = caller.share.resize(caller.share.bytes().max(HTTP_CONNECTION_BYTES));
    let served = match admit(request, &caller.connection, &runtime.policy) {
        Ok(admitted) if !has_room => {
            named(&mut entry.line, admitted.client());
            shared.gave_way();
            Served::Refused(Refusal::busy(Limit::Unauthenticated.key()))
        }
        Ok(admitted) => {
            named(&mut entry.line, admitted.client());
            warn_of_balancer(&shared, admitted.client());
            let desk = Desk { shared: &shared, runtime: &runtime, caller: &caller };
            desk.answer(admitted, &mut entry).await
        }
        Err((refusal, client)) => {
            named(&mut entry.line, &client);
            Served::Refused(refusal)
        }
    };
    let mut response = match served {
        Served::Upgraded(response) => {
            entry.line.status = response.status().as_u16();
            if entry.line.answered_by.is_empty() {
                entry.line.answered_by = "vestibule";
            }
            shared.metrics.requests.counted(&entry.line);
            entry.given_away();
            return Ok(response);
        }
        Served::Answered(mut answer) => {
            entry.line.answered_by = "upstream";
            strip_own_set_cookie(answer.headers_mut());
            replace_cors(head.origin.as_ref(), answer.headers_mut(), &runtime.policy);
            if entry.line.carrier == Some(Carrier::Cookie.name()) {
                // A cache between us and the client would not see that this was one user's answer.
                answer.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private"));
            }
            answer
        }
        Served::Preflight(answer) => {
            entry.line.answered_by = "vestibule";
            answer
        }
        Served::Ours(mut answer) => {
            entry.line.answered_by = "vestibule";
            let_read(head.origin.as_ref(), answer.headers_mut(), &runtime.policy);
            answer
        }
        Served::Refused(refusal) => {
            entry.line.answered_by = "vestibule";
            refusal.note(&mut entry.line);
            warn_of_refusal(&refusal, &head);
            let mut answer = rendered(&refusal, &entry.line.request_id, head.wants_problem_json);
            if let Some(navigation) = &head.navigation {
                answer_navigation(navigation, &refusal, &entry.line.request_id, &runtime.policy, &mut answer);
            }
            let_read(head.origin.as_ref(), answer.headers_mut(), &runtime.policy);
            answer
        }
    };
    if shared.drain.is_closing() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let has_body = unread.is_some();
    if let Some(unread) = unread {
        unread.answer_is_ready(response.headers_mut());
        response.body_mut().answers(unread);
    }
    entry.line.status = response.status().as_u16();
    response.body_mut().on_end(Box::new(move |bytes, fate| {
        // The whole entry moves in here and is written when this is done.
        let mut entry = entry;
        if !has_body {
            caller.phase.idle();
        }
        caller.share.set_serving(false);
        entry.line.bytes_out = bytes;
        match fate {
            Fate::Cut(reason) => entry.line.outcome = reason,
            Fate::BrokenOff if entry.line.outcome == "accepted" => entry.line.outcome = "broken_off",
            Fate::BrokenOff | Fate::Whole => {}
        }
    }));
    Ok(response)
}

/// An access line on its way: written when it is dropped, so that a request whose client left before
/// it was answered has one too.
struct Entry {
    line: AccessLine,
    started: Instant,
    shared: Arc<Shared>,
    received: Option<BodyEnd>,
    written: bool,
}

impl Entry {
    fn new(line: AccessLine, started: Instant, shared: Arc<Shared>) -> Self {
        Self { line, started, shared, received: None, written: true }
    }

    /// A socket writes its own line when it ends.
    fn given_away(&mut self) {
        self.written = false;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.written {
            return;
        }
        if self.line.status == 0 {
            // Nobody got an answer; the status is the one that operators know for this.
            self.line.status = CLIENT_LEFT;
            self.line.outcome = "client_left";
            self.line.answered_by = "vestibule";
        }
        self.line.duration = self.started.elapsed();
        self.line.bytes_in = self.received.as_ref().map_or(0, BodyEnd::bytes);
        self.shared.finished(&self.line);
    }
}

/// Where sessions begin and end.
const SESSION: &str = "/.vestibule/session";

/// What nginx taught everyone to read as "the client closed the request".
const CLIENT_LEFT: u16 = 499;

/// What one request is answered with.
struct Desk<'a> {
    shared: &'a Arc<Shared>,
    runtime: &'a Arc<Runtime>,
    caller: &'a Caller,
}

impl Desk<'_> {
    async fn answer(&self, admitted: Admitted, entry: &mut Entry) -> Served {
        let policy = &self.runtime.policy;
        let ruled = match rule(policy, admitted) {
            Ok(ruled) => ruled,
            Err(refusal) => return Served::Refused(refusal),
        };
        match ruled {
            Ruled::Own(own) if own.head().uri.path() == SESSION => {
                entry.line.route = Arc::clone(&OWN_ROUTE);
                match serve_session_endpoint(self.shared, self.runtime, own, &mut entry.line).await {
                    Ok(answer) => Served::Ours(answer),
                    Err(refusal) => Served::Refused(refusal),
                }
            }
            Ruled::Own(own) if is_login_path(own.head().uri.path()) => {
                entry.line.route = Arc::clone(&OWN_ROUTE);
                match Box::pin(serve_login(self.shared, self.runtime, own, &mut entry.line)).await {
                    Ok(answer) => Served::Ours(answer),
                    Err(refusal) => Served::Refused(refusal),
                }
            }
            Ruled::Own(own) => serve_own(self.shared, &own, &mut entry.line),
            Ruled::Preflight(preflight) => {
                entry.line.route = Arc::clone(&preflight.route().label);
                entry.line.outcome = "preflight";
                if preflight.is_ours() {
                    if let Some(reason) = unlisted_origin(&preflight.head().headers, policy) {
                        entry.line.reason = reason;
                    }
                    return Served::Preflight(answer_preflight(&preflight.head().headers, policy));
                }
                self.forward(seal_preflight(preflight, policy), entry).await
            }
            Ruled::Public(public) if public.is_websocket() => {
                entry.line.route = Arc::clone(&public.route().label);
                let context = self.context(&entry.line);
                // Apart: an upgrade needs more room than a request, and every request would keep it.
                self.upgraded(Box::pin(websocket::tunnel(context, public, &mut entry.line)).await)
            }
            Ruled::Public(public) => {
                entry.line.route = Arc::clone(&public.route().label);
                entry.line.outcome = "public";
                let share = &self.caller.share;
                if !share.resize(share.bytes().max(PUBLIC_REQUEST_BYTES)) {
                    self.shared.gave_way();
                    return Served::Refused(Refusal::busy(Limit::Unauthenticated.key()));
                }
                self.forward(seal_public(public, policy), entry).await
            }
            Ruled::Protected(request) if request.is_websocket() => {
                entry.line.route = Arc::clone(&request.route().label);
                let context = self.context(&entry.line);
                self.upgraded(Box::pin(websocket::serve(context, request, &mut entry.line)).await)
            }
            Ruled::Protected(request) => {
                entry.line.route = Arc::clone(&request.route().label);
                self.protected(request, entry).await
            }
        }
    }

    fn context(&self, line: &AccessLine) -> websocket::Context {
        let Caller { count, share, .. } = self.caller;
        websocket::Context::new(self.shared, self.runtime, count, share, line)
    }

    /// A socket that was refused as HTTP counts among those that never came to be.
    fn upgraded(&self, served: Served) -> Served {
        if let Served::Refused(refusal) = &served {
            self.shared.metrics.sockets.refused(refusal.outcome);
        }
        served
    }

    async fn protected(&self, request: ProtectedRequest, entry: &mut Entry) -> Served {
        let policy = &self.runtime.policy;
        let Caller { share, last_token, .. } = self.caller;
        let authenticator = Authenticator { shared: self.shared, runtime: self.runtime, share, last: Some(last_token) };
        let presented = Presented::extract(request, policy);
        let authenticated = match authenticator.authenticate(presented, &mut entry.line).await {
            Authentication::User(authenticated) => authenticated,
            Authentication::Public(public) => {
                entry.line.outcome = "public";
                return self.forward(seal_public(public, policy), entry).await;
            }
            Authentication::Missing(..) => return Served::Refused(Refusal::missing_token()),
            Authentication::Refused(failure) => return Served::Refused(failure.refusal(policy.verbose_errors)),
        };
        let request = authenticated.request();
        let events_grace = request.wants_events().then_some(request.route().websocket.grace);
        let allowed = match authenticated.allow() {
            Ok(allowed) => allowed,
            Err(refusal) => return Served::Refused(refusal),
        };
        match seal(allowed, policy, self.runtime.signer.as_ref()) {
            Ok((sealed, identity, ..)) => {
                entry.line.outcome = "accepted";
                let mut served = self.forward(sealed, entry).await;
                if let Served::Answered(answer) = &mut served
                    && let Some(grace) = events_grace
                    && let Some(end) = events::end(self.shared, policy, &identity, grace)
                {
                    answer.body_mut().cut_when(end);
                }
                served
            }
            Err(unsendable) => Served::Refused(Refusal::unsendable(&unsendable.to_string())),
        }
    }

    async fn forward(&self, sealed: Sealed, entry: &mut Entry) -> Served {
        let verified = sealed.is_verified();
        entry.received = Some(sealed.body_end());
        let requests = &self.shared.metrics.requests;
        for header in sealed.stripped() {
            requests.stripped(header);
        }
        let sent = Instant::now();
        match self.runtime.upstreams.send(sealed).await {
            Ok(answer) => {
                requests.answered(&entry.line.route, sent.elapsed());
                if verified && answer.status() == StatusCode::UNAUTHORIZED {
                    once_a_minute(&UPSTREAM_401, || {
                        tracing::warn!(
                            "upstream answered 401 to a request whose token was verified; if it checks tokens itself, set upstream.token_to.http: header"
                        );
                    });
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

/// Our own endpoints. Anything else under the prefix is 404.
fn serve_own(shared: &Arc<Shared>, own: &OwnRequest, line: &mut AccessLine) -> Served {
    line.route = Arc::clone(&OWN_ROUTE);
    let file = ClientFile::at(own.head().uri.path());
    let (status, word) = match own.head().uri.path() {
        _ if file.is_some() => (StatusCode::OK, ""),
        "/.vestibule/healthz" => (StatusCode::OK, "ok\n"),
        "/.vestibule/readyz" if shared.is_ready() => (StatusCode::OK, "ready\n"),
        "/.vestibule/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        _ => return Served::Refused(Refusal::not_found()),
    };
    if !matches!(own.head().method, Method::GET | Method::HEAD) {
        return Served::Refused(Refusal::method_not_allowed(Some("GET, HEAD")));
    }
    if let Some(file) = file {
        line.outcome = "own";
        return Served::Ours(file.answer(&own.head().headers));
    }
    line.quiet = true;
    line.outcome = "own";
    let mut response = Response::new(ResponseBody::ours(word));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Served::Ours(response)
}

/// What of a request's head is needed after the request has gone on.
struct Head {
    started: Instant,
    method: Method,
    path: String,
    query: Option<String>,
    user_agent: Option<String>,
    wants_problem_json: bool,
    origin: Option<HeaderValue>,
    /// Looked for only where people see pages.
    navigation: Option<Navigation>,
}

impl Head {
    fn of(request: &Request<Incoming>, policy: &Policy) -> Self {
        let headers = request.headers();
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Self {
            started: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
            user_agent: text(USER_AGENT).filter(|agent| is_health_checker(agent)).map(str::to_owned),
            wants_problem_json: text(ACCEPT).is_some_and(|accept| accept.contains("application/problem+json")),
            origin: headers.get(ORIGIN).cloned(),
            navigation: if policy.browser.is_on() {
                let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
                Navigation::of(request.method(), target, headers)
            } else {
                None
            },
        }
    }

    fn line(&self, policy: &Policy) -> AccessLine {
        let path = match &self.query {
            Some(query) if policy.log.query => format!("{}?{}", self.path, masked(query, policy)),
            _ => self.path.clone(),
        };
        AccessLine {
            method: self.method.clone(),
            path: path.into(),
            route: Arc::clone(&NO_ROUTE),
            quiet: policy.log.quiet.contains(&self.path),
            ..AccessLine::default()
        }
    }
}

fn named(line: &mut AccessLine, client: &ClientAddress) {
    line.client = client.address.to_string().into();
    line.request_id = client.request_id.as_str().into();
}

/// Values whose parameter's name sounds like a secret are not logged.
fn masked(query: &str, policy: &Policy) -> String {
    let carries_tokens = |name: &str| {
        policy.routes.iter().filter_map(|route| route.token_from.query.as_ref()).any(|query| query.is_named(name))
    };
    masked_where(query, carries_tokens)
}

fn masked_where(query: &str, carries_tokens: impl Fn(&str) -> bool) -> String {
    const SECRET: [&str; 14] = [
        "token",
        "auth",
        "key",
        "code",
        "state",
        "secret",
        "pass",
        "pwd",
        "jwt",
        "session",
        "ticket",
        "sig",
        "cred",
        "assertion",
    ];
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    // Some servers take `;` for `&`.
    let pairs = query.split_inclusive(['&', ';']).map(|pair| {
        let separator = if pair.ends_with(['&', ';']) { &pair[pair.len() - 1..] } else { "" };
        let Some((name, _)) = pair.split_once('=') else { return pair.to_owned() };
        let configured = carries_tokens(&decoded(name));
        let read = decoded(&decoded(name)).to_ascii_lowercase();
        let secret = configured || read.contains("_xsrf") || SECRET.iter().any(|word| read.contains(word));
        if secret { format!("{name}=[masked]{separator}") } else { pair.to_owned() }
    });
    pairs.collect()
}

fn is_health_checker(agent: &str) -> bool {
    ["ELB-HealthChecker", "kube-probe", "GoogleHC", "Consul Health Check"].iter().any(|known| agent.contains(known))
}

static UPSTREAM_401: AtomicU64 = AtomicU64::new(0);
static HEALTH_CHECKER: AtomicU64 = AtomicU64::new(0);

/// Says a thing that would otherwise fill the log, once a minute.
fn once_a_minute(last: &AtomicU64, say: impl FnOnce()) {
    let now = crate::auth::unix_seconds();
    let before = last.load(Ordering::Relaxed);
    if now >= before + 60 && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        say();
    }
}

/// A peer whose clients cannot be told apart, because nobody said that it may name them.
fn warn_of_balancer(shared: &Shared, client: &ClientAddress) {
    if client.shared == Sharing::Balancer && shared.addresses.is_a_new_balancer(client.address) {
        let address = client.address;
        tracing::warn!(
            "{address} sends X-Forwarded-For but is not in trusted_proxies: all its clients share one address, and the backend sees {}. Add trusted_proxies: [private_ranges]",
            client.scheme
        );
    }
}

fn warn_of_refusal(refusal: &Refusal, head: &Head) {
    // It only speaks; a user agent never grants.
    if let Some(agent) = &head.user_agent {
        once_a_minute(&HEALTH_CHECKER, || {
            let (method, path, status) = (&head.method, &head.path, refusal.status.as_u16());
            tracing::warn!(
                "health checker refused: {method} {path} from {agent} got {status}; add routes: [{{ path: {path}, auth: none }}] or ask /.vestibule/readyz"
            );
        });
    }
}

/// A refusal as JSON (RFC 9457), with the headers of its row.
fn rendered(refusal: &Refusal, request_id: &str, wants_problem_json: bool) -> Answer {
    let mut response = Response::new(ResponseBody::ours(problem(refusal, request_id)));
    *response.status_mut() = refusal.status;
    let content_type = if wants_problem_json { "application/problem+json" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let challenge = match refusal.challenge {
        Challenge::Absent => None,
        Challenge::Realm => Some("Bearer realm=\"vestibule\"".to_owned()),
        Challenge::InvalidRequest => Some("Bearer error=\"invalid_request\"".to_owned()),
        Challenge::InvalidToken => {
            Some(format!("Bearer error=\"invalid_token\", error_description=\"{}\"", quotable(&refusal.detail)))
        }
        Challenge::InsufficientScope => Some("Bearer error=\"insufficient_scope\"".to_owned()),
    };
    if let Some(challenge) = challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok()) {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = refusal.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    if refusal.status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    if refusal.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(id) = HeaderValue::try_from(request_id) {
        headers.insert("x-request-id", id);
    }
    response
}

/// RFC 6750 section 3 allows `error_description` neither quotes nor backslashes nor non-ASCII.
fn quotable(text: &str) -> String {
    text.chars().map(|c| if (' '..='~').contains(&c) && c != '"' && c != '\\' { c } else { '\'' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_query_are_masked() {
        assert_eq!(
            masked_where("a=1&token=x&api%5Fkey=y&State=z&b&way=w&c=1;token=v;d&%2574oken=u", |name| name == "way"),
            "a=1&token=[masked]&api%5Fkey=[masked]&State=[masked]&b&way=[masked]&c=1;token=[masked];d&%2574oken=[masked]"
        );
    }
}
