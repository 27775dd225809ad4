//! Requests: more than a hundred and fifty, against two policies (with rules by path, and without).

use super::believe;
use crate::support::backend::{Backend, Heard};
use crate::support::client::{Client, bearer};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;

/// The headers that every forwarded request has, and that are left out of the comparison.
const OURS: [&str; 7] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "via", "x-user-id", "accept"];

struct Fixture {
    backend: Backend,
    proxy: Proxy,
    credential: String,
}

fn went_up(heard: &Heard) -> String {
    let line = heard.head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
    let fields = heard.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut fields: Vec<String> = fields
        .filter(|(name, _)| !OURS.contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| format!("{}:{}", name.to_ascii_lowercase(), value.trim()))
        .filter(|field| field != "host:localhost")
        .map(|field| if field.starts_with("authorization:Bearer ey") { "authorization".to_owned() } else { field })
        .collect();
    fields.sort();
    let user = match heard.all("x-user-id").as_slice() {
        ["alice"] => "",
        [] => " as nobody",
        other => panic!("{other:?}: {}", heard.head),
    };
    let body = String::from_utf8_lossy(&heard.body);
    let body = if body.is_empty() { String::new() } else { format!(" body {body:?}") };
    format!("up{user}: {line} [{}]{body}", fields.join(" | "))
}

impl Fixture {
    async fn start(more: &str) -> Self {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let yaml = format!(
            "upstream: {{ url: \"{}\", reuse: false }}\nproviders: [{}]\nhosts: [localhost, \"[::1]\"]\nlimits: {{ header_bytes: 8KiB, token_bytes: 4KiB, body_idle_timeout: 1s, header_timeout: 2s }}\n{more}",
            backend.url(),
            issuer.provider()
        );
        Self { proxy: Proxy::start(&yaml).await, credential: bearer(&issuer.token("alice")), backend }
    }

    /// Returns the outcome of these bytes; `{auth}` is replaced by a valid credential.
    async fn outcome(&self, bytes: &[u8]) -> String {
        let mut client = Client::connect(self.proxy.address).await;
        let at = bytes.windows(6).position(|window| window == b"{auth}");
        let bytes = match at {
            Some(at) => [&bytes[..at], self.credential.as_bytes(), &bytes[at + 6..]].concat(),
            None => bytes.to_vec(),
        };
        client.send(&bytes).await;
        let mut said = Vec::new();
        // Collects everything that reaches the upstream before the client has its responses.
        loop {
            tokio::select! {
                biased;
                conn = self.backend.accept() => {
                    let mut conn = conn;
                    match conn.try_request().await {
                        Some(heard) => {
                            said.push(went_up(&heard));
                            conn.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                        }
                        None => said.push("up: a request that broke off".to_owned()),
                    }
                }
                answer = client.try_answer() => {
                    let Some(answer) = answer else {
                        said.push("closed".to_owned());
                        return said.join("\n");
                    };
                    if answer.status == 100 {
                        said.push("100".to_owned());
                        continue;
                    }
                    let code = if answer.body.starts_with('{') { answer.code() } else { answer.body };
                    said.push(format!("{} {code}", answer.status));
                    // Nothing more is sent: what has been is answered, and the end shows who closes.
                    client.finish().await;
                }
            }
        }
    }
}

