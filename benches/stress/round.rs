//! One round: a process of its own, sockets that open and close, reloads, and a drain at its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jsonwebtoken::Algorithm;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::pair::{Life, Shared, Upgrades, serve};
use super::rng::Rng;
use super::transport::{Ends, Transport};
use super::verdict::{judge, lines};
use crate::support::issuer::{Issuer, Key};
use crate::support::proxy::{Proxy, TempFolder};

/// The maximum pause of a reader: shorter than the proxy's `send_timeout` below.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The memory in KiB that buffers may hold, in addition to one and a half times the memory at the round's beginning.
const SLACK: u64 = 32 << 10;

pub(crate) struct Round {
    pub(crate) transport: Transport,
    pub(crate) length: Duration,
    pub(crate) sockets: u64,
    pub(crate) seed: u64,
}

/// The result of one round or of several.
#[derive(Default)]
pub(crate) struct Summary {
    sockets: u64,
    lines: u64,
    messages: [u64; 2],
    bytes: [u64; 2],
    refreshes: [u64; 2],
    reloads: u64,
    /// The memory in KiB when all sockets were open, half-way, before the drain, and at most.
    memory: Vec<[u64; 4]>,
    drained_in: Duration,
    pub(crate) endings: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
}

impl Summary {
    pub(crate) fn add(&mut self, other: Self) {
        self.sockets += other.sockets;
        self.lines += other.lines;
        for way in 0..2 {
            self.messages[way] += other.messages[way];
            self.bytes[way] += other.bytes[way];
            self.refreshes[way] += other.refreshes[way];
        }
        self.reloads += other.reloads;
        self.memory.extend(other.memory);
        self.drained_in = self.drained_in.max(other.drained_in);
        for (ending, count) in other.endings {
            *self.endings.entry(ending).or_default() += count;
        }
        self.violations.extend(other.violations);
    }

    pub(crate) fn line(&self) -> String {
        let memory: Vec<String> = self
            .memory
            .iter()
            .map(|kib| {
                let [start, middle, end, most] = kib.map(|kib| kib >> 10);
                format!("{start}, {middle}, {end} (at most {most})")
            })
            .collect();
        format!(
            "{} sockets, {} access lines; messages up {} ({} MB), down {} ({} MB); refreshes {} accepted, {} refused; {} reloads; drain {:.1} s; MiB at start, middle, end: {}; {} violations",
            self.sockets,
            self.lines,
            self.messages[0],
            self.bytes[0] / 1_000_000,
            self.messages[1],
            self.bytes[1] / 1_000_000,
            self.refreshes[0],
            self.refreshes[1],
            self.reloads,
            self.drained_in.as_secs_f64(),
            memory.join("; "),
            self.violations.len()
        )
    }

    fn take(&mut self, life: &Life) {
        self.sockets += 1;
        self.messages[0] += life.upstream.got;
        self.messages[1] += life.client.got;
        self.bytes[0] += life.upstream.bytes_got;
        self.bytes[1] += life.client.bytes_got;
        self.refreshes[0] += u64::from(life.client.refreshes_accepted);
        self.refreshes[1] += u64::from(life.client.refreshes_refused);
    }
}

/// Returns the configuration after so many reloads.
fn yaml(ends: &Ends, issuer: &Issuer, control: &std::path::Path, generation: u64) -> String {
    let denied: Vec<String> = (0..=generation).map(|n| format!("{{ path: /leaving/{n}/**, auth: deny }}")).collect();
    format!(
        "{}providers: [{{ preset: oidc, issuer: \"{}\", audience: {}, clock_skew: 1s, cache_ttl: {}s }}]\n\
         control: {{ listen: \"unix:{}\" }}\n\
         routes: [{}]\n\
         websocket: {{ auth_timeout: 60s, grace: 0s, ping_interval: 5s, ping_timeout: 15s }}\n\
         limits: {{ connections: 100000, connections_per_address: 100000, waiting_websockets: 10000, waiting_websockets_per_address: 10000, websockets_per_user: 10000, failed_tokens_per_minute: null, send_timeout: 20s }}\n",
        ends.yaml,
        issuer.url,
        crate::support::issuer::AUDIENCE,
        60 + generation,
        control.display(),
        denied.join(", ")
    )
}

