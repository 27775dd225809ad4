//! Answers that come before the end of their request: they reach a client that is still sending, from the upstream or from the proxy,
//! and within the limits the connection is used on. And answers to a client that sends nothing more.

use std::time::Duration;

use crate::fixture::{Fixture, fixture};
use crate::support::client::{Answer, Client, bearer};
use crate::support::within;

/// A client that reads nothing before it has sent all: the head, and a body in pieces with pauses, as a network
/// delivers it. A reset in the meantime makes a write fail or takes the answer away.
async fn sent_whole_before_reading(client: &mut Client, head: &str, body: &[u8]) -> Answer {
    client.send(head).await;
    for piece in body.chunks(16 << 10) {
        // The sender's pace; that the answer comes meanwhile is the point, however long it takes.
        tokio::time::sleep(Duration::from_millis(2)).await;
        client.send(piece).await;
    }
    client.answer().await
}

fn post(target: &str, fields: &[&str], length: usize) -> String {
    let fields = fields.join("\r\n");
    format!("POST {target} HTTP/1.1\r\n{fields}\r\nContent-Length: {length}\r\n\r\n")
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in body.chunks(10_000) {
        bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

const HOST: &str = "Host: localhost";
const RULES: &str = "routes:\n- { path: /deny/**, auth: deny }\n- { path: /staff/**, require: { role: staff } }\n";

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let fixture = fixture(&format!(
        "hosts: [localhost]\nlimits: {{ body_bytes: 50000, header_bytes: 8KiB, token_bytes: 4KiB }}\n{RULES}"
    ))
    .await;
    let (good, expired) = (bearer(&fixture.issuer.token("alice")), bearer(&fixture.issuer.expired("alice")));
    let long = format!("/{}", "x".repeat(9000));
    let wide = format!("X-Wide: {}", "x".repeat(9000));
    let cases: [(&str, String, u16); 11] = [
        ("no token", post("/x", &[HOST], 49_000), 401),
        ("an expired one", post("/x", &[HOST, &expired], 49_000), 401),
        ("denied to all", post("/deny/x", &[HOST, &good], 49_000), 403),
        ("denied to this user", post("/staff/x", &[HOST, &good], 49_000), 403),
        ("not ours", post("/.vestibule/x", &[HOST, &good], 49_000), 404),
        ("another host", post("/x", &["Host: other", &good], 49_000), 421),
        ("two hosts", post("/x", &[HOST, HOST, &good], 49_000), 400),
        ("a broken escape", post("/%zz", &[HOST, &good], 49_000), 400),
        ("a long target", post(&long, &[HOST, &good], 49_000), 414),
        ("a wide head", post("/x", &[HOST, &good, &wide], 49_000), 431),
        ("a large body", post("/x", &[HOST, &good], 60_000), 413),
    ];
    for (name, head, status) in cases {
        let length = if status == 413 { 60_000 } else { 49_000 };
        let mut client = Client::connect(fixture.proxy.address).await;
        let answer = sent_whole_before_reading(&mut client, &head, &vec![b'x'; length]).await;
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert!(answer.body.ends_with('}'), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_was_refused_and_ends_in_time_keeps_its_connection() {
    // Longer than a busy machine takes for the body.
    let fixture = fixture("limits: { discard_body_timeout: 1m }\n").await;
    let body = vec![b'x'; 5 << 20];
    let mut client = Client::connect(fixture.proxy.address).await;
    // Both framings, and what comes behind the body is the next request.
    let head = post("/x", &[HOST], body.len());
    assert_eq!(sent_whole_before_reading(&mut client, &head, &body).await.code(), "missing_token");
    let head = "PUT /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(sent_whole_before_reading(&mut client, head, &chunked(&body)).await.code(), "missing_token");
    let fields = bearer(&fixture.issuer.token("alice"));
    client.send(format!("GET /next HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n")).await;
    let (answer, heard) = tokio::join!(client.answer(), fixture.backend.answer("next"));
    assert_eq!((answer.body.as_str(), heard.target()), ("next", "/next"));
}

#[tokio::test]
async fn a_connection_that_was_kept_so_is_idle_again() {
    let fixture = fixture("limits: { keep_alive_timeout: 1s, header_timeout: 20s }\n").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/x", &[HOST], 8)).await;
    assert_eq!(client.answer().await.status, 401);
    client.send("the rest").await;
    // By keep_alive_timeout: no body is awaited any more, and no head has begun.
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_request_that_comes_with_the_rest_of_a_refused_body_may_take_longer_than_an_idle_connection() {
    let fixture = fixture("limits: { keep_alive_timeout: 1s, header_timeout: 20s }\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/x", &[HOST], 8)).await;
    assert_eq!(client.answer().await.status, 401);
    // In one read, so that the next head is found before the end of the body is noticed.
    client.send(format!("the restGET /next HTTP/1.1\r\n{HOST}\r\n{credential}\r\n\r\n")).await;
    let mut conn = fixture.backend.accept().await;
    assert_eq!(conn.request().await.target(), "/next");
    // Longer than `keep_alive_timeout`, which another connection waits out.
    let mut idle = Client::connect(fixture.proxy.address).await;
    idle.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 200);
    assert!(idle.is_closed().await);
    conn.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
    assert_eq!(client.answer().await.body, "next");
}

#[tokio::test]
async fn of_a_refused_body_no_more_is_read_than_discard_body_bytes() {
    let fixture = fixture("limits: { discard_body_bytes: 64KiB, discard_body_timeout: 20s }\n").await;
    // Said at once where the length is known, and our end is closed although the body is not there.
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/x", &[HOST], 65_537)).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (401, Some("close")));
    assert!(client.is_closed().await);
    // Found out where it is not.
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send("POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (401, None));
    let piece = chunked(&[b'x'; 8000]);
    let piece = &piece[..piece.len() - 5];
    let mut taken = 0;
    within("the end of an endless body", async {
        use tokio::io::AsyncWriteExt as _;
        while client.stream.write_all(piece).await.is_ok() {
            taken += piece.len();
        }
    })
    .await;
    // What the system's buffers take comes on top.
    assert!((64 << 10..16 << 20).contains(&taken), "{taken}");
}

#[tokio::test]
async fn a_connection_whose_refused_body_ends_right_behind_discard_body_bytes_is_closed_or_idle() {
    let limits = "limits: { discard_body_bytes: 100, keep_alive_timeout: 1s, header_timeout: 20s }\n";
    let fixture = fixture(limits).await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send("POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 401);
    client.send(chunked(&[b'x'; 150])).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn a_refused_body_is_awaited_no_longer_than_discard_body_timeout() {
    let fixture = fixture("limits: { discard_body_timeout: 300ms, keep_alive_timeout: 60s }\n").await;
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        for fields in ["", "Connection: close\r\n"] {
            let mut client = Client::connect(fixture.proxy.address).await;
            client.send(format!("POST /x HTTP/1.1\r\nHost: localhost\r\n{fields}{framing}\r\n\r\n3\r\n")).await;
            assert_eq!(client.answer().await.status, 401, "{framing} {fields}");
            assert!(client.is_closed().await, "{framing} {fields}");
        }
    }
}

#[tokio::test]
async fn the_end_of_a_closed_connection_comes_before_the_rest_of_the_body() {
    let fixture = fixture("limits: { discard_body_timeout: 60s }\n").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/x", &[HOST, "Connection: close"], 100)).await;
    assert_eq!(client.answer().await.status, 401);
    // A client that reads to the end gets it, and can still send.
    assert!(client.is_closed().await);
    client.send([b'x'; 100]).await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_refused_without_it() {
    let fixture = fixture("").await;
    for expect in ["Expect: 100-continue", "Expect: y, 100-continue", "Expect: y\r\nExpect: 100-continue", "Expect: y"]
    {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(post("/x", &[HOST, expect], 100)).await;
        let answer = client.answer().await;
        // The client may send the body or not, so the next bytes could not be distinguished from it.
        assert_eq!((answer.status, answer.field("connection")), (401, Some("close")), "{expect}");
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn an_early_answer_of_the_upstream_reaches_a_client_that_is_still_sending() {
    // Longer than a busy machine takes for the body.
    let fixture = fixture("limits: { discard_body_timeout: 1m }\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let body = vec![b'x'; 3 << 20];
    // As small servers do: the answer, and a close with the body unread, which is a reset.
    let framings = [
        ("Content-Length: 9\r\nConnection: close\r\n\r\ntoo large", "too large"),
        ("Content-Length: 9\r\n\r\ntoo large", "too large"),
        ("\r\ntoo large", "9\r\ntoo large\r\n0\r\n"),
    ];
    for (rest, _) in framings {
        for round in 0..5 {
            let client = async {
                let mut client = Client::connect(fixture.proxy.address).await;
                let head = post("/upload", &[HOST, &credential], body.len());
                sent_whole_before_reading(&mut client, &head, &body).await
            };
            let upstream = async {
                let mut conn = fixture.backend.accept().await;
                conn.head().await;
                conn.write(format!("HTTP/1.1 413 Too Large\r\n{rest}")).await;
            };
            let (answer, ()) = tokio::join!(client, upstream);
            assert_eq!(answer.status, 413, "{rest:?} {round}: {answer:?}");
        }
    }
}

/// An answer that ends with its connection is cut short by a reset. What there is of it reaches the client, which can
/// still send.
#[tokio::test]
async fn an_early_answer_that_a_reset_cuts_short_reaches_a_client_that_is_still_sending() {
    use tokio::io::AsyncReadExt as _;
    let fixture = fixture("limits: { discard_body_timeout: 1m }\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    for round in 0..10 {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(post("/upload", &[HOST, &credential], 1 << 20)).await;
        let mut conn = fixture.backend.accept().await;
        conn.head().await;
        conn.write("HTTP/1.1 413 Too Large\r\n\r\ntoo large").await;
        // Nothing is being written to it, so the reset is found by reading.
        socket2::SockRef::from(&conn.stream).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(conn);
        for _ in 0..32 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            client.send([b'x'; 16 << 10]).await;
        }
        let mut answer = Vec::new();
        while !answer.windows(9).any(|part| part == b"too large") {
            let read = within("the answer", client.stream.read_buf(&mut answer)).await;
            assert!(read.is_ok_and(|length| length > 0), "{round}: {}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{round}: {}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn an_upload_goes_on_behind_an_early_answer_and_its_connection_is_kept() {
    let fixture = fixture("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/upload", &[HOST, &credential], 100)).await;
    let mut conn = fixture.backend.accept().await;
    let head = conn.head().await;
    conn.write("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await.body, "ok");
    client.send([b'y'; 100]).await;
    assert_eq!(conn.body(head).await.body, [b'y'; 100]);
    client.send(format!("GET /next HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
    let (answer, heard) = tokio::join!(client.answer(), fixture.backend.answer("next"));
    assert_eq!((answer.body.as_str(), heard.target()), ("next", "/next"));
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_502_for_a_client_that_is_still_sending() {
    let Fixture { issuer, proxy, backend } = fixture("").await;
    drop(backend);
    let body = vec![b'x'; 1 << 20];
    let mut client = Client::connect(proxy.address).await;
    let head = post("/upload", &[HOST, &bearer(&issuer.token("alice"))], body.len());
    assert_eq!(sent_whole_before_reading(&mut client, &head, &body).await.code(), "upstream_failed");
}

#[tokio::test]
async fn what_is_no_request_is_refused_to_a_client_that_is_still_sending() {
    let fixture = fixture("").await;
    let endless = format!("GET /x HTTP/1.1\r\nHost: localhost\r\nX-Endless: {}", "x".repeat(300_000));
    let garbage = format!("GET /x\u{1} HTTP/1.1\r\n\r\n{}", "x".repeat(300_000));
    for (bytes, status) in [(endless, 431), (garbage, 400)] {
        let mut client = Client::connect(fixture.proxy.address).await;
        assert_eq!(sent_whole_before_reading(&mut client, "", bytes.as_bytes()).await.status, status);
    }
}

#[tokio::test]
async fn a_body_that_is_read_away_holds_its_place_among_the_connections() {
    let fixture = fixture("limits: { connections: 1, discard_body_timeout: 20s }\n").await;
    let mut first = Client::connect(fixture.proxy.address).await;
    first.send(post("/x", &[HOST, "Connection: close"], 100)).await;
    assert_eq!(first.answer().await.status, 401);
    assert!(first.is_closed().await, "our end");
    let mut second = Client::connect(fixture.proxy.address).await;
    assert_eq!(second.answer().await.code(), "busy");
}

#[tokio::test]
async fn a_drain_waits_for_refused_bodies_no_longer_than_its_own_time() {
    let mut fixture = fixture("drain: { timeout: 1s }\nlimits: { discard_body_timeout: 1m }\n").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(post("/x", &[HOST], 100)).await;
    assert_eq!(client.answer().await.status, 401);
    fixture.proxy.signal("TERM");
    assert!(fixture.proxy.ended().await.is_some());
}

#[tokio::test]
async fn a_client_that_ends_its_side_behind_its_requests_has_the_answers_that_wait_for_nobody() {
    let fixture = fixture("hosts: [localhost]\n").await;
    let post = post("/x", &[HOST], 4) + "abcd";
    let get = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for requests in [vec![get], vec![&post], vec![get, get], vec![&post, get], vec![get, &post, get]] {
        // This is repeated, because the test cannot decide whether the end comes with the last bytes or after them.
        for round in 0..50 {
            let mut client = Client::connect(fixture.proxy.address).await;
            client.send(requests.concat()).await;
            client.finish().await;
            for number in 0..requests.len() {
                let answer = client.try_answer().await.map(|answer| answer.status);
                assert_eq!(answer, Some(401), "round {round}, answer {number} to {requests:?}");
            }
            assert!(client.is_closed().await, "round {round}, {requests:?}");
        }
    }
}
