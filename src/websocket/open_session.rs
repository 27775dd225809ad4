//! The task of an open socket: relays its messages and writes its access line.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_util::task::task_tracker::TaskTrackerToken;

use super::authorizer::SessionAuthorizer;
use super::context::{SocketContext, SocketRecord};
use super::relay::{Relay, RelayInput};
use crate::policy::WebSocketSpec;
use crate::telemetry::in_request_with_id;

/// Relays messages in a task of its own, so that a relay that runs for hours does not keep the memory of the handshake.
pub(super) fn spawn(
    context: SocketContext,
    input: RelayInput,
    authorizer: Box<dyn SessionAuthorizer>,
    spec: &WebSocketSpec,
) {
    let subscription = context.state.notifier.subscribe_staggered();
    let passed = context.state.metrics.sockets.opened(&context.line.route, context.line.carrier);
    let relay = Relay::new(input, authorizer, subscription, Arc::clone(&spec.limits), passed);
    let held = context.state.drain.track();
    let id = context.line.request_id.clone();
    let session = OpenSession { relay, record: Some(context.into_record()), _held: held };
    tokio::spawn(in_request_with_id(id, session));
}

/// The future that runs a relay and then writes the access line. It is written by hand: an `async` block that awaits
/// the relay reserves its size twice, and there are thousands of these.
struct OpenSession {
    relay: Relay,
    record: Option<SocketRecord>,
    _held: TaskTrackerToken,
}

impl Future for OpenSession {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let outcome = ready!(Pin::new(&mut this.relay).poll(cx));
        if let Some(record) = this.record.take() {
            record.close(&outcome);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::InRequest;

    /// Checks the size, because each session is one allocation of this size and of the executor's own 104 bytes, and so
    /// fits the allocator's class of 768. In a release build it is 16 bytes less.
    #[test]
    fn an_open_session_stays_small() {
        let size = std::mem::size_of::<InRequest<OpenSession>>();
        assert!(size <= 680, "{size} bytes");
    }
}
