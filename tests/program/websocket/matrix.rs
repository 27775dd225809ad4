//! The combinations of carriers and upstream forms as a table (docs/contract.md section 4.4): wherever the token came
//! from, and in whatever form the upstream wants it. The stand-in for the upstream checks tokens itself, so each row is
//! also run against one that gets no token, and one that expects another.

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::bearer;
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

const CARRIERS: [&str; 5] = ["header", "cookie", "subprotocol", "query", "message"];
const FORMS: [&str; 4] = ["none", "header", "{ query: access_token }", "{ first_message: vestibule }"];

async fn proxy(backend: &Backend, issuer: &Issuer, form: &str, more: &str) -> Proxy {
    Proxy::start(&format!(
        "upstream: {{ url: \"{}\", token_to: {{ websocket: {form} }} }}\nproviders: [{}]\norigins: [\"https://app.example.com\"]\ntoken_from: {{ cookie: __session, subprotocol: [{{ prefix: token. }}] }}\n{more}",
        backend.url(),
        issuer.provider()
    ))
    .await
}

/// Opens a socket in the way of this kind of client.
async fn open(proxy: &Proxy, carrier: &str, token: &str) -> Result<Socket, String> {
    let (target, fields) = match carrier {
        "header" => ("/ws?x=1".to_owned(), vec![bearer(token)]),
        "cookie" => (
            "/ws?x=1".to_owned(),
            vec![format!("Cookie: theirs=1; __session={token}"), "Origin: https://app.example.com".to_owned()],
        ),
        "subprotocol" => ("/ws?x=1".to_owned(), vec![format!("Sec-WebSocket-Protocol: token.{token}")]),
        "query" => (format!("/ws?x=1&token={token}"), vec![]),
        _ => ("/ws?x=1".to_owned(), vec![]),
    };
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let (answer, socket) = Socket::try_open(proxy.address, &target, &fields).await;
    let mut socket = socket.ok_or_else(|| answer.status.to_string())?;
    if carrier == "message" {
        socket.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
    }
    Ok(socket)
}

/// Opens a socket and waits for the upstream's welcome. `Err` has the refusal.
async fn client(proxy: &Proxy, carrier: &str, token: &str) -> Result<Socket, String> {
    let mut socket = open(proxy, carrier, token).await?;
    // A client that authenticates in band gets an answer of the proxy; the others get the upstream's message.
    let first = socket.next_text().await;
    match first.as_str() {
        "welcome" if carrier != "message" => Ok(socket),
        said if carrier == "message" && said.contains("\"authenticated\"") => {
            assert_eq!(socket.next_text().await, "welcome");
            Ok(socket)
        }
        _ => Err(socket.next_close().await.0.to_string()),
    }
}

