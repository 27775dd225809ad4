//! The vestibule: a socket waits here until its first message proves who it is, and is led to the
//! upstream. Three clocks run in turn: the message, the verdict, the upstream's 101.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until, timeout};

use super::admission::{Admission, Needs, admit};
use super::dialect;
use super::door::{Asked, WayUp, ask, upgrade_refused, upstream_ending};
use super::ending::Ending;
use super::frame::{Opcode, close_payload, encode};
use super::intake::{Arrived, Intake, MESSAGE_BYTES};
use super::judge::{Judge as _, RefreshJudge};
use super::relay::{Beginning, Outcome, PING, Times, mask, now};
use super::session::{Action, Event, Session, Verdict};
use super::template::{Values, render};
use super::{Context, client_socket, life, relay_to_the_end, took};
use crate::auth::{Carrier, NoCredential, Token, Verified};
use crate::authenticate::{Authenticator, Unverified, verify_by_policy_in_force};
use crate::budget::CLOSING_SOCKET_BYTES;
use crate::http::{ProtectedRequest, Sealed, Socket, Upgraded};
use crate::policy::DialectSpec;
use crate::runtime::{Ear, Seat};
use crate::telemetry::{AnsweredBy, Outcome as LineOutcome};

/// A client has this long to take our Close and answer it.
const LINGER: Duration = Duration::from_secs(5);
/// In `token-field` the first message is the application's own, so it may fill the whole buffer.
const FIELD_MESSAGE_BYTES: usize = 64 << 10;
/// Without `auth_timeout` a first message that has begun must be complete within this.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// Bytes read at a time; a token is seldom longer.
const READ: usize = 4 << 10;

/// A socket that was given its 101 and has said nothing yet.
pub(super) struct Waiting {
    pub(super) request: ProtectedRequest,
    /// Nothing was presented on its upgrade.
    pub(super) _proof: NoCredential,
    pub(super) seat: Seat,
    pub(super) dialect: Arc<DialectSpec>,
    pub(super) subprotocol: Option<HeaderValue>,
}

type Verdicts = Pin<Box<dyn Future<Output = Result<Verified, Unverified>> + Send>>;
type Dial = Pin<Box<dyn Future<Output = (Asked, Option<Token>)> + Send>>;

/// What is under way beside reading.
enum Step {
    Nothing,
    Verifying(Verdicts),
    Dialling(Dial),
}

enum Happened {
    Read(std::io::Result<usize>),
    Deadline,
    /// Nothing was heard for a while.
    Silence,
    Evicted,
    Rung(Ear),
    GivesWay,
    Verdict(Result<Verified, Unverified>),
    Dialled(Asked, Option<Token>),
}

/// How waiting ended.
enum End {
    /// The upstream stands; these are said first.
    Open(Upgraded, Vec<String>, Option<Token>),
    Refused(Ending),
    /// The client closed, with its Close's payload, or left.
    Left(Option<Vec<u8>>),
}

struct Vestibule {
    session: Session,
    /// That limits count by.
    address: Option<IpAddr>,
    intake: Intake,
    request: Option<ProtectedRequest>,
    sealed: Option<(Sealed, Option<Token>)>,
    judge: Option<RefreshJudge>,
    subprotocol: Option<HeaderValue>,
    needs: Needs,
    say: Vec<String>,
    /// What of the first message goes on before everything else.
    forward: Option<String>,
    /// Further lines of the first message.
    behind: String,
}

