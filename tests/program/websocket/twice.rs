//! Every row of docs/contract.md section 4.2 that can come to an open socket, and the bullets of section 4.5, each
//! twice: alone, and while a refresh is being verified with the upstream in the middle of a fragmented
//! message, where nothing of ours may be said until that message has ended.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Fixture, error, fixture};
use crate::support::issuer::Gate;
use crate::support::now;
use crate::support::socket::{Side, Socket, frame};

struct OpenSession {
    fixture: Fixture,
    client: Socket,
    upstream: Socket,
    /// Holds the verdict on a refresh, and the upstream is in the middle of a message.
    busy: Option<Gate>,
}

impl OpenSession {
    async fn new(yaml: &str, busy: bool) -> Self {
        Self::with(yaml, busy, json!({}), json!({})).await
    }

    /// Opens a session with the claims `first`; when busy, the refresh under verification has `second`. The claim
    /// `expires_in` becomes `exp` once the proxy has started, since a start can take longer than a token lives.
    async fn with(yaml: &str, busy: bool, mut first: Value, second: Value) -> Self {
        let fixture = fixture(yaml).await;
        if let Some(expires_in) = first.as_object_mut().and_then(|claims| claims.remove("expires_in")) {
            first["exp"] = json!(now().saturating_add_signed(expires_in.as_i64().expect("seconds")));
        }
        let (client, upstream) = fixture.session(&fixture.issuer.token_with("alice", first)).await;
        let mut session = Self { fixture, client, upstream, busy: None };
        if busy {
            session.upstream.send(0x01, "half ").await;
            let half = session.client.next().await;
            assert_eq!((half.fin, half.opcode, half.text()), (false, 1, "half "));
            let (key, gate) = session.fixture.issuer.rotates();
            let mut claims = session.fixture.issuer.claims("alice");
            for (name, value) in second.as_object().expect("object") {
                claims[name] = value.clone();
            }
            let refresh = session.fixture.refresh(&key.sign(&claims));
            session.client.say(&refresh).await;
            // Messages flow on while it is verified, and show that it has been read.
            session.client.say("marker").await;
            assert_eq!(session.upstream.next_text().await, "marker");
            session.busy = Some(gate);
        }
        session
    }

    /// Presents a token with these claims, or, when one is under verification already, lets its verdict come.
    async fn refresh(&mut self, claims: Value) {
        if let Some(gate) = &self.busy {
            gate.open();
        } else {
            let refresh = self.fixture.refresh(&self.fixture.issuer.token_with("alice", claims));
            self.client.say(&refresh).await;
        }
    }

    /// Ends the upstream's message. The client gets the rest of it before any message of the proxy.
    async fn message_ends(&mut self) {
        if self.busy.is_some() {
            self.upstream.send(0x80, "whole").await;
            let whole = self.client.next().await;
            assert_eq!((whole.fin, whole.opcode, whole.text()), (true, 0, "whole"));
        }
    }

    async fn ends_with(mut self, said: Option<&str>, close: (u16, &str)) {
        self.message_ends().await;
        if let Some(said) = said {
            assert_eq!(self.client.next_text().await, error(said));
        }
        assert_eq!(self.client.next_close().await, (close.0, close.1.to_owned()));
        assert!(self.client.is_over().await);
        // Toward the upstream a session that we end is a Close 1001, behind whatever the client had sent.
        assert_eq!(self.upstream.next_close().await.0, 1001);
    }

    /// Checks that both directions are forwarded.
    async fn goes_on(&mut self) {
        self.client.say("up").await;
        assert_eq!(self.upstream.next_text().await, "up");
        self.upstream.say("down").await;
        assert_eq!(self.client.next_text().await, "down");
    }
}

#[tokio::test]
async fn a_refresh_without_a_token_leaves_it_open() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        session.client.say(r#"{"type":"refresh_auth"}"#).await;
        session.client.say("behind").await;
        assert_eq!(session.upstream.next_text().await, "behind");
        session.message_ends().await;
        assert_eq!(session.client.next_text().await, error("Missing token in refresh request"));
        if let Some(gate) = &session.busy {
            gate.open();
            assert!(session.client.next_text().await.contains("auth_refreshed"));
        }
        session.goes_on().await;
    }
}

