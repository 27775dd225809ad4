//! Stopping without losing anything.

use crate::fixture::{Fixture, fixture};
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::{Side, Socket, upgrade};

#[tokio::test]
async fn sigterm_finishes_requests_tells_sockets_1012_and_exits_0() {
    let Fixture { backend, issuer, mut proxy } = fixture("").await;
    let token = issuer.token("alice");
    let mut open = Socket::open(proxy.address, "/ws", &[]).await;
    let (_, (_, mut upstream)) = tokio::join!(open.authenticate(&token), backend.websocket());
    let mut waiting = Socket::open(proxy.address, "/ws", &[]).await;
    let mut slow = Client::connect(proxy.address).await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&token))).await;
    let mut conn = backend.accept().await;
    conn.request().await;
    proxy.signal("TERM");
    assert_eq!(open.next_close().await, (1012, "Service restart".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    assert_eq!(waiting.next_close().await, (1012, "Service restart".into()));
    drop((open, waiting, upstream));
    conn.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.body.as_str(), answer.field("connection")), (200, "done", Some("close")));
    assert_eq!(proxy.ended().await, Some(0));
    let log = proxy.log();
    assert!(
        log.iter().any(|line| line.contains("draining; ")) && log.iter().any(|line| line.contains("drained")),
        "{log:#?}"
    );
}

#[tokio::test]
async fn many_sockets_are_told_in_turn_and_the_process_waits_for_the_last() {
    let Fixture { backend, issuer, mut proxy } = fixture("drain: { timeout: 60s }\n").await;
    let token = issuer.token("alice");
    let mut pairs = Vec::new();
    for _ in 0..50 {
        let mut open = Socket::open(proxy.address, "/ws", &[]).await;
        let (_, (_, upstream)) = tokio::join!(open.authenticate(&token), backend.websocket());
        pairs.push((open, upstream));
    }
    proxy.signal("TERM");
    let mut told = tokio::task::JoinSet::new();
    for (mut open, mut upstream) in pairs {
        told.spawn(async move {
            // Whether its turn has come meanwhile or not: nothing arrives twice, and the goodbye is last.
            upstream.say("still here").await;
            let first = open.next().await;
            let goodbye = if first.opcode == 8 {
                first
            } else {
                assert_eq!(first.text(), "still here");
                open.next().await
            };
            assert_eq!(goodbye.close(), (1012, "Service restart".to_owned()));
            assert_eq!(upstream.next_close().await.0, 1001);
        });
    }
    told.join_all().await;
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn during_the_delay_it_is_not_ready_but_serves() {
    let Fixture { backend, issuer, mut proxy } = fixture("drain: { delay: 2s, timeout: 5s }\n").await;
    proxy.signal("TERM");
    proxy.logged("the drain", |line| line.contains("draining; ")).await;
    assert_eq!(get(proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    let (answer, _) = tokio::join!(get(proxy.address, "/", &fields), backend.answer("ok"));
    assert_eq!(answer.status, 200);
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_dropped_and_a_second_signal_ends_at_once() {
    let Fixture { backend, issuer, mut proxy } = fixture("drain: { timeout: 1s }\n").await;
    let token = issuer.token("alice");
    let mut slow = Client::connect(proxy.address).await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&token))).await;
    let mut conn = backend.accept().await;
    conn.request().await;
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(0));
    let Fixture { backend, issuer, mut proxy } = fixture("").await;
    let mut slow = Client::connect(proxy.address).await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&issuer.token("alice")))).await;
    let mut conn = backend.accept().await;
    conn.request().await;
    proxy.signal("INT");
    proxy.logged("the drain", |line| line.contains("draining; ")).await;
    proxy.signal("INT");
    assert_eq!(proxy.ended().await, Some(130));
}

#[tokio::test]
async fn an_upgrade_whose_backend_hangs_is_answered_at_the_drain_and_does_not_hold_it() {
    let more = "routes: [{ path: /open, auth: none }]\ndrain: { timeout: 40s }\nupstream: ";
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let upstream = format!("{{ url: \"{}\", handshake_timeout: 30s }}", backend.url());
    let yaml = format!("{more}{upstream}\nproviders: [{}]\n", issuer.provider());
    let mut proxy = Proxy::start(&yaml).await;
    let token = issuer.token("alice");
    let mut clients = Vec::new();
    let mut hanging = Vec::new();
    for (target, field) in [("/ws", bearer(&token)), ("/open", "X-Nothing: 1".to_owned())] {
        let mut client = Client::connect(proxy.address).await;
        client.send(upgrade(target, &[&field])).await;
        let mut conn = backend.accept().await;
        conn.request().await;
        hanging.push(conn);
        clients.push(client);
    }
    // One whose client could not read a status hears it as a Close.
    let mut in_query = Client::connect(proxy.address).await;
    in_query.send(upgrade(&format!("/ws?token={token}"), &[])).await;
    let mut conn = backend.accept().await;
    conn.request().await;
    hanging.push(conn);
    proxy.signal("TERM");
    for mut client in clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
        assert!(answer.field("retry-after").is_some());
    }
    assert_eq!(in_query.answer().await.status, 101);
    let (stream, buffer) = in_query.into_parts();
    assert_eq!(Socket::new(stream, Side::Client, buffer).next_close().await, (1012, "Service restart".into()));
    for mut conn in hanging {
        assert!(conn.is_closed().await);
    }
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn waiting_sockets_are_told_at_the_pace_of_the_drain() {
    let Fixture { backend: _backend, issuer: _issuer, mut proxy } = fixture("drain: { timeout: 60s }\n").await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        waiting.push(Socket::open(proxy.address, "/ws", &[]).await);
    }
    proxy.signal("TERM");
    let mut told = tokio::task::JoinSet::new();
    for mut socket in waiting {
        told.spawn(async move {
            assert_eq!(socket.next_close().await, (1012, "Service restart".to_owned()));
            std::time::Instant::now()
        });
    }
    let mut told = told.join_all().await;
    told.sort();
    // A hundred a second: the last of fifty half a second after the first, and never sooner.
    assert!(told[49] - told[0] >= std::time::Duration::from_millis(400), "{:?}", told[49] - told[0]);
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn a_half_closed_client_hears_the_drain() {
    use tokio::io::AsyncWriteExt as _;

    let Fixture { backend, issuer, mut proxy } = fixture("").await;
    let token = issuer.token("alice");
    let mut open = Socket::open(proxy.address, "/ws", &[]).await;
    let (_, (_, mut upstream)) = tokio::join!(open.authenticate(&token), backend.websocket());
    open.stream.shutdown().await.expect("half closed");
    upstream.say("still there?").await;
    assert_eq!(open.next_text().await, "still there?");
    proxy.signal("TERM");
    assert_eq!(open.next_close().await, (1012, "Service restart".into()));
    drop((open, upstream));
    assert_eq!(proxy.ended().await, Some(0));
}
