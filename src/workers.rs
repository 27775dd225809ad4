//! The threads that serve connections: one for each core, each with a Tokio runtime of its own.
//!
//! A connection stays on the thread that it was given to, and so do the connections to the upstream that its requests use.
//! Tokio's runtime of several threads moves tasks between them: a request then wakes another core, and its data moves
//! from one cache to the other. On two cores that took a sixth more of the processor for each request.
//!
//! What belongs to no connection runs on the runtime of the command: accepting, the first fetches of keys, reloads, the
//! admin listener. What a request needs first, such as a check at a provider or a look-up of a name, runs on the thread of
//! that request. On one core there are no further threads, and connections are served on the command's runtime too.
//!
//! This module imports nothing of the proxy.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of threads that serve connections: one for each core that this process may use, by its affinity
/// and the whole cores of its control group's limit.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Returns the number of the current thread among those that serve connections, counted from 0; 0 on any other thread.
pub fn current() -> usize {
    CURRENT.get()
}

/// How much longer than the wait for their unfinished work the threads are waited for when they stop. A task whose poll
/// does not return keeps its thread, and must not keep the process from ending.
const END_WAIT: Duration = Duration::from_secs(1);

/// The threads; dropping it stops them.
#[derive(Debug)]
pub struct WorkerThreads {
    stopping: CancellationToken,
    runtimes: Arc<[Handle]>,
    /// Disconnected once every thread has ended, each of which holds a sender.
    running: Receiver<()>,
    unfinished_wait: Duration,
}

impl WorkerThreads {
    /// Starts a thread for each core, or none on one core. Blocking work that is unfinished when they stop is waited for at
    /// most `unfinished_wait`.
    ///
    /// # Errors
    /// Returns an error if a thread or its runtime cannot be started.
    pub fn start(unfinished_wait: Duration) -> io::Result<Self> {
        let count = count();
        Self::start_some(if count == 1 { 0 } else { count }, unfinished_wait)
    }

    fn start_some(count: usize, unfinished_wait: Duration) -> io::Result<Self> {
        Self::start_with(count, unfinished_wait, || Builder::new_current_thread().enable_all().build())
    }

    fn start_with(
        count: usize,
        unfinished_wait: Duration,
        mut runtime: impl FnMut() -> io::Result<Runtime>,
    ) -> io::Result<Self> {
        let (sender, running) = mpsc::channel();
        // If one cannot be started, those before it are stopped when this is dropped.
        let mut this = Self { stopping: CancellationToken::new(), runtimes: Arc::default(), running, unfinished_wait };
        // Declared later, and so dropped earlier: the drop of `this` waits until there is no sender.
        let (runs, mut runtimes) = (sender, Vec::with_capacity(count));
        for number in 0..count {
            let runtime = runtime()?;
            runtimes.push(runtime.handle().clone());
            let (stopping, runs) = (this.stopping.clone(), Sender::clone(&runs));
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            thread.spawn(move || {
                CURRENT.set(number);
                runtime.block_on(stopping.cancelled());
                runtime.shutdown_timeout(unfinished_wait);
                drop(runs);
            })?;
        }
        this.runtimes = runtimes.into();
        Ok(this)
    }

    /// Returns a handle that gives tasks to these threads.
    #[must_use]
    pub fn handle(&self) -> Workers {
        Workers { runtimes: Arc::clone(&self.runtimes), next: Arc::default() }
    }

    /// Tells the threads to drop their tasks and to end, without waiting for it.
    pub fn stop(&self) {
        self.stopping.cancel();
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.stop();
        let ended = self.running.recv_timeout(self.unfinished_wait + END_WAIT);
        if ended == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a thread that serves connections did not end in time and is left behind");
        }
    }
}

/// Gives tasks to the threads that serve connections, to each in turn. Taking the thread with the fewest connections
/// instead would give it all new ones for as long as it has fewer open sockets, which say little about its load.
#[derive(Clone, Debug, Default)]
pub struct Workers {
    runtimes: Arc<[Handle]>,
    next: Arc<AtomicUsize>,
}

impl Workers {
    /// Whether tasks run on other threads than the caller's, so that what they take along must not belong to its runtime.
    #[must_use]
    pub fn are_threads(&self) -> bool {
        !self.runtimes.is_empty()
    }