impl Waiting {
    pub(super) async fn run(self, mut context: Context, upgrade: OnUpgrade) {
        let Waiting { mut request, seat, dialect, subprotocol, .. } = self;
        let spec = request.route().websocket.clone();
        let needs = Needs::of(request.route(), context.policy());
        let session = Session::waiting(Arc::clone(&dialect), spec.auth_timeout, life(&spec), now());
        let Some((mut client, early)) = client_socket(upgrade).await else {
            return context.left();
        };
        let mut intake = Intake::new(if dialect.field.is_some() { FIELD_MESSAGE_BYTES } else { MESSAGE_BYTES });
        intake.push(&early);
        if let Some(greeting) = &dialect.greeting {
            // The first bytes on a new socket always find room; one that is torn finds out below.
            let _ = at_once(&mut client, Opcode::Text, render(greeting, &Values::default()).as_bytes());
        }
        request.offer(subprotocol.as_ref());
        context.line.carrier = Some(Carrier::Message.name());
        let mut room = Vestibule {
            session,
            address: request.client().limited_address(),
            intake,
            request: Some(request),
            sealed: None,
            judge: None,
            subprotocol,
            needs,
            say: Vec::new(),
            forward: None,
            behind: String::new(),
        };
        let end = room.wait(&mut context, &mut client, &seat).await;
        drop(seat);
        match end {
            End::Open(upstream, say, token) => {
                let Vestibule { session, intake, judge, needs, forward, behind, .. } = room;
                let Some(judge) = judge else { return };
                let mut from_client = Vec::new();
                if !behind.trim().is_empty() {
                    // Lines behind the first are a message like any other, and looked at as one.
                    encode(&mut from_client, Opcode::Text, behind.as_bytes(), Some(mask()));
                }
                from_client.extend_from_slice(&intake.into_rest());
                context.line.answered_by = AnsweredBy::Upstream;
                context.line.outcome = LineOutcome::Accepted;
                let beginning = Beginning {
                    client,
                    upstream: upstream.socket,
                    from_client,
                    from_upstream: upstream.early,
                    say,
                    first: forward,
                    extensions: false,
                    session,
                    introduced: needs.introduced,
                    token,
                    held_messages: context.shared.held_messages.clone(),
                };
                relay_to_the_end(context, beginning, Box::new(judge), &spec);
            }
            End::Refused(ending) => {
                if context.line.outcome == LineOutcome::Undecided {
                    context.line.outcome = LineOutcome::Refused(ending.outcome());
                }
                tracing::debug!(reason = ending.reason(), "socket refused");
                // In an application's own messages nothing is said to a page that has said nothing: it would show
                // the error of a socket that it has forgotten.
                let is_silent = dialect.field.is_some() && !room.intake.has_spoken();
                let said = if is_silent { None } else { ending.said(Some(&dialect), room.session.answering()) };
                // Neither its request nor what it sent is needed while it takes our Close.
                drop(room);
                context.share.resize(CLOSING_SOCKET_BYTES);
                say_goodbye(client, said, &close_payload(ending.code(Some(&dialect)), ending.reason())).await;
                context.ended(&Outcome::refused(ending.code(Some(&dialect))));
            }
            End::Left(close) => {
                let code =
                    close.as_deref().and_then(|payload| payload.first_chunk()).map(|code| u16::from_be_bytes(*code));
                if let Some(payload) = close {
                    // RFC 6455 section 5.5.1: a Close is answered with its own code.
                    goodbye(client, Vec::new(), &payload).await;
                }
                context.line.outcome = LineOutcome::Left;
                context.ended(&Outcome::left(code));
            }
        }
    }
}