#[tokio::test]
async fn a_refused_refresh_leaves_it_open_on_the_old_identity() {
    for busy in [false, true] {
        for (claims, said) in [
            (json!({"sub": "bob"}), "Token refresh failed: another user"),
            (json!({"exp": now() - 600}), "Token refresh failed: Token has expired"),
            (json!({"aud": "other"}), "Token refresh failed: Invalid authentication token"),
        ] {
            let mut session = OpenSession::with("", busy, json!({}), claims.clone()).await;
            session.refresh(claims).await;
            session.message_ends().await;
            assert_eq!(session.client.next_text().await, error(said));
            session.goes_on().await;
        }
    }
}

#[tokio::test]
async fn a_refresh_that_nobody_can_judge_leaves_it_open() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        if let Some(gate) = &session.busy {
            gate.slam();
        } else {
            let (key, gate) = session.fixture.issuer.rotates();
            gate.slam();
            let refresh = session.fixture.refresh(&key.sign(&session.fixture.issuer.claims("alice")));
            session.client.say(&refresh).await;
        }
        session.message_ends().await;
        let said = "Token refresh failed: Authentication service unavailable";
        assert_eq!(session.client.next_text().await, error(said));
        session.goes_on().await;
    }
}

#[tokio::test]
async fn an_accepted_refresh_is_answered_between_messages() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        session.refresh(json!({})).await;
        session.message_ends().await;
        assert!(session.client.next_text().await.contains("auth_refreshed"));
        session.goes_on().await;
    }
}

#[tokio::test]
async fn authenticate_again_is_answered_as_a_refresh_and_never_reaches_the_upstream() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        let token = session.fixture.issuer.token("alice");
        session.client.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
        session.client.say("behind").await;
        assert_eq!(session.upstream.next_text().await, "behind");
        session.message_ends().await;
        if let Some(gate) = &session.busy {
            gate.open();
            assert!(session.client.next_text().await.contains("auth_refreshed"));
        }
        assert!(session.client.next_text().await.contains(r#""type":"authenticated""#));
        session.goes_on().await;
    }
}

#[tokio::test]
async fn five_refusals_of_refreshes_in_a_row_end_it() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        for _ in 0..5 {
            session.client.say(r#"{"type":"refresh_auth"}"#).await;
        }
        session.message_ends().await;
        for _ in 0..4 {
            assert_eq!(session.client.next_text().await, error("Missing token in refresh request"));
        }
        session.busy = None;
        session.ends_with(Some("Too many refreshes"), (1008, "Too many refreshes")).await;
    }
}

#[tokio::test]
async fn a_refreshed_identity_that_is_no_longer_allowed_ends_it() {
    for busy in [false, true] {
        let yaml = "routes: [{ path: /ws, require: { role: dev } }]\n";
        let mut session = OpenSession::with(yaml, busy, json!({"role": "dev"}), json!({"role": "none"})).await;
        session.refresh(json!({"role": "none"})).await;
        session.ends_with(Some("Access denied"), (1008, "Access denied")).await;
    }
}

#[tokio::test]
async fn a_refreshed_identity_that_would_change_a_trusted_header_ends_it() {
    for busy in [false, true] {
        let yaml = "identity: { headers: { X-User-Id: sub, X-Team: team } }\n";
        let mut session = OpenSession::with(yaml, busy, json!({"team": "red"}), json!({"team": "blue"})).await;
        session.refresh(json!({"team": "blue"})).await;
        session.ends_with(None, (1012, "Identity changed")).await;
    }
}

#[tokio::test]
async fn an_expired_token_ends_it_and_a_refresh_under_verification_is_awaited() {
    for busy in [false, true] {
        // The clock skew of five seconds makes this one end in two.
        let dying = json!({"expires_in": -3});
        let mut session = OpenSession::with("websocket: { grace: 0s }\n", busy, dying, json!({"sub": "bob"})).await;
        if busy {
            // The socket stays open after the token's end, until the verdict is there.
            tokio::time::sleep(Duration::from_secs(3)).await;
            session.client.say("late").await;
            assert_eq!(session.upstream.next_text().await, "late");
            session.refresh(json!({})).await;
            session.message_ends().await;
            assert_eq!(session.client.next_text().await, error("Token refresh failed: another user"));
            session.busy = None;
        }
        session.ends_with(Some("Token expired"), (4401, "Token expired")).await;
    }
}

