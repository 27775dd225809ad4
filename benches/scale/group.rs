//! Control groups of version 1 that hold a process to a part of a core and to an amount of memory. They are removed when
//! the value is dropped, after its process has ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";
const PERIOD: f64 = 100_000.0;

/// A group for the processor and one for the memory.
pub(crate) struct Group {
    cpu: PathBuf,
    memory: PathBuf,
}

impl Group {
    /// Makes a group and removes it again, to see whether this machine and this user can.
    pub(crate) fn try_out() -> std::io::Result<()> {
        Self::new(1.0, 1 << 30).map(drop)
    }

    pub(crate) fn new(cores: f64, memory: u64) -> std::io::Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vestibule-bench-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let group =
            Self { cpu: Path::new(ROOT).join("cpu").join(&name), memory: Path::new(ROOT).join("memory").join(&name) };
        std::fs::create_dir(&group.cpu)?;
        std::fs::create_dir(&group.memory)?;
        std::fs::write(group.cpu.join("cpu.cfs_period_us"), format!("{PERIOD:.0}"))?;
        std::fs::write(group.cpu.join("cpu.cfs_quota_us"), format!("{:.0}", PERIOD * cores))?;
        std::fs::write(group.memory.join("memory.limit_in_bytes"), memory.to_string())?;
        Ok(group)
    }

    /// Returns the command, made from one that runs a shell, that enters the groups and becomes the program.
    pub(crate) fn command(&self, mut shell: Command, program: &Path) -> Command {
        let enter = |group: &Path| format!("echo $$ > {}/cgroup.procs", group.display());
        let script = format!("{} && {} && exec \"$0\" \"$@\"", enter(&self.cpu), enter(&self.memory));
        shell.arg("-c").arg(script).arg(program);
        shell
    }

    /// What the memory group counts in bytes: resident memory and the kernel's, less the files that could be dropped.
    pub(crate) fn memory(&self) -> u64 {
        let read = |name: &str| std::fs::read_to_string(self.memory.join(name)).unwrap_or_default();
        let used: u64 = read("memory.usage_in_bytes").trim().parse().unwrap_or(0);
        let statistics = read("memory.stat");
        let cached = statistics.lines().find_map(|line| line.strip_prefix("cache ")?.trim().parse::<u64>().ok());
        used.saturating_sub(cached.unwrap_or(0))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in [&self.cpu, &self.memory] {
            // The system needs a moment after the last process has ended.
            for _ in 0..100 {
                if std::fs::remove_dir(folder).is_ok() || !folder.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
