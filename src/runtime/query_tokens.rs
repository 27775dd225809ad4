//! Who still puts tokens into URLs: counted by route and origin, and said once a day for each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Origins come from clients, so no more pairs than this are told apart.
const PAIRS: usize = 1_000;
const DAY: u64 = 86_400;

/// Counts of query tokens.
#[derive(Debug, Default)]
pub struct QueryTokens {
    seen: Mutex<HashMap<(String, String), Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    said: u64,
}

impl QueryTokens {
    /// Counts one; `true` when it is to be said today. `now` in seconds since the epoch.
    pub fn count(&self, route: &str, origin: &str, now: u64) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (route.to_owned(), origin.to_owned());
        if let Some(known) = seen.get_mut(&pair) {
            known.count += 1;
            let due = now >= known.said + DAY;
            if due {
                known.said = now;
            }
            return due;
        }
        if seen.len() >= PAIRS {
            return false;
        }
        seen.insert(pair, Seen { count: 1, said: now });
        true
    }

    /// Route, origin and how many, the most first.
    #[must_use]
    pub fn counted(&self) -> Vec<(String, String, u64)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            seen.iter().map(|((route, origin), seen)| (route.clone(), origin.clone(), seen.count)).collect();
        all.sort_by(|one, other| other.2.cmp(&one.2).then_with(|| one.cmp(other)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_said_once_a_day_and_pairs_are_bounded() {
        let tokens = QueryTokens::default();
        assert!(tokens.count("/ws", "https://a.example", 1_000));
        assert!(!tokens.count("/ws", "https://a.example", 1_001));
        assert!(tokens.count("/other", "https://a.example", 1_001));
        assert!(tokens.count("/ws", "https://a.example", 1_000 + DAY));
        for number in 0..2 * PAIRS {
            tokens.count("/ws", &number.to_string(), 1_000);
        }
        assert!(!tokens.count("/ws", "https://one.more.example", 1_000));
    }
}