#[tokio::test]
async fn a_refresh_in_time_keeps_it_open_beyond_its_first_token() {
    for busy in [false, true] {
        let dying = json!({"expires_in": -3});
        let mut session = OpenSession::with("websocket: { grace: 0s }\n", busy, dying, json!({})).await;
        session.refresh(json!({})).await;
        session.message_ends().await;
        assert!(session.client.next_text().await.contains("auth_refreshed"));
        // The first token's end passes, and nothing is to happen at it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        session.goes_on().await;
    }
}

#[tokio::test]
async fn max_lifetime_ends_it_whatever_is_under_verification() {
    for busy in [false, true] {
        let session = OpenSession::new("websocket: { max_lifetime: 2s }\n", busy).await;
        if busy {
            // The upstream does not end its message; a Close may stand between two fragments.
            let OpenSession { mut client, mut upstream, .. } = session;
            assert_eq!(client.next_close().await, (4401, "Session expired".into()));
            assert_eq!(upstream.next_close().await.0, 1001);
        } else {
            session.ends_with(Some("Session expired"), (4401, "Session expired")).await;
        }
    }
}

#[tokio::test]
async fn keep_outlives_its_token() {
    for busy in [false, true] {
        let yaml = "websocket: { on_expiry: keep, max_lifetime: 1h, grace: 0s }\n";
        let mut session = OpenSession::with(yaml, busy, json!({"expires_in": -3}), json!({})).await;
        // Its token's end passes, and nothing is to happen at it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        session.message_ends().await;
        session.goes_on().await;
    }
}

#[tokio::test]
async fn idleness_ends_it_and_pings_do_not_count() {
    for busy in [false, true] {
        let mut session = OpenSession::new("websocket: { idle_timeout: 1s }\n", busy).await;
        session.client.send(0x89, "ping").await;
        assert_eq!(session.upstream.next().await.opcode, 9);
        // In the middle of a message too.
        assert_eq!(session.client.next_close().await, (1001, "Idle timeout".into()));
        assert_eq!(session.upstream.next_close().await.0, 1001);
    }
}

