//! A timer for limits that each request sets anew and hardly any reaches.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer whose end is nearly always moved before it comes. To move it only stores a time: the runtime's timer is set
/// anew when the end is nearer than that, or when it has fired too early.
#[derive(Debug)]
pub(super) struct MovableTimer {
    /// Fires at the end or earlier, unless the end was moved to the front since.
    sleep: Pin<Box<Sleep>>,
    end: Instant,
}

impl MovableTimer {
    /// Makes a timer that fires at `end`.
    pub(super) fn new(end: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(end)), end }
    }

    /// Moves the end, also of a timer that has fired.
    pub(super) fn set(&mut self, end: Instant) {
        self.end = end;
    }

    /// Resolves at the end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.end < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.end);
        }
        ready!(self.sleep.as_mut().poll(cx));
        while self.sleep.deadline() < self.end {
            self.sleep.as_mut().reset(self.end);
            ready!(self.sleep.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Sets the timer to 30 s, then at each of the times to another end, and returns when it fires, in seconds.
    async fn fires_at(moves: &[(u64, u64)], is_polled_before: bool) -> u64 {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut timer = MovableTimer::new(at(30));
        for (time, end) in moves {
            if is_polled_before {
                let poll = std::future::poll_fn(|cx| timer.poll(cx));
                let _ = tokio::time::timeout_at(at(*time), poll).await;
            }
            tokio::time::sleep_until(at(*time)).await;
            timer.set(at(*end));
        }
        std::future::poll_fn(|cx| timer.poll(cx)).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_fires_at_the_end_that_was_set_last() {
        for is_polled_before in [true, false] {
            for (moves, expected) in [
                (&[][..], 30),
                (&[(1, 75)], 75),
                (&[(1, 5)], 5),
                (&[(1, 75), (2, 12)], 12),
                (&[(1, 5), (2, 75), (3, 40)], 40),
                // The runtime's timer has fired before.
                (&[(50, 75)], 75),
                (&[(50, 40)], 50),
            ] {
                assert_eq!(fires_at(moves, is_polled_before).await, expected, "{moves:?} {is_polled_before}");
            }
        }
    }
}