impl Vestibule {
    async fn wait(&mut self, context: &mut Context, client: &mut Socket, seat: &Seat) -> End {
        // Also those that wait leave one after the other.
        let mut bell = context.shared.bell.listen_in_turn();
        let share = Arc::clone(&context.share);
        // Its request, with the buffer that its head came in.
        let cost = share.bytes();
        share.set_serving(false);
        let drain_code = self.request.as_ref().map_or(1012, |request| request.route().websocket.drain_code);
        let mut step = Step::Nothing;
        let mut scratch = vec![0; READ];
        let spec = self.request.as_ref().map(|request| &request.route().websocket);
        // A socket that may wait for as long as it likes is asked whether it is still there.
        let mut silence = spec.filter(|spec| spec.auth_timeout.is_none()).map(|spec| Silence {
            times: context.times(spec),
            heard: Instant::now(),
            pinged: None,
            begun: None,
        });
        loop {
            match self.look(client, seat) {
                Ok(None) => {}
                Ok(Some(First::Message(text))) => {
                    let event = match self.read_first(text, context, client) {
                        Ok(Some(event)) => event,
                        Ok(None) => continue,
                        Err(ending) => return End::Refused(ending),
                    };
                    if let Some(end) = self.act(event, context, &mut step) {
                        return end;
                    }
                    continue;
                }
                Ok(Some(First::Closed(payload))) => return End::Left(Some(payload)),
                Err(ending) => {
                    context.line.outcome = LineOutcome::Refused("malformed");
                    return End::Refused(ending);
                }
            }
            let deadline =
                self.session.deadline().map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now())));
            let waits = matches!(step, Step::Nothing);
            let quiet = silence.as_mut().filter(|_| waits).map(|silence| silence.until(self.intake.is_in_message()));
            let has_room = self.intake.has_room();
            let happened = tokio::select! {
                biased;
                ear = &mut bell => Happened::Rung(ear),
                () = seat.evicted(), if matches!(step, Step::Nothing) => Happened::Evicted,
                () = share.evicted() => Happened::GivesWay,
                happened = step.next() => happened,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Happened::Deadline,
                () = sleep_until(quiet.unwrap_or_else(Instant::now)), if quiet.is_some() => Happened::Silence,
                read = client.read(&mut scratch), if has_room => Happened::Read(read),
            };
            let event = match happened {
                Happened::Read(Ok(0) | Err(_)) => return End::Left(None),
                Happened::Read(Ok(length)) => {
                    self.intake.push(&scratch[..length]);
                    if let Some(silence) = &mut silence {
                        (silence.heard, silence.pinged) = (Instant::now(), None);
                    }
                    share.resize(cost + self.intake.held());
                    continue;
                }
                Happened::Silence => match silence.as_mut().map(Silence::due) {
                    Some(Due::Ping) => {
                        self.intake.expect_pong();
                        match at_once(client, Opcode::Ping, PING) {
                            Ok(()) => continue,
                            Err(ending) => return End::Refused(ending),
                        }
                    }
                    Some(Due::TooSlow) => Event::End(Ending::Timeout),
                    Some(Due::Gone) | None => return End::Left(None),
                },
                Happened::Deadline => Event::Deadline { seen: None },
                Happened::Evicted => Event::End(Ending::TooManyConnections),
                Happened::Rung(ear) if ear.must_leave() => Event::End(Ending::Drain(drain_code)),
                Happened::Rung(ear) => {
                    bell = ear.listen();
                    continue;
                }
                Happened::GivesWay => {
                    context.shared.gave_way();
                    return End::Refused(Ending::TooManyConnections);
                }
                Happened::Verdict(verdict) => {
                    step = Step::Nothing;
                    self.verdict(verdict, context)
                }
                Happened::Dialled(Asked::Open(head, upgraded), token) => {
                    if !took(&head, self.subprotocol.as_ref()) {
                        "the upstream did not take the subprotocol the client was given"
                            .clone_into(&mut context.line.reason);
                        return End::Refused(Ending::UpstreamFailed);
                    }
                    for action in self.session.on(Event::UpstreamOpen, now()) {
                        if let Action::Say(text) = action {
                            self.say.push(text);
                        }
                    }
                    let token = token.filter(|_| self.needs.token);
                    return End::Open(upgraded, std::mem::take(&mut self.say), token);
                }
                Happened::Dialled(Asked::Answered(answer), _) => {
                    context.line.outcome = LineOutcome::Refused("upstream_refused");
                    context.line.reason = upgrade_refused(answer.status());
                    Event::End(upstream_ending(answer.status()))
                }
                Happened::Dialled(Asked::Failed(refusal, ending), _) => {
                    refusal.note(&mut context.line);
                    Event::End(ending)
                }
            };
            if let Some(end) = self.act(event, context, &mut step) {
                return end;
            }
        }
    }

    /// Reads the first message. `None`: it was an application's ping, which has been answered, and what
    /// follows is the first message.
    fn read_first(&mut self, text: Vec<u8>, context: &Context, client: &mut Socket) -> Result<Option<Event>, Ending> {
        let limit = context.policy().limits.token_bytes;
        // The intake has seen that it is UTF-8.
        let mut text = String::from_utf8(text).map_err(|_| Ending::NotUtf8)?;
        let dialect = self.session.dialect().cloned().ok_or(Ending::InvalidMessage)?;
        let with_token = self.needs.first_message;
        loop {
            let read = dialect::first(&dialect, &text, limit, with_token);
            let dialect::First::Ping(reply) = read.first else {
                (self.forward, self.behind) = (read.forward, read.behind);
                return Ok(Some(Event::First(read.first, read.copies)));
            };
            at_once(client, Opcode::Text, reply.as_bytes())?;
            self.intake.another()?;
            if read.behind.trim().is_empty() {
                return Ok(None);
            }
            text = read.behind;
        }
    }

    /// Looks through what has come: answers pings, finds the first message and a Close.
    fn look(&mut self, client: &mut Socket, seat: &Seat) -> Result<Option<First>, Ending> {
        loop {
            let arrived = self.intake.next()?;
            // Before anything is answered: whoever has our answer to what came behind its words keeps its seat.
            if self.intake.has_spoken() {
                seat.has_spoken();
            }
            match arrived {
                None => return Ok(None),
                Some(Arrived::Message(text)) => return Ok(Some(First::Message(text))),
                Some(Arrived::Close(payload)) => return Ok(Some(First::Closed(payload))),
                Some(Arrived::Ping(payload)) => {
                    at_once(client, Opcode::Pong, &payload)?;
                }
            }
        }
    }

    fn act(&mut self, event: Event, context: &Context, step: &mut Step) -> Option<End> {
        for action in self.session.on(event, now()) {
            match action {
                Action::Verify(token) => *step = Step::Verifying(verify(context, self.address, token)),
                Action::Connect => {
                    let (sealed, token) = self.sealed.take()?;
                    *step = Step::Dialling(dial(context.way_up(), sealed, self.needs.clone(), token));
                }
                Action::Say(text) => self.say.push(text),
                Action::End(ending) => return Some(End::Refused(ending)),
                // None of them comes before messages flow.
                Action::Relay | Action::HandOn(_) | Action::AskAgain | Action::Outlive | Action::Pong(_) => {}
            }
        }
        None
    }

    /// From the verifier's word to the session's: allowed here, and sealed for the upstream.
    fn verdict(&mut self, verdict: Result<Verified, Unverified>, context: &mut Context) -> Event {
        let verified = match verdict {
            Ok(verified) => verified,
            Err(unverified) => {
                let refusal = unverified.refusal(false);
                refusal.note(&mut context.line);
                return Event::Verdict(Verdict::Refused(Ending::of_unverified(&unverified)));
            }
        };
        let Some(request) = self.request.take() else { return Event::End(Ending::Protocol) };
        tracing::debug!(user = verified.identity().user_id(), "first message verified");
        let Context { shared, runtime, share, line, .. } = &mut *context;
        let authenticator = Authenticator { shared, runtime, share, last: None };
        let authenticated = match authenticator.accept(request, verified, line) {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                refusal.note(&mut context.line);
                return Event::End(Ending::Denied);
            }
        };
        match admit(context, authenticated, &self.needs) {
            Ok(Admission { sealed, token, mut judge, standing, user_id }) => {
                // It may have waited for hours, and the rules of its upgrade are no longer in force.
                if let Err(ending) = judge.judge_again(Some(&standing.remembered)) {
                    return Event::End(ending);
                }
                self.sealed = Some((sealed, token));
                self.judge = Some(judge);
                Event::Verdict(Verdict::Accepted { user_id, standing, token: None })
            }
            Err((refusal, ending)) => {
                refusal.note(&mut context.line);
                Event::End(ending)
            }
        }
    }
}