impl Round {
    pub(crate) async fn run(&self) -> Summary {
        let folder = TempFolder::new();
        let control = folder.0.join("control.sock");
        let ends = Arc::new(Ends::new(self.transport).await);
        let issuer = Issuer::with(Key::ec("stress", Algorithm::ES256)).await;
        let mut proxy = Proxy::with_level(&yaml(&ends, &issuer, &control, 0), "info").await;
        let upgrades = Arc::new(Upgrades::default());
        let mut rng = Rng::new(self.seed);
        let upstream = tokio::spawn(serve(Arc::clone(&ends), Arc::clone(&upgrades), Rng::new(rng.next())));

        let longest_pause = (self.length / 12).clamp(Duration::from_millis(500), LONGEST_PAUSE);
        let settles = longest_pause * 2;
        let drains = Duration::from_millis(10 * self.sockets).min(Duration::from_secs(12));
        let active = self.length.saturating_sub(settles + drains).max(Duration::from_secs(2));
        let (quiet, is_quiet) = watch::channel(false);
        let shared = Arc::new(Shared {
            dialler: ends.dialler(proxy.address),
            issuer,
            upgrades,
            control: control.clone(),
            denied: AtomicU64::new(0),
            quiet: is_quiet,
            longest_life: active.mul_f64(0.6).min(Duration::from_secs(40)),
            longest_round: self.length,
            longest_pause,
            // About five thousand messages a second each way, whatever the number of sockets.
            pace: Duration::from_micros(self.sockets * 200).max(Duration::from_millis(20)),
        });
        let numbers = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut slots = JoinSet::new();
        for slot in 0..self.sockets {
            let (shared, numbers) = (Arc::clone(&shared), Arc::clone(&numbers));
            let (mut rng, after) = (Rng::new(rng.next()), active.mul_f64(0.2 * slot as f64 / self.sockets as f64));
            slots.spawn(async move {
                sleep(after).await;
                let mut lives = Vec::new();
                while !*shared.quiet.borrow() {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    lives.push(Arc::clone(&shared).live(number, Rng::new(rng.next())).await);
                }
                lives
            });
        }

        let mut summary = Summary::default();
        let mut memory = Vec::new();
        let reload_every = (active / 8).clamp(Duration::from_secs(1), Duration::from_secs(10));
        let mut reload_at = began + reload_every;
        while began.elapsed() < active + settles {
            sleep(Duration::from_millis(250)).await;
            if began.elapsed() >= active.mul_f64(0.25) && began.elapsed() < active {
                memory.push(proxy.resident_memory() as u64 >> 10);
            }
            if began.elapsed() >= active && !*quiet.borrow() {
                quiet.send_replace(true);
            }
            if reload_at <= Instant::now() && began.elapsed() < active {
                reload_at += reload_every;
                let generation = shared.denied.fetch_add(1, Ordering::Relaxed) + 1;
                proxy.rewrite(&yaml(&ends, &shared.issuer, &control, generation));
            }
        }
        let drain = Instant::now();
        proxy.signal("TERM");
        let mut lives = Vec::new();
        let mut broken = 0;
        while let Some(slot) = slots.join_next().await {
            match slot {
                Ok(of_slot) => lives.extend(of_slot),
                Err(_) => broken += 1,
            }
        }
        let code = proxy.ended().await;
        summary.drained_in = drain.elapsed();
        upstream.abort();
        let log = proxy.log();
        summary.reloads = log.iter().filter(|line| line.contains("configuration reloaded")).count() as u64;
        let mut of_sockets = lines(&log);
        summary.lines = of_sockets.values().map(|lines| lines.len() as u64).sum();
        for life in &lives {
            summary.take(life);
            let verdict = judge(life, &of_sockets.remove(&life.number).unwrap_or_default(), drain);
            *summary.endings.entry(verdict.ending).or_default() += 1;
            let who = format!("socket {} of {} ({:?}, {})", life.number, life.user, life.fate, life.traits);
            summary.violations.extend(verdict.violations.into_iter().map(|what| format!("{who}: {what}")));
        }
        summary.violations.extend(of_sockets.keys().map(|number| format!("an access line of no socket: {number}")));
        if broken > 0 {
            summary.violations.push(format!("{broken} sockets saw what is against RFC 6455"));
        }
        if code != Some(0) || log.iter().any(|line| line.contains("drain timeout exceeded")) {
            summary.violations.push(format!("the drain did not end in time: {code:?}"));
        }
        summary.judge_memory(&memory);
        summary
    }
}

impl Summary {
    fn judge_memory(&mut self, samples: &[u64]) {
        let third = |part: usize| {
            let part = &samples[samples.len() * part / 3..samples.len() * (part + 1) / 3];
            part.iter().sum::<u64>() / (part.len() as u64).max(1)
        };
        let of = [third(0), third(1), third(2), samples.iter().copied().max().unwrap_or(0)];
        if of[2] > of[0] * 3 / 2 + SLACK {
            self.violations.push(format!("memory grew from {} to {} KiB", of[0], of[2]));
        }
        self.memory.push(of);
    }
}
