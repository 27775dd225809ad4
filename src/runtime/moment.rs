//! Times and durations in few bytes. An [`Instant`] and a [`Duration`] take sixteen, and each open socket keeps a dozen
//! times and several durations.

use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

/// A time earlier than all others. It lies in the past because a paused clock, in tests, may stand at a time before the
/// first use of this.
static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(86_400)).unwrap_or(now)
});

/// A time of the monotonic clock in eight bytes, also where it may be absent: nanoseconds since [`EPOCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// Later than any time that is reached.
    pub(super) const NEVER: Self = Self(NonZeroU64::MAX);

    /// Returns the current time.
    #[must_use]
    pub fn now() -> Self {
        Instant::now().into()
    }

    /// Returns the time that has passed since; zero for a time in the future.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }

    /// Returns the nanoseconds since [`EPOCH`], at least 1.
    pub(super) fn get(self) -> u64 {
        self.0.get()
    }
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        Self(NonZeroU64::MIN) + instant.saturating_duration_since(*EPOCH)
    }
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Self {
        *EPOCH + Duration::from_nanos(moment.0.get() - 1)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Returns the time between two moments; zero where the second is the later one.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// A duration in whole milliseconds, at most 49 days; a longer one counts as that.
#[derive(Clone, Copy, Debug)]
pub struct Millis(u32);

impl Millis {
    /// Returns the duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_may_be_absent_in_eight_bytes() {
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }

    #[test]
    fn a_moment_is_the_instant_it_was_made_from() {
        let instant = Instant::now();
        let moment = Moment::from(instant);
        let later = moment + Duration::from_millis(1_500);
        assert_eq!(Instant::from(later), instant + Duration::from_millis(1_500));
        assert_eq!((later - moment, moment - later), (Duration::from_millis(1_500), Duration::ZERO));
        assert!(moment < later);
    }

    /// A clock that is paused stands at the time at which its runtime was made.
    #[tokio::test(start_paused = true)]
    async fn a_moment_follows_a_paused_clock() {
        let (moment, instant) = (Moment::now(), Instant::now());
        assert_eq!(Instant::from(moment), instant);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(moment.elapsed(), Duration::from_secs(3));
    }
}
