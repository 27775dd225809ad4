//! Limits of connections, memory, sizes and times: `limits`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::super::value::{Size, Time};

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Time::deserialize(deserializer).map(|time| time.0)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    Size::deserialize(deserializer).map(|size| size.0)
}

fn optional_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Ok(Option::<Size>::deserialize(deserializer)?.map(|size| size.0))
}

/// Limits of connections, memory, sizes and times.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Client connections at once.
    pub connections: u32,
    /// Client connections of one address (IPv6: one /64). Trusted proxies, and balancers that name their clients,
    /// are not counted.
    pub connections_per_address: u32,
    /// WebSocket connections at once that have not authenticated yet.
    pub waiting_websockets: u32,
    /// The same, of one address.
    pub waiting_websockets_per_address: u32,
    /// WebSocket connections of one user at once.
    pub websockets_per_user: u32,
    /// Users that are remembered for `on_expiry: auto`.
    pub presence: usize,
    /// Memory that callers may hold before they have authenticated, all together; who holds most is closed first.
    /// Unset: a quarter of the cgroup's memory, at most 32MiB.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub unauthenticated_bytes: Option<usize>,
    /// Memory of unfinished messages that are read whole (`websocket.message_bytes`), of all users together; who
    /// holds most is closed first. Unset: an eighth of the cgroup's memory, at most 16MiB.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub held_message_bytes: Option<usize>,
    /// Verified tokens that are remembered. 0: none.
    pub token_cache: usize,
    /// Revocations of the operator in force at once. At the limit a further one is refused; none is forgotten.
    pub revocations: usize,
    /// Sign-outs of users in force at once, apart from those. At the limit a further one is answered with 503; none
    /// is forgotten.
    pub sign_outs: usize,
    /// Sign-outs of one user. Beyond it one entry ends all sessions that the user began before.
    pub sign_outs_per_user: usize,
    /// Sessions from a sign-in whose tokens are kept. Beyond it the one unused longest goes on by its cookie alone.
    pub login_sessions: usize,
    /// Completed sign-ins that are remembered for ten minutes, so that each is used once.
    pub login_attempts: usize,
    /// Requests to one provider at once, for sign-ins (beyond it, or a quarter of it for one client: 503), and as many for
    /// open sessions (they wait). Beside `shared` also reads of sessions from the engine at once (they wait for
    /// `shared.timeout`, then 503).
    pub login_requests: usize,
    /// Bad tokens of one address per minute, beyond which its bad tokens are answered with 429 and no provider is
    /// asked about them. null: no limit.
    pub failed_tokens_per_minute: Option<u32>,
    /// The longest token.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub token_bytes: usize,
    /// The longest request head.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub header_bytes: usize,
    /// From accept, or the first byte of a request, to the whole head.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub header_timeout: Duration,
    /// How long an unused client connection is kept. Keep it above the load balancer's idle timeout.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub keep_alive_timeout: Duration,
    /// The longest request body. null: no limit.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub body_bytes: Option<usize>,
    /// How long a request body may pause.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub body_idle_timeout: Duration,
    /// How much of a request body is read and discarded after the answer was sent before its end.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub discard_body_bytes: usize,
    /// How long that may take; then the connection is closed.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub discard_body_timeout: Duration,
    /// How long a peer may take no byte.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub send_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 1_000,
            waiting_websockets: 1_000,
            waiting_websockets_per_address: 50,
            websockets_per_user: 100,
            presence: 100_000,
            unauthenticated_bytes: None,
            held_message_bytes: None,
            token_cache: 10_000,
            revocations: 100_000,
            sign_outs: 100_000,
            sign_outs_per_user: 100,
            login_sessions: 10_000,
            login_attempts: 10_000,
            login_requests: 32,
            failed_tokens_per_minute: Some(60),
            token_bytes: 16 << 10,
            header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            body_bytes: None,
            body_idle_timeout: Duration::from_secs(60),
            discard_body_bytes: 8 << 20,
            discard_body_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(60),
        }
    }
}
