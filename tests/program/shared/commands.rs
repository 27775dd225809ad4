//! The commands: `revoke`, `check --online`, `doctor`.

use serde_json::json;

use super::fleet::{Fleet, Instance};
use crate::support::client::{bearer, get};
use crate::support::engine::is_installed;
use crate::support::proxy::{TempFile, command};

struct Ran {
    code: Option<i32>,
    text: String,
}

/// Runs a command with the configuration of an instance.
async fn run(fleet: &Fleet, name: &str, more: &[&str]) -> Ran {
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let shared = format!("url: \"{}\"", fleet.engine.url());
    let file = TempFile::new(&format!("listen: 127.0.0.1:1\n{}", fleet.yaml("/nowhere.sock", &admin, &shared, "")));
    let mut command = command();
    command.arg(name).args(["--config", file.path()]).args(more);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("runs").expect("runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ran { code: output.status.code(), text }
}

#[tokio::test]
async fn revoke_writes_and_says_who_has_taken_it() {
    if !is_installed() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let ran = run(&fleet, "revoke", &["--user", "nobody"]).await;
    assert_eq!(
        (ran.code, ran.text.as_str()),
        (Some(0), "written; no instance is running, and those that start will have it\n")
    );
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let token = |sid: &str| fleet.issuer.token_with("alice", json!({"sid": sid, "jti": format!("t-{sid}")}));
    let of = |at: &Instance, token: String| {
        let (address, field) = (at.proxy.address, bearer(&token));
        async move { get(address, "/x", &[&field]).await.code() }
    };
    for (flag, id, sid) in [("--sid", "s1", "s1"), ("--jti", "t-s2", "s2"), ("--user", "alice", "s3")] {
        let ran = run(&fleet, "revoke", &[flag, id]).await;
        assert_eq!((ran.code, ran.text.as_str()), (Some(0), "written; 2 of 2 running instances have taken it\n"));
        for instance in [&first, &second] {
            assert_eq!(of(instance, token(sid)).await, "invalid_token");
        }
    }
    // One that does not answer is told of.
    second.proxy.signal("STOP");
    let ran = run(&fleet, "revoke", &["--user", "bob"]).await;
    assert_eq!((ran.code, ran.text.as_str()), (Some(0), "written; 1 of 2 running instances have taken it\n"));
    second.proxy.signal("CONT");
    for (more, expected) in [
        (&[][..], "write one of --user, --sid and --jti"),
        (&["--user", "x", "--issuer", "https://other.example"], "is no configured issuer"),
    ] {
        let ran = run(&fleet, "revoke", more).await;
        assert!(ran.code == Some(2) && ran.text.contains(expected), "{}", ran.text);
    }
    fleet.engine.kill();
    let ran = run(&fleet, "revoke", &["--user", "bob"]).await;
    assert!(ran.code == Some(1) && ran.text.starts_with("not written: "), "{}", ran.text);
}

#[tokio::test]
async fn check_and_doctor_look_at_the_engine() {
    if !is_installed() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let instance = fleet.instance("").await;
    let ran = run(&fleet, "check", &["--online"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    for line in [
        "shared: writes and reads in",
        "shared: Redis ",
        "shared: maxmemory-policy noeviction",
        "shared: 1 running instances",
        "shared: TLS: no",
    ] {
        assert!(ran.text.contains(line), "{line}: {}", ran.text);
    }
    for (policy, code, expected) in
        [("allkeys-lru", 1, "removes revocations"), ("volatile-lru", 0, "warning: maxmemory-policy is")]
    {
        fleet.engine.command(&[b"CONFIG", b"SET", b"maxmemory-policy", policy.as_bytes()]).await;
        let ran = run(&fleet, "check", &["--online"]).await;
        assert!(ran.code == Some(code) && ran.text.contains(expected), "{}", ran.text);
    }
    let ran = run(&fleet, "doctor", &[]).await;
    let said = "all 1 running instances have taken a revocation of a made-up session";
    assert!(ran.text.lines().any(|line| line.contains("shared") && line.contains(said)), "{}", ran.text);
    drop(instance);
    fleet.engine.kill();
    let ran = run(&fleet, "check", &["--online"]).await;
    assert!(ran.code == Some(1) && ran.text.contains("PROBLEM     shared: "), "{}", ran.text);
}
