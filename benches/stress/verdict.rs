//! Checks the outcome of a socket, by the records of both ends and by its access line.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::pair::{Fate, Life};

/// The access line of a socket.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    user: String,
    close_code: Option<u64>,
    closed_by: String,
    refreshes: u64,
}

/// Returns the access lines of sockets, by the number in their path.
pub(crate) fn lines(log: &[String]) -> HashMap<u64, Vec<Line>> {
    let mut found: HashMap<u64, Vec<Line>> = HashMap::new();
    for line in log {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if line["msg"] != "socket" {
            continue;
        }
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let number = text("path").rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
        found.entry(number).or_default().push(Line {
            user: text("user"),
            close_code: line["close_code"].as_u64(),
            closed_by: text("closed_by"),
            refreshes: line["refreshes"].as_u64().unwrap_or(0),
        });
    }
    found
}

/// The time that the peer of a Close has to answer.
const ANSWERED: Duration = Duration::from_secs(5);
/// The duration of a pause that counts. A client of an ending socket is disconnected when it reads nothing for 5 s, as
/// far as the proxy's system can detect. Bytes that a slow client read directly before a pause, less than a TLS record
/// or a segment, are not visible there.
const STOOD_STILL: Duration = Duration::from_millis(4_500);

/// The way in which a socket ended, and the violations.
pub(crate) struct Verdict {
    pub(crate) ending: String,
    pub(crate) violations: Vec<String>,
}

/// Checks a socket; `drain` is the time at which the proxy was asked to stop.
pub(crate) fn judge(life: &Life, lines: &[Line], drain: Instant) -> Verdict {
    let mut wrong: Vec<String> = life.problem.iter().cloned().collect();
    wrong.extend(life.client.violations.iter().map(|what| format!("at the client: {what}")));
    wrong.extend(life.upstream.violations.iter().map(|what| format!("at the upstream: {what}")));
    let (client, upstream) = (&life.client, &life.upstream);
    if client.got > upstream.begun || upstream.got > client.begun {
        wrong.push("more messages than were sent".to_owned());
    }
    if client.refreshes_accepted + client.refreshes_refused > client.refreshes_asked {
        wrong.push("more refreshes answered than asked for".to_owned());
    }
    let [line] = lines else {
        wrong.push(format!("{} access lines", lines.len()));
        return Verdict { ending: format!("{:?}", life.fate), violations: wrong };
    };
    if line.user != life.user {
        wrong.push(format!("its access line is {}'s, it was {}'s", line.user, life.user));
    }
    if line.refreshes < u64::from(client.refreshes_accepted) {
        wrong.push(format!("{} refreshes in its line, {} accepted", line.refreshes, client.refreshes_accepted));
    }
    let reason = Reason::of(life);
    let named = (line.closed_by.as_str(), line.close_code);
    if !reason.lines.contains(&named) {
        wrong.push(format!("its access line says {named:?}, not one of {:?}", reason.lines));
    }
    let code = line.close_code.and_then(|code| u16::try_from(code).ok());
    let mut told = if reason.is_forced { told(life, code, drain, &mut wrong) } else { "" };
    if life.over < drain {
        orderly(life, &mut wrong);
    } else if life.brought_about.is_some() && !reason.is_forced {
        told = " (the drain came meanwhile)";
        delivered(life, drain, &mut wrong);
    }
    let seen = client.close_got.map_or_else(|| "no Close".to_owned(), |code| code.to_string());
    let ending = format!("{:<18} line {}/{}, client saw {seen}{told}", reason.name, named.0, named.1.unwrap_or(0));
    Verdict { ending, violations: wrong }
}

