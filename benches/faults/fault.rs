//! The kinds of faults: how each begins and ends, and what it may disturb meanwhile.
//!
//! What a fault may not disturb goes on being judged as strictly as without it: requests are served while the provider's
//! keys cannot be fetched, the shared engine is gone or nobody reads the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::time::{sleep, timeout};

use super::ledger::Disturbs;
use super::load::Load;
use super::relay::{Damage, FaultyRelay, Interference, Place};
use super::round::{Environment, Variant};
use super::upstream::Behaviour;
use crate::support::issuer::{Key, Mood};

/// The maximum delay of a chunk at a relay.
const DELAY: Duration = Duration::from_millis(150);
/// The number of seconds by which the clock jumps.
const JUMP: i64 = 3_600;
/// The time within which a new key of the provider is accepted: two cool-downs of 30 s, and a fetch.
const ROTATED: Duration = Duration::from_secs(75);
/// The time within which the program ends after a signal: its drain timeout, and as much again for a busy machine.
const ENDED: Duration = Duration::from_secs(25);

/// The behaviours of the provider that are faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    Down,
    Slow,
    Garbage,
    Html,
    Huge,
    Status500,
}

/// What happens to the shared engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineFault {
    Killed,
    Paused,
    Flushed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Delay(Place),
    Pause(Place),
    Damage(Place, Damage),
    UpstreamDown,
    UpstreamHangs,
    UpstreamGarbage,
    Provider(Provider),
    /// The provider publishes a new key, and signs with it once it is accepted.
    KeyRotation,
    Engine(EngineFault),
    /// The program can open no further descriptor.
    Descriptors,
    /// The reader of the log stops for a time.
    LogUnread,
    /// The reader of the log ends. The process that writes it is replaced afterwards.
    LogClosed,
    /// The disk of the log is full.
    DiskFull,
    /// The clock jumps by so many seconds, and back.
    Clock(i64),
    /// The upstream's name does not resolve; its connections are reset, so that it is needed.
    Names,
    /// The upstream's name is asked of a name server that does not answer, for longer than this run waits for anything.
    /// The process is replaced afterwards, while it waits for the name server.
    NameServer,
    Reload,
    InvalidReload,
    /// SIGTERM, a drain, and a new process.
    Restart,
    /// SIGKILL, and a new process.
    Killed,
}

impl Fault {
    /// Returns the faults of a variant; those that only it has are in the list several times.
    pub(crate) fn of_variant(variant: Variant) -> Vec<Self> {
        let mut faults = vec![
            Self::UpstreamDown,
            Self::UpstreamHangs,
            Self::UpstreamGarbage,
            Self::KeyRotation,
            Self::Descriptors,
            Self::LogUnread,
            Self::LogClosed,
            Self::Reload,
            Self::InvalidReload,
            Self::Restart,
            Self::Killed,
        ];
        for place in [Place::Clients, Place::Upstream] {
            faults.extend([Self::Delay(place), Self::Pause(place)]);
            faults.extend(
                [Damage::Cut, Damage::Reset, Damage::HalfClose, Damage::Corrupt]
                    .map(|damage| Self::Damage(place, damage)),
            );
        }
        let of_provider =
            [Provider::Down, Provider::Slow, Provider::Garbage, Provider::Html, Provider::Huge, Provider::Status500];
        faults.extend(of_provider.map(Self::Provider));
        for _ in 0..3 {
            match variant {
                Variant::Plain | Variant::OneCore => {}
                Variant::Engine => {
                    faults.extend([EngineFault::Killed, EngineFault::Paused, EngineFault::Flushed].map(Self::Engine));
                }
                Variant::Clock => faults.extend([Self::Clock(JUMP), Self::Clock(-JUMP)]),
                Variant::Namespace => faults.extend([Self::DiskFull, Self::Names, Self::NameServer]),
            }
        }
        faults
    }

