//! What every test stands on. Time limits here are safety nets, never what is measured.

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
use std::time::Duration;

/// Long enough for a busy machine, short enough to end a hang.
pub const SAFETY: Duration = Duration::from_secs(30);

/// A port of the loopback interface for a program that has to be told one.
///
/// It lies below the ports that systems hand out by themselves (from 32768 on Linux): between this look and the
/// moment the program binds it, no listener on port 0 and no connection of another test can take it. A port that a
/// listener on port 0 gave back was taken that way, and a test then asked another test's server.
pub fn unused_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    const FIRST: u16 = 15_000;
    const COUNT: u32 = 17_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Processes that run at the same time start at different places.
        let turn = std::process::id().wrapping_mul(613).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + u16::try_from(turn).expect("below the count");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no unused port from {FIRST} on");
}

/// Awaits under the safety net.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(SAFETY, future).await else { panic!("nothing within {SAFETY:?}: {what}") };
    value
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}
