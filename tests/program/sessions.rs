//! Sessions by cookie, and what people at browsers see.

mod pages;
mod policy;
mod sign_outs;

use std::time::Duration;

use serde_json::json;

use crate::fixture::Fixture;
use crate::support::answerer::{Answerer, ok};
use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, bearer, get, request};
use crate::support::issuer::Issuer;
use crate::support::now;
use crate::support::proxy::{Proxy, command};
use crate::support::socket::Socket;

const SESSION: &str = "/.vestibule/session";

async fn fixture(more: &str) -> Fixture {
    let browser = if more.contains("browser:") { "" } else { "browser: { session: {} }\n" };
    crate::fixture::fixture(&format!("{browser}{more}")).await
}

impl Fixture {
    async fn post(&self, fields: &[&str]) -> Answer {
        request(self.proxy.address, "POST", SESSION, fields, "").await
    }

    /// Signs in; what a browser would send from then on.
    async fn signed_in(&self, token: &str) -> String {
        let field = bearer(token);
        let answer = self.post(&[&field]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        cookie(&answer)
    }

    /// GET by a browser's page of ours, answered by the backend where it comes that far.
    async fn page(&self, cookie: &str) -> u16 {
        let fields = [cookie, "Sec-Fetch-Site: same-origin"];
        tokio::select! {
            answer = get(self.proxy.address, "/x", &fields) => answer.status,
            _ = self.backend.answer("served") => 200,
        }
    }

    /// Waits until the provider has been asked about the session again, which only a request makes happen.
    async fn is_refused_in_time(&self, cookie: &str) {
        crate::support::within("the session to be asked about again", async {
            while self.page(cookie).await == 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

/// The `Cookie` field that follows from an answer's `Set-Cookie`.
fn cookie(answer: &Answer) -> String {
    let line = answer.field("set-cookie").expect("a cookie");
    format!("Cookie: {}", line.split(';').next().expect("a pair"))
}

#[tokio::test]
async fn a_session_begins_with_a_token_and_carries_its_user() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token_with("alice", json!({"exp": now() + 600}));
    let field = bearer(&token);
    let answer = fixture.post(&[&field]).await;
    let body = answer.json();
    assert_eq!((answer.status, body["user_id"].as_str()), (200, Some("alice")));
    assert!((595..=600).contains(&body["expires_in"].as_u64().expect("seconds")), "{body}");
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let line = answer.field("set-cookie").expect("a cookie");
    // On plain http of this machine: the port that the client sees, and no Secure.
    assert!(line.starts_with("vestibule-80=") && line.contains("; Path=/; HttpOnly; SameSite=Lax; Max-Age="), "{line}");
    assert!(!line.contains("Secure") && !line.contains(&token) && !line.contains("alice"), "{line}");
    let cookie = cookie(&answer);
    let fields = [cookie.as_str(), "Cookie: theirs=1"];
    let (answer, heard) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
    assert_eq!((answer.status, answer.field("cache-control")), (200, Some("private")));
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert_eq!(heard.all("cookie"), ["theirs=1"]);
    assert!(!heard.has("authorization"));
    // No endpoint gives a token to script, or the session back.
    assert_eq!(get(fixture.proxy.address, SESSION, &[&cookie]).await.status, 405);
}

#[tokio::test]
async fn behind_https_it_is_a_host_cookie_and_on_a_network_without_there_is_none() {
    let fixture = fixture("trusted_proxies: [127.0.0.1]\nhosts: any\n").await;
    let field = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    let host = "Host: app.example.com\r\n";
    client
        .send(format!(
            "POST {SESSION} HTTP/1.1\r\n{host}{field}\r\nX-Forwarded-Proto: https\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
    let answer = client.answer().await;
    let line = answer.field("set-cookie").expect("a cookie");
    assert!(line.starts_with("__Host-vestibule=") && line.ends_with("; Secure"), "{line}");
    client.send(format!("POST {SESSION} HTTP/1.1\r\n{host}{field}\r\nContent-Length: 0\r\n\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("set-cookie")), (400, None));
    assert_eq!(answer.json()["detail"], "A session needs https.");
}

#[tokio::test]
async fn the_line_of_a_refused_post_has_what_its_credential_claims() {
    let fixture = fixture("").await;
    let expired = bearer(&fixture.issuer.expired("alice"));
    for (field, issuer) in [(expired.as_str(), Some(fixture.issuer.url.as_str())), ("Authorization: Basic x", None)] {
        let answer = fixture.post(&[field, "User-Agent: notebook/1.0"]).await;
        assert_eq!(answer.status, 401);
        let id = answer.field("x-request-id").expect("an id");
        let line = fixture.proxy.logged("its line", |line| line.contains(id)).await;
        let line: serde_json::Value = serde_json::from_str(&line).expect("json");
        assert_eq!(line["unverified_issuer"].as_str(), issuer, "{line}");
        assert_eq!(line["user_agent"], "notebook/1.0", "{line}");
    }
}

#[tokio::test]
async fn whoever_posts_must_be_verified_allowed_and_ours() {
    let fixture = fixture("origins: [https://app.example.com, \"https://*.example.org\"]\n").await;
    let good = bearer(&fixture.issuer.token("alice"));
    for (fields, status, code) in [
        (vec![], 401, "missing_token"),
        (vec!["Authorization: Basic x".to_owned()], 401, "invalid_request"),
        (vec![bearer(&fixture.issuer.expired("alice"))], 401, "token_expired"),
        (vec![good.clone(), "Origin: https://evil.example".to_owned()], 403, "foreign_origin"),
        (vec![good.clone(), "Origin: null".to_owned()], 403, "foreign_origin"),
        // A sibling that a wildcard covers is not one of our pages.
        (vec![good.clone(), "Origin: https://x.example.org".to_owned()], 403, "foreign_origin"),
        // A browser that leaves the Origin out is no exception.
        (vec![good.clone(), "Sec-Fetch-Site: same-site".to_owned()], 403, "foreign_origin"),
    ] {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let answer = fixture.post(&fields).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{fields:?}");
        assert_eq!(answer.field("set-cookie"), None);
    }
    for origin in ["Origin: http://localhost", "Origin: https://app.example.com"] {
        assert_eq!(fixture.post(&[&good, origin, "Sec-Fetch-Site: same-origin"]).await.status, 200, "{origin}");
    }
    let answer = request(fixture.proxy.address, "PUT", SESSION, &[&good], "").await;
    assert_eq!((answer.status, answer.field("allow")), (405, Some("POST, DELETE")));
}

#[tokio::test]
async fn a_cookie_counts_only_from_our_own_pages() {
    let fixture = fixture("origins: [https://app.example.com]\n").await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    for (fields, is_served) in [
        (vec![], true),
        (vec!["Sec-Fetch-Site: same-origin"], true),
        (vec!["Sec-Fetch-Site: none"], true),
        (vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], true),
        (vec!["Origin: https://app.example.com", "Sec-Fetch-Site: cross-site"], true),
        (vec!["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], false),
        (vec!["Sec-Fetch-Site: same-site"], false),
        (vec!["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"], false),
        (vec!["Origin: https://evil.example"], false),
        (vec!["Origin: null"], false),
    ] {
        let mut all = vec![cookie.as_str()];
        all.extend(&fields);
        let answer = async {
            tokio::select! {
                answer = get(fixture.proxy.address, "/x", &all) => answer.status,
                _ = fixture.backend.answer("served") => 200,
            }
        };
        assert_eq!(answer.await == 200, is_served, "{fields:?}");
    }
    // A form posts without being asked.
    let answer = request(fixture.proxy.address, "POST", "/x", &[&cookie, "Origin: https://evil.example"], "a=1").await;
    assert_eq!(answer.code(), "foreign_origin");
    // And a page elsewhere opens a socket.
    let fields = [cookie.as_str(), "Origin: https://evil.example"];
    let (answer, socket) = Socket::try_open(fixture.proxy.address, "/ws", &fields).await;
    assert_eq!((answer.status, socket.is_none()), (403, true));
}

#[tokio::test]
async fn what_is_no_session_of_ours_counts_as_absent() {
    let fixture = fixture("").await;
    let good = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let value = good.strip_prefix("Cookie: vestibule-80=").expect("the name");
    let mut changed = value.to_owned();
    let other = if changed.as_bytes()[20] == b'A' { "B" } else { "A" };
    changed.replace_range(20..21, other);
    for fields in [
        vec![format!("Cookie: vestibule-80={changed}")],
        vec!["Cookie: vestibule-80=".to_owned()],
        // Two of our name are none.
        vec![format!("Cookie: vestibule-80={value}; vestibule-80={value}")],
        vec![good.clone(), "Cookie: vestibule-80=x".to_owned()],
        // Another port's, and the name that only https may give.
        vec![format!("Cookie: vestibule-81={value}")],
        vec![format!("Cookie: __Host-vestibule={value}")],
    ] {
        let all: Vec<&str> = fields.iter().map(String::as_str).collect();
        let answer = get(fixture.proxy.address, "/x", &all).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"), "{fields:?}");
    }
    // A token beside it decides alone.
    let refused = bearer(&fixture.issuer.expired("alice"));
    assert_eq!(get(fixture.proxy.address, "/x", &[&good, &refused]).await.code(), "token_expired");
}

#[tokio::test]
async fn our_cookies_never_reach_the_upstream_and_it_cannot_set_them() {
    let fixture = fixture("routes: [{ path: /public, auth: none }]\n").await;
    let cookie = "Cookie: a=1; __Host-vestibule=x; vestibule-8080=y; vestibule=theirs; b=2";
    let fields = [cookie];
    let (_, heard) = tokio::join!(get(fixture.proxy.address, "/public", &fields), fixture.backend.answer("served"));
    assert_eq!(heard.all("cookie"), ["a=1; vestibule=theirs; b=2"]);
    let fields = ["X: y"];
    let asking = get(fixture.proxy.address, "/public", &fields);
    let answering = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write("HTTP/1.1 200 OK\r\nSet-Cookie: theirs=1\r\nSet-Cookie: __Host-vestibule=evil; Path=/\r\nSet-Cookie: vestibule-80=evil\r\nContent-Length: 0\r\n\r\n").await;
        conn
    };
    let (answer, _conn) = tokio::join!(asking, answering);
    assert_eq!((answer.status, answer.field("set-cookie")), (200, Some("theirs=1")));
    assert!(!answer.head.contains("evil"), "{}", answer.head);
}

#[tokio::test]
async fn signing_out_ends_the_session_its_copies_and_its_sockets() {
    let fixture = fixture("websocket: { dialect: none }\n").await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let other = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut socket, (heard, mut upstream)) = tokio::join!(opening, fixture.backend.websocket());
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert!(!heard.has("cookie"));
    let answer = request(fixture.proxy.address, "DELETE", SESSION, &[&cookie, "Origin: http://localhost"], "").await;
    assert_eq!(answer.status, 204);
    assert!(
        answer
            .field("set-cookie")
            .expect("gone")
            .starts_with("vestibule-80=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
    );
    assert_eq!(socket.next_close().await, (1008, "Session ended".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    assert_eq!(get(fixture.proxy.address, "/x", &[&cookie]).await.code(), "missing_token", "a copy is dead too");
    // Another browser's of the same user is not.
    let fields = [other.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
    assert_eq!(answer.status, 200);
    // Without a session there is nothing to end, and that is no error.
    assert_eq!(request(fixture.proxy.address, "DELETE", SESSION, &[], "").await.status, 204);
    let foreign =
        request(fixture.proxy.address, "DELETE", SESSION, &[&other, "Origin: https://evil.example"], "").await;
    assert_eq!(foreign.status, 403);
}

#[tokio::test]
async fn posting_again_renews_and_another_user_must_wait_for_the_sign_out() {
    let fixture = fixture("browser: { session: { max_age: 1h } }\n").await;
    let short = fixture.issuer.token_with("alice", json!({"exp": now() + 30}));
    let field = bearer(&short);
    let first = fixture.post(&[&field]).await;
    assert!((3_595..=3_600).contains(&first.json()["expires_in"].as_u64().expect("seconds")), "beyond its token");
    let cookie = cookie(&first);
    let again = fixture.post(&[&bearer(&fixture.issuer.token("alice")), &cookie]).await;
    assert_eq!(again.status, 200);
    let other = fixture.post(&[&bearer(&fixture.issuer.token("bob")), &cookie]).await;
    assert_eq!((other.status, other.code().as_str()), (409, "other_user"));
    // Both cookies are one session: signing out by the later ends the former.
    let later = self::cookie(&again);
    assert_eq!(request(fixture.proxy.address, "DELETE", SESSION, &[&later], "").await.status, 204);
    assert_eq!(get(fixture.proxy.address, "/x", &[&cookie]).await.status, 401);
    assert_eq!(fixture.post(&[&bearer(&fixture.issuer.token("bob")), &cookie]).await.status, 200);
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_its_socket_with_it() {
    let fixture = fixture("websocket: { dialect: none, grace: 0s, on_expiry: auto }\n").await;
    let field = bearer(&fixture.issuer.token_with("alice", json!({"exp": now() + 3})));
    let cookie = cookie(&fixture.post(&[&field]).await);
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut socket, _upstream) = tokio::join!(opening, fixture.backend.websocket());
    // Its page can renew, so it does not live on although its user was seen.
    assert_eq!(socket.next_close().await, (4401, "Token expired".into()));
    assert_eq!(get(fixture.proxy.address, "/x", &[&cookie]).await.code(), "missing_token");
}

#[tokio::test]
async fn a_shorter_max_age_ends_the_sockets_that_are_open() {
    for (on_expiry, after, ends) in [
        ("close", "session: { max_age: 2s }", true),
        ("auto", "session: { max_age: 2s }", true),
        ("close", "session: {}", true),
        ("keep", "session: { max_age: 2s }", false),
    ] {
        let websocket =
            format!("websocket: {{ dialect: none, grace: 0s, max_lifetime: 12h, on_expiry: {on_expiry} }}\n");
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let yaml = |session: &str| {
            let provider = issuer.provider();
            format!("upstream: {}\nproviders: [{provider}]\nbrowser: {{ {session} }}\n{websocket}", backend.url())
        };
        let (before, after) = (yaml("session: { max_age: 1h }"), yaml(after));
        let fixture = Fixture { issuer, backend, proxy: Proxy::start(&before).await };
        let cookie = fixture.signed_in(&fixture.issuer.token_with("alice", json!({"exp": now() + 3}))).await;
        let fields = [cookie.as_str(), "Origin: http://localhost"];
        let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
        let (mut socket, (_, mut upstream)) = tokio::join!(opening, fixture.backend.websocket());
        fixture.proxy.rewrite(&format!("{before}routes: [{{ path: /health, auth: none }}]\n"));
        fixture.proxy.signal("HUP");
        fixture.proxy.logged("the first reload", |line| line.contains("configuration reloaded")).await;
        socket.say("an hour is not over").await;
        assert_eq!(upstream.next_text().await, "an hour is not over");
        let lines = fixture.proxy.log().len();
        fixture.proxy.rewrite(&after);
        fixture.proxy.signal("HUP");
        fixture.proxy.logged_after(lines, "the second", |line| line.contains("configuration reloaded")).await;
        if ends {
            assert_eq!(socket.next_close().await, (4401, "Token expired".into()), "{on_expiry}");
        } else {
            fixture.is_refused_in_time(&cookie).await;
            socket.say("still here").await;
            assert_eq!(upstream.next_text().await, "still here");
        }
    }
}

#[tokio::test]
async fn sessions_survive_a_reload_and_with_a_secret_a_restart() {
    let secret = "browser: { session: { secret: 0123456789abcdef0123456789abcdefXYZ } }\n";
    for (more, survives_restart) in [("", false), (secret, true)] {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let browser = if more.is_empty() { "browser: { session: {} }\n" } else { more };
        let yaml = format!("upstream: {}\nproviders: [{}]\n{browser}", backend.url(), issuer.provider());
        let mut fixture = Fixture { issuer, backend, proxy: Proxy::start(&yaml).await };
        let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
        fixture.proxy.rewrite(&format!("{yaml}routes: [{{ path: /health, auth: none }}]\n"));
        fixture.proxy.signal("HUP");
        fixture.proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
        assert_eq!(fixture.page(&cookie).await, 200);
        fixture.proxy = Proxy::start(&yaml).await;
        assert_eq!(fixture.page(&cookie).await == 200, survives_restart, "{more}");
    }
}

#[tokio::test]
async fn revoking_a_user_ends_its_sessions() {
    let folder = crate::support::proxy::TempFolder::new();
    let path = folder.0.join("control.sock");
    let fixture = fixture(&format!("control: {{ listen: \"unix:{}\" }}\n", path.display())).await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    assert_eq!(fixture.page(&cookie).await, 200);
    let body = json!({"issuer": fixture.issuer.url, "sub": "alice"}).to_string();
    assert_eq!(crate::support::control::post(&path, "/revoke", &body).await, 204);
    assert_eq!(fixture.page(&cookie).await, 401);
}

/// Clerk, asked `instead` of a signature or `also`.
fn clerk_provider(issuer: &Issuer, clerk: &Answerer, mode: &str) -> String {
    format!(
        "{{ preset: clerk, issuer: \"{0}\", jwks: {{ url: \"{0}/jwks\" }}, remote: {{ mode: {mode}, url: \"{1}\", secret_key: sk_test, cache: 1s }} }}",
        issuer.url, clerk.url
    )
}

#[tokio::test]
async fn the_provider_is_asked_again_about_a_session() {
    let clerk = Answerer::start(|asked| {
        assert!(asked.line().starts_with("GET /v1/sessions/sess_1"), "{}", asked.line());
        ok(json!({"id": "sess_1", "user_id": "alice", "status": "active"}))
    })
    .await;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let provider = clerk_provider(&issuer, &clerk, "instead");
    let yaml = format!(
        "upstream: {}\nproviders: [{provider}]\nbrowser: {{ session: {{ max_age: 1h, revalidate_every: 1s }} }}\n",
        backend.url()
    );
    let fixture = Fixture { issuer, backend, proxy: Proxy::start(&yaml).await };
    let token = fixture.issuer.token_with("alice", json!({"sid": "sess_1"}));
    let cookie = fixture.signed_in(&token).await;
    assert_eq!(fixture.page(&cookie).await, 200);
    let asked = clerk.count();
    assert!(asked >= 1);
    clerk.answers(|_| ok(json!({"id": "sess_1", "user_id": "alice", "status": "ended"})));
    fixture.is_refused_in_time(&cookie).await;
}

#[tokio::test]
async fn a_socket_that_was_renewed_by_a_token_still_ends_with_the_session_it_came_by() {
    let fixture = fixture("").await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut socket, _upstream) = tokio::join!(opening, fixture.backend.websocket());
    socket.say(&json!({"type": "refresh_auth", "token": fixture.issuer.token("alice")}).to_string()).await;
    assert!(socket.next_text().await.starts_with(r#"{"type":"auth_refreshed""#));
    let answer = request(fixture.proxy.address, "DELETE", SESSION, &fields, "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(socket.next_text().await, r#"{"type":"error","message":"Session ended"}"#);
    assert_eq!(socket.next_close().await, (1008, "Session ended".into()));
}

#[tokio::test]
async fn a_provider_that_is_asked_beside_every_signature_is_asked_about_sessions_too() {
    let status = |status: &str| json!({"id": "sess_1", "user_id": "alice", "status": status});
    let clerk = Answerer::start(move |_| ok(status("active"))).await;
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let provider = clerk_provider(&issuer, &clerk, "also");
    let yaml =
        format!("upstream: {}\nproviders: [{provider}]\nbrowser: {{ session: {{ max_age: 1h }} }}\n", backend.url());
    clerk.answers(move |asked| match asked.line() {
        // What is asked with the token at hand, and what without it.
        "POST /v1/clients/verify" => {
            ok(json!({"id": "client_1", "last_active_session_id": "sess_1", "sessions": [status("active")]}))
        }
        _ => ok(status("active")),
    });
    let fixture = Fixture { issuer, backend, proxy: Proxy::start(&yaml).await };
    let cookie = fixture.signed_in(&fixture.issuer.token_with("alice", json!({"sid": "sess_1"}))).await;
    assert_eq!(fixture.page(&cookie).await, 200);
    clerk.answers(move |_| ok(status("ended")));
    fixture.is_refused_in_time(&cookie).await;
}

#[tokio::test]
async fn a_person_sees_a_page_and_a_program_json() {
    let fixture = fixture("").await;
    let page = get(fixture.proxy.address, "/lab", &["Sec-Fetch-Mode: navigate", "Accept: text/html"]).await;
    assert_eq!((page.status, page.field("content-type")), (401, Some("text/html; charset=utf-8")));
    assert!(page.body.contains("<h1>Please sign in</h1>") && !page.body.contains("/lab"), "{}", page.body);
    assert!(page.field("content-security-policy").is_some_and(|policy| policy.contains("frame-ancestors 'none'")));
    let api = get(fixture.proxy.address, "/lab", &["Accept: application/json"]).await;
    assert_eq!((api.status, api.code().as_str()), (401, "missing_token"));
    let fetched = get(fixture.proxy.address, "/lab", &["Sec-Fetch-Mode: cors", "Accept: text/html"]).await;
    assert_eq!(fetched.code(), "missing_token");
}

#[tokio::test]
async fn a_person_without_a_credential_goes_to_the_sign_in_page() {
    let fixture = fixture("browser: { sign_in_url: \"https://id.example.com/in?back={return_path}\" }\n").await;
    let navigate = ["Sec-Fetch-Mode: navigate"];
    let answer = get(fixture.proxy.address, "/lab?reset&x=%2F", &navigate).await;
    let location = "https://id.example.com/in?back=%2Flab%3Freset%26x%3D%252F";
    assert_eq!((answer.status, answer.field("location")), (302, Some(location)));
    assert_eq!((answer.field("cache-control"), answer.body.as_str()), (Some("no-store"), ""));
    for target in ["//evil.example/", "/\\evil.example", "/%5Cevil.example"] {
        let answer = get(fixture.proxy.address, target, &navigate).await;
        let location = answer.field("location").unwrap_or_default();
        assert!(
            location.is_empty() || location.starts_with("https://id.example.com/in?back=%2F"),
            "{target}: {location}"
        );
        assert!(!location.contains("back=%2F%2F") && !location.contains("back=//"), "{target}: {location}");
    }
    // Who has one that is refused is told so, not sent in a circle.
    let expired = bearer(&fixture.issuer.expired("alice"));
    assert_eq!(get(fixture.proxy.address, "/lab", &["Sec-Fetch-Mode: navigate", &expired]).await.status, 401);
    assert_eq!(get(fixture.proxy.address, "/lab", &["Accept: */*"]).await.code(), "missing_token");
    assert_eq!(fixture.post(&[]).await.status, 404, "without sessions there is no endpoint for them");
}

/// The demo before a backend of one's own, and where it listens.
struct Demo {
    child: std::process::Child,
    address: std::net::SocketAddr,
    said: String,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    async fn start(arguments: Vec<String>) -> Self {
        tokio::task::spawn_blocking(move || {
            use std::io::BufRead as _;
            let mut child = crate::support::proxy::command()
                .args(["demo", "--listen", "127.0.0.1:0"])
                .args(arguments)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("starts");
            let mut said = String::new();
            let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
            while !said.contains("Ctrl-C stops") {
                assert!(output.read_line(&mut said).expect("a line") > 0, "it ended: {said}");
            }
            let url = said.split("Open      http://").nth(1).expect("an address");
            let address = url.lines().next().expect("a line").parse().expect("an address");
            // What it says later must find someone who reads.
            std::thread::spawn(move || output.lines().for_each(drop));
            Self { child, address, said }
        })
        .await
        .expect("started")
    }
}

#[tokio::test]
async fn the_demo_signs_people_in_before_ones_own_backend() {
    let backend = Backend::start().await;
    let upstream = format!("{}/lab?token=its-own-secret", backend.url());
    let demo = Demo::start(
        ["--upstream", &upstream, "--upstream-preset", "jupyter", "--user", "me"].map(str::to_owned).to_vec(),
    );
    // It asks its backend once before it says that it is ready.
    let (demo, _) = tokio::join!(demo, backend.answer("contents"));
    assert!(!demo.said.contains("its-own-secret"), "{}", demo.said);
    let answer = get(demo.address, "/lab/tree/x", &["Sec-Fetch-Mode: navigate"]).await;
    let location = "/vestibule-demo?return=%2Flab%2Ftree%2Fx";
    assert_eq!((answer.status, answer.field("location")), (302, Some(location)));
    let page = get(demo.address, location, &[]).await;
    assert!(
        page.status == 200 && page.body.contains("data-user=\"me\"") && !page.body.contains("alice"),
        "{}",
        page.body
    );
    let policy = page.field("content-security-policy").expect("a policy");
    assert!(policy.contains("script-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let nobody = request(demo.address, "POST", "/vestibule-demo/token", &[], r#"{"user":"alice"}"#).await;
    assert_eq!(nobody.status, 400);
    let token = request(demo.address, "POST", "/vestibule-demo/token", &[], r#"{"user":"me"}"#).await.json();
    let field = bearer(token["token"].as_str().expect("a token"));
    let signed_in = request(demo.address, "POST", SESSION, &[&field], "").await;
    assert_eq!(signed_in.status, 200, "{}", signed_in.body);
    let cookie = cookie(&signed_in);
    // The page that the backend served sends the backend's own secret back; it counts for nothing with us.
    let fields = [cookie.as_str(), "Authorization: token its-own-secret"];
    let (answer, heard) = tokio::join!(get(demo.address, "/lab", &fields), backend.answer("the lab"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "the lab"));
    assert_eq!(heard.all("x-user-id"), ["me"]);
    assert_eq!(heard.all("authorization"), ["token its-own-secret"]);
    assert_eq!(get(demo.address, "/lab", &["Authorization: token its-own-secret"]).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_says_that_its_backend_is_down_or_refuses_its_token() {
    let start = |upstream: String, more: Vec<&'static str>| async move {
        let mut arguments = vec!["--upstream".to_owned(), upstream];
        arguments.extend(more.into_iter().map(str::to_owned));
        Demo::start(arguments).await.said.clone()
    };
    let down = start("http://127.0.0.1:1".to_owned(), Vec::new()).await;
    assert!(down.contains("  PROBLEM   http://127.0.0.1:1 does not answer: start the backend"), "{down}");
    // A path that the backend guards: front pages answer a wrong token as they answer none.
    for (preset, guarded, query, expected) in [
        (
            ["--upstream-preset", "marimo"],
            "/api/version",
            "?access_token=wrong",
            "the backend answered 403 to its token: copy the address again",
        ),
        (
            ["--upstream-preset", "jupyter"],
            "/api/status",
            "?token=wrong",
            "the backend answered 403 to its token: copy the address again",
        ),
        (
            ["--upstream-preset", "jupyter"],
            "/api/status",
            "",
            "the backend answered 403 without its token: give --upstream the address as it prints it",
        ),
    ] {
        let backend = Backend::start().await;
        let refusing = async {
            let mut conn = backend.accept().await;
            let heard = conn.request().await;
            conn.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
            heard
        };
        let upstream = format!("{}/lab{query}", backend.url());
        let (said, heard) = tokio::join!(start(upstream, preset.to_vec()), refusing);
        assert!(said.contains(expected) && !said.contains("wrong"), "{said}");
        assert_eq!((heard.target(), heard.has("authorization")), (guarded, !query.is_empty()));
    }
}

#[tokio::test]
async fn a_mistake_in_the_demo_s_flags_names_the_flag() {
    for (arguments, expected) in [
        (&["--upstream", "http://127.0.0.1:8888", "--upstream-preset", "jupiter"][..], "'--upstream-preset <NAME>'"),
        (
            &["--upstream", "127.0.0.1:8888"],
            "--upstream 127.0.0.1:8888: is not a URL; write it as http://127.0.0.1:8888",
        ),
        (&["--upstream", "ftp://127.0.0.1"], "--upstream ftp://127.0.0.1: "),
    ] {
        let output = command().arg("demo").args(arguments).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{said}");
        assert!(!said.contains("VESTIBULE_CONFIG_YAML"), "{said}");
    }
}

#[tokio::test]
async fn a_known_backend_brings_what_its_pages_need() {
    for preset in ["jupyter", "marimo"] {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let upstream = format!(
            "{{ url: \"{}\", preset: {preset}, credential: {{ header: Authorization, value: token its-own }} }}",
            backend.url()
        );
        let mut fixture = Fixture {
            proxy: Proxy::start(&format!("upstream: {upstream}\nproviders: [{}]\n", issuer.provider())).await,
            issuer,
            backend,
        };
        // Sessions without their key, and no handshake in band: its page knows of none.
        let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
        let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"), "{preset}");
        let fields = [cookie.as_str(), "Origin: http://localhost"];
        let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
        let (mut socket, (heard, mut upstream)) = tokio::join!(opening, fixture.backend.websocket());
        assert_eq!((heard.all("x-user-id"), heard.all("authorization")), (vec!["alice"], vec!["token its-own"]));
        socket.say(r#"{"type":"authenticate","token":"x"}"#).await;
        assert_eq!(upstream.next_text().await, r#"{"type":"authenticate","token":"x"}"#, "nothing is ours");
        // It comes back after 1012.
        fixture.proxy.signal("TERM");
        assert_eq!(socket.next_close().await.0, 1012);
        drop((socket, upstream));
        assert_eq!(fixture.proxy.ended().await, Some(0));
    }
}

#[tokio::test]
async fn the_client_module_is_served_to_everyone() {
    let fixture = fixture("origins: [https://app.example.com]\n").await;
    let answer = get(fixture.proxy.address, "/.vestibule/client.js", &["Origin: https://app.example.com"]).await;
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/javascript; charset=utf-8")));
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.example.com"));
    assert!(answer.body.contains("as installAuth") && answer.body.len() < 16 * 1024, "minified: {}", answer.body.len());
    let tag = answer.field("etag").expect("a tag");
    let again =
        get(fixture.proxy.address, "/.vestibule/client.js", &[&format!("If-None-Match: \"other\", W/{tag}")]).await;
    assert_eq!((again.status, again.field("etag"), again.body.as_str()), (304, Some(tag), ""));
    let other = get(fixture.proxy.address, "/.vestibule/client.js", &["If-None-Match: \"other\""]).await;
    assert_eq!(other.status, 200);
    let posted = request(fixture.proxy.address, "POST", "/.vestibule/client.js", &[], "").await;
    assert_eq!((posted.status, posted.field("allow")), (405, Some("GET, HEAD")));
    assert_eq!(get(fixture.proxy.address, "/.vestibule/client.js/", &[]).await.status, 404);
}

#[tokio::test]
async fn the_types_of_the_client_module_are_served_beside_it() {
    let fixture = fixture("").await;
    let answer = get(fixture.proxy.address, "/.vestibule/client.d.ts", &[]).await;
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert!(answer.body.contains("export function installAuth("), "{}", answer.body);
    let tag = answer.field("etag").expect("a tag");
    let again = get(fixture.proxy.address, "/.vestibule/client.d.ts", &[&format!("If-None-Match: {tag}")]).await;
    assert_eq!(again.status, 304);
}

#[tokio::test]
async fn a_session_in_frames_of_other_sites_has_its_own_name_and_is_checked_more_strictly() {
    let fixture = fixture(
        "public_url: https://localhost\nbrowser: { session: { same_site: none, partitioned: true, name: vestibule-lab } }\n",
    )
    .await;
    let field = bearer(&fixture.issuer.token("alice"));
    let answer = fixture.post(&[&field]).await;
    let line = answer.field("set-cookie").expect("a cookie");
    assert!(line.starts_with("__Host-vestibule-lab="), "{line}");
    assert!(line.contains("; SameSite=None; ") && line.ends_with("; Secure; Partitioned"), "{line}");
    let cookie = cookie(&answer);
    let navigation = |dest: &str| -> Vec<String> {
        [
            "Sec-Fetch-Site: cross-site".to_owned(),
            "Sec-Fetch-Mode: navigate".to_owned(),
            format!("Sec-Fetch-Dest: {dest}"),
        ]
        .into()
    };
    for (row, fields, is_served) in [
        ("a frame on another site", navigation("iframe"), true),
        ("a page opened from another site", navigation("document"), true),
        ("an object on another site", navigation("object"), false),
        ("our own page", vec!["Sec-Fetch-Site: same-origin".to_owned()], true),
        ("an image on another site", vec!["Sec-Fetch-Site: cross-site".to_owned()], false),
        ("a browser that does not say", vec![], false),
        ("our own page's POST", vec!["Origin: https://localhost".to_owned()], true),
        ("another site's POST", vec!["Origin: https://other.example".to_owned()], false),
    ] {
        let method = if row.ends_with("POST") { "POST" } else { "GET" };
        let mut all: Vec<&str> =
            vec![&cookie, "Cookie: a=1; __Host-vestibule=x; vestibule-lab-80=y; __Host-vestibule-other=z"];
        all.extend(fields.iter().map(String::as_str));
        let answer = request(fixture.proxy.address, method, "/x", &all, "");
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => {
                assert!(!is_served, "{row}: {}", answer.head);
                assert_eq!(answer.status, 403, "{row}");
            }
            heard = fixture.backend.answer("ok") => {
                assert!(is_served, "{row}");
                assert_eq!((heard.all("x-user-id"), heard.all("cookie")), (vec!["alice"], vec!["a=1"]), "{row}");
                answer.await;
            }
        }
    }
}

#[tokio::test]
async fn plain_http_keeps_the_session_cookie_lax() {
    let fixture = fixture("browser: { session: { same_site: none, name: vestibule-lab } }\n").await;
    let field = bearer(&fixture.issuer.token("alice"));
    let answer = fixture.post(&[&field]).await;
    let line = answer.field("set-cookie").expect("a cookie");
    assert!(
        line.starts_with("vestibule-lab-80=") && line.contains("; SameSite=Lax; ") && !line.contains("Secure"),
        "{line}"
    );
    // A frame of another site counts only where the session may be in frames.
    let lax = self::fixture("").await;
    let cookie = lax.signed_in(&lax.issuer.token("alice")).await;
    let fields = [cookie.as_str(), "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"];
    assert_eq!(get(lax.proxy.address, "/x", &fields).await.status, 403);
}
