//! The memory that this process may use, and the share of it that unauthenticated callers may hold.

use std::path::Path;

/// The memory of a process without connections, in bytes.
const BASELINE_BYTES: usize = 12 << 20;
/// The maximum default of `limits.unauthenticated_bytes`, which applies where the memory is not limited.
const MAX_UNAUTHENTICATED_BYTES: usize = 32 << 20;
/// The divisor of the cgroup's memory that gives the default of `limits.unauthenticated_bytes`.
const UNAUTHENTICATED_SHARE: usize = 4;
/// The maximum default of `limits.held_message_bytes`, which applies where the memory is not limited.
const MAX_HELD_MESSAGE_BYTES: usize = 16 << 20;
/// The divisor of the cgroup's memory that gives the default of `limits.held_message_bytes`.
const HELD_MESSAGE_SHARE: usize = 8;
/// The minimum number of request heads of maximum length that must fit.
const MIN_HEADS: usize = 8;

/// Returns the default of `limits.unauthenticated_bytes`.
pub(super) fn default_bound(cgroup: Option<usize>, header_bytes: usize) -> usize {
    cgroup
        .map_or(MAX_UNAUTHENTICATED_BYTES, |bytes| (bytes / UNAUTHENTICATED_SHARE).min(MAX_UNAUTHENTICATED_BYTES))
        .max(least_bound(header_bytes))
}

/// Returns the smallest usable value of `limits.unauthenticated_bytes`.
pub(super) fn least_bound(header_bytes: usize) -> usize {
    (header_bytes * MIN_HEADS).max(256 << 10)
}

/// Returns the default of `limits.held_message_bytes`: at least the longest message.
pub(super) fn default_message_bound(cgroup: Option<usize>, message_bytes: usize) -> usize {
    cgroup
        .map_or(MAX_HELD_MESSAGE_BYTES, |bytes| (bytes / HELD_MESSAGE_SHARE).min(MAX_HELD_MESSAGE_BYTES))
        .max(message_bytes)
}

/// Returns the most memory that this process uses while no caller is authenticated. It is up to two and a half times
/// the counted memory (measured under attack): the kernel holds a part of each connection, and the allocator returns
/// freed memory a few seconds later.
pub(super) fn max_before_authentication(bound: usize) -> usize {
    BASELINE_BYTES + bound / 2 * 5
}

/// Returns the memory that this process may use: the limit of its cgroup, or the memory of the machine.
pub(super) fn memory_limit(cgroup: Option<usize>) -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_in(&text));
    cgroup.into_iter().chain(machine).min()
}

/// Returns the machine's memory in `/proc/meminfo`.
fn total_in(meminfo: &str) -> Option<usize> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?;
    kib.parse::<usize>().ok()?.checked_mul(1 << 10)
}

/// Returns the memory limit of this process's cgroup, version 1 or 2; `None` if there is none.
pub(super) fn cgroup_limit() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// Returns the smallest limit of the cgroups that `/proc/self/cgroup` names and of their parents. Inside a container
/// the named path may be that of the host, while the mount begins at the container's own cgroup.
fn limit_in(mount: &Path, groups: &str) -> Option<usize> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let below = Path::new(path.trim_start_matches('/'));
        let limit = |folder: &Path| {
            let text = std::fs::read_to_string(root.join(folder).join(file)).ok()?;
            // `max`, and in version 1 the maximum number of pages, are no limit.
            text.trim().parse().ok().filter(|bytes| *bytes < usize::MAX / 4)
        };
        below.ancestors().filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Mount(std::path::PathBuf);

    impl Mount {
        fn with(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("vestibule-cgroup-{}-{name}", std::process::id()));
            for (file, text) in files {
                let path = root.join(file);
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
                std::fs::write(path, text).expect("written");
            }
            Self(root)
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_limit_of_a_cgroup_of_version_2_is_its_own_or_that_of_one_above() {
        let mount =
            Mount::with("2", &[("a/memory.max", "100\n"), ("a/b/memory.max", "max\n"), ("a/c/memory.max", "50")]);
        assert_eq!(limit_in(&mount.0, "0::/a/b\n"), Some(100));
        assert_eq!(limit_in(&mount.0, "0::/a/c\n"), Some(50));
        assert_eq!(limit_in(&mount.0, "0::/elsewhere\n"), None);
    }

    #[test]
    fn the_limit_of_a_cgroup_of_version_1_is_found_in_a_container_too() {
        let unlimited = [("memory/memory.limit_in_bytes", "9223372036854771712\n")];
        let mount = Mount::with("1-none", &unlimited);
        assert_eq!(limit_in(&mount.0, "4:memory:/\n0::/\n"), None);
        let mount = Mount::with("1", &[("memory/memory.limit_in_bytes", "67108864\n")]);
        // The path is that of the host; the mount holds the container's own cgroup.
        assert_eq!(limit_in(&mount.0, "5:cpu,memory:/docker/0123\n"), Some(64 << 20));
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(total_in("MemTotal:        8046852 kB\nMemFree:          123 kB\n"), Some(8_046_852 << 10));
        assert_eq!(total_in("MemFree: 123 kB\n"), None);
    }

    #[test]
    fn the_default_is_a_quarter_of_the_cgroup_and_at_most_32_mib() {
        assert_eq!(default_bound(Some(64 << 20), 32 << 10), 16 << 20);
        assert_eq!(default_bound(Some(1 << 30), 32 << 10), 32 << 20);
        assert_eq!(default_bound(None, 32 << 10), 32 << 20);
        assert!(max_before_authentication(default_bound(Some(64 << 20), 32 << 10)) <= 64 << 20);
    }
}
