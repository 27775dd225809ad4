//! Revocations and sign-outs.

use std::time::Duration;

use super::fleet::{Fleet, timed};
use crate::support::client::bearer;
use crate::support::engine::{Engine, Relay, is_installed};
use crate::support::now;

const ENDED: &str = r#"{"type":"error","message":"Session ended"}"#;

#[tokio::test]
async fn what_is_revoked_at_one_instance_ends_at_all_of_them_at_once() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    // Every question whether a token is refused yet counts as a failed token.
    let limits = "limits: { failed_tokens_per_minute: null }\n";
    let first = fleet.instance(limits).await;
    // It hears of the first and need not wait.
    let ((second, third), took) = timed(async { (fleet.instance(limits).await, fleet.instance(limits).await) }).await;
    println!("two further instances were ready after {took:?}");
    let mut times = Vec::new();
    // A thousand give the times of the documentation: TIMED_REVOCATIONS=1000.
    let count: usize = std::env::var("TIMED_REVOCATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    for user in 0..count.max(20) {
        let user = format!("user-{user}");
        let token = fleet.issuer.token(&user);
        let (mut at_second, _upstream) = fleet.socket(&second, &token).await;
        assert_eq!(fleet.outcome(&third, &bearer(&token)).await, "ok");
        let (text, took) = timed(async {
            assert_eq!(fleet.revoke(&first, &user).await, 204);
            at_second.next_text().await
        })
        .await;
        assert_eq!(text, ENDED);
        assert_eq!(at_second.next_close().await, (1008, "Session ended".to_owned()));
        times.push(took);
        third
            .until("the third to hear of it", || async {
                fleet.outcome(&third, &bearer(&token)).await == "invalid_token"
            })
            .await;
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!(
        "from the revocation at one to the last message at another: 50th percentile {median:?}, 99th {:?}",
        times[times.len() * 99 / 100]
    );
    assert!(median < Duration::from_millis(100), "{times:?}");
    assert_eq!(fleet.outcome(&second, &bearer(&fleet.issuer.token("another"))).await, "ok");
    // One that starts later has them all, and nobody's name lies in the engine.
    let fourth = fleet.instance("").await;
    assert_eq!(fleet.outcome(&fourth, &fleet.early_token("user-7")).await, "invalid_token");
    let kept = fleet.engine.command(&[b"HGETALL", b"{vestibule:test}:revoked"]).await;
    assert!(kept.len() > 20 * 60, "{}", kept.len());
    assert!(!kept.windows(4).any(|part| part == b"user"), "digests alone");
    fourth.until_metric("vestibule_shared_instances", |count| (count - 4.0).abs() < 0.1).await;
}

#[tokio::test]
async fn a_sign_out_ends_the_session_at_every_instance_and_after_a_restart() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let cookie = fleet.signed_in(&first, "alice").await;
    assert_eq!(fleet.outcome(&second, &cookie).await, "ok");
    assert_eq!(first.sign_out(&cookie).await.status, 204);
    assert_eq!(fleet.outcome(&first, &cookie).await, "missing_token");
    second.until("the other instance", || async { fleet.outcome(&second, &cookie).await == "missing_token" }).await;
    drop((first, second));
    let again = fleet.instance("").await;
    assert_eq!(fleet.outcome(&again, &cookie).await, "missing_token", "it was started anew, without a file");
}

