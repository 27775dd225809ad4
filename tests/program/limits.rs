//! Every key under `limits:`, `upstream:` and `websocket:` has a test that sets it, reaches it and reads the answer
//! off the wire. The table says which; the tests that have no better place stand here.

use std::collections::BTreeSet;

use serde_json::json;
use socket2::{Domain, Socket as RawSocket, Type};

use crate::fixture::Fixture;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::Issuer;
use crate::support::now;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

/// Key, file of its test below `tests/program`, name of its test.
const TESTED: [(&str, &str, &str); 58] = [
    ("limits.connections", "http.rs", "limits_of_time_and_size_give_the_answers_they_promise"),
    ("limits.connections_per_address", "addresses.rs", "one_address_has_so_many_connections"),
    ("limits.waiting_websockets", "websocket.rs", "a_full_room_sends_the_longest_silent_away"),
    ("limits.waiting_websockets_per_address", "websocket.rs", "a_full_room_sends_the_longest_silent_away"),
    ("limits.websockets_per_user", "websocket/life.rs", "a_user_has_a_number_of_sockets_and_others_have_theirs"),
    ("limits.login_attempts", "login/clients.rs", "used_attempts_beyond_the_limit_are_forgotten_the_oldest_first"),
    ("limits.login_requests", "login/clients.rs", "sign_ins_beyond_the_limit_of_requests_are_503"),
    ("limits.login_sessions", "login/clients.rs", "a_session_beyond_the_limit_goes_on_by_its_cookie"),
    ("limits.presence", "limits.rs", "who_found_no_place_in_a_full_table_of_presence_is_not_seen"),
    ("limits.unauthenticated_bytes", "strangers.rs", "an_unfinished_head_gives_way_with_431_to_those_that_hold_less"),
    (
        "limits.held_message_bytes",
        "websocket/token_field.rs",
        "of_all_unfinished_messages_the_longest_gives_way_and_the_others_arrive_whole",
    ),
    ("limits.token_cache", "identity.rs", "a_token_seen_before_is_not_verified_again"),
    ("limits.revocations", "control.rs", "what_is_not_a_revocation_changes_nothing"),
    (
        "limits.sign_outs",
        "sessions/sign_outs.rs",
        "a_sign_out_that_did_nothing_is_503_and_takes_nothing_from_the_operator",
    ),
    (
        "limits.sign_outs_per_user",
        "sessions/sign_outs.rs",
        "beyond_a_user_s_limit_all_of_their_sessions_end_and_nobody_else_s",
    ),
    ("limits.failed_tokens_per_minute", "addresses.rs", "bad_tokens_are_429_beyond_the_limit_and_good_ones_are_served"),
    ("limits.token_bytes", "limits.rs", "a_token_over_token_bytes_is_none"),
    ("limits.header_bytes", "http.rs", "malformed_requests_end_at_the_door"),
    ("limits.header_timeout", "http.rs", "limits_of_time_and_size_give_the_answers_they_promise"),
    ("limits.keep_alive_timeout", "http.rs", "an_idle_connection_may_wait_longer_than_a_head_that_has_begun"),
    ("limits.body_bytes", "http.rs", "limits_of_time_and_size_give_the_answers_they_promise"),
    ("limits.body_idle_timeout", "http.rs", "limits_of_time_and_size_give_the_answers_they_promise"),
    ("limits.discard_body_bytes", "early.rs", "of_a_refused_body_no_more_is_read_than_discard_body_bytes"),
    ("limits.discard_body_timeout", "early.rs", "a_refused_body_is_awaited_no_longer_than_discard_body_timeout"),
    ("limits.send_timeout", "limits.rs", "whoever_takes_no_byte_for_send_timeout_is_left"),
    ("upstream.url", "transport.rs", "an_upstream_behind_tls_is_known_by_its_certificate"),
    ("upstream.preset", "sessions.rs", "a_known_backend_brings_what_its_pages_need"),
    ("upstream.host", "limits.rs", "an_upstream_sees_the_host_that_is_written"),
    ("upstream.connect_timeout", "limits.rs", "an_upstream_that_cannot_be_connected_to_in_time_is_504"),
    ("upstream.handshake_timeout", "limits.rs", "an_upgrade_that_is_not_answered_in_time"),
    ("upstream.response_timeout", "http.rs", "an_upstream_that_is_gone_or_broken_is_502_and_a_slow_one_504"),
    ("upstream.pool_idle_timeout", "limits.rs", "an_unused_connection_is_given_up_after_pool_idle_timeout"),
    ("upstream.reuse", "limits.rs", "without_reuse_every_request_has_a_connection_of_its_own"),
    ("upstream.tls", "transport.rs", "an_upstream_behind_tls_is_known_by_its_certificate"),
    (
        "upstream.token_to",
        "http.rs",
        "the_token_goes_up_only_where_the_file_says_so_and_the_backends_secret_only_for_the_verified",
    ),
    (
        "upstream.credential",
        "http.rs",
        "the_token_goes_up_only_where_the_file_says_so_and_the_backends_secret_only_for_the_verified",
    ),
    ("websocket.dialect", "websocket.rs", "without_an_in_band_handshake_a_socket_needs_its_credential_on_the_upgrade"),
    ("websocket.auth_timeout", "websocket.rs", "a_socket_that_says_nothing_is_closed_in_time"),
    ("websocket.on_expiry", "websocket.rs", "keep_outlives_the_token"),
    ("websocket.grace", "websocket/life.rs", "auto_closes_a_client_that_has_shown_it_can_renew"),
    ("websocket.presence", "websocket/life.rs", "auto_lives_on_while_its_user_is_seen"),
    ("websocket.max_lifetime", "websocket.rs", "sockets_end_by_max_lifetime_and_by_idleness"),
    ("websocket.revalidate_every", "remote.rs", "an_open_socket_ends_when_its_user_signed_out"),
    ("websocket.revalidate_grace", "remote.rs", "a_silent_provider_is_borne_for_revalidate_grace"),
    ("websocket.ping_interval", "websocket.rs", "silent_peers_are_pinged_and_dead_ones_dropped"),
    ("websocket.ping_timeout", "websocket.rs", "silent_peers_are_pinged_and_dead_ones_dropped"),
    ("websocket.idle_timeout", "websocket.rs", "sockets_end_by_max_lifetime_and_by_idleness"),
    ("websocket.message_bytes", "websocket/token_field.rs", "messages_are_read_whole_up_to_message_bytes"),
    ("websocket.subprotocols", "websocket.rs", "subprotocols_in_band_are_chosen_from_what_the_route_names"),
    ("websocket.allowed_origins", "websocket.rs", "written_origins_are_checked_on_every_upgrade_that_sends_one"),
    ("websocket.drain_code", "limits.rs", "sockets_hear_the_drain_code_that_is_written"),
    // Others that bound something.
    ("control.revocation_keep", "control.rs", "revocations_outlive_the_process_where_a_file_is_named"),
    ("remote.concurrency", "remote.rs", "no_more_questions_than_half_of_concurrency_are_under_way_at_the_door"),
    ("remote.timeout", "remote.rs", "a_provider_that_cannot_answer_is_503_and_never_401"),
    ("remote.cache", "remote.rs", "a_token_without_an_end_is_asked_about_again_on_its_socket"),
    ("session.max_age", "sessions.rs", "posting_again_renews_and_another_user_must_wait_for_the_sign_out"),
    ("session.revalidate_every", "sessions.rs", "the_provider_is_asked_again_about_a_session"),
    ("events.on_expiry", "control.rs", "event_streams_end_with_their_token_only_where_that_is_said"),
];