    /// Returns what the fault may disturb, from its beginning until the program serves again.
    const fn disturbs(self) -> Disturbs {
        match self {
            // Sockets of connections that a relay has damaged are known by their trace.
            Self::Damage(..)
            | Self::UpstreamDown
            | Self::UpstreamHangs
            | Self::UpstreamGarbage
            | Self::Names
            | Self::NameServer => Disturbs::REQUESTS,
            Self::Descriptors => Disturbs { health: true, ..Disturbs::REQUESTS },
            Self::Restart | Self::Killed => Disturbs::ALL,
            Self::Delay(_)
            | Self::Pause(_)
            | Self::Provider(_)
            | Self::KeyRotation
            | Self::Engine(_)
            | Self::LogUnread
            | Self::LogClosed
            | Self::DiskFull
            | Self::Clock(_)
            | Self::Reload
            | Self::InvalidReload => Disturbs::NOTHING,
        }
    }

    /// Returns whether another fault may come at the same time. Without descriptors nothing else could be observed, and
    /// an engine, the log and names fail in one way at a time.
    pub(crate) fn can_be_with(self, other: Self) -> bool {
        let are_of_engine = matches!((self, other), (Self::Engine(_), Self::Engine(_)));
        let is_of_log = |fault| matches!(fault, Self::LogUnread | Self::LogClosed | Self::DiskFull);
        let are_of_log = is_of_log(self) && is_of_log(other);
        let is_of_names = |fault| matches!(fault, Self::Names | Self::NameServer);
        let are_of_names = is_of_names(self) && is_of_names(other);
        self != other && !are_of_engine && !are_of_log && !are_of_names && ![self, other].contains(&Self::Descriptors)
    }

    /// Returns how long the fault lasts at most; a pause is shorter than what the proxy takes for a dead peer.
    pub(crate) const fn longest(self) -> Duration {
        match self {
            Self::Pause(_) => Duration::from_millis(1_500),
            // Longer than the proxy waits for a response, or for a connection.
            Self::UpstreamHangs | Self::NameServer => Duration::from_secs(8),
            Self::Reload | Self::InvalidReload | Self::Restart | Self::Killed | Self::KeyRotation => Duration::ZERO,
            _ => Duration::from_secs(4),
        }
    }
}

fn relay(load: &Load, environment: &Environment, place: Place) -> Arc<FaultyRelay> {
    Arc::clone(match place {
        Place::Clients => &load.relay,
        Place::Upstream => &environment.upstream_relay,
    })
}

impl Environment {
    /// Runs faults at the same time and waits until the program serves again.
    pub(crate) async fn run_faults(&mut self, faults: &[Fault], length: Duration) {
        let disturbs = faults.iter().fold(Disturbs::NOTHING, |all, fault| all.or(fault.disturbs()));
        let disturbance = self.ledger.disturb(disturbs);
        for fault in faults {
            self.ledger.count(&format!("fault: {fault:?}"));
            self.begin(*fault).await;
        }
        let longest = faults.iter().map(|fault| fault.longest()).min().unwrap_or_default();
        sleep(length.min(longest)).await;
        for fault in faults.iter().rev() {
            self.end(*fault).await;
        }
        // A process whose log is closed serves as ever; that it is replaced disturbs.
        let replaces = |fault: &Fault| matches!(fault, Fault::LogClosed | Fault::NameServer);
        let replaced = faults.iter().any(replaces).then(|| self.ledger.disturb(Disturbs::ALL));
        if replaced.is_some() {
            self.restart("TERM").await;
        }
        self.recover(faults).await;
        if faults.iter().any(|fault| matches!(fault, Fault::LogUnread | Fault::DiskFull)) {
            self.judge_log_goes_on().await;
        }
        for disturbance in [Some(disturbance), replaced].into_iter().flatten() {
            self.ledger.end_disturbance(disturbance);
        }
    }

    fn interfere(&self, place: Place, change: impl FnOnce(&mut Interference)) {
        relay(&self.load, self, place).interfere(change);
    }