#[tokio::test]
async fn an_instance_is_not_ready_without_its_first_copy_and_serves_by_the_last_when_the_engine_goes() {
    if !is_installed() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    let token = fleet.issuer.token("alice");
    let (mut client, _upstream) = fleet.socket(&first, &token).await;
    fleet.engine.kill();
    first.until_metric("vestibule_shared_up", |up| up < 0.5).await;
    // It serves on, also what was revoked before; a revocation is in force here and says that the others do not know.
    assert_eq!(fleet.outcome(&first, &bearer(&fleet.issuer.token("bob"))).await, "ok");
    let (status, took) = timed(fleet.revoke(&first, "alice")).await;
    assert_eq!(status, 503);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(client.next_text().await, ENDED);
    assert_eq!(fleet.outcome(&first, &bearer(&token)).await, "invalid_token");
    let cookie = fleet.signed_in(&first, "carol").await;
    let answer = first.sign_out(&cookie).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"));
    assert!(answer.field("set-cookie").is_some_and(|line| line.contains("Max-Age=0")), "{answer:?}");
    // One that starts now knows nothing, and lets nobody in.
    let url = format!("url: \"{}\"", fleet.engine.url());
    let second = fleet.starting(&url, "").await;
    assert_eq!(fleet.outcome(&second, &bearer(&fleet.issuer.token("bob"))).await, "auth_unavailable");
    second.is_ready(false).await;
    // The engine comes back with nothing in it: what the first knows is written again.
    fleet.engine.start_again().await;
    second.is_ready(true).await;
    assert_eq!(fleet.outcome(&second, &bearer(&token)).await, "invalid_token");
    assert_eq!(fleet.outcome(&second, &cookie).await, "missing_token");
    assert_eq!(fleet.outcome(&second, &bearer(&fleet.issuer.token("bob"))).await, "ok");
    assert_eq!(fleet.revoke(&first, "alice").await, 204, "repeated, as it asked for");
}

#[tokio::test]
async fn a_flushed_engine_is_filled_again_also_for_instances_that_are_gone() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    let token = fleet.issuer.token("alice");
    second.until("the second", || async { fleet.outcome(&second, &bearer(&token)).await == "invalid_token" }).await;
    drop(first);
    fleet.engine.command(&[b"FLUSHALL"]).await;
    // Started just after: the other one knows more, so it is not ready by an empty copy.
    let (third, took) = timed(fleet.instance("")).await;
    println!("ready {took:?} after the engine was flushed");
    third.proxy.logged("why", |line| line.contains("the other instances have the same")).await;
    assert_eq!(fleet.outcome(&third, &bearer(&token)).await, "invalid_token");
    assert!(fleet.engine.command(&[b"HLEN", b"{vestibule:test}:revoked"]).await.starts_with(b":1"));
}

#[tokio::test]
async fn what_no_secret_authenticates_counts_for_nothing_and_a_replay_changes_nothing() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    let alice = fleet.early_token("alice");
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    let log: &[u8] = b"{vestibule:test}:log";
    let read = |bytes: Vec<u8>| {
        let at = bytes.windows(6).position(|part| part == b"$66\r\ne").expect("the entry") + 5;
        bytes[at..at + 66].to_vec()
    };
    let entry = read(fleet.engine.command(&[b"XRANGE", log, b"-", b"+"]).await);
    let before = first.metric("vestibule_shared_entries_refused_total").await;
    let mut forged = entry.clone();
    forged[20] ^= 1;
    fleet.engine.command(&[b"XADD", log, b"*", b"m", &forged]).await;
    fleet.engine.command(&[b"HSET", b"{vestibule:test}:revoked", &forged[1..34], &forged[34..]]).await;
    fleet.engine.command(&[b"XADD", log, b"*", b"m", b"garbage"]).await;
    fleet.engine.command(&[b"XADD", log, b"*", b"other", b"field"]).await;
    first.until_metric("vestibule_shared_entries_refused_total", |count| count > before + 1.5).await;
    // Written again verbatim, a hundred times and seconds later: a token issued since then stays good.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for _ in 0..100 {
        fleet.engine.command(&[b"XADD", log, b"*", b"m", &entry]).await;
    }
    let second = fleet.instance("").await;
    assert_eq!(fleet.outcome(&second, &alice).await, "invalid_token");
    let later = fleet.issuer.token_with("alice", serde_json::json!({"iat": crate::support::now() + 4}));
    assert_eq!(fleet.outcome(&second, &bearer(&later)).await, "ok");
    assert_eq!(fleet.outcome(&second, &bearer(&fleet.issuer.token("bob"))).await, "ok");
}

