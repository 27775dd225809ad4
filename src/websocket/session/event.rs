//! What goes into the state machine of a session and what comes out of it.

use super::Credential;
use crate::auth::{Revalidation, Token};
use crate::websocket::close_reason::CloseReason;
use crate::websocket::dialect::{FirstMessage, LaterMessage};
use crate::websocket::template::Copies;

/// The result of verifying a token.
#[derive(Debug)]
pub(in crate::websocket) enum Verdict {
    /// The token is verified and its user is allowed on the route.
    Accepted {
        /// The user id with the provider's prefix.
        user_id: String,
        /// What the session depends on from now on.
        credential: Credential,
        /// The token, where it is compared or forwarded later.
        token: Option<Token>,
    },
    /// The token is not verified.
    Refused(CloseReason),
    /// The token is good but for its expiry, and the same user's.
    Expired {
        /// The user id with the provider's prefix.
        user_id: String,
    },
    /// The token is verified, but its user is not allowed on this route.
    Denied,
    /// A refresh presented the token of another user.
    AnotherUser,
    /// A refresh would change a trusted header.
    IdentityChanged,
}

/// Input of the state machine.
#[derive(Debug)]
pub(in crate::websocket) enum Event {
    /// The client's first message has come.
    FirstMessage(FirstMessage, Copies),
    /// A later message of the client is for the proxy.
    LaterMessage(LaterMessage, Copies),
    /// A message of the application waits until the token in its field is verified.
    FieldToken(Token),
    /// The token under verification has its verdict.
    Verdict(Verdict),
    /// The provider has answered whether the session is active.
    Revalidation(Revalidation),
    /// The upstream has sent its 101.
    UpstreamOpen,
    /// Something outside the session ends it: a limit, a protocol violation, the upstream, the drain.
    Close(CloseReason),
    /// [`Session::deadline`](super::Session::deadline) has passed.
    Deadline {
        /// When the user was last seen, in milliseconds since the epoch; decides under `on_expiry: auto`.
        last_seen: Option<u64>,
    },
}

/// Output of the state machine.
#[derive(Debug)]
pub(in crate::websocket) enum Action {
    /// Verify this token and return the verdict.
    Verify(Token),
    /// Ask the provider about [`Session::revalidation_check`](super::Session::revalidation_check) and return its answer.
    Revalidate,
    /// Connect to the upstream.
    Connect,
    /// Send this message to the client, between two messages of the upstream.
    Send(String),
    /// Send this answer to an application's ping, likewise.
    SendPong(String),
    /// Start to relay messages.
    StartRelay,
    /// Forward this token: a later token was accepted, and the upstream, or a message that waits, may need it.
    ForwardToken(Token),
    /// Count a session that continues after its token expired.
    ContinueExpired,
    /// Send the error and the Close.
    Close(CloseReason),
}
