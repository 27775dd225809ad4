//! Counts events of the last minute, and says when a log line that many events could cause is due.

use std::sync::atomic::{AtomicU64, Ordering};

const SECONDS: u64 = 60;
const SLOTS: usize = 60;

/// The number of events in the last minute, in one slot per second.
#[derive(Debug)]
pub struct LastMinute {
    /// The Unix time of a slot in the upper half, its count in the lower half. They are one value, so that both change
    /// together.
    slots: [AtomicU64; SLOTS],
}

impl Default for LastMinute {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl LastMinute {
    /// Counts an event; `now` is the Unix time in seconds.
    pub fn record(&self, now: u64) {
        let Some(slot) = usize::try_from(now % SECONDS).ok().and_then(|index| self.slots.get(index)) else { return };
        let time = now << 32;
        let counted = |slot: u64| {
            let is_current = slot & !u64::from(u32::MAX) == time;
            Some(if is_current { slot.saturating_add(1) } else { time | 1 })
        };
        // It cannot fail: `counted` never returns `None`.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Returns the number of events of the last 60 seconds; `now` is the Unix time in seconds.
    #[must_use]
    pub fn count(&self, now: u64) -> u64 {
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        slots.filter(|slot| (slot >> 32) + SECONDS > now).map(|slot| slot & u64::from(u32::MAX)).sum()
    }
}

/// The time of the last log line that many events could cause, so that there is at most one in a minute.
#[derive(Debug, Default)]
pub struct OncePerMinute(AtomicU64);

impl OncePerMinute {
    /// Creates it without a last line.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns whether a line is due; `now` is the Unix time in seconds.
    pub fn is_due(&self, now: u64) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        now >= before + SECONDS && self.0.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_count_for_a_minute() {
        let events = LastMinute::default();
        assert_eq!(events.count(1_000_000), 0);
        for now in [1_000_000, 1_000_000, 1_000_030, 1_000_059] {
            events.record(now);
        }
        assert_eq!(events.count(1_000_059), 4);
        assert_eq!(events.count(1_000_060), 2, "those of the first second are a minute old");
        events.record(1_000_060);
        assert_eq!(events.count(1_000_060), 3, "a slot begins anew");
        assert_eq!(events.count(1_000_200), 0);
    }
}
