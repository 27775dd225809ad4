//! The support code of all tests. Time limits here are safety nets and never what is measured.

pub mod answerer;
pub mod authority;
pub mod backend;
pub mod client;
pub mod control;
pub mod engine;
pub mod issuer;
pub mod openid;
pub mod proxy;
pub mod socket;

use std::future::Future;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// The safety net for every wait: long enough for a busy machine, short enough to end a hang.
pub const SAFETY: Duration = Duration::from_secs(30);

/// Returns a port of the loopback interface for a program that needs a fixed one.
///
/// It is below the ports that systems assign (from 32768 on Linux). So no listener on port 0 and no connection of
/// another test can take it before the program binds it. A port that a listener on port 0 released was taken in this
/// way, and a test then asked another test's server.
pub fn unused_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    const FIRST: u16 = 15_000;
    const COUNT: u32 = 17_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Concurrent processes start at different ports.
        let turn = std::process::id().wrapping_mul(613).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + u16::try_from(turn).expect("below the count");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no unused port from {FIRST} on");
}

/// Awaits a future with the safety net as its time limit.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(SAFETY, future).await else { panic!("nothing within {SAFETY:?}: {what}") };
    value
}

/// Returns the seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Sends a signal to a program. With `STOP` it returns when every thread of the program has stopped.
///
/// `kill` returns before that: one thread has to run before the others stop. On a busy machine the others went on for
/// long enough to take an answer and to write what it said.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id();
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill").success());
    if name == "STOP" {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not 0");
        // A program that ended is returned too, and kept for a caller that waits for its end.
        let events = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(pid), events).expect("a child").expect("its status");
        assert!(status.stopped(), "the program ended");
    }
}
