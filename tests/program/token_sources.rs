//! Where clients carry tokens: Basic, the query of plain requests, beside cookies, and what the log says of those that do
//! not.

use serde_json::json;

use crate::fixture::fixture;
use crate::support::client::{Answer, bearer, get, get_served, request};
use crate::support::socket::Socket;

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Authorization: Basic {pair}")
}

fn challenges(answer: &Answer) -> Vec<&str> {
    let fields = answer.head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate")).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn the_password_of_basic_is_the_token_on_routes_that_say_so() {
    let fixture = fixture("routes: [{ path: /git/**, token_from: { basic: true } }]\n").await;
    let address = fixture.proxy.address;
    let missing = get(address, "/git/repo", &[]).await;
    assert_eq!(missing.status, 401);
    assert_eq!(challenges(&missing), ["Bearer realm=\"vestibule\"", "Basic realm=\"vestibule\""]);
    let token = fixture.issuer.token("alice");
    let good = basic("git", &token);
    let (answer, heard) = get_served(address, &fixture.backend, "/git/repo", &[&good]).await;
    let heard = heard.expect("forwarded");
    assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["alice"]));
    assert!(!heard.has("authorization"));
    for (row, field, code) in [
        ("an expired token", basic("git", &fixture.issuer.expired("alice")), "token_expired"),
        ("nobody's signature", basic("git", &fixture.issuer.unsigned()), "invalid_token"),
        ("an ordinary password", basic("alice", "correct horse"), "invalid_request"),
        ("the token as user name", basic(&token, ""), "invalid_request"),
        ("no base64", "Authorization: Basic ?".to_owned(), "invalid_request"),
    ] {
        let answer = get(address, "/git/repo", &[&field]).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, code), "{row}");
        assert_eq!(challenges(&answer).len(), 1, "{row}");
    }
    // Two credentials are one kind twice.
    let twice = get(address, "/git/repo", &[&good, &bearer(&token)]).await;
    assert_eq!(twice.code(), "invalid_request");
    // Elsewhere Basic is none.
    let elsewhere = get(address, "/x", &[&good]).await;
    assert_eq!((elsewhere.status, elsewhere.code().as_str()), (401, "invalid_request"));
    assert_eq!(challenges(&get(address, "/x", &[]).await), ["Bearer realm=\"vestibule\""]);
    let line = fixture.proxy.logged("an access line", |line| line.contains("\"alice\"")).await;
    assert!(!line.contains(&token), "{line}");
    assert!(!fixture.proxy.log().iter().any(|line| line.contains(&token)));
}

#[tokio::test]
async fn a_plain_request_carries_its_token_in_the_query_where_that_is_configured() {
    let mut fixture = fixture(
        "routes:\n  - { path: /socket.io/**, token_from: { query: { name: access_token, for: [websocket, http] } } }\n  - { path: /events, token_from: { query: { name: access_token, for: [http] } } }\n",
    )
    .await;
    let address = fixture.proxy.address;
    let token = fixture.issuer.token("alice");
    let target = format!("/socket.io/?EIO=4&access_token={token}&transport=polling");
    let referer = format!("Referer: https://app.example/?access_token={token}");
    let (answer, heard) = get_served(address, &fixture.backend, &target, &[&referer]).await;
    let heard = heard.expect("forwarded");
    assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["alice"]));
    assert_eq!(heard.target(), "/socket.io/?EIO=4&transport=polling");
    assert_eq!(heard.all("referer"), ["https://app.example/"]);
    let line = fixture.proxy.logged("the warning", |line| line.contains("deprecated: token in the query string")).await;
    assert!(line.contains("\"parameter\":\"access_token\""), "{line}");
    let (answer, heard) =
        get_served(address, &fixture.backend, &format!("/events?access_token={token}"), &["Accept: text/event-stream"])
            .await;
    assert_eq!((answer.status, heard.expect("forwarded").target()), (200, "/events"));
    for (row, target, code) in [
        ("expired", format!("/socket.io/?access_token={}", fixture.issuer.expired("alice")), "token_expired"),
        ("twice", format!("/socket.io/?access_token={token}&access_token={token}"), "invalid_request"),
        ("another parameter", format!("/socket.io/?token={token}"), "missing_token"),
        ("a route without it", format!("/x?token={token}"), "missing_token"),
    ] {
        let answer = request(address, "POST", &target, &[], "").await;
        assert_eq!((answer.status, answer.code().as_str()), (401, code), "{row}");
    }
    assert!(fixture.backend.is_untouched());
    assert!(!fixture.proxy.log().iter().any(|line| line.contains(&token)));
}

