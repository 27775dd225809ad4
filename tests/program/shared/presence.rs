//! Tests that presence at one instance counts at all of them, and that limits hold for all instances together.

use std::time::{Duration, Instant};

use serde_json::json;

use super::fleet::{Fleet, Instance};
use crate::support::client::{bearer, get};
use crate::support::engine::is_installed;
use crate::support::now;
use crate::support::socket::Socket;

const AUTO: &str = "websocket: { on_expiry: auto, presence: 15s, grace: 0s, ping_interval: 10m }\n";

/// Returns the time for which a socket stays open whose token ends soon, while its user is seen elsewhere for
/// `seen_for`.
async fn lives(fleet: &Fleet, at: &Instance, elsewhere: &Instance, seen_for: Duration) -> Duration {
    let dying = fleet.issuer.token_with("alice", json!({"exp": now() - 3}));
    let (mut client, _upstream) = fleet.socket(at, &dying).await;
    let begun = Instant::now();
    let seen = async {
        while begun.elapsed() < seen_for {
            assert_eq!(fleet.outcome(elsewhere, &bearer(&fleet.issuer.token("alice"))).await, "ok");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = seen => {}
        () = async {
            loop {
                let frame = client.try_next().await.expect("its last message, or a Close");
                if frame.opcode != 9 {
                    return;
                }
                client.send(0x8a, &frame.payload).await;
            }
        } => {}
    }
    begun.elapsed()
}

#[tokio::test]
async fn a_socket_lives_on_while_its_user_is_seen_at_another_instance() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let (first, second) = (fleet.instance(AUTO).await, fleet.instance(AUTO).await);
    let lived = lives(&fleet, &first, &second, Duration::from_secs(40)).await;
    println!("seen elsewhere for 40 s, it lived for {lived:?}");
    assert!(lived > Duration::from_secs(43), "{lived:?}");
    assert!(lived < Duration::from_secs(75), "{lived:?}");
}

#[tokio::test]
async fn a_user_who_is_seen_nowhere_is_out_and_while_the_engine_is_away_a_presence_later() {
    if !is_installed() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let (first, second) = (fleet.instance(AUTO).await, fleet.instance(AUTO).await);
    let lived = lives(&fleet, &first, &second, Duration::ZERO).await;
    assert!((14..25).contains(&lived.as_secs()), "{lived:?}");
    fleet.engine.kill();
    let lived = lives(&fleet, &first, &second, Duration::ZERO).await;
    assert!((28..45).contains(&lived.as_secs()), "one presence more, and no longer: {lived:?}");
}

#[tokio::test]
async fn a_user_s_sockets_at_all_instances_count_together() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let limits = "limits: { websockets_per_user: 4 }\n";
    let (first, second) = (fleet.instance(limits).await, fleet.instance(limits).await);
    let (alice, bob) = (fleet.issuer.token("alice"), fleet.issuer.token("bob"));
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(fleet.socket(&first, &alice).await);
    }
    let begun = Instant::now();
    let refused = || async {
        let field = bearer(&alice);
        let fields = [field.as_str()];
        let opening = Socket::try_open(second.proxy.address, "/ws", &fields);
        tokio::pin!(opening);
        tokio::select! {
            (answer, _) = &mut opening => answer.status == 503,
            (_, upstream) = fleet.backend.websocket() => {
                let (_, client) = opening.await;
                drop((upstream, client));
                false
            }
        }
    };
    second.until("the other instance to know", refused).await;
    println!("known elsewhere after {:?}", begun.elapsed());
    let _another = fleet.socket(&second, &bob).await;
    // The sockets are gone, and so is the published count of them.
    drop(open);
    let accepted = || async { !refused().await };
    second.until("room", accepted).await;
}

#[tokio::test]
async fn an_address_s_failed_tokens_are_divided_by_the_instances() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let limits = "limits: { failed_tokens_per_minute: 14 }\n";
    let (first, second) = (fleet.instance(limits).await, fleet.instance(limits).await);
    for instance in [&first, &second] {
        instance.until_metric("vestibule_shared_instances", |count| (count - 2.0).abs() < 0.1).await;
    }
    let refused = fleet.issuer.token_with("alice", json!({"aud": "another"}));
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(get(first.proxy.address, "/x", &[&bearer(&refused)]).await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 7, "half of 14: {statuses:?}");
}
