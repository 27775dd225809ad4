//! The id of the request or socket of the current task. Every log line of the task has it as the field `request_id`.
//!
//! A task-local and not a `tracing` span: a span costs an allocation and two calls of the subscriber for every request,
//! also when nothing is logged. This costs a swap of one pointer for each poll.

use std::cell::OnceCell;
use std::future::Future;
use std::sync::Arc;

use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static REQUEST_ID: OnceCell<Arc<str>>;
}

/// A future with a request id.
pub type InRequest<F> = TaskLocalFuture<OnceCell<Arc<str>>, F>;

/// Wraps a future that handles a request. The id is set by [`set_request_id`] once it is known.
pub fn in_request<F: Future>(future: F) -> InRequest<F> {
    REQUEST_ID.scope(OnceCell::new(), future)
}

/// Wraps a future that works for the request with this id, such as the task of a socket.
pub fn in_request_with_id<F: Future>(id: Arc<str>, future: F) -> InRequest<F> {
    REQUEST_ID.scope(OnceCell::from(id), future)
}

/// Wraps a future that works for the current request in a task of its own.
pub fn in_current_request<F: Future>(future: F) -> InRequest<F> {
    let id = REQUEST_ID.try_with(OnceCell::clone).unwrap_or_default();
    REQUEST_ID.scope(id, future)
}

/// Sets the id of the current request; a second call has no effect.
pub fn set_request_id(id: &Arc<str>) {
    // It fails outside of a request, and when the id is set already.
    let _ = REQUEST_ID.try_with(|current| current.set(Arc::clone(id)));
}

/// Returns the id of the current request.
#[must_use]
pub fn current_request_id() -> Option<Arc<str>> {
    REQUEST_ID.try_with(|id| id.get().cloned()).ok().flatten()
}