/// Runs an upstream that demands this token in this form, and welcomes a client that sends it.
async fn stand_in(backend: &Backend, form: &str, token: &str) -> Result<Socket, String> {
    let mut conn = backend.accept().await;
    let (heard, conn) = if form.contains("first_message") {
        let (heard, socket) = conn.switch("").await;
        (heard, Ok(socket))
    } else {
        (conn.request().await, Err(conn))
    };
    assert!(heard.target().starts_with("/ws?x=1"), "{}", heard.head);
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert!(heard.all("cookie").iter().all(|cookie| *cookie == "theirs=1"), "{}", heard.head);
    let fits = match form {
        "none" => !heard.head.contains(token),
        "header" => heard.all("authorization") == [format!("Bearer {token}")] && !heard.target().contains(token),
        form if form.contains("query") => {
            heard.target() == format!("/ws?x=1&access_token={token}") && !heard.has("authorization")
        }
        _ => true,
    };
    let mut socket = match conn {
        Ok(socket) => socket,
        Err(mut conn) if !fits => {
            conn.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
            return Err(heard.head);
        }
        Err(conn) => conn.accepts(&heard).await,
    };
    if form.contains("first_message") {
        assert!(!heard.head.contains(token), "it goes up in the message alone");
        let said = socket.try_next().await.map(|frame| frame.text().to_owned()).unwrap_or_default();
        if said != format!(r#"{{"type":"authenticate","token":"{token}"}}"#) {
            socket.say(r#"{"type":"error","message":"no"}"#).await;
            socket.send(0x88, [0x03, 0xf0]).await;
            return Err(said);
        }
        // Its messages before the acknowledgement follow, and the proxy answers a ping in between.
        socket.say("welcome").await;
        socket.send(0x89, "p").await;
        assert_eq!(socket.next().await.opcode, 10);
        socket.say(r#"{"type":"authenticated","user_id":"theirs","extra":1}"#).await;
    } else {
        socket.say("welcome").await;
    }
    Ok(socket)
}

#[tokio::test]
async fn every_carrier_reaches_every_form_of_upstream() {
    for form in FORMS {
        let (backend, issuer) = (Backend::start().await, Issuer::start().await);
        let proxy = proxy(&backend, &issuer, form, "").await;
        for carrier in CARRIERS {
            let row = format!("{carrier} × {form}");
            let token = issuer.token("alice");
            let (opened, upstream) = tokio::join!(client(&proxy, carrier, &token), stand_in(&backend, form, &token));
            let (mut socket, mut upstream) = (opened.expect(&row), upstream.expect(&row));
            socket.say("up").await;
            assert_eq!(upstream.next_text().await, "up", "{row}");
            // A refresh is forwarded in the same way, after the proxy's own verdict; its acknowledgement is dropped.
            let newer = issuer.token_with("alice", json!({"jti": "newer"}));
            socket.say(&json!({"type": "refresh_auth", "token": newer}).to_string()).await;
            if form.contains("first_message") {
                assert_eq!(
                    upstream.next_text().await,
                    json!({"type": "refresh_auth", "token": newer}).to_string(),
                    "{row}"
                );
                upstream.say(r#"{"n":1}"#).await;
                upstream.say(r#"{"type":"auth_refreshed","expires_at":1}"#).await;
                upstream.say(r#"{"type":"auth_refreshed","n":2}"#).await;
            } else {
                upstream.say(r#"{"n":1}"#).await;
                upstream.say(r#"{"type":"auth_refreshed","n":2}"#).await;
            }
            let mut heard = Vec::new();
            while heard.len() < 3 {
                heard.push(socket.next_text().await);
            }
            heard.sort_unstable();
            assert!(heard[1].contains(r#""type":"auth_refreshed","expires_at""#), "{row}: {heard:?}");
            assert_eq!((heard[0].as_str(), heard[2].as_str()), (r#"{"n":1}"#, r#"{"type":"auth_refreshed","n":2}"#));
            // A refused refresh is never forwarded.
            socket.say(&json!({"type": "refresh_auth", "token": issuer.token("bob")}).to_string()).await;
            assert!(socket.next_text().await.contains("another user"), "{row}");
            socket.say("last").await;
            assert_eq!(upstream.next_text().await, "last", "{row}");
        }
    }
}

#[tokio::test]
async fn a_row_fails_when_the_upstream_gets_no_token_or_another() {
    for form in &FORMS[1..] {
        let (backend, issuer) = (Backend::start().await, Issuer::start().await);
        let right = proxy(&backend, &issuer, form, "").await;
        let silent = proxy(&backend, &issuer, "none", "").await;
        for carrier in CARRIERS {
            let row = format!("{carrier} × {form}");
            let refused = if matches!(carrier, "header" | "cookie") { ["401", "403"] } else { ["1008", "1008"] };
            let token = issuer.token("alice");
            let altered = issuer.token_with("alice", json!({"jti": "another"}));
            let (opened, upstream) = tokio::join!(client(&right, carrier, &token), stand_in(&backend, form, &altered));
            assert!(upstream.is_err(), "{row}");
            assert!(refused.contains(&opened.err().expect(&row).as_str()), "{row}");
            if form.contains("first_message") {
                // Without an introduction it gets the client's own first message, which is none.
                let says = async {
                    let mut socket = open(&silent, carrier, &token).await.expect(&row);
                    socket.say("up").await;
                    socket
                };
                let (_socket, upstream) = tokio::join!(says, stand_in(&backend, form, &token));
                assert_eq!(upstream.err().as_deref(), Some("up"), "{row}");
                continue;
            }
            let (opened, upstream) = tokio::join!(client(&silent, carrier, &token), stand_in(&backend, form, &token));
            assert!(upstream.is_err(), "{row}");
            assert!(refused.contains(&opened.err().expect(&row).as_str()), "{row}");
        }
    }
}

#[tokio::test]
async fn token_field_reaches_the_upstream_as_the_mode_says() {
    for (mode, seen) in [
        ("keep", r#"{"prompt":"a", "auth_token":"TOKEN","n":1.50}"#),
        ("remove", r#"{"prompt":"a","n":1.50}"#),
        ("replace", r#"{"prompt":"a", "auth_token":"","n":1.50}"#),
    ] {
        let (backend, issuer) = (Backend::start().await, Issuer::start().await);
        let more = format!("websocket: {{ dialect: {{ name: token-field, upstream: {mode} }} }}\n");
        let proxy = proxy(&backend, &issuer, "none", &more).await;
        let token = issuer.token("alice");
        let mut socket = Socket::open(proxy.address, "/ws?x=1", &[]).await;
        let message = format!(r#"{{"prompt":"a", "auth_token":"{token}","n":1.50}}"#);
        socket.say(&message).await;
        let (_, mut upstream) = backend.websocket().await;
        for _ in 0..2 {
            let heard = upstream.next_text().await;
            assert_eq!(heard, seen.replace("TOKEN", &token), "{mode}");
            // An upstream that reads the field gets the token with `keep` only.
            assert_eq!(heard.contains(&token), mode == "keep");
            socket.say(&message).await;
        }
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_take_the_introduction_is_its_row() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let more = "routes: [{ path: /slow, websocket: { auth_timeout: 10s } }]\n";
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: \"{}\", handshake_timeout: 1s, token_to: {{ websocket: {{ first_message: vestibule }} }} }}\nproviders: [{}]\n{more}",
        backend.url(),
        issuer.provider()
    ))
    .await;
    let close = |code: u16| code.to_be_bytes().to_vec();
    for (name, answer, said, code) in [
        ("error", vec![(0x81, br#"{"type":"error","message":"no"}"#.to_vec())], "Access denied", 1008),
        ("1008", vec![(0x88, close(1008))], "Access denied", 1008),
        ("4001", vec![(0x88, close(4001))], "Access denied", 1008),
        ("4401", vec![(0x88, close(4401))], "Access denied", 1008),
        ("1000", vec![(0x88, close(1000))], "Upstream unavailable", 1011),
        ("too much", vec![(0x82, vec![0; 40_000]), (0x82, vec![0; 40_000])], "Upstream unavailable", 1011),
        ("bad framing", vec![(0x83, vec![])], "Upstream unavailable", 1011),
        ("silence", vec![], "Upstream unavailable", 1011),
    ] {
        let mut socket = Socket::open(proxy.address, "/ws", &[]).await;
        socket.say(&json!({"type": "authenticate", "token": issuer.token("alice")}).to_string()).await;
        let (_, mut upstream) = backend.websocket().await;
        upstream.next_text().await;
        for (first, payload) in answer {
            upstream.send(first, payload).await;
        }
        assert_eq!(socket.next_text().await, json!({"type": "error", "message": said}).to_string(), "{name}");
        assert_eq!(socket.next_close().await.0, code, "{name}");
    }
}

/// DESIGN section 4.4: a client with a header credential learns it before its socket opens, and it is no outage.
#[tokio::test]
async fn a_client_with_a_header_is_told_what_the_upstream_said_to_the_first_message() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = proxy(&backend, &issuer, FORMS[3], "").await;
    let field = bearer(&issuer.token("alice"));
    let close = |code: u16| code.to_be_bytes().to_vec();
    for (name, first, payload, expected) in [
        ("error", 0x81, br#"{"type":"error","message":"no"}"#.to_vec(), (403, "forbidden")),
        ("1008", 0x88, close(1008), (403, "forbidden")),
        ("4401", 0x88, close(4401), (403, "forbidden")),
        ("1000", 0x88, close(1000), (502, "upstream_failed")),
    ] {
        let upstream = async {
            let (_, mut upstream) = backend.websocket().await;
            upstream.next_text().await;
            upstream.send(first, payload).await;
        };
        let fields = [field.as_str()];
        let ((answer, socket), ()) = tokio::join!(Socket::try_open(proxy.address, "/ws", &fields), upstream);
        assert!(socket.is_none(), "{name}");
        assert_eq!((answer.status, answer.code().as_str()), expected, "{name}");
    }
}

const HOME: &str = r"
dialects:
  home:
    greeting: { type: auth_required }
    authenticate: { match: { type: auth }, token: [/access_token] }
    acknowledge: { type: auth_ok }
    error: { type: auth_invalid }
";

#[tokio::test]
async fn an_upstream_that_speaks_first_is_answered_and_its_greeting_swallowed() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = proxy(&backend, &issuer, "{ first_message: home }", HOME).await;
    let token = issuer.token("alice");
    let mut socket = Socket::open(proxy.address, "/ws?x=1", &[]).await;
    socket.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
    let (_, mut upstream) = backend.websocket().await;
    upstream.say(r#"{"type":"auth_required","ha_version":"2026.11"}"#).await;
    assert_eq!(upstream.next_text().await, json!({"type": "auth", "access_token": token}).to_string());
    // The acknowledgement and what follows it in one segment.
    let server = crate::support::socket::Side::Server;
    let both = [
        crate::support::socket::frame(server, 0x81, br#"{"type":"auth_ok"}"#),
        crate::support::socket::frame(server, 0x81, b"first"),
    ]
    .concat();
    upstream.write(both).await;
    assert!(socket.next_text().await.contains("authenticated"));
    assert_eq!(socket.next_text().await, "first");
}

#[tokio::test]
async fn what_the_upstream_says_to_a_refresh_is_swallowed_once_and_nothing_else_is_lost() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = proxy(&backend, &issuer, FORMS[3], "").await;
    let token = issuer.token("alice");
    let (socket, upstream) = tokio::join!(client(&proxy, "header", &token), stand_in(&backend, FORMS[3], &token));
    let (mut socket, mut upstream) = (socket.expect("open"), upstream.expect("open"));
    socket.say(&json!({"type": "refresh_auth", "token": token}).to_string()).await;
    assert!(socket.next_text().await.contains("auth_refreshed"));
    assert!(upstream.next_text().await.contains("refresh_auth"));
    let error = r#"{"type":"error","message":"a cell failed"}"#;
    // The text comes in two fragments, followed by a longer text that cannot be an answer.
    upstream.send(0x01, &error[..10]).await;
    upstream.send(0x80, &error[10..]).await;
    let long = format!(r#"{{"type":"auth_refreshed","x":"{}"}}"#, "x".repeat(20_000));
    for text in [long.as_str(), r#"{"type":"auth_refreshed"}"#, "last"] {
        upstream.say(text).await;
    }
    let (first, second) = (socket.next().await, socket.next().await);
    assert_eq!(format!("{}{}", first.text(), second.text()), error);
    assert_eq!(socket.next_text().await, long);
    assert_eq!(socket.next_text().await, r#"{"type":"auth_refreshed"}"#, "the one that was awaited has been answered");
    assert_eq!(socket.next_text().await, "last");
    proxy.logged("the refusal", |line| line.contains("the upstream answered a refresh with an error")).await;
}

/// Returns the outcome of a socket: its user, or its refusal.
async fn outcome(backend: &Backend, proxy: &Proxy, target: &str, fields: &[String], first: Option<&str>) -> String {
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    let client = async {
        let (answer, socket) = Socket::try_open(proxy.address, target, &fields).await;
        let Some(mut socket) = socket else { return format!("{} {}", answer.status, answer.code()) };
        if let Some(first) = first {
            socket.say(first).await;
        }
        let said = socket.next_text().await;
        if said == "welcome" || said.contains("\"authenticated\"") {
            return "open".to_owned();
        }
        let (code, reason) = socket.next_close().await;
        format!("{code} {reason}")
    };
    let upstream = async {
        let (heard, mut socket) = backend.websocket().await;
        assert!(!heard.head.contains("eyJ"), "{}", heard.head);
        let user = heard.all("x-user-id").join(",");
        socket.say("welcome").await;
        let _ = socket.try_next().await;
        user
    };
    tokio::pin!(client, upstream);
    tokio::select! {
        refused = &mut client => match refused.as_str() {
            "open" => upstream.await,
            _ => refused,
        },
        user = &mut upstream => user,
    }
}

#[tokio::test]
async fn every_kind_of_credential_good_bad_twice_and_beside_another() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let proxy = proxy(&backend, &issuer, "none", "").await;
    let (alice, bob) = (issuer.token("alice"), issuer.token("bob"));
    let header = |token: &str| vec![bearer(token)];
    let subprotocol = |tokens: &[&str]| {
        let entries: Vec<String> = tokens.iter().map(|token| format!("token.{token}")).collect();
        vec![format!("Sec-WebSocket-Protocol: {}", entries.join(", "))]
    };
    let cookie = |tokens: &[&str]| {
        let pairs: Vec<String> = tokens.iter().map(|token| format!("__session={token}")).collect();
        vec![format!("Cookie: {}", pairs.join("; ")), "Origin: https://app.example.com".to_owned()]
    };
    let query = |tokens: &[&str]| {
        let pairs: Vec<String> = tokens.iter().map(|token| format!("token={token}")).collect();
        format!("/ws?{}", pairs.join("&"))
    };
    let unsigned = issuer.unsigned();
    let message = |token: &str| json!({"type": "authenticate", "token": token}).to_string();
    let twice = format!(r#"{{"type":"authenticate","token":"{alice}","token":"{alice}"}}"#);
    let (in_band, bare) = (message(&alice), "/ws".to_owned());
    let invalid = "1008 Invalid token";
    for (row, target, fields, first, expected) in [
        ("header good", bare.clone(), header(&alice), None, "alice"),
        ("header bad", bare.clone(), header("garbage"), None, "401 invalid_token"),
        ("header twice", bare.clone(), [header(&alice), header(&alice)].concat(), None, "401 invalid_request"),
        (
            "header beside all",
            query(&[&bob]),
            [header(&alice), subprotocol(&[&bob]), cookie(&[&bob])].concat(),
            None,
            "alice",
        ),
        (
            "header bad beside good",
            query(&[&bob]),
            [header("garbage"), subprotocol(&[&bob])].concat(),
            None,
            "401 invalid_token",
        ),
        ("subprotocol good", bare.clone(), subprotocol(&[&alice]), None, "alice"),
        ("subprotocol bad", bare.clone(), subprotocol(&["garbage"]), None, invalid),
        ("subprotocol twice", bare.clone(), subprotocol(&[&alice, &alice]), None, invalid),
        ("subprotocol beside", query(&[&bob]), [subprotocol(&[&alice]), cookie(&[&bob])].concat(), None, "alice"),
        ("subprotocol bad beside good", query(&[&bob]), subprotocol(&["garbage"]), None, invalid),
        ("query good", query(&[&alice]), vec![], None, "alice"),
        ("query bad", query(&[&unsigned]), vec![], None, invalid),
        ("query twice", query(&[&alice, &alice]), vec![], None, invalid),
        ("query beside", query(&[&alice]), cookie(&[&bob]), None, "alice"),
        ("query bad beside good", query(&[&unsigned]), cookie(&[&bob]), None, invalid),
        ("message good", bare.clone(), vec![], Some(in_band.as_str()), "alice"),
        ("message bad", bare.clone(), vec![], Some(r#"{"type":"authenticate","token":"garbage"}"#), invalid),
        ("message twice", bare.clone(), vec![], Some(twice.as_str()), "1008 Invalid message format"),
        ("cookie good", bare.clone(), cookie(&[&alice]), None, "alice"),
        ("cookie bad, then the message", bare.clone(), cookie(&["garbage"]), Some(in_band.as_str()), "alice"),
        ("cookie twice, then the message", bare.clone(), cookie(&[&bob, &bob]), Some(in_band.as_str()), "alice"),
        ("nothing but another message", bare.clone(), vec![], Some("{}"), "1008 Expected authentication message"),
    ] {
        assert_eq!(outcome(&backend, &proxy, &target, &fields, first).await, expected, "{row}");
    }
}
