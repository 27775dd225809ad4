//! How long a socket lives (docs/contract.md section 4.5): presence, the key of its token, and how many its user has.

use serde_json::json;

use super::{error, house};
use crate::support::client::{bearer, get};
use crate::support::issuer::Key;
use crate::support::now;
use crate::support::socket::Socket;

#[tokio::test]
async fn auto_lives_on_while_its_user_is_seen() {
    let house = house("websocket: { on_expiry: auto, grace: 0s, presence: 4s }\n").await;
    // The clock skew of five seconds makes it end in two; admission itself is presence, so in four.
    let dying = |sid: &str| house.issuer.token_with("alice", json!({"exp": now() - 3, "sid": sid}));
    let (mut seen, mut seen_upstream) = house.session(&dying("a")).await;
    let (mut unseen, _unseen_upstream) = house.session(&dying("b")).await;
    // A request with a valid token of the same user and session, again and again.
    let credential = bearer(&house.issuer.token_with("alice", json!({"sid": "a"})));
    let requests = async {
        let fields = [credential.as_str()];
        loop {
            let (answer, _) = tokio::join!(get(house.proxy.address, "/x", &fields), house.backend.answer("hi"));
            assert_eq!(answer.status, 200);
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
    // Nobody asks any more.
    assert_eq!(seen.next_text().await, error("Token expired"));
    assert_eq!(seen.next_close().await, (4401, "Token expired".into()));
}

#[tokio::test]
async fn auto_closes_a_client_that_has_shown_it_can_renew() {
    let house = house("websocket: { on_expiry: auto, grace: 0s, presence: 1h }\n").await;
    let (mut client, _upstream) = house.session(&house.issuer.token("alice")).await;
    let dying = house.issuer.token_with("alice", json!({"exp": now() - 3}));
    client.say(&house.refresh(&dying)).await;
    assert!(client.next_text().await.contains("auth_refreshed"));
    assert_eq!(client.next_text().await, error("Token expired"));
}

#[tokio::test]
async fn a_user_has_a_number_of_sockets_and_others_have_theirs() {
    let house = house("limits: { websockets_per_user: 2 }\n").await;
    let (alice, bob) = (house.issuer.token("alice"), house.issuer.token("bob"));
    let (first, _first_upstream) = house.session(&alice).await;
    let credential = bearer(&alice);
    let fields = [credential.as_str()];
    let (_second, _) = tokio::join!(Socket::open(house.proxy.address, "/ws", &fields), house.backend.websocket());
    // One more, in each way it can be told.
    let (answer, _) = Socket::try_open(house.proxy.address, "/ws", &fields).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "busy"));
    let mut client = Socket::open(house.proxy.address, &format!("/ws?token={alice}"), &[]).await;
    assert_eq!(client.next_text().await, error("Too many connections"));
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
    let mut client = Socket::open(house.proxy.address, "/ws", &[]).await;
    client.say(&json!({"type": "authenticate", "token": alice}).to_string()).await;
    assert_eq!(client.next_text().await, error("Too many connections"));
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
    let (_bob, _bob_upstream) = house.session(&bob).await;
    // A place is free again once a socket has gone.
    drop(first);
    crate::support::within("a free place", async {
        loop {
            let upgrade = Socket::try_open(house.proxy.address, "/ws", &fields);
            tokio::select! {
                (answer, socket) = upgrade => match socket {
                    Some(_) => return,
                    None => assert_eq!(answer.status, 503),
                },
                _ = house.backend.websocket() => return,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_open_socket_whose_token_s_key_is_withdrawn_ends_within_half_a_minute() {
    let house = house("websocket: { ping_interval: 5m }\n").await;
    let (mut client, mut upstream) = house.session(&house.issuer.token("alice")).await;
    let (mut kept, mut kept_upstream) = house.session(&house.issuer.token("bob")).await;
    let other = Key::ec("other", jsonwebtoken::Algorithm::ES256);
    kept.say(&house.refresh(&{
        house.issuer.set_keys(vec![other.jwk.clone()]);
        // A key that is not known yet makes the set be fetched anew, and the old key is not in it any more.
        other.sign(&house.issuer.claims("bob"))
    }))
    .await;
    assert!(kept.next_text().await.contains("auth_refreshed"));
    // Longer than the safety net of other tests.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(90), client.try_next()).await;
    assert_eq!(ended.expect("in time").expect("a message").text(), error("Token expired"));
    assert_eq!(client.next_close().await, (4401, "Token expired".into()));
    assert_eq!(upstream.next_close().await.0, 1001);
    kept.say("its new key stands").await;
    assert_eq!(kept_upstream.next_text().await, "its new key stands");
}