#[tokio::test]
async fn an_instance_with_another_secret_is_shown_and_neither_heard_nor_counted() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    std::fs::write(fleet.folder.0.join("other"), "another-secret-0123456789abcdefghijklmnop").expect("written");
    let other = format!("url: \"{}\", secret_file: \"{}\"", fleet.engine.url(), fleet.file("other"));
    let stranger = fleet.instance_at(&other, "").await;
    assert_eq!(fleet.revoke(&stranger, "alice").await, 204);
    assert_eq!(fleet.revoke(&first, "bob").await, 204);
    first.until_metric("vestibule_shared_entries_refused_total", |count| count > 0.5).await;
    assert_eq!(fleet.outcome(&first, &bearer(&fleet.issuer.token("alice"))).await, "ok");
    assert_eq!(fleet.outcome(&stranger, &bearer(&fleet.issuer.token("bob"))).await, "ok");
    first.until_metric("vestibule_shared_instances", |count| (count - 1.0).abs() < 0.1).await;
    let page = |at: std::net::SocketAddr| async move { crate::support::client::get(at, "/status", &[]).await.body };
    first
        .until("the page to show it", || async { page(first.admin).await.contains("has another shared secret") })
        .await;
}

#[tokio::test]
async fn a_secret_is_replaced_without_losing_what_was_revoked() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    std::fs::write(fleet.folder.0.join("new"), "new-secret-0123456789abcdefghijklmnopqr").expect("written");
    let both = |one: &str, other: &str| {
        format!("url: \"{}\", secret_file: [\"{}\", \"{}\"]", fleet.engine.url(), fleet.file(one), fleet.file(other))
    };
    // First everyone learns to verify the new one, then it is written with.
    let second = fleet.instance_at(&both("secret", "new"), "").await;
    assert_eq!(fleet.outcome(&second, &fleet.early_token("alice")).await, "invalid_token");
    let third = fleet.instance_at(&both("new", "secret"), "").await;
    let (alice, bob) = (fleet.early_token("alice"), fleet.early_token("bob"));
    assert_eq!(fleet.outcome(&third, &alice).await, "invalid_token", "by the former secret's digest");
    assert_eq!(fleet.revoke(&third, "bob").await, 204);
    second.until("the second", || async { fleet.outcome(&second, &bob).await == "invalid_token" }).await;
}

