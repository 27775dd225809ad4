//! The series that each thread counted in last. Nearly every request counts in the same ones as the request before, and
//! to find a series in its family takes a lock and a hash: 400 instructions, four times for each request.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::LocalKey;

/// The number of one `Metrics` value: tests have several in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(u64);

impl Owner {
    /// Makes a number that no other has.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The labels and the series that a thread used last; a thread-local.
#[derive(Debug)]
pub(super) struct LastSeries<L, S>(RefCell<Option<(Owner, L, S)>>);

impl<L, S> LastSeries<L, S> {
    pub(super) const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// Counts in the last series of this thread if it is this owner's and `is_wanted`, otherwise in the one that `find`
    /// returns, which is the last one from then on.
    pub(super) fn count(
        this: &'static LocalKey<Self>,
        owner: Owner,
        is_wanted: impl FnOnce(&L) -> bool,
        find: impl FnOnce() -> (L, S),
        count: impl FnOnce(&S),
    ) {
        // It fails while a thread ends, when nothing is served there any more.
        let _ = this.try_with(|last| {
            let mut last = last.0.borrow_mut();
            match &*last {
                Some((of, labels, series)) if *of == owner && is_wanted(labels) => count(series),
                _ => {
                    let (labels, series) = find();
                    count(&series);
                    *last = Some((owner, labels, series));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    thread_local! {
        static LAST: LastSeries<&'static str, Rc<Cell<u32>>> = const { LastSeries::new() };
    }

    #[test]
    fn each_series_counts_its_own_whichever_was_the_last() {
        let (mine, other) = (Owner::new(), Owner::new());
        let series: [(Owner, &str, Rc<Cell<u32>>); 3] =
            [(mine, "a", Rc::default()), (mine, "b", Rc::default()), (other, "a", Rc::default())];
        let found = Cell::new(0);
        for at in [0, 0, 1, 0, 2, 2, 1] {
            let (owner, label, counter) = &series[at];
            let find = || {
                found.set(found.get() + 1);
                (*label, Rc::clone(counter))
            };
            LastSeries::count(&LAST, *owner, |last| last == label, find, |counter| counter.set(counter.get() + 1));
        }
        assert_eq!(series.map(|(.., counter)| counter.get()), [3, 2, 2]);
        assert_eq!(found.get(), 5, "the series of the count before needs no look-up");
    }
}