fn text_of(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The keys of a struct of the configuration's shape.
fn keys(shape: &str, name: &str) -> Vec<String> {
    let body = shape.split(&format!("pub struct {name} {{")).nth(1).and_then(|rest| rest.split("\n}").next());
    let body = body.unwrap_or_else(|| panic!("no struct {name}"));
    let fields = body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
    fields.map(|(key, _)| key.to_owned()).collect()
}

#[test]
fn every_key_that_bounds_something_has_a_test_that_reaches_it() {
    let shape = crate::configuration::shape();
    let tested: BTreeSet<&str> = TESTED.iter().map(|(key, ..)| *key).collect();
    for (section, name) in [("limits", "Limits"), ("upstream", "Upstream"), ("websocket", "WebSocket")] {
        for key in keys(&shape, name) {
            assert!(tested.contains(format!("{section}.{key}").as_str()), "{section}.{key} has no test in this table");
        }
    }
    for (key, file, test) in TESTED {
        let text = text_of(&format!("tests/program/{file}"));
        let body = text.split(&format!("fn {test}(")).nth(1).unwrap_or_else(|| panic!("{file} has no test {test}"));
        let body = body.split("\n}\n").next().unwrap_or(body);
        let name = key.rsplit('.').next().expect("a name");
        assert!(body.contains(name), "{test} does not set {name}");
    }
}

async fn fixture(upstream: &str, more: &str) -> Fixture {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = format!("upstream: {{ url: {}{upstream} }}\nproviders: [{}]\n{more}", backend.url(), issuer.provider());
    Fixture { proxy: Proxy::start(&yaml).await, issuer, backend }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_connected_to_in_time_is_504() {
    // A listener whose queue is full does not answer.
    let full = RawSocket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bound");
    full.listen(0).expect("listens");
    let address = full.local_addr().expect("address").as_socket().expect("an address");
    let mut waiting = Vec::new();
    loop {
        let connecting = tokio::net::TcpStream::connect(address);
        // Long for loopback: what has not connected by then waits for room in the queue.
        match tokio::time::timeout(std::time::Duration::from_millis(500), connecting).await {
            Ok(stream) => waiting.push(stream.expect("connects")),
            Err(_) => break,
        }
        assert!(waiting.len() < 100, "the queue has no end");
    }
    let issuer = Issuer::start().await;
    let yaml =
        format!("upstream: {{ url: http://{address}, connect_timeout: 300ms }}\nproviders: [{}]\n", issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    let token = issuer.token("alice");
    let answer = get(proxy.address, "/x", &[&bearer(&token)]).await;
    assert_eq!((answer.status, answer.code()), (504, "upstream_timeout".into()));
    let mut socket = Socket::open(proxy.address, "/ws", &[]).await;
    assert_eq!(socket.authenticate(&token).await["message"], "Upstream unavailable");
    assert_eq!(socket.next_close().await, (1011, "Upstream unavailable".into()));
}

#[tokio::test]
async fn an_upgrade_that_is_not_answered_in_time() {
    let fixture = fixture(", handshake_timeout: 300ms", "").await;
    let token = fixture.issuer.token("alice");
    let credential = bearer(&token);
    let fields = [credential.as_str()];
    let silent = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        assert!(conn.is_closed().await);
    };
    let ((answer, _), ()) = tokio::join!(Socket::try_open(fixture.proxy.address, "/ws", &fields), silent);
    assert_eq!((answer.status, answer.code()), (504, "upstream_timeout".into()));
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let silent = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        assert!(conn.is_closed().await);
    };
    let (said, ()) = tokio::join!(socket.authenticate(&token), silent);
    assert_eq!(said["message"], "Upstream unavailable");
    assert_eq!(socket.next_close().await, (1011, "Upstream unavailable".into()));
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_unused_connection_is_given_up_after_pool_idle_timeout() {
    let fixture = fixture(", pool_idle_timeout: 200ms", "").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let fields = [credential.as_str()];
    let (answer, mut conn) = tokio::join!(get(fixture.proxy.address, "/x", &fields), async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(OK).await;
        conn
    });
    assert_eq!(answer.status, 200);
    assert!(conn.is_closed().await);
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("again"));
    assert_eq!(answer.body, "again");
}

