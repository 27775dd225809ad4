//! Tests of the responses of an upstream that is broken, slow or hostile: the response that the client gets, and
//! whether the connection is used again.

use super::believe;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;

struct Fixture {
    backend: Backend,
    proxy: Proxy,
    credential: String,
}

impl Fixture {
    async fn start() -> Self {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let yaml = format!(
            "upstream: {{ url: \"{}\", response_timeout: 1s, pool_idle_timeout: 20s }}\nproviders: [{}]\n",
            backend.url(),
            issuer.provider()
        );
        Self { proxy: Proxy::on_one_processor(&yaml).await, credential: bearer(&issuer.token("alice")), backend }
    }

    /// Returns the response that a client gets for these bytes, and whether a second request comes on the same
    /// connection.
    async fn outcome(&self, method: &str, bytes: &[u8], closes: bool) -> String {
        let mut client = Client::connect(self.proxy.address).await;
        let ask =
            |line: &str| format!("{line} HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\n{}\r\n\r\n", self.credential);
        client.send(ask(&format!("{method} /first"))).await;
        let mut conn = self.backend.accept().await;
        conn.request().await;
        conn.write(bytes).await;
        if closes {
            drop(conn);
            let seen = client.whole(method == "HEAD").await;
            return format!("{seen}\nthe upstream has closed");
        }
        let seen = client.whole(method == "HEAD").await;
        // The second request, by another client, comes on this connection or on one of its own.
        let mut second = Client::connect(self.proxy.address).await;
        second.send(ask("GET /second")).await;
        let again = tokio::select! {
            biased;
            fresh = self.backend.accept() => Err(fresh),
            again = conn.try_request() => Ok(again.is_some()),
        };
        let reused = if let Ok(true) = again {
            conn.write(SECOND).await;
            "on the same connection"
        } else {
            let mut fresh = match again {
                Err(fresh) => fresh,
                Ok(_) => self.backend.accept().await,
            };
            fresh.request().await;
            fresh.write(SECOND).await;
            "on a fresh connection"
        };
        // Whatever came before, this client gets its own response.
        let answer = second.whole(false).await;
        assert!(answer.ends_with("whole \"second\""), "{answer}");
        format!("{seen}\nthe next {reused}")
    }
}

const SECOND: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecond";

