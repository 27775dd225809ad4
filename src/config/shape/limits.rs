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
    /// The proxy holds at most this many client connections; further ones get 503. At least 1.
    pub connections: u32,
    /// One address (an IPv6 /64) may have this many client connections; further ones get 503. Trusted proxies, and load
    /// balancers that send `X-Forwarded-For`, are not counted. At least 1.
    pub connections_per_address: u32,
    /// At most this many WebSockets may be open that have not authenticated yet. At the limit the one that has waited
    /// longest without sending anything is closed with 1013; if there is none, the new one gets 503.
    pub waiting_websockets: u32,
    /// One address (an IPv6 /64) may have this many of these WebSockets, with the same effect at the limit.
    pub waiting_websockets_per_address: u32,
    /// One user may have this many open WebSockets; a further one is closed with 1013, or its upgrade gets 503.
    pub websockets_per_user: u32,
    /// For `on_expiry: auto`, the proxy keeps the time at which a user was last seen, of this many users. At the limit
    /// further users are not remembered, and their WebSockets are closed when their tokens expire.
    pub presence: usize,
    /// All callers that have not authenticated may together hold this much memory. At the limit the one that holds most
    /// gets 431 (while it sends a head), 1013 (as a WebSocket) or 503, and is closed. At least 8 times `header_bytes`,
    /// and 256KiB. Default: a quarter of the cgroup's memory, at most 32MiB.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub unauthenticated_bytes: Option<usize>,
    /// Unfinished messages that are read whole (see `websocket.message_bytes`) may together hold this much memory, for
    /// all users. At the limit the WebSocket that holds most is closed with 1013. At least `websocket.message_bytes`.
    /// Default: an eighth of the cgroup's memory, at most 16MiB.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub held_message_bytes: Option<usize>,
    /// The proxy remembers this many verified tokens, so that a token that comes again is not verified again. 0: none.
    pub token_cache: usize,
    /// This many revocations by `POST /revoke` and by providers can be in force. At the limit a further one is refused
    /// (`/revoke`: 507); none in force is dropped.
    pub revocations: usize,
    /// This many sign-outs of users can be in force, in addition to `revocations`. At the limit a further sign-out gets
    /// 503; none in force is dropped. At least 1.
    pub sign_outs: usize,
    /// This many sign-outs of one user are kept. At the limit they become one entry, which ends all sessions that the
    /// user has begun until then. At least 1.
    pub sign_outs_per_user: usize,
    /// The proxy keeps the tokens of this many sessions from a sign-in by `browser.login`. At the limit those of the
    /// session that was unused for longest are dropped: it goes on with its cookie only, and is not renewed. With
    /// `shared` they are read from there again. At least 1.
    pub login_sessions: usize,
    /// The proxy remembers this many completed sign-ins for ten minutes, so that each is used once. At the limit the
    /// oldest are forgotten. At least 1.
    pub login_attempts: usize,
    /// This many requests for sign-ins may be under way to one provider, and a quarter of them for one client; further
    /// sign-ins get 503. As many may be under way for the sessions that exist; further ones wait. Beside `shared` it
    /// also bounds reads of sessions from the Redis server, which wait for `shared.timeout` and then get 503. At least
    /// 1.
    pub login_requests: usize,
    /// One address (an IPv6 /64) may send this many bad tokens per minute. Beyond it its bad tokens get 429, and no
    /// provider is asked about them; good tokens are still served. At least 1; null: no limit.
    pub failed_tokens_per_minute: Option<u32>,
    /// A longer token is refused as an invalid one. 256 to 1MiB, and at most `header_bytes`.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub token_bytes: usize,
    /// A request with a longer head is refused with 431. 1KiB to 1MiB.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub header_bytes: usize,
    /// A request's head must be complete this long after its first byte, and on a new connection after the connection
    /// was accepted; else the connection is closed.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub header_timeout: Duration,
    /// A client connection without a request is closed after this time. Set it above the idle timeout of your load
    /// balancer.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub keep_alive_timeout: Duration,
    /// A longer request body is refused with 413. null: no limit.
    #[serde(deserialize_with = "optional_bytes")]
    #[schemars(with = "Option<Size>")]
    pub body_bytes: Option<usize>,
    /// A request body of which nothing arrives for this time is refused with 408. A form that is sent to the proxy itself,
    /// such as that of a sign-out, must be complete within this time.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub body_idle_timeout: Duration,
    /// If the answer is sent before the end of the request body, at most this much of the rest is read and discarded;
    /// then the connection is closed.
    #[serde(deserialize_with = "bytes")]
    #[schemars(with = "Size")]
    pub discard_body_bytes: usize,
    /// The rest of such a body is read for at most this time after the answer; then the connection is closed.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub discard_body_timeout: Duration,
    /// A client or upstream that takes no byte for this time is given up, and its connection is closed.
    #[serde(deserialize_with = "duration")]
    #[schemars(with = "Time")]
    pub send_timeout: Duration,
}

impl Limits {
    /// Returns the maximum number of revocations and sign-outs that instances share. A sign-out may have an entry for its
    /// session and one for its browser.
    #[must_use]
    pub const fn shared_entries(&self) -> usize {
        self.revocations.saturating_add(self.sign_outs.saturating_mul(2))
    }
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
