//! The revocations of this instance that are not in the engine yet. Their number is limited by that of all revocations,
//! since there is one entry for each target.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::auth::{NAME_BYTES, Publish, SharedEntry};

pub(super) type Name = [u8; NAME_BYTES];

/// An entry that is to be written, and the entries that it replaces.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) entry: SharedEntry,
    pub(super) removed: Vec<Name>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Outgoing {
    /// Notifies the waiting caller that the entry is written.
    pub(super) fn written(self) {
        for waiting in self.waiting {
            let _ = waiting.send(());
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    queued: Mutex<HashMap<Name, Outgoing>>,
    changed: Notify,
}

impl Outbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, Outgoing>> {
        self.0.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Resolves when there is an entry, or was one since the last call.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Takes at most `most` entries.
    pub(super) fn take(&self, most: usize) -> Vec<Outgoing> {
        let mut queued = self.lock();
        let names: Vec<Name> = queued.keys().take(most).copied().collect();
        names.iter().filter_map(|name| queued.remove(name)).collect()
    }

    /// Queues entries again that could not be written, unless there is a newer one about the same target.
    pub(super) fn put_back(&self, entries: Vec<Outgoing>) {
        let mut queued = self.lock();
        for outgoing in entries {
            add(&mut queued, outgoing);
        }
        drop(queued);
        self.0.changed.notify_one();
    }
}

fn add(queued: &mut HashMap<Name, Outgoing>, mut outgoing: Outgoing) {
    outgoing.waiting.retain(|waiting| !waiting.is_closed());
    match queued.entry(outgoing.entry.name()) {
        std::collections::hash_map::Entry::Vacant(vacant) => {
            vacant.insert(outgoing);
        }
        std::collections::hash_map::Entry::Occupied(mut known) => {
            let known = known.get_mut();
            known.entry.at = known.entry.at.max(outgoing.entry.at);
            known.entry.until = known.entry.until.max(outgoing.entry.until);
            known.removed.append(&mut outgoing.removed);
            known.waiting.retain(|waiting| !waiting.is_closed());
            known.waiting.append(&mut outgoing.waiting);
        }
    }
}

impl Publish for Outbox {
    fn publish(&self, entry: SharedEntry, removed: &[SharedEntry]) -> oneshot::Receiver<()> {
        let (written, wait) = oneshot::channel();
        let name = entry.name();
        let removed: Vec<Name> = removed.iter().map(SharedEntry::name).filter(|removed| *removed != name).collect();
        let mut queued = self.lock();
        for gone in &removed {
            // The waiting caller gets an error, as if the entry was not written, and retries.
            queued.remove(gone);
        }
        add(&mut queued, Outgoing { entry, removed, waiting: vec![written] });
        drop(queued);
        self.0.changed.notify_one();
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: u8, at: u64) -> SharedEntry {
        let name = [&[b'r'][..], &[0; 16], &[key; 16]].concat();
        SharedEntry { at, ..SharedEntry::read(&name, &[0; 16]).expect("an entry") }
    }

    #[tokio::test]
    async fn one_thing_stands_there_once_and_everyone_who_waits_is_told() {
        let outbox = Outbox::default();
        let (first, other) = (outbox.publish(entry(1, 5), &[]), outbox.publish(entry(2, 5), &[]));
        let taken = outbox.take(10);
        assert_eq!(taken.len(), 2);
        let second = outbox.publish(entry(1, 9), &[]);
        outbox.put_back(taken);
        assert_eq!(outbox.len(), 2);
        for outgoing in outbox.take(10) {
            assert_eq!(outgoing.entry.at, if outgoing.entry == entry(2, 5) { 5 } else { 9 });
            outgoing.written();
        }
        for wait in [first, second, other] {
            assert_eq!(wait.await, Ok(()));
        }
    }

    #[tokio::test]
    async fn callers_that_have_gone_leave_nothing_behind() {
        let outbox = Outbox::default();
        for _ in 0..100 {
            drop(outbox.publish(entry(1, 5), &[]));
        }
        let kept = outbox.publish(entry(1, 5), &[]);
        let taken = outbox.take(1);
        assert_eq!(taken[0].waiting.len(), 1, "the last alone");
        drop(kept);
    }
}
