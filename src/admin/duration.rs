//! Formats durations for the page of `/status`.

use std::time::Duration;

/// Returns a duration as people write it.
pub(super) fn shown(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}