    async fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Delay(place) => self.interfere(place, |now| now.delay = DELAY),
            Fault::Pause(place) => self.interfere(place, |now| now.is_paused = true),
            Fault::Damage(place, damage) => {
                let often = if damage == Damage::Corrupt { 150 } else { 80 };
                self.interfere(place, |now| now.damage = Some((damage, often)));
            }
            Fault::UpstreamDown => self.interfere(Place::Upstream, |now| now.is_down = true),
            Fault::UpstreamHangs => self.load.upstream.behaves(Behaviour::Hangs),
            Fault::UpstreamGarbage => self.load.upstream.behaves(Behaviour::Garbage),
            Fault::Provider(provider) => self.load.issuer.set_mood(match provider {
                Provider::Down => Mood::Rude,
                Provider::Slow => Mood::Silent,
                Provider::Garbage => Mood::Garbage,
                Provider::Html => Mood::Html,
                Provider::Huge => Mood::Endless,
                Provider::Status500 => Mood::Status(500),
            }),
            Fault::KeyRotation => self.rotate(),
            Fault::Engine(what) => {
                let engine = self.engine.as_mut().expect("an engine in this variant");
                match what {
                    EngineFault::Killed => engine.kill(),
                    EngineFault::Paused => engine.signal("STOP"),
                    EngineFault::Flushed => drop(engine.command(&[b"FLUSHALL"]).await),
                }
            }
            Fault::Descriptors => self.limit_descriptors(Some(self.proxy.descriptors() as u64)),
            Fault::LogUnread => self.proxy.hold_log(true),
            Fault::LogClosed => self.proxy.close_log(),
            Fault::DiskFull => self.fill_disk(true),
            Fault::Clock(offset) => self.set_clock(offset).await,
            Fault::Names | Fault::NameServer => {
                if fault == Fault::NameServer {
                    let server = self.name_server.as_ref().expect("a name server in this variant");
                    self.set_resolver(&format!("nameserver {}\noptions timeout:30 attempts:1\n", server.ip));
                }
                self.set_name(false);
                self.interfere(Place::Upstream, |now| now.resets += 1);
            }
            Fault::Reload => {
                self.generation += 1;
                let before = self.metric("vestibule_config_reloads_total").await;
                self.proxy.rewrite(&self.yaml());
                self.reloaded(before).await;
            }
            Fault::InvalidReload => {
                let before = self.metric("vestibule_config_reloads_total").await;
                self.proxy.rewrite("upstream: [what is this\n");
                self.reloaded(before).await;
                self.proxy.rewrite(&self.yaml());
            }
            Fault::Restart => self.restart("TERM").await,
            Fault::Killed => self.restart("KILL").await,
        }
    }

    async fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Delay(place) => self.interfere(place, |now| now.delay = Duration::ZERO),
            Fault::Pause(place) => self.interfere(place, |now| now.is_paused = false),
            Fault::Damage(place, _) => self.interfere(place, |now| {
                now.damage = None;
                now.cleanups += 1;
            }),
            Fault::UpstreamDown => self.interfere(Place::Upstream, |now| now.is_down = false),
            Fault::UpstreamHangs | Fault::UpstreamGarbage => self.load.upstream.behaves(Behaviour::Serves),
            Fault::Provider(_) => self.load.issuer.set_mood(Mood::Well),
            Fault::Engine(what) => {
                let engine = self.engine.as_mut().expect("an engine in this variant");
                match what {
                    EngineFault::Killed => engine.start_again().await,
                    EngineFault::Paused => engine.signal("CONT"),
                    EngineFault::Flushed => {}
                }
            }
            Fault::Descriptors => self.limit_descriptors(None),
            Fault::LogUnread => self.proxy.hold_log(false),
            Fault::DiskFull => self.fill_disk(false),
            Fault::Clock(_) => self.set_clock(0).await,
            Fault::Names => self.set_name(true),
            Fault::NameServer => {
                self.set_name(true);
                self.set_resolver(super::round::RESOLVER);
            }
            Fault::KeyRotation
            | Fault::Reload
            | Fault::InvalidReload
            | Fault::Restart
            | Fault::Killed
            // A closed pipe cannot be opened again.
            | Fault::LogClosed => {}
        }
    }

    /// Waits until a reload has been counted.
    async fn reloaded(&self, before: Option<u64>) {
        let counted = async {
            while self.metric("vestibule_config_reloads_total").await == before {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(ENDED, counted).await.is_err() {
            self.ledger.violation("a changed configuration was not read".to_owned());
        }
    }

    /// Publishes a new key beside the current one, and signs with it once it is accepted.
    fn rotate(&mut self) {
        if self.rotation.as_ref().is_some_and(|rotation| !rotation.is_finished()) {
            return;
        }
        let load = Arc::clone(&self.load);
        let current = load.key.lock().expect("lock").clone();
        let key = Key::ec(&format!("key-{}", load.ledger.next_number()), Algorithm::ES256);
        load.issuer.set_keys(vec![current.jwk, key.jwk.clone()]);
        self.rotation = Some(tokio::spawn(async move {
            let began = Instant::now();
            let credential = load.good_by(&key, "user-of-a-new-key");
            while load.probe(&credential).await != Some(200) {
                if *load.quiet.borrow() {
                    return;
                }
                if began.elapsed() > ROTATED {
                    load.ledger.violation(format!("a new key of the provider is not accepted after {ROTATED:?}"));
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
            load.ledger.count("keys rotated");
            *load.key.lock().expect("lock") = key;
        }));
    }

    fn limit_descriptors(&mut self, limit: Option<u64>) {
        let pid = Pid::from_raw(self.proxy.pid().cast_signed()).expect("a pid");
        let now = std::fs::read_to_string(format!("/proc/{}/limits", self.proxy.pid())).unwrap_or_default();
        let line = now.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
        let mut values = line.split_whitespace().map(|value| value.parse().ok());
        let (current, maximum) = (values.next().flatten(), values.next().flatten());
        let current = match limit {
            Some(limit) => {
                self.descriptor_limit = current;
                Some(limit)
            }
            None => self.descriptor_limit.take(),
        };
        if let Err(error) = prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }) {
            self.ledger.violation(format!("the limit of descriptors could not be set: {error}"));
        }
    }

    async fn set_clock(&self, offset: i64) {
        self.ledger.clock_is(&[self.offset.replace(offset), offset]);
        let file = self.folder.0.join("clock");
        let text = format!("{offset:+}");
        // Replaced at once: the program reads the file at every look at its clock.
        let new = file.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)).expect("the clock's file");
        sleep(Duration::from_millis(200)).await;
        self.ledger.clock_is(&[offset]);
    }

    fn set_name(&self, resolves: bool) {
        let text = if resolves { super::round::HOSTS } else { "127.0.0.1 localhost\n" };
        // In place: another file's mount shows this one.
        std::fs::write(self.folder.0.join("hosts"), text).expect("the file of names");
    }

    fn set_resolver(&self, text: &str) {
        std::fs::write(self.folder.0.join("resolv.conf"), text).expect("the resolver's file");
    }

    /// Fills the disk of the log, which only the program's namespace has.
    fn fill_disk(&self, is_full: bool) {
        use std::io::Write as _;
        let folder = format!("/proc/{}/root{}", self.proxy.pid(), self.folder.0.join("log").display());
        let filling = format!("{folder}/filling");
        if is_full {
            let mut file = std::fs::File::create(filling).expect("a file in the namespace");
            let block = vec![0; 1 << 16];
            while file.write_all(&block).is_ok() {}
        } else {
            // Another process has another disk.
            let _ = std::fs::remove_file(filling);
        }
    }

    /// Ends the process by a signal and starts another in its place.
    async fn restart(&mut self, signal: &str) {
        self.finish(signal).await;
        self.start_proxy().await;
    }

    /// Ends the process by a signal, and judges its end and its log.
    pub(crate) async fn finish(&mut self, signal: &str) {
        self.proxy.hold_log(false);
        let began = Instant::now();
        self.proxy.signal(signal);
        let wanted = if signal == "KILL" { None } else { Some(0) };
        match timeout(ENDED, self.proxy.ended()).await {
            Ok(code) if code == wanted => {}
            Ok(code) => self.ledger.violation(format!("it ended with {code:?} after SIG{signal}")),
            Err(_) => self.ledger.violation(format!("it did not end within {ENDED:?} after SIG{signal}")),
        }
        self.slowest_end = self.slowest_end.max(began.elapsed());
        self.judge_log();
    }
}
