//! The program in the middle, whose CPU time is what the benchmarks measure.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Middle {
    child: Child,
    pub(crate) address: String,
}

impl Middle {
    /// Starts what is made for an address, and waits until it listens there; `None` where there is no such program.
    pub(crate) fn start(make: impl Fn(&str) -> Command) -> Option<Self> {
        let address = format!("127.0.0.1:{}", free_port());
        let child = make(&address).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let middle = Self { child, address };
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(&middle.address).is_err() {
            assert!(Instant::now() < until, "it does not listen");
            // Another program's listener: nothing to await but a connection that succeeds.
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(middle)
    }

    /// CPU time of all threads so far.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
        let nanoseconds = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port()
}
