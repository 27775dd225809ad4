//! The program in the middle, whose processor time and memory are what the benchmarks measure. Owns its process, its log
//! file and the core that it runs on. Its submodules are the other parts that the benchmarks share: the load, the
//! upstream, the tokens, the smallest proxy, Vestibule's configuration, and the pages that figures are written into.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod bare;
pub(crate) mod page;
pub(crate) mod requests;
pub(crate) mod sockets;
pub(crate) mod tokens;
pub(crate) mod upstream;
pub(crate) mod vestibule;
pub(crate) mod work;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a program may take until it listens, or ends; under valgrind it is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running program in the middle.
pub(crate) struct Middle {
    child: Child,
    pub(crate) address: String,
    /// The file that its output goes to, as in a deployment; see [`Self::clear_log`].
    log: PathBuf,
}

impl Middle {
    /// Starts what is made for an address, and waits until it listens there. The error says why there is none.
    pub(crate) fn start(make: impl Fn(&str) -> Command) -> Result<Self, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let address = format!("127.0.0.1:{}", free_port());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("vestibule-bench-{}-{number}.log", std::process::id()));
        let file = File::options().create(true).append(true).open(&log).map_err(|error| error.to_string())?;
        let mut command = make(&address);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let mut middle = Self { child, address, log };
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(&middle.address).is_err() {
            let has_ended = middle.child.try_wait().is_ok_and(|status| status.is_some());
            if has_ended || Instant::now() > until {
                let said = std::fs::read_to_string(&middle.log).unwrap_or_default();
                return Err(format!("it does not listen: {}", said.lines().next().unwrap_or("it said nothing")));
            }
            // Another program's listener: nothing to await but a connection that succeeds.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(middle)
    }

    /// The processes: the one that was started, and its children (nginx works in one).
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = std::fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
            let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // The name in parentheses may hold anything; the state and then the parent follow it.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
            (parent == own).then_some(id)
        });
        std::iter::once(own).chain(children).collect()
    }

    /// CPU time of all threads so far.
    pub(crate) fn cpu(&self) -> Duration {
        let nanoseconds = self.processes().into_iter().map(|id| {
            let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten();
            let times = tasks.filter_map(|task| {
                let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
                text.split(' ').next()?.parse::<u64>().ok()
            });
            times.sum::<u64>()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let kilobytes = self.processes().into_iter().filter_map(|id| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        kilobytes.sum::<u64>() * 1024
    }

    /// Empties the log file, so that a long run does not fill the disk. The programs append.
    pub(crate) fn clear_log(&self) {
        let _ = File::options().write(true).open(&self.log).and_then(|file| file.set_len(0));
    }
}

impl Middle {
    /// Ends the program by a signal, and returns what it has written.
    pub(crate) fn stop(mut self) -> String {
        self.interrupt(PATIENCE);
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGTERM and waits until the program has ended, at most this long. nginx ends its worker on this signal; a
    /// killed master would leave it behind.
    fn interrupt(&mut self, most: Duration) {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + most;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.interrupt(Duration::from_secs(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// A port of the loopback interface that is free now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port()
}

/// The path of an installed program.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    // Debian keeps servers in a folder that is not on every user's path.
    let folders = std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Returns a command that runs on these cores (`0`, `0,1`), where programs can be pinned.
pub(crate) fn pinned(cores: &str, program: &Path) -> Command {
    if installed("taskset").is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program);
    command
}

/// Moves this process, which is the load, to the second core, where there is one.
pub(crate) fn pin_load() {
    let id = std::process::id().to_string();
    let _ = Command::new("taskset").args(["-cp", "1", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
