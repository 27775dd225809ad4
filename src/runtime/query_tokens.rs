//! Counts of tokens in URLs by route and origin, each of which is logged once a day.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Upper bound on pairs of route and origin of which a token was verified. At a bound, those pairs are dropped of which no
/// token came for a day; without any, the origin counts among the [`OTHERS`].
const MAX_PAIRS: usize = 1_000;
/// Upper bound on pairs of which no token was verified. Anybody can invent a token and an origin, and must not keep the pages
/// out that send tokens of users.
const MAX_UNVERIFIED: usize = 100;
/// The name of the origins beyond a bound.
const OTHERS: &str = "other origins";
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
    logged_at: Option<u64>,
    /// Whether one of the tokens was verified.
    is_verified: bool,
}

impl QueryTokens {
    /// Counts a token. Returns the origin under which it is counted, where that should be logged. `now` is in seconds since
    /// the epoch.
    pub fn count<'a>(&self, route: &str, origin: &'a str, is_verified: bool, now: u64) -> Option<&'a str> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = |origin: &str| (route.to_owned(), origin.to_owned());
        let known = counts.get(&pair(origin)).map(|count| count.is_verified);
        let (is_named, is_verified) = match known {
            Some(true) => (true, true),
            // Only where a new verified pair would fit, or those that are unverified first would have no bound.
            Some(false) => (true, is_verified && has_room(&mut counts, true, now)),
            None => (has_room(&mut counts, is_verified, now), is_verified),
        };
        let origin = if is_named { origin } else { OTHERS };
        let new = Count { tokens: 0, logged_at: None, is_verified };
        let count = counts.entry(pair(origin)).or_insert(new);
        count.tokens += 1;
        count.is_verified |= is_verified;
        let is_due = count.logged_at.is_none_or(|at| now >= at + DAY);
        if is_due {
            count.logged_at = Some(now);
        }
        is_due.then_some(origin)
    }

    /// Returns route, origin and number of tokens of each pair: those of which a token was verified first, then the largest
    /// number first.
    #[must_use]
    pub fn counted(&self) -> Vec<(String, String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = counts.iter().map(|(pair, count)| (pair.clone(), *count)).collect();
        drop(counts);
        let rank = |count: &Count| (count.is_verified, count.tokens);
        all.sort_by(|one, other| rank(&other.1).cmp(&rank(&one.1)).then_with(|| one.0.cmp(&other.0)));
        all.into_iter().map(|((route, origin), count)| (route, origin, count.tokens)).collect()
    }
}

/// Returns whether another pair fits, after dropping old ones where that is necessary.
fn has_room(counts: &mut HashMap<(String, String), Count>, is_verified: bool, now: u64) -> bool {
    let bound = if is_verified { MAX_PAIRS } else { MAX_UNVERIFIED };
    let fits =
        |counts: &HashMap<_, Count>| counts.values().filter(|count| count.is_verified == is_verified).count() < bound;
    if fits(counts) {
        return true;
    }
    // A token that comes a day after the last log line is logged, so none came for a day.
    counts.retain(|_, count| count.logged_at.is_some_and(|at| now < at + 2 * DAY));
    fits(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_logged_once_a_day() {
        let tokens = QueryTokens::default();
        let origin = "https://a.example";
        assert_eq!(tokens.count("/ws", origin, true, 1_000), Some(origin));
        assert_eq!(tokens.count("/ws", origin, false, 1_001), None);
        assert_eq!(tokens.count("/other", origin, false, 1_001), Some(origin));
        assert_eq!(tokens.count("/ws", origin, true, 1_000 + DAY), Some(origin));
    }

    #[test]
    fn pairs_are_bounded_where_a_bad_token_comes_before_the_good_one() {
        let tokens = QueryTokens::default();
        for number in 0..2 * MAX_PAIRS {
            for is_verified in [false, true] {
                tokens.count("/ws", &number.to_string(), is_verified, 1_000);
            }
        }
        assert_eq!(tokens.counted().len(), MAX_PAIRS + MAX_UNVERIFIED + 1);
    }

    #[test]
    fn pairs_are_bounded_and_invented_ones_keep_no_verified_one_out() {
        let tokens = QueryTokens::default();
        for number in 0..2 * MAX_UNVERIFIED {
            tokens.count("/ws", &format!("invented {number}"), false, 1_000);
        }
        assert_eq!(tokens.counted().len(), MAX_UNVERIFIED + 1);
        assert_eq!(tokens.counted()[0], ("/ws".to_owned(), OTHERS.to_owned(), MAX_UNVERIFIED as u64));
        for number in 0..2 * MAX_PAIRS {
            tokens.count("/ws", &number.to_string(), true, 1_000);
        }
        // The other origins count as verified from then on, so one more fits among the others.
        assert_eq!(tokens.counted().len(), MAX_PAIRS + MAX_UNVERIFIED + 1);
        assert_eq!(tokens.count("/ws", "one more", true, 1_001), None);
        assert_eq!(tokens.count("/ws", "one more", true, 999 + 2 * DAY), Some(OTHERS));
        assert_eq!(tokens.count("/ws", "one more", true, 1_000 + 2 * DAY), Some("one more"));
        assert_eq!(tokens.counted().len(), 2);
    }
}
