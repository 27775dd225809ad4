//! One socket through the proxy with both of its ends, and its outcome.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::end::{Command, End, Manner, Record, Tokens};
use super::message::Stamp;
use super::rng::Rng;
use super::transport::{Accepted, Boxed, Dialler, Ends, Socket};
use crate::support::backend::Heard;
use crate::support::client::bearer;
use crate::support::control::post;
use crate::support::issuer::Issuer;
use crate::support::now;
use crate::support::socket::{Side, upgrade};

/// The number of users. Each has many sockets.
const USERS: u64 = 40;
/// The pace of ends that do not read at once.
const SLOW_PACE: Duration = Duration::from_millis(200);
/// The time within which a socket that should end has ended, however slowly it is read.
const BOUND: Duration = Duration::from_secs(90);

/// The intended end of a socket, unless a drain comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// It stays open until the drain.
    Drained,
    ClientCloses,
    UpstreamCloses,
    ClientHalfCloses,
    UpstreamHalfCloses,
    ClientIsCut,
    UpstreamIsCut,
    /// The client neither reads nor writes any more.
    ClientStops,
    Revoked,
    /// A reload denies its path.
    Denied,
    Expires,
}

impl Fate {
    fn of(rng: &mut Rng) -> Self {
        match rng.below(100) {
            0..=9 => Self::Drained,
            10..=29 => Self::ClientCloses,
            30..=49 => Self::UpstreamCloses,
            50..=57 => Self::ClientHalfCloses,
            58..=65 => Self::UpstreamHalfCloses,
            66..=75 => Self::ClientIsCut,
            76..=83 => Self::UpstreamIsCut,
            84..=86 => Self::ClientStops,
            87..=91 => Self::Revoked,
            92..=94 => Self::Denied,
            _ => Self::Expires,
        }
    }

    /// Returns whether this end comes at a time that the proxy's configuration or the token sets.
    const fn comes_by_itself(self) -> bool {
        matches!(self, Self::Drained | Self::Denied | Self::Expires)
    }
}

/// The outcome of a socket.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) user: String,
    pub(crate) fate: Fate,
    /// The time at which its end was caused from outside.
    pub(crate) brought_about: Option<Instant>,
    /// The code of a Close from an end.
    pub(crate) code: Option<u16>,
    /// A description of the socket, to find the cause of a violation.
    pub(crate) traits: String,
    pub(crate) over: Instant,
    pub(crate) client: Record,
    pub(crate) upstream: Record,
    /// The problem of a socket that never opened, or never ended.
    pub(crate) problem: Option<String>,
}

type Upgraded = (Boxed, Vec<u8>, Heard);

/// The upgrades for which clients wait, by the number in their path.
#[derive(Default)]
pub(crate) struct Upgrades(Mutex<HashMap<u64, oneshot::Sender<Upgraded>>>);

/// The state that all sockets of a round share.
pub(crate) struct Shared {
    pub(crate) dialler: Dialler,
    pub(crate) issuer: Issuer,
    pub(crate) upgrades: Arc<Upgrades>,
    pub(crate) control: std::path::PathBuf,
    /// Paths below `/leaving/{n}/` are denied up to this `n`.
    pub(crate) denied: AtomicU64,
    /// Whether no further end is caused.
    pub(crate) quiet: watch::Receiver<bool>,
    pub(crate) longest_life: Duration,
    /// The maximum duration of a round.
    pub(crate) longest_round: Duration,
    pub(crate) longest_pause: Duration,
    pub(crate) pace: Duration,
}

/// Accepts the proxy's connections and upgrades them.
pub(crate) async fn serve(ends: Arc<Ends>, upgrades: Arc<Upgrades>, mut rng: Rng) {
    loop {
        let accepted = ends.accept().await;
        let socket = Socket { is_narrow: rng.in_thousand(300), resets: false };
        let upgrades = Arc::clone(&upgrades);
        tokio::spawn(async move {
            // A connection that ends before its upgrade is that of a client that has disconnected.
            let _ = upgraded(accepted, socket, &upgrades).await;
        });
    }
}

