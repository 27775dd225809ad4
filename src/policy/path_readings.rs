//! The readings of a path: all paths that a server could derive from it.
//!
//! Servers decode, normalize and trim paths in different ways. Rules are compared with each result
//! ([`Policy::match_route`](super::Policy::match_route)), so no spelling of a path bypasses a rule, and no path is
//! refused for its spelling alone (docs/contract.md section 3).
//!
//! This module owns the steps and their combinations, and the test for paths under the proxy's own prefix.
//! `route_match` and `route` decide how rules match a reading.

mod steps;

use std::collections::VecDeque;

use steps::STEPS;

/// The first segment of the paths of the proxy's own endpoints.
const OWN: &[u8] = b".vestibule";
/// Upper bound on the readings of one path; a path with more is refused.
const MAX_READINGS: usize = 64;
/// The upper bound on the bytes of all readings of one path together: 64 readings of a path of ordinary length. Without
/// it 64 copies of a path of 32 KiB would cost a client one request and this process 20 ms.
const MAX_BYTES: usize = 256 * 1024;
/// The upper bound on percent-decoding a path: once by a server, once more by an application that decodes again.
const MAX_DECODES: u8 = 2;

/// The error for a path with more readings than [`PathReadings::of`] follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyReadings {
    /// Whether one of them may be under the proxy's own prefix.
    pub may_be_own: bool,
}

/// A path as it was sent, and the other paths that a server could take it for.
#[derive(Debug)]
pub struct PathReadings<'p> {
    sent: &'p str,
    further: Vec<Vec<u8>>,
    is_own: bool,
}

impl<'p> PathReadings<'p> {
    /// Finds the readings of a path. A path without anything that servers read differently costs one scan.
    ///
    /// `path` begins with a slash and has no query. `by_path` is whether any rule depends on the path; if not, only
    /// readings under the proxy's own prefix are searched.
    ///
    /// # Errors
    /// Returns an error for more than 64 readings, or more than 256 KiB of them.
    pub fn of(path: &'p str, by_path: bool) -> Result<Self, TooManyReadings> {
        let alone = Self { sent: path, further: Vec::new(), is_own: is_own(path.as_bytes()) };
        if !is_read_differently(path.as_bytes()) || alone.is_own {
            return Ok(alone);
        }
        let mentions_own = steps::could_name(path.as_bytes(), OWN);
        if !by_path && !mentions_own {
            return Ok(alone);
        }
        let Some(further) = explore(path.as_bytes()) else {
            return Err(TooManyReadings { may_be_own: mentions_own });
        };
        let is_own = further.iter().any(|reading| self::is_own(reading));
        Ok(Self { further, is_own, ..alone })
    }

    /// Returns whether any reading, or any intermediate step, is under the proxy's own prefix.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Returns the readings in the form in which rules are compared. The path as sent comes first.
    pub(super) fn each(&self) -> impl Iterator<Item = PathReading<'_>> {
        let sent = PathReading { path: self.sent.as_bytes(), decoded: false };
        let further = self.further.iter().flat_map(|path| {
            let as_is = PathReading { path, decoded: true };
            // A router that splits the path first and then decodes each segment keeps an encoded slash in its segment.
            let by_segment = path.contains(&b'%').then_some(PathReading { path, decoded: false });
            std::iter::once(as_is).chain(by_segment)
        });
        std::iter::once(sent).chain(further)
    }
}

/// Returns whether a path, which begins with a slash and has no query, is or may be under the proxy's own prefix in some
/// reading.
#[must_use]
pub fn may_be_own(path: &str) -> bool {
    PathReadings::of(path, false).map_or_else(|too_many| too_many.may_be_own, |readings| readings.is_own())
}

/// One reading of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathReading<'r> {
    /// The path; it begins with a slash.
    pub(super) path: &'r [u8],
    /// Whether its segments are decoded already; otherwise each is percent-decoded once when compared.
    pub(super) decoded: bool,
}

