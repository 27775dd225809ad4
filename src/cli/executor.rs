//! The Tokio runtime that the commands run on.

/// Builds the Tokio runtime: single-threaded on one core, where the scheduler of several threads only costs.
pub(super) fn executor() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores == 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()
}
