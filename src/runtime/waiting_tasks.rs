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

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Counting(std::sync::atomic::AtomicU32);

    impl std::task::Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Numbers that look random and are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    /// A task as it should be.
    struct Expected {
        place: Place,
        counting: Arc<Counting>,
        /// The milliseconds at which it is woken at the latest.
        at: u64,
        has_waker: bool,
        woken: u32,
    }

    #[tokio::test(start_paused = true)]
    async fn any_order_of_changes_wakes_the_same_tasks_as_a_plain_list() {
        for seed in 1..=100 {
            let mut numbers = Numbers(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
            let all = WaitingTasks::default();
            let begun = Moment::now();
            let (mut tasks, mut passed) = (Vec::<Expected>::new(), 0);
            for step in 0..600 {
                match numbers.below(12) {
                    0..=2 if tasks.len() < 60 => {
                        // Few lists, so that each has several tasks.
                        let place = all.add(u32::try_from(numbers.below(3)).expect("small"));
                        tasks.push(Expected {
                            place,
                            counting: Arc::default(),
                            at: u64::MAX,
                            has_waker: false,
                            woken: 0,
                        });
                    }
                    3 if !tasks.is_empty() => {
                        let removed =
                            tasks.swap_remove(usize::try_from(numbers.below(tasks.len() as u64)).expect("small"));
                        all.remove(&removed.place);
                        assert_eq!(Arc::strong_count(&removed.counting), 1, "its waker is dropped");
                    }
                    4..=8 if !tasks.is_empty() => {
                        let at = (numbers.below(5) > 0).then(|| passed + numbers.below(50));
                        let index = usize::try_from(numbers.below(tasks.len() as u64)).expect("small");
                        let task = &mut tasks[index];
                        if numbers.below(6) == 0 {
                            // It is polled from another task from now on.
                            task.counting = Arc::new(Counting(task.woken.into()));
                        }
                        let waker = Waker::from(Arc::clone(&task.counting));
                        all.wait(&task.place, &waker, at.map(|at| begun + Duration::from_millis(at)));
                        task.has_waker = true;
                        task.at = task.at.min(at.unwrap_or(u64::MAX));
                    }
                    9 if numbers.below(4) == 0 => {
                        all.wake_all();
                        for task in &mut tasks {
                            task.woken += u32::from(std::mem::take(&mut task.has_waker));
                        }
                    }
                    10..=11 => {
                        let millis = numbers.below(20);
                        tokio::time::advance(Duration::from_millis(millis)).await;
                        passed += millis;
                    }
                    _ => {}
                }
                // The clock's task runs.
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
                for task in tasks.iter_mut().filter(|task| task.at <= passed) {
                    task.at = u64::MAX;
                    task.woken += u32::from(std::mem::take(&mut task.has_waker));
                }
                for (index, task) in tasks.iter().enumerate() {
                    let woken = task.counting.0.load(Ordering::Relaxed);
                    assert_eq!(woken, task.woken, "seed {seed}, step {step}, task {index} at {passed} ms");
                }
                for number in 0..LISTS {
                    let list = all.0.list(number);
                    assert!(list.times.len() <= 2 * list.tasks.len() + FORMER_TIMES);
                }
            }
            for task in tasks {
                all.remove(&task.place);
            }
            for number in 0..LISTS {
                let list = all.0.list(number);
                assert!(list.tasks.capacity() == 0 && list.times.capacity() == 0);
            }
        }
    }

    struct Unpark(std::thread::Thread, AtomicBool);

    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::Release);
            self.0.unpark();
        }
    }

    /// Threads come, wait until a time or until all are woken, change their times and go, while others do the same.
    #[test]
    fn threads_that_come_and_go_at_random_are_woken_at_their_times() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let all = Arc::new(WaitingTasks::default());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..16_u64)
                .map(|thread| {
                    let (all, handle) = (Arc::clone(&all), runtime.handle().clone());
                    scope.spawn(move || {
                        let _in_runtime = handle.enter();
                        let mut numbers = Numbers(u64::wrapping_mul(thread + 1, 0x9e37_79b9_7f4a_7c15));
                        let until = Moment::now() + Duration::from_secs(1);
                        while Moment::now() < until {
                            let place = all.add(u32::try_from(numbers.below(4)).expect("small"));
                            for _ in 0..numbers.below(8) {
                                let at = Moment::now() + Duration::from_micros(numbers.below(6_000));
                                if numbers.below(3) == 0 {
                                    // An earlier or a later one, which is never waited for.
                                    let other = Moment::now() + Duration::from_micros(numbers.below(12_000));
                                    all.wait(&place, Waker::noop(), Some(other));
                                }
                                let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
                                let waker = Waker::from(Arc::clone(&unpark));
                                while at > Moment::now() {
                                    all.wait(&place, &waker, Some(at));
                                    if numbers.below(5) == 0 {
                                        break;
                                    }
                                    let begun = Moment::now();
                                    while !unpark.1.swap(false, Ordering::AcqRel) {
                                        std::thread::park_timeout(Duration::from_secs(5));
                                        assert!(begun.elapsed() < Duration::from_secs(4), "not woken");
                                    }
                                }
                            }
                            all.remove(&place);
                        }
                    })
                })
                .collect();
            let is_over = &is_over;
            let all = Arc::clone(&all);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    all.wake_all();
                    std::thread::sleep(Duration::from_micros(700));
                }
            });
            let results: Vec<_> = waiting.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(results.into_iter().all(|result| result.is_ok()));
        });
        for number in 0..LISTS {
            let list = all.0.list(number);
            assert!(list.tasks.capacity() == 0 && list.times.capacity() == 0);
        }
    }

    /// Two threads wait at the same moments and nobody else does, so that a time which the clock does not see is slept
    /// through.
    #[test]
    fn a_time_that_is_set_while_the_first_one_is_looked_for_is_not_slept_through() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let all = WaitingTasks::default();
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for thread in 0..2_u32 {
                let (all, barrier, handle) = (&all, &barrier, runtime.handle().clone());
                scope.spawn(move || {
                    let _in_runtime = handle.enter();
                    let mut numbers = Numbers(u64::from(thread) + 1);
                    let place = all.add(thread);
                    let unpark = Arc::new(Unpark(std::thread::current(), AtomicBool::new(false)));
                    let waker = Waker::from(Arc::clone(&unpark));
                    for _ in 0..1_500 {
                        barrier.wait();
                        let begun = Moment::now();
                        while begun.elapsed() < Duration::from_nanos(numbers.below(60_000)) {
                            std::hint::spin_loop();
                        }
                        let at = Moment::now() + Duration::from_micros(numbers.below(30));
                        while at > Moment::now() {
                            all.wait(&place, &waker, Some(at));
                            while !unpark.1.swap(false, Ordering::AcqRel) {
                                std::thread::park_timeout(Duration::from_secs(10));
                                assert!(begun.elapsed() < Duration::from_secs(5), "slept through");
                            }
                        }
                    }
                    all.remove(&place);
                });
            }
        });
    }
}
