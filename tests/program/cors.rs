//! CORS (docs/contract.md section 3): preflights answered by the backend or here, and what a page may read.

use crate::fixture::Fixture;
use crate::support::client::{Answer, Client, bearer, get, request};

const LISTED: &str = "Origin: https://app.example.com";
const FOREIGN: &str = "Origin: https://evil.example";
const ASKS: &str = "Access-Control-Request-Method: PUT";

async fn fixture(more: &str) -> Fixture {
    crate::fixture::fixture(&format!("origins: [https://app.example.com]\n{more}")).await
}

impl Fixture {
    async fn options(&self, target: &str, fields: &[&str]) -> Answer {
        request(self.proxy.address, "OPTIONS", target, fields, "").await
    }
}

#[tokio::test]
async fn without_cors_a_preflight_goes_up_sanitised() {
    let fixture = fixture("").await;
    let fields = [
        LISTED,
        ASKS,
        "Access-Control-Request-Headers: authorization",
        "Authorization: Bearer x",
        "Cookie: session=1",
        "X-User-Id: mallory",
        "X-Forwarded-For: 1.2.3.4",
        "X-Anything: 1",
        "User-Agent: browser",
    ];
    let (answer, heard) = tokio::join!(fixture.options("/api/items?token=secret", &fields), async {
        let mut conn = fixture.backend.accept().await;
        let heard = conn.request().await;
        conn.write("HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: https://app.example.com\r\nAccess-Control-Allow-Methods: PUT\r\n\r\n").await;
        heard
    });
    assert_eq!((answer.status, answer.field("access-control-allow-methods")), (204, Some("PUT")));
    assert_eq!(heard.target(), "/api/items");
    assert_eq!(heard.all("origin"), ["https://app.example.com"]);
    assert_eq!(heard.all("access-control-request-method"), ["PUT"]);
    assert_eq!(heard.all("access-control-request-headers"), ["authorization"]);
    assert_eq!(heard.all("host"), ["localhost"]);
    assert_eq!(heard.all("x-forwarded-for"), ["127.0.0.1"]);
    for absent in
        ["authorization", "cookie", "x-user-id", "x-anything", "user-agent", "content-length", "transfer-encoding"]
    {
        assert!(!heard.has(absent), "{absent}");
    }
}

