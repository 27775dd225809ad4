//! Tests of the duration of a socket (docs/contract.md section 4.5): presence, the key of its token, and the number of
//! sockets per user.

use serde_json::json;

use super::{error, fixture};
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::Key;
use crate::support::now;
use crate::support::socket::{Side, Socket, frame, upgrade};

#[tokio::test]
async fn auto_lives_on_while_its_user_is_seen() {
    let fixture = fixture("websocket: { on_expiry: auto, grace: 0s, presence: 4s }\n").await;
    // With the clock skew of five seconds the token ends in two; admission itself counts as presence, so in four.
    let dying = |sid: &str| fixture.issuer.token_with("alice", json!({"exp": now() - 3, "sid": sid}));
    let (mut seen, mut seen_upstream) = fixture.session(&dying("a")).await;
    let (mut unseen, _unseen_upstream) = fixture.session(&dying("b")).await;
    // Requests with a valid token of the same user and session, at short intervals.
    let credential = bearer(&fixture.issuer.token_with("alice", json!({"sid": "a"})));
    let requests = async {
        let fields = [credential.as_str()];
        loop {
            let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("hi"));
            assert_eq!(answer.status, 200);
            // Paces the requests; which socket ends is awaited beside them.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = requests => {}
        said = unseen.next_text() => assert_eq!(said, error("Token expired")),
        said = seen.next_text() => panic!("it ended though its user was seen: {said}"),
    }
    assert_eq!(unseen.next_close().await, (4401, "Token expired".into()));
    seen.say("still here").await;
    assert_eq!(seen_upstream.next_text().await, "still here");
    // There are no more requests.
    assert_eq!(seen.next_text().await, error("Token expired"));
    assert_eq!(seen.next_close().await, (4401, "Token expired".into()));
}

