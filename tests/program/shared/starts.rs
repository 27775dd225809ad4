//! Tests of instances that start after the engine has lost entries that other instances have.

use super::fleet::{Fleet, Instance, log_messages};
use crate::support::client::get;
use crate::support::engine::is_installed;
use crate::support::within;

const REVOKED: &[u8] = b"{vestibule:test}:revoked";
const LOG: &[u8] = b"{vestibule:test}:log";

/// Waits for a heartbeat that reports that the instance's copy is complete.
async fn complete_heartbeat(fleet: &Fleet) -> Vec<u8> {
    within("a heartbeat", async {
        loop {
            let found = log_messages(&fleet.engine).await;
            let is_complete = |content: &[u8]| content.windows(8).any(|part| part == b"\"r\":true");
            if let Some((_, content)) = found.into_iter().rev().find(|(_, content)| is_complete(content)) {
                return content;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await
}

async fn hears_another(instance: &Instance) {
    instance.until_metric("vestibule_shared_instances", |count| count > 1.5).await;
}

#[tokio::test]
async fn an_old_heartbeat_that_is_written_again_makes_no_instance_ready() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    let former = complete_heartbeat(&fleet).await;
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    first.proxy.signal("STOP");
    fleet.engine.command(&[b"DEL", REVOKED]).await;
    fleet.engine.command(&[b"XTRIM", LOG, b"MAXLEN", b"0"]).await;
    let second = fleet.starting(&format!("url: \"{}\"", fleet.engine.url()), "").await;
    fleet.engine.command(&[b"XADD", LOG, b"*", b"m", &former]).await;
    hears_another(&second).await;
    assert_eq!(get(second.proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
    first.proxy.signal("CONT");
    second.is_ready(true).await;
    assert_eq!(fleet.outcome(&second, &fleet.early_token("alice")).await, "invalid_token");
}

#[tokio::test]
async fn an_instance_is_ready_when_it_knows_what_each_of_the_others_knows() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    complete_heartbeat(&fleet).await;
    // As at a failover: the engine loses what the second has not read, and the first connects again later.
    second.proxy.signal("STOP");
    fleet.engine.command(&[b"CLIENT", b"KILL", b"TYPE", b"normal"]).await;
    first.until("the first to write it", || async { fleet.revoke(&first, "alice").await == 204 }).await;
    first.proxy.signal("STOP");
    for (id, _) in log_messages(&fleet.engine).await.iter().filter(|(_, content)| content.starts_with(b"e")) {
        assert_eq!(fleet.engine.command(&[b"XDEL", LOG, id]).await, b":1\r\n");
    }
    assert_eq!(fleet.engine.command(&[b"DEL", REVOKED]).await, b":1\r\n");
    second.proxy.signal("CONT");
    let third = fleet.starting(&format!("url: \"{}\"", fleet.engine.url()), "").await;
    hears_another(&third).await;
    first.proxy.signal("CONT");
    third.is_ready(true).await;
    assert_eq!(fleet.outcome(&third, &fleet.early_token("alice")).await, "invalid_token");
}

#[tokio::test]
async fn one_that_was_stopped_is_not_waited_for_and_one_that_was_killed_is() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let has_waited =
        |instance: &Instance| instance.proxy.log().iter().any(|line| line.contains("waiting for instances"));
    let mut first = fleet.instance("").await;
    complete_heartbeat(&fleet).await;
    first.proxy.signal("TERM");
    assert_eq!(first.proxy.ended().await, Some(0));
    let second = fleet.instance("").await;
    assert!(!has_waited(&second));
    fleet.engine.command(&[b"XTRIM", LOG, b"MAXLEN", b"0"]).await;
    complete_heartbeat(&fleet).await;
    drop(second);
    let third = fleet.instance("").await;
    assert!(has_waited(&third));
}