#[tokio::test]
async fn an_upstream_sees_the_host_that_is_written() {
    for (host, ours) in [("client", false), ("upstream", true)] {
        let fixture = fixture(&format!(", host: {host}"), "").await;
        let credential = bearer(&fixture.issuer.token("alice"));
        let fields = [credential.as_str()];
        let (_, heard) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
        let expected = if ours { fixture.backend.address().to_string() } else { "localhost".to_owned() };
        assert_eq!(heard.all("host"), [expected.as_str()], "{host}");
        assert_eq!(heard.all("x-forwarded-host"), ["localhost"]);
    }
}

#[tokio::test]
async fn without_reuse_every_request_has_a_connection_of_its_own() {
    let fixture = fixture(", reuse: false", "").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    let head = format!(
        "GET /x HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\n{}\r\n\r\n",
        bearer(&fixture.issuer.token("alice"))
    );
    for _ in 0..3 {
        client.send(&head).await;
        let mut conn = fixture.backend.accept().await;
        // A server that leaves a body unread must not read it as a second request.
        assert_eq!(conn.request().await.all("connection"), ["close"]);
        conn.write(OK).await;
        assert_eq!(client.answer().await.body, "ok");
        assert!(conn.is_closed().await);
    }
}

#[tokio::test]
async fn sockets_hear_the_drain_code_that_is_written() {
    let fixture =
        fixture("", "websocket: { drain_code: 4000 }\nroutes: [{ path: /own, websocket: { drain_code: 1001 } }]\n")
            .await;
    let token = fixture.issuer.token("alice");
    let mut sockets = Vec::new();
    for (path, code) in [("/ws", 4000), ("/own", 1001)] {
        let mut socket = Socket::open(fixture.proxy.address, path, &[]).await;
        let (said, (_, upstream)) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
        assert_eq!(said["type"], "authenticated");
        sockets.push((socket, upstream, code));
    }
    fixture.proxy.signal("TERM");
    for (mut socket, _upstream, code) in sockets {
        assert_eq!(socket.next_close().await, (code, "Service restart".into()));
    }
}

