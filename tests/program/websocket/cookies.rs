//! The provider's cookie as a credential (docs/contract.md sections 4.1 and 7): sent unasked, so it counts only on
//! what our own pages and the listed origins ask for, and one that is refused counts as absent.

use super::{error, fixture};
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::{Issuer, Mood};
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

const COOKIE: &str =
    "origins: [\"https://app.example.com\", \"https://*.example.org\"]\ntoken_from: { cookie: __session }\n";

#[tokio::test]
async fn a_socket_with_the_cookie_needs_a_page_of_ours() {
    let mut fixture = fixture(COOKIE).await;
    let token = fixture.issuer.token("alice");
    let cookie = format!("Cookie: a=1; __session={token}; b=2");
    for origin in ["Origin: https://app.example.com", "Origin: http://localhost"] {
        let fields = [cookie.as_str(), origin];
        let (_client, (heard, _upstream)) =
            tokio::join!(Socket::open(fixture.proxy.address, "/ws", &fields), fixture.backend.websocket());
        assert_eq!((heard.all("x-user-id"), heard.all("cookie")), (vec!["alice"], vec!["a=1; b=2"]), "{origin}");
    }
    for origins in [
        &[][..],
        &["Origin: https://evil.example"],
        &["Origin: null"],
        &["Origin: https://x.example.org"],
        &["Origin: http://localhost:1"],
        &["Origin: https://app.example.com", "Origin: https://evil.example"],
    ] {
        let fields: Vec<&str> = [cookie.as_str()].iter().chain(origins).copied().collect();
        let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &fields).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "foreign_origin"), "{origins:?}");
    }
    assert!(fixture.backend.is_untouched());
    fixture
        .proxy
        .logged("the origin", |line| line.contains("origin refused: https://evil.example is not in origins"))
        .await;
}

#[tokio::test]
async fn a_refused_cookie_counts_as_absent_and_one_that_cannot_be_judged_is_503() {
    let fixture = fixture(COOKIE).await;
    let origin = "Origin: https://app.example.com";
    for bad in ["garbage".to_owned(), fixture.issuer.expired("alice")] {
        let cookie = format!("Cookie: __session={bad}");
        // The socket waits for its first message like any other, from wherever it comes.
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[&cookie, "Origin: https://evil.example"]).await;
        let bob = fixture.issuer.token("bob");
        let (said, (heard, _upstream)) = tokio::join!(client.authenticate(&bob), fixture.backend.websocket());
        assert_eq!((said["user_id"].as_str(), heard.has("cookie")), (Some("bob"), false));
        let answer = get(fixture.proxy.address, "/x", &[&cookie]).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"));
    }
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    issuer.set_mood(Mood::Rude);
    let proxy =
        Proxy::start(&format!("upstream: {}\nproviders: [{}]\n{COOKIE}", backend.url(), issuer.provider())).await;
    let cookie = format!("Cookie: __session={}", issuer.token("alice"));
    let (answer, _) = Socket::try_open(proxy.address, "/ws", &[&cookie, origin]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    let answer = get(proxy.address, "/x", &[&cookie]).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
}

#[tokio::test]
async fn the_cookie_comes_last() {
    let fixture = fixture(COOKIE).await;
    let (alice, bob) = (fixture.issuer.token("alice"), fixture.issuer.token("bob"));
    let cookie = format!("Cookie: __session={bob}");
    let credential = bearer(&alice);
    // Taken out unread, so nothing is asked of the page either.
    let fields = [credential.as_str(), cookie.as_str(), "Origin: https://evil.example"];
    let (_client, (heard, _)) =
        tokio::join!(Socket::open(fixture.proxy.address, "/ws", &fields), fixture.backend.websocket());
    assert_eq!((heard.all("x-user-id"), heard.has("cookie")), (vec!["alice"], false));
    let target = format!("/ws?token={}", fixture.issuer.unsigned());
    let mut client = Socket::open(fixture.proxy.address, &target, &[&cookie]).await;
    assert_eq!(client.next_text().await, error("Invalid authentication token"));
}

#[tokio::test]
async fn http_with_the_cookie_is_served_to_our_pages_and_to_what_is_no_browser() {
    let fixture = fixture(COOKIE).await;
    let token = fixture.issuer.token("alice");
    let cookie = format!("Cookie: __session={token}");
    for (method, fields, served) in [
        ("GET", &[][..], true),
        ("GET", &["Sec-Fetch-Site: same-origin"], true),
        ("GET", &["Sec-Fetch-Site: none"], true),
        ("GET", &["Sec-Fetch-Site: cross-site"], false),
        ("GET", &["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"], false),
        ("GET", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], true),
        ("GET", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"], false),
        ("POST", &[], false),
        ("POST", &["Sec-Fetch-Site: same-origin"], false),
        ("POST", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], false),
        ("POST", &["Origin: https://app.example.com"], true),
        ("GET", &["Origin: https://evil.example"], false),
        ("DELETE", &["Origin: null"], false),
    ] {
        let request = async {
            let mut client = Client::connect(fixture.proxy.address).await;
            let fields = fields.iter().fold(String::new(), |all, field| all + field + "\r\n");
            client
                .send(format!(
                    "{method} /x HTTP/1.1\r\nHost: localhost\r\n{cookie}\r\n{fields}Content-Length: 0\r\n\r\n"
                ))
                .await;
            client.answer().await
        };
        if served {
            let (answer, heard) = tokio::join!(request, fixture.backend.answer("hi"));
            assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["alice"]), "{method} {fields:?}");
            // No cache between us and the client may take it for everyone's.
            assert_eq!(answer.field("cache-control"), Some("private"));
        } else {
            let answer = request.await;
            assert_eq!((answer.status, answer.code().as_str()), (403, "foreign_origin"), "{method} {fields:?}");
        }
    }
}

#[tokio::test]
async fn an_event_stream_may_bring_its_token_in_the_query_where_configured() {
    let fixture = fixture("token_from: { query: { for: [websocket, events] } }\nroutes: [{ path: /deny, token_from: { query: { mode: deny, for: [events] } } }]\n").await;
    let token = fixture.issuer.token("alice");
    let target = format!("/events?a=1&token={token}");
    let accept = "Accept: text/html;q=0.1, Text/Event-Stream";
    let fields = [accept];
    let (answer, heard) =
        tokio::join!(get(fixture.proxy.address, &target, &fields), fixture.backend.answer("data: 1\n\n"));
    assert_eq!((answer.status, heard.target(), heard.all("x-user-id")), (200, "/events?a=1", vec!["alice"]));
    // Any other request has no credential.
    let answer = get(fixture.proxy.address, &target, &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"));
    let answer = get(fixture.proxy.address, &format!("/deny?token={token}"), &[accept]).await;
    assert_eq!(answer.status, 401);
    assert!(!fixture.proxy.log().iter().any(|line| line.contains(&token)));
}
