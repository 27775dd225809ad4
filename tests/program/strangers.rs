//! Tests that the memory for unauthenticated callers is limited in total: the caller that holds most is evicted, and
//! the others are served.

use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, fixture};
use crate::support::client::{Client, bearer, get};
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::socket::{Side, Socket, frame, upgrade};
use crate::support::within;

/// The smallest allowed limit: eight heads of `limits.header_bytes`.
const BOUND: usize = 256 << 10;
/// The counted bytes of a connection that has sent nothing.
const SILENT: usize = 8 << 10;
/// The counted bytes of a connection whose request is forwarded without a user.
const REQUEST: usize = 24 << 10;

async fn bounded(more: &str) -> Fixture {
    fixture(&format!("limits: {{ unauthenticated_bytes: {BOUND} }}\n{more}")).await
}

impl Fixture {
    async fn silent(&self, number: usize) -> Vec<Client> {
        let mut silent = Vec::new();
        for _ in 0..number {
            silent.push(Client::connect(self.proxy.address).await);
        }
        silent
    }

    /// Returns whether an authenticated user is served on this connection.
    async fn serves(&self, client: &mut Client) -> bool {
        let credential = bearer(&self.issuer.token("alice"));
        client.send(format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
        tokio::select! {
            _ = self.backend.answer("ok") => client.answer().await.status == 200,
            answer = client.try_answer() => panic!("refused: {answer:?}"),
        }
    }
}

/// Returns the head of a request without its end.
fn unfinished(bytes: usize) -> String {
    let field = format!("X-Pad: {}\r\n", "x".repeat(1_000));
    format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{}", field.repeat(bytes / field.len()))
}

#[tokio::test]
async fn an_unfinished_head_gives_way_with_431_to_those_that_hold_less() {
    let fixture = fixture(&format!("limits: {{ unauthenticated_bytes: {BOUND} }}\n")).await;
    let mut small = Client::connect(fixture.proxy.address).await;
    let mut large = Client::connect(fixture.proxy.address).await;
    large.send(unfinished(60 << 10)).await;
    let _silent = fixture.silent(BOUND / SILENT).await;
    let answer = large.answer().await;
    assert_eq!((answer.status, answer.code()), (431, "head_too_large".into()));
    assert!(large.is_closed().await);
    assert!(fixture.serves(&mut small).await);
}

#[tokio::test]
async fn among_equals_the_newest_gives_way_and_a_silent_one_hears_503() {
    let fixture = bounded("").await;
    let mut silent = fixture.silent(BOUND / SILENT).await;
    let answer = Client::connect(fixture.proxy.address).await.answer().await;
    assert_eq!((answer.status, answer.code()), (503, "busy".into()));
    assert!(answer.field("retry-after").is_some());
    // A request needs more; the newest connections are evicted for it.
    assert!(fixture.serves(&mut silent[0]).await);
    let answer = silent.pop().expect("the last").answer().await;
    assert_eq!((answer.status, answer.code()), (503, "busy".into()));
    // A verified caller counts no more.
    let _others = fixture.silent(BOUND / SILENT).await;
    assert!(fixture.serves(&mut silent[0]).await);
}

#[tokio::test]
async fn a_connection_without_a_request_under_way_closes_without_an_answer_nobody_waits_for() {
    let fixture = bounded("").await;
    let mut idle = Client::connect(fixture.proxy.address).await;
    idle.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(idle.answer().await.code(), "missing_token");
    let _silent = fixture.silent(BOUND / SILENT).await;
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn a_waiting_socket_that_holds_most_gives_way_with_1013_to_one_that_says_who_it_is() {
    // The default dialect's first message, and one of a dialect that reads whole messages.
    for (more, length) in [("", 16 << 10), ("websocket: { dialect: token-field }\n", 60 << 10)] {
        let fixture = bounded(more).await;
        let mut small = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        let mut large = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        let message = frame(Side::Client, 0x81, &vec![b' '; length]);
        large.write(&message[..length - 100]).await;
        // The memory of these and of the small socket fits.
        let _silent = fixture.silent(BOUND / SILENT - 3).await;
        large.next_text().await;
        assert_eq!(large.next_close().await, (1013, "Try again later".into()));
        let token = fixture.issuer.token("alice");
        let message = format!(r#"{{"type":"authenticate","token":"{token}","auth_token":"{token}"}}"#);
        let ((), (heard, _upstream)) = tokio::join!(small.say(&message), fixture.backend.websocket());
        assert_eq!(heard.all("x-user-id"), ["alice"]);
    }
}

#[tokio::test]
async fn an_upgrade_is_503_while_nobody_can_give_way() {
    // A silent connection fits in addition to so many requests, and an upgrade does not.
    const REQUESTS: usize = 11;
    let bound = REQUESTS * REQUEST + SILENT;
    let fixture =
        fixture(&format!("limits: {{ unauthenticated_bytes: {bound} }}\nroutes: [{{ path: /public, auth: none }}]\n"))
            .await;
    // Requests that are being answered are not evicted, whatever they hold.
    let mut served = Vec::new();
    for _ in 0..REQUESTS {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send("GET /public HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        served.push((client, conn));
    }
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(upgrade("/ws", &[])).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code()), (503, "busy".into()));
    // Once one of them has its answer there is room.
    let (mut client, mut conn) = served.pop().expect("one that is served");
    conn.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await.status, 200);
    Socket::open(fixture.proxy.address, "/ws", &[]).await;
}

#[tokio::test]
async fn check_says_what_strangers_can_take_and_the_start_warns_where_there_is_less_memory() {
    let warning = "clients that have not authenticated can make it hold 2621440012 MiB (limits.unauthenticated_bytes is 1048576000 MiB)";
    for (bound, sum, is_warned) in [("1MiB", "14 MiB", false), ("1024000GiB", "2621440012 MiB", true)] {
        let file = TempFile::new(&format!(
            "listen: 127.0.0.1:0\nadmin: null\nupstream: http://127.0.0.1:1\nproviders: [{{ preset: shared-secret, secret: 3Qf9x7Lk2budget0123456789abcdefgh, audience: any }}]\nlimits: {{ unauthenticated_bytes: {bound} }}\nlog: {{ format: json }}\n"
        ));
        let check = command().args(["check", "--config", file.path()]).output().expect("runs");
        let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert!(check.status.success(), "{said}");
        assert!(said.contains(&format!("at most {sum} while no caller has authenticated")), "{said}");
        assert_eq!(said.contains(warning), is_warned, "{said}");
        // The program is ready, and has logged its warnings before.
        let log = Proxy::of_file(&file.0).await.log();
        assert_eq!(log.iter().any(|line| line.contains(warning)), is_warned, "{log:?}");
    }
}

#[tokio::test]
async fn three_hundred_unfinished_heads_take_no_memory_and_users_are_served_meanwhile() {
    let fixture = bounded("").await;
    let before = fixture.proxy.peak_memory();
    let head = unfinished(62 << 10);
    let (mut strangers, fitting) = (JoinSet::new(), BOUND / (62 << 10));
    for _ in 0..300 {
        let mut stranger = Client::connect(fixture.proxy.address).await;
        // The caller may be evicted before it has sent everything.
        let _ = stranger.stream.write_all(head.as_bytes()).await;
        strangers.spawn(async move { stranger.is_closed().await });
    }
    for _ in fitting..300 {
        within("one more to give way", strangers.join_next()).await;
    }
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
    let grown = fixture.proxy.peak_memory() - before;
    assert!(grown < 10 << 20, "{} KiB", grown >> 10);
}