fn request(line: &str, fields: &[&str]) -> Vec<u8> {
    let mut text = format!("{line}\r\nHost: localhost\r\n{{auth}}\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn get(fields: &[&str]) -> Vec<u8> {
    request("GET /x HTTP/1.1", fields)
}

fn post(fields: &[&str], body: &str) -> Vec<u8> {
    [request("POST /x HTTP/1.1", fields), body.as_bytes().to_vec()].concat()
}

fn with_host(host: &str) -> Vec<u8> {
    format!("GET /x HTTP/1.1\r\n{host}{{auth}}\r\n\r\n").into_bytes()
}

type Cases = Vec<(String, Vec<u8>)>;

fn lines() -> Cases {
    let mut cases = Cases::new();
    for line in [
        "GET /x HTTP/1.1",
        "get /x HTTP/1.1",
        "GeT /x HTTP/1.1",
        "pOST /x HTTP/1.1",
        "PURGE /x HTTP/1.1",
        "PROPFIND /x HTTP/1.1",
        "purge /x HTTP/1.1",
        "CONNECT localhost:80 HTTP/1.1",
        "CONNECT /x HTTP/1.1",
        "connect localhost:80 HTTP/1.1",
        "TRACE /x HTTP/1.1",
        "OPTIONS /x HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET * HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /x HTTP/1.0",
        "GET /x HTTP/0.9",
        "GET /x HTTP/1.2",
        "GET /x HTTP/2.0",
        "GET /x http/1.1",
        "GET /x",
        "GET  /x HTTP/1.1",
        "GET /x  HTTP/1.1",
        "GET\t/x\tHTTP/1.1",
        " GET /x HTTP/1.1",
        "\r\nGET /x HTTP/1.1",
        "\nGET /x HTTP/1.1",
        "GET /x HTTP/1.1 ",
        "GET /x y HTTP/1.1",
        "G:T /x HTTP/1.1",
        "G@T /x HTTP/1.1",
        "/x HTTP/1.1",
    ] {
        cases.push((format!("line {line:?}"), request(line, &[])));
    }
    cases
}

fn targets() -> Cases {
    let mut cases = Cases::new();
    for target in [
        "/",
        "/a?b=c?d=e&f",
        "/a??",
        "/a?",
        "/a#b",
        "/public#/../x",
        "/a%23b",
        "/a?x=%zz",
        "/a?x=../../y",
        "/%",
        "/%2",
        "/%zz",
        "/%00",
        "/a/./b",
        "/a/../b",
        "/public/../x",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/..;/b",
        "/a;b=c/d",
        "//x",
        "/a//b",
        "/a\\b",
        "/a%5cb",
        "/a%2fb",
        "/a%252fb",
        "/%61dmin",
        "/ADMIN",
        "/a%20b",
        "/a%C3%A9",
        "/a\u{e9}",
        "/a|b^c`d{e}",
        "/a\"b<c>",
        "/.vestibule",
        "/.vestibule/",
        "/.Vestibule/x",
        "/%2evestibule/x",
        "//.vestibule/x",
        "/a/../.vestibule/x",
        "/.vestibule/../x",
        "/.vestibulex",
        "http://localhost/x",
        "http://LOCALHOST/x",
        "HTTP://localhost/x",
        "http://localhost",
        "http://localhost:80/x",
        "http://other/x",
        "https://localhost/x",
        "ftp://localhost/x",
        "http://user@localhost/x",
        "http:///x",
        "localhost/x",
        "x",
        "?x",
    ] {
        cases.push((format!("target {target:?}"), request(&format!("GET {target} HTTP/1.1"), &[])));
    }
    cases.push(("target of 9 KB".to_owned(), request(&format!("GET /{} HTTP/1.1", "x".repeat(9_000)), &[])));
    cases.push(("target with a NUL".to_owned(), request("GET /a\0b HTTP/1.1", &[])));
    cases.push(("target with a bare CR".to_owned(), request("GET /a\rb HTTP/1.1", &[])));
    cases
}

fn hosts() -> Cases {
    let mut cases = Cases::new();
    for host in [
        "",
        "Host:\r\n",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nHost: other\r\n",
        "host: localhost\r\n",
        "Host:localhost\r\n",
        "Host: LOCALHOST\r\n",
        "Host: localhost.\r\n",
        "Host: localhost:8080\r\n",
        "Host: localhost:\r\n",
        "Host: localhost:x\r\n",
        "Host: localhost:99999\r\n",
        "Host: localhost:+80\r\n",
        "Host: user@localhost\r\n",
        "Host: localhost, other\r\n",
        "Host: localhost other\r\n",
        "Host: localhost/x\r\n",
        "Host: localhost?x\r\n",
        "Host: localhost#x\r\n",
        "Host: http://localhost\r\n",
        "Host: [::1]\r\n",
        "Host: [::1]:80\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: other\r\n",
        "Host: 127.0.0.1\r\n",
        "Host: l\u{f6}calhost\r\n",
        "Host : localhost\r\n",
        "X-Forwarded-Host: other\r\nHost: localhost\r\n",
        "Forwarded: host=other\r\nHost: localhost\r\n",
    ] {
        cases.push((format!("host {host:?}"), with_host(host)));
    }
    cases.push(("host none in 1.0".to_owned(), b"GET /x HTTP/1.0\r\n{auth}\r\n\r\n".to_vec()));
    cases
}

fn framing() -> Cases {
    let mut cases = Cases::new();
    for length in
        ["4", "+4", "-4", "0x4", "4, 4", "4,5", " 4", "4 ", "04", "", "x", "4.0", "4\u{b}", "99999999999999999999"]
    {
        cases.push((format!("length {length:?}"), post(&[&format!("Content-Length: {length}")], "abcd")));
    }
    for (name, fields) in [
        ("length twice the same", ["Content-Length: 4", "Content-Length: 4"]),
        ("length twice", ["Content-Length: 4", "Content-Length: 3"]),
        ("length in two spellings", ["Content-Length: 4", "content_length: 3"]),
    ] {
        cases.push((name.to_owned(), post(&fields, "abcd")));
    }
    let chunked = "4\r\nabcd\r\n0\r\n\r\n";
    for coding in [
        "chunked",
        "Chunked",
        "CHUNKED ",
        "\tchunked",
        "xchunked",
        "chunked, chunked",
        "gzip, chunked",
        "identity, chunked",
        "identity",
        "chunked, identity",
        "chunked;q=1",
        "\"chunked\"",
        "\u{b}chunked",
        "",
        ",chunked",
        "chunked,",
    ] {
        cases.push((format!("coding {coding:?}"), post(&[&format!("Transfer-Encoding: {coding}")], chunked)));
    }
    for (name, fields) in [
        ("coding twice", vec!["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]),
        ("coding, then another", vec!["Transfer-Encoding: chunked", "Transfer-Encoding: identity"]),
        ("length and coding", vec!["Content-Length: 3", "Transfer-Encoding: chunked"]),
        ("coding and length", vec!["Transfer-Encoding: chunked", "Content-Length: 3"]),
        ("coding with a space before its colon", vec!["Transfer-Encoding : chunked"]),
        ("coding in another spelling", vec!["Transfer_Encoding: chunked", "Content-Length: 14"]),
        ("coding folded", vec!["Transfer-Encoding:\r\n chunked"]),
    ] {
        cases.push((name.to_owned(), post(&fields, chunked)));
    }
    cases.push((
        "coding in 1.0".to_owned(),
        [request("POST /x HTTP/1.0", &["Transfer-Encoding: chunked"]), chunked.as_bytes().to_vec()].concat(),
    ));
    for (name, body) in [
        ("chunk extension", "4;a=b\r\nabcd\r\n0\r\n\r\n"),
        ("chunk extension with a line feed", "4;a=\nb\r\nabcd\r\n0\r\n\r\n"),
        ("chunk size 0x4", "0x4\r\nabcd\r\n0\r\n\r\n"),
        ("chunk size -4", "-4\r\nabcd\r\n0\r\n\r\n"),
        ("chunk size 0004", "0004\r\nabcd\r\n0\r\n\r\n"),
        ("chunk size with a space", "4 \r\nabcd\r\n0\r\n\r\n"),
        ("chunk size over 64 bits", "10000000000000004\r\nabcd\r\n0\r\n\r\n"),
        ("chunk size missing", "\r\nabcd\r\n0\r\n\r\n"),
        ("chunk ended by a line feed", "4\nabcd\n0\n\n"),
        ("chunk longer than it says", "3\r\nabcd\r\n0\r\n\r\n"),
        ("chunk trailers with an identity", "4\r\nabcd\r\n0\r\nX-User-Id: mallory\r\nContent-Length: 9\r\n\r\n"),
        ("chunks that break off", "4\r\nab"),
        ("chunks and a request behind", "4\r\nabcd\r\n0\r\n\r\nGET /behind HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ] {
        cases.push((name.to_owned(), post(&["Transfer-Encoding: chunked"], body)));
    }
    for (name, bytes) in [
        ("body shorter than it says", post(&["Content-Length: 9"], "abcd")),
        ("body longer than it says", post(&["Content-Length: 2"], "abcd")),
        ("body on a GET", [get(&["Content-Length: 4"]), b"abcd".to_vec()].concat()),
        ("body without framing", post(&[], "abcd")),
        ("length of a GET is 0", get(&["Content-Length: 0"])),
        (
            "a request behind a length",
            post(&["Content-Length: 4"], "abcdGET /behind HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        ("two requests at once", [get(&[]), b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()].concat()),
    ] {
        cases.push((name.to_owned(), bytes));
    }
    cases
}

fn fields() -> Cases {
    let mut cases = Cases::new();
    for field in [
        "X-A: 1",
        "X-A:1",
        "X-A:  1  ",
        "X-A:",
        "X-A: a\tb",
        "X-A : 1",
        " X-A: 1",
        "X-A: 1\r\n folded",
        "X-A: 1\r\n\tfolded",
        "X A: 1",
        ": 1",
        "X-A",
        "X(A): 1",
        "X-\u{e9}: 1",
        "X-A: \u{e9}",
        "X-A: a\0b",
        "X-A: a\rb",
        "X-A: a\u{7f}b",
        "X-A: 1\nX-B: 2",
        "x_a: 1",
        "X.A: 1",
        "Connection: close",
        "Connection: X-A\r\nX-A: 1",
        "Connection: close, x-a\r\nX-A: 1\r\nX-B: 2",
        "Connection: x-a,,X-B\r\nX-A: 1\r\nX-B: 2",
        "Connection: X-User-Id",
        "Connection: authorization, host, cookie\r\nCookie: a=b",
        "Connection: x-forwarded-for, via, x-request-id",
        "Connection: content-length",
        "Connection: keep-alive\r\nConnection: x-a\r\nX-A: 1",
        "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "TE: trailers",
        "TE: gzip, trailers",
        "Trailer: X-User-Id",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Upgrade: foo\r\nConnection: Upgrade",
        "Upgrade: TLS/1.0",
        "Via: 1.0 fred, 1.1 p.example.net",
        "Max-Forwards: 0",
        "Range: bytes=0-1\r\nIf-None-Match: \"x\"",
        "Cookie: a=b\r\nCookie: c=d",
        "Referer: http://localhost/y?token=secret",
        "Expect: 200-maybe",
        "Proxy: http://evil.example",
        "X-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\nX-Original-Method: DELETE",
        "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: PUT\r\nX-HTTP-Method: PATCH",
        "X-User-Id: mallory\r\nX-User-Id: mallory",
        "x_user.ID: mallory",
        "X-Forwarded-User: mallory\r\nRemote-User: mallory\r\nX-Auth-Request-Email: m@x",
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /p",
        "X_Forwarded_For: 1.2.3.4\r\nx.forwarded.proto: https",
        "Forwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nTrue-Client-IP: 1.2.3.4\r\nCF-Connecting-IP: 1.2.3.4",
        "X-SSL-Client-Verify: SUCCESS\r\nX-Client-Cert: x\r\nX-Forwarded-Client-Cert: x",
        "X-Forwarded-Uri: /public\r\nX-Forwarded-Method: GET",
        "User-Agent: ELB-HealthChecker/2.0",
        "X-Request-Id: chosen",
        "Origin: null\r\nSec-Fetch-Site: cross-site",
    ] {
        cases.push((format!("field {field:?}"), get(&[field])));
    }
    cases.push(("a hundred and one fields".to_owned(), get(&vec!["X-A: 1"; 101])));
    cases.push(("fields of 9 KB".to_owned(), get(&[&format!("X-A: {}", "y".repeat(9_000))])));
    cases.push((
        "fields of 9 KB in all".to_owned(),
        get(&[&format!("X-A: {}", "y".repeat(900)); 10].map(String::as_str)),
    ));
    cases.push(("line feeds alone".to_owned(), b"GET /x HTTP/1.1\nHost: localhost\n{auth}\n\n".to_vec()));
    cases.push(("carriage returns alone".to_owned(), b"GET /x HTTP/1.1\rHost: localhost\r{auth}\r\r".to_vec()));
    cases.push(("expectation of 100".to_owned(), post(&["Expect: 100-continue", "Content-Length: 4"], "abcd")));
    cases
}

fn credentials() -> Cases {
    let mut cases = Cases::new();
    for field in [
        "",
        "Authorization:",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        "Authorization: Bearer x",
        "Authorization: Bearer x y",
        "Authorization: Bearer\tx",
        "Authorization: x",
        "Authorization: Basic eA==",
        "Authorization: Bearer x, Bearer y",
        "Authorization: bearer x.y.z",
        "Authorization: Bearer x\r\nAuthorization: Bearer x",
        "Authorization: Bearer x\r\nauthorization: Basic eA==",
        "Proxy-Authorization: Bearer x",
        "X-Authorization: Bearer x",
        "Authorization : Bearer x",
        "Cookie: __session=x",
        "Authorization: Bearer \u{e9}",
    ] {
        let field = if field.is_empty() { String::new() } else { format!("{field}\r\n") };
        cases.push((
            format!("credential {field:?}"),
            format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{field}\r\n").into_bytes(),
        ));
    }
    let doubled = "GET /x HTTP/1.1\r\nHost: localhost\r\n{auth}\r\nAuthorization: Bearer x\r\n\r\n";
    cases.push(("credential, a good one and another".to_owned(), doubled.as_bytes().to_vec()));
    cases.push((
        "credential in the query".to_owned(),
        b"GET /x?token=x&access_token=y HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ));
    cases
}

fn upgrades() -> Cases {
    let mut cases = Cases::new();
    let good = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let without = |index: usize, instead: &'static str| {
        let mut fields = good.to_vec();
        fields[index] = instead;
        fields
    };
    for (name, line, fields) in [
        ("upgrade without Connection", "GET /x HTTP/1.1", without(0, "X-A: 1")),
        ("upgrade by POST", "POST /x HTTP/1.1", good.to_vec()),
        ("upgrade in 1.0", "GET /x HTTP/1.0", good.to_vec()),
        ("upgrade to version 8", "GET /x HTTP/1.1", without(2, "Sec-WebSocket-Version: 8")),
        ("upgrade without version", "GET /x HTTP/1.1", without(2, "X-A: 1")),
        ("upgrade to versions 13 and 8", "GET /x HTTP/1.1", without(2, "Sec-WebSocket-Version: 13, 8")),
        ("upgrade without key", "GET /x HTTP/1.1", without(3, "X-A: 1")),
        ("upgrade with a short key", "GET /x HTTP/1.1", without(3, "Sec-WebSocket-Key: eA==")),
        ("upgrade with a key that is none", "GET /x HTTP/1.1", without(3, "Sec-WebSocket-Key: !")),
        ("upgrade to websocket or h2c", "GET /x HTTP/1.1", without(1, "Upgrade: h2c, websocket")),
    ] {
        cases.push((name.to_owned(), request(line, &fields)));
    }
    let mut twice = good.to_vec();
    twice.push("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
    cases.push(("upgrade with two keys".to_owned(), request("GET /x HTTP/1.1", &twice)));
    let mut with_body = good.to_vec();
    with_body.push("Content-Length: 4");
    cases.push(("upgrade with a body".to_owned(), [request("GET /x HTTP/1.1", &with_body), b"abcd".to_vec()].concat()));
    // CVE-2026-2833: bytes after an upgrade are not the next request before a 101.
    let behind = b"GET /behind HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    cases.push((
        "upgrade that the upstream answers with 200, and a request behind it".to_owned(),
        [request("GET /x HTTP/1.1", &good), behind].concat(),
    ));
    cases
}

async fn all(file: &str, policy: &str, cases: Cases) {
    let fixture = Fixture::start(policy).await;
    let mut outcomes = Vec::new();
    for (name, bytes) in cases {
        let outcome = fixture.outcome(&bytes).await;
        outcomes.push((name, outcome));
    }
    believe(file, &outcomes);
}

#[tokio::test]
async fn every_request_is_answered_as_believed() {
    let cases: Cases = [lines(), hosts(), framing(), fields(), credentials(), upgrades()].concat();
    assert!(cases.len() >= 150, "{}", cases.len());
    all("requests.txt", "", cases).await;
}

#[tokio::test]
async fn every_target_is_read_as_believed() {
    all("targets.txt", "", targets()).await;
}

#[tokio::test]
async fn every_target_is_judged_in_all_its_readings_where_rules_look_at_paths() {
    let policy =
        "routes: [{ path: /public/**, auth: none }, { path: /admin/**, methods: [GET], require: { sub: nobody } }]\n";
    all("targets_ruled.txt", policy, targets()).await;
}