#[tokio::test]
async fn under_refuse_a_stale_copy_admits_nobody_and_open_sockets_live_on() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let shared = format!("url: \"{}\", max_stale: 30s, on_loss: refuse", fleet.engine.url());
    let first = fleet.instance_at(&shared, "").await;
    let token = fleet.issuer.token("alice");
    let (mut client, mut upstream) = fleet.socket(&first, &token).await;
    assert_eq!(fleet.outcome(&first, &bearer(&token)).await, "ok");
    fleet.engine.signal("STOP");
    let stopped = std::time::Instant::now();
    while crate::support::client::get(first.proxy.address, "/.vestibule/readyz", &[]).await.status == 200 {
        // Its copy may be 30 s old, so this takes longer than the safety net of other tests.
        assert!(stopped.elapsed() < Duration::from_secs(60), "still ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = stopped.elapsed();
    println!("not ready {took:?} after the engine stopped");
    assert_eq!(fleet.outcome(&first, &bearer(&token)).await, "auth_unavailable");
    client.say("still here").await;
    let mut frame = upstream.next().await;
    while frame.opcode == 9 {
        frame = upstream.next().await;
    }
    assert_eq!(frame.text(), "still here");
    fleet.engine.signal("CONT");
    first.is_ready(true).await;
    assert_eq!(fleet.outcome(&first, &bearer(&token)).await, "ok");
}

#[tokio::test]
async fn no_request_waits_for_a_slow_engine() {
    if !is_installed() {
        return;
    }
    let engine = Engine::start().await;
    let relay = Relay::start(engine.address).await;
    let fleet = Fleet::with_engine(engine).await;
    let first = fleet.instance_at(&format!("url: \"{}\"", relay.url()), "").await;
    let token = fleet.early_token("alice");
    assert_eq!(fleet.outcome(&first, &token).await, "ok");
    let measure = |count: usize| {
        let (fleet, first, token) = (&fleet, &first, &token);
        async move {
            let mut times = Vec::new();
            for _ in 0..count {
                times.push(timed(fleet.outcome(first, token)).await.1);
            }
            times.sort_unstable();
            times[count / 2]
        }
    };
    let fast = measure(200).await;
    relay.delay(200);
    let slow = measure(200).await;
    println!("a request: {fast:?} with a fast engine, {slow:?} with one that takes 200 ms");
    assert!(slow < fast * 3 + Duration::from_millis(20), "{fast:?} {slow:?}");
    // Within shared.timeout it is written, and beyond it the caller is told.
    assert_eq!(fleet.revoke(&first, "bob").await, 204);
    relay.delay(3_000);
    let (status, took) = timed(fleet.revoke(&first, "carol")).await;
    assert_eq!(status, 503);
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    let carol = fleet.early_token("carol");
    assert_eq!(fleet.outcome(&first, &carol).await, "invalid_token");
}

#[tokio::test]
async fn what_a_revocation_file_holds_is_told_to_the_others() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let url = format!("url: \"{}\"", fleet.engine.url());
    let line = serde_json::json!({"issuer": fleet.issuer.url, "sub": "alice", "at": now(), "until": now() + 3_600});
    std::fs::write(fleet.folder.0.join("revocations"), format!("{line}\n")).expect("written");
    let alice = fleet.early_token("alice");
    let second = fleet.instance("").await;
    assert_eq!(fleet.outcome(&second, &alice).await, "ok");
    // An instance with what an earlier run without `shared` has written.
    let first = fleet.starting_with(&url, &format!(", revocation_file: \"{}\"", fleet.file("revocations"))).await;
    first.is_ready(true).await;
    assert_eq!(fleet.outcome(&first, &alice).await, "invalid_token");
    second.until("the other instance", || async { fleet.outcome(&second, &alice).await == "invalid_token" }).await;
}

#[tokio::test]
async fn what_another_instance_revoked_is_removed_when_it_has_expired() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let second = fleet.instance("").await;
    let line = serde_json::json!({"issuer": fleet.issuer.url, "sub": "alice", "at": now(), "until": now() + 20});
    std::fs::write(fleet.folder.0.join("revocations"), format!("{line}\n")).expect("written");
    let more = format!(", revocation_file: \"{}\"", fleet.file("revocations"));
    let _first = fleet.starting_with(&format!("url: \"{}\"", fleet.engine.url()), &more).await;
    for count in [1, 0] {
        let row = format!("<td>revocations</td><td class=\"number\">{count}</td>");
        let page = || async { crate::support::client::get(second.admin, "/status", &[]).await.body };
        second.until(&format!("{count} revocations"), || async { page().await.contains(&row) }).await;
    }
}

#[tokio::test]
async fn a_drain_writes_what_is_queued() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let (mut first, second) = (fleet.instance("").await, fleet.instance("").await);
    // Slower than `timeout`, and back before the process ends.
    fleet.engine.signal("STOP");
    assert_eq!(fleet.revoke(&first, "alice").await, 503);
    fleet.engine.signal("CONT");
    first.proxy.signal("TERM");
    assert_eq!(first.proxy.ended().await, Some(0));
    let alice = fleet.early_token("alice");
    second.until("the other instance", || async { fleet.outcome(&second, &alice).await == "invalid_token" }).await;
}
