//! The waiting room: sockets that have not said who they are, bounded in all and per address. When it
//! is full the one that has waited longest without a word gives way (docs/contract.md section 4.2).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::addresses::network;

/// Everyone who waits, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Room {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    address: IpAddr,
    spoken: Arc<AtomicBool>,
    evicted: CancellationToken,
}

/// A place in the room, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    room: Room,
    number: u64,
    spoken: Arc<AtomicBool>,
    evicted: CancellationToken,
}

impl Seat {
    /// Notes that a fragment of the first message has come.
    pub fn has_spoken(&self) {
        self.spoken.store(true, Ordering::Relaxed);
    }

    /// Resolves when it has to give way.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.room.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.waiting.remove(&self.number);
    }
}

impl Room {
    /// Takes a seat; someone silent may have to give way. `None`: all have spoken.
    #[must_use]
    pub fn enter(&self, address: IpAddr, limit: u32, per_address: u32) -> Option<Seat> {
        let address = network(address);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let same = inner.waiting.values().filter(|waiting| waiting.address == address).count();
        if same >= per_address as usize {
            inner.evict(Some(address))?;
        } else if inner.waiting.len() >= limit as usize {
            inner.evict(None)?;
        }
        let number = inner.next;
        inner.next += 1;
        let seat = Seat { room: self.clone(), number, spoken: Arc::default(), evicted: CancellationToken::new() };
        let waiting = Waiting { address, spoken: Arc::clone(&seat.spoken), evicted: seat.evicted.clone() };
        inner.waiting.insert(number, waiting);
        Some(seat)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn evict(&mut self, address: Option<IpAddr>) -> Option<()> {
        let silent = |waiting: &Waiting| {
            address.is_none_or(|address| waiting.address == address) && !waiting.spoken.load(Ordering::Relaxed)
        };
        let number = *self.waiting.iter().find(|(_, waiting)| silent(waiting))?.0;
        // Out of the count at once; its task notices and closes.
        if let Some(waiting) = self.waiting.remove(&number) {
            waiting.evicted.cancel();
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
    fn the_longest_silent_gives_way() {
        let room = Room::default();
        let first = room.enter(address(1), 2, 9).expect("room");
        let second = room.enter(address(2), 2, 9).expect("room");
        first.has_spoken();
        let _third = room.enter(address(3), 2, 9).expect("the silent second gives way");
        assert!(second.evicted.is_cancelled());
        assert!(!first.evicted.is_cancelled());
        assert_eq!(room.len(), 2);
    }

    #[test]
    fn when_all_have_spoken_the_newcomer_waits_outside() {
        let room = Room::default();
        let first = room.enter(address(1), 1, 9).expect("room");
        first.has_spoken();
        assert!(room.enter(address(2), 1, 9).is_none());
        drop(first);
        assert!(room.enter(address(2), 1, 9).is_some());
    }

    #[test]
    fn one_address_crowds_out_only_itself() {
        let room = Room::default();
        let other = room.enter(address(9), 10, 2).expect("room");
        let first = room.enter(address(1), 10, 2).expect("room");
        let _second = room.enter(address(1), 10, 2).expect("room");
        let _third = room.enter(address(1), 10, 2).expect("room");
        assert!(first.evicted.is_cancelled());
        assert!(!other.evicted.is_cancelled());
    }
}
