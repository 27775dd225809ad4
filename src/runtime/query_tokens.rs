//! Counts of tokens in URLs by route and origin, each of which is logged once a day.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Upper bound on pairs of route and origin, since origins come from clients.
const MAX_PAIRS: usize = 1_000;
const DAY: u64 = 86_400;

/// The counts of query tokens.
#[derive(Debug, Default)]
pub struct QueryTokens {
    counts: Mutex<HashMap<(String, String), Count>>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    tokens: u64,
    /// The time at which the pair was last logged, in seconds since the epoch.
    logged_at: u64,
}

impl QueryTokens {
    /// Counts a token. Returns whether the pair should be logged. `now` is in seconds since the epoch.
    pub fn count(&self, route: &str, origin: &str, now: u64) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (route.to_owned(), origin.to_owned());
        if let Some(count) = counts.get_mut(&pair) {
            count.tokens += 1;
            let is_due = now >= count.logged_at + DAY;
            if is_due {
                count.logged_at = now;
            }
            return is_due;
        }
        if counts.len() >= MAX_PAIRS {
            return false;
        }
        counts.insert(pair, Count { tokens: 1, logged_at: now });
        true
    }

    /// Returns route, origin and number of tokens of each pair, the largest number first.
    #[must_use]
    pub fn counted(&self) -> Vec<(String, String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            counts.iter().map(|((route, origin), count)| (route.clone(), origin.clone(), count.tokens)).collect();
        all.sort_by(|one, other| other.2.cmp(&one.2).then_with(|| one.cmp(other)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_logged_once_a_day_and_pairs_are_bounded() {
        let tokens = QueryTokens::default();
        assert!(tokens.count("/ws", "https://a.example", 1_000));
        assert!(!tokens.count("/ws", "https://a.example", 1_001));
        assert!(tokens.count("/other", "https://a.example", 1_001));
        assert!(tokens.count("/ws", "https://a.example", 1_000 + DAY));
        for number in 0..2 * MAX_PAIRS {
            tokens.count("/ws", &number.to_string(), 1_000);
        }
        assert!(!tokens.count("/ws", "https://one.more.example", 1_000));
    }
}
