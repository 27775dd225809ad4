//! The input and the output of a session's state machine.

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
        /// The credential on which the session depends from now on.
        credential: Credential,
        /// The token, where it is compared or forwarded later.
        token: Option<Token>,
    },
    /// The token is not verified.
    Refused(CloseReason),
    /// The token is valid except that it has expired, and it belongs to the same user.
    Expired {
        /// The user id with the provider's prefix.
        user_id: String,
    },
    /// The token is verified, but its user is not allowed on the route.
    Denied,
    /// A refresh presented the token of another user.
    AnotherUser,
    /// A refresh would change a trusted header.
    IdentityChanged,
}

/// An input of the state machine.
#[derive(Debug)]
pub(in crate::websocket) enum Event {
    /// The client's first message has come.
    FirstMessage(FirstMessage, Copies),
    /// A later message of the client is for the proxy.
    LaterMessage(LaterMessage, Copies),
    /// An application's message waits until the token in its field is verified.
    FieldToken(Token),
    /// The token under verification has its verdict.
    Verdict(Verdict),
    /// The provider has answered whether the session is active.
    Revalidation(Revalidation),
    /// The upstream has sent its 101.
    UpstreamOpen,
    /// The session must end for a reason outside its state machine: a limit, a protocol violation, the upstream, the
    /// drain.
    Close(CloseReason),
    /// [`Session::deadline`](super::Session::deadline) has passed.
    Deadline {
        /// The time at which the user was last seen, in milliseconds since the epoch. It decides under `on_expiry:
        /// auto`.
        last_seen: Option<u64>,
    },
}

/// An output of the state machine.
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
    /// Send this answer to an application's ping to the client, between two messages of the upstream.
    SendPong(String),
    /// Start to relay messages.
    StartRelay,
    /// Forward this token. A later token was accepted, and the upstream, or a waiting message, may need it.
    ForwardToken(Token),
    /// Count a session that continues after its token expired.
    ContinueExpired,
    /// Send the error message and the Close.
    Close(CloseReason),
}
