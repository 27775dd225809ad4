//! Many revocations: the time until a new instance is ready, and its memory.

use std::time::{Duration, Instant};

use super::fleet::{Fleet, timed};
use crate::support::control::post;
use crate::support::engine::is_installed;

#[tokio::test]
async fn a_new_instance_loads_thousands_of_revocations_before_it_is_ready() {
    if !is_installed() {
        return;
    }
    let count: usize = std::env::var("REVOCATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let fleet = Fleet::start().await;
    let first = fleet.instance("").await;
    let (empty, took_empty) = timed(fleet.instance("")).await;
    let memory_empty = empty.proxy.peak_memory();
    drop(empty);
    let (issuer, control) = (&fleet.issuer.url, &first.control);
    let revoke = |user: usize| async move {
        let body = serde_json::json!({"issuer": issuer, "sub": format!("user-{user}")}).to_string();
        assert_eq!(post(control, "/revoke", &body).await, 204);
    };
    let begun = Instant::now();
    for from in (0..count).step_by(8) {
        futures_util::future::join_all((from..(from + 8).min(count)).map(revoke)).await;
    }
    println!("{count} revocations made in {:?}", begun.elapsed());
    let (second, took) = timed(fleet.instance("")).await;
    println!(
        "ready after {took:?} instead of {took_empty:?}, {} KiB more memory at most",
        second.proxy.peak_memory().saturating_sub(memory_empty) >> 10
    );
    let last = fleet.early_token(&format!("user-{}", count - 1));
    assert_eq!(fleet.outcome(&second, &last).await, "invalid_token");
    let answer = fleet.engine.command(&[b"HLEN", b"{vestibule:test}:revoked"]).await;
    assert_eq!(String::from_utf8_lossy(&answer), format!(":{count}\r\n"));
    assert!(took < Duration::from_secs(20), "{took:?}");
}
