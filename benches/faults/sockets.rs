//! Sockets through the proxy: opened with valid and invalid tokens, with numbered messages both ways, refreshes, and an
//! end of their own. What was lost, reordered, duplicated or another's is a violation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use super::end::{Command, End, Manner, Record, Tokens};
use super::ledger::{Credential, Expected};
use super::load::{BOUND, Load};
use super::message::Stamp;
use super::relay::Trace;
use super::rng::Rng;
use super::traffic::{Kind, Target};
use super::upstream::Upgraded;
use crate::support::socket::Side;

/// The mean time between two messages of one end.
const PACE: Duration = Duration::from_millis(150);
/// The maximum pause of a reader: far below what the proxy takes for a client that does not read.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The maximum time until an end closes its socket.
const LONGEST_LIFE: Duration = Duration::from_secs(15);

/// The intended end of a socket, with the code of its Close, which no part of the proxy uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    ClientCloses(u16),
    UpstreamCloses(u16),
    ClientIsCut,
}

/// A socket whose both ends are open.
struct Open {
    number: u64,
    credential: Credential,
    sent: Instant,
    client: End,
    upstream: End,
    traces: [Arc<Trace>; 2],
}

impl Load {
    /// Opens one socket after another, until the load ends.
    pub(crate) async fn open_sockets(self: Arc<Self>, mut rng: Rng) {
        while !*self.quiet.borrow() {
            match self.open(&mut rng).await {
                Some(open) => self.lives(open, &mut rng).await,
                None => sleep(Duration::from_millis(50) + rng.up_to(Duration::from_millis(200))).await,
            }
        }
    }

    fn refreshes(self: &Arc<Self>, user: &str) -> Tokens {
        let (load, user) = (Arc::clone(self), user.to_owned());
        // At most every second one is refused: five in a row would end the socket.
        Arc::new(move |rng, before| match rng.below(4) {
            0 if before % 2 == 0 => load.good("another-user").token,
            1 if before % 2 == 0 => load.expired(&user),
            _ => load.good(&user).token,
        })
    }

    async fn open(self: &Arc<Self>, rng: &mut Rng) -> Option<Open> {
        let credential = if rng.in_thousand(750) { self.good(&Self::user(rng)) } else { self.any(rng) };
        let is_in_band = rng.in_thousand(600);
        let mut connection = self.connect().await?;
        let target = Target { kind: Kind::Socket, number: self.ledger.next_number() };
        let upgraded = self.upstream.expect(target.number);
        self.ledger.enter(target.number, &credential, &connection.trace, true);
        let sent = Instant::now();
        let response = self.upgrade(&mut connection, target, (!is_in_band).then_some(&credential)).await;
        let status = response.as_ref().map(|response| response.status().as_u16());
        let opened =
            self.start(connection.trace.clone(), target, &credential, is_in_band, response, upgraded, rng).await;
        self.upstream.forget(target.number);
        let expected = self.ledger.expected(&credential, sent, Instant::now());
        let is_disturbed = self.ledger.is_disturbed(|disturbs| disturbs.requests, sent, Instant::now());
        let excused = is_disturbed || connection.trace.is_damaged();
        let outcome = match (&opened, status) {
            (Ok(_), _) => "open".to_owned(),
            (Err(seen), Some(101)) => seen.clone(),
            (_, Some(status)) => format!("answered {status}"),
            (_, None) => "not answered".to_owned(),
        };
        self.ledger.count(&format!("sockets {}: {outcome}", expected.words()));
        let about = format!("socket {} of {} ({})", target.number, credential.user, credential.kind);
        if sent.elapsed() >= BOUND {
            self.ledger.violation(format!("{about}: neither open nor refused in time"));
        }
        match opened {
            Err(_) if expected == Expected::Accepted && !excused => {
                self.ledger.violation(format!("{about}: {outcome}, and nothing was wrong"));
                None
            }
            Err(_) => None,
            Ok((client, upgraded)) => {
                let stamp = |user: &str, way| Stamp { user: user.to_owned(), number: target.number, way };
                let manner = Manner {
                    // The upstream's messages name the user that it got from the proxy.
                    stamp: stamp(&upgraded.user, "down"),
                    expected: stamp(&credential.user, "up"),
                    side: Side::Server,
                    pace: PACE,
                    longest_pause: LONGEST_PAUSE,
                    is_slow: false,
                    first: None,
                    waits: false,
                    refreshes: None,
                };
                let upstream = End::start(upgraded.stream, Vec::new(), manner, Rng::new(rng.next()));
                let traces = [connection.trace.clone(), upgraded.trace];
                Some(Open { number: target.number, credential, sent, client, upstream, traces })
            }
        }
    }