#[tokio::test]
async fn auto_closes_a_client_that_has_shown_it_can_renew() {
    let fixture = fixture("websocket: { on_expiry: auto, grace: 0s, presence: 1h }\n").await;
    let (mut client, _upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    let dying = fixture.issuer.token_with("alice", json!({"exp": now() - 3}));
    client.say(&fixture.refresh(&dying)).await;
    assert!(client.next_text().await.contains("auth_refreshed"));
    assert_eq!(client.next_text().await, error("Token expired"));
}

#[tokio::test]
async fn a_user_has_a_number_of_sockets_and_others_have_theirs() {
    let fixture = fixture("limits: { websockets_per_user: 2 }\n").await;
    let (alice, bob) = (fixture.issuer.token("alice"), fixture.issuer.token("bob"));
    let (first, _first_upstream) = fixture.session(&alice).await;
    let credential = bearer(&alice);
    let fields = [credential.as_str()];
    let (_second, _second_upstream) =
        tokio::join!(Socket::open(fixture.proxy.address, "/ws", &fields), fixture.backend.websocket());
    // One more socket, refused in each form.
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/ws", &fields).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
    let mut client = Socket::open(fixture.proxy.address, &format!("/ws?token={alice}"), &[]).await;
    assert_eq!(client.next_text().await, error("Too many connections"));
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": alice}).to_string()).await;
    assert_eq!(client.next_text().await, error("Too many connections"));
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
    let (_bob, _bob_upstream) = fixture.session(&bob).await;
    // A place is free again once a socket has gone.
    drop(first);
    crate::support::within("a free place", async {
        loop {
            let upgrade = Socket::try_open(fixture.proxy.address, "/ws", &fields);
            tokio::select! {
                (answer, socket) = upgrade => match socket {
                    Some(_) => return,
                    None => assert_eq!(answer.status, 503),
                },
                _ = fixture.backend.websocket() => return,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_open_socket_whose_token_s_key_is_withdrawn_ends_within_half_a_minute() {
    let fixture = fixture("websocket: { ping_interval: 5m }\n").await;
    let (mut client, mut upstream) = fixture.session(&fixture.issuer.token("alice")).await;
    let (mut kept, mut kept_upstream) = fixture.session(&fixture.issuer.token("bob")).await;
    let other = Key::ec("other", jsonwebtoken::Algorithm::ES256);
    kept.say(&fixture.refresh(&{
        fixture.issuer.set_keys(vec![other.jwk.clone()]);
        // An unknown key causes a fetch of the set, in which the old key is missing.
        other.sign(&fixture.issuer.claims("bob"))
    }))
    .await;
    assert!(kept.next_text().await.contains("auth_refreshed"));
    // This takes longer than the safety net of other tests.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(90), client.try_next()).await;
    assert_eq!(ended.expect("in time").expect("a message").text(), error("Token expired"));
    assert_eq!(client.next_close().await, (4401, "Token expired".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    kept.say("its new key stands").await;
    assert_eq!(kept_upstream.next_text().await, "its new key stands");
}

/// React's Strict Mode: every effect runs, is undone, and runs again.
#[tokio::test]
async fn connect_close_connect_leaves_exactly_one_upstream_socket() {
    let mut fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    let authenticate = json!({"type": "authenticate", "token": token}).to_string();
    let mut first = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    first.say(&authenticate).await;
    first.send(0x88, 1000u16.to_be_bytes()).await;
    let mut second = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    second.say(&authenticate).await;
    assert_eq!(first.next_close().await.0, 1000);
    // The proxy may have connected for the first socket already.
    let mut dialled = Vec::new();
    loop {
        let accepts = async {
            loop {
                let mut conn = fixture.backend.accept().await;
                if let Some(heard) = conn.try_request().await {
                    return conn.accepts(&heard).await;
                }
            }
        };
        tokio::select! {
            said = second.next_text() => {
                assert!(said.contains("authenticated"), "{said}");
                break;
            }
            socket = accepts => dialled.push(socket),
        }
    }
    second.say("here").await;
    let mut open = 0;
    for mut upstream in dialled {
        if let Some(heard) = crate::support::within("a word or the end", upstream.try_next()).await {
            assert_eq!(heard.text(), "here");
            open += 1;
        }
    }
    assert_eq!(open, 1);
    assert!(fixture.backend.is_untouched());
}

/// Checks that only a valid 101 makes a tunnel, and that bytes after a refused upgrade are not forwarded.
#[tokio::test]
async fn an_upgrade_that_is_refused_is_never_a_tunnel() {
    let fixture = fixture("").await;
    let token = fixture.issuer.token("alice");
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", 426),
        ("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", 302),
        ("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: wrong\r\n\r\n", 502),
        ("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502),
        ("HTTP/1.1 101 X\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", 502),
        ("garbage\r\n\r\n", 502),
    ] {
        let mut client = Client::connect(fixture.proxy.address).await;
        let mut bytes = upgrade("/ws", &[&bearer(&token)]).into_bytes();
        bytes.extend(frame(Side::Client, 0x81, b"pipelined"));
        client.send(bytes).await;
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(answer).await;
        assert_eq!(client.answer().await.status, status, "{answer}");
        assert!(conn.try_request().await.is_none(), "nothing more arrives there, and the connection ends: {answer}");
    }
}

/// On a public route the tunnel is the two ends' own, compression too.
#[tokio::test]
async fn a_public_socket_negotiates_compression_end_to_end() {
    let fixture = fixture("routes: [{ path: /open, auth: none }, { path: /maybe, auth: optional }]\n").await;
    let fields = ["Sec-WebSocket-Extensions: permessage-deflate"];
    for target in ["/open", "/maybe"] {
        let upstream =
            async { fixture.backend.accept().await.switch("Sec-WebSocket-Extensions: permessage-deflate\r\n").await };
        let ((answer, client), (heard, mut upstream)) =
            tokio::join!(Socket::try_open(fixture.proxy.address, target, &fields), upstream);
        assert_eq!(answer.field("sec-websocket-extensions"), Some("permessage-deflate"), "{target}");
        assert_eq!(heard.all("sec-websocket-extensions"), ["permessage-deflate"], "{target}");
        // A compressed message, whose bit only they understand.
        let mut client = client.expect("open");
        client.send(0xc1, "squeezed").await;
        assert_eq!(upstream.next_text().await, "squeezed");
        upstream.send(0xc1, "squeezed").await;
        assert_eq!(client.next_text().await, "squeezed");
    }
}