async fn upgraded(accepted: Accepted, socket: Socket, upgrades: &Upgrades) -> std::io::Result<()> {
    let mut stream = accepted.open(socket).await?;
    let (head, rest) = head(&mut stream).await?;
    let heard = Heard { head, body: Vec::new() };
    let path = heard.target().split('?').next().unwrap_or_default();
    let number = path.rsplit('/').next().and_then(|number| number.parse().ok()).expect("a number");
    let key = heard.all("sec-websocket-key").first().copied().expect("a key").to_owned();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    if let Some(waiting) = upgrades.0.lock().expect("lock").remove(&number) {
        let _ = waiting.send((stream, rest, heard));
    }
    Ok(())
}

/// Returns a head and the bytes after it.
async fn head(stream: &mut Boxed) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

impl Shared {
    fn refreshes(self: &Arc<Self>, user: &str) -> Tokens {
        let (shared, user) = (Arc::clone(self), user.to_owned());
        // At most every second one is refused: five in a row would end the socket.
        Arc::new(move |rng, before| match rng.below(6) {
            0 if before % 2 == 1 => shared.issuer.token("another-user"),
            1 if before % 2 == 1 => shared.issuer.expired(&user),
            _ => shared.issuer.token(&user),
        })
    }

    /// Opens a socket, lets its ends send messages, causes its end and waits for it.
    pub(crate) async fn live(self: Arc<Self>, number: u64, mut rng: Rng) -> Life {
        let fate = Fate::of(&mut rng);
        // A user who is to be revoked has this socket alone.
        let user = if fate == Fate::Revoked { format!("leaver-{number}") } else { format!("user-{}", number % USERS) };
        let mut life = Life {
            number,
            user,
            fate,
            brought_about: None,
            code: None,
            traits: String::new(),
            over: Instant::now(),
            client: Record::default(),
            upstream: Record::default(),
            problem: None,
        };
        match self.open(&mut life, &mut rng).await {
            Ok((client, upstream)) => {
                self.lives(&mut life, &client, &upstream, &mut rng).await;
                life.client = std::mem::take(&mut *client.record());
                life.upstream = std::mem::take(&mut *upstream.record());
            }
            Err(error) => life.problem = Some(error),
        }
        life.over = Instant::now();
        life
    }