    /// Starts the client's end and waits for the upstream's; an error says what came instead.
    #[allow(clippy::too_many_arguments, reason = "the parts of one handshake")]
    async fn start(
        self: &Arc<Self>,
        trace: Arc<Trace>,
        target: Target,
        credential: &Credential,
        is_in_band: bool,
        response: Option<hyper::Response<hyper::body::Incoming>>,
        upgraded: tokio::sync::oneshot::Receiver<Upgraded>,
        rng: &mut Rng,
    ) -> Result<(End, Upgraded), String> {
        let response = response.filter(|response| response.status() == 101).ok_or("no socket")?;
        let stream = timeout(BOUND, hyper::upgrade::on(response)).await.ok().and_then(Result::ok).ok_or("no stream")?;
        let first = is_in_band.then(|| format!(r#"{{"type":"authenticate","token":"{}"}}"#, credential.token));
        let manner = Manner {
            stamp: Stamp { user: credential.user.clone(), number: target.number, way: "up" },
            expected: Stamp { user: credential.user.clone(), number: target.number, way: "down" },
            side: Side::Client,
            pace: PACE,
            longest_pause: LONGEST_PAUSE,
            is_slow: false,
            first,
            waits: rng.in_thousand(500),
            refreshes: (credential.kind == "valid").then(|| self.refreshes(&credential.user)),
        };
        let client = End::start(Box::new(TokioIo::new(stream)), Vec::new(), manner, Rng::new(rng.next()));
        let ended = async {
            while !client.task.is_finished() {
                sleep(Duration::from_millis(20)).await;
            }
            // The upstream's end may be on its way although the client's is over.
            sleep(Duration::from_millis(200)).await;
        };
        let arrived = tokio::select! {
            biased;
            arrived = timeout(BOUND, upgraded) => arrived.ok().and_then(Result::ok),
            () = ended => None,
        };
        if let Some(upgraded) = arrived {
            return Ok((client, upgraded));
        }
        client.task.abort();
        let record = client.record();
        if let Some(violation) = record.violations.first().filter(|_| !trace.is_corrupted()) {
            self.ledger.violation(format!("socket {}: {violation}", target.number));
        }
        Err(record.close_got.map_or("closed without a code".to_owned(), |code| format!("closed with {code}")))
    }

    /// Lets a socket live, causes its end and judges it.
    async fn lives(&self, open: Open, rng: &mut Rng) {
        let code = 3_000 + rng.below(900) as u16;
        let fate = match rng.below(10) {
            0..=4 => Fate::ClientCloses(code),
            5..=8 => Fate::UpstreamCloses(code),
            _ => Fate::ClientIsCut,
        };
        let Open { client, upstream, .. } = &open;
        let ended = async {
            while !(client.task.is_finished() && upstream.task.is_finished()) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::pin!(ended);
        let mut quiet = self.quiet.clone();
        let is_time = tokio::select! {
            () = &mut ended => false,
            () = sleep(Duration::from_millis(200) + rng.up_to(LONGEST_LIFE)) => true,
            _ = quiet.wait_for(|quiet| *quiet) => true,
        };
        if is_time {
            match fate {
                Fate::ClientCloses(code) => drop(client.commands.send(Command::Close(Some(code)))),
                Fate::UpstreamCloses(code) => drop(upstream.commands.send(Command::Close(Some(code)))),
                Fate::ClientIsCut => client.task.abort(),
            }
            if timeout(BOUND, ended).await.is_err() {
                let over = [client.record().is_over, upstream.record().is_over];
                self.ledger.violation(format!("socket {} never ended ({fate:?}, over {over:?})", open.number));
                client.task.abort();
                upstream.task.abort();
            }
        }
        let over = Instant::now();
        let records = (std::mem::take(&mut *client.record()), std::mem::take(&mut *upstream.record()));
        self.judge_socket(&open, fate, is_time, &records.0, &records.1, over);
    }

    fn judge_socket(&self, open: &Open, fate: Fate, is_own: bool, client: &Record, upstream: &Record, over: Instant) {
        let Open { number, credential, sent, traces, .. } = open;
        let ledger = &self.ledger;
        ledger.count_by("messages up", upstream.got);
        ledger.count_by("messages down", client.got);
        ledger.count_by("refreshes accepted", client.refreshes_accepted.into());
        ledger.count_by("refreshes refused", client.refreshes_refused.into());
        let seen = [client.close_got, upstream.close_got].map(|code| {
            code.map_or(
                "no Close".to_owned(),
                |code| if code >= 3_000 { "its Close".to_owned() } else { code.to_string() },
            )
        });
        let cause = if is_own {
            format!("{fate:?}").split('(').next().unwrap_or_default().to_owned()
        } else {
            "by others".to_owned()
        };
        ledger.count(&format!("sockets ended: {cause}, client saw {}, upstream saw {}", seen[0], seen[1]));
        if traces.iter().any(|trace| trace.is_corrupted()) {
            return;
        }
        let about = format!("socket {number} of {}", credential.user);
        for what in client.violations.iter().chain(&upstream.violations) {
            ledger.violation(format!("{about}: {what}"));
        }
        if client.got > upstream.begun || upstream.got > client.begun {
            ledger.violation(format!("{about}: more messages than were sent"));
        }
        let (up, down) = ((client.sent, upstream.got), (upstream.sent, client.got));
        // A Close that went through comes after all messages before it.
        let (passed, way) = match fate {
            Fate::ClientCloses(code) if is_own => (upstream.close_got == Some(code), up),
            Fate::UpstreamCloses(code) if is_own => (client.close_got == Some(code), down),
            _ => (false, up),
        };
        if passed && way.0 != way.1 {
            ledger.violation(format!("{about}: {fate:?} after {} messages, {} arrived", way.0, way.1));
        }
        let is_damaged = traces.iter().any(|trace| trace.is_damaged());
        let is_disturbed = ledger.is_disturbed(|disturbs| disturbs.sockets, *sent, over);
        let is_valid = ledger.expected(credential, *sent, over) == Expected::Accepted;
        let ended_as_meant = is_own && (passed || fate == Fate::ClientIsCut);
        if !is_damaged && !is_disturbed && is_valid && !ended_as_meant {
            ledger.violation(format!(
                "{about} ({fate:?}, its time had come: {is_own}) ended although nothing was wrong: client saw {}, upstream saw {}",
                seen[0], seen[1]
            ));
        }
    }
}
