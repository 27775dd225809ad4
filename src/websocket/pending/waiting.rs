//! What a pending socket waits with, and the reasons for which its task is woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, sleep_until};

use super::first_message::FirstMessageReader;
use super::liveness::Liveness;
use crate::auth::{Token, Verified, unix_millis};
use crate::authenticate::Unverified;
use crate::budget::MemoryReservation;
use crate::http::Socket;
use crate::policy::WebSocketSpec;
use crate::runtime::{PendingSlot, Subscription};
use crate::websocket::connect::UpgradeOutcome;
use crate::websocket::context::SocketContext;
use crate::websocket::session::Session;

/// The number of bytes read at a time. Most tokens are shorter.
const READ: usize = 4 << 10;

/// Resolves to the verdict on the token of the first message.
pub(super) type FirstVerdictFuture = Pin<Box<dyn Future<Output = Result<Verified, Unverified>> + Send>>;
/// Resolves to the upstream's answer, with the token if it is needed later.
pub(super) type ConnectFuture = Pin<Box<dyn Future<Output = (UpgradeOutcome, Option<Token>)> + Send>>;

/// The next thing to await in addition to the client.
pub(super) enum Step {
    Nothing,
    Verifying(FirstVerdictFuture),
    Connecting(ConnectFuture),
}

impl Step {
    async fn next(&mut self) -> Wake {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Verifying(verdict) => Wake::Verified(verdict.await),
            Self::Connecting(connecting) => {
                let (outcome, token) = connecting.await;
                Wake::Connected(outcome, token)
            }
        }
    }
}

/// The reason why the task of a pending socket was woken.
pub(super) enum Wake {
    Read(std::io::Result<usize>),
    /// The deadline of the session has passed.
    Deadline,
    /// A deadline of [`Liveness`] has passed.
    Liveness,
    /// Another socket needs the place among the pending ones.
    Evicted,
    /// Other callers need the memory.
    MemoryEvicted,
    Notified,
    Verified(Result<Verified, Unverified>),
    Connected(UpgradeOutcome, Option<Token>),
}

/// Everything that a pending socket waits with.
pub(super) struct Waiting {
    pub(super) subscription: Subscription,
    reservation: Arc<MemoryReservation>,
    /// The memory of the request and of the buffer that held its head.
    request_bytes: usize,
    pub(super) step: Step,
    /// The buffer for what the client sends.
    pub(super) scratch: Vec<u8>,
    /// Without a time limit for the first message the client is pinged, to detect that it has gone.
    pub(super) liveness: Option<Liveness>,
}

impl Waiting {
    pub(super) fn new(context: &SocketContext, spec: &WebSocketSpec) -> Self {
        let reservation = Arc::clone(&context.reservation);
        reservation.set_request_in_progress(false);
        Self {
            // A drain closes pending sockets spread over time too.
            subscription: context.state.notifier.subscribe_staggered(),
            request_bytes: reservation.bytes(),
            reservation,
            step: Step::Nothing,
            scratch: vec![0; READ],
            liveness: spec.auth_timeout.is_none().then(|| Liveness::new(Arc::clone(&spec.limits))),
        }
    }

    /// Waits until something happens.
    pub(super) async fn next(
        &mut self,
        session: &Session,
        reader: &FirstMessageReader,
        client: &mut Socket,
        slot: &PendingSlot,
    ) -> Wake {
        let deadline =
            session.deadline().map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(unix_millis())));
        let is_awaiting_message = matches!(self.step, Step::Nothing);
        let liveness_deadline = self
            .liveness
            .as_mut()
            .filter(|_| is_awaiting_message)
            .map(|liveness| liveness.deadline(reader.is_in_message()));
        tokio::select! {
            biased;
            () = self.subscription.notified() => Wake::Notified,
            () = slot.evicted(), if is_awaiting_message => Wake::Evicted,
            () = self.reservation.evicted() => Wake::MemoryEvicted,
            wake = self.step.next() => wake,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Wake::Deadline,
            () = sleep_until(liveness_deadline.unwrap_or_else(Instant::now)), if liveness_deadline.is_some() => {
                Wake::Liveness
            }
            read = client.read(&mut self.scratch), if reader.has_room() => Wake::Read(read),
        }
    }

    /// Notes that the client has sent something, which the reader has.
    pub(super) fn received(&mut self, reader: &FirstMessageReader) {
        if let Some(liveness) = &mut self.liveness {
            liveness.received();
        }
        self.reservation.resize(self.request_bytes + reader.memory());
    }
}