#[tokio::test]
async fn an_upstream_that_goes_without_a_close_is_1011() {
    for busy in [false, true] {
        let OpenSession { mut client, upstream, fixture: _house, .. } = OpenSession::new("", busy).await;
        drop(upstream);
        assert_eq!(client.next_close().await, (1011, "Upstream connection lost".into()));
        assert!(client.is_over().await);
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_its_framing_is_1011() {
    for busy in [false, true] {
        let OpenSession { mut client, mut upstream, fixture: _house, .. } = OpenSession::new("", busy).await;
        upstream.write([0x83, 0x00]).await;
        assert_eq!(client.next_close().await, (1011, "Upstream connection lost".into()));
    }
}

#[tokio::test]
async fn an_upstream_that_answers_no_ping_is_1011() {
    for busy in [false, true] {
        let OpenSession { mut client, upstream, fixture: _house, .. } =
            OpenSession::new("websocket: { ping_interval: 1s, ping_timeout: 1s }\n", busy).await;
        // The client answers its own.
        let close = loop {
            let heard = client.next().await;
            match heard.opcode {
                9 => client.send(0x8a, &heard.payload).await,
                _ => break heard.close(),
            }
        };
        assert_eq!(close, (1011, "Upstream connection lost".into()));
        drop(upstream);
    }
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_dropped_and_the_upstream_hears_a_plain_end() {
    for busy in [false, true] {
        let OpenSession { client, mut upstream, fixture: _house, .. } =
            OpenSession::new("websocket: { ping_interval: 1s, ping_timeout: 1s }\n", busy).await;
        loop {
            match upstream.try_next().await {
                Some(heard) if heard.opcode == 9 => upstream.send(0x8a, &heard.payload).await,
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        drop(client);
    }
}

#[tokio::test]
async fn a_client_that_takes_no_byte_is_dropped() {
    for busy in [false, true] {
        let OpenSession { client, mut upstream, fixture: _house, .. } =
            OpenSession::new("limits: { send_timeout: 1s }\nwebsocket: { ping_interval: 5m }\n", busy).await;
        let first = if busy { 0x00 } else { 0x02 };
        let flood = frame(Side::Server, first, &vec![0; 64 << 20]);
        let told = crate::support::within("the upstream to be told", async {
            use tokio::io::AsyncWriteExt as _;
            upstream.stream.write_all(&flood).await.is_err() || upstream.try_next().await.is_none()
        })
        .await;
        assert!(told);
        drop(client);
    }
}

#[tokio::test]
async fn a_shutdown_ends_it_with_1012() {
    for busy in [false, true] {
        let session = OpenSession::new("", busy).await;
        session.fixture.proxy.signal("TERM");
        session.ends_with(None, (1012, "Service restart")).await;
    }
}

#[tokio::test]
async fn a_client_against_rfc_6455_is_1002() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        session.client.write([0xc1, 0x80, 0, 0, 0, 0]).await;
        session.ends_with(None, (1002, "Protocol error")).await;
    }
}

#[tokio::test]
async fn closes_of_either_side_pass_with_their_code_and_reason() {
    for busy in [false, true] {
        let OpenSession { mut client, mut upstream, fixture: _house, .. } = OpenSession::new("", busy).await;
        client.send(0x88, [&[0x0f, 0xa1][..], b"done"].concat()).await;
        assert_eq!(upstream.next_close().await, (4001, "done".into()));
        upstream.send(0x88, [0x0f, 0xa1]).await;
        assert_eq!(client.next_close().await, (4001, String::new()));
        let OpenSession { mut client, mut upstream, fixture: _house, .. } = OpenSession::new("", busy).await;
        upstream.send(0x88, [&[0x0f, 0xa2][..], b"bye"].concat()).await;
        assert_eq!(client.next_close().await, (4002, "bye".into()));
        client.send(0x88, [0x0f, 0xa2]).await;
        assert_eq!(upstream.next_close().await, (4002, String::new()));
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_a_plain_end_to_the_upstream() {
    for busy in [false, true] {
        let OpenSession { client, mut upstream, fixture: _house, .. } = OpenSession::new("", busy).await;
        drop(client);
        assert!(upstream.is_over().await);
    }
}

#[tokio::test]
async fn a_half_closed_client_is_heard_to_its_end_and_still_answered() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        use tokio::io::AsyncWriteExt as _;
        session.client.say("last words").await;
        session.client.stream.shutdown().await.expect("half");
        assert_eq!(session.upstream.next_text().await, "last words");
        assert!(session.upstream.is_over().await);
        session.message_ends().await;
        session.upstream.say("answer").await;
        assert_eq!(session.client.next_text().await, "answer");
    }
}

#[tokio::test]
async fn two_sockets_of_one_user_on_one_path_are_independent() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        let (mut other, mut other_upstream) = session.fixture.session(&session.fixture.issuer.token("alice")).await;
        other.send(0x88, [0x03, 0xe8]).await;
        assert_eq!(other_upstream.next_close().await.0, 1000);
        session.message_ends().await;
        session.goes_on().await;
    }
}

#[tokio::test]
async fn refreshes_beyond_the_burst_wait_and_the_newest_takes_its_place() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        let last = now() + 1_000;
        for exp in (now() + 900..now() + 910).chain([last]) {
            let refresh = session.fixture.refresh(&session.fixture.issuer.token_with("alice", json!({ "exp": exp })));
            session.client.say(&refresh).await;
        }
        if let Some(gate) = &session.busy {
            gate.open();
        }
        session.message_ends().await;
        let mut answers = 0;
        loop {
            let said: Value = serde_json::from_str(&session.client.next_text().await).expect("json");
            assert_eq!(said["type"], "auth_refreshed");
            answers += 1;
            if said["expires_at"] == last {
                break;
            }
        }
        assert!(answers <= 7, "the burst, and at most two that had to wait: {answers}");
        session.goes_on().await;
    }
}

#[tokio::test]
async fn big_messages_flow_both_ways_while_a_refresh_is_verified() {
    for busy in [false, true] {
        let mut session = OpenSession::new("", busy).await;
        let big = vec![b'z'; 3 << 20];
        let up = frame(Side::Client, 0x82, &big);
        let ((), heard) = tokio::join!(session.client.write(&up), session.upstream.next());
        assert_eq!(heard.payload, big);
        session.message_ends().await;
        let down = frame(Side::Server, 0x82, &big);
        let ((), heard) = tokio::join!(session.upstream.write(&down), session.client.next());
        assert_eq!(heard.payload, big);
        session.refresh(json!({})).await;
        assert!(session.client.next_text().await.contains("auth_refreshed"));
        session.goes_on().await;
    }
}