/// Applies every step to every result, breadth first, until no step gives a new path. Returns `None` at
/// [`MAX_READINGS`] or [`MAX_BYTES`].
fn explore(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    // The smallest number of decodings with which each path was reached, because that limits further steps.
    let mut found: Vec<(Vec<u8>, u8)> = vec![(path.to_vec(), 0)];
    let mut waiting: VecDeque<usize> = VecDeque::from([0]);
    let mut bytes = path.len();
    while let Some(at) = waiting.pop_front() {
        for step in &STEPS {
            let (from, decodes) = &found[at];
            let decodes = decodes + u8::from(step.decodes);
            if decodes > MAX_DECODES {
                continue;
            }
            let Some(result) = (step.apply)(from) else { continue };
            if let Some(known) = found.iter().position(|(path, _)| *path == result) {
                if found[known].1 > decodes {
                    found[known].1 = decodes;
                    waiting.push_back(known);
                }
                continue;
            }
            bytes += result.len();
            if found.len() == MAX_READINGS || bytes > MAX_BYTES {
                return None;
            }
            waiting.push_back(found.len());
            found.push((result, decodes));
        }
    }
    Some(found.into_iter().skip(1).map(|(path, _)| path).collect())
}

/// Returns whether a path contains anything that two servers could read differently.
fn is_read_differently(path: &[u8]) -> bool {
    // Whether the segment so far is dots only, and its length.
    let (mut dots_only, mut length) = (true, 0);
    for (at, byte) in path.iter().enumerate() {
        match byte {
            b'/' => {
                if at > 0 && dots_only && length <= 2 {
                    return true;
                }
                (dots_only, length) = (true, 0);
                continue;
            }
            b'%' | b'\\' | b';' | b'?' | b'#' | 0..=b' ' | 0x7f.. => return true,
            b'.' => {}
            _ => dots_only = false,
        }
        length += 1;
    }
    dots_only && (1..=2).contains(&length)
}

