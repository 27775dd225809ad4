//! Tests of every method with every framing: the upstream gets the body that the client sent, with the same framing.

use std::fmt::Write as _;

use crate::fixture::fixture_on_one_processor;
use crate::support::client::{Client, bearer};

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"];

/// The name, the fields and the bytes of a request, and the framing and the body that the upstream gets.
const FRAMINGS: [(&str, &str, &str, &str, &str); 6] = [
    ("none", "", "", "", ""),
    ("length 0", "Content-Length: 0\r\n", "", "content-length: 0", ""),
    ("length 4", "Content-Length: 4\r\n", "abcd", "content-length: 4", "abcd"),
    ("chunked", "Transfer-Encoding: chunked\r\n", "4\r\nabcd\r\n0\r\n\r\n", "transfer-encoding: chunked", "abcd"),
    ("chunked, empty", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "transfer-encoding: chunked", ""),
    ("expected", "Content-Length: 4\r\nExpect: 100-continue\r\n", "abcd", "content-length: 4", "abcd"),
];

#[tokio::test]
async fn a_body_reaches_the_upstream_whatever_the_method_with_the_framing_it_came_in() {
    let fixture = fixture_on_one_processor("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut wrong = String::new();
    for method in METHODS {
        for (name, fields, bytes, framing, body) in FRAMINGS {
            let mut client = Client::connect(fixture.proxy.address).await;
            client.send(format!("{method} /x HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n{fields}\r\n")).await;
            let client = async {
                if name == "expected" {
                    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
                }
                client.send(bytes).await;
                client.whole(method == "HEAD").await
            };
            let (seen, heard) = tokio::join!(client, fixture.backend.answer(""));
            let sent = |field: &str| heard.all(field).first().map(|value| format!("{field}: {value}"));
            let framed: Vec<String> =
                ["content-length", "transfer-encoding"].iter().filter_map(|name| sent(name)).collect();
            if framed.join(", ") != framing || heard.body != body.as_bytes() || !seen.starts_with("200") {
                let _ =
                    writeln!(wrong, "{method}, {name}: {framed:?} {:?} {seen}", String::from_utf8_lossy(&heard.body));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The name and the bytes of a response, and the client's results for GET and HEAD.
const ANSWERS: [(&str, &str, &str, &str); 7] = [
    (
        "length",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{abcd}",
        "200 OK [content-length: 4] whole \"abcd\"",
        "200 OK [content-length: 4] whole \"\"",
    ),
    (
        "length 0",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "200 OK [content-length: 0] whole \"\"",
        "200 OK [content-length: 0] whole \"\"",
    ),
    (
        "chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{4\r\nabcd\r\n0\r\n\r\n}",
        "200 OK [transfer-encoding: chunked] whole \"4\\r\\nabcd\\r\\n0\\r\\n\\r\\n\"",
        "200 OK [] whole \"\"",
    ),
    (
        "until the end",
        "HTTP/1.1 200 OK\r\n\r\n{abcd}",
        "200 OK [transfer-encoding: chunked] whole \"4\\r\\nabcd\\r\\n0\\r\\n\\r\\n\"",
        "200 OK [] whole \"\"",
    ),
    ("204", "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content [] whole \"\"", "204 No Content [] whole \"\""),
    ("304", "HTTP/1.1 304 Not Modified\r\n\r\n", "304 Not Modified [] whole \"\"", "304 Not Modified [] whole \"\""),
    (
        // The length is not needed (RFC 9110 section 15.4.5), and hyper's server leaves it out.
        "304 with a length",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
        "304 Not Modified [] whole \"\"",
        "304 Not Modified [content-length: 4] whole \"\"",
    ),
];

#[tokio::test]
async fn an_answer_reaches_the_client_whatever_the_method_with_its_whole_body() {
    let fixture = fixture_on_one_processor("").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let mut wrong = String::new();
    for method in METHODS {
        for (name, answer, to_get, to_head) in ANSWERS {
            let (head, body) = answer.split_once('{').unwrap_or((answer, "}"));
            let body = if method == "HEAD" { "" } else { body.trim_end_matches('}') };
            let mut client = Client::connect(fixture.proxy.address).await;
            client.send(format!("{method} /x HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
            let upstream = async {
                let mut conn = fixture.backend.accept().await;
                conn.request().await;
                conn.write(format!("{head}{body}")).await;
                // Each response has a connection of its own.
                conn.end().await;
            };
            let (seen, ()) = tokio::join!(client.whole(method == "HEAD"), upstream);
            let expected = if method == "HEAD" { to_head } else { to_get };
            if seen != expected {
                let _ = writeln!(wrong, "{method}, {name}: {seen}, not {expected}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn an_answer_that_describes_a_body_it_cannot_have_is_the_last_of_its_connection() {
    let fixture = fixture_on_one_processor("").await;
    let (alice, bob) = (bearer(&fixture.issuer.token("alice")), bearer(&fixture.issuer.token("bob")));
    for (method, answer, is_last) in [
        ("HEAD", "200 OK\r\nContent-Length: 8", true),
        ("HEAD", "200 OK\r\nContent-Type: text/plain", true),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", true),
        ("GET", "204 No Content\r\nContent-Length: 8", true),
        ("DELETE", "204 No Content\r\nContent-Type: text/plain", true),
        ("GET", "304 Not Modified\r\nContent-Length: 8", true),
        ("DELETE", "204 No Content", false),
        ("DELETE", "204 No Content\r\nContent-Length: 0", false),
        ("GET", "304 Not Modified\r\nETag: \"a\"", false),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("{method} /x HTTP/1.1\r\nHost: localhost\r\n{alice}\r\n\r\n")).await;
        let mut first = fixture.backend.accept().await;
        first.request().await;
        first.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        client.until("\r\n\r\n").await;
        let mut client = Client::connect(fixture.proxy.address).await;
        client.send(format!("GET /y HTTP/1.1\r\nHost: localhost\r\n{bob}\r\n\r\n")).await;
        let mut second = if is_last {
            // Bytes that a server sends late are not read.
            assert!(first.is_closed().await);
            fixture.backend.accept().await
        } else {
            first
        };
        assert_eq!(second.request().await.all("x-user-id"), ["bob"], "{method}, {answer}");
        second.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbob").await;
        assert_eq!(client.answer().await.body, "bob", "{method}, {answer}");
    }
}