/// The table of pages that still send tokens in URLs is bounded, and anybody can invent a token and an origin.
#[tokio::test]
async fn invented_origins_of_tokens_in_urls_keep_no_page_out_of_the_report() {
    let fixture = fixture(
        "admin: { listen: \"127.0.0.1:0\" }\nlimits: { failed_tokens_per_minute: null }\ntoken_from: { query: { for: [http] } }\nroutes: [{ path: /deny, token_from: { query: { mode: deny, for: [http] } } }]\n",
    )
    .await;
    let address = fixture.proxy.address;
    let (good, bad) = (fixture.issuer.token("alice"), fixture.issuer.token_with("alice", json!({"aud": "other"})));
    for number in 0..60 {
        for (path, token) in [("/x", &bad), ("/deny", &good)] {
            let origin = format!("Origin: https://invented-{number}.example");
            let answer = get(address, &format!("{path}?token={token}"), &[&origin]).await;
            assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_token"), "{path}");
            let is_told = answer
                .body
                .contains("Tokens in the URL are no longer accepted. Send the token in the Authorization header.");
            assert_eq!(is_told, path == "/deny", "{}", answer.body);
        }
    }
    let page = "https://page.example";
    let target = format!("/x?token={good}");
    let (answer, _) = get_served(address, &fixture.backend, &target, &[&format!("Origin: {page}")]).await;
    assert_eq!(answer.status, 200);
    fixture.proxy.logged("the page", |line| line.contains("deprecated: token") && line.contains(page)).await;
    let status = get(fixture.proxy.admin(), "/status", &[]).await.body;
    for (origin, route, count) in
        [(page, "default", 1), ("other origins", "default", 10), ("other origins", "/deny", 10)]
    {
        let row = format!("<tr><td>{origin}</td><td><code>{route}</code></td><td class=\"number\">{count}</td></tr>");
        assert!(status.contains(&row), "{row}: {status}");
    }
    let is_warning = |line: &&String| line.contains("deprecated: token in the query string");
    assert_eq!(fixture.proxy.log().iter().filter(is_warning).count(), 100 + 2 + 1);
}

#[tokio::test]
async fn the_log_says_why_a_socket_sent_no_token() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let foreign = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL290aGVyLmV4YW1wbGUifQ.c2ln";
    for (target, first, expected) in [
        ("/socket.io/?EIO=4&transport=websocket".to_owned(), "2probe", "a socket.io client"),
        (
            format!("/ws?access_token={token}"),
            "hello",
            "the URL has the parameter access_token, which looks like a token",
        ),
        (format!("/ws?token={foreign}"), "{}", "a token in the parameter token that no configured provider issued"),
    ] {
        let mut socket = Socket::open(fixture.proxy.address, &target, &[]).await;
        socket.say(first).await;
        socket.next_text().await;
        assert_eq!(socket.next_close().await.0, 1008, "{target}");
        let line =
            fixture.proxy.logged("its line", |line| line.contains("\"status\":101") && line.contains(expected)).await;
        assert!(line.contains("\"reason\":\""), "{line}");
    }
    // One that says why by itself needs no guess.
    let mut socket = Socket::open(fixture.proxy.address, "/ws?EIO=4&transport=websocket", &[]).await;
    socket.say(r#"{"type":"authenticate","token":"a.b.c"}"#).await;
    socket.next_text().await;
    assert_eq!(socket.next_close().await, (1008, "Invalid token".to_owned()));
    assert!(!fixture.proxy.log().iter().any(|line| line.contains(&token)));
}

#[tokio::test]
async fn the_log_says_it_of_an_upgrade_without_a_dialect_too() {
    let fixture = fixture("websocket: { dialect: none }\n").await;
    let target = "/socket.io/?EIO=4&transport=websocket&sid=x";
    let (refused, _) = Socket::try_open(fixture.proxy.address, target, &[]).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "missing_token"));
    fixture
        .proxy
        .logged("its line", |line| line.contains("\"missing_token\"") && line.contains("a socket.io client"))
        .await;
}

/// Signs in by `POST /.vestibule/session`; what a browser would send from then on.
async fn session(fixture: &crate::fixture::Fixture, user: &str) -> String {
    let credential = bearer(&fixture.issuer.token(user));
    let answer = request(fixture.proxy.address, "POST", "/.vestibule/session", &[&credential], "").await;
    let line = answer.field("set-cookie").expect("a cookie");
    format!("Cookie: {}", line.split(';').next().expect("a pair"))
}

#[tokio::test]
async fn a_good_cookie_does_not_lose_to_a_parameter_of_the_backend_s_own() {
    let fixture = fixture("browser: { session: {} }\nwebsocket: { dialect: none }\n").await;
    let cookie = session(&fixture, "alice").await;
    // Vite's client connects with a text that Vite made.
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let (client, (heard, upstream)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/?token=JXmHd4kQ0pTz", &fields), fixture.backend.websocket());
    assert_eq!((heard.target(), heard.all("x-user-id")), ("/?token=JXmHd4kQ0pTz", vec!["alice"]));
    drop((client, upstream));
}

#[tokio::test]
async fn a_cookie_that_an_open_route_cannot_use_is_absent() {
    let fixture = fixture("browser: { session: {} }\nroutes: [{ path: /open/**, auth: optional }]\n").await;
    let cookie = session(&fixture, "alice").await;
    for (row, fields, expected) in [
        ("our own page", vec!["Sec-Fetch-Site: same-origin"], vec!["alice"]),
        ("another site's page", vec!["Sec-Fetch-Site: cross-site"], vec![]),
        ("another origin", vec!["Origin: https://other.example"], vec![]),
    ] {
        let fields = [vec![cookie.as_str()], fields].concat();
        let (answer, heard) = get_served(fixture.proxy.address, &fixture.backend, "/open/x", &fields).await;
        let heard = heard.unwrap_or_else(|| panic!("{row}: {}", answer.head));
        assert_eq!(heard.all("x-user-id"), expected, "{row}");
        assert!(!heard.has("cookie"), "{row}");
    }
    let refused = get(fixture.proxy.address, "/x", &[&cookie, "Origin: https://other.example"]).await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "foreign_origin"));
}