/// The expected reason of a socket's end.
struct Reason {
    name: String,
    /// The side that closed and the code, for its access line.
    lines: Vec<(&'static str, Option<u64>)>,
    /// Whether the proxy ends it, with an error message to the client.
    is_forced: bool,
}

impl Reason {
    fn of(life: &Life) -> Self {
        const DRAINED: (&str, Option<u64>) = ("vestibule", Some(1012));
        let happened = life.brought_about.is_some();
        let code = life.code.map(u64::from);
        let (lines, is_forced) = match life.fate {
            Fate::Denied => (vec![("vestibule", Some(1008)), DRAINED], true),
            Fate::Expires => (vec![("vestibule", Some(4401)), DRAINED], true),
            _ if !happened => (vec![DRAINED], true),
            Fate::Drained => (vec![DRAINED], true),
            Fate::ClientCloses => (vec![("client", code)], false),
            Fate::UpstreamCloses => (vec![("upstream", code)], false),
            Fate::ClientHalfCloses | Fate::ClientIsCut => (vec![("client", None)], false),
            Fate::UpstreamHalfCloses | Fate::UpstreamIsCut => (vec![("vestibule", Some(1011))], true),
            Fate::ClientStops => (vec![("vestibule", None), DRAINED], false),
            Fate::Revoked => (vec![("vestibule", Some(1008))], true),
        };
        let is_by_itself = matches!(life.fate, Fate::Denied | Fate::Expires);
        let name = if happened || is_by_itself { format!("{:?}", life.fate) } else { format!("{:?}", Fate::Drained) };
        Self { name, lines, is_forced }
    }
}

/// Returns what the client of a socket that the proxy ended has received, with the reason where it received nothing.
fn told(life: &Life, code: Option<u16>, drain: Instant, wrong: &mut Vec<String>) -> &'static str {
    let client = &life.client;
    match client.close_got {
        Some(seen) if Some(seen) == code => "",
        Some(seen) => {
            wrong.push(format!("the client saw {seen}, its line says {code:?}"));
            ""
        }
        None => {
            let from = life.brought_about.unwrap_or(if code == Some(1012) {
                drain
            } else {
                life.over.checked_sub(STOOD_STILL * 3).unwrap_or(drain)
            });
            let still: Duration = client
                .pauses
                .iter()
                .map(|(began, ended)| ended.saturating_duration_since((*began).max(from)))
                .max()
                .unwrap_or_default();
            if still >= STOOD_STILL {
                " (it did not read for longer than it is waited for)"
            } else if client.is_torn && life.fate == Fate::UpstreamIsCut {
                " (the upstream was cut inside a message)"
            } else {
                wrong.push(format!(
                    "the client was told nothing, though it stood still for {still:?} alone (inside a message: {}; {} of {} messages, {} bytes, over {:?} after it)",
                    client.is_torn, client.got, life.upstream.sent, client.bytes_got, life.over.saturating_duration_since(from)
                ));
                ""
            }
        }
    }
}

/// Checks that messages before a Close, or before a client disconnected, were delivered although the drain came then.
fn delivered(life: &Life, drain: Instant, wrong: &mut Vec<String>) {
    let (client, upstream) = (&life.client, &life.upstream);
    let code = life.code.unwrap_or(1005);
    let stood_still =
        client.pauses.iter().any(|(began, ended)| ended.saturating_duration_since((*began).max(drain)) >= STOOD_STILL);
    match life.fate {
        Fate::ClientCloses if client.sent != upstream.got || upstream.close_got != Some(code) => wrong.push(format!(
            "closed by the client with {code} before the drain: it sent {} messages, the upstream has {}, {:?} came",
            client.sent, upstream.got, upstream.close_got
        )),
        Fate::UpstreamCloses if !stood_still && (upstream.sent != client.got || client.close_got != Some(code)) => {
            wrong.push(format!(
                "closed by the upstream with {code} before the drain: it sent {} messages, the client has {}, {:?} came",
                upstream.sent, client.got, client.close_got
            ));
        }
        Fate::ClientHalfCloses if client.sent != upstream.got => wrong.push(format!(
            "the client sent no more before the drain: it sent {} messages, the upstream has {}",
            client.sent, upstream.got
        )),
        _ => {}
    }
}

/// Checks that a socket that was closed in good order has lost nothing.
fn orderly(life: &Life, wrong: &mut Vec<String>) {
    if life.brought_about.is_none() {
        return;
    }
    let (client, upstream) = (&life.client, &life.upstream);
    let up = || format!("the client sent {} messages, the upstream has {}", client.sent, upstream.got);
    let down = || format!("the upstream sent {} messages, the client has {}", upstream.sent, client.got);
    let (is_up, is_down) = (client.sent == upstream.got, upstream.sent == client.got);
    let code = life.code.unwrap_or(1005);
    let in_time = |first: Option<(u16, Instant)>, second: Option<(u16, Instant)>| {
        first.zip(second).is_some_and(|(first, second)| second.1.saturating_duration_since(first.1) < ANSWERED)
    };
    match life.fate {
        Fate::ClientCloses => {
            if !is_up || upstream.close_got != Some(code) {
                wrong.push(format!("closed by the client with {code}: {}, {:?} came", up(), upstream.close_got));
            }
            let answered = in_time(client.close_sent, upstream.close_sent);
            if answered && (!is_down || client.close_got != Some(code)) {
                wrong.push(format!("closed by the client: {}, {:?} came back", down(), client.close_got));
            }
        }
        Fate::UpstreamCloses => {
            if !is_down || client.close_got != Some(code) {
                wrong.push(format!("closed by the upstream with {code}: {}, {:?} came", down(), client.close_got));
            }
            let answered = in_time(upstream.close_sent, client.close_sent);
            if answered && (!is_up || upstream.close_got != Some(code)) {
                wrong.push(format!("closed by the upstream: {}, {:?} came back", up(), upstream.close_got));
            }
        }
        Fate::ClientHalfCloses if !is_up || !is_down || client.close_got != Some(1000) => {
            wrong.push(format!("the client sends no more: {}; {}; {:?} came", up(), down(), client.close_got));
        }
        Fate::UpstreamHalfCloses if client.close_got.is_some() && !is_down => {
            wrong.push(format!("the upstream sends no more: {}", down()));
        }
        _ => {}
    }
}
