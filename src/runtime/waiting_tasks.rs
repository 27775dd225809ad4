//! The tasks of open sockets and streams that wait: for a notification of all, and each at most until a time of its own.
//!
//! A socket that waited with a `Sleep` and a `Notified` of Tokio took 176 bytes for them; here it takes some 50. The
//! times of all tasks are kept in order, and one task sleeps until the first of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use slab::Slab;
use tokio::sync::Notify;

use super::moment::Moment;

/// The number of lists of tasks. Each message of a socket takes the lock of its task's list.
const LISTS: u8 = 8;

/// The number of times that may be left of tasks that have another time, or are gone, besides one for each task.
const FORMER_TIMES: usize = 64;

/// The tasks that wait.
#[derive(Debug, Default)]
pub(super) struct WaitingTasks(Arc<Lists>);

#[derive(Debug, Default)]
struct Lists {
    lists: [Mutex<List>; LISTS as usize],
    clock: Arc<Clock>,
}

#[derive(Debug, Default)]
struct List {
    tasks: Slab<WaitingTask>,
    /// The times of the tasks, the first one at the top, each with its task's key in `tasks`. One that is no longer its
    /// task's is skipped; they are removed when they are more than the tasks.
    times: BinaryHeap<Reverse<(Moment, u32)>>,
}

#[derive(Debug)]
struct WaitingTask {
    /// Wakes the task; `None` while it does not wait.
    waker: Option<Waker>,
    /// The time at which it is woken at the latest, or [`Moment::NEVER`].
    at: Moment,
}

/// What the task that wakes the others at their times waits for.
#[derive(Debug, Default)]
struct Clock {
    is_started: AtomicBool,
    /// The time until which it sleeps, as it is in a [`Moment`]; 0 while it looks for that time.
    sleeps_until: AtomicU64,
    /// Notified when a task waits for an earlier time.
    earlier: Notify,
}

/// The place of one task among those that wait. [`WaitingTasks::remove`] must be called with it: a reference to the lists,
/// by which it could be removed when it is dropped, would be eight bytes more for each socket.
#[derive(Debug)]
pub(super) struct Place {
    list: u8,
    key: u32,
}

impl WaitingTasks {
    /// Adds a task, which does not wait yet. `number` decides in which list; numbers in a row are in different ones.
    pub(super) fn add(&self, number: u32) -> Place {
        let list = number.to_le_bytes()[0] % LISTS;
        let key = self.0.list(list).tasks.insert(WaitingTask { waker: None, at: Moment::NEVER });
        // There are fewer sockets than descriptors, of which a system allows 2^30.
        Place { list, key: u32::try_from(key).unwrap_or(u32::MAX) }
    }

    /// Removes a task.
    pub(super) fn remove(&self, place: &Place) {
        let mut list = self.0.list(place.list);
        let removed = list.tasks.try_remove(place.key as usize);
        list.remove_former_times();
        // The room that many sockets needed is given back once they are gone.
        if list.tasks.is_empty() {
            *list = List::default();
        }
        // The waker of the removed task is not dropped under the lock either.
        drop(list);
        drop(removed);
    }

    /// Wakes the task of `waker` at the next [`Self::wake_all`], and at `at` at the latest. An earlier time that was set
    /// before stays: most wakes only move the time further away, and the task is woken early then.
    ///
    /// # Panics
    /// Panics outside of a runtime if there is a time.
    pub(super) fn wait(&self, place: &Place, waker: &Waker, at: Option<Moment>) {
        // Dropped after the lock is released: what a waker belongs to may be dropped with it.
        let _former;
        let mut list = self.0.list(place.list);
        let Some(task) = list.tasks.get_mut(place.key as usize) else { return };
        if !task.waker.as_ref().is_some_and(|former| former.will_wake(waker)) {
            _former = task.waker.replace(waker.clone());
        }
        let Some(at) = at.filter(|at| *at < task.at) else { return };
        task.at = at;
        list.times.push(Reverse((at, place.key)));
        list.remove_former_times();
        drop(list);
        self.0.clock.wake_by(at, &self.0);
    }