enum First {
    Message(Vec<u8>),
    Closed(Vec<u8>),
}

impl Step {
    async fn next(&mut self) -> Happened {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Verifying(verdict) => Happened::Verdict(verdict.await),
            Self::Dialling(dial) => {
                let (asked, token) = dial.await;
                Happened::Dialled(asked, token)
            }
        }
    }
}

/// How long a socket without `auth_timeout` has said nothing.
struct Silence {
    times: Times,
    heard: Instant,
    pinged: Option<Instant>,
    /// When the message that is coming began.
    begun: Option<Instant>,
}

enum Due {
    Ping,
    /// A message that began has not ended in time.
    TooSlow,
    Gone,
}

impl Silence {
    fn until(&mut self, is_in_message: bool) -> Instant {
        if is_in_message {
            self.begun.get_or_insert_with(Instant::now);
        } else {
            self.begun = None;
        }
        let silent = match self.pinged {
            Some(pinged) => pinged + self.times.ping_timeout.get(),
            None => self.heard + self.times.ping_interval.get(),
        };
        self.begun.map_or(silent, |begun| silent.min(begun + MESSAGE_TIME))
    }

    fn due(&mut self) -> Due {
        if self.begun.is_some_and(|begun| begun + MESSAGE_TIME <= Instant::now()) {
            return Due::TooSlow;
        }
        if self.pinged.is_some() {
            return Due::Gone;
        }
        self.pinged = Some(Instant::now());
        Due::Ping
    }
}

fn verify(context: &Context, address: Option<IpAddr>, token: Token) -> Verdicts {
    let shared = Arc::clone(&context.shared);
    Box::pin(async move { verify_by_policy_in_force(&shared, address, token, Carrier::Message).await })
}

fn dial(way_up: WayUp, sealed: Sealed, needs: Needs, token: Option<Token>) -> Dial {
    Box::pin(async move {
        let asked = ask(way_up, sealed, &needs, token.as_ref()).await;
        (asked, token)
    })
}

/// Writes a small frame without waiting. A client that does not read gets none; a torn one would break
/// its stream.
fn at_once(client: &mut Socket, opcode: Opcode, payload: &[u8]) -> Result<(), Ending> {
    let mut frame = Vec::new();
    encode(&mut frame, opcode, payload, None);
    if client.write_now(&frame).is_ok_and(|written| written < frame.len()) {
        return Err(Ending::Protocol);
    }
    Ok(())
}

/// Says the ending in the dialect's words, or nothing, and closes.
pub(super) async fn say_goodbye(client: Socket, text: Option<String>, close: &[u8]) {
    let mut said = Vec::new();
    if let Some(text) = text {
        encode(&mut said, Opcode::Text, text.as_bytes(), None);
    }
    goodbye(client, said, close).await;
}

/// Writes, closes our half, and gives the client a moment to take it: closing with bytes unread would
/// reset the connection and could take our last words with it.
async fn goodbye(mut client: Socket, mut bytes: Vec<u8>, close: &[u8]) {
    encode(&mut bytes, Opcode::Close, close, None);
    // Whether it was in time or not, the socket is dropped.
    let _ = timeout(LINGER, async {
        client.write_all(&bytes).await?;
        client.shutdown().await?;
        let mut discarded = [0; 512];
        while client.read(&mut discarded).await? > 0 {}
        Ok::<_, std::io::Error>(())
    })
    .await;
}