/// Returns whether a path, or an intermediate form while its dot segments are being resolved, is under the proxy's
/// prefix.
fn is_own(path: &[u8]) -> bool {
    let mut depth = 0;
    for segment in path.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => depth = usize::saturating_sub(depth, 1),
            name if depth == 0 && name.eq_ignore_ascii_case(OWN) => return true,
            _ => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let readings = PathReadings::of(path, true).expect("few readings");
        readings.further.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn plain_paths_have_one_reading() {
        for path in ["/", "/a", "/api/v1/users/42", "/a/", "/a.b/..c/...", "/~me/x-y_z", "/A/B", "/a:b@c!$&'()*+,="] {
            assert_eq!(readings(path), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn each_step_makes_a_reading() {
        for (path, reading) in [
            ("/a%20b", "/a b"),
            ("/%2561", "/a"),
            ("/a/%2e%2e/b%20c", "/b%20c"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/../a", "/a"),
            ("/a//b", "/a/b"),
            ("/a\\b", "/a/b"),
            ("//host/a", "/a"),
            ("/\\host/a", "/a"),
            ("//host", "/"),
            ("///host/a", "/a"),
            ("/\\/host\\a", "/a"),
            ("/%2f%5chost/a", "/a"),
            ("/////host", "/"),
            ("/a;x/b;y", "/a/b"),
            ("/a;x/b;y", "/a;x/b"),
            ("/a/..;/b", "/b"),
            ("/a%00b", "/a"),
            ("/a%3Fb", "/a"),
            ("/a%23b", "/a"),
            ("/a%0Ab", "/ab"),
            ("/a%09%0db", "/ab"),
            ("/a%0A", "/a"),
            ("/a%20", "/a"),
            ("/a%20/b", "/a/b"),
            ("/a/%20b", "/a/b"),
            ("/a%C2%A0", "/a"),
            ("/a%C2%85", "/a"),
            ("/a%7F", "/a"),
            ("/a%C0%AF", "/a/"),
            ("/a%C0%AE", "/a."),
            ("/%C0%AE%C0%AE/a", "/a"),
            ("/a%FF", "/a\u{fffd}"),
            ("/a%FFb", "/ab"),
            ("/x/%252e%252e/a", "/a"),
            ("/a/..//x/b", "/b"),
        ] {
            assert!(
                readings(path).iter().any(|found| found == reading),
                "{path}: {reading} not in {:?}",
                readings(path)
            );
        }
    }

    #[test]
    fn ordinary_names_have_few_readings() {
        for path in [
            "/A%2520B.ipynb",
            "/semi%3Bcolon.txt",
            "/@scope%2fpkg",
            "/bucket//key",
            "/a;v=1",
            "/%7e%2d",
            "/report%20%231%3B%20final%3F.pdf",
            "/caf%C3%A9/na%EFve",
        ] {
            assert!(readings(path).len() <= 24, "{path}: {}", readings(path).len());
        }
    }

    #[test]
    fn a_path_with_too_many_readings_is_an_error_and_costs_a_bounded_time() {
        let odd = "/a;x/%20%2520/..//b%5cc%C0%AE%FF%0A".repeat(8);
        assert_eq!(PathReadings::of(&odd, true).map(|_| ()), Err(TooManyReadings { may_be_own: false }));
        let long = format!("/%2561;x/a%20//{}", "x".repeat(30_000));
        assert!(PathReadings::of(&long, true).is_err());
        // No rule depends on paths, and the path cannot be the proxy's own: nothing is searched.
        assert!(PathReadings::of(&odd, false).is_ok());
        let own = format!("{odd}/%2evestibule");
        assert_eq!(PathReadings::of(&own, false).map(|_| ()), Err(TooManyReadings { may_be_own: true }));
    }

    #[test]
    fn our_prefix_is_recognised_in_every_reading_and_on_the_way_to_one() {
        for (path, own) in [
            ("/.vestibule", true),
            ("/.vestibule/session", true),
            ("/.VESTIBULE/x", true),
            ("//.vestibule/x", true),
            ("/./.vestibule/x", true),
            ("/a/../.vestibule/x", true),
            ("/%2evestibule/x", true),
            ("/%252evestibule/x", true),
            ("/.vest%69bule", true),
            ("/\\.vestibule", true),
            ("/.vestibule;x/y", true),
            ("/.vestibule/../x", true),
            ("/%20.vestibule%0A/x", true),
            ("/.vesti%0Abule", true),
            ("/.vesti%FFbule", true),
            ("/%C0%AEvestibule", true),
            ("/.vestibule%00x", true),
            ("/.vestibule%3Fx", true),
            ("//host/.vestibule", true),
            ("///host/.vestibule", true),
            ("/a/..//x/.vestibule", true),
            ("/a/.vestibule", false),
            ("/a%20b/.vestibule", false),
            ("/.vestibulex", false),
            ("/vestibule", false),
        ] {
            for by_path in [false, true] {
                assert_eq!(PathReadings::of(path, by_path).expect("few readings").is_own(), own, "{path}");
            }
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn what_is_called_plain_is_changed_by_no_step(path in "/([a-z./~-]|[ -~]){0,12}") {
                if !is_read_differently(path.as_bytes()) {
                    for step in &STEPS {
                        prop_assert_eq!((step.apply)(path.as_bytes()), None);
                    }
                }
            }

            #[test]
            fn every_path_is_read_within_the_bounds(path in "/(/|[a-z.]|%2[0-9ef]|%5[cC]|%25|;|%[cC]0%[aA][eEfF]|%ff|%0[0ad]|\u{e9}|\\\\|\\.\\.){0,40}") {
                if let Ok(readings) = PathReadings::of(&path, true) {
                    prop_assert!(readings.further.len() < MAX_READINGS);
                    prop_assert!(readings.further.iter().all(|reading| reading.first() == Some(&b'/')));
                }
            }
        }
    }
}