#[tokio::test]
async fn an_origin_that_is_not_listed_is_named_in_the_log() {
    let fixture = fixture("cors: {}\n").await;
    let answer = fixture.options("/api/items", &[FOREIGN, ASKS]).await;
    assert_eq!(answer.field("access-control-allow-origin"), None);
    let line = fixture.proxy.logged("its line", |line| line.contains("\"preflight\"")).await;
    assert!(line.contains(r#""reason":"origin refused: https://evil.example is not in origins""#), "{line}");
}

#[tokio::test]
async fn what_is_no_preflight_needs_a_token() {
    let mut fixture = fixture("").await;
    for (row, fields) in [
        ("no Origin", vec![ASKS]),
        ("no method", vec![LISTED]),
        ("two methods", vec![LISTED, ASKS, "Access-Control-Request-Method: GET"]),
        ("two origins", vec![LISTED, FOREIGN, ASKS]),
        ("a method that is none", vec![LISTED, "Access-Control-Request-Method: P T"]),
        ("a known method in other letters", vec![LISTED, "Access-Control-Request-Method: put"]),
        ("a body", vec![LISTED, ASKS, "Content-Length: 2"]),
        ("a body of unknown length", vec![LISTED, ASKS, "Transfer-Encoding: chunked"]),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        let mut head = "OPTIONS /x HTTP/1.1\r\nHost: localhost\r\n".to_owned();
        for field in &fields {
            head.push_str(&format!("{field}\r\n"));
        }
        let body = if row == "a body" {
            "{}"
        } else if row.starts_with("a body of") {
            "0\r\n\r\n"
        } else {
            ""
        };
        client.send(format!("{head}\r\n{body}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.code()), (401, "missing_token".into()), "{row}");
    }
    // Another method with the same fields.
    assert_eq!(get(fixture.proxy.address, "/x", &[LISTED, ASKS]).await.status, 401);
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn with_cors_preflights_are_answered_here_for_listed_origins() {
    let mut fixture = fixture("cors: { allowed_methods: [GET, PUT], allowed_headers: [Authorization, X-Own], max_age: 5m }\nroutes: [{ path: /shut/**, auth: deny }, { path: /half, methods: [DELETE], auth: deny }]\n").await;
    let answer = fixture.options("/api?x=1", &[LISTED, ASKS]).await;
    assert_eq!(answer.status, 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "Authorization, X-Own"),
        ("access-control-max-age", "300"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(answer.field(name), Some(value), "{name}");
    }
    let foreign = fixture.options("/api", &[FOREIGN, ASKS]).await;
    assert_eq!(foreign.status, 204);
    assert!(!foreign.head.to_ascii_lowercase().contains("access-control-allow"), "{}", foreign.head);
    // By the method it announces.
    assert_eq!(fixture.options("/shut/x", &[LISTED, ASKS]).await.status, 403);
    assert_eq!(fixture.options("/half", &[LISTED, "Access-Control-Request-Method: DELETE"]).await.status, 403);
    assert_eq!(fixture.options("/half", &[LISTED, ASKS]).await.status, 204);
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn our_own_endpoints_answer_preflights_themselves() {
    let mut fixture = fixture("").await;
    for target in ["/.vestibule/session", "/.vestibule/healthz", "/.VESTIBULE/%73ession"] {
        let answer = fixture.options(target, &[LISTED, ASKS]).await;
        assert_eq!(
            (answer.status, answer.field("access-control-allow-origin")),
            (204, Some("https://app.example.com")),
            "{target}"
        );
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn with_cors_the_backend_s_own_opinion_gives_way() {
    let fixture = fixture("cors: {}\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let theirs = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: X-Theirs\r\nVary: Accept\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    for (origin, expected) in [(LISTED, Some("https://app.example.com")), (FOREIGN, None)] {
        let fields = [credential.as_str(), origin];
        let (answer, ()) = tokio::join!(get(fixture.proxy.address, "/x", &fields), async {
            let mut conn = fixture.backend.accept().await;
            conn.request().await;
            conn.write(theirs).await;
        });
        assert_eq!(answer.field("access-control-allow-origin"), expected, "{origin}");
        let exposed = expected.map(|_| "WWW-Authenticate, Retry-After, X-Request-Id, x-theirs");
        assert_eq!(answer.field("access-control-expose-headers"), exposed, "{origin}");
        assert!(answer.head.to_ascii_lowercase().contains("vary: accept"), "{}", answer.head);
    }
    // Without an Origin nobody asked.
    let fields = [credential.as_str()];
    let (answer, ()) = tokio::join!(get(fixture.proxy.address, "/x", &fields), async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(theirs).await;
    });
    assert_eq!(answer.field("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn what_the_backend_and_the_configuration_expose_is_added_to_ours() {
    let fixture = fixture("cors: { exposed_headers: [Upload-Offset, x-request-id] }\n").await;
    let credential = bearer(&fixture.issuer.token("alice"));
    const OURS: &str = "WWW-Authenticate, Retry-After, X-Request-Id, upload-offset";
    for (theirs, expected) in [
        ("", OURS.to_owned()),
        (
            "Access-Control-Expose-Headers: Mcp-Session-Id, Retry-After\r\nAccess-Control-Expose-Headers: x y, Content-Disposition\r\n",
            format!("{OURS}, mcp-session-id, content-disposition"),
        ),
        (
            "Access-Control-Expose-Headers: *\r\nMcp-Session-Id: 1\r\nSet-Cookie: a=b\r\n",
            format!("{OURS}, mcp-session-id, content-length"),
        ),
    ] {
        let fields = [credential.as_str(), LISTED];
        let (answer, ()) = tokio::join!(get(fixture.proxy.address, "/x", &fields), async {
            let mut conn = fixture.backend.accept().await;
            conn.request().await;
            conn.write(format!("HTTP/1.1 200 OK\r\n{theirs}Content-Length: 0\r\n\r\n")).await;
        });
        assert_eq!(answer.field("access-control-expose-headers"), Some(expected.as_str()), "{theirs}");
    }
    let refused = get(fixture.proxy.address, "/x", &[LISTED]).await;
    assert_eq!((refused.status, refused.field("access-control-expose-headers")), (401, Some(OURS)));
}

/// Pages of an extension, of a Capacitor and of a Tauri application.
#[tokio::test]
async fn pages_of_applications_read_refusals_send_cookies_and_open_sockets() {
    let own = "chrome-extension://abcdefghijklmnopabcdefghijklmnop";
    let more = format!(
        "origins: [\"{own}\", \"capacitor://localhost\", \"tauri://localhost\"]\ncors: {{}}\nbrowser: {{ session: {{}} }}\nwebsocket: {{ dialect: none, allowed_origins: [\"{own}\"] }}\n"
    );
    let fixture = crate::fixture::fixture(&more).await;
    let credential = bearer(&fixture.issuer.token("alice"));
    let session = request(fixture.proxy.address, "POST", "/.vestibule/session", &[&credential], "").await;
    let cookie = format!("Cookie: {}", session.field("set-cookie").and_then(|set| set.split(';').next()).expect("one"));
    for (origin, is_listed) in [
        (own, true),
        ("capacitor://localhost", true),
        ("tauri://localhost", true),
        ("chrome-extension://bcdefghijklmnopabcdefghijklmnopa", false),
        ("ionic://localhost", false),
        ("capacitor://localhost.evil.example", false),
        ("null", false),
    ] {
        let field = format!("Origin: {origin}");
        let refused = get(fixture.proxy.address, "/x", &[&field]).await;
        assert_eq!(refused.status, 401);
        let readable = refused.field("access-control-allow-origin");
        assert_eq!(readable, is_listed.then_some(origin), "{origin}");
        let preflight = fixture.options("/x", &[&field, ASKS]).await;
        assert_eq!(preflight.field("access-control-allow-origin"), is_listed.then_some(origin), "{origin}");
        // With the cookie, which only pages that are listed may use.
        let fields = [cookie.as_str(), field.as_str()];
        let (answer, _) =
            crate::support::client::get_served(fixture.proxy.address, &fixture.backend, "/x", &fields).await;
        assert_eq!(answer.status, if is_listed { 200 } else { 403 }, "{origin}");
    }
    for (origin, expected) in [(own, 101), ("tauri://localhost", 403)] {
        let fields = [credential.as_str(), &format!("Origin: {origin}")].map(str::to_owned);
        let fields = [fields[0].as_str(), fields[1].as_str()];
        let opening = crate::support::socket::Socket::try_open(fixture.proxy.address, "/ws", &fields);
        let status = tokio::select! {
            (answer, _) = opening => answer.status,
            _ = fixture.backend.websocket(), if expected == 101 => 101,
        };
        assert_eq!(status, expected, "{origin}");
    }
}
