//! The built program in a process of its own, with its log.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::watch;

use super::within;

pub struct Proxy {
    pub address: SocketAddr,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    lines: watch::Receiver<usize>,
    reading: Arc<(Mutex<Reading>, Condvar)>,
    file: TempFile,
    level: String,
}

/// What is done with the program's output.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    Goes,
    Pauses,
    /// The pipe is closed at the next line.
    Ends,
}

/// A folder that is removed when the test ends.
pub struct TempFolder(pub std::path::PathBuf);

impl TempFolder {
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vestibule-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("temporary folder");
        Self(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file that is removed when the test ends.
pub struct TempFile(pub std::path::PathBuf);

impl TempFile {
    pub fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vestibule-test-{}-{}.yaml", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("temporary file");
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("utf-8")
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn command() -> Command {
    command_of(env!("CARGO_BIN_EXE_vestibule"))
}

fn command_of(program: &str) -> Command {
    let mut command = Command::new(program);
    // No setting of this machine reaches a test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VESTIBULE_")) {
        command.env_remove(name);
    }
    command
}

/// Returns a command that starts the program on one processor; `None` where `taskset` does not work.
pub fn on_one_processor() -> Option<Command> {
    // The first one that this process may use.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim();
    let first = allowed.split(['-', ',']).next()?;
    let mut taskset = command_of("taskset");
    taskset.args(["-c", first]);
    let output = Command::new("taskset").args(["-c", first, "true"]).output();
    output.is_ok_and(|output| output.status.success()).then_some(())?;
    taskset.arg(env!("CARGO_BIN_EXE_vestibule"));
    Some(taskset)
}

impl Proxy {
    /// Starts the program on a free port; `yaml` is everything except `listen` and the log.
    pub async fn start(yaml: &str) -> Self {
        Self::with_level(yaml, "debug").await
    }

    pub async fn with_level(yaml: &str, level: &str) -> Self {
        Self::spawn(yaml, level, command()).await
    }

    /// Starts the program with the shell's limits of file descriptors, such as `-Sn 100`.
    pub async fn with_descriptors(yaml: &str, limit: &str) -> Self {
        let mut shell = command_of("sh");
        let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_vestibule")]);
        Self::spawn(yaml, "debug", shell).await
    }

    /// Starts the program with a whole configuration.
    pub async fn of_file(path: &std::path::Path) -> Self {
        Self::started(TempFile(path.to_owned()), "debug", command()).await
    }

    /// Starts the program on one processor, where `taskset` can arrange that.
    pub async fn on_one_processor(yaml: &str) -> Self {
        Self::spawn(yaml, "debug", on_one_processor().unwrap_or_else(command)).await
    }

    /// Starts the program by a command that passes its arguments on to it, such as a shell's `exec`.
    pub async fn with_command(yaml: &str, level: &str, command: Command) -> Self {
        Self::spawn(yaml, level, command).await
    }

    async fn spawn(yaml: &str, level: &str, command: Command) -> Self {
        Self::started(TempFile::new(&Self::whole(yaml, level)), level, command).await
    }

    fn whole(yaml: &str, level: &str) -> String {
        let listen = if yaml.lines().any(|line| line.starts_with("listen:")) { "" } else { "listen: 127.0.0.1:0\n" };
        // Tests run concurrently, and the default admin port is a single one.
        let admin = if yaml.lines().any(|line| line.starts_with("admin:")) { "" } else { "admin: null\n" };
        format!("{listen}{admin}{yaml}\nlog: {{ format: json, level: {level} }}\n")
    }

    async fn started(file: TempFile, level: &str, mut command: Command) -> Self {
        let mut child = command
            .args(["run", "--config", file.path()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (count, mut lines) = watch::channel(0);
        let count = Arc::new(count);
        let reading = Arc::new((Mutex::new(Reading::Goes), Condvar::new()));
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let (log, count, reading) = (Arc::clone(&log), Arc::clone(&count), Arc::clone(&reading));
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let (state, changed) = &*reading;
                    let state = state.lock().expect("lock");
                    if *changed.wait_while(state, |state| *state == Reading::Pauses).expect("lock") == Reading::Ends {
                        return;
                    }
                    log.lock().expect("lock").push(line);
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        let address = within("the program to listen", async {
            loop {
                if let Some(address) = listening(&log.lock().expect("lock")) {
                    return address;
                }
                assert!(lines.changed().await.is_ok(), "it ended: {:?}", log.lock().expect("lock"));
            }
        })
        .await;
        // Most tests begin when keys are loaded. Those whose provider does not answer at first begin without.
        let has_tried = |line: &String| line.contains("\"msg\":\"ready\"") || line.contains("JWKS fetch failed");
        let settled =
            async { while !log.lock().expect("lock").iter().any(has_tried) && lines.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(300), settled).await;
        Self { address, child, log, lines, reading, file, level: level.to_owned() }
    }

    /// Waits until it is ready. A start waits for that only a short time, since not every provider answers.
    pub async fn ready(&self) {
        self.logged("to be ready", |line| line.contains("\"msg\":\"ready\"")).await;
    }

    /// Writes its configuration again, in the form of [`Self::start`], without any signal to the program.
    pub fn rewrite(&self, yaml: &str) {
        std::fs::write(self.file.path(), Self::whole(yaml, &self.level)).expect("written");
    }

    /// Sets the log level of the next [`Self::rewrite`].
    pub fn set_level(&mut self, level: &str) {
        level.clone_into(&mut self.level);
    }

    pub fn remove_file(&self) {
        std::fs::remove_file(self.file.path()).expect("removed");
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("lock").clone()
    }

    /// Sets whether the program's output stays unread.
    pub fn hold_log(&self, held: bool) {
        self.set_reading(if held { Reading::Pauses } else { Reading::Goes });
    }

    /// Closes the pipes of the program's output, each at its next line.
    pub fn close_log(&self) {
        self.set_reading(Reading::Ends);
    }

    fn set_reading(&self, reading: Reading) {
        let mut now = self.reading.0.lock().expect("lock");
        // What is closed stays so.
        if *now != Reading::Ends {
            *now = reading;
        }
        self.reading.1.notify_all();
    }

    /// Waits for a log line that satisfies the condition.
    pub async fn logged(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.logged_after(0, what, wanted).await
    }

    /// Waits like [`Self::logged`], but ignores the first `lines` lines.
    pub async fn logged_after(&self, lines: usize, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut lines_read = self.lines.clone();
        within(what, async {
            loop {
                let found = self.log().into_iter().skip(lines).find(|line| wanted(line));
                if let Some(line) = found {
                    return line;
                }
                assert!(lines_read.changed().await.is_ok(), "it ended without: {what}: {:#?}", self.log());
            }
        })
        .await
    }

    /// Returns the peak of the program's resident memory, in bytes.
    pub fn peak_memory(&self) -> usize {
        self.memory("VmHWM:")
    }

    /// Returns the program's resident memory, in bytes.
    pub fn resident_memory(&self) -> usize {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let amount = status.lines().find_map(|line| line.strip_prefix(name)).expect("an amount");
        amount.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// Returns the number of the program's open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// Returns the address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        let line = self.log().into_iter().find(|line| line.contains("\"msg\":\"listening\"")).expect("its start");
        let line: serde_json::Value = serde_json::from_str(&line).expect("json");
        let url = line["admin"].as_str().and_then(|url| url.strip_prefix("http://")).expect("an admin listener");
        url.parse().expect("an address")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        super::signal(&self.child, name);
    }

    /// Waits until the program ends and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        within("the program to end", async {
            loop {
                if let Some(status) = self.child.try_wait().expect("its status") {
                    return status.code();
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.hold_log(false);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listening(log: &[String]) -> Option<SocketAddr> {
    log.iter().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["msg"].as_str().filter(|msg| *msg == "listening")?;
        line["listen"].as_str()?.split(' ').next()?.split_once("://")?.1.parse().ok()
    })
}

/// Returns whether a log line reports a reload, accepted or rejected.
pub fn is_reload(line: &str) -> bool {
    line.contains("configuration reloaded") || line.contains("reload rejected")
}