    /// Wakes all tasks that wait.
    pub(super) fn wake_all(&self) {
        for list in 0..LISTS {
            let wakers: Vec<Waker> = {
                let mut list = self.0.list(list);
                list.tasks.iter_mut().filter_map(|(_, task)| task.waker.take()).collect()
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Lists {
    fn list(&self, number: u8) -> MutexGuard<'_, List> {
        self.lists[usize::from(number)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the tasks whose time has come, and returns the first time that has not.
    fn wake_due(&self) -> Option<Moment> {
        let now = Moment::now();
        let first = |number| {
            let (wakers, next) = self.list(number).take_due(now);
            wakers.into_iter().for_each(Waker::wake);
            next
        };
        (0..LISTS).filter_map(first).min()
    }
}

impl List {
    /// Takes the wakers of the tasks whose time has come. Returns the first time that has not, too.
    fn take_due(&mut self, now: Moment) -> (Vec<Waker>, Option<Moment>) {
        let mut wakers = Vec::new();
        while let Some(Reverse((at, key))) = self.times.peek().copied() {
            let task = self.tasks.get_mut(key as usize).filter(|task| task.at == at);
            if task.is_some() && at > now {
                return (wakers, Some(at));
            }
            self.times.pop();
            if let Some(task) = task {
                task.at = Moment::NEVER;
                wakers.extend(task.waker.take());
            }
        }
        (wakers, None)
    }

    /// Removes the times that are no longer those of their tasks, once they may be more than half.
    fn remove_former_times(&mut self) {
        let Self { tasks, times } = self;
        if times.len() > 2 * tasks.len() + FORMER_TIMES {
            times.retain(|Reverse((at, key))| tasks.get(*key as usize).is_some_and(|task| task.at == *at));
        }
    }
}

impl Clock {
    /// Makes the clock's task look at the times no later than at `at`.
    fn wake_by(self: &Arc<Self>, at: Moment, lists: &Arc<Lists>) {
        if !self.is_started.swap(true, Ordering::Relaxed) {
            tokio::spawn(Arc::clone(self).run(Arc::downgrade(lists)));
        }
        let sleeps_until = self.sleeps_until.load(Ordering::Acquire);
        if sleeps_until == 0 || at.get() < sleeps_until {
            self.earlier.notify_one();
        }
    }

    /// Wakes the tasks at their times, until their lists are gone.
    async fn run(self: Arc<Self>, lists: Weak<Lists>) {
        loop {
            // A task that comes to a list after this has looked there finds 0, and notifies.
            self.sleeps_until.store(0, Ordering::Release);
            let Some(next) = lists.upgrade().map(|lists| lists.wake_due()) else { return };
            self.sleeps_until.store(next.map_or(u64::MAX, Moment::get), Ordering::Release);
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.earlier.notified() => {}
            }
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        self.clock.earlier.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    /// Waits until woken, and returns the time that has passed, in milliseconds.
    async fn woken(all: &WaitingTasks, place: &Place, at: Option<Moment>) -> u128 {
        let begun = Moment::now();
        let mut is_waiting = false;
        poll_fn(|cx| {
            if is_waiting {
                return Poll::Ready(());
            }
            all.wait(place, cx.waker(), at);
            is_waiting = true;
            Poll::Pending
        })
        .await;
        begun.elapsed().as_millis()
    }

    fn after(millis: u64) -> Moment {
        Moment::now() + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn each_task_is_woken_at_its_time_in_whatever_order_the_times_were_set() {
        let all = Arc::new(WaitingTasks::default());
        let mut tasks = tokio::task::JoinSet::new();
        for (number, millis) in [400, 100, 0, 900, 100, 250, 3_600_000, 1, 700, 50].into_iter().enumerate() {
            let place = all.add(u32::try_from(number).expect("few"));
            let all = Arc::clone(&all);
            tasks.spawn(async move { (millis, woken(&all, &place, Some(after(millis))).await) });
            // The others wait already when an earlier or a later time is set.
            tokio::task::yield_now().await;
        }
        for (millis, waited) in tasks.join_all().await {
            assert!(waited.abs_diff(millis.into()) <= 1, "{waited} ms instead of {millis}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_time_leaves_the_earlier_one_and_an_earlier_one_replaces_it() {
        let all = WaitingTasks::default();
        for (first, second, expected) in [(100, 500, 100), (500, 100, 100)] {
            let place = all.add(0);
            all.wait(&place, Waker::noop(), Some(after(first)));
            assert!(woken(&all, &place, Some(after(second))).await.abs_diff(expected) <= 1);
            // What was reached is gone: the next time may be later.
            assert!(woken(&all, &place, Some(after(300))).await.abs_diff(300) <= 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_woken_at_once_with_and_without_a_time() {
        let all = Arc::new(WaitingTasks::default());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100 {
            let place = all.add(number);
            let all = Arc::clone(&all);
            tasks.spawn(async move { woken(&all, &place, (number % 2 == 0).then(|| after(60_000))).await });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        all.wake_all();
        assert!(tasks.join_all().await.into_iter().all(|waited| waited <= 6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_released_leaves_neither_a_waker_nor_a_time() {
        let all = WaitingTasks::default();
        let places: Vec<Place> = (0..1_000).map(|number| all.add(number)).collect();
        for place in &places {
            all.wait(place, Waker::noop(), Some(after(1_000)));
        }
        for place in &places {
            all.remove(place);
        }
        for number in 0..LISTS {
            let list = all.0.list(number);
            assert!(list.tasks.capacity() == 0 && list.times.capacity() == 0);
        }
    }

    #[test]
    fn a_waiting_task_takes_24_bytes() {
        // With the tag of a vacant place it must not take more.
        assert_eq!(size_of::<Option<WaitingTask>>(), 24);
    }

    #[tokio::test]
    async fn times_that_were_replaced_are_no_more_than_the_tasks() {
        let all = WaitingTasks::default();
        let places: Vec<Place> = (0..100).map(|number| all.add(number)).collect();
        for round in 1..1_000 {
            for place in &places {
                all.wait(place, Waker::noop(), Some(after(10_000_000 - 1_000 * round)));
            }
        }
        for number in 0..LISTS {
            let list = all.0.list(number);
            assert!(list.times.len() <= 2 * list.tasks.len() + FORMER_TIMES, "{}", list.times.len());
        }
    }

    #[tokio::test]
    async fn the_task_that_wakes_the_others_ends_with_their_lists() {
        let all = WaitingTasks::default();
        let clock = Arc::downgrade(&all.0.clock);
        let place = all.add(0);
        all.wait(&place, Waker::noop(), Some(after(3_600_000)));
        drop(all);
        while clock.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Tasks set times that come at once, over and over; none of them may be slept through.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_time_is_missed_while_the_first_one_is_looked_for() {
        let all = Arc::new(WaitingTasks::default());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..64 {
            let place = all.add(number);
            let all = Arc::clone(&all);
            tasks.spawn(async move {
                for round in 0..200 {
                    let at =
                        Moment::now() + Duration::from_micros((round * 7_919 + u64::from(number) * 104_729) % 3_000);
                    poll_fn(|cx| {
                        all.wait(&place, cx.waker(), Some(at));
                        if at <= Moment::now() { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
            });
        }
        let all_woken = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
        assert!(all_woken.is_ok(), "a task was not woken");
    }
}
