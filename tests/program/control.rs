//! The control listener: revocations that end what is open and refuse what comes, and the drain.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;

use serde_json::json;

use crate::fixture::{open_socket, outcome};
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get, request};
use crate::support::control::post;
use crate::support::issuer::Issuer;
use crate::support::proxy::{Proxy, TempFile};
use crate::support::socket::{Socket, upgrade};
use crate::support::{now, unused_port};

struct Fixture {
    issuer: Issuer,
    backend: Backend,
    proxy: Proxy,
    socket: PathBuf,
}

/// A name for a socket or a file that goes when the test does.
fn name(what: &str) -> TempFile {
    let file = TempFile::new("");
    std::fs::remove_file(&file.0).expect("removed");
    let mut path = file.0.clone();
    path.set_extension(what);
    TempFile(path)
}

async fn fixture(more: &str, control: &str) -> (Fixture, TempFile) {
    let (issuer, backend, socket) = (Issuer::start().await, Backend::start().await, name("sock"));
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\ncontrol: {{ listen: \"unix:{}\"{control} }}\n{more}",
        backend.url(),
        issuer.provider(),
        socket.path()
    );
    let proxy = Proxy::start(&yaml).await;
    (Fixture { issuer, backend, proxy, socket: socket.0.clone() }, socket)
}

impl Fixture {
    async fn post(&self, target: &str, body: &str) -> u16 {
        post(&self.socket, target, body).await
    }

    async fn revoke(&self, what: serde_json::Value) -> u16 {
        let mut body = json!({"issuer": self.issuer.url});
        for (name, value) in what.as_object().expect("object") {
            body[name] = value.clone();
        }
        self.post("/revoke", &body.to_string()).await
    }

    async fn socket(&self, token: &str) -> (Socket, Socket) {
        open_socket(self.proxy.address, &self.backend, token).await
    }

    async fn outcome(&self, token: &str) -> String {
        outcome(self.proxy.address, &self.backend, token, &[]).await
    }
}

const ENDED: &str = r#"{"type":"error","message":"Session ended"}"#;

#[tokio::test]
async fn a_revoked_user_is_out_at_once_and_stays_out_and_nobody_else_is() {
    let (fixture, _file) = fixture("", "").await;
    let alice = fixture.issuer.token("alice");
    let (mut client, _upstream) = fixture.socket(&alice).await;
    let (mut other, mut other_upstream) = fixture.socket(&fixture.issuer.token("bob")).await;
    assert_eq!(fixture.outcome(&alice).await, "alice", "and it is remembered");
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 204);
    assert_eq!(client.next_text().await, ENDED);
    assert_eq!(client.next_close().await, (1008, "Session ended".into()));
    assert_eq!(fixture.outcome(&alice).await, "invalid_token");
    assert_eq!(fixture.outcome(&fixture.issuer.token_with("alice", json!({"iat": null}))).await, "invalid_token");
    other.say("still here").await;
    assert_eq!(other_upstream.next_text().await, "still here");
    assert_eq!(fixture.outcome(&fixture.issuer.token("bob")).await, "bob");
    fixture.proxy.logged("why", |line| line.contains("revoked by sub")).await;
}

#[tokio::test]
async fn a_session_and_a_single_token() {
    let (fixture, _file) = fixture("", "").await;
    let token = |sid: &str, jti: &str| fixture.issuer.token_with("alice", json!({"sid": sid, "jti": jti}));
    let (mut first, _first_upstream) = fixture.socket(&token("s1", "t1")).await;
    let (mut second, _second_upstream) = fixture.socket(&token("s2", "t2")).await;
    let (mut third, mut third_upstream) = fixture.socket(&token("s3", "t3")).await;
    assert_eq!(fixture.revoke(json!({"sid": "s1"})).await, 204);
    assert_eq!(first.next_text().await, ENDED);
    assert_eq!(fixture.revoke(json!({"jti": "t2"})).await, 204);
    assert_eq!(second.next_text().await, ENDED);
    assert_eq!(fixture.outcome(&token("s1", "t9")).await, "invalid_token");
    assert_eq!(fixture.outcome(&token("s9", "t2")).await, "invalid_token");
    assert_eq!(fixture.outcome(&token("s3", "t3")).await, "alice");
    third.say("still here").await;
    assert_eq!(third_upstream.next_text().await, "still here");
}

