//! Pending sockets: open sockets that have not authenticated yet. Their number is limited in all and per
//! address. At the limit the oldest one that has sent nothing is evicted (docs/contract.md section 4.2).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::http::network;

/// All pending sockets, in the order in which they were added; clones share them.
#[derive(Clone, Debug, Default)]
pub struct PendingSockets {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    by_age: BTreeMap<u64, PendingEntry>,
}

#[derive(Debug)]
struct PendingEntry {
    address: IpAddr,
    has_begun_message: Arc<AtomicBool>,
    evicted: CancellationToken,
}

/// One pending socket; counted until dropped.
#[derive(Debug)]
pub struct PendingSlot {
    all: PendingSockets,
    id: u64,
    has_begun_message: Arc<AtomicBool>,
    evicted: CancellationToken,
}

impl PendingSlot {
    /// Records that a part of the first message has arrived, which protects the socket from eviction.
    pub fn mark_message_begun(&self) {
        self.has_begun_message.store(true, Ordering::Relaxed);
    }

    /// Resolves when the socket is evicted.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        let mut entries = self.all.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_age.remove(&self.id);
    }
}

impl PendingSockets {
    /// Adds a socket, which may evict another one. Returns `None` at the limit when no other socket can be evicted: all
    /// of them have begun their message.
    #[must_use]
    pub fn add(&self, address: IpAddr, limit: u32, limit_per_address: u32) -> Option<PendingSlot> {
        let address = network(address);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let same_address = entries.by_age.values().filter(|entry| entry.address == address).count();
        if same_address >= limit_per_address as usize {
            entries.evict(Some(address))?;
        } else if entries.by_age.len() >= limit as usize {
            entries.evict(None)?;
        }
        let id = entries.next_id;
        entries.next_id += 1;
        let socket =
            PendingSlot { all: self.clone(), id, has_begun_message: Arc::default(), evicted: CancellationToken::new() };
        let entry = PendingEntry {
            address,
            has_begun_message: Arc::clone(&socket.has_begun_message),
            evicted: socket.evicted.clone(),
        };
        entries.by_age.insert(id, entry);
        Some(socket)
    }

    /// Returns the number of pending sockets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).by_age.len()
    }
}

impl Entries {
    /// Evicts the oldest socket, of this address if one is given, that has not begun its message.
    fn evict(&mut self, address: Option<IpAddr>) -> Option<()> {
        let is_evictable = |entry: &PendingEntry| {
            address.is_none_or(|address| entry.address == address) && !entry.has_begun_message.load(Ordering::Relaxed)
        };
        let id = *self.by_age.iter().find(|(_, entry)| is_evictable(entry))?.0;
        // The socket does not count any more; its task closes it.
        if let Some(entry) = self.by_age.remove(&id) {
            entry.evicted.cancel();
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_oldest_silent_socket_is_evicted() {
        let sockets = PendingSockets::default();
        let first = sockets.add(address(1), 2, 9).expect("added");
        let second = sockets.add(address(2), 2, 9).expect("added");
        first.mark_message_begun();
        let _third = sockets.add(address(3), 2, 9).expect("the silent second is evicted");
        assert!(second.evicted.is_cancelled());
        assert!(!first.evicted.is_cancelled());
        assert_eq!(sockets.len(), 2);
    }

    #[test]
    fn a_socket_is_rejected_when_none_can_be_evicted() {
        let sockets = PendingSockets::default();
        let first = sockets.add(address(1), 1, 9).expect("added");
        first.mark_message_begun();
        assert!(sockets.add(address(2), 1, 9).is_none());
        drop(first);
        assert!(sockets.add(address(2), 1, 9).is_some());
    }

    #[test]
    fn an_address_at_its_limit_evicts_only_its_own_sockets() {
        let sockets = PendingSockets::default();
        let other = sockets.add(address(9), 10, 2).expect("added");
        let first = sockets.add(address(1), 10, 2).expect("added");
        let _second = sockets.add(address(1), 10, 2).expect("added");
        let _third = sockets.add(address(1), 10, 2).expect("added");
        assert!(first.evicted.is_cancelled());
        assert!(!other.evicted.is_cancelled());
    }
}