    async fn open(self: &Arc<Self>, life: &mut Life, rng: &mut Rng) -> Result<(End, End), String> {
        let Life { number, user, fate, .. } = &*life;
        let is_slow = [rng.in_thousand(100), rng.in_thousand(100)];
        let expires = now() + 3 + rng.below(self.longest_life.as_secs().max(1));
        let token = match fate {
            Fate::Expires => self.issuer.token_with(user, json!({ "exp": expires })),
            _ => self.issuer.token(user),
        };
        let target = match fate {
            // The path is not the next one, which a reload may deny before the socket is open.
            Fate::Denied => format!("/leaving/{}/{number}", self.denied.load(Ordering::Relaxed) + 2),
            _ => format!("/socket/{number}"),
        };
        let (sender, waiting) = oneshot::channel();
        self.upgrades.0.lock().expect("lock").insert(*number, sender);
        let (request, first) = match rng.below(5) {
            0 | 1 => (upgrade(&target, &[&bearer(&token)]), None),
            2 => (upgrade(&format!("{target}?token={token}&more=1"), &[]), None),
            _ => (upgrade(&target, &[]), Some(format!(r#"{{"type":"authenticate","token":"{token}"}}"#))),
        };
        let socket =
            Socket { is_narrow: rng.in_thousand(300), resets: *fate == Fate::ClientIsCut && rng.in_thousand(500) };
        let asked = async {
            let mut stream = self.dialler.dial(socket).await?;
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            let (head, rest) = head(&mut stream).await?;
            Ok::<_, std::io::Error>((stream, head, rest))
        };
        let (stream, head, rest) = timeout(BOUND, asked)
            .await
            .map_err(|_| "no answer to its upgrade".to_owned())?
            .map_err(|error| format!("its upgrade: {error}"))?;
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(format!("its upgrade was answered {}", head.lines().next().unwrap_or_default()));
        }
        let traits = format!("slow {is_slow:?}, narrow {}", socket.is_narrow);
        let stamp = |way| Stamp { user: user.clone(), number: *number, way };
        let refreshes = !matches!(fate, Fate::Expires);
        let mut manner = Manner {
            stamp: stamp("up"),
            expected: stamp("down"),
            side: Side::Client,
            // No slower than they are read.
            pace: if is_slow == [false, false] { self.pace } else { self.pace.max(SLOW_PACE) },
            longest_pause: self.longest_pause,
            is_slow: is_slow[0],
            waits: rng.in_thousand(500),
            first,
            refreshes: refreshes.then(|| self.refreshes(user)),
        };
        let client = End::start(stream, rest, manner.clone(), Rng::new(rng.next()));
        let upgraded = timeout(BOUND, waiting).await;
        let Ok(Ok((stream, rest, heard))) = upgraded else {
            client.task.abort();
            let seen = client.record().close_got;
            return Err(format!("never reached the upstream; the client saw {seen:?}"));
        };
        // The upstream's messages name the user that it got from the proxy.
        let named = heard.all("x-user-id").join(",");
        manner.stamp = Stamp { user: named, number: *number, way: "down" };
        manner.expected = stamp("up");
        manner.side = Side::Server;
        manner.is_slow = is_slow[1];
        (manner.first, manner.refreshes) = (None, None);
        let upstream = End::start(stream, rest, manner, Rng::new(rng.next()));
        life.traits = traits;
        Ok((client, upstream))
    }

    async fn lives(&self, life: &mut Life, client: &End, upstream: &End, rng: &mut Rng) {
        let ended = async {
            while !(client.task.is_finished() && upstream.task.is_finished()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::pin!(ended);
        let mut quiet = self.quiet.clone();
        if !life.fate.comes_by_itself() {
            let until = Duration::from_millis(200) + rng.up_to(self.longest_life);
            let is_time = tokio::select! {
                () = &mut ended => return,
                () = tokio::time::sleep(until) => !*self.quiet.borrow(),
                _ = quiet.wait_for(|quiet| *quiet) => false,
            };
            if is_time {
                life.brought_about = Some(Instant::now());
                self.bring_about(life, client, upstream, rng).await;
            }
        }
        let bound = if life.brought_about.is_some() { BOUND } else { BOUND + self.longest_round };
        if life.fate == Fate::ClientStops && life.brought_about.is_some() {
            let gone = async {
                while !upstream.task.is_finished() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            if timeout(bound, gone).await.is_err() {
                life.problem = Some("a client that stopped was never given up".to_owned());
            }
            client.task.abort();
            return;
        }
        if timeout(bound, ended).await.is_err() {
            let (client_over, upstream_over) = (client.record().is_over, upstream.record().is_over);
            life.problem = Some(format!("never ended: client over {client_over}, upstream over {upstream_over}"));
            client.task.abort();
            upstream.task.abort();
        }
    }

    async fn bring_about(&self, life: &mut Life, client: &End, upstream: &End, rng: &mut Rng) {
        match life.fate {
            Fate::ClientCloses | Fate::UpstreamCloses => {
                let code = rng.one_of(&[Some(1000), Some(1001), Some(3000), Some(4999), None]);
                life.code = code;
                let by = if life.fate == Fate::ClientCloses { client } else { upstream };
                let _ = by.commands.send(Command::Close(code));
            }
            Fate::ClientHalfCloses => drop(client.commands.send(Command::HalfClose)),
            Fate::UpstreamHalfCloses => drop(upstream.commands.send(Command::HalfClose)),
            Fate::ClientIsCut => client.task.abort(),
            Fate::UpstreamIsCut => upstream.task.abort(),
            Fate::ClientStops => client.stop(),
            Fate::Revoked => {
                let body = json!({"issuer": self.issuer.url, "sub": life.user}).to_string();
                let status = post(&self.control, "/revoke", &body).await;
                if status != 204 {
                    life.problem = Some(format!("its revocation was answered {status}"));
                }
            }
            Fate::Drained | Fate::Denied | Fate::Expires => {}
        }
    }
}