#[tokio::test]
async fn whoever_takes_no_byte_for_send_timeout_is_left() {
    let fixture = fixture("", "limits: { send_timeout: 500ms }\n").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client
        .send(format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(&fixture.issuer.token("alice"))))
        .await;
    let mut conn = fixture.backend.accept().await;
    conn.request().await;
    conn.write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
    // More than all buffers on the way; the client reads nothing of it.
    let block = vec![b'x'; 1 << 20];
    let mut given = 0;
    let left = async {
        use tokio::io::AsyncWriteExt as _;
        while conn.stream.write_all(&block).await.is_ok() {
            given += 1;
        }
    };
    crate::support::within("the proxy to give up", left).await;
    assert!(given < 200, "{given} MiB went somewhere");
}

#[tokio::test]
async fn a_token_over_token_bytes_is_none() {
    let fixture = fixture("", "limits: { token_bytes: 1KiB }\n").await;
    let long = fixture.issuer.token_with("alice", json!({"pad": "x".repeat(1_000)}));
    assert_eq!(get(fixture.proxy.address, "/x", &[&bearer(&long)]).await.code(), "invalid_token");
    let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(socket.authenticate(&long).await["message"], "Invalid authentication token");
    let good = fixture.issuer.token("alice");
    assert!(good.len() < 1_024, "{}", good.len());
    let fields = [bearer(&good)];
    let fields = [fields[0].as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_reason_for_a_token_over_token_bytes_names_its_length_and_the_limit() {
    let fixture = fixture("", "limits: { token_bytes: 1KiB }\nerrors: verbose\n").await;
    let Fixture { proxy, issuer, backend } = &fixture;
    let long = issuer.token_with("alice", json!({"pad": "x".repeat(1_000)}));
    let reason = format!("the token has {} bytes, and limits.token_bytes allows 1024", long.len());
    let is_line = |line: &str, place: &str| line.contains(&reason) && line.contains(place);
    let answer = get(proxy.address, "/over-http", &[&bearer(&long)]).await;
    assert_eq!(answer.json()["detail"], json!(format!("Invalid token: {reason}")));
    proxy.logged("the line of the request", |line| is_line(line, "/over-http")).await;
    let mut socket = Socket::open(proxy.address, "/first", &[]).await;
    assert_eq!(socket.authenticate(&long).await["message"], "Invalid authentication token");
    drop(socket);
    proxy.logged("the line of the socket", |line| is_line(line, "/first")).await;
    let mut socket = Socket::open(proxy.address, "/later", &[]).await;
    let good = issuer.token("alice");
    let (said, (_, _upstream)) = tokio::join!(socket.authenticate(&good), backend.websocket());
    assert_eq!(said["type"], "authenticated");
    socket.say(&json!({"type": "refresh_auth", "token": long}).to_string()).await;
    assert!(socket.next_text().await.contains("Token refresh failed: Invalid authentication token"));
    proxy.logged("the line of the refresh", |line| is_line(line, "refresh refused")).await;
    assert!(!proxy.log().iter().any(|line| line.contains(&long)), "a token is in the log");
}

#[tokio::test]
async fn who_found_no_place_in_a_full_table_of_presence_is_not_seen() {
    let fixture =
        fixture("", "limits: { presence: 1 }\nwebsocket: { on_expiry: auto, grace: 0s, presence: 1h }\n").await;
    let dying = |user: &str| fixture.issuer.token_with(user, json!({"exp": now() - 2}));
    let mut ends = Vec::new();
    for user in ["alice", "bob"] {
        let token = dying(user);
        let mut socket = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        let (said, (_, upstream)) = tokio::join!(socket.authenticate(&token), fixture.backend.websocket());
        assert_eq!(said["user_id"], user);
        ends.push((socket, upstream));
    }
    let [(mut alice, mut upstream), (mut bob, _bob_upstream)] = <[_; 2]>::try_from(ends).ok().expect("two");
    assert_eq!(bob.next_text().await, r#"{"type":"error","message":"Token expired"}"#);
    alice.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
}