    /// Runs a task on the thread whose turn it is, or on the current runtime where there are no threads.
    ///
    /// # Panics
    /// Panics outside of a runtime where there are no threads.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        match turn.checked_rem(self.runtimes.len()).and_then(|turn| self.runtimes.get(turn)) {
            Some(runtime) => runtime.spawn(task),
            None => tokio::spawn(task),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SAFETY_NET: Duration = Duration::from_secs(30);

    #[test]
    fn tasks_go_to_each_thread_in_turn_and_stay_there() {
        let threads = WorkerThreads::start_some(3, Duration::ZERO).expect("started");
        let (workers, (report, reports)) = (threads.handle(), mpsc::channel());
        assert!(workers.are_threads());
        for _ in 0..6 {
            let report = report.clone();
            workers.spawn(async move {
                let here = (current(), std::thread::current().id());
                tokio::task::yield_now().await;
                let further = tokio::spawn(async { (current(), std::thread::current().id()) }).await.expect("ran");
                assert_eq!(here, further);
                report.send(here).expect("heard");
            });
        }
        let ran: Vec<_> = (0..6).map(|_| reports.recv_timeout(SAFETY_NET).expect("a report")).collect();
        for number in 0..3 {
            let of_this: Vec<_> = ran.iter().filter(|(found, _)| *found == number).map(|(_, thread)| *thread).collect();
            assert_eq!(of_this.len(), 2);
            assert_eq!(of_this[0], of_this[1]);
        }
        assert_eq!(ran.iter().map(|(_, thread)| format!("{thread:?}")).collect::<BTreeSet<_>>().len(), 3);
        assert_eq!(current(), 0, "this thread is none of them");
    }

    /// Reports when it is dropped.
    struct Dropped(mpsc::Sender<usize>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(current());
        }
    }

    #[test]
    fn stopped_threads_drop_their_tasks_before_they_are_gone() {
        let threads = WorkerThreads::start_some(2, Duration::ZERO).expect("started");
        let (workers, (report, reports)) = (threads.handle(), mpsc::channel());
        for _ in 0..2 {
            let dropped = Dropped(report.clone());
            workers.spawn(async move {
                let _dropped = dropped;
                std::future::pending::<()>().await;
            });
        }
        drop(report);
        drop(threads);
        assert_eq!(reports.try_iter().collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
    }

    #[test]
    fn a_task_that_does_not_return_keeps_nobody_from_ending() {
        let threads = WorkerThreads::start_some(2, Duration::ZERO).expect("started");
        let ((begin, has_begun), (may_end, wait)) = (mpsc::channel(), mpsc::channel::<()>());
        threads.handle().spawn(async move {
            begin.send(()).expect("heard");
            let _ = wait.recv();
        });
        assert_eq!(has_begun.recv_timeout(SAFETY_NET), Ok(()));
        let (ended, has_ended) = mpsc::channel();
        std::thread::spawn(move || {
            drop(threads);
            ended.send(()).expect("heard");
        });
        assert_eq!(has_ended.recv_timeout(SAFETY_NET), Ok(()));
        may_end.send(()).expect("it still waits");
    }

    #[test]
    fn a_task_that_panics_ends_alone() {
        let threads = WorkerThreads::start_some(1, Duration::ZERO).expect("started");
        let (workers, (report, reports)) = (threads.handle(), mpsc::channel());
        workers.spawn(async { panic!("meant to be seen in the output of this test") });
        workers.spawn(async move { report.send(()).expect("heard") });
        assert_eq!(reports.recv_timeout(SAFETY_NET), Ok(()));
    }

    #[test]
    fn where_one_thread_cannot_be_started_nobody_waits_for_those_before_it() {
        let (began, mut runtimes) = (std::time::Instant::now(), 0);
        let started = WorkerThreads::start_with(2, 2 * SAFETY_NET, || {
            runtimes += 1;
            if runtimes > 1 { Err(io::ErrorKind::Other.into()) } else { Builder::new_current_thread().build() }
        });
        assert!(started.is_err());
        assert!(began.elapsed() < SAFETY_NET);
    }

    #[tokio::test]
    async fn without_threads_a_task_runs_on_the_current_runtime() {
        let workers = Workers::default();
        assert!(!workers.are_threads());
        let (report, reported) = tokio::sync::oneshot::channel();
        workers.spawn(async move { report.send(std::thread::current().id()).expect("heard") });
        assert_eq!(reported.await, Ok(std::thread::current().id()));
    }
}