#[tokio::test]
async fn every_answer_is_passed_on_or_refused_as_believed() {
    let fixture = Fixture::start().await;
    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}").into_bytes();
    let mut cases: Vec<(&str, &str, Vec<u8>, bool)> = vec![
        ("plain", "GET", ok("Content-Length: 5\r\n", "hello"), false),
        ("empty", "GET", ok("Content-Length: 0\r\n", ""), false),
        ("until the end", "GET", ok("", "hello"), true),
        ("chunked", "GET", ok("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), false),
        ("chunked in capitals", "GET", ok("Transfer-Encoding: CHUNKED\r\n", "5\r\nhello\r\n0\r\n\r\n"), false),
        ("HEAD with a length", "HEAD", ok("Content-Length: 5\r\n", ""), false),
        ("HEAD with a body against the rules", "HEAD", ok("Content-Length: 5\r\n", "hello"), false),
        ("204", "GET", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), false),
        ("204 with a length", "GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n".to_vec(), false),
        (
            "304 with a length",
            "GET",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n".to_vec(),
            false,
        ),
        (
            "206 of a range",
            "GET",
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/5\r\nContent-Length: 2\r\n\r\nhe".to_vec(),
            false,
        ),
        (
            "100, then 200",
            "GET",
            [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), ok("Content-Length: 2\r\n", "ok")].concat(),
            false,
        ),
        (
            "103, then 200",
            "GET",
            [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec(), ok("Content-Length: 2\r\n", "ok")].concat(),
            false,
        ),
        (
            "101 unasked",
            "GET",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
            false,
        ),
        (
            "trailers that were announced",
            "GET",
            ok("Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"),
            false,
        ),
        (
            "trailers that were not",
            "GET",
            ok("Transfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\nSet-Cookie: a=b\r\n\r\n"),
            false,
        ),
        (
            "hop-by-hop fields",
            "GET",
            ok(
                "Content-Length: 2\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-End: 2\r\nProxy-Authenticate: Basic\r\n",
                "ok",
            ),
            false,
        ),
        ("Connection: close", "GET", ok("Content-Length: 2\r\nConnection: close\r\n", "ok"), false),
        ("1.0", "GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), false),
        ("1.0 until the end", "GET", b"HTTP/1.0 200 OK\r\n\r\nok".to_vec(), true),
        ("length twice the same", "GET", ok("Content-Length: 2\r\nContent-Length: 2\r\n", "ok"), false),
        ("length twice", "GET", ok("Content-Length: 2\r\nContent-Length: 3\r\n", "ok!"), false),
        ("length as a list", "GET", ok("Content-Length: 2, 2\r\n", "ok"), false),
        ("length that is none", "GET", ok("Content-Length: two\r\n", "ok"), false),
        ("length below zero", "GET", ok("Content-Length: -1\r\n", "ok"), false),
        ("length with a sign", "GET", ok("Content-Length: +2\r\n", "ok"), false),
        (
            "length and coding",
            "GET",
            ok("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "2\r\nok\r\n0\r\n\r\n"),
            false,
        ),
        ("coding unknown", "GET", ok("Transfer-Encoding: gzip\r\n", "ok"), true),
        ("coding gzip, chunked", "GET", ok("Transfer-Encoding: gzip, chunked\r\n", "2\r\nok\r\n0\r\n\r\n"), false),
        (
            "coding chunked, identity",
            "GET",
            ok("Transfer-Encoding: chunked, identity\r\n", "2\r\nok\r\n0\r\n\r\n"),
            true,
        ),
        ("broken off in a length", "GET", ok("Content-Length: 9\r\n", "hello"), true),
        ("broken off in a chunk", "GET", ok("Transfer-Encoding: chunked\r\n", "9\r\nhello"), true),
        ("broken off before the last chunk", "GET", ok("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"), true),
        ("chunk size that is none", "GET", ok("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\nx\r\n"), false),
        ("chunk longer than it says", "GET", ok("Transfer-Encoding: chunked\r\n", "3\r\nhello\r\n0\r\n\r\n"), false),
        ("chunk ended by a line feed", "GET", ok("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"), false),
        (
            "a second answer behind the first",
            "GET",
            [ok("Content-Length: 2\r\n", "ok"), ok("Content-Length: 6\r\n", "stolen")].concat(),
            false,
        ),
        ("bytes behind the answer", "GET", ok("Content-Length: 2\r\n", "ok and more"), false),
        ("nothing", "GET", Vec::new(), true),
        ("nothing in time", "GET", Vec::new(), false),
        ("half a head", "GET", b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(), true),
        ("half a head in time", "GET", b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(), false),
        ("another protocol", "GET", b"SSH-2.0-OpenSSH_9.0\r\n\r\n".to_vec(), false),
        ("HTTP/2 preface", "GET", b"\0\0\0\x04\0\0\0\0\0".to_vec(), false),
        ("HTTP/9.9", "GET", b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
        ("status 99", "GET", b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
        ("status 1000", "GET", b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
        ("status 599", "GET", b"HTTP/1.1 599 Own\r\nContent-Length: 0\r\n\r\n".to_vec(), false),
        ("no reason", "GET", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok".to_vec(), false),
        ("line feeds alone", "GET", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_vec(), false),
        ("a field with NUL", "GET", ok("X-A: a\0b\r\nContent-Length: 2\r\n", "ok"), false),
        ("a field with a bare carriage return", "GET", ok("X-A: a\rb\r\nContent-Length: 2\r\n", "ok"), false),
        ("a space before a colon", "GET", ok("X-A : 1\r\nContent-Length: 2\r\n", "ok"), false),
        ("a folded field", "GET", ok("X-A: 1\r\n folded\r\nContent-Length: 2\r\n", "ok"), false),
        ("our cookie's name", "GET", ok("Set-Cookie: a=b\r\nContent-Length: 2\r\n", "ok"), false),
    ];
    let many = "X-A: 1\r\n".repeat(200);
    cases.push(("two hundred fields", "GET", ok(&format!("{many}Content-Length: 2\r\n"), "ok"), false));
    let long = format!("X-A: {}\r\nContent-Length: 2\r\n", "y".repeat(600 << 10));
    cases.push(("a field of 600 KB", "GET", ok(&long, "ok"), true));
    assert!(cases.len() >= 40, "{}", cases.len());
    let mut outcomes = Vec::new();
    for (name, method, bytes, closes) in cases {
        outcomes.push((format!("{name} ({method})"), fixture.outcome(method, &bytes, closes).await));
    }
    believe("answers.txt", &outcomes);
}
