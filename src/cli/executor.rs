//! The Tokio runtime of the commands that use the network.

/// Builds the runtime, with one thread on a machine with one core, where a scheduler of several would only cost.
///
/// # Errors
/// When the system gives no threads or no event queue.
pub(super) fn executor() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores == 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()
}
