//! What someone does who can write to the engine and does not know the secret: it costs no instance the revocations, and
//! the engine serves again by itself.

use super::fleet::{Fleet, Instance};
use crate::support::client::{bearer, get};
use crate::support::engine::is_installed;

const LOG: &[u8] = b"{vestibule:test}:log";
const REVOKED: &[u8] = b"{vestibule:test}:revoked";
const EPOCH: &[u8] = b"{vestibule:test}:epoch";
const SEEN: &[u8] = b"{vestibule:test}:seen";
const REFUSED: &str = "vestibule_shared_entries_refused_total";

struct Pair {
    fleet: Fleet,
    first: Instance,
    second: Instance,
}

impl Pair {
    async fn start() -> Self {
        let fleet = Fleet::start().await;
        let (first, second) = (fleet.instance("").await, fleet.instance("").await);
        let pair = Self { fleet, first, second };
        pair.shares("alice").await;
        pair
    }

    /// A revocation at the first is in force at the second.
    async fn shares(&self, user: &str) {
        self.first.until("the engine to take it", || async { self.fleet.revoke(&self.first, user).await == 204 }).await;
        let token = self.fleet.early_token(user);
        self.second
            .until("the second to know it", || async {
                self.fleet.outcome(&self.second, &token).await == "invalid_token"
            })
            .await;
    }

    /// An instance that starts knows what was revoked before.
    async fn a_new_one_knows(&self, user: &str) {
        let third = self.fleet.instance("").await;
        assert_eq!(self.fleet.outcome(&third, &self.fleet.early_token(user)).await, "invalid_token");
        assert_eq!(self.fleet.outcome(&third, &bearer(&self.fleet.issuer.token("nobody"))).await, "ok");
    }

    async fn command(&self, parts: &[&[u8]]) -> String {
        String::from_utf8_lossy(&self.fleet.engine.command(parts).await).into_owned()
    }
}

#[tokio::test]
async fn a_message_of_any_size_is_left_out_and_counted() {
    if !is_installed() {
        return;
    }
    let pair = Pair::start().await;
    let loads = pair.second.metric("vestibule_shared_resyncs_total").await;
    let before = pair.second.metric(REFUSED).await;
    let huge = vec![b'x'; 20 << 20];
    pair.command(&[b"XADD", LOG, b"*", b"m", &huge]).await;
    pair.command(&[b"XADD", LOG, b"*", &huge, b"m"]).await;
    pair.shares("bob").await;
    pair.second.until_metric(REFUSED, |count| count > before + 1.5).await;
    assert!((pair.second.metric("vestibule_shared_resyncs_total").await - loads).abs() < 0.5, "it stayed connected");
    pair.second.proxy.logged("the entries", |line| line.contains("ignoring entries in the engine")).await;
    pair.a_new_one_knows("alice").await;
    // Many small parts: the connection ends, and the next one reads on behind them.
    let part = vec![b'x'; 20 << 10];
    let mut many: Vec<&[u8]> = vec![b"XADD", LOG, b"*"];
    many.resize(3 + 2 * 900, &part);
    pair.command(&many).await;
    pair.shares("carol").await;
    pair.a_new_one_knows("carol").await;
    // Last, since the page connects to the upstream.
    let page = get(pair.second.admin, "/status", &[]).await.body;
    assert!(page.contains("3 entries in the engine were ignored"), "{page}");
}

#[tokio::test]
async fn a_key_of_the_wrong_type_is_removed() {
    if !is_installed() {
        return;
    }
    let pair = Pair::start().await;
    for (index, key) in [LOG, REVOKED, EPOCH, SEEN].into_iter().enumerate() {
        pair.command(&[b"DEL", key]).await;
        pair.command(&[b"LPUSH", key, b"x"]).await;
        let user = format!("user-{index}");
        pair.shares(&user).await;
        pair.a_new_one_knows("alice").await;
        let found = pair.command(&[b"TYPE", key]).await;
        assert_ne!(found, "+list\r\n", "{index}");
    }
    let is_removal = |line: &str| line.contains("removed a key from the engine") && line.contains("wrong type");
    let (first, second) = (&pair.first.proxy, &pair.second.proxy);
    tokio::select! {
        _ = first.logged("the removal", is_removal) => {}
        _ = second.logged("the removal", is_removal) => {}
    }
}

#[tokio::test]
async fn a_log_whose_ids_are_used_up_begins_anew() {
    if !is_installed() {
        return;
    }
    let pair = Pair::start().await;
    for (user, id) in [("bob", "18446744073709551615-18446744073709551615"), ("carol", "18446744073709551614-0")] {
        let added = pair.command(&[b"XADD", LOG, id.as_bytes(), b"m", b"x"]).await;
        assert!(added.starts_with('$'), "{added}");
        pair.shares(user).await;
        pair.a_new_one_knows(user).await;
    }
}

#[tokio::test]
async fn an_epoch_that_no_instance_wrote_is_replaced() {
    if !is_installed() {
        return;
    }
    let pair = Pair::start().await;
    for epoch in [vec![b'x'; 20 << 20], b"0".to_vec()] {
        pair.command(&[b"SET", EPOCH, &epoch]).await;
        pair.first.until("another epoch", || async { pair.command(&[b"STRLEN", EPOCH]).await == ":32\r\n" }).await;
    }
    pair.shares("bob").await;
    pair.a_new_one_knows("bob").await;
}

#[tokio::test]
async fn a_field_of_any_size_is_left_out_and_too_many_keep_only_new_instances_out() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let limits = "limits: { revocations: 100, sign_outs: 100 }\n";
    let (first, second) = (fleet.instance(limits).await, fleet.instance(limits).await);
    let pair = Pair { fleet, first, second };
    pair.shares("alice").await;
    let huge = vec![b'x'; 20 << 20];
    pair.command(&[b"HSET", REVOKED, b"x", &huge, &huge, b"x"]).await;
    pair.a_new_one_knows("alice").await;
    // More than the copy may be: no new instance is ready, and those that run go on without loading it.
    let part = vec![b'x'; 20 << 10];
    let names: Vec<String> = (0..900).map(|index| format!("junk-{index}")).collect();
    let mut many: Vec<&[u8]> = vec![b"HSET", REVOKED];
    for name in &names {
        many.extend([name.as_bytes(), &part]);
    }
    pair.command(&many).await;
    pair.command(&[b"CLIENT", b"KILL", b"TYPE", b"normal"]).await;
    pair.shares("bob").await;
    let says = |instance: &Instance, text: &str| {
        instance.proxy.log().iter().any(|line| line.contains(text) && line.contains("is larger than 16777216 bytes"))
    };
    pair.second.until("the log to say it", || async { says(&pair.second, "could not be loaded, retrying") }).await;
    let third = pair.fleet.starting(&format!("url: \"{}\"", pair.fleet.engine.url()), limits).await;
    third.until("the log to say it", || async { says(&third, "shared state unavailable, retrying") }).await;
    assert_eq!(get(third.proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
    pair.command(&[b"DEL", REVOKED]).await;
    third.is_ready(true).await;
    for user in ["alice", "bob"] {
        assert_eq!(pair.fleet.outcome(&third, &pair.fleet.early_token(user)).await, "invalid_token");
    }
    // Last, since the page connects to the upstream.
    pair.second
        .until("no error", || async { !get(pair.second.admin, "/status", &[]).await.body.contains("last error") })
        .await;
}