#[tokio::test]
async fn the_log_names_the_revoked_user_and_digests_of_other_ids() {
    let (fixture, _file) = fixture("", "").await;
    for (target, subject) in [
        (json!({"sub": "alice"}), "sub alice"),
        (json!({"sid": "provider-session-1"}), "sid with digest "),
        (json!({"jti": "token-id-1"}), "jti with digest "),
    ] {
        assert_eq!(fixture.revoke(target).await, 204);
        let field = format!(r#""subject":"{subject}"#);
        fixture.proxy.logged(subject, |line| line.contains(r#""msg":"revoked""#) && line.contains(&field)).await;
    }
    let log = fixture.proxy.log();
    assert!(!log.iter().any(|line| line.contains("provider-session-1") || line.contains("token-id-1")), "{log:#?}");
}

#[tokio::test]
async fn a_half_closed_client_hears_of_a_revocation() {
    use tokio::io::AsyncWriteExt as _;

    let (fixture, _file) = fixture("", "").await;
    let (mut client, mut upstream) = fixture.socket(&fixture.issuer.token("alice")).await;
    client.stream.shutdown().await.expect("half closed");
    upstream.say("still there?").await;
    assert_eq!(client.next_text().await, "still there?");
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 204);
    assert_eq!(client.next_text().await, ENDED);
    assert_eq!(client.next_close().await, (1008, "Session ended".to_owned()));
}

#[tokio::test]
async fn sockets_in_the_middle_of_being_admitted_do_not_slip_through() {
    let (fixture, _file) = fixture("", "").await;
    let alice = fixture.issuer.token("alice");
    // In band: verified, and the upstream has not answered yet.
    let mut in_band = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    in_band.say(&format!(r#"{{"type":"authenticate","token":"{alice}"}}"#)).await;
    in_band.say("never heard").await;
    let dialled = fixture.backend.accept().await;
    // On the upgrade.
    let mut on_upgrade = Client::connect(fixture.proxy.address).await;
    on_upgrade.send(upgrade("/ws", &[&bearer(&alice)])).await;
    let asked = fixture.backend.accept().await;
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 204);
    let ((_, mut first), (_, mut second)) = tokio::join!(dialled.switch(""), asked.switch(""));
    assert_eq!(in_band.next_text().await.split(',').next(), Some(r#"{"type":"authenticated""#));
    assert_eq!(in_band.next_text().await, ENDED);
    assert_eq!(on_upgrade.answer().await.status, 101);
    let (stream, buffer) = on_upgrade.into_parts();
    let mut on_upgrade = Socket::new(stream, crate::support::socket::Side::Client, buffer);
    assert_eq!(on_upgrade.next_text().await, ENDED);
    // Toward the upstream a session that we end is a Close 1001.
    assert_eq!(first.next_close().await.0, 1001);
    assert_eq!(second.next_close().await.0, 1001);
}

#[tokio::test]
async fn a_refresh_with_a_revoked_token_is_refused() {
    let (fixture, _file) = fixture("", "").await;
    let token = |jti: &str| fixture.issuer.token_with("alice", json!({"jti": jti}));
    let (mut client, mut upstream) = fixture.socket(&token("t1")).await;
    assert_eq!(fixture.revoke(json!({"jti": "t2"})).await, 204);
    client.say(&format!(r#"{{"type":"refresh_auth","token":"{}"}}"#, token("t2"))).await;
    let refused = r#"{"type":"error","message":"Token refresh failed: Invalid authentication token"}"#;
    assert_eq!(client.next_text().await, refused);
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
}

#[tokio::test]
async fn event_streams_break_off_and_are_never_taken_for_whole() {
    let (fixture, _file) = fixture("", "").await;
    let alice = fixture.issuer.token("alice");
    let mut client = Client::connect(fixture.proxy.address).await;
    let head =
        format!("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{}\r\n\r\n", bearer(&alice));
    client.send(head).await;
    let mut upstream = fixture.backend.accept().await;
    upstream.request().await;
    upstream.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n").await;
    client.until("data: 1\n\n\r\n").await;
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 204);
    assert!(client.is_closed().await, "without the last chunk");
    assert!(upstream.is_closed().await);
    fixture.proxy.logged("its line", |line| line.contains("/events") && line.contains(r#""outcome":"revoked""#)).await;
}

#[tokio::test]
async fn event_streams_end_with_their_token_only_where_that_is_said() {
    for (more, ends) in
        [("events: { on_expiry: close }\nwebsocket: { grace: 0s }\n", true), ("websocket: { grace: 0s }\n", false)]
    {
        let (fixture, _file) = fixture(more, "").await;
        // The clock skew of five seconds makes it end in four.
        let dying = fixture.issuer.token_with("alice", json!({"exp": now() - 1}));
        let mut client = Client::connect(fixture.proxy.address).await;
        client
            .send(format!(
                "GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{}\r\n\r\n",
                bearer(&dying)
            ))
            .await;
        let mut upstream = fixture.backend.accept().await;
        upstream.request().await;
        upstream.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
        client.until("1\r\na\r\n").await;
        if ends {
            assert!(client.is_closed().await);
            fixture.proxy.logged("its line", |line| line.contains(r#""outcome":"expired""#)).await;
        } else {
            // Past its end, by the proxy's own word on it.
            while fixture.outcome(&dying).await != "token_expired" {}
            upstream.write("1\r\nb\r\n0\r\n\r\n").await;
            client.until("1\r\nb\r\n0\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn what_is_not_a_revocation_changes_nothing() {
    let (fixture, file) = fixture("limits: { revocations: 2 }\n", "").await;
    let meta = std::fs::metadata(&file.0).expect("there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    let issuer = &fixture.issuer.url;
    for body in [
        String::new(),
        "[]".to_owned(),
        "{}".to_owned(),
        json!({"issuer": issuer}).to_string(),
        json!({"sub": "alice"}).to_string(),
        json!({"issuer": "https://other", "sub": "alice"}).to_string(),
        json!({"issuer": issuer, "sub": ""}).to_string(),
        json!({"issuer": issuer, "sub": 7}).to_string(),
        json!({"issuer": issuer, "sub": "alice", "sid": "s"}).to_string(),
        json!({"issuer": issuer, "sub": "alice", "at": 1}).to_string(),
        format!(r#"{{"issuer":"{issuer}","sub":"alice","sub":"bob"}}"#),
        format!(r#"{{"issuer":"{issuer}","sub":"{}"}}"#, "x".repeat(20 << 10)),
    ] {
        assert_eq!(fixture.post("/revoke", &body).await, 400, "{body}");
    }
    assert_eq!(fixture.post("/other", "").await, 404);
    let alice = fixture.issuer.token("alice");
    assert_eq!(fixture.outcome(&alice).await, "alice");
    // Full: nothing is forgotten.
    for (sub, expected) in [("a", 204), ("b", 204), ("c", 507), ("a", 204)] {
        assert_eq!(fixture.revoke(json!({ "sub": sub })).await, expected, "{sub}");
    }
    assert_eq!(fixture.outcome(&fixture.issuer.token("a")).await, "invalid_token");
    assert_eq!(fixture.outcome(&fixture.issuer.token("c")).await, "c");
    // The main listener does not serve these endpoints.
    assert_eq!(request(fixture.proxy.address, "POST", "/.vestibule/revoke", &[], "{}").await.status, 404);
}

#[tokio::test]
async fn revocations_outlive_the_process_where_a_file_is_named() {
    let (issuer, backend, file) = (Issuer::start().await, Backend::start().await, name("revocations"));
    let socket = name("sock");
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\ncontrol: {{ listen: \"unix:{}\", revocation_file: \"{}\", revocation_keep: 1h }}\n",
        backend.url(),
        issuer.provider(),
        socket.path(),
        file.path()
    );
    // From an earlier run: a user who has signed in anew since, and one that is over.
    let earlier = json!({"issuer": issuer.url, "sub": "carol", "at": now() - 100, "until": now() + 100});
    let over = json!({"issuer": issuer.url, "sub": "dave", "at": now() - 100, "until": now() - 1});
    std::fs::write(&file.0, format!("{earlier}\n{over}\n")).expect("written");
    let mut fixture = Fixture { proxy: Proxy::start(&yaml).await, issuer, backend, socket: socket.0.clone() };
    assert_eq!(
        fixture.outcome(&fixture.issuer.token_with("carol", json!({"iat": now() - 200}))).await,
        "invalid_token"
    );
    assert_eq!(fixture.outcome(&fixture.issuer.token("carol")).await, "carol");
    assert_eq!(fixture.outcome(&fixture.issuer.token_with("dave", json!({"iat": now() - 200}))).await, "dave");
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 204);
    fixture.proxy.signal("KILL");
    fixture.proxy.ended().await;
    // The socket file of the killed process is left, and is replaced.
    assert!(socket.0.exists());
    fixture.proxy = Proxy::start(&yaml).await;
    assert_eq!(fixture.outcome(&fixture.issuer.token("alice")).await, "invalid_token");
    assert_eq!(fixture.outcome(&fixture.issuer.token("bob")).await, "bob");
    fixture.proxy.signal("TERM");
    assert_eq!(fixture.proxy.ended().await, Some(0));
    assert!(!socket.0.exists(), "a socket file goes with its process");
}

#[tokio::test]
async fn what_cannot_be_written_down_is_in_force_and_says_so() {
    let folder = name("folder");
    std::fs::create_dir(&folder.0).expect("made");
    let file = format!(", revocation_file: \"{}/revocations\"", folder.path());
    let more = "limits: { revocations: 2, sign_outs: 2 }\nadmin: { listen: \"127.0.0.1:0\" }\n";
    let (fixture, _file) = fixture(more, &file).await;
    let admin = fixture.proxy.admin();
    let counts = async |ok: usize, failed: usize| {
        let text = get(admin, "/metrics", &[]).await.body;
        for (outcome, count) in [("ok", ok), ("failed", failed)] {
            let line = format!("vestibule_revocation_file_writes_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    };
    counts(0, 0).await;
    for _ in 0..16 {
        assert_eq!(fixture.revoke(json!({"sub": "bob"})).await, 204);
    }
    // The file is written anew after so many, and there is no place left for it.
    std::fs::remove_dir_all(&folder.0).expect("removed");
    assert_eq!(fixture.revoke(json!({"sub": "alice"})).await, 500);
    assert_eq!(fixture.outcome(&fixture.issuer.token("alice")).await, "invalid_token");
    fixture.proxy.logged("the reason", |line| line.contains("writing control.revocation_file failed")).await;
    counts(16, 1).await;
}

#[tokio::test]
async fn a_drain_can_be_asked_for() {
    let (mut fixture, _file) = fixture("", "").await;
    let (mut client, _upstream) = fixture.socket(&fixture.issuer.token("alice")).await;
    assert_eq!(fixture.post("/drain", "").await, 202);
    assert_eq!(client.next_close().await, (1012, "Service restart".into()));
    drop(client);
    assert_eq!(fixture.proxy.ended().await, Some(0));
}

#[tokio::test]
async fn over_tcp_whoever_has_the_token_may() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let port = std::net::SocketAddr::from(([127, 0, 0, 1], unused_port()));
    let secret = "a-control-token-of-enough-length-0123456789";
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\ncontrol: {{ listen: \"{port}\", token: {secret} }}\n",
        backend.url(),
        issuer.provider()
    );
    let _proxy = Proxy::start(&yaml).await;
    let body = json!({"issuer": issuer.url, "sub": "alice"}).to_string();
    let good = bearer(secret);
    let short = bearer(&secret[..20]);
    for (fields, expected) in [
        (vec![], 401),
        (vec!["Authorization: Bearer"], 401),
        (vec!["Authorization: Basic eA=="], 401),
        (vec![short.as_str()], 401),
        (vec![good.as_str(), good.as_str()], 401),
        (vec![good.as_str()], 204),
    ] {
        assert_eq!(request(port, "POST", "/revoke", &fields, &body).await.status, expected, "{fields:?}");
    }
    assert_eq!(request(port, "GET", "/revoke", &[&good], "").await.status, 405);
    // Connections that send nothing are closed, the oldest first.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(Client::connect(port).await);
    }
    assert_eq!(request(port, "POST", "/revoke", &[&good], &body).await.status, 204);
    assert!(silent[0].is_closed().await);
}

#[tokio::test]
async fn an_answer_that_needs_no_body_reaches_a_caller_that_is_still_sending_one() {
    let (fixture, _file) = fixture("", "").await;
    let body = "x".repeat(600 << 10);
    for _ in 0..5 {
        assert_eq!(post(&fixture.socket, "/nowhere", &body).await, 404);
    }
}
